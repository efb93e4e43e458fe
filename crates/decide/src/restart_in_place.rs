//! The leader's PostgreSQL is down, or comes up: whether it is started in place under the leader
//! key that it holds, or another member shall lead.

use std::collections::BTreeSet;

use types::{
    ClusterView, ControlState, DataDir, Fault, LocalPostgres, MemberName, Millis, Process,
    Revision, Term,
};

use crate::action::{Act, Lane, StartAs};
use crate::brain::Brain;
use crate::reason::Reason;

impl Brain {
    /// Our PostgreSQL is down while the leader key is ours.
    pub(crate) fn lead_stopped(
        &mut self,
        now: Millis,
        view: &ClusterView,
        local: &LocalPostgres,
        key: Revision,
        term: Term,
    ) {
        let DataDir::Present(control) = &local.data_dir else {
            self.release(now, key, None, Reason::CannotLead);
            return;
        };
        if local.durable.in_progress.is_some() {
            self.release(now, key, None, Reason::CannotLead);
            return;
        }
        if self.lanes.running(Lane::Data).is_some() {
            return;
        }
        if let Some(fault) = self.leader.unwell.clone() {
            let why = Reason::Unwell { fault, since: now };
            self.release(now, key, None, why);
            return;
        }
        // Without a synchronous candidate a failover could lose commits, which a restart does not.
        let candidates = match view.active_sync() {
            Some(_) if !self.starts_again() => view.successors(&self.node.name),
            Some(_) | None => BTreeSet::new(),
        };
        // Shortly after a failover one restart in place is tried first.
        let in_place = self.leader.starting_since.is_none() && self.is_damped(now);
        let why = match candidates.is_empty() {
            _ if self.starts_again() => Reason::AskedByOperator,
            true => Reason::NoCandidate,
            false => Reason::Damped,
        };
        if !candidates.is_empty() && !in_place {
            let status = view.status.as_ref().map(|s| s.value.clone());
            self.release(now, key, status, Reason::PostgresDown { candidates });
            return;
        }
        // A limit of nothing asks for another leader at once, if one can be had.
        let crashed = control.state != ControlState::ShutDown && !self.starts_again();
        let at_once = crashed && self.dynamic.primary_start_timeout == Millis::ZERO;
        if (at_once && self.can_fail_over(view)) || self.start_timed_out(now, view) {
            self.give_up_start(now, view, key, Reason::StartTimedOut);
            return;
        }
        if self.leader.start_failed && !view.successors(&self.node.name).is_empty() {
            self.give_up_start(now, view, key, Reason::StartFailed);
            return;
        }
        let start_as =
            if control.standby_signal { StartAs::Standby(None) } else { StartAs::Primary };
        let writable = start_as == StartAs::Primary;
        if writable && !(self.may_write(now) && self.may_start_again()) {
            if self.dcs_is_silent() && !self.claim.holds(now, self.node.stop_margin) {
                self.release(now, key, None, Reason::DcsDoesNotAnswer);
            }
            return;
        }
        let act = Act::Start { start_as, term: writable.then_some(term) };
        if self.issue_if_free(now, act, why) {
            self.leader.starting_since.get_or_insert(now);
        }
    }

    /// Another member's turn. Among equals it is chosen before this one, which has just failed.
    fn give_up_start(&mut self, now: Millis, view: &ClusterView, key: Revision, why: Reason) {
        self.gave_way = Some((Fault::StartFails, now));
        let status = view.status.as_ref().map(|s| s.value.clone());
        self.release(now, key, status, why);
    }

    /// Our PostgreSQL comes up, or does not answer.
    pub(crate) fn lead_starting(
        &mut self,
        now: Millis,
        view: &ClusterView,
        local: &LocalPostgres,
        key: Revision,
    ) {
        let since = *self.leader.starting_since.get_or_insert(now);
        self.wake_at(since.plus(self.start_limit()).plus(Millis(1)));
        if self.start_timed_out(now, view) {
            self.stop_now(now, local, Reason::StartTimedOut);
            if local.process == Process::Stopped {
                self.give_up_start(now, view, key, Reason::StartTimedOut);
            }
        }
    }

    fn start_limit(&self) -> Millis {
        self.leader.start_limit.unwrap_or(self.dynamic.primary_start_timeout)
    }

    fn start_timed_out(&self, now: Millis, view: &ClusterView) -> bool {
        let limit = self.start_limit();
        limit > Millis::ZERO
            && self.can_fail_over(view)
            && self.leader.starting_since.is_some_and(|since| now.since(since) > limit)
    }

    /// Whether another member could lead.
    fn can_fail_over(&self, view: &ClusterView) -> bool {
        view.members.iter().any(|(name, member)| {
            *name != self.node.name
                && member.value.tags.may_lead()
                && member.value.role != "uninitialized"
                && self.may_be_chosen(view, name)
        })
    }

    /// With an active `/sync` only its voters can be elected (I2).
    fn may_be_chosen(&self, view: &ClusterView, name: &MemberName) -> bool {
        view.active_sync().is_none_or(|sync| sync.value.voters.contains(name))
    }
}
