//! What a member decides when it sees the store: the brain's outline around the production code of
//! the election. Seeing and deciding is one step; what comes of it takes its time.
//!
//! The outline is `brain.rs`, `unlocked.rs`, `fenced.rs` and `follower.rs` of `decide` with the
//! clocks taken out: where they wait for a time, the model does both.

use std::collections::BTreeMap;

use decide::Winner;
use decide::election::{Accused, Ballot, Candidate, Move, binds, next_move};
use types::{
    DurablePledge, Fence, Lsn, MemberName, Pledge, Position, Rejoin, Revision, SyncState, Term,
    TermRecord, Timeline, Versioned, compare_with_leader,
};

use super::Election;
use super::canonical::FRESH;
use super::state::{
    FenceKey, Id, Lead, MEMBERS_MAX, Member, Place, Pledged, Postgres, Request, Rev, Set, State,
    Take, TermKey,
};
use super::story::letter;
use super::without::Without;

/// What a member thinks at the moment, beside what it sees.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Mood {
    /// It suspects the leader, and so do enough others.
    pub suspects: bool,
    /// It waited long enough for somebody else.
    pub impatient: bool,
    /// The request that it makes comes late.
    pub late: bool,
}

impl Election {
    /// A member sees the store as it is, and acts.
    pub(super) fn look(&self, state: &mut State, me: Id, mood: Mood) {
        match state.store.leader_term() {
            Some((holder, term)) if holder == me => self.look_as_leader(state, me, term, mood),
            Some((holder, term)) => self.look_as_follower(state, me, (holder, term), mood),
            None => self.look_without_leader(state, me, mood),
        }
    }

    fn look_as_leader(&self, state: &mut State, me: Id, term: u8, mood: Mood) {
        let Some(key) = state.store.leader.map(|key| key.rev) else { return };
        let (sync, sync_rev) = (state.store.sync, state.store.sync_rev);
        let member = state.member_mut(me);
        let former = member.lead.filter(|lead| lead.key == key);
        let lead = former.unwrap_or(Lead {
            key,
            sync,
            sync_rev,
            writing: false,
            // What the agent before this one has sent may still arrive.
            unknown: member.postgres != Postgres::Standby && !self.lacks(Without::FirstWriteAgain),
            setting: false,
            releasing: false,
        });
        let lead = Lead { sync, sync_rev, ..lead };
        member.lead = Some(lead);
        if lead.releasing {
            return;
        }
        match member.postgres {
            // It tries to come back in place first, or does not.
            Postgres::Down { .. } if mood.impatient => {}
            Postgres::Down { .. } => self.release(state, me, key, mood.late),
            Postgres::Standby => self.promote(state, me, (key, term), mood.late),
            Postgres::Primary(_) => {
                self.lead_primary(state, me, term, mood);
            }
        }
    }

    fn lead_primary(&self, state: &mut State, me: Id, term: u8, mood: Mood) {
        let member = state.member_mut(me);
        if let Postgres::Primary(primary) = &mut member.postgres
            && primary.term != term
        {
            // It took its key again.
            primary.term = term;
            member.term = term;
            state.promoted_again(me, term);
        }
        let member = state.member(me);
        let Some(lead) = member.lead else { return };
        let Some(fence) = state.store.fence else {
            self.reconcile(state, me, mood.late);
            return;
        };
        if fence.leader_rev != lead.key || (!mood.impatient && has_voters_left(state, me, &fence)) {
            self.send(state, Request::Void { fence: fence.rev }, mood.late);
        } else {
            state.stop(me);
            self.release(state, me, lead.key, mood.late);
        }
    }

    pub(super) fn release(&self, state: &mut State, me: Id, key: Rev, late: bool) {
        if self.send(state, Request::Release { by: me, key }, late)
            && let Some(lead) = &mut state.member_mut(me).lead
        {
            lead.releasing = true;
        }
    }

