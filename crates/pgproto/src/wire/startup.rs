//! The first packet of a connection: it has no type byte, only a length and a code.

use thiserror::Error;

/// The longest first packet, in bytes with its length word; PostgreSQL's own limit
/// (`MAX_STARTUP_PACKET_LENGTH`).
pub const STARTUP_BYTES_MAX: usize = 10_000;

/// The longest secret of a cancel key, in bytes (protocol 3.2).
pub const CANCEL_KEY_BYTES_MAX: usize = 256;

/// The answer to [`FirstPacket::EncryptTls`] and [`FirstPacket::EncryptGss`] that says no; the
/// client goes on in plain text or leaves.
pub const REFUSED_ENCRYPTION: &[u8] = b"N";

/// The shortest secret: four bytes, which is all that protocol 3.0 knows.
const CANCEL_KEY_BYTES_MIN: usize = 4;
const WORD: usize = 4;
const CANCEL_CODE: u32 = 80_877_102;
const TLS_CODE: u32 = 80_877_103;
const GSS_CODE: u32 = 80_877_104;

/// What a client may say first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FirstPacket {
    /// It wants a session.
    Startup(Startup),
    /// It asks for TLS; one byte answers, then another first packet follows.
    EncryptTls,
    /// It asks for GSSAPI encryption; answered like [`FirstPacket::EncryptTls`].
    EncryptGss,
    /// It wants the statement of another session cancelled.
    Cancel(CancelKey),
}

/// The startup packet of a session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Startup {
    /// Minor version of protocol 3; the server negotiates it.
    pub minor: u16,
    /// The parameters in their order. Text that is not UTF-8 is shown with replacement
    /// characters: a relay forwards the packet's bytes, not these.
    pub parameters: Vec<(String, String)>,
}

impl Startup {
    /// The last value of a parameter, as the server takes the last one too.
    #[must_use]
    pub fn parameter(&self, name: &str) -> Option<&str> {
        self.parameters.iter().rev().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }
}

/// What identifies a server session for a cancel request. The secret is never shown (I6).
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CancelKey {
    /// The backend's process id as the server named it.
    pub process: u32,
    /// The secret, 4 to [`CANCEL_KEY_BYTES_MAX`] bytes.
    pub secret: Vec<u8>,
}

impl std::fmt::Debug for CancelKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CancelKey").field("process", &self.process).finish_non_exhaustive()
    }
}

impl CancelKey {
    /// Reads process id and secret, as they stand in BackendKeyData and in CancelRequest.
    #[must_use]
    pub fn parse(body: &[u8]) -> Option<CancelKey> {
        let (process, secret) = body.split_first_chunk::<WORD>()?;
        if !(CANCEL_KEY_BYTES_MIN..=CANCEL_KEY_BYTES_MAX).contains(&secret.len()) {
            return None;
        }
        Some(CancelKey { process: u32::from_be_bytes(*process), secret: secret.to_vec() })
    }

    /// The CancelRequest with this key.
    #[must_use]
    pub fn to_request(&self) -> Vec<u8> {
        // The secret has at most 256 bytes.
        let length = u32::try_from(3 * WORD + self.secret.len()).unwrap_or(u32::MAX);
        let words = [length, CANCEL_CODE, self.process].map(u32::to_be_bytes);
        [words.as_flattened(), &self.secret].concat()
    }

    /// The BackendKeyData with this key.
    #[must_use]
    pub fn to_message(&self) -> Vec<u8> {
        let length = u32::try_from(2 * WORD + self.secret.len()).unwrap_or(u32::MAX);
        [b"K", &length.to_be_bytes()[..], &self.process.to_be_bytes(), &self.secret].concat()
    }
}

/// Why a first packet cannot be one.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum StartupError {
    /// Not PostgreSQL's protocol, or a packet beyond the limit.
    #[error(
        "the first packet announces {length} bytes, allowed are 8 to {STARTUP_BYTES_MAX}; \
         is this a PostgreSQL client?"
    )]
    Length {
        /// What the length word says.
        length: u32,
    },
    /// A protocol version that is not 3.x.
    #[error("protocol {major}.{minor} is not supported; use a client that speaks protocol 3")]
    Version {
        /// Major version.
        major: u16,
        /// Minor version.
        minor: u16,
    },
    /// The parameters are not pairs of zero-terminated strings.
    #[error("the startup packet's parameters are not pairs of zero-terminated strings")]
    Parameters,
    /// A request for encryption or a cancel request of the wrong size.
    #[error("a request with code {code} is {length} bytes long, which it cannot be")]
    Request {
        /// The request's code.
        code: u32,
        /// The packet's length in bytes.
        length: u32,
    },
}

