//! Texts with what they do, then any text at all.

use super::*;

/// One line: the kind, what it leaves, and the flags.
fn told(text: &str) -> String {
    let look = look(text.as_bytes());
    let shown = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let mut line = match look.kind {
        Kind::Set { name, value } => format!("set {} to {}", shown(name), shown(value)),
        Kind::Reset(name) => format!("reset {}", shown(name)),
        Kind::Deallocate(name) => format!("deallocate {}", shown(name)),
        kind => format!("{kind:?}"),
    };
    if let Some(leaves) = look.leaves {
        line.push_str(&format!(" leaves {leaves:?}"));
    }
    if look.commits {
        line.push_str(" commits");
    }
    if look.asks_sequence {
        line.push_str(" asks");
    }
    if !look.single && !matches!(look.kind, Kind::Several | Kind::Empty) {
        line.push_str(" of several");
    }
    line
}

fn check(cases: &[(&str, &str)]) {
    for (text, wanted) in cases {
        assert_eq!(told(text), *wanted, "{text}");
        // Neither blanks, comments nor a semicolon around it say anything else.
        let dressed = format!(" /* x /* y */ ; */\n{text}\n;-- set a = 1");
        assert_eq!(told(&dressed), *wanted, "{dressed}");
    }
}

#[test]
fn transactions() {
    check(&[
        ("", "Empty"),
        (";;", "Empty"),
        ("BEGIN", "Begin"),
        ("begin isolation level serializable", "Begin"),
        ("START TRANSACTION READ ONLY", "Begin"),
        ("COMMIT", "Commit commits"),
        ("commit and chain", "Commit commits"),
        ("END WORK", "Commit commits"),
        ("ROLLBACK", "Rollback"),
        ("ABORT", "Rollback"),
        ("rollback and chain", "Rollback"),
        ("ROLLBACK TO a", "RollbackTo"),
        ("rollback work to savepoint a", "RollbackTo"),
        ("SAVEPOINT a", "Other"),
        ("PREPARE TRANSACTION 'x'", "PrepareTransaction commits"),
        ("COMMIT PREPARED 'x'", "EndPrepared commits"),
        ("ROLLBACK PREPARED 'x'", "EndPrepared"),
        ("BEGIN; UPDATE t SET a = 1; COMMIT", "Several commits"),
        ("UPDATE t SET commit = 1", "Other"),
    ]);
    assert!(is_commit(b"insert into t values (1); end"));
    assert!(!is_commit(b"select 'commit'"));
}

#[test]
fn settings_that_can_be_kept() {
    check(&[
        ("SET work_mem = '4MB'", "set work_mem to '4MB'"),
        ("set session WORK_MEM to 4096", "set WORK_MEM to 4096"),
        ("SET a.b TO on", "set a.b to on"),
        ("SET \"TimeZone\" TO 'UTC'", "set TimeZone to 'UTC'"),
        ("SET search_path TO a, \"B\", 'c'", "set search_path to a, \"B\", 'c'"),
        ("SET extra_float_digits = -3", "set extra_float_digits to -3"),
        ("SET x TO 1e-3", "set x to 1e-3"),
        ("SET application_name = 'it''s; set'", "set application_name to 'it''s; set'"),
        ("SET a = E'\\'; set b = 1'", "set a to E'\\'; set b = 1'"),
        ("SET a = $$x;y$$", "set a to $$x;y$$"),
        ("SET TIME ZONE 'Europe/Berlin'", "set timezone to 'Europe/Berlin'"),
        ("SET SESSION TIME ZONE -8", "set timezone to -8"),
        ("SET TIME ZONE LOCAL", "reset timezone"),
        ("SET TIME ZONE DEFAULT", "reset timezone"),
        ("SET NAMES 'utf8'", "set client_encoding to 'utf8'"),
        ("SET NAMES", "reset client_encoding"),
        ("SET SCHEMA 's'", "set search_path to 's'"),
        ("SET XML OPTION DOCUMENT", "set xmloption to DOCUMENT"),
        ("SET work_mem TO DEFAULT", "reset work_mem"),
        ("SET standard_conforming_strings = on", "set standard_conforming_strings to on"),
        ("RESET work_mem", "reset work_mem"),
        ("RESET a.b", "reset a.b"),
        ("RESET TIME ZONE", "reset timezone"),
        ("RESET ALL", "ResetAll"),
        ("RESET ROLE", "reset ROLE"),
        ("SET LOCAL work_mem = 1", "SetLocal"),
        ("SET TRANSACTION ISOLATION LEVEL SERIALIZABLE", "SetLocal"),
        ("SET transaction_read_only = on", "SetLocal"),
        ("SET CONSTRAINTS ALL DEFERRED", "SetLocal"),
        ("DISCARD ALL", "DiscardAll"),
        ("DISCARD PLANS", "Discard"),
        ("DEALLOCATE p", "deallocate p"),
        ("DEALLOCATE PREPARE \"All\"", "deallocate \"All\""),
        ("DEALLOCATE prepare", "deallocate prepare"),
        ("DEALLOCATE PREPARE ALL", "DeallocateAll"),
        ("SHOW work_mem", "Show"),
        ("SELECT set_config('TimeZone', 'UTC', false)", "set TimeZone to 'UTC'"),
        (
            "select pg_catalog.set_config('search_path', 'public', FALSE)",
            "set search_path to 'public'",
        ),
    ]);
}

