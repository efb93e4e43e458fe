//! No fence blocks for ever: from every state in which nothing is under way, and so from every
//! state, as requests arrive or are lost, the cluster comes to acknowledge a new commit when no
//! more faults happen.
//!
//! stateright's `eventually` does not see cycles, and there are many (a fence is opened and
//! voided). So the property says more and is easier to check: one fair schedule, in which every
//! member acts in turn and waits long enough now and then, succeeds within [`ROUNDS`] turns. It is
//! run from each quiet state with everybody there, and once for each member without which the
//! cluster can go on, with that member gone for good.

use super::look::Mood;
use super::state::{Id, Members, State};
use super::step::Step;
use super::{Election, Setup};

/// Many more than any state needs (eight).
const ROUNDS: u32 = 24;

impl Election {
    /// Whether a fair schedule leads from a quiet state to an acknowledged commit.
    pub(super) fn recovers(&self, state: &State) -> bool {
        if !state.requests.is_empty() {
            return true;
        }
        let all = Members::all(self.setup.members);
        let healed = Election::new(Setup { terms: 14, requests: 8, ..self.setup.clone() });
        let without =
            |gone: Id| !can_do_without(state, gone) || healed.heals(state, all.without(gone));
        healed.heals(state, all) && state.ids().all(without)
    }

    fn heals(&self, state: &State, there: Members) -> bool {
        let mut now = State { faults: 0, writes: 0, fences: u8::MAX, ..state.clone() };
        for gone in state.ids().filter(|id| !there.has(*id)) {
            now.stop(gone);
            now.member_mut(gone).forget();
        }
        let mut committed = false;
        for round in 0..ROUNDS {
            for id in there.iter() {
                self.turn(&mut now, id, there, round);
            }
            if now.audit.violation.is_some() {
                return false;
            }
            let Some(leader) = serves(&now) else { continue };
            if committed && now.audit.acknowledged == now.member(leader).log {
                return true;
            }
            now.writes = 1;
            committed |= self.step(&mut now, Step::Write { member: leader });
            now.writes = 0;
        }
        false
    }

    /// A member does all that it has to do, and what it asks the store for arrives.
    fn turn(&self, state: &mut State, id: Id, there: Members, round: u32) {
        if state.member(id).is_down() && state.member(id).lead.is_none() {
            self.step(state, Step::Start { member: id });
        }
        self.step(state, Step::PledgeMade { member: id });
        self.step(state, Step::RuleTakenOver { member: id });
        if state.member(id).lead.is_some_and(|lead| lead.writing) {
            self.step(state, Step::TimeOut { member: id });
        }
        self.replicate(state, id);
        let holder = state.store.leader.map(|key| key.holder);
        let lost = holder.is_some_and(|holder| !there.has(holder));
        let voters = state.store.sync.voters.iter().filter(|id| there.has(*id)).count();
        let enough = voters > usize::from(state.store.sync.quorum);
        if lost && !enough {
            state.store.leader = None;
        }
        let impatient = round % 3 == 2 && holder != Some(id);
        let mood = Mood { suspects: lost && enough, impatient, late: false };
        self.step(state, Step::Look { member: id, mood });
        while !state.requests.is_empty() {
            self.step(state, Step::Deliver { index: 0 });
        }
    }

    fn replicate(&self, state: &mut State, id: Id) {
        let mut steps = Vec::new();
        loop {
            steps.clear();
            super::step::replication(state, id, &mut steps);
            let next = steps.iter().find(|step| {
                matches!(step, Step::Connect { .. } | Step::Receive { late: false, .. })
            });
            let Some(next) = next else { return };
            self.step(state, *next);
        }
    }

    /// Makes a step. False if it changes nothing.
    fn step(&self, state: &mut State, step: Step) -> bool {
        let after = self.after(state, step);
        let changed = after.is_some();
        if let Some(after) = after {
            *state = after;
        }
        changed
    }
}

/// Whether what is acknowledged can be known without this member: its leader is there, or enough
/// voters are.
fn can_do_without(state: &State, gone: Id) -> bool {
    let sync = state.store.sync;
    sync.leader != gone || sync.voters.without(gone).count() > usize::from(sync.quorum)
}

/// The leader, if it is a primary of the present term and no fence is open.
fn serves(state: &State) -> Option<Id> {
    let (holder, term) = state.store.leader_term()?;
    let primary = state.member(holder).primary()?;
    (primary.term == term && state.store.fence.is_none()).then_some(holder)
}
