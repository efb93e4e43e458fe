//! The fifth experiment: what each mode of replication costs when servers are far apart, what it
//! keeps when the primary is lost, and what a standby far away lacks when everything else is.

use std::time::Duration;

use anyhow::Context;
use lab::ledger::PROXY_WRITER;
use lab::network::{Effect, Rule, Way};
use lab::workload;
use serde::{Deserialize, Serialize};

use super::faults::Bench;
use super::kinds::{Architecture, Fault, Mode, Shape};
use super::results::Results;
use super::{Options, Run, rounded};
use crate::books::SQL_LIMIT;
use crate::statistics::percentile;

/// How much later each packet between two sites arrives, in milliseconds.
const DELAYS_MS: [u64; 5] = [0, 1, 5, 20, 80];
/// The same where losses are counted.
const LOSS_DELAY_MS: u64 = 20;
/// How the primary is lost.
const LOSS_FAULTS: [Fault; 2] = [Fault::HostLost, Fault::NetworkCut];
/// How often each.
const LOSS_RUNS: u16 = 3;
/// Who is measured: what commits wait for is PostgreSQL's, so one of each is enough.
const ARCHITECTURES: [Architecture; 2] = [Architecture::Patroni, Architecture::PgherdFenced];
/// How long latencies are taken.
const WINDOW: Duration = Duration::from_secs(10);
/// How long the writers run before something is measured.
const CALM: Duration = Duration::from_secs(2);
/// How long what has arrived may take to be replayed.
const REPLAYED: Duration = Duration::from_secs(1);

/// What one site is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Part {
    /// All servers in different sites, in this mode.
    Mode(Mode),
    /// One server in another site, for which no commit waits.
    Remote,
}

/// A site's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Case {
    pub(crate) architecture: Architecture,
    pub(crate) part: Part,
}

impl Case {
    fn shape(&self) -> Shape {
        match self.part {
            Part::Mode(mode) => Shape::new(self.architecture, mode),
            Part::Remote => Shape { remote: true, ..Shape::new(self.architecture, Mode::Quorum) },
        }
    }

    fn expected(&self) -> Duration {
        let minutes = match (self.part, self.architecture) {
            (Part::Mode(_), Architecture::PgherdFenced) => 5,
            (Part::Mode(_), _) => 10,
            (Part::Remote, _) => 4,
        };
        Duration::from_secs(minutes * 60)
    }
}

/// What was found at one delay.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Finding {
    /// How long an insert took.
    Latency { p50_ms: f64, p99_ms: f64, n: usize },
    /// What was lost with the primary.
    Loss { fault: Fault, run: u16, lost: usize, gap_s: f64 },
    /// What the standby far away lacked when everything else was lost, in writes and in the time
    /// between the last acknowledgement and the newest one that it had.
    Lacks { writes: usize, seconds: f64 },
}

/// One result.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Outcome {
    #[serde(flatten)]
    pub(crate) case: Case,
    /// How much later each packet between two sites arrived.
    pub(crate) delay_ms: u64,
    #[serde(flatten)]
    pub(crate) finding: Finding,
}

/// What of it is not measured yet.
pub(super) fn todo(options: &Options, results: &Results) -> Vec<Case> {
    let wanted =
        |one: &Architecture| options.architecture.is_empty() || options.architecture.contains(one);
    let parts = |architecture| {
        let modes = Mode::ALL.into_iter().filter(|mode| options.mode.is_none_or(|m| m == *mode));
        let parts = modes.map(Part::Mode).chain([Part::Remote]);
        parts.map(move |part| Case { architecture, part })
    };
    let all = ARCHITECTURES.into_iter().filter(wanted).flat_map(parts);
    all.filter(|case| !results.has_data(case)).collect()
}

/// About how long these take.
pub(super) fn expected(cases: &[Case]) -> Duration {
    cases.iter().map(Case::expected).sum()
}

/// Measures them; `false` if a site was given up.
///
/// # Errors
/// The results cannot be written.
pub(super) async fn measure(run: &mut Run<'_>) -> anyhow::Result<bool> {
    let mut complete = true;
    for case in todo(run.options, &run.results) {
        let outcomes = of_site(run, case).await;
        run.progress.done(case.expected());
        match outcomes {
            // All of a site or nothing: an interrupted one is measured again.
            Ok(outcomes) => run.results.add_data(outcomes)?,
            Err(error) => {
                complete = false;
                run.given_up(&case.shape().title(), &error);
            }
        }
    }
    Ok(complete)
}

