//! A proven connection: frames over a byte stream.

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf, split};

use super::frame::{Frame, FrameError, Opener, Sealer};
use super::{FRAME_MAX, SEND_MAX};

/// Read from the stream at a time; what waits in memory is at most this and one frame.
const CHUNK_BYTES: usize = FRAME_MAX;

/// Why a connection has ended.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// A frame that cannot be written or believed.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// The connection broke.
    #[error("the connection broke")]
    Broken {
        /// What came back.
        #[source]
        source: io::Error,
    },
    /// The other side closed it.
    #[error("the other side closed the connection")]
    Closed,
    /// The kernel took nothing for too long.
    #[error("nothing could be sent for {} s", SEND_MAX.as_secs())]
    Stuck,
}

/// Both directions of a proven connection.
pub struct Link<S> {
    /// What we say.
    pub sending: Sending<S>,
    /// What the other side says.
    pub receiving: Receiving<S>,
}

/// The direction away from us.
pub struct Sending<S> {
    stream: WriteHalf<S>,
    sealer: Sealer,
}

/// The direction towards us.
pub struct Receiving<S> {
    stream: ReadHalf<S>,
    opener: Opener,
    buffer: Vec<u8>,
}

impl<S: AsyncRead + AsyncWrite> Link<S> {
    /// `begun` is what has been read already.
    pub(super) fn new(stream: S, begun: Vec<u8>, sealer: Sealer, opener: Opener) -> Link<S> {
        let (reading, writing) = split(stream);
        Link {
            sending: Sending { stream: writing, sealer },
            receiving: Receiving { stream: reading, opener, buffer: begun },
        }
    }
}

impl<S: AsyncWrite> Sending<S> {
    /// Sends one frame. Cancel safety: none; the connection is of no use afterwards.
    ///
    /// # Errors
    /// The connection is of no use any more.
    pub async fn send(&mut self, frame: &Frame) -> Result<(), LinkError> {
        let bytes = self.sealer.seal(frame)?;
        let sending = async {
            self.stream.write_all(&bytes).await?;
            self.stream.flush().await
        };
        match tokio::time::timeout(SEND_MAX, sending).await {
            Ok(sent) => sent.map_err(|source| LinkError::Broken { source }),
            Err(_) => Err(LinkError::Stuck),
        }
    }
}

impl<S: AsyncRead> Receiving<S> {
    /// The next frame. Cancel safety: what was read is kept for the next call.
    ///
    /// # Errors
    /// The connection is of no use any more.
    pub async fn next(&mut self) -> Result<Frame, LinkError> {
        loop {
            if let Some(frame) = self.opener.open(&mut self.buffer)? {
                return Ok(frame);
            }
            let mut chunk = [0; CHUNK_BYTES];
            let length = self.stream.read(&mut chunk).await;
            let length = length.map_err(|source| LinkError::Broken { source })?;
            if length == 0 {
                return Err(LinkError::Closed);
            }
            self.buffer.extend_from_slice(&chunk[..length]);
        }
    }
}
