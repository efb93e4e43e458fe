//! What a member does while nobody leads: bootstrap, come up in recovery, take part in the
//! election.

use std::collections::{BTreeMap, BTreeSet};

use config::ReplicaMethod;
use types::{
    ClusterView, Control, ControlState, DataDir, InProgress, LocalPostgres, MemberName, Millis,
    Process, Revision, Role, SyncState, Term, TermRecord, Timeline,
};

use crate::action::{Act, Lane, StartAs};
use crate::brain::{Brain, control_of};
use crate::election::{self, Ballot, Candidate, Move, Waiting};
use crate::follower::may_take_part;
use crate::health::Won;
use crate::reason::Reason;

/// How long the open election has been waiting for the same thing. The clock stays outside of the
/// election itself, which is told only that somebody waited long enough.
#[derive(Debug, Clone, Default)]
pub(crate) struct ElectionClock {
    /// The fence, and since when it has been open.
    fence: Option<(Revision, Millis)>,
    /// Whom everybody waits for, and since when.
    waiting: Option<(Waiting, Millis)>,
}

impl Brain {
    /// One evaluation without a leader key.
    pub(crate) fn unlocked(&mut self, now: Millis, view: &ClusterView, local: &LocalPostgres) {
        if self.may_be_primary(local) {
            if self.retake(now, view, local) {
                return;
            }
            self.stop_now(now, local, Reason::PrimaryWithoutLeaderKey);
            return;
        }
        match &local.process {
            Process::Orphaned | Process::NotReady { .. } | Process::Silent { .. } => {}
            Process::Stopped => self.unlocked_stopped(now, view, local),
            Process::Running(running) => match &running.role {
                Role::Primary(_) => {}
                Role::Standby(_) => self.elect(now, view, local),
            },
        }
    }

    fn unlocked_stopped(&mut self, now: Millis, view: &ClusterView, local: &LocalPostgres) {
        if self.lanes.running(Lane::Data).is_some() {
            return;
        }
        let unfinished = local.durable.in_progress == Some(InProgress::Bootstrap);
        match &local.data_dir {
            DataDir::Empty if view.system_identifier().is_some() => self.restore(now),
            DataDir::Empty => self.bootstrap(now, view),
            DataDir::Unusable { .. } | DataDir::Present(_) if unfinished => {
                self.bootstrap(now, view);
            }
            DataDir::Unusable { .. } => {}
            DataDir::Present(_) if local.durable.in_progress.is_some() => {}
            DataDir::Present(control) => {
                if self.bootstrap_is_ours(view) {
                    self.finish_bootstrap(now, control);
                    return;
                }
                // Our own bootstrap was interrupted after initdb, or this is an installation that
                // becomes a cluster: this copy has never led here, and nobody has.
                let unborn = local.durable.term == Term(0);
                if unborn && !control.standby_signal {
                    match &view.initialize {
                        None => return self.bootstrap(now, view),
                        // Somebody bootstraps, or we do and our member key is not seen yet.
                        Some(key) if key.value.is_empty() => return,
                        Some(_) => {}
                    }
                }
                if control.state == ControlState::ShutDown && self.pledge_stopped(now, view, local)
                {
                    return;
                }
                // In recovery and following nobody: so even a former primary learns where its log
                // ends, and takes part in the election without any privilege.
                let start_as = StartAs::Standby(None);
                let act = Act::Start { start_as, term: None };
                self.issue(now, act, Reason::NoLeader);
            }
        }
    }

    fn bootstrap(&mut self, now: Millis, view: &ClusterView) {
        let ours = self.bootstrap_is_ours(view);
        if self.bootstrap_failed {
            // Another member gets its turn, or an operator has a look at what was left.
            let act = if ours { Act::CancelInitialize } else { Act::Exit { code: 1 } };
            self.issue(now, act, Reason::BootstrapFailed);
        } else if let Some(section) = self.dynamic.standby_cluster.as_ref().filter(|_| ours) {
            let source = section.remote.clone();
            let act = Act::Clone { source, term: Term(1), replace: false, standby_of: None };
            self.issue(now, act, Reason::WonBootstrap);
        } else if ours {
            self.issue(now, Act::Initdb, Reason::WonBootstrap);
        } else if view.initialize.is_none() && self.node.may_bootstrap && self.node.tags.may_lead()
        {
            self.issue(now, Act::TakeInitialize, Reason::NoCluster);
        }
    }

