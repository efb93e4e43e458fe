//! Clients, and what makes a commit acknowledged.

use decide::SyncRule;
use types::{Lsn, MemberName};

use crate::postgres::Waiter;
use crate::wal::{Content, lsn};
use crate::world::{Event, World};

/// Commits that may wait on one host; further writers pause.
const WAITING_MAX: usize = 5;

impl World {
    /// One client per node tries to commit there for ever, whoever leads.
    pub(crate) fn node_writes(&mut self, node: usize) {
        let pause = self.rng.range(100, 300);
        self.after(pause, Event::NodeWriter { node });
        self.try_commit(node);
    }

    /// The application goes where the leader key and the member's role in that term point.
    pub(crate) fn application_writes(&mut self) {
        let pause = self.rng.range(80, 200);
        self.after(pause, Event::AppWriter);
        let view = self.store.see();
        let Some(leader) = view.leader_name() else { return };
        let member = view.member(leader);
        let routed = member.is_some_and(|m| m.role == "primary" && m.term == view.leader_term());
        if routed && let Some(node) = self.node_named(leader) {
            self.try_commit(node);
        }
    }

    fn try_commit(&mut self, node: usize) {
        let host = &self.hosts[node];
        if !host.up || host.frozen > 0 {
            return;
        }
        let Some(instance) = host.postgres.as_ref().filter(|i| i.writable()) else { return };
        if self.connections_taken(node) {
            return;
        }
        if instance.waiting.len() >= WAITING_MAX {
            return;
        }
        let number = instance.number;
        let delay = self.flush_time(node);
        let waiter = Waiter::Client(self.number());
        self.after(delay, Event::CommitFlushed { node, instance: number, waiter });
    }

    /// The record is flushed: from now on it may be sent, and its session waits if it has to.
    pub(crate) fn commit_flushed(&mut self, node: usize, number: u64, waiter: Waiter) {
        if self.hosts[node].instance(number).is_some_and(|i| i.writable()) {
            let ailments = self.hosts[node].ailments;
            if ailments.disk_hangs.lasts() {
                self.after(50, Event::CommitFlushed { node, instance: number, waiter });
                return;
            }
            if ailments.disk_full.lasts() {
                // It goes on in a file that is there already, or panics for want of a new one.
                if self.rng.chance(300) {
                    self.instance_killed(node, "panics, its disk is full");
                    return;
                }
            }
        }
        let host = &mut self.hosts[node];
        let Some(instance) = host.postgres.as_mut().filter(|i| i.number == number) else { return };
        let Some(data) = host.disk.data.as_mut().filter(|_| instance.writable()) else { return };
        let content = match waiter {
            Waiter::Client(id) => Content::Commit(id),
            Waiter::Agent => Content::Proof,
        };
        let at = data.log.append(instance.timeline, content);
        let waits = instance.waits && at > instance.released;
        if waits {
            instance.waiting.push((at, waiter));
        }
        self.pump_all(node);
        if !waits {
            self.acknowledge(node, waiter);
        }
    }

    /// A walsender heard from its standby: it releases whom its rule allows (A7, A8).
    pub(crate) fn release_waiting(&mut self, id: u64) {
        let Some(stream) = self.streams.get(&id) else { return };
        let (node, number) = (stream.up, stream.up_instance);
        let rule = stream.rule.clone();
        let Some(position) = self.satisfied(node, number, &rule) else { return };
        let Some(instance) = self.hosts[node].instance_mut(number) else { return };
        instance.released = instance.released.max(position);
        let released = instance.released;
        let (done, waiting): (Vec<_>, Vec<_>) =
            instance.waiting.iter().copied().partition(|(at, _)| *at <= released);
        instance.waiting = waiting;
        for (_, waiter) in done {
            self.acknowledge(node, waiter);
        }
    }

    /// Up to where the rule is satisfied by what streaming standbys confirmed.
    fn satisfied(&self, node: usize, number: u64, rule: &SyncRule) -> Option<Lsn> {
        let confirmed = |name: &MemberName| {
            self.streams
                .values()
                .filter(|s| s.up == node && s.up_instance == number && s.sender_lives)
                .filter(|s| s.caught_up && s.confirmed > lsn(0))
                .find(|s| self.hosts[s.down].name == *name)
                .map(|s| s.confirmed)
        };
        match rule {
            SyncRule::Off => None,
            SyncRule::First(names) => {
                let found: Vec<Lsn> =
                    names.names.iter().filter_map(confirmed).take(names.number).collect();
                (found.len() >= names.number).then(|| found.into_iter().min()).flatten()
            }
            SyncRule::Any(names) => {
                let mut found: Vec<Lsn> = names.names.iter().filter_map(confirmed).collect();
                found.sort_unstable_by(|a, b| b.cmp(a));
                names.number.checked_sub(1).and_then(|i| found.get(i)).copied()
            }
        }
    }

    pub(crate) fn acknowledge(&mut self, node: usize, waiter: Waiter) {
        match waiter {
            Waiter::Agent => {
                if let Some(instance) = &mut self.hosts[node].postgres {
                    instance.proofs += 1;
                }
            }
            Waiter::Client(id) => self.checks_of_acknowledgement(node, id),
        }
    }
}
