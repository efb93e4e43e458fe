//! The operator's commands against the keys of a cluster as Patroni 4.1 writes them.
#![allow(clippy::unwrap_used)]

mod common;

use std::io::Write;
use std::process::{Command, Stdio};
use std::time::Duration;

use common::{Etcd, directory, pgherd, run};

const LIMIT: Duration = Duration::from_secs(20);

/// A healthy cluster after two failovers.
const KEYS: [(&str, &str); 6] = [
    ("initialize", "7711489607175335743"),
    ("leader", "node-1"),
    (
        "config",
        r#"{"ttl":20,"postgresql":{"use_pg_rewind":true,"pg_hba":["local all all trust"],"parameters":{"work_mem":"8MB","jit":"off"}},"synchronous_mode":false}"#,
    ),
    (
        "history",
        r#"[[1,67417056,"no recovery target specified","2026-11-23T22:01:02.547522+00:00","node-1"],[2,67417688,"no recovery target specified"]]"#,
    ),
    (
        "members/node-1",
        r#"{"conn_url":"postgres://10.0.0.1:5432/postgres","api_url":"http://127.0.0.1:1/patroni","state":"running","role":"primary","version":"4.1.4","xlog_location":67418240,"timeline":3}"#,
    ),
    (
        "members/node-2",
        r#"{"conn_url":"postgres://10.0.0.2:5433/postgres","api_url":"http://127.0.0.1:1/patroni","state":"running","role":"replica","version":"4.1.4","xlog_location":67418240,"replay_lsn":67418240,"receive_lsn":67418240,"replication_state":"streaming","timeline":3}"#,
    ),
];

struct Site {
    etcd: Etcd,
    dir: tempfile::TempDir,
}

/// What a command did: exit code, standard output, standard error.
type Said = (i32, String, String);

impl Site {
    fn new() -> Site {
        let site = Site { etcd: Etcd::start(), dir: directory() };
        for (key, value) in KEYS {
            site.etcd.put(&format!("/service/demo/{key}"), value).unwrap();
        }
        site
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(pgherd());
        let variables = std::env::vars_os();
        for (name, _) in variables.filter(|(name, _)| name.to_string_lossy().contains("PATRONI")) {
            command.env_remove(name);
        }
        command.env("PATRONI_ETCD3_HOST", format!("127.0.0.1:{}", self.etcd.port));
        command.env("HOME", self.dir.path()).args(arguments);
        command
    }

    fn said(&self, arguments: &[&str]) -> Said {
        let mut command = self.command(arguments);
        command.env("PATRONI_SCOPE", "demo");
        let output = run(command, LIMIT);
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
    }

    /// The command with these lines on its standard input.
    fn told(&self, arguments: &[&str], input: &str) -> Said {
        let mut command = self.command(arguments);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
    }
}

/// What a command said below the table that it began with.
fn below_the_table(said: &str) -> String {
    assert!(said.starts_with("+ Cluster: demo (7711"), "{said}");
    let drawn = |line: &&str| line.starts_with(['+', '|']);
    said.lines().skip_while(drawn).map(|line| format!("{line}\n")).collect()
}