#[test]
fn what_is_left_behind() {
    check(&[
        ("LISTEN x", "Other leaves Listen"),
        ("UNLISTEN *", "Other"),
        ("NOTIFY x", "Other"),
        ("SELECT pg_advisory_lock(1)", "Other leaves AdvisoryLock"),
        (
            "select 1 where pg_catalog.PG_TRY_ADVISORY_LOCK_SHARED ( 1 )",
            "Other leaves AdvisoryLock",
        ),
        ("select \"pg_advisory_lock\"(1)", "Other leaves AdvisoryLock"),
        ("SELECT pg_advisory_xact_lock(1)", "Other"),
        ("SELECT pg_try_advisory_xact_lock(1)", "Other"),
        ("CREATE TEMP TABLE t (a int)", "Other leaves Temporary"),
        ("create or replace local temporary view v as select 1", "Other leaves Temporary"),
        ("CREATE TEMP SEQUENCE s", "Other leaves Temporary"),
        ("EXPLAIN ANALYZE CREATE TEMP TABLE t AS SELECT 1", "Other leaves Temporary"),
        ("CREATE TEMP TABLE t (a int) ON COMMIT DROP", "Other"),
        ("CREATE TEMP TABLE t ON COMMIT DELETE ROWS AS SELECT 1", "Other leaves Temporary"),
        ("CREATE TABLE pg_temp.t (a int)", "Other leaves Temporary"),
        ("CREATE FUNCTION pg_temp.f() RETURNS int LANGUAGE sql AS ''", "Other leaves Temporary"),
        ("CREATE TABLE temp (a int)", "Other"),
        ("SELECT 1 AS a INTO TEMP t", "Other leaves Temporary"),
        ("SELECT 1 AS a INTO LOCAL TEMPORARY TABLE t", "Other leaves Temporary"),
        ("INSERT INTO temp VALUES (1)", "Other"),
        ("SET search_path = 'pg_temp', public", "Other leaves Temporary"),
        ("PREPARE p AS SELECT 1", "Other leaves PreparedStatement"),
        ("PREPARE transaction AS SELECT 1", "Other leaves PreparedStatement"),
        ("DECLARE c CURSOR WITH HOLD FOR SELECT 1", "Other leaves HeldCursor"),
        ("DECLARE c CURSOR WITHOUT HOLD FOR SELECT 1", "Other"),
        ("DECLARE c CURSOR FOR SELECT 1", "Other"),
        ("LOAD 'x'", "Other leaves Library"),
        ("SET ROLE app", "Other leaves Role"),
        ("SET role TO app", "Other leaves Role"),
        ("SET SESSION ROLE app", "Other leaves Role"),
        ("SET SESSION AUTHORIZATION app", "Other leaves Role"),
        ("SET session_authorization TO DEFAULT", "Other leaves Role"),
        ("select set_config('role', 'app', false)", "Other leaves Role"),
        ("SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY", "Other leaves Setting"),
        ("SET TIME ZONE INTERVAL '1' HOUR TO MINUTE", "Other leaves Setting"),
        ("SET SEED TO 0.5", "Other leaves Setting"),
        ("SELECT setseed(0.5)", "Other leaves Setting"),
        ("SET a FROM CURRENT", "Other leaves Setting"),
        ("SET a = b c", "Other leaves Setting"),
        ("SELECT set_config('a', $1, false)", "Other leaves Setting"),
        ("SELECT set_config('a', 'b', false), 1", "Other leaves Setting"),
        ("SELECT set_config('a', E'b', false)", "Other leaves Setting"),
        ("SELECT set_config('search_path', 'a, b', false)", "Other leaves Setting"),
        ("SELECT set_config('a', f(1, true), true)", "Other"),
        ("SELECT set_config('a', 'b', not true)", "Other leaves Setting"),
        ("SELECT set_config('a', 'b', f(true))", "Other leaves Setting"),
        ("SELECT set_config(('a', 'b', true))", "Other leaves Setting"),
        ("SELECT set_config", "Other leaves Setting"),
        ("UPDATE pg_settings SET setting = 'x'", "Other leaves Setting"),
        ("SET standard_conforming_strings TO off", "Other leaves Reading"),
        ("SET NAMES 'SJIS'", "Other leaves Reading"),
        ("SET client_encoding TO 'Shift_JIS-2004'", "Other leaves Reading"),
        ("SET a = 1; SET b = 2", "Several leaves AmongSeveral"),
        ("SELECT 1; RESET a", "Several leaves AmongSeveral"),
        ("SELECT 1; DEALLOCATE ALL", "Several leaves AmongSeveral"),
        ("BEGIN; RESET ALL; ROLLBACK", "Several leaves AmongSeveral"),
        ("BEGIN; SET LOCAL a = 1; SELECT 1; COMMIT", "Several commits"),
        ("SELECT 1; LISTEN x", "Several leaves Listen"),
        ("SELECT U&\"pg\\005fadvisory_lock\"(1)", "Several leaves Unclear commits"),
        ("SELECT U&\"pg!005fadvisory_lock\" UESCAPE '!' (1)", "Other leaves Unclear"),
        // PostgreSQL 14 reads a name behind the number, 16 a number and a string.
        ("SELECT 1_0$a$; LISTEN x; $a$", "Several leaves Unclear commits"),
        ("SELECT $1$a$; LISTEN x; $a$", "Several leaves Unclear commits"),
        ("SELECT nextval('s')", "Other"),
        ("SELECT currval('s')", "Other asks"),
        ("SELECT lastval()", "Other asks"),
    ]);
}

