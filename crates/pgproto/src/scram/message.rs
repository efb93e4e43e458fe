//! The text of SCRAM's messages: attributes with commas between them (RFC 5802, section 7).

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::ScramError;

pub(super) fn encode(bytes: &[u8]) -> String {
    STANDARD.encode(bytes)
}

pub(super) fn decode(text: &str) -> Option<Vec<u8>> {
    STANDARD.decode(text).ok()
}

/// A message as text; SCRAM has no zero bytes.
pub(super) fn text(bytes: &[u8]) -> Result<&str, ScramError> {
    let text = std::str::from_utf8(bytes).ok().filter(|text| !text.contains('\0'));
    text.ok_or(ScramError::Malformed("it is not text"))
}

/// The value of the first attribute, which must have this name, and what follows its comma.
pub(super) fn attribute<'a>(
    text: &'a str,
    name: &'static str,
    missing: &'static str,
) -> Result<(&'a str, Option<&'a str>), ScramError> {
    let rest = text.strip_prefix(name).ok_or(ScramError::Malformed(missing))?;
    Ok(match rest.split_once(',') {
        Some((value, rest)) => (value, Some(rest)),
        None => (rest, None),
    })
}

/// Printable characters but the comma.
pub(super) fn is_nonce(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic() && byte != b',')
}
