//! The brain's state, and the one entry: [`Brain::step`].

use std::sync::Arc;

use config::{Dynamic, SynchronousMode};
use serde_json::Value;
use types::{
    ClusterView, Control, DataDir, Fault, LocalPostgres, Member, MemberName, Millis, Process,
    Revision, Role, Tags, Term, Upstream,
};

use crate::action::{Act, Action, Lane, Outcome, StartAs, StopMode};
use crate::claim::{Claim, Lanes, UnderWay};
use crate::event::Event;
use crate::leader::LeaderMemory;
use crate::reason::Reason;

/// What a node knows about itself before anything happens.
#[derive(Debug, Clone)]
pub struct Node {
    /// Its name.
    pub name: MemberName,
    /// Its tags.
    pub tags: Tags,
    /// The constant part of its member key: addresses, versions, tags.
    pub member: Member,
    /// Whether it may create a new cluster (its file has a `bootstrap` section).
    pub may_bootstrap: bool,
    /// How long before the end of the claim the guard kills; PostgreSQL is stopped twice as early.
    pub stop_margin: Millis,
    /// The dynamic configuration that a new cluster gets.
    pub initial_config: Value,
}

/// Whose the leader key is, as far as the last view says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Leadership {
    Mine { key: Revision, term: Term },
    Other { name: MemberName, term: Term },
    Vacant,
}

/// The decisions of one node. See the crate's documentation.
#[derive(Debug, Clone)]
pub struct Brain {
    pub(crate) node: Node,
    pub(crate) local_settings: Option<Arc<config::Static>>,
    pub(crate) dynamic: Dynamic,
    pub(crate) config_revision: Option<Revision>,
    pub(crate) view: Option<Arc<ClusterView>>,
    pub(crate) local: Option<Arc<LocalPostgres>>,
    pub(crate) lease_ttl: Millis,
    /// What a lease was last moved for; the store may have given more.
    pub(crate) lease_asked: Option<Millis>,
    pub(crate) claim: Claim,
    /// The instant at which the guard is known to kill; `None` if it was told to stand down, or if
    /// nobody has told it anything yet.
    pub(crate) guard: Option<Millis>,
    guard_told: bool,
    pub(crate) lanes: Lanes,
    pub(crate) leader: LeaderMemory,
    pub(crate) election: crate::unlocked::ElectionClock,
    pub(crate) rewind_failures: u32,
    /// When this standby, which should stream and does not, was last told whom to follow.
    pub(crate) followed_at: Option<Millis>,
    /// The copy did not become consistent by itself; it is rewound or copied anew.
    pub(crate) never_consistent: bool,
    /// The term in which an unfinished rewind was stopped to be compared.
    pub(crate) stopped_under: Option<Term>,
    pub(crate) member_clock: crate::member_key::MemberClock,
    pub(crate) failsafe: crate::failsafe::FailsafeMemory,
    pub(crate) errands: crate::errand::Errands,
    pub(crate) peers: crate::suspicion::Peers,
    pub(crate) slots: crate::slots::SlotMemory,
    pub(crate) race: crate::race::Race,
    /// The bootstrap failed: the race is given back, and this agent ends.
    pub(crate) bootstrap_failed: bool,
    /// Since when a primary has been running here under our leader key without a claim of ours.
    no_claim_since: Option<Millis>,
    /// The start time of the server that ran when this agent began.
    found_running: Option<String>,
    /// Since when a primary has been running here without an armed guard.
    unguarded_since: Option<Millis>,
    /// The last orderly stop did not end in its time.
    fast_stop_failed: bool,
    /// Why and when this member gave the leadership away, or could not be promoted.
    pub(crate) gave_way: Option<(Fault, Millis)>,
    /// The newest term that another member told us of.
    pub(crate) term_seen: Term,
    pub(crate) asked_terms_at: Option<Millis>,
    /// What members that do not pledge said in this election.
    pub(crate) asked: crate::foreign::Asked,
    /// The leadership that was won here last.
    pub(crate) won: Option<crate::health::Won>,
    pub(crate) shutting_down: bool,
    pub(crate) nonce: u64,
    wake: Option<Millis>,
    out: Vec<Action>,
}

