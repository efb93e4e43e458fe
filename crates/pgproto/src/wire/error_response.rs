//! Errors that a relay tells a client itself, and the one field it reads of a server's.

/// How bad an error is for the session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Severity {
    /// The statement failed; the session goes on.
    Error,
    /// The session ends.
    Fatal,
}

impl Severity {
    /// The word on the wire.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Severity::Error => "ERROR",
            Severity::Fatal => "FATAL",
        }
    }
}

/// An ErrorResponse to be built.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ErrorResponse<'a> {
    /// How bad it is.
    pub severity: Severity,
    /// Five characters.
    pub sqlstate: &'a str,
    /// What happened.
    pub message: &'a str,
    /// What to do, if anything.
    pub hint: Option<&'a str>,
}

impl ErrorResponse<'_> {
    /// The whole message as bytes. Zero bytes in a text are left out, as they would end the field.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let severity = self.severity.as_str();
        let mut bytes = vec![b'E', 0, 0, 0, 0];
        let fields = [(b'S', severity), (b'V', severity), (b'C', self.sqlstate)];
        let texts = [(b'M', Some(self.message)), (b'H', self.hint)];
        let texts = texts.into_iter().filter_map(|(tag, text)| Some((tag, text?)));
        for (tag, text) in fields.into_iter().chain(texts) {
            bytes.push(tag);
            bytes.extend(text.bytes().filter(|byte| *byte != 0));
            bytes.push(0);
        }
        bytes.push(0);
        let length = u32::try_from(bytes.len() - 1).unwrap_or(u32::MAX);
        bytes[1..5].copy_from_slice(&length.to_be_bytes());
        bytes
    }
}

/// The SQLSTATE in the body of an ErrorResponse (after type and length).
#[must_use]
pub fn sqlstate_of(body: &[u8]) -> Option<&str> {
    std::str::from_utf8(field_of(body, b'C')?).ok()
}

/// A field in the body of an ErrorResponse by its type, such as `M` for the message.
#[must_use]
pub fn field_of(body: &[u8], field_type: u8) -> Option<&[u8]> {
    let mut fields = body.split(|byte| *byte == 0).take_while(|field| !field.is_empty());
    fields.find(|field| field[0] == field_type).map(|field| &field[1..])
}

/// What the function is called that waits for a standby (PostgreSQL, syncrep.c): errors and notices
/// name the function that raised them, in every language.
const STANDBY_WAIT: &[u8] = b"RSyncRepWaitForLSN";

/// Whether the body of a NoticeResponse says that a commit is there, and that its wait for a
/// synchronous standby was cancelled: it may be lost in a failover.
#[must_use]
pub fn is_standby_not_awaited(body: &[u8]) -> bool {
    body.split(|byte| *byte == 0).any(|field| field == STANDBY_WAIT)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_response_is_framed_and_readable() {
        let bytes = ErrorResponse {
            severity: Severity::Fatal,
            sqlstate: "57P03",
            message: "no\0 primary",
            hint: Some("wait"),
        }
        .to_bytes();
        assert_eq!(&bytes[5..], b"SFATAL\0VFATAL\0C57P03\0Mno primary\0Hwait\0\0");
        let length = u32::from_be_bytes([bytes[1], bytes[2], bytes[3], bytes[4]]);
        assert_eq!(length as usize, bytes.len() - 1);
        assert_eq!(sqlstate_of(&bytes[5..]), Some("57P03"));
        assert_eq!(field_of(&bytes[5..], b'M'), Some(&b"no primary"[..]));
        assert_eq!(field_of(&bytes[5..], b'D'), None);
        assert_eq!(sqlstate_of(b"Sx\0\0C1\0"), None, "after the end of the fields");
        assert_eq!(sqlstate_of(b""), None);
        assert!(is_standby_not_awaited(b"SWARNUNG\0C01000\0RSyncRepWaitForLSN\0\0"));
        assert!(!is_standby_not_awaited(b"SNOTICE\0MSyncRepWaitForLSN\0\0"));
    }
}
