//! Whole architectures beside each other, under the same faults, writers and rules: what the
//! figures of `docs/benchmarks.md` about others come from.

mod availability;
mod chart;
mod compare;
mod conditions;
mod cost;
mod data;
mod failover;
mod faults;
mod herd;
mod kinds;
mod progress;
mod report;
mod response;
mod results;
mod site;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use clap::Parser;

use self::faults::Bench;
use self::kinds::{Architecture, Experiment, Fault, Mode, Shape};
use self::progress::Progress;
use self::results::Results;
use self::site::{Programs, Site};
use crate::{Scratch, demo, say};

/// When an operator begins, after a fault: an assumption.
const OPERATOR: Duration = Duration::from_secs(60);
/// The same with `--quick`, which has no time for more.
const QUICK_OPERATOR: Duration = Duration::from_secs(10);

/// What to measure.
#[derive(Debug, Parser)]
pub(crate) struct Options {
    /// Failover alone: three faults, three runs, default settings
    #[arg(long)]
    quick: bool,
    /// Only these experiments: failover, availability, response_time, cost, data
    #[arg(long, value_name = "NAME", value_delimiter = ',', value_parser = parse::<Experiment>)]
    only: Vec<Experiment>,
    /// Only these architectures
    #[arg(long, value_name = "NAME", value_delimiter = ',', value_parser = parse::<Architecture>)]
    architecture: Vec<Architecture>,
    /// Only these faults
    #[arg(long, value_name = "NAME", value_delimiter = ',', value_parser = parse::<Fault>)]
    fault: Vec<Fault>,
    /// Only this mode of replication
    #[arg(long, value_parser = parse::<Mode>)]
    mode: Option<Mode>,
    /// Runs of each case of failover and response_time
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=100))]
    runs: Option<u16>,
    /// When an operator begins, in seconds after a fault
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(0..=600))]
    operator: Option<u64>,
    /// Of the schedule of faults
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// How long each architecture operates under that schedule
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..=10_000))]
    minutes: u64,
    /// Mean time between its faults, in seconds
    #[arg(long, default_value_t = 300, value_parser = clap::value_parser!(u64).range(60..=86_400))]
    mean: u64,
    /// Go on where an earlier run was interrupted
    #[arg(long)]
    resume: bool,
    /// Show what has changed since the results in this file
    #[arg(long, value_name = "OLD.json")]
    compare: Option<PathBuf>,
    /// Where the report and the results are written
    #[arg(long, default_value = "target/bench")]
    output: PathBuf,
    /// The document whose tables are replaced, between its marks, with the charts beside it
    #[arg(long, value_name = "FILE")]
    write: Option<PathBuf>,
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
    fn experiments(&self) -> Vec<Experiment> {
        let wanted = |one: &Experiment| match self.only.is_empty() {
            true => !self.quick || *one == Experiment::Failover,
            false => self.only.contains(one),
        };
        Experiment::ALL.into_iter().filter(wanted).collect()
    }

    fn architectures(&self) -> Vec<Architecture> {
        let wanted = |one: &Architecture| match self.architecture.is_empty() {
            true => !self.quick || one.is_default(),
            false => self.architecture.contains(one),
        };
        Architecture::ALL.into_iter().filter(wanted).collect()
    }

    fn modes(&self, architecture: Architecture) -> Vec<Mode> {
        let wanted = |one: &Mode| match self.mode {
            None => !self.quick || *one == architecture.usual_mode(),
            Some(mode) => mode == *one,
        };
        architecture.modes().iter().copied().filter(wanted).collect()
    }

    fn operator(&self) -> Duration {
        let usual = if self.quick { QUICK_OPERATOR } else { OPERATOR };
        self.operator.map_or(usual, Duration::from_secs)
    }

    /// What is not done, for whoever thinks that it was.
    fn left_out(&self) -> Vec<&'static str> {
        let mut left_out = vec![];
        if self.quick {
            left_out.push(
                "the other mode of replication than each architecture's manual has, the tightest \
                 settings of Patroni, and the faults host-frozen, network-cut and disk-full \
                 (--quick)",
            );
            left_out.push("every experiment but failover (--quick)");
        }
        left_out
    }
}

/// A run under way.
struct Run<'a> {
    options: &'a Options,
    programs: Programs,
    results: Results,
    progress: Progress,
}

