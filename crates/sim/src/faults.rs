//! What goes wrong, and when: drawn from the seed before the run begins.

use decide::{Act, Request, RequestId};
use types::{FailoverRequest, RestartRequest};

use crate::postgres::Disk;
use crate::rng::Rng;
use crate::shell::TTL;
use crate::world::{Event, World};
use crate::{Mode, Setup};

/// One fault.
#[derive(Debug, Clone)]
pub(crate) struct Fault {
    pub(crate) at: u64,
    pub(crate) until: u64,
    pub(crate) kind: Kind,
    /// The host it strikes, if it strikes one; for [`Aim::Leader`] known once it begins.
    pub(crate) node: usize,
    pub(crate) aim: Aim,
    pub(crate) other: usize,
    begun: bool,
}

/// Whom a fault strikes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Aim {
    /// Whoever leads then.
    Leader,
    /// The node named.
    Node,
}

/// What goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    AgentKilled,
    AgentTerminated,
    PostmasterKilled,
    PostgresKilled,
    HostLost,
    DiskLost,
    HostFrozen,
    AgentFrozen,
    AgentAndPostmasterFrozen,
    CutFromStore,
    CutFromPeers,
    CutFromAll,
    OneWayCut,
    CutFromOne,
    StoreDown,
    StoreLossy,
    StoreLeaderChange,
    ClockJump,
    SlowDisk,
    SlowReplay,
    Switchover,
    Restart,
    Reinitialize,
    ModeChange,
    TtlChange,
    LeaderKeyDeleted,
    PostmasterFrozen,
    DiskHangs,
    DiskFull,
    ConnectionsTaken,
    PromotionFails,
}

const KINDS: [Kind; 24] = [
    Kind::AgentKilled,
    Kind::AgentTerminated,
    Kind::PostmasterKilled,
    Kind::PostgresKilled,
    Kind::HostLost,
    Kind::DiskLost,
    Kind::HostFrozen,
    Kind::AgentFrozen,
    Kind::AgentAndPostmasterFrozen,
    Kind::CutFromStore,
    Kind::CutFromPeers,
    Kind::CutFromAll,
    Kind::OneWayCut,
    Kind::StoreDown,
    Kind::StoreLossy,
    Kind::StoreLeaderChange,
    Kind::ClockJump,
    Kind::SlowDisk,
    Kind::SlowReplay,
    Kind::Switchover,
    Kind::Restart,
    Kind::Reinitialize,
    Kind::ModeChange,
    Kind::LeaderKeyDeleted,
];

/// Faults that are harmless apart and dangerous together: the first strikes a member, the second
/// the leader, shortly after.
const PAIRS: [(Kind, Aim, Kind, Aim); 14] = [
    (Kind::CutFromPeers, Aim::Node, Kind::HostLost, Aim::Leader),
    (Kind::CutFromPeers, Aim::Node, Kind::AgentAndPostmasterFrozen, Aim::Leader),
    (Kind::SlowDisk, Aim::Node, Kind::HostLost, Aim::Leader),
    (Kind::OneWayCut, Aim::Leader, Kind::PostmasterKilled, Aim::Leader),
    (Kind::CutFromStore, Aim::Leader, Kind::LeaderKeyDeleted, Aim::Leader),
    (Kind::CutFromStore, Aim::Node, Kind::LeaderKeyDeleted, Aim::Leader),
    (Kind::CutFromStore, Aim::Leader, Kind::AgentKilled, Aim::Leader),
    (Kind::HostFrozen, Aim::Node, Kind::Switchover, Aim::Leader),
    (Kind::DiskLost, Aim::Node, Kind::HostLost, Aim::Leader),
    (Kind::SlowReplay, Aim::Node, Kind::HostLost, Aim::Leader),
    (Kind::ModeChange, Aim::Leader, Kind::HostLost, Aim::Leader),
    (Kind::Restart, Aim::Leader, Kind::CutFromStore, Aim::Leader),
    (Kind::Restart, Aim::Node, Kind::HostLost, Aim::Leader),
    (Kind::Reinitialize, Aim::Node, Kind::HostLost, Aim::Leader),
];

