//! The agent, called as `patroni`: with that program's command line (as Patroni 4.1 has it).

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;

use crate::ctl::CtlOptions;
use crate::serve::{self, AgentArgs, ValidateArgs};

/// Keeps a PostgreSQL cluster writable.
#[derive(Debug, Parser)]
#[command(name = "patroni", about)]
struct Patroni {
    /// Print the version and end
    #[arg(long)]
    version: bool,
    #[command(flatten)]
    validate: ValidateArgs,
    /// Configuration file, or a directory of them; without one the environment counts
    #[arg(value_name = "CONFIGFILE")]
    config_file: Option<PathBuf>,
}

/// Runs what the command line says.
pub(crate) fn run() -> ExitCode {
    let called = Patroni::parse();
    if called.version {
        #[allow(clippy::print_stdout)] // It was asked for.
        {
            println!("patroni {}", api::PATRONI_VERSION);
        }
        return ExitCode::SUCCESS;
    }
    let options = CtlOptions { config_file: called.config_file, ..CtlOptions::default() };
    serve::agent(AgentArgs { strict: false, validate: called.validate, as_patroni: true }, &options)
}
