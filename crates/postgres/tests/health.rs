//! An instance that is hung rather than dead, and what observations say of it.
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::BTreeSet;
use std::io::{Seek as _, Write as _};
use std::os::unix::fs::chown;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use common::{
    LIMIT, Node, bin_dirs, cluster, freeze, os_user, pause, running, signal, thaw, until,
};
use postgres::{Instance, Observation, StartAs, StopMode};
use rustix::process::{Pid, Signal};
use types::{DataDir, Fault, Process, Trouble};

/// What an observation may take on a machine that is busy with other tests; it only tells a bounded
/// one from one that hangs.
const BOUND: Duration = Duration::from_secs(12);

/// An observation, which comes in time whatever hangs.
async fn look(node: &Node) -> Observation {
    node.instance.begin_trials();
    let seen = tokio::time::timeout(BOUND, node.instance.observe()).await;
    seen.expect("an observation is bounded")
}

fn fault(trouble: &Option<Trouble>) -> Option<&Fault> {
    trouble.as_ref().map(|trouble| &trouble.fault)
}

async fn until_connection(node: &Node, wanted: Option<Fault>) {
    let shows = async || fault(&look(node).await.health.connection) == wanted.as_ref();
    until(&format!("connection: {wanted:?}"), shows).await;
}

async fn until_write(node: &Node, wanted: Option<Fault>) {
    let shows = async || fault(&look(node).await.health.write) == wanted.as_ref();
    until(&format!("write: {wanted:?}"), shows).await;
}

/// An observation, once one shows no trouble.
async fn healthy(node: &Node) {
    running(node).await;
    until_connection(node, None).await;
    until_write(node, None).await;
}

#[tokio::test]
async fn a_frozen_postmaster_and_its_full_queue() {
    for dir in bin_dirs() {
        let [a] = cluster(&dir, ["a"], &[]).await;
        healthy(&a).await;
        let postmaster = a.postmaster_pid();
        freeze(postmaster).await;
        until_connection(&a, Some(Fault::NoAnswer)).await;
        let since = look(&a).await.health.connection.unwrap().since;
        assert!(matches!(look(&a).await.process, Process::Silent { .. }));
        let queue = fill_queue(&a);
        pause(1500).await;
        let seen = look(&a).await.health.connection.unwrap();
        assert_eq!((seen.since, seen.fault), (since, Fault::NoAnswer), "from the first trial on");
        drop(queue);
        thaw(postmaster);
        healthy(&a).await;
        freeze(postmaster).await;
        until_connection(&a, Some(Fault::NoAnswer)).await;
        a.instance.stop(StopMode::Kill, LIMIT).await.unwrap();
        assert_eq!(look(&a).await.health.connection, None, "nobody expects an answer");
    }
}

/// Connects until the server's queue takes no more.
fn fill_queue(node: &Node) -> Vec<UnixStream> {
    use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect};
    let config = node.instance.config();
    let path = config.socket_dir.join(format!(".s.PGSQL.{}", config.port));
    let address = SocketAddrUnix::new(path).unwrap();
    let mut queue = Vec::new();
    loop {
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let socket =
            rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None).unwrap();
        match connect(&socket, &address) {
            Ok(()) => queue.push(UnixStream::from(socket)),
            Err(error) => {
                assert_eq!(error, rustix::io::Errno::AGAIN, "the queue is full");
                return queue;
            }
        }
    }
}

#[tokio::test]
async fn a_frozen_backend_of_the_agent_is_left_behind() {
    for dir in bin_dirs() {
        let [a] = cluster(&dir, ["a"], &[]).await;
        healthy(&a).await;
        let kept = "select pid from pg_stat_activity where application_name = 'pgherd'";
        freeze(a.value(kept).await.parse().unwrap()).await;
        assert!(matches!(look(&a).await.process, Process::Silent { .. }));
        let seen = look(&a).await;
        assert!(matches!(seen.process, Process::Running(_)), "{seen:?}");
        assert_eq!(seen.health.connection, None, "new clients are served");
    }
}