impl Brain {
    /// A brain that has seen nothing yet. `seed` makes the names of fences unique; two brains of
    /// one cluster must not share it.
    #[must_use]
    pub fn new(node: Node, seed: u64) -> Brain {
        let dynamic = Dynamic::from_json(&node.initial_config).map(|(d, _)| d).unwrap_or_default();
        Brain {
            lease_ttl: Millis::ZERO,
            lease_asked: None,
            node,
            local_settings: None,
            dynamic,
            config_revision: None,
            view: None,
            local: None,
            claim: Claim::default(),
            guard: None,
            guard_told: false,
            lanes: Lanes::default(),
            // What an agent before this one wrote to `/sync` may still arrive. Forgotten as soon as
            // the leader key is seen not to be ours.
            leader: LeaderMemory { sync_unknown: true, ..LeaderMemory::default() },
            election: crate::unlocked::ElectionClock::default(),
            rewind_failures: 0,
            followed_at: None,
            never_consistent: false,
            stopped_under: None,
            member_clock: crate::member_key::MemberClock::default(),
            failsafe: crate::failsafe::FailsafeMemory::default(),
            errands: crate::errand::Errands::default(),
            peers: crate::suspicion::Peers::default(),
            slots: crate::slots::SlotMemory::default(),
            race: crate::race::Race::default(),
            bootstrap_failed: false,
            no_claim_since: None,
            found_running: None,
            unguarded_since: None,
            fast_stop_failed: false,
            gave_way: None,
            term_seen: Term(0),
            asked_terms_at: None,
            asked: crate::foreign::Asked::default(),
            won: None,
            shutting_down: false,
            nonce: seed,
            wake: None,
            out: Vec::new(),
        }
    }

    /// Takes one piece of news into account and says what to do now.
    pub fn step(&mut self, now: Millis, event: Event) -> Vec<Action> {
        self.note_lateness(now, self.wake);
        let event = match event {
            Event::Heard { from, said } => {
                let new = self.hear(now, from, said);
                if !new && self.wake.is_none_or(|wake| now < wake) {
                    return Vec::new();
                }
                Event::Tick
            }
            other => other,
        };
        self.wake = None;
        self.note_beginning(now);
        self.absorb(now, event);
        self.evaluate(now);
        if let Some(retry) = self.lanes.next_retry(now) {
            self.wake_at(retry);
        }
        std::mem::take(&mut self.out)
    }

    /// When to send a [`Event::Tick`] at the latest, besides one each `loop_wait`.
    #[must_use]
    pub fn next_wake(&self) -> Option<Millis> {
        self.wake
    }

    /// Until when this node may act as the leader; for REST answers.
    #[must_use]
    pub fn claim_until(&self) -> Option<Millis> {
        self.claim.until()
    }

    /// The dynamic configuration in force.
    #[must_use]
    pub fn dynamic(&self) -> &Dynamic {
        &self.dynamic
    }

    /// This member's tags.
    #[must_use]
    pub fn tags(&self) -> &Tags {
        &self.node.tags
    }

    /// The member key's value as of the last step.
    #[must_use]
    pub fn member(&self) -> Option<&Member> {
        self.member_clock.last()
    }

    /// What the node's own file says: tags, addresses, and settings that override the cluster's. At
    /// start and after a reload.
    pub fn reconfigure(&mut self, node: Node, local: Arc<config::Static>) {
        self.node = node;
        self.local_settings = Some(local);
        self.config_revision = None;
        self.dynamic = self.overridden(self.dynamic.clone());
    }

    fn overridden(&self, dynamic: Dynamic) -> Dynamic {
        self.local_settings.as_ref().map_or(dynamic.clone(), |local| dynamic.merged(local))
    }

    fn absorb(&mut self, now: Millis, event: Event) {
        match event {
            Event::Tick | Event::Heard { .. } => {}
            Event::WallClock { unix } => self.errands.note_wall(now, unix),
            Event::Asked { id, request } => self.take_request(now, id, request),
            Event::View(view) => self.absorb_view(now, view),
            Event::Lease { ttl } => self.lease_ttl = ttl,
            Event::Local(local) => {
                if self.local.is_none()
                    && let Process::Running(running) = &local.process
                {
                    self.found_running = Some(running.server.started.clone());
                }
                self.note_local(now, &local);
                self.race.note_local(now, &local);
                self.local = Some(Arc::new(*local));
            }
            Event::Finished { id, outcome } => {
                let limit = self.dynamic.loop_wait;
                if let Some(ended) = self.lanes.finish(now, id, outcome, limit) {
                    self.absorb_end(now, &ended, outcome);
                }
            }
            Event::TermSeen { term } => self.note_term(term),
            Event::Positions { answers } => self.note_foreign(answers),
            Event::Held { held } => self.failsafe.note_held(held),
            Event::FailsafeClaim(claim) => self.absorb_failsafe_claim(now, &claim),
            Event::Shutdown => {
                self.shutting_down = true;
                self.errands.note_shutdown(now);
            }
        }
    }

