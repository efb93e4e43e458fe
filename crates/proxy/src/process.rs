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
    if let Some(cpu) = fs::read_to_string("/proc/self/stat").ok().and_then(|text| cpu_ticks(&text))
    {
        let seconds = cpu as f64 / TICKS_PER_SECOND;
        out.counter("process_cpu_seconds_total", "Processor time that was used.", seconds);
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

/// The third and the fourth field from the end of those that say how long it ran: for itself, and
/// in the kernel for it.
fn cpu_ticks(stat: &str) -> Option<u64> {
    // The program's name stands in brackets, and may hold anything.
    let (_, fields) = stat.rsplit_once(')')?;
    // Behind it the first field is the third: 14 and 15 are the 12th and 13th of these.
    let mut fields = fields.split_ascii_whitespace().skip(11);
    let (user, system) = (fields.next()?.parse::<u64>().ok()?, fields.next()?.parse().ok()?);
    user.checked_add(system)
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
        assert_eq!(cpu_ticks(stat), Some(300));
        assert_eq!(cpu_ticks("7 (a) S 1"), None);
        let status = "Name:\tx\nVmRSS:\t  12 kB\nThreads:\t4\n";
        assert_eq!((number_after(status, "VmRSS"), number_after(status, "Vm")), (Some(12), None));
    }

    #[test]
    fn this_process_is_seen() {
        let mut out = Exposition::default();
        write(&mut out);
        let text = out.into_text();
        for name in ["cpu_seconds_total", "resident_memory_bytes", "threads", "open_fds", "max_fds"]
        {
            let line = text.lines().find(|line| line.starts_with(&format!("process_{name} ")));
            let value = line.and_then(|line| line.split(' ').nth(1)).expect(name);
            assert!(value.parse::<f64>().is_ok(), "{name} {value}");
        }
    }
}
