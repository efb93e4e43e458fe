//! Single reads on a replica, and what becomes of them if it fails.

use super::*;

/// Whether these messages together are one read of this client.
fn is_read(client: &ClientSide, messages: &[&str]) -> bool {
    let bytes = encode(messages);
    for cut in 0..bytes.len() {
        assert!(!client.asks_to_read(&bytes[..cut]), "{cut} bytes of {messages:?}");
    }
    let more = [&bytes[..], &encode(&["Q select 1|"])].concat();
    assert!(!client.asks_to_read(&more), "and more behind {messages:?}");
    client.asks_to_read(&bytes)
}

#[test]
fn a_request_with_one_statement_that_reads_is_told() {
    let mut talk = Talk::new();
    talk.up(&["P a|select 1|||", "P w|update t set x = 1|||", "P |select 2|||", "S"]);
    talk.down(&["1", "1", "1", "Z I"]);
    for messages in [
        &["Q select 1|"][..],
        &["P |select 1|||", "B ||||||", "E |||||", "S"],
        &["P |select 1|||", "D S|", "B ||||||", "D P|", "E |||||", "S"],
        &["B |a|||||", "E |||||", "S"],
        &["D Sa|", "B |a|||||", "E |||||", "S"],
        &["B ||||||", "D P|", "E |||||", "S"],
    ] {
        assert!(is_read(&talk.client, messages), "{messages:?}");
    }
    for messages in [
        &["Q select 1; select 2|"][..],
        &["Q update t set x = 1|"],
        &["Q begin|"],
        &["X"],
        &["S"],
        &["P b|select 1|||", "B |b|||||", "E |||||", "S"],
        &["P |select 1|||", "S"],
        &["P |select 1|||", "D S|", "S"],
        &["P |select 1|||", "B |a|||||", "E |||||", "S"],
        &["P |update t set x = 1|||", "B ||||||", "E |||||", "S"],
        &["B |w|||||", "E |||||", "S"],
        &["B |unknown|||||", "E |||||", "S"],
        &["B p|a|||||", "E p|||||", "S"],
        &["B |a|||||", "E p|||||", "S"],
        &["B |a|||||", "E |||||", "H"],
        &["B |a|||||", "E |||||", "E |||||", "S"],
        &["B |a|||||", "C Sa|", "S"],
        &["B |a|||||", "E |||||", "B |a|||||", "E |||||", "S"],
        &["F 1234"],
    ] {
        assert!(!is_read(&talk.client, messages), "{messages:?}");
    }
    let long = format!("Q select '{}'|", "x".repeat(40_000));
    assert!(!talk.client.asks_to_read(&encode(&[&long])));
}

#[test]
fn who_has_something_that_no_replica_has_reads_at_the_primary() {
    let read = encode(&["Q select 1|"]);
    let with = |name: &str, value: &str| {
        let settings = Settings([(name.to_owned(), value.to_owned())].into());
        let (told, policy) = (Arc::default(), SessionState::Pin);
        ClientSide::new(PoolMode::Transaction, policy, Arc::new(settings), told)
    };
    for (name, value, may) in [
        ("work_mem", "'1MB'", true),
        ("default_transaction_isolation", "'repeatable read'", true),
        ("default_transaction_isolation", "'SERIALIZABLE'", false),
        ("default_transaction_isolation", "serializable", false),
        ("client_encoding", "'UTF8'", true),
        ("client_encoding", "'SJIS'", false),
        ("standard_conforming_strings", "on", true),
        ("standard_conforming_strings", "'off'", false),
    ] {
        assert_eq!(with(name, value).asks_to_read(&read), may, "{name} {value}");
    }
    let session =
        ClientSide::new(PoolMode::Session, SessionState::Pin, Arc::default(), Arc::default());
    assert!(!session.asks_to_read(&read));
    let mut talk = Talk::new();
    talk.up(&["Q listen x|"]);
    talk.down(&["C LISTEN|", "Z I"]);
    assert!(!talk.client.asks_to_read(&read), "it is pinned");
}

#[test]
fn only_what_surely_reads_is_no_write() {
    let mut talk = Talk::new();
    for (sql, tag, status, wrote) in [
        ("select count(*) from t", "SELECT 1", "I", false),
        ("show work_mem", "SHOW", "I", false),
        ("select f(1)", "SELECT 1", "I", true),
        ("insert into t values (1)", "INSERT 0 1", "I", true),
        ("begin", "BEGIN", "T", false),
        ("update t set x = 1", "UPDATE 1", "T", true),
        ("commit", "COMMIT", "I", true),
    ] {
        talk.query(sql, tag, status);
        assert_eq!(talk.client.take_wrote(), wrote, "{sql}");
        assert!(!talk.client.take_wrote());
    }
    talk.up(&["P |delete from t|||", "B ||||||", "E |||||", "S"]);
    assert!(talk.client.take_wrote());
}