#[tokio::test]
async fn connections_that_are_all_taken() {
    for dir in bin_dirs() {
        let [a] = cluster(&dir, ["a"], &[]).await;
        a.sql("create role client login password 'x'").await;
        healthy(&a).await;
        let mut ordinary = a.connection();
        ordinary.user("client").password("x");
        let mut clients = take_all(&ordinary).await;
        assert!(clients.len() > 10, "{}", clients.len());
        until_connection(&a, Some(Fault::NoConnectionLeft)).await;
        assert!(matches!(look(&a).await.process, Process::Running(_)), "by the kept connection");
        drop(clients.pop());
        until_connection(&a, None).await;
        clients.extend(take_all(&ordinary).await);
        // Not even a superuser is let in now.
        let reserved = take_all(&a.connection()).await;
        until_connection(&a, Some(Fault::NoConnectionLeft)).await;
        assert!(matches!(look(&a).await.process, Process::Running(_)), "by the kept connection");
        drop((clients, reserved));
        healthy(&a).await;
    }
}

/// Connects until no connection is left. A trial may have the last one, for a moment.
async fn take_all(pg: &tokio_postgres::Config) -> Vec<tokio_postgres::Client> {
    let mut clients = Vec::new();
    let mut refused = 0;
    while refused < 3 {
        match pg.connect(tokio_postgres::NoTls).await {
            Ok((client, connection)) => {
                tokio::spawn(connection);
                clients.push(client);
                refused = 0;
            }
            Err(error) => {
                assert_eq!(error.code().unwrap().code(), "53300", "{error}");
                refused += 1;
                pause(100).await;
            }
        }
    }
    clients
}

#[tokio::test]
async fn a_server_that_starts_or_stops_is_not_in_trouble_and_shows_where_recovery_is() {
    for dir in bin_dirs() {
        let [a] = cluster(&dir, ["a"], &[]).await;
        healthy(&a).await;
        a.sql("checkpoint").await;
        a.sql("create table t as select x from generate_series(1, 300000) x").await;
        let (startup, started) = catch_recovery(&a).await;
        let seen = look(&a).await;
        let Process::NotReady { recovery: Some(segment), .. } = &seen.process else {
            panic!("{seen:?}");
        };
        assert!(segment.len() == 24 && segment.starts_with("00000001"), "{segment}");
        pause(1500).await;
        assert_eq!(look(&a).await.health.connection, None, "it starts");
        thaw(startup);
        started.await.unwrap();
        healthy(&a).await;
        // By an operator's hand: sessions go on, new ones are not let in.
        signal(a.postmaster_pid(), Signal::TERM);
        pause(1500).await;
        let seen = look(&a).await;
        assert!(matches!(seen.process, Process::Running(_)), "{:?}", seen.process);
        assert_eq!(seen.health.connection, None, "it stops");
        a.instance.stop(StopMode::Fast, LIMIT).await.unwrap();
        let seen = look(&a).await;
        assert_eq!((seen.process, seen.health.connection), (Process::Stopped, None));
    }
}

/// Kills the server, starts it, and freezes its startup process at work; which may need some tries.
async fn catch_recovery(node: &Node) -> (i32, tokio::task::JoinHandle<()>) {
    for _ in 0..20 {
        node.instance.stop(StopMode::Kill, LIMIT).await.unwrap();
        let instance = node.instance.clone();
        let started = tokio::spawn(async move {
            instance.start(StartAs::Primary, LIMIT).await.unwrap();
        });
        while !started.is_finished() {
            if let Some(pid) = node.find_process("startup") {
                // It may have ended meanwhile.
                rustix::process::kill_process(Pid::from_raw(pid).unwrap(), Signal::STOP).ok();
                pause(5).await;
                if node.find_process("startup recovering") == Some(pid) {
                    return (pid, started);
                }
                rustix::process::kill_process(Pid::from_raw(pid).unwrap(), Signal::CONT).ok();
            }
            pause(1).await;
        }
        started.await.unwrap();
    }
    panic!("no recovery was caught at work");
}

/// The pids of a node's helpers that are not zombies.
fn helpers(node: &Node) -> Vec<i32> {
    let dir = node.instance.config().data_dir.clone();
    let shown = format!("pgherd\0probe\0--data-dir\0{}\0", dir.display());
    let pids = std::fs::read_dir("/proc").unwrap().flatten();
    let pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let ours = |pid: &i32| {
        std::fs::read_to_string(format!("/proc/{pid}/cmdline"))
            .is_ok_and(|line| line.starts_with(&shown))
    };
    pids.filter(ours).collect()
}

