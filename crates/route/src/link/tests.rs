//! Conversations in short: `Q select 1|` is a Query, `|` a zero byte; messages are separated by
//! blanks in what is shown, and one string each in what is sent.

use std::sync::Arc;

use super::*;

/// Client, server connection and what they share.
struct Talk {
    client: ClientSide,
    server: ServerSide,
    helper: Helper,
}

#[derive(Default)]
struct Helper(Registry);

impl Help for Helper {
    fn intern(&mut self, tail: &[u8]) -> Arc<Prepared> {
        self.0.intern(tail)
    }

    fn replace(&mut self, _message: &[u8]) -> Option<Vec<u8>> {
        None
    }
}

fn encode(messages: &[&str]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for text in messages {
        let (tag, body) = text.split_at(1);
        let body: Vec<u8> = body.trim_start().replace('|', "\0").into_bytes();
        messages::message(&mut bytes, tag.as_bytes()[0], &[&body]);
    }
    bytes
}

fn show(mut bytes: &[u8]) -> Vec<String> {
    let mut shown = Vec::new();
    while let [tag, a, b, c, d, rest @ ..] = bytes {
        let length = usize::try_from(u32::from_be_bytes([*a, *b, *c, *d])).unwrap() - 4;
        let (body, after) = rest.split_at(length);
        let body = String::from_utf8_lossy(body).replace('\0', "|");
        shown.push(format!("{} {body}", char::from(*tag)).trim_end().to_owned());
        bytes = after;
    }
    assert!(bytes.is_empty(), "whole messages");
    shown
}

fn client() -> ClientSide {
    ClientSide::new(PoolMode::Transaction, SessionState::Pin, Arc::default(), Arc::default())
}

fn server() -> ServerSide {
    ServerSide::new(Arc::default(), 3)
}

impl Talk {
    fn new() -> Talk {
        Talk { client: client(), server: server(), helper: Helper::default() }
    }

    fn take(&mut self, from_client: bool, bytes: &[u8]) -> (Output, Result<(), LinkError>) {
        let mut out = Output::default();
        let mut rest = bytes;
        let result = if from_client {
            self.server.client_sent(&mut self.client, &mut rest, &mut out, &mut self.helper)
        } else {
            self.server.server_sent(&mut self.client, &mut rest, &mut out)
        };
        assert!(result.is_err() || rest.is_empty(), "whole messages are taken");
        (out, result)
    }

    /// What the server gets, and what the client is told at once.
    fn sent(&mut self, messages: &[&str]) -> (Vec<String>, Vec<String>) {
        let (out, result) = self.take(true, &encode(messages));
        result.unwrap();
        (show(&out.up), show(&out.down))
    }

    /// What the server gets; the client is told nothing of ours.
    fn up(&mut self, messages: &[&str]) -> Vec<String> {
        let (up, down) = self.sent(messages);
        assert_eq!(down, NOTHING);
        up
    }

    /// What the client gets.
    fn down(&mut self, messages: &[&str]) -> Vec<String> {
        let (out, result) = self.take(false, &encode(messages));
        result.unwrap();
        assert_eq!(show(&out.up), NOTHING);
        show(&out.down)
    }

    /// A whole simple query, passed as it is.
    fn query(&mut self, sql: &str, tag: &str, status: &str) {
        let query = format!("Q {sql}|");
        assert_eq!(self.up(&[&query]), [query.as_str()]);
        let (tag, ready) = (format!("C {tag}|"), format!("Z {status}"));
        assert_eq!(self.down(&[&tag, &ready]), [tag.as_str(), ready.as_str()]);
    }

    /// Another server connection.
    fn moves(&mut self) -> (Vec<String>, Vec<String>) {
        assert!(self.server.is_at_rest() && self.client.pinned().is_none());
        self.server = server();
        self.lend()
    }

    fn lend(&mut self) -> (Vec<String>, Vec<String>) {
        let mut out = Output::default();
        self.server.lend_to(&mut self.client, &mut out);
        (show(&out.up), show(&out.down))
    }

    fn fails(&mut self, from_client: bool, messages: &[&str]) -> LinkError {
        self.take(from_client, &encode(messages)).1.unwrap_err()
    }
}

