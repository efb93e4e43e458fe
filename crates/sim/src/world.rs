//! The world: virtual time, the queue of what happens next, and who gets to see it.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BinaryHeap};

use decide::{Act, ActionId, FailsafeClaim, Outcome};
use types::{Heartbeat, Lsn, MemberName};

use crate::faults::Fault;
use crate::invariants::Checks;
use crate::node::{Host, Snapshot};
use crate::postgres::Stream;
use crate::proxies::Proxy;
use crate::rng::Rng;
use crate::store::Store;
use crate::wal::Record;
use crate::{Mutation, Setup};

/// Something that happens at an instant.
#[derive(Debug, Clone)]
pub(crate) enum Event {
    /// The agent's process starts.
    AgentBoot { node: usize },
    /// The brain's timer.
    Wake { node: usize, agent: u64 },
    /// A snapshot of the store reaches an agent.
    Watched { node: usize, agent: u64, view: Snapshot },
    /// An agent reads the store, at its start or after a lost watch.
    Read { node: usize, agent: u64 },
    /// An agent looks at its PostgreSQL.
    Probe { node: usize, agent: u64 },
    /// A transaction reaches the store.
    Request {
        node: usize,
        agent: u64,
        id: ActionId,
        lease: i64,
        act: Box<Act>,
        reply_delay: Option<u64>,
    },
    /// Its answer reaches the agent.
    Reply { node: usize, agent: u64, id: ActionId, lease: Option<i64>, view: Snapshot },
    /// An agent's next heartbeat is due.
    Beat { node: usize, agent: u64 },
    /// A heartbeat reaches a member.
    Heard { node: usize, agent: u64, from: usize, said: Heartbeat },
    /// A leader's question reaches a member.
    Ask { from: usize, agent: u64, id: ActionId, to: usize, claim: FailsafeClaim },
    /// A member's answer reaches the leader.
    Answer { node: usize, agent: u64, id: ActionId, by: usize, agreed: bool },
    /// A leader stops waiting for the members' answers.
    RoundEnds { node: usize, agent: u64, id: ActionId },
    /// The agent stops waiting for the answer.
    GiveUp { node: usize, agent: u64, id: ActionId },
    /// An action on the host goes on.
    Step { node: usize, agent: u64, id: ActionId },
    /// An action ends.
    End { node: usize, agent: u64, id: ActionId, outcome: Outcome },
    /// SIGTERM reaches the agent.
    Terminate { node: usize, agent: u64 },
    /// The guard's timer.
    GuardDue { node: usize },
    /// PostgreSQL goes on: recovery, promotion, stop.
    Postgres { node: usize, instance: u64 },
    /// A standby's startup process has replayed up to here.
    Replayed { node: usize, instance: u64, to: Lsn },
    /// Processes take a new rule over: the checkpointer, or (with a stream) one walsender.
    RuleTaken { node: usize, instance: u64, change: u64, stream: Option<u64> },
    /// Processes that outlived their postmaster end by themselves.
    OrphansEnd { node: usize, instance: u64 },
    /// A standby tries to start its receiver.
    Connect { node: usize, instance: u64 },
    /// Records reach a receiver.
    Arrive { stream: u64, records: Vec<Record> },
    /// A receiver has flushed.
    Flushed { stream: u64 },
    /// A confirmation reaches a walsender.
    Confirm { stream: u64, flush: Lsn, replay: Lsn },
    /// Keep-alives and time-outs of a stream.
    StreamCheck { stream: u64 },
    /// A client of one node tries to commit.
    NodeWriter { node: usize },
    /// The application tries to commit through the proxy.
    AppWriter,
    /// A commit's record is flushed.
    CommitFlushed { node: usize, instance: u64, waiter: crate::postgres::Waiter },
    /// A proxy keeps its lease alive.
    ProxyBeat { index: usize },
    /// A proxy sees what the store holds.
    ProxyLooks { index: usize },
    /// A proxy begins to hold its clients, and says so.
    ProxyAnswers { index: usize, id: u64 },
    /// The transactions behind a proxy have ended.
    ProxyQuiet { index: usize, id: u64 },
    /// The store looks for leases that ended.
    LeaseCheck,
    /// A fault begins.
    Fault { index: usize },
    /// A fault ends.
    FaultEnds { index: usize },
    /// A host comes up again.
    HostBoot { node: usize },
    /// All faults are over; the store is as reliable as it gets.
    Heal,
    /// The last check.
    Judge,
}

struct Scheduled {
    at: u64,
    sequence: u64,
    event: Event,
}

