//! What clients of pools want, and which replicas may answer for the primary.

use types::{ClusterView, Lsn, MemberName, Millis, Term};

use super::Router;
use crate::choice;
use crate::event::{Action, ClientId, PoolId, Port, ServerId, Target};
use crate::freshness::Round;

impl Router {
    pub(super) fn want(
        &mut self,
        now: Millis,
        client: ClientId,
        (pool, port): (PoolId, Port),
        actions: &mut Vec<Action>,
    ) {
        self.pools.want(now, &self.routes, client, (pool, port), actions);
        self.limit_waiting(now, port, actions);
        self.wake_for_pools(now, actions);
    }

    pub(super) fn want_read(
        &mut self,
        now: Millis,
        client: ClientId,
        (pool, written): (PoolId, Round),
        actions: &mut Vec<Action>,
    ) {
        let known = (&self.routes, &self.freshness);
        if !self.pools.lend_read(now, known, client, (pool, written), actions) {
            self.want(now, client, (pool, Port::ReadWrite), actions);
        }
    }

    /// Who is asked about the WAL: the primary, and the newest term, and the replicas that serve
    /// reads.
    #[must_use]
    pub fn whom_to_ask(&self) -> Option<(Target, Term, Vec<Target>)> {
        let primary = self.routes.primary.clone()?;
        let replicas = self.routes.replicas.iter().map(|replica| replica.target.clone());
        Some((primary, self.routes.newest_term, replicas.collect()))
    }

    pub(super) fn wal_ends(&mut self, round: Round, member: &MemberName, term: Term, lsn: Lsn) {
        // A primary that is about to hand over, or is not known to lead any more, may still be one,
        // but what it says is not needed.
        if self.routes.primary.is_some() {
            self.freshness.wal_ends(round, member, term, lsn);
        }
    }

    /// Positions on two timelines do not compare.
    pub(super) fn replayed(&mut self, member: MemberName, lsn: Option<Lsn>) {
        let mut replicas = self.routes.replicas.iter();
        let compares = replicas.any(|r| r.target.member == member && r.on_timeline);
        match lsn.filter(|_| compares) {
            Some(lsn) => self.freshness.replayed(member, lsn),
            None => self.freshness.forget(&member),
        }
    }

    pub(super) fn opened(&mut self, now: Millis, server: ServerId, actions: &mut Vec<Action>) {
        let answers = self.freshness.answers();
        self.pools.opened(now, &self.routes, (server, answers), actions);
    }

    pub(super) fn follow_primary(&mut self, view: &ClusterView) {
        let leader = view.leader_name().and_then(|name| view.member(name));
        let site = self.config.site.as_deref();
        self.routes.primary_is_near = leader.is_some_and(|leader| choice::is_near(leader, site));
        self.freshness.follow(self.routes.primary.as_ref(), self.routes.newest_term);
    }
}
