//! A statement's effect on its session: no text stops it, and what a text says does not depend on
//! blanks before it or on how its letters are written.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pgproto::sql::{Kind, is_commit, look};

fuzz_target!(|text: &[u8]| {
    let seen = look(text);
    assert_eq!(seen.commits, is_commit(text));
    let later = [b" \n/*;*/", text].concat();
    assert_eq!(seen, look(&later));
    if seen.single {
        assert!(!matches!(seen.kind, Kind::Empty | Kind::Several));
    }
    if let Kind::Set { name, value } = seen.kind {
        assert!(!name.is_empty() && !value.is_empty());
        // What is kept for a session sets the same again.
        let again = [b"SET ", name, b" TO ", value].concat();
        assert_eq!(look(&again).kind, seen.kind);
    }
    // What is left, is left with another statement behind it too; but a name that is not closed
    // becomes another one.
    if seen.leaves.is_some() && !text.contains(&b'"') {
        let followed = [text, b"\n;select 1"].concat();
        assert!(look(&followed).leaves.is_some());
    }
});
