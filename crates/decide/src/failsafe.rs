//! `failsafe_mode`: a primary goes on without the DCS as long as every other member agrees; and a
//! primary that ran on rightfully takes the leader key again.
//!
//! Why two writers cannot come of it is told in `docs/decisions/0005-failsafe.md`. In short:
//! whoever answers `Accepted` promises, for `ttl` from that moment on its own clock, that nothing
//! becomes writable on it and that it takes no part in an election. The leader counts its claim
//! from before it asked, which is earlier, and only when **every** other member of the map has
//! answered; boot-time clocks run at one rate. Whoever is not in the map takes no part in elections
//! (I1, I4).

use std::collections::BTreeMap;

use types::{
    ClusterView, DurablePromise, LocalPostgres, Lsn, MemberName, Millis, Position, Primary,
    Process, Revision, Role, Running, Term, TermRecord,
};

use crate::action::{Act, Lane, Retake, StartAs};
use crate::brain::{Brain, Leadership, control_of};
use crate::reason::Reason;
use crate::unlocked::is_operators_word;

/// What a leader that cannot reach the DCS says to the other members.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FailsafeClaim {
    /// Who asks.
    pub leader: MemberName,
    /// Its term; a Patroni leader names none.
    pub term: Option<Term>,
    /// For how long it will go on; a Patroni leader does not say, our own `ttl` counts then.
    pub ttl: Millis,
    /// Where its slots are.
    pub slots: BTreeMap<String, Lsn>,
}

/// What a member says to such a leader.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FailsafeAnswer {
    /// It promises to wait.
    Accepted,
    /// It is a primary, or leads.
    RunningAsLeader,
    /// `failsafe_mode` is off.
    Off,
    /// It cannot promise: why.
    Refused(&'static str),
}

/// No promise is longer than this, whatever is asked for.
const PROMISE_MAX: Millis = Millis::from_secs(3_600);
/// The bounds of one round of questions.
const ROUND_MIN: Millis = Millis(100);
const ROUND_MAX: Millis = Millis::from_secs(2);

/// What is remembered of failsafe mode, and of the server that runs here.
#[derive(Debug, Clone, Default)]
pub(crate) struct FailsafeMemory {
    /// The first event of this agent.
    began: Option<Millis>,
    /// Whom we promised to wait for, and until when.
    promise: Option<(MemberName, Millis)>,
    /// How long that was when it was given.
    span: Millis,
    answer: Option<FailsafeAnswer>,
    /// A renewal did not succeed, and none has since.
    unanswered: bool,
    /// Since when not every member that was asked has agreed.
    refused_since: Option<Millis>,
    /// When the members were last asked; `None` to ask again at once.
    asked_at: Option<Millis>,
    /// Until when we may act as the leader because every member agreed.
    until: Option<Millis>,
    /// `/failsafe` is what we wrote under this leader key: no write of anybody can still be under
    /// way, and whoever it does not name takes no part in elections.
    settled: bool,
    confirmed: Option<Confirmed>,
    /// The leader's slots, as it told whom it asked, and where `status` stood then.
    slots: Option<(BTreeMap<String, Lsn>, Option<Revision>)>,
    /// What the members that were asked hold.
    held: BTreeMap<MemberName, Lsn>,
}

impl FailsafeMemory {
    /// The leader's slots as it told them, unless `status` says something newer.
    pub(crate) fn slots_told(&self, view: &ClusterView) -> Option<&BTreeMap<String, Lsn>> {
        let (slots, at) = self.slots.as_ref()?;
        (*at == view.status.as_ref().map(|s| s.mod_revision)).then_some(slots)
    }

    /// What members said that they hold while the DCS did not answer.
    pub(crate) fn held(&self) -> &BTreeMap<MemberName, Lsn> {
        &self.held
    }

    pub(crate) fn note_held(&mut self, held: BTreeMap<MemberName, Lsn>) {
        self.held = held;
    }
}

