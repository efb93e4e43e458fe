//! `pgherd-bench failover`: the drill's faults, again and again, and the floor before and after.

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::Context;

use crate::demo::{self, Demo, Step};
use crate::floor::{self, Floors};
use crate::{Scratch, figures, journal, say};

/// The faults that are judged.
const FAULTS: [&str; 7] = [
    "postmaster-killed",
    "switchover",
    "switchover-with-frozen-member",
    "agent-killed-restarted",
    "host-lost",
    "host-frozen",
    "agent-killed-not-restarted",
];
/// Those of a primary that is there and does not work. They run in a cluster of their own: each of
/// its data directories has a loop mount, which costs every commit time.
const HUNG: [&str; 4] = ["postmaster-stopped", "disk-hung", "connections-exhausted", "disk-full"];
/// How often each of those is tried.
const HUNG_ROUNDS: u16 = 3;
/// How often each fault is tried when there is little time.
const QUICK_ROUNDS: u16 = 3;
/// Rounds of the bare script before the drill, and as many after it.
const FLOOR_ROUNDS: u16 = 5;

/// Options of `failover`.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// How often each fault is tried
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u16).range(1..=1000))]
    rounds: u16,
    /// Three rounds only
    #[arg(long, conflicts_with = "rounds")]
    quick: bool,
    /// Hung and full primaries too, three rounds each (root: they need loop mounts)
    #[arg(long)]
    all: bool,
    /// Only these faults of the drill
    #[arg(long, value_name = "FAULT", value_delimiter = ',', conflicts_with = "all")]
    only: Vec<String>,
    /// No table before the object
    #[arg(long)]
    json: bool,
    /// The program to measure (default: the one beside this one)
    #[arg(long, value_name = "FILE")]
    pgherd: Option<PathBuf>,
}

/// What was measured.
#[derive(Default)]
struct Measured {
    steps: Vec<Step>,
    entries: Vec<journal::Entry>,
}

/// Measures, and prints the figures; `false` if something was lost, or a fault gave no figure.
///
/// # Errors
/// A cluster could not be started or ended.
pub(crate) async fn run(options: &Options) -> anyhow::Result<bool> {
    let program = demo::program(options.pgherd.as_ref())?;
    let rounds = if options.quick { QUICK_ROUNDS } else { options.rounds };
    let scratch = Scratch::new("failover")?;
    let mut floors = Floors::default();
    say("the floor: a bare script on three PostgreSQL instances");
    floor::measure(&scratch.0.join("floor-before"), FLOOR_ROUNDS, &mut floors).await?;
    let mut measured = Measured::default();
    let wanted: Vec<&str> = match options.only.as_slice() {
        [] => FAULTS.to_vec(),
        only => only.iter().map(String::as_str).collect(),
    };
    drill(&program, &scratch.0.join("drill"), &wanted, rounds, &mut measured).await?;
    if options.all {
        drill(&program, &scratch.0.join("hung"), &HUNG, HUNG_ROUNDS, &mut measured).await?;
    }
    say("the floor again");
    floor::measure(&scratch.0.join("floor-after"), FLOOR_ROUNDS, &mut floors).await?;
    let phases = journal::phases(&measured.steps, &measured.entries);
    let object = figures::object(&measured.steps, &floors, &phases);
    if !options.json {
        print!("{}", figures::table(&object));
    }
    println!("{object}");
    Ok(figures::is_good(&object))
}

/// One cluster under each fault, `rounds` times.
async fn drill(
    program: &Path,
    directory: &Path,
    faults: &[&str],
    rounds: u16,
    measured: &mut Measured,
) -> anyhow::Result<()> {
    let count = faults.len() * usize::from(rounds);
    say(&format!("the drill: {count} faults, in {}", directory.display()));
    let (only, rounds) = (faults.join(","), rounds.to_string());
    let options = ["--drill", "--drill-only", &only, "--drill-rounds", &rounds];
    let mut demo = Demo::start(program, directory, &options)?;
    demo.healthy().await?;
    let (begun, mut done) = (Instant::now(), 0);
    while let Some(event) = demo.next().await? {
        if event["event"] != "step" {
            continue;
        }
        let step: Step = serde_json::from_value(event).context("a step of another shape")?;
        done += 1;
        tell(&step, done, count, begun);
        measured.steps.push(step);
    }
    measured.entries.extend(journal::read(directory));
    demo.end().await
}

fn tell(step: &Step, done: usize, count: usize, begun: Instant) {
    let left = begun.elapsed().as_secs_f64() / done as f64 * count.saturating_sub(done) as f64;
    let outcome = match &step.skipped {
        Some(why) => format!("skipped: {why}"),
        None => format!("{:.3} s", step.longest_gap_seconds),
    };
    let note = step.note.as_ref().map(|note| format!(" ({note})")).unwrap_or_default();
    say(&format!("{done}/{count} {}: {outcome}{note}; {left:.0} s left", step.fault));
}
