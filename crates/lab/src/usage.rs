//! What a process uses, as `/proc` tells (proc(5)).

use std::fs;

/// `USER_HZ`, the unit of times in /proc, which is the same on every architecture that we run on.
const TICKS_PER_SECOND: f64 = 100.0;

/// Processor time that it has used itself, in seconds; `None` when it is gone.
#[must_use]
pub fn processor_seconds(pid: u32) -> Option<f64> {
    processor(&stat(pid)?, 2)
}

/// The same with the children that it has waited for.
#[must_use]
pub fn processor_seconds_with_children(pid: u32) -> Option<f64> {
    processor(&stat(pid)?, 4)
}

/// Memory, shared pages by their share, in MiB; `None` when it is gone or not ours to look at.
#[must_use]
pub fn pss_mib(pid: u32) -> Option<f64> {
    pss(&fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?)
}

/// Open descriptors; `None` when it is gone or not ours to look at.
#[must_use]
pub fn descriptors(pid: u32) -> Option<usize> {
    Some(fs::read_dir(format!("/proc/{pid}/fd")).ok()?.count())
}

/// Threads; `None` when it is gone.
#[must_use]
pub fn threads(pid: u32) -> Option<usize> {
    Some(fs::read_dir(format!("/proc/{pid}/task")).ok()?.count())
}

fn stat(pid: u32) -> Option<String> {
    fs::read_to_string(format!("/proc/{pid}/stat")).ok()
}

/// The first so many of utime, stime, cutime and cstime.
fn processor(stat: &str, fields: usize) -> Option<f64> {
    // The name stands in parentheses and may hold some itself: what counts is the last one.
    let after = stat.get(stat.rfind(')')? + 1..)?.split_ascii_whitespace().skip(11);
    let ticks: Option<f64> = after.take(fields).map(|field| field.parse::<f64>().ok()).sum();
    Some(ticks? / TICKS_PER_SECOND)
}

fn pss(rollup: &str) -> Option<f64> {
    let line = rollup.lines().find_map(|line| line.strip_prefix("Pss:"))?;
    let kib: f64 = line.trim().strip_suffix(" kB")?.parse().ok()?;
    Some(kib / 1024.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_files_of_proc_are_read() {
        let stat = "7 (a) b) S 1 7 7 0 -1 4194560 9 8 7 6 150 25 3 4 20 0 1 0 99 0 0";
        assert_eq!(processor(stat, 2), Some(1.75));
        assert_eq!(processor(stat, 4), Some(1.82));
        let rollup = "0-f ---p 00000000 00:00 0 [rollup]\nRss:  9 kB\nPss:   2048 kB\nPss_Dirty: 1";
        assert_eq!(pss(rollup), Some(2.0));
        assert_eq!(pss("Rss: 9 kB"), None);
    }

    #[test]
    fn this_process_uses_something() {
        let own = std::process::id();
        assert!(processor_seconds(own).is_some() && pss_mib(own).is_some_and(|mib| mib > 0.1));
        assert!(processor_seconds_with_children(own) >= processor_seconds(own));
        assert!(descriptors(own).is_some_and(|count| count >= 3));
        assert!(threads(own).is_some_and(|count| count >= 1));
        assert_eq!(threads(0), None);
    }
}
