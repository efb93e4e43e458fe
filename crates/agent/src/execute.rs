//! Carries out one action and says how it ended. What the brain may rely on is written at
//! [`decide::Act`]; each function here keeps that order.

use std::collections::BTreeMap;
use std::sync::Arc;

use decide::foreign::ForeignAnswer;
use decide::{Act, Action, ActionId, Outcome, STOP_FAST, StartAs, StopMode, SyncRule};
use postgres::Instance;
use types::{
    ClusterView, Compared, Durable, DurablePledge, InProgress, LocalPostgres, Lsn, MemberName,
    Millis, Position, Term, Timeline, Upstream,
};

use crate::context::Context;
use crate::failsafe;
use crate::on_dcs;
use crate::peer;

/// The end of an action, with the pictures that the brain must see before it.
pub(crate) struct Ended {
    pub(crate) id: ActionId,
    pub(crate) outcome: Outcome,
    pub(crate) view: Option<Arc<ClusterView>>,
    pub(crate) local: Option<LocalPostgres>,
    /// The lease's time to live, when a new one was granted.
    pub(crate) granted: Option<Millis>,
    /// The newest term that another member knows of, if they were asked.
    pub(crate) term_seen: Option<Term>,
    /// What members that do not pledge said they hold, if they were asked.
    pub(crate) positions: Option<BTreeMap<MemberName, Option<ForeignAnswer>>>,
    /// What the members that were asked hold.
    pub(crate) held: Option<BTreeMap<MemberName, Lsn>>,
    /// What came back, for journal and log.
    pub(crate) detail: Option<String>,
}

/// How an action on PostgreSQL failed, as text for journal and log.
type Failure = Box<dyn std::error::Error + Send + Sync>;

/// An immediate stop gets so long before SIGKILL.
const STOP_IMMEDIATE: Millis = Millis(1_000);
/// How long a voter may need to stop receiving and replay what it has.
const STOP_RECEIVING: Millis = Millis(10_000);
/// How long all sessions may take to see a new rule.
const SET_SYNC: Millis = Millis(5_000);
/// How long a start may take where `primary_start_timeout` says nothing of it.
const START: Millis = Millis(300_000);
/// How long a promotion may take before it is looked at anew.
const PROMOTE: Millis = Millis(60_000);

/// Runs the action to its end.
pub(crate) async fn execute<I: Instance>(context: Arc<Context<I>>, action: Action) -> Ended {
    let id = action.id;
    match action.act {
        act @ (Act::TouchMember { .. }
        | Act::Renew { .. }
        | Act::MoveLease { .. }
        | Act::TakeInitialize
        | Act::CancelInitialize
        | Act::FinishBootstrap { .. }
        | Act::OpenFence { .. }
        | Act::WritePledge { .. }
        | Act::VoidFence { .. }
        | Act::TakeLeadership(_)
        | Act::RetakeLeadership(_)
        | Act::WriteFailsafe { .. }
        | Act::ReleaseLeader { .. }
        | Act::WriteSync { .. }
        | Act::PublishHistory { .. }
        | Act::WriteHold { .. }
        | Act::RemoveHold { .. }
        | Act::ClearFailover { .. }) => on_dcs::execute(&context, id, act).await,
        Act::ArmGuard { kill_at } => guard_ended(id, context.guard.arm(kill_at).await),
        Act::StandDownGuard => guard_ended(id, context.guard.stand_down().await),
        Act::ForgetFreshCopy => {
            let forgotten = context.recorded.update(|d| d.fresh_copy = false).await;
            let local = Some(context.observe().await);
            let detail = forgotten.as_ref().err().map(|error| with_sources(error));
            let outcome = if detail.is_none() { Outcome::Done } else { Outcome::Failed };
            Ended { local, ..finished(id, outcome, detail) }
        }
        act @ (Act::AskFailsafe { .. }
        | Act::AskTerms { .. }
        | Act::AskPositions { .. }
        | Act::Knock { .. }) => on_members(&context, id, act).await,
        Act::Exit { .. } => finished(id, Outcome::Done, None),
        act @ (Act::Initdb
        | Act::Restore
        | Act::Clone { .. }
        | Act::Rewind { .. }
        | Act::Compare { .. }
        | Act::Start { .. }
        | Act::Stop { .. }
        | Act::StopForHandOver { .. }
        | Act::ArchiveShutdownCheckpoint
        | Act::EndOrphans
        | Act::Follow { .. }
        | Act::StopReceiving { .. }
        | Act::Promote { .. }
        | Act::SetSync { .. }
        | Act::ConfirmWrite
        | Act::Checkpoint
        | Act::EndStrangers { .. }
        | Act::SyncSlots { .. }
        | Act::DecodeSlots { .. }
        | Act::FetchSlots { .. }
        | Act::CopySlots { .. }) => {
            let result = on_postgres(&context, act).await;
            let local = Some(context.observe().await);
            let (outcome, detail) = match result {
                Ok(()) => (Outcome::Done, None),
                Err(error) => (Outcome::Failed, Some(with_sources(error.as_ref()))),
            };
            Ended { local, ..finished(id, outcome, detail) }
        }
    }
}

