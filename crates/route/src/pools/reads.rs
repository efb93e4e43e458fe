//! Connections to replicas, for single reads of clients that came to the primary's port.

use types::Millis;

use super::{Pools, Routes};
use crate::choice::Replica;
use crate::event::{Action, ClientId, PoolId, Port, Target};
use crate::freshness::{Freshness, Round};

impl Pools {
    /// Lends a connection to a replica that has what the client wrote, if there is one now; else
    /// the client is the primary's. Nobody waits for a replica: where one could be had, it is
    /// opened for the reads to come.
    pub(crate) fn lend_read(
        &mut self,
        now: Millis,
        (routes, freshness): (&Routes, &Freshness),
        client: ClientId,
        (pool, written): (PoolId, Round),
        actions: &mut Vec<Action>,
    ) -> bool {
        assert!(!self.lent_to.contains_key(&client), "client {client} has a server");
        let reader_waits = self.queues.get(&(pool, Port::ReadOnly)).is_some_and(|q| !q.is_empty());
        if self.paused || reader_waits {
            return false;
        }
        let targets = self.readable(now, (routes, freshness), (pool, written));
        for target in &targets {
            let Some(shelf) = self.find_shelf(pool, &target.member) else {
                continue;
            };
            let servers = &self.servers;
            let proven = |id: &&_| {
                let server = servers.get(id);
                server.is_some_and(|s| freshness.is_proven(&target.member, s.opened_after))
            };
            // The one used last first, as always.
            let found = self.shelves[shelf].idle.iter().rposition(|id| proven(&id));
            if let Some(at) = found {
                let server = self.shelves[shelf].idle.remove(at);
                if self.mark_lent(client, server) {
                    actions.push(Action::LendRead { client, server });
                    return true;
                }
            }
        }
        let spare = targets.into_iter().find(|target| self.has_room_for_spare(now, pool, target));
        if let Some(target) = spare.cloned() {
            self.open(now, routes, (pool, target), true, actions);
        }
        false
    }

    /// Replicas that have what was written up to this round, the best first. Those of another site
    /// only if the primary is none of the own one either.
    fn readable<'a>(
        &self,
        now: Millis,
        (routes, freshness): (&'a Routes, &Freshness),
        (pool, written): (PoolId, Round),
    ) -> Vec<&'a Target> {
        let fits = |replica: &&Replica| {
            freshness.has(&replica.target.member, written)
                && (replica.near || !routes.primary_is_near)
                && self.is_reached(now, pool, replica)
        };
        self.nearest(pool, routes.replicas.iter().filter(fits).collect())
    }

    /// One is opened at a time, and none while others are there that only have to prove themselves.
    fn has_room_for_spare(&self, now: Millis, pool: PoolId, target: &Target) -> bool {
        let shelf = self.find_shelf(pool, &target.member).map(|shelf| &self.shelves[shelf]);
        let size = self.sizes.get(pool.index()).copied().unwrap_or_default();
        let fits = shelf.is_none_or(|shelf| {
            shelf.opening == 0
                && shelf.idle.is_empty()
                && shelf.count() < size
                && now >= shelf.refused_until
        });
        let in_groups =
            |group: &usize| self.group_count(*group, &target.member) < self.groups[*group].limit;
        fits && self.groups_of(pool).iter().all(in_groups) && self.gate_open(&target.member, now)
    }
}
