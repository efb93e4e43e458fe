//! What the holder of the leader key does.

use std::collections::{BTreeMap, BTreeSet};

use types::{
    ClusterView, Fault, LocalPostgres, Lsn, MemberName, Millis, Primary, Process, Revision, Role,
    Standby, Status, SyncNames, Term, Timeline,
};

use crate::action::{Act, Lane, Outcome, SyncRule};
use crate::brain::{Brain, Leadership};
use crate::claim::UnderWay;
use crate::hand_over::HandOver;
use crate::health::has_been_primary;
use crate::hold::Hold;
use crate::reason::Reason;
use crate::strangers::streaming_members;
use crate::sync_set::{self, SyncPicture, SyncStep};

/// What the leader remembers during its term; forgotten when the leader key is not ours.
#[derive(Debug, Clone, Default)]
pub(crate) struct LeaderMemory {
    /// When the last renewal was issued.
    pub(crate) renewed_at: Option<Millis>,
    /// The last renewal did not succeed.
    pub(crate) renew_failed: bool,
    /// The term in which a write was acknowledged under the rule in force.
    pub(crate) confirmed: Option<Term>,
    /// The last rule that PostgreSQL was seen to have taken over, and its position then.
    pub(crate) taken_over: Option<(SyncNames, Lsn)>,
    /// When each standby was last seen streaming.
    pub(crate) streaming_at: BTreeMap<MemberName, Millis>,
    /// When `taken_over` was seen, for those who do not confirm.
    pub(crate) taken_over_at: Option<Millis>,
    /// Standbys that stream but do not flush, with the position that would bring them back.
    pub(crate) slow: BTreeMap<MemberName, Lsn>,
    /// Since when PostgreSQL has been trying to come up.
    pub(crate) starting_since: Option<Millis>,
    /// The operator's request that waits for its candidate, and since when.
    pub(crate) asked_since: Option<(Revision, Millis)>,
    /// The last start did not succeed.
    pub(crate) start_failed: bool,
    /// How long it may, where an operator has said so.
    pub(crate) start_limit: Option<Millis>,
    /// The timeline whose history was published.
    pub(crate) history_of: Option<Timeline>,
    /// A stop for a successor was begun; the leader key goes when it has ended.
    pub(crate) handing_over: Option<HandOver>,
    /// What the proxies were asked before a planned stop.
    pub(crate) hold: Option<Hold>,
    /// When each member's slot was last wanted.
    pub(crate) slot_seen: BTreeMap<String, Millis>,
    /// When walsenders of strangers were last ended.
    pub(crate) strangers_ended: Option<Millis>,
    /// What became of the last write of `/sync` is not known.
    pub(crate) sync_unknown: bool,
    /// The start time of the server that `confirmed` and `taken_over` speak of.
    pub(crate) server_started: Option<String>,
    /// When this term's primary was first seen.
    pub(crate) primary_since: Option<Millis>,
    /// The leader key of this revision is being given away: nothing becomes writable under
    /// it any more, whatever the answer was.
    pub(crate) releasing: Option<Revision>,
    /// Why this leader gives way; its lease is not kept alive any more.
    pub(crate) unwell: Option<Fault>,
    /// PostgreSQL was told to promote in this term.
    pub(crate) told_to_promote: bool,
    /// When we were first seen to lead.
    pub(crate) led_since: Option<Millis>,
    /// The primary was stopped here to follow a node outside.
    pub(crate) demoted_here: bool,
    /// What it wrote last was handed to the archive.
    pub(crate) archived_last: bool,
}

impl Brain {
    /// Takes the end of a leader's action into its memory.
    pub(crate) fn absorb_leader_end(&mut self, now: Millis, ended: &UnderWay, outcome: Outcome) {
        let done = outcome == Outcome::Done;
        match &ended.act {
            Act::ConfirmWrite if done => {
                if let Some(Leadership::Mine { term, .. }) = self.leadership() {
                    self.leader.confirmed = Some(term);
                }
            }
            Act::SetSync { sync } => {
                self.leader.taken_over = None;
                if done && let Some(flush) = self.primary_flush() {
                    self.leader.taken_over = Some((names_of(sync), flush));
                    self.leader.taken_over_at = Some(now);
                }
            }
            Act::Start { .. } => {
                self.leader.start_failed = !done;
                // A server forgets that when it starts.
                self.leader.told_to_promote = false;
            }
            // One that was given up for a stop says nothing about the next.
            Act::Promote { .. }
                if !done && !matches!(self.lanes.running(Lane::Data), Some(Act::Stop { .. })) =>
            {
                self.gave_way = Some((Fault::PromotionFails, now));
            }
            Act::WriteSync { .. } => self.leader.sync_unknown = outcome == Outcome::Unknown,
            Act::PublishHistory { timeline, .. } if done => {
                self.leader.history_of = Some(*timeline);
            }
            // A checkpoint that failed is not worth keeping clients waiting for.
            Act::Checkpoint => {
                if let Some(hand_over) = &mut self.leader.handing_over {
                    hand_over.checkpointed = true;
                }
            }
            _ => {}
        }
    }

