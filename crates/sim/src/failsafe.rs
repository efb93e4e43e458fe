//! A leader that cannot reach the store asks the other members: questions and answers are messages
//! between hosts, which get lost and come late like any other.

use decide::{Act, ActionId, FailsafeAnswer, FailsafeClaim, Outcome};

use crate::Mutation;
use crate::world::{Event, World};

impl World {
    /// Sends the questions of one round.
    pub(crate) fn ask_members(&mut self, node: usize, number: u64, id: ActionId) {
        let leader = self.hosts[node].name.clone();
        let Some(agent) = self.hosts[node].agent.as_ref() else { return };
        let Some(doing) = agent.doing.get(&id) else { return };
        let Act::AskFailsafe { members, term, ttl, limit, slots } = doing.act.clone() else {
            return;
        };
        let claim = FailsafeClaim { leader, term: Some(term), ttl, slots };
        for name in members.keys() {
            let Some(to) = self.node_named(name) else { continue };
            let delay = self.hop();
            if self.linked(node, to) && !self.rng.chance(self.store_loss) {
                let claim = claim.clone();
                self.after(delay, Event::Ask { from: node, agent: number, id, to, claim });
            }
        }
        self.after(limit.0, Event::RoundEnds { node, agent: number, id });
        if members.is_empty() {
            self.after(0, Event::End { node, agent: number, id, outcome: Outcome::Done });
        }
    }

    /// A question arrives. The answer goes out only after the brain has taken it in.
    pub(crate) fn asked(
        &mut self,
        (from, number, id): (usize, u64, ActionId),
        to: usize,
        claim: FailsafeClaim,
    ) {
        if !self.hosts[to].agent.as_ref().is_some_and(|a| a.started) {
            return;
        }
        self.feed(to, decide::Event::FailsafeClaim(claim));
        let answer = self.hosts[to].agent.as_ref().and_then(|a| a.brain.failsafe_answer());
        let agreed = answer == Some(FailsafeAnswer::Accepted);
        let promise = self.hosts[to].agent.as_ref().and_then(|a| a.brain.promise());
        if agreed && !self.mutated(Mutation::ForgetPromise) {
            self.hosts[to].disk.durable.promise = promise;
        }
        self.tell(to, || format!("answers {answer:?}"));
        let delay = self.hop();
        if self.linked(to, from) && !self.rng.chance(self.store_loss) {
            self.after(delay, Event::Answer { node: from, agent: number, id, by: to, agreed });
        }
    }

    /// An answer comes back.
    pub(crate) fn answered(
        &mut self,
        (node, number, id): (usize, u64, ActionId),
        by: usize,
        agreed: bool,
    ) {
        let Some(doing) = self.round(node, number, id) else { return };
        let Act::AskFailsafe { members, .. } = &doing.act else { return };
        let all = members.len();
        if agreed {
            doing.note |= 1 << by;
        }
        if doing.note.count_ones() as usize == all {
            self.end_action(node, number, id, Outcome::Done);
        } else if !agreed && !self.mutated(Mutation::FailsafeWithoutAll) {
            self.end_action(node, number, id, Outcome::Failed);
        }
    }

    /// The time for answers is over.
    pub(crate) fn round_ends(&mut self, node: usize, number: u64, id: ActionId) {
        let some = self.mutated(Mutation::FailsafeWithoutAll);
        let Some(doing) = self.round(node, number, id) else { return };
        let enough = some && doing.note != 0;
        let outcome = if enough { Outcome::Done } else { Outcome::Failed };
        self.end_action(node, number, id, outcome);
    }

    fn round(&mut self, node: usize, number: u64, id: ActionId) -> Option<&mut crate::node::Doing> {
        let host = &mut self.hosts[node];
        if host.agents != number {
            return None;
        }
        host.agent.as_mut()?.doing.get_mut(&id)
    }
}