/// Pairs for `failsafe_mode`: the first is an outage of the store, often longer than any lease.
const FAILSAFE_PAIRS: [(Kind, Aim, Kind, Aim); 10] = [
    (Kind::CutFromStore, Aim::Leader, Kind::AgentKilled, Aim::Node),
    (Kind::CutFromStore, Aim::Leader, Kind::CutFromPeers, Aim::Node),
    (Kind::CutFromStore, Aim::Leader, Kind::OneWayCut, Aim::Node),
    (Kind::CutFromStore, Aim::Leader, Kind::HostLost, Aim::Node),
    (Kind::CutFromStore, Aim::Leader, Kind::HostFrozen, Aim::Node),
    (Kind::CutFromStore, Aim::Leader, Kind::AgentFrozen, Aim::Leader),
    (Kind::CutFromStore, Aim::Leader, Kind::PostmasterKilled, Aim::Leader),
    (Kind::StoreDown, Aim::Node, Kind::CutFromAll, Aim::Node),
    (Kind::StoreDown, Aim::Node, Kind::HostLost, Aim::Leader),
    (Kind::StoreLossy, Aim::Node, Kind::CutFromStore, Aim::Leader),
];

/// What leaves PostgreSQL alive and of no use, each with what strikes the leader besides, if
/// anything does.
const AILMENTS: [(Kind, Option<Kind>); 9] = [
    (Kind::PostmasterFrozen, None),
    (Kind::DiskHangs, None),
    (Kind::DiskFull, None),
    (Kind::ConnectionsTaken, None),
    (Kind::PromotionFails, Some(Kind::HostLost)),
    (Kind::PromotionFails, Some(Kind::Switchover)),
    (Kind::DiskHangs, Some(Kind::HostLost)),
    (Kind::DiskFull, Some(Kind::PostmasterKilled)),
    (Kind::DiskHangs, Some(Kind::CutFromStore)),
];

/// What keeps a leader's heartbeats and WAL from the others.
const SILENCES: [Kind; 6] = [
    Kind::HostFrozen,
    Kind::CutFromPeers,
    Kind::CutFromAll,
    Kind::CutFromOne,
    Kind::OneWayCut,
    Kind::HostLost,
];

/// What else may happen while a leader is suspected.
const STRIKES: [Kind; 10] = [
    Kind::AgentKilled,
    Kind::PostmasterKilled,
    Kind::HostLost,
    Kind::HostFrozen,
    Kind::AgentFrozen,
    Kind::CutFromStore,
    Kind::CutFromPeers,
    Kind::StoreLossy,
    Kind::SlowReplay,
    Kind::Switchover,
];

/// The first of two pairs that leave a living leader without its key: cut off from the store, and
/// reaching it while a member does not.
const FENCE_PAIR: usize = 4;

/// A schedule: everything ends before `heal`.
pub(crate) fn plan(rng: &mut Rng, setup: &Setup, heal: u64) -> Vec<Fault> {
    let (members, mode) = (setup.members, setup.mode);
    let mut faults: Vec<Fault> = Vec::new();
    let early = rng.chance(150);
    let mut at = if early { rng.range(500, 6_000) } else { rng.range(10_000, 16_000) };
    let number = rng.range(1, 9);
    for _ in 0..number {
        if setup.new_ttls {
            new_ttl(rng, setup, (at, heal), &mut faults);
        } else if setup.relapses || (setup.fenced && rng.chance(150)) {
            relapse(rng, setup, (at, heal), &mut faults);
        } else if setup.proxies && rng.chance(300) {
            planned_stop(rng, setup, (at, heal), &mut faults);
        } else if setup.fenced && rng.chance(400) {
            silence(rng, setup, (at, heal), &mut faults);
        } else if setup.failsafe && rng.chance(500) {
            outage(rng, setup, (at, heal), &mut faults);
        } else if setup.ailing && rng.chance(600) {
            ail(rng, setup, (at, heal), &mut faults);
        } else if setup.fence_only || rng.chance(300) {
            let pair =
                if setup.fence_only { FENCE_PAIR + rng.index(2) } else { rng.index(PAIRS.len()) };
            let (first, first_aim, second, second_aim) = PAIRS[pair];
            let one = draw(rng, (at, heal, members), first, first_aim);
            let then = at + rng.range(0, 3_000);
            let mut two = draw(rng, (then, heal, members), second, second_aim);
            if first_aim == Aim::Leader && rng.chance(700) {
                two.node = one.node;
            }
            add(&mut faults, one, mode, heal);
            add(&mut faults, two, mode, heal);
        } else {
            let kind = KINDS[rng.index(KINDS.len())];
            let aim = if rng.chance(500) { Aim::Leader } else { Aim::Node };
            let fault = draw(rng, (at, heal, members), kind, aim);
            add(&mut faults, fault, mode, heal);
        }
        at += if rng.chance(350) { rng.range(0, 1_500) } else { rng.range(1_000, 15_000) };
    }
    faults
}

