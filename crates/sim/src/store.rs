//! etcd: one linearizable store. Its state is the cluster's view itself; leases run in store time.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use decide::{Act, Retake, Winner};
use serde_json::Value;
use types::{
    ClusterView, FailoverRequest, HistoryEntry, LeaderKey, Member, MemberName, ProxyRecord,
    Revision, Status, SyncState, TermRecord, Versioned,
};

use crate::Mutation;

/// A lease.
#[derive(Debug, Clone)]
struct Lease {
    ttl: u64,
    expires: u64,
}

/// Who asks, and what the shell adds to the request.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    pub(crate) who: MemberName,
    pub(crate) lease: i64,
    pub(crate) ttl: u64,
    /// For [`Act::FinishBootstrap`].
    pub(crate) config: Value,
    /// For [`Act::PublishHistory`].
    pub(crate) history: Vec<HistoryEntry>,
    /// For [`Act::TouchMember`]: what is seen there is not written again.
    pub(crate) seen: Option<Arc<ClusterView>>,
}

impl Request {
    /// Whether the transaction keeps leases alive and changes no key.
    fn writes_nothing(&self, act: &Act, lease: i64) -> bool {
        let seen = |member| self.seen.as_ref()?.shows_member(&self.who, member, lease);
        match act {
            Act::Renew { status, .. } => status.is_none(),
            Act::TouchMember { member } => seen(member).is_some(),
            _ => false,
        }
    }
}

/// The store.
#[derive(Debug, Clone, Default)]
pub(crate) struct Store {
    view: Arc<ClusterView>,
    leases: BTreeMap<i64, Lease>,
    last_lease: i64,
}

impl Store {
    /// A snapshot.
    pub(crate) fn view(&self) -> Arc<ClusterView> {
        Arc::clone(&self.view)
    }

    pub(crate) fn see(&self) -> &ClusterView {
        &self.view
    }

    pub(crate) fn lease_lives(&self, lease: i64) -> bool {
        self.leases.contains_key(&lease)
    }

    /// When the next lease ends.
    pub(crate) fn next_expiry(&self) -> Option<u64> {
        self.leases.values().map(|l| l.expires).min()
    }

    /// Deletes every lease that has run out, with its keys. True if there was one.
    pub(crate) fn expire(&mut self, now: u64) -> bool {
        let dead: BTreeSet<i64> =
            self.leases.iter().filter(|(_, l)| l.expires <= now).map(|(id, _)| *id).collect();
        if dead.is_empty() {
            return false;
        }
        self.leases.retain(|id, _| !dead.contains(id));
        self.change(|view, _| {
            view.members.retain(|_, m| !dead.contains(&m.lease));
            view.leader.take_if(|l| dead.contains(&l.lease));
            view.initialize.take_if(|i| dead.contains(&i.lease));
            view.hold.take_if(|hold| dead.contains(&hold.lease));
            view.proxies.retain(|_, proxy| !dead.contains(&proxy.lease));
        });
        true
    }

    /// A new etcd leader restarts every lease in full.
    pub(crate) fn new_leader(&mut self, now: u64) {
        for lease in self.leases.values_mut() {
            lease.expires = now + lease.ttl;
        }
    }

    /// An operator's write to `failover`.
    pub(crate) fn request_failover(&mut self, request: FailoverRequest) {
        self.change(|view, revision| put(&mut view.failover, revision, 0, Some(request)));
    }

    /// An operator's write to `config`.
    pub(crate) fn configure(&mut self, config: Value) {
        self.change(|view, revision| put(&mut view.config, revision, 0, config));
    }

    /// A proxy's put under its lease; false if that has ended.
    pub(crate) fn write_proxy(&mut self, id: String, lease: i64, record: ProxyRecord) -> bool {
        let alive = self.lease_lives(lease);
        if alive {
            self.change(|view, revision| {
                let mut slot = view.proxies.remove(&id);
                put(&mut slot, revision, lease, record);
                view.proxies.extend(slot.map(|value| (id, value)));
            });
        }
        alive
    }

    /// An operator deletes the leader key by hand.
    pub(crate) fn delete_leader(&mut self) {
        self.change(|view, _| view.leader = None);
    }

    /// Keeps a lease alive; 0 and a dead one are replaced by a new one for [`Act::TouchMember`].
    pub(crate) fn keep_alive(&mut self, now: u64, lease: i64) -> bool {
        match self.leases.get_mut(&lease) {
            Some(found) => {
                found.expires = now + found.ttl;
                true
            }
            None => false,
        }
    }

