//! `pgherd demo` as a newcomer uses it, on real PostgreSQL and etcd.
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use common::{Demo, Etcd, Killed, directory, is_root, pgherd, psql, succeeded};
use rustix::process::{Pid, Signal};
use serde_json::Value;

/// A demo is a dozen of processes: one at a time.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn pid(value: &Value) -> Option<u32> {
    u32::try_from(value.as_u64()?).ok()
}

fn signal(pid: u32, signal: Signal) {
    let pid = Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
    rustix::process::kill_process(pid, signal).unwrap();
}

/// Every field of `demo.json`, and that the processes it names are alive.
fn check_file(demo: &Demo, nodes: usize) {
    let path = demo.dir.join("demo.json");
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o7777, 0o600);
    let file = demo.file();
    let keys = |value: &Value| value.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    let top = [
        "pid",
        "scope",
        "dcs",
        "dcs_pids",
        "proxy_pid",
        "proxy_url",
        "read_write",
        "read_only",
        "nodes",
    ];
    let of_node = [
        "name",
        "agent_pid",
        "guard_pid",
        "postmaster_pid",
        "data_dir",
        "pg_port",
        "rest_url",
        "config",
    ];
    assert_eq!(keys(&file), top);
    for url in ["read_write", "read_only"] {
        assert!(file[url].as_str().unwrap().starts_with("postgresql://"), "{url}");
    }
    let mut pids = vec![pid(&file["pid"]), pid(&file["proxy_pid"])];
    pids.extend(file["dcs_pids"].as_array().unwrap().iter().map(pid));
    assert_eq!(file["nodes"].as_array().unwrap().len(), nodes);
    for node in file["nodes"].as_array().unwrap() {
        assert_eq!(keys(node), of_node);
        pids.extend(["agent_pid", "guard_pid", "postmaster_pid"].map(|key| pid(&node[key])));
        for path in ["data_dir", "config"] {
            assert!(Path::new(node[path].as_str().unwrap()).exists(), "{path} of {node}");
        }
        assert!(node["rest_url"].as_str().unwrap().starts_with("http://"));
        assert!(node["pg_port"].as_u64().is_some_and(|port| port > 0));
    }
    let distinct: BTreeSet<u32> = pids.iter().map(|pid| pid.expect("a pid")).collect();
    assert_eq!(distinct.len(), pids.len(), "{file}");
    assert!(distinct.into_iter().all(lab::process::is_alive), "{file}");
}

fn node<'a>(file: &'a Value, name: &str) -> &'a Value {
    let nodes = file["nodes"].as_array().unwrap();
    nodes.iter().find(|node| node["name"] == *name).expect("a node of this name")
}

fn url(demo: &Demo) -> String {
    demo.file()["read_write"].as_str().unwrap().to_owned()
}

fn insert(demo: &Demo, id: u32) {
    succeeded(psql(&url(demo), &format!("INSERT INTO t VALUES ({id})")));
}

fn rows(demo: &Demo) -> String {
    succeeded(psql(&url(demo), "SELECT string_agg(id::text, ' ' ORDER BY id) FROM t"))
}

fn kill_primary(demo: &Demo, leader: &str) {
    let postmaster = pid(&node(&demo.file(), leader)["postmaster_pid"]).expect("it runs");
    signal(postmaster, Signal::KILL);
}

