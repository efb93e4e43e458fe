//! What operators ask through REST, carried out on the DCS.

use std::sync::Arc;

use api::{ApiReply, ApiRequest, Command, ValidatedSwitchover};
use dcs::Write;
use decide::Answer;
use postgres::Instance;
use serde_json::{Value, json};
use types::{ClusterView, FailoverRequest, MemberName};

use crate::context::Context;
use crate::execute::with_sources;

/// How often a configuration is put in the place of one that changes under our hands.
const REPLACE_TRIES: u32 = 5;

/// One line for the journal.
pub(crate) fn summary(request: &ApiRequest) -> Value {
    json!({ "command": format!("{:?}", request.command) })
}

/// Carries the request out and answers it.
pub(crate) async fn serve<I: Instance>(
    context: Arc<Context<I>>,
    view: Option<Arc<ClusterView>>,
    request: ApiRequest,
) {
    let reply = match request.command {
        Command::Switchover(wanted) => {
            let leader = view.as_ref().and_then(|v| v.leader_name().cloned());
            write_failover(&context, &wanted, leader).await
        }
        Command::PatchConfig(patch) => patch_config(&context, &patch).await,
        Command::ReplaceConfig(document) => replace_config(&context, &document).await,
        Command::CancelSwitchover => cancel(&context, view.as_deref()).await,
        // The loop answers these itself: a promise is the brain's, the settings are the loop's.
        Command::Failsafe(_) => crate::failsafe::reply_of(None),
        Command::Reload => reply(503, "the agent does not reload"),
        Command::Restart(_) | Command::CancelRestart | Command::Reinitialize { .. } => {
            reply(503, "the brain was not asked")
        }
    };
    // The client may have left; the change is made all the same.
    drop(request.reply.send(reply));
}

/// What the brain decides about.
pub(crate) fn for_brain(command: &Command) -> Option<decide::Request> {
    match command {
        Command::Restart(request) => Some(decide::Request::Restart(request.clone())),
        Command::CancelRestart => Some(decide::Request::CancelRestart),
        Command::Reinitialize { force, from_leader } => {
            let (force, from_leader) = (*force, *from_leader);
            Some(decide::Request::Reinitialize { force, from_leader })
        }
        Command::Switchover(_)
        | Command::PatchConfig(_)
        | Command::ReplaceConfig(_)
        | Command::Reload
        | Command::CancelSwitchover
        | Command::Failsafe(_) => None,
    }
}

/// What the brain answered, in Patroni's words.
pub(crate) fn answer(answer: &Answer) -> ApiReply {
    match answer {
        Answer::Restarted => reply(200, "restarted successfully"),
        Answer::StillStarting => reply(503, "postgres is still starting"),
        Answer::RestartFailed => reply(503, "restart failed"),
        Answer::ConditionsNotMet => reply(503, "restart conditions are not satisfied"),
        Answer::RestartScheduled => reply(202, "Restart scheduled"),
        Answer::AlreadyScheduled => reply(409, "Another restart is already scheduled"),
        Answer::RestartCancelled => reply(200, "scheduled restart deleted"),
        Answer::NoneScheduled => reply(404, "no restarts are scheduled"),
        Answer::ReinitializeStarted => reply(200, "reinitialize started"),
        Answer::NoLeader => reply(503, "Cluster has no leader, can not reinitialize"),
        Answer::IsLeader => reply(503, "I am the leader, can not reinitialize"),
        Answer::Busy(what) => reply(503, format!("{what} already in progress")),
    }
}

fn reply(status: u16, text: impl Into<String>) -> ApiReply {
    ApiReply { status, text: text.into(), written: None }
}

async fn write_failover<I: Instance>(
    context: &Context<I>,
    wanted: &ValidatedSwitchover,
    present: Option<MemberName>,
) -> ApiReply {
    let (leader, member) = match wanted {
        ValidatedSwitchover::Switchover { leader, candidate, .. } => {
            (Some(leader.clone()), candidate.clone())
        }
        // With a leader there it is an orderly hand-over; only without one it forces anything.
        ValidatedSwitchover::Failover { candidate } => (present, Some(candidate.clone())),
    };
    let scheduled_at = match wanted {
        ValidatedSwitchover::Switchover { scheduled_at, .. } => scheduled_at.clone(),
        ValidatedSwitchover::Failover { .. } => None,
    };
    let request = FailoverRequest { leader, member, scheduled_at };
    let value = serde_json::to_value(&request).unwrap_or(Value::Null);
    match context.store.write_failover(&value).await {
        Ok(Write::Written { revision }) => {
            ApiReply { status: 200, text: String::new(), written: Some(revision) }
        }
        Ok(Write::Conflict) => reply(503, "failed to write failover key into DCS"),
        Err(error) => {
            tracing::warn!(error = with_sources(&error), "cannot write the failover key");
            reply(503, "failed to write failover key into DCS")
        }
    }
}

async fn patch_config<I: Instance>(context: &Context<I>, patch: &Value) -> ApiReply {
    let view = match context.store.read().await {
        Ok(view) => view,
        Err(error) => return reply(503, with_sources(&error)),
    };
    let Some(config) = &view.config else {
        return reply(503, "there is no dynamic configuration in the DCS");
    };
    let Some(document) = api::json::merge_patch(&config.value, patch) else {
        return reply(200, api::json::spaced(&config.value));
    };
    // Refused before anything changes: a document that no member would accept.
    if let Err(errors) = config::Dynamic::from_json(&document) {
        return reply(400, errors.join("; "));
    }
    match context.store.patch_config(Some(config.mod_revision), &document).await {
        Ok(Write::Written { .. }) => reply(200, api::json::spaced(&document)),
        Ok(Write::Conflict) => reply(409, "the configuration was changed by somebody else"),
        Err(error) => reply(503, with_sources(&error)),
    }
}

/// Whatever was written meanwhile is replaced as well; so a conflict is only tried again.
async fn replace_config<I: Instance>(context: &Context<I>, document: &Value) -> ApiReply {
    if let Err(errors) = config::Dynamic::from_json(document) {
        return reply(400, errors.join("; "));
    }
    for _ in 0..REPLACE_TRIES {
        let view = match context.store.read().await {
            Ok(view) => view,
            Err(error) => return reply(502, with_sources(&error)),
        };
        let present = view.config.as_ref().map(|config| config.mod_revision);
        match context.store.patch_config(present, document).await {
            Ok(Write::Written { .. }) => return reply(200, api::json::spaced(document)),
            Ok(Write::Conflict) => {}
            Err(error) => return reply(502, with_sources(&error)),
        }
    }
    reply(502, "the configuration is being changed by others all the time")
}

async fn cancel<I: Instance>(context: &Context<I>, view: Option<&ClusterView>) -> ApiReply {
    let Some(key) = view.and_then(|v| v.failover.as_ref()) else {
        return reply(404, "no switchover is scheduled");
    };
    match context.store.clear_failover(key.mod_revision).await {
        Ok(Write::Written { .. }) => reply(200, "scheduled switchover deleted"),
        Ok(Write::Conflict) => reply(409, "the request was changed by somebody else"),
        Err(error) => reply(503, with_sources(&error)),
    }
}
