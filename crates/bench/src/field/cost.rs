//! The fourth experiment: what it costs to keep a cluster writable, beside PostgreSQL itself, idle
//! and under load.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use lab::ground::Ground;
use lab::{process, usage};
use serde::{Deserialize, Serialize};

use super::faults::Bench;
use super::kinds::{Architecture, Mode, Shape};
use super::results::Results;
use super::site::Site;
use super::{Options, Run, rounded};

/// How long is measured.
const WINDOW: Duration = Duration::from_secs(60);
/// How long a site is left alone before.
const CALM: Duration = Duration::from_secs(10);
/// How long a program may take that tells something.
const LIMIT: Duration = Duration::from_secs(10);
/// The device of each host, in `/proc/net/dev`.
const DEVICE: &str = "leg0:";
/// PostgreSQL's own processes.
const POSTGRES: &str = "postgres";

/// What is measured once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Case {
    pub(crate) architecture: Architecture,
    /// Whether the writers are there.
    pub(crate) load: bool,
}

/// What one program uses on all hosts together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Use {
    pub(crate) memory_mib: f64,
    /// Of one processor.
    pub(crate) processor_percent: f64,
}

/// What was measured.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Outcome {
    #[serde(flatten)]
    pub(crate) case: Case,
    /// By program.
    pub(crate) programs: BTreeMap<String, Use>,
    /// Requests that etcd's members received, a second, by method.
    pub(crate) dcs_requests: BTreeMap<String, f64>,
    /// Changes that went through etcd's log, a second.
    pub(crate) dcs_changes: f64,
    /// Bytes that hosts sent, a second, PostgreSQL's among them.
    pub(crate) network_bytes: f64,
    /// Inserts acknowledged, a second.
    pub(crate) inserts: f64,
}

impl Outcome {
    /// All programs together.
    pub(crate) fn all(&self) -> Use {
        let add = |sum: Use, one: &Use| Use {
            memory_mib: sum.memory_mib + one.memory_mib,
            processor_percent: sum.processor_percent + one.processor_percent,
        };
        self.programs.values().fold(Use::default(), add)
    }

    /// All requests to etcd, a second. The sum of none is not to be shown as `-0.0`.
    pub(crate) fn requests(&self) -> f64 {
        self.dcs_requests.values().fold(0.0, |sum, one| sum + one)
    }
}

/// What counts up, as it was at one moment.
#[derive(Debug, Default)]
struct Counters {
    processor_seconds: BTreeMap<String, f64>,
    requests: BTreeMap<String, f64>,
    changes: f64,
    bytes: f64,
    inserts: f64,
}

/// What of it is not measured yet.
pub(super) fn todo(options: &Options, results: &Results) -> Vec<Case> {
    let keepers = options.architectures().into_iter().filter(|one| !one.needs_operator());
    let both =
        keepers.flat_map(|architecture| [false, true].map(|load| Case { architecture, load }));
    both.filter(|case| !results.has_cost(case)).collect()
}

/// About how long these take.
pub(super) fn expected(cases: &[Case]) -> Duration {
    cases.iter().map(|_| WINDOW + CALM * 3).sum()
}

/// Measures them; `false` if a site was given up.
///
/// # Errors
/// The results cannot be written.
pub(super) async fn measure(run: &mut Run<'_>) -> anyhow::Result<bool> {
    let mut complete = true;
    for case in todo(run.options, &run.results) {
        let shape = Shape::new(case.architecture, Mode::Async);
        let outcome = of_site(run, shape, case).await;
        run.progress.done(expected(&[case]));
        match outcome {
            Ok(outcome) => {
                let all = outcome.all();
                run.progress.tell(&format!(
                    "{}, {}: {:.0} MiB, {:.1} % of a processor, {:.1} DCS requests/s",
                    shape.title(),
                    if case.load { "under load" } else { "idle" },
                    all.memory_mib,
                    all.processor_percent,
                    outcome.requests()
                ));
                run.results.add_cost(outcome)?;
            }
            Err(error) => {
                complete = false;
                run.given_up(&shape.title(), &error);
            }
        }
    }
    Ok(complete)
}

async fn of_site(run: &Run<'_>, shape: Shape, case: Case) -> anyhow::Result<Outcome> {
    let scratch = run.scratch()?;
    if !case.load {
        let site = run.site(shape, &scratch).await?;
        return measured(&site, None, case).await;
    }
    let bench = run.bench(shape, &scratch).await?;
    measured(&bench.site, Some(&bench), case).await
}

async fn measured(site: &Site, bench: Option<&Bench>, case: Case) -> anyhow::Result<Outcome> {
    tokio::time::sleep(CALM).await;
    let before = counters(site, bench).await?;
    tokio::time::sleep(WINDOW).await;
    let after = counters(site, bench).await?;
    let a_second = |before: f64, after: f64| rounded((after - before) / WINDOW.as_secs_f64());
    let rates = |before: &BTreeMap<String, f64>, after: &BTreeMap<String, f64>| {
        let rate = |(name, after): (&String, &f64)| {
            let before = before.get(name).copied().unwrap_or(0.0);
            (name.clone(), a_second(before, *after))
        };
        after.iter().map(rate).collect::<BTreeMap<String, f64>>()
    };
    let mut programs: BTreeMap<String, Use> = BTreeMap::new();
    for (name, seconds) in rates(&before.processor_seconds, &after.processor_seconds) {
        programs.entry(name).or_default().processor_percent = rounded(100.0 * seconds);
    }
    for (pid, name) in keepers(site) {
        let memory = usage::pss_mib(pid).unwrap_or(0.0);
        let of = programs.entry(name).or_default();
        of.memory_mib = rounded(of.memory_mib + memory);
    }
    let mut dcs_requests = rates(&before.requests, &after.requests);
    dcs_requests.retain(|_, rate| *rate > 0.0);
    Ok(Outcome {
        case,
        programs,
        dcs_requests,
        dcs_changes: a_second(before.changes, after.changes),
        network_bytes: a_second(before.bytes, after.bytes),
        inserts: a_second(before.inserts, after.inserts),
    })
}

