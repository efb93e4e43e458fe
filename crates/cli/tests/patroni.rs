//! Patroni's nodes and ours are members of one cluster, and take each other's place under running
//! PostgreSQL. Patroni 4.1 itself, which tools/install-test.sh installs.
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use common::{
    Etcd, directory, free_port, kill_all, owner, pgherd, postgres_program, run, signal, succeeded,
    wait_for,
};
use lab::workload::{self, Plan, Shared, Writer};
use rustix::process::Signal;

/// A lease, its end seen, an election, and room for a busy machine.
const FAILOVER: Duration = Duration::from_secs(90);
const SETTLED: Duration = Duration::from_secs(60);
const COMMAND: Duration = Duration::from_secs(60);

/// Whose node it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Patroni,
    Ours,
}

/// Three members, each with a file that both kinds read.
struct Cluster {
    _etcd: Etcd,
    dir: tempfile::TempDir,
    daemons: BTreeMap<usize, Child>,
    postgres: [u16; 3],
    rest: [u16; 3],
}

impl Cluster {
    fn new() -> Cluster {
        let (etcd, dir) = (Etcd::start(), directory());
        let (uid, gid) = owner();
        std::os::unix::fs::chown(dir.path(), Some(uid), Some(gid)).unwrap();
        // Whom PostgreSQL runs as may not reach where this was built.
        fs::copy(pgherd(), dir.path().join("patroni")).unwrap();
        let postgres = [free_port(), free_port(), free_port()];
        let rest = [free_port(), free_port(), free_port()];
        for (index, ports) in postgres.into_iter().zip(rest).enumerate() {
            let text = file(dir.path(), index + 1, etcd.port, ports);
            fs::write(dir.path().join(format!("n{}.yml", index + 1)), text).unwrap();
        }
        Cluster { _etcd: etcd, dir, daemons: BTreeMap::new(), postgres, rest }
    }

    fn file(&self, node: usize) -> PathBuf {
        self.dir.path().join(format!("n{node}.yml"))
    }

    /// A program as whom PostgreSQL runs as, with nothing of our own environment.
    fn command(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        command.env_clear().env("PATH", "/usr/bin:/bin").env("HOME", self.dir.path());
        command.current_dir(self.dir.path());
        if common::is_root() {
            let (uid, gid) = owner();
            command.uid(uid).gid(gid);
        }
        command
    }

    fn start(&mut self, node: usize, kind: Kind) {
        let log = fs::OpenOptions::new()
            .append(true)
            .create(true)
            .open(self.dir.path().join(format!("n{node}.log")))
            .unwrap();
        let program = match kind {
            Kind::Patroni => patronis("patroni"),
            Kind::Ours => self.dir.path().join("patroni"),
        };
        let mut command = self.command(&program);
        command.arg(self.file(node)).stdin(Stdio::null());
        command.stdout(log.try_clone().unwrap()).stderr(log);
        self.daemons.insert(node, command.spawn().unwrap());
        // What stands in the keys may still be of the daemon before it.
        let address = (std::net::Ipv4Addr::LOCALHOST, self.rest[node - 1]);
        wait_for("the daemon answers", SETTLED, || std::net::TcpStream::connect(address).ok());
    }

    /// SIGTERM to the daemon alone.
    fn stop(&mut self, node: usize) {
        let mut daemon = self.daemons.remove(&node).unwrap();
        signal(daemon.id(), Signal::TERM);
        wait_for("the daemon ends", SETTLED, || daemon.try_wait().unwrap());
    }

    /// The daemon, what stands beside it, and PostgreSQL, all at once.
    fn lose_host(&mut self, node: usize) {
        let mut daemon = self.daemons.remove(&node).unwrap();
        daemon.kill().unwrap();
        daemon.wait().unwrap();
        kill_all(&self.data_dir(node));
    }

    fn data_dir(&self, node: usize) -> PathBuf {
        self.dir.path().join(format!("d{node}"))
    }

    fn ours(&self, arguments: &[&str]) -> String {
        let mut command = self.command(&self.dir.path().join("patroni"));
        command.arg0("patronictl").arg("-c").arg(self.file(1)).args(arguments);
        succeeded(run(command, COMMAND))
    }

    fn patronictl(&self, arguments: &[&str]) -> String {
        let mut command = self.command(&patronis("patronictl"));
        command.arg("-c").arg(self.file(1)).args(arguments);
        succeeded(run(command, COMMAND))
    }

    /// Waits until one member of these leads, whichever `may`, and the others stream from it; the
    /// leader's number.
    fn settled(&self, members: usize, may: &[usize]) -> usize {
        wait_for("one leader, and the others stream", FAILOVER, || {
            let rows: serde_json::Value =
                serde_json::from_str(&self.ours(&["list", "-f", "json"])).unwrap();
            let rows = rows.as_array()?;
            let leads = |row: &&serde_json::Value| row["Role"] == "Leader";
            let leader = rows.iter().find(leads)?;
            let name = leader["Member"].as_str()?.strip_prefix('n')?.parse().ok()?;
            let well = rows.len() == members
                && leader["State"] == "running"
                && rows
                    .iter()
                    .filter(|row| !leads(row))
                    .all(|row| row["State"] == "streaming" && row["TL"] == leader["TL"]);
            (well && may.contains(&name)).then_some(name)
        })
    }

    /// Both commands show the same, whoever the members are. (Positions move between two looks.)
    fn same_table(&self) {
        wait_for("patronictl and ours print the same table", SETTLED, || {
            (self.patronictl(&["list"]) == self.ours(&["list"])).then_some(())
        });
    }