#[test]
fn a_pools_own_reset_is_not_held_for_more() {
    // What asyncpg sends when a connection goes back into its pool.
    let text = "SELECT pg_advisory_unlock_all();\nCLOSE ALL;\nUNLISTEN *;\nRESET ALL;";
    check(&[(text, "ResetAll of several")]);
}

#[test]
fn blocks_and_functions() {
    check(&[
        ("DO $$ BEGIN PERFORM 1; END $$", "Other"),
        ("DO $$ BEGIN UPDATE t SET a = 1; END $$", "Other"),
        ("DO $$ BEGIN SET LOCAL a = 1; END $$", "Other"),
        ("DO $$ BEGIN SET a = 1; END $$", "Other leaves Setting"),
        ("DO $$ BEGIN IF x THEN RESET a; END IF; END $$", "Other leaves Setting"),
        ("DO $$ BEGIN LOOP LISTEN x; END LOOP; END $$", "Other leaves Listen"),
        ("DO $$ BEGIN CREATE TEMP TABLE t (); END $$", "Other leaves Temporary"),
        ("DO $$ BEGIN PERFORM pg_advisory_lock(1); END $$", "Other leaves AdvisoryLock"),
        ("DO $x$ BEGIN EXECUTE 'SET a = 1'; END $x$", "Other leaves Setting"),
        ("DO $x$ BEGIN EXECUTE format($$SET %I = 1$$, y); END $x$", "Other leaves Setting"),
        ("DO 'BEGIN EXECUTE ''LISTEN x''; END'", "Other leaves Listen"),
        ("DO 'BEGIN EXECUTE ''DO ''''BEGIN LISTEN x; END''''''; END'", "Other leaves Listen"),
        ("DO $$ BEGIN RAISE NOTICE 'set x'; END $$", "Other"),
        ("DO $$ BEGIN RAISE NOTICE 'x'; EXECUTE 'LISTEN x'; END $$", "Other leaves Listen"),
        ("DO LANGUAGE plpgsql $$ BEGIN END $$", "Other"),
        ("DO $$ BEGIN END $$ LANGUAGE 'plpgsql'", "Other"),
        ("DO LANGUAGE plpython3u $$ plpy.execute(\"LISTEN x\") $$", "Other leaves Unclear"),
        ("DO E'BEGIN \\x53ET a = 1; END'", "Other leaves Unclear"),
        ("CALL p(pg_advisory_lock(1))", "Other leaves AdvisoryLock"),
        ("CREATE FUNCTION f() RETURNS int LANGUAGE sql AS 'LISTEN x'", "Other"),
        (
            "CREATE OR REPLACE FUNCTION f() RETURNS int BEGIN ATOMIC SELECT pg_advisory_lock(1); \
             SELECT CASE WHEN true THEN 1 END; END",
            "Other",
        ),
        (
            "CREATE FUNCTION f() RETURNS int BEGIN ATOMIC SELECT 1; END; LISTEN x",
            "Several leaves Listen",
        ),
        // `case` is a label here, so that the body's end is not seen.
        (
            "CREATE FUNCTION f() RETURNS int BEGIN ATOMIC SELECT 1 AS case; END; LISTEN x",
            "Other leaves Unclear",
        ),
    ]);
}

