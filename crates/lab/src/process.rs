//! Processes as `/proc` shows them.
//!
//! A process is named by its pid here, and a pid can be used anew; every function looks and acts at
//! once, and the callers act only on processes of their own cluster.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::process::{Pid, Signal};
use tokio::time::Instant;

/// How often [`wait_gone`] looks.
const GONE_POLL: Duration = Duration::from_millis(20);

/// Every process there is.
#[must_use]
pub fn all() -> Vec<u32> {
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

/// Whether the process exists and is no zombie: a zombie holds nothing open any more, and waits
/// only for its parent to ask.
#[must_use]
pub fn is_alive(pid: u32) -> bool {
    matches!(stat(pid), Some(stat) if stat.state != 'Z' && stat.state != 'X')
}

/// The parent of a process.
#[must_use]
pub fn parent(pid: u32) -> Option<u32> {
    stat(pid).map(|stat| stat.parent)
}

/// The two fields of `/proc/<pid>/stat` that we use.
struct Stat {
    state: char,
    parent: u32,
}

fn stat(pid: u32) -> Option<Stat> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name stands in parentheses and may hold some itself: what counts is the last one.
    let mut fields = text.get(text.rfind(')')? + 1..)?.split_ascii_whitespace();
    let state = fields.next()?.chars().next()?;
    let parent = fields.next()?.parse().ok()?;
    Some(Stat { state, parent })
}

/// The working directory; `None` when the process is gone or is not ours to look at.
#[must_use]
pub fn working_directory(pid: u32) -> Option<PathBuf> {
    fs::read_link(format!("/proc/{pid}/cwd")).ok()
}

/// The arguments, the program first; empty when the process is gone or a zombie.
#[must_use]
pub fn arguments(pid: u32) -> Vec<PathBuf> {
    let bytes = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    bytes
        .split(|byte| *byte == 0)
        .filter(|argument| !argument.is_empty())
        .map(|argument| PathBuf::from(std::ffi::OsString::from_vec(argument.to_vec())))
        .collect()
}

/// The file name of the running program, as it was when it was started (an upgrade may have
/// replaced the file since).
#[must_use]
pub fn program(pid: u32) -> Option<String> {
    let link = fs::read_link(format!("/proc/{pid}/exe")).ok()?;
    let name = link.file_name()?.to_str()?;
    Some(name.strip_suffix(" (deleted)").unwrap_or(name).to_owned())
}

/// Sends a signal. That the process is gone already is no error.
///
/// # Errors
/// The kernel refused (another user's process).
pub fn signal(pid: u32, signal: Signal) -> std::io::Result<()> {
    let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) else { return Ok(()) };
    match rustix::process::kill_process(pid, signal) {
        Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

/// The processes whose working directory is `directory`.
#[must_use]
pub fn working_in(directory: &Path) -> Vec<u32> {
    let Ok(directory) = directory.canonicalize() else { return Vec::new() };
    all().into_iter().filter(|pid| working_directory(*pid).as_ref() == Some(&directory)).collect()
}

/// `root` and everything it started, and what these started.
#[must_use]
pub fn descendants(root: u32) -> BTreeSet<u32> {
    let parents: Vec<(u32, u32)> =
        all().into_iter().filter_map(|pid| parent(pid).map(|parent| (pid, parent))).collect();
    let mut found = BTreeSet::from([root]);
    loop {
        let before = found.len();
        for (pid, parent) in &parents {
            if found.contains(parent) {
                found.insert(*pid);
            }
        }
        if found.len() == before {
            return found;
        }
    }
}

/// The guard that an agent started for this state directory.
#[must_use]
pub fn guard_of(state_dir: &Path) -> Option<u32> {
    all().into_iter().find(|pid| {
        let arguments = arguments(*pid);
        arguments.get(1).is_some_and(|argument| argument == Path::new("guard"))
            && arguments.iter().any(|argument| argument == state_dir)
            && is_alive(*pid)
    })
}

/// The postmaster of a data directory, if it runs: the first line of `postmaster.pid`, when that
/// process lives and works there (a file that a killed one left behind proves nothing).
#[must_use]
pub fn postmaster_of(data_dir: &Path) -> Option<u32> {
    let text = fs::read_to_string(data_dir.join("postmaster.pid")).ok()?;
    let pid = text.lines().next()?.trim().parse().ok()?;
    let directory = data_dir.canonicalize().ok()?;
    (is_alive(pid) && working_directory(pid)? == directory).then_some(pid)
}

/// Whether one of `pids` holds a loopback TCP connection whose own port is `port`.
#[must_use]
pub fn hold_port(pids: &BTreeSet<u32>, port: u16) -> bool {
    let table = fs::read_to_string("/proc/net/tcp").unwrap_or_default();
    let sockets: BTreeSet<PathBuf> = socket_inodes(&table, port)
        .map(|inode| PathBuf::from(format!("socket:[{inode}]")))
        .collect();
    pids.iter().any(|pid| {
        let files = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
        files.filter_map(|file| fs::read_link(file.path()).ok()).any(|to| sockets.contains(&to))
    })
}

/// The inodes of the connections from 127.0.0.1:`port`, from the text of `/proc/net/tcp`: several
/// may share a port when they go to different ones. Listening sockets do not count, and one that
/// is closed and only waits (its inode is 0) is nobody's.
fn socket_inodes(table: &str, port: u16) -> impl Iterator<Item = u64> + '_ {
    const LISTENING: &str = "0A";
    let own = format!("0100007F:{port:04X}");
    table.lines().skip(1).filter_map(move |line| {
        let fields: Vec<&str> = line.split_ascii_whitespace().collect();
        let found = fields.get(1) == Some(&own.as_str()) && fields.get(3) != Some(&LISTENING);
        found.then(|| fields.get(9)?.parse().ok())?.filter(|inode| *inode != 0)
    })
}

