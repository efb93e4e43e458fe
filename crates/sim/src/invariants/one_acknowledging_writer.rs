//! I1: no two nodes acknowledge commits in overlapping terms.

use crate::wal::Content;
use crate::world::World;

const ONE_WRITER: &str = "I1: two nodes are never writable at once";
const NO_OLD_TERM: &str = "I1: an older term never acknowledges after a newer one";

impl World {
    /// In lease mode even the processes of two primaries never exist at once. After a fence, or a
    /// leader key deleted by hand, only acknowledgements count.
    pub(crate) fn check_one_writer(&mut self, node: usize) {
        // A host that stands still writes nothing; its guard strikes when it goes on (A15).
        let stands = self.hosts[node].frozen > 0;
        let fenced = self.checks.leader_key_deleted || self.setup.fenced;
        if fenced || stands || !self.hosts[node].writable() {
            return;
        }
        let other = (0..self.hosts.len()).find(|other| {
            let host = &self.hosts[*other];
            *other != node && host.frozen == 0 && host.writable()
        });
        if let Some(other) = other {
            let (one, two) = (&self.hosts[node].name, &self.hosts[other].name);
            let seen = format!("{one} becomes writable while {two} still is");
            self.checks.violate(self.now, ONE_WRITER, seen);
        }
    }

    /// A client on `node` hears that its commit is there to stay.
    pub(crate) fn checks_of_acknowledgement(&mut self, node: usize, id: u64) {
        let Some(instance) = &self.hosts[node].postgres else { return };
        let term = instance.term;
        match self.checks.newest {
            Some((newest, at)) if newest > term && at != node => {
                self.check_late_acknowledgement(node, id, at);
            }
            Some((newest, _)) if newest > term => {}
            Some(_) | None => self.checks.newest = Some((term, node)),
        }
        self.checks.acknowledged.insert(id);
        self.checks.last.insert(node, self.now);
    }

    /// After a fence a confirmation may still be under way; it is harmless if the newer leader has
    /// the commit: then it happened before.
    fn check_late_acknowledgement(&mut self, node: usize, id: u64, newer: usize) {
        let has =
            self.hosts[newer].disk.data.as_ref().is_some_and(|d| {
                d.log.records.iter().rev().any(|r| r.content == Content::Commit(id))
            });
        if has && (self.checks.leader_key_deleted || self.setup.fenced) {
            return;
        }
        let (old, new) = (&self.hosts[node].name, &self.hosts[newer].name);
        let seen = format!("{old} acknowledges commit {id} after {new} did so in a newer term");
        self.checks.violate(self.now, NO_OLD_TERM, seen);
    }
}
