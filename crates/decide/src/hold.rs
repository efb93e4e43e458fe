//! What proxies are asked before a planned stop of the primary, for a hand-over or a restart: to
//! begin no transaction on it any more, and to say when those that are open have ended.
//!
//! The checkpoint that makes the stop short is made before, while clients still work: from the hold
//! on they wait. Whether clients are in a transaction is known from the proxies alone. PostgreSQL's
//! own sessions would show those too that come past the proxies, which nobody holds: they begin the
//! next transaction at once, and waiting for them would only use up the time.
//!
//! A hand-over's hold goes with the leader key. A restart's ends when the same primary is published
//! again, or does not come up.
//!
//! Nothing here waits without a bound, and nothing rests on a hold (I1, I2): a proxy that does not
//! answer, and clients that do not come to an end, only see their connections cut.

use types::{ClusterView, HoldRecord, LocalPostgres, Millis, ProxyRecord, Revision, Term};

use crate::action::Act;
use crate::brain::{Brain, Leadership};
use crate::reason::Reason;

/// How long a proxy has for its answer, from when it can have seen the hold; one that is dead is
/// registered until its lease ends.
const ANSWER: Millis = Millis(300);
/// How long the store may take to show the hold. On a busy machine that is longer than an answer
/// takes, and whoever has not been asked yet cannot have answered.
const WRITE: Millis = Millis(700);

/// The stop that a hold is for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct HeldStop {
    /// For logs, and for clients that are refused.
    pub(crate) why: &'static str,
    /// How long the primary is gone at most, once nothing is waited for.
    pub(crate) lasts: Millis,
}

/// A hold of one stop.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Hold {
    /// The store's revision when it was begun: no two holds have it in common.
    id: u64,
    begun: Millis,
    /// Since when the store has it, as far as this leader sees.
    seen: Option<Millis>,
    /// Nothing is waited for any more.
    over: bool,
}

impl Hold {
    /// Until when this proxy is waited for.
    fn waits_until(&self, proxy: &ProxyRecord, grace: Millis) -> Option<Millis> {
        match proxy.hold {
            Some(id) if id == self.id => (proxy.busy > 0).then(|| self.begun.plus(grace)),
            Some(_) | None => {
                Some(self.seen.map_or(self.begun.plus(WRITE), |seen| seen.plus(ANSWER)))
            }
        }
    }
}

impl Brain {
    /// Whether a planned stop waits for the proxies still. Writes the hold first, where there are
    /// proxies.
    pub(crate) fn waits_for_proxies(
        &mut self,
        now: Millis,
        view: &ClusterView,
        key: Revision,
        stop: HeldStop,
    ) -> bool {
        let grace = self.dynamic.pgherd.switchover_grace;
        if self.leader.hold.is_none() && view.proxies.is_empty() {
            return false;
        }
        let id = u64::try_from(view.revision.0).unwrap_or_default();
        let hold = self.leader.hold.get_or_insert(Hold { id, begun: now, seen: None, over: false });
        let written = view.active_hold().is_some_and(|written| written.value.id == hold.id);
        if written {
            hold.seen.get_or_insert(now);
        }
        let awaited = view.proxies.values().filter_map(|p| hold.waits_until(&p.value, grace));
        let next = awaited.filter(|until| now < *until).min();
        let Some(next) = next.filter(|_| !hold.over) else {
            hold.over = true;
            return false;
        };
        let id = hold.id;
        if !written {
            let until = WRITE.plus(ANSWER).max(grace).plus(stop.lasts);
            let hold = HoldRecord { id, until, why: stop.why.to_owned() };
            self.issue(now, Act::WriteHold { leader_key: key, hold }, Reason::ClientsFinish);
        }
        self.wake_at(next);
        true
    }

    /// Whether clients get time before an operator's restart of this primary. One that is not
    /// published serves none.
    pub(crate) fn clients_finish_first(
        &mut self,
        now: Millis,
        view: &ClusterView,
        leadership: &Leadership,
        lasts: Millis,
    ) -> bool {
        let Leadership::Mine { key, term } = leadership else {
            return false;
        };
        let stop = HeldStop { why: "restart", lasts };
        self.leader.confirmed == Some(*term) && self.waits_for_proxies(now, view, *key, stop)
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
        if self.leader.hold.is_none() || hand_over.stopping {
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

    /// A hold is removed when no planned stop is under way: after one that was given up or is over,
    /// after an agent before this one, and when a write of which nothing was heard arrives late.
    pub(crate) fn remove_stale_hold(
        &mut self,
        now: Millis,
        view: &ClusterView,
        leadership: &Leadership,
    ) {
        if let Leadership::Mine { key, term } = leadership
            && self.leader.handing_over.is_none()
            && !self.is_held_for_restart(*term)
        {
            self.remove_hold(now, view, *key);
        }
    }

    /// Up to the instant at which the restarted primary is published: before, the store may still
    /// show the one that was stopped.
    fn is_held_for_restart(&self, term: Term) -> bool {
        let unpublished =
            self.leader.server_started.is_some() && self.leader.confirmed != Some(term);
        self.restarts_held() || (self.leader.hold.is_some() && unpublished)
    }

    fn remove_hold(&mut self, now: Millis, view: &ClusterView, key: Revision) {
        self.leader.hold = None;
        if view.active_hold().is_some() {
            let act = Act::RemoveHold { leader_key: key };
            self.issue(now, act, Reason::NothingToHoldFor);
        }
    }
}