/// An outage of the store with something that happens in it.
fn outage(rng: &mut Rng, setup: &Setup, (at, heal): (u64, u64), faults: &mut Vec<Fault>) {
    let (members, mode) = (setup.members, setup.mode);
    let (first, first_aim, second, second_aim) = FAILSAFE_PAIRS[rng.index(FAILSAFE_PAIRS.len())];
    let mut one = draw(rng, (at, heal, members), first, first_aim);
    one.until = (at + rng.range(4_000, 30_000)).min(heal).max(at);
    let then = at + rng.range(0, 25_000);
    let two = draw(rng, (then, heal, members), second, second_aim);
    add(faults, one, mode, heal);
    add(faults, two, mode, heal);
}

/// What silences a leader for about as long as a suspicion takes, and often something else
/// meanwhile.
fn silence(rng: &mut Rng, setup: &Setup, (at, heal): (u64, u64), faults: &mut Vec<Fault>) {
    let (members, mode) = (setup.members, setup.mode);
    let kind = SILENCES[rng.index(SILENCES.len())];
    let mut one = draw(rng, (at, heal, members), kind, Aim::Leader);
    if rng.chance(800) {
        one.until = (at + rng.range(600, 5_000)).min(heal).max(at);
    }
    add(faults, one, mode, heal);
    if rng.chance(600) {
        let then = at + rng.range(0, 2_500);
        let aim = if rng.chance(700) { Aim::Node } else { Aim::Leader };
        let kind = STRIKES[rng.index(STRIKES.len())];
        let two = draw(rng, (then, heal, members), kind, aim);
        add(faults, two, mode, heal);
    }
}

/// A planned stop of the leader's PostgreSQL, and often something else while it waits for the
/// proxies' clients.
fn planned_stop(rng: &mut Rng, setup: &Setup, (at, heal): (u64, u64), faults: &mut Vec<Fault>) {
    let (members, mode) = (setup.members, setup.mode);
    let kind = match rng.range(0, 999) {
        0..500 => Kind::Switchover,
        500..800 => Kind::Restart,
        _ => Kind::AgentTerminated,
    };
    add(faults, draw(rng, (at, heal, members), kind, Aim::Leader), mode, heal);
    if rng.chance(600) {
        let then = at + rng.range(0, 3_500);
        let aim = if rng.chance(500) { Aim::Node } else { Aim::Leader };
        let kind = STRIKES[rng.index(STRIKES.len())];
        add(faults, draw(rng, (then, heal, members), kind, aim), mode, heal);
    }
}

/// A leader that does not reach the store any more, about when the length of its lease changes.
fn new_ttl(rng: &mut Rng, setup: &Setup, (at, heal): (u64, u64), faults: &mut Vec<Fault>) {
    let change = draw(rng, (at, heal, setup.members), Kind::TtlChange, Aim::Leader);
    let then = at + rng.range(0, 25_000);
    let kind = [Kind::CutFromStore, Kind::AgentFrozen, Kind::StoreLossy][rng.index(3)];
    let mut cut = draw(rng, (then, heal, setup.members), kind, Aim::Leader);
    cut.until = (then + rng.range(5_000, 40_000)).min(heal).max(then);
    add(faults, change, setup.mode, heal);
    add(faults, cut, setup.mode, heal);
}

