//! The third experiment: how long statements take, on servers that have equal shares of the
//! processors, so that several of them on one machine stand for several machines.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use lab::processor::Share;
use lab::usage;
use serde::{Deserialize, Serialize};
use tokio::process::Command;

use super::cost::keepers_of;
use super::kinds::{Architecture, Crowd, Mode, Shape};
use super::results::Results;
use super::site::Site;
use super::{Options, Run, rounded};
use crate::Scratch;
use crate::pgbench::{self, Log};
use crate::statistics::percentile;

/// Of one processor, for each server's host; clients and proxy have the rest.
const SHARE_PERCENT: u64 = 20;
/// Who is measured, and whether clients share the proxy's connections by transactions. The other
/// ones lead clients to the same servers in the same way.
const MEASURED: [(Architecture, bool); 4] = [
    (Architecture::Single, false),
    (Architecture::Patroni, false),
    (Architecture::PgherdFenced, false),
    (Architecture::PgherdFenced, true),
];
/// Clients, with [`SOME_REPLICAS`].
const CLIENTS: [u32; 4] = [1, 10, 100, 1000];
/// Replicas, with [`SOME_CLIENTS`].
const REPLICAS: [usize; 5] = [1, 2, 3, 4, 5];
const SOME_CLIENTS: u32 = 10;
const SOME_REPLICAS: usize = 2;
/// The offered load, in transactions a second, where it is not as much as there is.
const RATE: u32 = 200;
/// Of a hundred clients, and of a hundred transactions, those that write.
const WRITES_PERCENT: u32 = 10;
/// How long one load lasts.
const SECONDS: u64 = 20;
/// How many clients connect in a second, at least: a small part of a processor makes processes
/// slowly.
const CONNECTING: u32 = 10;
/// How often each case is measured; all others lie between two runs of one.
const RUNS: u16 = 3;
/// pgbench's scale.
const SCALE: u32 = 10;
/// How long its tables may take.
const TABLES_LIMIT: u64 = 300;

/// How much clients ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Load {
    /// So many transactions a second.
    Offered(u32),
    /// As many as there are answers.
    Saturating,
}

/// What is measured once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Case {
    pub(crate) architecture: Architecture,
    pub(crate) replicas: usize,
    pub(crate) clients: u32,
    pub(crate) load: Load,
    /// Clients share the proxy's connections by transactions.
    pub(crate) pooled: bool,
    /// Which run of this case it is, from 1.
    pub(crate) run: u16,
}

impl Case {
    /// What tables call the architecture.
    pub(crate) fn title(&self) -> String {
        let pooled = if self.pooled { ", pooled" } else { "" };
        format!("{}{pooled}", self.architecture.title())
    }

    fn shape(&self) -> Shape {
        let crowd = if self.pooled { Crowd::Pooled } else { Crowd::Large };
        let usual = Shape::new(self.architecture, Mode::Async);
        Shape { servers: self.replicas + 1, crowd, ..usual }
    }
}

/// How it went.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Outcome {
    #[serde(flatten)]
    pub(crate) case: Case,
    #[serde(flatten)]
    pub(crate) finding: Finding,
}

/// What was found.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Finding {
    /// All clients were served to the end.
    Served {
        /// Transactions a second.
        tps: f64,
        /// Response times, from when a transaction was due.
        mean_ms: f64,
        p50_ms: f64,
        p99_ms: f64,
        /// What agents and members of the DCS used of the servers' shares, in hundredths. Results
        /// from before it was measured have none.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        keepers_percent: Option<f64>,
        /// Whether another server led at the end: the load was taken for a fault.
        handed_over: bool,
    },
    /// Clients were refused or cut off, which ends a run.
    Refused {
        /// What pgbench said.
        why: String,
    },
}

/// What of it is not measured yet; cases of one site follow each other.
pub(super) fn todo(options: &Options, results: &Results) -> Vec<Case> {
    let wanted = |(architecture, _): &(Architecture, bool)| {
        options.architecture.is_empty() || options.architecture.contains(architecture)
    };
    let mut cases = Vec::new();
    // What stands in neighbouring rows is measured one after the other, and all of it several
    // times: a machine has better hours and worse ones.
    let runs = 1..=options.runs.unwrap_or(RUNS);
    let sizes = [0].into_iter().chain(REPLICAS);
    for (run, replicas) in runs.flat_map(|run| sizes.clone().map(move |size| (run, size))) {
        let many = replicas == 0 || replicas == SOME_REPLICAS;
        let of_this_size = |(architecture, pooled): &(Architecture, bool)| {
            (*architecture == Architecture::Single) == (replicas == 0) && (many || !pooled)
        };
        for (architecture, pooled) in MEASURED.into_iter().filter(wanted).filter(of_this_size) {
            for clients in if many { CLIENTS.to_vec() } else { vec![SOME_CLIENTS] } {
                for load in [Load::Offered(RATE), Load::Saturating] {
                    cases.push(Case { architecture, replicas, clients, load, pooled, run });
                }
            }
        }
    }
    cases.retain(|case| !results.has_response(case));
    cases
}

