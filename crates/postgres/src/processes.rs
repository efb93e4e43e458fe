//! The instance's processes: found by working directory, watched by pidfd. Backends outlive a
//! killed postmaster, and a zombie is dead although `/proc` still shows it; so neither the
//! postmaster alone nor `kill(pid, 0)` says that PostgreSQL is gone.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitOptions, pidfd_open, pidfd_send_signal, waitpid,
};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

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
}

/// Whether a process is PostgreSQL's and works in `dir`. An operator's shell that happens to stand
/// in the data directory is not, and neither is a zombie, which has no working directory.
pub(crate) fn belongs_to(pid: i32, dir: DirId) -> bool {
    let proc = PathBuf::from(format!("/proc/{pid}"));
    DirId::of(&proc.join("cwd")) == Some(dir)
        && fs::read_to_string(proc.join("comm"))
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

/// The postmaster that `postmaster.pid` names, if it lives and works in `dir`.
pub(crate) fn find_postmaster(dir: &Path) -> io::Result<Option<Watched>> {
    let Ok(text) = fs::read_to_string(dir.join("postmaster.pid")) else {
        return Ok(None);
    };
    // A negative number is a single-user server, which is a tool and not a postmaster.
    let pid = text.lines().next().and_then(|l| l.trim().parse().ok());
    let (Some(pid), Some(id)) = (pid.filter(|p: &i32| *p > 1), DirId::of(dir)) else {
        return Ok(None);
    };
    let watched = Watched::open(pid)?;
    // The handle is taken first: if the pid was used again since, either the handle is of the new
    // process, which does not work here, or it is dead.
    Ok(watched.filter(|w| belongs_to(pid, id) && !w.is_dead()))
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
    async fn a_pid_file_that_names_a_stranger_names_nobody() {
        let dir = tempfile::tempdir().unwrap();
        assert!(find_postmaster(dir.path()).unwrap().is_none());
        for pid in [std::process::id().to_string(), "-5".into(), "x".into()] {
            fs::write(dir.path().join("postmaster.pid"), pid).unwrap();
            assert!(find_postmaster(dir.path()).unwrap().is_none());
        }
    }
}
