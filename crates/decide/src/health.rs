//! Hung, not dead: what follows from a PostgreSQL that lives and does not serve, or cannot write.
//!
//! The lease says that the agent lives. It is renewed only while PostgreSQL serves new clients and
//! its volumes take writes; otherwise a primary that nobody can use would lead for ever. Trouble
//! counts once it has lasted for `retry_timeout`: then a leader hands over, if anybody can take
//! over, and a standby is no candidate.

use types::{
    ClusterView, ControlState, Fault, LocalPostgres, Millis, Process, Revision, Role, SyncState,
    Term, Trouble,
};

use crate::action::{Act, Lane};
use crate::brain::{Brain, Leadership, control_of};
use crate::reason::Reason;

/// A leadership that was won here, and what it took the place of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Won {
    pub(crate) term: Term,
    /// `/sync` before the win, if it was active.
    pub(crate) former: Option<SyncState>,
}

/// How a leader in trouble gives way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Way {
    /// At once: what hangs cannot stop in an orderly way.
    AtOnce,
    /// As in a planned switchover: whatever streams is handed over with it.
    InOrder,
}

const fn way_of(fault: &Fault) -> Way {
    match fault {
        Fault::NoAnswer
        | Fault::DiskHangs
        | Fault::DiskFails(_)
        | Fault::PromotionFails
        | Fault::StartFails
        | Fault::NoGuard => Way::AtOnce,
        Fault::NoConnectionLeft | Fault::DiskFull | Fault::NoWatchdog => Way::InOrder,
    }
}

impl Brain {
    /// Everything that is wrong here now, however short.
    fn troubles(&self, local: &LocalPostgres) -> Vec<Trouble> {
        let health = &local.health;
        let mut troubles: Vec<Trouble> =
            health.write.iter().chain(&health.watchdog).cloned().collect();
        match &local.process {
            // One that starts or stops serves nobody, which is no trouble.
            Process::Stopped | Process::Orphaned | Process::NotReady { .. } => {}
            Process::Silent { since } => {
                troubles.push(Trouble { since: *since, fault: Fault::NoAnswer });
                troubles.extend(health.connection.clone());
            }
            Process::Running(_) => troubles.extend(health.connection.clone()),
        }
        troubles
    }

    /// Trouble that has lasted for `retry_timeout`, the gravest first.
    fn lasting_trouble(&self, now: Millis, local: &LocalPostgres) -> Option<Trouble> {
        let lasting = |trouble: &Trouble| now >= trouble.since.plus(self.dynamic.retry_timeout);
        let all = self.troubles(local).into_iter().filter(lasting);
        all.min_by_key(|trouble| (way_of(&trouble.fault), trouble.since))
    }

    /// Why this member should not lead: lasting trouble, or that it has just given way.
    pub(crate) fn unfit(&self, now: Millis, local: &LocalPostgres) -> Option<Fault> {
        let gave_way = self.gave_way.clone().filter(|(_, at)| now < at.plus(self.recovers_after()));
        let lasting = self.lasting_trouble(now, local).map(|trouble| trouble.fault);
        lasting.or(gave_way.map(|(fault, _)| fault))
    }

    /// Whoever gave way leaves the others so long to lead, if nobody does before.
    fn recovers_after(&self) -> Millis {
        Millis(2 * self.dynamic.ttl.0)
    }

    /// Wakes up when trouble becomes a lasting one, or is forgotten.
    pub(crate) fn watch_trouble(&mut self, now: Millis, local: &LocalPostgres) {
        for trouble in self.troubles(local) {
            let at = trouble.since.plus(self.dynamic.retry_timeout);
            if now < at {
                self.wake_at(at);
            }
        }
        if let Some((_, at)) = self.gave_way {
            let over = at.plus(self.recovers_after());
            if now < over {
                self.wake_at(over);
            } else {
                self.gave_way = None;
            }
        }
    }

    /// Whether the lease is not kept alive just now: a trial has not succeeded, and if that lasts,
    /// the lease may have to run out. A hiccup costs it a few seconds of its length.
    pub(crate) fn holds_back(&self) -> bool {
        let (Some(view), Some(local)) = (&self.view, &self.local) else {
            return false;
        };
        let hangs = self.troubles(local).iter().any(|t| way_of(&t.fault) == Way::AtOnce);
        let would_hand_over = hangs && !self.dynamic.pause && self.may_be_primary(local);
        would_hand_over && !view.successors(&self.node.name).is_empty()
    }