impl Run<'_> {
    fn scratch(&self) -> anyhow::Result<Scratch> {
        Scratch::new("field")
    }

    /// A site of this shape.
    ///
    /// # Errors
    /// It does not come up.
    async fn site(&self, shape: Shape, scratch: &Scratch) -> anyhow::Result<Site> {
        self.progress.tell(&format!("{}: starting", shape.title()));
        Site::start(shape, &self.programs, &scratch.0).await
    }

    /// The same under its writers.
    ///
    /// # Errors
    /// It does not come up.
    async fn bench(&self, shape: Shape, scratch: &Scratch) -> anyhow::Result<Bench> {
        Bench::new(self.site(shape, scratch).await?, self.options.operator()).await
    }

    /// What was to be measured of a site is not.
    fn given_up(&self, what: &str, error: &anyhow::Error) {
        self.progress.tell(&format!("given up: {what}: {error:#}"));
    }
}

/// Measures, and writes what was measured after each case.
///
/// # Errors
/// Something is missing, or the results cannot be written.
pub(crate) async fn run(options: &Options) -> anyhow::Result<bool> {
    let patroni = std::path::absolute(&options.patroni).context("the path of Patroni")?;
    let programs = Programs { pgherd: demo::program(options.pgherd.as_ref())?, patroni };
    let old = options.compare.as_ref().map(|path| Results::read(path)).transpose()?;
    let conditions = conditions::conditions(&programs, options.operator());
    let results = Results::open(&options.output, options.resume, conditions)?;
    let expected = options.experiments().iter().map(|one| expected(options, &results, *one)).sum();
    let mut run = Run { options, programs, results, progress: Progress::new(expected) };
    for what in options.left_out() {
        say(&format!("left out: {what}"));
    }
    let mut complete = true;
    for experiment in options.experiments() {
        complete &= match experiment {
            Experiment::Failover => Box::pin(failover::measure(&mut run)).await?,
            Experiment::Availability => Box::pin(availability::measure(&mut run)).await?,
            Experiment::ResponseTime => Box::pin(response::measure(&mut run)).await?,
            Experiment::Cost => {
                let clusters = Box::pin(cost::measure(&mut run)).await?;
                Box::pin(herd::measure(&mut run)).await? && clusters
            }
            Experiment::Data => Box::pin(data::measure(&mut run)).await?,
        };
    }
    if let Some(old) = old {
        say(&compare::table(&old, run.results.failover()));
    }
    if let Some(document) = &options.write {
        run.results.write(document)?;
    }
    say(&format!("the report is {}", run.results.report().display()));
    println!("{}", serde_json::to_string(&run.results.summary())?);
    Ok(complete)
}

/// About how long it takes from now on.
fn expected(options: &Options, results: &Results, experiment: Experiment) -> Duration {
    match experiment {
        Experiment::Failover => failover::expected(options, &failover::todo(options, results)),
        Experiment::Availability => availability::expected(&availability::todo(options, results)),
        Experiment::ResponseTime => response::expected(&response::todo(options, results)),
        Experiment::Cost => {
            cost::expected(&cost::todo(options, results)) + herd::expected(&herd::todo(results))
        }
        Experiment::Data => data::expected(&data::todo(options, results)),
    }
}

/// To three decimals: no clock here is better.
fn rounded(value: f64) -> f64 {
    (value * 1000.0).round() / 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn experiments_and_architectures_are_chosen_by_their_names() {
        let options = |arguments: &[&str]| {
            Options::try_parse_from([&["field"], arguments].concat()).expect("they are options")
        };
        assert_eq!(options(&["--quick"]).experiments(), [Experiment::Failover]);
        assert_eq!(options(&[]).experiments(), Experiment::ALL);
        let named = options(&["--only", "data,failover", "--architecture", "patroni-tight"]);
        assert_eq!(named.experiments(), [Experiment::Failover, Experiment::Data]);
        assert_eq!(named.architectures(), [Architecture::PatroniTight]);
        assert_eq!(options(&["--quick"]).modes(Architecture::Patroni), [Mode::Async]);
        assert_eq!(options(&["--quick"]).modes(Architecture::PgherdLease), [Mode::Quorum]);
        assert!(Options::try_parse_from(["field", "--only", "weather"]).is_err());
    }
}
