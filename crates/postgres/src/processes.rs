//! The instance's processes: found by working directory, watched by pidfd. Backends outlive a
//! killed postmaster, and a zombie is dead although `/proc` still shows it; so neither the
//! postmaster alone nor `kill(pid, 0)` says that PostgreSQL is gone.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{AtFlags, CWD, StatxFlags, makedev, statx};
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitOptions, pidfd_open, pidfd_send_signal, waitpid,
};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// The length of a WAL segment's name.
const SEGMENT_NAME_LENGTH: usize = 24;

/// A process that cannot be confused with a later one of the same pid.
pub(crate) struct Watched {
    pid: Pid,
    fd: AsyncFd<OwnedFd>,
    /// Somebody who waited for its end was told of it.
    told: AtomicBool,
}

impl Watched {
    /// Takes hold of a process; `None` if there is none.
    pub(crate) fn open(pid: i32) -> io::Result<Option<Watched>> {
        let Some(pid) = Pid::from_raw(pid) else {
            return Ok(None);
        };
        let fd = match pidfd_open(pid, PidfdFlags::empty()) {
            Ok(fd) => fd,
            Err(rustix::io::Errno::SRCH) => return Ok(None),
            Err(e) => return Err(e.into()),
        };
        // An `OwnedFd` always gives the same open descriptor, which is what the safe but deprecated
        // constructor cannot check.
        #[allow(deprecated)]
        let fd = AsyncFd::with_interest(fd, Interest::READABLE)?;
        let told = AtomicBool::new(false);
        Ok(Some(Watched { pid, fd, told }))
    }

    /// Its pid.
    pub(crate) fn pid(&self) -> i32 {
        self.pid.as_raw_pid()
    }

    /// Whether it has ended, zombies included.
    pub(crate) fn is_dead(&self) -> bool {
        let mut fds = [PollFd::new(self.fd.get_ref(), PollFlags::IN)];
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        let dead = matches!(poll(&mut fds, Some(&now)), Ok(ready) if ready > 0);
        if dead {
            self.reap();
        }
        dead
    }

    /// Resolves when it has ended.
    ///
    /// Cancel safety: safe, nothing is consumed.
    pub(crate) async fn exited(&self) {
        // An error means that the runtime goes away, and this future with it.
        if self.fd.readable().await.is_err() {
            std::future::pending::<()>().await;
        }
        self.reap();
    }

    /// Resolves when it has ended, once for each process; `false` at once if that was said before.
    ///
    /// Cancel safety: safe, what is not returned was not said.
    pub(crate) async fn exited_once(&self) -> bool {
        if self.told.load(Ordering::Relaxed) {
            return false;
        }
        self.exited().await;
        !self.told.swap(true, Ordering::Relaxed)
    }

    /// Sends a signal; a process that is gone is fine.
    pub(crate) fn signal(&self, signal: Signal) -> io::Result<()> {
        match pidfd_send_signal(self.fd.get_ref(), signal) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(e) => Err(e.into()),
        }
    }

    /// Buries it if it was our child; of somebody else's the system says ECHILD, which is fine.
    fn reap(&self) {
        waitpid(Some(self.pid), WaitOptions::NOHANG).ok();
    }

    /// Whether it is stopped by a signal or a debugger.
    pub(crate) fn is_frozen(&self) -> bool {
        matches!(process_state(self.pid()), Some('T' | 't'))
    }
}

/// The state letter of `/proc/<pid>/stat`.
fn process_state(pid: i32) -> Option<char> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field is the name in parentheses and may hold anything.
    stat.rsplit_once(") ")?.1.chars().next()
}

/// Device and inode of a directory: the same through any path, and after a rename.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct DirId(u64, u64);

impl DirId {
    /// That of `dir`, if it exists.
    pub(crate) fn of(dir: &Path) -> Option<DirId> {
        let meta = fs::metadata(dir).ok()?;
        Some(DirId(meta.dev(), meta.ino()))
    }

    /// That of a process's working directory. The kernel holds it in memory and is told not to
    /// bring it up to date, so that this does not wait for a disk or a file server that hangs.
    fn of_process(pid: i32) -> Option<DirId> {
        let cwd = format!("/proc/{pid}/cwd");
        let meta = statx(CWD, cwd, AtFlags::STATX_DONT_SYNC, StatxFlags::INO).ok()?;
        Some(DirId(makedev(meta.stx_dev_major, meta.stx_dev_minor), meta.stx_ino))
    }

