//! `pgherd-bench calm`: a cluster under its writers on a loaded machine, on hosts whose network may
//! lose packets and which may stall, where no failover may happen.

mod signs;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use lab::cluster::{FailoverMode, Settings, SynchronousMode};
use lab::load::Load;
use lab::network::{Effect, Rule};
use serde_json::{Value, json};
use tokio::time::{Instant, MissedTickBehavior};

use crate::books::{Audit, Paces};
use crate::stage::{self, Stage};
use crate::{Scratch, demo, hosts, say};
use signs::{Counts, Intervals, Signs};

/// Who writes straight to a member has so many times the pause of who writes through the proxy.
const DIRECT_TIMES: u32 = 5;
/// How often it says how far it is.
const TELL_PERIOD: Duration = Duration::from_secs(60);
/// How often the members' metrics are read.
const LOOK_PERIOD: Duration = Duration::from_secs(1);
/// Between two stalls, each of the next member.
const STALL_PERIOD: Duration = Duration::from_secs(3);
/// A gap that touches the end is one that goes on: how long the last answer may be late.
const SETTLE: Duration = Duration::from_secs(2);

/// Options of `calm`.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// How long
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..=100_000))]
    minutes: u64,
    /// Busy processes for each processor
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u16).range(0..=100))]
    load: u16,
    /// How many of a hundred packets between two members are lost
    #[arg(long, value_name = "PERCENT", default_value_t = 0,
          value_parser = clap::value_parser!(u8).range(0..=100))]
    loss: u8,
    /// Every few seconds the next member's host stands still for so long
    #[arg(long, value_name = "MILLISECONDS", default_value_t = 0,
          value_parser = clap::value_parser!(u64).range(0..=60_000))]
    stall_ms: u64,
    /// Between two inserts through the proxy: the WAL stream is silent in between
    #[arg(long, value_name = "MILLISECONDS", default_value_t = 10,
          value_parser = clap::value_parser!(u64).range(1..=60_000))]
    pace_ms: u64,
    /// What starts an election: lease, fenced (default: what the program does by itself)
    #[arg(long, value_name = "MODE")]
    failover_mode: Option<FailoverMode>,
    /// The leader's lease; `loop_wait` and `retry_timeout` fit it
    #[arg(long, value_name = "SECONDS", default_value_t = 10,
          value_parser = clap::value_parser!(u64).range(5..=600))]
    ttl: u64,
    /// Keep everything in this directory (default: a temporary one, kept only if it failed)
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// The program to measure (default: the one beside this one)
    #[arg(long, value_name = "FILE")]
    pgherd: Option<PathBuf>,
}

/// Runs it, and prints the figures; `false` if anything was handed over or lost.
///
/// # Errors
/// The cluster could not be started, disturbed, written to, or ended.
pub(crate) async fn run(options: &Options) -> anyhow::Result<bool> {
    hosts::possible().context("this needs hosts with a network of their own")?;
    let program = demo::program(options.pgherd.as_ref())?;
    let scratch = match options.dir {
        Some(_) => None,
        None => Some(Scratch::new("calm")?),
    };
    let directory = match (&options.dir, &scratch) {
        (Some(directory), _) => directory.clone(),
        (None, scratch) => scratch.as_ref().map(|s| s.0.join("calm")).unwrap_or_default(),
    };
    let figures = Box::pin(lasted(options, &program, &directory)).await;
    let good = figures.as_ref().is_ok_and(is_good);
    if let Some(scratch) = scratch.filter(|_| !good) {
        say(&format!("everything is kept in {}", scratch.keep().display()));
    }
    println!("{}", figures?);
    Ok(good)
}

fn is_good(figures: &Value) -> bool {
    ["failovers", "lost_acknowledged", "interleaved"].iter().all(|key| figures[key] == 0)
}

