//! Hot restart with real processes: a new proxy takes over under real clients, from a real
//! PostgreSQL and etcd.
#![allow(clippy::unwrap_used, missing_docs, unreachable_pub)]

#[path = "common/mod.rs"]
mod common;
#[allow(dead_code)]
#[path = "clients/lab_of_clients.rs"]
mod lab_of_clients;

use std::fs::File;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use common::{Killed, free_port, pgherd, wait_for};
use lab_of_clients::{Lab, PREFIX, Place};
use rustix::process::Signal;
use serde_json::json;
use tokio_postgres::{Client, NoTls};

/// Everything here takes a second or two; this ends what hangs.
const PATIENCE: Duration = Duration::from_secs(60);
/// What every proxy says.
const LOG: &str = "hot-restart.log";
/// As the proxy's name and port give it.
const NAME: &str = "clients";

/// Where proxies follow each other.
struct Stand<'a> {
    lab: &'a Lab,
    place: Place,
    file: PathBuf,
    /// What a service manager is told.
    notices: UnixDatagram,
}

/// A proxy that was started by somebody else; it is ended with the test.
struct Stranger(u32);

impl Drop for Stranger {
    fn drop(&mut self) {
        common::signal(self.0, Signal::KILL);
    }
}

impl Stand<'_> {
    fn new<'a>(lab: &'a Lab, name: &str, drain_timeout: &str) -> Stand<'a> {
        let place = Place { port: free_port() };
        let directory = lab.directory.path();
        let section = json!({
            "pool_mode": "transaction", "pool_size": 10, "auth": "scram-sha-256",
            "users_file": lab.users_file(), "drain_timeout": drain_timeout,
            "control_socket": runtime_directory(directory, name).join("proxy.sock"),
        });
        let file = lab.proxy_file(&section, &place);
        let notices = UnixDatagram::bind(directory.join(format!("{name}.notify"))).unwrap();
        notices.set_read_timeout(Some(PATIENCE)).unwrap();
        Stand { lab, place, file, notices }
    }

    /// `pgherd proxy -c FILE …`, with what it says in a file.
    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(pgherd());
        command.args(["proxy", "-c"]).arg(&self.file).args(arguments).stdin(Stdio::null());
        let notify = self.notices.local_addr().unwrap();
        command.env("NOTIFY_SOCKET", notify.as_pathname().unwrap());
        let log = self.lab.directory.path().join(LOG);
        let log = File::options().create(true).append(true).open(log).unwrap();
        command.stdout(log.try_clone().unwrap()).stderr(log);
        command
    }

    /// The next proxy, from where it is started to where it is in charge.
    fn next(&self) -> Killed {
        let child = Killed(self.command(&[]).spawn().unwrap());
        while self.notice() != "READY=1" {}
        child
    }

    /// What the service manager hears next.
    fn notice(&self) -> String {
        let mut bytes = [0; 1024];
        let count = self.notices.recv(&mut bytes).expect("a notice in time");
        String::from_utf8_lossy(&bytes[..count]).trim().to_owned()
    }

    /// The key of the proxy in charge, and that of one that drains.
    fn keys(&self, draining: &Child) -> [String; 2] {
        let own = format!("{NAME}:{}", self.place.port);
        let other = format!("{own}/draining-{}", draining.id());
        [own, other]
    }

    async fn connect(&self) -> Client {
        connect(&self.place.config()).await
    }
}

/// A directory of its own, as a service has it.
fn runtime_directory(below: &Path, name: &str) -> PathBuf {
    let directory = below.join(name);
    std::fs::create_dir(&directory).unwrap();
    directory
}

async fn connect(config: &tokio_postgres::Config) -> Client {
    let (client, connection) = config.connect(NoTls).await.expect("no connection is refused");
    // Its end is seen by the client.
    tokio::spawn(async move { connection.await.unwrap_or_default() });
    client
}

