//! What actions on a host do, step by step. Between two steps anything may happen to the host.

use std::collections::BTreeMap;

use decide::{Act, ActionId, Outcome, STOP_FAST, StartAs, StopMode, SyncRule};
use types::{
    Compared, ControlState, Durable, DurablePledge, InProgress, Lsn, MemberName, Millis, Position,
    Process, SlotChange, Term, Timeline, Upstream,
};

use crate::ailments::Effect;
use crate::postgres::{DataDirectory, Instance, Phase, Waiter};
use crate::world::{Event, World};

/// How long an action waits before it looks again, in milliseconds.
const POLL: u64 = 15;
/// How long a start is waited for before it counts as begun, in milliseconds.
const START_WAIT: u64 = 1_000;
/// How long a proof is waited for, in milliseconds.
const PROOF_WAIT: u64 = 3_000;
/// How long the receiver's end is waited for, in milliseconds.
const RECEIVER_WAIT: u64 = 10_000;
/// After how long the agent's service manager starts it again, in milliseconds.
pub(crate) const RESTART_PAUSE: u64 = 3_000;

/// What comes after a step.
enum Next {
    /// The next step, after so many milliseconds.
    In(u64),
    /// The same step again, after [`POLL`].
    Again,
    Done,
    Failed,
}

/// One look at an action.
struct Step {
    node: usize,
    number: u32,
    issued: u64,
    /// The instance that ran when it was issued.
    instance: u64,
    note: u64,
}

impl World {
    pub(crate) fn step_action(&mut self, node: usize, agent: u64, id: ActionId) {
        let host = &self.hosts[node];
        if !host.agent_runs(agent) {
            return;
        }
        let Some(doing) = host.agent.as_ref().and_then(|a| a.doing.get(&id)) else { return };
        let act = doing.act.clone();
        let mut step = Step {
            node,
            number: doing.step,
            issued: doing.issued,
            instance: doing.instance,
            note: doing.note,
        };
        let next = self.run_step(&mut step, &act);
        let Some(agent_now) = self.hosts[node].agent.as_mut() else { return };
        if let Some(doing) = agent_now.doing.get_mut(&id) {
            doing.note = step.note;
            doing.step += u32::from(matches!(next, Next::In(_)));
        }
        match next {
            Next::In(delay) => self.after(delay, Event::Step { node, agent, id }),
            Next::Again => self.after(POLL, Event::Step { node, agent, id }),
            Next::Done => self.end_action(node, agent, id, Outcome::Done),
            Next::Failed => self.end_action(node, agent, id, Outcome::Failed),
        }
    }

    fn run_step(&mut self, step: &mut Step, act: &Act) -> Next {
        match self.effect_on(step.node, act) {
            Effect::None => {}
            Effect::Waits => return Next::Again,
            Effect::Fails => return Next::Failed,
        }
        match act {
            Act::ArmGuard { kill_at } => self.arm_guard(step.node, Some(kill_at.0)),
            Act::StandDownGuard => self.arm_guard(step.node, None),
            Act::Initdb => self.initdb(step),
            // No member of the simulation has a backup.
            Act::Restore => Next::Failed,
            Act::Clone { source, term, replace, .. } => self.copy(step, source, *term, *replace),
            Act::Rewind { source, term } => self.rewind(step, source, *term),
            Act::Compare { leader, term } => self.compare(step, leader, *term),
            Act::Start { start_as, term } => self.start(step, start_as, *term),
            Act::Stop { mode: StopMode::Fast } => self.stop_within(step, None, STOP_FAST),
            Act::StopForHandOver { candidate, limit } => {
                self.stop_within(step, Some(candidate.as_ref()), *limit)
            }
            Act::Stop { mode: StopMode::Immediate } | Act::EndOrphans => self.kill_step(step),
            Act::Follow { upstream, term } => self.follow(step, upstream.as_ref(), *term),
            Act::StopReceiving { fence, term, .. } => self.stop_receiving(step, fence, *term),
            Act::Promote { term, timeline, sync } => self.promote(step, *term, *timeline, sync),
            Act::SetSync { sync } => self.set_sync(step, sync),
            Act::ConfirmWrite => self.prove(step),
            Act::Checkpoint => self.checkpoint(step),
            // There is no archive, and nobody calls itself like another.
            Act::ArchiveShutdownCheckpoint | Act::EndStrangers { .. } => Next::Done,
            // A hint that no safety rests on: here nobody gives it.
            Act::AskTerms { .. } | Act::AskPositions { .. } => Next::Done,
            Act::SyncSlots { changes } => {
                self.change_slots(step.node, changes);
                Next::Done
            }
            // Nobody in the simulation has logical slots.
            Act::DecodeSlots { .. } | Act::FetchSlots { .. } | Act::CopySlots { .. } => {
                Next::Failed
            }
            Act::ForgetFreshCopy => {
                self.durable(step.node).fresh_copy = false;
                Next::Done
            }
            Act::Exit { code } => {
                self.tell(step.node, || format!("agent ends with status {code}"));
                self.agent_dies(step.node);
                self.after(RESTART_PAUSE, Event::AgentBoot { node: step.node });
                Next::Failed
            }
            Act::TouchMember { .. }
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
            | Act::ClearFailover { .. } => panic!("{act:?} goes to the store"),
            Act::AskFailsafe { .. } | Act::Knock { .. } => panic!("{act:?} goes to the members"),
        }
    }

