//! The store: what each transaction compares and writes.

use super::Election;
use super::canonical::FRESH;
use super::look::small;
use super::state::{
    FenceKey, Lead, LeaderKey, MEMBERS_MAX, Request, Rev, Set, State, Store, Take, TermKey,
};
use super::without::Without;

impl Election {
    /// Carries a transaction out, if its conditions hold. Whoever waits for its answer gets it.
    pub(super) fn deliver(&self, state: &mut State, request: Request) {
        if self.holds(state, request) {
            self.write(&mut state.store, request);
        }
        if let Request::WriteSync { by, awaited: true, .. } = request {
            answer(state, by);
        }
    }

    fn holds(&self, state: &State, request: Request) -> bool {
        let store = &state.store;
        let (leader, fence) = (leader_rev(store), fence_rev(store));
        let owned = |by, key| store.leader == Some(LeaderKey { holder: by, rev: key });
        match request {
            Request::Open { fence: named } => {
                let unchanged = leader == named.leader_rev && store.sync_rev == named.sync_rev;
                fence == 0 && (unchanged || self.lacks(Without::OpenConditional))
            }
            Request::Pledge { fence: expected, .. } => {
                fence == expected || self.lacks(Without::PledgeConditional)
            }
            Request::Void { fence: expected } => {
                fence == expected || self.lacks(Without::VoidConditional)
            }
            Request::Take { take, .. } => self.may_take(store, &take),
            Request::WriteSync { by, key, expected, .. } => {
                (owned(by, key) || self.lacks(Without::SyncWriteNeedsKey))
                    && (store.sync_rev == expected || self.lacks(Without::SyncWriteCompares))
            }
            Request::Release { by, key } => owned(by, key),
            Request::Retake { fence: expected, expected: sync, term_rev, .. } => {
                let last = store.term.rev == term_rev || self.lacks(Without::RetakeCompares);
                let same_fence = fence == expected || self.lacks(Without::RetakeCompares);
                let same_sync = store.sync_rev == sync || self.lacks(Without::RetakeCompares);
                leader == 0 && same_fence && same_sync && last
            }
        }
    }

    fn may_take(&self, store: &Store, take: &Take) -> bool {
        let pledge = |at: usize| store.pledges[at].map_or(0, |(_, rev)| rev);
        let counted = |at: usize| take.pledges[at] == 0 || pledge(at) == take.pledges[at];
        let pledges = (0..MEMBERS_MAX).all(counted);
        (leader_rev(store) == take.leader || self.lacks(Without::LeaderKeyCompared))
            && (fence_rev(store) == take.fence || self.lacks(Without::FenceCompared))
            && (store.sync_rev == take.expected || self.lacks(Without::SyncCompared))
            && (store.term.rev == take.term_rev || self.lacks(Without::TermCompared))
            && (pledges || self.lacks(Without::PledgesCompared))
    }

    fn write(&self, store: &mut Store, request: Request) {
        match request {
            Request::Open { fence } => {
                store.fence = Some(FenceKey { rev: FRESH, ..fence });
            }
            Request::Pledge { by, pledge, .. } => {
                store.pledges[usize::from(by)] = Some((pledge, FRESH));
            }
            Request::Void { .. } => {
                store.fence = None;
                if !self.lacks(Without::PledgeWithdrawn) {
                    store.pledges = Default::default();
                }
            }
            Request::Take { take, .. } => self.take(store, &take),
            Request::WriteSync { sync, .. } => write_sync(store, sync),
            Request::Release { .. } => store.leader = None,
            Request::Retake { term, sync, .. } => lead(store, term, sync),
        }
    }

    fn take(&self, store: &mut Store, take: &Take) {
        let (sync, rev) = (store.sync, store.sync_rev);
        lead(store, take.term, take.sync);
        if self.lacks(Without::SyncWritten) {
            (store.sync, store.sync_rev) = (sync, rev);
        }
        if self.lacks(Without::VotersCleared) {
            // As many must pledge as if they had confirmed what this leader holds.
            let voters = sync.voters.without(take.sync.leader);
            let quorum = small(voters.count()).saturating_sub(self.setup.wanted);
            store.sync = Set { voters, quorum, ..take.sync };
        }
    }
}

/// The answer comes with a picture of what is so now.
fn answer(state: &mut State, by: u8) {
    let (sync, rev) = (state.store.sync, state.store.sync_rev);
    let leads = state.store.leader;
    let member = state.member_mut(by);
    let Some(lead) = member.lead.as_mut().filter(|lead| lead.writing) else {
        return;
    };
    if leads == Some(LeaderKey { holder: by, rev: lead.key }) {
        *lead = Lead { sync, sync_rev: rev, writing: false, unknown: false, ..*lead };
    } else {
        member.lead = None;
    }
}

fn lead(store: &mut Store, term: TermKey, sync: Set) {
    store.leader = Some(LeaderKey { holder: term.leader, rev: FRESH });
    store.term = TermKey { rev: FRESH, ..term };
    write_sync(store, sync);
    store.fence = None;
    store.pledges = Default::default();
}

fn write_sync(store: &mut Store, sync: Set) {
    store.sync = sync;
    store.sync_rev = FRESH;
}

fn leader_rev(store: &Store) -> Rev {
    store.leader.map_or(0, |key| key.rev)
}

fn fence_rev(store: &Store) -> Rev {
    store.fence.map_or(0, |fence| fence.rev)
}