/// About how long these take.
pub(super) fn expected(cases: &[Case]) -> Duration {
    let seconds = cases.iter().map(|case| length(case.clients) + 10).sum();
    Duration::from_secs(seconds)
}

/// pgbench's clock runs while its clients connect.
fn length(clients: u32) -> u64 {
    SECONDS + u64::from(clients / CONNECTING)
}

/// Measures them; `false` if a site was given up.
///
/// # Errors
/// The results cannot be written.
pub(super) async fn measure(run: &mut Run<'_>) -> anyhow::Result<bool> {
    let todo = todo(run.options, &run.results);
    let same_site = |one: &Case, other: &Case| {
        let site = |case: &Case| (case.architecture, case.replicas, case.pooled, case.run);
        site(one) == site(other)
    };
    let mut complete = true;
    for cases in todo.chunk_by(same_site) {
        let left_after = run.progress.left_after(expected(cases));
        if let Err(error) = of_site(run, cases).await {
            complete = false;
            run.given_up(&format!("{}, {} replicas", cases[0].title(), cases[0].replicas), &error);
        }
        run.progress.left_is(left_after);
    }
    Ok(complete)
}

async fn of_site(run: &mut Run<'_>, cases: &[Case]) -> anyhow::Result<()> {
    let (scratch, logs) = (run.scratch()?, Scratch::new("field-logs")?);
    let site = run.site(cases[0].shape(), &scratch).await?;
    let mut tables = site.pgbench(site.entry_address());
    tables.args(["-i", "-q", "-s", &SCALE.to_string()]);
    let made = pgbench::output(tables, TABLES_LIMIT).await?;
    ensure!(made.status.success(), "pgbench -i: {}", String::from_utf8_lossy(&made.stderr));
    site.until_whole(Duration::from_secs(TABLES_LIMIT)).await?;
    let _shares = shares(&site).context("equal shares of the processors")?;
    for case in cases {
        // The load before may have been taken for a fault.
        site.until_whole(Duration::from_secs(TABLES_LIMIT)).await?;
        site.until_reads(Duration::from_secs(TABLES_LIMIT)).await?;
        let outcome = one(&site, *case, &logs).await?;
        run.progress.done(expected(&[*case]));
        run.progress.tell(&format!(
            "{}, {} replicas, {} clients, {:?}, run {}: {:?}",
            case.title(),
            case.replicas,
            case.clients,
            case.load,
            case.run,
            outcome.finding
        ));
        run.results.add_response(outcome)?;
    }
    Ok(())
}

/// Confines every server's host.
fn shares(site: &Site) -> anyhow::Result<Vec<Share>> {
    let share = |host: usize| {
        let group = site.ground.group(host);
        Share::new(site.ground.network.name(host), &group.pids(), SHARE_PERCENT)
    };
    Ok((0..site.nodes.len()).map(share).collect::<std::io::Result<Vec<Share>>>()?)
}

/// Readers at the entry for reads, and writers at the other one, at the same time.
async fn one(site: &Site, case: Case, logs: &Scratch) -> anyhow::Result<Outcome> {
    let before = site.primary().await.context("there is not one primary")?.host;
    let writers = (case.clients * WRITES_PERCENT / 100).max(1);
    // One client alone cannot be two.
    let readers = case.clients.saturating_sub(writers).max(1);
    let rate = |percent: u32| match case.load {
        Load::Offered(tps) => Some(tps * percent / 100),
        Load::Saturating => None,
    };
    let (read_logs, write_logs) = (logs.0.join("read"), logs.0.join("write"));
    let reads = Half {
        pgbench: site.pgbench(site.read_address()),
        script: "select-only",
        clients: readers,
        rate: rate(100 - WRITES_PERCENT),
        logs: &read_logs,
    };
    let writes = Half {
        pgbench: site.pgbench(site.entry_address()),
        script: "simple-update",
        clients: writers,
        rate: rate(WRITES_PERCENT),
        logs: &write_logs,
    };
    let seconds = length(case.clients);
    let keepers = Keepers::of(site);
    let finding = match tokio::try_join!(reads.run(seconds), writes.run(seconds))? {
        (Ok(reads), Ok(writes)) => {
            let keepers_percent = keepers.percent();
            let after = site.primary().await.map(|node| node.host);
            served(reads, writes, keepers_percent, after != Some(before))?
        }
        (Err(why), _) | (_, Err(why)) => Finding::Refused { why },
    };
    Ok(Outcome { case, finding })
}

/// What runs on the servers beside PostgreSQL, and what each process had used at a moment.
struct Keepers {
    /// Processor seconds by process.
    had: Vec<(u32, f64)>,
    at: Instant,
    servers: usize,
}

