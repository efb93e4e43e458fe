//! The keys: a view that changes by the brain's transactions, each with its conditions.

use std::collections::BTreeSet;
use std::sync::Arc;

use decide::{Act, Winner};
use serde_json::Value;
use types::{
    ClusterView, LeaderKey, MemberName, Revision, Status, SyncState, TermRecord, Versioned,
};

/// The store. Leases end only when a script says so.
#[derive(Debug, Clone, Default)]
pub(crate) struct Store {
    pub(crate) view: Arc<ClusterView>,
    pub(crate) leases: BTreeSet<i64>,
    last_lease: i64,
}

impl Store {
    /// A new lease.
    pub(crate) fn grant(&mut self) -> i64 {
        self.last_lease += 1;
        self.leases.insert(self.last_lease);
        self.last_lease
    }

    /// Ends a lease with the keys that hang on it.
    pub(crate) fn end_lease(&mut self, lease: i64) {
        self.leases.remove(&lease);
        self.change(|view, _| {
            view.members.retain(|_, m| m.lease != lease);
            view.leader.take_if(|l| l.lease == lease);
            view.initialize.take_if(|i| i.lease == lease);
            view.hold.take_if(|hold| hold.lease == lease);
        });
    }

    /// One change, at a revision of its own.
    pub(crate) fn change(&mut self, change: impl FnOnce(&mut ClusterView, Revision)) {
        let view = Arc::make_mut(&mut self.view);
        let revision = Revision(view.revision.0 + 1);
        view.revision = revision;
        change(view, revision);
    }

    /// One transaction of `who`. False if a condition was not met.
    pub(crate) fn apply(
        &mut self,
        who: &MemberName,
        lease: &mut i64,
        config: &Value,
        act: &Act,
    ) -> bool {
        if matches!(act, Act::TouchMember { .. }) && !self.leases.contains(lease) {
            *lease = self.grant();
        }
        if !self.holds(who, *lease, act) {
            return false;
        }
        if matches!(act, Act::MoveLease { .. }) {
            *lease = self.grant();
        }
        let lease = *lease;
        let nothing = match act {
            Act::Renew { status, .. } => status.is_none(),
            Act::TouchMember { member } => self.view.shows_member(who, member, lease).is_some(),
            _ => false,
        };
        if !nothing {
            self.change(|view, revision| write(view, revision, (who, lease), config, act));
        }
        true
    }

    fn holds(&self, who: &MemberName, lease: i64, act: &Act) -> bool {
        let view = &self.view;
        let alive = self.leases.contains(&lease);
        let owned = |key: &Revision| {
            view.leader
                .as_ref()
                .is_some_and(|l| l.mod_revision == *key && l.value.name == *who && l.lease == lease)
        };
        let racing =
            view.initialize.as_ref().is_some_and(|i| i.value.is_empty() && i.lease == lease);
        let fence = view.fence.as_ref().map(|f| f.mod_revision);
        let sync = view.sync.as_ref().map(|s| s.mod_revision);
        match act {
            Act::TouchMember { .. } => true,
            Act::MoveLease { leading, .. } => {
                fence.is_none() && leading.as_ref().is_none_or(|l| owned(&l.leader_key))
            }
            Act::Renew { leader_key, .. } => alive && owned(leader_key),
            Act::TakeInitialize => alive && view.initialize.is_none(),
            Act::CancelInitialize => racing,
            Act::FinishBootstrap { .. } => alive && racing && view.leader.is_none(),
            Act::OpenFence { sync_revision, fence: named } => {
                leader_key(view) == named.leader() && fence.is_none() && sync == *sync_revision
            }
            Act::WritePledge { fence: expected, .. } | Act::VoidFence { fence: expected } => {
                fence == Some(*expected)
            }
            Act::TakeLeadership(winner) => alive && winner_may(view, winner),
            Act::RetakeLeadership(retake) => {
                alive
                    && leader_key(view) == retake.leader
                    && fence == retake.fence
                    && sync == retake.sync_revision
                    && view.term.as_ref().map(|t| t.mod_revision) == retake.term_revision
            }
            Act::WriteFailsafe { leader_key, expected, .. } => {
                owned(leader_key) && view.failsafe.as_ref().map(|f| f.mod_revision) == *expected
            }
            Act::ReleaseLeader { leader_key, .. }
            | Act::PublishHistory { leader_key, .. }
            | Act::WriteHold { leader_key, .. }
            | Act::RemoveHold { leader_key } => owned(leader_key),
            Act::WriteSync { leader_key, expected, .. } => owned(leader_key) && sync == *expected,
            Act::ClearFailover { expected, .. } => {
                view.failover.as_ref().map(|f| f.mod_revision) == Some(*expected)
            }
            other => panic!("{other:?} is no transaction"),
        }
    }
}

