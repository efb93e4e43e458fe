//! `remove`: deletes everything that the DCS has of a cluster.

use std::process::ExitCode;

use super::store::Store;
use super::table::{Format, Layout, members_text};
use super::{CtlConfig, prompt, say};

/// What has to be typed.
const AWARE: &str = "Yes I am aware";

/// `remove`.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct RemoveArgs {
    /// Name of the cluster
    #[arg(value_name = "CLUSTER_NAME")]
    pub(crate) cluster: String,
    /// Output format
    #[arg(short, long, value_enum, default_value = "pretty")]
    pub(crate) format: Format,
}

pub(super) async fn remove(args: RemoveArgs, config: &CtlConfig) -> anyhow::Result<ExitCode> {
    let store = Store::open(config, &args.cluster)?;
    let view = store.read().await?;
    let layout = Layout { format: args.format, extended: false, tree: false };
    say(&members_text(&view, &args.cluster, layout))?;
    let confirmed = prompt::demand("Please confirm the cluster name to remove").await?;
    anyhow::ensure!(confirmed == args.cluster, "Cluster names specified do not match");
    let aware = prompt::demand(&format!(
        "You are about to remove all information in DCS for {}, please type: \"{AWARE}\"",
        args.cluster
    ))
    .await?;
    anyhow::ensure!(aware == AWARE, "You did not exactly type \"{AWARE}\"");
    if let Some(leader) = view.leader_name() {
        let named = prompt::demand(
            "This cluster currently is healthy. Please specify the leader name to continue",
        )
        .await?;
        anyhow::ensure!(
            named == leader.as_str(),
            "You did not specify the current leader of the cluster"
        );
    }
    store.remove().await?;
    Ok(ExitCode::SUCCESS)
}