    fn primary_flush(&self) -> Option<Lsn> {
        match &self.local.as_ref()?.process {
            Process::Running(running) => match &running.role {
                Role::Primary(primary) => Some(primary.flush),
                Role::Standby(_) => None,
            },
            _ => None,
        }
    }

    /// Keeps track of who streams, from each observation.
    pub(crate) fn note_local(&mut self, now: Millis, local: &LocalPostgres) {
        let primary = match &local.process {
            Process::Running(running) => match &running.role {
                Role::Primary(_) => Some(running.server.started.clone()),
                Role::Standby(_) => None,
            },
            _ => None,
        };
        if primary.is_some() || has_been_primary(local) {
            // What was won can be given back only as it was found.
            self.won = None;
        }
        if primary != self.leader.server_started {
            // Another server, or none: what was confirmed on the one before says nothing (I2).
            self.leader.confirmed = None;
            self.leader.taken_over = None;
            self.leader.primary_since = primary.is_some().then_some(now);
            self.leader.server_started = primary;
        }
        if let Process::Running(running) = &local.process {
            self.leader.starting_since = None;
            self.leader.start_limit = None;
            self.leader.start_failed = false;
            if let Role::Primary(primary) = &running.role {
                for replica in streaming_members(primary) {
                    let name = MemberName::from(replica.name.as_str());
                    self.leader.streaming_at.insert(name, now);
                }
            }
        }
    }

    /// One evaluation with the leader key in our hands.
    pub(crate) fn lead(
        &mut self,
        now: Millis,
        view: &ClusterView,
        local: &LocalPostgres,
        key: Revision,
        term: Term,
    ) {
        let mine = Leadership::Mine { key, term };
        let status = match &local.process {
            Process::Running(running) => match &running.role {
                Role::Primary(primary) => Some(self.status(view, local, primary)),
                Role::Standby(standby) if self.dynamic.standby_cluster.is_some() => {
                    Some(self.standby_status(view, local, standby))
                }
                Role::Standby(_) => None,
            },
            _ => None,
        };
        if self.gives_key_away(now, local, key) {
            return;
        }
        self.leader.led_since.get_or_insert(now);
        if self.is_deposed(now, local, term) {
            self.renew_if_due(now, &mine, None);
            return;
        }
        if self.gives_up_without_members(now, local, key) {
            return;
        }
        self.ask_for_newer_term(now, view);
        if let Some(section) = self.dynamic.standby_cluster.clone() {
            self.renew_if_due(now, &mine, status);
            if !self.answer_fence(now, view, local, key) && !self.stops_for_errand() {
                self.lead_standby_cluster(now, view, local, (key, term), &section);
            }
            return;
        }
        if self.gives_way(now, view, local, (key, term)) {
            return;
        }
        self.renew_if_due(now, &mine, status);
        if self.answer_fence(now, view, local, key) {
            return;
        }
        if self.leader.handing_over.is_none() {
            self.ask_members(now, view, local, term);
        }
        if let Some(HandOver { candidate, why, .. }) = self.leader.handing_over.clone() {
            self.hand_over_and_release(now, view, local, (key, term), candidate, why);
            return;
        }
        match &local.process {
            _ if self.stops_for_errand() => {}
            Process::Orphaned => {}
            Process::Stopped => self.lead_stopped(now, view, local, key, term),
            Process::NotReady { .. } | Process::Silent { .. } => {
                self.lead_starting(now, view, local, key);
            }
            Process::Running(running) => match &running.role {
                Role::Standby(standby) => self.promote(now, view, local, standby, key, term),
                // Without a claim nothing is decided for the cluster (I4).
                Role::Primary(_) if !self.claim.holds(now, self.node.stop_margin) => {}
                Role::Primary(primary) => {
                    self.duties(now, view, local, primary, key, term);
                }
            },
        }
    }