async fn of_site(run: &Run<'_>, case: Case) -> anyhow::Result<Vec<Outcome>> {
    let scratch = run.scratch()?;
    let shape = case.shape();
    let mut bench = run.bench(shape, &scratch).await?;
    let mut outcomes = Vec::new();
    let mut found = |delay_ms, finding: Finding| {
        run.progress.tell(&format!("{}, {delay_ms} ms apart: {finding:?}", shape.title()));
        outcomes.push(Outcome { case, delay_ms, finding });
    };
    for delay_ms in DELAYS_MS {
        let finding = match case.part {
            Part::Mode(_) => latency(&bench, delay_ms).await,
            Part::Remote => lacks(&bench, delay_ms).await,
        };
        found(delay_ms, finding.with_context(|| format!("{delay_ms} ms apart"))?);
    }
    if let Part::Mode(_) = case.part {
        for fault in LOSS_FAULTS {
            for run in 1..=LOSS_RUNS {
                let finding = loss(&mut bench, fault, run).await;
                found(LOSS_DELAY_MS, finding.with_context(|| fault.title())?);
            }
        }
    }
    Ok(outcomes)
}

/// From now on packets between any two servers are this late, and nothing else is wrong.
async fn apart(bench: &Bench, delay_ms: u64) -> anyhow::Result<()> {
    let servers = bench.site.nodes.len();
    let delay = Effect::Delay(Duration::from_millis(delay_ms));
    let rules = match bench.site.shape.remote {
        false => Rule::among(servers, delay),
        true => Rule::around(servers - 1, Way::Both, &[], delay),
    };
    bench.site.ground.network.heal();
    bench.site.ground.network.apply(rules);
    bench.until_whole().await?;
    tokio::time::sleep(CALM).await;
    Ok(())
}

async fn latency(bench: &Bench, delay_ms: u64) -> anyhow::Result<Finding> {
    apart(bench, delay_ms).await?;
    let from = bench.books.now();
    tokio::time::sleep(WINDOW).await;
    let until = bench.books.now();
    let taken = bench.books.ledger.lock().latencies(PROXY_WRITER, from, until);
    let us = |taken: &Duration| u64::try_from(taken.as_micros()).unwrap_or(u64::MAX);
    let mut taken: Vec<u64> = taken.iter().map(us).collect();
    taken.sort_unstable();
    let ms = |percent| percentile(&taken, percent).map(|us| rounded(us as f64 / 1000.0));
    let nothing = "no insert was acknowledged";
    let (p50_ms, p99_ms) = (ms(50).context(nothing)?, ms(99).context(nothing)?);
    Ok(Finding::Latency { p50_ms, p99_ms, n: taken.len() })
}

async fn loss(bench: &mut Bench, fault: Fault, run: u16) -> anyhow::Result<Finding> {
    apart(bench, LOSS_DELAY_MS).await?;
    let endured = bench.fault(fault).await?;
    let gap_s = bench.books.longest_gap(endured.at);
    let audit = bench.books.audit(&bench.site.entry("pgherd-bench-audit"), &[]).await?;
    Ok(Finding::Loss { fault, run, lost: audit.missing.len(), gap_s })
}

/// Loses every host but the last server's, and looks at what that one has.
async fn lacks(bench: &Bench, delay_ms: u64) -> anyhow::Result<Finding> {
    apart(bench, delay_ms).await?;
    let site = &bench.site;
    let (remote, near) = site.nodes.split_last().context("there are servers")?;
    // What is under way is lost as well: nothing of the last moments arrives.
    site.ground.network.apply(Rule::around(remote.host, Way::Both, &[], Effect::Drop));
    tokio::time::sleep(Duration::from_millis(delay_ms)).await;
    for node in near {
        site.lose(node).await?;
    }
    tokio::time::sleep(Duration::from_millis(delay_ms) + REPLAYED).await;
    let entries = bench.books.ledger.lock().acks().len();
    let present = workload::present(&remote.on_its_host("pgherd-bench-audit"), SQL_LIMIT).await;
    site.ground.network.heal();
    near.iter().for_each(|node| site.boot(node));
    let finding = {
        let ledger = bench.books.ledger.lock();
        let missing = ledger.missing(entries, &present.context("the standby far away")?);
        let acks = &ledger.acks()[..entries];
        let last = acks.iter().map(|ack| ack.acked).max();
        let there = acks.iter().filter(|ack| !missing.contains(&ack.id));
        let newest = there.map(|ack| ack.acked).max();
        let seconds = last
            .zip(newest)
            .map_or(0.0, |(last, newest)| last.saturating_sub(newest).as_secs_f64());
        Finding::Lacks { writes: missing.len(), seconds: rounded(seconds) }
    };
    bench.until_whole().await?;
    Ok(finding)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_result_is_read_back_as_it_was_written() {
        let case = Case { architecture: Architecture::Patroni, part: Part::Mode(Mode::Strict) };
        let latency = Finding::Latency { p50_ms: 1.5, p99_ms: 3.0, n: 10 };
        let lacks = Finding::Lacks { writes: 2, seconds: 0.02 };
        let remote = Case { part: Part::Remote, ..case };
        for (case, finding) in [(case, latency), (remote, lacks)] {
            let outcome = Outcome { case, delay_ms: 20, finding };
            let text = serde_json::to_string(&outcome).expect("it can be written");
            assert_eq!(
                serde_json::from_str::<Outcome>(&text).expect("and read"),
                outcome,
                "{text}"
            );
        }
    }
}
