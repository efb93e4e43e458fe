//! What the shell would do with an action, in one moment.

use decide::{Act, Action, Lane, Outcome, StartAs, StopMode, SyncRule};
use types::{
    Compared, ControlState, DurablePledge, HistoryLine, InProgress, Lsn, MemberName, Millis,
    Position, SlotChange, SyncNames, Term, Timeline,
};

use crate::data::{Data, Proc};
use crate::say;
use crate::world::{Host, Way, World};

impl World {
    /// Performs an action, unless the script says that it fails or hangs.
    pub(crate) fn perform(&mut self, name: &MemberName, action: Action) {
        let shown = self.show_all || !say::is_routine(&action.act);
        let (act, text) = (action.act.clone(), say::action(&action));
        let Some(host) = self.hosts.get_mut(name) else { return };
        let on_keys = matches!(act.lane(), Lane::Lease | Lane::Member | Lane::Dcs | Lane::Hold);
        let way = if host.cut && on_keys { Some(Way::Hangs) } else { None };
        let way = way.or_else(|| host.ways.get(&say::name_of(&act)).copied());
        if matches!(act, Act::Stop { mode: StopMode::Immediate }) {
            give_up_data_lane(host);
        }
        let Some(agent) = &mut host.agent else { return };
        let id = action.id;
        let waits = way == Some(Way::Hangs) || (way.is_none() && act == Act::ConfirmWrite);
        if waits {
            agent.under_way.push(action);
            if way.is_some() {
                self.begin(name, &act);
            }
        }
        let outcome = match way {
            _ if waits => None,
            Some(_) => {
                self.fail(name, &act);
                Some(Outcome::Failed)
            }
            None => Some(self.effect(name, &act)),
        };
        // A leader that is gone cannot be asked; that is tried again and again.
        let asks_in_vain = matches!(act, Act::Compare { .. }) && outcome == Some(Outcome::Failed);
        if shown && (self.show_all || !asks_in_vain) {
            let end = match (outcome, way) {
                (Some(Outcome::Done), _) | (None, None) => "",
                (Some(Outcome::Failed | Outcome::Unknown), _) => " (fails)",
                (None, Some(_)) => " (under way)",
            };
            self.tell(name, &format!("{text}{end}"));
        }
        if let Some(outcome) = outcome
            && let Some(agent) = self.hosts.get_mut(name).and_then(|h| h.agent.as_mut())
        {
            agent.ended.push((id, outcome));
        }
    }

    /// Ends what hung. An action named `what` takes effect now, or fails; without a name it is what
    /// was asked of the keys, and nobody knows how that ended.
    pub(crate) fn end_under_way(&mut self, name: &MemberName, what: Option<&str>, works: bool) {
        let Some(agent) = self.hosts.get_mut(name).and_then(|h| h.agent.as_mut()) else { return };
        let ends = |act: &Act| match what {
            Some(what) => say::name_of(act) == what,
            None => matches!(act.lane(), Lane::Lease | Lane::Member | Lane::Dcs | Lane::Hold),
        };
        let (over, rest): (Vec<Action>, Vec<Action>) =
            std::mem::take(&mut agent.under_way).into_iter().partition(|a| ends(&a.act));
        agent.under_way = rest;
        for action in over {
            let outcome = match what {
                None => Outcome::Unknown,
                Some(_) if works => self.effect(name, &action.act),
                Some(_) => Outcome::Failed,
            };
            if let Some(agent) = self.hosts.get_mut(name).and_then(|h| h.agent.as_mut()) {
                agent.ended.push((action.id, outcome));
            }
        }
    }

    /// What a hanging action does to the process at once.
    fn begin(&mut self, name: &MemberName, act: &Act) {
        let now = self.now;
        let Some(host) = self.hosts.get_mut(name) else { return };
        match act {
            Act::Start { start_as, term } => {
                note_term(host, *term);
                host.compared = None;
                host.process = Proc::NotReady(now);
                if let Some(data) = &mut host.data {
                    data.standby_signal = *start_as != StartAs::Primary;
                }
            }
            // The files of the new timeline are there before recovery is over.
            Act::Promote { timeline, .. } => host.promoting = Some(*timeline),
            Act::Stop { .. } | Act::StopForHandOver { .. } => host.process = Proc::NotReady(now),
            _ => {}
        }
    }

