//! Taking a process's memory away, so that the kernel's OOM killer ends it.
//!
//! The victim is put alone into a memory cgroup that may hold next to nothing. What it has stays
//! charged to where it came from; the next page that it touches is one too many. Version 1 and
//! version 2 of cgroups do.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::cgroup;

/// What a confined process may take: one page.
const LIMIT_BYTES: &str = "4096";

/// Names of the files of one version of the memory controller.
#[derive(Debug, Clone, Copy)]
struct Version {
    /// As `/proc/self/mountinfo` names the file system.
    file_system: &'static str,
    limit: &'static str,
    no_limit: &'static str,
    /// Holds a line `oom_kill N`.
    events: &'static str,
}

const V1: Version = Version {
    file_system: "cgroup",
    limit: "memory.limit_in_bytes",
    no_limit: "-1",
    events: "memory.oom_control",
};
const V2: Version = Version {
    file_system: "cgroup2",
    limit: "memory.max",
    no_limit: "max",
    events: "memory.events",
};

/// A process without memory. It is set free when this is dropped.
#[derive(Debug)]
pub struct Confined {
    directory: PathBuf,
    version: Version,
    /// Where the process was before.
    origin: PathBuf,
}

impl Confined {
    /// Puts a process into a new group `name` that may hold next to nothing.
    ///
    /// # Errors
    /// We are not root, or there is no memory controller, or the process is gone.
    pub fn put(name: &str, pid: u32) -> io::Result<Confined> {
        let mounts = fs::read_to_string("/proc/self/mountinfo")?;
        let groups = fs::read_to_string(format!("/proc/{pid}/cgroup"))?;
        let none = || io::Error::new(io::ErrorKind::NotFound, "no memory controller");
        let (version, root) = controller(&mounts).ok_or_else(none)?;
        let origin = root.join(membership(&groups, version).ok_or_else(none)?);
        let directory = root.join(name);
        match fs::create_dir(&directory) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            Ok(()) | Err(_) => {}
        }
        let confined = Confined { directory, version, origin };
        // The limit first: what the process touches from its first moment there is too much.
        fs::write(confined.directory.join(version.limit), LIMIT_BYTES)?;
        fs::write(confined.directory.join("cgroup.procs"), pid.to_string())?;
        Ok(confined)
    }

    /// How many processes of the group the OOM killer has ended.
    #[must_use]
    pub fn oom_kills(&self) -> u64 {
        let text = fs::read_to_string(self.directory.join(self.version.events)).unwrap_or_default();
        count_of(&text, "oom_kill")
    }
}

impl Drop for Confined {
    fn drop(&mut self) {
        // Each is tried, whatever the others say; what is left shows in the last.
        drop(fs::write(self.directory.join(self.version.limit), self.version.no_limit));
        let inside = fs::read_to_string(self.directory.join("cgroup.procs")).unwrap_or_default();
        for pid in inside.lines() {
            drop(fs::write(self.origin.join("cgroup.procs"), pid));
        }
        if let Err(error) = cgroup::remove_directory(&self.directory) {
            tracing::warn!(group = %self.directory.display(), %error, "cannot be removed");
        }
    }
}

/// The memory controller: version 1 where it is mounted, else version 2.
fn controller(mounts: &str) -> Option<(Version, PathBuf)> {
    let mounted = |version: Version| {
        mounts.lines().find_map(|line| {
            let (before, after) = line.split_once(" - ")?;
            let mut after = after.split(' ');
            let right = after.next()? == version.file_system;
            let options = after.nth(1).unwrap_or_default();
            let has_it = version.file_system == V2.file_system
                || options.split(',').any(|option| option == "memory");
            (right && has_it).then(|| before.split(' ').nth(4).map(PathBuf::from))?
        })
    };
    [V1, V2].into_iter().find_map(|version| Some((version, mounted(version)?)))
}

/// The group, relative to the mount, in the text of `/proc/<pid>/cgroup`.
fn membership(groups: &str, version: Version) -> Option<&Path> {
    groups.lines().find_map(|line| {
        let mut fields = line.splitn(3, ':');
        let (id, controllers, path) = (fields.next()?, fields.next()?, fields.next()?);
        let right = if version.file_system == V2.file_system {
            id == "0" && controllers.is_empty()
        } else {
            controllers.split(',').any(|controller| controller == "memory")
        };
        right.then(|| Path::new(path.trim_start_matches('/')))
    })
}

/// The number in the line `name N`; 0 if there is none.
fn count_of(text: &str, name: &str) -> u64 {
    let lines = text.lines().filter_map(|line| line.split_once(' '));
    lines.filter(|(key, _)| *key == name).find_map(|(_, n)| n.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process;
    use std::process::{Command, Stdio};
    use std::time::{Duration, Instant};

    /// Takes a little more memory with each turn.
    // Not before its input ends: what it took outside the group would be charged there.
    const GREEDY: &str =
        "read x; x=x; while :; do x=$x$x; if [ ${#x} -gt 1000000 ]; then x=x; fi; done";

    #[test]
    fn the_controller_is_found_on_old_and_new_layouts() {
        let old = "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n\
                   32 31 0:29 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n\
                   35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
                   41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";
        let (version, root) = controller(old).expect("it is there");
        assert_eq!((version.limit, root), (V1.limit, PathBuf::from("/sys/fs/cgroup/memory")));
        let of_process = "4:memory:/a/b\n1:cpu:/\n0::/c\n";
        assert_eq!(membership(of_process, V1), Some(Path::new("a/b")));
        assert_eq!(membership(of_process, V2), Some(Path::new("c")));
        let new = "41 31 0:38 / /sys/fs/cgroup rw shared:3 - cgroup2 cgroup2 rw\n";
        let (version, root) = controller(new).expect("it is there");
        assert_eq!((version.limit, root), (V2.limit, PathBuf::from("/sys/fs/cgroup")));
        assert!(controller("").is_none());
        assert_eq!(count_of("under_oom 0\noom_kill 3\n", "oom_kill"), 3);
    }

    #[test]
    fn the_kernel_kills_a_process_without_memory() {
        let mut command = Command::new("/bin/sh");
        let mut greedy =
            command.args(["-c", GREEDY]).stdin(Stdio::piped()).spawn().expect("a shell");
        let name = format!("lab-memory-{}", std::process::id());
        let confined = Confined::put(&name, greedy.id());
        let Ok(confined) = confined else {
            // Not root, or no memory controller: the drill kills by a signal then.
            greedy.kill().expect("it is ours");
            greedy.wait().expect("it is ours");
            return;
        };
        drop(greedy.stdin.take());
        let until = Instant::now() + Duration::from_secs(20);
        while process::is_alive(greedy.id()) && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(5));
        }
        let (gone, kills) = (!process::is_alive(greedy.id()), confined.oom_kills());
        let directory = confined.directory.clone();
        drop(confined);
        drop(greedy.kill());
        greedy.wait().expect("it is ours");
        assert!(gone && kills == 1, "gone: {gone}, kills: {kills}");
        assert!(!directory.exists());
    }
}
