//! The agent, called as `patroni`: with that program's command line (as Patroni 4.1 has it).

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;

use crate::ctl::CtlOptions;
use crate::generate::GenerateArgs;
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
    #[command(flatten)]
    generate: GenerateArgs,
    /// Configuration file, or a directory of them; without one the environment counts. A generated
    /// one is written there, without it to standard output
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
    let Patroni { validate, generate, config_file, .. } = called;
    let (config_file, output) =
        if generate.wanted() { (None, config_file) } else { (config_file, None) };
    let options = CtlOptions { config_file, ..CtlOptions::default() };
    let args = AgentArgs { validate, generate, output, as_patroni: true, ..AgentArgs::default() };
    serve::agent(args, &options)
}
