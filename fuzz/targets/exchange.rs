//! Both streams of a session: the split in which the bytes arrive does not matter, and the scanner
//! gives every byte of every body once.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pgproto::wire::{Exchange, FrameScanner, Step};

// The first byte of the input: how many bytes arrive at once.
fuzz_target!(|input: &[u8]| {
    let Some((at_once, bytes)) = input.split_first() else { return };
    let at_once = usize::from(*at_once).max(1);
    bodies_are_whole(bytes, at_once);
    let (mut whole, mut pieces) = (Exchange::default(), Exchange::default());
    let (client, server) = bytes.split_at(bytes.len() / 2);
    let asked = whole.client_sent(client);
    let in_pieces = client.chunks(at_once).try_for_each(|piece| pieces.client_sent(piece));
    assert_eq!(asked, in_pieces);
    if asked.is_err() {
        return;
    }
    let answered = whole.server_sent(server);
    let in_pieces = server.chunks(at_once).try_for_each(|piece| pieces.server_sent(piece));
    assert_eq!(answered, in_pieces);
    if answered.is_ok() {
        assert_eq!(whole, pieces);
    }
});

fn bodies_are_whole(bytes: &[u8], at_once: usize) {
    let mut scanner = FrameScanner::default();
    let mut missing = 0;
    for mut piece in bytes.chunks(at_once) {
        loop {
            match scanner.advance(&mut piece) {
                Ok(Step::Begun { body_bytes, .. }) => missing = body_bytes as usize,
                Ok(Step::Body(body)) => {
                    assert!(!body.is_empty() && body.len() <= missing);
                    missing -= body.len();
                }
                Ok(Step::Ended { .. }) => {
                    assert_eq!(missing, 0);
                    assert!(scanner.at_boundary());
                }
                Ok(Step::NeedMore) => break,
                Err(_) => return,
            }
        }
        assert!(piece.is_empty());
    }
}
