//! What the system shows of this process, by the names that all programs have for Prometheus.
//!
//! Source: proc(5). What cannot be read is left out.

use std::fs;
use std::os::unix::fs::MetadataExt;

use api::exposition::Exposition;
use rustix::process::{Resource, getrlimit};

/// `/proc` counts processor time in these, whatever the kernel's own clock is (USER_HZ).
const TICKS_PER_SECOND: f64 = 100.0;

/// Writes what is known.
pub(crate) fn write(out: &mut Exposition) {
    let stat = fs::read_to_string("/proc/self/stat").ok();
    if let Some(Ticks { used, started }) = stat.and_then(|stat| Ticks::read(&stat)) {
        let used = used as f64 / TICKS_PER_SECOND;
        out.counter("process_cpu_seconds_total", "Processor time that was used.", used);
        if let Some(booted) = fs::read_to_string("/proc/stat").ok().and_then(|stat| booted(&stat)) {
            let start = booted as f64 + started as f64 / TICKS_PER_SECOND;
            out.gauge("process_start_time_seconds", "When it was started, since 1970.", start);
        }
    }
    if let Ok(status) = fs::read_to_string("/proc/self/status") {
        for (line, name, help) in [
            ("VmRSS", "process_resident_memory_bytes", "Memory that is in use."),
            ("VmSize", "process_virtual_memory_bytes", "Addresses that are in use."),
        ] {
            if let Some(kib) = number_after(&status, line) {
                out.gauge(name, help, kib.saturating_mul(1024));
            }
        }
        if let Some(threads) = number_after(&status, "Threads") {
            out.gauge("process_threads", "Threads.", threads);
        }
    }
    if let Some(open) = open_files() {
        out.gauge("process_open_fds", "Open files and sockets.", open);
    }
    if let Some(most) = getrlimit(Resource::Nofile).current {
        out.gauge("process_max_fds", "Most of them that there may be.", most);
    }
}

/// Of a process, in [`TICKS_PER_SECOND`].
#[derive(Debug, PartialEq, Eq)]
struct Ticks {
    /// Processor time, that of the kernel for it too.
    used: u64,
    /// When it was started, since the system was.
    started: u64,
}

impl Ticks {
    fn read(stat: &str) -> Option<Ticks> {
        // The program's name stands in brackets, and may hold anything. Behind it comes field 3.
        let (_, fields) = stat.rsplit_once(')')?;
        let mut fields = fields.split_ascii_whitespace();
        let mut skip = |count: usize| fields.nth(count)?.parse::<u64>().ok();
        // Fields 14, 15 and 22.
        let (user, system) = (skip(11)?, skip(0)?);
        Some(Ticks { used: user.checked_add(system)?, started: skip(6)? })
    }
}

/// When the system was started, in seconds since 1970.
fn booted(stat: &str) -> Option<u64> {
    stat.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()
}

/// The number of a line `name:   number`.
fn number_after(status: &str, name: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    line.split_ascii_whitespace().next()?.parse().ok()
}

/// Linux 6.2 and later has their number as the directory's size; before, they are counted.
fn open_files() -> Option<u64> {
    const DIRECTORY: &str = "/proc/self/fd";
    let size = fs::metadata(DIRECTORY).ok()?.size();
    if size > 0 {
        return Some(size);
    }
    u64::try_from(fs::read_dir(DIRECTORY).ok()?.count()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_found_behind_any_name() {
        let stat = "7 (a) 1 2) S 1 7 7 0 -1 4194560 500 0 3 0 250 50 0 0 20 0 4 0 100 200";
        assert_eq!(Ticks::read(stat), Some(Ticks { used: 300, started: 100 }));
        assert_eq!(Ticks::read("7 (a) S 1"), None);
        assert_eq!(booted("cpu 1 2\nbtime 1795471105\nprocesses 3\n"), Some(1_795_471_105));
        let status = "Name:\tx\nVmRSS:\t  12 kB\nThreads:\t4\n";
        assert_eq!((number_after(status, "VmRSS"), number_after(status, "Vm")), (Some(12), None));
    }

    #[test]
    fn this_process_is_seen() {
        let mut out = Exposition::default();
        write(&mut out);
        let text = out.into_text();
        assert!(text.contains("\nprocess_start_time_seconds 1"), "{text}");
        for name in ["cpu_seconds_total", "resident_memory_bytes", "threads", "open_fds", "max_fds"]
        {
            let line = text.lines().find(|line| line.starts_with(&format!("process_{name} ")));
            let value = line.and_then(|line| line.split(' ').nth(1)).expect(name);
            assert!(value.parse::<f64>().is_ok(), "{name} {value}");
        }
    }
}
