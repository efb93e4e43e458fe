//! One slice of pgbench: throughput from its report, latencies from its log of each transaction.
//!
//! Where more clients than one take all they can get, a latency is what they wait for each other,
//! and says no more than the throughput does. So there are slices of a given rate, too.

use std::path::Path;
use std::process::Output;

use anyhow::{Context, ensure};
use tokio::process::Command;

use crate::pgbench::{Log, cycles, figures, output};
use crate::statistics::percentile;

/// A slice is a second longer for each so many clients, who connect first.
const CLIENTS_PER_SECOND: u32 = 100;
/// Threads of pgbench with more than one client.
const THREADS_MAX: u32 = 2;

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_workload_is_called_as_in_the_object() {
        let name = |script, prepared| Workload { script, prepared, clients: 8 }.name();
        assert_eq!(name(Script::Select, false), "select_8");
        assert_eq!(name(Script::Tpcb, true), "tpcb_prepared_8");
        assert_eq!(name(Script::Connect, false), "connect_8");
    }
}
