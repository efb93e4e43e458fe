//! A client's first packets.

use pgproto::wire::{FirstPacket, STARTUP_BYTES_MAX, StartupError, parse_first_packet};
use tokio::io::{AsyncRead, AsyncReadExt};

/// What a first packet has at most, mostly.
const USUAL_BYTES: usize = 512;

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

/// Reads one packet; `unread` is what was read before and not taken, and what is left of it then.
/// `exactly`: nothing behind the packet is read, since TLS may follow it.
pub(crate) async fn read_packet<S: AsyncRead + Unpin>(
    socket: &mut S,
    unread: &mut Vec<u8>,
    exactly: bool,
) -> Result<(FirstPacket, Vec<u8>), Unwelcome> {
    loop {
        if let Some((packet, length)) = parse_first_packet(unread)? {
            let rest = unread.split_off(length);
            return Ok((packet, std::mem::replace(unread, rest)));
        }
        let wanted = match unread.first_chunk::<4>() {
            Some(length) => usize::try_from(u32::from_be_bytes(*length)).unwrap_or(usize::MAX),
            None => 4,
        };
        let missing = wanted.min(STARTUP_BYTES_MAX).saturating_sub(unread.len());
        let most = if exactly { missing } else { missing.max(USUAL_BYTES) };
        unread.reserve(most);
        let mut limited = (&mut *socket).take(u64::try_from(most).unwrap_or(u64::MAX));
        match limited.read_buf(unread).await {
            Ok(count) if count > 0 => {}
            Ok(_) | Err(_) => return Err(Unwelcome::Silent),
        }
    }
}
