//! The loop: observe, ask the brain, start what it says. It waits for nothing else.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use api::peers::Heard;
use api::{ApiReply, ApiRequest, Command, FailsafePost, Snapshot};
use config::NodeRole;
use decide::{Act, Action, ActionId, Brain, Event, Lane, Outcome, Reason, RequestId};
use postgres::Instance;
use serde_json::json;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::AbortHandle;
use types::{ClusterView, LocalPostgres, Millis, Suspicion, UnixMillis};

use crate::callbacks::{CallRole, Callbacks, Meaning};
use crate::clock;
use crate::context::{Context, Limits};
use crate::execute::{Ended, execute, finished};
use crate::failsafe;
use crate::heartbeat::Heartbeats;
use crate::journal::Journal;
use crate::phases::{Mark, Phases};
use crate::requests;
use crate::role;
use crate::said::{self, Said, Scene};
use crate::service_manager;
use crate::setup::{Parts, Reload};
use crate::signals::{Signal, Signals};

/// News that waits for the loop; senders wait when it is full.
const NEWS_MAX: usize = 256;

/// News from tasks.
pub(crate) enum News {
    /// An observation that nobody asked for.
    Local(Box<LocalPostgres>),
    /// An action has ended.
    Ended(Box<Ended>),
    /// PostgreSQL reads its configuration again.
    Reloaded,
}

/// How the loop ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// Leave with this exit status: PostgreSQL is down, or stays by an operator's wish (pause).
    Exit(u8),
    /// Leave at once. PostgreSQL, guard and lease are left as they are, so that they end each other
    /// in time if nobody comes back.
    GiveUp(u8),
    /// Replace this process by the binary on disk (SIGUSR2).
    Reexecute,
}

struct Running {
    lane: Lane,
    issued: Millis,
    abort: AbortHandle,
    mark: Option<Mark>,
    meaning: Option<Meaning>,
    /// What the log says when it has taken effect.
    said: Option<Said>,
}

/// Where news comes from.
struct Inputs {
    incoming: mpsc::Receiver<News>,
    views: watch::Receiver<dcs::ViewState>,
    requests: mpsc::Receiver<ApiRequest>,
    heard: mpsc::Receiver<Heard>,
    signals: Signals,
}

/// The shell around one brain.
pub(crate) struct Shell<I: Instance> {
    brain: Brain,
    context: Arc<Context<I>>,
    journal: Journal,
    news: mpsc::Sender<News>,
    running: BTreeMap<ActionId, Running>,
    snapshots: watch::Sender<Arc<Snapshot>>,
    reload: Reload,
    observed_at: Millis,
    viewed: Option<Arc<ClusterView>>,
    viewed_at: Millis,
    view_is_fresh: bool,
    local: Option<LocalPostgres>,
    phases: Phases,
    applied_config: Option<(types::Revision, bool, Option<NodeRole>)>,
    /// As what PostgreSQL was seen last.
    role: Option<NodeRole>,
    /// Until when the observer looks often.
    hurry: watch::Sender<Millis>,
    /// Failsafe mode is in force.
    failsafe: bool,
    heartbeats: Heartbeats,
    /// The leader gives no sign of life: the instance is looked at often.
    worried: bool,
    /// Whom we hold for lost.
    suspects: Option<Suspicion>,
    /// Who waits for the brain's answer. All but one are answered at once.
    waiting: BTreeMap<RequestId, oneshot::Sender<ApiReply>>,
    last_request: u64,
    /// What the log has said of each round.
    rounds: said::Rounds,
    callbacks: Callbacks,
    /// SIGUSR2 came.
    reexecute: bool,
    exit: Option<End>,
}

/// After something happened here, the instance is looked at often for so long.
const HURRY: Millis = Millis(5_000);
/// The same while the leader gives no sign of life.
const WORRY: Millis = Millis(500);
/// How often then.
const OFTEN: Duration = Duration::from_millis(100);

