//! `switchover` and `failover` (as Patroni 4.1 has it).

use std::process::ExitCode;
use std::time::Duration;

use api::client::ClientError;
use api::cluster::is_voter;
use api::{Settings, Synchronous};
use serde_json::{Map, Value, json};
use types::{ClusterView, FailoverRequest, MemberName, Millis};

use super::store::Store;
use super::table::{Format, Layout, members_text};
use super::{CtlConfig, prompt, say, schedule, timestamp};

/// Above the agent's own limit of twice the larger of this and `loop_wait`, which applies once to
/// its answer and once to the outcome.
const AGENT_WAIT_MIN: Millis = Millis::from_secs(10);

const LAYOUT: Layout = Layout { format: Format::Pretty, extended: false, tree: false };

/// `switchover`.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct SwitchoverArgs {
    /// Name of the cluster; the configured one if none is given
    #[arg(value_name = "CLUSTER_NAME")]
    pub(crate) cluster: Option<String>,
    /// The name of the current leader
    #[arg(long, visible_alias = "primary")]
    pub(crate) leader: Option<String>,
    /// The name of the candidate
    #[arg(long)]
    pub(crate) candidate: Option<String>,
    /// When it should take place, in ISO 8601; `now` by default
    #[arg(long, value_name = "TIMESTAMP")]
    pub(crate) scheduled: Option<String>,
    /// Do not ask for confirmation at any point
    #[arg(long)]
    pub(crate) force: bool,
}

/// `failover`.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct FailoverArgs {
    /// Name of the cluster; the configured one if none is given
    #[arg(value_name = "CLUSTER_NAME")]
    pub(crate) cluster: Option<String>,
    /// The name of the candidate
    #[arg(long)]
    pub(crate) candidate: Option<String>,
    /// Do not ask for confirmation at any point
    #[arg(long)]
    pub(crate) force: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Action {
    Switchover,
    Failover,
}

impl Action {
    const fn as_str(self) -> &'static str {
        match self {
            Action::Switchover => "switchover",
            Action::Failover => "failover",
        }
    }

    const fn title(self) -> &'static str {
        match self {
            Action::Switchover => "Switchover",
            Action::Failover => "Failover",
        }
    }
}

pub(super) async fn switchover(
    args: SwitchoverArgs,
    config: &CtlConfig,
) -> anyhow::Result<ExitCode> {
    change(Action::Switchover, args, config).await
}

pub(super) async fn failover(args: FailoverArgs, config: &CtlConfig) -> anyhow::Result<ExitCode> {
    let FailoverArgs { cluster, candidate, force } = args;
    let args = SwitchoverArgs { cluster, leader: None, candidate, scheduled: None, force };
    change(Action::Failover, args, config).await
}

async fn change(
    action: Action,
    args: SwitchoverArgs,
    config: &CtlConfig,
) -> anyhow::Result<ExitCode> {
    let scope = config.scope_or(args.cluster.as_deref())?;
    let store = Store::open(config, scope)?;
    let view = store.read().await?;
    say(&format!("Current cluster topology\n{}", members_text(&view, scope, LAYOUT)))?;
    let leader = match action {
        Action::Switchover => Some(choose_leader(&args, &view, scope).await?),
        Action::Failover => None,
    };
    let candidate = choose_candidate(action, &args, &view, scope).await?;
    if let (Action::Failover, Some(candidate)) = (action, &candidate) {
        confirm_loss(&args, &view, candidate).await?;
    }
    let scheduled_at = match action {
        Action::Switchover => choose_time(&args, &view).await?,
        Action::Failover => None,
    };
    confirm(action, &args, &view, scope, scheduled_at.as_deref()).await?;
    let request = FailoverRequest { leader, member: candidate, scheduled_at };
    let (well, text) = carry_out(action, &request, &store, &view, config).await?;
    say(&text)?;
    if well {
        say(&members_text(&*store.read().await?, scope, LAYOUT))?;
    }
    Ok(ExitCode::SUCCESS)
}

async fn choose_leader(
    args: &SwitchoverArgs,
    view: &ClusterView,
    scope: &str,
) -> anyhow::Result<MemberName> {
    let Some(present) = view.leader_name() else {
        anyhow::bail!("This cluster has no leader");
    };
    let named = match &args.leader {
        Some(name) => name.clone(),
        None if args.force => present.0.clone(),
        None if Settings::from_view(view).standby_cluster => {
            prompt::ask("Standby Leader", present.as_str()).await?
        }
        None => prompt::ask("Primary", present.as_str()).await?,
    };
    if named != present.0 {
        anyhow::bail!("Member {named} is not the leader of cluster {scope}");
    }
    Ok(present.clone())
}

/// The members that may lead and do not, by name.
fn candidates(view: &ClusterView) -> Vec<&MemberName> {
    let others = view.members.iter().filter(|(name, _)| Some(*name) != view.leader_name());
    others.filter(|(_, m)| !m.value.tags.nofailover()).map(|(name, _)| name).collect()
}

