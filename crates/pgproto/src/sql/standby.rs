//! Whether a statement can be answered by a standby as well as by the primary, read from its text.

use super::token::{Token, Tokens};
use super::word::{Word, word};

/// Names that answer otherwise on a standby, or that do something which it refuses or which is lost
/// there. Whatever begins with `pg_` and is not known to be harmless is among them without being
/// listed, and so are the names that leave something in a session (`word.rs`).
const OF_THE_PRIMARY: [&str; 11] = [
    "nextval",
    "setval",
    "loread",
    "lowrite",
    "inet_server_addr",
    "inet_server_port",
    "pgrowlocks",
    // Settings, which may differ from server to server.
    "current_setting",
    // Columns of a sequence, which is ahead on a standby: WAL is written for many values at once.
    "is_called",
    "log_cnt",
    // Runs what it is given, in this transaction.
    "dblink",
];

/// The same by how they begin.
const BEGINNINGS: [&str; 3] = ["txid_", "lo_", "dblink_"];

/// Whether a text is one statement that reads, and that a standby which has replayed as much of the
/// WAL answers as the primary would: SELECT, VALUES, TABLE, WITH, or EXPLAIN of one of them without
/// ANALYZE. It errs to no.
///
/// Functions that it does not know pass: on a standby none of them can write, so the answer is an
/// error then. Nor is it known whether a name is a sequence, or a table that is not in the WAL.
#[must_use]
pub fn reads_on_standby(text: &[u8]) -> bool {
    let mut tokens = Tokens::new(text);
    if !begins_a_read(&mut tokens) {
        return false;
    }
    let mut last_value = false;
    while let Some(token) = tokens.next() {
        // The window function is called; the sequence's column is not.
        if std::mem::take(&mut last_value) && !token.is_symbol(b'(') {
            return false;
        }
        match token {
            Token::Symbol(b';') => {
                return tokens.all(|more| more.is_symbol(b';')) && !tokens.unclear;
            }
            Token::Word(text) if is_of_the_primary(text) || !may_stand(word(text)) => {
                return false;
            }
            Token::Name(text) if is_of_the_primary(text) || names_state(word(text)) => {
                return false;
            }
            Token::Word(text) | Token::Name(text) => last_value = is(text, "last_value"),
            Token::Text(..) | Token::Number | Token::Parameter | Token::Symbol(_) => {}
        }
    }
    !tokens.unclear && !last_value
}

/// Takes the word that a statement which reads begins with.
fn begins_a_read(tokens: &mut Tokens<'_>) -> bool {
    match tokens.find(|token| !token.is_symbol(b';')) {
        Some(Token::Word(text)) if is(text, "explain") => explains_a_read(tokens),
        Some(token) => begins_query(token),
        None => false,
    }
}

fn begins_query(token: Token<'_>) -> bool {
    match token {
        Token::Word(text) => {
            matches!(word(text), Word::Select | Word::Values | Word::Table | Word::With)
        }
        token => token.is_symbol(b'('),
    }
}

/// `EXPLAIN [(options)] [VERBOSE] query`, without ANALYZE.
fn explains_a_read(tokens: &mut Tokens<'_>) -> bool {
    let Some(mut next) = tokens.next() else {
        return false;
    };
    if next.is_symbol(b'(') {
        let inside = tokens.by_ref().take_while(|token| !token.is_symbol(b')'));
        if inside.into_iter().any(is_analyze) {
            return false;
        }
        let Some(after) = tokens.next() else {
            return false;
        };
        next = after;
    }
    while matches!(next, Token::Word(text) if is(text, "verbose")) {
        let Some(after) = tokens.next() else {
            return false;
        };
        next = after;
    }
    begins_query(next)
}

fn is_analyze(token: Token<'_>) -> bool {
    match token {
        Token::Word(text) | Token::Name(text) => is(text, "analyze") || is(text, "analyse"),
        _ => false,
    }
}

/// Whether a word may stand in a statement that reads. FOR alone may: it is UPDATE or SHARE behind
/// it that locks.
fn may_stand(word: Word) -> bool {
    !matches!(word, Word::Writes | Word::Into | Word::Update | Word::Uescape) && !names_state(word)
}