impl<I: Instance> Shell<I> {
    /// Runs until the brain or a signal ends it.
    pub(crate) async fn run(parts: Parts<I>) -> End {
        let (news, incoming) = mpsc::channel(NEWS_MAX);
        let (hurry, hurrying) = watch::channel(clock::now().plus(HURRY));
        let context = parts.context;
        context.instance.begin_trials();
        let observer = tokio::spawn(observe(Arc::clone(&context), news.clone(), hurrying));
        let mut inputs = Inputs {
            incoming,
            views: context.store.subscribe(),
            requests: parts.requests,
            heard: parts.heard,
            signals: parts.signals,
        };
        let mut shell = Shell {
            brain: parts.brain,
            context,
            journal: parts.journal,
            news,
            running: BTreeMap::new(),
            snapshots: parts.snapshots,
            reload: parts.reload,
            observed_at: Millis::ZERO,
            viewed: None,
            viewed_at: Millis::ZERO,
            view_is_fresh: false,
            local: None,
            phases: Phases::default(),
            applied_config: None,
            role: None,
            hurry,
            failsafe: false,
            heartbeats: parts.heartbeats,
            worried: false,
            suspects: None,
            waiting: BTreeMap::new(),
            last_request: 0,
            rounds: said::Rounds::default(),
            callbacks: parts.callbacks,
            reexecute: false,
            exit: None,
        };
        service_manager::ready();
        shell.step(Event::Lease { ttl: parts.lease });
        let first = inputs.views.borrow_and_update().clone();
        shell.view_is_fresh = first.fresh;
        if let Some(view) = first.view {
            shell.see(view);
        }
        let end = loop {
            if let Some(end) = shell.turn(&mut inputs).await {
                break end;
            }
        };
        observer.abort();
        drop(parts.follower);
        if matches!(end, End::Exit(_)) {
            shell.leave().await;
        }
        shell.callbacks.finish().await;
        shell.context.instance.close().await;
        end
    }

    /// Takes one piece of news. Cancel safety: not to be cancelled; the loop awaits it to its end.
    async fn turn(&mut self, inputs: &mut Inputs) -> Option<End> {
        let tick = self.next_tick();
        tokio::select! {
            Some(news) = inputs.incoming.recv() => self.hear(news),
            changed = inputs.views.changed() => {
                if changed.is_err() {
                    return Some(End::GiveUp(1));
                }
                let state = inputs.views.borrow_and_update().clone();
                self.view_is_fresh = state.fresh;
                if state.fresh {
                    self.viewed_at = clock::now();
                }
                if let Some(view) = state.view {
                    self.see(view);
                }
            }
            Some(request) = inputs.requests.recv() => self.serve(request).await,
            Some(heard) = inputs.heard.recv() => self.heard(heard),
            signal = inputs.signals.next() => match signal {
                Signal::Terminate => {
                    service_manager::stopping();
                    self.journal.note("shutdown", json!({}));
                    self.step(Event::Shutdown);
                }
                Signal::Reload => self.reload_file().await,
                Signal::Reexecute => self.reexecute = true,
            },
            () = tokio::time::sleep(tick) => self.step(wall_clock()),
        }
        // Programs that work on the data directory end first: the new agent would not know of them.
        let working = self.running.values().any(|running| running.lane == Lane::Data);
        if self.reexecute && !working {
            return Some(End::Reexecute);
        }
        self.exit
    }

    /// How long to sleep when nothing happens.
    fn next_tick(&self) -> Duration {
        let now = clock::now();
        let latest = now.plus(self.brain.dynamic().loop_wait);
        let at = self.brain.next_wake().map_or(latest, |wake| wake.min(latest));
        // One millisecond more than the rest, so that the instant has come when we look.
        at.since(now).as_duration() + Duration::from_millis(1)
    }

    fn hear(&mut self, news: News) {
        match news {
            News::Local(local) => self.look(*local),
            News::Ended(ended) => self.conclude(*ended),
            News::Reloaded => {
                let calls = self.callbacks.tracker.reloaded();
                self.call_back(calls);
            }
        }
    }