/// Reads the first packet from the beginning of `buffer`: the packet and its length in bytes, or
/// `None` if more bytes are needed (never more than [`STARTUP_BYTES_MAX`] in all).
///
/// # Errors
/// [`StartupError`], as soon as the bytes can no longer become a packet.
pub fn parse_first_packet(buffer: &[u8]) -> Result<Option<(FirstPacket, usize)>, StartupError> {
    let Some(length_word) = word_at(buffer, 0) else {
        return Ok(None);
    };
    let Some(length) = usize::try_from(length_word)
        .ok()
        .filter(|length| (2 * WORD..=STARTUP_BYTES_MAX).contains(length))
    else {
        return Err(StartupError::Length { length: length_word });
    };
    let (Some(code), Some(body)) = (word_at(buffer, WORD), buffer.get(2 * WORD..length)) else {
        return Ok(None);
    };
    let wrong_size = StartupError::Request { code, length: length_word };
    let packet = match code {
        TLS_CODE | GSS_CODE if !body.is_empty() => return Err(wrong_size),
        TLS_CODE => FirstPacket::EncryptTls,
        GSS_CODE => FirstPacket::EncryptGss,
        CANCEL_CODE => FirstPacket::Cancel(CancelKey::parse(body).ok_or(wrong_size)?),
        version => FirstPacket::Startup(parse_startup(version, body)?),
    };
    Ok(Some((packet, length)))
}

fn parse_startup(version: u32, body: &[u8]) -> Result<Startup, StartupError> {
    let [major_high, major_low, minor_high, minor_low] = version.to_be_bytes();
    let major = u16::from_be_bytes([major_high, major_low]);
    let minor = u16::from_be_bytes([minor_high, minor_low]);
    if major != 3 {
        return Err(StartupError::Version { major, minor });
    }
    let mut parameters = Vec::new();
    let mut rest = body;
    loop {
        let (name, after) = zero_terminated(rest).ok_or(StartupError::Parameters)?;
        if name.is_empty() {
            let ended = after.is_empty();
            return ended.then_some(Startup { minor, parameters }).ok_or(StartupError::Parameters);
        }
        let (value, after) = zero_terminated(after).ok_or(StartupError::Parameters)?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        parameters.push((text(name), text(value)));
        rest = after;
    }
}

fn zero_terminated(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let end = bytes.iter().position(|byte| *byte == 0)?;
    Some((&bytes[..end], &bytes[end + 1..]))
}

fn word_at(buffer: &[u8], offset: usize) -> Option<u32> {
    let (word, _) = buffer.get(offset..)?.split_first_chunk::<WORD>()?;
    Some(u32::from_be_bytes(*word))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packet(code: u32, body: &[u8]) -> Vec<u8> {
        let length = u32::try_from(body.len() + 8).expect("small");
        [&length.to_be_bytes(), &code.to_be_bytes(), body].concat()
    }

    #[test]
    fn a_startup_packet_comes_in_any_split() {
        let bytes = packet(0x0003_0002, b"user\0app\0database\0d\0\0");
        for cut in 0..bytes.len() {
            assert_eq!(parse_first_packet(&bytes[..cut]), Ok(None), "{cut} bytes");
        }
        let trailing = [bytes.as_slice(), b"Q"].concat();
        let (packet, used) = parse_first_packet(&trailing).expect("valid").expect("whole");
        assert_eq!(used, bytes.len());
        let FirstPacket::Startup(startup) = packet else { panic!("{packet:?}") };
        assert_eq!(startup.minor, 2);
        assert_eq!(startup.parameter("user"), Some("app"));
        assert_eq!(startup.parameter("database"), Some("d"));
        assert_eq!(startup.parameter("x"), None);
    }

    #[test]
    fn requests_are_told_apart() {
        let first = |code, body: &[u8]| parse_first_packet(&packet(code, body));
        assert_eq!(first(TLS_CODE, b""), Ok(Some((FirstPacket::EncryptTls, 8))));
        assert_eq!(first(GSS_CODE, b""), Ok(Some((FirstPacket::EncryptGss, 8))));
        assert!(matches!(first(TLS_CODE, b"x"), Err(StartupError::Request { .. })));
        let long = [&7u32.to_be_bytes()[..], &[9; 32]].concat();
        let key = CancelKey { process: 7, secret: vec![9; 32] };
        assert!(!format!("{key:?}").contains('9'), "the secret is not shown");
        assert_eq!(first(CANCEL_CODE, &long), Ok(Some((FirstPacket::Cancel(key), 44))));
        assert!(first(CANCEL_CODE, &[0; 7]).is_err(), "a secret of three bytes");
        assert!(first(CANCEL_CODE, &[0; 261]).is_err(), "a secret of 257 bytes");
    }

    #[test]
    fn keys_are_written_as_they_are_read() {
        let key = CancelKey { process: 7, secret: vec![9; 32] };
        let request = parse_first_packet(&key.to_request()).expect("valid").expect("whole");
        assert_eq!(request, (FirstPacket::Cancel(key.clone()), 44));
        assert_eq!(CancelKey::parse(&key.to_message()[5..]), Some(key));
    }

    #[test]
    fn what_is_not_postgresql_is_refused_early() {
        assert!(matches!(parse_first_packet(b"GET /"), Err(StartupError::Length { .. })));
        assert!(matches!(
            parse_first_packet(&packet(0x0002_0000, b"")),
            Err(StartupError::Version { major: 2, minor: 0 })
        ));
        for body in [&b""[..], b"user\0", b"user\0a\0", b"user\0a\0\0x"] {
            let bytes = packet(0x0003_0000, body);
            assert_eq!(parse_first_packet(&bytes), Err(StartupError::Parameters), "{body:?}");
        }
    }
}
