//! Kills every process of an instance, and sees that none is left.
//!
//! PostgreSQL's processes have sessions and groups of their own, and backends outlive a killed
//! postmaster; what they share is their working directory, the data directory. That is compared by
//! device and inode, so that names, mounts and links do not matter.

use std::ffi::CStr;
use std::io::{Cursor, Write as _};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, Mode, OFlags, RawDir, SeekFrom, Stat};
use rustix::io::Errno;
use rustix::process::{Gid, Pid, PidfdFlags, Signal, Uid};

/// Scans are this far apart at first, and at most.
const INTERVAL_MIN_MS: u64 = 10;
const INTERVAL_MAX_MS: u64 = 100;
/// A process may fork between being seen and being killed, so one empty scan proves nothing.
const EMPTY_SCANS: u32 = 2;
/// Room for directory entries of one `getdents` call.
const ENTRIES_BYTES: usize = 4096;
/// Longest path below `/proc` that is built: a pid and `/cwd`.
const NAME_BYTES: usize = 24;
/// Longest working directory that is compared as text.
const PATH_BYTES: usize = 4096;
/// How many killed processes are told apart in the log.
const COUNTED_MAX: usize = 4096;

/// What identifies a directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Identity {
    device: u64,
    inode: u64,
    /// Its owner, who is also whom PostgreSQL runs as.
    owner: u32,
}

impl Identity {
    fn of(stat: &Stat) -> Identity {
        Identity { device: stat.st_dev, inode: stat.st_ino, owner: stat.st_uid }
    }

    fn is(&self, stat: &Stat) -> bool {
        self.device == stat.st_dev && self.inode == stat.st_ino
    }
}

/// The data directory as it was when the guard was armed. Holding it open keeps its inode number
/// from being given to another directory.
#[derive(Debug)]
pub(crate) struct Quarry {
    identity: Identity,
    /// Its path as the kernel shows it, with ` (deleted)`.
    deleted_path: Vec<u8>,
    _pin: OwnedFd,
}

impl Quarry {
    /// Looks at the data directory; `None` if it is not there.
    pub(crate) fn look(data_dir: &Path) -> Option<Quarry> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let pin = rustix::fs::open(data_dir, flags, Mode::empty()).ok()?;
        let identity = Identity::of(&rustix::fs::fstat(&pin).ok()?);
        let mut deleted_path = std::fs::canonicalize(data_dir).ok()?.into_os_string();
        deleted_path.push(" (deleted)");
        let deleted_path = std::os::unix::ffi::OsStringExt::into_vec(deleted_path);
        Some(Quarry { identity, deleted_path, _pin: pin })
    }

    /// Whether `data_dir` is still this directory.
    pub(crate) fn is_current(&self, data_dir: &Path) -> bool {
        rustix::fs::stat(data_dir).is_ok_and(|stat| self.identity.is(&stat))
    }
}

/// Kills processes; made once, so that killing allocates nothing.
pub(crate) struct Hunter {
    proc: OwnedFd,
    own_pid: i32,
    /// Process ids killed in this hunt, at most [`COUNTED_MAX`].
    killed: Vec<i32>,
    interval_ms: u64,
    empty_scans: u32,
}

/// What became of one scan.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scan {
    /// Nothing is left; so many processes were killed altogether.
    Done(usize),
    /// Scan again after so many milliseconds.
    Again(u64),
}

