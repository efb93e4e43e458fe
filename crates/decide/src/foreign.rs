//! Members that do not pledge: a Patroni node in a cluster that is on its way. In an election
//! their word is their REST answer, as among Patroni's own (as Patroni 4.1 has it): whoever answers
//! as a primary still leads, whoever holds more is left to take the key, and a voter that answers
//! counts. What such a node acknowledges after its answer nobody can know; that a former leader
//! has stopped rests, then, on its lease alone.

use std::collections::BTreeMap;

use types::{ClusterView, Lsn, MemberName, Millis, Position, Revision, Timeline};

use crate::action::Act;
use crate::brain::Brain;
use crate::election::{Ballot, Waiting};
use crate::reason::Reason;

/// How long such a member has for its answer; Patroni gives each other as long.
const ANSWER_LIMIT: Millis = Millis(2_000);

/// What a member said of its PostgreSQL.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ForeignAnswer {
    /// It is not in recovery.
    Primary,
    /// It is, and holds this much.
    Standby {
        /// The timeline that it receives.
        timeline: Timeline,
        /// The newest position received or replayed.
        lsn: Lsn,
    },
}

/// A member that does not pledge, as far as an election needs to know it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Foreign {
    /// May it lead (tags)?
    pub may_lead: bool,
    /// Its weight among equal positions.
    pub priority: i64,
    /// Nobody has led for a whole `ttl`: it had its time to take the key.
    pub overdue: bool,
    /// Its answer under this fence; `None` inside if it gave none, outside if it was not asked yet.
    pub answer: Option<Option<ForeignAnswer>>,
}

/// The answers, and the fence under which they were asked for.
#[derive(Debug, Clone, Default)]
pub(crate) struct Asked {
    fence: Option<Revision>,
    /// Since when nobody has led.
    vacant_since: Option<Millis>,
    answers: BTreeMap<MemberName, Option<ForeignAnswer>>,
}

/// What is waited for because of members that do not pledge: their answers, one that is primary,
/// one that the operator named, or one that holds more. `own` is the newest counted position.
pub(crate) fn waited_for(ballot: &Ballot, own: Option<Position>) -> Option<Waiting> {
    let part = |name: &MemberName| {
        ballot.sync.as_ref().is_none_or(|(sync, _)| {
            sync.voters.contains(name) || sync.leader.as_ref() == Some(name)
        })
    };
    if ballot.foreign.values().any(|member| member.answer.is_none()) {
        let counted = ballot.pledges.len();
        return Some(Waiting::Pledges { counted, needed: counted + 1 });
    }
    let own = own.map(|position| (position.timeline, position.lsn));
    let own_priority = ballot.alive.get(&ballot.me).map_or(1, |me| me.priority);
    let goes_first = |(name, member): &(&MemberName, &Foreign)| match member.answer.flatten() {
        None => false,
        Some(ForeignAnswer::Primary) => true,
        Some(ForeignAnswer::Standby { timeline, lsn }) => {
            let theirs = Some((timeline, lsn));
            // What a voter holds may be acknowledged: nobody goes on without it (I2).
            if ballot.sync.is_some() && part(name) && theirs > own {
                return true;
            }
            let before = theirs > own || (theirs == own && member.priority > own_priority);
            let asked_for = ballot.preferred.as_ref() == Some(*name);
            let steps_down = ballot.stepping_down.as_ref() == Some(*name);
            let may = member.may_lead && part(name) && !steps_down && !member.overdue;
            may && (before || asked_for)
        }
    };
    ballot.foreign.iter().find(goes_first).map(|(name, _)| Waiting::Winner(name.clone()))
}

/// How many voters that do not pledge answered with what they hold.
pub(crate) fn voters(ballot: &Ballot) -> usize {
    let Some((sync, _)) = &ballot.sync else { return 0 };
    let holds =
        |member: &Foreign| matches!(member.answer.flatten(), Some(ForeignAnswer::Standby { .. }));
    ballot.foreign.iter().filter(|(name, m)| sync.voters.contains(*name) && holds(m)).count()
}

impl Brain {
    /// Takes the answers in.
    pub(crate) fn note_foreign(&mut self, answers: BTreeMap<MemberName, Option<ForeignAnswer>>) {
        self.asked.answers = answers;
    }

    /// Somebody leads: the next vacancy begins anew.
    pub(crate) fn forget_foreign(&mut self) {
        self.asked = Asked::default();
    }

    /// The members that do not pledge, with what they answered under this fence.
    pub(crate) fn foreign(
        &mut self,
        now: Millis,
        view: &ClusterView,
    ) -> BTreeMap<MemberName, Foreign> {
        let since = *self.asked.vacant_since.get_or_insert(now);
        let overdue = view.leader.is_none() && now >= since.plus(self.dynamic.ttl);
        let fence = view.fence.as_ref().map(|fence| fence.mod_revision);
        let current = fence.is_some() && self.asked.fence == fence;
        let of = |name: &MemberName| self.asked.answers.get(name).copied().filter(|_| current);
        let others = view.members.iter().filter(|(_, m)| m.value.pgherd.is_none());
        others
            .filter(|(name, m)| **name != self.node.name && !m.value.api_url.is_empty())
            .map(|(name, m)| {
                let tags = &m.value.tags;
                let (may_lead, priority) = (tags.may_lead(), tags.priority());
                (name.clone(), Foreign { may_lead, priority, overdue, answer: of(name) })
            })
            .collect()
    }

    /// Asks those that were not asked under this fence, once our own pledge stands.
    pub(crate) fn ask_foreign(&mut self, now: Millis, view: &ClusterView, ballot: &Ballot) {
        let Some(fence) = view.fence.as_ref().map(|fence| fence.mod_revision) else {
            return;
        };
        if ballot.foreign.values().all(|member| member.answer.is_some()) {
            return;
        }
        let address = |name: &MemberName| view.member(name).map(|m| m.api_url.clone());
        let members: BTreeMap<MemberName, String> =
            ballot.foreign.keys().filter_map(|name| Some((name.clone(), address(name)?))).collect();
        let act = Act::AskPositions { members, limit: ANSWER_LIMIT };
        if self.issue_if_free(now, act, Reason::DoesNotPledge) {
            (self.asked.fence, self.asked.answers) = (Some(fence), BTreeMap::new());
        }
    }
}
