//! `flush`: what is scheduled is discarded.

use std::process::ExitCode;

use types::{ClusterView, MemberName};

use super::ask::{self, ANSWER_LIMIT};
use super::select::{Role, Selection};
use super::store::Store;
use super::{CtlConfig, say, timestamp};

/// What may be scheduled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Target {
    /// Restarts of members.
    Restart,
    /// A switchover of the cluster.
    Switchover,
}

/// `flush`.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct FlushArgs {
    /// Name of the cluster
    #[arg(value_name = "CLUSTER_NAME")]
    pub(crate) cluster: String,
    /// Names of members, all by default; then what is discarded: restart or switchover
    #[arg(value_name = "MEMBER_NAMES {restart|switchover}", required = true)]
    pub(crate) rest: Vec<String>,
    /// Only members with this role
    #[arg(short, long, value_enum)]
    pub(crate) role: Option<Role>,
    /// Do not ask for confirmation
    #[arg(long)]
    pub(crate) force: bool,
}

pub(super) async fn flush(args: FlushArgs, config: &CtlConfig) -> anyhow::Result<ExitCode> {
    let FlushArgs { cluster, mut rest, role, force } = args;
    let last = rest.pop().unwrap_or_default();
    let target = <Target as clap::ValueEnum>::from_str(&last, false);
    let Ok(target) = target else {
        eprintln!("Error: Invalid value: '{last}' is not one of 'restart', 'switchover'.");
        return Ok(ExitCode::from(2));
    };
    let selection = Selection { cluster, members: rest, role, force };
    let store = Store::open(config, &selection.cluster)?;
    let view = store.read().await?;
    match target {
        Target::Restart => restarts(&selection, &view, config).await?,
        Target::Switchover => switchover(&selection.cluster, &store, &view, config).await?,
    }
    Ok(ExitCode::SUCCESS)
}

async fn restarts(
    selection: &Selection,
    view: &ClusterView,
    config: &CtlConfig,
) -> anyhow::Result<()> {
    for name in selection.of(view, "flush").await? {
        if view.member(&name).is_none_or(|m| m.scheduled_restart.is_none()) {
            say(&format!("No scheduled restart for member {name}\n"))?;
            continue;
        }
        let path = ("DELETE", "/restart");
        let asked = ask::member(view, &name, config, path, None, ANSWER_LIMIT).await;
        ask::report(&asked, &name, "flush scheduled restart", false)?;
    }
    Ok(())
}

/// Any member can do it; without one that answers it is done in the DCS.
async fn switchover(
    cluster: &str,
    store: &Store,
    view: &ClusterView,
    config: &CtlConfig,
) -> anyhow::Result<()> {
    let waits = view.failover_request().is_some_and(|r| r.scheduled_at.is_some());
    let Some(key) = view.failover.as_ref().filter(|_| waits) else {
        say("No pending scheduled switchover\n")?;
        return Ok(());
    };
    for name in leader_first(view) {
        let path = ("DELETE", "/switchover");
        match ask::member(view, name, config, path, None, ANSWER_LIMIT).await {
            Ok((status @ (200 | 404), text)) => {
                let word = if status == 200 { "Success" } else { "Failed" };
                say(&format!("{word}: {text}\n"))?;
                return Ok(());
            }
            Ok((status, text)) => {
                say(&format!("Failed: member={name}, status_code={status}, ({text})\n"))?;
            }
            Err(error) => eprintln!("Member {name} is not accessible: {error:#}"),
        }
    }
    let at = timestamp(5);
    say(&format!("{at} Could not find any accessible member of cluster {cluster}\n"))?;
    store.clear_failover(key.mod_revision).await
}

fn leader_first(view: &ClusterView) -> Vec<&MemberName> {
    let mut names: Vec<&MemberName> = view.members.keys().collect();
    names.sort_by_key(|name| view.leader_name() != Some(*name));
    names
}