impl Hunter {
    pub(crate) fn new() -> std::io::Result<Hunter> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let proc = rustix::fs::open(c"/proc", flags, Mode::empty())?;
        let own_pid = rustix::process::getpid().as_raw_nonzero().get();
        let killed = Vec::with_capacity(COUNTED_MAX);
        Ok(Hunter { proc, own_pid, killed, interval_ms: INTERVAL_MIN_MS, empty_scans: 0 })
    }

    /// Begins anew.
    pub(crate) fn start(&mut self) {
        self.killed.clear();
        self.interval_ms = INTERVAL_MIN_MS;
        self.empty_scans = 0;
    }

    /// Goes the whole way of killing once, without killing: afterwards each page of code and data
    /// that it needs has been touched, and can be locked.
    pub(crate) fn rehearse(&mut self, quarry: Option<&Quarry>, data_dir: &Path) {
        self.killed.resize(COUNTED_MAX, 0);
        self.start();
        let now = rustix::fs::stat(data_dir).ok().map(|stat| Identity::of(&stat));
        let target = Target::of(quarry, now);
        self.pass(&target, Strike::Rehearse).ok();
        let mut name = [0_u8; NAME_BYTES];
        if let Some(link) = proc_path(&mut name, self.own_pid, "/cwd") {
            target.was_here(self.proc.as_fd(), link);
        }
        let own = Pid::from_raw(self.own_pid);
        if let Some(Ok(handle)) = own.map(|id| rustix::process::pidfd_open(id, PidfdFlags::empty()))
        {
            // Changes nothing for a process that runs.
            rustix::process::pidfd_send_signal(handle, Signal::CONT).ok();
        }
        self.start();
    }

    /// Kills whatever it finds: processes in the data directory as it was when the guard was armed,
    /// and as it is now, since it may have been replaced meanwhile. A zombie has no working
    /// directory and does not count; a process that hangs in the kernel still has one, and is
    /// waited for.
    pub(crate) fn scan(&mut self, quarry: Option<&Quarry>, data_dir: &Path) -> Scan {
        let now = rustix::fs::stat(data_dir).ok().map(|stat| Identity::of(&stat));
        let target = Target::of(quarry, now);
        match self.pass(&target, Strike::Kill) {
            Ok(0) => self.empty_scans += 1,
            // An unreadable /proc proves nothing (I4).
            Ok(_) | Err(_) => self.empty_scans = 0,
        }
        if self.empty_scans >= EMPTY_SCANS {
            return Scan::Done(self.killed.len());
        }
        let wait = self.interval_ms;
        self.interval_ms = (wait * 2).min(INTERVAL_MAX_MS);
        Scan::Again(wait)
    }

    /// One pass over all processes; how many of the instance there were.
    fn pass(&mut self, target: &Target<'_>, how: Strike) -> rustix::io::Result<usize> {
        rustix::fs::seek(&self.proc, SeekFrom::Start(0))?;
        let mut buffer = [MaybeUninit::uninit(); ENTRIES_BYTES];
        let mut entries = RawDir::new(self.proc.as_fd(), &mut buffer);
        let mut found = 0;
        while let Some(entry) = entries.next() {
            let Some(pid) = process_id(entry?.file_name()) else { continue };
            if pid == self.own_pid || !target.holds(self.proc.as_fd(), pid) {
                continue;
            }
            found += 1;
            let new = !self.killed.contains(&pid);
            let killed = kill(self.proc.as_fd(), pid, target, how);
            if killed && new && self.killed.len() < COUNTED_MAX {
                self.killed.push(pid);
            }
        }
        Ok(found)
    }
}

/// Whether a pass kills.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Strike {
    Kill,
    /// Everything but the signal.
    Rehearse,
}

/// Kills one process, if it still is of the instance once its number cannot be reused any more.
fn kill(proc: rustix::fd::BorrowedFd<'_>, pid: i32, target: &Target<'_>, how: Strike) -> bool {
    let Some(id) = Pid::from_raw(pid) else { return false };
    match rustix::process::pidfd_open(id, PidfdFlags::empty()) {
        Ok(handle) => {
            target.holds(proc, pid)
                && how == Strike::Kill
                && rustix::process::pidfd_send_signal(handle, Signal::KILL).is_ok()
        }
        Err(Errno::SRCH) => false,
        Err(_) if how == Strike::Rehearse => false,
        // No descriptor to be had: better a small race than a writer without a lease.
        Err(_) => rustix::process::kill_process(id, Signal::KILL).is_ok(),
    }
}