/// Waits until none of `pids` is left, at most `limit`; returns those that are.
pub async fn wait_gone(pids: impl IntoIterator<Item = u32>, limit: Duration) -> Vec<u32> {
    let until = Instant::now() + limit;
    let mut left: Vec<u32> = pids.into_iter().collect();
    loop {
        left.retain(|pid| is_alive(*pid));
        if left.is_empty() || Instant::now() >= until {
            return left;
        }
        tokio::time::sleep(GONE_POLL).await;
    }
}

/// Whether this is a program of a cluster: PostgreSQL's, etcd, or one called `own`. Somebody's
/// shell or editor that happens to stand in a data directory is none.
#[must_use]
pub fn is_cluster_program(pid: u32, own: &str) -> bool {
    const POSTGRES: [&str; 6] =
        ["postgres", "initdb", "pg_basebackup", "pg_rewind", "pg_ctl", "pg_controldata"];
    program(pid)
        .is_some_and(|name| name == own || name == "etcd" || POSTGRES.contains(&name.as_str()))
}

/// The processes of a cluster that lives in `directory`: programs of a cluster that work below it
/// or were started with a file below it. `own` is the file name of our own program. Never this
/// process.
#[must_use]
pub fn of_cluster_in(directory: &Path, own: &str) -> Vec<u32> {
    let Ok(directory) = directory.canonicalize() else { return Vec::new() };
    let below = |path: &Path| path != directory && path.starts_with(&directory);
    all()
        .into_iter()
        .filter(|pid| *pid != std::process::id() && is_alive(*pid))
        .filter(|pid| {
            working_directory(*pid).is_some_and(|cwd| below(&cwd))
                || arguments(*pid).iter().any(|argument| below(argument))
        })
        .filter(|pid| is_cluster_program(*pid, own))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_is_seen_as_it_is() {
        let me = std::process::id();
        assert!(all().contains(&me));
        assert!(is_alive(me));
        assert_eq!(working_directory(me), std::env::current_dir().ok());
        assert!(!arguments(me).is_empty());
        assert!(program(me).is_some_and(|name| name.starts_with("lab")));
        assert!(descendants(me).contains(&me));
    }

    #[test]
    fn a_connection_is_traced_to_its_process() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
        let server = listener.local_addr().expect("it is bound");
        let client = std::net::TcpStream::connect(server).expect("somebody listens");
        let port = client.local_addr().expect("it is connected").port();
        assert!(hold_port(&BTreeSet::from([std::process::id()]), port));
        assert!(!hold_port(&BTreeSet::from([1]), port));
        drop(client);
    }

    #[test]
    fn a_port_that_a_closed_connection_shares_is_traced_all_the_same() {
        let table = "\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:C001 0100007F:1538 06 00000000:00000000 03:00000F4B 00000000     0        0 0 3 0
   1: 0100007F:C001 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 11 1 0
   2: 0100007F:C001 0100007F:1539 01 00000000:00000000 00:00000000 00000000     0        0 12 1 0
   3: 0100007F:C002 0100007F:1539 01 00000000:00000000 00:00000000 00000000     0        0 13 1 0
   4: 0100007F:C001 0100007F:153A 01 00000000:00000000 00:00000000 00000000     0        0 14 1 0
";
        assert_eq!(socket_inodes(table, 0xC001).collect::<Vec<_>>(), [12, 14]);
        assert_eq!(socket_inodes(table, 0xC003).count(), 0);
    }

    #[test]
    fn a_zombie_is_not_alive() {
        let mut child = std::process::Command::new("true").spawn().expect("true is there");
        let pid = child.id();
        let until = std::time::Instant::now() + Duration::from_secs(10);
        while is_alive(pid) && std::time::Instant::now() < until {
            std::thread::sleep(Duration::from_millis(5));
        }
        assert!(!is_alive(pid), "it ended, nobody has waited for it yet");
        assert!(parent(pid).is_some(), "and it is still in the table");
        child.wait().expect("it is our child");
        assert!(parent(pid).is_none());
    }

    #[test]
    fn a_stale_pid_file_names_no_postmaster() {
        let directory = std::env::temp_dir().join(format!("lab-process-{}", std::process::id()));
        fs::create_dir_all(&directory).expect("a temporary directory");
        fs::write(directory.join("postmaster.pid"), format!("{}\n", std::process::id()))
            .expect("it is ours");
        assert_eq!(postmaster_of(&directory), None, "we run, but elsewhere");
        fs::remove_dir_all(&directory).expect("it is ours");
    }

    #[test]
    fn a_shell_in_the_directory_is_not_the_clusters() {
        let directory = std::env::temp_dir().join(format!("lab-sweep-{}", std::process::id()));
        let inside = directory.join("node1");
        fs::create_dir_all(&inside).expect("a temporary directory");
        let mut child = std::process::Command::new("sleep")
            .arg("60")
            .current_dir(&inside)
            .spawn()
            .expect("sleep is there");
        assert_eq!(of_cluster_in(&directory, "pgherd"), Vec::<u32>::new());
        assert_eq!(of_cluster_in(&directory, "sleep"), vec![child.id()]);
        child.kill().expect("it is our child");
        child.wait().expect("it is our child");
        fs::remove_dir_all(&directory).expect("it is ours");
    }
}