    /// What a leader in lasting trouble does. True if nothing else should be done.
    pub(crate) fn gives_way(
        &mut self,
        now: Millis,
        view: &ClusterView,
        local: &LocalPostgres,
        (key, term): (Revision, Term),
    ) -> bool {
        if let Some(fault) = self.leader.unwell.clone()
            && self.may_be_primary(local)
        {
            self.stop_now(now, local, Reason::Unwell { fault, since: now });
            return true;
        }
        let own = self.cannot_become_primary(now, local);
        let Some(trouble) = own.or_else(|| self.lasting_trouble(now, local)) else {
            return false;
        };
        let why = Reason::Unwell { fault: trouble.fault.clone(), since: trouble.since };
        if !self.may_be_primary(local) {
            if self.leader.handing_over.is_some() || has_been_primary(local) {
                return false;
            }
            return self.give_back(now, view, local, (key, term), why);
        }
        if view.successors(&self.node.name).is_empty() || self.leader.handing_over.is_some() {
            return false;
        }
        match way_of(&trouble.fault) {
            Way::InOrder if self.is_damped(now) => false,
            Way::InOrder => {
                self.gave_way = Some((trouble.fault, now));
                let mine = Leadership::Mine { key, term };
                self.renew_if_due(now, &mine, None);
                self.hand_over_and_release(now, view, local, (key, term), None, why);
                true
            }
            Way::AtOnce => {
                // From here on the lease is not kept alive: while anything of the instance is left
                // it may still acknowledge, so the leader key is released only once it is dead, and
                // runs out otherwise (I1).
                self.gave_way = Some((trouble.fault.clone(), now));
                self.leader.unwell = Some(trouble.fault);
                self.stop_now(now, local, why);
                true
            }
        }
    }

    /// What keeps a winner from its promotion.
    fn cannot_become_primary(&mut self, now: Millis, local: &LocalPostgres) -> Option<Trouble> {
        if let Some((Fault::PromotionFails, since)) = &self.gave_way {
            return Some(Trouble { since: *since, fault: Fault::PromotionFails });
        }
        if self.may_be_primary(local) || self.guard.is_some() {
            return None;
        }
        let since = self.leader.led_since.unwrap_or(now);
        let patience = since.plus(self.dynamic.retry_timeout);
        if now < patience {
            self.wake_at(patience);
            return None;
        }
        self.gave_way = Some((Fault::NoGuard, now));
        Some(Trouble { since, fault: Fault::NoGuard })
    }

    /// A winner that cannot be promoted gives the leadership back as it found it: nothing was ever
    /// written in its term, so the voters of the term before still hold what was acknowledged (I2).
    fn give_back(
        &mut self,
        now: Millis,
        view: &ClusterView,
        local: &LocalPostgres,
        (key, term): (Revision, Term),
        why: Reason,
    ) -> bool {
        let Some(won) = self.won.clone().filter(|won| won.term == term) else {
            return false;
        };
        if self.lanes.running(Lane::Data).is_some() || !self.surely_in_recovery(now, local, &why) {
            return true;
        }
        if let Some(former) = won.former
            && view.sync.as_ref().map(|s| &s.value) != Some(&former)
        {
            let expected = view.sync.as_ref().map(|s| s.mod_revision);
            let act = Act::WriteSync { leader_key: key, expected, sync: Some(former) };
            self.issue(now, act, why);
            return true;
        }
        self.release(now, key, None, why);
        true
    }

    /// Whether nothing can have been written here since the copy was a standby's. A server that was
    /// told to promote may do so at any moment, and is stopped first.
    fn surely_in_recovery(&mut self, now: Millis, local: &LocalPostgres, why: &Reason) -> bool {
        match &local.process {
            Process::Running(running) => match &running.role {
                Role::Standby(_) if !self.leader.told_to_promote => true,
                Role::Standby(_) | Role::Primary(_) => {
                    self.stop_now(now, local, why.clone());
                    false
                }
            },
            Process::Stopped => !has_been_primary(local),
            Process::Orphaned | Process::NotReady { .. } | Process::Silent { .. } => {
                self.stop_now(now, local, why.clone());
                false
            }
        }
    }

    /// A promotion of ours gets the time that a start gets. One that an agent before this one may
    /// have begun is at its last step, as its files show the new timeline. What does not end by
    /// then is rather a former primary, brought up in recovery when its agent had given up. It is
    /// stopped first, as a promotion could still end (I1).
    pub(crate) fn await_promotion(&mut self, now: Millis, local: &LocalPostgres, key: Revision) {
        let ours = self.leader.told_to_promote;
        let since = *self.leader.led_since.get_or_insert(now);
        let limit = if ours { self.dynamic.primary_start_timeout } else { self.dynamic.loop_wait };
        let patience = since.plus(limit);
        if now < patience {
            self.wake_at(patience);
        } else if ours {
            self.release(now, key, None, Reason::CannotLead);
        } else {
            self.stop_now(now, local, Reason::CannotLead);
        }
    }

    /// `failover_min_interval`: a leadership that has just begun is not given up for what a restart
    /// in place may cure.
    pub(crate) fn is_damped(&mut self, now: Millis) -> bool {
        let since = *self.leader.led_since.get_or_insert(now);
        let until = since.plus(self.dynamic.pgherd.failover_min_interval);
        if now < until {
            self.wake_at(until);
        }
        now < until
    }
}

/// Whether a stopped copy was written to since it was a standby's, or may have been. PostgreSQL
/// changes this before any session can write.
pub(crate) fn has_been_primary(local: &LocalPostgres) -> bool {
    let recovering = control_of(local).is_some_and(|control| {
        matches!(control.state, ControlState::InArchiveRecovery | ControlState::ShutDownInRecovery)
    });
    local.process == Process::Stopped && !recovering
}
