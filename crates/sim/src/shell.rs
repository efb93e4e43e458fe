//! The agent's shell: what reaches the brain and when, and its requests to the store.

use std::collections::BTreeMap;

use decide::{Act, Action, ActionId, Brain, Lane, Outcome, StopMode};
use types::{ClusterView, Heartbeat, HistoryEntry, Member, Millis};

use crate::Mutation;
use crate::mistakes::started_long_ago;
use crate::node::{Agent, Doing, Snapshot};
use crate::store::Request;
use crate::world::{Event, World};

/// `retry_timeout`: how long an answer of the store is waited for, in milliseconds.
const ANSWER_TIMEOUT: u64 = 3_000;
/// `ttl`, in milliseconds.
pub(crate) const TTL: u64 = 10_000;
/// How often PostgreSQL is looked at without a reason, in milliseconds.
const PROBE_INTERVAL: u64 = 1_000;
/// `loop_wait`, in milliseconds.
pub(crate) const LOOP_WAIT: u64 = 2_000;
/// Pause between two attempts to read the store, in milliseconds.
const READ_RETRY: u64 = 200;

impl World {
    pub(crate) fn agent_boots(&mut self, node: usize) {
        if !self.hosts[node].up || self.hosts[node].agent.is_some() {
            return;
        }
        let seed = self.rng.next();
        let stop_margin = Millis(if self.setup.slow_answers { 200 } else { 1_000 });
        let forgets = self.mutated(Mutation::ForgetPromise);
        let host = &mut self.hosts[node];
        host.agents += 1;
        let number = host.agents;
        let brain = Brain::new(
            decide::Node {
                name: host.name.clone(),
                tags: host.tags.clone(),
                member: Member {
                    conn_url: format!("postgres://{}:5432/postgres", host.name),
                    api_url: format!("http://{}:8008/patroni", host.name),
                    version: "4.1.0".to_owned(),
                    pgherd: Some("0.1.0".to_owned()),
                    ..Member::default()
                },
                may_bootstrap: true,
                stop_margin,
                initial_config: crate::config_document(&self.setup, self.setup.mode, 1, TTL),
            },
            seed,
        );
        let brain = if forgets { started_long_ago(brain) } else { brain };
        host.agent = Some(Agent {
            brain,
            lease: 0,
            lease_told: 0,
            view: None,
            started: false,
            doing: BTreeMap::new(),
            compared: None,
            wake_at: None,
            watch_pending: false,
            watch_lost: false,
            probe_pending: false,
            probed_at: 0,
            said: Heartbeat::default(),
        });
        self.tell(node, || "agent starts".to_owned());
        self.after(1, Event::Read { node, agent: number });
        if self.setup.fenced {
            self.after(1, Event::Beat { node, agent: number });
        }
    }

    /// Ends the agent's process; what it had asked the store for may still take effect.
    pub(crate) fn agent_dies(&mut self, node: usize) {
        self.hosts[node].agent = None;
    }

    /// SIGTERM.
    pub(crate) fn terminate_agent(&mut self, node: usize) {
        if self.hosts[node].agent.as_ref().is_some_and(|a| a.started) {
            let number = self.hosts[node].agents;
            self.after(0, Event::Terminate { node, agent: number });
        }
    }

    pub(crate) fn terminate(&mut self, node: usize, number: u64) {
        if self.agent(node, number).is_some() {
            self.feed(node, decide::Event::Shutdown);
        }
    }

    fn agent(&mut self, node: usize, number: u64) -> Option<&mut Agent> {
        let host = &mut self.hosts[node];
        if host.agents == number { host.agent.as_mut() } else { None }
    }

    /// Hands one piece of news to the brain and does what it says.
    pub(crate) fn feed(&mut self, node: usize, event: decide::Event) {
        let now = self.hosts[node].clock(self.now);
        let early = self.mutated(Mutation::ClaimFromReply);
        // The first renewal of a term is answered at once, or no new leader would ever be quick.
        let host = &self.hosts[node];
        let claims = host.agent.as_ref().is_some_and(|a| a.brain.claim_until().is_some());
        let slow = self.setup.slow_answers && claims;
        let delay = if slow { self.rng.range(2_500, 2_900) } else { self.rng.range(1, 15) };
        let Some(agent) = &mut self.hosts[node].agent else { return };
        let before = early.then(|| (agent.brain.clone(), event.clone()));
        let mut actions = agent.brain.step(now, event);
        if let Some((brain, event)) = before
            && actions.iter().any(|a| matches!(a.act, Act::Renew { .. }))
        {
            agent.brain = brain;
            actions = agent.brain.step(now.plus(Millis(delay)), event);
        }
        for action in actions {
            let renewal = matches!(action.act, Act::Renew { .. });
            let reply_delay = (renewal && (slow || early)).then_some(delay);
            self.start_action(node, action, reply_delay);
        }
        self.speak(node);
        self.set_timer(node);
    }

