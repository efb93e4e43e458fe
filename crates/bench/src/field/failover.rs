//! The first experiment: how long until the next acknowledged write, and until all is well again;
//! and what was lost, or acknowledged by two servers at once.

use std::time::Duration;

use anyhow::Context;
use serde::{Deserialize, Serialize};

use super::faults::Bench;
use super::kinds::{Architecture, Fault, Mode, Shape};
use super::results::Results;
use super::{Options, Run, rounded};
use crate::say;

/// Runs of each case.
const RUNS: u16 = 5;
/// The same with `--quick`.
const QUICK_RUNS: u16 = 3;
/// The faults of `--quick`.
const QUICK_FAULTS: [Fault; 3] = [Fault::PostmasterKilled, Fault::HostLost, Fault::Switchover];
/// About how long a site takes until it is whole.
const START: Duration = Duration::from_secs(15);
/// How long the writers run before a fault.
const CALM: Duration = Duration::from_secs(2);

/// What is measured once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct Case {
    pub(crate) architecture: Architecture,
    pub(crate) mode: Mode,
    pub(crate) fault: Fault,
    /// From 1.
    pub(crate) run: u16,
}

impl Case {
    fn same_site(&self, other: &Case) -> bool {
        (self.architecture, self.mode) == (other.architecture, other.mode)
    }

    /// About how long it takes, for whoever waits.
    fn expected(&self, operator: Duration) -> Duration {
        let seconds = match (self.architecture, self.fault) {
            (Architecture::Patroni, Fault::Switchover) => 14,
            (_, Fault::Switchover) => 5,
            (Architecture::Single, _) => 6,
            (Architecture::Manual, _) => 10,
            (Architecture::Repmgr, _) => 65,
            (Architecture::Patroni, Fault::PostmasterKilled) => 16,
            (Architecture::Patroni, _) => 45,
            (Architecture::PatroniTight, _) => 30,
            (Architecture::PgherdLease, Fault::PostmasterKilled) => 8,
            (Architecture::PgherdLease, _) => 20,
            (Architecture::PgherdFenced, _) => 9,
        };
        let waits = self.architecture.needs_operator() && self.fault != Fault::Switchover;
        Duration::from_secs(seconds) + if waits { operator } else { Duration::ZERO }
    }
}

/// How it went.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Outcome {
    #[serde(flatten)]
    pub(crate) case: Case,
    /// The longest time without an acknowledged write, in seconds.
    pub(crate) gap_s: f64,
    /// From the fault until everything was as before it, in seconds.
    pub(crate) healthy_s: f64,
    /// Acknowledged writes that are not there.
    pub(crate) lost: usize,
    /// Writes that were acknowledged by a server after another one had taken its place.
    pub(crate) interleaved: usize,
    /// Whether an operator was needed.
    pub(crate) by_hand: bool,
}

/// What is to be measured, in order: a site is made once for each architecture and mode.
fn cases(options: &Options) -> Vec<Case> {
    let faults = match options.fault.is_empty() {
        true if options.quick => QUICK_FAULTS.to_vec(),
        true => Fault::ALL.to_vec(),
        false => options.fault.clone(),
    };
    let runs = options.runs.unwrap_or(if options.quick { QUICK_RUNS } else { RUNS });
    let mut cases = Vec::new();
    for architecture in options.architectures() {
        for mode in options.modes(architecture) {
            for run in 1..=runs {
                let case = |fault| Case { architecture, mode, fault, run };
                cases.extend(faults.iter().copied().map(case));
            }
        }
    }
    cases
}

/// What of it is not measured yet.
pub(super) fn todo(options: &Options, results: &Results) -> Vec<Case> {
    cases(options).into_iter().filter(|case| !results.has_case(case)).collect()
}

/// About how long these take.
pub(super) fn expected(options: &Options, cases: &[Case]) -> Duration {
    let sites = cases.chunk_by(Case::same_site).map(|_| START).sum::<Duration>();
    sites + cases.iter().map(|case| case.expected(options.operator())).sum::<Duration>()
}

/// Measures them; `false` if a site was given up.
///
/// # Errors
/// The results cannot be written.
pub(super) async fn measure(run: &mut Run<'_>) -> anyhow::Result<bool> {
    let todo = todo(run.options, &run.results);
    let mut complete = true;
    for cases in todo.chunk_by(Case::same_site) {
        let shape = Shape::new(cases[0].architecture, cases[0].mode);
        let left_after = run.progress.left_after(expected(run.options, cases));
        if let Err(error) = of_site(run, shape, cases).await {
            complete = false;
            run.given_up(&shape.title(), &error);
        }
        run.progress.left_is(left_after);
    }
    Ok(complete)
}

/// All cases of one site.
async fn of_site(run: &mut Run<'_>, shape: Shape, cases: &[Case]) -> anyhow::Result<()> {
    let scratch = run.scratch()?;
    let mut bench = run.bench(shape, &scratch).await?;
    for case in cases {
        let outcome = one(&mut bench, *case).await.with_context(|| case.fault.title())?;
        run.progress.done(case.expected(run.options.operator()));
        let text = format!(
            "{}, {}: gap {:.3} s, healthy {:.1} s, lost {}, by two {}",
            shape.title(),
            case.fault.title(),
            outcome.gap_s,
            outcome.healthy_s,
            outcome.lost,
            outcome.interleaved
        );
        run.progress.tell(&text);
        run.results.add_failover(outcome)?;
    }
    Ok(())
}

async fn one(bench: &mut Bench, case: Case) -> anyhow::Result<Outcome> {
    tokio::time::sleep(CALM).await;
    let endured = bench.fault(case.fault).await?;
    let gap_s = bench.books.longest_gap(endured.at);
    let audit = bench.books.audit(&bench.site.entry("pgherd-bench-audit"), &[]).await?;
    if let Some(first) = audit.first {
        say(&format!("two servers acknowledged: {first}"));
    }
    Ok(Outcome {
        case,
        gap_s,
        healthy_s: rounded(endured.healthy_after.as_secs_f64()),
        lost: audit.missing.len(),
        interleaved: audit.interleaved,
        by_hand: endured.by_hand,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    fn options(arguments: &[&str]) -> Options {
        Options::try_parse_from([&["field"], arguments].concat()).expect("they are options")
    }

    #[test]
    fn a_quick_run_has_three_faults_and_runs_with_default_settings() {
        let options = options(&["--quick"]);
        let cases = cases(&options);
        assert!(cases.iter().all(|case| QUICK_FAULTS.contains(&case.fault) && case.run <= 3));
        assert!(cases.iter().all(|case| case.architecture != Architecture::PatroniTight));
        assert!(cases.iter().any(|case| case.architecture == Architecture::Patroni));
        assert!(expected(&options, &cases) <= Duration::from_secs(20 * 60));
    }

    #[test]
    fn what_is_named_is_what_is_measured() {
        let arguments = ["--architecture", "single,pgherd-fenced", "--fault", "host-lost"];
        let cases = cases(&options(&[&arguments[..], &["--runs", "2"]].concat()));
        // One has no standbys to wait for.
        assert_eq!(cases.len(), 2 + 2 * 2);
        assert!(Options::try_parse_from(["field", "--fault", "rain"]).is_err());
    }
}