    /// Another member's heartbeat. Its sender holds the key; only members count.
    fn heard(&mut self, Heard { from, said, .. }: Heard) {
        let Some(view) = self.viewed.as_ref().filter(|view| view.members.contains_key(&from))
        else {
            return;
        };
        if view.leader_name() == Some(&from) {
            self.phases.hear(clock::now());
        }
        self.step(Event::Heard { from, said });
    }

    /// A suspicion needs a recent picture of the WAL stream.
    fn look_often_when_worried(&mut self) {
        let worried = self.brain.is_worried();
        if worried {
            let until = clock::now().plus(WORRY).max(*self.hurry.borrow());
            self.hurry.send_replace(until);
        }
        if worried && !self.worried {
            self.context.look_again.notify_one();
        }
        self.worried = worried;
    }

    /// Takes an observation over, unless a newer one was there first.
    fn look(&mut self, local: LocalPostgres) {
        if local.at < self.observed_at {
            return;
        }
        self.observed_at = local.at;
        self.phases.look(clock::now(), &local);
        self.local = Some(local.clone());
        let leads = self.viewed.as_ref().and_then(|v| v.leader_name()) == Some(&self.context.name);
        let standby_leader = leads && self.brain.dynamic().standby_cluster.is_some();
        let calls = self.callbacks.tracker.seen(&local, standby_leader);
        self.call_back(calls);
        self.role = Some(role::of(&local, standby_leader, self.role));
        if let types::DataDir::Present(control) = &local.data_dir {
            let checked = self.context.recorded.check(&control.system_identifier);
            if let Err(error) = checked {
                tracing::error!(%error, "the state directory is not of this data directory");
                self.exit = Some(End::GiveUp(1));
                return;
            }
        }
        self.step(Event::Local(Box::new(local)));
        self.apply_config();
    }

    fn see(&mut self, view: Arc<ClusterView>) {
        let asked = view.failover_request().is_some_and(|r| r.scheduled_at.is_none());
        let eventful = view.leader.is_none() || view.fence.is_some() || asked;
        let changed = self.viewed.as_ref().map(|v| v.leader_name().cloned())
            != Some(view.leader_name().cloned());
        if eventful || changed {
            self.hurry();
        }
        self.phases.see(clock::now(), &view, &self.context.name);
        self.viewed = Some(Arc::clone(&view));
        self.viewed_at = clock::now();
        self.step(Event::View(view));
        self.apply_config();
    }

    /// The end of an action: first the pictures, then the end (the brain's contract).
    fn conclude(&mut self, ended: Ended) {
        let Some(running) = self.running.remove(&ended.id) else {
            return;
        };
        let millis = clock::now().since(running.issued).0;
        self.journal.end(ended.id, ended.outcome, millis, ended.detail.as_deref());
        if let Some(detail) = &ended.detail {
            let lane = running.lane;
            tracing::warn!(id = ended.id.0, ?lane, outcome = ?ended.outcome, detail, "action");
        }
        if let (Some(said), Outcome::Done) = (running.said, ended.outcome) {
            write_line(&said);
        }
        if let Some(meaning) = running.meaning {
            let calls = self.callbacks.tracker.ended(meaning, ended.outcome);
            self.call_back(calls);
        }
        let line = running.mark.and_then(|m| self.phases.end(clock::now(), m, ended.outcome));
        if let Some(line) = line {
            self.journal.note(line.event, line.detail);
        }
        if let Some(term) = ended.term_seen {
            self.step(Event::TermSeen { term });
        }
        if let Some(answers) = ended.positions {
            self.step(Event::Positions { answers });
        }
        if let Some(held) = ended.held {
            self.step(Event::Held { held });
        }
        if let Some(ttl) = ended.granted {
            self.step(Event::Lease { ttl });
        }
        // The action's view went through the store, which holds the newest one.
        if let Some(view) = ended.view.and(self.context.store.current().view) {
            self.see(view);
        }
        if let Some(local) = ended.local {
            self.look(local);
        }
        self.step(Event::Finished { id: ended.id, outcome: ended.outcome });
    }