    fn set_timer(&mut self, node: usize) {
        let now = self.now;
        let host = &mut self.hosts[node];
        let Some(agent) = &host.agent else { return };
        let wake = agent.brain.next_wake();
        let at = wake.map_or(u64::MAX, |at| host.when(now, at)).clamp(now + 1, now + LOOP_WAIT);
        let number = host.agents;
        let Some(agent) = &mut host.agent else { return };
        if agent.wake_at.is_none_or(|pending| pending <= now || at < pending) {
            agent.wake_at = Some(at);
            self.after(at - now, Event::Wake { node, agent: number });
        }
    }

    pub(crate) fn wake(&mut self, node: usize, number: u64) {
        let now = self.now;
        let reachable = self.reaches_store(node);
        let Some(agent) = self.agent(node, number) else { return };
        if agent.wake_at != Some(now) && agent.wake_at.is_some_and(|at| at > now) {
            return;
        }
        agent.wake_at = None;
        if !agent.started {
            return;
        }
        if agent.watch_lost && reachable {
            agent.watch_lost = false;
            self.after(20, Event::Read { node, agent: number });
        }
        let Some(agent) = self.agent(node, number) else { return };
        if now.saturating_sub(agent.probed_at) >= PROBE_INTERVAL {
            self.look(node);
        } else {
            self.feed(node, decide::Event::Tick);
        }
    }

    /// Observes PostgreSQL and tells the brain.
    pub(crate) fn look(&mut self, node: usize) {
        let now = self.now;
        let local = self.observe(node);
        if let Some(agent) = &mut self.hosts[node].agent {
            agent.probed_at = now;
            self.feed(node, decide::Event::Local(Box::new(local)));
        }
    }

    pub(crate) fn probe(&mut self, node: usize, number: u64) {
        if let Some(agent) = self.agent(node, number) {
            agent.probe_pending = false;
            if agent.started {
                self.look(node);
            }
        }
    }

    /// Something about PostgreSQL changed; the agent will look soon.
    pub(crate) fn notice(&mut self, node: usize) {
        let delay = self.rng.range(2, 40);
        let number = self.hosts[node].agents;
        if let Some(agent) = &mut self.hosts[node].agent
            && !agent.probe_pending
        {
            agent.probe_pending = true;
            self.after(delay, Event::Probe { node, agent: number });
        }
    }

    /// The store changed: every watcher hears of it.
    pub(crate) fn publish(&mut self) {
        for node in 0..self.hosts.len() {
            let number = self.hosts[node].agents;
            let delay = self.hop();
            let view = self.store.view();
            if let Some(agent) = &mut self.hosts[node].agent
                && !agent.watch_pending
            {
                agent.watch_pending = true;
                self.after(delay, Event::Watched { node, agent: number, view });
            }
        }
        self.tell_proxies();
    }

    pub(crate) fn watched(&mut self, node: usize, number: u64, view: Snapshot) {
        let reachable = self.reaches_store(node);
        let newest = self.store.see().revision;
        let delay = self.hop();
        let Some(agent) = self.agent(node, number) else { return };
        agent.watch_pending = false;
        if !reachable {
            agent.watch_lost = true;
            return;
        }
        if view.revision < newest {
            agent.watch_pending = true;
            let newer = self.store.view();
            self.after(delay, Event::Watched { node, agent: number, view: newer });
        }
        self.show(node, view);
    }

    /// Delivers a view unless a newer one was delivered.
    fn show(&mut self, node: usize, view: Snapshot) {
        let view = self.mistaken(node, view);
        let Some(agent) = &mut self.hosts[node].agent else { return };
        let newer = agent.view.as_ref().is_none_or(|seen| seen.revision < view.revision);
        if !agent.started || !newer {
            return;
        }
        agent.view = Some(view.clone());
        self.feed(node, decide::Event::View(view));
    }