/// The server whose first write was acknowledged in a term of ours.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Confirmed {
    /// When its postmaster started: another one is another server.
    server: String,
    term: Term,
    /// The leader key's modification revision, which is the term record's too.
    key: Revision,
}

impl Brain {
    /// Until when failsafe mode is in force here: as a leader that every member agreed to, or as a
    /// member that agreed.
    #[must_use]
    pub fn failsafe_until(&self) -> Option<Millis> {
        let promised = self.failsafe.promise.as_ref().map(|(_, until)| *until);
        promised.max(self.failsafe.until)
    }

    /// The answer to the last [`Event::FailsafeClaim`](crate::Event::FailsafeClaim); it is given
    /// only after that event was taken in.
    #[must_use]
    pub fn failsafe_answer(&self) -> Option<FailsafeAnswer> {
        self.failsafe.answer
    }

    /// What has to be on disk before a claim is answered [`FailsafeAnswer::Accepted`]: an agent
    /// after this one knows by it what it is bound to.
    #[must_use]
    pub fn promise(&self) -> Option<DurablePromise> {
        let (_, until) = self.failsafe.promise.as_ref()?;
        Some(DurablePromise { until: *until, span: self.failsafe.span })
    }

    /// Every event is noted: the first one says when this agent began.
    pub(crate) fn note_beginning(&mut self, now: Millis) {
        self.failsafe.began.get_or_insert(now);
    }

    /// A leader asks us to wait for it. The promise binds from here on: it is taken in before
    /// anything else is decided, and only then is the answer sent.
    pub(crate) fn absorb_failsafe_claim(&mut self, now: Millis, claim: &FailsafeClaim) {
        let answer = self.answer_to(now, claim);
        if answer == FailsafeAnswer::Accepted {
            let span = self.dynamic.ttl.max(claim.ttl.min(PROMISE_MAX));
            let until = now.plus(span).max(self.failsafe.promise.as_ref().map_or(now, |p| p.1));
            self.failsafe.promise = Some((claim.leader.clone(), until));
            self.failsafe.span = span;
            let status = self.view.as_ref().and_then(|view| view.status.as_ref());
            self.failsafe.slots =
                Some((claim.slots.clone(), status.map(|status| status.mod_revision)));
        }
        self.failsafe.answer = Some(answer);
    }

    /// Whatever is not known is no agreement (I4).
    fn answer_to(&self, now: Millis, claim: &FailsafeClaim) -> FailsafeAnswer {
        let (Some(view), Some(local), Some(leadership)) =
            (&self.view, &self.local, self.leadership())
        else {
            return FailsafeAnswer::Refused("nothing is known yet");
        };
        if self.may_be_primary(local) || matches!(leadership, Leadership::Mine { .. }) {
            return FailsafeAnswer::RunningAsLeader;
        }
        if !self.dynamic.failsafe_mode {
            return FailsafeAnswer::Off;
        }
        // Its voice in an election may be counted already, and then it receives nothing any more.
        let electing = matches!(
            self.lanes.running(Lane::Dcs),
            Some(
                Act::OpenFence { .. }
                    | Act::WritePledge { .. }
                    | Act::TakeLeadership(_)
                    | Act::RetakeLeadership(_)
            )
        );
        let pledging = matches!(self.lanes.running(Lane::Data), Some(Act::StopReceiving { .. }));
        if electing || pledging || local.durable.pledge.is_some() {
            return FailsafeAnswer::Refused("taking part in an election");
        }
        if matches!(&leadership, Leadership::Other { name, .. } if *name != claim.leader) {
            return FailsafeAnswer::Refused("another member leads");
        }
        let known = view.term.as_ref().map_or(Term(0), |t| t.value.term).max(local.durable.term);
        if claim.term.is_some_and(|term| term < known) {
            return FailsafeAnswer::Refused("a newer term is known");
        }
        match &self.failsafe.promise {
            Some((leader, until)) if *leader != claim.leader && now < *until => {
                FailsafeAnswer::Refused("another leader was promised to be waited for")
            }
            Some(_) | None => FailsafeAnswer::Accepted,
        }
    }

