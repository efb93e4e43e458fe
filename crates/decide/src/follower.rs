//! What a member does while somebody else leads: follow, rewind, or copy anew.

use types::{
    ClusterView, Compared, Control, DataDir, InProgress, LocalPostgres, Lsn, MemberName, Millis,
    Position, Process, Rejoin, Role, Standby, Term, Timeline, Upstream, compare_with_leader,
};

use crate::action::{Act, StartAs};
use crate::brain::{Brain, control_of, upstream_of};
use crate::errand::Answer;
use crate::reason::Reason;
use crate::unlocked::is_operators_word;

/// A standby that accepts no connections for `primary_start_timeout`, but at least for so long,
/// under another leader than the one it was started under, is stopped and brought back by other
/// means.
const CONSISTENCY_MIN: Millis = Millis(90_000);

/// After so many failed rewinds a new copy is made.
const REWIND_ATTEMPTS: u32 = 2;

/// The leader, as somebody to follow.
pub(crate) struct Leader {
    name: MemberName,
    term: Term,
    pub(crate) address: Upstream,
    /// It runs as primary, published or not: it can be compared with and copied.
    writable: bool,
    /// What it held when it won its term, if that is recorded.
    won_at: Option<Position>,
    /// Its checkpoint after the promotion is done, so that pg_rewind may use it.
    checkpointed: bool,
}

impl Leader {
    /// The node outside that the leader of a standby cluster follows.
    pub(crate) fn remote(address: Upstream, term: Term) -> Leader {
        let name = address.name.clone();
        Leader { name, term, address, writable: true, won_at: None, checkpointed: true }
    }
}

impl Brain {
    /// One evaluation under another member's leadership.
    pub(crate) fn follow(
        &mut self,
        now: Millis,
        view: &ClusterView,
        local: &LocalPostgres,
        name: &MemberName,
        term: Term,
    ) {
        if self.may_be_primary(local) {
            self.stop_now(now, local, Reason::PrimaryWithoutLeaderKey);
            return;
        }
        let (Some(address), Some(member)) = (upstream_of(view, name), view.member(name)) else {
            return;
        };
        if let Some(fence) = view.fence.as_ref().filter(|_| term == Term(0)) {
            // A Patroni leader does not know of fences; an open one would count old pledges later.
            self.issue(now, Act::VoidFence { fence: fence.mod_revision }, Reason::StaleFence);
        }
        let leader = Leader {
            name: name.clone(),
            term,
            address,
            // A key from before its present term says nothing about this one (I4).
            writable: self.is_source(member)
                && member.state == "running"
                && (term == Term(0) || member.term == Some(term)),
            won_at: view
                .term
                .as_ref()
                .filter(|t| t.value.term == term)
                .and_then(|t| t.value.position),
            checkpointed: member.checkpoint_after_promote != Some(false),
        };
        if self.stops_for_errand() {
            return;
        }
        match &local.process {
            Process::Orphaned | Process::Silent { .. } => {}
            Process::NotReady { since, .. } => {
                // Rewound or copied under a leader that is gone, it may need log that only that
                // leader had. Local crash recovery alone gets the time that a primary's gets.
                let limit = self.dynamic.primary_start_timeout.max(CONSISTENCY_MIN);
                let patience = since.plus(limit);
                if local.durable.term == term || term == Term(0) {
                    self.never_consistent = false;
                } else if self.may_complete(view, local, &leader) {
                    self.stopped_under = Some(leader.term);
                    self.stop_now(now, local, leader_is(&leader));
                } else if now < patience {
                    self.wake_at(patience);
                } else {
                    self.never_consistent = true;
                    self.stop_now(now, local, Reason::NeverConsistent);
                }
            }
            Process::Stopped if self.copies_anew() => self.copy_anew(now, view, local, &leader),
            Process::Stopped => self.rejoin_stopped(now, view, local, &leader),
            Process::Running(running) => match &running.role {
                Role::Primary(_) => {}
                Role::Standby(_) if !self.dynamic.pause && self.depose(now, view, local) => {}
                Role::Standby(standby) => {
                    self.rejoin_standby(now, view, local, standby, &leader);
                }
            },
        }
    }

    /// What pg_rewind left may miss the end of what it must replay: what its source had not written
    /// yet. It waits for that in vain where its upstream is gone, and a new leader may have it.
    /// Whether its log is a prefix of that leader's is seen when it is stopped (once).
    fn may_complete(&self, view: &ClusterView, local: &LocalPostgres, leader: &Leader) -> bool {
        control_of(local).is_some_and(|control| control.unfinished_rewind)
            && leader.writable
            && leader.term > local.durable.term
            && self.stopped_under != Some(leader.term)
            && !self.is_bound(view, local)
    }

