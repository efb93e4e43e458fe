//! pgbench, and what it tells: throughput from its report, latencies from its log of each
//! transaction.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::time::Duration;

use anyhow::Context;
use tokio::process::Command;

/// How much longer than its time pgbench may take.
const BEYOND: Duration = Duration::from_secs(120);
/// How the files of its log begin.
const LOG_PREFIX: &str = "transactions";

/// Runs pgbench to its end, whatever its status.
pub(crate) async fn output(mut pgbench: Command, seconds: u64) -> anyhow::Result<Output> {
    let limit = Duration::from_secs(seconds) + BEYOND;
    let done = tokio::time::timeout(limit, pgbench.output()).await;
    done.context("pgbench does not end")?.context("cannot run pgbench")
}

/// `tps` and the number of transactions of a report.
pub(crate) fn figures(report: &str) -> Option<(f64, u64)> {
    let after = |name: &str| report.lines().find_map(|line| line.strip_prefix(name));
    let tps = after("tps = ")?.split(' ').next()?.parse().ok()?;
    let count = after("number of transactions actually processed: ")?;
    Some((tps, count.split('/').next()?.trim().parse().ok()?))
}

/// One transaction of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) client: u32,
    /// From its beginning.
    pub(crate) latency_us: u64,
    /// How much later than due it began, at a given rate.
    pub(crate) lag_us: u64,
    /// When it ended, in microseconds since 1970.
    pub(crate) ended_us: u64,
}

/// pgbench's log of each transaction, a file for each of its threads.
pub(crate) struct Log<'a> {
    directory: &'a Path,
}

impl Log<'_> {
    /// An empty one.
    pub(crate) fn new(directory: &Path) -> anyhow::Result<Log<'_>> {
        let log = Log { directory };
        log.remove()?;
        Ok(log)
    }

    pub(crate) fn options(&self, pgbench: &mut Command) {
        pgbench.arg("--log").arg("--log-prefix").arg(self.directory.join(LOG_PREFIX));
    }

    /// All of it, by the order of their ends for each client.
    pub(crate) fn read(&self) -> anyhow::Result<Vec<Entry>> {
        let mut entries = Vec::new();
        for file in self.files()? {
            let text = fs::read_to_string(&file)?;
            // One that failed has no latency; pgbench's report counts it.
            for line in text.lines().filter(|line| line.split(' ').nth(2) != Some("failed")) {
                entries.push(entry(line).with_context(|| format!("pgbench logged {line:?}"))?);
            }
        }
        self.remove()?;
        Ok(entries)
    }

    fn files(&self) -> anyhow::Result<Vec<PathBuf>> {
        let mut files = Vec::new();
        for entry in fs::read_dir(self.directory)? {
            let path = entry?.path();
            let name = path.file_name().map(|name| name.to_string_lossy().into_owned());
            if name.is_some_and(|name| name.starts_with(LOG_PREFIX)) {
                files.push(path);
            }
        }
        Ok(files)
    }

    fn remove(&self) -> anyhow::Result<()> {
        for file in self.files()? {
            fs::remove_file(file)?;
        }
        Ok(())
    }
}

/// `client transaction latency script seconds microseconds [lag]` (pgbench's documentation, "Per-
/// Transaction Logging"); a failed transaction has a word for its latency. At a given rate a
/// latency counts from when the transaction was due; it began `lag` later.
fn entry(line: &str) -> Option<Entry> {
    let fields: Vec<&str> = line.split(' ').collect();
    let [client, _, latency, _, seconds, microseconds, lag @ ..] = fields.as_slice() else {
        return None;
    };
    let whole: u64 = seconds.parse().ok()?;
    let lag: u64 = lag.first().map_or(Some(0), |lag| lag.parse().ok())?;
    Some(Entry {
        client: client.parse().ok()?,
        latency_us: latency.parse::<u64>().ok()?.saturating_sub(lag),
        lag_us: lag,
        ended_us: whole * 1_000_000 + microseconds.parse::<u64>().ok()?,
    })
}

/// The times between two ends of one client.
pub(crate) fn cycles(entries: &[Entry]) -> Vec<u64> {
    let mut last: BTreeMap<u32, u64> = BTreeMap::new();
    let mut cycles = Vec::new();
    for entry in entries {
        if let Some(before) = last.insert(entry.client, entry.ended_us) {
            cycles.push(entry.ended_us.saturating_sub(before));
        }
    }
    cycles
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_is_read() {
        let report = "transaction type: <builtin: select only>\n\
            number of transactions actually processed: 1234\n\
            tps = 617.250000 (without initial connection time)\n";
        assert_eq!(figures(report), Some((617.25, 1234)));
        let with_count = report.replace("1234", "1234/2000");
        assert_eq!(figures(&with_count), Some((617.25, 1234)));
        assert_eq!(figures("pgbench: error"), None);
    }

    #[test]
    fn a_log_is_read() {
        let read = entry("3 199 2241 0 1175850568 995598");
        let ended_us = 1_175_850_568_995_598;
        let expected = Entry { client: 3, latency_us: 2241, lag_us: 0, ended_us };
        assert_eq!(read, Some(expected));
        let late = Entry { lag_us: 200, ..expected };
        assert_eq!(entry("3 199 2441 0 1175850568 995598 200"), Some(late));
        assert_eq!(entry("3 199 failed 0 1175850568 995598"), None);
        assert_eq!(entry("3 199"), None);
    }

    #[test]
    fn a_cycle_is_between_two_ends_of_one_client() {
        let entry = |client, ended_us| Entry { client, latency_us: 1, lag_us: 0, ended_us };
        let entries = [entry(0, 100), entry(1, 150), entry(0, 400), entry(1, 160)];
        assert_eq!(cycles(&entries), [300, 10]);
    }
}