    fn durable(&mut self, node: usize) -> &mut Durable {
        &mut self.hosts[node].disk.durable
    }

    fn initdb(&mut self, step: &mut Step) -> Next {
        if step.number == 0 {
            return Next::In(self.rng.range(300, 1_200));
        }
        let identifier = format!("76000000000000{:05}", self.number());
        let host = &mut self.hosts[step.node];
        if host.disk.data.is_some() {
            return Next::Failed;
        }
        host.disk.data = Some(DataDirectory::new(identifier));
        Next::Done
    }

    /// The primary that is copied from: alive and reachable; a standby is refused (B7).
    pub(crate) fn source(&self, node: usize, source: &MemberName) -> Option<(usize, u64, Term)> {
        let from = self.node_named(source)?;
        let host = &self.hosts[from];
        let instance = host.postgres.as_ref().filter(|i| i.accepts() && i.writable())?;
        let reachable = self.linked(node, from) && self.linked(from, node) && host.frozen == 0;
        let answers = reachable && host.postmaster_frozen == 0 && from != node;
        answers.then_some((from, instance.number, instance.term))
    }

    fn copy(&mut self, step: &mut Step, source: &Upstream, term: Term, replace: bool) -> Next {
        let node = step.node;
        let found = self.source(node, &source.name);
        if step.number == 0 {
            let Some((_, instance, source_term)) = found else { return Next::Failed };
            step.note = instance;
            if replace {
                self.checks_before_destruction(node, term, source_term);
                self.durable(node).in_progress = Some(InProgress::Rebuild);
            }
            return Next::In(self.rng.range(500, 4_000));
        }
        let Some((from, instance, _)) = found else { return Next::Failed };
        if instance != step.note || self.hosts[node].postgres.is_some() {
            return Next::Failed;
        }
        let Some(data) = &self.hosts[from].disk.data else { return Next::Failed };
        let copy = DataDirectory::copy_of(data, false);
        self.hosts[node].disk.data = Some(copy);
        let durable = self.durable(node);
        durable.in_progress = None;
        durable.fresh_copy = true;
        durable.term = term;
        durable.pledge = None;
        self.forget_comparison(node);
        Next::Done
    }

    fn forget_comparison(&mut self, node: usize) {
        if let Some(agent) = &mut self.hosts[node].agent {
            agent.compared = None;
        }
    }