    pub(crate) fn rejoin_stopped(
        &mut self,
        now: Millis,
        view: &ClusterView,
        local: &LocalPostgres,
        leader: &Leader,
    ) {
        if self.is_bound(view, local) {
            // It takes part in the election from recovery, and receives from nobody.
            if local.durable.in_progress.is_none() {
                let act = Act::Start { start_as: StartAs::Standby(None), term: None };
                self.issue(now, act, leader_is(leader));
            }
            return;
        }
        // A leader of an older term than this copy's came with an older state of the DCS; nothing
        // is replaced from it (I3).
        let older = leader.term != Term(0) && leader.term < local.durable.term;
        if !leader.writable || older {
            return;
        }
        let control = match &local.data_dir {
            DataDir::Empty => {
                self.clone_from(now, view, leader, false);
                return;
            }
            DataDir::Unusable { .. } if remade(local) => {
                self.clone_from(now, view, leader, true);
                return;
            }
            DataDir::Unusable { .. } => return,
            DataDir::Present(control) => control,
        };
        match local.durable.in_progress {
            Some(InProgress::Rewind) => self.rewind(now, control, leader, Reason::Unfinished),
            Some(InProgress::Rebuild | InProgress::Bootstrap) => {
                self.clone_from(now, view, leader, true);
            }
            None => match compared_with(local, leader) {
                None => self.compare(now, leader),
                Some(compared) => {
                    let end = (control.end_timeline, control.end);
                    let certain =
                        control.state.end_is_certain() || compared.ends_at_control == Some(true);
                    let behind = end.0 != compared.timeline;
                    if !certain && control.standby_signal && behind && !self.never_consistent {
                        // A standby that crashed. If it ran when it was compared, its log was not
                        // looked at; else it learns in recovery where that ends.
                        if compared.ends_at_control.is_none() {
                            self.compare(now, leader);
                            return;
                        }
                        let start_as = StartAs::Standby(None);
                        let act = Act::Start { start_as, term: None };
                        self.issue(now, act, leader_is(leader));
                        return;
                    }
                    match compare_with_leader(end, certain, compared.timeline, &compared.history) {
                        Rejoin::Follow => self.start_under(now, view, leader),
                        Rejoin::Rewind => {
                            let why = diverged(control.end_timeline, compared.timeline);
                            self.rewind(now, control, leader, why);
                        }
                    }
                }
            },
        }
    }

    pub(crate) fn rejoin_standby(
        &mut self,
        now: Millis,
        view: &ClusterView,
        local: &LocalPostgres,
        standby: &Standby,
        leader: &Leader,
    ) {
        // A pledge binds until a leader of a higher term is there or its fence was voided, over
        // restarts too.
        if self.is_bound(view, local) {
            return;
        }
        let pledge = local.durable.pledge.as_ref();
        if leader.term < local.durable.term && leader.term != Term(0) {
            return;
        }
        let upstream = self.upstream(view, leader);
        let new_term = local.durable.term != leader.term && leader.term != Term(0);
        if new_term || pledge.is_some() {
            self.follow_new_term(now, local, standby, leader, upstream);
            return;
        }
        if standby.upstream != upstream {
            let why = leader_is(leader);
            self.issue(now, Act::Follow { upstream, term: leader.term }, why);
            return;
        }
        let streams = standby.receiver.as_ref().is_some_and(|r| r.streaming);
        let voter = local.durable.fresh_copy && self.is_voter_of(view, leader);
        if streams && voter && !self.may_lack_promise(now, view) {
            self.issue(now, Act::ForgetFreshCopy, Reason::VoterAgain);
        }
        if streams && leader.writable {
            self.copy_slots(now, view, local, &leader.address);
        }
        // Who streams from nobody may restore from an archive; that it does not get on is not seen.
        let nobody = upstream.as_ref().is_none_or(Upstream::is_archive);
        if streams || !leader.writable || nobody {
            self.followed_at = None;
            return;
        }
        // It should stream and does not: is it ahead of where the leader's timeline began?
        let end = (standby.timeline, standby.received);
        match self.compared(now, local, end, leader) {
            Some(Rejoin::Rewind) => self.stop_diverged(now, local, standby.timeline, leader),
            Some(Rejoin::Follow) => self.follow_again(now, leader, upstream),
            None => {}
        }
    }

    /// The files name the upstream already. Whoever wrote them may have ended before the server
    /// read them, so now and then it is told again.
    fn follow_again(&mut self, now: Millis, leader: &Leader, upstream: Option<Upstream>) {
        let told = *self.followed_at.get_or_insert(now);
        let again = told.plus(self.dynamic.ttl);
        if now < again {
            self.wake_at(again);
            return;
        }
        let act = Act::Follow { upstream, term: leader.term };
        if self.issue_if_free(now, act, leader_is(leader)) {
            self.followed_at = Some(now);
        }
    }

