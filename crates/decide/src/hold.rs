//! What proxies are asked before a planned hand-over: to begin no transaction on this primary any
//! more, and to say when those that are open have ended.
//!
//! The checkpoint that makes the stop short is made before, while clients still work: from the hold
//! on they wait. Whether clients are in a transaction is known from the proxies alone. PostgreSQL's
//! own sessions would show those too that come past the proxies, which nobody holds: they begin the
//! next transaction at once, and waiting for them would only use up the time.
//!
//! Nothing here waits without a bound, and nothing rests on a hold (I1, I2): a proxy that does not
//! answer, and clients that do not come to an end, only see their connections cut.

use types::{ClusterView, HoldRecord, LocalPostgres, Millis, ProxyRecord, Revision};

use crate::action::Act;
use crate::brain::{Brain, Leadership};
use crate::reason::Reason;

/// How long a proxy has for its answer; one that is dead is registered until its lease ends.
const ANSWER: Millis = Millis(300);

/// A hold of one hand-over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Hold {
    /// The store's revision when it was begun: no two holds have it in common.
    id: u64,
    begun: Millis,
    /// Nothing is waited for any more.
    over: bool,
}

impl Hold {
    /// Until when this proxy is waited for.
    fn waits_until(&self, proxy: &ProxyRecord, grace: Millis) -> Option<Millis> {
        match proxy.hold {
            Some(id) if id == self.id => (proxy.busy > 0).then(|| self.begun.plus(grace)),
            Some(_) | None => Some(self.begun.plus(ANSWER)),
        }
    }
}

impl Brain {
    /// Whether a hand-over waits for the proxies still. Writes the hold first, where there are
    /// proxies. `limit` is for the stop that follows.
    pub(crate) fn waits_for_proxies(
        &mut self,
        now: Millis,
        view: &ClusterView,
        key: Revision,
        (why, limit): (&Reason, Millis),
    ) -> bool {
        let grace = self.dynamic.pgherd.switchover_grace;
        let planned = matches!(why, Reason::Requested { .. } | Reason::ShuttingDown);
        let Some(hand_over) = self.leader.handing_over.as_mut().filter(|_| planned) else {
            return false;
        };
        if hand_over.hold.is_none() && view.proxies.is_empty() {
            return false;
        }
        let id = u64::try_from(view.revision.0).unwrap_or_default();
        let hold = hand_over.hold.get_or_insert(Hold { id, begun: now, over: false });
        let awaited = view.proxies.values().filter_map(|p| hold.waits_until(&p.value, grace));
        let next = awaited.filter(|until| now < *until).min();
        let Some(next) = next.filter(|_| !hold.over) else {
            hold.over = true;
            return false;
        };
        let id = hold.id;
        if view.active_hold().is_none_or(|written| written.value.id != id) {
            let until = ANSWER.max(grace).plus(limit);
            let hold = HoldRecord { id, until, why: "switchover".to_owned() };
            self.issue(now, Act::WriteHold { leader_key: key, hold }, Reason::ClientsFinish);
        }
        self.wake_at(next);
        true
    }

    /// Ends a hand-over whose reason has gone while clients came to their ends: the operator took
    /// the request back or named another member, the candidate is not well any more, or PostgreSQL
    /// died here. What is asked for then is looked at anew.
    pub(crate) fn gives_up_hand_over(
        &mut self,
        now: Millis,
        view: &ClusterView,
        local: &LocalPostgres,
        key: Revision,
    ) -> bool {
        let Some(hand_over) = &self.leader.handing_over else {
            return false;
        };
        let Reason::Requested { candidate: Some(candidate) } = &hand_over.why else {
            return false;
        };
        if hand_over.hold.is_none() || hand_over.stopping {
            return false;
        }
        let asked = view.failover_request();
        let same = asked.is_some_and(|r| r.member.as_ref().is_none_or(|m| m == candidate));
        if same && self.candidates(view, local).contains(candidate) {
            return false;
        }
        self.leader.handing_over = None;
        self.remove_hold(now, view, key);
        self.wake_at(now);
        true
    }

    /// A hold is removed when no hand-over is under way: after one that was given up, after an
    /// agent before this one, and when a write of which nothing was heard arrives late.
    pub(crate) fn remove_stale_hold(
        &mut self,
        now: Millis,
        view: &ClusterView,
        leadership: &Leadership,
    ) {
        if let Leadership::Mine { key, .. } = leadership
            && self.leader.handing_over.is_none()
        {
            self.remove_hold(now, view, *key);
        }
    }

    fn remove_hold(&mut self, now: Millis, view: &ClusterView, key: Revision) {
        if view.active_hold().is_some() {
            let act = Act::RemoveHold { leader_key: key };
            self.issue(now, act, Reason::NothingToHoldFor);
        }
    }
}