/// Questions to other members.
async fn on_members<I: Instance>(context: &Arc<Context<I>>, id: ActionId, act: Act) -> Ended {
    match act {
        Act::AskFailsafe { members, term, ttl, limit, slots } => {
            let question = failsafe::Question { term, ttl, slots };
            match failsafe::ask(context, &members, &question, limit).await {
                Ok(held) => Ended { held: Some(held), ..finished(id, Outcome::Done, None) },
                Err(missing) => finished(id, Outcome::Failed, Some(missing)),
            }
        }
        Act::AskTerms { members, limit } => {
            let term_seen = peer::newest_term(&context.rest(), &members, limit).await;
            Ended { term_seen, ..finished(id, Outcome::Done, None) }
        }
        Act::AskPositions { members, limit } => {
            let positions = Some(peer::positions(&context.rest(), &members, limit).await);
            Ended { positions, ..finished(id, Outcome::Done, None) }
        }
        Act::Knock { leader, limit } => {
            let answered = peer::postgres_answers(&leader.host, leader.port, limit).await;
            let outcome = if answered.is_ok() { Outcome::Done } else { Outcome::Failed };
            finished(id, outcome, answered.err())
        }
        other => finished(id, Outcome::Failed, Some(format!("{other:?} asks no member"))),
    }
}

/// An end without pictures.
pub(crate) fn finished(id: ActionId, outcome: Outcome, detail: Option<String>) -> Ended {
    Ended {
        id,
        outcome,
        view: None,
        local: None,
        granted: None,
        term_seen: None,
        positions: None,
        held: None,
        detail,
    }
}

fn guard_ended(id: ActionId, result: std::io::Result<()>) -> Ended {
    match result {
        Ok(()) => finished(id, Outcome::Done, None),
        Err(error) => finished(id, Outcome::Failed, Some(format!("guard: {error}"))),
    }
}

/// An error with everything below it, on one line.
pub(crate) fn with_sources(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(inner) = source {
        text.push_str(": ");
        text.push_str(&inner.to_string());
        source = inner.source();
    }
    text
}

