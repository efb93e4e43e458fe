//! A new connection to a server for a client of its own, up to the first answer.

use std::io;

use pgproto::wire::{sqlstate_of, without_plus};
use route::Target;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::secure::{self, DialError, DialLimits, Stream};

/// The first answer is read in pieces of at most this many bytes, and an error in it that is longer
/// is passed on unread.
const FIRST_ANSWER_BYTES: usize = 8 * 1024;
const HEADER: usize = 5;
/// "The database system is starting up", and its like.
const CANNOT_CONNECT_NOW: &str = "57P03";

/// A connection that the server answered on.
#[derive(Debug)]
pub(crate) struct Opened {
    /// The connection.
    pub(crate) stream: Stream,
    /// What the server has said so far; not empty.
    pub(crate) said: Vec<u8>,
}

impl Opened {
    /// The client cannot bind its login to the proxy's connection to the server.
    pub(crate) fn offer_no_channel_binding(&mut self) {
        let Some(([b'R', length @ ..], _)) = self.said.split_first_chunk::<HEADER>() else {
            return;
        };
        let end = usize::try_from(u32::from_be_bytes(*length)).map_or(0, |length| length + 1);
        let offer = self.said.get(HEADER..end).and_then(without_plus);
        if let Some(offer) = offer {
            self.said.splice(..end, offer);
        }
    }
}

/// Why an attempt failed. The client has been told nothing, so another one may follow.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OpenError {
    /// No connection.
    #[error("cannot connect")]
    Dial(#[from] DialError),
    /// The connection broke.
    #[error("the server closed before its first answer")]
    Closed(#[source] io::Error),
    /// The server answered that it is starting, stopping or recovering.
    #[error("the server does not take connections now")]
    NotNow,
}

/// Connects, sends the startup packet and waits for the first answer. How long that takes is
/// bounded by the client's hold time, which the router watches.
///
/// Cancel safety: dropped half-way it closes the connection; the startup packet may be sent.
pub(crate) async fn open(
    servers: &secure::ServerSide,
    target: &Target,
    (preface, startup): (&[u8], &[u8]),
    limits: DialLimits,
) -> Result<Opened, OpenError> {
    let (mut stream, _) = servers.dial(&target.host, target.port, preface, limits).await?;
    let sent = async {
        stream.write_all(startup).await?;
        stream.flush().await
    };
    sent.await.map_err(OpenError::Closed)?;
    let said = first_answer(&mut stream).await.map_err(OpenError::Closed)?;
    if is_not_now(&said) {
        return Err(OpenError::NotNow);
    }
    Ok(Opened { stream, said })
}

/// Reads something, and the whole message if it is an error of ordinary size.
async fn first_answer(stream: &mut Stream) -> io::Result<Vec<u8>> {
    let mut said = Vec::with_capacity(FIRST_ANSWER_BYTES);
    loop {
        if stream.read_buf(&mut said).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let is_error = said.first() == Some(&b'E');
        if !is_error || said.len() >= FIRST_ANSWER_BYTES || error_body(&said).is_some() {
            return Ok(said);
        }
    }
}

fn is_not_now(said: &[u8]) -> bool {
    error_body(said).and_then(sqlstate_of) == Some(CANNOT_CONNECT_NOW)
}

/// The body of the error message at the beginning, if it is there as a whole.
fn error_body(said: &[u8]) -> Option<&[u8]> {
    let ([b'E', length @ ..], _) = said.split_first_chunk::<HEADER>()? else {
        return None;
    };
    let length = usize::try_from(u32::from_be_bytes(*length)).ok()?;
    said.get(HEADER..length.checked_add(1)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_whole_error_is_looked_into() {
        let error = b"E\0\0\0\x13SFATAL\0C57P03\0\0";
        for cut in 0..error.len() {
            assert!(!is_not_now(&error[..cut]), "{cut} bytes");
        }
        assert!(is_not_now(error));
        assert!(!is_not_now(b"R\0\0\0\x08\0\0\0\0"));
        assert!(!is_not_now(b"E\xff\xff\xff\xff"));
    }
}