    /// One transaction. `None` if a condition was not met, else the caller's lease.
    pub(crate) fn apply(
        &mut self,
        now: u64,
        request: &Request,
        act: &Act,
        mistake: Option<Mutation>,
    ) -> Option<i64> {
        let view = Arc::clone(&self.view);
        let mut lease = request.lease;
        let owned = |key: Revision| {
            view.leader.as_ref().is_some_and(|l| {
                l.mod_revision == key && l.value.name == request.who && l.lease == request.lease
            })
        };
        let fence = view.fence.as_ref().map(|f| f.mod_revision);
        let (sync, alive) = (sync_key(&view), self.lease_lives(lease));
        let holds = match act {
            Act::TouchMember { .. } => {
                if !alive {
                    lease = self.grant(now, request.ttl);
                }
                true
            }
            Act::MoveLease { ttl, leading, .. } => {
                let may = fence.is_none() && leading.as_ref().is_none_or(|l| owned(l.leader_key));
                if may {
                    lease = self.grant(now, ttl.0);
                }
                may
            }
            Act::Renew { leader_key, .. } => self.keep_alive(now, lease) && owned(*leader_key),
            Act::TakeInitialize => view.initialize.is_none() && alive,
            Act::CancelInitialize => owns_initialize(&view, lease),
            Act::FinishBootstrap { .. } => {
                owns_initialize(&view, lease) && view.leader.is_none() && alive
            }
            Act::OpenFence { sync_revision, fence: named } => {
                leader_key(&view) == named.leader() && fence.is_none() && sync == *sync_revision
            }
            Act::WritePledge { fence: expected, .. } | Act::VoidFence { fence: expected } => {
                fence == Some(*expected)
            }
            Act::TakeLeadership(winner) => alive && winner_may(&view, winner, mistake),
            Act::RetakeLeadership(retake) => alive && may_retake(&view, retake),
            Act::WriteFailsafe { leader_key, expected, .. } => {
                owned(*leader_key) && view.failsafe.as_ref().map(|f| f.mod_revision) == *expected
            }
            Act::ReleaseLeader { leader_key, .. }
            | Act::PublishHistory { leader_key, .. }
            | Act::WriteHold { leader_key, .. }
            | Act::RemoveHold { leader_key } => owned(*leader_key),
            Act::WriteSync { leader_key, expected, .. } => owned(*leader_key) && sync == *expected,
            Act::ClearFailover { expected, .. } => {
                view.failover.as_ref().map(|f| f.mod_revision) == Some(*expected)
            }
            other => panic!("{other:?} is no transaction"),
        };
        if !holds {
            return None;
        }
        self.keep_alive_for(now, lease, act);
        drop(view);
        if !request.writes_nothing(act, lease) {
            self.change(|view, at| {
                mistaken(view, act, mistake, |v| write(v, at, lease, request, act))
            });
        }
        Some(lease)
    }

    pub(crate) fn grant(&mut self, now: u64, ttl: u64) -> i64 {
        self.last_lease += 1;
        self.leases.insert(self.last_lease, Lease { ttl, expires: now + ttl });
        self.last_lease
    }

    /// How long a lease lives without being kept alive.
    pub(crate) fn ttl_of(&self, lease: i64) -> Option<u64> {
        self.leases.get(&lease).map(|lease| lease.ttl)
    }

    fn keep_alive_for(&mut self, now: u64, lease: i64, act: &Act) {
        if matches!(act, Act::TouchMember { .. }) {
            self.keep_alive(now, lease);
        }
    }

    fn change(&mut self, change: impl FnOnce(&mut ClusterView, Revision)) {
        let view = Arc::make_mut(&mut self.view);
        let revision = Revision(view.revision.0 + 1);
        view.revision = revision;
        change(view, revision);
    }
}

fn sync_key(view: &ClusterView) -> Option<Revision> {
    view.sync.as_ref().map(|s| s.mod_revision)
}

fn leader_key(view: &ClusterView) -> Option<Revision> {
    view.leader.as_ref().map(|l| l.mod_revision)
}

fn owns_initialize(view: &ClusterView, lease: i64) -> bool {
    view.initialize.as_ref().is_some_and(|i| i.value.is_empty() && i.lease == lease)
}

/// Planted mistakes that change what a transaction writes.
fn mistaken(
    view: &mut ClusterView,
    act: &Act,
    mistake: Option<Mutation>,
    write: impl FnOnce(&mut ClusterView),
) {
    let before = mistake.map(|_| view.clone());
    write(view);
    let Some(before) = before else { return };
    match (mistake, act) {
        (Some(Mutation::CountWithdrawnPledges), Act::VoidFence { .. }) => {
            view.pledges.clone_from(&before.pledges);
        }
        (Some(Mutation::WinnerKeepsSync), Act::TakeLeadership(_)) => {
            view.sync.clone_from(&before.sync);
        }
        _ => {}
    }
}