/// A leader that comes back while one of two members has pledged and the other is slow, so that the
/// fence is voided; it is lost soon after, when the other one lacks something and the one is slow.
fn relapse(rng: &mut Rng, setup: &Setup, (at, heal): (u64, u64), faults: &mut Vec<Fault>) {
    let members = setup.members;
    let one = rng.index(members);
    let other = (one + 1 + rng.index(members.max(2) - 1)) % members;
    let frozen = at + rng.range(0, 500);
    let again = at + rng.range(3_000, 5_000);
    let lost = again + rng.range(300, 900);
    let steps = [
        (Kind::SlowDisk, Aim::Node, other, at, 2_500),
        (Kind::HostFrozen, Aim::Leader, one, frozen, rng.range(1_000, 1_500)),
        (Kind::CutFromOne, Aim::Leader, one, again, 3_000),
        (Kind::SlowDisk, Aim::Node, one, again, 6_000),
        (Kind::HostLost, Aim::Leader, one, lost, rng.range(500, 9_000)),
    ];
    for (kind, aim, node, at, lasts) in steps {
        let until = (at + lasts).min(heal).max(at);
        let fault = Fault { at, until, kind, node, aim, other, begun: false };
        add(faults, fault, setup.mode, heal);
    }
}

/// An ailment: of the leader, or of any member while something strikes the leader.
fn ail(rng: &mut Rng, setup: &Setup, (at, heal): (u64, u64), faults: &mut Vec<Fault>) {
    let (members, mode) = (setup.members, setup.mode);
    let (first, second) = AILMENTS[rng.index(AILMENTS.len())];
    let aim = if second.is_some() || rng.chance(200) { Aim::Node } else { Aim::Leader };
    let mut one = draw(rng, (at, heal, members), first, aim);
    one.until = (at + rng.range(500, 30_000)).min(heal).max(at);
    add(faults, one, mode, heal);
    if let Some(second) = second {
        let then = at + rng.range(0, 6_000);
        let two = draw(rng, (then, heal, members), second, Aim::Leader);
        add(faults, two, mode, heal);
    }
}

fn draw(rng: &mut Rng, (at, heal, members): (u64, u64, usize), kind: Kind, aim: Aim) -> Fault {
    let longest = if rng.chance(400) { 25_000 } else { 9_000 };
    let until = (at + rng.range(50, longest)).min(heal);
    let node = rng.index(members);
    let other = rng.index(members);
    Fault { at, until, kind, node, aim, other, begun: false }
}

/// Leaves out what no cluster of this mode could survive.
fn add(faults: &mut Vec<Fault>, fault: Fault, mode: Mode, heal: u64) {
    let kind = fault.kind;
    let again = kind == Kind::DiskLost && faults.iter().any(|f| f.kind == kind);
    let only_synchronous = matches!(kind, Kind::ModeChange | Kind::LeaderKeyDeleted);
    if fault.at < heal && !again && (mode != Mode::Off || !only_synchronous) {
        faults.push(fault);
    }
}

impl World {
    fn leader_node(&self) -> Option<usize> {
        self.node_named(self.store.see().leader_name()?)
    }

    pub(crate) fn fault_begins(&mut self, index: usize) {
        let leader = self.leader_node();
        let fault = &mut self.faults[index];
        if fault.aim == Aim::Leader
            && let Some(leader) = leader
        {
            fault.node = leader;
        }
        fault.begun = true;
        let Fault { kind, node, until, .. } = self.faults[index].clone();
        if kind == Kind::DiskLost && !self.may_lose_disk(node) {
            self.faults[index].begun = false;
            return;
        }
        let seconds = (until - self.now) as f64 / 1000.0;
        self.tell(node, || format!("FAULT {kind:?} for {seconds} s"));
        self.strike(index, kind, node);
        self.after(until - self.now, Event::FaultEnds { index });
    }

    /// Losing the disk of whoever may be the only one with an acknowledged commit is no fault that
    /// anything could survive.
    fn may_lose_disk(&self, node: usize) -> bool {
        let name = &self.hosts[node].name;
        let view = self.store.see();
        let in_set = view.sync.as_ref().and_then(|s| s.value.leader.as_ref()) == Some(name);
        let last = view.term.as_ref().is_none_or(|t| t.value.leader == *name);
        // A win that is under way makes it that when it arrives.
        let agent = self.hosts[node].agent.as_ref();
        let wins = agent.is_some_and(|agent| {
            agent.doing.values().any(|doing| matches!(doing.act, Act::TakeLeadership(_)))
        });
        !in_set && !last && !wins && view.leader_name() != Some(name)
    }