    fn look_as_follower(&self, state: &mut State, me: Id, leader: (Id, u8), mood: Mood) {
        let member = state.member_mut(me);
        match member.postgres {
            Postgres::Primary(_) => {
                member.lead = None;
                state.stop(me);
            }
            Postgres::Down { .. } => member.lead = None,
            Postgres::Standby => {
                member.lead = None;
                let key = state.store.leader.map(|key| key.rev);
                let against = state.store.fence.is_some_and(|f| Some(f.leader_rev) == key);
                let due = mood.suspects || against;
                if !(due && self.vote(state, me, mood)) {
                    self.rejoin(state, me, leader);
                }
            }
        }
    }

    fn look_without_leader(&self, state: &mut State, me: Id, mood: Mood) {
        let member = state.member_mut(me);
        match member.postgres {
            Postgres::Primary(_) => {
                if mood.impatient || !self.retake(state, me, mood.late) {
                    state.member_mut(me).lead = None;
                    state.stop(me);
                }
            }
            Postgres::Down { .. } => member.lead = None,
            Postgres::Standby => {
                member.lead = None;
                self.vote(state, me, mood);
            }
        }
    }

    /// Takes part in the election. False if this member abstains.
    fn vote(&self, state: &mut State, me: Id, mood: Mood) -> bool {
        let next = next_move(&self.ballot(state, me, mood));
        let fence = state.store.fence.map_or(0, |fence| fence.rev);
        match next {
            Move::Abstain(_) => return false,
            Move::Wait(_) => {}
            Move::Open(fence) => {
                let fence = FenceKey {
                    id: FRESH,
                    leader_rev: small(fence.leader_revision.0),
                    sync_rev: small(fence.sync_revision.0),
                    candidate: me,
                    rev: 0,
                };
                if state.fences > 0 {
                    state.fences -= 1;
                    self.send(state, Request::Open { fence }, mood.late);
                }
            }
            Move::Void { .. } => {
                self.send(state, Request::Void { fence }, mood.late);
            }
            Move::StopReceiving => self.begin_pledge(state, me),
            Move::WritePledge(_) => {
                if let Some(pledge) = state.member(me).pledge {
                    self.send(state, Request::Pledge { by: me, pledge, fence }, mood.late);
                }
            }
            Move::Take(plan) => {
                let take = self.take_of(state, me, &plan.winner);
                if take.term.term <= self.setup.terms {
                    // What it rests on may change meanwhile.
                    self.send(state, Request::Take { by: me, take }, true);
                }
            }
        }
        true
    }

    fn ballot(&self, state: &State, me: Id, mood: Mood) -> Ballot {
        let store = &state.store;
        let mut sync = sync_state(store.sync);
        if self.lacks(Without::QuorumPlusOne) {
            sync.quorum = sync.quorum.saturating_sub(1);
        }
        let revision = Revision(store.sync_rev.into());
        let candidate = Candidate { may_lead: true, fit: true, priority: 1 };
        let accuse = |rev: Rev| Accused {
            key: Revision(rev.into()),
            by_us: mood.suspects,
            by_enough: mood.suspects,
        };
        let fence = store.fence.as_ref().map(versioned_fence);
        let mut pledges = BTreeMap::new();
        for (name, pledge) in (0..).map(letter).zip(&store.pledges) {
            let Some((pledge, rev)) = pledge else { continue };
            let mut said =
                Pledge { fence: pledge.fence.to_string(), position: self.position(pledge.place) };
            if let (true, Some(fence)) = (self.lacks(Without::PledgeWithdrawn), &fence) {
                said.fence.clone_from(&fence.value.id);
            }
            pledges.insert(MemberName::from(name), (said, Revision((*rev).into())));
        }
        Ballot {
            me: name(me),
            leader: store.leader.map(|key| accuse(key.rev)),
            foreign: BTreeMap::new(),
            alive: state.ids().map(|id| (name(id), candidate.clone())).collect(),
            sync: Some((sync, revision)),
            sync_revision: revision,
            term: Some((self.term_record(&store.term), Revision(store.term.rev.into()))),
            fence,
            pledges,
            own: state.member(me).pledge.map(|pledge| self.durable(pledge)),
            new_fence_id: "new".to_owned(),
            preferred: None,
            stepping_down: None,
            request_pending: false,
            forced: false,
            too_far_behind: false,
            waited: true,
            stuck: mood.impatient && !self.lacks(Without::StuckVoided),
            synchronous: true,
            awaited: self.awaited(state, me),
            promotes: true,
            timeline_seen: Timeline(state.member(me).log.timeline().into()),
        }
    }