    /// The cluster has nobody to copy from; a backup may do.
    fn restore(&mut self, now: Millis) {
        let methods = self.dynamic.postgresql.hooks.methods();
        if methods.iter().any(ReplicaMethod::needs_no_leader) {
            self.issue(now, Act::Restore, Reason::NoLeader);
        }
    }

    /// The empty `initialize` key hangs on the lease of whoever bootstraps.
    fn bootstrap_is_ours(&self, view: &ClusterView) -> bool {
        let own = view.members.get(&self.node.name).map_or(0, |m| m.lease);
        view.initialize
            .as_ref()
            .is_some_and(|key| key.value.is_empty() && key.lease != 0 && key.lease == own)
    }

    fn finish_bootstrap(&mut self, now: Millis, control: &Control) {
        let term = TermRecord {
            term: Term(1),
            leader: self.node.name.clone(),
            // A restored cluster has had some.
            timeline: control.timeline,
            position: None,
        };
        let sync = self.synchronous().then(|| SyncState {
            leader: Some(self.node.name.clone()),
            quorum: 0,
            voters: BTreeSet::new(),
        });
        let system_identifier = control.system_identifier.clone();
        let act = Act::FinishBootstrap { system_identifier, term, sync };
        self.issue(now, act, Reason::WonBootstrap);
    }

    /// After a clean stop pg_control says where the log ends: such a copy pledges before it is
    /// started, since others may wait for its word. True while it has a step to do, or had better
    /// not start yet; it neither wins nor judges others in this state.
    fn pledge_stopped(&mut self, now: Millis, view: &ClusterView, local: &LocalPostgres) -> bool {
        if !self.may_elect(now, view, local) {
            return false;
        }
        let ballot = self.ballot(now, view, local);
        let next = election::next_move(&ballot);
        match next {
            Move::Open(_) | Move::StopReceiving | Move::WritePledge(_) => {
                self.make_move(now, view, local, (next, &ballot));
                true
            }
            Move::Wait(_) => self.lets_successor_begin(now, &ballot),
            Move::Abstain(_) | Move::Void { .. } | Move::Take(_) => false,
        }
    }

    /// Whether the last leader stays down until its successor leads: a start would take processor
    /// time from that, and would follow nobody. Not where the successor's first write needs this
    /// copy's confirmation.
    fn lets_successor_begin(&self, now: Millis, ballot: &Ballot) -> bool {
        let last = ballot.term.as_ref().map(|(record, _)| &record.leader);
        let heard =
            ballot.alive.keys().filter(|name| **name != ballot.me && !self.is_silent(now, name));
        // One of them is the successor.
        let confirmed =
            ballot.sync.is_none() || heard.count() > self.dynamic.synchronous_node_count.max(1);
        last == Some(&ballot.me) && confirmed && !ballot.waited
    }

    pub(crate) fn may_elect(
        &mut self,
        now: Millis,
        view: &ClusterView,
        local: &LocalPostgres,
    ) -> bool {
        may_take_part(view, local, &self.node.name)
            && view.system_identifier().is_some()
            && !self.kept_out_by_failsafe(now, view)
    }

    /// Makes the next move of the election.
    fn elect(&mut self, now: Millis, view: &ClusterView, local: &LocalPostgres) {
        if !self.may_elect(now, view, local) {
            return;
        }
        self.vote(now, view, local);
    }

    /// Makes and tells the next move, without asking whether we may take part.
    pub(crate) fn vote(&mut self, now: Millis, view: &ClusterView, local: &LocalPostgres) -> Move {
        let ballot = self.ballot(now, view, local);
        let next = election::next_move(&ballot);
        if matches!(next, Move::Wait(_)) {
            self.ask_foreign(now, view, &ballot);
        }
        self.note_waiting(now, &next);
        self.make_move(now, view, local, (next.clone(), &ballot));
        next
    }

