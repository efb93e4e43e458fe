//! What operators ask of this one member: a restart of its PostgreSQL, or a new copy of its data.
//!
//! Such an errand takes the process down and nothing else: who leads, what is started and as what
//! is decided where it always is. A leader keeps its key meanwhile, its lease goes on and its guard
//! stays armed (I1); a synchronous standby first leaves the set, so that nobody waits for it (I2).

use types::{ClusterView, LocalPostgres, Millis, Process, RestartRequest, Role, UnixMillis};

use crate::action::{Act, Lane, Outcome, STOP_FAST};
use crate::brain::{Brain, Leadership, control_of};
use crate::reason::Reason;

/// Identifies a request of an operator; its answer carries it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(pub u64);

/// What an operator asks of this member.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Request {
    /// Restart PostgreSQL, now or at its time.
    Restart(RestartRequest),
    /// Forget the scheduled restart.
    CancelRestart,
    /// Copy the data anew: an operator's word in the sense of I3.
    Reinitialize {
        /// Give up whatever works on the data directory now.
        force: bool,
        /// From the leader, whoever else offers itself.
        from_leader: bool,
    },
}

/// How a request ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// PostgreSQL runs again.
    Restarted,
    /// It did not come up in its time, and is tried further.
    StillStarting,
    /// It did not come up.
    RestartFailed,
    /// Role, version or pending parameters are not those that were asked for.
    ConditionsNotMet,
    /// It waits for its time.
    RestartScheduled,
    /// Another one waits already.
    AlreadyScheduled,
    /// The scheduled restart is forgotten.
    RestartCancelled,
    /// There was none.
    NoneScheduled,
    /// The copy is being replaced.
    ReinitializeStarted,
    /// There is nobody to copy from.
    NoLeader,
    /// Others copy from here.
    IsLeader,
    /// Something else is at work on PostgreSQL or its data: what.
    Busy(String),
}

/// An errand under way.
#[derive(Debug, Clone)]
pub(crate) struct Errand {
    what: What,
    phase: Phase,
    /// Since when it has been in this phase.
    since: Millis,
    /// Who waits for its end.
    asked_by: Option<RequestId>,
    /// It has left the synchronous set for this.
    off_duty: bool,
}