fn counted(queries: u64, transactions: u64, prepared_again: u64) -> Answers {
    Answers { queries, transactions, prepared_again }
}

const NOTHING: [&str; 0] = [];
const OK: [&str; 2] = ["C SELECT 1|", "Z I"];

#[test]
fn simple_queries_pass_as_they_are() {
    let mut talk = Talk::new();
    assert!(talk.server.is_at_rest());
    assert_eq!(talk.up(&["Q select f(1)|"]), ["Q select f(1)|"]);
    assert!(!talk.server.is_at_rest() && talk.server.is_busy());
    assert_eq!(talk.down(&OK), OK);
    assert!(talk.server.is_at_rest());
    talk.query("begin", "BEGIN", "T");
    assert!(!talk.server.is_at_rest());
    talk.query("commit", "COMMIT", "I");
    assert_eq!(talk.server.take_answers(), counted(3, 2, 0));
    let mut out = Output::default();
    talk.server.discard(&mut out);
    talk.down(&["C DISCARD ALL|", "Z I"]);
    assert_eq!(talk.server.take_answers(), Answers::default(), "a query of ours");
    assert!(talk.server.is_at_rest() && talk.client.pinned().is_none());
    talk.up(&["X"]);
    assert!(talk.client.said_goodbye());
}

#[test]
fn clients_share_what_they_prepare_by_any_name() {
    let mut talk = Talk::new();
    assert_eq!(talk.up(&["P a|select 1|||", "S"]), ["P pgherd_1|select 1|||", "S"]);
    assert_eq!(talk.down(&["1", "Z I"]), ["1", "Z I"]);
    // Another client of the same connection.
    talk.client = client();
    assert_eq!(talk.sent(&["P b|select 1|||"]), (vec![], vec!["1".to_owned()]));
    assert_eq!(
        talk.up(&["B |b|||||", "D Sb|", "E |||||", "S"]),
        ["B |pgherd_1|||||", "D Spgherd_1|", "E |||||", "S"]
    );
    // Two more, answered in their order though the server is not asked for one of them.
    assert_eq!(
        talk.up(&["P c|select 1|||", "P d|select 2|||", "S"]),
        ["P pgherd_2|select 2|||", "S"]
    );
    assert_eq!(
        talk.down(&["2", "t ||", "n", "C SELECT 1|", "Z I", "1", "Z I"]),
        ["2", "t ||", "n", "C SELECT 1|", "Z I", "1", "1", "Z I"]
    );
    assert!(talk.server.is_at_rest());
    // A connection that does not have it is given it unseen.
    talk.moves();
    assert_eq!(talk.up(&["B |b|||||"]), ["P pgherd_1|select 1|||", "B |pgherd_1|||||"]);
    assert_eq!(talk.up(&["E |||||", "S"]), ["E |||||", "S"]);
    assert_eq!(talk.down(&["1", "2", "C X|", "Z I"]), ["2", "C X|", "Z I"]);
    assert_eq!(talk.server.take_answers(), counted(1, 1, 1));
    // The name is taken, and the server is the one to say so.
    assert_eq!(talk.up(&["P b|select 3|||", "S"]), ["P pgherd_1|select 1|||", "S"]);
    talk.down(&["E SERROR|C42P05||", "Z I"]);
    assert_eq!(talk.sent(&["C Sb|", "P b|select 3|||", "S"]).1, ["3"]);
}

#[test]
fn a_connection_keeps_only_so_many_statements() {
    let mut talk = Talk::new();
    for n in 1..=3 {
        talk.up(&[&format!("P s{n}|select {n}|||"), "S"]);
        talk.down(&["1", "Z I"]);
    }
    talk.up(&["B |s1|||||", "S"]);
    talk.down(&["2", "Z I"]);
    assert_eq!(
        talk.up(&["P s4|select 4|||", "S"])[..2],
        ["C Spgherd_2|", "P pgherd_4|select 4|||"]
    );
    assert_eq!(talk.down(&["3", "1", "Z I"]), ["1", "Z I"], "what it gave up is not told");
    assert_eq!(talk.up(&["B |s2|||||", "S"])[..2], ["C Spgherd_3|", "P pgherd_2|select 2|||"]);
}