    fn call_back(&mut self, calls: Vec<(config::Callback, CallRole)>) {
        for (event, role) in self.callbacks.call(calls) {
            self.journal.note("callback", json!({ "callback": event, "role": role }));
        }
    }

    /// One step of the brain, and the start of what it wants.
    fn step(&mut self, event: Event) {
        let actions = self.brain.step(clock::now(), event);
        for action in actions {
            self.start(action);
        }
        self.answer_requests();
        self.note_failsafe();
        self.note_suspicion();
        self.look_often_when_worried();
        self.say_round();
        self.publish();
    }

    fn answer_requests(&mut self) {
        for (id, answer) in self.brain.take_answers() {
            let reply = requests::answer(&answer);
            self.journal.note("answer", json!({ "status": reply.status, "text": reply.text }));
            if let Some(waiting) = self.waiting.remove(&id) {
                // Whoever asked may have left.
                drop(waiting.send(reply));
            }
        }
    }

    /// Says on the log how things stand here.
    fn say_round(&mut self) {
        let (Some(view), Some(local)) = (&self.viewed, &self.local) else {
            return;
        };
        let (me, dynamic) = (&self.context.name, self.brain.dynamic());
        let (tags, race_waits) = (self.brain.tags(), self.brain.race_waits());
        let scene = Scene { me, tags, dynamic, view, local, race_waits };
        let lines = scene.lines();
        let loop_wait = dynamic.loop_wait;
        for line in self.rounds.due(clock::now(), lines, loop_wait) {
            tracing::info!("{line}");
        }
    }

    fn start(&mut self, action: Action) {
        self.journal.begin(&action);
        let lane = action.act.lane();
        tell(&action, self.viewed.as_deref());
        if let Act::Exit { code } = action.act {
            self.exit = Some(End::Exit(code));
        }
        if lane == Lane::Data {
            self.give_up_data_lane();
        }
        if !lane.is_routine() {
            self.hurry();
        }
        self.phases.begin(clock::now(), &action.act);
        let (id, mark, said) = (action.id, Mark::of(&action.act), said::done(&action.act));
        let meaning = Meaning::of(&action.act, &action.why);
        if let Some(meaning) = meaning {
            self.callbacks.tracker.begun(meaning);
        }
        let news = self.news.clone();
        let context = Arc::clone(&self.context);
        let task = tokio::spawn(async move {
            let ended = execute(context, action).await;
            // The loop is gone only when the agent ends.
            drop(news.send(News::Ended(Box::new(ended))).await);
        });
        let issued = clock::now();
        let abort = task.abort_handle();
        self.running.insert(id, Running { lane, issued, abort, mark, meaning, said });
    }

    /// A stop takes over from whatever runs on the data directory.
    fn give_up_data_lane(&mut self) {
        let given_up: Vec<ActionId> = self
            .running
            .iter()
            .filter(|(_, running)| running.lane == Lane::Data)
            .map(|(id, _)| *id)
            .collect();
        for id in given_up {
            if let Some(running) = self.running.get(&id) {
                running.abort.abort();
            }
            let detail = Some("given up for an immediate stop".to_owned());
            self.conclude(finished(id, Outcome::Failed, detail));
        }
    }

    fn hurry(&self) {
        self.hurry.send_replace(clock::now().plus(HURRY));
        self.context.look_again.notify_one();
    }

    fn publish(&self) {
        let snapshot = Snapshot {
            view: self.viewed.clone(),
            view_is_fresh: self.view_is_fresh,
            view_at: self.viewed_at,
            looped_at: clock::now(),
            settings: self.brain.dynamic().into(),
            local: self.local.clone(),
            claim_until: self.brain.claim_until(),
            failsafe_until: self.brain.failsafe_until(),
            member: self.brain.member().cloned(),
            handover: self.phases.last(),
            longest_intervals: self.brain.longest_intervals(),
            system_identifier: self
                .viewed
                .as_ref()
                .and_then(|v| v.system_identifier().map(str::to_owned)),
            ..self.reload.snapshot_base()
        };
        self.snapshots.send_replace(Arc::new(snapshot));
        self.heartbeats.say(self.brain.heartbeat());
    }

