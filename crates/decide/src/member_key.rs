//! Our member key: what others read of us.

use std::collections::BTreeSet;

use types::{ClusterView, DataDir, LocalPostgres, Lowered, Member, Millis, Process, Role};

use crate::action::{Act, Lane, Leading};
use crate::brain::{Brain, Leadership};
use crate::reason::Reason;

/// More places with a lowered `synchronous_commit` are not named in the member key.
const LOWERED_PLACES_MAX: usize = 20;

/// When the member key was last written, and with what.
#[derive(Debug, Clone, Default)]
pub(crate) struct MemberClock {
    written: Option<(Member, Millis)>,
}

impl MemberClock {
    pub(crate) fn last(&self) -> Option<&Member> {
        self.written.as_ref().map(|(member, _)| member)
    }
}

impl Brain {
    /// Brings the member key up to date when anything but positions changed, else once per
    /// `loop_wait`; the lease is kept alive by the same action.
    pub(crate) fn touch_member(
        &mut self,
        now: Millis,
        view: &ClusterView,
        local: &LocalPostgres,
        leadership: &Leadership,
    ) {
        let leads = matches!(leadership, Leadership::Mine { .. });
        if leads && (self.leader.unwell.is_some() || self.holds_back()) {
            // The leader key hangs on the same lease, which may have to end.
            return;
        }
        let member = self.member_value(now, local, leadership);
        let there = view.members.contains_key(&self.node.name);
        if let Some((last, at)) = &self.member_clock.written {
            let due = at.plus(self.lease_period());
            let same = without_positions(last) == without_positions(&member);
            if there && same && now < due {
                self.wake_at(due);
                return;
            }
        }
        let act = Act::TouchMember { member: Box::new(member.clone()) };
        if self.issue_if_free(now, act, Reason::MemberChanged) {
            self.member_clock.written = Some((member, now));
        }
    }

    /// After a change of `ttl` everything of ours moves to a lease of that length. A shorter one
    /// is taken when no claim is left that the one before had allowed: the new lease ends a `ttl`
    /// after this was issued at the earliest, and nothing is writable then under an older promise
    /// (I1).
    pub(crate) fn move_lease(
        &mut self,
        now: Millis,
        view: &ClusterView,
        local: &LocalPostgres,
        leadership: &Leadership,
    ) {
        let ttl = self.dynamic.ttl;
        let known = self.lease_ttl == Millis::ZERO || self.config_revision.is_none();
        let right = self.lease_ttl == ttl || self.lease_asked == Some(ttl);
        let written = view.members.contains_key(&self.node.name);
        let busy = [Lane::Lease, Lane::Dcs].iter().any(|l| self.lanes.running(*l).is_some());
        if known || right || !written || busy || view.fence.is_some() {
            return;
        }
        let leading = match leadership {
            Leadership::Mine { key, term } => {
                // A hold counts under the lease on which it was written.
                let steady = self.leader.handing_over.is_none()
                    && self.leader.hold.is_none()
                    && self.leader.unwell.is_none()
                    && self.leader.releasing.is_none()
                    && !self.holds_back();
                let term = view.term.as_ref().filter(|record| record.value.term == *term);
                match term.filter(|_| steady && self.claim.fits(ttl, self.guard)) {
                    Some(term) => Some(Leading { leader_key: *key, term: term.value.clone() }),
                    None => return,
                }
            }
            Leadership::Other { .. } | Leadership::Vacant => None,
        };
        let member = self.member_value(now, local, leadership);
        let act = Act::MoveLease { ttl, member: Box::new(member.clone()), leading };
        if self.issue_if_free(now, act, Reason::TtlChanged { ttl }) {
            self.member_clock.written = Some((member, now));
        }
    }