    /// Renews each `loop_wait`, and at once without a claim.
    pub(crate) fn renew_if_due(
        &mut self,
        now: Millis,
        leadership: &Leadership,
        status: Option<Status>,
    ) {
        let Leadership::Mine { key, .. } = leadership else {
            return;
        };
        if self.leader.unwell.is_some() || self.holds_back() {
            return;
        }
        // The leader key is about to hang on another lease.
        if matches!(self.lanes.running(Lane::Member), Some(Act::MoveLease { .. })) {
            return;
        }
        let due = self.leader.renewed_at.map(|at| at.plus(self.lease_period()));
        // A new cluster's first status is not waited for: lags are told from it.
        let first_status =
            status.is_some() && self.view.as_ref().is_some_and(|view| view.status.is_none());
        let due = if self.leader.renew_failed || first_status { None } else { due };
        if let Some(due) = due
            && now < due
        {
            self.wake_at(due);
            return;
        }
        let why =
            if self.claim.until().is_some() { Reason::RenewalDue } else { Reason::NoClaimYet };
        if self.issue_if_free(now, Act::Renew { leader_key: *key, status }, why) {
            self.leader.renewed_at = Some(now);
            self.leader.renew_failed = false;
        }
    }

    /// How often the lease is kept alive: each `loop_wait`, and at least twice before the agent
    /// would have to stop PostgreSQL, whatever the lease's present time to live is.
    pub(crate) fn lease_period(&self) -> Millis {
        let margins = 2 * self.node.stop_margin.0;
        let half = Millis(self.lease_ttl.0.saturating_sub(margins) / 2).max(Millis(500));
        self.dynamic.loop_wait.min(half)
    }

    /// Whether we hold a claim, and the guard would end PostgreSQL before it ends. Only then may
    /// anything become writable here (I1).
    pub(crate) fn may_write(&self, now: Millis) -> bool {
        !self.promised_to_wait(now)
            && self.claim.holds(now, self.node.stop_margin)
            && self.guard.is_some_and(|kill| now < kill)
    }

    /// We won (or took over) and PostgreSQL is in recovery.
    pub(crate) fn promote(
        &mut self,
        now: Millis,
        view: &ClusterView,
        local: &LocalPostgres,
        standby: &Standby,
        key: Revision,
        term: Term,
    ) {
        let Some(record) = view.term.as_ref().filter(|t| t.value.term == term) else {
            self.release(now, key, None, Reason::CannotLead);
            return;
        };
        // While it is promoted its files show the new timeline before it is out of recovery.
        if matches!(self.lanes.running(Lane::Data), Some(Act::Promote { .. })) {
            return;
        }
        // It has gone on since it won: another election says who is newest, and for which timeline.
        if Brain::follows_remote(standby) {
            self.release(now, key, None, Reason::CannotLead);
            return;
        }
        // A copy that replaced the one that won must not lead in its place: it has not its pledge.
        let pledge = local.durable.pledge.as_ref().map(|p| p.position);
        let won_here = pledge.is_some() && pledge == record.value.position;
        // A key that was taken again is for the timeline that was held; no copy in recovery is.
        let held = record.value.position.is_some_and(|p| p.timeline == record.value.timeline);
        let older = record.value.timeline < standby.timeline;
        // A winner's `/sync` names it. Another's was written again to give the leadership back, and
        // counts voters that would not hold what is acknowledged here (I2).
        let foreign =
            view.active_sync().is_some_and(|s| s.value.leader.as_ref() != Some(&self.node.name));
        if (local.durable.fresh_copy && !won_here) || held || older || foreign {
            self.release(now, key, None, Reason::CannotLead);
            return;
        }
        if record.value.timeline == standby.timeline {
            // Our number and nobody else's: an agent before this one has begun the promotion, or
            // this is the former primary, brought up in recovery when it had given up.
            if self.may_be_promoting(local) {
                self.await_promotion(now, local, key);
            } else {
                self.release(now, key, None, Reason::CannotLead);
            }
            return;
        }
        if !self.may_write(now) || self.bound_by_former_agent(now, view) {
            return;
        }
        let own = view.active_sync().map(|s| &s.value).filter(|s| !s.voters.is_empty());
        let sync = match own {
            // What the winner's transaction promised of each commit.
            Some(sync) => sync_set::rule_of(self.dynamic.synchronous_mode, sync),
            None => self.rule_before_promotion(now, view),
        };
        // Standbys get time to come back before anything goes on without them. Noted already now:
        // the first picture of the new primary comes before the end of the promotion is told.
        for name in names_of(&sync).names {
            self.leader.streaming_at.insert(name, now);
        }
        let act = Act::Promote { term, timeline: record.value.timeline, sync };
        if self.issue_if_free(now, act, Reason::HoldsLeaderKey { term }) {
            self.leader.told_to_promote = true;
        }
    }