    /// In strict mode nobody else is ever heard: that is the case with a voter from the start.
    fn awaited(&self, state: &State, me: Id) -> Option<MemberName> {
        let (former, set) = (state.store.term.leader, state.store.sync.leader);
        (self.setup.strict && former != me && set == former).then(|| name(former))
    }

    fn begin_pledge(&self, state: &mut State, me: Id) {
        let known = state.store.term.term;
        let Some(fence) = state.store.fence else { return };
        let member = state.member_mut(me);
        if member.stopping.is_some() {
            return;
        }
        let term = known.max(member.term);
        let early = self.lacks(Without::PositionReadAfter).then(|| member.log.place(term));
        member.stopping = Some((fence.id, term, early));
        if !self.lacks(Without::ConninfoCleared) && !self.lacks(Without::ReceiverGone) {
            member.conninfo = None;
        }
    }

    /// The WAL receiver is gone, and what it had is replayed: the position is made durable.
    pub(super) fn pledge_made(&self, member: &mut Member) {
        let Some((fence, term, early)) = member.stopping.take() else { return };
        if !self.lacks(Without::ReceiverGone) {
            member.receiver = None;
        }
        let place = early.unwrap_or_else(|| member.log.place(term));
        member.pledge = Some(Pledged { fence, place });
    }

    fn take_of(&self, state: &State, me: Id, winner: &Winner) -> Take {
        let mut pledges = [0; MEMBERS_MAX];
        for (name, revision) in &winner.pledges {
            if let Some(id) = state.ids().find(|id| letter(*id) == name.as_str()) {
                pledges[usize::from(id)] = small(revision.0);
            }
        }
        let record = &winner.term;
        let own = record.position.map_or(0, |position| small(position.timeline.0));
        let place = state.member(me).pledge.map(|pledge| pledge.place);
        let reserved = small(record.timeline.0);
        let term = TermKey {
            term: small(record.term.0) - u8::from(self.lacks(Without::TermRaised)),
            leader: me,
            timeline: if self.lacks(Without::TimelineReserved) { own + 1 } else { reserved },
            position: place,
            rev: 0,
        };
        let sync = winner.sync.as_ref().map_or(state.store.sync, |sync| set_of(state, sync));
        Take {
            leader: small(winner.leader.map_or(0, |rev| rev.0)),
            fence: small(winner.fence.0),
            expected: small(winner.sync_revision.map_or(0, |rev| rev.0)),
            term_rev: small(winner.term_revision.map_or(0, |rev| rev.0)),
            pledges,
            term,
            sync,
        }
    }

    /// Comes back under the present leader, where its pledge lets it.
    fn rejoin(&self, state: &mut State, me: Id, (leader, term): (Id, u8)) {
        let fence = state.store.fence.as_ref().map(versioned_fence);
        let won_at = state.store.term.position;
        let member = state.member(me);
        let bound = member.pledge.is_some_and(|pledge| {
            let pledge = self.durable(pledge);
            binds(&pledge, Term(term.into()), fence.as_ref().map(|fence| &fence.value))
        });
        let busy = member.stopping.is_some();
        if busy || (bound && !self.lacks(Without::PledgeBinds)) || term < member.term {
            return;
        }
        if member.term == term && member.pledge.is_none() {
            if member.conninfo != Some(leader) {
                self.follow(state, me, (leader, term));
            }
            return;
        }
        let receives = member.conninfo.is_some() || member.receiver.is_some();
        if member.pledge.is_none() && receives {
            // Whoever did not pledge may still receive from the old leader: it ends that first.
            let member = state.member_mut(me);
            (member.conninfo, member.receiver) = (None, None);
        }
        let member = state.member(me);
        let place = member.pledge.map_or_else(|| member.log.place(0), |pledge| pledge.place);
        let prefix =
            won_at.is_some_and(|won| won.timeline == place.timeline && place.length <= won.length);
        if prefix || self.lacks(Without::LogsCompared) {
            self.follow(state, me, (leader, term));
        } else if let Some(primary) =
            state.member(leader).primary().filter(|primary| primary.term == term)
        {
            let log = state.member(leader).log;
            let timeline = primary.timeline;
            let end = (Timeline(place.timeline.into()), Lsn(place.length.into()));
            let theirs = Timeline(timeline.into());
            if compare_with_leader(end, true, theirs, &log.history(timeline)) == Rejoin::Rewind {
                let member = state.member_mut(me);
                member.log = member.log.truncated(member.log.common_timelines(&log));
            }
            self.follow(state, me, (leader, term));
        }
    }

