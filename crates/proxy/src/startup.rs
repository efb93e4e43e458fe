//! A client's first packets.

use pgproto::wire::{FirstPacket, STARTUP_BYTES_MAX, StartupError, parse_first_packet};
use tokio::io::{AsyncRead, AsyncReadExt};

/// Why a client is not served.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unwelcome {
    /// It left or said nothing, so there is nobody to tell.
    #[error("the client closed or was silent")]
    Silent,
    /// Its packet makes no sense.
    #[error(transparent)]
    Packet(#[from] StartupError),
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
