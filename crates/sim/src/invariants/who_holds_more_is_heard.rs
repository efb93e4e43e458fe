//! I2 without synchronous replication: nobody can know what was acknowledged, so whoever is there
//! and holds more than the winner is waited for, for a while.

use std::collections::BTreeSet;

use decide::Winner;
use types::{ClusterView, Member, Versioned};

use crate::shell::LOOP_WAIT;
use crate::world::World;

const HEARD: &str = "I2: an asynchronous winner passes nobody over who holds more";

impl World {
    /// `winner`'s transaction has taken effect on what the store held before.
    pub(crate) fn checks_of_winner(&mut self, node: usize, before: &ClusterView, winner: &Winner) {
        // Clocks drift; one that is close to the end of its patience may have come to it.
        let patient = self.now < self.checks.fence_opened + LOOP_WAIT - LOOP_WAIT / 10;
        let Some(fence) = before.fence.as_ref().filter(|_| patient) else { return };
        if before.active_sync().is_some() {
            return;
        }
        // Of a key that is as it was when the fence was opened, the winner has seen that.
        let is_due = |key: &Versioned<Member>| {
            let member = &key.value;
            let pledges = member.pgherd.is_some() && member.trouble.is_none();
            key.create_revision < fence.create_revision && pledges && member.tags.may_lead()
        };
        let held = self.acknowledged_on(node);
        for other in 0..self.hosts.len() {
            let name = &self.hosts[other].name;
            let due = before.members.get(name).is_some_and(is_due);
            if !due || other == node || winner.pledges.contains_key(name) {
                continue;
            }
            if let Some(id) = self.acknowledged_on(other).difference(&held).next() {
                let seen = format!("{} lacks commit {id} of {name}", self.hosts[node].name);
                self.checks.violate(self.now, HEARD, seen);
                return;
            }
        }
    }

    /// Acknowledged commits on a host's disk.
    fn acknowledged_on(&self, node: usize) -> BTreeSet<u64> {
        let data = self.hosts[node].disk.data.as_ref().filter(|data| !data.broken);
        let held = data.map(|data| super::commits(&data.log)).unwrap_or_default();
        held.intersection(&self.checks.acknowledged).copied().collect()
    }
}