    /// A leader without the DCS asks us to wait for it: the brain takes it in, then it is answered.
    fn answer_leader(&mut self, post: &FailsafePost) -> ApiReply {
        let promised = self.failsafe;
        self.step(Event::FailsafeClaim(failsafe::claim_of(post)));
        let reply = failsafe::reply_of(self.brain.failsafe_answer());
        if reply.status != 200 || !promised {
            let (leader, answer) = (&post.leader, &reply.text);
            self.journal.note("failsafe_asked", json!({ "leader": leader, "answer": answer }));
        }
        reply
    }

    /// Says once when failsafe mode comes into force here, and when it ends.
    fn note_failsafe(&mut self) {
        let active = self.brain.failsafe_until().is_some_and(|until| clock::now() < until);
        if active != self.failsafe {
            self.failsafe = active;
            self.journal.note("failsafe", json!({ "active": active }));
            tracing::warn!(active, "failsafe mode: the DCS is not asked, every member is");
        }
    }

    /// Says once when the leader is held for lost, and when it is not any more.
    fn note_suspicion(&mut self) {
        let suspects = self.brain.heartbeat().suspects;
        if suspects != self.suspects {
            let leader = suspects.as_ref().map(|suspicion| &suspicion.leader);
            self.journal.note("suspicion", json!({ "leader": leader }));
            tracing::info!(?leader, "suspicion");
            self.suspects = suspects;
        }
    }

    async fn serve(&mut self, request: ApiRequest) {
        if let Command::Failsafe(post) = &request.command {
            let reply = self.answer_leader(post);
            let promise = self.brain.promise();
            let context = Arc::clone(&self.context);
            tokio::spawn(async move {
                let reply = failsafe::keep(&context, promise, reply).await;
                // A leader that has left is not told, and cannot count on it.
                drop(request.reply.send(reply));
            });
            return;
        }
        let summary = requests::summary(&request);
        self.journal.note("request", summary);
        if request.command == Command::Reload {
            let text = "reload scheduled".to_owned();
            drop(request.reply.send(ApiReply { status: 202, text, written: None }));
            self.reload_file().await;
            return;
        }
        if let Some(asked) = requests::for_brain(&request.command) {
            self.last_request += 1;
            let id = RequestId(self.last_request);
            self.waiting.insert(id, request.reply);
            self.step(wall_clock());
            self.step(Event::Asked { id, request: asked });
            return;
        }
        let context = Arc::clone(&self.context);
        let view = self.viewed.clone();
        tokio::spawn(requests::serve(context, view, request));
    }

    /// Applies the dynamic configuration when its key has changed, or what slots or the role need
    /// of it.
    fn apply_config(&mut self) {
        let revision = self.viewed.as_ref().and_then(|v| v.config.as_ref()).map(|c| c.mod_revision);
        let feedback = self.brain.forces_feedback();
        // Where roles differ, nothing is written before the role is known.
        let by_role = !self.brain.dynamic().postgresql.hooks.by_role.is_empty();
        let role = self.role.filter(|_| by_role);
        let applied = revision.map(|revision| (revision, feedback, role));
        if applied.is_none() || applied == self.applied_config || (by_role && role.is_none()) {
            return;
        }
        self.applied_config = applied;
        let dynamic = self.brain.dynamic().clone();
        self.context.set_limits(Limits::of(&dynamic));
        self.context.set_hooks(&dynamic.postgresql.hooks);
        self.callbacks.configure(&dynamic.postgresql.hooks);
        self.heartbeats.set_interval(dynamic.pgherd.heartbeat_interval);
        self.context.store.client().set_retry_timeout(dynamic.retry_timeout);
        self.context.session.set_ttl(dynamic.ttl);
        let document = self.viewed.as_ref().and_then(|v| v.config.as_ref()).map(|c| &c.value);
        let document = document.unwrap_or(&serde_json::Value::Null);
        let config = match self.reload.instance_config(&dynamic, document, role) {
            Ok(config) => postgres::InstanceConfig { force_feedback: feedback, ..config },
            Err(error) => {
                tracing::error!(%error, "the configuration was not applied to PostgreSQL");
                return;
            }
        };
        let context = Arc::clone(&self.context);
        let news = self.news.clone();
        tokio::spawn(async move {
            match context.instance.apply(config).await {
                // The loop is gone only when the agent ends.
                Ok(true) => drop(news.send(News::Reloaded).await),
                Ok(false) => {}
                Err(error) => {
                    tracing::error!(%error, "cannot apply the configuration to PostgreSQL");
                }
            }
        });
    }