#[test]
fn what_an_error_skips_was_not_done() {
    let mut talk = Talk::new();
    talk.up(&["P a|select 1|||", "B |a|||||", "P b|select 2|||", "S"]);
    assert_eq!(talk.down(&["1", "E SERROR|C22000||", "Z I"]).len(), 3);
    assert!(talk.server.is_at_rest());
    assert_eq!(talk.up(&["P b|select 2|||", "S"]), ["P pgherd_2|select 2|||", "S"]);
    assert_eq!(talk.down(&["1", "Z I"]), ["1", "Z I"]);
    // The error is there before the rest is sent: the server would ignore it.
    talk.up(&["P c|bad|||", "H"]);
    talk.down(&["E SERROR|C42601||"]);
    assert_eq!(talk.up(&["B |a|||||", "E |||||", "Q select 1|"]), NOTHING);
    assert!(!talk.server.is_at_rest());
    assert_eq!(talk.up(&["S"]), ["S"]);
    talk.down(&["Z I"]);
    assert!(talk.server.is_at_rest());
}

#[test]
fn the_unnamed_statement_follows_its_client() {
    let mut talk = Talk::new();
    talk.up(&["P |select 1|||", "D S|", "S"]);
    talk.down(&["1", "t ||", "n", "Z I"]);
    assert_eq!(talk.up(&["B ||||||", "S"]), ["B ||||||", "S"], "it is there");
    talk.down(&["2", "Z I"]);
    talk.moves();
    assert_eq!(talk.up(&["B ||||||", "S"]), ["P |select 1|||", "B ||||||", "S"]);
    assert_eq!(talk.down(&["1", "2", "Z I"]), ["2", "Z I"]);
}

#[test]
fn statements_are_given_up_by_name_in_sql_too() {
    let mut talk = Talk::new();
    talk.up(&["P a|select 1|||", "S"]);
    talk.down(&["1", "Z I"]);
    assert_eq!(talk.up(&["Q DEALLOCATE other|"]), ["Q DEALLOCATE other|"]);
    talk.down(&["E SERROR||", "Z I"]);
    assert_eq!(talk.up(&["Q deallocate A|"]), ["Q DEALLOCATE ALL|"]);
    talk.down(&["C DEALLOCATE|", "Z I"]);
    assert_eq!(talk.up(&["B |a|||||", "S"]), ["B |a|||||", "S"], "nobody knows it any more");
    talk.down(&["E SERROR|C26000||", "Z I"]);
    assert!(talk.server.is_at_rest());
}

