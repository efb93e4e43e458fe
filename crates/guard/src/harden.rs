//! Keeps the guard able to strike on a machine that has no memory and no time left. Every step is
//! one that may not be permitted; what was refused is reported, and killing works without it.

use std::ffi::c_int;
use std::io;

use rustix::mm::{Advice, MlockAllFlags, madvise, mlockall};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::thread::{CapabilitySet, capabilities};

/// What the operating system refused, as error numbers; `None` is in force.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Refused {
    /// Locking the memory, so that no page of the killing has to be read or found first.
    pub memory: Option<i32>,
    /// Real-time priority, so that a loaded machine does not delay the killing.
    pub priority: Option<i32>,
    /// Exemption from the OOM killer.
    pub oom_score: Option<i32>,
}

impl Refused {
    /// Whether everything is in force.
    #[must_use]
    pub fn is_nothing(self) -> bool {
        self == Refused::default()
    }
}

impl std::fmt::Display for Refused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let parts = [
            ("memory not locked", self.memory),
            ("no real-time priority", self.priority),
            ("not exempt from the OOM killer", self.oom_score),
        ];
        let mut separator = "";
        for (text, number) in parts {
            let Some(number) = number else { continue };
            write!(f, "{separator}{text} ({})", io::Error::from_raw_os_error(number))?;
            separator = ", ";
        }
        if separator.is_empty() { f.write_str("nothing refused") } else { Ok(()) }
    }
}

/// The error number of what failed.
fn refusal<T>(result: io::Result<T>) -> Option<i32> {
    result.err().map(|error| error.raw_os_error().unwrap_or(0))
}

/// Takes this process off the OOM killer's list.
pub(crate) fn leave_oom_killer_alone() -> Option<i32> {
    refusal(std::fs::write("/proc/self/oom_score_adj", "-1000"))
}

/// Lets go of the pages of programs and libraries that only starting needed, above all the table of
/// relocations, so that they are not locked. Best effort: it only saves memory.
pub(crate) fn forget_the_start() {
    let Ok(text) = std::fs::read_to_string("/proc/self/smaps") else { return };
    for (start, length) in unchanged_files(&text) {
        let address = std::ptr::with_exposed_provenance_mut(start);
        // SAFETY: the range is a private, read-only mapping of a file without a page of its own, so
        // whatever is touched again is read from the file as it was. This process has one thread,
        // which maps nothing between reading the list and this call.
        #[allow(unsafe_code)] // what it does depends on the mapping, so rustix has no safe form
        unsafe { madvise(address, length, Advice::LinuxDontNeed) }.ok();
    }
}

/// Start and length of each read-only mapping of a file in `smaps` in which nothing was changed.
fn unchanged_files(smaps: &str) -> Vec<(usize, usize)> {
    let mut found = Vec::new();
    let mut current = None;
    for line in smaps.lines() {
        if line.split_whitespace().next() == Some("Anonymous:") {
            let changed = line.split_whitespace().nth(1) != Some("0");
            found.extend(current.take().filter(|_| !changed));
        } else if let Some(range) = read_only_file(line) {
            current = range;
        }
    }
    found
}

/// `None` for a line that begins no mapping; `Some(None)` for a mapping of another kind.
fn read_only_file(line: &str) -> Option<Option<(usize, usize)>> {
    let mut words = line.split_whitespace();
    let (start, end) = words.next()?.split_once('-')?;
    let start = usize::from_str_radix(start, 16).ok()?;
    let length = usize::from_str_radix(end, 16).ok()?.checked_sub(start)?;
    let read_only = matches!(words.next(), Some("r--p" | "r-xp"));
    let is_file = words.nth(3).is_some_and(|path| path.starts_with('/'));
    Some((read_only && is_file).then_some((start, length)))
}

/// Locks every page that was touched so far, and each further one at its first touch. To be called
/// after one rehearsal, so that the pages of the killing are among them; untouched ones, most of
/// the binary, cost nothing.
pub(crate) fn lock_memory() -> Option<i32> {
    // Without its own limit a process may lock what it maps later; with one, a later mapping or a
    // growing stack could be refused, which would end the guard.
    let unlimited = Rlimit { current: None, maximum: None };
    let free = setrlimit(Resource::Memlock, unlimited).is_ok()
        || getrlimit(Resource::Memlock).current.is_none()
        || capabilities(None).is_ok_and(|c| c.effective.contains(CapabilitySet::IPC_LOCK));
    let later = if free { MlockAllFlags::FUTURE } else { MlockAllFlags::empty() };
    let flags = MlockAllFlags::CURRENT | MlockAllFlags::ONFAULT | later;
    refusal(mlockall(flags).map_err(io::Error::from))
}

/// `SCHED_FIFO` at the lowest of its priorities is above everything that is not real-time. The
/// guard sleeps nearly always, and the kernel's limit for real-time tasks bounds a runaway.
pub(crate) fn take_priority() -> Option<i32> {
    const SCHED_FIFO: c_int = 1;
    const SCHED_RESET_ON_FORK: c_int = 0x4000_0000;
    let parameters = SchedParam { priority: 1 };
    // SAFETY: the call reads one `sched_param`, which is one C int on Linux (sched(7)), and changes
    // nothing in memory.
    #[allow(unsafe_code)] // rustix has no call for it
    let result =
        unsafe { sched_setscheduler(0, SCHED_FIFO | SCHED_RESET_ON_FORK, &raw const parameters) };
    if result == 0 { None } else { refusal::<()>(Err(io::Error::last_os_error())) }
}

#[repr(C)]
struct SchedParam {
    priority: c_int,
}

#[allow(unsafe_code)] // rustix has no call for it
unsafe extern "C" {
    fn sched_setscheduler(pid: c_int, policy: c_int, parameters: *const SchedParam) -> c_int;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_unchanged_read_only_files_are_let_go() {
        let smaps = "\
1000-3000 r--p 00000000 fe:00 12 /usr/bin/x
Rss:                   8 kB
Anonymous:             0 kB
3000-4000 r-xp 00002000 fe:00 12 /usr/bin/x
Anonymous:             4 kB
4000-5000 rw-p 00003000 fe:00 12 /usr/bin/x
Anonymous:             0 kB
5000-6000 r--p 00000000 00:00 0
Anonymous:             0 kB
6000-8000 r-xp 00000000 00:00 0                  [vdso]
Anonymous:             0 kB
a000-b000 r-xp 00000000 fe:00 13 /lib/y
Anonymous:             0 kB
";
        assert_eq!(unchanged_files(smaps), [(0x1000, 0x2000), (0xa000, 0x1000)]);
    }

    #[test]
    fn each_refusal_is_named() {
        let refused = Refused { memory: Some(1), priority: None, oom_score: Some(13) };
        let text = refused.to_string();
        assert!(text.starts_with("memory not locked (Operation not permitted"), "{text}");
        assert!(text.contains(", not exempt from the OOM killer (Permission denied"), "{text}");
        assert!(!text.contains("priority"), "{text}");
        assert!(Refused::default().is_nothing());
    }
}