/// Which directories count.
struct Target<'a> {
    identities: [Option<Identity>; 2],
    deleted_path: Option<&'a [u8]>,
}

impl<'a> Target<'a> {
    fn of(quarry: Option<&'a Quarry>, now: Option<Identity>) -> Target<'a> {
        Target {
            identities: [quarry.map(|q| q.identity), now],
            deleted_path: quarry.map(|q| q.deleted_path.as_slice()),
        }
    }
    /// Whether the working directory of `pid` is one of them.
    fn holds(&self, proc: rustix::fd::BorrowedFd<'_>, pid: i32) -> bool {
        let mut name = [0_u8; NAME_BYTES];
        let Some(link) = proc_path(&mut name, pid, "/cwd") else { return false };
        let stat = match rustix::fs::statat(proc, link, AtFlags::empty()) {
            Err(Errno::ACCESS | Errno::PERM) => self.stat_as_owner(proc, pid, link),
            other => other,
        };
        let Ok(stat) = stat else { return false };
        if self.identities.iter().flatten().any(|identity| identity.is(&stat)) {
            return true;
        }
        stat.st_nlink == 0 && self.was_here(proc, link)
    }

    /// Whether a deleted working directory had the data directory's path: an older copy, replaced
    /// before the guard was last armed.
    fn was_here(&self, proc: rustix::fd::BorrowedFd<'_>, link: &CStr) -> bool {
        let mut path = [MaybeUninit::<u8>::uninit(); PATH_BYTES];
        let read = rustix::fs::readlinkat_raw(proc, link, &mut path);
        let (Ok((path, _)), Some(wanted)) = (read, self.deleted_path) else { return false };
        path == wanted
    }

    /// In a container root may lack the right to look into other users' processes; PostgreSQL's own
    /// user has it. The guard has one thread, so its credentials are the process's.
    fn stat_as_owner(
        &self,
        proc: rustix::fd::BorrowedFd<'_>,
        pid: i32,
        link: &CStr,
    ) -> rustix::io::Result<Stat> {
        let mut name = [0_u8; NAME_BYTES];
        let directory = proc_path(&mut name, pid, "").ok_or(Errno::INVAL)?;
        let process = rustix::fs::statat(proc, directory, AtFlags::empty())?;
        let is_ours = |identity: &Identity| identity.owner == process.st_uid;
        if !rustix::process::geteuid().is_root() || !self.identities.iter().flatten().any(is_ours) {
            return Err(Errno::ACCESS);
        }
        let (user, group) = (Uid::from_raw(process.st_uid), Gid::from_raw(process.st_gid));
        rustix::thread::set_thread_res_gid(None, group, None)?;
        let stat = match rustix::thread::set_thread_res_uid(None, user, None) {
            Ok(()) => rustix::fs::statat(proc, link, AtFlags::empty()),
            Err(error) => Err(error),
        };
        // Going back to the saved ids is always permitted. Should it fail all the same, the guard
        // goes on as PostgreSQL's user, who may kill PostgreSQL.
        rustix::thread::set_thread_res_uid(None, Uid::ROOT, None)?;
        rustix::thread::set_thread_res_gid(None, Gid::ROOT, None)?;
        stat
    }
}

/// `<pid><suffix>` as a C string in `buffer`.
fn proc_path<'a>(buffer: &'a mut [u8; NAME_BYTES], pid: i32, suffix: &str) -> Option<&'a CStr> {
    let mut cursor = Cursor::new(buffer.as_mut_slice());
    write!(cursor, "{pid}{suffix}\0").ok()?;
    CStr::from_bytes_until_nul(buffer).ok()
}

/// The process id that a name in `/proc` stands for.
fn process_id(name: &CStr) -> Option<i32> {
    let text = name.to_str().ok()?;
    text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse().ok()).flatten()
}