    /// The rule in force from the first commit on. `/sync` has no voters in a new term, so only we
    /// may lead again, and any set of members is safe.
    /// Who is silent, as a leader that was deposed, is not waited for, unless nobody else is there
    /// and the settings are strict.
    pub(crate) fn rule_before_promotion(&self, now: Millis, view: &ClusterView) -> SyncRule {
        if !self.synchronous() {
            return SyncRule::Off;
        }
        let all = self.possible_standbys(view);
        let heard: BTreeSet<MemberName> =
            all.iter().filter(|name| !self.is_silent(now, name)).cloned().collect();
        let awaited = self.awaited_leader(now, view);
        let strict = self.dynamic.synchronous_mode_strict;
        let names = match awaited {
            Some(former) => BTreeSet::from([former]),
            None if heard.is_empty() && strict => all,
            None => heard,
        };
        let number = self.dynamic.synchronous_node_count.max(1).min(names.len());
        // In mode `on` everybody listed is waited for, and nobody knows yet who comes back; any
        // `number` of them is as safe while there are no voters.
        sync_set::rule(config::SynchronousMode::Quorum, SyncNames { number, names })
    }

    fn possible_standbys(&self, view: &ClusterView) -> BTreeSet<MemberName> {
        let others = view.members.iter().filter(|(name, _)| **name != self.node.name);
        others.filter(|(_, m)| m.value.tags.may_sync()).map(|(name, _)| name.clone()).collect()
    }

    /// Whom every commit of the next term waits for, if this member wins: in strict mode, with
    /// nobody to be heard who may be synchronous, the former leader
    /// (`docs/decisions/0009-strict-mode-awaits-the-former-leader.md`).
    pub(crate) fn awaited_leader(&self, now: Millis, view: &ClusterView) -> Option<MemberName> {
        if !self.synchronous() || !self.dynamic.synchronous_mode_strict {
            return None;
        }
        let former = view.term.as_ref().map(|t| &t.value.leader)?;
        let its_set = view.active_sync().is_some_and(|s| s.value.leader.as_ref() == Some(former));
        let known = view.member(former);
        let fit = known.is_none_or(|m| m.tags.may_sync());
        let mut others = self.possible_standbys(view);
        others.retain(|name| name != former && !self.is_silent(now, name));
        (its_set && fit && *former != self.node.name && others.is_empty()).then(|| former.clone())
    }

    /// What a running primary does.
    pub(crate) fn duties(
        &mut self,
        now: Millis,
        view: &ClusterView,
        local: &LocalPostgres,
        primary: &Primary,
        key: Revision,
        term: Term,
    ) {
        if self.operator_request(now, view, local, key, term) {
            return;
        }
        self.confirm(now, term);
        let confirmed = self.leader.confirmed == Some(term);
        // The first write comes first, alone; but whoever has to rewind before it can confirm
        // anything needs the checkpoint, and a rule that nobody can fulfil is changed.
        let since = self.leader.primary_since.unwrap_or(now).plus(self.dynamic.loop_wait);
        if !confirmed && now < since {
            self.wake_at(since);
            return;
        }
        self.reconcile_sync(now, view, primary, key);
        if !primary.checkpoint_done {
            self.issue(now, Act::Checkpoint, Reason::CheckpointAfterPromotion);
        }
        if !confirmed {
            return;
        }
        if local.durable.fresh_copy {
            // Whatever its past: what is acknowledged is in this copy now.
            self.issue(now, Act::ForgetFreshCopy, Reason::VoterAgain);
        }
        let published = self.leader.history_of == Some(primary.timeline);
        if primary.timeline > Timeline(1) && !published {
            let act = Act::PublishHistory { leader_key: key, timeline: primary.timeline };
            self.issue(now, act, Reason::TimelineChanged);
        }
        self.keep_failsafe_map(now, view, key);
    }

