//! `query` on the members of a real cluster.
#![allow(clippy::unwrap_used)]

mod common;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use common::{Demo, directory, run};

const LIMIT: Duration = Duration::from_secs(60);

/// What a command did: exit code, standard output, standard error.
type Said = (i32, String, String);

struct Site {
    demo: Demo,
    _root: tempfile::TempDir,
    user: String,
    pgpass: PathBuf,
}

impl Site {
    fn new() -> Site {
        let root = directory();
        let demo = Demo::new(&root.path().join("d"));
        demo.start(&["--nodes", "2"]);
        demo.settled(1);
        let file = demo.file();
        let (_, rest) = file["read_write"].as_str().unwrap().split_once("://").unwrap();
        let (login, _) = rest.split_once('@').unwrap();
        let (user, password) = login.split_once(':').unwrap();
        let pgpass = root.path().join("pgpass");
        write_private(&pgpass, &format!("127.0.0.1:*:*:{user}:{password}\n"));
        Site { demo, user: user.to_owned(), pgpass, _root: root }
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = self.demo.command(&["-c"]);
        command.arg(self.demo.dir.join("node1.yml")).arg("query").args(arguments);
        for variable in ["PGUSER", "PGPASSWORD", "PGDATABASE", "PGHOST", "PGPORT"] {
            command.env_remove(variable);
        }
        command.env("PGUSER", &self.user).env("PGPASSFILE", &self.pgpass);
        command
    }

    fn ask(&self, arguments: &[&str]) -> Said {
        said(self.command(&[&["-d", "postgres"], arguments].concat()))
    }
}

fn said(command: Command) -> Said {
    let output = run(command, LIMIT);
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code().unwrap(), text(&output.stdout), text(&output.stderr))
}

fn write_private(path: &Path, text: &str) {
    fs::write(path, text).unwrap();
    fs::set_permissions(path, PermissionsExt::from_mode(0o600)).unwrap();
}

/// Exit code 0, and this.
fn printed(said: Said, expected: &str) {
    assert_eq!(said, (0, expected.to_owned(), String::new()));
}

/// Exit code 0, and one line that ends like this behind a time.
fn failed(said: &Said, why: &str) {
    let (time, text) = said.1.split_once('\t').unwrap_or_else(|| panic!("{said:?}"));
    assert_eq!((said.0, time.len()), (0, "2026-11-23 22:01:02".len()), "{said:?}");
    assert!(text.starts_with(why) && text.ends_with('\n'), "{said:?}");
}

#[test]
fn members_are_asked_as_patronictl_asks_them() {
    let site = Site::new();
    what_comes_back(&site);
    what_goes_wrong(&site);
    site.demo.stop();
}

fn what_comes_back(site: &Site) {
    let recovers = "SELECT pg_is_in_recovery() AS r";
    printed(site.ask(&["-c", recovers]), "r\nFalse\n");
    printed(site.ask(&["-c", recovers, "-r", "replica"]), "r\nTrue\n");
    printed(site.ask(&["-c", recovers, "-r", "primary", "--format", "json"]), "[{\"r\": false}]\n");
    let application = "SELECT current_setting('application_name') AS a, NULL AS n";
    printed(site.ask(&["-c", application, "--delimiter", "|"]), "a|n\nPatroni ctl|None\n");

    printed(site.ask(&["-c", "CREATE TABLE t (id int); INSERT INTO t VALUES (1), (2)"]), "");
    let file = site.demo.dir.parent().unwrap().join("q.sql");
    fs::write(&file, "SELECT 1 AS x; SELECT id FROM t ORDER BY id").unwrap();
    printed(site.ask(&["-f", file.to_str().unwrap()]), "id\n1\n2\n");
    printed(
        site.ask(&["-c", "SELECT id, id::numeric / 2 AS h FROM t", "--format", "pretty"]),
        "+----+------------------------+\n| id | h                      |\n\
         +----+------------------------+\n| 1  | 0.50000000000000000000 |\n\
         | 2  | 1.00000000000000000000 |\n+----+------------------------+\n",
    );
}

fn what_goes_wrong(site: &Site) {
    failed(&site.ask(&["-c", "SELECT nothing"]), "ERROR, SQLSTATE: 42703");
    failed(&site.ask(&["-c", "SELECT 1", "-m", "node9"]), "No connection to member node9 is");
    failed(&site.ask(&["-c", "SELECT 1", "-r", "standby-leader"]), "No connection to role standby");
    let missing = said(site.command(&["-d", "none", "-c", "SELECT 1"]));
    failed(&missing, "ERROR, SQLSTATE: connection to server at \"127.0.0.1\", port ");
    assert!(missing.1.contains("FATAL:  database \"none\" does not exist"), "{missing:?}");
    // A password that is asked for goes before the file's; here there is no terminal.
    let mut wrong = site.command(&["-d", "postgres", "--password", "-c", "SELECT 1"]);
    wrong.env("PGPASSWORD", "wrong");
    let (code, text, error) = said(wrong);
    assert_eq!((code, error.as_str()), (1, "Aborted!\n"), "{text}");
    assert!(text.starts_with("Password: "), "{text}");

    for (arguments, code, error) in [
        (&[][..], 1, "Error: You need to specify either --command or --file\n"),
        (
            &["-c", "x", "-f", "/dev/null"],
            1,
            "Error: --file and --command are mutually exclusive options\n",
        ),
        (
            &["-c", "x", "-r", "any", "-m", "node1"],
            1,
            "Error: --role and --member are mutually exclusive options\n",
        ),
        (&["-f", "/nonexistent"], 2, "error: invalid value '/nonexistent' for '--file <FILE>'"),
    ] {
        let said = site.ask(arguments);
        assert!(said.0 == code && said.2.starts_with(error), "{arguments:?} {said:?}");
    }
}