impl PartialEq for Scheduled {
    fn eq(&self, other: &Self) -> bool {
        self.sequence == other.sequence
    }
}
impl Eq for Scheduled {}
impl PartialOrd for Scheduled {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Scheduled {
    /// The earliest is the greatest, as a heap wants it.
    fn cmp(&self, other: &Self) -> Ordering {
        (other.at, other.sequence).cmp(&(self.at, self.sequence))
    }
}

/// Everything there is.
pub(crate) struct World {
    pub(crate) setup: Setup,
    pub(crate) now: u64,
    pub(crate) rng: Rng,
    queue: BinaryHeap<Scheduled>,
    sequence: u64,
    pub(crate) store: Store,
    /// Reasons for which the store answers nobody.
    pub(crate) store_down: u32,
    /// Probability (permille) that a request or an answer is lost.
    pub(crate) store_loss: u64,
    pub(crate) hosts: Vec<Host>,
    pub(crate) proxies: Vec<Proxy>,
    /// Reasons for which nothing gets from one host to another.
    pub(crate) cuts: BTreeMap<(usize, usize), u32>,
    pub(crate) streams: BTreeMap<u64, Stream>,
    pub(crate) last_number: u64,
    pub(crate) checks: Checks,
    pub(crate) faults: Vec<Fault>,
    pub(crate) over: bool,
    pub(crate) story: Option<String>,
    pub(crate) events: u64,
}

impl World {
    pub(crate) fn empty(setup: Setup, rng: Rng) -> World {
        World {
            story: setup.story.then(String::new),
            setup,
            now: 0,
            rng,
            queue: BinaryHeap::new(),
            sequence: 0,
            store: Store::default(),
            store_down: 0,
            store_loss: 2,
            hosts: Vec::new(),
            proxies: Vec::new(),
            cuts: BTreeMap::new(),
            streams: BTreeMap::new(),
            last_number: 0,
            checks: Checks::default(),
            faults: Vec::new(),
            over: false,
            events: 0,
        }
    }

    /// Lets `event` happen in `delay` milliseconds.
    pub(crate) fn after(&mut self, delay: u64, event: Event) {
        self.sequence += 1;
        self.queue.push(Scheduled { at: self.now + delay, sequence: self.sequence, event });
    }

    /// A number that nothing else has.
    pub(crate) fn number(&mut self) -> u64 {
        self.last_number += 1;
        self.last_number
    }

    /// Adds a line to the story.
    pub(crate) fn tell(&mut self, who: usize, what: impl FnOnce() -> String) {
        if let Some(story) = &mut self.story {
            let name = self.hosts.get(who).map_or("-", |h| h.name.as_str());
            let (seconds, millis) = (self.now / 1000, self.now % 1000);
            story.push_str(&format!("{seconds:>4}.{millis:03} {name:<4} {}\n", what()));
        }
    }

    /// The line for what belongs to no host.
    pub(crate) fn tell_all(&mut self, what: impl FnOnce() -> String) {
        self.tell(usize::MAX, what);
    }

    /// Runs until the judgement.
    pub(crate) fn run(&mut self) {
        while let Some(next) = self.queue.pop() {
            self.now = next.at;
            self.events += 1;
            self.happen(next.event);
            if self.over || self.checks.failed() {
                return;
            }
        }
    }

    /// Whether a message gets from one host to the other now.
    pub(crate) fn linked(&self, from: usize, to: usize) -> bool {
        from == to || self.cuts.get(&(from, to)).is_none_or(|reasons| *reasons == 0)
    }

    /// Whether the host reaches the store now.
    pub(crate) fn reaches_store(&self, node: usize) -> bool {
        self.store_down == 0 && self.hosts[node].dcs_cut == 0
    }

    pub(crate) fn node_named(&self, name: &MemberName) -> Option<usize> {
        self.hosts.iter().position(|h| h.name == *name)
    }

    /// How long a host's disk takes for a flush.
    pub(crate) fn flush_time(&mut self, node: usize) -> u64 {
        let base = if self.hosts[node].slow_disk > 0 { 400 } else { 8 };
        self.rng.range(1, base)
    }

    pub(crate) fn hop(&mut self) -> u64 {
        if self.rng.chance(10) { self.rng.range(50, 400) } else { self.rng.range(1, 15) }
    }

    pub(crate) fn mutated(&self, mutation: Mutation) -> bool {
        self.setup.mutation == Some(mutation)
    }