#[test]
fn a_demo_survives_its_primary_and_is_operated() {
    let _alone = alone();
    let root = directory();
    let demo = Demo::new(&root.path().join("d"));
    demo.start(&[]);
    check_file(&demo, 3);
    succeeded(psql(&url(&demo), "CREATE TABLE t (id int PRIMARY KEY)"));
    insert(&demo, 1);

    let first = demo.settled(2);
    kill_primary(&demo, &first);
    insert(&demo, 2);
    assert_eq!(rows(&demo).trim(), "1 2");

    let leader = demo.settled(2);
    assert_ne!(leader, first, "two synchronous standbys were there to take over");
    let shown = demo.ctl(&["list"]);
    assert_eq!(shown.matches("Leader").count(), 1, "{shown}");
    assert_eq!(shown.matches("Quorum Standby").count(), 2, "{shown}");
    let topology = demo.ctl(&["topology"]);
    assert_eq!(topology.matches("| + node").count(), 2, "{topology}");

    let said = demo.ctl(&["switchover", "--force"]);
    assert!(said.contains("Successfully switched over"), "{said}");
    insert(&demo, 3);
    assert_ne!(demo.settled(2), leader);

    demo.ctl(&["pause", "--wait"]);
    assert!(demo.ctl(&["list"]).contains("Maintenance mode: on"));
    demo.ctl(&["resume", "--wait"]);
    assert!(!demo.ctl(&["list"]).contains("Maintenance mode"));
    check_events(&demo);
    check_file(&demo, 3);
    check_looks(&demo);

    // A demo that is there already is not started twice, and the one that runs does not mind.
    let again = demo.demo(&["--detach"], Duration::from_secs(30));
    assert!(!again.status.success());
    assert!(String::from_utf8_lossy(&again.stderr).contains("still has processes"));

    demo.stop();
    assert!(!demo.dir.join("demo.json").exists());
    demo.start(&[]);
    assert_eq!(rows(&demo).trim(), "1 2 3");
    demo.stop();
}

/// While nothing happens but writes, a standby is looked at once in a round. Each look is a
/// transaction there. The ten in a second that are for when something happens would be eighty;
/// trial runs and the proxy's questions are three in a second.
fn check_looks(demo: &Demo) {
    const STRETCH: Duration = Duration::from_secs(8);
    const TRANSACTIONS_MAX: u64 = 50;
    let port = |name: &str| node(&demo.file(), name)["pg_port"].as_u64().expect("a port");
    let standby = demo.roles().into_iter().find(|(_, role)| role != "Leader").expect("one").0;
    let read_write = url(demo);
    let (server, rest) = read_write.rsplit_once(':').expect("a port");
    let (_, database) = rest.split_once('/').expect("a database");
    let straight = format!("{server}:{}/{database}", port(&standby));
    let count = || -> u64 {
        let sum = "SELECT sum(xact_commit) FROM pg_stat_database";
        succeeded(psql(&straight, sum)).trim().parse().expect("a number")
    };
    let transactions = || {
        let (before, until) = (count(), Instant::now() + STRETCH);
        while Instant::now() < until {
            succeeded(psql(&url(demo), "UPDATE t SET id = id"));
        }
        count() - before
    };
    // What an operator did before is looked at for some seconds.
    let seen: Vec<u64> = (0..2).map(|_| transactions()).collect();
    assert!(seen[1] <= TRANSACTIONS_MAX, "transactions in {STRETCH:?} each: {seen:?}");
}

/// Every node kept a journal whose actions have reasons.
fn check_events(demo: &Demo) {
    let pretty = demo.ctl(&["events"]);
    assert!(pretty.contains("because"), "{pretty}");
    let lines = demo.ctl(&["events", "-f", "json"]);
    let events: Vec<Value> =
        lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let begun: Vec<&Value> = events.iter().filter(|event| event["event"] == "begin").collect();
    assert!(!begun.is_empty(), "{lines}");
    for event in begun {
        assert!(event["act"]["action"].is_string(), "{event}");
        assert!(event["why"]["reason"].is_string(), "{event}");
    }
}

