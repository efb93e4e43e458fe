//! Actions on the DCS. Each ends with a view at least as new as its effect; after an ambiguous
//! answer the view is read, and only then is the end told.

use std::sync::Arc;
use std::time::Duration;

use dcs::{Error, Renewal, Write};
use decide::{Act, ActionId, Leading, Outcome};
use postgres::Instance;
use types::{ClusterView, HistoryEntry, HistoryLine, Member, Millis, Revision, Timeline};

use crate::context::Context;
use crate::execute::{Ended, finished, with_sources};

/// Between two tries to read what became of an ambiguous write.
const READ_AGAIN: Duration = Duration::from_millis(200);
/// How long the watch may take to show our own write before it is read.
const OWN_WRITE: Millis = Millis(500);

/// Runs an action whose lane is the DCS, the lease, or the member key.
pub(crate) async fn execute<I: Instance>(
    context: &Arc<Context<I>>,
    id: ActionId,
    act: Act,
) -> Ended {
    match act {
        Act::TouchMember { member } => touch_member(context, id, &member).await,
        Act::MoveLease { ttl, member, leading } => {
            move_lease(context, id, ttl, (&member, leading)).await
        }
        Act::Renew { leader_key, status } => {
            let answer = context.store.renew(&context.session, leader_key, status.as_ref()).await;
            renewed(context, id, answer).await
        }
        Act::PublishHistory { leader_key, timeline } => {
            publish_history(context, id, leader_key, timeline).await
        }
        act => {
            let answer = write(context, act).await;
            written(context, id, answer).await
        }
    }
}

async fn write<I: Instance>(context: &Context<I>, act: Act) -> Result<Write, Error> {
    let (store, session) = (&context.store, &context.session);
    match act {
        Act::TakeInitialize => store.take_initialize(session).await,
        Act::CancelInitialize => store.cancel_initialize(session).await,
        Act::FinishBootstrap { system_identifier, term, sync } => {
            let bootstrap = dcs::Bootstrap {
                system_identifier: &system_identifier,
                config: &context.initial_config,
                leader: &context.name,
                term: &term,
                sync: sync.as_ref(),
            };
            store.finish_bootstrap(session, &bootstrap).await
        }
        Act::OpenFence { fence, sync_revision } => {
            store.open_fence(None, sync_revision, &fence).await
        }
        Act::WritePledge { pledge, fence } => {
            store.write_pledge(&context.name, &pledge, fence).await
        }
        Act::VoidFence { fence } => store.void_fence(fence).await,
        Act::TakeLeadership(winner) => {
            let winner = dcs::Winner {
                name: &context.name,
                expect_leader: winner.leader,
                sync_mod: winner.sync_revision,
                fence_mod: Some(winner.fence),
                term_mod: winner.term_revision,
                pledges: winner.pledges.clone().into_iter().collect(),
                term: &winner.term,
                sync: winner.sync.as_ref(),
                clear_failover: winner.clear_failover,
            };
            store.take_leadership(session, &winner).await
        }
        Act::RetakeLeadership(retake) => {
            let winner = dcs::Winner {
                name: &context.name,
                expect_leader: retake.leader,
                sync_mod: retake.sync_revision,
                fence_mod: retake.fence,
                term_mod: retake.term_revision,
                pledges: Vec::new(),
                term: &retake.term,
                sync: retake.sync.as_ref(),
                clear_failover: false,
            };
            store.take_leadership(session, &winner).await
        }
        Act::WriteFailsafe { leader_key, expected, members } => {
            store.write_failsafe(session, leader_key, expected, &members).await
        }
        Act::ReleaseLeader { leader_key, status } => {
            store.release_leader(session, leader_key, status.as_ref()).await
        }
        Act::WriteSync { leader_key, expected, sync } => match (sync, expected) {
            (Some(sync), _) => store.write_sync(session, leader_key, expected, &sync).await,
            (None, Some(expected)) => store.delete_sync(session, leader_key, expected).await,
            (None, None) => Ok(Write::Conflict),
        },
        Act::WriteHold { leader_key, hold } => store.write_hold(session, leader_key, &hold).await,
        Act::RemoveHold { leader_key } => store.remove_hold(session, leader_key).await,
        Act::ClearFailover { expected, request: _ } => store.clear_failover(expected).await,
        other => unreachable!("{other:?} is no write of the DCS lane"),
    }
}

/// Delivers the view that shows the write, or reads what is so after a doubt.
async fn written<I: Instance>(
    context: &Context<I>,
    id: ActionId,
    answer: Result<Write, Error>,
) -> Ended {
    match answer {
        Ok(Write::Written { revision }) => {
            let view = context.store.wait_revision(revision, OWN_WRITE).await.ok();
            let view = match view {
                Some(view) => view,
                None => read_until_answered(context).await,
            };
            Ended { view: Some(view), ..finished(id, Outcome::Done, None) }
        }
        Ok(Write::Conflict) => {
            let view = Some(read_until_answered(context).await);
            let detail = Some("a condition of the transaction was not met".to_owned());
            Ended { view, ..finished(id, Outcome::Failed, detail) }
        }
        Err(error) => {
            // Nothing was sent: nothing can have changed, and nobody has to wait for an answer.
            let ambiguous = matches!(error, Error::Ambiguous { .. });
            let view = if ambiguous { Some(read_until_answered(context).await) } else { None };
            let outcome = if ambiguous { Outcome::Unknown } else { Outcome::Failed };
            Ended { view, ..finished(id, outcome, Some(with_sources(&error))) }
        }
    }
}

