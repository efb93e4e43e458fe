//! Data directories that commands of the operator's make, on a real PostgreSQL.
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use common::{LIMIT, Node, bin_dirs, control, new_primary, streaming};
use postgres::{CustomBootstrap, CustomMethod, Hooks, Instance, ReplicaMethod, Secret, StartAs};
use types::{ControlState, DataDir, Process, Timeline};

async fn configure(node: &Node, change: impl FnOnce(&mut postgres::InstanceConfig)) {
    let mut config = (*node.instance.config()).clone();
    change(&mut config);
    node.instance.apply(config).await.unwrap();
}

fn shell(script: &str) -> Vec<String> {
    ["sh", "-c", script, "sh"].map(str::to_owned).to_vec()
}

fn pairs(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
    pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

fn custom(script: &str) -> CustomBootstrap {
    CustomBootstrap {
        method: "restore".to_owned(),
        command: shell(script),
        no_params: false,
        keep_existing_recovery_conf: false,
        recovery_conf: None,
        arguments: pairs(&[("level", "7")]),
    }
}

fn method(name: &str, script: &str) -> CustomMethod {
    CustomMethod {
        name: name.to_owned(),
        command: shell(script),
        keep_data: false,
        no_leader: false,
        no_params: false,
        arguments: pairs(&[("retries", "3")]),
    }
}

/// What the cluster's commands leave for the tests to look at.
struct Shelf {
    base: tempfile::TempDir,
}

impl Shelf {
    fn new() -> Shelf {
        let base = tempfile::Builder::new().prefix("pgh").tempdir_in("/tmp").unwrap();
        let shelf = Shelf { base };
        std::fs::create_dir(shelf.path("archive")).unwrap();
        for path in [shelf.base.path().to_owned(), shelf.path("archive")] {
            std::fs::set_permissions(path, PermissionsExt::from_mode(0o777)).unwrap();
        }
        shelf
    }

    fn path(&self, name: &str) -> PathBuf {
        self.base.path().join(name)
    }

    fn shown(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.path(name)).unwrap()
    }
}

#[tokio::test]
async fn a_cluster_and_a_copy_are_made_by_commands() {
    for bin_dir in bin_dirs() {
        let shelf = Shelf::new();
        let (a, b) = (Node::new("a", &bin_dir), Node::new("b", &bin_dir));
        original(&a, &shelf, &bin_dir).await;
        restored_to_a_point(&b, &shelf).await;
        let c = Node::new("c", &bin_dir);
        a_failure_leaves_nothing_in_place(&c, &shelf).await;
        copied_by_the_second_method(&c, &b, &shelf, &bin_dir).await;
    }
}

