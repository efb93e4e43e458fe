//! The first packet of a client: whatever comes, an answer within the bytes that are there, and the
//! same one from the packet alone.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pgproto::wire::{STARTUP_BYTES_MAX, parse_first_packet};

fuzz_target!(|bytes: &[u8]| {
    match parse_first_packet(bytes) {
        Ok(Some((packet, used))) => {
            assert!(used <= bytes.len() && used <= STARTUP_BYTES_MAX);
            assert_eq!(parse_first_packet(&bytes[..used]), Ok(Some((packet, used))));
            // No error before it is complete.
            for cut in [0, used / 2, used - 1] {
                assert_eq!(parse_first_packet(&bytes[..cut]), Ok(None));
            }
        }
        Ok(None) => assert!(bytes.len() < STARTUP_BYTES_MAX),
        // Nothing that follows makes a packet of it.
        Err(error) => {
            let longer = [bytes, &[0; 9]].concat();
            assert_eq!(parse_first_packet(&longer), Err(error));
        }
    }
});
