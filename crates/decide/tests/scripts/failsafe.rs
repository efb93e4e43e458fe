//! A leader without the keys asks the other members; they answer through their own brains.

use std::collections::BTreeMap;

use decide::foreign::ForeignAnswer;
use decide::{Event, FailsafeAnswer, FailsafeClaim};
use types::{MemberName, Millis, Term};

use crate::data::Proc;
use crate::world::World;

impl World {
    /// Asks every member, as the agents would. True if all of them agree.
    pub(crate) fn ask_members(
        &mut self,
        leader: &MemberName,
        members: &BTreeMap<MemberName, String>,
        (term, ttl): (Term, Millis),
    ) -> bool {
        let mut all = true;
        for name in members.keys() {
            let claim = FailsafeClaim {
                leader: leader.clone(),
                term: Some(term),
                ttl,
                slots: BTreeMap::new(),
            };
            all &= self.ask_member(name, claim) == Some(FailsafeAnswer::Accepted);
        }
        all
    }

    /// Each member that hears and reaches the keys tells the term that they name.
    pub(crate) fn ask_terms(
        &mut self,
        asking: &MemberName,
        members: &BTreeMap<MemberName, String>,
    ) {
        let knows = |name: &MemberName| {
            self.hosts.get(name).is_some_and(|h| h.agent.is_some() && !h.deaf && !h.cut)
        };
        let term = self.store.view.leader_term().filter(|_| members.keys().any(knows));
        let now = self.now;
        let agent = self.hosts.get_mut(asking).and_then(|host| host.agent.as_mut());
        if let Some((term, agent)) = term.zip(agent) {
            for action in agent.brain.step(now, Event::TermSeen { term }) {
                self.perform(asking, action);
            }
        }
    }

    /// What members of Patroni answer, told to the one that asks.
    pub(crate) fn ask_positions(
        &mut self,
        asking: &MemberName,
        members: &BTreeMap<MemberName, String>,
    ) {
        let answer = |name: &MemberName| {
            let host = self.hosts.get(name).filter(|host| !host.deaf && !host.cut)?;
            let data = host.data.as_ref()?;
            match host.process {
                Proc::Primary => Some(ForeignAnswer::Primary),
                Proc::Standby => {
                    Some(ForeignAnswer::Standby { timeline: data.timeline, lsn: data.end })
                }
                Proc::Stopped | Proc::Orphaned | Proc::NotReady(_) | Proc::Silent(_) => None,
            }
        };
        let answers = members.keys().map(|name| (name.clone(), answer(name))).collect();
        let now = self.now;
        let Some(agent) = self.hosts.get_mut(asking).and_then(|h| h.agent.as_mut()) else { return };
        for action in agent.brain.step(now, Event::Positions { answers }) {
            self.perform(asking, action);
        }
    }

    fn ask_member(&mut self, name: &MemberName, claim: FailsafeClaim) -> Option<FailsafeAnswer> {
        let now = self.now;
        let host = self.hosts.get_mut(name).filter(|host| !host.deaf)?;
        let agent = host.agent.as_mut()?;
        let actions = agent.brain.step(now, Event::FailsafeClaim(claim));
        let answer = agent.brain.failsafe_answer();
        if answer == Some(FailsafeAnswer::Accepted) {
            host.durable.promise = agent.brain.promise();
        }
        for action in actions {
            self.perform(name, action);
        }
        answer
    }
}