    fn rewind(&mut self, step: &mut Step, source: &Upstream, term: Term) -> Next {
        let node = step.node;
        if self.hosts[node].postgres.is_some() {
            return Next::Failed;
        }
        let found = self.source(node, &source.name);
        if step.number == 0 {
            let Some((from, instance, source_term)) = found else { return Next::Failed };
            step.note = instance;
            self.checks_before_destruction(node, term, source_term);
            self.durable(node).in_progress = Some(InProgress::Rewind);
            if self.rewind_needed(node, from)
                && let Some(data) = &mut self.hosts[node].disk.data
            {
                data.broken = true;
            }
            return Next::In(self.rng.range(200, 2_000));
        }
        let Some((from, instance, _)) = found else { return Next::Failed };
        if instance != step.note {
            return Next::Failed;
        }
        let broken = self.hosts[node].disk.data.as_ref().is_some_and(|d| d.broken);
        if broken {
            let Some(data) = &self.hosts[from].disk.data else { return Next::Failed };
            let mut copy = DataDirectory::copy_of(data, true);
            copy.incomplete = step.issued.is_multiple_of(3);
            self.hosts[node].disk.data = Some(copy);
        }
        let durable = self.durable(node);
        durable.in_progress = None;
        durable.pledge = None;
        self.forget_comparison(node);
        Next::Done
    }

    /// `pg_rewind` looks at the timelines in both control files (A5, A12).
    fn rewind_needed(&self, node: usize, from: usize) -> bool {
        let (Some(mine), Some(theirs)) = (&self.hosts[node].disk.data, &self.hosts[from].disk.data)
        else {
            return false;
        };
        let control = mine.control();
        let timeline = control.timeline.max(control.end_timeline);
        if mine.broken {
            return true;
        }
        timeline != theirs.control_timeline()
    }

    fn compare(&mut self, step: &mut Step, leader: &Upstream, term: Term) -> Next {
        if step.number == 0 {
            return Next::In(self.rng.range(5, 50));
        }
        let Some((from, _, _)) = self.source(step.node, &leader.name) else {
            return Next::Failed;
        };
        let Some(data) = &self.hosts[from].disk.data else { return Next::Failed };
        let host = &self.hosts[step.node];
        let stopped = host.disk.data.as_ref().filter(|_| host.postgres.is_none());
        let compared = Compared {
            leader: leader.name.clone(),
            term,
            timeline: data.log.timeline(),
            history: data.log.history.clone(),
            ends_at_control: stopped.map(|mine| {
                mine.state == ControlState::InArchiveRecovery && mine.log.end() <= mine.minimum
            }),
        };
        if let Some(agent) = &mut self.hosts[step.node].agent {
            agent.compared = Some(compared);
        }
        Next::Done
    }

    fn start(&mut self, step: &mut Step, start_as: &StartAs, term: Option<Term>) -> Next {
        let node = step.node;
        if step.number > 0 {
            let begun = self.now - step.issued > START_WAIT;
            let Some(instance) = self.hosts[node].instance(step.note) else {
                return Next::Failed;
            };
            let up = instance.phase != Phase::Starting;
            return if up || begun { Next::Done } else { Next::Again };
        }
        if self.hosts[node].postgres.is_some() {
            return Next::Failed;
        }
        self.checks.starts_only_whole(&self.hosts[node], self.now);
        self.forget_comparison(node);
        let Some(data) = &mut self.hosts[node].disk.data else { return Next::Failed };
        match start_as {
            StartAs::Primary => {
                data.standby_signal = false;
            }
            StartAs::Standby(upstream) => {
                data.standby_signal = true;
                data.conninfo.clone_from(upstream);
            }
        }
        if let Some(term) = term {
            let durable = self.durable(node);
            durable.term = term;
            durable.pledge = None;
        }
        step.note = self.launch(node, *start_as == StartAs::Primary);
        Next::In(POLL)
    }