async fn on_postgres<I: Instance>(context: &Arc<Context<I>>, act: Act) -> Result<(), Failure> {
    let instance = &context.instance;
    match act {
        Act::Initdb => {
            bootstrap(context).await?;
        }
        Act::Restore => copy(context, None, None, Term(0)).await?,
        Act::Clone { source, term, replace: _, standby_of } => {
            copy(context, Some(&source), standby_of.as_ref(), term).await?;
        }
        Act::Rewind { source, term: _ } => rewind(context, &source).await?,
        Act::Compare { leader, term } => {
            let (timeline, history) = instance.leader_history(&leader).await?;
            // A server that runs says by itself where its log ends.
            let ends_at_control = instance.log_ends_at_control().await;
            let leader = leader.name;
            let compared = Compared { leader, term, timeline, history, ends_at_control };
            context.set_compared(Some(compared));
        }
        Act::Start { start_as, term } => start(context, start_as, term).await?,
        Act::Stop { mode } => match mode {
            StopMode::Fast => {
                before_stop(context).await;
                instance.stop(postgres::StopMode::Fast, STOP_FAST).await?;
            }
            StopMode::Immediate => {
                let stopped = instance.stop(postgres::StopMode::Immediate, STOP_IMMEDIATE).await;
                if stopped.is_err() {
                    instance.stop(postgres::StopMode::Kill, STOP_FAST).await?;
                }
            }
        },
        Act::StopForHandOver { candidate, limit } => {
            stop_for_hand_over(context, candidate, limit).await?;
        }
        Act::ArchiveShutdownCheckpoint => instance.archive_shutdown_checkpoint().await?,
        Act::EndOrphans => instance.end_orphans().await?,
        Act::Follow { upstream, term } => {
            follow_term(context, term).await?;
            instance.follow(upstream.as_ref()).await?;
        }
        Act::StopReceiving { fence, term, sync } => {
            stop_receiving(context, fence, term, &sync).await?;
        }
        Act::Promote { term, timeline, sync } => {
            promote(context, term, timeline, &sync).await?;
        }
        Act::SetSync { sync } => instance.set_sync(&rule(&sync), SET_SYNC).await?,
        Act::ConfirmWrite => instance.confirm_write(context.limits().retry_timeout).await?,
        Act::Checkpoint => instance.checkpoint().await?,
        Act::EndStrangers { names } => instance.end_strangers(&names).await?,
        Act::SyncSlots { changes } | Act::DecodeSlots { changes } => {
            instance.change_slots(&changes).await?;
        }
        Act::FetchSlots { source, names, with_wal } => {
            instance.fetch_slots(&source, &names, with_wal).await?;
        }
        Act::CopySlots { names } => {
            instance.copy_slots(&names, start_limit(context)).await?;
        }
        other => return Err(format!("{other:?} is no action on PostgreSQL").into()),
    }
    Ok(())
}

/// Until it is done, whatever stands in the data directory is no cluster.
async fn bootstrap<I: Instance>(context: &Arc<Context<I>>) -> Result<(), Failure> {
    let unfinished = context.recorded.in_progress() == Some(InProgress::Bootstrap);
    context.recorded.expect_own().await?;
    context.recorded.update(|d| d.in_progress = Some(InProgress::Bootstrap)).await?;
    context.instance.bootstrap(unfinished).await?;
    context.recorded.update(|d| d.in_progress = None).await?;
    Ok(())
}

async fn copy<I: Instance>(
    context: &Arc<Context<I>>,
    source: Option<&Upstream>,
    standby_of: Option<&Upstream>,
    term: Term,
) -> Result<(), Failure> {
    // Before the copy can stand in place: whatever interrupts this, it never passes for the copy
    // that was here before.
    let begun = move |d: &mut Durable| {
        d.in_progress = Some(InProgress::Rebuild);
        d.pledge = None;
        d.fresh_copy = true;
    };
    context.recorded.update(begun).await?;
    context.instance.clone_from(source, standby_of, |_| {}).await?;
    context.set_compared(None);
    let done = move |d: &mut Durable| {
        d.in_progress = None;
        d.term = term;
    };
    context.recorded.update(done).await?;
    Ok(())
}

async fn rewind<I: Instance>(context: &Arc<Context<I>>, source: &Upstream) -> Result<(), Failure> {
    context.recorded.update(|d| d.in_progress = Some(InProgress::Rewind)).await?;
    context.instance.rewind_from(source).await?;
    context.set_compared(None);
    let done = |d: &mut Durable| {
        d.in_progress = None;
        d.pledge = None;
    };
    context.recorded.update(done).await?;
    Ok(())
}

/// Persists the term that this copy follows from now on; a pledge to an older one is fulfilled.
async fn follow_term<I: Instance>(context: &Context<I>, term: Term) -> Result<(), Failure> {
    context
        .recorded
        .update(move |d| {
            // A Patroni leader's term is not known (0); what was known stays.
            d.term = d.term.max(term);
            d.pledge = None;
        })
        .await?;
    Ok(())
}

