//! Errors of a server that are read, and errors of our own that are written.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pgproto::wire::{ErrorResponse, Severity, sqlstate_of};

fuzz_target!(|bytes: &[u8]| {
    if let Some(code) = sqlstate_of(bytes) {
        assert!(code.len() < bytes.len());
    }
    let text = String::from_utf8_lossy(bytes);
    let error = ErrorResponse {
        severity: Severity::Fatal,
        sqlstate: "57P03",
        message: &text,
        hint: Some(&text),
    };
    let written = error.to_bytes();
    assert_eq!(sqlstate_of(&written[5..]), Some("57P03"));
    let length = u32::from_be_bytes([written[1], written[2], written[3], written[4]]);
    assert_eq!(length as usize, written.len() - 1);
    assert!(written.ends_with(&[0, 0]));
});
