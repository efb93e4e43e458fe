//! What may happen next.

use super::Election;
use super::canonical::canonical;
use super::lead;
use super::look::Mood;
use super::state::{Id, Postgres, Primary, Request, State};
use super::without::Without;

/// One thing that happens.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs, reason = "`story::step` says each in words")]
pub enum Step {
    Look { member: Id, mood: Mood },
    ActOnMemory { member: Id, late: bool },
    Deliver { index: usize },
    TimeOut { member: Id },
    PledgeMade { member: Id },
    RuleTakenOver { member: Id },
    Connect { member: Id },
    CutStream { member: Id },
    Receive { member: Id, late: bool },
    Hear { leader: Id, standby: Id },
    Write { member: Id },
    CrashHost { member: Id },
    CrashPostgres { member: Id },
    RestartAgent { member: Id },
    Start { member: Id },
    StartInPlace { member: Id },
    LeaseEnds,
}

/// What may go wrong.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Fault {
    /// A request to the store, or a standby's report, comes late or never.
    Late,
    /// A stream ends.
    Stream,
    /// A host crashes with agent and PostgreSQL.
    Host,
    /// A primary crashes.
    Postgres,
    /// An agent is started anew.
    Agent,
    /// The leader's lease ends, and its holder runs on.
    Lease,
}

impl Fault {
    /// Every kind, with its name.
    pub const ALL: [(Fault, &str); 6] = [
        (Fault::Late, "late"),
        (Fault::Stream, "stream"),
        (Fault::Host, "host"),
        (Fault::Postgres, "postgres"),
        (Fault::Agent, "agent"),
        (Fault::Lease, "lease"),
    ];
}

impl Election {
    /// Everything that may happen in this state; what changes nothing is left out later.
    pub(super) fn steps(&self, state: &State, steps: &mut Vec<Step>) {
        for index in 0..state.requests.len() {
            steps.push(Step::Deliver { index });
        }
        for member in state.ids() {
            looks(state, member, steps);
            if state.member(member).lead.is_some_and(|lead| lead.writing) {
                steps.push(Step::TimeOut { member });
            }
            replication(state, member, steps);
            starts(state, member, steps);
        }
        if state.faults > 0 {
            faults(state, steps);
        }
    }

    /// The state after a step; `None` if it changes nothing.
    pub(super) fn after(&self, before: &State, step: Step) -> Option<State> {
        let mut state = before.clone();
        let fault = fault_of(step);
        if let Some(fault) = fault {
            if state.faults == 0 || !self.setup.kinds.contains(&fault) {
                return None;
            }
            state.faults -= 1;
        }
        self.make(&mut state, step);
        let asks = matches!(step, Step::Look { .. } | Step::ActOnMemory { .. });
        if asks && fault.is_some() && state.requests.len() == before.requests.len() {
            return None;
        }
        canonical(&mut state);
        (state != *before).then_some(state)
    }

    fn make(&self, state: &mut State, step: Step) {
        match step {
            Step::Look { member, mood } => self.look(state, member, mood),
            Step::ActOnMemory { member, late } => self.reconcile(state, member, late),
            Step::Deliver { index } => {
                let request = state.requests.remove(index);
                self.deliver(state, request);
            }
            Step::TimeOut { member } => {
                if let Some(lead) = &mut state.member_mut(member).lead {
                    (lead.writing, lead.unknown) = (false, true);
                }
            }
            Step::PledgeMade { member } => {
                self.pledge_made(state.member_mut(member));
                self.look(state, member, Mood::default());
            }
            Step::RuleTakenOver { member } => {
                lead::rule_taken_over(state.member_mut(member));
                state.release(member);
            }
            Step::Connect { member } => state.connect(member),
            Step::CutStream { member } => state.member_mut(member).receiver = None,
            Step::Receive { member, late } => state.receive(member, late),
            Step::Hear { leader, standby } => state.hear(leader, standby),
            Step::Write { member } => write(state, member),
            Step::CrashHost { member } => {
                state.stop(member);
                self.restart_agent(state, member);
            }
            Step::CrashPostgres { member } => state.stop(member),
            Step::RestartAgent { member } => self.restart_agent(state, member),
            Step::Start { member } => state.member_mut(member).postgres = Postgres::Standby,
            Step::StartInPlace { member } => start_in_place(state, member),
            Step::LeaseEnds => state.store.leader = None,
        }
    }

    fn restart_agent(&self, state: &mut State, me: Id) {
        let member = state.member_mut(me);
        member.forget();
        if self.lacks(Without::PledgeDurable) {
            member.pledge = None;
        }
    }

    /// Makes a request. One that is not late arrives at once: nothing that happens meanwhile would
    /// change it. False if it cannot be on its way, as too many are.
    pub(super) fn send(&self, state: &mut State, request: Request, late: bool) -> bool {
        if state.requests.contains(&request) {
            return true;
        }
        if let Request::WriteSync { by: sender, .. } = request {
            // The answer to one that it gave up on is nothing to it.
            for other in &mut state.requests {
                if let Request::WriteSync { by, awaited, .. } = other {
                    *awaited &= *by != sender;
                }
            }
        }
        if !late {
            self.deliver(state, request);
            return true;
        }
        if state.requests.len() >= self.setup.requests {
            return false;
        }
        state.requests.push(request);
        true
    }
}