    /// Whether a promise binds us: nothing becomes writable here meanwhile (I1).
    pub(crate) fn promised_to_wait(&self, now: Millis) -> bool {
        self.failsafe.promise.as_ref().is_some_and(|(_, until)| now < *until)
    }

    /// Whether a promise of an agent before this one still binds: it stands in the state directory.
    /// Where that may be another than it was, for one `ttl` after its start an agent acts as if
    /// there were one.
    pub(crate) fn bound_by_former_agent(&self, now: Millis, view: &ClusterView) -> bool {
        let Some(durable) = self.local.as_ref().map(|local| &local.durable) else {
            return true;
        };
        if durable.promise.is_some_and(|promise| now < promise.until) {
            return true;
        }
        durable.fresh_copy && self.may_lack_promise(now, view)
    }

    /// Whether a promise of an agent before this one may have been lost with its state directory
    /// and still bind. Until then a copy is known as one, over a restart of the agent, too.
    pub(crate) fn may_lack_promise(&self, now: Millis, view: &ClusterView) -> bool {
        self.dynamic.failsafe_mode
            && failsafe_map(view).is_some()
            && self.failsafe.began.is_none_or(|began| now < began.plus(self.dynamic.ttl))
    }

    /// Whether failsafe mode keeps us out of elections now: by a promise, by one that a former
    /// agent may have made, or because the last leader's map does not name us, so that it goes on
    /// without asking us. An operator's word overrules the last.
    pub(crate) fn kept_out_by_failsafe(&mut self, now: Millis, view: &ClusterView) -> bool {
        if let Some((_, until)) = &self.failsafe.promise
            && now < *until
        {
            self.wake_at(*until);
            return true;
        }
        if self.bound_by_former_agent(now, view) {
            let promise = self.local.as_ref().and_then(|local| local.durable.promise);
            let began = self.failsafe.began.unwrap_or(now);
            let until = promise.map(|promise| promise.until).filter(|until| now < *until);
            self.wake_at(until.unwrap_or(began.plus(self.dynamic.ttl)));
            return true;
        }
        let me = &self.node.name;
        let named = view.failover_request().and_then(|r| r.member.as_ref()) == Some(me);
        let stranger = failsafe_map(view).is_some_and(|map| !map.contains_key(me));
        self.dynamic.failsafe_mode && stranger && !(named && is_operators_word(view))
    }

    /// A renewal has ended.
    pub(crate) fn note_renewal(&mut self, done: bool) {
        self.failsafe.unanswered = !done;
        if done {
            self.failsafe.until = None;
            self.failsafe.asked_at = None;
            self.failsafe.refused_since = None;
            self.failsafe.held.clear();
        }
    }

    /// Whether a renewal is unanswered, and none has succeeded since.
    pub(crate) fn dcs_is_silent(&self) -> bool {
        self.failsafe.unanswered
    }

    /// The members were asked, at `asked` with `ttl`. The claim runs from before the question went
    /// out (I1).
    pub(crate) fn note_round(&mut self, asked: Millis, ttl: Millis, agreed: bool) {
        if !agreed {
            self.failsafe.asked_at = None;
            self.failsafe.refused_since.get_or_insert(asked);
            return;
        }
        self.failsafe.refused_since = None;
        let mine = matches!(self.leadership(), Some(Leadership::Mine { .. }));
        if (mine && self.failsafe.unanswered) || self.failsafe.until.is_some() {
            self.failsafe.until = self.failsafe.until.max(Some(asked.plus(ttl)));
            self.claim.extend(asked, ttl);
        }
    }

    /// A write of `/failsafe` began, or ended.
    pub(crate) fn note_map_written(&mut self, done: bool) {
        self.failsafe.settled = done;
    }

