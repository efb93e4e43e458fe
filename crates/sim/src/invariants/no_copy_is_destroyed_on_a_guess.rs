//! I3: a data directory is replaced only when a live leader is known and it is not the newest copy.

use std::collections::BTreeSet;

use types::Term;

use crate::Mode;
use crate::invariants::Checks;
use crate::node::Host;
use crate::world::World;

const LIVE_LEADER: &str = "I3: a copy is replaced only from the live leader of that term";
const ONLY_COPY: &str = "I3: no acknowledged commit is destroyed with its last copy";
const WHOLE: &str = "I3: a data directory that is being replaced is never started";

impl World {
    /// A rewind or rebuild of `node` begins. `term` is what its agent believes, `source_term` in
    /// which the source was promoted. A source that was elected again meanwhile is as good.
    pub(crate) fn checks_before_destruction(&mut self, node: usize, term: Term, source_term: Term) {
        if source_term < term {
            let name = &self.hosts[node].name;
            let seen =
                format!("{name} takes a primary of term {source_term} for that of term {term}");
            self.checks.violate(self.now, LIVE_LEADER, seen);
        }
        let Some(data) = &self.hosts[node].disk.data else { return };
        if self.setup.mode == Mode::Off {
            return;
        }
        let mine: BTreeSet<u64> =
            super::commits(&data.log).intersection(&self.checks.acknowledged).copied().collect();
        let mut elsewhere = BTreeSet::new();
        for (other, host) in self.hosts.iter().enumerate() {
            if other != node
                && let Some(data) = host.disk.data.as_ref().filter(|d| !d.broken)
            {
                elsewhere.extend(super::commits(&data.log));
            }
        }
        if let Some(id) = mine.difference(&elsewhere).next() {
            let seen = format!("{} holds the last copy of commit {id}", self.hosts[node].name);
            self.checks.violate(self.now, ONLY_COPY, seen);
        }
    }
}

impl Checks {
    /// Nobody starts what a rewind or rebuild left half done.
    pub(crate) fn starts_only_whole(&mut self, host: &Host, now: u64) {
        let broken = host.disk.data.as_ref().is_some_and(|d| d.broken);
        if broken || host.disk.durable.in_progress.is_some() {
            self.violate(now, WHOLE, format!("{} starts an unfinished copy", host.name));
        }
    }
}