    /// Publishes a new or restarted primary only after a write that the rule in force acknowledged:
    /// what it recovered is then on a quorum, and nothing that a client reads can vanish (I2).
    pub(crate) fn confirm(&mut self, now: Millis, term: Term) {
        if self.leader.confirmed != Some(term) {
            self.issue(now, Act::ConfirmWrite, Reason::FirstWrite);
        }
    }

    /// One step of the synchronous set towards what streams.
    pub(crate) fn reconcile_sync(
        &mut self,
        now: Millis,
        view: &ClusterView,
        primary: &Primary,
        key: Revision,
    ) {
        self.end_strangers(now, primary);
        let expected = view.sync.as_ref().map(|s| s.mod_revision);
        if !self.synchronous() {
            if view.active_sync().is_some() {
                let act = Act::WriteSync { leader_key: key, expected, sync: None };
                self.issue(now, act, Reason::SyncOff);
            } else if !primary.sync.names.is_empty() {
                self.issue(now, Act::SetSync { sync: SyncRule::Off }, Reason::SyncOff);
            }
            return;
        }
        if self.leader.sync_unknown {
            // A late write of ours must not land after the names have moved: the same value again,
            // under a new revision, leaves it nothing to compare with.
            let sync = view.sync.as_ref().map(|s| s.value.clone());
            let act = Act::WriteSync { leader_key: key, expected, sync };
            self.issue(now, act, Reason::SyncUnknown);
            return;
        }
        let picture = self.sync_picture(now, view, primary);
        let why = Reason::SyncSet { active: picture.active.iter().cloned().collect() };
        match sync_set::next_step(&picture) {
            SyncStep::Settled => {}
            SyncStep::Wait => self.note_slow(now, &picture),
            SyncStep::Write(sync) => {
                // `/sync` and the names never move at the same time: the order is the safety.
                if self.lanes.running(Lane::Sync).is_none() {
                    let sync = Some(sync);
                    self.issue(now, Act::WriteSync { leader_key: key, expected, sync }, why);
                }
            }
            SyncStep::Set(sync) => {
                let writing = matches!(self.lanes.running(Lane::Dcs), Some(Act::WriteSync { .. }));
                if !writing {
                    self.issue(now, Act::SetSync { sync }, why);
                }
            }
        }
    }

    /// A standby that streams and does not confirm within a `loop_wait` holds nobody else up: it is
    /// left out until it has flushed what it was asked for.
    fn note_slow(&mut self, now: Millis, picture: &SyncPicture) {
        let (Some(at), Some((names, changed))) =
            (self.leader.taken_over_at, self.leader.taken_over.clone())
        else {
            return;
        };
        let until = at.plus(self.dynamic.loop_wait);
        if now < until {
            self.wake_at(until);
        } else if picture.confirmed.len() >= picture.wanted.max(1) {
            for name in names.names.difference(&picture.confirmed) {
                self.leader.slow.insert(name.clone(), changed);
            }
        }
    }

    fn sync_picture(&mut self, now: Millis, view: &ClusterView, primary: &Primary) -> SyncPicture {
        let taken = self.leader.taken_over.clone().filter(|(names, _)| *names == primary.sync);
        let confirmed = match &taken {
            Some((_, changed)) => streaming_members(primary)
                .filter(|r| r.listed && r.flush >= *changed)
                .map(|r| MemberName::from(r.name.as_str()))
                .collect(),
            None => BTreeSet::new(),
        };
        SyncPicture {
            me: self.node.name.clone(),
            mode: self.dynamic.synchronous_mode,
            strict: self.dynamic.synchronous_mode_strict,
            wanted: self.dynamic.synchronous_node_count,
            sync: view.sync.as_ref().map(|s| s.value.clone()),
            names: primary.sync.clone(),
            taken_over: taken.is_some(),
            active: self.active_standbys(now, view, primary),
            confirmed,
        }
    }

