//! Once all faults are over, the cluster has a leader that acknowledges writes, and every member
//! streams from it and is a true copy of it.

use types::Lsn;

use crate::Mode;
use crate::wal::index;
use crate::world::World;

const LEADER: &str = "liveness: a healthy cluster has a published leader";
const WRITES: &str = "liveness: the leader acknowledges writes";
const STREAMS: &str = "liveness: every member streams from the leader";
const NO_HOLD: &str = "liveness: no hold outlives its hand-over";
const TRUE_COPY: &str = "I2: a streaming member holds what the leader holds";

/// How long ago the last acknowledgement may be, in milliseconds.
const LAST_WRITE: u64 = 4_000;

impl World {
    /// The last check of a run.
    pub(crate) fn judge(&mut self) {
        self.over = true;
        if self.waits_rightly() {
            return;
        }
        let Some(leader) = self.published_leader() else { return };
        if let Some(hold) = self.store.see().active_hold() {
            let seen = format!("proxies hold their clients still: {:?}", hold.value);
            self.checks.violate(self.now, NO_HOLD, seen);
        }
        let last = self.checks.last.get(&leader).copied().unwrap_or(0);
        if self.now - last > LAST_WRITE {
            let name = &self.hosts[leader].name;
            let seen = format!("{name} acknowledged its last commit at {last} ms");
            self.checks.violate(self.now, WRITES, seen);
        }
        for node in 0..self.hosts.len() {
            if node != leader && !self.is_of_another_cluster(node) {
                self.check_follower(node, leader);
            }
        }
        self.check_nothing_lost(leader);
    }

    /// In strict mode, without anybody who could confirm, no commit is acknowledged.
    fn waits_rightly(&self) -> bool {
        let confirms =
            |node: &usize| self.hosts[*node].tags.may_sync() && !self.is_of_another_cluster(*node);
        let leads = self.store.see().leader_name().and_then(|name| self.node_named(name));
        let others = (0..self.hosts.len()).filter(|node| Some(*node) != leads);
        self.setup.strict && self.setup.mode != Mode::Off && others.filter(confirms).count() == 0
    }

    fn published_leader(&mut self) -> Option<usize> {
        let view = self.store.see();
        let term = view.leader_term();
        let name = view.leader_name().cloned();
        let member = name.as_ref().and_then(|name| view.member(name));
        let published = member.is_some_and(|m| m.role == "primary" && m.term == term);
        let role = member.map(|m| format!("{} {}", m.role, m.state));
        let node = name.as_ref().and_then(|name| self.node_named(name));
        match node.filter(|node| published && self.hosts[*node].writable()) {
            Some(node) => Some(node),
            None => {
                let seen = format!("leader key {name:?}, its member {role:?}");
                self.checks.violate(self.now, LEADER, seen);
                None
            }
        }
    }

    /// What initdb left where the bootstrap was interrupted, and another member began the cluster:
    /// nobody may throw it away without an operator's word (I3), so it does not come back.
    fn is_of_another_cluster(&self, node: usize) -> bool {
        let data = self.hosts[node].disk.data.as_ref();
        let ours = self.store.see().system_identifier();
        data.is_some_and(|d| Some(d.system_identifier.as_str()) != ours)
    }

    fn check_follower(&mut self, node: usize, leader: usize) {
        let name = self.hosts[node].name.clone();
        let streams = self.streams.values().any(|s| {
            s.down == node && s.up == leader && s.receiver_lives && s.sender_lives && s.caught_up
        });
        if !streams {
            let seen = format!(
                "{name} does not: {:?}",
                self.hosts[node].postgres.as_ref().map(|i| &i.phase)
            );
            self.checks.violate(self.now, STREAMS, seen);
        }
        let (Some(mine), Some(theirs)) =
            (&self.hosts[node].disk.data, &self.hosts[leader].disk.data)
        else {
            return;
        };
        let end = index(mine.log.end());
        if theirs.log.records.get(..end) != Some(mine.log.records.as_slice()) {
            let fork = mine.log.records.iter().zip(&theirs.log.records).take_while(|(a, b)| a == b);
            let seen = format!("{name} differs from record {}", Lsn(fork.count() as u64));
            self.checks.violate(self.now, TRUE_COPY, seen);
        }
    }
}