impl Errand {
    /// How long PostgreSQL may take to come up.
    fn start_limit(&self) -> Millis {
        match self.what {
            What::Restart { limit } if limit > Millis::ZERO => limit,
            What::Restart { .. } | What::Reinitialize { .. } => START_MIN,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum What {
    Restart {
        /// How long PostgreSQL may take to come up.
        limit: Millis,
    },
    Reinitialize {
        /// From the leader, whoever else offers itself.
        from_leader: bool,
    },
}

impl What {
    /// Whether what stands here is given up.
    const fn replaces(self) -> bool {
        match self {
            What::Restart { .. } => false,
            What::Reinitialize { .. } => true,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// The leader shall count on others first.
    Leaving,
    /// So that the stop is short.
    Checkpoint,
    /// The primary's clients end their transactions.
    Holding,
    /// Until no process is left.
    Stopping,
    /// Until the new copy stands in place.
    Copying,
    /// Until it runs again.
    Starting,
}

/// A start without a limit (`primary_start_timeout: 0`) is waited for so long.
const START_MIN: Millis = Millis(10_000);

/// Operators' requests, and what is scheduled.
#[derive(Debug, Clone, Default)]
pub(crate) struct Errands {
    present: Option<Errand>,
    scheduled: Option<RestartRequest>,
    answers: Vec<(RequestId, Answer)>,
    /// The leadership was handed over in maintenance mode; this member comes back as a standby.
    handed_over: bool,
    /// The wall clock, and when it showed that.
    wall: Option<(Millis, UnixMillis)>,
    /// Since when the agent is to end.
    ends_since: Option<Millis>,
}

impl Errands {
    /// What the member key says of a scheduled restart.
    pub(crate) fn scheduled(&self) -> Option<&RestartRequest> {
        self.scheduled.as_ref()
    }

    /// Whether this member comes back after a hand-over in maintenance mode.
    pub(crate) fn handed_over(&self) -> bool {
        self.handed_over
    }

    pub(crate) fn note_hand_over(&mut self) {
        self.handed_over = true;
    }

    pub(crate) fn note_shutdown(&mut self, now: Millis) {
        self.ends_since.get_or_insert(now);
    }

    pub(crate) fn note_wall(&mut self, now: Millis, unix: UnixMillis) {
        self.wall = Some((now, unix));
    }
}

/// What a schedule asks for now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Due {
    /// Nothing before this instant.
    At(Millis),
    /// To be done.
    Now,
    /// Its time has passed, or cannot be read.
    Stale,
    /// What time it is is not known.
    Unknown,
}

impl Brain {
    /// Answers to requests that have been given since the last call.
    pub fn take_answers(&mut self) -> Vec<(RequestId, Answer)> {
        std::mem::take(&mut self.errands.answers)
    }

    /// Whether something scheduled is due. What should have happened longer than one and a half
    /// `loop_wait` ago is not made up for (as Patroni 4.1 has it).
    pub(crate) fn due_at(&self, now: Millis, schedule: &str) -> Due {
        let Some((at, unix)) = self.errands.wall else {
            return Due::Unknown;
        };
        let Ok(due) = UnixMillis::parse(schedule) else {
            return Due::Stale;
        };
        let elapsed = i64::try_from(now.since(at).0).unwrap_or(i64::MAX);
        let left = due.after(unix).saturating_sub(elapsed);
        match u64::try_from(left) {
            Ok(0) => Due::Now,
            Ok(left) => Due::At(now.plus(Millis(left))),
            Err(_) if left.unsigned_abs() > self.dynamic.loop_wait.0 * 3 / 2 => Due::Stale,
            Err(_) => Due::Now,
        }
    }

    /// A request has come in.
    pub(crate) fn take_request(&mut self, now: Millis, id: RequestId, request: Request) {
        let answer = match request {
            Request::Restart(wanted) if wanted.schedule.is_some() => Some(self.schedule(wanted)),
            Request::Restart(wanted) => self.restart(now, Some(id), &wanted).err(),
            Request::CancelRestart => Some(match self.errands.scheduled.take() {
                Some(_) => Answer::RestartCancelled,
                None => Answer::NoneScheduled,
            }),
            Request::Reinitialize { force, from_leader } => {
                Some(self.reinitialize(now, force, from_leader))
            }
        };
        if let Some(answer) = answer {
            self.errands.answers.push((id, answer));
        }
    }

    fn schedule(&mut self, mut wanted: RestartRequest) -> Answer {
        if self.errands.scheduled.is_some() {
            return Answer::AlreadyScheduled;
        }
        wanted.postmaster_start_time = self.server_started();
        self.errands.scheduled = Some(wanted);
        Answer::RestartScheduled
    }

    fn server_started(&self) -> Option<String> {
        match &self.local.as_ref()?.process {
            Process::Running(running) => Some(running.server.started.clone()),
            _ => None,
        }
    }

    /// What is at work already, in Patroni's words.
    fn busy(&self) -> Option<String> {
        if let Some(errand) = &self.errands.present {
            let name = match errand.what {
                What::Restart { .. } => "restart",
                What::Reinitialize { .. } => "reinitialize",
            };
            return Some(name.to_owned());
        }
        if self.leader.handing_over.is_some() {
            return Some("switchover".to_owned());
        }
        match self.lanes.running(Lane::Data)? {
            Act::Initdb => Some("bootstrap".to_owned()),
            Act::Clone { source, .. } => Some(format!("bootstrap from '{}'", source.name)),
            Act::Rewind { source, .. } => Some(format!("running pg_rewind from {}", source.name)),
            Act::Promote { .. } => Some("promote".to_owned()),
            Act::Start { .. } => Some("start".to_owned()),
            Act::Stop { .. } | Act::StopForHandOver { .. } => Some("stop".to_owned()),
            // A moment of work on the configuration; the stop comes after it.
            _ => None,
        }
    }

    fn restart(
        &mut self,
        now: Millis,
        asked_by: Option<RequestId>,
        wanted: &RestartRequest,
    ) -> Result<(), Answer> {
        let (Some(view), Some(local)) = (self.view.clone(), self.local.clone()) else {
            return Err(Answer::Busy("start of the agent".to_owned()));
        };
        if !self.fits(wanted, &local) {
            return Err(Answer::ConditionsNotMet);
        }
        if let Some(busy) = self.busy() {
            return Err(Answer::Busy(busy));
        }
        let asked = wanted.timeout.map(Millis::from_secs);
        let limit = asked.unwrap_or(self.dynamic.primary_start_timeout);
        self.begin(now, What::Restart { limit }, asked_by, &view);
        Ok(())
    }

    fn fits(&self, wanted: &RestartRequest, local: &LocalPostgres) -> bool {
        let standby = match &local.process {
            Process::Running(running) => matches!(running.role, Role::Standby(_)),
            _ => control_of(local).is_none_or(|control| control.standby_signal),
        };
        let leads = matches!(self.leadership(), Some(Leadership::Mine { .. }));
        let role = match (standby, leads) {
            (false, _) => "primary",
            (true, true) => "standby_leader",
            (true, false) => "replica",
        };
        let server = match &local.process {
            Process::Running(running) => Some(&running.server),
            _ => None,
        };
        let pending = server.is_some_and(|server| !server.pending_restart.is_empty());
        wanted.fits(role, server.map(|server| server.version), pending)
    }

    fn reinitialize(&mut self, now: Millis, force: bool, from_leader: bool) -> Answer {
        let (Some(view), Some(_)) = (self.view.clone(), &self.local) else {
            return Answer::Busy("start of the agent".to_owned());
        };
        match self.leadership() {
            Some(Leadership::Mine { .. }) => return Answer::IsLeader,
            // While its leadership is in question this copy may be needed.
            Some(Leadership::Other { .. }) if view.fence.is_none() => {}
            None | Some(Leadership::Vacant | Leadership::Other { .. }) => return Answer::NoLeader,
        }
        match self.busy() {
            Some(busy) if !force => return Answer::Busy(busy),
            Some(_) => self.end_errand(Answer::RestartFailed),
            None => {}
        }
        self.begin(now, What::Reinitialize { from_leader }, None, &view);
        Answer::ReinitializeStarted
    }

    fn begin(&mut self, now: Millis, what: What, by: Option<RequestId>, view: &ClusterView) {
        let leads = matches!(self.leadership(), Some(Leadership::Mine { .. }));
        let off_duty = !leads && self.is_listed(view);
        let phase = if off_duty { Phase::Leaving } else { Phase::Checkpoint };
        let errand = Errand { what, phase, since: now, asked_by: by, off_duty };
        self.errands.present = Some(errand);
    }

    /// Before it ends, a synchronous standby lets the leader do without it, so that no commit waits
    /// for one that is gone: true while that is waited for.
    pub(crate) fn leaves_set_first(
        &mut self,
        now: Millis,
        view: &ClusterView,
        leadership: &Leadership,
    ) -> bool {
        let led = matches!(leadership, Leadership::Other { .. });
        let alone = view.active_sync().is_some_and(|sync| sync.value.voters.len() == 1);
        // There would be nobody instead, and commits wait in any case.
        let in_vain = alone && self.dynamic.synchronous_mode_strict;
        let until = self.errands.ends_since.unwrap_or(now).plus(self.leaving_limit());
        if !led || !self.is_listed(view) || in_vain || now >= until {
            return false;
        }
        self.wake_at(until);
        true
    }

    /// How long the leader may take to do without this member.
    fn leaving_limit(&self) -> Millis {
        self.dynamic.loop_wait.plus(self.dynamic.loop_wait)
    }

    fn is_listed(&self, view: &ClusterView) -> bool {
        view.active_sync().is_some_and(|sync| sync.value.voters.contains(&self.node.name))
    }

    /// Looks at what is scheduled. In maintenance mode nothing fires.
    pub(crate) fn scheduled_restart(&mut self, now: Millis) {
        let Some(wanted) = self.errands.scheduled.clone() else {
            return;
        };
        let started = self.server_started();
        if let (Some(then), Some(started)) = (&wanted.postmaster_start_time, &started)
            && then != started
        {
            // It has been restarted meanwhile.
            self.errands.scheduled = None;
            return;
        }
        if self.dynamic.pause || self.errands.present.is_some() {
            return;
        }
        match self.due_at(now, wanted.schedule.as_deref().unwrap_or_default()) {
            Due::Unknown => {}
            Due::At(at) => self.wake_at(at),
            Due::Stale => self.errands.scheduled = None,
            Due::Now => {
                self.errands.scheduled = None;
                // Nobody waits to be told that it does not take place; the member key shows it.
                drop(self.restart(now, None, &wanted));
            }
        }
    }

    /// Takes the errand to its next phase as far as what is so now lets it, and stops PostgreSQL
    /// when that is what it needs.
    pub(crate) fn run_errand(
        &mut self,
        now: Millis,
        view: &ClusterView,
        local: &LocalPostgres,
        leadership: &Leadership,
    ) {
        if matches!(local.process, Process::Running(_)) && self.leader.handing_over.is_none() {
            self.errands.handed_over = false;
        }
        if self.shutting_down || self.leader.handing_over.is_some() {
            self.end_errand(Answer::Busy("switchover".to_owned()));
        }
        let Some(errand) = self.errands.present.clone() else {
            return;
        };
        let down = local.process == Process::Stopped && self.lanes.running(Lane::Data).is_none();
        match errand.phase {
            Phase::Leaving => {
                let until = errand.since.plus(self.leaving_limit());
                if self.is_listed(view) && now < until {
                    self.wake_at(until);
                    return;
                }
                self.enter(now, Phase::Checkpoint);
                self.run_errand(now, view, local, leadership);
            }
            Phase::Checkpoint => {
                let until = errand.since.plus(self.dynamic.primary_start_timeout);
                let running = matches!(local.process, Process::Running(_));
                if running && !errand.what.replaces() && now < until {
                    self.wake_at(until);
                    self.issue(now, Act::Checkpoint, Reason::CheckpointBeforeStop);
                    return;
                }
                self.enter(now, Phase::Holding);
                self.run_errand(now, view, local, leadership);
            }
            Phase::Holding => {
                let lasts = STOP_FAST.plus(errand.start_limit());
                let restarts = !errand.what.replaces();
                if restarts && self.clients_finish_first(now, view, leadership, lasts) {
                    return;
                }
                self.enter(now, Phase::Stopping);
                self.run_errand(now, view, local, leadership);
            }
            Phase::Stopping if down => {
                let next = if errand.what.replaces() { Phase::Copying } else { Phase::Starting };
                self.enter(now, next);
            }
            Phase::Stopping => self.stop_for_errand(now, local, errand.what),
            // Only for a live leader a copy is given up (I3); without one it may be needed.
            Phase::Copying => {
                let led = matches!(leadership, Leadership::Other { .. });
                if !led || view.fence.is_some() {
                    self.errands.present = None;
                }
            }
            Phase::Starting => self.await_start(now, local, &errand),
        }
    }

    fn await_start(&mut self, now: Millis, local: &LocalPostgres, errand: &Errand) {
        if errand.what.replaces() {
            if matches!(local.process, Process::Running(_)) {
                self.errands.present = None;
            }
            return;
        }
        let until = errand.since.plus(errand.start_limit());
        if matches!(local.process, Process::Running(_)) {
            self.end_errand(Answer::Restarted);
        } else if now < until {
            self.wake_at(until);
        } else {
            self.end_errand(Answer::StillStarting);
        }
    }

    fn stop_for_errand(&mut self, now: Millis, local: &LocalPostgres, what: What) {
        let why = Reason::AskedByOperator;
        match (what, self.lanes.running(Lane::Data)) {
            (_, Some(Act::Stop { .. } | Act::EndOrphans)) => {}
            _ if local.process == Process::Orphaned => self.issue(now, Act::EndOrphans, why),
            (What::Restart { .. }, _) => self.stop_fast(now, why),
            // The copy is given up: nothing has to be written to its end, and whatever works on it
            // is given up, too.
            (What::Reinitialize { .. }, _) => {
                self.stop_now(now, local, why);
            }
        }
    }

    fn enter(&mut self, now: Millis, phase: Phase) {
        let Some(errand) = &mut self.errands.present else {
            return;
        };
        errand.phase = phase;
        errand.since = now;
        if let (Phase::Starting, What::Restart { limit }) = (phase, errand.what) {
            self.leader.start_limit = Some(limit);
            // Asked anew whether we still lead.
            self.leader.renewed_at = None;
        }
    }

    /// Takes the end of an action in that the errand waits for.
    pub(crate) fn note_errand_act(&mut self, now: Millis, act: &Act, outcome: Outcome) {
        let Some(phase) = self.errands.present.as_ref().map(|errand| errand.phase) else {
            return;
        };
        match (act, phase) {
            // One that failed makes the stop longer.
            (Act::Checkpoint, Phase::Checkpoint) => self.enter(now, Phase::Holding),
            (Act::Start { .. }, Phase::Starting) if outcome != Outcome::Done => {
                self.end_errand(Answer::RestartFailed);
            }
            (Act::Clone { .. }, Phase::Copying) if outcome == Outcome::Done => {
                self.enter(now, Phase::Starting);
            }
            // Whoever offered itself could not be copied; the next attempt is the leader's.
            (Act::Clone { .. }, Phase::Copying) => {
                if let Some(errand) = &mut self.errands.present {
                    errand.what = What::Reinitialize { from_leader: true };
                }
            }
            _ => {}
        }
    }

    /// Ends the errand and tells whoever waits for it.
    pub(crate) fn end_errand(&mut self, answer: Answer) {
        if let Some(id) = self.errands.present.take().and_then(|errand| errand.asked_by) {
            self.errands.answers.push((id, answer));
        }
    }

    fn phase(&self) -> Option<Phase> {
        self.errands.present.as_ref().map(|errand| errand.phase)
    }

    /// A restart is under way for which the proxies may have been asked to hold their clients.
    pub(crate) fn restarts_held(&self) -> bool {
        self.errands.present.as_ref().is_some_and(|errand| {
            let held = matches!(errand.phase, Phase::Holding | Phase::Stopping | Phase::Starting);
            held && !errand.what.replaces()
        })
    }

    /// PostgreSQL is being stopped by an operator's wish, and nothing else is to be made of that.
    pub(crate) fn stops_for_errand(&self) -> bool {
        self.phase() == Some(Phase::Stopping)
    }

    /// PostgreSQL goes down by an operator's wish, and comes up again.
    pub(crate) fn is_down_for_errand(&self) -> bool {
        matches!(self.phase(), Some(Phase::Stopping | Phase::Starting))
    }

    /// PostgreSQL is down by an operator's wish, and to be started as what it was, here.
    pub(crate) fn starts_again(&self) -> bool {
        self.phase() == Some(Phase::Starting)
    }

    /// The leadership was confirmed since PostgreSQL was stopped for a restart. A leader that was
    /// replaced meanwhile, unheard, has not what its successor has: what it shows from before could
    /// be taken for the present (I2).
    pub(crate) fn may_start_again(&self) -> bool {
        let errand = self.errands.present.as_ref();
        errand.is_none_or(|errand| self.claim.confirmed_since(errand.since))
    }

    /// The data is to be copied anew.
    pub(crate) fn copies_anew(&self) -> bool {
        self.phase() == Some(Phase::Copying)
    }

    /// Nobody but the leader shall be copied from.
    pub(crate) fn copies_the_leader(&self) -> bool {
        let what = self.errands.present.as_ref().map(|errand| errand.what);
        what == Some(What::Reinitialize { from_leader: true })
    }

    /// The leader should not count on this member's confirmations.
    pub(crate) fn is_off_duty(&self) -> bool {
        let leads = matches!(self.leadership(), Some(Leadership::Mine { .. }));
        (self.errands.ends_since.is_some() && !leads)
            || self.errands.present.as_ref().is_some_and(|errand| errand.off_duty)
    }

    /// What the member key calls the errand, once PostgreSQL is not usable because of it.
    pub(crate) fn errand_state(&self) -> Option<&'static str> {
        let errand = self.errands.present.as_ref()?;
        match (errand.what, errand.phase) {
            // Said from the beginning on: whoever waits for its end must not take the old copy, as
            // long as that runs, for the new one.
            (What::Reinitialize { .. }, _) => Some("creating replica"),
            (What::Restart { .. }, Phase::Leaving | Phase::Checkpoint | Phase::Holding) => None,
            (What::Restart { .. }, _) => Some("restarting"),
        }
    }
}