    /// Starts a postmaster; recovery takes its time.
    fn launch(&mut self, node: usize, as_primary: bool) -> u64 {
        let number = self.number();
        let since = self.hosts[node].clock(self.now).0;
        let term = self.hosts[node].disk.durable.term;
        let clean = self.hosts[node].disk.data.as_ref().is_some_and(|d| {
            matches!(d.state, ControlState::ShutDown | ControlState::ShutDownInRecovery)
        });
        let slow = if self.hosts[node].slow_disk > 0 { 3 } else { 1 };
        let longest = if clean { 300 } else { 2_500 };
        let delay = self.rng.range(50, longest) * slow;
        let instance = Instance::new(number, since, as_primary, term);
        self.hosts[node].postgres = Some(instance);
        self.after(delay, Event::Postgres { node, instance: number });
        self.notice(node);
        number
    }

    /// One that is given up after its limit, as the shell does.
    fn stop_within(
        &mut self,
        step: &mut Step,
        hand_over: Option<Option<&MemberName>>,
        limit: Millis,
    ) -> Next {
        match self.stop_fast(step, hand_over) {
            Next::In(_) | Next::Again if self.now >= step.issued + limit.0 => Next::Failed,
            next => next,
        }
    }

    /// `hand_over` is `None` for a plain stop, else whom the stop waits for.
    fn stop_fast(&mut self, step: &mut Step, hand_over: Option<Option<&MemberName>>) -> Next {
        let node = step.node;
        let postmaster_frozen = self.hosts[node].postmaster_frozen > 0;
        let Some(instance) = &self.hosts[node].postgres else { return Next::Done };
        if !instance.postmaster {
            // No stop in order any more: what is left is ended.
            let ended = self.kill_instance(node, "ended without its postmaster");
            return if ended { Next::Done } else { Next::Again };
        }
        if postmaster_frozen {
            // The signal is not heard: the shell waits, until a stop that is not fast comes.
            return Next::Again;
        }
        let number = instance.number;
        match instance.phase {
            Phase::Stopping => Next::Again,
            Phase::Draining => {
                if let Some(candidate) = hand_over
                    && self.has_everything(node, number, candidate)
                {
                    self.instance_ends(node, "stopped for its successor");
                    return Next::Done;
                }
                Next::Again
            }
            Phase::Starting | Phase::Standby | Phase::Promoting(_) | Phase::Primary => {
                self.begin_clean_stop(node);
                Next::In(POLL)
            }
        }
    }

    /// Whether the candidate has the shutdown checkpoint.
    fn has_everything(&self, node: usize, number: u64, candidate: Option<&MemberName>) -> bool {
        let Some(candidate) = candidate else { return true };
        let end = self.hosts[node].disk.data.as_ref().map_or(Lsn(0), |d| d.log.end());
        let streams = self.streams.values().filter(|s| s.up == node && s.up_instance == number);
        streams.filter(|s| self.hosts[s.down].name == *candidate).any(|s| s.confirmed >= end)
    }

    fn kill_step(&mut self, step: &mut Step) -> Next {
        if step.number == 0 {
            return Next::In(self.rng.range(2, 60));
        }
        if self.kill_instance(step.node, "ended at once") { Next::Done } else { Next::Again }
    }

    fn standby_mut(&mut self, node: usize) -> Option<&mut DataDirectory> {
        let host = &mut self.hosts[node];
        let standby = host.postgres.as_ref().is_some_and(|i| i.phase == Phase::Standby);
        host.disk.data.as_mut().filter(|_| standby)
    }

    fn follow(&mut self, step: &mut Step, upstream: Option<&Upstream>, term: Term) -> Next {
        let node = step.node;
        if step.number == 0 {
            if self.standby_mut(node).is_none() {
                return Next::Failed;
            }
            let durable = self.durable(node);
            durable.term = term;
            durable.pledge = None;
            return Next::In(self.rng.range(1, 20));
        }
        let Some(data) = self.standby_mut(node) else { return Next::Failed };
        if step.number == 1 {
            data.conninfo = upstream.cloned();
            let delay = self.rng.range(5, 60);
            return Next::In(delay);
        }
        self.end_receiver_of(node);
        self.start_connecting(node, 1);
        Next::Done
    }

