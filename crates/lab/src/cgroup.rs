//! One cgroup (v2) per simulated host, where we are root and may make one: freezing and killing it
//! are single writes that no process escapes, which signals one by one cannot promise.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::time::Instant;

/// How long the kernel may take until it reports a group as frozen.
const FREEZE_LIMIT: Duration = Duration::from_secs(5);
/// How often the report is read.
const FREEZE_POLL: Duration = Duration::from_millis(5);
/// How often [`Group::destroy`] looks.
const DESTROY_POLL: Duration = Duration::from_millis(20);
/// Attempts to remove a group.
const REMOVE_ATTEMPTS: u32 = 50;

/// A cgroup that this process made.
#[derive(Debug, Clone)]
pub struct Group {
    directory: PathBuf,
}

impl Group {
    /// Makes a group named `name` below our own. `None` where that is not possible: an ordinary
    /// user, no cgroup v2, a container that forbids it. Signals do the work then.
    #[must_use]
    pub fn create(name: &str) -> Option<Group> {
        let directory = here()?.join(name);
        match fs::create_dir(&directory) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(_) => return None,
        }
        let group = Group { directory };
        if group.file("cgroup.freeze").exists() && group.file("cgroup.procs").exists() {
            return Some(group);
        }
        group.remove();
        None
    }

    /// The groups below our own whose names `wanted` says yes to, whoever made them.
    #[must_use]
    pub fn find(wanted: impl Fn(&str) -> bool) -> Vec<Group> {
        let Some(here) = here() else { return Vec::new() };
        let entries = fs::read_dir(here).into_iter().flatten().flatten();
        let named = entries.filter(|entry| entry.file_name().to_str().is_some_and(&wanted));
        named.map(|entry| Group { directory: entry.path() }).collect()
    }

    /// Kills whatever is in the group, frozen or not, waits until nothing is, and removes it. For
    /// the end, where nobody can wait otherwise: it blocks, at most `limit`.
    ///
    /// # Errors
    /// The kernel refused, or processes are still there.
    pub fn destroy(&self, limit: Duration) -> io::Result<()> {
        let until = std::time::Instant::now() + limit;
        loop {
            self.thaw()?;
            self.kill()?;
            let left = self.pids();
            if left.is_empty() {
                return remove_directory(&self.directory);
            }
            if std::time::Instant::now() >= until {
                let directory = self.directory.display();
                return Err(io::Error::other(format!("{left:?} are still in {directory}")));
            }
            std::thread::sleep(DESTROY_POLL);
        }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// The file into which a process writes its number to be in.
    #[must_use]
    pub fn processes(&self) -> PathBuf {
        self.file("cgroup.procs")
    }

    /// Moves a process in; what it starts from now on is in as well.
    ///
    /// # Errors
    /// The kernel refused, for instance because the process is gone.
    pub fn add(&self, pid: u32) -> io::Result<()> {
        fs::write(self.processes(), pid.to_string())
    }

    /// The processes in the group.
    #[must_use]
    pub fn pids(&self) -> Vec<u32> {
        let text = fs::read_to_string(self.processes()).unwrap_or_default();
        text.lines().filter_map(|line| line.parse().ok()).collect()
    }

    /// Kills every process of the group at one instant.
    ///
    /// # Errors
    /// The kernel is older than 5.14, or refused.
    pub fn kill(&self) -> io::Result<()> {
        fs::write(self.file("cgroup.kill"), "1")
    }

    /// Freezes every process of the group, and waits until the kernel says so.
    ///
    /// # Errors
    /// The kernel refused, or did not finish within a few seconds.
    pub async fn freeze(&self) -> io::Result<()> {
        fs::write(self.file("cgroup.freeze"), "1")?;
        let until = Instant::now() + FREEZE_LIMIT;
        loop {
            let events = fs::read_to_string(self.file("cgroup.events"))?;
            if events.lines().any(|line| line == "frozen 1") {
                return Ok(());
            }
            if Instant::now() >= until {
                return Err(io::Error::new(
                    io::ErrorKind::TimedOut,
                    format!("{} did not freeze", self.directory.display()),
                ));
            }
            tokio::time::sleep(FREEZE_POLL).await;
        }
    }

    /// Lets the group go on.
    ///
    /// # Errors
    /// The kernel refused.
    pub fn thaw(&self) -> io::Result<()> {
        fs::write(self.file("cgroup.freeze"), "0")
    }

    /// Removes the group, which must hold no process. Best effort: an empty group left behind costs
    /// nothing.
    pub fn remove(&self) {
        drop(remove_directory(&self.directory));
    }
}

/// Removes the directory of a group. The kernel refuses while its last process is being torn down.
pub(crate) fn remove_directory(directory: &Path) -> io::Result<()> {
    let mut attempts = 0;
    loop {
        attempts += 1;
        match fs::remove_dir(directory) {
            Err(error)
                if error.kind() == io::ErrorKind::ResourceBusy && attempts < REMOVE_ATTEMPTS =>
            {
                std::thread::sleep(Duration::from_millis(10));
            }
            result => return result,
        }
    }
}

/// The directory of our own cgroup.
fn here() -> Option<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
    let own = fs::read_to_string("/proc/self/cgroup").ok()?;
    own_directory(&mounts, &own)
}

/// The directory of our own cgroup, from the text of `/proc/self/mountinfo` and
/// `/proc/self/cgroup`.
fn own_directory(mounts: &str, own: &str) -> Option<PathBuf> {
    let mount = mounts.lines().find_map(|line| {
        let (before, after) = line.split_once(" - ")?;
        (after.split(' ').next()? == "cgroup2").then(|| before.split(' ').nth(4))?
    })?;
    let path = own.lines().find_map(|line| line.strip_prefix("0::"))?;
    Some(Path::new(mount).join(path.trim_start_matches('/')))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_own_group_is_found_on_old_and_new_layouts() {
        let hybrid = "40 1 0:9 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n\
                      42 1 0:9 / /sys/fs/cgroup/unified rw shared:3 - cgroup2 cgroup2 rw\n";
        assert_eq!(
            own_directory(hybrid, "9:name=systemd:/\n0::/\n"),
            Some(PathBuf::from("/sys/fs/cgroup/unified/"))
        );
        let unified = "42 1 0:9 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n";
        assert_eq!(
            own_directory(unified, "0::/user.slice/session-1.scope\n"),
            Some(PathBuf::from("/sys/fs/cgroup/user.slice/session-1.scope"))
        );
        assert_eq!(own_directory("", "0::/\n"), None);
    }
}