    /// The first read of an agent, or one after a lost watch.
    pub(crate) fn read(&mut self, node: usize, number: u64) {
        let reachable = self.reaches_store(node);
        let view = self.store.view();
        let delay = self.hop();
        let Some(agent) = self.agent(node, number) else { return };
        if !reachable {
            self.after(READ_RETRY, Event::Read { node, agent: number });
            return;
        }
        if !agent.started {
            agent.started = true;
            self.adopt_lease(node);
            self.look(node);
        }
        let Some(agent) = self.agent(node, number) else { return };
        if agent.view.is_none() {
            self.show(node, view);
        } else if !agent.watch_pending {
            agent.watch_pending = true;
            self.after(delay, Event::Watched { node, agent: number, view });
        }
    }

    /// An agent that comes back goes on with the lease that its keys hang on.
    fn adopt_lease(&mut self, node: usize) {
        let name = self.hosts[node].name.clone();
        let view = self.store.see();
        let lease = view.members.get(&name).map_or(0, |m| m.lease);
        if let Some(agent) = &mut self.hosts[node].agent {
            agent.lease = lease;
        }
        if lease != 0 {
            self.tell_ttl(node);
        }
    }

    fn tell_ttl(&mut self, node: usize) {
        let Some(agent) = &mut self.hosts[node].agent else { return };
        if agent.lease_told != agent.lease {
            agent.lease_told = agent.lease;
            // One that is gone already lived as long as any.
            let ttl = self.store.ttl_of(agent.lease).unwrap_or(TTL);
            self.feed(node, decide::Event::Lease { ttl: Millis(ttl) });
        }
    }

    fn start_action(&mut self, node: usize, action: Action, reply_delay: Option<u64>) {
        if self.story.is_some() && !is_routine(&action.act) {
            let text = serde_json::to_string(&action.act).unwrap_or_default();
            self.tell(node, || format!("#{} {text} because {}", action.id.0, action.why));
        }
        let now = self.now;
        let pause = self.rng.range(1, 5);
        let host = &mut self.hosts[node];
        let number = host.agents;
        let instance = host.postgres.as_ref().map_or(0, |i| i.number);
        let Some(agent) = &mut host.agent else { return };
        let id = action.id;
        let immediate = matches!(action.act, Act::Stop { mode: StopMode::Immediate });
        let given_up: Vec<ActionId> = agent
            .doing
            .iter()
            .filter(|(_, doing)| immediate && doing.act.lane() == Lane::Data)
            .map(|(id, _)| *id)
            .collect();
        let lane = action.act.lane();
        let doing = Doing { act: action.act, step: 0, issued: now, instance, note: 0, reply_delay };
        agent.doing.insert(id, doing);
        for old in given_up {
            let outcome = Outcome::Failed;
            self.after(0, Event::End { node, agent: number, id: old, outcome });
        }
        match lane {
            Lane::Lease | Lane::Member | Lane::Dcs | Lane::Hold => self.send(node, number, id),
            Lane::Failsafe => self.ask_members(node, number, id),
            Lane::Knock => self.knock(node, number, id),
            Lane::Guard
            | Lane::Data
            | Lane::Sync
            | Lane::Confirm
            | Lane::Checkpoint
            | Lane::Slots
            | Lane::Decode
            | Lane::State
            | Lane::Compare
            | Lane::Exit => self.after(pause, Event::Step { node, agent: number, id }),
        }
    }

    fn send(&mut self, node: usize, number: u64, id: ActionId) {
        self.after(ANSWER_TIMEOUT, Event::GiveUp { node, agent: number, id });
        let lost = self.rng.chance(self.store_loss) || !self.reaches_store(node);
        let delay = self.hop() + self.lateness() + self.lateness_of_win(node, id);
        let Some(agent) = self.agent(node, number) else { return };
        let Some(doing) = agent.doing.get(&id) else { return };
        let act = Box::new(doing.act.clone());
        let (lease, reply_delay) = (agent.lease, doing.reply_delay);
        if !lost {
            let event = Event::Request { node, agent: number, id, lease, act, reply_delay };
            self.after(delay, event);
        }
    }

    /// Some requests arrive, and some answers come, when nobody waits for them any more.
    fn lateness(&mut self) -> u64 {
        if self.store_loss > 0 && self.rng.chance(5) { self.rng.range(300, 6_000) } else { 0 }
    }