#[test]
fn statements_that_only_read() {
    for text in [
        "SELECT abalance FROM pgbench_accounts WHERE aid = 1",
        "select count(*), pg_catalog.lower(b) from t where a in (1, 2) and (c or not (d))",
        "VALUES (1)",
        "TABLE t",
        "(SELECT 1) UNION ALL (SELECT 2)",
        "WITH x AS (SELECT 1) SELECT * FROM x",
        "SELECT \"update\", 'insert' FROM t",
        "SELECT a::varchar(10), coalesce(b, $1) FROM t JOIN u USING (c) ORDER BY 1 LIMIT 10",
    ] {
        assert_eq!(told(text), "Read", "{text}");
    }
    for text in [
        "SELECT f(1)",
        "SELECT s.count(1)",
        "SELECT \"count\"(1)",
        "SELECT nextval('s')",
        "SELECT * FROM t FOR UPDATE",
        "SELECT * FROM t FOR SHARE",
        "SELECT 1 INTO t",
        "WITH x AS (DELETE FROM t RETURNING 1) SELECT * FROM x",
        "WITH x AS (SELECT 1) UPDATE t SET a = 1",
        "SELECT * FROM pg_stat_activity",
        "SELECT pg_current_wal_lsn()",
        "EXPLAIN SELECT 1",
        "INSERT INTO t VALUES (1)",
        "FETCH c",
        "COPY t TO STDOUT",
    ] {
        assert_eq!(told(text), "Other", "{text}");
    }
    assert_eq!(told("SELECT 1; SELECT 2"), "Several");
}

#[test]
fn strings_end_where_postgresql_ends_them() {
    for (text, several) in [
        ("select 'a\\'; listen x", true),
        ("select E'a\\'; listen x'", false),
        ("select E'a' \n -- c\n '\\'; listen x'", false),
        ("select 'a' \n '\\'; listen x", true),
        ("select E'a' '\\'; listen x", true),
        ("select U&'\\'; listen x", true),
        ("select B'1'; listen x", true),
        ("select \"a\\\"; listen x", true),
        ("select $a$ $ $b$ $$ ; listen x $a$", false),
        ("select $a$ $a; listen x", false),
        ("select a$b$; listen x; select $b$", true),
        ("select $1; listen x", true),
        ("select /* /* */ ; listen x */ 1", false),
        ("select 1 --\r; listen x", true),
        ("select 1 - - 1; listen x", true),
        ("select 1 <--; listen x", false),
    ] {
        let listens = look(text.as_bytes()).leaves == Some(Leaves::Listen);
        assert_eq!(listens, several, "{text}");
    }
}

