//! `pgherd demo`: a whole cluster on this machine, in the hands of a small service manager.
//!
//! [`layout`] says what there will be and where, and finds everything wrong with that before
//! anything is changed; [`files`] writes it down; [`herd`] runs it; [`lab::view`] looks at it;
//! [`screen`] shows it; [`drill`] breaks it and keeps books.

mod background;
mod drill;
mod external;
mod files;
mod herd;
mod layout;
mod run;
mod screen;
mod yaml;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, bail};

/// Options of `pgherd demo`.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct DemoArgs {
    /// Keep the cluster in this directory, and reuse what is there (default: a temporary one,
    /// removed at the end)
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// How many PostgreSQL nodes
    #[arg(long, value_name = "N", default_value_t = 3,
          value_parser = clap::value_parser!(u16).range(1..=9))]
    nodes: u16,
    /// One more member, for disaster recovery: streams asynchronously and never leads
    #[arg(long)]
    dr: bool,
    /// First port of the block (default: the first free block from 15000)
    #[arg(long, value_name = "P")]
    base_port: Option<u16>,
    /// Use this etcd instead of starting one: http://host:port, separated by commas
    #[arg(long, value_name = "URL", value_delimiter = ',')]
    dcs: Vec<String>,
    /// Return when the cluster is healthy; it goes on in the background
    #[arg(long, conflicts_with_all = ["drill", "stop"])]
    detach: bool,
    /// End the demo that runs in --dir
    #[arg(long, requires = "dir", conflicts_with = "drill")]
    stop: bool,
    /// Break the cluster in every way that matters, and count what was lost
    #[arg(long)]
    drill: bool,
    /// One JSON object a line
    #[arg(long)]
    json: bool,
    /// The drill with every fault there is, also those that take long
    #[arg(long, requires = "drill")]
    drill_all: bool,
    /// Run these faults only
    #[arg(
        long,
        hide = true,
        value_delimiter = ',',
        requires = "drill",
        conflicts_with = "drill_all"
    )]
    drill_only: Vec<drill::Fault>,
    /// Run all the chosen faults, one after the other, this often
    #[arg(long, hide = true, value_name = "N", default_value_t = 1, requires = "drill",
          value_parser = clap::value_parser!(u16).range(1..=1000))]
    drill_rounds: u16,
    /// A fault of the drill itself, which has to make it fail
    #[arg(long, hide = true, requires = "drill")]
    drill_plant: Option<drill::Plant>,
    /// Kill this member of etcd at the beginning of every fault
    #[arg(long, hide = true, requires = "drill")]
    drill_kill_etcd: Option<drill::EtcdMember>,
    /// The leader's lease in seconds, of a new cluster; the other times fit it
    #[arg(long, hide = true, value_name = "SECONDS", default_value_t = 10,
          value_parser = clap::value_parser!(u64).range(5..=600))]
    ttl: u64,
    /// What starts an election in a new cluster: lease, fenced
    #[arg(long, hide = true, value_name = "MODE")]
    failover_mode: Option<lab::cluster::FailoverMode>,
    /// This process is the background part of --detach
    #[arg(long, hide = true)]
    background: bool,
    /// The directory is a temporary one, to be removed at the end
    #[arg(long, hide = true, requires = "dir")]
    temporary: bool,
}

/// Runs `pgherd demo`.
///
/// # Errors
/// What was asked for cannot be done; one line that says why and what to do.
pub(crate) fn command(args: DemoArgs) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the asynchronous runtime")?;
    let code = runtime.block_on(async {
        // On the heap: these are the largest futures of the program.
        if args.stop {
            Box::pin(background::stop(&args)).await
        } else if args.detach {
            Box::pin(background::detach(&args)).await
        } else {
            Box::pin(run::foreground(&args)).await
        }
    });
    // A blocking task that still looks at /proc must not keep the command from ending.
    runtime.shutdown_background();
    code
}

/// The file name of the program that runs now.
fn own_program() -> anyhow::Result<PathBuf> {
    let program = std::env::current_exe().context("cannot find the path of this program")?;
    // After a rebuild the kernel appends this to the path of the program that still runs.
    if program.to_string_lossy().ends_with(" (deleted)") {
        bail!("{} was replaced while it runs; start the command again", program.display());
    }
    Ok(program)
}
