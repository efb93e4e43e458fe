//! I2: with synchronous replication the next primary has every acknowledged commit.

use crate::Mode;
use crate::world::World;

const NOTHING_LOST: &str = "I2: a new primary has every acknowledged commit";

impl World {
    /// Whatever becomes writable is judged at that instant.
    pub(crate) fn checks_of_new_primary(&mut self, node: usize) {
        self.check_one_writer(node);
        self.check_timeline_number(node);
        if !self.comes_up_deposed(node) {
            self.check_nothing_lost(node);
        }
    }

    /// After a fence a primary whose start was under way when its host froze may come up once more.
    /// It lacks what the newer term acknowledged, and can acknowledge nothing itself, which is
    /// judged with each acknowledgement.
    fn comes_up_deposed(&self, node: usize) -> bool {
        let term = self.hosts[node].postgres.as_ref().map(|instance| instance.term);
        let newest = self.checks.newest.as_ref().map(|(newest, _)| *newest);
        self.setup.fenced && newest > term
    }

    pub(crate) fn check_nothing_lost(&mut self, node: usize) {
        let Some(data) = self.hosts[node].disk.data.as_ref() else { return };
        if self.setup.mode == Mode::Off {
            return;
        }
        let held = super::commits(&data.log);
        let lost: Vec<u64> = self.checks.acknowledged.difference(&held).copied().collect();
        if !lost.is_empty() {
            let first = &lost[..lost.len().min(5)];
            let name = &self.hosts[node].name;
            let seen = format!("{name} lacks {} acknowledged commits: {first:?}", lost.len());
            self.checks.violate(self.now, NOTHING_LOST, seen);
        }
    }
}
