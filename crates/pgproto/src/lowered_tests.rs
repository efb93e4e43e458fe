//! What is seen, what is not, and what is said instead.

use super::*;

fn startup(parameters: &[(&str, &str)]) -> Startup {
    let pairs = parameters.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned()));
    Startup { minor: 0, parameters: pairs.collect() }
}

#[test]
fn statements_that_lower_it_are_seen() {
    for sql in [
        "SET synchronous_commit = off",
        "set Synchronous_Commit to 'LOCAL';",
        "SET SESSION synchronous_commit TO remote_write",
        "set/* a /* nested */ one */local -- here\nsynchronous_commit=OFF",
        "BEGIN; SET LOCAL synchronous_commit = 0; COMMIT",
        "SET \"synchronous_commit\" TO \"off\"",
        "SET synchronous_commit = E'off'",
        "SET synchronous_commit TO $$off$$",
        "SELECT set_config('synchronous_commit', 'off', false)",
        "select pg_catalog.SET_CONFIG ( 'SYNCHRONOUS_COMMIT' , 'no'::text , true )",
        "SELECT set_config('synchronous_commit', $1, false)",
        "SELECT set_config('synchronous_commit', lower('OFF'), false)",
        "ALTER ROLE app SET synchronous_commit = off",
        "ALTER SYSTEM SET synchronous_commit TO local",
        "ALTER ROLE app IN DATABASE d SET synchronous_commit TO local",
        "create function f() returns void set synchronous_commit = off language sql as ''",
        "select 'it''s'; set synchronous_commit = off",
        "select $a$ it's $a$, a$b from t; set synchronous_commit = off",
    ] {
        assert!(statement_lowers(sql.as_bytes()), "{sql}");
    }
}

#[test]
fn statements_that_do_not_are_let_through() {
    for sql in [
        "",
        "select 1",
        "SET synchronous_commit = on",
        "SET synchronous_commit TO remote_apply",
        "SET synchronous_commit TO DEFAULT",
        "RESET synchronous_commit",
        "SHOW synchronous_commit",
        "SELECT set_config('synchronous_commit', 'on', false)",
        "SELECT set_config('work_mem', 'off', false), 'synchronous_commit'",
        "SELECT 'SET synchronous_commit = off'",
        "SELECT $x$; SET synchronous_commit = off; $x$",
        "-- SET synchronous_commit = off",
        "/* ; SET synchronous_commit = off */ select 1",
        "UPDATE settings SET synchronous_commit = 'off'",
        "insert into t values ('it''s; set synchronous_commit = off')",
        "insert into t values (E'it\\'s; set synchronous_commit = off')",
        "set my_synchronous_commit = off",
        "set synchronous_commit",
        "set synchronous_commit = ",
        "select set_config('synchronous_commit'",
        "'",
        "\"",
        "/*",
        "$",
        "$$",
        "$a",
        "E'\\",
        "--synchronous_commit",
        "$1synchronous_commit$",
    ] {
        assert!(!statement_lowers(sql.as_bytes()), "{sql}");
    }
}

#[test]
fn what_is_not_seen_is_known() {
    for sql in [
        "DO $$ BEGIN SET synchronous_commit = off; END $$",
        "SELECT set_config('synchronous_' || 'commit', 'off', false)",
        "SET synchronous_commit = E'\\157ff'",
        "UPDATE pg_settings SET setting = 'off' WHERE name = 'synchronous_commit'",
    ] {
        assert!(!statement_lowers(sql.as_bytes()), "{sql}: better than what is documented");
    }
}

#[test]
fn a_startup_packet_that_lowers_it_is_seen() {
    for (parameters, lowers) in [
        (&[("user", "app")][..], false),
        (&[("synchronous_commit", "off")], true),
        (&[("Synchronous_Commit", "Local")], true),
        (&[("synchronous_commit", "off"), ("synchronous_commit", "on")], false),
        (&[("options", "-c synchronous_commit=off")], true),
        (&[("options", "-c work_mem=1MB  -csynchronous_commit=remote_write")], true),
        (&[("options", "--synchronous-commit=off")], true),
        (&[("options", "--synchronous_commit=remote_apply")], false),
        (&[("options", "-c synchronous_commit=off -c synchronous_commit=on")], false),
        (&[("synchronous_commit", "on"), ("options", "-c synchronous_commit=off")], false),
        (&[("options", "-c application_name=a\\ synchronous_commit=off")], false),
        (&[("options", "-c")], false),
        (&[("options", "\\")], false),
    ] {
        assert_eq!(startup_lowers(&startup(parameters)), lowers, "{parameters:?}");
    }
}

fn message(tag: u8, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len() + 4).expect("small");
    [&[tag], &length.to_be_bytes()[..], body].concat()
}

#[test]
fn a_refusal_keeps_type_name_and_parameters() {
    let query = message(b'Q', b"set synchronous_commit = off\0");
    assert!(message_lowers(&query));
    let sql = "DO $pgherd$BEGIN RAISE EXCEPTION USING ERRCODE = '42501', MESSAGE = 'it''s', \
               HINT = 'h'; END$pgherd$\0";
    assert_eq!(refusal(&query, "42501", "it's", "h"), message(b'Q', sql.as_bytes()));

    let text = b"s1\0select set_config('synchronous_commit', $2, $3), $1\0";
    // One type is declared, and left open.
    let parse = message(b'P', &[&text[..], &[0, 2, 0, 0, 0, 23, 0, 0, 0, 0]].concat());
    assert!(message_lowers(&parse));
    let tail = [0, 3, 0, 0, 0, 23, 0, 0, 0, 25, 0, 0, 0, 25];
    let wanted = message(b'P', &[b"s1\0", sql.as_bytes(), &tail].concat());
    assert_eq!(refusal(&parse, "42501", "it's", "h"), wanted);
}

#[test]
fn messages_that_make_no_sense_are_let_through() {
    let sql = b"set synchronous_commit = off";
    for whole in [message(b'Q', sql), message(b'P', sql), message(b'X', sql), vec![b'Q'], vec![]] {
        assert!(!message_lowers(&whole), "{whole:?}");
    }
    assert!(message_lowers(&message(b'P', &[b"\0", &sql[..], b"\0"].concat())));
}

#[test]
fn nothing_that_a_client_sends_breaks_it() {
    let pieces = [
        "'",
        "\"",
        "$",
        "$a$",
        "\\",
        "/*",
        "*/",
        "--",
        "e'",
        ";",
        " ",
        "\0",
        "set synchronous_commit = off",
        "=",
        "synchronous_commit",
        "set_config(",
        ",",
        "off",
        "$1",
        "\u{e9}",
    ];
    let (mut seed, mut seen) = (1_u64, 0);
    for _ in 0..20_000 {
        let mut sql = String::new();
        for _ in 0..12 {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            sql.push_str(pieces[usize::try_from(seed % 20).expect("small")]);
        }
        let whole = message(b'P', sql.as_bytes());
        let refused = refusal(&whole, "42501", "no", "none");
        assert!(!message_lowers(&refused), "{sql}");
        seen += u32::from(message_lowers(&whole));
    }
    assert!(seen > 0, "some do lower it");
}