#[test]
fn encodings_whose_bytes_are_not_ascii_are_known() {
    for name in ["SJIS", "Shift_JIS_2004", "big5", "GBK", "gb18030", "UHC", "JOHAB", "Windows-949"]
    {
        assert!(!is_readable_encoding(name.as_bytes()), "{name}");
    }
    for name in ["UTF8", "utf-8", "LATIN1", "SQL_ASCII", "EUC_JP", ""] {
        assert!(is_readable_encoding(name.as_bytes()), "{name}");
    }
}

const PIECES: [&str; 44] = [
    "'",
    "''",
    "\"",
    "$",
    "$$",
    "$a$",
    "$1",
    "e'",
    "U&'",
    "u&\"",
    "\\",
    "\n",
    " ",
    "--",
    "/*",
    "*/",
    ";",
    "(",
    ")",
    ",",
    ".",
    "=",
    "1",
    "0x",
    "1e",
    "-",
    "set ",
    "select ",
    "set_config",
    "(",
    "true",
    "do ",
    "language ",
    "begin ",
    "atomic ",
    "case ",
    "end ",
    "create ",
    "temp ",
    "function ",
    "into ",
    "pg_advisory_lock",
    "\u{e9}",
    "\0",
];

/// Numbers that look random and are the same in each run.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % bound as u64).unwrap()
    }
}

#[test]
fn any_text_is_read_in_linear_work() {
    let mut numbers = Numbers(0x9e37_79b9_7f4a_7c15);
    let mut texts: Vec<Vec<u8>> = Vec::new();
    for _ in 0..3000 {
        let count = numbers.below(60);
        let pieces = (0..count).map(|_| PIECES[numbers.below(PIECES.len())]);
        texts.push(pieces.collect::<String>().into_bytes());
        let count = numbers.below(80);
        texts.push((0..count).map(|_| u8::try_from(numbers.below(256)).unwrap()).collect());
    }
    // What costs the square of its length somewhere, if anything does.
    for piece in PIECES {
        texts.push(piece.repeat(4000).into_bytes());
        for other in PIECES {
            texts.push(format!("{piece}{other}").repeat(100).into_bytes());
            texts.push(format!("do {piece}{}", other.repeat(100)).into_bytes());
        }
    }
    texts.push(b"select set_config('a',".repeat(4000));
    texts.push([b"$", &b"a".repeat(4000)[..], b"$", &b"$aaa".repeat(4000)].concat());
    for text in texts {
        token::WORK.set(0);
        std::hint::black_box(look(&text));
        let work = token::WORK.get();
        let most = 300 * (text.len() + 10);
        assert!(work <= most, "{work} bytes looked at in {}", String::from_utf8_lossy(&text));
    }
}

/// What one of two statements leaves is left by both.
#[test]
fn nothing_is_hidden_behind_a_semicolon() {
    let texts = [
        "select 1",
        "listen x",
        "set a = 1",
        "create temp table t ()",
        "select 'a''b'",
        "do $$ begin set a = 1; end $$",
        "commit",
        "select $a$;$a$",
        "update t set a = E'\\''",
    ];
    for first in texts {
        for second in texts {
            let both = format!("{first};{second}");
            let [one, other] = [first, second].map(|text| look(text.as_bytes()));
            let sets = |look: &Look<'_>| matches!(look.kind, Kind::Set { .. });
            let either =
                one.leaves.is_some() || other.leaves.is_some() || sets(&one) || sets(&other);
            let both = look(both.as_bytes());
            assert_eq!(both.leaves.is_some(), either, "{first};{second}");
            assert_eq!(both.commits, one.commits || other.commits, "{first};{second}");
            assert!(!both.single);
        }
    }
}