    /// Under a new leader a copy streams only when it is known to be a prefix of the leader's log.
    /// A diverged standby would stream the old timeline from before the switch, and report
    /// positions past it as flushed: PostgreSQL would take that for a confirmation (I2).
    fn follow_new_term(
        &mut self,
        now: Millis,
        local: &LocalPostgres,
        standby: &Standby,
        leader: &Leader,
        upstream: Option<Upstream>,
    ) {
        let end = match &local.durable.pledge {
            Some(pledge) => (pledge.position.timeline, pledge.position.lsn),
            // Whoever did not pledge may still receive from the old leader.
            None if standby.upstream.is_some() || standby.receiver.is_some() => {
                let act = Act::Follow { upstream: None, term: local.durable.term };
                self.issue(now, act, leader_is(leader));
                return;
            }
            None => (standby.timeline, standby.received.max(standby.replayed)),
        };
        let prefix = leader.won_at.is_some_and(|won| won.timeline == end.0 && end.1 <= won.lsn);
        let rejoin = if prefix {
            Some(Rejoin::Follow)
        } else if leader.writable {
            self.compared(now, local, end, leader)
        } else {
            None
        };
        match rejoin {
            Some(Rejoin::Follow) => {
                let act = Act::Follow { upstream, term: leader.term };
                self.issue(now, act, leader_is(leader));
            }
            Some(Rejoin::Rewind) => self.stop_diverged(now, local, end.0, leader),
            None => {}
        }
    }

    /// The last comparison with this leader, or asks for one.
    fn compared(
        &mut self,
        now: Millis,
        local: &LocalPostgres,
        end: (Timeline, Lsn),
        leader: &Leader,
    ) -> Option<Rejoin> {
        if leader.address.is_archive() {
            // There is nobody to ask.
            return Some(Rejoin::Follow);
        }
        match compared_with(local, leader) {
            None => {
                self.compare(now, leader);
                None
            }
            Some(compared) => {
                Some(compare_with_leader(end, true, compared.timeline, &compared.history))
            }
        }
    }

    fn stop_diverged(
        &mut self,
        now: Millis,
        local: &LocalPostgres,
        timeline: Timeline,
        leader: &Leader,
    ) {
        if self.dynamic.pause {
            return;
        }
        let theirs = compared_with(local, leader).map_or(Timeline(0), |c| c.timeline);
        self.stop_fast(now, diverged(timeline, theirs));
    }

    /// Whether the present leader counts on us; without a synchronous set nobody counts on anybody.
    fn is_voter_of(&self, view: &ClusterView, leader: &Leader) -> bool {
        view.active_sync().is_none_or(|sync| {
            sync.value.leader.as_ref() == Some(&leader.name)
                && sync.value.voters.contains(&self.node.name)
        })
    }

    /// Whether a leader's key says that it can be followed: it is a primary, or leads a standby
    /// cluster.
    fn is_source(&self, member: &types::Member) -> bool {
        matches!(member.role.as_str(), "primary" | "promoted" | "master")
            || (self.dynamic.standby_cluster.is_some() && member.role == "standby_leader")
    }

    /// Whom our tags let us stream from.
    fn upstream(&self, view: &ClusterView, leader: &Leader) -> Option<Upstream> {
        if leader.address.is_remote() {
            return Some(leader.address.clone());
        }
        if self.node.tags.nostream() {
            return Some(Upstream::archive());
        }
        let cascade = self.node.tags.replicatefrom().filter(|from| {
            *from != self.node.name && view.member(from).is_some_and(|m| m.state == "running")
        });
        match cascade.and_then(|from| upstream_of(view, &from)) {
            Some(upstream) => Some(upstream),
            None => Some(leader.address.clone()),
        }
    }

    pub(crate) fn start_under(&mut self, now: Millis, view: &ClusterView, leader: &Leader) {
        let start_as = StartAs::Standby(self.upstream(view, leader));
        let act = Act::Start { start_as, term: Some(leader.term) };
        self.issue(now, act, leader_is(leader));
    }

    fn compare(&mut self, now: Millis, leader: &Leader) {
        let act = Act::Compare { leader: leader.address.clone(), term: leader.term };
        self.issue(now, act, leader_is(leader));
    }