    fn absorb_view(&mut self, now: Millis, view: Arc<ClusterView>) {
        if let Some(config) = &view.config
            && self.config_revision != Some(config.mod_revision)
        {
            self.config_revision = Some(config.mod_revision);
            // A document that does not parse leaves the old one in force, as Patroni does.
            if let Ok((dynamic, _)) = Dynamic::from_json(&config.value) {
                self.dynamic = self.overridden(dynamic);
            }
        }
        self.note_own_fence(&view);
        self.race.note_view(&view);
        self.view = Some(view);
        if matches!(self.leadership(), Some(Leadership::Other { .. })) {
            // Somebody else leads: that was what giving way was for.
            self.gave_way = None;
            self.forget_foreign();
        }
        if !matches!(self.leadership(), Some(Leadership::Mine { .. })) {
            self.claim.clear();
            // Who streams does so from this server, whatever became of its key.
            let streaming_at = std::mem::take(&mut self.leader.streaming_at);
            self.leader = LeaderMemory { streaming_at, ..LeaderMemory::default() };
            self.note_no_leader_key(now);
        }
    }

    fn absorb_end(&mut self, now: Millis, ended: &UnderWay, outcome: Outcome) {
        let done = outcome == Outcome::Done;
        if let Act::Stop { mode } = &ended.act {
            self.fast_stop_failed = !done && *mode == StopMode::Fast;
        }
        self.note_errand_act(now, &ended.act, outcome);
        match &ended.act {
            Act::Renew { .. } => self.absorb_renewal(ended, done),
            Act::MoveLease { ttl, .. } if done => self.lease_asked = Some(*ttl),
            Act::AskFailsafe { ttl, .. } => self.note_round(ended.issued, *ttl, done),
            Act::WriteFailsafe { .. } => self.note_map_written(done),
            Act::ArmGuard { kill_at } => {
                // A guard that did not answer is none (I4).
                self.guard = done.then_some(*kill_at);
                self.guard_told |= done;
            }
            Act::StandDownGuard if done => (self.guard, self.guard_told) = (None, true),
            Act::Rewind { .. } | Act::Clone { .. } if done => {
                self.rewind_failures = 0;
                self.never_consistent = false;
            }
            Act::Rewind { .. } if outcome == Outcome::Failed => self.rewind_failures += 1,
            Act::FetchSlots { names, .. } if done => self.note_fetched(names),
            Act::StandDownGuard
            | Act::Rewind { .. }
            | Act::Clone { .. }
            | Act::Restore
            | Act::TouchMember { .. }
            | Act::MoveLease { .. }
            | Act::TakeInitialize
            | Act::CancelInitialize
            | Act::FinishBootstrap { .. }
            | Act::OpenFence { .. }
            | Act::WritePledge { .. }
            | Act::VoidFence { .. }
            | Act::TakeLeadership(_)
            | Act::RetakeLeadership(_)
            | Act::ReleaseLeader { .. }
            | Act::WriteHold { .. }
            | Act::RemoveHold { .. }
            | Act::ClearFailover { .. }
            | Act::Compare { .. }
            | Act::AskTerms { .. }
            | Act::AskPositions { .. }
            | Act::Follow { .. }
            | Act::StopReceiving { .. }
            | Act::EndOrphans
            | Act::EndStrangers { .. }
            | Act::ForgetFreshCopy
            | Act::FetchSlots { .. }
            | Act::CopySlots { .. }
            | Act::Exit { .. } => {}
            // An archive that does not take it is said, and no reason to stay down.
            Act::ArchiveShutdownCheckpoint => self.leader.archived_last = true,
            Act::Initdb => self.bootstrap_failed = !done,
            Act::PublishHistory { .. }
            | Act::WriteSync { .. }
            | Act::Start { .. }
            | Act::Stop { .. }
            | Act::StopForHandOver { .. }
            | Act::Promote { .. }
            | Act::SetSync { .. }
            | Act::ConfirmWrite
            | Act::Checkpoint => self.absorb_leader_end(now, ended, outcome),
            Act::SyncSlots { .. } => self.slots.changed_at = now,
            Act::DecodeSlots { .. } => self.slots.decoded_at = now,
            Act::Knock { .. } => self.note_knock(ended, done),
        }
    }

