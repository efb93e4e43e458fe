//! The second experiment: an hour of operation with the same faults for everybody, and how much of
//! it was served.

use std::time::Duration;

use anyhow::Context;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::faults::PACES;
use super::kinds::{Architecture, Fault, Mode, Shape};
use super::results::Results;
use super::{Options, Run, rounded};
use crate::dice::Dice;

/// No fault begins sooner than this after the one before it, as far as the schedule goes.
const APART_MIN: Duration = Duration::from_secs(60);
/// How many faults a year has, for the extrapolation: an assumption.
pub(super) const FAULTS_A_YEAR: f64 = 12.0;
/// Seconds of a year.
const YEAR_S: f64 = 365.25 * 24.0 * 3600.0;
/// Of a hundred faults, how many are of which kind: an assumption, of operators who plan more than
/// breaks.
const KINDS: [(u64, Fault); 6] = [
    (25, Fault::PostmasterKilled),
    (20, Fault::HostLost),
    (10, Fault::HostFrozen),
    (15, Fault::NetworkCut),
    (5, Fault::DiskFull),
    (25, Fault::Switchover),
];

/// One fault of the schedule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Planned {
    /// After the beginning.
    at: Duration,
    fault: Fault,
}

/// The faults of an operation of that length: the same for the same seed. The times between two
/// beginnings are exponential, with that mean, but not shorter than [`APART_MIN`].
fn schedule(seed: u64, length: Duration, mean: Duration) -> Vec<Planned> {
    let mut dice = Dice::new(seed, 0);
    let mut planned = Vec::new();
    let mut at = Duration::ZERO;
    loop {
        at += apart(&mut dice, mean).max(APART_MIN);
        if at >= length {
            return planned;
        }
        planned.push(Planned { at, fault: kind(dice.between(0, 99)) });
    }
}

fn apart(dice: &mut Dice, mean: Duration) -> Duration {
    /// Steps of the uniform number; its logarithm is that of none of them 0.
    const STEPS: u32 = 1_000_000;
    let drawn = u32::try_from(dice.between(1, STEPS.into())).unwrap_or(1);
    mean.mul_f64(-(f64::from(drawn) / f64::from(STEPS)).ln())
}

/// The kind for a number below a hundred.
fn kind(mut number: u64) -> Fault {
    for (percent, fault) in KINDS {
        if number < percent {
            return fault;
        }
        number -= percent;
    }
    Fault::Switchover
}

/// What is measured once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Case {
    pub(crate) architecture: Architecture,
    pub(crate) mode: Mode,
    pub(crate) seed: u64,
    pub(crate) minutes: u64,
    /// Between two faults.
    pub(crate) mean_s: u64,
}

impl Case {
    fn length(&self) -> Duration {
        Duration::from_secs(self.minutes * 60)
    }

    fn schedule(&self) -> Vec<Planned> {
        schedule(self.seed, self.length(), Duration::from_secs(self.mean_s))
    }
}

/// How it went.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Outcome {
    #[serde(flatten)]
    pub(crate) case: Case,
    /// What happened, in order.
    pub(crate) faults: Vec<Fault>,
    /// Seconds in which a write was acknowledged, and all.
    pub(crate) seconds_served: u64,
    pub(crate) seconds: u64,
    /// Of the requests that were due, one for each [`PACES`] of the entry, those that were
    /// answered within a client's second, and all.
    pub(crate) requests_served: u64,
    pub(crate) requests: u64,
    /// How much later than planned a fault began at most: the one before was not over.
    pub(crate) latest_s: f64,
    /// Acknowledged writes that are not there.
    pub(crate) lost: usize,
    /// Writes that were acknowledged by a server after another one had taken its place.
    pub(crate) interleaved: usize,
}

impl Outcome {
    /// Served seconds in percent.
    pub(crate) fn seconds_percent(&self) -> f64 {
        percent(self.seconds_served, self.seconds)
    }

    /// Served requests in percent.
    pub(crate) fn requests_percent(&self) -> f64 {
        percent(self.requests_served, self.requests)
    }

    /// Seconds that are not served in a year with [`FAULTS_A_YEAR`] faults as these.
    pub(crate) fn unserved_a_year_s(&self) -> f64 {
        let unserved = self.seconds.saturating_sub(self.seconds_served) as f64;
        let of_one = unserved / (self.faults.len().max(1) as f64);
        of_one * FAULTS_A_YEAR
    }

    /// Served seconds of such a year in percent.
    pub(crate) fn year_percent(&self) -> f64 {
        100.0 * (1.0 - self.unserved_a_year_s() / YEAR_S)
    }
}

fn percent(part: u64, all: u64) -> f64 {
    if all == 0 { 0.0 } else { 100.0 * part as f64 / all as f64 }
}

