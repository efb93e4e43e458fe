//! psql and pgbench, and what their users do with them.

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::process::Signal;

use crate::common::{postgres_program, run, signal, wait_for};
use crate::lab_of_clients::{Lab, Place};

const LIMIT: Duration = Duration::from_secs(60);
const BIG_BYTES: usize = 4 * 1024 * 1024;
/// Rows that are copied: 1 to this.
const ROWS: usize = 20_000;

/// What every step needs.
struct Session<'a> {
    lab: &'a Lab,
    place: &'a Place,
}

impl Session<'_> {
    /// psql, quiet and without anybody's startup file.
    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(postgres_program("psql"));
        self.place.tell(&mut command);
        command.args(["-XAtq"]).args(arguments).env("PGAPPNAME", "steps-psql");
        command
    }

    /// What psql prints of a script, both streams.
    fn script(&self, text: &str) -> String {
        self.script_of(self.command(&[]), text)
    }

    fn script_of(&self, mut command: Command, text: &str) -> String {
        let file = self.lab.file(&format!("psql-{}.sql", self.place.port), text);
        command.arg("-f").arg(file);
        let output = run(command, LIMIT);
        String::from_utf8([output.stdout, output.stderr].concat()).unwrap()
    }

    /// The script's standard output.
    fn check(&self, text: &str, expected: &str) {
        assert_eq!(self.script(text), expected, "{}", text.chars().take(1000).collect::<String>());
    }
}

/// Goes through psql's steps.
pub fn psql(lab: &Lab, place: &Place, steps: &[&str]) -> String {
    let session = Session { lab, place };
    go(steps, |step| match step {
        "startup" => startup(&session),
        "settings" => settings(&session),
        "pipeline" => {
            session.check("SELECT 1\\; SELECT 2\\; SELECT 3;\nSELECT 4;\n", "1\n2\n3\n4\n")
        }
        "errors" => errors(&session),
        "transactions" => transactions(&session),
        "cancel" => cancel(&session),
        "copy" => copy(&session),
        "big_values" => big_values(&session),
        "large_objects" => large_objects(&session),
        "listen" => listen(&session),
        "state" => state(&session),
        "cursor" => {
            // It declares a cursor and fetches by this number.
            let select = "SELECT generate_series(1, 1000)";
            let lines: Vec<String> = (1..=1000).map(|number| format!("{number}\n")).collect();
            session.check(&format!("\\set FETCH_COUNT 10\n{select};\n"), &lines.concat());
        }
        other => panic!("no step is called {other}"),
    })
}

/// A line for each step: it panics where it fails.
fn go(steps: &[&str], work: impl Fn(&str)) -> String {
    let verdict = |step: &&str| {
        let ended = catch_unwind(AssertUnwindSafe(|| work(step)));
        format!("{} {step}\n", if ended.is_ok() { "passed" } else { "failed" })
    };
    steps.iter().map(verdict).collect()
}

fn startup(session: &Session<'_>) {
    let mut command = session.command(&[]);
    command.env("PGOPTIONS", "-c statement_timeout=54321 -c TimeZone=Asia/Tokyo");
    let text = "SHOW application_name; SHOW statement_timeout; SHOW TimeZone;\n".repeat(3);
    let expected = "steps-psql\n54321ms\nAsia/Tokyo\n".repeat(3);
    assert_eq!(session.script_of(command, &text), expected);
}

fn settings(session: &Session<'_>) {
    let text = "SET TimeZone = 'Asia/Tokyo';\nSET search_path TO pg_catalog, public;\n\
        SET client_encoding = 'LATIN1';\n\\encoding\nSHOW TimeZone;\nSHOW search_path;\n\
        SET SESSION application_name = 'renamed';\nSHOW application_name;\nRESET ALL;\n\
        SHOW application_name;\nSHOW TimeZone\\gset\nSELECT :'TimeZone' = 'Asia/Tokyo';\n\
        SET TimeZone = 'Asia/Tokyo';\n\\c -\nSHOW TimeZone\\gset\n\
        SELECT :'TimeZone' = 'Asia/Tokyo';\n";
    let expected = "LATIN1\nAsia/Tokyo\npg_catalog, public\nrenamed\nsteps-psql\nf\nf\n";
    session.check(text, expected);
}

fn errors(session: &Session<'_>) {
    let text = "\\set VERBOSITY sqlstate\nSELECT no_such_column;\nSELECT 1;\nSELEC 1;\nSELECT 2;\n\
        \\echo :LAST_ERROR_SQLSTATE\n\\set VERBOSITY terse\n\
        DO $$ BEGIN RAISE NOTICE 'n'; END $$;\n";
    let said = session.script(text);
    for expected in ["ERROR:  42703", "ERROR:  42601", "1\n2\n42601\n", "NOTICE:  n"] {
        assert!(said.contains(expected), "{expected} is not in {said}");
    }
}

fn transactions(session: &Session<'_>) {
    let text = "\\set ON_ERROR_ROLLBACK on\n\\set VERBOSITY sqlstate\n\
        DROP TABLE IF EXISTS steps_psql;\nCREATE TABLE steps_psql (id int PRIMARY KEY);\nBEGIN;\n\
        INSERT INTO steps_psql VALUES (1);\nINSERT INTO steps_psql VALUES (1);\n\
        INSERT INTO steps_psql VALUES (2);\nSET LOCAL work_mem = '7MB';\nSHOW work_mem;\nCOMMIT;\n\
        SHOW work_mem;\n\\set ON_ERROR_ROLLBACK off\nBEGIN;\nINSERT INTO steps_psql VALUES (3);\n\
        INSERT INTO steps_psql VALUES (3);\nSELECT 1;\nCOMMIT;\n\
        SELECT string_agg(id::text, ' ' ORDER BY id) FROM steps_psql;\nDROP TABLE steps_psql;\n";
    let said = session.script(text);
    assert!(said.contains("7MB\n4MB\n1 2\n"), "{said}");
    assert_eq!(said.matches("ERROR:  23505").count(), 2, "{said}");
    assert_eq!(said.matches("ERROR:  25P02").count(), 1, "{said}");
}