/// Connects, does one transaction, goes, and again; how often. Any error is a failure.
async fn come_and_go(config: tokio_postgres::Config, until: Arc<AtomicBool>) -> u32 {
    let mut count = 0;
    while !until.load(Ordering::Relaxed) {
        let mut client = connect(&config).await;
        let transaction = client.transaction().await.unwrap();
        transaction.execute("SELECT 1", &[]).await.unwrap();
        transaction.commit().await.unwrap();
        count += 1;
    }
    count
}

/// The same with one connection.
async fn stay(client: Client, until: Arc<AtomicBool>) -> u32 {
    let mut count = 0;
    while !until.load(Ordering::Relaxed) {
        client.batch_execute("BEGIN; SELECT 1; COMMIT").await.unwrap();
        count += 1;
    }
    count
}

/// The exit code of a program that ends by itself. What it starts has its output, so that is not
/// waited for.
fn ended(mut command: Command) -> Option<i32> {
    let mut child = command.spawn().map(Killed).unwrap();
    wait_for("it ends", PATIENCE, || child.0.try_wait().unwrap()).code()
}

fn ended_well(child: &mut Killed) {
    let status = wait_for("the proxy ends by itself", PATIENCE, || child.0.try_wait().unwrap());
    assert!(status.success(), "{status}");
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

#[test]
fn a_new_proxy_takes_over_under_clients() {
    let lab = Lab::start();
    let stand = Stand::new(&lab, "take-over", "2s");
    take_over_in_a_loop(&stand);
    let stand = Stand::new(&lab, "sessions", "60s");
    sessions_of_the_old_one(&stand);
    let stand = Stand::new(&lab, "detach", "60s");
    the_background_and_a_broken_file(&stand);
    let log = std::fs::read_to_string(lab.directory.path().join(LOG)).unwrap();
    // Each said to its successor that it drains, also those that had no client then.
    assert!(!log.contains("has ended, or hangs") && !log.contains("ERROR"), "{log}");
}

/// Clients that connect for each transaction see no error; sessions that stay are asked to connect
/// again in the end, between transactions.
fn take_over_in_a_loop(stand: &Stand<'_>) {
    let runtime = runtime();
    let mut present = stand.next();
    let over = Arc::new(AtomicBool::new(false));
    let visits = |_| runtime.spawn(come_and_go(stand.place.config(), over.clone()));
    let visitors: Vec<_> = (0..3).map(visits).collect();
    for _ in 0..3 {
        let idle = runtime.block_on(stand.connect());
        let busy = runtime.block_on(stand.connect());
        runtime.block_on(busy.batch_execute("BEGIN; SELECT 1")).unwrap();
        let mut child = stand.command(&[]).spawn().map(Killed).unwrap();
        // The one in charge says who the main process is before it can end.
        assert_eq!(stand.notice(), format!("MAINPID={}", child.0.id()));
        assert_eq!(stand.notice(), "READY=1");
        assert!(child.0.try_wait().unwrap().is_none());
        runtime.block_on(busy.batch_execute("SELECT 2; COMMIT")).unwrap();
        for client in [idle, busy] {
            wait_for("the session is ended", PATIENCE, || client.is_closed().then_some(()));
        }
        ended_well(&mut present);
        present = child;
    }
    over.store(true, Ordering::Relaxed);
    for visitor in visitors {
        let count = runtime.block_on(visitor).expect("no error");
        assert!(count > 3, "{count} transactions");
    }
    common::signal(present.0.id(), Signal::TERM);
    assert_eq!(stand.notice(), "STOPPING=1");
    ended_well(&mut present);
}

/// While the old one drains its sessions are cancelled through the new one, and are held in a
/// switchover as those of the new one are.
fn sessions_of_the_old_one(stand: &Stand<'_>) {
    let runtime = runtime();
    let mut old = stand.next();
    let [own, draining] = stand.keys(&old.0);
    let view = || stand.lab.etcd.view(PREFIX);
    let lease_before = view().proxies[&own].lease;
    let sleeper = runtime.block_on(stand.connect());
    let of_old = runtime.block_on(stand.connect());
    let going_on = runtime.block_on(stand.connect());
    let token = sleeper.cancel_token();
    let sleeps = runtime.spawn(async move { sleeper.batch_execute("SELECT pg_sleep(60)").await });
    let mut new = stand.next();
    runtime.block_on(token.cancel_query(NoTls)).unwrap();
    let error = runtime.block_on(sleeps).unwrap().unwrap_err();
    assert_eq!(error.code().map(|code| code.code()), Some("57014"), "{error}");
    let seen = view();
    assert_ne!(seen.proxies[&own].lease, lease_before, "the name is the new one's");
    assert!(seen.proxies.contains_key(&draining), "the old one has another");

    let over = Arc::new(AtomicBool::new(false));
    let of_new = runtime.block_on(stand.connect());
    let stays =
        [runtime.spawn(stay(of_new, over.clone())), runtime.spawn(stay(going_on, over.clone()))];
    let visits = runtime.spawn(come_and_go(stand.place.config(), over.clone()));
    runtime.block_on(of_old.batch_execute("BEGIN; SELECT 1")).unwrap();
    // What the leader writes that hands over, and what it waits for.
    let hold = json!({"id": 77, "until": 60_000, "why": "switchover"}).to_string();
    stand.lab.etcd.put(&format!("{PREFIX}pgherd/hold"), &hold).unwrap();
    let busy = |id: &str| {
        let seen = view();
        let proxy = &seen.proxies.get(id)?.value;
        (proxy.hold == Some(77)).then_some(proxy.busy)
    };
    wait_for("both hold", PATIENCE, || {
        (busy(&own) == Some(0) && busy(&draining) == Some(1)).then_some(())
    });
    runtime.block_on(of_old.batch_execute("COMMIT")).unwrap();
    wait_for("nobody is busy", PATIENCE, || (busy(&draining) == Some(0)).then_some(()));
    stand.lab.lead("n2", 2);
    runtime.block_on(of_old.batch_execute("SELECT 1")).unwrap();
    over.store(true, Ordering::Relaxed);
    for client in stays.into_iter().chain([visits]) {
        assert!(runtime.block_on(client).expect("no error") > 0);
    }
    drop(of_old);
    ended_well(&mut old);
    let left: Vec<String> = view().proxies.keys().cloned().collect();
    assert_eq!(left, [own], "the old one's key went with it, the new one's did not");
    common::signal(new.0.id(), Signal::TERM);
    ended_well(&mut new);
}

/// `--detach` returns when the new one serves; one that is refused leaves the old one in charge.
fn the_background_and_a_broken_file(stand: &Stand<'_>) {
    let runtime = runtime();
    let good = std::fs::read_to_string(&stand.file).unwrap();
    let mut first = stand.next();
    let of_first = runtime.block_on(stand.connect());
    for broken in [good.replace("transaction", "transmission"), good.replace("users.txt", "none")] {
        std::fs::write(&stand.file, broken).unwrap();
        for arguments in [&[][..], &["--detach"]] {
            assert_eq!(ended(stand.command(arguments)), Some(1));
        }
    }
    runtime.block_on(of_first.batch_execute("SELECT 1")).unwrap();
    std::fs::write(&stand.file, good).unwrap();
    assert_eq!(ended(stand.command(&["--detach"])), Some(0));
    let notice = stand.notice();
    let pid = notice.strip_prefix("MAINPID=").expect("the next process").parse().unwrap();
    let _second = Stranger(pid);
    assert_eq!(stand.notice(), "READY=1");
    let of_second = runtime.block_on(stand.connect());
    for client in [&of_first, &of_second] {
        runtime.block_on(client.batch_execute("SELECT 1")).unwrap();
    }
    // Whoever drains ends at once when it is told to, and does not speak for the service any more.
    common::signal(first.0.id(), Signal::TERM);
    ended_well(&mut first);
    wait_for("its session is ended", PATIENCE, || of_first.is_closed().then_some(()));
    runtime.block_on(of_second.batch_execute("SELECT 1")).unwrap();
    stand.notices.set_nonblocking(true).unwrap();
    assert!(stand.notices.recv(&mut [0; 64]).is_err(), "no other notice");
}