/// What of it is not measured yet.
pub(super) fn todo(options: &Options, results: &Results) -> Vec<Case> {
    let (seed, minutes, mean_s) = (options.seed, options.minutes, options.mean);
    let of = |architecture| {
        let modes = options.modes(architecture).into_iter();
        modes.map(move |mode| Case { architecture, mode, seed, minutes, mean_s })
    };
    let all = options.architectures().into_iter().flat_map(of);
    all.filter(|case| !results.has_hour(case)).collect()
}

/// About how long these take.
pub(super) fn expected(cases: &[Case]) -> Duration {
    cases.iter().map(Case::length).sum()
}

/// Measures them; `false` if a site was given up.
///
/// # Errors
/// The results cannot be written.
pub(super) async fn measure(run: &mut Run<'_>) -> anyhow::Result<bool> {
    let mut complete = true;
    for case in todo(run.options, &run.results) {
        let shape = Shape::new(case.architecture, case.mode);
        let outcome = of_site(run, shape, case).await;
        run.progress.done(case.length());
        match outcome {
            Ok(outcome) => {
                run.progress.tell(&format!(
                    "{}, {} min: {:.2} % of seconds, {:.2} % of requests, lost {}, by two {}",
                    shape.title(),
                    case.minutes,
                    outcome.seconds_percent(),
                    outcome.requests_percent(),
                    outcome.lost,
                    outcome.interleaved
                ));
                run.results.add_hour(outcome)?;
            }
            Err(error) => {
                complete = false;
                run.given_up(&shape.title(), &error);
            }
        }
    }
    Ok(complete)
}

async fn of_site(run: &mut Run<'_>, shape: Shape, case: Case) -> anyhow::Result<Outcome> {
    let scratch = run.scratch()?;
    let mut bench = run.bench(shape, &scratch).await?;
    let planned = case.schedule();
    let (from, began) = (bench.books.now(), Instant::now());
    let mut latest = Duration::ZERO;
    for Planned { at, fault } in &planned {
        tokio::time::sleep_until(began + *at).await;
        latest = latest.max(began.elapsed().saturating_sub(*at));
        run.progress.tell(&format!("{}: {}", shape.title(), fault.title()));
        bench.fault(*fault).await.with_context(|| fault.title())?;
    }
    tokio::time::sleep_until(began + case.length()).await;
    let (seconds_served, seconds) = bench.books.seconds_served(from);
    let (requests_served, requests) = bench.books.requests_served(from, PACES.entry);
    let audit = bench.books.audit(&bench.site.entry("pgherd-bench-audit"), &[]).await?;
    Ok(Outcome {
        case,
        faults: planned.iter().map(|planned| planned.fault).collect(),
        seconds_served,
        seconds,
        requests_served,
        requests,
        latest_s: rounded(latest.as_secs_f64()),
        lost: audit.missing.len(),
        interleaved: audit.interleaved,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);
    const MEAN: Duration = Duration::from_secs(300);

    #[test]
    fn a_seed_has_the_same_faults_again_and_another_one_others() {
        let planned = schedule(1, HOUR, MEAN);
        assert_eq!(planned, schedule(1, HOUR, MEAN));
        assert_ne!(planned, schedule(2, HOUR, MEAN));
        assert!(planned.iter().all(|planned| planned.at < HOUR));
        assert!(planned.windows(2).all(|two| two[1].at >= two[0].at + APART_MIN));
    }

    #[test]
    fn faults_come_as_often_as_the_mean_says_and_of_every_kind() {
        let planned = schedule(7, HOUR * 1000, MEAN);
        // Those that are moved apart make it a little less.
        assert!((9_500..12_500).contains(&planned.len()), "{}", planned.len());
        for (percent, fault) in KINDS {
            let count = planned.iter().filter(|planned| planned.fault == fault).count();
            let expected = planned.len() * usize::try_from(percent).expect("small") / 100;
            assert!(count.abs_diff(expected) < planned.len() / 50, "{fault:?}: {count}");
        }
        assert_eq!(KINDS.iter().map(|(percent, _)| percent).sum::<u64>(), 100);
    }

    #[test]
    fn a_year_has_the_downtime_of_its_faults() {
        let case = Case {
            architecture: Architecture::Single,
            mode: Mode::Async,
            seed: 1,
            minutes: 60,
            mean_s: 300,
        };
        let outcome = Outcome {
            case,
            faults: vec![Fault::HostLost; 10],
            seconds_served: 3000,
            seconds: 3600,
            requests_served: 90,
            requests: 100,
            latest_s: 0.0,
            lost: 0,
            interleaved: 0,
        };
        assert!((outcome.seconds_percent() - 83.333).abs() < 0.01);
        assert!((outcome.requests_percent() - 90.0).abs() < 0.01);
        // 12 faults of 60 s.
        assert!((outcome.unserved_a_year_s() - 720.0).abs() < 0.1);
        assert!((outcome.year_percent() - 99.99772).abs() < 0.0001);
    }
}