    fn absorb_renewal(&mut self, ended: &UnderWay, done: bool) {
        if done && matches!(self.leadership(), Some(Leadership::Mine { .. })) {
            self.claim.extend(ended.issued, self.lease_ttl.min(self.dynamic.ttl));
            // The DCS has the last word: we lead, whatever anybody has told.
            self.term_seen = Term(0);
        }
        self.leader.renew_failed = !done;
        self.note_renewal(done);
    }

    /// One complete evaluation of everything that is known.
    fn evaluate(&mut self, now: Millis) {
        let (Some(view), Some(local)) = (self.view.clone(), self.local.clone()) else {
            return;
        };
        if self.wrong_cluster(now, &view, &local) {
            return;
        }
        let leadership = leadership_of(&view, &self.node.name);
        self.take_over_confirmation(&view, &local, &leadership);
        self.note_confirmed(&local, &leadership);
        self.duty_of_guard(now, &local, &leadership);
        self.watch_trouble(now, &local);
        self.scheduled_restart(now);
        self.run_errand(now, &view, &local, &leadership);
        self.touch_member(now, &view, &local, &leadership);
        self.move_lease(now, &view, &local, &leadership);
        self.suspect(now, &view, &local);
        self.remove_stale_hold(now, &view, &leadership);
        if self.take_over(now, &view, &local, &leadership) {
            return;
        }
        if self.dynamic.pause && self.shutting_down {
            // PostgreSQL stays as it is; whoever comes next takes it over.
            self.issue(now, Act::Exit { code: 0 }, Reason::ShuttingDown);
            return;
        }
        if self.dynamic.pause {
            self.paused(now, &view, &local, &leadership);
            self.care_for_slots(now, &view, &local);
            return;
        }
        if local.process == Process::Orphaned {
            self.issue(now, Act::EndOrphans, Reason::Orphans);
        }
        if self.stop_before_the_claim_ends(now, &local, &leadership) {
            return;
        }
        if self.shutting_down {
            self.shut_down(now, &view, &local, &leadership);
            return;
        }
        match leadership {
            Leadership::Mine { key, term } => self.lead(now, &view, &local, key, term),
            Leadership::Other { name, term } => self.follow(now, &view, &local, &name, term),
            Leadership::Vacant => self.unlocked(now, &view, &local),
        }
        self.care_for_slots(now, &view, &local);
    }

    /// A restarted agent goes on where the former one was (I7): a primary that was published in
    /// this term and that nobody can have restarted since, as only agents start PostgreSQL, stays
    /// so. So does one that took its leader key again.
    fn take_over_confirmation(
        &mut self,
        view: &ClusterView,
        local: &LocalPostgres,
        leadership: &Leadership,
    ) {
        let Leadership::Mine { term, .. } = leadership else {
            return;
        };
        let Process::Running(running) = &local.process else {
            return;
        };
        let found = self.found_running.as_ref() == Some(&running.server.started);
        let primary = matches!(running.role, Role::Primary(_));
        let published = view
            .member(&self.node.name)
            .is_some_and(|m| m.role == "primary" && m.term == Some(*term));
        let carried = self.confirmed_before(&running.server.started, *term);
        if primary && (carried || (found && published)) && self.leader.confirmed.is_none() {
            self.leader.confirmed = Some(*term);
        }
    }

    /// A data directory of another cluster never takes part (system identifier).
    fn wrong_cluster(&mut self, now: Millis, view: &ClusterView, local: &LocalPostgres) -> bool {
        let (Some(cluster), Some(control)) = (view.system_identifier(), control_of(local)) else {
            return false;
        };
        if cluster == control.system_identifier || self.dynamic.pause {
            return false;
        }
        let why = Reason::WrongCluster {
            cluster: cluster.to_owned(),
            ours: control.system_identifier.clone(),
        };
        if local.process == Process::Stopped {
            self.issue(now, Act::Exit { code: 1 }, why);
        } else {
            self.stop_fast(now, why);
        }
        true
    }

