//! Measures real clusters: how long a hand-over takes, beside what PostgreSQL alone needs on the
//! same machine, whether a loaded machine stays without one, and what the proxy costs ([`proxy`]).
//!
//! [`demo`] runs `pgherd demo` and hears its events; [`journal`] reads the agents' journals for the
//! phases; [`floor`] does the same hand-overs on [`bare`] PostgreSQL instances, by the shortest
//! script there is; [`figures`] puts it together. The last line of the output is one JSON object.
#![allow(clippy::print_stdout, reason = "a command whose output is its result")]

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use clap::Parser;

mod bare;
mod books;
mod calm;
mod demo;
mod dice;
mod document;
mod failover;
mod field;
mod figures;
mod floor;
mod hosts;
mod journal;
mod pgbench;
mod proxy;
mod rounds;
mod stage;
mod statistics;

/// Measures clusters of pgherd on this machine.
#[derive(Debug, Parser)]
#[command(name = "pgherd-bench")]
enum Command {
    /// How long each hand-over takes
    Failover(failover::Options),
    /// Whole architectures beside each other: what is lost, and for how long
    Field(field::Options),
    /// What the proxy costs, beside HAProxy and PgBouncer
    Proxy(proxy::Options),
    /// That nothing is lost under random faults, on hosts with a network of their own
    Rounds(rounds::Options),
    /// That a loaded machine stays without a failover
    Calm(calm::Options),
    /// The same as rounds for hours: nothing is lost, and no program grows
    Soak(rounds::soak::Options),
}

fn main() -> ExitCode {
    match run(Command::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            // One line, whatever the environment says about backtraces.
            say(&format!("pgherd-bench: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

/// Runs one command; `false` if what it looked for is not as it should be.
fn run(command: Command) -> anyhow::Result<bool> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the asynchronous runtime")?;
    let good: anyhow::Result<bool> = runtime.block_on(async {
        let work = async {
            match command {
                Command::Failover(options) => Box::pin(failover::run(&options)).await,
                Command::Field(options) => Box::pin(field::run(&options)).await,
                Command::Proxy(options) => Box::pin(proxy::run(&options)).await,
                Command::Rounds(options) => Box::pin(rounds::run(&options)).await,
                Command::Calm(options) => Box::pin(calm::run(&options)).await,
                Command::Soak(options) => Box::pin(rounds::soak::run(&options)).await,
            }
        };
        tokio::select! {
            biased;
            () = interrupted() => anyhow::bail!("interrupted"),
            good = work => good,
        }
    });
    runtime.shutdown_background();
    good
}

/// Ready at the first signal that ends the program; what runs is ended by being dropped.
async fn interrupted() {
    use tokio::signal::unix::{SignalKind, signal};
    let listen = (signal(SignalKind::interrupt()), signal(SignalKind::terminate()));
    let (Ok(mut interrupt), Ok(mut terminate)) = listen else {
        // Without them the program ends as any other does.
        return std::future::pending().await;
    };
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
}

/// How the names of our temporary directories begin; they end in the process.
const SCRATCH: &str = "pgherd-bench-";

/// A directory that is removed at the end.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> anyhow::Result<Scratch> {
        Scratch::new_in(&std::env::temp_dir(), name)
    }

    fn new_in(parent: &Path, name: &str) -> anyhow::Result<Scratch> {
        Scratch::sweep(parent);
        let name = format!("{SCRATCH}{name}-{}", std::process::id());
        let path = parent.join(name);
        std::fs::create_dir(&path).with_context(|| format!("cannot make {}", path.display()))?;
        Ok(Scratch(path))
    }

    /// Removes what processes left behind there that were killed.
    fn sweep(parent: &Path) {
        lab::ground::sweep();
        let entries = std::fs::read_dir(parent).into_iter().flatten().flatten();
        for entry in entries {
            let name = entry.file_name().into_string().unwrap_or_default();
            let pid = name.strip_prefix(SCRATCH).and_then(|rest| rest.rsplit('-').next());
            let pid: Option<u32> = pid.and_then(|pid| pid.parse().ok());
            if pid.is_some_and(|pid| !lab::process::is_alive(pid)) {
                drop(lab::volume::release_below(&entry.path()));
                drop(Scratch(entry.path()));
            }
        }
    }
}

impl Scratch {
    /// Leaves it there, under a name that no later run takes for a leftover; where it is.
    fn keep(self) -> PathBuf {
        let path = self.0.with_file_name(format!("pgherd-kept-{}", std::process::id()));
        let kept = std::fs::rename(&self.0, &path);
        let path = if kept.is_ok() { path } else { self.0.clone() };
        std::mem::forget(self);
        path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // What is left behind is in the directory for temporary files.
        drop(std::fs::remove_dir_all(&self.0));
    }
}

/// A line about how far it is, for people; the standard output is for the figures.
fn say(text: &str) {
    eprintln!("{text}");
}