    /// In some runs a winner's transaction arrives when much may have changed.
    fn lateness_of_win(&mut self, node: usize, id: ActionId) -> u64 {
        let doing = self.hosts[node].agent.as_ref().and_then(|agent| agent.doing.get(&id));
        let wins = doing.is_some_and(|doing| matches!(doing.act, Act::TakeLeadership(_)));
        if wins && self.setup.slow_wins { self.rng.range(500, 2_900) } else { 0 }
    }

    /// A transaction takes effect, whether or not the agent that asked for it still lives.
    pub(crate) fn request_arrives(
        &mut self,
        (node, number, id): (usize, u64, ActionId),
        lease: i64,
        act: &Act,
        reply_delay: Option<u64>,
    ) {
        if !self.reaches_store(node) {
            return;
        }
        let request = Request {
            who: self.hosts[node].name.clone(),
            lease,
            ttl: self.ttl_in_force(node),
            config: crate::config_document(&self.setup, self.setup.mode, 1, TTL),
            history: self.history_of(node),
            seen: self.watched_by(node, number),
        };
        let before = self.store.view();
        let lease = self.store.apply(self.now, &request, act, self.setup.mutation);
        if lease.is_some() {
            self.took_effect(node, act, &before);
        }
        if !is_routine(act) {
            let what = if lease.is_some() { "takes effect" } else { "is refused" };
            self.tell(node, || format!("  #{} {what} in the store", id.0));
        }
        if self.store.see().revision != before.revision {
            self.publish();
            self.note_leadership();
        }
        self.schedule_lease_check();
        let lost = self.rng.chance(self.store_loss);
        let delay = self.hop() + self.lateness();
        let delay = reply_delay.unwrap_or(delay);
        if !lost {
            let view = self.store.view();
            self.after(delay, Event::Reply { node, agent: number, id, lease, view });
        }
    }

    /// What a transaction means to this world, beside what it writes.
    fn took_effect(&mut self, node: usize, act: &Act, before: &ClusterView) {
        match act {
            Act::RetakeLeadership(retake) => {
                if let Some(instance) = self.hosts[node].postgres.as_mut().filter(|i| i.writable())
                {
                    instance.term = retake.term.term;
                }
            }
            Act::OpenFence { .. } => self.checks.fence_opened = self.now,
            Act::TakeLeadership(winner) => self.checks_of_winner(node, before, winner),
            _ => {}
        }
    }

    /// What its watch has shown an agent, however old. Of one that is gone the request was sent.
    fn watched_by(&mut self, node: usize, number: u64) -> Option<Snapshot> {
        let agent = self.agent(node, number)?;
        agent.view.clone().filter(|_| !agent.watch_lost)
    }

    /// What an agent asks for when it gets a lease.
    fn ttl_in_force(&self, node: usize) -> u64 {
        self.hosts[node].agent.as_ref().map_or(TTL, |agent| agent.brain.dynamic().ttl.0)
    }

    fn history_of(&self, node: usize) -> Vec<HistoryEntry> {
        let lines = self.hosts[node].disk.data.iter().flat_map(|d| d.log.history.iter());
        lines
            .map(|line| HistoryEntry {
                timeline: line.timeline,
                switch: line.switch,
                reason: "no recovery target specified".to_owned(),
                timestamp: None,
                new_leader: None,
            })
            .collect()
    }

    pub(crate) fn reply_arrives(
        &mut self,
        node: usize,
        number: u64,
        id: ActionId,
        lease: Option<i64>,
        view: Snapshot,
    ) {
        if !self.reaches_store(node) {
            return;
        }
        let Some(agent) = self.agent(node, number) else { return };
        let Some(doing) = agent.doing.get(&id) else { return };
        if let (Act::TouchMember { .. } | Act::MoveLease { .. }, Some(lease)) = (&doing.act, lease)
        {
            agent.lease = lease;
            self.tell_ttl(node);
        }
        self.show(node, view);
        let outcome = if lease.is_some() { Outcome::Done } else { Outcome::Failed };
        self.finish(node, id, outcome);
    }