fn leader_key(view: &ClusterView) -> Option<Revision> {
    view.leader.as_ref().map(|l| l.mod_revision)
}

fn winner_may(view: &ClusterView, winner: &Winner) -> bool {
    let mut pledges = winner.pledges.iter();
    leader_key(view) == winner.leader
        && view.fence.as_ref().is_some_and(|f| f.mod_revision == winner.fence)
        && view.sync.as_ref().map(|s| s.mod_revision) == winner.sync_revision
        && view.term.as_ref().map(|t| t.mod_revision) == winner.term_revision
        && pledges.all(|(name, at)| view.pledges.get(name).is_some_and(|p| p.mod_revision == *at))
}

/// Writes a key, created now if it was absent.
pub(crate) fn put<T>(slot: &mut Option<Versioned<T>>, at: Revision, lease: i64, value: T) {
    let created = slot.as_ref().map_or(at, |old| old.create_revision);
    *slot = Some(Versioned { value, create_revision: created, mod_revision: at, lease });
}

fn write(
    view: &mut ClusterView,
    at: Revision,
    (who, lease): (&MemberName, i64),
    config: &Value,
    act: &Act,
) {
    match act {
        Act::TouchMember { member } => {
            let mut slot = view.members.remove(who);
            put(&mut slot, at, lease, (**member).clone());
            view.members.extend(slot.map(|value| (who.clone(), value)));
        }
        Act::MoveLease { member, leading, .. } => {
            let mut slot = view.members.remove(who);
            put(&mut slot, at, lease, (**member).clone());
            view.members.extend(slot.map(|value| (who.clone(), value)));
            if let Some(leading) = leading {
                put(&mut view.leader, at, lease, LeaderKey { name: who.clone(), lease });
                put(&mut view.term, at, 0, leading.term.clone());
            }
        }
        Act::Renew { status, .. } => write_status(view, at, status.as_ref()),
        Act::TakeInitialize => put(&mut view.initialize, at, lease, String::new()),
        Act::CancelInitialize => view.initialize = None,
        Act::FinishBootstrap { system_identifier, term, sync } => {
            put(&mut view.initialize, at, 0, system_identifier.clone());
            put(&mut view.config, at, 0, config.clone());
            lead(view, at, lease, term, sync.as_ref());
        }
        Act::OpenFence { fence, .. } => put(&mut view.fence, at, 0, fence.clone()),
        Act::WritePledge { pledge, .. } => {
            let mut slot = view.pledges.remove(who);
            put(&mut slot, at, 0, pledge.clone());
            view.pledges.extend(slot.map(|value| (who.clone(), value)));
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
        Act::PublishHistory { .. } => put(&mut view.history, at, 0, Vec::new()),
        Act::WriteHold { hold, .. } => put(&mut view.hold, at, lease, hold.clone()),
        Act::RemoveHold { .. } => view.hold = None,
        Act::ClearFailover { .. } => put(&mut view.failover, at, 0, None),
        other => panic!("{other:?} is no transaction"),
    }
}

fn write_status(view: &mut ClusterView, at: Revision, status: Option<&Status>) {
    if let Some(status) = status {
        put(&mut view.status, at, 0, status.clone());
    }
}

/// The keys of a new leadership, written by one transaction.
pub(crate) fn lead(
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