async fn choose_candidate(
    action: Action,
    args: &SwitchoverArgs,
    view: &ClusterView,
    scope: &str,
) -> anyhow::Result<Option<MemberName>> {
    let names = candidates(view);
    if names.is_empty() {
        anyhow::bail!("No candidates found to {} to", action.as_str());
    }
    let named = match &args.candidate {
        Some(name) => name.clone(),
        None if args.force => String::new(),
        None => {
            let quoted: Vec<String> = names.iter().map(|n| format!("'{n}'")).collect();
            prompt::ask(&format!("Candidate [{}]", quoted.join(", ")), "").await?
        }
    };
    check_candidate(action, &named, &names, view, scope)
}

fn check_candidate(
    action: Action,
    named: &str,
    names: &[&MemberName],
    view: &ClusterView,
    scope: &str,
) -> anyhow::Result<Option<MemberName>> {
    if named.is_empty() {
        return match action {
            Action::Switchover => Ok(None),
            Action::Failover => {
                anyhow::bail!("Failover could be performed only to a specific candidate")
            }
        };
    }
    let named = MemberName::from(named);
    if view.leader_name() == Some(&named) {
        anyhow::bail!("Member {named} is already the leader of cluster {scope}");
    }
    if !names.contains(&&named) {
        anyhow::bail!(
            "Member {named} does not exist in cluster {scope} or is tagged as nofailover"
        );
    }
    Ok(Some(named))
}

/// A failover to a member outside the synchronous set can lose what was acknowledged (I2): the
/// operator is shown how far it is behind.
async fn confirm_loss(
    args: &SwitchoverArgs,
    view: &ClusterView,
    candidate: &MemberName,
) -> anyhow::Result<()> {
    let asynchronous = outside_sync_set(view, candidate);
    if args.force || !asynchronous {
        return Ok(());
    }
    let infos = api::cluster::members(view);
    let info = infos.iter().find(|i| i.name == candidate);
    let lag = info.and_then(|i| i.newest).and_then(|p| p.lag);
    say(&match lag {
        Some(bytes) => format!("{candidate} is {bytes} bytes behind the last published position\n"),
        None => format!("It is not known how far {candidate} is behind\n"),
    })?;
    let question = "Are you sure you want to failover to the asynchronous node";
    if prompt::confirm(&format!("{question} {candidate}?")).await? {
        return Ok(());
    }
    anyhow::bail!("Aborting failover")
}

fn outside_sync_set(view: &ClusterView, candidate: &MemberName) -> bool {
    let listed = view.active_sync().is_some_and(|s| is_voter(&s.value, candidate));
    Settings::from_view(view).synchronous != Synchronous::Off
        && view.active_sync().is_some()
        && !listed
}

/// `None` for now.
async fn choose_time(args: &SwitchoverArgs, view: &ClusterView) -> anyhow::Result<Option<String>> {
    let text = match &args.scheduled {
        Some(text) => text.clone(),
        None if args.force => "now".to_owned(),
        None => {
            let question = "When should the switchover take place (e.g.";
            prompt::ask(&format!("{question} {} ) ", schedule::example()), "now").await?
        }
    };
    let Some(at) = schedule::instant(&text)? else {
        return Ok(None);
    };
    if Settings::from_view(view).paused {
        anyhow::bail!("Can't schedule switchover in the paused state");
    }
    Ok(Some(at))
}

async fn confirm(
    action: Action,
    args: &SwitchoverArgs,
    view: &ClusterView,
    scope: &str,
    scheduled_at: Option<&str>,
) -> anyhow::Result<()> {
    if args.force {
        return Ok(());
    }
    let demoting = view.leader_name().map(|l| format!(", demoting current leader {l}"));
    let demoting = demoting.unwrap_or_default();
    let what = match scheduled_at {
        Some(at) => format!("schedule switchover of cluster {scope} at {at}{demoting}"),
        None => format!("{} cluster {scope}{demoting}", action.as_str()),
    };
    if prompt::confirm(&format!("Are you sure you want to {what}?")).await? {
        return Ok(());
    }
    let scheduled = if scheduled_at.is_some() { "scheduled " } else { "" };
    anyhow::bail!("Aborting {scheduled}{}", action.as_str())
}

/// Asks the leader's agent, or the candidate's without a leader; past the agents when that one does
/// not answer. Returns what is to be printed, and whether it was done or written down.
async fn carry_out(
    action: Action,
    request: &FailoverRequest,
    store: &Store,
    view: &ClusterView,
    config: &CtlConfig,
) -> anyhow::Result<(bool, String)> {
    let answer = post(action, request, view, config).await;
    let (status, text) = match answer {
        Ok(answer) => answer,
        // It was sent and may be under way: asking again in the DCS could start it twice.
        Err(error) if sent(&error) => {
            let title = action.title();
            return Ok((false, format!("{title} result unknown, details: {error:#}\n")));
        }
        Err(error) => {
            eprintln!("{error:#}");
            store.request_failover(request).await?;
            let name = action.as_str();
            let at = timestamp(5);
            let text = format!("{at} Could not {name} using Patroni api, falling back to DCS\n");
            return Ok((true, text));
        }
    };
    let well = matches!(status, 200 | 202);
    let text = match status {
        200 | 202 => format!("{} {text}\n", timestamp(5)),
        503 if text.contains("status unknown") || text.contains("may still be in progress") => {
            format!("{} result unknown, details: {status}, {text}\n", action.title())
        }
        _ => format!("{} failed, details: {status}, {text}\n", action.title()),
    };
    Ok((well, text))
}

