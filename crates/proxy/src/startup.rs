//! A client's first packets.

use std::time::Duration;

use pgproto::wire::{
    CancelKey, FirstPacket, REFUSED_ENCRYPTION, STARTUP_BYTES_MAX, Startup, StartupError,
    parse_first_packet,
};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// A client says what it wants within this time.
const STARTUP_TIMEOUT: Duration = Duration::from_secs(10);
/// TLS and GSSAPI, each asked for once.
const ENCRYPTION_REQUESTS_MAX: usize = 2;

/// What a client wants.
#[derive(Debug)]
pub(crate) enum Wish {
    /// A session; the startup packet, and as it came.
    Session(Startup, Vec<u8>),
    /// A statement of another session cancelled; the packet as it came.
    Cancel(CancelKey, Vec<u8>),
}

/// Why a client is not served.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unwelcome {
    /// It left or said nothing, so there is nobody to tell.
    #[error("the client closed or was silent")]
    Silent,
    /// Its packet makes no sense.
    #[error(transparent)]
    Packet(#[from] StartupError),
    /// It asks for encryption again and again.
    #[error("encryption was refused and asked for again")]
    Insists,
}

/// Reads until the client has said what it wants. Nothing beyond that packet is read.
pub(crate) async fn read_wish(socket: &mut TcpStream) -> Result<Wish, Unwelcome> {
    timeout(STARTUP_TIMEOUT, negotiate(socket)).await.unwrap_or(Err(Unwelcome::Silent))
}

async fn negotiate(socket: &mut TcpStream) -> Result<Wish, Unwelcome> {
    for _ in 0..=ENCRYPTION_REQUESTS_MAX {
        let (packet, bytes) = read_packet(socket).await?;
        match packet {
            FirstPacket::Startup(startup) => return Ok(Wish::Session(startup, bytes)),
            FirstPacket::Cancel(key) => return Ok(Wish::Cancel(key, bytes)),
            FirstPacket::EncryptTls | FirstPacket::EncryptGss => {
                socket.write_all(REFUSED_ENCRYPTION).await.map_err(|_| Unwelcome::Silent)?;
            }
        }
    }
    Err(Unwelcome::Insists)
}

/// Reads one packet, and nothing behind it.
pub(crate) async fn read_packet<S: AsyncRead + Unpin>(
    socket: &mut S,
) -> Result<(FirstPacket, Vec<u8>), Unwelcome> {
    let mut bytes = Vec::new();
    loop {
        if let Some((packet, _)) = parse_first_packet(&bytes)? {
            return Ok((packet, bytes));
        }
        // The packet's own bytes and no more: what follows it is for the server.
        let wanted = match bytes.first_chunk::<4>() {
            Some(length) => usize::try_from(u32::from_be_bytes(*length)).unwrap_or(usize::MAX),
            None => 4,
        };
        let missing = wanted.min(STARTUP_BYTES_MAX) - bytes.len();
        let missing = u64::try_from(missing).unwrap_or(u64::MAX);
        let read = (&mut *socket).take(missing).read_to_end(&mut bytes).await;
        match read {
            Ok(count) if count > 0 => {}
            Ok(_) | Err(_) => return Err(Unwelcome::Silent),
        }
    }
}