#[test]
fn settings_follow_their_client() {
    let mut talk = Talk::new();
    talk.query("SET search_path TO a, \"B\"", "SET", "I");
    talk.query("set statement_timeout = '5s'", "SET", "I");
    assert!(talk.client.pinned().is_none());
    let (up, _) = talk.moves();
    assert_eq!(up, [r#"Q SET "search_path" TO a, "B";SET "statement_timeout" TO '5s';|"#]);
    assert!(talk.server.is_settling());
    assert_eq!(talk.down(&["C SET|", "C SET|", "Z I"]), NOTHING);
    assert!(talk.server.is_at_rest() && !talk.server.is_settling());
    talk.query("reset statement_timeout", "RESET", "I");
    // Somebody else gets the connection.
    talk.client = client();
    assert_eq!(talk.lend().0, [r#"Q RESET "search_path";|"#]);
    talk.down(&["C RESET|", "Z I"]);
    assert_eq!(talk.lend().0, NOTHING);
}

/// A connection begins with other settings than its client did.
#[test]
fn resets_go_back_to_what_the_client_began_with() {
    let begun = Settings::of_startup(&[("work_mem".to_owned(), "1MB".to_owned())]);
    let mut talk = Talk::new();
    talk.client =
        ClientSide::new(PoolMode::Session, SessionState::Pin, Arc::new(begun), Arc::default());
    assert_eq!(talk.lend().0, [r#"Q SET "work_mem" TO '1MB';|"#]);
    talk.down(&["C SET|", "Z I"]);
    let set = r#"SET "work_mem" TO '1MB'|"#;
    assert_eq!(talk.up(&["Q reset work_mem|"]), [format!("Q {set}")]);
    talk.down(&["C SET|", "Z I"]);
    assert_eq!(talk.up(&["P |reset work_mem|||", "S"]), [format!("P |{set}||"), "S".to_owned()]);
    talk.down(&["1", "Z I"]);
    assert_eq!(talk.up(&["Q reset geqo|"]), ["Q reset geqo|"], "the connection's own will do");
    talk.down(&["C RESET|", "Z I"]);
    assert!(!talk.server.must_settle(&talk.client));
    // All of them: the client's are applied again before it goes on.
    for (all, tag) in [("reset all", "RESET"), ("discard all", "DISCARD ALL")] {
        talk.query(all, tag, "I");
        assert!(talk.server.must_settle(&talk.client), "{all}");
        assert_eq!(talk.lend().0, [r#"Q SET "work_mem" TO '1MB';|"#]);
        talk.down(&["C SET|", "Z I"]);
        assert!(!talk.server.must_settle(&talk.client), "{all}");
    }
    // In a transaction there is no such moment.
    talk.query("begin", "BEGIN", "T");
    let up = talk.up(&["Q reset all|"]);
    assert!(up[0].contains("RESET ALL in a transaction is refused"), "{up:?}");
}

#[test]
fn settings_of_a_transaction_share_its_fate() {
    let wanted = |talk: &Talk| talk.client.wanted.0.len();
    let mut talk = Talk::new();
    talk.query("begin", "BEGIN", "T");
    talk.query("set work_mem to '1MB'", "SET", "T");
    talk.query("rollback", "ROLLBACK", "I");
    assert_eq!(wanted(&talk), 0);
    talk.query("begin", "BEGIN", "T");
    talk.query("set work_mem to '1MB'", "SET", "T");
    talk.query("commit", "COMMIT", "I");
    assert_eq!((wanted(&talk), talk.client.pinned()), (1, None));
    // A commit of a transaction that failed is a rollback.
    talk.query("begin", "BEGIN", "T");
    talk.query("set a.b to 1", "SET", "T");
    talk.up(&["Q x|"]);
    talk.down(&["E SERROR||", "Z E"]);
    talk.query("commit", "ROLLBACK", "I");
    assert_eq!((wanted(&talk), talk.client.pinned()), (1, None));
    // What a savepoint undoes cannot be told.
    talk.query("begin", "BEGIN", "T");
    talk.query("savepoint s", "SAVEPOINT", "T");
    talk.query("set a.b to 1", "SET", "T");
    talk.query("rollback to s", "ROLLBACK", "T");
    talk.query("commit", "COMMIT", "I");
    assert!(talk.client.pinned().is_some());
    talk.query("discard all", "DISCARD ALL", "I");
    assert_eq!((wanted(&talk), talk.client.pinned()), (0, None));
}

#[test]
fn a_parameter_that_changed_unseen_pins() {
    let mut talk = Talk::new();
    talk.up(&["Q select f()|"]);
    talk.down(&["S TimeZone|UTC|", "C SELECT 1|", "Z I"]);
    assert!(talk.client.pinned().is_some());
    // A value that lasted for a transaction is back before its end.
    let mut talk = Talk::new();
    Reported::note(&mut talk.server.reported, "TimeZone", "UTC");
    talk.up(&["Q begin; set local timezone to x; commit|"]);
    talk.down(&["C BEGIN|", "S TimeZone|x|", "C SET|", "S TimeZone|UTC|", "C COMMIT|", "Z I"]);
    assert!(talk.client.pinned().is_none());
}

#[test]
fn clients_are_told_what_their_server_reports() {
    let mut talk = Talk::new();
    Reported::note(&mut talk.server.reported, "server_version", "15.1");
    assert_eq!(talk.lend(), (vec![], vec!["S server_version|15.1|".to_owned()]));
    assert_eq!(talk.lend().1, NOTHING);
    talk.query("set application_name to 'x'", "SET", "I");
    let (_, down) = talk.moves();
    assert_eq!(down, NOTHING, "not before it is settled");
    let told = talk.down(&["S application_name|x|", "C SET|", "Z I"]);
    assert_eq!(told, ["S application_name|x|"]);
}

#[test]
fn what_stays_in_a_session_pins_or_is_refused() {
    for sql in
        ["listen x", "create temp table t ()", "select pg_advisory_lock(1)", "prepare p as x"]
    {
        let mut talk = Talk::new();
        talk.query(sql, "OK", "I");
        assert!(talk.server.is_at_rest() && talk.client.pinned().is_some(), "{sql}");
        // By the extended protocol it pins when it is executed.
        let mut talk = Talk::new();
        talk.up(&[&format!("P |{sql}|||"), "B ||||||", "S"]);
        assert!(talk.client.pinned().is_none());
        talk.up(&["E |||||", "S"]);
        assert!(talk.client.pinned().is_some(), "{sql}");
        let mut talk = Talk::new();
        talk.client.policy = SessionState::Refuse;
        for query in [format!("Q {sql}|"), format!("P |{sql}|||")] {
            let up = talk.up(&[&query]);
            assert!(up[0].contains("is refused by the proxy in this pool mode"), "{up:?}");
        }
    }
    let mut talk = Talk::new();
    let long = encode(&[&format!("Q select '{}'|", "x".repeat(STATEMENT_BYTES_MAX))]);
    let (begin, end) = long.split_at(long.len() / 2);
    let pieces = [talk.take(true, begin).0.up, talk.take(true, end).0.up];
    assert!(pieces.concat() == long && talk.client.pinned().is_some());
}

#[test]
fn a_sequence_is_asked_only_where_it_was_drawn_from() {
    let refused = |up: &[String]| up.iter().any(|text| text.contains("are refused by the proxy"));
    let mut talk = Talk::new();
    assert!(refused(&talk.up(&["Q select lastval()|"])));
    talk.down(&["E SERROR||", "Z I"]);
    assert!(!refused(&talk.up(&["Q insert into t values (1); select lastval()|"])));
    talk.down(&["C INSERT 0 1|", "C SELECT 1|", "Z I"]);
    talk.query("begin", "BEGIN", "T");
    assert!(!refused(&talk.up(&["Q select currval('s')|"])));
    // By the extended protocol it counts when it is executed.
    let mut talk = Talk::new();
    assert!(!refused(&talk.up(&["P l|select lastval()|||", "S"])));
    talk.down(&["1", "Z I"]);
    let ask: [&str; 3] = ["B |l|||||", "E |||||", "S"];
    assert!(refused(&talk.up(&ask)));
    talk.down(&["2", "E SERROR|C34000||", "Z I"]);
    assert!(talk.server.is_at_rest());
    talk.query("begin", "BEGIN", "T");
    assert!(!refused(&talk.up(&ask)));
    let mut talk = Talk::new();
    talk.client.pin("something");
    assert!(!refused(&talk.up(&["Q select lastval()|"])));
}

#[test]
fn copy_ends_at_rest_and_one_that_fails_half_way_does_not() {
    let mut talk = Talk::new();
    talk.up(&["Q copy t from stdin|"]);
    talk.down(&["G"]);
    talk.up(&["d 1", "d 2", "c"]);
    talk.down(&["C COPY 2|", "Z I"]);
    assert!(talk.server.is_at_rest());
    // libpq sends Sync before it knows of the COPY; the server ignores that one.
    for (end, answer) in [("c", "C COPY 1|"), ("f no|", "E SERROR||")] {
        talk.up(&["P |copy t from stdin|||", "B ||||||", "E |||||", "S"]);
        talk.down(&["1", "2", "G"]);
        talk.up(&["d 1", end, "S"]);
        assert!(!talk.server.is_at_rest());
        talk.down(&[answer, "Z I"]);
        assert!(talk.server.is_at_rest(), "{end}");
    }
    talk.up(&["P |copy t from stdin|||", "B ||||||", "E |||||", "S"]);
    talk.down(&["1", "2", "G", "E SERROR|C22P04||", "Z I"]);
    assert!(!talk.server.is_at_rest(), "nobody knows whether another ReadyForQuery comes");
}

#[test]
fn fates_err_to_unknown() {
    // What is sent, what is answered, and what is sent then.
    type Case = (&'static [&'static str], &'static [&'static str], &'static [&'static str], Fate);
    const BEGUN: [&str; 2] = ["C BEGIN|", "Z T"];
    let cases: &[Case] = &[
        (&[], &[], &[], Fate::Nothing),
        (&["Q update t set x = 1|"], &[], &[], Fate::Unknown),
        (&["Q select 1|"], &[], &[], Fate::NotCommitted),
        (&["Q select f()|"], &[], &[], Fate::Unknown),
        (&["Q begin|"], &BEGUN, &[], Fate::NotCommitted),
        (&["Q begin|"], &BEGUN, &["Q update t set x = 1|"], Fate::NotCommitted),
        (&["Q begin|"], &BEGUN, &["Q commit|"], Fate::Unknown),
        (&["Q begin|"], &BEGUN, &["Q commit|", "Q update t|"], Fate::Unknown),
        (&["Q begin|"], &BEGUN, &["Q rollback|", "Q update t|"], Fate::Unknown),
        (&["Q begin|", "Q update t|"], &BEGUN, &[], Fate::Unknown),
        (&["Q begin; update t set x = 1; commit|"], &[], &[], Fate::Unknown),
        (&["P |update t|||", "B ||||||", "E |||||"], &[], &[], Fate::NotCommitted),
        (&["P |update t|||", "B ||||||", "E |||||"], &["1", "2", "C U|"], &[], Fate::NotCommitted),
        (&["P |update t|||", "B ||||||", "E |||||"], &["1", "2", "C U|"], &["S"], Fate::Unknown),
        (&["P |select 1|||", "B ||||||", "E |||||", "S"], &[], &[], Fate::NotCommitted),
        (&["P |commit|||", "B ||||||", "E |||||"], &[], &[], Fate::Unknown),
        (
            &["Q begin|"],
            &BEGUN,
            &["P |update t|||", "B ||||||", "E |||||", "S"],
            Fate::NotCommitted,
        ),
        (&["F 1234"], &[], &[], Fate::Unknown),
    ];
    for (sent, answered, then, fate) in cases {
        let mut talk = Talk::new();
        talk.up(sent);
        talk.down(answered);
        talk.up(then);
        assert_eq!(talk.server.fate(), *fate, "{sent:?}, {answered:?}, {then:?}");
    }
}

/// The server is lost: what the client is told at once, and after each message that it sends.
fn lost(talk: Talk, then: &[(&[&str], &[&str])]) -> Vec<String> {
    let Talk { mut client, server, .. } = talk;
    assert_eq!(server.fate(), Fate::NotCommitted);
    let mut out = Output::default();
    server.abort(&mut client, "it is gone", &mut out);
    let short = |bytes: &[u8]| -> Vec<String> {
        let shown = show(bytes).into_iter();
        let code = |text: &str| text.split("|C").nth(1).map(|rest| rest[..5].to_owned());
        shown.map(|text| if text.starts_with('E') { code(&text).unwrap() } else { text }).collect()
    };
    for (sent, told) in then {
        let mut answer = Output::default();
        let bytes = encode(sent);
        let mut rest = bytes.as_slice();
        client.sent_aborted(&mut rest, &mut answer).unwrap();
        assert!(rest.is_empty(), "{sent:?}");
        assert_eq!(short(&answer.down), *told, "{sent:?}");
    }
    assert!(!client.is_aborted(), "the transaction is over");
    assert!(out.up.is_empty());
    short(&out.down)
}

#[test]
fn a_lost_transaction_is_told_and_ended_by_its_client() {
    let begun = || {
        let mut talk = Talk::new();
        talk.query("begin", "BEGIN", "T");
        talk
    };
    let end: (&[&str], &[&str]) = (&["Q rollback|"], &["C ROLLBACK|", "Z I"]);
    let talk = begun();
    assert_eq!(
        lost(talk, &[(&["Q select 1|"], &["40001", "Z E"]), (&["Q x|"], &["25P02", "Z E"]), end]),
        NOTHING,
        "nothing was asked"
    );
    let mut talk = begun();
    talk.up(&["Q update t|", "Q update u|"]);
    assert_eq!(lost(talk, &[end]), ["40001", "Z E", "25P02", "Z E"]);
    let mut talk = begun();
    talk.up(&["P |update t|||", "B ||||||", "E |||||", "S"]);
    talk.down(&["1"]);
    let by_extended: (&[&str], &[&str]) = (
        &["P |rollback|||", "B ||||||", "D P|", "E |||||", "S"],
        &["1", "2", "n", "C ROLLBACK|", "Z I"],
    );
    assert_eq!(lost(talk, &[by_extended]), ["40001", "Z E"]);
    // Without a block, and its Sync is still to come.
    let mut talk = Talk::new();
    talk.up(&["P |update t|||", "B ||||||", "E |||||"]);
    talk.down(&["1", "2"]);
    assert_eq!(lost(talk, &[(&["B ||||||", "S"], &["Z I"])]), ["40001"]);
    // It only read, and all of it is answered at once.
    let mut talk = Talk::new();
    talk.up(&["Q select 1|"]);
    assert_eq!(lost(talk, &[]), ["40001", "Z I"]);
    let mut talk = begun();
    talk.up(&["Q copy t from stdin|"]);
    talk.down(&["G"]);
    assert_eq!(lost(talk, &[(&["d 1", "c"], &[]), end]), ["40001", "Z E"]);
}

/// Drivers take the answer ROLLBACK to a COMMIT for a success.
#[test]
fn a_commit_fails_unless_its_client_knows_that_it_must() {
    let begun = |name: &str| {
        let mut talk = Talk::new();
        talk.up(&[&format!("P {name}|commit|||"), "S"]);
        talk.down(&["1", "Z I"]);
        talk.query("begin", "BEGIN", "T");
        talk
    };
    const RUNS: [&str; 2] = ["E |||||", "S"];
    let parses = ["P |commit|||", "B ||||||", "D P|"];
    assert_eq!(lost(begun("c"), &[(&["Q commit|"], &["40001", "Z I"])]), NOTHING);
    let told = ["1", "2", "n", "40001", "Z I"];
    assert_eq!(lost(begun("c"), &[(&[&parses[..], &RUNS].concat(), &told)]), NOTHING);
    let binds = ["B |c|||||", "E |||||", "C P|", "S"];
    assert_eq!(lost(begun("c"), &[(&binds, &["2", "40001", "Z I"])]), NOTHING);
    // Who has been told may end it by either word.
    let knows: (&[&str], &[&str]) = (&["Q update t|"], &["40001", "Z E"]);
    let ends: (&[&str], &[&str]) = (&["Q commit|"], &["C ROLLBACK|", "Z I"]);
    assert_eq!(lost(begun("c"), &[knows, ends]), NOTHING);
    let by_name = &["2", "C ROLLBACK|", "3", "Z I"];
    assert_eq!(lost(begun("c"), &[knows, (&binds, by_name)]), NOTHING);
}

#[test]
fn ends_of_servers_and_cancelled_waits_are_not_passed_on() {
    for code in ["57P01", "57P02", "57P03"] {
        let mut talk = Talk::new();
        talk.up(&["Q update t|"]);
        let error = format!("E SFATAL|VFATAL|C{code}||");
        assert_eq!(talk.fails(false, &[&error]), LinkError::ServerEnds);
    }
    let mut talk = Talk::new();
    talk.up(&["Q update t|"]);
    let warning = "N SWARNUNG|VWARNING|C01000|Fsyncrep.c|RSyncRepWaitForLSN||";
    assert_eq!(talk.fails(false, &[warning, "C UPDATE 1|", "Z I"]), LinkError::StandbyNotAwaited);
    talk = Talk::new();
    talk.up(&["Q commit|"]);
    assert!(talk.server.may_wait_for_standby());
    talk = Talk::new();
    talk.up(&["P |update t|||", "B ||||||", "E |||||", "S"]);
    talk.down(&["1", "2"]);
    assert!(!talk.server.may_wait_for_standby());
    talk.down(&["C UPDATE 1|"]);
    assert!(talk.server.may_wait_for_standby());
}

#[test]
fn statement_mode_has_no_blocks() {
    let mut talk = Talk::new();
    talk.client.mode = PoolMode::Statement;
    let up = talk.up(&["Q begin|"]);
    assert!(up[0].contains("transaction blocks are not allowed in statement mode"), "{up:?}");
    talk.down(&["E SERROR||", "Z I"]);
    talk.up(&["Q select 1; begin|"]);
    assert_eq!(talk.fails(false, &["C SELECT 1|", "C BEGIN|", "Z T"]), LinkError::Block);
}

#[test]
fn what_makes_no_sense_ends_the_conversation() {
    let mut talk = Talk::new();
    assert!(matches!(talk.fails(true, &["p secret|"]), LinkError::Message { tag: b'p', .. }));
    assert!(matches!(talk.fails(true, &["Q no end"]), LinkError::Message { tag: b'Q', .. }));
    assert!(matches!(talk.fails(true, &["B no end"]), LinkError::Message { tag: b'B', .. }));
    assert_eq!(talk.fails(false, &["R ||||"]), LinkError::Server);
    assert_eq!(talk.fails(false, &["Z X"]), LinkError::Server);
    let mut talk = Talk::new();
    talk.down(&["C UNASKED|"]);
    assert!(!talk.server.is_at_rest(), "its books are not to be trusted");
}

/// However the bytes are split, the same goes through.
#[test]
fn any_split_gives_the_same() {
    let long = format!("B |a|{}", "y".repeat(40_000));
    let sent = ["P a|select 1|||", long.as_str(), "E |||||", "S", "Q select 2|", "C Sa|", "S"];
    let row = format!("D {}", "z".repeat(70_000));
    let said = ["1", "2", row.as_str(), "C SELECT 1|", "Z I", "C SELECT 1|", "Z I", "Z I"];
    let run = |piece_bytes: usize| {
        let mut talk = Talk::new();
        let mut all = Output::default();
        for (from_client, stream) in [(true, encode(&sent)), (false, encode(&said))] {
            let mut kept = Vec::new();
            for piece in stream.chunks(piece_bytes) {
                kept.extend_from_slice(piece);
                let mut rest = kept.as_slice();
                let taken = if from_client {
                    let (client, help) = (&mut talk.client, &mut talk.helper);
                    talk.server.client_sent(client, &mut rest, &mut all, help)
                } else {
                    talk.server.server_sent(&mut talk.client, &mut rest, &mut all)
                };
                taken.unwrap();
                kept = rest.to_vec();
            }
            assert!(kept.is_empty());
        }
        assert!(talk.server.is_at_rest());
        (all.up, all.down)
    };
    let whole = run(usize::MAX);
    for piece_bytes in [1, 3, 7, 1000, 16_384] {
        assert!(run(piece_bytes) == whole, "{piece_bytes}");
    }
    assert_eq!(show(&whole.1).len(), said.len() + 1, "and one answer is ours");
}

/// However long a message says that it is, only its beginning is kept, and only what is there takes
/// room.
#[test]
fn what_a_header_announces_takes_no_room() {
    const ANNOUNCED: u32 = 100_000_000;
    const PIECE: &[u8] = &[b' '; 4096];
    for begin in [&b"Pname\0select"[..], b"Qselect", b"B\0\0"] {
        let mut talk = Talk::new();
        let (tag, text) = begin.split_at(1);
        let mut kept = [tag, &ANNOUNCED.to_be_bytes(), text].concat();
        assert_eq!(talk.client.offer(&kept), Ok(Offer::More), "it waits without a server");
        let mut missing = usize::try_from(ANNOUNCED).unwrap() - 4 - text.len();
        let mut passed = 0;
        while missing > 0 {
            let piece = &PIECE[..PIECE.len().min(missing)];
            missing -= piece.len();
            kept.extend_from_slice(piece);
            let (mut rest, mut out) = (kept.as_slice(), Output::default());
            let (client, help) = (&mut talk.client, &mut talk.helper);
            talk.server.client_sent(client, &mut rest, &mut out, help).unwrap();
            assert!(out.up.capacity() <= 2 * SMALL_BYTES_MAX, "{}", out.up.capacity());
            passed += out.up.len();
            kept = rest.to_vec();
            assert!(kept.len() < SMALL_BYTES_MAX, "{}", kept.len());
        }
        assert_eq!(passed, usize::try_from(ANNOUNCED).unwrap() + 1, "all of it, in pieces");
        assert!(kept.is_empty() && talk.client.at_boundary());
        assert!(talk.client.statements.is_empty(), "nor is it a statement that is known");
    }
}

mod reads;
