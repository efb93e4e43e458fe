//! `pgherd-bench failover`: the drill's faults, again and again, and the floor before and after.

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::Context;
use lab::cluster::{FailoverMode, Settings, SynchronousMode};

use crate::demo::{self, Demo, Step};
use crate::floor::{self, Floors};
use crate::{Scratch, figures, hosts, journal, say};

/// The faults that are judged.
const FAULTS: [&str; 8] = [
    "postmaster-killed",
    "switchover",
    "switchover-with-frozen-member",
    "agent-killed-restarted",
    "host-lost",
    "host-frozen",
    "host-cut-off",
    "agent-killed-not-restarted",
];
/// Members of a cluster whose hosts have a network.
const MEMBERS: u16 = 3;
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
    /// Only these faults: the drill's, and host-cut-off
    #[arg(long, value_name = "FAULT", value_delimiter = ',', conflicts_with = "all")]
    only: Vec<String>,
    /// What starts an election: lease, fenced (default: what the program does by itself)
    #[arg(long, value_name = "MODE")]
    failover_mode: Option<FailoverMode>,
    /// The leader's lease; `loop_wait` and `retry_timeout` fit it
    #[arg(long, value_name = "SECONDS", default_value_t = 10,
          value_parser = clap::value_parser!(u64).range(5..=600))]
    ttl: u64,
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
    let wanted = Wanted::new(wanted);
    let lab = Lab { program, scratch: &scratch.0, options };
    lab.drill("drill", &wanted.of_the_drill, rounds, &mut measured).await?;
    if options.all {
        lab.drill("hung", &HUNG, HUNG_ROUNDS, &mut measured).await?;
    }
    // What was measured until then is told, whatever becomes of these.
    let hosts = lab.hosts(&wanted.on_hosts, rounds, &mut measured).await;
    if let Err(error) = &hosts {
        say(&format!("the hosts with a network failed: {error:#}"));
    }
    say("the floor again");
    floor::measure(&scratch.0.join("floor-after"), FLOOR_ROUNDS, &mut floors).await?;
    let phases = journal::phases(&measured.steps, &measured.entries);
    let object = figures::object(&measured.steps, &floors, &phases);
    if !options.json {
        print!("{}", figures::table(&object));
    }
    println!("{object}");
    Ok(hosts.is_ok() && figures::is_good(&object))
}

/// Where each fault is measured.
#[derive(Default)]
struct Wanted<'a> {
    /// In a demo.
    of_the_drill: Vec<&'a str>,
    /// On hosts that have a network.
    on_hosts: Vec<&'a str>,
}

impl<'a> Wanted<'a> {
    /// Faults of a whole host need such hosts; where there can be none, those that the drill has
    /// too are its own.
    fn new(wanted: Vec<&'a str>) -> Wanted<'a> {
        let (on_hosts, of_the_drill): (Vec<&str>, Vec<&str>) =
            wanted.into_iter().partition(|fault| hosts::FAULTS.contains(fault));
        if on_hosts.is_empty() {
            return Wanted { of_the_drill, on_hosts };
        }
        match hosts::possible() {
            Ok(()) => Wanted { of_the_drill, on_hosts },
            Err(error) => {
                say(&format!("host_cut_off_s is left out, other hosts are the demo's: {error}"));
                let on_loopback = on_hosts.into_iter().filter(|fault| *fault != "host-cut-off");
                let of_the_drill = of_the_drill.into_iter().chain(on_loopback).collect();
                Wanted { of_the_drill, on_hosts: Vec::new() }
            }
        }
    }
}

/// What the clusters of a measurement share.
struct Lab<'a> {
    program: PathBuf,
    scratch: &'a Path,
    options: &'a Options,
}

impl Lab<'_> {
    /// One demo under each fault, `rounds` times.
    async fn drill(
        &self,
        name: &str,
        faults: &[&str],
        rounds: u16,
        measured: &mut Measured,
    ) -> anyhow::Result<()> {
        let directory = self.scratch.join(name);
        let mut progress = Progress::new(faults, rounds);
        if progress.count == 0 {
            return Ok(());
        }
        say(&format!("the drill: {} faults, in {}", progress.count, directory.display()));
        let (only, rounds) = (faults.join(","), rounds.to_string());
        let ttl = self.options.ttl.to_string();
        let mut options =
            vec!["--drill", "--drill-only", &only, "--drill-rounds", &rounds, "--ttl", &ttl];
        if let Some(mode) = self.options.failover_mode {
            options.extend(["--failover-mode", mode.word()]);
        }
        let mut demo = Demo::start(&self.program, &directory, &options)?;
        demo.healthy().await?;
        while let Some(event) = demo.next().await? {
            if event["event"] != "step" {
                continue;
            }
            let step: Step = serde_json::from_value(event).context("a step of another shape")?;
            progress.tell(&step);
            measured.steps.push(step);
        }
        measured.entries.extend(journal::read(&directory));
        demo.end().await
    }

    /// One cluster on hosts that have a network, under each fault, `rounds` times.
    async fn hosts(
        &self,
        faults: &[&str],
        rounds: u16,
        measured: &mut Measured,
    ) -> anyhow::Result<()> {
        let mut progress = Progress::new(faults, rounds);
        if progress.count == 0 {
            return Ok(());
        }
        say(&format!("hosts with a network: {} faults", progress.count));
        let settings = Settings {
            members: MEMBERS,
            synchronous_mode: SynchronousMode::Quorum,
            failover_mode: self.options.failover_mode,
            ttl: self.options.ttl,
        };
        let directory = self.scratch.join("hosts");
        let tell = |step: Step| {
            progress.tell(&step);
            measured.steps.push(step);
        };
        Box::pin(hosts::measure(&self.program, &directory, settings, faults, rounds, tell)).await
    }
}

/// How far one cluster is.
struct Progress {
    begun: Instant,
    done: usize,
    count: usize,
}

impl Progress {
    fn new(faults: &[&str], rounds: u16) -> Progress {
        let count = faults.len() * usize::from(rounds);
        Progress { begun: Instant::now(), done: 0, count }
    }

    fn tell(&mut self, step: &Step) {
        self.done += 1;
        let left = self.count.saturating_sub(self.done) as f64;
        let left = self.begun.elapsed().as_secs_f64() / self.done as f64 * left;
        let outcome = match &step.skipped {
            Some(why) => format!("skipped: {why}"),
            None => format!("{:.3} s", step.longest_gap_seconds),
        };
        let note = step.note.as_ref().map(|note| format!(" ({note})")).unwrap_or_default();
        let (done, count, fault) = (self.done, self.count, &step.fault);
        say(&format!("{done}/{count} {fault}: {outcome}{note}; {left:.0} s left"));
    }
}