    /// What a failed action leaves behind.
    fn fail(&mut self, name: &MemberName, act: &Act) {
        let Some(host) = self.hosts.get_mut(name) else { return };
        match act {
            Act::Rewind { .. } => host.durable.in_progress = Some(InProgress::Rewind),
            Act::Clone { replace: true, .. } => {
                host.durable.in_progress = Some(InProgress::Rebuild);
            }
            _ => {}
        }
    }

    fn effect(&mut self, name: &MemberName, act: &Act) -> Outcome {
        let Some(host) = self.hosts.get_mut(name) else { return Outcome::Failed };
        if matches!(act.lane(), Lane::Lease | Lane::Member | Lane::Dcs | Lane::Hold) {
            let done = self.store.apply(name, &mut host.lease, &self.config, act);
            return if done { Outcome::Done } else { Outcome::Failed };
        }
        let done = match act {
            Act::Clone { .. } | Act::Rewind { .. } | Act::Compare { .. } => {
                self.with_leader(name, act)
            }
            Act::AskFailsafe { members, term, ttl, .. } => {
                self.ask_members(name, members, (*term, *ttl)).then_some(())
            }
            Act::AskTerms { members, .. } => {
                self.ask_terms(name, members);
                Some(())
            }
            Act::AskPositions { members, .. } => {
                self.ask_positions(name, members);
                Some(())
            }
            Act::Exit { .. } => {
                host.agent = None;
                Some(())
            }
            Act::Knock { leader, .. } => self.knock(name, &leader.name).then_some(()),
            _ => on_host(host, act, self.now),
        };
        if done.is_some() { Outcome::Done } else { Outcome::Failed }
    }

    /// Whether anything of this leader's PostgreSQL answers.
    fn knock(&self, name: &MemberName, leader: &MemberName) -> bool {
        let from = &self.hosts[name];
        self.hosts.get(leader).is_some_and(|host| {
            let gone = host.frozen.is_some() || host.cut_off.is_some() || from.cut_off.is_some();
            host.process != Proc::Stopped && !gone
        })
    }

    /// Actions that need a running leader.
    fn with_leader(&mut self, name: &MemberName, act: &Act) -> Option<()> {
        let (Act::Clone { source, term, .. }
        | Act::Rewind { source, term }
        | Act::Compare { leader: source, term }) = act
        else {
            return None;
        };
        // A copy may come from a standby.
        let copies = matches!(act, Act::Clone { .. });
        let from = self
            .hosts
            .get(&source.name)
            .filter(|h| h.process == Proc::Primary || (copies && h.process == Proc::Standby))?;
        let theirs = from.data.clone()?;
        let host = self.hosts.get_mut(name)?;
        if let Act::Compare { .. } = act {
            let stopped = host.data.as_ref().filter(|_| host.process == Proc::Stopped);
            host.compared = Some(Compared {
                leader: source.name.clone(),
                term: *term,
                timeline: theirs.timeline,
                history: theirs.history,
                ends_at_control: stopped.map(Data::ends_at_control),
            });
            return Some(());
        }
        if host.process != Proc::Stopped {
            return None;
        }
        let rewound = matches!(act, Act::Rewind { .. });
        let mut copy = Data::copy_of(&theirs);
        copy.minimum = rewound.then_some((copy.timeline, copy.end));
        host.data = Some(copy);
        host.compared = None;
        host.durable.in_progress = None;
        if let Act::Clone { .. } = act {
            host.durable.fresh_copy = true;
            host.durable.term = *term;
            host.durable.pledge = None;
        }
        Some(())
    }
}

fn give_up_data_lane(host: &mut Host) {
    let Some(agent) = &mut host.agent else { return };
    let (over, rest): (Vec<Action>, Vec<Action>) =
        std::mem::take(&mut agent.under_way).into_iter().partition(|a| a.act.lane() == Lane::Data);
    agent.under_way = rest;
    agent.ended.extend(over.into_iter().map(|a| (a.id, Outcome::Failed)));
}

/// What is written down before the copy can receive from a leader, or lead.
fn note_term(host: &mut Host, term: Option<Term>) {
    if let Some(term) = term {
        host.durable.term = term;
        host.durable.pledge = None;
    }
}