impl Keepers {
    fn of(site: &Site) -> Keepers {
        let servers = site.nodes.len();
        let pids = (0..servers).flat_map(|host| keepers_of(site, host)).map(|(pid, _)| pid);
        let used = |pid| Some((pid, usage::processor_seconds_with_children(pid)?));
        Keepers { had: pids.filter_map(used).collect(), at: Instant::now(), servers }
    }

    /// What they have used since, in hundredths of all servers' shares.
    fn percent(&self) -> f64 {
        let since = |(pid, had): &(u32, f64)| {
            usage::processor_seconds_with_children(*pid).map(|now| now - had)
        };
        let used: f64 = self.had.iter().filter_map(since).sum();
        let share = self.servers as f64 * SHARE_PERCENT as f64 / 100.0;
        rounded(100.0 * used / (share * self.at.elapsed().as_secs_f64()))
    }
}

fn served(
    reads: Told,
    writes: Told,
    keepers_percent: f64,
    handed_over: bool,
) -> anyhow::Result<Finding> {
    let mut times: Vec<u64> = reads.times.into_iter().chain(writes.times).collect();
    times.sort_unstable();
    let ms = |us: f64| rounded(us / 1000.0);
    let at = |percent| percentile(&times, percent).map(|us| ms(us as f64));
    let nothing = "there was no transaction";
    let mean = times.iter().sum::<u64>() as f64 / times.len().max(1) as f64;
    Ok(Finding::Served {
        tps: rounded(reads.tps + writes.tps),
        mean_ms: ms(mean),
        p50_ms: at(50).context(nothing)?,
        p99_ms: at(99).context(nothing)?,
        keepers_percent: Some(keepers_percent),
        handed_over,
    })
}

/// One pgbench of the two.
struct Half<'a> {
    pgbench: Command,
    script: &'static str,
    clients: u32,
    /// Transactions a second.
    rate: Option<u32>,
    logs: &'a std::path::Path,
}

/// What it told.
struct Told {
    tps: f64,
    /// Response times in microseconds.
    times: Vec<u64>,
}

impl Half<'_> {
    /// What it told, or why its clients were not served.
    async fn run(self, seconds: u64) -> anyhow::Result<Result<Told, String>> {
        let Half { mut pgbench, script, clients, rate, logs } = self;
        std::fs::create_dir_all(logs)?;
        let log = Log::new(logs)?;
        pgbench.args(["-n", "-b", script, "-c", &clients.to_string(), "-j", "2"]);
        pgbench.args(["-T", &seconds.to_string()]);
        if let Some(rate) = rate {
            pgbench.arg(format!("--rate={rate}"));
        }
        log.options(&mut pgbench);
        let done = pgbench::output(pgbench, seconds).await?;
        if !done.status.success() {
            let complaint = complaint(&String::from_utf8_lossy(&done.stderr));
            return Ok(Err(format!("{script}: {complaint}")));
        }
        let Some((tps, _)) = pgbench::figures(&String::from_utf8_lossy(&done.stdout)) else {
            return Ok(Err(format!("{script}: clients did not all connect in {seconds} s")));
        };
        let times = log.read()?.iter().map(|entry| entry.latency_us + entry.lag_us).collect();
        Ok(Ok(Told { tps, times }))
    }
}

/// The first error in what pgbench wrote: each client may have one.
fn complaint(stderr: &str) -> String {
    /// Characters of it.
    const LENGTH: usize = 160;
    let first = stderr.lines().find_map(|line| line.strip_prefix("pgbench: error: "));
    let text = first.or_else(|| stderr.lines().next()).unwrap_or("pgbench failed without a word");
    text.chars().take(LENGTH).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::field::report::Conditions;
    use clap::Parser;

    #[test]
    fn one_client_complains_for_all() {
        let stderr = "pgbench: note\npgbench: error: client 7: server closed the connection\n\
                      pgbench: error: client 8: the same\n";
        assert_eq!(complaint(stderr), "client 7: server closed the connection");
        assert_eq!(complaint(""), "pgbench failed without a word");
    }

    #[test]
    fn clients_vary_with_some_replicas_and_replicas_with_some_clients() {
        let options = Options::parse_from(["field"]);
        let none = std::path::Path::new("none");
        let cases = todo(
            &options,
            &Results::open(none, false, Conditions::default()).expect("an empty one"),
        );
        let count =
            |architecture| cases.iter().filter(|case| case.architecture == architecture).count();
        assert_eq!(count(Architecture::Single), 3 * 4 * 2);
        assert_eq!(count(Architecture::Patroni), 3 * (4 + 4) * 2);
        assert_eq!(count(Architecture::PgherdFenced), 3 * (4 + 4 + 4) * 2);
        let sites = cases
            .chunk_by(|one, other| (one.title(), one.replicas) == (other.title(), other.replicas));
        assert_eq!(sites.count(), 3 * (1 + 5 + 6));
        assert!(length(1000) > length(10));
    }
}
