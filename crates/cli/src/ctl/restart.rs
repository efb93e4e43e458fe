//! `restart`: PostgreSQL is restarted on members, now or at a time.

use std::process::ExitCode;
use std::time::Duration;

use api::Settings;
use serde_json::{Map, Value, json};
use types::{ClusterView, MemberName, version_problem};

use super::ask::{self, ANSWER_LIMIT};
use super::restart_by_switchover;
use super::restart_plan::in_order;
use super::select::{Selection, list};
use super::store::Store;
use super::{CtlConfig, prompt, say, schedule};

/// A restart waits for a checkpoint, a stop and a start; the agent knows their limits, and this is
/// only above all of them.
pub(super) const RESTART_LIMIT: Duration = Duration::from_secs(3600);

/// What agents answer when PostgreSQL did not come up.
const IS_DOWN: [&str; 2] = ["restart failed", "postgres is still starting"];

/// `restart`.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct RestartArgs {
    /// Whom
    #[command(flatten)]
    pub(crate) selection: Selection,
    /// Restart a single member only
    #[arg(long)]
    pub(crate) any: bool,
    /// When, in an unambiguous format (e.g. ISO 8601)
    #[arg(long, value_name = "TIMESTAMP")]
    pub(crate) scheduled: Option<String>,
    /// Restart if the PostgreSQL version is less than provided (e.g. 9.5.2)
    #[arg(long, value_name = "VERSION")]
    pub(crate) pg_version: Option<String>,
    /// Restart if a parameter waits for it
    #[arg(long)]
    pub(crate) pending: bool,
    /// Return an error and fail over if necessary when restarting takes longer than this
    #[arg(long, value_name = "SECONDS")]
    pub(crate) timeout: Option<String>,
    /// Restart the leader while a synchronous standby leads, and go back
    #[arg(long, conflicts_with_all = ["any", "scheduled", "pg_version", "pending", "timeout"])]
    pub(crate) by_switchover: bool,
}

pub(super) async fn restart(args: RestartArgs, config: &CtlConfig) -> anyhow::Result<ExitCode> {
    let selection = &args.selection;
    let store = Store::open(config, &selection.cluster)?;
    if args.by_switchover {
        return restart_by_switchover::restart(&args, &store, config).await;
    }
    let view = store.read().await?;
    let mut names = selection.shown(&view)?;
    let scheduled = match &args.scheduled {
        Some(text) => text.clone(),
        None if selection.force => "now".to_owned(),
        None => {
            let example = schedule::example();
            let question = format!("When should the restart take place (e.g. {example}) ");
            prompt::ask(&question, "now").await?
        }
    };
    let scheduled = schedule::instant(&scheduled)?;
    if args.pending && scheduled.is_none() {
        names.retain(|name| view.member(name).is_some_and(|m| m.pending_restart));
    }
    if args.any {
        // Anyone will do; which one differs from call to call.
        let nanos = jiff::Timestamp::now().subsec_nanosecond().unsigned_abs() as usize;
        let chosen = names.get(nanos % names.len().max(1)).cloned();
        names = chosen.into_iter().collect();
    }
    confirm(&args, &names, scheduled.as_deref()).await?;
    let body = body(&args, &view, scheduled).await?;
    let mut all_up = true;
    for name in in_order(&view, names) {
        if !all_up && view.leader_name() == Some(&name) {
            say(&format!(
                "Skipped: restart for member {name}, which leads: a standby is not up\n"
            ))?;
            continue;
        }
        all_up &= ask_member(&args, &view, &name, config, &body).await?;
    }
    Ok(ExitCode::SUCCESS)
}

async fn confirm(
    args: &RestartArgs,
    names: &[MemberName],
    scheduled: Option<&str>,
) -> anyhow::Result<()> {
    let Some(at) = scheduled else {
        return args.selection.confirm(names, "restart").await;
    };
    if args.selection.force {
        return Ok(());
    }
    let question = if args.pending {
        "The nodes needing a restart will be identified at the scheduled time, and might be \
         different from the ones showing pending restart right now. Is this fine?"
            .to_owned()
    } else {
        let names = list(names);
        format!("Are you sure you want to schedule restart of members {names} at {at}?")
    };
    anyhow::ensure!(prompt::confirm(&question).await?, "Aborted scheduled restart");
    Ok(())
}

async fn body(
    args: &RestartArgs,
    view: &ClusterView,
    scheduled: Option<String>,
) -> anyhow::Result<Value> {
    let version = match &args.pg_version {
        Some(version) => version.clone(),
        None if args.selection.force => String::new(),
        None => {
            let question = "Restart if the PostgreSQL version is less than provided (e.g. 9.5.2) ";
            prompt::ask(question, "").await?
        }
    };
    let mut body = Map::new();
    if args.pending {
        body.insert("restart_pending".into(), Value::Bool(true));
    }
    if !version.is_empty() {
        if let Some(what) = version_problem(&version) {
            anyhow::bail!(what);
        }
        body.insert("postgres_version".into(), json!(version));
    }
    if let Some(at) = scheduled {
        let paused = Settings::from_view(view).paused;
        anyhow::ensure!(!paused, "Can't schedule restart in the paused state");
        body.insert("schedule".into(), json!(at));
    }
    if let Some(timeout) = &args.timeout {
        body.insert("timeout".into(), json!(timeout));
    }
    Ok(Value::Object(body))
}

/// Asks for one restart, and says what came of it; `false` if PostgreSQL did not come up.
async fn ask_member(
    args: &RestartArgs,
    view: &ClusterView,
    name: &MemberName,
    config: &CtlConfig,
    body: &Value,
) -> anyhow::Result<bool> {
    let waits = view.member(name).is_some_and(|m| m.scheduled_restart.is_some());
    if body.get("schedule").is_some() && args.selection.force && waits {
        let path = ("DELETE", "/restart");
        let flushed = ask::member(view, name, config, path, None, ANSWER_LIMIT).await;
        ask::report(&flushed, name, "flush scheduled restart", true)?;
    }
    let path = ("POST", "/restart");
    let asked = ask::member(view, name, config, path, Some(body), RESTART_LIMIT).await;
    say(&match &asked {
        Ok((200, _)) => format!("Success: restart on member {name}\n"),
        Ok((202, _)) => format!("Success: restart scheduled on member {name}\n"),
        Ok((409, _)) => {
            format!("Failed: another restart is already scheduled on member {name}\n")
        }
        Ok((status, text)) => {
            format!("Failed: restart for member {name}, status code={status}, ({text})\n")
        }
        Err(error) => format!("Failed: restart for member {name}, ({error:#})\n"),
    })?;
    Ok(!asked.is_ok_and(|(status, text)| status == 503 && IS_DOWN.contains(&text.as_str())))
}