    /// The leader key is being given away: what the members agreed to is not used any more.
    pub(crate) fn forget_agreement(&mut self) {
        self.failsafe.until = None;
    }

    /// The leader key is not ours. What the members agreed to holds without it, unless another
    /// member leads.
    pub(crate) fn note_no_leader_key(&mut self, now: Millis) {
        self.failsafe.settled = false;
        self.failsafe.unanswered = false;
        self.failsafe.asked_at = None;
        self.failsafe.refused_since = None;
        if self.leadership() != Some(Leadership::Vacant) {
            self.failsafe.until = None;
            self.failsafe.confirmed = None;
        } else if let Some(until) = self.failsafe.until.filter(|until| now < *until) {
            self.claim.keep(until);
        }
    }

    /// Remembers the server that is published in our term.
    pub(crate) fn note_confirmed(&mut self, local: &LocalPostgres, leadership: &Leadership) {
        if let Leadership::Mine { key, term } = leadership
            && self.leader.confirmed == Some(*term)
            && *term > Term(0)
            && let Some((server, _)) = running_primary(local)
        {
            let (server, term, key) = (server.to_owned(), *term, *key);
            self.failsafe.confirmed = Some(Confirmed { server, term, key });
        }
    }

    /// Whether this server was published in our term before this one, and has run on since: what
    /// was proved then still holds.
    pub(crate) fn confirmed_before(&self, server: &str, term: Term) -> bool {
        let run = self.failsafe.confirmed.as_ref();
        run.is_some_and(|run| run.server == server && run.term.next() == term)
    }

    /// Whether a primary without a leader key may keep its role in its member key: it is the one
    /// that was published, and its claim or the pause lets it run.
    pub(crate) fn stays_published(&self, server: &str) -> bool {
        let same = self.failsafe.confirmed.as_ref().is_some_and(|run| run.server == server);
        same && (self.dynamic.pause || self.claim.until().is_some())
    }

    /// Writes `/failsafe` as the leader: who must agree before we go on without the DCS. Whatever
    /// was written before our term is written anew, so that a late write of it cannot land.
    pub(crate) fn keep_failsafe_map(&mut self, now: Millis, view: &ClusterView, key: Revision) {
        if !self.dynamic.failsafe_mode || view.fence.is_some() {
            return;
        }
        let urls = view.members.iter().map(|(name, m)| (name.clone(), m.value.api_url.clone()));
        let mut members: BTreeMap<MemberName, String> =
            urls.filter(|(_, url)| !url.is_empty()).collect();
        members.insert(self.node.name.clone(), self.node.member.api_url.clone());
        let there = view.failsafe.as_ref();
        if self.failsafe.settled && there.is_some_and(|f| f.value == members) {
            return;
        }
        if self.rests_on_agreement() {
            return;
        }
        let expected = there.map(|f| f.mod_revision);
        let act = Act::WriteFailsafe { leader_key: key, expected, members };
        if self.issue_if_free(now, act, Reason::FailsafeMembers) {
            self.note_map_written(false);
        }
    }

    /// Whether our claim lasts, or may soon last, longer than the lease: by the word of those whom
    /// the map names now. Whoever it named then would not be bound, and could be elected when the
    /// lease ends (I1).
    fn rests_on_agreement(&self) -> bool {
        self.failsafe.unanswered
            || self.failsafe.until.is_some()
            || self.lanes.running(Lane::Failsafe).is_some()
            || !self.claim.fits(self.lease_ttl, self.guard)
    }