    /// Persists the term and drops the pledge first.
    fn follow(&self, state: &mut State, me: Id, (leader, term): (Id, u8)) {
        let member = state.member_mut(me);
        member.term = term;
        member.pledge = None;
        member.conninfo = Some(leader);
        if member.receiver != Some(leader) {
            member.receiver = None;
            if state.member(leader).primary().is_some() {
                state.connect(me);
            }
        }
    }

    fn durable(&self, pledge: Pledged) -> DurablePledge {
        DurablePledge { fence: pledge.fence.to_string(), position: self.position(pledge.place) }
    }

    fn position(&self, place: Place) -> Position {
        let blind = self.lacks(Without::OrderByTimeline);
        Position {
            timeline: Timeline(if blind { 0 } else { place.timeline.into() }),
            lsn: Lsn(place.length.into()),
            term: Term(place.term.into()),
        }
    }

    fn term_record(&self, key: &TermKey) -> TermRecord {
        TermRecord {
            term: Term(key.term.into()),
            leader: name(key.leader),
            timeline: Timeline(key.timeline.into()),
            position: key.position.map(|place| self.position(place)),
        }
    }
}

/// Whether as many voters as a commit waits for have not pledged, and stream.
fn has_voters_left(state: &State, me: Id, fence: &FenceKey) -> bool {
    let pledged = |id: Id| {
        state.store.pledges[usize::from(id)].is_some_and(|(pledge, _)| pledge.fence == fence.id)
    };
    let streaming = state.streaming_from(me);
    let voters = state.store.sync.voters;
    let left = voters.iter().filter(|id| streaming.has(*id) && !pledged(*id)).count();
    left >= usize::from(state.member(me).rule.number).max(1)
}

fn versioned_fence(fence: &FenceKey) -> Versioned<Fence> {
    let revision = Revision(fence.rev.into());
    Versioned {
        value: Fence {
            id: fence.id.to_string(),
            leader_revision: Revision(fence.leader_rev.into()),
            sync_revision: Revision(fence.sync_rev.into()),
            candidate: name(fence.candidate),
        },
        create_revision: revision,
        mod_revision: revision,
        lease: 0,
    }
}

pub(super) fn name(id: Id) -> MemberName {
    MemberName::from(letter(id))
}

pub(super) fn sync_state(set: Set) -> SyncState {
    SyncState {
        leader: Some(name(set.leader)),
        quorum: set.quorum.into(),
        voters: set.voters.iter().map(name).collect(),
    }
}

pub(super) fn set_of(state: &State, sync: &SyncState) -> Set {
    let id = |of: &MemberName| state.ids().find(|id| letter(*id) == of.as_str());
    Set {
        leader: sync.leader.as_ref().and_then(id).unwrap_or(0),
        quorum: small(sync.quorum),
        voters: sync.voters.iter().filter_map(id).collect(),
    }
}

/// The model's numbers are all small.
pub(super) fn small<T: TryInto<u8>>(number: T) -> u8 {
    number.try_into().unwrap_or(u8::MAX)
}