    fn strike(&mut self, index: usize, kind: Kind, node: usize) {
        match kind {
            Kind::AgentKilled => self.agent_dies(node),
            Kind::AgentTerminated => self.terminate_agent(node),
            Kind::PostmasterKilled => self.postmaster_killed(node),
            Kind::PostgresKilled => {
                if self.hosts[node].postgres.is_some() {
                    self.instance_killed(node, "is killed");
                }
            }
            Kind::HostLost => self.host_lost(node),
            Kind::DiskLost => {
                self.host_lost(node);
                self.hosts[node].disk = Disk::default();
            }
            Kind::HostFrozen => self.hosts[node].frozen += 1,
            Kind::AgentFrozen => self.hosts[node].agent_frozen += 1,
            Kind::AgentAndPostmasterFrozen => {
                let clock = self.hosts[node].clock(self.now).0;
                let host = &mut self.hosts[node];
                host.agent_frozen += 1;
                host.postmaster_frozen += 1;
                host.postmaster_silent_since = clock;
            }
            Kind::CutFromStore
            | Kind::CutFromPeers
            | Kind::CutFromAll
            | Kind::CutFromOne
            | Kind::OneWayCut => {
                self.cut(index, 1);
            }
            Kind::StoreDown => self.store_down += 1,
            Kind::StoreLossy => self.store_loss += 200,
            Kind::StoreLeaderChange => self.store.new_leader(self.now),
            // A promise rests on clocks that do not run ahead of the time; a leader's clock that
            // does only costs it its lease.
            Kind::ClockJump if self.setup.failsafe && self.leader_node() != Some(node) => {}
            Kind::ClockJump => {
                let jump = self.faults[index].until - self.now;
                self.hosts[node].clock_offset += jump;
                self.set_guard_timer(node);
            }
            Kind::PostmasterFrozen => {
                let clock = self.hosts[node].clock(self.now).0;
                self.hosts[node].postmaster_frozen += 1;
                self.hosts[node].postmaster_silent_since = clock;
                self.notice(node);
            }
            Kind::DiskHangs | Kind::DiskFull | Kind::ConnectionsTaken | Kind::PromotionFails => {
                self.ailment_begins(node, kind);
            }
            Kind::SlowDisk => self.hosts[node].slow_disk += 1,
            Kind::SlowReplay => self.hosts[node].slow_replay += 1,
            Kind::Switchover => self.operator_switches(index),
            Kind::Restart | Kind::Reinitialize => self.operator_asks(node, kind),
            Kind::ModeChange => self.operator_changes_mode(),
            Kind::TtlChange => self.operator_changes_ttl(),
            Kind::LeaderKeyDeleted => {
                if self.store.see().leader.is_some() {
                    self.checks.leader_key_deleted = true;
                    self.store.delete_leader();
                    self.publish();
                    self.note_leadership();
                }
            }
        }
    }

    pub(crate) fn fault_ends(&mut self, index: usize) {
        let Fault { kind, node, begun, .. } = self.faults[index].clone();
        if !begun {
            return;
        }
        match kind {
            Kind::AgentKilled => self.after(0, Event::AgentBoot { node }),
            Kind::HostLost | Kind::DiskLost => self.after(0, Event::HostBoot { node }),
            Kind::HostFrozen | Kind::AgentFrozen | Kind::AgentAndPostmasterFrozen => {
                let host = &mut self.hosts[node];
                match kind {
                    Kind::HostFrozen => host.frozen -= 1,
                    Kind::AgentFrozen => host.agent_frozen -= 1,
                    _ => {
                        host.agent_frozen -= 1;
                        host.postmaster_frozen -= 1;
                    }
                }
                self.tell(node, || format!("goes on after {kind:?}"));
                self.release_deferred(node);
                self.check_one_writer(node);
            }
            Kind::CutFromStore
            | Kind::CutFromPeers
            | Kind::CutFromAll
            | Kind::CutFromOne
            | Kind::OneWayCut => {
                self.cut(index, 0);
                self.tell(node, || format!("is reached again after {kind:?}"));
            }
            Kind::StoreDown => {
                self.store_down -= 1;
                self.store.new_leader(self.now);
                self.tell_all(|| "the store answers again".to_owned());
                self.publish();
            }
            Kind::StoreLossy => self.store_loss -= 200,
            Kind::PostmasterFrozen => {
                self.hosts[node].postmaster_frozen -= 1;
                self.release_deferred(node);
                self.notice(node);
            }
            Kind::DiskHangs | Kind::DiskFull | Kind::ConnectionsTaken | Kind::PromotionFails => {
                self.ailment_ends(node, kind);
            }
            Kind::SlowDisk => self.hosts[node].slow_disk -= 1,
            Kind::SlowReplay => self.hosts[node].slow_replay -= 1,
            Kind::AgentTerminated
            | Kind::PostmasterKilled
            | Kind::PostgresKilled
            | Kind::StoreLeaderChange
            | Kind::ClockJump
            | Kind::Switchover
            | Kind::Restart
            | Kind::Reinitialize
            | Kind::ModeChange
            | Kind::TtlChange
            | Kind::LeaderKeyDeleted => {}
        }
    }