/// What a replica says, in pieces of this many bytes; what it was at the end.
fn heard(messages: &[&str], piece_bytes: usize) -> (Heard, usize) {
    let bytes = encode(messages);
    let mut trial = Trial::new(&client(), b"");
    for (count, piece) in bytes.chunks(piece_bytes).enumerate() {
        let heard = trial.hear(piece);
        if heard != Heard::Part {
            let taken = trial.take_heard();
            assert_eq!(taken, bytes[..taken.len()]);
            return (heard, count);
        }
    }
    (Heard::Part, bytes.len())
}

#[test]
fn an_answer_is_kept_until_it_is_whole_and_an_error_is_the_primarys_to_repeat() {
    const ROW: &str = "D ||a row";
    for (messages, wanted) in [
        (&["T ||", ROW, "C SELECT 1|", "Z I"][..], Heard::Answer),
        (&["1", "2", "T ||", ROW, "C SELECT 1|"], Heard::Part),
        (&["E SERROR|C25006||", "Z I"], Heard::Error),
        (&["1", "2", "T ||", ROW, "E SERROR|C40001||", "Z I"], Heard::Error),
        (&["E SFATAL|C57P01||"], Heard::Error),
        (&["T ||", ROW, "C SELECT 1|", "E SFATAL|C57P01||"], Heard::Answer),
        (&["T ||", "E SERROR|C57014||", "Z I"], Heard::Answer),
        (&["T ||", ROW, "C SELECT 1|", "S search_path|x|", "Z I"], Heard::Altered),
        (&["C SELECT 1|", "S in_hot_standby|off|", "Z I"], Heard::Answer),
        (&["S in_hot_standby|off|", "S search_path|x|", "Z I"], Heard::Answer),
    ] {
        for piece_bytes in [1, 3, 1000] {
            assert_eq!(heard(messages, piece_bytes).0, wanted, "{messages:?}");
        }
    }
    assert_eq!(Trial::new(&client(), b"").hear(b"E\0\0\0\x01"), Heard::Error, "no message");
    // Nothing is kept without a limit.
    let long = format!("D {}", "x".repeat(1000));
    let rows = vec![long.as_str(); 40];
    let (verdict, pieces) = heard(&rows, 1000);
    assert_eq!(verdict, Heard::Answer);
    assert!((16..=17).contains(&pieces), "{pieces}");
}

#[test]
fn the_same_request_reaches_the_primary_as_if_it_were_the_first() {
    let mut talk = Talk::new();
    talk.up(&["P |select f(1)|||", "S"]);
    talk.down(&["1", "Z I"]);
    let request = ["B ||||||", "E |||||", "S"];
    talk.moves();
    let mut trial = Trial::new(&talk.client, &encode(&request));
    assert_eq!(trial.request_bytes(), encode(&request).len());
    // The replica does not even take the statement, so it is not there any more.
    assert_eq!(talk.up(&request), ["P |select f(1)|||", "B ||||||", "E |||||", "S"]);
    let error = ["E SERROR|C25006||", "Z I"];
    assert_eq!(trial.hear(&encode(&error)), Heard::Error);
    talk.take(false, &trial.take_heard()).1.unwrap();
    assert!(talk.server.is_at_rest());
    let again = trial.give_up(&mut talk.client);
    assert_eq!(show(&again), request);
    talk.moves();
    assert_eq!(talk.up(&request), ["P |select f(1)|||", "B ||||||", "E |||||", "S"]);
    let answer = ["2", "C SELECT 1|", "Z I"];
    assert_eq!(talk.down(&["1", "2", "C SELECT 1|", "Z I"]), answer);
}

#[test]
fn a_client_whose_reads_are_split_is_not_told_of_the_replica() {
    let reports = |standby: &str, zone: &str| {
        let values = [("in_hot_standby", standby), ("TimeZone", zone)];
        let owned = |(name, value): (&str, &str)| (name.to_owned(), value.to_owned());
        Arc::new(Reported(values.map(owned).into()))
    };
    for (splits, wanted) in
        [(true, &["S TimeZone|x|"][..]), (false, &["S TimeZone|x|", "S in_hot_standby|on|"])]
    {
        let mut talk = Talk::new();
        talk.client = client().splitting(splits);
        talk.client.told = reports("off", "UTC");
        talk.server = ServerSide::new(reports("on", "x"), 3);
        assert!(!talk.server.is_promoted());
        assert_eq!(talk.lend().1, wanted);
        talk.server = ServerSide::new(reports("off", "x"), 3);
        assert!(talk.server.is_promoted());
        assert_eq!(talk.lend().1.is_empty(), splits);
    }
}