#[test]
fn the_dynamic_configuration_is_shown_and_edited() {
    let site = Site::new();
    let shown = "\
postgresql:
  parameters:
    jit: \"off\"
    work_mem: 8MB
  pg_hba:
  - local all all trust
  use_pg_rewind: true
synchronous_mode: false
ttl: 20
";
    assert_eq!(site.said(&["show-config"]), (0, shown.to_owned(), String::new()));
    assert_eq!(site.said(&["show-config", "none"]), (0, String::new(), String::new()));

    let set = ["edit-config", "--force", "-s", "ttl=30", "-p", "work_mem=null", "-p", "a.b=1"];
    let (code, said, _) = site.said(&set);
    assert_eq!(code, 0, "{said}");
    let expected = "\
--- \n+++ \n@@ -1,9 +1,9 @@
 postgresql:
   parameters:
+    a.b: 1
     jit: \"off\"
-    work_mem: 8MB
   pg_hba:
   - local all all trust
   use_pg_rewind: true
 synchronous_mode: false
-ttl: 20
+ttl: 30
Configuration changed
";
    assert_eq!(said, expected);
    assert_eq!(site.said(&set).1, "Not changed\n");
    let (code, _, error) = site.said(&["edit-config", "--force", "-s", "ttl=soon"]);
    assert_eq!(code, 1);
    assert!(error.starts_with("Error: ttl"), "{error}");
    let (code, _, error) = site.said(&["edit-config", "none", "--force", "-s", "ttl=30"]);
    let none = "Error: The config key does not exist in the cluster none\n";
    assert_eq!((code, error.as_str()), (1, none));

    let file = site.dir.path().join("new.yml");
    std::fs::write(&file, "ttl: 25\nloop_wait: 5\n").unwrap();
    let file = file.to_str().unwrap();
    assert_eq!(site.said(&["edit-config", "-q", "--force", "--replace", file]).0, 0);
    assert_eq!(site.said(&["show-config"]).1, "loop_wait: 5\nttl: 25\n");
    let (_, said, _) = site.told(&["edit-config", "demo", "--apply", "-"], "ttl: 26\n");
    assert!(said.ends_with("Use --force option to apply changes\n"), "{said}");
    let (_, said, _) = site.told(&["edit-config", "demo", "-s", "ttl=27"], "y\n");
    assert!(said.ends_with("Apply these changes? [y/N]: Configuration changed\n"), "{said}");
    assert_eq!(site.said(&["show-config"]).1, "loop_wait: 5\nttl: 27\n");
}

#[test]
fn an_editor_edits_the_configuration() {
    let site = Site::new();
    let edit = |editor: &str| {
        let mut command = site.command(&["edit-config", "demo", "--force"]);
        command.env("EDITOR", editor);
        let output = run(command, LIMIT);
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
    };
    assert_eq!(edit("true").1, "Not changed\n");
    assert_eq!(edit("false").2, "Error: Editor exited with return code 1\n");
    let (code, said, _) = edit("sed -i s/20/21/");
    assert_eq!(code, 0);
    assert!(said.contains("-ttl: 20\n+ttl: 21\n"), "{said}");
    assert!(edit("sed -i 's/.*/- x/'").2.contains("a mapping is expected"));
}

#[test]
fn what_a_cluster_says_of_itself() {
    let site = Site::new();
    let history = "\
+----+----------+------------------------------+----------------------------------+------------+
| TL |      LSN | Reason                       | Timestamp                        | New Leader |
+----+----------+------------------------------+----------------------------------+------------+
|  1 | 67417056 | no recovery target specified | 2026-11-23T22:01:02.547522+00:00 | node-1     |
|  2 | 67417688 | no recovery target specified |                                  |            |
+----+----------+------------------------------+----------------------------------+------------+
";
    assert_eq!(site.said(&["history"]).1, history);
    let json = r#"{"TL": 2, "LSN": 67417688, "Reason": "no recovery target specified", "Timestamp": null, "New Leader": null}]"#;
    assert!(site.said(&["history", "-f", "json"]).1.contains(json));

    assert_eq!(site.said(&["dsn"]).1, "host=10.0.0.1 port=5432\n");
    assert_eq!(site.said(&["-k", "dsn"]).1, "host=10.0.0.1 port=5432\n");
    assert_eq!(site.said(&["dsn", "-r", "replica"]).1, "host=10.0.0.2 port=5433\n");
    assert_eq!(site.said(&["dsn", "-m", "node-2"]).1, "host=10.0.0.2 port=5433\n");
    let none = "Error: Can not find a suitable member\n";
    assert_eq!(site.said(&["dsn", "-m", "node-9"]), (1, String::new(), none.to_owned()));
    let (code, _, error) = site.said(&["-c", "/none.yml", "dsn"]);
    assert_eq!(code, 1);
    assert!(error.starts_with("Error: Provided config file /none.yml not existing"), "{error}");
    let both = site.said(&["dsn", "-m", "node-2", "-r", "any"]);
    assert_eq!(both.2, "Error: --role and --member are mutually exclusive options\n");

    let (code, said, _) = site.said(&["version", "demo", "node-2"]);
    assert_eq!(code, 0);
    assert!(said.starts_with("pgherd version "), "{said}");
    assert!(said.contains("\n\nnode-2: failed to get version: "), "{said}");
    let yaml = site.said(&["list", "-f", "yaml"]).1;
    assert!(yaml.starts_with("- Cluster: demo\n  Host: 10.0.0.1:5432\n"), "{yaml}");
}