    /// pg_rewind if it can work; otherwise, and after failures, a new copy where the settings allow
    /// it. The leader's term is newer than anything we hold, so ours is not the newest copy (I3).
    fn rewind(&mut self, now: Millis, control: &Control, leader: &Leader, why: Reason) {
        if self.dynamic.pause {
            self.end_errand(Answer::RestartFailed);
            return;
        }
        let settings = &self.dynamic.postgresql;
        let possible = settings.use_pg_rewind && control.can_rewind;
        if possible && self.rewind_failures < REWIND_ATTEMPTS {
            if leader.checkpointed {
                let act = Act::Rewind { source: leader.address.clone(), term: leader.term };
                self.issue(now, act, why);
            }
            return;
        }
        let failed = possible && settings.remove_data_directory_on_rewind_failure;
        if failed || settings.remove_data_directory_on_diverged_timelines {
            let why =
                if possible { Reason::RewindFailed { times: self.rewind_failures } } else { why };
            let act = clone_act(leader, true);
            self.issue(now, act, why);
        }
    }

    /// An operator's word replaces this copy, whatever the settings say (I3).
    fn copy_anew(
        &mut self,
        now: Millis,
        view: &ClusterView,
        local: &LocalPostgres,
        leader: &Leader,
    ) {
        let older = leader.term != Term(0) && leader.term < local.durable.term;
        if self.is_bound(view, local) || older {
            self.end_errand(Answer::RestartFailed);
        } else if leader.writable {
            let offers = !self.copies_the_leader();
            let replace = local.data_dir != DataDir::Empty;
            let replica = self.copy_source(view, leader, replace).filter(|_| offers);
            let act = match replica {
                Some(source) => {
                    let standby_of = replace.then(|| leader.address.clone());
                    Act::Clone { source, term: leader.term, replace, standby_of }
                }
                None => clone_act(leader, replace),
            };
            self.issue(now, act, Reason::AskedByOperator);
        }
    }

    fn clone_from(&mut self, now: Millis, view: &ClusterView, leader: &Leader, replace: bool) {
        if self.dynamic.pause {
            self.end_errand(Answer::RestartFailed);
            return;
        }
        let why = if replace {
            Reason::Unfinished
        } else {
            Reason::NoData { leader: leader.name.clone() }
        };
        let replica = self.copy_source(view, leader, false).filter(|_| !replace);
        let source = replica.unwrap_or_else(|| leader.address.clone());
        let act = Act::Clone { source, term: leader.term, replace, standby_of: None };
        self.issue(now, act, why);
    }

    /// A standby that offers itself as a source, and streams the leader's log. Where something is
    /// replaced it has to say besides that it follows this leader in its present term: it does
    /// that only with a copy that is a beginning of the leader's, so what is made from it descends
    /// from the leader, too (I3). A standby cluster's leader cannot be seen to be one.
    fn copy_source(&self, view: &ClusterView, leader: &Leader, replace: bool) -> Option<Upstream> {
        if replace && self.dynamic.standby_cluster.is_some() {
            return None;
        }
        let timeline = view.member(&leader.name).and_then(|member| member.timeline);
        let offers = view.members.iter().filter(|(name, member)| {
            let member = &member.value;
            **name != self.node.name
                && **name != leader.name
                && member.tags.clonefrom()
                && member.state == "running"
                && member.replication_state.as_deref() == Some("streaming")
                && member.timeline == timeline
                && (!replace || leader.term == Term(0) || member.term == Some(leader.term))
        });
        offers.filter_map(|(name, _)| upstream_of(view, name)).next()
    }
}

fn clone_act(leader: &Leader, replace: bool) -> Act {
    let source = leader.address.clone();
    Act::Clone { source, term: leader.term, replace, standby_of: None }
}

/// The last comparison, if it was made with this leader in this term.
fn compared_with<'a>(local: &'a LocalPostgres, leader: &Leader) -> Option<&'a Compared> {
    local.compared.as_ref().filter(|c| c.leader == leader.name && c.term == leader.term)
}

fn leader_is(leader: &Leader) -> Reason {
    Reason::LeaderIs { leader: leader.name.clone(), term: leader.term }
}

fn diverged(timeline: Timeline, leader_timeline: Timeline) -> Reason {
    Reason::Diverged { timeline, leader_timeline }
}

/// What stands in the data directory was never complete: it is made anew.
fn remade(local: &LocalPostgres) -> bool {
    matches!(local.durable.in_progress, Some(InProgress::Rebuild | InProgress::Bootstrap))
}

/// Whether this copy may take part in an election at all. Where nobody was promised anything, or by
/// an operator's word, a copy of unknown past may, too.
pub(crate) fn may_take_part(view: &ClusterView, local: &LocalPostgres, me: &MemberName) -> bool {
    let named = view.failover_request().and_then(|r| r.member.as_ref()) == Some(me);
    let known = !local.durable.fresh_copy
        || view.active_sync().is_none()
        || (named && is_operators_word(view));
    control_of(local).is_some() && local.durable.in_progress.is_none() && known
}