    fn make_move(
        &mut self,
        now: Millis,
        view: &ClusterView,
        local: &LocalPostgres,
        (next, ballot): (Move, &Ballot),
    ) {
        let fence = ballot.fence.as_ref().map(|f| f.mod_revision);
        let fence_id = ballot.fence.as_ref().map(|f| f.value.id.clone()).unwrap_or_default();
        match (next, fence) {
            (Move::Abstain(_) | Move::Wait(_), _) => {}
            (Move::Open(_), _) if self.waits_for_primary(now, view, local) => {}
            (Move::Open(fence), _) => {
                let sync_revision = view.sync.as_ref().map(|s| s.mod_revision);
                let why = match view.leader_name() {
                    Some(leader) => Reason::LeaderLost { leader: leader.clone() },
                    None => Reason::NoLeader,
                };
                self.issue(now, Act::OpenFence { fence, sync_revision }, why);
            }
            (Move::Void { stuck, waiting_for }, Some(fence)) => {
                let why =
                    if stuck { Reason::StuckFence { waiting_for } } else { Reason::StaleFence };
                self.issue(now, Act::VoidFence { fence }, why);
            }
            (Move::StopReceiving, Some(_)) => {
                let known = view.term.as_ref().map_or(Term(0), |t| t.value.term);
                let term = known.max(local.durable.term);
                let sync = self.rule_before_promotion(now, view);
                let act = Act::StopReceiving { fence: fence_id.clone(), term, sync };
                self.issue(now, act, Reason::ElectionOpen { fence: fence_id });
            }
            (Move::WritePledge(pledge), Some(fence)) => {
                let act = Act::WritePledge { pledge, fence };
                self.issue(now, act, Reason::ElectionOpen { fence: fence_id });
            }
            (Move::Take(plan), Some(_)) => {
                let why = Reason::WonElection {
                    term: plan.winner.term.term,
                    position: plan.position,
                    pledged: plan.winner.pledges.keys().cloned().collect(),
                };
                let term = plan.winner.term.term;
                if self.issue_if_free(now, Act::TakeLeadership(plan.winner), why) {
                    let former = view.active_sync().map(|s| s.value.clone());
                    self.won = Some(Won { term, former });
                    self.gave_way = None;
                }
            }
            (
                Move::Void { .. } | Move::StopReceiving | Move::WritePledge(_) | Move::Take(_),
                None,
            ) => unreachable!("these moves exist only under an open fence"),
        }
    }

    /// The election's input, with what has been waited for turned into facts.
    fn ballot(&mut self, now: Millis, view: &ClusterView, local: &LocalPostgres) -> Ballot {
        let opened = match (&view.fence, self.election.fence) {
            (Some(fence), Some((known, since))) if known == fence.create_revision => since,
            (Some(fence), _) => {
                self.election.fence = Some((fence.create_revision, now));
                now
            }
            (None, _) => {
                self.election = ElectionClock::default();
                now
            }
        };
        let patience = self.dynamic.loop_wait;
        let waited_at = opened.plus(patience);
        let stuck_at = self.election.waiting.as_ref().map(|(waiting, since)| match waiting {
            // A winner that is not heard either does not act any more.
            Waiting::Winner(name) if self.is_silent(now, name) => *since,
            Waiting::Winner(_) | Waiting::Pledges { .. } | Waiting::NobodyMayLead => {
                since.plus(patience)
            }
        });
        for at in [Some(waited_at), stuck_at].into_iter().flatten() {
            if now < at && view.fence.is_some() {
                self.wake_at(at);
            }
        }
        let request = self.pending_request(now, view);
        let nonce = self.next_nonce();
        Ballot {
            me: self.node.name.clone(),
            leader: self.accused(now, view),
            alive: self.alive(now, view, local),
            foreign: self.foreign(now, view),
            sync: view.active_sync().map(|s| (s.value.clone(), s.mod_revision)),
            sync_revision: view.sync.as_ref().map_or(Revision(0), |s| s.mod_revision),
            term: view.term.as_ref().map(|t| (t.value.clone(), t.mod_revision)),
            fence: view.fence.clone(),
            pledges: view
                .pledges
                .iter()
                .map(|(name, p)| (name.clone(), (p.value.clone(), p.mod_revision)))
                .collect(),
            own: local.durable.pledge.clone(),
            new_fence_id: format!("{}-{nonce:016x}", self.node.name),
            preferred: request.and_then(|r| r.member.clone()),
            stepping_down: request.and_then(|r| r.leader.clone()),
            request_pending: request.is_some(),
            forced: view.leader.is_none() && is_operators_word(view),
            too_far_behind: self.too_far_behind(view, local),
            waited: now >= waited_at,
            stuck: stuck_at.is_some_and(|at| now >= at),
            synchronous: self.synchronous(),
            awaited: self.awaited_leader(now, view),
            promotes: self.dynamic.standby_cluster.is_none(),
            timeline_seen: newest_timeline(view, local),
        }
    }