    /// Standbys that may be synchronous, best first: those that stream, and for a `loop_wait` more
    /// those that just stopped, if they vote or are needed.
    fn active_standbys(
        &mut self,
        now: Millis,
        view: &ClusterView,
        primary: &Primary,
    ) -> Vec<MemberName> {
        let mut ranked = Vec::new();
        let mut pausing = Vec::new();
        let lagging = self.lagging(view, primary);
        for (name, member) in &view.members {
            let no = !member.value.tags.may_sync() || lagging.contains(name);
            if *name == self.node.name || no {
                continue;
            }
            let priority = member.value.tags.sync_priority();
            let leads = member.value.tags.may_lead() && member.value.trouble.is_none();
            let replica = streaming_members(primary).find(|r| r.name == name.0);
            let streams = replica.is_some();
            if let Some(needed) = self.leader.slow.get(name).copied() {
                if replica.is_none_or(|r| r.flush < needed) {
                    continue;
                }
                self.leader.slow.remove(name);
            }
            // Whoever is in stays in among equals: a change costs two writes and gains nothing.
            let outside = !primary.sync.names.contains(name);
            let rank = (!leads, -priority, outside, name.clone());
            if streams {
                ranked.push(rank);
            } else if let Some(seen) = self.leader.streaming_at.get(name).copied() {
                let until = seen.plus(self.dynamic.loop_wait);
                if now < until && primary.sync.names.contains(name) {
                    pausing.push((rank, until));
                }
            }
        }
        let voters = view.active_sync().map(|s| s.value.voters.clone()).unwrap_or_default();
        let too_few = ranked.len() < self.dynamic.synchronous_node_count.max(1);
        for (rank, until) in pausing {
            if too_few || voters.contains(&rank.3) {
                self.wake_at(until);
                ranked.push(rank);
            }
        }
        ranked.sort();
        // Who may never lead is a voter only where there would be too few: with the newest position
        // in such hands nobody could be elected.
        let leaders = ranked.iter().filter(|(follows_only, ..)| !follows_only).count();
        ranked.truncate(leaders.max(self.dynamic.synchronous_node_count.max(1)));
        ranked.into_iter().map(|(.., name)| name).collect()
    }

    /// Standbys that lag more than `maximum_lag_on_syncnode` behind the best one, or a single one
    /// behind the primary: in what a commit waits for.
    fn lagging(&self, view: &ClusterView, primary: &Primary) -> BTreeSet<MemberName> {
        let Ok(most) = u64::try_from(self.dynamic.maximum_lag_on_syncnode) else {
            return BTreeSet::new();
        };
        let parameters = &self.dynamic.postgresql.parameters;
        let applies = parameters.get("synchronous_commit").is_some_and(|m| m == "remote_apply");
        let may = |name: &MemberName| view.member(name).is_some_and(|m| m.tags.may_sync());
        let positions: BTreeMap<MemberName, Lsn> = streaming_members(primary)
            .map(|r| (MemberName::from(r.name.as_str()), if applies { r.replay } else { r.flush }))
            .filter(|(name, _)| may(name))
            .collect();
        let best = match positions.len() {
            1 => Some(primary.flush),
            _ => positions.values().max().copied(),
        };
        let behind = |at: &Lsn| best.is_some_and(|best| best.bytes_since(*at) > most);
        let late = positions.into_iter().filter(|(_, at)| most > 0 && behind(at));
        late.map(|(name, _)| name).collect()
    }

    /// The `status` key's value.
    pub(crate) fn status(
        &mut self,
        view: &ClusterView,
        local: &LocalPostgres,
        primary: &Primary,
    ) -> Status {
        self.status_at(view, local, primary.flush)
    }

    /// The same at a position.
    pub(crate) fn status_at(
        &mut self,
        view: &ClusterView,
        local: &LocalPostgres,
        optime: Lsn,
    ) -> Status {
        let mut status = Status { optime, ..Status::default() };
        if let Process::Running(running) = &local.process {
            status.slots = self.slots_to_tell(&running.server.slots, optime);
        }
        status.retain_slots = self.retained_slots(local.at, view);
        status
    }

    /// Deletes the leader key.
    pub(crate) fn release(
        &mut self,
        now: Millis,
        key: Revision,
        status: Option<Status>,
        why: Reason,
    ) {
        // The key is about to have another revision: a release of this one would be refused, and
        // the key would stay with a leader that has given it up.
        if matches!(self.lanes.running(Lane::Member), Some(Act::MoveLease { leading: Some(_), .. }))
        {
            return;
        }
        let act = Act::ReleaseLeader { leader_key: key, status };
        if self.issue_if_free(now, act, why) {
            self.leader.releasing = Some(key);
            self.claim.clear();
            self.forget_agreement();
        }
    }
}

/// The set and number of a rule.
pub(crate) fn names_of(rule: &SyncRule) -> SyncNames {
    match rule {
        SyncRule::Off => SyncNames::default(),
        SyncRule::First(names) | SyncRule::Any(names) => names.clone(),
    }
}
