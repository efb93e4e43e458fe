//! Whole architectures beside each other, under the same faults, writers and rules: what the
//! figures of `docs/benchmarks.md` about others come from.

mod chart;
mod conditions;
mod failover;
mod kinds;
mod report;
mod results;
mod site;

use std::path::PathBuf;

use anyhow::Context;
use clap::Parser;

use self::failover::{Bench, Case};
use self::kinds::{Architecture, Fault, Mode};
use self::results::Results;
use self::site::{Programs, Site};
use crate::{Scratch, demo, say};

/// Runs of each case.
const RUNS: u16 = 5;
/// The same with `--quick`.
const QUICK_RUNS: u16 = 3;
/// The faults of `--quick`.
const QUICK_FAULTS: [Fault; 3] = [Fault::PostmasterKilled, Fault::HostLost, Fault::Switchover];

/// What to measure.
#[derive(Debug, Parser)]
pub(crate) struct Options {
    /// Failover alone: three faults, three runs, default settings
    #[arg(long)]
    quick: bool,
    /// Only these architectures
    #[arg(long, value_delimiter = ',', value_parser = parse::<Architecture>)]
    architecture: Vec<Architecture>,
    /// Only these faults
    #[arg(long, value_delimiter = ',', value_parser = parse::<Fault>)]
    fault: Vec<Fault>,
    /// Only this mode of replication
    #[arg(long, value_parser = parse::<Mode>)]
    mode: Option<Mode>,
    /// Runs of each case
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=100))]
    runs: Option<u16>,
    /// Go on where an earlier run was interrupted
    #[arg(long)]
    resume: bool,
    /// Where the report and the results are written
    #[arg(long, default_value = "target/bench")]
    output: PathBuf,
    /// The program `pgherd`; the one beside this one if it is not given
    #[arg(long)]
    pgherd: Option<PathBuf>,
    /// The directory of Patroni's programs
    #[arg(long, default_value = "target/tools/patroni/bin")]
    patroni: PathBuf,
}

/// One of a list, by its name in files.
fn parse<T: serde::de::DeserializeOwned>(name: &str) -> Result<T, String> {
    let value = serde_json::Value::String(name.to_owned());
    serde_json::from_value(value).map_err(|error| error.to_string())
}

impl Options {
    /// What is to be measured, in order: a site is made once for each architecture and mode.
    fn cases(&self) -> Vec<Case> {
        let wanted = |one| self.architecture.is_empty() || self.architecture.contains(&one);
        let faults = match self.fault.is_empty() {
            true if self.quick => QUICK_FAULTS.to_vec(),
            true => Fault::ALL.to_vec(),
            false => self.fault.clone(),
        };
        let runs = self.runs.unwrap_or(if self.quick { QUICK_RUNS } else { RUNS });
        let mut cases = Vec::new();
        for architecture in Architecture::ALL {
            let left_out = match architecture {
                Architecture::PatroniTight => self.quick,
                // It has not been run yet, and wants the distribution's PostgreSQL.
                Architecture::Repmgr => self.architecture.is_empty(),
                _ => false,
            };
            if left_out || !wanted(architecture) {
                continue;
            }
            let modes = architecture.modes().iter().copied();
            for mode in modes.filter(|mode| self.mode.is_none_or(|wanted| wanted == *mode)) {
                for run in 1..=runs {
                    let case = |fault| Case { architecture, mode, fault, run };
                    cases.extend(faults.iter().copied().map(case));
                }
            }
        }
        cases
    }
}

/// Measures, and writes what was measured after each case.
///
/// # Errors
/// Something is missing, or a site cannot be had.
pub(crate) async fn run(options: &Options) -> anyhow::Result<bool> {
    let patroni = std::path::absolute(&options.patroni).context("the path of Patroni")?;
    let programs = Programs { pgherd: demo::program(options.pgherd.as_ref())?, patroni };
    let mut results = Results::open(&options.output, options.resume)?;
    results.note_conditions(conditions::conditions(&programs));
    let todo = options.cases().into_iter().filter(|case| !results.has(case)).collect::<Vec<_>>();
    say(&format!("{} cases", todo.len()));
    if options.architecture.is_empty() {
        say("left out: repmgr, which is only tried by name so far (--architecture repmgr)");
    }
    if options.quick {
        say("left out: the tightest settings of Patroni, and every fault but three (--quick)");
    }
    let mut complete = true;
    for (number, site) in todo.chunk_by(same_site).enumerate() {
        say(&format!("site {}: {}", number + 1, site[0].architecture.title()));
        if let Err(error) = measure(&programs, site, &mut results).await {
            complete = false;
            say(&format!("  given up: {error:#}"));
        }
    }
    println!("{}", serde_json::to_string(&results.summary())?);
    Ok(complete)
}

fn same_site(one: &Case, other: &Case) -> bool {
    (one.architecture, one.mode) == (other.architecture, other.mode)
}

/// All cases of one site.
async fn measure(programs: &Programs, cases: &[Case], results: &mut Results) -> anyhow::Result<()> {
    let Some(Case { architecture, mode, .. }) = cases.first().copied() else { return Ok(()) };
    let scratch = Scratch::new("field")?;
    let site = Site::start(architecture, mode, programs, &scratch.0).await?;
    let mut bench = Bench::new(site).await?;
    for case in cases {
        let outcome = bench.case(*case).await.with_context(|| case.fault.title())?;
        say(&format!(
            "  {:<18} {:<7} gap {:>8.3} s, healthy {:>8.3} s, lost {}, by two {}",
            case.fault.title(),
            format!("{:?}", case.mode).to_lowercase(),
            outcome.gap_s,
            outcome.healthy_s,
            outcome.lost,
            outcome.interleaved
        ));
        results.add_failover(outcome)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(arguments: &[&str]) -> Options {
        Options::try_parse_from([&["field"], arguments].concat()).expect("they are options")
    }

    #[test]
    fn a_quick_run_is_failover_with_default_settings() {
        let cases = options(&["--quick"]).cases();
        assert!(cases.iter().all(|case| QUICK_FAULTS.contains(&case.fault) && case.run <= 3));
        assert!(cases.iter().all(|case| case.architecture != Architecture::PatroniTight));
        assert!(cases.iter().any(|case| case.architecture == Architecture::Patroni));
    }

    #[test]
    fn what_is_named_is_what_is_measured() {
        let arguments = ["--architecture", "single,pgherd-fenced", "--fault", "host-lost"];
        let cases = options(&[&arguments[..], &["--runs", "2"]].concat()).cases();
        // One has no standbys to wait for.
        assert_eq!(cases.len(), 2 + 2 * 2);
        assert!(Options::try_parse_from(["field", "--fault", "rain"]).is_err());
    }
}
