//! Everything around the code that is not compiling it: `cargo xtask COMMAND`.
//!
//! `tidy` checks what rustc and clippy cannot (edges between crates, sizes, leftovers); `test` runs
//! every check of the project in order and counts; `prove` runs the long twins of the quick checks;
//! `fuzz` feeds what reads bytes of the network with made-up ones;
//! `scenarios --bless` records the brain's scripts anew. The Makefile is a thin front of this.
#![allow(clippy::print_stdout, reason = "a command whose output is its result")]

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, bail};

mod steps;
mod tidy;

const USAGE: &str = "\
usage: cargo xtask COMMAND

  tidy                check edges between crates, sizes, bans and leftovers
  check               formatting, clippy, tidy, cargo deny
  test                everything of `check`, then every test; ends with `N passed, N failed`
  prove [--seeds N]   the long twins: the simulator over N seeds (default 100000)
  fuzz [--seconds N]  every target of fuzz/, each so long (default 60); needs cargo-fuzz, nightly
  scenarios [--bless] run the brain's scripts; --bless records their output anew (review the diff)";

/// How many seeds `prove` runs when it is not told.
const PROVE_SEEDS: u64 = 100_000;

/// How long `fuzz` runs each target when it is not told.
const FUZZ_SECONDS: u32 = 60;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match run(&arguments) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::from(2)
        }
    }
}

/// Runs one command; `false` if a check failed.
///
/// # Errors
/// If the command is unknown or a program cannot be run.
fn run(arguments: &[String]) -> anyhow::Result<bool> {
    let root = root()?;
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["tidy"] => tidy::run(&root),
        ["check"] => steps::run(&root, &steps::check()),
        ["test"] => steps::run(&root, &steps::test()),
        ["prove"] => prove(&root, PROVE_SEEDS),
        ["prove", "--seeds", number] => {
            let seeds = number.parse().with_context(|| format!("--seeds {number}"))?;
            prove(&root, seeds)
        }
        ["fuzz"] => fuzz(&root, FUZZ_SECONDS),
        ["fuzz", "--seconds", number] => {
            fuzz(&root, number.parse().with_context(|| format!("--seconds {number}"))?)
        }
        ["scenarios"] => steps::run(&root, &steps::scenarios(false)),
        ["scenarios", "--bless"] => steps::run(&root, &steps::scenarios(true)),
        _ => bail!("unknown command {words:?}\n\n{USAGE}"),
    }
}

fn prove(root: &Path, seeds: u64) -> anyhow::Result<bool> {
    steps::make_corpora(root)?;
    steps::run(root, &steps::prove(seeds))
}

fn fuzz(root: &Path, seconds: u32) -> anyhow::Result<bool> {
    steps::make_corpora(root)?;
    steps::run(root, &steps::fuzz(seconds))
}

/// The workspace's directory. Cargo sets the variable whenever it runs a program.
fn root() -> anyhow::Result<PathBuf> {
    let manifest = std::env::var_os("CARGO_MANIFEST_DIR").context("run it as `cargo xtask`")?;
    let crates = PathBuf::from(manifest);
    let root = crates.ancestors().nth(2).context("xtask stands in crates/xtask")?;
    Ok(root.to_owned())
}