/// A cluster with an archive, and a backup from before its second and third rows.
async fn original(a: &Node, shelf: &Shelf, bin_dir: &Path) {
    let archive = shelf.shown("archive");
    let psql = bin_dir.join("psql").display().to_string();
    configure(a, |config| {
        config.parameters.insert("archive_mode".to_owned(), "on".to_owned());
        config.parameters.insert("archive_command".to_owned(), format!("cp %p {archive}/%f"));
        config.initdb.push(("wal-segsize".to_owned(), Some("1".to_owned())));
        let made = "CREATE TABLE t (x text); INSERT INTO t VALUES ('$PGOPTIONS')";
        config.hooks.post_bootstrap = shell(&format!(
            "{psql} -wqc \"{made}\" \"$1\" && {psql} -wqc 'SELECT FROM t' && \
             ! {psql} -h 127.0.0.1 -wqc 'SELECT 1'"
        ));
    })
    .await;
    new_primary(a).await;
    let written = ["-c synchronous_commit=local -c statement_timeout=0"];
    assert_eq!(a.sql("SELECT x FROM t").await, written);
    let (backup, port) = (shelf.shown("backup"), a.instance.config().port);
    let command = format!(
        "PGPASSWORD=\"super ' secret\" {}/pg_basebackup -D {backup} -c fast -X fetch \
         -h 127.0.0.1 -p {port} -U postgres",
        bin_dir.display()
    );
    a.sql(&format!("COPY (SELECT 1) TO PROGRAM $${command}$$")).await;
    a.sql("INSERT INTO t VALUES ('second')").await;
    a.sql("SELECT pg_create_restore_point('here')").await;
    a.sql("INSERT INTO t VALUES ('third')").await;
    let last = a.value("SELECT pg_walfile_name(pg_switch_wal())").await;
    let archived = format!("SELECT last_archived_wal >= '{last}' FROM pg_stat_archiver");
    let deadline = std::time::Instant::now() + LIMIT.as_duration();
    while a.value(&archived).await != "t" {
        assert!(std::time::Instant::now() < deadline, "{}", a.log());
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
}

async fn restored_to_a_point(b: &Node, shelf: &Shelf) {
    let (backup, arguments) = (shelf.shown("backup"), shelf.shown("arguments"));
    configure(b, |config| {
        let script = format!("echo \"$*\" > {arguments}; cp -a {backup} \"${{2#--datadir=}}\"");
        let settings = [
            ("restore_command", format!("cp {}/%f %p", shelf.shown("archive"))),
            ("recovery_target_name", "here".to_owned()),
            ("recovery_target_action", "promote".to_owned()),
        ];
        let settings = settings.map(|(name, value)| (name.to_owned(), value));
        let recovery_conf = Some(BTreeMap::from(settings));
        config.hooks.bootstrap = Some(CustomBootstrap { recovery_conf, ..custom(&script) });
        config.replication.password = Some(Secret::new("another"));
        config.initdb.clear();
    })
    .await;
    let seen = async {
        // Nothing is shown of what is under way in its place.
        let mut looks = 0;
        loop {
            let seen = b.instance.observe().await;
            assert_eq!((seen.data_dir, seen.process), (DataDir::Empty, Process::Stopped));
            looks += 1;
            assert!(looks < 10_000);
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    };
    tokio::select! {
        biased;
        made = b.instance.bootstrap(false) => made.unwrap(),
        () = seen => {}
    }
    let data_dir = b.instance.config().data_dir.clone();
    let expected = format!("--scope=test --datadir={} --level=7\n", data_dir.display());
    assert_eq!(shelf.read("arguments"), expected);
    assert_eq!(control(b).await.state, ControlState::ShutDown);
    assert_eq!(control(b).await.timeline, Timeline(2));
    assert!(!data_dir.join("recovery.signal").exists());
    b.start(StartAs::Primary).await;
    assert_eq!(b.sql("SELECT x FROM t OFFSET 1").await, ["second"]);
}

async fn a_failure_leaves_nothing_in_place(c: &Node, shelf: &Shelf) {
    let note = shelf.shown("note");
    let script = format!("mkdir \"${{2#--datadir=}}\"; cp {note} \"${{2#--datadir=}}\"; exit 3");
    std::fs::write(shelf.path("note"), "half").unwrap();
    configure(c, |config| config.hooks.bootstrap = Some(custom(&script))).await;
    let error = c.instance.bootstrap(false).await.unwrap_err().to_string();
    assert_eq!(error, "the bootstrap method restore (sh) failed: exit status: 3");
    let config = c.instance.config();
    assert!(!config.data_dir.exists());
    assert!(config.beside(".failed").join("note").exists());
    // One whose agent did not live to see it fail.
    std::fs::create_dir(&config.data_dir).unwrap();
    std::fs::write(config.data_dir.join("older"), "").unwrap();
    let refused = c.instance.bootstrap(false).await.unwrap_err().to_string();
    assert!(refused.contains("is not empty"), "{refused}");
    c.instance.bootstrap(true).await.unwrap_err();
    assert!(config.beside(".failed").join("note").exists());
}

async fn copied_by_the_second_method(c: &Node, of: &Node, shelf: &Shelf, bin_dir: &Path) {
    let arguments = shelf.shown("arguments");
    let bad = format!("echo \"$*\" > {arguments}; mkdir \"${{4#--datadir=}}\"; exit 1");
    let good = format!(
        "{}/pg_basebackup -D \"${{4#--datadir=}}\" -c fast -d \"${{5#--connstring=}}\"",
        bin_dir.display()
    );
    configure(c, |config| {
        let methods = [method("bad", &bad), method("good", &good)];
        config.hooks = Hooks {
            replica_methods: methods.map(ReplicaMethod::Custom).to_vec(),
            ..Hooks::default()
        };
        config.replication = of.instance.config().replication.clone();
    })
    .await;
    c.instance.clone_from(Some(&of.upstream()), None, |_| {}).await.unwrap();
    let given = shelf.read("arguments");
    let begin = "--retries=3 --scope=test --role=replica --datadir=/";
    assert!(
        given.starts_with(begin) && given.contains(" --connstring=dbname=postgres "),
        "{given}"
    );
    assert!(!given.contains("another"), "I6: {given}");
    let unled = c.instance.clone_from(None, None, |_| {}).await.unwrap_err().to_string();
    assert!(unled.contains("no method makes a copy without a leader"), "{unled}");
    let upstream = Some(of.upstream());
    c.instance.start(StartAs::Standby { upstream }, LIMIT).await.unwrap();
    streaming(c).await;
}
