//! Planted mistakes that change what a brain is shown: the checkers must catch them.

use std::collections::BTreeSet;
use std::sync::Arc;

use decide::Brain;
use types::{LeaderKey, MemberName, Millis, SyncState, TermRecord, Timeline, Versioned};

use crate::Mutation;
use crate::node::Snapshot;
use crate::world::World;

impl World {
    /// The view as this run's mistake shows it.
    pub(crate) fn mistaken(&self, node: usize, view: Snapshot) -> Snapshot {
        let me = &self.hosts[node].name;
        match self.setup.mutation {
            Some(Mutation::IgnoreSyncSet) => everybody_votes(&view),
            Some(Mutation::PromoteWithoutLease) => leader_key_is_mine(&view, me),
            Some(Mutation::CountWithdrawnPledges) => every_pledge_counts(&view),
            Some(Mutation::WinWithoutSync) if view.leader_name() == Some(me) => {
                let mut view = (*view).clone();
                view.fence = None;
                Arc::new(view)
            }
            Some(Mutation::WinnerKeepsSync) if view.leader_name() == Some(me) => {
                let mut view = (*view).clone();
                if let Some(sync) =
                    view.sync.as_mut().filter(|s| s.value.leader.as_ref() != Some(me))
                {
                    let leader = Some(me.clone());
                    sync.value = SyncState { leader, quorum: 0, voters: BTreeSet::new() };
                }
                Arc::new(view)
            }
            Some(Mutation::WaitForNobody) => who_has_pledged(&view, me),
            Some(
                Mutation::ClaimFromReply
                | Mutation::CompareRunningReceivers
                | Mutation::FailsafeWithoutAll
                | Mutation::ForgetPromise
                | Mutation::WinWithoutSync
                | Mutation::WinnerKeepsSync,
            )
            | None => view,
        }
    }
}

/// A planted mistake: what was pledged under an earlier fence, and withdrawn, counts for the next.
fn every_pledge_counts(view: &Snapshot) -> Snapshot {
    let Some(fence) = view.fence.as_ref().map(|f| f.value.id.clone()) else {
        return Arc::clone(view);
    };
    let mut view = (**view).clone();
    for pledge in view.pledges.values_mut() {
        pledge.value.fence.clone_from(&fence);
    }
    Arc::new(view)
}

/// A planted mistake: nobody else is there in an asynchronous election than who has pledged.
fn who_has_pledged(view: &Snapshot, me: &MemberName) -> Snapshot {
    if view.fence.is_none() || view.active_sync().is_some() {
        return Arc::clone(view);
    }
    let mut view = (**view).clone();
    let pledges = &view.pledges;
    view.members.retain(|name, _| name == me || pledges.contains_key(name));
    Arc::new(view)
}

/// A planted mistake: the brain takes itself for an old one.
pub(crate) fn started_long_ago(mut brain: Brain) -> Brain {
    let nothing_to_do = brain.step(Millis::ZERO, decide::Event::Tick);
    assert!(nothing_to_do.is_empty(), "a brain that has seen nothing does nothing");
    brain
}

/// A planted mistake: every member counts as a voter.
fn everybody_votes(view: &Snapshot) -> Snapshot {
    let mut view = (**view).clone();
    let names: BTreeSet<_> = view.members.keys().cloned().collect();
    if let Some(Versioned { value: SyncState { leader: Some(_), quorum, voters }, .. }) =
        &mut view.sync
        && view.leader.is_none()
    {
        *quorum = 0;
        *voters = names;
    }
    Arc::new(view)
}

/// A planted mistake: whoever sees the leader key gone takes it for its own.
fn leader_key_is_mine(view: &Snapshot, me: &MemberName) -> Snapshot {
    if view.leader.is_some() || view.system_identifier().is_none() {
        return Arc::clone(view);
    }
    let mut view = (**view).clone();
    let at = view.revision;
    let Some(last) = view.term.as_ref().map(|t| t.value.clone()) else {
        return Arc::new(view);
    };
    let record = TermRecord {
        term: last.term.next(),
        leader: me.clone(),
        timeline: Timeline(last.timeline.0 + 1),
        ..last
    };
    let key = LeaderKey { name: me.clone(), lease: 0 };
    view.leader = Some(Versioned { value: key, create_revision: at, mod_revision: at, lease: 0 });
    view.term = Some(Versioned { value: record, create_revision: at, mod_revision: at, lease: 0 });
    // As a winner would have written it; under another's nobody promotes.
    if let Some(sync) = &mut view.sync {
        sync.value = SyncState { leader: Some(me.clone()), quorum: 0, voters: BTreeSet::new() };
    }
    Arc::new(view)
}
