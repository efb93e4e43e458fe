//! The operator's commands: names, options, texts and exit codes are patronictl's
//! (as Patroni 4.1 has it). They read the DCS, and ask the agents' REST to change things.
#![allow(clippy::print_stdout)] // This is what these commands are for.

mod ask;
mod cluster_role;
mod config;
mod dynamic;
mod events;
mod flush;
mod haproxy;
mod inspect;
mod libpq;
mod list;
mod output;
mod pause;
mod prompt;
mod query;
mod reinit;
mod reload;
mod remove;
mod restart;
mod restart_by_switchover;
mod restart_plan;
mod schedule;
mod select;
mod store;
mod switchover;
pub(crate) mod table;
#[cfg(test)]
mod test_view;
mod warnings;

use std::io::Write;
use std::process::ExitCode;

pub(crate) use cluster_role::{DemoteClusterArgs, PromoteClusterArgs};
pub(crate) use config::{CtlConfig, CtlOptions};
pub(crate) use dynamic::{EditConfigArgs, ShowConfigArgs};
pub(crate) use events::EventsArgs;
pub(crate) use flush::FlushArgs;
pub(crate) use haproxy::HaproxyArgs;
pub(crate) use inspect::{DsnArgs, HistoryArgs, VersionArgs};
pub(crate) use list::{ListArgs, TopologyArgs};
pub(crate) use pause::PauseArgs;
use prompt::Aborted;
pub(crate) use query::QueryArgs;
pub(crate) use reinit::ReinitArgs;
pub(crate) use reload::ReloadArgs;
pub(crate) use remove::RemoveArgs;
pub(crate) use restart::RestartArgs;
pub(crate) use switchover::{FailoverArgs, SwitchoverArgs};

/// Every operator's command.
#[derive(Debug, Clone, clap::Subcommand)]
pub(crate) enum CtlCommand {
    /// List the members of a cluster
    List(ListArgs),
    /// Show the members as a tree of who streams from whom
    Topology(TopologyArgs),
    /// Hand the leadership over, planned
    Switchover(SwitchoverArgs),
    /// Make a member the leader, with or without a present one
    Failover(FailoverArgs),
    /// Stop automatic management
    Pause(PauseArgs),
    /// Resume automatic management
    Resume(PauseArgs),
    /// Show the dynamic configuration
    ShowConfig(ShowConfigArgs),
    /// Edit the dynamic configuration
    EditConfig(EditConfigArgs),
    /// Show the history of failovers and switchovers
    History(HistoryArgs),
    /// Print how to connect to a member
    Dsn(DsnArgs),
    /// Run SQL on a member
    Query(QueryArgs),
    /// Print the version of this program, and of a cluster's members
    Version(VersionArgs),
    /// Let members read their files again
    Reload(ReloadArgs),
    /// Restart PostgreSQL on members, now or at a time
    Restart(RestartArgs),
    /// Copy the data of members anew
    Reinit(ReinitArgs),
    /// Make a cluster the standby of another one
    DemoteCluster(DemoteClusterArgs),
    /// Make a standby cluster one of its own
    PromoteCluster(PromoteClusterArgs),
    /// Discard what is scheduled
    Flush(FlushArgs),
    /// Remove a cluster from the DCS
    Remove(RemoveArgs),
    /// Print a configuration of HAProxy for a cluster
    HaproxyConfig(HaproxyArgs),
    /// Show what an agent did, and why
    Events(EventsArgs),
}

/// Runs one command. What fails is printed as patronictl prints it: `Error: …` on standard error
/// and exit code 1; what a member refuses is no failure of the command.
pub(crate) async fn run(options: CtlOptions, command: CtlCommand) -> ExitCode {
    match dispatch(&options, command).await {
        Ok(code) => code,
        Err(error) if error.is::<Aborted>() => {
            eprintln!("Aborted!");
            ExitCode::from(1)
        }
        Err(error) => {
            eprintln!("Error: {error:#}");
            ExitCode::from(1)
        }
    }
}

async fn dispatch(options: &CtlOptions, command: CtlCommand) -> anyhow::Result<ExitCode> {
    let config = options.load()?;
    match command {
        CtlCommand::List(args) => list::list(args, &config).await,
        CtlCommand::Topology(args) => list::topology(args, &config).await,
        CtlCommand::Switchover(args) => switchover::switchover(args, &config).await,
        CtlCommand::Failover(args) => switchover::failover(args, &config).await,
        CtlCommand::Pause(args) => pause::set(args, &config, true).await,
        CtlCommand::Resume(args) => pause::set(args, &config, false).await,
        CtlCommand::ShowConfig(args) => dynamic::show(args, &config).await,
        CtlCommand::EditConfig(args) => dynamic::edit(args, &config).await,
        CtlCommand::History(args) => inspect::history(args, &config).await,
        CtlCommand::Dsn(args) => inspect::dsn(args, &config).await,
        CtlCommand::Query(args) => query::query(args, &config).await,
        CtlCommand::Version(args) => inspect::version(args, &config).await,
        CtlCommand::Reload(args) => reload::reload(args, &config).await,
        CtlCommand::Restart(args) => restart::restart(args, &config).await,
        CtlCommand::Reinit(args) => reinit::reinit(args, &config).await,
        CtlCommand::DemoteCluster(args) => cluster_role::demote(args, &config).await,
        CtlCommand::PromoteCluster(args) => cluster_role::promote(args, &config).await,
        CtlCommand::Flush(args) => flush::flush(args, &config).await,
        CtlCommand::Remove(args) => remove::remove(args, &config).await,
        CtlCommand::HaproxyConfig(args) => haproxy::print(args, &config).await,
        CtlCommand::Events(args) => events::run(args, &config).await,
    }
}

/// Writes to standard output at once. Unlike `println!` it does not panic on a closed pipe.
fn say(text: &str) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()
}

/// The wall clock where we are, `2026-11-23 22:01:02` with up to nine `decimals` of a second.
fn timestamp(decimals: usize) -> String {
    let now = jiff::ZonedDateTime::now();
    let mut text = now.strftime("%Y-%m-%d %H:%M:%S").to_string();
    if decimals > 0 {
        text.push('.');
        text.extend(format!("{:09}", now.subsec_nanosecond()).chars().take(decimals));
    }
    text
}

/// Prints a value as YAML.
pub(crate) fn print_yaml(value: &serde_json::Value) -> std::io::Result<()> {
    say(&output::yaml(value))
}

/// The name that this program was called by.
pub(crate) fn called_as() -> Option<std::ffi::OsString> {
    let path = std::env::args_os().next().map(std::path::PathBuf::from)?;
    path.file_stem().map(std::ffi::OsStr::to_owned)
}

/// Scripts that call patronictl get patronictl's output, and nothing besides.
fn called_as_patronictl() -> bool {
    called_as().is_some_and(|name| name == "patronictl")
}