    /// Device and inode, to be sent.
    pub(crate) fn parts(self) -> (u64, u64) {
        (self.0, self.1)
    }

    /// What was sent.
    pub(crate) fn from_parts((device, inode): (u64, u64)) -> DirId {
        DirId(device, inode)
    }
}

/// Whether a process is PostgreSQL's and works in `dir`. An operator's shell that happens to stand
/// in the data directory is not, and neither is a zombie, which has no working directory.
pub(crate) fn belongs_to(pid: i32, dir: DirId) -> bool {
    DirId::of_process(pid) == Some(dir)
        && fs::read_to_string(format!("/proc/{pid}/comm"))
            .is_ok_and(|comm| matches!(comm.trim_end(), "postgres" | "postmaster"))
}

/// The pids of all processes of the instance in `dir`.
pub(crate) fn of_directory(dir: DirId) -> io::Result<Vec<i32>> {
    let mut pids = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let name = entry?.file_name();
        let Some(pid) = name.to_str().and_then(|n| n.parse().ok()) else {
            continue;
        };
        if belongs_to(pid, dir) {
            pids.push(pid);
        }
    }
    Ok(pids)
}

/// The postmaster of that pid, if it lives and works in `dir`.
pub(crate) fn find_postmaster(pid: i32, dir: DirId) -> io::Result<Option<Watched>> {
    // A negative number is a single-user server's in postmaster.pid.
    if pid <= 1 {
        return Ok(None);
    }
    let watched = Watched::open(pid)?;
    // The handle is taken first: if the pid was used again since, either the handle is of the new
    // process, which does not work here, or it is dead.
    Ok(watched.filter(|w| belongs_to(pid, dir) && !w.is_dead()))
}

/// The WAL segment that a server process works on, if it is one that recovers and says so.
pub(crate) fn recovery_of(pid: i32) -> Option<String> {
    recovery_in(&fs::read_to_string(format!("/proc/{pid}/cmdline")).ok()?)
}

/// Finds the segment in a title as `postgres: name: startup recovering 000000010000000000000003`.
fn recovery_in(title: &str) -> Option<String> {
    let (_, rest) = title.split_once("startup recovering ")?;
    let is_hex = |c: &char| c.is_ascii_hexdigit();
    let segment: String = rest.chars().take_while(is_hex).take(SEGMENT_NAME_LENGTH).collect();
    (segment.len() == SEGMENT_NAME_LENGTH).then_some(segment)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[tokio::test]
    async fn a_child_is_seen_dying_and_strangers_in_the_directory_do_not_count() {
        let dir = tempfile::tempdir().unwrap();
        let mut command = std::process::Command::new("sleep");
        #[allow(clippy::zombie_processes)] // `Watched` buries it
        let child = command.arg("60").current_dir(dir.path()).spawn().unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        let watched = Watched::open(pid).unwrap().unwrap();
        assert!(!watched.is_dead());
        let id = DirId::of(dir.path()).unwrap();
        assert_eq!(of_directory(id).unwrap(), Vec::<i32>::new());
        watched.signal(Signal::KILL).unwrap();
        watched.exited().await;
        assert!(watched.is_dead());
        assert!(watched.signal(Signal::KILL).is_ok());
    }

    #[tokio::test]
    async fn a_pid_of_a_stranger_is_no_postmaster() {
        let dir = tempfile::tempdir().unwrap();
        let id = DirId::of(dir.path()).unwrap();
        for pid in [i32::try_from(std::process::id()).unwrap(), -5, 0, 1, i32::MAX] {
            assert!(find_postmaster(pid, id).unwrap().is_none());
        }
    }

    #[test]
    fn a_working_directory_is_known_by_both_ways_of_asking() {
        let own = i32::try_from(std::process::id()).unwrap();
        let here = std::env::current_dir().unwrap();
        assert!(DirId::of(&here).is_some() && DirId::of_process(own) == DirId::of(&here));
    }

    #[test]
    fn the_segment_stands_in_the_title() {
        let segment = "00000001000000000000000A";
        let title = |text: &str| format!("postgres: a: startup recovering {text}\0\0");
        assert_eq!(recovery_in(&title(segment)).as_deref(), Some(segment));
        assert_eq!(recovery_in(&title("0000000100000000")), None);
        assert_eq!(recovery_in("postgres: a: startup waiting for 0000"), None);
    }
}