    /// I2 without synchronous replication: what a failover may lose has a bound. Where a log ends
    /// is known of a standby that runs, and of a primary that was stopped in order.
    fn too_far_behind(&self, view: &ClusterView, local: &LocalPostgres) -> bool {
        let (timeline, end) = match (&local.process, control_of(local)) {
            (Process::Running(running), _) => match &running.role {
                Role::Standby(standby) => (standby.timeline, standby.received),
                Role::Primary(_) => return true,
            },
            (Process::Stopped, Some(control)) if control.state == ControlState::ShutDown => {
                (control.timeline, control.checkpoint)
            }
            _ => return true,
        };
        if self.dynamic.check_timeline && is_of_the_past(view, timeline) {
            return true;
        }
        let optime = view.status.as_ref().map_or(types::Lsn(0), |s| s.value.optime);
        optime.bytes_since(end) > self.dynamic.maximum_lag_on_failover
    }

    fn alive(
        &self,
        now: Millis,
        view: &ClusterView,
        local: &LocalPostgres,
    ) -> BTreeMap<MemberName, Candidate> {
        let mut alive: BTreeMap<MemberName, Candidate> = view
            .members
            .iter()
            .filter(|(_, m)| m.value.pgherd.is_some())
            .map(|(name, m)| {
                let tags = &m.value.tags;
                let (may_lead, fit) = (tags.may_lead(), m.value.trouble.is_none());
                (name.clone(), Candidate { may_lead, fit, priority: tags.priority() })
            })
            .collect();
        let tags = &self.node.tags;
        let fit = self.unfit(now, local).is_none();
        let me = Candidate { may_lead: tags.may_lead(), fit, priority: tags.priority() };
        alive.insert(self.node.name.clone(), me);
        alive
    }

    /// Starts a clock when everybody waits for one winner; any other move resets it.
    fn note_waiting(&mut self, now: Millis, next: &Move) {
        let waiting = match next {
            Move::Wait(Waiting::Winner(name)) => Some(Waiting::Winner(name.clone())),
            Move::Wait(Waiting::Pledges { .. } | Waiting::NobodyMayLead)
            | Move::Abstain(_)
            | Move::Open(_)
            | Move::Void { .. }
            | Move::StopReceiving
            | Move::WritePledge(_)
            | Move::Take(_) => None,
        };
        match (waiting, &self.election.waiting) {
            (Some(new), Some((old, _))) if new == *old => {}
            (Some(new), _) => {
                self.election.waiting = Some((new, now));
                self.wake_at(now.plus(self.dynamic.loop_wait));
            }
            (None, _) => self.election.waiting = None,
        }
    }
}

/// Whether an operator named a candidate while nobody led, having been shown what may be lost. A
/// request that a leader saw is a wish for an orderly hand-over, and forces nothing.
pub(crate) fn is_operators_word(view: &ClusterView) -> bool {
    let Some(key) = &view.failover else {
        return false;
    };
    let led_until = [
        view.term.as_ref().map(|t| t.mod_revision),
        view.sync.as_ref().map(|s| s.mod_revision),
        view.status.as_ref().map(|s| s.mod_revision),
    ];
    let later = led_until.into_iter().flatten().all(|led| key.mod_revision > led);
    later && key.value.as_ref().is_some_and(|r| r.leader.is_none() && r.member.is_some())
}

/// Whether the cluster has left this timeline. The last entry of the history is the one before the
/// present.
fn is_of_the_past(view: &ClusterView, timeline: Timeline) -> bool {
    let last = view.history.as_ref().and_then(|history| history.value.last());
    last.is_some_and(|entry| timeline <= entry.timeline)
}

/// The highest timeline number that anything in sight has used.
fn newest_timeline(view: &ClusterView, local: &LocalPostgres) -> Timeline {
    let members = view.members.values().filter_map(|m| m.value.timeline);
    let history = view.history.iter().flat_map(|h| h.value.iter().map(|e| e.timeline));
    // The last entry of the history is the timeline before the present one.
    let history = history.map(|t| Timeline(t.0 + 1));
    let own = control_of(local).map(|c| c.timeline.max(c.end_timeline));
    members.chain(history).chain(own).max().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use types::KeyValue;

    use super::*;

    #[test]
    fn a_timeline_in_the_history_is_of_the_past() {
        let view = |value: &str| {
            let key = KeyValue {
                key: "history".to_owned(),
                value: value.as_bytes().to_vec(),
                create_revision: Revision(1),
                mod_revision: Revision(1),
                lease: 0,
            };
            ClusterView::from_keys(Revision(1), &[key])
        };
        let third = view(r#"[[1,100,"x"],[2,200,"x"]]"#);
        assert!(is_of_the_past(&third, Timeline(1)) && is_of_the_past(&third, Timeline(2)));
        assert!(!is_of_the_past(&third, Timeline(3)));
        assert!(!is_of_the_past(&view("[]"), Timeline(1)));
    }
}
