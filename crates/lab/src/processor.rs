//! A share of the processors: what stands for a machine of its own where several hosts are on one.
//!
//! Uses the controller `cpu` of cgroups, version 1 (the group of a simulated host is one of version
//! 2, which has no controllers where version 1 has them).

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::cgroup;

/// The kernel's period, in microseconds.
const PERIOD_US: u64 = 100_000;
/// Of each second, for processes with real-time priority (the guard), which the quota is not for: a
/// group without any refuses them.
const REAL_TIME_US: u64 = 20_000;

/// Processes that together get no more than their share, with everything that they start. They get
/// what they can again when this is dropped.
#[derive(Debug)]
pub struct Share {
    directory: PathBuf,
    root: PathBuf,
}

impl Share {
    /// Confines processes to so many hundredths of one processor, in a new group of that name.
    ///
    /// # Errors
    /// We are not root, or version 1 of cgroups has no such controller here.
    pub fn new(name: &str, pids: &[u32], percent: u64) -> io::Result<Share> {
        let mounts = fs::read_to_string("/proc/self/mountinfo")?;
        let missing = "no cgroup v1 with the controller cpu";
        let root =
            controller(&mounts).ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, missing))?;
        let directory = root.join(name);
        match fs::create_dir(&directory) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            Ok(()) | Err(_) => {}
        }
        let share = Share { directory, root };
        let quota = PERIOD_US * percent / 100;
        fs::write(share.directory.join("cpu.cfs_period_us"), PERIOD_US.to_string())?;
        fs::write(share.directory.join("cpu.cfs_quota_us"), quota.to_string())?;
        let real_time = share.directory.join("cpu.rt_runtime_us");
        if real_time.exists() {
            fs::write(real_time, REAL_TIME_US.to_string())?;
        }
        for pid in pids {
            move_to(&share.directory, *pid)?;
        }
        Ok(share)
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let inside = fs::read_to_string(self.directory.join("cgroup.procs")).unwrap_or_default();
        for pid in inside.lines().filter_map(|pid| pid.parse().ok()) {
            drop(move_to(&self.root, pid));
        }
        if let Err(error) = cgroup::remove_directory(&self.directory) {
            tracing::warn!(group = %self.directory.display(), %error, "cannot be removed");
        }
    }
}

/// One that is gone needs no group.
fn move_to(directory: &Path, pid: u32) -> io::Result<()> {
    match fs::write(directory.join("cgroup.procs"), pid.to_string()) {
        Err(error) if error.raw_os_error() != Some(rustix::io::Errno::SRCH.raw_os_error()) => {
            Err(error)
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Where it is mounted, in the text of `/proc/self/mountinfo`.
fn controller(mounts: &str) -> Option<PathBuf> {
    mounts.lines().find_map(|line| {
        let (before, after) = line.split_once(" - ")?;
        let mut after = after.split(' ');
        let has_it = after.next()? == "cgroup" && after.nth(1)?.split(',').any(|one| one == "cpu");
        has_it.then(|| before.split(' ').nth(4).map(PathBuf::from))?
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_controller_is_found_by_its_name() {
        let mounts = "40 1 0:9 / /sys/fs/cgroup/cpuset rw - cgroup cgroup rw,cpuset\n\
                      41 1 0:9 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu,cpuacct\n\
                      42 1 0:9 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";
        assert_eq!(controller(mounts), Some(PathBuf::from("/sys/fs/cgroup/cpu")));
        assert_eq!(controller("42 1 0:9 / /x rw - cgroup2 cgroup2 rw\n"), None);
    }

    #[test]
    fn whoever_is_confined_gets_its_share_and_no_more() {
        let name = format!("pgherd-lab-share-{}", std::process::id());
        let mut busy = std::process::Command::new("sh")
            .args(["-c", "while :; do :; done"])
            .spawn()
            .expect("there is a shell");
        let confined = Share::new(&name, &[busy.id()], 20);
        let used = || crate::usage::processor_seconds(busy.id()).expect("it lives");
        let before = used();
        std::thread::sleep(std::time::Duration::from_secs(2));
        let used = used() - before;
        drop(busy.kill());
        drop(busy.wait());
        // Without root there is nothing to confine with.
        let Ok(share) = confined else { return };
        let directory = share.directory.clone();
        drop(share);
        assert!(!directory.exists());
        assert!(used < 0.8, "{used} s of 2 s with a fifth of a processor");
    }

    #[test]
    fn processes_with_real_time_priority_can_be_confined() {
        let name = format!("pgherd-lab-real-time-{}", std::process::id());
        let started = std::process::Command::new("chrt").args(["-f", "1", "sleep", "60"]).spawn();
        let Ok(mut sleeper) = started else { return };
        // It has its priority when it is the other program; where it may not, it ends.
        while crate::process::program(sleeper.id()).is_some_and(|name| name != "sleep") {
            if sleeper.try_wait().expect("it is ours").is_some() {
                return;
            }
            std::thread::yield_now();
        }
        let confined = Share::new(&name, &[sleeper.id()], 20);
        drop(sleeper.kill());
        drop(sleeper.wait());
        match confined {
            Ok(_) => {}
            Err(error) => assert_ne!(error.kind(), io::ErrorKind::InvalidInput, "{error}"),
        }
    }
}
