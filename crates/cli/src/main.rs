//! `pgherd`: one binary, a process per part.
#![forbid(unsafe_code)]

mod ctl;
mod demo;
mod generate;
mod hidden;
mod hot_restart;
mod log;
mod patroni;
mod serve;
mod sources;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// The C library's allocator takes a twentieth of the proxy's processor time (docs/benchmarks.md).
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Keeps a PostgreSQL cluster writable.
#[derive(Debug, Parser)]
#[command(name = "pgherd", version, about, disable_help_subcommand = true)]
// As with patronictl, an option that is given twice counts as it was given last.
#[command(args_override_self = true)]
struct Cli {
    #[command(flatten)]
    ctl: ctl::CtlOptions,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Supervise one PostgreSQL and take part in the cluster (one per database host)
    Agent(serve::AgentArgs),
    /// Route clients to the primary and to replicas
    Proxy(serve::ProxyArgs),
    /// Run a whole cluster on this machine
    Demo(demo::DemoArgs),
    #[command(flatten)]
    Ctl(ctl::CtlCommand),
}

fn main() -> ExitCode {
    // The guard and the helper for disks are dispatched before anything else is set up: they must
    // stay tiny, and not depend on anything that can fail.
    let mut arguments = std::env::args_os().skip(1);
    match arguments.next() {
        Some(first) if first == "guard" => return guard::run(arguments),
        Some(first) if first == "probe" => return postgres::run_disk_helper(arguments),
        Some(_) | None => {}
    }
    if ctl::called_as() == Some("patroni".into()) {
        return patroni::run();
    }
    let cli = Cli::parse();
    match cli.command {
        Command::Agent(args) => serve::agent(args, &cli.ctl),
        Command::Proxy(args) => serve::proxy(args, &cli.ctl),
        Command::Demo(args) => match demo::command(args) {
            Ok(code) => code,
            Err(error) => {
                eprintln!("Error: {error:#}");
                ExitCode::FAILURE
            }
        },
        Command::Ctl(command) => match serve::runtime() {
            Ok(runtime) => runtime.block_on(ctl::run(cli.ctl, command)),
            Err(error) => {
                eprintln!("Error: {error:#}");
                ExitCode::FAILURE
            }
        },
    }
}
