//! One slice of pgbench, and what it tells: throughput from its report, latencies from its log of
//! each transaction.
//!
//! Where more clients than one take all they can get, a latency is what they wait for each other,
//! and says no more than the throughput does. So there are slices of a given rate, too.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Output;
use std::time::Duration;

use anyhow::{Context, ensure};
use tokio::process::Command;

use super::statistics::percentile;

/// How much longer than its time pgbench may take.
const BEYOND: Duration = Duration::from_secs(120);
/// A slice is a second longer for each so many clients, who connect first.
const CLIENTS_PER_SECOND: u32 = 100;
/// Threads of pgbench with more than one client.
const THREADS_MAX: u32 = 2;
/// How the files of its log begin.
const LOG_PREFIX: &str = "transactions";

/// What clients do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Script {
    /// One row by its key.
    Select,
    /// Seven statements in a transaction.
    Tpcb,
    /// The first, each on a connection of its own.
    Connect,
}

/// A slice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Workload {
    pub(super) script: Script,
    pub(super) prepared: bool,
    pub(super) clients: u32,
}

impl Workload {
    /// As it is called in the object.
    pub(super) fn name(&self) -> String {
        let script = match self.script {
            Script::Select => "select",
            Script::Tpcb => "tpcb",
            Script::Connect => "connect",
        };
        let prepared = if self.prepared { "_prepared" } else { "" };
        format!("{script}{prepared}_{}", self.clients)
    }

    /// Whether its latencies are measured at a rate of their own.
    pub(super) fn is_paced(&self) -> bool {
        self.clients > 1 && self.script != Script::Connect
    }

    /// pgbench's options.
    pub(super) fn options(&self, command: &mut Command, seconds: u64) {
        let threads = self.clients.min(THREADS_MAX);
        command.args(["-c", &self.clients.to_string(), "-j", &threads.to_string()]);
        command.args(["-T", &seconds.to_string()]);
        command.args(["-M", if self.prepared { "prepared" } else { "simple" }]);
        match self.script {
            // Its small tables are vacuumed first, or they would grow from slice to slice.
            Script::Tpcb => {}
            Script::Select => drop(command.args(["-n", "-S"])),
            Script::Connect => drop(command.args(["-n", "-S", "-C"])),
        }
    }
}

/// What a slice told.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Slice {
    /// Transactions a second.
    pub(super) tps: f64,
    /// Transactions.
    pub(super) transactions: u64,
    /// Median latency in microseconds.
    pub(super) p50_us: f64,
    /// The latency that one in a hundred exceeds.
    pub(super) p99_us: f64,
}

/// Runs a slice, with `rate` of so many transactions a second; `directory` is there for its log.
/// Nothing if there was no time for a transaction: pgbench's clock runs while its clients connect.
pub(super) async fn run(
    mut pgbench: Command,
    workload: Workload,
    seconds: u64,
    rate: Option<f64>,
    directory: &Path,
) -> anyhow::Result<Option<Slice>> {
    let seconds = seconds + u64::from(workload.clients / CLIENTS_PER_SECOND);
    let log = Log::new(directory)?;
    workload.options(&mut pgbench, seconds);
    if let Some(rate) = rate {
        pgbench.arg(format!("--rate={rate:.3}"));
    }
    log.options(&mut pgbench);
    let Output { status, stdout, stderr } = output(pgbench, seconds).await?;
    let (said, complained) = (String::from_utf8_lossy(&stdout), String::from_utf8_lossy(&stderr));
    ensure!(status.success(), "pgbench, {}: {complained}", workload.name());
    let entries = log.read()?;
    let mut latencies = match workload.script {
        // The log does not count the time that the connection took.
        Script::Connect => cycles(&entries),
        Script::Select | Script::Tpcb => entries.iter().map(|entry| entry.latency_us).collect(),
    };
    latencies.sort_unstable();
    let at = |percent| percentile(&latencies, percent).map(|us| us as f64);
    let (Some(p50_us), Some(p99_us)) = (at(50), at(99)) else { return Ok(None) };
    let (tps, transactions) = figures(&said).with_context(|| format!("pgbench said {said:?}"))?;
    Ok(Some(Slice { tps, transactions, p50_us, p99_us }))
}

/// Runs pgbench to its end, whatever its status.
pub(super) async fn output(mut pgbench: Command, seconds: u64) -> anyhow::Result<Output> {
    let limit = Duration::from_secs(seconds) + BEYOND;
    let done = tokio::time::timeout(limit, pgbench.output()).await;
    done.context("pgbench does not end")?.context("cannot run pgbench")
}

/// `tps` and the number of transactions of a report.
fn figures(report: &str) -> Option<(f64, u64)> {
    let after = |name: &str| report.lines().find_map(|line| line.strip_prefix(name));
    let tps = after("tps = ")?.split(' ').next()?.parse().ok()?;
    let count = after("number of transactions actually processed: ")?;
    Some((tps, count.split('/').next()?.trim().parse().ok()?))
}

/// One transaction of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) client: u32,
    pub(super) latency_us: u64,
    /// When it ended, in microseconds since 1970.
    pub(super) ended_us: u64,
}

/// pgbench's log of each transaction, a file for each of its threads.
pub(super) struct Log<'a> {
    directory: &'a Path,
}

impl Log<'_> {
    /// An empty one.
    pub(super) fn new(directory: &Path) -> anyhow::Result<Log<'_>> {
        let log = Log { directory };
        log.remove()?;
        Ok(log)
    }

    pub(super) fn options(&self, pgbench: &mut Command) {
        pgbench.arg("--log").arg("--log-prefix").arg(self.directory.join(LOG_PREFIX));
    }

    /// All of it, by the order of their ends for each client.
    pub(super) fn read(&self) -> anyhow::Result<Vec<Entry>> {
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

    fn files(&self) -> anyhow::Result<Vec<std::path::PathBuf>> {
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
        ended_us: whole * 1_000_000 + microseconds.parse::<u64>().ok()?,
    })
}

/// The times between two ends of one client.
pub(super) fn cycles(entries: &[Entry]) -> Vec<u64> {
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
        let expected = Entry { client: 3, latency_us: 2241, ended_us: 1_175_850_568_995_598 };
        assert_eq!(read, Some(expected));
        assert_eq!(entry("3 199 2441 0 1175850568 995598 200"), Some(expected));
        assert_eq!(entry("3 199 failed 0 1175850568 995598"), None);
        assert_eq!(entry("3 199"), None);
    }

    #[test]
    fn a_cycle_is_between_two_ends_of_one_client() {
        let entry = |client, ended_us| Entry { client, latency_us: 1, ended_us };
        let entries = [entry(0, 100), entry(1, 150), entry(0, 400), entry(1, 160)];
        assert_eq!(cycles(&entries), [300, 10]);
    }

    #[test]
    fn a_workload_is_called_as_in_the_object() {
        let name = |script, prepared| Workload { script, prepared, clients: 8 }.name();
        assert_eq!(name(Script::Select, false), "select_8");
        assert_eq!(name(Script::Tpcb, true), "tpcb_prepared_8");
        assert_eq!(name(Script::Connect, false), "connect_8");
    }
}