    /// No answer came: read what is so now, as long as it takes, then say that nobody knows.
    pub(crate) fn give_up(&mut self, node: usize, number: u64, id: ActionId) {
        let reachable = self.reaches_store(node);
        let failsafe = self.setup.failsafe;
        let Some(agent) = self.agent(node, number) else { return };
        let Some(doing) = agent.doing.get_mut(&id) else { return };
        let renewal = matches!(doing.act, Act::Renew { .. });
        if !reachable && renewal && failsafe {
            self.finish(node, id, Outcome::Failed);
            return;
        }
        if !reachable {
            self.after(READ_RETRY, Event::GiveUp { node, agent: number, id });
            return;
        }
        if doing.step == 0 {
            doing.step = 1;
            let delay = self.hop();
            self.after(delay, Event::GiveUp { node, agent: number, id });
            return;
        }
        let touch = matches!(doing.act, Act::TouchMember { .. } | Act::MoveLease { .. });
        let routine = is_routine(&doing.act);
        if touch {
            self.adopt_lease(node);
        }
        if !routine {
            self.tell(node, || format!("  #{} was not answered", id.0));
        }
        let view = self.store.view();
        self.show(node, view);
        self.finish(node, id, Outcome::Unknown);
    }

    /// Tells the brain the end of an action.
    fn finish(&mut self, node: usize, id: ActionId, outcome: Outcome) {
        let no_lease = self.mutated(Mutation::PromoteWithoutLease);
        let Some(agent) = &mut self.hosts[node].agent else { return };
        let Some(doing) = agent.doing.remove(&id) else { return };
        let believed = no_lease && matches!(doing.act, Act::Renew { .. });
        let outcome = if believed { Outcome::Done } else { outcome };
        if !is_routine(&doing.act) {
            self.tell(node, || format!("  #{} {outcome:?}", id.0));
        }
        self.feed(node, decide::Event::Finished { id, outcome });
    }

    /// The end of an action that is not one on the store: observe first, then tell.
    pub(crate) fn end_action(&mut self, node: usize, number: u64, id: ActionId, outcome: Outcome) {
        let Some(agent) = self.agent(node, number) else { return };
        let Some(doing) = agent.doing.get(&id) else { return };
        match doing.act.lane() {
            Lane::Guard | Lane::Failsafe | Lane::Knock | Lane::Exit => {}
            Lane::Lease
            | Lane::Member
            | Lane::Dcs
            | Lane::Hold
            | Lane::Data
            | Lane::Sync
            | Lane::Confirm
            | Lane::Checkpoint
            | Lane::Slots
            | Lane::Decode
            | Lane::State
            | Lane::Compare => self.look(node),
        }
        self.finish(node, id, outcome);
    }

    pub(crate) fn schedule_lease_check(&mut self) {
        if let Some(at) = self.store.next_expiry() {
            let pending = self.checks.lease_check_at;
            if pending <= self.now || at < pending {
                self.checks.lease_check_at = at.max(self.now + 1);
                self.after(at.saturating_sub(self.now).max(1), Event::LeaseCheck);
            }
        }
    }

    pub(crate) fn check_leases(&mut self) {
        if self.now < self.checks.lease_check_at && self.checks.lease_check_at != 0 {
            return;
        }
        // Without a majority no lease ends; the end itself may come late.
        if self.store_down > 0 || self.rng.chance(300) {
            self.checks.lease_check_at = self.now + 100;
            self.after(100, Event::LeaseCheck);
            return;
        }
        if self.store.expire(self.now) {
            self.tell_all(|| "a lease ends in the store".to_owned());
            self.publish();
            self.note_leadership();
        }
        self.checks.lease_check_at = 0;
        self.schedule_lease_check();
    }

    /// The story of who leads.
    pub(crate) fn note_leadership(&mut self) {
        let view = self.store.see();
        let leader = view.leader_name().cloned();
        if leader != self.checks.leader_told {
            let term = view.leader_term();
            self.checks.leader_told.clone_from(&leader);
            self.tell_all(|| match (leader, term) {
                (Some(name), Some(term)) => format!("{name} holds the leader key, term {term}"),
                (Some(_), None) | (None, _) => "there is no leader key".to_owned(),
            });
        }
    }
}

/// What would fill the story without telling anything.
fn is_routine(act: &Act) -> bool {
    matches!(
        act,
        Act::TouchMember { .. } | Act::Renew { .. } | Act::ArmGuard { .. } | Act::SyncSlots { .. }
    )
}
