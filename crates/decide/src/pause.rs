//! Maintenance mode: nothing is started, stopped, promoted or demoted, but what an operator asks
//! for: a restart, a new copy, a hand-over to a named candidate. Who leads goes on leading; a
//! leader key that has no primary behind it is given away.

use types::{ClusterView, LocalPostgres, Millis, Process, Revision, Role, Standby, Term};

use crate::action::{Act, StartAs};
use crate::brain::{Brain, Leadership, control_of};
use crate::errand::Answer;
use crate::reason::Reason;

impl Brain {
    /// One evaluation in maintenance mode.
    pub(crate) fn paused(
        &mut self,
        now: Millis,
        view: &ClusterView,
        local: &LocalPostgres,
        leadership: &Leadership,
    ) {
        match leadership {
            Leadership::Mine { key, term } => self.lead_paused(now, view, local, (*key, *term)),
            Leadership::Other { name, term } => {
                let standby = match &local.process {
                    Process::Running(running) => matches!(running.role, Role::Standby(_)),
                    _ => false,
                };
                if standby || self.comes_up_in_pause(local) {
                    self.follow(now, view, local, name, *term);
                }
            }
            Leadership::Vacant => {
                if !self.retake(now, view, local) {
                    self.unlocked_paused(now, view, local);
                }
            }
        }
    }

    /// Whether PostgreSQL is down here and an operator wants it up again.
    fn comes_up_in_pause(&self, local: &LocalPostgres) -> bool {
        let asked = self.starts_again() || self.copies_anew() || self.errands.handed_over();
        asked && local.process == Process::Stopped
    }

    /// Whether a primary comes up here in maintenance mode: one that an operator restarts, or the
    /// winner of an election that an operator asked for. It is guarded like any other (I1).
    pub(crate) fn becomes_primary_in_pause(&self, local: &LocalPostgres) -> bool {
        let standby = match &local.process {
            Process::Running(running) => matches!(running.role, Role::Standby(_)),
            _ => false,
        };
        self.is_down_for_errand() || (standby && self.has_won())
    }

    /// The leader key that is ours was won by this agent in an election.
    fn has_won(&self) -> bool {
        let led = match self.leadership() {
            Some(Leadership::Mine { term, .. }) => Some(term),
            _ => None,
        };
        led.is_some() && self.won.as_ref().map(|won| won.term) == led
    }

    fn lead_paused(
        &mut self,
        now: Millis,
        view: &ClusterView,
        local: &LocalPostgres,
        (key, term): (Revision, Term),
    ) {
        let mine = Leadership::Mine { key, term };
        if self.leader.releasing == Some(key) {
            if !self.may_be_primary(local) {
                self.release(now, key, None, Reason::CannotLead);
            }
            return;
        }
        if let Some(hand_over) = self.leader.handing_over.clone() {
            self.renew_if_due(now, &mine, None);
            let (candidate, why) = (hand_over.candidate, hand_over.why);
            self.hand_over_and_release(now, view, local, (key, term), candidate, why);
            return;
        }
        match &local.process {
            Process::Running(running) => match &running.role {
                Role::Primary(primary) => {
                    let status = self.status(view, local, primary);
                    self.renew_if_due(now, &mine, Some(status));
                    // Without a claim nothing is decided for the cluster (I4).
                    if self.claim.holds(now, self.node.stop_margin) {
                        self.duties(now, view, local, primary, key, term);
                    }
                }
                Role::Standby(standby) => {
                    self.standby_paused(now, view, local, standby, (key, term));
                }
            },
            Process::Stopped if self.is_down_for_errand() => {
                self.renew_if_due(now, &mine, None);
                if self.starts_again() {
                    self.lead_stopped(now, view, local, key, term);
                }
            }
            Process::Stopped => self.release(now, key, None, Reason::CannotLead),
            // Processes that are left may still commit.
            Process::Orphaned => {}
            Process::NotReady { .. } | Process::Silent { .. } => {
                self.renew_if_due(now, &mine, None);
            }
        }
    }

    /// Who has won an election ends it; else a leader key without a primary behind it goes.
    fn standby_paused(
        &mut self,
        now: Millis,
        view: &ClusterView,
        local: &LocalPostgres,
        standby: &Standby,
        (key, term): (Revision, Term),
    ) {
        if self.has_won() {
            self.renew_if_due(now, &Leadership::Mine { key, term }, None);
            self.promote(now, view, local, standby, key, term);
        } else {
            self.release(now, key, None, Reason::CannotLead);
        }
    }

    /// Without a leader: an election takes place if an operator has named who shall lead.
    fn unlocked_paused(&mut self, now: Millis, view: &ClusterView, local: &LocalPostgres) {
        let named =
            view.failover_request().is_some_and(|r| r.member.is_some() && r.scheduled_at.is_none());
        let comes_up = self.comes_up_in_pause(local);
        match &local.process {
            Process::Running(running) if named && matches!(running.role, Role::Standby(_)) => {
                self.unlocked(now, view, local);
            }
            Process::Stopped if named && comes_up => self.unlocked(now, view, local),
            Process::Stopped if comes_up => self.start_unled(now, local),
            Process::Running(_)
            | Process::Stopped
            | Process::Orphaned
            | Process::NotReady { .. }
            | Process::Silent { .. } => {}
        }
    }

    /// A standby comes up as one; nobody becomes writable without the leader key (I1).
    fn start_unled(&mut self, now: Millis, local: &LocalPostgres) {
        if control_of(local).is_some_and(|control| control.standby_signal) {
            let act = Act::Start { start_as: StartAs::Standby(None), term: None };
            self.issue(now, act, Reason::AskedByOperator);
        } else if self.starts_again() {
            self.end_errand(Answer::RestartFailed);
        }
    }
}