    async fn reload_file(&mut self) {
        service_manager::reloading();
        match self.reload.read_again() {
            Ok((node, local)) => {
                self.journal.note("reload", json!({}));
                self.brain.reconfigure(node, local);
                self.applied_config = None;
                self.apply_config();
                self.step(Event::Tick);
            }
            Err(error) => {
                tracing::error!(%error, "the file was refused; the old settings stay");
            }
        }
        service_manager::ready();
    }

    /// Nothing of ours shall outlive a clean end but PostgreSQL in pause: the member key goes at
    /// once instead of when its lease runs out.
    async fn leave(&mut self) {
        if self.brain.dynamic().pause {
            return;
        }
        if let Err(error) = self.context.session.revoke().await {
            tracing::warn!(%error, "the lease was not revoked; it runs out by itself");
        }
        if let Err(error) = self.context.guard.dismiss().await {
            tracing::warn!(%error, "the guard did not end; it has nothing to guard");
        }
    }
}

/// What the wall clock shows, for what is scheduled.
fn wall_clock() -> Event {
    Event::WallClock { unix: UnixMillis(jiff::Timestamp::now().as_millisecond()) }
}

/// Says on the log what an operator wants to see happen; the journal has all of it.
fn tell(action: &Action, view: Option<&ClusterView>) {
    let routine = matches!(
        action.act,
        Act::TouchMember { .. }
            | Act::Renew { .. }
            | Act::ArmGuard { .. }
            | Act::StandDownGuard
            | Act::AskFailsafe { .. }
            | Act::Knock { .. }
            | Act::SyncSlots { .. }
            | Act::DecodeSlots { .. }
    );
    if routine {
        return;
    }
    let (id, why) = (action.id.0, &action.why);
    let act = serde_json::to_string(&action.act).unwrap_or_default();
    let urgent = matches!(
        why,
        Reason::LeaseRunsOut { .. }
            | Reason::PrimaryWithoutLeaderKey
            | Reason::PostgresDown { .. }
            | Reason::WrongCluster { .. }
            | Reason::StartTimedOut
    );
    match said::beginning(&action.act, why, view) {
        Some(line) => {
            write_line(&line);
            tracing::debug!(id, %act, %why, "acting");
        }
        None if urgent => tracing::warn!(id, %act, %why, "acting"),
        None => tracing::info!(id, %act, %why, "acting"),
    }
}

fn write_line(said: &Said) {
    if said.warning {
        tracing::warn!("{}", said.text);
    } else {
        tracing::info!("{}", said.text);
    }
}

/// Observes at intervals, at a nudge, and the moment the postmaster dies.
async fn observe<I: Instance>(
    context: Arc<Context<I>>,
    news: mpsc::Sender<News>,
    hurrying: watch::Receiver<Millis>,
) {
    loop {
        let local = context.observe().await;
        if news.send(News::Local(Box::new(local))).await.is_err() {
            return;
        }
        let often = clock::now() < *hurrying.borrow();
        let pause = if often { OFTEN } else { context.limits().loop_wait.as_duration() };
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = context.look_again.notified() => {}
            () = context.instance.postmaster_exit() => {}
        }
    }
}
