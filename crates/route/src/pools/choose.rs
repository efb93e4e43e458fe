//! Which member a connection is lent of, or opened to.

use types::{MemberName, Millis};

use super::{Gate, Pools, Routes};
use crate::choice::Replica;
use crate::event::{PoolId, Port, Target};

impl Pools {
    /// The members that serve this port, the least used first.
    pub(super) fn targets<'a>(
        &self,
        now: Millis,
        routes: &'a Routes,
        pool: PoolId,
        port: Port,
    ) -> Vec<&'a Target> {
        let primary = routes.primary.iter();
        match port {
            Port::ReadWrite => primary.collect(),
            Port::ReadOnly => {
                let reached = |replica: &&Replica| self.is_reached(now, pool, replica);
                let replicas = routes.replicas.iter().filter(reached).collect();
                // The primary stands in where there is no replica that can be reached.
                let replicas = self.nearest(pool, replicas);
                if replicas.is_empty() { primary.collect() } else { replicas }
            }
        }
    }

    /// Whether there is a connection to the replica, or one may be tried.
    pub(super) fn is_reached(&self, now: Millis, pool: PoolId, replica: &Replica) -> bool {
        let member = &replica.target.member;
        let shelf = self.find_shelf(pool, member).map(|n| &self.shelves[n]);
        self.gate_open(member, now) || shelf.is_some_and(|s| s.lent + s.idle.len() > 0)
    }

    /// Those of the own site, or all if none is; the least used first.
    pub(super) fn nearest<'a>(
        &self,
        pool: PoolId,
        mut replicas: Vec<&'a Replica>,
    ) -> Vec<&'a Target> {
        if replicas.iter().any(|replica| replica.near) {
            replicas.retain(|replica| replica.near);
        }
        replicas.sort_by_key(|replica| {
            let shelf = self.find_shelf(pool, &replica.target.member);
            shelf.map_or(0, |shelf| self.shelves[shelf].lent)
        });
        replicas.into_iter().map(|replica| &replica.target).collect()
    }

    /// Connections of the pool that are being opened and serve this port. A replica that does not
    /// answer keeps nobody from the primary.
    pub(super) fn opening_for(&self, routes: &Routes, pool: PoolId, port: Port) -> usize {
        let shelves = self.of_pool(pool).iter().map(|shelf| &self.shelves[*shelf]);
        let primary = routes.primary.as_ref().map(|primary| &primary.member);
        let serves = shelves.filter(|shelf| match port {
            Port::ReadWrite => Some(&shelf.member) == primary,
            Port::ReadOnly => true,
        });
        serves.map(|shelf| shelf.opening).sum()
    }

    pub(super) fn gate_open(&self, member: &MemberName, now: Millis) -> bool {
        match self.gates.get(member) {
            None => true,
            Some(Gate::ClosedUntil(when)) => now >= *when,
            Some(Gate::TriedBy(_)) => false,
        }
    }

    pub(super) fn shelf_with_idle(
        &self,
        now: Millis,
        routes: &Routes,
        pool: PoolId,
        port: Port,
    ) -> Option<usize> {
        let has_idle = |target: &Target| {
            let shelf = self.find_shelf(pool, &target.member)?;
            (!self.shelves[shelf].idle.is_empty()).then_some(shelf)
        };
        if port == Port::ReadWrite {
            return routes.primary.as_ref().and_then(has_idle);
        }
        self.targets(now, routes, pool, port).into_iter().find_map(has_idle)
    }

    pub(super) fn target_to_open(
        &self,
        now: Millis,
        routes: &Routes,
        pool: PoolId,
        port: Port,
    ) -> Option<Target> {
        let size = self.sizes.get(pool.index()).copied()?;
        let has_room = |target: &&Target| {
            let shelf = self.find_shelf(pool, &target.member);
            shelf.is_none_or(|shelf| self.shelves[shelf].count() < size)
                && self.groups_have_room(pool, &target.member)
        };
        let is_open = |target: &&Target| self.gate_open(&target.member, now);
        let targets = self.targets(now, routes, pool, port).into_iter();
        targets.filter(has_room).find(is_open).cloned()
    }
}