fn winner_may(view: &ClusterView, winner: &Winner, mistake: Option<Mutation>) -> bool {
    let same_set =
        mistake == Some(Mutation::WinWithoutSync) || sync_key(view) == winner.sync_revision;
    let pledges = winner.pledges.iter().all(|(name, revision)| {
        view.pledges.get(name).is_some_and(|p| p.mod_revision == *revision)
    });
    leader_key(view) == winner.leader
        && view.fence.as_ref().is_some_and(|f| f.mod_revision == winner.fence)
        && same_set
        && view.term.as_ref().map(|t| t.mod_revision) == winner.term_revision
        && pledges
}

fn may_retake(view: &ClusterView, retake: &Retake) -> bool {
    leader_key(view) == retake.leader
        && view.fence.as_ref().map(|f| f.mod_revision) == retake.fence
        && sync_key(view) == retake.sync_revision
        && view.term.as_ref().map(|t| t.mod_revision) == retake.term_revision
}

fn put<T>(slot: &mut Option<Versioned<T>>, revision: Revision, lease: i64, value: T) {
    let created = slot.as_ref().map_or(revision, |old| old.create_revision);
    *slot = Some(Versioned { value, create_revision: created, mod_revision: revision, lease });
}

/// What a transaction writes once its conditions hold.
fn write(view: &mut ClusterView, at: Revision, lease: i64, request: &Request, act: &Act) {
    match act {
        Act::TouchMember { member } => write_member(view, at, lease, &request.who, member),
        Act::MoveLease { member, leading, .. } => {
            write_member(view, at, lease, &request.who, member);
            if let Some(leading) = leading {
                put(&mut view.leader, at, lease, LeaderKey { name: request.who.clone(), lease });
                put(&mut view.term, at, 0, leading.term.clone());
            }
        }
        Act::Renew { status, .. } => write_status(view, at, status.as_ref()),
        Act::TakeInitialize => put(&mut view.initialize, at, lease, String::new()),
        Act::CancelInitialize => view.initialize = None,
        Act::FinishBootstrap { system_identifier, term, sync } => {
            put(&mut view.initialize, at, 0, system_identifier.clone());
            put(&mut view.config, at, 0, request.config.clone());
            lead(view, at, lease, term, sync.as_ref());
        }
        Act::OpenFence { fence, .. } => put(&mut view.fence, at, 0, fence.clone()),
        Act::WritePledge { pledge, .. } => {
            let mut slot = view.pledges.remove(&request.who);
            put(&mut slot, at, 0, pledge.clone());
            if let Some(value) = slot {
                view.pledges.insert(request.who.clone(), value);
            }
        }
        Act::VoidFence { .. } => {
            view.fence = None;
            view.pledges.clear();
        }
        Act::TakeLeadership(winner) => {
            lead(view, at, lease, &winner.term, winner.sync.as_ref());
            view.fence = None;
            view.pledges.clear();
            if winner.clear_failover {
                put(&mut view.failover, at, 0, None);
            }
        }
        Act::RetakeLeadership(retake) => {
            lead(view, at, lease, &retake.term, retake.sync.as_ref());
            view.fence = None;
            view.pledges.clear();
        }
        Act::WriteFailsafe { members, .. } => put(&mut view.failsafe, at, 0, members.clone()),
        Act::ReleaseLeader { status, .. } => {
            view.leader = None;
            view.hold = None;
            write_status(view, at, status.as_ref());
        }
        Act::WriteSync { sync, .. } => match sync {
            Some(sync) => put(&mut view.sync, at, 0, sync.clone()),
            None => view.sync = None,
        },
        Act::PublishHistory { .. } => put(&mut view.history, at, 0, request.history.clone()),
        Act::WriteHold { hold, .. } => put(&mut view.hold, at, lease, hold.clone()),
        Act::RemoveHold { .. } => view.hold = None,
        Act::ClearFailover { .. } => put(&mut view.failover, at, 0, None),
        other => panic!("{other:?} is no transaction"),
    }
}

fn write_member(
    view: &mut ClusterView,
    at: Revision,
    lease: i64,
    name: &MemberName,
    member: &Member,
) {
    let mut slot = view.members.remove(name);
    put(&mut slot, at, lease, member.clone());
    view.members.extend(slot.map(|value| (name.clone(), value)));
}

fn write_status(view: &mut ClusterView, at: Revision, status: Option<&Status>) {
    if let Some(status) = status {
        put(&mut view.status, at, 0, status.clone());
    }
}

fn lead(
    view: &mut ClusterView,
    at: Revision,
    lease: i64,
    term: &TermRecord,
    sync: Option<&SyncState>,
) {
    put(&mut view.leader, at, lease, LeaderKey { name: term.leader.clone(), lease });
    put(&mut view.term, at, 0, term.clone());
    match sync {
        Some(sync) => put(&mut view.sync, at, 0, sync.clone()),
        None => view.sync = None,
    }
}