    /// The DCS does not answer: asks every other member whether we may go on. First when a renewal
    /// has failed, or is unanswered when there is just time left for some rounds; then each lease
    /// period.
    pub(crate) fn ask_members(
        &mut self,
        now: Millis,
        view: &ClusterView,
        local: &LocalPostgres,
        term: Term,
    ) {
        let Some(stop_at) = self.claim.stop_at(self.node.stop_margin).filter(|at| now < *at) else {
            return;
        };
        let known = running_primary(local).is_some_and(|(server, _)| {
            let run = self.failsafe.confirmed.as_ref();
            run.is_some_and(|run| run.server == server && run.term == term)
        });
        let map = failsafe_map(view).filter(|map| map.contains_key(&self.node.name));
        let Some(map) = map.filter(|_| known && self.failsafe.settled) else {
            return;
        };
        if !self.dynamic.failsafe_mode || self.lanes.running(Lane::Data).is_some() {
            return;
        }
        let limit = self.round_limit();
        let late = Millis(stop_at.0.saturating_sub(3 * limit.0));
        if !self.failsafe.unanswered {
            let renewing = matches!(self.lanes.running(Lane::Lease), Some(Act::Renew { .. }));
            if renewing && now < late {
                self.wake_at(late);
            }
            if !renewing || now < late {
                return;
            }
            self.failsafe.unanswered = true;
        }
        let due = self.failsafe.asked_at.map_or(now, |at| at.plus(self.lease_period()));
        if now < due {
            self.wake_at(due);
            return;
        }
        let mut members = map.clone();
        members.remove(&self.node.name);
        let slots = match &local.process {
            Process::Running(Running { server, role: Role::Primary(primary) }) => {
                self.slots_to_tell(&server.slots, primary.flush)
            }
            _ => BTreeMap::new(),
        };
        let act = Act::AskFailsafe { members, term, ttl: self.dynamic.ttl, limit, slots };
        if self.issue_if_free(now, act, Reason::DcsDoesNotAnswer) {
            self.failsafe.asked_at = Some(now);
        }
    }

    /// A leader that neither the DCS nor every member has answered for a `retry_timeout` stops in
    /// order, while there is time for it, and gives the leader key away as soon as that is heard.
    pub(crate) fn gives_up_without_members(
        &mut self,
        now: Millis,
        local: &LocalPostgres,
        key: Revision,
    ) -> bool {
        let Some(since) = self.failsafe.refused_since.filter(|_| self.failsafe.unanswered) else {
            return false;
        };
        let at = since.plus(self.dynamic.retry_timeout);
        if now < at {
            self.wake_at(at);
            return false;
        }
        match local.process {
            Process::Stopped => self.release(now, key, None, Reason::DcsDoesNotAnswer),
            _ => self.stop_fast(now, Reason::DcsDoesNotAnswer),
        }
        true
    }

    /// A leader key that is being given away is given away until it is gone.
    pub(crate) fn gives_key_away(
        &mut self,
        now: Millis,
        local: &LocalPostgres,
        key: Revision,
    ) -> bool {
        if self.leader.releasing != Some(key) {
            return false;
        }
        if !self.may_be_primary(local) {
            self.release(now, key, None, Reason::CannotLead);
            self.come_up_without_the_dcs(now, local);
        }
        true
    }

    /// A leader that gave up comes up in recovery, following nobody: it can be read from, and takes
    /// part in the next election without any privilege.
    fn come_up_without_the_dcs(&mut self, now: Millis, local: &LocalPostgres) {
        let whole = control_of(local).is_some() && local.durable.in_progress.is_none();
        if self.failsafe.unanswered && whole && local.process == Process::Stopped {
            let act = Act::Start { start_as: StartAs::Standby(None), term: None };
            self.issue(now, act, Reason::DcsDoesNotAnswer);
        }
    }

    /// How long a round of questions may take. Three fit between the moment at which an unanswered
    /// renewal is given up here and the stop.
    fn round_limit(&self) -> Millis {
        let window = self.dynamic.ttl.0.saturating_sub(2 * self.node.stop_margin.0);
        Millis(window / 8).clamp(ROUND_MIN, ROUND_MAX)
    }