/// Every process on all hosts that is not PostgreSQL's, with its program.
fn keepers(site: &Site) -> Vec<(u32, String)> {
    (0..=site.nodes.len()).flat_map(|host| keepers_of(site, host)).collect()
}

/// Every process on a host that is not PostgreSQL's, with its program.
pub(super) fn keepers_of(site: &Site, host: usize) -> Vec<(u32, String)> {
    let pids = site.ground.group(host).pids().into_iter();
    let named = pids.filter_map(|pid| Some((pid, program(pid)?)));
    named.filter(|(_, name)| name != POSTGRES).collect()
}

/// What a process is called: of a script its own name, not that of what reads it.
fn program(pid: u32) -> Option<String> {
    let arguments = process::arguments(pid);
    let named = |path: &std::path::PathBuf| Some(path.file_name()?.to_str()?.to_owned());
    let name = process::program(pid)?;
    match name.starts_with("python") {
        true => arguments.get(1).and_then(named).or(Some(name)),
        false => Some(name),
    }
}

async fn counters(site: &Site, bench: Option<&Bench>) -> anyhow::Result<Counters> {
    let mut counters = Counters::default();
    for (pid, name) in keepers(site) {
        let seconds = usage::processor_seconds_with_children(pid).unwrap_or(0.0);
        *counters.processor_seconds.entry(name).or_default() += seconds;
    }
    for metrics in site.dcs_metrics().await? {
        for (method, count) in requests(&metrics) {
            *counters.requests.entry(method).or_default() += count;
        }
        // Every member applies every change.
        counters.changes = counters.changes.max(changes(&metrics));
    }
    for host in 0..=site.nodes.len() {
        let said = devices(&site.ground, host).await?;
        counters.bytes += sent(&said, DEVICE).with_context(|| format!("no {DEVICE} in {said}"))?;
    }
    counters.inserts = bench.map_or(0.0, |bench| bench.books.served() as f64);
    Ok(counters)
}

/// The text of `/proc/net/dev` on a host.
pub(super) async fn devices(ground: &Ground, host: usize) -> anyhow::Result<String> {
    let arguments = [OsString::from("/proc/net/dev")];
    Ok(ground.run(host, None, Path::new("/bin/cat"), &arguments, LIMIT).await?)
}

/// By method, the requests in etcd's metrics.
pub(super) fn requests(metrics: &str) -> BTreeMap<String, f64> {
    let mut counts = BTreeMap::new();
    for line in metrics.lines() {
        let Some(rest) = line.strip_prefix("grpc_server_msg_received_total{") else { continue };
        let Some((labels, value)) = rest.split_once("} ") else { continue };
        let method = labels
            .split(',')
            .find_map(|label| label.strip_prefix("grpc_method=\"")?.strip_suffix('"'));
        if let (Some(method), Ok(value)) = (method, value.parse::<f64>()) {
            *counts.entry(method.to_owned()).or_default() += value;
        }
    }
    counts
}

/// The changes that etcd has applied.
pub(super) fn changes(metrics: &str) -> f64 {
    let line = |line: &str| line.strip_prefix("etcd_server_proposals_applied_total ")?.parse().ok();
    metrics.lines().find_map(line).unwrap_or(0.0)
}

/// The bytes that a device has sent, in the text of `/proc/net/dev`: the ninth number.
pub(super) fn sent(text: &str, device: &str) -> Option<f64> {
    let line = text.lines().find_map(|line| line.trim_start().strip_prefix(device))?;
    line.split_ascii_whitespace().nth(8)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_others_tell_is_read() {
        let metrics = "# TYPE x counter\n\
            grpc_server_msg_received_total{grpc_method=\"Range\",grpc_service=\"etcdserverpb.KV\",\
            grpc_type=\"unary\"} 12\n\
            grpc_server_msg_received_total{grpc_method=\"Txn\",grpc_type=\"unary\"} 3\n\
            etcd_server_proposals_applied_total 45\n";
        let expected = [("Range".to_owned(), 12.0), ("Txn".to_owned(), 3.0)];
        assert_eq!(requests(metrics), BTreeMap::from(expected));
        assert!((changes(metrics) - 45.0).abs() < f64::EPSILON);
        let devices = "Inter-|   Receive\n    lo: 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16\n  \
                       leg0: 100 2 0 0 0 0 0 0 200 4 0 0 0 0 0 0\n";
        assert_eq!(sent(devices, DEVICE), Some(200.0));
        assert_eq!(sent(devices, "lo:"), Some(9.0));
        assert_eq!(sent("lo: 1", "lo:"), None);
    }
}
