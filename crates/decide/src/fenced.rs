//! An election while the leader key is still there: a suspected leader is deposed by fencing it, a
//! leader that lives voids what is open against it, or steps down.

use types::{
    ClusterView, Fence, LocalPostgres, MemberName, Millis, Primary, Process, Revision, Role,
    Versioned,
};

use crate::action::Act;
use crate::brain::Brain;
use crate::election::{Move, binds};
use crate::reason::Reason;
use crate::strangers::streaming_members;

impl Brain {
    /// Takes part in an election against the present leader, if one is due or open. True while we
    /// do: nothing else is done about the upstream then.
    pub(crate) fn depose(
        &mut self,
        now: Millis,
        view: &ClusterView,
        local: &LocalPostgres,
    ) -> bool {
        let accused = self.accused(now, view);
        let against = view.fence.as_ref().and_then(|f| f.value.leader());
        let due = accused.is_some_and(|a| (a.by_us && a.by_enough) || against == Some(a.key));
        if !due || !self.may_elect(now, view, local) {
            return false;
        }
        !matches!(self.vote(now, view, local), Move::Abstain(_))
    }

    /// Whether our durable pledge keeps us from this leader.
    pub(crate) fn is_bound(&self, view: &ClusterView, local: &LocalPostgres) -> bool {
        let (Some(pledge), Some(term)) = (&local.durable.pledge, view.leader_term()) else {
            return false;
        };
        binds(pledge, term, view.fence.as_ref().map(|f| &f.value))
    }

    /// What a leader does about an open fence: one that is not against it is stale. True if we step
    /// down.
    pub(crate) fn answer_fence(
        &mut self,
        now: Millis,
        view: &ClusterView,
        local: &LocalPostgres,
        key: Revision,
    ) -> bool {
        let Some(fence) = &view.fence else {
            return false;
        };
        if fence.value.leader() != Some(key) {
            self.issue(now, Act::VoidFence { fence: fence.mod_revision }, Reason::StaleFence);
            return false;
        }
        let serves = match &local.process {
            Process::Running(running) => match &running.role {
                Role::Primary(primary) => self.has_voters_left(now, view, primary, fence),
                Role::Standby(_) => false,
            },
            Process::Stopped
            | Process::Orphaned
            | Process::NotReady { .. }
            | Process::Silent { .. } => false,
        };
        if serves && self.claim.holds(now, self.node.stop_margin) {
            self.issue(now, Act::VoidFence { fence: fence.mod_revision }, Reason::StillLeads);
            return false;
        }
        let why = Reason::Fenced { fence: fence.value.id.clone() };
        if self.may_be_primary(local) {
            self.stop_now(now, local, why);
        } else {
            self.release(now, key, None, why);
        }
        true
    }

    /// Whether as many voters as a commit waits for have not pledged, stream, and are heard.
    fn has_voters_left(
        &self,
        now: Millis,
        view: &ClusterView,
        primary: &Primary,
        fence: &Versioned<Fence>,
    ) -> bool {
        let pledged = |name: &MemberName| {
            view.pledges.get(name).is_some_and(|p| p.value.fence == fence.value.id)
        };
        let voters = view.active_sync().map(|s| &s.value.voters);
        let left = streaming_members(primary)
            .map(|replica| MemberName::from(replica.name.as_str()))
            .filter(|name| voters.is_some_and(|voters| voters.contains(name)))
            .filter(|name| !pledged(name) && self.hears(now, name))
            .count();
        left >= primary.sync.number.max(1)
    }
}