#[test]
fn a_cluster_is_removed_by_who_knows_it() {
    let site = Site::new();
    let (code, _, error) = site.told(&["remove", "demo"], "demo2\n");
    assert_eq!((code, error.as_str()), (1, "Error: Cluster names specified do not match\n"));
    let (_, _, error) = site.told(&["remove", "demo"], "demo\nyes\n");
    assert_eq!(error, "Error: You did not exactly type \"Yes I am aware\"\n");
    let (_, _, error) = site.told(&["remove", "demo"], "demo\nYes I am aware\nnode-2\n");
    assert_eq!(error, "Error: You did not specify the current leader of the cluster\n");
    assert_eq!(site.said(&["dsn"]).0, 0, "nothing was removed");
    let (code, _, error) = site.told(&["remove", "demo"], "demo\nYes I am aware\nnode-1\n");
    assert_eq!((code, error.as_str()), (0, ""));
    assert_eq!(site.said(&["dsn"]).0, 1);
    assert_eq!(site.said(&["show-config"]).1, "");
}

#[test]
fn members_are_selected_and_confirmed() {
    let site = Site::new();
    let (code, said, _) = site.said(&["reload", "demo", "node-2", "--force"]);
    assert_eq!(code, 0, "what a member refuses is no failure of the command");
    let said = below_the_table(&said);
    assert!(said.starts_with("Failed: reload for member node-2, (cannot connect"), "{said}");
    for (arguments, error) in [
        (vec!["node-9"], "No any among provided members"),
        (vec!["node-1", "-r", "replica"], "No replica among provided members"),
        (vec!["-r", "standby-leader"], "demo cluster doesn't have any members"),
    ] {
        let arguments = [vec!["reload", "demo", "--force"], arguments].concat();
        assert_eq!(site.said(&arguments).2, format!("Error: {error}\n"));
    }
    let none = site.said(&["reload", "none", "--force"]).2;
    assert_eq!(none, "Error: none cluster doesn't have any members\n");
    let (code, said, error) = site.told(&["reload", "demo"], "n\n");
    assert_eq!((code, error.as_str()), (1, "Error: Aborted reload\n"));
    let question = "Are you sure you want to reload members node-1, node-2? [y/N]: ";
    assert!(said.starts_with("+ Cluster: demo (7711") && said.ends_with(question), "{said}");
}