#[test]
fn a_member_for_disaster_recovery_never_leads() {
    let _alone = alone();
    let (root, etcd) = (directory(), Etcd::start());
    let demo = Demo::new(&root.path().join("d"));
    let dcs = format!("http://127.0.0.1:{}", etcd.port);
    demo.start(&["--dr", "--nodes", "2", "--dcs", &dcs]);
    check_file(&demo, 3);
    assert_eq!(demo.file()["dcs"], serde_json::json!([dcs]));
    assert_eq!(demo.file()["dcs_pids"], serde_json::json!([]));
    succeeded(psql(&url(&demo), "CREATE TABLE t (id int PRIMARY KEY)"));
    insert(&demo, 1);

    let leader = demo.settled(1);
    let mut command = demo.command(&["-c"]);
    command.arg(demo.dir.join("node1.yml")).args(["switchover", "--force", "--candidate", "dr1"]);
    let refused = common::run(command, Duration::from_secs(60));
    assert!(!refused.status.success());
    assert!(String::from_utf8_lossy(&refused.stderr).contains("nofailover"), "it says why");
    kill_primary(&demo, &leader);
    insert(&demo, 2);
    assert!(demo.settled(1).starts_with("node"));
    assert_eq!(demo.roles()["dr1"], "Replica");

    let rows: Value = serde_json::from_str(&demo.ctl(&["list", "-f", "json"])).unwrap();
    let dr = rows.as_array().unwrap().iter().find(|row| row["Member"] == "dr1").unwrap();
    for lag in ["Receive Lag", "Replay Lag"] {
        assert!(dr[lag].is_number(), "{dr}");
    }
    for tag in ["nofailover", "nosync", "noloadbalance"] {
        assert_eq!(dr["Tags"][tag], true, "{dr}");
    }
    check_rest(&etcd);
    demo.stop();
    assert!(lab::process::is_alive(std::process::id()), "and the etcd is not the demo's to stop");
    etcd.put("/still", "there").unwrap();
}

/// While nothing happens no member key is written, which each agent's round would do once.
fn check_rest(etcd: &Etcd) {
    const ROUNDS: Duration = Duration::from_secs(6);
    let keys = || -> Vec<_> {
        let view = etcd.view("/service/demo/");
        assert_eq!(view.members.len(), 3);
        view.members.values().map(|member| (member.mod_revision, member.lease)).collect()
    };
    // PostgreSQL itself writes now and then, and positions are in the keys.
    common::wait_for("three rounds without a written member key", Duration::from_secs(90), || {
        let before = keys();
        std::thread::sleep(ROUNDS);
        (keys() == before).then_some(())
    });
}

#[test]
fn ctrl_c_leaves_nothing() {
    let _alone = alone();
    let root = directory();
    let mut command = Command::new(pgherd());
    command.args(["demo", "--nodes", "1", "--json"]).env("TMPDIR", root.path());
    let mut child = Killed(command.stdout(Stdio::piped()).spawn().unwrap());
    let lines = BufReader::new(child.0.stdout.take().unwrap()).lines();
    let mut lines = lines.map(|line| serde_json::from_str::<Value>(&line.unwrap()).unwrap());
    let healthy = lines.by_ref().find(|event| event["event"] == "healthy").expect("it gets there");
    assert!(Path::new(healthy["dir"].as_str().unwrap()).starts_with(root.path()));
    signal(child.0.id(), Signal::INT);
    // Read to the end, so that it never waits for us.
    assert!(lines.last().is_some());
    assert!(child.0.wait().unwrap().success());
    assert_eq!(common::processes_of(root.path()), Vec::<String>::new());
    assert_eq!(fs::read_dir(root.path()).unwrap().count(), 0, "the directory was a temporary one");
}

#[test]
fn an_ordinary_user_can_run_it() {
    let _alone = alone();
    let Some(user) = common::user("nobody").filter(|_| is_root()) else {
        eprintln!("skipped: the other tests already run as an ordinary user");
        return;
    };
    let root = directory();
    let program = root.path().join("pgherd");
    fs::copy(pgherd(), &program).unwrap();
    fs::set_permissions(&program, PermissionsExt::from_mode(0o755)).unwrap();
    let home = root.path().join("home");
    fs::create_dir(&home).unwrap();
    chown(&home, Some(user.0), Some(user.1)).unwrap();
    let demo = Demo::as_user(&home.join("d"), &program, user);
    demo.start(&[]);
    check_file(&demo, 3);
    succeeded(psql(&url(&demo), "CREATE TABLE t (id int PRIMARY KEY)"));
    insert(&demo, 1);
    kill_primary(&demo, &demo.settled(2));
    insert(&demo, 2);
    assert_eq!(rows(&demo).trim(), "1 2");
    demo.stop();
}