    fn stop_receiving(&mut self, step: &mut Step, fence: &str, term: Term) -> Next {
        let node = step.node;
        let sloppy = self.mutated(crate::Mutation::CompareRunningReceivers);
        if self.hosts[node].postgres.is_none() {
            return self.pledge_stopped(step, fence, term);
        }
        let Some(data) = self.standby_mut(node) else { return Next::Failed };
        match step.number {
            0 => {
                if !sloppy {
                    data.conninfo = None;
                }
                Next::In(self.rng.range(5, 60))
            }
            1 => {
                if !sloppy {
                    self.end_receiver_of(node);
                    self.start_replay(node);
                }
                Next::In(1)
            }
            2 => {
                let end = data.log.end();
                let standby = self.hosts[node].postgres.as_ref();
                let replayed = standby.is_some_and(|i| i.replayed == end);
                if replayed || sloppy {
                    return Next::In(self.rng.range(1, 20));
                }
                if self.now - step.issued > RECEIVER_WAIT { Next::Failed } else { Next::Again }
            }
            _ => {
                let (timeline, lsn) = (data.log.timeline(), data.log.end());
                self.pledged(node, fence, Position { timeline, lsn, term })
            }
        }
    }

    fn pledged(&mut self, node: usize, fence: &str, position: Position) -> Next {
        self.durable(node).pledge = Some(DurablePledge { fence: fence.to_owned(), position });
        self.tell(node, || format!("pledges {position}"));
        Next::Done
    }

    /// After a clean stop pg_control says where the log ends.
    fn pledge_stopped(&mut self, step: &mut Step, fence: &str, term: Term) -> Next {
        let Some(data) = &mut self.hosts[step.node].disk.data else { return Next::Failed };
        if data.state != ControlState::ShutDown || data.broken {
            return Next::Failed;
        }
        if step.number == 0 {
            data.conninfo = None;
            return Next::In(self.rng.range(3, 40));
        }
        let (timeline, lsn) = (data.log.timeline(), data.log.end());
        self.pledged(step.node, fence, Position { timeline, lsn, term })
    }

    fn promote(&mut self, step: &mut Step, term: Term, to: Timeline, rule: &SyncRule) -> Next {
        let node = step.node;
        if step.number == 0 {
            if self.standby_mut(node).is_none() {
                return Next::Failed;
            }
            let durable = self.durable(node);
            durable.term = term;
            durable.pledge = None;
            return Next::In(self.rng.range(2, 40));
        }
        if step.number == 1 {
            let Some(data) = self.standby_mut(node) else { return Next::Failed };
            data.rule = rule.clone();
            data.conninfo = None;
            self.begin_promotion(node, term, to);
            return Next::In(POLL);
        }
        let Some(instance) = self.hosts[node].instance(step.instance) else {
            return Next::Failed;
        };
        if instance.writable() { Next::Done } else { Next::Again }
    }

    fn set_sync(&mut self, step: &mut Step, rule: &SyncRule) -> Next {
        let node = step.node;
        let host = &mut self.hosts[node];
        let frozen = host.postmaster_frozen > 0;
        let writable = host.postgres.as_ref().is_some_and(|i| i.writable() && i.postmaster);
        let Some(data) = host.disk.data.as_mut().filter(|_| writable) else {
            return Next::Failed;
        };
        if step.number == 0 {
            data.rule = rule.clone();
            return Next::In(1);
        }
        if step.number == 1 {
            // The postmaster passes the reload on.
            if frozen {
                return Next::Again;
            }
            self.spread_rule(node);
            return Next::In(POLL);
        }
        let Some(instance) = self.hosts[node].instance(step.instance) else {
            return Next::Failed;
        };
        if instance.taken == *rule { Next::Done } else { Next::Again }
    }

    fn prove(&mut self, step: &mut Step) -> Next {
        let node = step.node;
        let host = &self.hosts[node];
        let writable = host.instance(step.instance).filter(|i| i.writable() && i.postmaster);
        let Some(instance) = writable else { return Next::Failed };
        if step.number == 0 {
            step.note = instance.proofs;
            let number = instance.number;
            let delay = self.flush_time(node);
            let waiter = Waiter::Agent;
            self.after(delay, Event::CommitFlushed { node, instance: number, waiter });
            return Next::In(POLL);
        }
        if instance.proofs > step.note {
            return Next::Done;
        }
        if self.now - step.issued > PROOF_WAIT { Next::Failed } else { Next::Again }
    }