async fn start<I: Instance>(
    context: &Arc<Context<I>>,
    start_as: StartAs,
    term: Option<Term>,
) -> Result<(), Failure> {
    if let Some(term) = term {
        follow_term(context, term).await?;
    }
    // From here on the log may grow.
    context.set_compared(None);
    let (limit, start_as) = match start_as {
        StartAs::Primary => (start_limit(context), postgres::StartAs::Primary),
        StartAs::Standby(upstream) => {
            (context.limits().pg_ctl_timeout, postgres::StartAs::Standby { upstream })
        }
    };
    context.instance.start(start_as, limit).await?;
    Ok(())
}

/// How long a server may take to accept connections. `primary_start_timeout: 0` says that a primary
/// that crashed is not started again, not that nothing may take time.
fn start_limit<I: Instance>(context: &Context<I>) -> Millis {
    match context.limits().primary_start_timeout {
        Millis::ZERO => START,
        limit => limit,
    }
}

/// What fences a former primary the operator's way. Without its success nothing is promoted.
async fn pre_promote<I: Instance>(context: &Context<I>) -> Result<(), Failure> {
    let Some(command) = context.hooks().pre_promote else {
        return Ok(());
    };
    let user = context.os_user.as_ref();
    postgres::run_hook(user, "pre_promote", command.words(), &[], &[]).await?;
    Ok(())
}

/// Bounded, since PostgreSQL has to stop; whatever comes of it, it does.
async fn before_stop<I: Instance>(context: &Context<I>) {
    let Some(command) = context.hooks().before_stop else {
        return;
    };
    let user = context.os_user.as_ref();
    let run = postgres::run_hook(user, "before_stop", command.words(), &[], &[]);
    match tokio::time::timeout(STOP_FAST.as_duration(), run).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::error!(%error, "before_stop"),
        Err(_) => tracing::error!(limit = %STOP_FAST, "before_stop did not end in time"),
    }
}

async fn promote<I: Instance>(
    context: &Arc<Context<I>>,
    term: Term,
    timeline: Timeline,
    sync: &SyncRule,
) -> Result<(), Failure> {
    follow_term(context, term).await?;
    pre_promote(context).await?;
    let plan = postgres::PromotePlan { timeline, sync: rule(sync) };
    let promoted = context.instance.promote(plan, PROMOTE).await;
    if promoted.as_ref().is_ok_and(|taken| *taken == timeline) {
        return Ok(());
    }
    // A promotion that goes on by itself could end when we do not lead any more; and elections
    // compare by timeline, so a number that is not ours must not be written on.
    context.instance.stop(postgres::StopMode::Kill, STOP_FAST).await?;
    let taken = promoted?;
    Err(format!("took timeline {taken}, reserved was {timeline}").into())
}

/// The first half of a pledge. The position is read when the receiver is gone, and is durable
/// before this returns.
async fn stop_receiving<I: Instance>(
    context: &Arc<Context<I>>,
    fence: String,
    term: Term,
    sync: &SyncRule,
) -> Result<(), Failure> {
    let (timeline, lsn) = context.instance.stop_receiving(&rule(sync), STOP_RECEIVING).await?;
    context
        .recorded
        .update(move |d| {
            let position = Position { timeline, lsn, term };
            d.pledge = Some(DurablePledge { fence, position });
        })
        .await?;
    Ok(())
}

async fn stop_for_hand_over<I: Instance>(
    context: &Arc<Context<I>>,
    candidate: Option<MemberName>,
    limit: Millis,
) -> Result<(), Failure> {
    before_stop(context).await;
    let view = context.store.current().view;
    let address = candidate.as_ref().and_then(|name| view.as_ref()?.member(name)?.api_address());
    let rest = context.rest();
    let received = move |end| {
        let (address, rest) = (address.clone(), rest.clone());
        async move {
            match address {
                // Nobody takes over: PostgreSQL alone says when it has stopped.
                None => false,
                Some(address) => peer::has_received(&rest, &address, end).await,
            }
        }
    };
    context.instance.stop_for_hand_over(received, limit).await?;
    Ok(())
}

fn rule(sync: &SyncRule) -> postgres::SyncRule {
    match sync {
        SyncRule::Off => postgres::SyncRule::Off,
        SyncRule::First(names) => postgres::SyncRule::First(names.clone()),
        SyncRule::Any(names) => postgres::SyncRule::Any(names.clone()),
    }
}