/// Threads of this process that sleep so that no signal ends them. A thread does for a moment now
/// and then.
fn asleep() -> BTreeSet<std::ffi::OsString> {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap().flatten();
    let asleep = tasks.filter(|task| {
        let stat = std::fs::read_to_string(task.path().join("stat")).unwrap_or_default();
        stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('D'))
    });
    asleep.map(|task| task.file_name()).collect()
}

/// A disk that hangs for readers, too: a helper that does not answer cannot be told from it.
#[tokio::test]
async fn helpers_that_hang_are_given_up_and_replaced() {
    let [a] = cluster(&bin_dirs()[0], ["a"], &[]).await;
    healthy(&a).await;
    let before = helpers(&a);
    assert_eq!(before.len(), 2, "one reads, one writes");
    let pids = a.instance.processes().unwrap();
    assert!(!before.iter().any(|pid| pids.contains(pid)), "they are not of the instance");
    let owner = |pid: &i32| std::fs::metadata(format!("/proc/{pid}")).unwrap();
    if let Some(user) = os_user() {
        use std::os::unix::fs::MetadataExt as _;
        assert!(before.iter().all(|pid| owner(pid).uid() == user.uid));
    }
    for pid in &before {
        freeze(*pid).await;
    }
    let seen = look(&a).await;
    assert!(matches!(seen.data_dir, DataDir::Present(_)), "as it was: {:?}", seen.data_dir);
    assert!(matches!(seen.process, Process::Running(_)), "{:?}", seen.process);
    assert_eq!(fault(&seen.health.write), Some(&Fault::DiskHangs));
    // Those that are given up are killed: a stopped process dies of that.
    healthy(&a).await;
    until("they are gone", async || helpers(&a).iter().all(|pid| !before.contains(pid))).await;
    // One that is killed is replaced without a word of trouble.
    for pid in helpers(&a) {
        signal(pid, Signal::KILL);
    }
    let seen = look(&a).await;
    assert!(matches!(seen.data_dir, DataDir::Present(_)), "{:?}", seen.data_dir);
    assert_eq!(seen.health.write, None);
    until("others run", async || helpers(&a).len() == 2).await;
    a.instance.close().await;
    assert_eq!(helpers(&a), Vec::<i32>::new());
}

/// A small file system on a loop device, thawed and unmounted when dropped.
struct Volume {
    mounted: PathBuf,
}

impl Volume {
    /// Mounts one; `None` where this cannot be done.
    fn mount(at: &Path, image: &Path, mebibytes: u64) -> Option<Volume> {
        let skip = |why: &str| {
            let text = format!("SKIPPED, no volume to hang or fill: {why}\n");
            std::io::stderr().write_all(text.as_bytes()).ok();
            None
        };
        if !rustix::process::geteuid().is_root() {
            return skip("only root can mount one");
        }
        std::fs::create_dir_all(at).unwrap();
        std::fs::File::create(image).unwrap().set_len(mebibytes << 20).unwrap();
        let image = image.to_str().unwrap();
        for command in [
            vec!["mkfs.ext4", "-q", "-F", "-m", "0", image],
            vec!["mount", "-o", "loop", image, at.to_str().unwrap()],
        ] {
            match Command::new(command[0]).args(&command[1..]).output() {
                Ok(output) if output.status.success() => {}
                Ok(output) => return skip(&String::from_utf8_lossy(&output.stderr)),
                Err(error) => return skip(&format!("{}: {error}", command[0])),
            }
        }
        Some(Volume { mounted: at.to_owned() })
    }

    fn freeze(&self) {
        assert!(self.run("fsfreeze", "--freeze"));
    }

    fn thaw(&self) {
        self.run("fsfreeze", "--unfreeze");
    }

