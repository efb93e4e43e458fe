//! `pgherd-bench rounds`: random faults, one round after the other, in one cluster under writers
//! that never stop, and after each round the question whether anything acknowledged is gone, or
//! anybody acknowledged who must not.
//!
//! [`draw`] says what happens in which round, [`strike`] does it, [`state`] keeps the books.
//! [`soak`] has them for hours, and looks whether a program grows ([`growth`]).

mod draw;
mod growth;
pub(crate) mod soak;
mod state;
mod strike;

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use lab::cluster::{FailoverMode, Settings, SynchronousMode};
use lab::process;
use lab::workload;
use rustix::process::Signal;
use tokio::time::Instant;

use crate::books::Paces;
use crate::stage::{self, Stage};
use crate::{Scratch, demo, hosts, say};
use draw::Round;
use state::{State, ranges};
use strike::Roles;

/// Slower than the drill's: all rounds together are read after each.
const PACES: Paces = Paces { entry: Duration::from_millis(20), direct: Duration::from_millis(100) };
/// How long the writers run before the first fault of a round and after the last one.
const CALM: Duration = Duration::from_secs(1);
/// How long the cluster may take to be whole after everything was healed.
const WHOLE_LIMIT: Duration = Duration::from_secs(120);
/// The same after a planted second writer: its copy, on a timeline that nobody reserved, may have
/// to wait for an operator, and the round has failed anyway.
const PLANTED_WHOLE_LIMIT: Duration = Duration::from_secs(15);
/// How long a planted second writer goes on.
const PLANTED_FOR: Duration = Duration::from_secs(3);
/// How long a statement that plants something may take.
const SQL_LIMIT: Duration = Duration::from_secs(30);

/// Something that a round has to find, to prove that it can.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Plant {
    /// An acknowledged row vanishes from the table.
    LostRow,
    /// A standby is promoted behind everybody's back, while its agent cannot see it.
    SecondWriter,
}

/// Options of `rounds`.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// How many rounds, those that are resumed among them
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    #[command(flatten)]
    of: Of,
    /// Go on with the rounds in --dir
    #[arg(long, requires = "dir")]
    resume: bool,
    /// A fault of the rounds themselves, which has to make them fail
    #[arg(long, hide = true)]
    plant: Option<Plant>,
}

/// What the rounds are of.
#[derive(Debug, clap::Args)]
struct Of {
    /// What the rounds are drawn from
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// How many members: 3 or 5
    #[arg(long, default_value_t = 3, value_parser = members)]
    members: u16,
    /// How commits wait for standbys: quorum, on
    #[arg(long, default_value = "quorum")]
    mode: SynchronousMode,
    /// What starts an election: lease, fenced (default: what the program does by itself)
    #[arg(long, value_name = "MODE")]
    failover_mode: Option<FailoverMode>,
    /// The leader's lease; `loop_wait` and `retry_timeout` fit it
    #[arg(long, value_name = "SECONDS", default_value_t = 10,
          value_parser = clap::value_parser!(u64).range(5..=600))]
    ttl: u64,
    /// Keep everything in this directory (default: a temporary one, kept if something is wrong)
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// The program to try (default: the one beside this one)
    #[arg(long, value_name = "FILE")]
    pgherd: Option<PathBuf>,
}

impl Of {
    fn settings(&self) -> Settings {
        Settings {
            members: self.members,
            synchronous_mode: self.mode,
            failover_mode: self.failover_mode,
            ttl: self.ttl,
        }
    }
}

fn members(text: &str) -> Result<u16, String> {
    match text {
        "3" => Ok(3),
        "5" => Ok(5),
        _ => Err("3 or 5".to_owned()),
    }
}

/// Runs the rounds, and prints the report; `false` if one of them failed.
///
/// # Errors
/// They cannot be had here.
pub(crate) async fn run(options: &Options) -> anyhow::Result<bool> {
    let program = demo::program(options.of.pgherd.as_ref())?;
    let (scratch, directory) = place(options.of.dir.as_ref(), "rounds")?;
    let (seed, settings) = (options.of.seed, options.of.settings());
    let mut state = State::begin(&directory, options.resume, seed, settings)?;
    let mut ran = Ok(());
    if state.rounds < options.rounds && state.is_good() {
        ran = Box::pin(all(options, &program, &directory, &mut state)).await;
    }
    if let Some(scratch) = scratch.filter(|_| ran.is_err() || !state.is_good()) {
        say(&format!("everything is kept in {}", scratch.keep().display()));
    }
    ran?;
    print!("{}", state.table());
    println!("{}", state.object());
    Ok(state.is_good())
}

/// The directory that was asked for, or one in a temporary one.
fn place(dir: Option<&PathBuf>, name: &str) -> anyhow::Result<(Option<Scratch>, PathBuf)> {
    hosts::possible().context("rounds need hosts with a network of their own")?;
    if let Some(directory) = dir {
        return Ok((None, directory.clone()));
    }
    let scratch = Scratch::new(name)?;
    let directory = scratch.0.join(name);
    Ok((Some(scratch), directory))
}

