//! How a leader gives the leadership away: proxies hold their clients (`hold.rs`), its PostgreSQL
//! is stopped for the successor, and the leader key goes when nothing of it is left.

use types::{
    ClusterView, ControlState, LocalPostgres, MemberName, Millis, Process, Revision, Status, Term,
};

use crate::action::{Act, Lane};
use crate::brain::{Brain, control_of};
use crate::hold::HeldStop;
use crate::reason::Reason;

/// A stop for a planned hand-over; clients wait meanwhile.
const PLANNED_STOP: Millis = Millis(15_000);

/// A hand-over under way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct HandOver {
    pub(crate) candidate: Option<MemberName>,
    pub(crate) checkpointed: bool,
    pub(crate) stopping: bool,
    pub(crate) why: Reason,
}

impl Brain {
    /// Stops for a successor, then gives the leader key away. Also the end of a leader's agent.
    pub(crate) fn hand_over_and_release(
        &mut self,
        now: Millis,
        view: &ClusterView,
        local: &LocalPostgres,
        (key, term): (Revision, Term),
        candidate: Option<MemberName>,
        why: Reason,
    ) {
        if self.gives_up_hand_over(now, view, local, key) {
            return;
        }
        self.errands.note_hand_over();
        if local.process == Process::Stopped {
            let clean = control_of(local).filter(|c| c.state == ControlState::ShutDown);
            let optime = clean.map(|c| Status {
                optime: c.checkpoint,
                ..view.status.as_ref().map(|s| s.value.clone()).unwrap_or_default()
            });
            if self.lanes.running(Lane::Data).is_none() {
                self.release(now, key, optime, why);
            }
            return;
        }
        let candidate = candidate.or_else(|| self.best_candidate(view, local));
        let hand_over = self.leader.handing_over.get_or_insert_with(|| HandOver {
            candidate: candidate.clone(),
            checkpointed: false,
            stopping: false,
            why: why.clone(),
        });
        let (checkpointed, stopping) = (hand_over.checkpointed, hand_over.stopping);
        // A new primary that was never published has nothing worth a checkpoint first.
        let running = matches!(local.process, Process::Running(_));
        let unwell = matches!(why, Reason::Unwell { .. });
        if running && !checkpointed && !unwell && self.leader.confirmed == Some(term) {
            self.issue(now, Act::Checkpoint, Reason::CheckpointBeforeStop);
        } else if !stopping {
            let limit = self.stop_limit(&why);
            let planned = matches!(why, Reason::Requested { .. } | Reason::ShuttingDown);
            let stop = HeldStop { why: "switchover", lasts: limit };
            if running && planned && self.waits_for_proxies(now, view, key, stop) {
                return;
            }
            let act = Act::StopForHandOver { candidate, limit };
            if self.issue_if_free(now, act, why)
                && let Some(hand_over) = &mut self.leader.handing_over
            {
                hand_over.stopping = true;
            }
        } else if self.lanes.running(Lane::Data).is_none() {
            // The orderly stop did not end: what is acknowledged is with the standbys already.
            self.stop_now(now, local, why);
        }
    }

    /// How long the stop for a successor may take.
    fn stop_limit(&self, why: &Reason) -> Millis {
        match why {
            Reason::Unwell { .. } => self.dynamic.retry_timeout,
            _ if self.synchronous() && self.dynamic.primary_stop_timeout > Millis::ZERO => {
                self.dynamic.primary_stop_timeout
            }
            _ => PLANNED_STOP,
        }
    }
}