    /// A primary without a leader key. True if it runs on rightfully; then the key is taken again,
    /// as long as the claim holds.
    pub(crate) fn retake(
        &mut self,
        now: Millis,
        view: &ClusterView,
        local: &LocalPostgres,
    ) -> bool {
        let Some(retake) = self.retake_transaction(view, local) else {
            return false;
        };
        // What would be given up again at once is not taken.
        if !self.dynamic.pause && self.unfit(now, local).is_some() {
            return false;
        }
        if !self.dynamic.pause {
            let stop_at = self.claim.stop_at(self.node.stop_margin).filter(|at| now < *at);
            let Some(stop_at) = stop_at.filter(|_| !self.shutting_down) else {
                return false;
            };
            self.wake_at(stop_at);
        }
        // The member key comes first: it brings the lease that the leader key will hang on.
        if view.members.contains_key(&self.node.name) {
            let why = Reason::RunsOn { term: retake.term.term };
            self.issue(now, Act::RetakeLeadership(retake), why);
            // For a new term the standbys end their streams and begin them again; they get time
            // for that before anything goes on without them.
            for replica in running_primary(local).iter().flat_map(|(_, p)| &p.replicas) {
                if replica.streaming {
                    self.leader.streaming_at.insert(replica.name.as_str().into(), now);
                }
            }
        }
        true
    }

    /// The conditions for taking the leader key again without an election. Nobody has led since our
    /// term, and the server that was published in it runs without interruption: every commit that
    /// was ever acknowledged is in its log, and no comparison could find a newer copy (I2).
    fn retake_transaction(&self, view: &ClusterView, local: &LocalPostgres) -> Option<Retake> {
        let run = self.failsafe.confirmed.as_ref()?;
        let (server, primary) = running_primary(local)?;
        let record = view.term.as_ref()?;
        let same_server = server == run.server && primary.timeline == record.value.timeline;
        let same_term = record.value.term == run.term
            && record.mod_revision == run.key
            && record.value.leader == self.node.name;
        let durable = &local.durable;
        let copy = !durable.fresh_copy && durable.in_progress.is_none() && durable.pledge.is_none();
        let ours = control_of(local).map(|c| c.system_identifier.as_str());
        let same_cluster = ours.is_some() && ours == view.system_identifier();
        // A Patroni leader writes no term: it is known by `/sync`, and by its member key.
        let set = view.active_sync().and_then(|s| s.value.leader.as_ref());
        let no_patroni = set.is_none_or(|leader| *leader == self.node.name)
            && view.members.values().all(|m| m.value.pgherd.is_some());
        // A stop that has begun is not called back.
        let stays = self.lanes.running(Lane::Data).is_none();
        let rightful = same_server && same_term && copy && same_cluster && no_patroni && stays;
        (rightful && view.leader.is_none()).then(|| Retake {
            leader: None,
            fence: view.fence.as_ref().map(|f| f.mod_revision),
            sync_revision: view.sync.as_ref().map(|s| s.mod_revision),
            term_revision: Some(record.mod_revision),
            sync: view.sync.as_ref().map(|s| s.value.clone()),
            term: TermRecord {
                term: run.term.next(),
                leader: self.node.name.clone(),
                timeline: primary.timeline,
                position: Some(Position {
                    timeline: primary.timeline,
                    lsn: primary.flush,
                    term: run.term,
                }),
            },
        })
    }
}

/// `/failsafe`, if it names anybody.
fn failsafe_map(view: &ClusterView) -> Option<&BTreeMap<MemberName, String>> {
    view.failsafe.as_ref().map(|f| &f.value).filter(|map| !map.is_empty())
}

/// The start time of a running primary's postmaster, and what it said.
pub(crate) fn running_primary(local: &LocalPostgres) -> Option<(&str, &Primary)> {
    match &local.process {
        Process::Running(running) => match &running.role {
            Role::Primary(primary) => Some((&running.server.started, primary)),
            Role::Standby(_) => None,
        },
        Process::Stopped
        | Process::Orphaned
        | Process::NotReady { .. }
        | Process::Silent { .. } => None,
    }
}
