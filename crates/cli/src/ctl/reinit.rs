//! `reinit`: the data of replicas is copied anew, from the leader or a member that offers itself.

use std::process::ExitCode;
use std::time::Duration;

use api::cluster::members;
use serde_json::{Value, json};
use types::{ClusterView, MemberName};

use super::ask::{self, ANSWER_LIMIT};
use super::select::{Role, Selection, list};
use super::store::Store;
use super::{CtlConfig, prompt, say};

/// How often `--wait` looks.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// `reinit`.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct ReinitArgs {
    /// Name of the cluster
    #[arg(value_name = "CLUSTER_NAME")]
    pub(crate) cluster: String,
    /// Names of members
    #[arg(value_name = "MEMBER_NAMES")]
    pub(crate) members: Vec<String>,
    /// Do not ask for confirmation, and give up what a member is doing
    #[arg(long)]
    pub(crate) force: bool,
    /// Copy from the leader, whoever else could be copied
    #[arg(long)]
    pub(crate) from_leader: bool,
    /// Wait until the copies are complete
    #[arg(long)]
    pub(crate) wait: bool,
}

pub(super) async fn reinit(args: ReinitArgs, config: &CtlConfig) -> anyhow::Result<ExitCode> {
    let store = Store::open(config, &args.cluster)?;
    let view = store.read().await?;
    let names = choose(&args, &view).await?;
    let mut waiting = Vec::new();
    for name in names {
        if start(&args, &view, &name, config).await? {
            waiting.push(name);
        }
    }
    if args.wait {
        wait(&view, waiting, config).await?;
    }
    Ok(ExitCode::SUCCESS)
}

async fn choose(args: &ReinitArgs, view: &ClusterView) -> anyhow::Result<Vec<MemberName>> {
    let replicas: Vec<MemberName> = members(view)
        .iter()
        .filter(|member| Role::Replica.fits(member))
        .map(|member| member.name.clone())
        .collect();
    let selection = Selection {
        cluster: args.cluster.clone(),
        members: args.members.clone(),
        role: Some(Role::Replica),
        force: args.force,
    };
    let names = if args.members.is_empty() {
        selection.show(view)?;
        if args.force {
            return Ok(Vec::new());
        }
        let listed = list(&replicas);
        let question = format!("Which member do you want to reinitialize [{listed}]?");
        let name = MemberName::from(prompt::ask(&question, "").await?.as_str());
        anyhow::ensure!(replicas.contains(&name), "{name} is not a member of cluster");
        vec![name]
    } else {
        selection.shown(view)?
    };
    selection.confirm(&names, "reinitialize").await?;
    Ok(names)
}

/// True if the member has begun.
async fn start(
    args: &ReinitArgs,
    view: &ClusterView,
    name: &MemberName,
    config: &CtlConfig,
) -> anyhow::Result<bool> {
    let mut force = args.force;
    loop {
        let body = json!({ "force": force, "from_leader": args.from_leader });
        let path = ("POST", "/reinitialize");
        let asked = ask::member(view, name, config, path, Some(&body), ANSWER_LIMIT).await;
        if ask::report(&asked, name, "reinitialize", false)? {
            return Ok(true);
        }
        let busy = asked.is_ok_and(|(_, text)| text.ends_with(" already in progress"));
        let question = "Do you want to cancel it and reinitialize anyway?";
        if !busy || force || !prompt::confirm(question).await? {
            return Ok(false);
        }
        force = true;
    }
}

/// A member says `creating replica` from the moment on at which it has taken the request.
async fn wait(
    view: &ClusterView,
    mut waiting: Vec<MemberName>,
    config: &CtlConfig,
) -> anyhow::Result<()> {
    let mut said = 0;
    while !waiting.is_empty() {
        if said != waiting.len() {
            let names = list(&waiting);
            say(&format!("Waiting for reinitialize to complete on: {names}\n"))?;
            said = waiting.len();
        }
        tokio::time::sleep(LOOK_EVERY).await;
        let mut rest = Vec::new();
        for name in waiting {
            let path = ("GET", "/patroni");
            let (_, text) = ask::member(view, &name, config, path, None, ANSWER_LIMIT).await?;
            let status: Value = serde_json::from_str(&text)?;
            if status.get("state").and_then(Value::as_str) == Some("creating replica") {
                rest.push(name);
            } else {
                say(&format!("Reinitialize is completed on: {name}\n"))?;
            }
        }
        waiting = rest;
    }
    Ok(())
}