/// Reads until the DCS answers. There is no limit: until then nobody knows what is so, and the lane
/// must stay shut (I4). The lease and the guard bound what a leader may do meanwhile.
async fn read_until_answered<I: Instance>(context: &Context<I>) -> Arc<ClusterView> {
    loop {
        match context.store.read().await {
            Ok(view) => return view,
            Err(error) => {
                tracing::debug!(%error, "reading after a write whose outcome is not known");
                tokio::time::sleep(READ_AGAIN).await;
            }
        }
    }
}

async fn touch_member<I: Instance>(context: &Context<I>, id: ActionId, member: &Member) -> Ended {
    let touched = async {
        let (lease, granted) = context.session.ensure().await?;
        let recorded = context.recorded.record_lease(lease).await;
        if let Err(error) = recorded {
            tracing::error!(%error, "the lease was not recorded; a restart will not adopt it");
        }
        let write = context.store.touch_member(&context.session, &context.name, member).await?;
        Ok::<_, Error>((granted, write))
    };
    match touched.await {
        Ok((granted, write)) => {
            let revision = write.revision().unwrap_or_default();
            let view = context.store.wait_revision(revision, OWN_WRITE).await.ok();
            let granted = granted.then(|| context.session.ttl());
            Ended { view, granted, ..finished(id, Outcome::Done, None) }
        }
        Err(error) => finished(id, Outcome::Failed, Some(with_sources(&error))),
    }
}

async fn move_lease<I: Instance>(
    context: &Context<I>,
    id: ActionId,
    ttl: Millis,
    (member, leading): (&Member, Option<Leading>),
) -> Ended {
    let leading = leading.as_ref().map(|leading| (leading.leader_key, &leading.term));
    let (store, session, name) = (&context.store, &context.session, &context.name);
    let answer = store.move_lease(session, ttl, (name, member), leading).await;
    let (answer, granted) = match answer {
        Ok((write, lives)) => {
            let granted = write.revision().map(|_| lives);
            (Ok(write), granted)
        }
        Err(error) => (Err(error), None),
    };
    let mut ended = written(context, id, answer).await;
    if ended.outcome == Outcome::Unknown {
        // Where our member key hangs, there the leader key does: one transaction wrote both.
        let view = ended.view.as_ref();
        let found = view.and_then(|view| view.members.get(name)).map(|member| member.lease);
        found.filter(|lease| *lease != 0).inspect(|lease| session.adopt(*lease));
    }
    if let Some(lease) = session.lease_id()
        && let Err(error) = context.recorded.record_lease(lease).await
    {
        tracing::error!(%error, "the lease was not recorded; a restart will not adopt it");
    }
    ended.granted = granted;
    ended
}

async fn renewed<I: Instance>(
    context: &Context<I>,
    id: ActionId,
    answer: Result<Renewal, Error>,
) -> Ended {
    match answer {
        Ok(Renewal::Renewed { revision: _, ttl }) => {
            // The answered time to live is what counts, whatever was asked for.
            Ended { granted: Some(ttl), ..finished(id, Outcome::Done, None) }
        }
        Ok(Renewal::Lost(loss)) => {
            // What else is so now matters more than waiting for the watch.
            let view = context.store.read().await.ok();
            let detail = Some(format!("the leadership is lost: {loss:?}"));
            Ended { view, ..finished(id, Outcome::Failed, detail) }
        }
        Err(error) => finished(id, Outcome::Failed, Some(with_sources(&error))),
    }
}

async fn publish_history<I: Instance>(
    context: &Context<I>,
    id: ActionId,
    leader_key: Revision,
    timeline: Timeline,
) -> Ended {
    let local = match context.instance.own_history(timeline).await {
        Ok(local) => local,
        Err(error) => return finished(id, Outcome::Failed, Some(with_sources(&error))),
    };
    let view = context.store.current().view;
    let known = view.as_ref().and_then(|v| v.history.as_ref()).map(|h| h.value.clone());
    let mut merged = merge_history(known.unwrap_or_default(), local, context.name.as_str());
    let history_max = context.limits().history_max;
    if history_max > 0 {
        merged.drain(..merged.len().saturating_sub(history_max));
    }
    let answer = context.store.write_history(&context.session, leader_key, &merged).await;
    written(context, id, answer).await
}

/// The local lines, with what the DCS already knows of time and leader; the newest is ours.
fn merge_history(
    known: Vec<HistoryEntry>,
    local: Vec<(HistoryLine, String)>,
    me: &str,
) -> Vec<HistoryEntry> {
    let last = local.len().saturating_sub(1);
    local
        .into_iter()
        .enumerate()
        .map(|(index, (line, reason))| {
            let old = known.iter().find(|e| e.timeline == line.timeline && e.switch == line.switch);
            match old {
                Some(old) if old.new_leader.is_some() => old.clone(),
                Some(_) | None => HistoryEntry {
                    timeline: line.timeline,
                    switch: line.switch,
                    reason,
                    timestamp: Some(jiff::Timestamp::now().to_string()),
                    new_leader: (index == last).then(|| me.to_owned()),
                },
            }
        })
        .collect()
}
