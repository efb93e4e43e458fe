//! Messages that are put into a conversation, and the strings in those that pass.

/// A message of this type and body.
pub(crate) fn message(into: &mut Vec<u8>, tag: u8, parts: &[&[u8]]) {
    let body_bytes: usize = parts.iter().map(|part| part.len()).sum();
    // What is put together here is far below 4 GiB.
    let length = u32::try_from(body_bytes + 4).unwrap_or(u32::MAX);
    into.reserve(body_bytes + 5);
    into.push(tag);
    into.extend_from_slice(&length.to_be_bytes());
    parts.iter().for_each(|part| into.extend_from_slice(part));
}

/// ReadyForQuery with `I`, `T` or `E`.
pub fn ready_for_query(into: &mut Vec<u8>, status: u8) {
    message(into, b'Z', &[&[status]]);
}

/// ParameterStatus.
pub fn parameter_status(into: &mut Vec<u8>, name: &str, value: &str) {
    message(into, b'S', &[name.as_bytes(), &[0], value.as_bytes(), &[0]]);
}

/// The zero-terminated string at the beginning, and what follows it.
pub(crate) fn text(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let end = bytes.iter().position(|byte| *byte == 0)?;
    Some((&bytes[..end], &bytes[end + 1..]))
}

/// The body of a message that begins with its header.
pub(crate) fn body(bytes: &[u8]) -> &[u8] {
    bytes.get(5..).unwrap_or_default()
}