    fn run(&self, program: &str, option: &str) -> bool {
        let output = Command::new(program).arg(option).arg(&self.mounted).output();
        output.is_ok_and(|output| output.status.success())
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        self.thaw();
        // Helpers that were given up may hold it for a moment.
        for _ in 0..100 {
            if self.run("umount", "--quiet") {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        self.run("umount", "--lazy");
    }
}

/// A node whose data directory is as PostgreSQL left it, on a volume of its own. The volume is to
/// be dropped first: no file can be removed from one that is frozen.
async fn on_a_volume(mebibytes: u64) -> Option<(Node, Volume)> {
    let dir = bin_dirs().remove(0);
    let [a] = cluster(&dir, ["a"], &[]).await;
    a.instance.stop(StopMode::Fast, LIMIT).await.unwrap();
    let from = a.instance.config().data_dir.clone();
    let node = Node::new("v", &dir);
    let to = node.instance.config().data_dir.clone();
    let volume = Volume::mount(&to, &to.with_extension("img"), mebibytes)?;
    for name in ["global", "pg_wal"] {
        std::fs::create_dir(to.join(name)).unwrap();
        give(to.join(name));
    }
    for name in ["PG_VERSION", "global/pg_control", "postgresql.conf"] {
        std::fs::copy(from.join(name), to.join(name)).unwrap();
        give(to.join(name));
    }
    give(to);
    Some((node, volume))
}

#[tokio::test]
async fn a_volume_that_hangs() {
    let Some((node, volume)) = on_a_volume(16).await else { return };
    until_write(&node, None).await;
    assert!(matches!(look(&node).await.data_dir, DataDir::Present(_)));
    volume.freeze();
    until_write(&node, Some(Fault::DiskHangs)).await;
    let since = look(&node).await.health.write.unwrap().since;
    // Long enough for a helper to be given up, and another to be started.
    let begun = Instant::now();
    let (mut given_up, mut asleep_for_good) = (false, asleep());
    until("a helper is given up", async || {
        let seen = look(&node).await;
        assert!(matches!(seen.data_dir, DataDir::Present(_)), "{:?}", seen.data_dir);
        assert_eq!(seen.process, Process::Stopped);
        let trouble = seen.health.write.unwrap();
        assert_eq!((trouble.since, trouble.fault), (since, Fault::DiskHangs));
        asleep_for_good = asleep_for_good.intersection(&asleep()).cloned().collect();
        given_up |= helpers(&node).len() > 2;
        assert!(helpers(&node).len() <= 4, "they do not pile up");
        pause(50).await;
        given_up && begun.elapsed() > Duration::from_secs(7)
    })
    .await;
    assert!(asleep_for_good.is_empty(), "the agent can be killed");
    volume.thaw();
    until_write(&node, None).await;
    until("those that were given up are gone", async || {
        look(&node).await;
        helpers(&node).len() == 2
    })
    .await;
}

#[tokio::test]
async fn a_volume_that_is_full() {
    let Some((node, _volume)) = on_a_volume(8).await else { return };
    until_write(&node, None).await;
    let data_dir = node.instance.config().data_dir.clone();
    let mut file = std::fs::File::create(data_dir.join("filler")).unwrap();
    let filled = fill(&mut file);
    until_write(&node, Some(Fault::DiskFull)).await;
    // A small write succeeds, but the next WAL segment has no room.
    file.set_len(filled - (512 << 10)).unwrap();
    pause(1000).await;
    assert_eq!(fault(&look(&node).await.health.write), Some(&Fault::DiskFull));
    // It has on another volume.
    let wal = node.instance.config().beside(".wal");
    std::fs::rename(data_dir.join("pg_wal"), data_dir.join("unused")).unwrap();
    std::fs::create_dir(&wal).unwrap();
    std::os::unix::fs::symlink(&wal, data_dir.join("pg_wal")).unwrap();
    // PostgreSQL's user tries, and this is not his.
    if os_user().is_some() {
        let shows =
            async || matches!(fault(&look(&node).await.health.write), Some(Fault::DiskFails(_)));
        until("the WAL volume refuses", shows).await;
    }
    give(wal);
    until_write(&node, None).await;
    fill(&mut file);
    until_write(&node, Some(Fault::DiskFull)).await;
    std::fs::remove_file(data_dir.join("filler")).unwrap();
    drop(file);
    until_write(&node, None).await;
}

/// Writes until nothing more goes; the file's size.
fn fill(file: &mut std::fs::File) -> u64 {
    file.seek(std::io::SeekFrom::End(0)).unwrap();
    while file.write_all(&[1; 4096]).is_ok() {}
    file.sync_all().ok();
    file.metadata().unwrap().len()
}

/// Makes PostgreSQL's user the owner.
fn give(path: PathBuf) {
    if let Some(user) = os_user() {
        chown(path, Some(user.uid), Some(user.gid)).unwrap();
    }
}