fn cancel(session: &Session<'_>) {
    let sleep = ["-c", "SELECT pg_sleep(60) /* cancel-psql */", "-c", "SELECT 'and on'"];
    let mut command = session.command(&sleep);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = command.spawn().unwrap();
    wait_for("it sleeps", LIMIT, || {
        let count = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep' \
            AND query LIKE '%cancel-psql%';\n";
        (session.script(count) == "1\n").then_some(())
    });
    // Ctrl-C: psql sends a cancel request.
    signal(child.id(), Signal::INT);
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
    assert!(said.contains("canceling statement due to user request"), "{said}");
}

fn copy(session: &Session<'_>) {
    let directory = session.lab.directory.path();
    let rows: String = (1..=ROWS).map(|id| format!("{id}\trow {id}\n")).collect();
    let name = format!("rows-{}", session.place.port);
    let (from, to) = (session.lab.file(&name, &rows), directory.join(format!("{name}.out")));
    let text = format!(
        "DROP TABLE IF EXISTS steps_psql_copy;\nCREATE TABLE steps_psql_copy (id int, what text);\n\
         \\copy steps_psql_copy from '{}'\n\\copy steps_psql_copy to '{}'\n\
         COPY steps_psql_copy FROM STDIN;\nno number\tx\n\\.\n\
         SELECT count(*) FROM steps_psql_copy;\nDROP TABLE steps_psql_copy;\n",
        from.display(),
        to.display()
    );
    let said = session.script(&text);
    assert!(said.starts_with(&format!("{ROWS}\n")), "{said}");
    assert!(said.contains("invalid input syntax for type integer"), "{said}");
    assert!(fs::read_to_string(to).unwrap() == rows, "other rows came out");
}

fn big_values(session: &Session<'_>) {
    let text = "x".repeat(BIG_BYTES);
    let said = session.script(&format!("SELECT '{text}';\nSELECT length('{text}');\n"));
    assert!(said == format!("{text}\n{BIG_BYTES}\n"), "{} bytes came back", said.len());
}

fn large_objects(session: &Session<'_>) {
    // By function calls of the protocol, as libpq does it.
    let directory = session.lab.directory.path();
    let data = "0123456789".repeat(30_000);
    let name = format!("object-{}", session.place.port);
    let (from, to) = (session.lab.file(&name, &data), directory.join(format!("{name}.out")));
    let text = format!(
        "\\lo_import '{}'\n\\lo_export :LASTOID '{}'\nSELECT length(lo_get(:LASTOID));\n\
         \\lo_unlink :LASTOID\n",
        from.display(),
        to.display()
    );
    let said = session.script(&text);
    assert!(said.contains(&format!("{}\n", data.len())), "{said}");
    assert!(fs::read_to_string(to).unwrap() == data, "another object came out");
}

fn listen(session: &Session<'_>) {
    let text = "LISTEN steps_psql;\nSELECT 1;\nNOTIFY steps_psql, 'a payload';\nSELECT 2;\n";
    let said = session.script(text);
    let heard = "Asynchronous notification \"steps_psql\" with payload \"a payload\" received";
    assert!(said.contains(heard), "{said}");
}

fn state(session: &Session<'_>) {
    let text = "PREPARE sum AS SELECT $1::int + 1;\nEXECUTE sum(1);\nEXECUTE sum(2);\n\
        DEALLOCATE sum;\nCREATE TEMPORARY TABLE steps_temporary (id int);\n\
        INSERT INTO steps_temporary VALUES (1);\nINSERT INTO steps_temporary VALUES (2);\n\
        SELECT count(*) FROM steps_temporary;\nBEGIN;\n\
        DECLARE held CURSOR WITH HOLD FOR SELECT generate_series(1, 3);\nCOMMIT;\n\
        FETCH 2 FROM held;\nCLOSE held;\nDISCARD ALL;\n\
        SELECT to_regclass('steps_temporary') IS NULL;\n";
    session.check(text, "2\n3\n2\n1\n2\nt\n");
}

/// Goes through pgbench's steps; each says how many transactions were done.
pub fn pgbench(lab: &Lab, place: &Place, steps: &[&str]) -> String {
    let load = |options: &[&str]| {
        let mut command = Command::new(postgres_program("pgbench"));
        place.tell(&mut command);
        command.args(["-n", "-c", "8", "-t", "50"]).args(options);
        let output = run(command, LIMIT);
        let said = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
        assert!(output.status.success() && said.contains("400/400"), "{options:?}: {said}");
    };
    let script = "\\startpipeline\nSELECT 1;\nSELECT 2;\n\\endpipeline\n";
    let script = lab.file(&format!("pipeline-{}.sql", place.port), script);
    let script = script.to_str().unwrap();
    let protocols = ["simple", "extended", "prepared"];
    go(steps, |step| match step {
        "prepared" => protocols.iter().for_each(|protocol| load(&["-S", "-M", protocol])),
        "pipeline" => ["extended", "prepared"]
            .iter()
            .for_each(|protocol| load(&["-f", script, "-M", protocol])),
        "transactions" => protocols.iter().for_each(|protocol| load(&["-M", protocol])),
        "many" => load(&["-S", "-C"]),
        other => panic!("no step is called {other}"),
    })
}