    fn checkpoint(&mut self, step: &mut Step) -> Next {
        let node = step.node;
        if step.number == 0 {
            let slow = if self.hosts[node].slow_disk > 0 { 5 } else { 1 };
            return Next::In(self.rng.range(20, 400) * slow);
        }
        let host = &mut self.hosts[node];
        let Some(instance) = host.postgres.as_ref().filter(|i| i.writable() && i.postmaster) else {
            return Next::Failed;
        };
        let timeline = instance.timeline;
        if let Some(data) = &mut host.disk.data {
            data.checkpoint_now(timeline);
        }
        self.pump_all(node);
        Next::Done
    }

    /// Tells the guard; `None` stands it down.
    fn arm_guard(&mut self, node: usize, kill_at: Option<u64>) -> Next {
        self.hosts[node].guard = kill_at;
        self.set_guard_timer(node);
        Next::Done
    }

    pub(crate) fn set_guard_timer(&mut self, node: usize) {
        if let Some(kill_at) = self.hosts[node].guard {
            let at = self.hosts[node].when(self.now, Millis(kill_at));
            self.after(at - self.now, Event::GuardDue { node });
        }
    }

    pub(crate) fn guard_due(&mut self, node: usize) {
        let now = self.hosts[node].clock(self.now);
        let due = self.hosts[node].guard.is_some_and(|kill_at| kill_at <= now.0);
        if !due {
            return;
        }
        self.hosts[node].guard = None;
        if self.hosts[node].postgres.is_some() {
            self.tell(node, || "the guard strikes".to_owned());
            self.kill_instance(node, "killed by the guard");
        }
    }

    fn change_slots(&mut self, node: usize, changes: &[SlotChange]) {
        let Some(data) = &mut self.hosts[node].disk.data else { return };
        for change in changes {
            let slot = data.slots.entry(change.name().to_owned()).or_insert(None);
            match change {
                SlotChange::Drop { name } => _ = data.slots.remove(name),
                SlotChange::Advance { to, .. } => *slot = (*slot).max(Some(*to)),
                SlotChange::Create { .. }
                | SlotChange::CreateLogical { .. }
                | SlotChange::AdvanceLogical { .. } => {}
            }
        }
    }

    /// What the agent sees of the slots.
    pub(crate) fn slots_of(&self, node: usize) -> Vec<types::Slot> {
        let Some(data) = &self.hosts[node].disk.data else { return Vec::new() };
        let active: BTreeMap<String, Lsn> = self
            .streams
            .values()
            .filter(|s| s.up == node && s.sender_lives)
            .map(|s| (types::slot_name(&self.hosts[s.down].name), s.confirmed))
            .collect();
        data.slots
            .iter()
            .map(|(name, restart)| types::Slot {
                name: name.clone(),
                // One that was just created retains from there.
                restart: active.get(name).copied().or(*restart).or(Some(Lsn(0))),
                active: active.contains_key(name),
                ..types::Slot::default()
            })
            .collect()
    }

    /// The running state as the agent can tell it.
    pub(crate) fn process_of(&self, node: usize) -> Process {
        let host = &self.hosts[node];
        let Some(instance) = &host.postgres else { return Process::Stopped };
        if !instance.postmaster {
            return Process::Orphaned;
        }
        let since = Millis(instance.since);
        if host.postmaster_frozen > 0 {
            return Process::Silent { since: Millis(host.postmaster_silent_since) };
        }
        match instance.phase {
            Phase::Starting | Phase::Stopping | Phase::Draining => {
                Process::NotReady { since, recovery: None }
            }
            Phase::Standby | Phase::Promoting(_) | Phase::Primary => {
                Process::Running(self.running(node, instance))
            }
        }
    }
}
