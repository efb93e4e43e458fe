//! Measures real clusters: how long a hand-over takes, beside what PostgreSQL alone needs on the
//! same machine, and whether a loaded machine stays without one.
//!
//! [`demo`] runs `pgherd demo` and hears its events; [`journal`] reads the agents' journals for the
//! phases; [`floor`] does the same hand-overs on [`bare`] PostgreSQL instances, by the shortest
//! script there is; [`figures`] puts it together. The last line of the output is one JSON object.
#![allow(clippy::print_stdout, reason = "a command whose output is its result")]

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::Parser;

mod bare;
mod demo;
mod failover;
mod figures;
mod floor;
mod hosts;
mod journal;
mod soak;
mod stage;

/// Measures clusters of pgherd on this machine.
#[derive(Debug, Parser)]
#[command(name = "pgherd-bench")]
enum Command {
    /// How long each hand-over takes
    Failover(failover::Options),
    /// That a loaded machine stays without one
    Soak(soak::Options),
}

fn main() -> anyhow::Result<ExitCode> {
    let command = Command::parse();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the asynchronous runtime")?;
    let good = runtime.block_on(async {
        let work = async {
            match command {
                Command::Failover(options) => Box::pin(failover::run(&options)).await,
                Command::Soak(options) => Box::pin(soak::run(&options)).await,
            }
        };
        tokio::select! {
            biased;
            () = interrupted() => anyhow::bail!("interrupted"),
            good = work => good,
        }
    });
    runtime.shutdown_background();
    Ok(if good? { ExitCode::SUCCESS } else { ExitCode::FAILURE })
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

/// A directory that is removed at the end.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> anyhow::Result<Scratch> {
        let name = format!("pgherd-bench-{name}-{}", std::process::id());
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir(&path).with_context(|| format!("cannot make {}", path.display()))?;
        Ok(Scratch(path))
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