#[test]
fn restarts_and_copies_are_asked_for_with_their_conditions() {
    let site = Site::new();
    let (code, said, _) = site.said(&["restart", "demo", "node-2", "--force"]);
    assert_eq!(code, 0, "what a member refuses is no failure of the command");
    let said = below_the_table(&said);
    assert!(said.starts_with("Failed: restart for member node-2, (cannot connect"), "{said}");
    let said = site.said(&["restart", "demo", "--force", "--pending"]).1;
    assert_eq!(below_the_table(&said), "", "no parameter waits anywhere");
    for (arguments, error) in [
        (
            vec!["--scheduled", "soon"],
            "Unable to parse scheduled timestamp (soon). It should be in an unambiguous format \
             (e.g. ISO 8601)",
        ),
        (
            vec!["--pg-version", "15"],
            "Invalid PostgreSQL version format: X.Y or X.Y.Z is accepted: 15",
        ),
    ] {
        let arguments = [vec!["restart", "demo", "--force"], arguments].concat();
        assert_eq!(site.said(&arguments).2, format!("Error: {error}\n"));
    }
    let (_, said, error) = site.told(&["restart", "demo", "node-2"], "2035-01-01T10:00Z\nn\n");
    assert_eq!(error, "Error: Aborted scheduled restart\n");
    let question = "schedule restart of members node-2 at 2035-01-01T10:00Z? [y/N]: ";
    assert!(said.contains("When should the restart take place (e.g. ") && said.ends_with(question));

    let said = site.said(&["reinit", "demo", "node-2", "--force", "--wait"]).1;
    let failed = "Failed: reinitialize for member node-2, (cannot connect";
    assert!(said.starts_with("+ Cluster: demo (7711") && said.contains(failed), "{said}");
    let said = site.said(&["reinit", "demo", "node-1", "--force"]).2;
    assert_eq!(said, "Error: No replica among provided members\n");
    let (_, said, error) = site.told(&["reinit", "demo"], "node-1\n");
    assert!(said.ends_with("Which member do you want to reinitialize [node-2]? []: "), "{said}");
    assert_eq!(error, "Error: node-1 is not a member of cluster\n");

    let said = site.said(&["flush", "demo", "--force", "restart"]).1;
    let none = "No scheduled restart for member node-1\nNo scheduled restart for member node-2\n";
    assert_eq!(below_the_table(&said), none);
    assert_eq!(site.said(&["flush", "demo", "switchover"]).1, "No pending scheduled switchover\n");
    assert_eq!(site.said(&["flush", "demo", "everything"]).0, 2);
}

#[test]
fn a_change_of_leader_that_is_not_meant_or_refused_ends_there() {
    let site = Site::new();
    let title = "Current cluster topology\n+ Cluster: demo (7711";
    for (arguments, answers, question, error) in [
        (
            vec!["switchover", "demo", "--candidate", "node-2"],
            "\n\nn\n",
            "switchover cluster demo, demoting current leader node-1? [y/N]: ",
            "Error: Aborting switchover\n",
        ),
        (
            vec!["switchover", "demo", "--candidate", "node-2"],
            "\n2035-01-01T10:00Z\nn\n",
            "cluster demo at 2035-01-01T10:00Z, demoting current leader node-1? [y/N]: ",
            "Error: Aborting scheduled switchover\n",
        ),
        (
            vec!["failover", "demo", "--candidate", "node-2"],
            "n\n",
            "failover cluster demo, demoting current leader node-1? [y/N]: ",
            "Error: Aborting failover\n",
        ),
    ] {
        let (code, said, complaint) = site.told(&arguments, answers);
        assert!(said.starts_with(title) && said.ends_with(question), "{arguments:?} {said}");
        assert_eq!((code, complaint.as_str()), (1, error), "{arguments:?}");
    }

    // A member that refuses: there is no second table, as nothing has changed.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let member = format!(
        r#"{{"conn_url":"postgres://10.0.0.1:5432/postgres","api_url":"http://127.0.0.1:{port}/patroni","state":"running","role":"primary","version":"4.1.4","timeline":3}}"#
    );
    site.etcd.put("/service/demo/members/node-1", &member).unwrap();
    let refusing = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut request = [0; 4096];
        std::io::Read::read(&mut stream, &mut request).unwrap();
        stream.write_all(b"HTTP/1.0 412 no\r\n\r\nleader name does not match").unwrap();
    });
    let (code, said, _) = site.said(&["switchover", "demo", "--force", "--candidate", "node-2"]);
    refusing.join().unwrap();
    let failed = "\nSwitchover failed, details: 412, leader name does not match\n";
    assert!(said.ends_with(failed) && code == 0, "{said}");
    assert_eq!(said.matches("+ Cluster: demo").count(), 1, "{said}");

    // The last of two equal options counts.
    let twice = ["list", "-f", "yaml", "-f", "tsv", "-e", "-e"];
    assert!(site.said(&twice).1.starts_with("Cluster\tMember\tHost"));
}