/// The rounds that are left, until one fails.
async fn all(
    options: &Options,
    program: &Path,
    directory: &Path,
    state: &mut State,
) -> anyhow::Result<()> {
    let plan = stage::plan(program, directory.to_owned(), state.settings, true)?;
    let before = state.acknowledged.clone();
    let run = state.runs;
    let stage = Stage::start(&plan, PACES, run);
    let mut stage = Box::pin(stage).await?;
    // From now on its writers have used their identifiers.
    state.runs += 1;
    state.write(directory)?;
    let (begun, first) = (Instant::now(), state.rounds);
    while state.rounds < options.rounds && state.is_good() {
        let plant = options.plant.filter(|_| state.rounds == first);
        Box::pin(round(&mut stage, &before, plant, state)).await;
        let ledger = stage.books.ledger.lock();
        let ids = ledger.acks().iter().map(|ack| ack.id);
        state.acknowledged = [before.clone(), ranges(ids)].concat();
        drop(ledger);
        state.write(directory)?;
        let done = state.rounds - first;
        let left = begun.elapsed().as_secs_f64() / f64::from(done)
            * f64::from(options.rounds.saturating_sub(state.rounds));
        let trouble = state.trouble.as_ref().map(|text| format!("FAILED: {text}; "));
        let (lost, interleaved) = (state.lost, state.interleaved);
        let trouble = trouble.unwrap_or_default();
        say(&format!("  {trouble}lost {lost}, interleaved {interleaved}; {left:.0} s left"));
    }
    Ok(())
}

/// One round, from a whole cluster to a whole cluster; what goes wrong goes into the state.
async fn round(stage: &mut Stage, before: &[(i64, i64)], plant: Option<Plant>, state: &mut State) {
    let Settings { members, ttl, .. } = state.settings;
    let number = state.rounds + 1;
    let round = Round::draw(state.seed, number, members, ttl);
    tokio::time::sleep(CALM).await;
    let from = stage.books.now();
    let mut trouble = Vec::new();
    let mut note = |result: anyhow::Result<()>| {
        trouble.extend(result.err().map(|error| format!("{error:#}")));
    };
    note(Box::pin(broken(stage, &round, number)).await);
    // Whatever went wrong, nothing stays broken on purpose.
    note(stage.cluster.heal().map_err(Into::into));
    note(planted(stage, plant).await);
    let planted = plant == Some(Plant::SecondWriter);
    let healed = Instant::now();
    note(stage.until_whole(if planted { PLANTED_WHOLE_LIMIT } else { WHOLE_LIMIT }).await);
    let whole_after = healed.elapsed();
    tokio::time::sleep(CALM).await;
    let gap = stage.books.longest_gap(from);
    match stage.audit(before).await {
        Ok(audit) => {
            state.lost += audit.missing.len();
            state.interleaved += audit.interleaved;
            let first = audit.missing.first().map(|id| format!("{id} is missing"));
            trouble.extend(first.into_iter().chain(audit.first));
        }
        Err(error) => trouble.push(format!("nothing can be read: {error:#}")),
    }
    say(&format!("  longest gap {gap:.3} s, whole {:.1} s after", whole_after.as_secs_f64()));
    state.count(round.kind(), gap);
    if !trouble.is_empty() {
        state.trouble = Some(format!("round {number}: {}", trouble.join("; ")));
    }
}

/// Strikes, and waits as long as it lasts.
async fn broken(stage: &Stage, round: &Round, number: u32) -> anyhow::Result<()> {
    let leader = stage.leader().await?;
    let roles = Roles::new(&stage.cluster, leader);
    let told = |fault: draw::Fault| format!("{fault:?} ({})", roles.names(fault));
    let second = round.second.map(|(apart, fault)| format!(", {apart:?} later {}", told(fault)));
    let (first, second) = (told(round.first), second.unwrap_or_default());
    say(&format!("round {number}: {first}{second}, for {:?}", round.hold));
    roles.strike(round.first).await?;
    if let Some((apart, fault)) = round.second {
        tokio::time::sleep(apart).await;
        roles.strike(fault).await?;
    }
    tokio::time::sleep(round.hold).await;
    Ok(())
}

/// Does what the round has to find.
async fn planted(stage: &Stage, plant: Option<Plant>) -> anyhow::Result<()> {
    match plant {
        None => Ok(()),
        Some(Plant::LostRow) => {
            stage.until_whole(WHOLE_LIMIT).await?;
            let id =
                stage.books.ledger.lock().acks().first().context("nothing is acknowledged")?.id;
            stage.execute(&format!("DELETE FROM pgherd_drill WHERE id = {id}")).await
        }
        Some(Plant::SecondWriter) => {
            stage.until_whole(WHOLE_LIMIT).await?;
            let leader = stage.leader().await?.index;
            let mut others = stage.cluster.members.iter();
            let standby = others.find(|member| member.index != leader);
            let standby = standby.context("there is no standby")?;
            let agent = standby.agent.pid().context("the standby has no agent")?;
            process::signal(agent, Signal::STOP)?;
            let target = stage.cluster.on_its_host(standby, "pgherd-bench-plant");
            // Nobody streams from it: it would wait for a standby for ever.
            let alone = "ALTER SYSTEM SET synchronous_standby_names = ''";
            let promote = "SELECT pg_reload_conf(), pg_promote()";
            let promoted = async {
                workload::execute(&target, alone, SQL_LIMIT).await?;
                workload::execute(&target, promote, SQL_LIMIT).await
            };
            let promoted = promoted.await;
            tokio::time::sleep(PLANTED_FOR).await;
            process::signal(agent, Signal::CONT)?;
            promoted.context("the second writer could not be planted")
        }
    }
}