    /// I1: without a renewal PostgreSQL stops before the claim ends.
    fn stop_before_the_claim_ends(
        &mut self,
        now: Millis,
        local: &LocalPostgres,
        leadership: &Leadership,
    ) -> bool {
        if !self.may_be_primary(local) || !matches!(leadership, Leadership::Mine { .. }) {
            self.no_claim_since = None;
            return false;
        }
        let margin = self.node.stop_margin;
        let (stop_at, until) = match (self.claim.stop_at(margin), self.claim.until()) {
            (Some(stop_at), Some(until)) => {
                self.no_claim_since = None;
                (stop_at, until)
            }
            // A restarted agent found its primary running (I7). The guard of the former agent keeps
            // its deadline; within one round of retries our own first renewal has to succeed.
            (None, _) | (_, None) => {
                let since = *self.no_claim_since.get_or_insert(now);
                let stop_at = since.plus(self.dynamic.retry_timeout);
                (stop_at, stop_at)
            }
        };
        if now < stop_at {
            self.wake_at(stop_at);
            return self.stop_without_guard(now, local);
        }
        self.stop_now(now, local, Reason::LeaseRunsOut { claim_until: until });
        // The claim may be renewed again while PostgreSQL stops; only then goes anything on.
        self.renew_if_due(now, leadership, None);
        true
    }

    /// A primary does not go on without a guard: an agent that freezes then has nobody to stop it.
    fn stop_without_guard(&mut self, now: Millis, local: &LocalPostgres) -> bool {
        if self.guard.is_some_and(|kill_at| now < kill_at) {
            self.unguarded_since = None;
            return false;
        }
        let since = *self.unguarded_since.get_or_insert(now);
        let stop_at = since.plus(self.dynamic.retry_timeout);
        if now < stop_at {
            self.wake_at(stop_at);
            return false;
        }
        self.gave_way = Some((Fault::NoGuard, now));
        self.stop_now(now, local, Reason::NoGuard);
        true
    }

    /// Tells the guard when to kill, or that there is nothing to kill.
    fn duty_of_guard(&mut self, now: Millis, local: &LocalPostgres, leadership: &Leadership) {
        let may_write = self.may_be_primary(local);
        // Under a key that is being given away nothing becomes writable any more.
        let mine = match leadership {
            Leadership::Mine { key, .. } => may_write || self.leader.releasing != Some(*key),
            Leadership::Other { .. } | Leadership::Vacant => false,
        };
        let unguarded = self.dynamic.pause && !(mine && self.becomes_primary_in_pause(local));
        if unguarded || (!mine && !may_write) {
            if self.guard.is_some() || !self.guard_told {
                let why = Reason::NothingToGuard;
                self.issue_if_free(now, Act::StandDownGuard, why);
            }
            return;
        }
        if !mine {
            // Still writable without the leader key: whatever deadline is set stays set.
            return;
        }
        if let Some(kill_at) = self.claim.kill_at(self.node.stop_margin)
            && self.guard.is_none_or(|armed| armed < kill_at)
        {
            self.issue_if_free(now, Act::ArmGuard { kill_at }, Reason::ClaimExtended);
        }
    }

    /// SIGTERM: the leader hands over, everybody stops, the agent ends.
    fn shut_down(
        &mut self,
        now: Millis,
        view: &ClusterView,
        local: &LocalPostgres,
        leadership: &Leadership,
    ) {
        let making = matches!(
            self.lanes.running(Lane::Data),
            Some(Act::Initdb | Act::Clone { .. } | Act::Restore)
        );
        if making {
            // May take hours, and is begun anew.
            self.stop_now(now, local, Reason::ShuttingDown);
            return;
        }
        if let Leadership::Mine { key, term } = leadership {
            self.renew_if_due(now, leadership, None);
            let why = Reason::ShuttingDown;
            self.hand_over_and_release(now, view, local, (*key, *term), None, why);
        } else if local.process == Process::Stopped {
            if self.lanes.running(Lane::Data).is_none() {
                self.issue(now, Act::Exit { code: 0 }, Reason::ShuttingDown);
            }
        } else if !self.leaves_set_first(now, view, leadership) {
            self.stop_fast(now, Reason::ShuttingDown);
        }
    }

