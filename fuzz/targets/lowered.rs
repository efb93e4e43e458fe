//! Who lowers `synchronous_commit`: any statement, any message, and the message that is sent
//! instead is one.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pgproto::lowered::{message_lowers, refusal, startup_lowers, statement_lowers};
use pgproto::wire::{FirstPacket, FrameScanner, Step, parse_first_packet};

fuzz_target!(|bytes: &[u8]| {
    let statement = statement_lowers(bytes);
    let query = message(b'Q', &[bytes, &[0]]);
    if !bytes.contains(&0) {
        assert_eq!(message_lowers(&query), statement);
    }
    for bytes in [bytes, &query, &message(b'P', &[b"name\0", bytes])] {
        if message_lowers(bytes) {
            let instead = refusal(bytes, "42501", "it's refused", "ask");
            let mut rest = &instead[..];
            let mut scanner = FrameScanner::default();
            loop {
                match scanner.advance(&mut rest) {
                    Ok(Step::Begun { .. } | Step::Body(_)) => {}
                    Ok(Step::Ended { .. }) => break,
                    Ok(Step::NeedMore) => panic!("the message ends early"),
                    Err(error) => panic!("{error}"),
                }
            }
            assert!(rest.is_empty(), "there is more than the message");
        }
    }
    if let Ok(Some((FirstPacket::Startup(startup), _))) = parse_first_packet(bytes) {
        std::hint::black_box(startup_lowers(&startup));
    }
});

fn message(tag: u8, parts: &[&[u8]]) -> Vec<u8> {
    let body = parts.concat();
    let length = u32::try_from(body.len() + 4).unwrap_or(u32::MAX);
    [&[tag], &length.to_be_bytes()[..], &body].concat()
}