/// From a whole cluster to the figures.
async fn lasted(options: &Options, program: &Path, directory: &Path) -> anyhow::Result<Value> {
    let settings = Settings {
        members: 3,
        synchronous_mode: SynchronousMode::Quorum,
        failover_mode: options.failover_mode,
        ttl: options.ttl,
    };
    let plan = stage::plan(program, directory.to_owned(), settings, false)?;
    let pace = Duration::from_millis(options.pace_ms);
    let paces = Paces { entry: pace, direct: pace * DIRECT_TIMES };
    let mut stage = Box::pin(Stage::start(&plan, paces, 0)).await?;
    let before = signs::counts(&stage.cluster);
    let mut intervals = Intervals::default();
    intervals.look(&stage.cluster).await;
    let from = stage.books.now();
    let load = Load::start(usize::from(options.load))?;
    if options.loss > 0 {
        let effect = Effect::Lose { percent: options.loss };
        stage.cluster.ground.network.apply(Rule::among(stage.cluster.members.len(), effect));
    }
    let stalls = Box::pin(disturbed(options, &stage, from, &mut intervals)).await;
    drop(load);
    stage.cluster.heal()?;
    let stalls = stalls?;
    intervals.look(&stage.cluster).await;
    tokio::time::sleep(SETTLE).await;
    let (gap, audit) = (stage.books.longest_gap(from), stage.audit(&[]).await?);
    let signs = Signs { counts: signs::counts(&stage.cluster).since(&before), intervals };
    let timelines = stage.books.ledger.lock().acks().iter().map(|ack| ack.timeline).collect();
    Ok(figures(options, &timelines, gap, &audit, stalls, &signs))
}

/// Lets it last; how often a host stalled.
async fn disturbed(
    options: &Options,
    stage: &Stage,
    from: Duration,
    intervals: &mut Intervals,
) -> anyhow::Result<u64> {
    let mut stalls = 0;
    let length = Duration::from_millis(options.stall_ms);
    tokio::select! {
        () = watched(options, stage, from, intervals) => Ok(stalls),
        Err(error) = stalled(stage, length, &mut stalls) => Err(error),
    }
}

/// Stalls one host after the other, for ever.
async fn stalled(stage: &Stage, length: Duration, stalls: &mut u64) -> anyhow::Result<()> {
    if length.is_zero() {
        return std::future::pending().await;
    }
    for member in stage.cluster.members.iter().cycle() {
        tokio::time::sleep(STALL_PERIOD).await;
        member.stall(length).await?;
        *stalls += 1;
    }
    Ok(())
}

/// Watches as long as it is to last, and tells how far it is.
async fn watched(options: &Options, stage: &Stage, from: Duration, intervals: &mut Intervals) {
    let end = Instant::now() + Duration::from_secs(options.minutes * 60);
    let mut tell = tokio::time::interval(TELL_PERIOD);
    let mut look = tokio::time::interval(LOOK_PERIOD);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = tokio::time::sleep_until(end) => return,
            _ = look.tick() => intervals.look(&stage.cluster).await,
            _ = tell.tick() => {
                let (gap, beats) = (stage.books.longest_gap(from), intervals.longest());
                let left = end.saturating_duration_since(Instant::now()).as_secs();
                let longest = format!("longest gap {gap:.3} s, between beats {beats:.3} s");
                say(&format!("{longest}; {left} s left"));
            }
        }
    }
}

fn figures(
    options: &Options,
    timelines: &BTreeSet<u32>,
    gap: f64,
    audit: &Audit,
    stalls: u64,
    signs: &Signs,
) -> Value {
    let Counts(members) = &signs.counts;
    json!({
        "minutes": options.minutes,
        "load": options.load,
        "pace_ms": options.pace_ms,
        "loss_percent": options.loss,
        "failover_mode": options.failover_mode.map(FailoverMode::word),
        "ttl": options.ttl,
        "failovers": timelines.len().saturating_sub(1),
        "longest_gap_s": gap,
        "lost_acknowledged": audit.missing.len(),
        "interleaved": audit.interleaved,
        "stalls": {"n": stalls, "ms": options.stall_ms},
        "signs": members,
        "intervals": signs.intervals.object(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Command {
        #[command(flatten)]
        options: Options,
    }

    fn of(timelines: &[u32], missing: &[i64]) -> Value {
        let Command { options } = Command::parse_from(["calm", "--loss", "5"]);
        let timelines = timelines.iter().copied().collect();
        let missing = missing.iter().copied().collect();
        let audit = Audit { missing, ..Audit::default() };
        let signs = Signs { counts: Counts::default(), intervals: Intervals::default() };
        figures(&options, &timelines, 0.1, &audit, 0, &signs)
    }

    #[test]
    fn each_new_timeline_is_a_failover() {
        let object = of(&[3, 4], &[]);
        assert_eq!(object["failovers"], 1);
        assert!(!is_good(&object));
        let quiet = of(&[3], &[]);
        assert_eq!((&quiet["failovers"], &quiet["loss_percent"]), (&json!(0), &json!(5)));
        assert!(is_good(&quiet));
    }

    #[test]
    fn a_lost_row_is_not_good() {
        let object = of(&[3], &[7]);
        assert_eq!(object["lost_acknowledged"], 1);
        assert!(!is_good(&object));
    }
}
