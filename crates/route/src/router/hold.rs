//! The leader's hold: its primary is about to be stopped, and it asks for no new transaction.

use types::{ClusterView, Millis};

use super::{Phase, Router};
use crate::event::{Action, ClientId, Port};

/// The leader asks for no new transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Hold {
    pub(super) id: u64,
    pub(super) ends: Millis,
}

impl Router {
    /// Follows the leader's hold, which lasts no longer than it says; `true` if one begins.
    pub(super) fn follow_hold(&mut self, now: Millis, view: &ClusterView) -> bool {
        let Some(active) = view.active_hold() else {
            self.hold = None;
            self.outlasted = None;
            return false;
        };
        let id = active.value.id;
        if self.hold.is_some_and(|hold| hold.id == id) || self.outlasted == Some(id) {
            return false;
        }
        self.hold = Some(Hold { id, ends: now.plus(active.value.until) });
        true
    }

    /// A hold that nobody took away in its time is over.
    pub(super) fn end_hold(&mut self, now: Millis, actions: &mut Vec<Action>) {
        if let Some(hold) = self.hold.take_if(|hold| hold.ends <= now) {
            self.outlasted = Some(hold.id);
            if let Some(view) = self.view.clone() {
                self.see(now, &view, actions);
            }
        }
    }

    /// Sessions with the primary end as soon as they are in no transaction; attempts are taken
    /// back.
    pub(super) fn drain(&mut self, actions: &mut Vec<Action>) {
        let bound = |phase: &Phase| match phase {
            Phase::Held => false,
            Phase::Connecting(binding) | Phase::Open(binding) => binding.primary_since.is_some(),
        };
        let clients = self.clients.iter().filter(|(_, client)| bound(&client.phase));
        let clients: Vec<(ClientId, bool)> =
            clients.map(|(id, client)| (*id, matches!(client.phase, Phase::Open(_)))).collect();
        for (client, is_open) in clients {
            if is_open {
                actions.push(Action::Drain { client });
            } else {
                self.hold(client);
                actions.push(Action::Hold { client });
            }
        }
        let pooled = self.pools.with_primary();
        actions.extend(pooled.into_iter().map(|client| Action::Drain { client }));
    }

    /// Clients that wait, and for whose port no server is known.
    pub(super) fn on_hold(&self) -> usize {
        let ports =
            [(Port::ReadWrite, &self.held_read_write), (Port::ReadOnly, &self.held_read_only)];
        let closed = ports.into_iter().filter(|(port, _)| !self.is_open(*port));
        let sessions: usize = closed.map(|(_, held)| held.len()).sum();
        sessions + self.pools.waiting().filter(|(_, port, _)| !self.is_open(*port)).count()
    }

    /// Clients that have a connection to the primary; while a hold is followed, each of them is in
    /// a transaction, or about to be ended.
    pub(super) fn busy(&self) -> usize {
        let open = self.clients.values().filter(|client| match &client.phase {
            Phase::Held | Phase::Connecting(_) => false,
            Phase::Open(binding) => binding.primary_since.is_some(),
        });
        open.count() + self.pools.with_primary().len()
    }
}