/// Actions on one node alone. `None` if the action fails.
fn on_host(host: &mut Host, act: &Act, now: Millis) -> Option<()> {
    match act {
        Act::ArmGuard { kill_at } => host.guard = Some(*kill_at),
        Act::StandDownGuard => host.guard = None,
        Act::Initdb => host.data = Some(Data::new()),
        Act::Start { start_as, term } => {
            note_term(host, *term);
            host.starts += 1;
            host.compared = None;
            let data = host.data.as_mut()?;
            data.minimum = None;
            let primary = *start_as == StartAs::Primary;
            if let StartAs::Standby(upstream) = start_as {
                data.upstream = upstream.as_ref().map(|u| u.name.clone());
            }
            data.standby_signal = !primary;
            host.process = if primary { Proc::Primary } else { Proc::Standby };
            data.state =
                if primary { ControlState::InProduction } else { ControlState::InArchiveRecovery };
        }
        Act::Stop { mode: StopMode::Fast } | Act::StopForHandOver { .. } => stop_in_order(host),
        Act::Stop { mode: StopMode::Immediate } | Act::EndOrphans => host.process = Proc::Stopped,
        Act::Follow { upstream, term } => {
            note_term(host, Some(*term));
            standby(host)?.upstream = upstream.as_ref().map(|u| u.name.clone());
        }
        Act::StopReceiving { fence, term, .. } => {
            let stopped = host.process == Proc::Stopped;
            let clean = |d: &&mut Data| d.state == ControlState::ShutDown;
            let data = if stopped { host.data.as_mut().filter(clean)? } else { standby(host)? };
            data.upstream = None;
            let position = Position { timeline: data.timeline, lsn: data.end, term: *term };
            host.durable.pledge = Some(DurablePledge { fence: fence.clone(), position });
        }
        Act::Promote { term, timeline, sync } => {
            note_term(host, Some(*term));
            host.promoting = None;
            promote(standby(host)?, *timeline, names_of(sync));
            host.process = Proc::Primary;
        }
        Act::ForgetFreshCopy => host.durable.fresh_copy = false,
        Act::SetSync { sync } => primary(host)?.names = names_of(sync),
        Act::Checkpoint => {
            // On a standby it is a restart point, which nothing here depends on.
            if host.process == Proc::Standby {
                return Some(());
            }
            let data = primary(host)?;
            data.checkpoint = data.end;
            data.checkpoint_timeline = data.timeline;
        }
        Act::EndStrangers { names } => host.strangers.retain(|name| !names.contains(name)),
        Act::SyncSlots { changes } => {
            let data = host.data.as_mut()?;
            for change in changes {
                let slot = data.slots.entry(change.name().to_owned()).or_insert(None);
                match change {
                    SlotChange::Drop { name } => _ = data.slots.remove(name),
                    SlotChange::Advance { to, .. } => *slot = (*slot).max(Some(*to)),
                    _ => {}
                }
            }
        }
        Act::ArchiveShutdownCheckpoint => {}
        // One that hung, and is acknowledged after all.
        Act::ConfirmWrite => _ = primary(host)?,
        other => panic!("{other:?} at {now} is not for one node alone"),
    }
    Some(())
}

/// A clean stop; the standbys get everything, the shutdown checkpoint too.
fn stop_in_order(host: &mut Host) {
    let was = std::mem::replace(&mut host.process, Proc::Stopped);
    let Some(data) = &mut host.data else { return };
    data.state = match was {
        Proc::Primary => ControlState::ShutDown,
        Proc::Standby => ControlState::ShutDownInRecovery,
        Proc::Stopped | Proc::Orphaned | Proc::NotReady(_) | Proc::Silent(_) => data.state,
    };
    if was == Proc::Primary {
        data.checkpoint = data.end;
        data.checkpoint_timeline = data.timeline;
    }
}

fn promote(data: &mut Data, timeline: Timeline, names: SyncNames) {
    data.history.push(HistoryLine { timeline: data.timeline, switch: data.end });
    data.timeline = timeline;
    // The end-of-recovery record.
    data.end = Lsn(data.end.0 + 1);
    data.standby_signal = false;
    data.state = ControlState::InProduction;
    data.upstream = None;
    data.names = names;
}

fn standby(host: &mut Host) -> Option<&mut Data> {
    host.data.as_mut().filter(|_| host.process == Proc::Standby)
}

fn primary(host: &mut Host) -> Option<&mut Data> {
    host.data.as_mut().filter(|_| host.process == Proc::Primary)
}

fn names_of(rule: &SyncRule) -> SyncNames {
    match rule {
        SyncRule::Off => SyncNames::default(),
        SyncRule::First(names) | SyncRule::Any(names) => names.clone(),
    }
}