/// Names of what is the session's, or the server's.
fn names_state(word: Word) -> bool {
    matches!(
        word,
        Word::AdvisoryLock
            | Word::ChangesSession
            | Word::SetConfig
            | Word::Sequence
            | Word::PgTemp
            | Word::PgSettings
            | Word::PgOther
    )
}

fn is_of_the_primary(text: &[u8]) -> bool {
    let begins = |with: &&str| {
        text.get(..with.len()).is_some_and(|begin| begin.eq_ignore_ascii_case(with.as_bytes()))
    };
    OF_THE_PRIMARY.iter().any(|name| is(text, name)) || BEGINNINGS.iter().any(begins)
}

fn is(text: &[u8], wanted: &str) -> bool {
    text.eq_ignore_ascii_case(wanted.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_reads_may_go_to_a_standby() {
        for text in [
            "SELECT 1",
            "select * from t where a = $1;",
            "; ;select f(x) from t; -- no more\n;",
            "(select 1) union all (select 2)",
            "VALUES (1), (2)",
            "TABLE t",
            "with a as (select 1), b as (values (2)) select * from a, b",
            "select substring(a from 1 for 2) from t",
            "select 'insert into t', \"update\", $$for update$$ from t",
            "select last_value(a) over (order by b) from t",
            "select now(), random(), pg_catalog.lower(a), pg_typeof(a) from t",
            "select a.txid, location, offset_ from t",
            "EXPLAIN select 1",
            "explain verbose select 1",
            "explain (verbose, format json) (select 1)",
            "explain (costs off) with a as (select 1) table a",
            "select analyze from t",
        ] {
            assert!(reads_on_standby(text.as_bytes()), "{text}");
        }
    }

    #[test]
    fn what_writes_locks_or_differs_goes_to_the_primary() {
        for text in [
            "",
            ";",
            "select 1; select 2",
            "insert into t values (1)",
            "show work_mem",
            "begin",
            "select * into u from t",
            "with a as (delete from t returning *) select * from a",
            "with a as (insert into t values (1)) select 1",
            "with a as (update t set a = 1) select 1",
            "with a as (merge into t using u on true when matched then do nothing) select 1",
            "select * from t for update",
            "select * from t for no key update",
            "select * from t for share",
            "select * from t for key share skip locked",
            "table t for update",
            "select nextval('s')",
            "select \"nextval\"('s')",
            "select pg_catalog.setval('s', 1)",
            "select currval('s'), lastval()",
            "select last_value from s",
            "select \"last_value\" from s",
            "select last_value",
            "select is_called from s",
            "select pg_advisory_xact_lock(1)",
            "select pg_try_advisory_lock(1)",
            "select pg_notify('a', 'b')",
            "select TXID_current()",
            "select pg_current_xact_id()",
            "select pg_is_in_recovery()",
            "select pg_current_wal_lsn()",
            "select pg_last_wal_replay_lsn()",
            "select pg_switch_wal()",
            "select pg_export_snapshot()",
            "select * from pg_stat_activity",
            "select * from pg_catalog.pg_settings",
            "select setting from \"pg_settings\"",
            "select lo_get(1)",
            "select lo_create(0)",
            "select set_config('a.b', 'c', true)",
            "select current_setting('transaction_read_only')",
            "select * from dblink('x', 'delete from t') as t (a int)",
            "select dblink_exec('x', 'y')",
            "select inet_server_port()",
            "select setseed(0.5)",
            "select * from pg_temp.t",
            "select U&\"\\006eextval\"('s')",
            "select U&\"!006eextval\" UESCAPE '!' ('s')",
            "explain analyze select f()",
            "explain (ANALYZE) select f()",
            "explain (\"analyze\") select f()",
            "explain (buffers, analyse true, costs off) select 1",
            "explain verbose analyze select 1",
            "explain insert into t values (1)",
            "explain execute p",
            "explain",
            "explain (",
            "explain (verbose)",
            "explain verbose",
            "declare c cursor for select 1",
            "copy t to stdout",
            "call p()",
            "do 'begin end'",
        ] {
            assert!(!reads_on_standby(text.as_bytes()), "{text}");
        }
    }
}
