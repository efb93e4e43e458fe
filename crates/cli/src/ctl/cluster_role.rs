//! `demote-cluster` and `promote-cluster`: a cluster becomes the standby of another one, or one of
//! its own, by its dynamic configuration; the leader does the rest.

use std::process::ExitCode;
use std::time::Duration;

use serde_json::{Map, Value, json};
use types::{ClusterView, Member, MemberName};

use super::ask::{self, ANSWER_LIMIT};
use super::store::Store;
use super::table::{Format, Layout, members_text};
use super::{CtlConfig, prompt, say, timestamp};

/// How often it is looked whether the cluster is there yet.
const LOOK_EVERY: Duration = Duration::from_secs(1);

const LAYOUT: Layout = Layout { format: Format::Pretty, extended: false, tree: false };

/// `demote-cluster`.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct DemoteClusterArgs {
    /// Name of the cluster; the configured one if none is given
    #[arg(value_name = "CLUSTER_NAME")]
    pub(crate) cluster: Option<String>,
    /// Address of the remote node
    #[arg(long)]
    pub(crate) host: Option<String>,
    /// Port of the remote node
    #[arg(long)]
    pub(crate) port: Option<u16>,
    /// Command to restore WAL of the remote primary
    #[arg(long, value_name = "COMMAND")]
    pub(crate) restore_command: Option<String>,
    /// Slot on the remote node
    #[arg(long, value_name = "SLOT")]
    pub(crate) primary_slot_name: Option<String>,
    /// Do not ask for confirmation
    #[arg(long)]
    pub(crate) force: bool,
}

/// `promote-cluster`.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct PromoteClusterArgs {
    /// Name of the cluster; the configured one if none is given
    #[arg(value_name = "CLUSTER_NAME")]
    pub(crate) cluster: Option<String>,
    /// Do not ask for confirmation
    #[arg(long)]
    pub(crate) force: bool,
}

/// Where the cluster shall go.
struct Change {
    /// `demot` or `promot`: what the words begin with.
    verb: &'static str,
    /// The leader's role then.
    role: &'static str,
    /// The section; null takes it away.
    section: Value,
}

pub(super) async fn demote(
    args: DemoteClusterArgs,
    config: &CtlConfig,
) -> anyhow::Result<ExitCode> {
    let mut section = Map::new();
    let mut put = |key: &str, value: Option<Value>| {
        if let Some(value) = value {
            section.insert(key.to_owned(), value);
        }
    };
    put("host", args.host.map(Value::from));
    put("port", args.port.map(Value::from));
    put("restore_command", args.restore_command.map(Value::from));
    anyhow::ensure!(
        !section.is_empty(),
        "At least --host, --port or --restore-command should be specified"
    );
    if let Some(slot) = args.primary_slot_name {
        section.insert("primary_slot_name".to_owned(), Value::from(slot));
    }
    let section = Value::Object(section);
    let change = Change { verb: "demot", role: "standby_leader", section };
    go(args.cluster.as_deref(), args.force, &change, config).await
}

pub(super) async fn promote(
    args: PromoteClusterArgs,
    config: &CtlConfig,
) -> anyhow::Result<ExitCode> {
    let change = Change { verb: "promot", role: "primary", section: Value::Null };
    go(args.cluster.as_deref(), args.force, &change, config).await
}

async fn go(
    cluster: Option<&str>,
    force: bool,
    change: &Change,
    config: &CtlConfig,
) -> anyhow::Result<ExitCode> {
    let scope = config.scope_or(cluster)?;
    let store = Store::open(config, scope)?;
    let view = store.read().await?;
    let verb = change.verb;
    let Some(leader) = view.leader_name() else {
        anyhow::bail!("Cluster has no leader, {verb}ion is not possible");
    };
    let there = view.member(leader).is_some_and(|member| member.role == change.role);
    anyhow::ensure!(!there, "Cluster is already in the required state");
    say(&format!("Current cluster topology\n{}", members_text(&view, scope, LAYOUT)))?;
    if !force {
        let question = format!("Are you sure you want to {verb}e {scope} cluster?");
        anyhow::ensure!(prompt::confirm(&question).await?, "Aborted cluster {verb}ion");
    }
    let body = json!({ "standby_cluster": change.section });
    let path = ("PATCH", "/config");
    match ask::member(&view, leader, config, path, Some(&body), ANSWER_LIMIT).await {
        Ok((200, _)) => {}
        Ok((status, text)) => anyhow::bail!(
            "Failed to {verb}e {scope} cluster: /config PATCH status code={status}, ({text})"
        ),
        Err(error) => anyhow::bail!("Failed to {verb}e {scope} cluster: {error:#}"),
    }
    wait(&store, leader, change).await?;
    say(&members_text(&*store.read().await?, scope, LAYOUT))?;
    Ok(ExitCode::SUCCESS)
}

/// One line each second until the cluster is there; whoever has seen enough breaks it off.
async fn wait(store: &Store, former: &MemberName, change: &Change) -> anyhow::Result<()> {
    loop {
        let view = store.read().await?;
        if is_there(&view, former, change) {
            let at = timestamp(0);
            say(&format!("{at} cluster is successfully {}ed\n", change.verb))?;
            return Ok(());
        }
        say(&format!("{} {}\n", timestamp(0), progress(&view, former, change)))?;
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

fn is_there(view: &ClusterView, former: &MemberName, change: &Change) -> bool {
    let runs = |name: &MemberName| view.member(name).is_some_and(|m| m.state == "running");
    let leads = view.leader_name().is_some_and(|leader| {
        view.member(leader).is_some_and(|m| m.role == change.role) && runs(leader)
    });
    leads && (change.section.is_null() || runs(former))
}

fn progress(view: &ClusterView, former: &MemberName, change: &Change) -> String {
    let leader = view.leader_name().and_then(|name| view.member(name));
    let text = |what: fn(&Member) -> &String| leader.map_or("None", |m| what(m).as_str());
    let unlocked = if leader.is_none() { "True" } else { "False" };
    let (role, state) = (text(|m| &m.role), text(|m| &m.state));
    let mut line =
        format!("cluster is unlocked: {unlocked}, leader role: {role}, leader state: {state}");
    let elsewhere = view.leader_name().is_some_and(|name| name != former);
    if !change.section.is_null()
        && elsewhere
        && let Some(member) = view.member(former)
    {
        line.push_str(&format!(", previous leader state: '{}'", member.state));
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ctl::test_view::view;

    #[test]
    fn a_demoted_cluster_needs_its_former_leader_running() {
        let demoted =
            Change { verb: "demot", role: "standby_leader", section: json!({"host": "x"}) };
        let leads = r#"{"role":"standby_leader","state":"running"}"#;
        let stopped = r#"{"role":"replica","state":"stopped"}"#;
        let former = MemberName::from("a");
        let moved = view(&[("leader", "b"), ("members/a", stopped), ("members/b", leads)]);
        assert!(!is_there(&moved, &former, &demoted));
        let expected = "cluster is unlocked: False, leader role: standby_leader, leader state: \
                        running, previous leader state: 'stopped'";
        assert_eq!(progress(&moved, &former, &demoted), expected);
        let stays = view(&[("leader", "a"), ("members/a", leads)]);
        assert!(is_there(&stays, &former, &demoted));
        let promoted = Change { verb: "promot", role: "primary", section: Value::Null };
        assert!(!is_there(&stays, &former, &promoted));
        let nobody = "cluster is unlocked: True, leader role: None, leader state: None";
        assert_eq!(progress(&view(&[]), &former, &promoted), nobody);
    }
}
