//! `pgherd-bench proxy`: the proxy beside HAProxy, PgBouncer and no proxy at all, in one run, on
//! one PostgreSQL.
//!
//! [`backend`] is that PostgreSQL, and the etcd that shows it to the proxy; [`peers`] are the
//! programs between it and the clients; [`load`] is one slice of pgbench; [`cells`] repeats slices
//! in rotation and compares. [`idle`] counts the memory of clients that do nothing, [`switchover`]
//! what clients see of one, and of a restart. [`report`] puts it together; the last line of the
//! output is one JSON object.

use std::path::PathBuf;

use anyhow::Context;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::{Scratch, demo, say};

mod backend;
mod cells;
mod idle;
mod load;
mod peers;
mod report;
mod switchover;

use cells::Pace;
use report::Report;

/// Files that may be open at once, for each process: a proxy with its clients and servers.
const OPEN_FILES: u64 = 65_536;

/// A part of the measurement.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Part {
    /// Session mode beside HAProxy.
    Session,
    /// Transaction mode beside PgBouncer, and prepared statements beside HAProxy.
    Transaction,
    /// The memory of idle clients.
    Idle,
    /// A switchover and restarts of the primary under load.
    Switchover,
}

const PARTS: [Part; 4] = [Part::Session, Part::Transaction, Part::Idle, Part::Switchover];

/// Options of `proxy`.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Few and short slices
    #[arg(long, conflicts_with_all = ["seconds", "rounds"])]
    quick: bool,
    /// Only these parts
    #[arg(long, value_name = "PART", value_delimiter = ',')]
    only: Vec<Part>,
    /// Only these cells of a part, as they are called in the object
    #[arg(long, value_name = "CELL", value_delimiter = ',')]
    cells: Vec<String>,
    /// How long one slice of pgbench takes
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u64).range(1..=600))]
    seconds: u64,
    /// How often each slice is repeated, and how many switchovers and restarts there are
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..=100))]
    rounds: u16,
    /// pgbench's scale: 100,000 accounts each
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=1000))]
    scale: u32,
    /// How many clients do nothing
    #[arg(long, value_name = "CLIENTS", default_value_t = 10_000,
          value_parser = clap::value_parser!(u32).range(1..=50_000))]
    idle_clients: u32,
    /// The document whose tables are replaced, between its markers
    #[arg(long, value_name = "FILE")]
    write: Option<PathBuf>,
    /// No tables before the object
    #[arg(long)]
    json: bool,
    /// The program to measure (default: the one beside this one)
    #[arg(long, value_name = "FILE")]
    pgherd: Option<PathBuf>,
}

impl Options {
    fn pace(&self) -> Pace {
        let (seconds, rounds) = if self.quick { (1, 3) } else { (self.seconds, self.rounds) };
        Pace { seconds, rounds, only: self.cells.clone() }
    }

    fn wants(&self, part: Part) -> bool {
        self.only.is_empty() || self.only.contains(&part)
    }
}

/// Measures, and prints the figures; `false` if a part gave none.
///
/// # Errors
/// PostgreSQL or etcd cannot be started, or the document cannot be written.
pub(crate) async fn run(options: &Options) -> anyhow::Result<bool> {
    raise_open_files()?;
    let program = demo::program(options.pgherd.as_ref())?;
    let mut report = Report::new(options.pace(), options.scale);
    let mut good = true;
    for part in PARTS.into_iter().filter(|part| options.wants(*part)) {
        // What the others gave is told, whatever becomes of one.
        if let Err(error) = Box::pin(measure(part, options, &program, &mut report)).await {
            say(&format!("{part:?} gave no figures: {error:#}"));
            good = false;
        }
    }
    if !options.json {
        print!("{}", report.tables());
    }
    if let Some(file) = &options.write {
        report.write(file)?;
    }
    println!("{}", report.object());
    Ok(good)
}

async fn measure(
    part: Part,
    options: &Options,
    program: &std::path::Path,
    report: &mut Report,
) -> anyhow::Result<()> {
    let pace = options.pace();
    // A memory file system: what a disk does at the moment is nobody's merit.
    let scratch = Scratch::new_in(&memory_or_temporary(), "proxy")?;
    if part == Part::Switchover {
        let times = if options.quick { 1 } else { pace.rounds };
        report.planned = Some(switchover::measure(program, &scratch.0, times).await?);
        return Ok(());
    }
    say("a PostgreSQL with pgbench's tables, and an etcd");
    let lab = backend::Backend::start(&scratch.0, options.scale).await?;
    match part {
        Part::Session => {
            let peers = peers::for_sessions(&lab, program, &scratch.0).await?;
            report.session = Some(cells::measure(&lab, &peers, cells::sessions(), &pace).await?);
        }
        Part::Transaction => {
            let peers = peers::for_transactions(&lab, program, &scratch.0).await?;
            let cells = cells::transactions();
            report.transaction = Some(cells::measure(&lab, &peers, cells, &pace).await?);
        }
        Part::Idle => {
            let count = options.idle_clients;
            report.idle = Some(idle::measure(&lab, program, &scratch.0, count).await?);
        }
        Part::Switchover => {}
    }
    Ok(())
}

fn memory_or_temporary() -> PathBuf {
    let memory = PathBuf::from("/dev/shm");
    if memory.is_dir() { memory } else { std::env::temp_dir() }
}

/// As many as this process may have; those that it starts inherit it.
fn raise_open_files() -> anyhow::Result<()> {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let wanted = maximum.map_or(OPEN_FILES, |maximum| maximum.min(OPEN_FILES));
    if current.is_some_and(|current| current < wanted) {
        setrlimit(Resource::Nofile, Rlimit { current: Some(wanted), maximum })
            .context("cannot raise the limit of open files")?;
    }
    Ok(())
}