    fn member_value(&self, now: Millis, local: &LocalPostgres, leadership: &Leadership) -> Member {
        let mut member = self.node.member.clone();
        member.tags = self.node.tags.clone();
        if self.is_off_duty() {
            // The leader then does without our confirmations, as if the tags said so.
            member.tags = member.tags.without_sync();
        }
        member.scheduled_restart = self.errands.scheduled().cloned();
        member.pause = self.dynamic.pause;
        member.state = self.state_text(local).to_owned();
        "replica".clone_into(&mut member.role);
        if local.data_dir == DataDir::Empty {
            "uninitialized".clone_into(&mut member.role);
        }
        member.trouble = self.unfit(now, local).map(|fault| fault.to_string());
        if let Process::NotReady { recovery, .. } = &local.process {
            member.recovery.clone_from(recovery);
        }
        member.term = (local.durable.term.0 > 0).then_some(local.durable.term);
        let Process::Running(running) = &local.process else {
            return member;
        };
        member.pending_restart = !running.server.pending_restart.is_empty();
        member.pending_restart_reason.clone_from(&running.server.pending_restart);
        match &running.role {
            Role::Primary(primary) => {
                let published = match leadership {
                    Leadership::Mine { term, .. } => {
                        member.term = Some(*term);
                        self.leader.confirmed == Some(*term)
                    }
                    Leadership::Vacant => self.stays_published(&running.server.started),
                    Leadership::Other { .. } => false,
                };
                let role = if published { "primary" } else { "promoted" };
                role.clone_into(&mut member.role);
                member.lowered = lowered_places(&running.server.lowered);
                member.xlog_location = Some(primary.flush);
                member.timeline = Some(primary.timeline);
                member.checkpoint_after_promote = (!primary.checkpoint_done).then_some(false);
            }
            Role::Standby(standby) => {
                let leads = matches!(leadership, Leadership::Mine { .. });
                if leads && self.dynamic.standby_cluster.is_some() {
                    "standby_leader".clone_into(&mut member.role);
                }
                member.xlog_location = Some(standby.received.max(standby.replayed));
                member.receive_lsn = Some(standby.received);
                member.replay_lsn = Some(standby.replayed);
                member.timeline = (standby.timeline.0 > 0).then_some(standby.timeline);
                let streams = standby.receiver.as_ref().is_some_and(|r| r.streaming);
                let state = match (streams, standby.restores) {
                    (true, _) => Some("streaming"),
                    (false, true) => Some("in archive recovery"),
                    (false, false) => None,
                };
                member.replication_state = state.map(str::to_owned);
                // A standby that streams and has nothing left to replay is up to date.
                let lag = standby.replay_lag.map(|lag| lag.0 / 1000);
                member.replay_lag_seconds = lag.or(streams.then_some(0));
            }
        }
        member
    }

    /// The state text of Patroni.
    fn state_text(&self, local: &LocalPostgres) -> &'static str {
        if let Some(state) = self.errand_state() {
            return state;
        }
        match self.lanes.running(Lane::Data) {
            Some(Act::Initdb) if self.bootstraps_by_command() => {
                return "running custom bootstrap script";
            }
            Some(Act::Initdb) => return "initializing new cluster",
            Some(Act::Clone { .. } | Act::Restore) => return "creating replica",
            Some(Act::Stop { .. } | Act::StopForHandOver { .. }) => return "stopping",
            _ if self.bootstrap_failed && self.bootstraps_by_command() => {
                return "custom bootstrap failed";
            }
            _ if self.bootstrap_failed => return "initdb failed",
            _ => {}
        }
        match &local.process {
            Process::Running(_) => "running",
            Process::NotReady { .. } => "starting",
            Process::Silent { .. } => "unknown",
            Process::Orphaned => "crashed",
            Process::Stopped => "stopped",
        }
    }

    fn bootstraps_by_command(&self) -> bool {
        self.local_settings.as_ref().is_some_and(|local| local.bootstrap.custom.is_some())
    }
}

/// The first places, and how many more there are.
fn lowered_places(lowered: &BTreeSet<Lowered>) -> Vec<String> {
    let mut places: Vec<String> =
        lowered.iter().take(LOWERED_PLACES_MAX).map(ToString::to_string).collect();
    let more = lowered.len() - places.len();
    if more > 0 {
        places.push(format!("{more} more"));
    }
    places
}

fn without_positions(member: &Member) -> Member {
    Member {
        xlog_location: None,
        receive_lsn: None,
        replay_lsn: None,
        replay_lag_seconds: None,
        recovery: None,
        ..member.clone()
    }
}