    /// Whether the event belongs to something that stands still.
    fn defer(&mut self, event: &Event) -> bool {
        let (node, stopped) = match event {
            Event::AgentBoot { node }
            | Event::Wake { node, .. }
            | Event::Watched { node, .. }
            | Event::Read { node, .. }
            | Event::Probe { node, .. }
            | Event::Reply { node, .. }
            | Event::GiveUp { node, .. }
            | Event::Answer { node, .. }
            | Event::RoundEnds { node, .. }
            | Event::Ask { to: node, .. }
            | Event::Beat { node, .. }
            | Event::Heard { node, .. }
            | Event::Step { node, .. }
            | Event::Terminate { node, .. }
            | Event::End { node, .. } => (*node, self.hosts[*node].agent_frozen > 0),
            Event::Connect { node, .. } => (*node, self.hosts[*node].postmaster_frozen > 0),
            Event::GuardDue { node }
            | Event::Postgres { node, .. }
            | Event::Replayed { node, .. }
            | Event::RuleTaken { node, .. }
            | Event::OrphansEnd { node, .. }
            | Event::CommitFlushed { node, .. } => (*node, false),
            Event::Arrive { stream, .. } | Event::Flushed { stream } => {
                (self.streams.get(stream).map_or(usize::MAX, |s| s.down), false)
            }
            Event::Confirm { stream, .. } => {
                (self.streams.get(stream).map_or(usize::MAX, |s| s.up), false)
            }
            Event::Request { .. }
            | Event::StreamCheck { .. }
            | Event::NodeWriter { .. }
            | Event::AppWriter
            | Event::ProxyBeat { .. }
            | Event::ProxyLooks { .. }
            | Event::ProxyAnswers { .. }
            | Event::ProxyQuiet { .. }
            | Event::LeaseCheck
            | Event::Fault { .. }
            | Event::FaultEnds { .. }
            | Event::HostBoot { .. }
            | Event::Heal
            | Event::Judge => return false,
        };
        let Some(host) = self.hosts.get_mut(node) else { return false };
        if host.frozen == 0 && !stopped {
            return false;
        }
        host.deferred.push(event.clone());
        true
    }

    /// Lets happen what waited for a host to go on; the guard first (A15).
    pub(crate) fn release_deferred(&mut self, node: usize) {
        let events = std::mem::take(&mut self.hosts[node].deferred);
        let (guard, rest): (Vec<_>, Vec<_>) =
            events.into_iter().partition(|e| matches!(e, Event::GuardDue { .. }));
        for event in guard {
            self.happen(event);
        }
        for event in rest {
            self.after(0, event);
        }
    }

    fn happen(&mut self, event: Event) {
        if self.defer(&event) {
            return;
        }
        match event {
            Event::AgentBoot { node } => self.agent_boots(node),
            Event::Wake { node, agent } => self.wake(node, agent),
            Event::Watched { node, agent, view } => self.watched(node, agent, view),
            Event::Read { node, agent } => self.read(node, agent),
            Event::Probe { node, agent } => self.probe(node, agent),
            Event::Request { node, agent, id, lease, act, reply_delay } => {
                self.request_arrives((node, agent, id), lease, &act, reply_delay);
            }
            Event::Reply { node, agent, id, lease, view } => {
                self.reply_arrives(node, agent, id, lease, view);
            }
            Event::GiveUp { node, agent, id } => self.give_up(node, agent, id),
            Event::Ask { from, agent, id, to, claim } => self.asked((from, agent, id), to, claim),
            Event::Answer { node, agent, id, by, agreed } => {
                self.answered((node, agent, id), by, agreed);
            }
            Event::RoundEnds { node, agent, id } => self.round_ends(node, agent, id),
            Event::Beat { node, agent } => self.beat(node, agent),
            Event::Heard { node, agent, from, said } => self.heard(node, agent, from, said),
            Event::Step { node, agent, id } => self.step_action(node, agent, id),
            Event::End { node, agent, id, outcome } => self.end_action(node, agent, id, outcome),
            Event::Terminate { node, agent } => self.terminate(node, agent),
            Event::GuardDue { node } => self.guard_due(node),
            Event::Postgres { node, instance } => self.postgres_goes_on(node, instance),
            Event::Replayed { node, instance, to } => self.replayed(node, instance, to),
            Event::RuleTaken { node, instance, change, stream } => {
                self.rule_taken(node, instance, change, stream);
            }
            Event::OrphansEnd { node, instance } => self.orphans_end(node, instance),
            Event::Connect { node, instance } => self.connect(node, instance),
            Event::Arrive { stream, records } => self.arrive(stream, records),
            Event::Flushed { stream } => self.flushed(stream),
            Event::Confirm { stream, flush, replay } => self.confirmed(stream, flush, replay),
            Event::StreamCheck { stream } => self.check_stream(stream),
            Event::NodeWriter { node } => self.node_writes(node),
            Event::AppWriter => self.application_writes(),
            Event::CommitFlushed { node, instance, waiter } => {
                self.commit_flushed(node, instance, waiter);
            }
            Event::ProxyBeat { index } => self.proxy_beats(index),
            Event::ProxyLooks { index } => self.proxy_looks(index),
            Event::ProxyAnswers { index, id } => self.proxy_answers(index, id),
            Event::ProxyQuiet { index, id } => self.proxy_quiet(index, id),
            Event::LeaseCheck => self.check_leases(),
            Event::Fault { index } => self.fault_begins(index),
            Event::FaultEnds { index } => self.fault_ends(index),
            Event::HostBoot { node } => self.host_boots(node),
            Event::Heal => {
                self.store_loss = 0;
                self.tell_all(|| "all faults are over".to_owned());
            }
            Event::Judge => self.judge(),
        }
    }
}
