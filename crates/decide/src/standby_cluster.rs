//! A standby cluster: its leader follows a node outside, and is never promoted; the others follow
//! the leader (as Patroni 4.1 has it). To become a cluster of its own it goes through an election
//! like any other, so there is one way to be promoted.

use config::StandbyCluster;
use types::{
    ClusterView, ControlState, DataDir, LocalPostgres, MemberName, Millis, Process, Revision, Role,
    Standby, Status, Term,
};

use crate::action::Act;
use crate::brain::Brain;
use crate::follower::Leader;
use crate::reason::Reason;

impl Brain {
    /// One evaluation with the leader key of a standby cluster in our hands.
    pub(crate) fn lead_standby_cluster(
        &mut self,
        now: Millis,
        view: &ClusterView,
        local: &LocalPostgres,
        (key, term): (Revision, Term),
        section: &StandbyCluster,
    ) {
        let remote = Leader::remote(section.remote.clone(), term);
        match &local.process {
            Process::Orphaned => {}
            Process::NotReady { .. } | Process::Silent { .. } => {
                self.lead_starting(now, view, local, key);
            }
            Process::Stopped => self.follow_remote_stopped(now, view, local, key, &remote),
            Process::Running(running) => match &running.role {
                // The section was added to a cluster of its own.
                Role::Primary(_) => {
                    self.leader.demoted_here = true;
                    self.stop_fast(now, Reason::StandbyCluster);
                }
                Role::Standby(standby) => {
                    self.leader.demoted_here = false;
                    if !self.standby_duties(now, view, key) {
                        self.rejoin_standby(now, view, local, standby, &remote);
                    }
                }
            },
        }
    }

    fn follow_remote_stopped(
        &mut self,
        now: Millis,
        view: &ClusterView,
        local: &LocalPostgres,
        key: Revision,
        remote: &Leader,
    ) {
        let DataDir::Present(control) = &local.data_dir else {
            self.release(now, key, None, Reason::CannotLead);
            return;
        };
        let demoted = self.leader.demoted_here && !control.standby_signal;
        if demoted && control.state == ControlState::ShutDown && !self.leader.archived_last {
            // Who restores from the archive needs the shutdown checkpoint to be at our very end.
            self.issue(now, Act::ArchiveShutdownCheckpoint, Reason::StandbyCluster);
            return;
        }
        if local.durable.in_progress.is_none()
            && (remote.address.is_archive() || control.standby_signal)
        {
            // Whether a standby diverged is seen when it runs and does not stream.
            self.start_under(now, view, remote);
            return;
        }
        self.rejoin_stopped(now, view, local, remote);
    }

    /// What the leader of a standby cluster does besides following. True if it gives way.
    fn standby_duties(&mut self, now: Millis, view: &ClusterView, key: Revision) -> bool {
        if let Some(sync) = view.active_sync() {
            // It dates from when this was a cluster of its own; nobody waits for anybody now.
            let expected = Some(sync.mod_revision);
            let act = Act::WriteSync { leader_key: key, expected, sync: None };
            self.issue(now, act, Reason::SyncOff);
        }
        let Some(asked) = &view.failover else {
            return false;
        };
        let Some(request) = asked.value.clone() else {
            return false;
        };
        let due = match self.due_request(now, &request) {
            Some(Ok(())) => Some(self.possible(view, &request)),
            other => other,
        };
        match due {
            None => false,
            Some(Err(because)) => {
                let act = Act::ClearFailover { expected: asked.mod_revision, request };
                self.issue(now, act, Reason::RequestRefused { because });
                false
            }
            Some(Ok(())) => {
                // Both copies are in recovery already: there is nothing to stop.
                let candidate = request.member;
                let status = view.status.as_ref().map(|s| s.value.clone());
                self.release(now, key, status, Reason::Requested { candidate });
                true
            }
        }
    }

    /// Whether a request can be fulfilled now.
    fn possible(&self, view: &ClusterView, request: &types::FailoverRequest) -> Result<(), String> {
        let me = &self.node.name;
        let fit = |name: &MemberName| {
            name != me && view.member(name).is_some_and(|m| m.is_fit() && m.tags.may_lead())
        };
        if let Some(leader) = request.leader.as_ref().filter(|leader| *leader != me) {
            return Err(format!("leader name does not match: {leader} != {me}"));
        }
        match &request.member {
            Some(name) if fit(name) => Ok(()),
            Some(name) => Err(format!("{name} is no healthy candidate")),
            None if view.members.keys().any(fit) => Ok(()),
            None => Err("no healthy candidate".to_owned()),
        }
    }

    /// The `status` key's value of a standby cluster's leader.
    pub(crate) fn standby_status(
        &mut self,
        view: &ClusterView,
        local: &LocalPostgres,
        standby: &Standby,
    ) -> Status {
        let optime = standby.received.max(standby.replayed);
        self.status_at(view, local, optime)
    }

    /// Whether this copy follows something outside of the cluster: what it holds is not what it won
    /// an election with.
    pub(crate) fn follows_remote(standby: &Standby) -> bool {
        standby.upstream.as_ref().is_some_and(types::Upstream::is_remote)
    }
}
