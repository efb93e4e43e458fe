//! The writers and the ledger on a real PostgreSQL: what they say about where a row was written,
//! and that they go on after the server was killed.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use lab::ledger::{IDS_PER_WRITER, PROXY_WRITER};
use lab::workload::{self, Plan, Shared, Target, Writer};
use lab::{ports, process, tools};

const LIMIT: Duration = Duration::from_secs(20);

/// A PostgreSQL of its own, gone when dropped.
struct Postgres {
    directory: PathBuf,
    bin_dir: PathBuf,
    owner: Option<(u32, u32)>,
    port: u16,
    postmaster: Option<Child>,
}

impl Postgres {
    fn new() -> Postgres {
        let directory = std::env::temp_dir().join(format!("lab-writers-{}", std::process::id()));
        fs::create_dir_all(&directory).unwrap();
        let owner = owner();
        if let Some((uid, gid)) = owner {
            chown(&directory, Some(uid), Some(gid)).unwrap();
        }
        fs::set_permissions(&directory, fs::Permissions::from_mode(0o700)).unwrap();
        let port = ports::reserve().unwrap();
        let bin_dir = tools::postgres_bin_dir().unwrap();
        let postgres = Postgres { directory, bin_dir, owner, port, postmaster: None };
        let mut initdb = postgres.command("initdb");
        initdb.args(["--no-sync", "--auth=trust", "--username=postgres"]).arg(postgres.data());
        assert!(initdb.status().unwrap().success());
        postgres
    }

    fn data(&self) -> PathBuf {
        self.directory.join("data")
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(self.bin_dir.join(program));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        command.current_dir("/");
        if let Some((uid, gid)) = self.owner {
            command.uid(uid).gid(gid);
        }
        command
    }

    fn start(&mut self) {
        let mut postgres = self.command("postgres");
        postgres.arg("-D").arg(self.data()).args(["-p", &self.port.to_string()]);
        postgres.arg("-c").arg(format!("unix_socket_directories={}", self.directory.display()));
        postgres.args(["-c", "listen_addresses=127.0.0.1"]);
        self.postmaster = Some(postgres.spawn().unwrap());
    }

    fn target(&self) -> Target {
        workload::target(self.port, "postgres", "", "lab-test")
    }

    /// kill -9 of the postmaster, and waits until its backends are gone too.
    async fn crash(&mut self) {
        let mut postmaster = self.postmaster.take().unwrap();
        assert_eq!(process::postmaster_of(&self.data()), Some(postmaster.id()));
        postmaster.kill().unwrap();
        postmaster.wait().unwrap();
        let left = process::wait_gone(process::working_in(&self.data()), LIMIT).await;
        assert!(left.is_empty(), "{left:?}");
        assert_eq!(process::postmaster_of(&self.data()), None);
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        for pid in process::working_in(&self.data()) {
            // It may be gone by itself, which is what we want.
            drop(process::signal(pid, rustix::process::Signal::KILL));
        }
        if let Some(mut postmaster) = self.postmaster.take() {
            // As above.
            drop(postmaster.wait());
        }
        // A directory left behind in the temporary directory does no harm.
        drop(fs::remove_dir_all(&self.directory));
    }
}

/// The user `postgres` when we are root, which PostgreSQL refuses to run as.
fn owner() -> Option<(u32, u32)> {
    if fs::metadata("/proc/self").unwrap().uid() != 0 {
        return None;
    }
    let users = fs::read_to_string("/etc/passwd").unwrap();
    let line = users.lines().find(|line| line.starts_with("postgres:")).unwrap();
    let fields: Vec<&str> = line.split(':').collect();
    Some((fields[2].parse().unwrap(), fields[3].parse().unwrap()))
}

async fn eventually(what: &str, condition: impl Fn() -> bool) {
    let until = Instant::now() + LIMIT;
    while !condition() {
        assert!(Instant::now() < until, "{what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn until_up(target: &Target, data: &Path) {
    let until = Instant::now() + LIMIT;
    while let Err(error) = workload::probe(target, Duration::from_secs(2)).await {
        assert!(Instant::now() < until, "{}: {error}", data.display());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn writers_go_on_after_a_crash_and_their_books_are_right() {
    let mut postgres = Postgres::new();
    postgres.start();
    let target = postgres.target();
    until_up(&target, &postgres.data()).await;
    workload::create_table(&target, LIMIT).await.unwrap();
    let (ledger, epoch) = (Shared::default(), tokio::time::Instant::now());
    let plan =
        |number| Plan { number, skip: 0, target: target.clone(), pace: Duration::from_millis(10) };
    let _one = Writer::start(plan(PROXY_WRITER), ledger.clone(), epoch);
    let _two = Writer::start(plan(3), ledger.clone(), epoch);
    eventually("both write", || ledger.lock().acks().len() > 20).await;

    let fault = epoch.elapsed();
    postgres.crash().await;
    postgres.start();
    eventually("they go on", || ledger.lock().next_ack(3, fault).is_some()).await;
    eventually("they go on", || ledger.lock().next_ack(PROXY_WRITER, fault).is_some()).await;

    let entries = ledger.lock().acks().len();
    let present = workload::present(&target, LIMIT).await.unwrap();
    let ledger = ledger.lock();
    assert!(ledger.missing(entries, &present).is_empty());
    assert!(ledger.interleaved().is_empty());
    assert!(ledger.acks().iter().all(|ack| ack.port == postgres.port && ack.timeline == 1));
    assert!(ledger.acks().iter().any(|ack| ack.id > 3 * IDS_PER_WRITER));
    assert!(ledger.longest_gap(PROXY_WRITER, fault, epoch.elapsed()) > Duration::ZERO);
    assert_eq!(ledger.gaps(), 0);
}