    /// An orderly stop; after one that did not end in its time, an immediate one.
    pub(crate) fn stop_fast(&mut self, now: Millis, why: Reason) {
        let mode = if self.fast_stop_failed { StopMode::Immediate } else { StopMode::Fast };
        self.issue(now, Act::Stop { mode }, why);
    }

    /// Stops a primary that must not write any more; takes the data lane over if something runs.
    pub(crate) fn stop_now(&mut self, now: Millis, local: &LocalPostgres, why: Reason) {
        if local.process == Process::Stopped && self.lanes.running(Lane::Data).is_none() {
            return;
        }
        let stop = Act::Stop { mode: StopMode::Immediate };
        match self.lanes.running(Lane::Data) {
            Some(Act::Stop { mode: StopMode::Immediate } | Act::EndOrphans) => {}
            // No pause after an earlier failure holds this up.
            Some(_) | None => {
                let action = self.lanes.issue(now, stop, why);
                self.out.push(action);
            }
        }
    }

    /// Whether the instance accepts writes, or may do so any moment.
    pub(crate) fn may_be_primary(&self, local: &LocalPostgres) -> bool {
        let becoming = match self.lanes.running(Lane::Data) {
            Some(Act::Promote { .. }) => true,
            Some(Act::Start { start_as, .. }) => *start_as == StartAs::Primary,
            Some(_) | None => false,
        };
        let signal = control_of(local).is_some_and(|c| c.standby_signal);
        becoming
            || match &local.process {
                Process::Stopped => false,
                Process::Orphaned | Process::NotReady { .. } | Process::Silent { .. } => !signal,
                Process::Running(running) => matches!(running.role, Role::Primary(_)),
            }
    }

    /// Whether a server in recovery may have been told to promote: by us, or by an agent before
    /// this one. A server forgets that when it starts.
    pub(crate) fn may_be_promoting(&self, local: &LocalPostgres) -> bool {
        let found = match &local.process {
            Process::Running(running) => {
                self.found_running.as_ref() == Some(&running.server.started)
            }
            _ => false,
        };
        found || self.leader.told_to_promote
    }

    /// Whose the leader key is.
    pub(crate) fn leadership(&self) -> Option<Leadership> {
        self.view.as_ref().map(|view| leadership_of(view, &self.node.name))
    }

    /// Issues an action if its lane is free; otherwise this evaluation has nothing to add.
    pub(crate) fn issue(&mut self, now: Millis, act: Act, why: Reason) {
        self.issue_if_free(now, act, why);
    }

    /// As [`Brain::issue`]; says whether the action was issued.
    pub(crate) fn issue_if_free(&mut self, now: Millis, act: Act, why: Reason) -> bool {
        let free = self.lanes.free(act.lane(), now);
        if free {
            let action = self.lanes.issue(now, act, why);
            self.out.push(action);
        }
        free
    }

    /// Asks for a tick at `at`.
    pub(crate) fn wake_at(&mut self, at: Millis) {
        if self.wake.is_none_or(|old| at < old) {
            self.wake = Some(at);
        }
    }

    /// A number that no other call returns (splitmix64).
    pub(crate) fn next_nonce(&mut self) -> u64 {
        self.nonce = self.nonce.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.nonce;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// Whether the cluster shall replicate synchronously; a standby cluster never does.
    pub(crate) fn synchronous(&self) -> bool {
        self.dynamic.synchronous_mode != SynchronousMode::Off
            && self.dynamic.standby_cluster.is_none()
    }
}

fn leadership_of(view: &ClusterView, me: &MemberName) -> Leadership {
    match &view.leader {
        None => Leadership::Vacant,
        Some(leader) => {
            let term = view.leader_term().unwrap_or_default();
            if leader.value.name == *me {
                Leadership::Mine { key: leader.mod_revision, term }
            } else {
                Leadership::Other { name: leader.value.name.clone(), term }
            }
        }
    }
}

/// pg_control, if there is a data directory.
pub(crate) fn control_of(local: &LocalPostgres) -> Option<&Control> {
    match &local.data_dir {
        DataDir::Present(control) => Some(control),
        DataDir::Empty | DataDir::Unusable { .. } => None,
    }
}

/// A member as somebody to stream from.
pub(crate) fn upstream_of(view: &ClusterView, name: &MemberName) -> Option<Upstream> {
    let (host, port) = view.member(name)?.postgres_address()?;
    Some(Upstream { name: name.clone(), host, port })
}