/// One switchover to its end.
///
/// # Errors
/// It did not take place, or it is not known whether it did.
pub(super) async fn hand_over(
    request: &FailoverRequest,
    view: &ClusterView,
    config: &CtlConfig,
) -> anyhow::Result<()> {
    let (status, text) = post(Action::Switchover, request, view, config).await?;
    anyhow::ensure!(status == 200, "the switchover was answered {status}, {text}");
    Ok(())
}

/// Whether the request may have reached the agent.
fn sent(error: &anyhow::Error) -> bool {
    match error.downcast_ref::<ClientError>() {
        None | Some(ClientError::Connect { .. } | ClientError::Request { .. }) => false,
        Some(
            ClientError::Exchange { .. } | ClientError::Body { .. } | ClientError::Limit { .. },
        ) => true,
    }
}

async fn post(
    action: Action,
    request: &FailoverRequest,
    view: &ClusterView,
    config: &CtlConfig,
) -> anyhow::Result<(u16, String)> {
    let whom = view.leader_name().or(request.member.as_ref());
    let member = whom.and_then(|name| view.member(name));
    let Some(address) = member.and_then(types::Member::api_address) else {
        anyhow::bail!("no REST address of {} is known", whom.map_or("a leader", |w| w.as_str()));
    };
    let body = serde_json::to_vec(&body_of(request))?;
    let wait = Settings::from_view(view).loop_wait.max(AGENT_WAIT_MIN);
    let limit = wait.as_duration() * 4 + Duration::from_secs(1);
    let auth = config.auth();
    let path = format!("/{}", action.as_str());
    let (status, answer) =
        config.rest.request("POST", &address, &path, Some(body.clone()), auth, limit).await?;
    let text = String::from_utf8_lossy(&answer).into_owned();
    // Very old agents know /failover alone.
    if status == 501 && text.contains("Server does not support this operation") {
        let path = "/failover";
        let (status, answer) =
            config.rest.request("POST", &address, path, Some(body), auth, limit).await?;
        return Ok((status, String::from_utf8_lossy(&answer).into_owned()));
    }
    Ok((status, text))
}

fn body_of(request: &FailoverRequest) -> Value {
    let mut body = Map::new();
    let names = [("leader", &request.leader), ("candidate", &request.member)];
    for (key, name) in names {
        if let Some(name) = name {
            body.insert(key.into(), json!(name));
        }
    }
    if let Some(at) = &request.scheduled_at {
        body.insert("scheduled_at".into(), json!(at));
    }
    Value::Object(body)
}

#[cfg(test)]
mod tests {
    use super::*;
    use types::{KeyValue, Revision};

    fn view() -> ClusterView {
        let pairs = [
            ("leader", "a"),
            ("config", r#"{"synchronous_mode":"quorum"}"#),
            ("sync", r#"{"leader":"a","quorum":0,"sync_standby":"b"}"#),
            ("members/a", "{}"),
            ("members/b", "{}"),
            ("members/c", "{}"),
            ("members/dr", r#"{"tags":{"nofailover":true}}"#),
        ];
        let keys = pairs.map(|(key, value)| KeyValue {
            key: key.to_owned(),
            value: value.as_bytes().to_vec(),
            create_revision: Revision(1),
            mod_revision: Revision(1),
            lease: 0,
        });
        ClusterView::from_keys(Revision(1), &keys)
    }

    #[test]
    fn candidates_are_checked() {
        let view = view();
        let names = candidates(&view);
        assert_eq!(names.iter().map(|n| n.as_str()).collect::<Vec<_>>(), ["b", "c"]);
        let check = |action, name| {
            check_candidate(action, name, &names, &view, "demo").map_err(|e| e.to_string())
        };
        assert_eq!(check(Action::Switchover, ""), Ok(None));
        assert_eq!(check(Action::Failover, "c"), Ok(Some("c".into())));
        let refused = [
            (Action::Failover, "", "Failover could be performed only to a specific candidate"),
            (Action::Switchover, "a", "Member a is already the leader of cluster demo"),
            (
                Action::Switchover,
                "dr",
                "Member dr does not exist in cluster demo or is tagged as nofailover",
            ),
        ];
        for (action, name, text) in refused {
            assert_eq!(check(action, name), Err(text.to_owned()));
        }
    }

    #[test]
    fn who_is_outside_the_set() {
        assert!(outside_sync_set(&view(), &"c".into()));
        assert!(!outside_sync_set(&view(), &"b".into()));
    }

    #[test]
    fn bodies_have_patronis_fields() {
        let request = FailoverRequest {
            leader: Some("a".into()),
            member: Some("b".into()),
            scheduled_at: None,
        };
        assert_eq!(body_of(&request), json!({"leader": "a", "candidate": "b"}));
    }
}