    /// When each PostgreSQL was started.
    fn started(&self) -> Vec<String> {
        self.postgres.iter().map(|port| started(*port)).collect()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for daemon in self.daemons.values_mut() {
            daemon.kill().ok();
            daemon.wait().ok();
        }
        kill_all(self.dir.path());
        if std::thread::panicking() {
            for node in 1..=3 {
                let log = self.dir.path().join(format!("n{node}.log"));
                let text = fs::read_to_string(&log).unwrap_or_default();
                let from = text.len().saturating_sub(3_000);
                let tail = text.get(from..).unwrap_or(&text);
                eprintln!("---- the end of n{node}.log\n{tail}");
            }
        }
    }
}

fn file(dir: &Path, node: usize, etcd: u16, (postgres, rest): (u16, u16)) -> String {
    let dir = dir.display();
    let bin_dir = postgres_program("");
    let bin_dir = bin_dir.display();
    format!(
        "scope: demo
name: n{node}
etcd3: {{host: '127.0.0.1:{etcd}'}}
restapi: {{listen: '127.0.0.1:{rest}', connect_address: '127.0.0.1:{rest}'}}
bootstrap:
  dcs:
    {{ttl: 20, loop_wait: 2, retry_timeout: 5, postgresql: {{use_pg_rewind: true,
      parameters: {{max_connections: 40, shared_buffers: 16MB}}}}}}
  initdb: [{{encoding: UTF8}}, data-checksums]
postgresql:
  listen: 127.0.0.1:{postgres}
  connect_address: 127.0.0.1:{postgres}
  data_dir: {dir}/d{node}
  bin_dir: {bin_dir}
  pgpass: {dir}/pgpass{node}
  authentication:
    superuser: {{username: postgres, password: super}}
    replication: {{username: replicator, password: rep}}
    rewind: {{username: rewinder, password: rew}}
  pg_hba:
  - local all all trust
  - host replication replicator 127.0.0.1/32 md5
  - host all all 127.0.0.1/32 md5
  parameters: {{unix_socket_directories: {dir}}}
"
    )
}

/// A program of Patroni's.
fn patronis(name: &str) -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/tools/patroni/bin");
    let program = root.join(name);
    assert!(program.is_file(), "{} is missing: run tools/install-test.sh", program.display());
    program
}

fn started(port: u16) -> String {
    let url = format!("postgres://postgres:super@127.0.0.1:{port}/postgres");
    succeeded(common::psql(&url, "SELECT pg_postmaster_start_time()"))
}

#[test]
fn patronis_nodes_and_ours_elect_and_hand_over_both_ways() {
    let mut cluster = Cluster::new();
    cluster.start(1, Kind::Patroni);
    cluster.settled(1, &[1]);
    cluster.start(2, Kind::Ours);
    cluster.start(3, Kind::Ours);
    cluster.settled(3, &[1]);
    cluster.same_table();

    let there = cluster.patronictl(&["switchover", "demo", "--candidate", "n2", "--force"]);
    assert!(there.contains("Successfully switched over to \"n2\""), "{there}");
    cluster.settled(3, &[2]);
    let back = cluster.ours(&["switchover", "demo", "--candidate", "n1", "--force"]);
    assert!(back.contains("Successfully switched over to \"n1\""), "{back}");
    cluster.settled(3, &[1]);
    cluster.same_table();

    // Patroni's leader is lost: one of ours takes over, and it comes back as its standby.
    cluster.lose_host(1);
    let leader = cluster.settled(2, &[2, 3]);
    cluster.start(1, Kind::Patroni);
    cluster.settled(3, &[leader]);
    // And the other way, with nobody else there.
    cluster.stop(5 - leader);
    cluster.settled(2, &[leader]);
    cluster.lose_host(leader);
    cluster.settled(1, &[1]);
    cluster.start(2, Kind::Ours);
    cluster.start(3, Kind::Ours);
    cluster.settled(3, &[1]);
    cluster.same_table();
}

#[test]
fn each_takes_the_others_place_under_running_postgresql() {
    let mut cluster = Cluster::new();
    cluster.start(1, Kind::Patroni);
    cluster.settled(1, &[1]);
    cluster.start(2, Kind::Patroni);
    cluster.start(3, Kind::Patroni);
    cluster.settled(3, &[1]);
    let before = cluster.started();

    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let ledger = Shared::default();
    let target = workload::target(cluster.postgres[0], "postgres", "super", "writer");
    let limit = Duration::from_secs(10);
    runtime.block_on(workload::create_table(&target, limit)).unwrap();
    let plan = Plan { number: 1, skip: 0, target: target.clone(), pace: Duration::from_millis(10) };
    let writer = runtime
        .block_on(async { Writer::start(plan, ledger.clone(), tokio::time::Instant::now()) });

    for kind in [Kind::Ours, Kind::Patroni] {
        cluster.patronictl(&["pause", "--wait", "demo"]);
        for node in [2, 3, 1] {
            cluster.stop(node);
            cluster.start(node, kind);
            cluster.settled(3, &[1]);
        }
        cluster.ours(&["resume", "--wait", "demo"]);
        cluster.settled(3, &[1]);
        cluster.same_table();
        assert_eq!(cluster.started(), before, "PostgreSQL was restarted for {kind:?}");
    }
    drop(writer);
    let present = runtime.block_on(workload::present(&target, limit)).unwrap();
    let ledger = ledger.lock();
    let entries = ledger.acks().len();
    assert!(entries > 100, "{entries} writes");
    assert_eq!((ledger.missing(entries, &present).len(), ledger.unknown_count()), (0, 0));
}