    /// Adds (1) or removes (0) the reasons for which messages of a host are lost.
    fn cut(&mut self, index: usize, add: u32) {
        let Fault { kind, node, other, .. } = self.faults[index].clone();
        let change = |count: &mut u32| if add == 1 { *count += 1 } else { *count -= 1 };
        if matches!(kind, Kind::CutFromStore | Kind::CutFromAll) {
            change(&mut self.hosts[node].dcs_cut);
        }
        let mut links = Vec::new();
        if matches!(kind, Kind::CutFromPeers | Kind::CutFromAll) {
            for peer in 0..self.hosts.len() {
                links.push((node, peer));
                links.push((peer, node));
            }
        } else if kind != Kind::CutFromStore {
            links.push((node, other));
            if kind == Kind::CutFromOne {
                links.push((other, node));
            }
        }
        for link in links {
            change(self.cuts.entry(link).or_insert(0));
        }
    }

    fn host_lost(&mut self, node: usize) {
        self.agent_dies(node);
        if self.hosts[node].postgres.is_some() {
            self.instance_killed(node, "is lost with its host");
        }
        let host = &mut self.hosts[node];
        host.up = false;
        host.guard = None;
    }

    pub(crate) fn host_boots(&mut self, node: usize) {
        if !self.hosts[node].up {
            self.hosts[node].up = true;
            self.tell(node, || "the host boots".to_owned());
        }
        self.agent_boots(node);
    }

    fn operator_switches(&mut self, index: usize) {
        let view = self.store.see();
        let Some(leader) = view.leader_name().cloned() else { return };
        let other = self.hosts[self.faults[index].other].name.clone();
        let named = self.rng.chance(500) && other != leader;
        let member = named.then_some(other);
        let request = FailoverRequest { leader: Some(leader), member, scheduled_at: None };
        self.tell_all(|| format!("an operator asks: {request:?}"));
        self.store.request_failover(request);
        self.publish();
    }

    fn operator_asks(&mut self, node: usize, kind: Kind) {
        let request = match kind {
            Kind::Reinitialize => {
                Request::Reinitialize { force: self.rng.chance(300), from_leader: false }
            }
            _ => Request::Restart(RestartRequest::default()),
        };
        let host = &self.hosts[node];
        if host.up && host.frozen == 0 && host.agent_frozen == 0 {
            self.tell(node, || format!("an operator asks: {request:?}"));
            self.feed(node, decide::Event::Asked { id: RequestId(0), request });
        }
    }

    fn operator_changes_ttl(&mut self) {
        if self.store.see().config.is_none() {
            return;
        }
        let ttl = [9_000, 10_000, 16_000, 25_000][self.rng.index(4)];
        self.tell_all(|| format!("an operator sets ttl to {ttl} ms"));
        self.store.configure(crate::config_document(&self.setup, self.setup.mode, 1, ttl));
        self.publish();
    }

    fn operator_changes_mode(&mut self) {
        if self.store.see().config.is_none() {
            return;
        }
        let mode = if self.rng.chance(500) { Mode::On } else { Mode::Quorum };
        let count = self.rng.range(1, 2);
        self.tell_all(|| format!("an operator sets mode {mode:?} with {count}"));
        self.store.configure(crate::config_document(&self.setup, mode, count, TTL));
        self.publish();
    }
}