/// What goes wrong in a step, if anything does.
fn fault_of(step: Step) -> Option<Fault> {
    match step {
        Step::Look { mood: Mood { late, .. }, .. }
        | Step::ActOnMemory { late, .. }
        | Step::Receive { late, .. } => late.then_some(Fault::Late),
        Step::CutStream { .. } => Some(Fault::Stream),
        Step::CrashHost { .. } => Some(Fault::Host),
        Step::CrashPostgres { .. } => Some(Fault::Postgres),
        Step::RestartAgent { .. } => Some(Fault::Agent),
        Step::LeaseEnds => Some(Fault::Lease),
        Step::Deliver { .. }
        | Step::TimeOut { .. }
        | Step::PledgeMade { .. }
        | Step::RuleTakenOver { .. }
        | Step::Connect { .. }
        | Step::Hear { .. }
        | Step::Write { .. }
        | Step::Start { .. }
        | Step::StartInPlace { .. } => None,
    }
}

/// A mood is tried where it can make a difference.
fn looks(state: &State, member: Id, steps: &mut Vec<Step>) {
    let store = &state.store;
    let led_by_other = store.leader.is_some_and(|key| key.holder != member);
    let standby = state.member(member).postgres == Postgres::Standby;
    let may_wait = store.fence.is_some() || !standby;
    let lateness: &[bool] = if state.faults > 0 { &[false, true] } else { &[false] };
    for late in lateness.iter().copied() {
        for (suspects, impatient) in [(false, false), (true, false), (false, true), (true, true)] {
            if (!suspects || (led_by_other && standby)) && (!impatient || may_wait) {
                let mood = Mood { suspects, impatient, late };
                steps.push(Step::Look { member, mood });
            }
        }
        if state.member(member).lead.is_some() {
            steps.push(Step::ActOnMemory { member, late });
        }
    }
}

pub(super) fn replication(state: &State, id: Id, steps: &mut Vec<Step>) {
    let member = state.member(id);
    if member.stopping.is_some() {
        steps.push(Step::PledgeMade { member: id });
    }
    if member.next_rule.is_some() {
        steps.push(Step::RuleTakenOver { member: id });
    }
    let primary = |of: Option<Id>| of.filter(|of| state.member(*of).primary().is_some());
    if member.postgres == Postgres::Standby {
        if member.receiver != member.conninfo && primary(member.conninfo).is_some() {
            steps.push(Step::Connect { member: id });
        }
        if let Some(upstream) = primary(member.receiver)
            && member.log.length() < state.member(upstream).log.length()
        {
            steps.push(Step::Receive { member: id, late: false });
            if state.faults > 0 {
                steps.push(Step::Receive { member: id, late: true });
            }
        }
    }
    if member.primary().is_some() {
        for standby in state.ids() {
            let at = usize::from(standby);
            if member.heard[at] != member.sent[at] {
                steps.push(Step::Hear { leader: id, standby });
            }
        }
        if state.writes > 0 && !member.log.is_full() {
            steps.push(Step::Write { member: id });
        }
    }
}

fn starts(state: &State, id: Id, steps: &mut Vec<Step>) {
    let member = state.member(id);
    let Postgres::Down { primary } = member.postgres else { return };
    match member.lead {
        None => steps.push(Step::Start { member: id }),
        Some(lead) => {
            if !lead.releasing && primary.is_some_and(|primary| primary.term == member.term) {
                steps.push(Step::StartInPlace { member: id });
            }
        }
    }
}

fn faults(state: &State, steps: &mut Vec<Step>) {
    for member in state.ids() {
        let now = state.member(member);
        if now.receiver.is_some() {
            steps.push(Step::CutStream { member });
        }
        if !now.is_down() || now.lead.is_some() {
            steps.push(Step::CrashHost { member });
        }
        if now.primary().is_some() {
            steps.push(Step::CrashPostgres { member });
        }
        if now.lead.is_some() || now.stopping.is_some() || now.pledge.is_some() {
            steps.push(Step::RestartAgent { member });
        }
    }
    if state.store.leader.is_some() {
        steps.push(Step::LeaseEnds);
    }
}

fn write(state: &mut State, me: Id) {
    state.writes -= 1;
    let member = state.member_mut(me);
    let Some(primary) = member.primary() else { return };
    member.log.push(primary.timeline, me);
    state.release(me);
}

/// A primary that crashed comes back under its own leader key, without a promotion.
fn start_in_place(state: &mut State, me: Id) {
    let member = state.member_mut(me);
    let Postgres::Down { primary: Some(primary) } = member.postgres else { return };
    member.postgres = Postgres::Primary(Primary { begun: member.log.length(), ..primary });
    state.release(me);
}

impl State {
    /// PostgreSQL ends here, and with it the streams from it.
    pub(super) fn stop(&mut self, me: Id) {
        self.member_mut(me).stop();
        for member in &mut self.members {
            member.receiver = member.receiver.filter(|from| *from != me);
        }
    }
}
