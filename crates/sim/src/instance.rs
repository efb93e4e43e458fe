//! The life of an instance: recovery, promotion, rules, stops and deaths.

use decide::SyncRule;
use types::{ControlState, Lsn, Term, Timeline};

use crate::postgres::{DataDirectory, Instance, Phase};
use crate::wal::index;
use crate::world::{Event, World};

/// How long PostgreSQL waits before it looks again, in milliseconds.
const POLL: u64 = 20;

impl World {
    /// The timer of an instance: what is due depends on its phase.
    pub(crate) fn postgres_goes_on(&mut self, node: usize, number: u64) {
        let frozen = self.hosts[node].postmaster_frozen > 0;
        let Some(instance) = self.hosts[node].instance(number) else { return };
        if !instance.postmaster {
            return;
        }
        if frozen {
            self.after(POLL, Event::Postgres { node, instance: number });
            return;
        }
        match instance.phase.clone() {
            Phase::Starting if instance.as_primary => self.recovered_as_primary(node),
            Phase::Starting => self.recovered_as_standby(node),
            Phase::Promoting(to) => self.promotion_goes_on(node, number, to),
            Phase::Stopping => self.write_shutdown_checkpoint(node, number),
            Phase::Draining => self.drain(node, number),
            Phase::Standby | Phase::Primary => {}
        }
    }

    fn parts(&mut self, node: usize) -> Option<(&mut Instance, &mut DataDirectory)> {
        let host = &mut self.hosts[node];
        Some((host.postgres.as_mut()?, host.disk.data.as_mut()?))
    }

    fn recovered_as_primary(&mut self, node: usize) {
        let Some((instance, data)) = self.parts(node) else { return };
        let timeline = data.log.timeline();
        if data.state != ControlState::ShutDown {
            data.checkpoint_now(timeline);
        }
        data.state = ControlState::InProduction;
        instance.timeline = timeline;
        self.becomes_writable(node);
    }

    /// Whether the copy has what it must replay to be consistent, or gets it from its upstream.
    fn is_complete(&mut self, node: usize) -> bool {
        let Some((instance, data)) = self.parts(node) else { return false };
        if !data.incomplete {
            return true;
        }
        let (number, upstream) = (instance.number, data.conninfo.clone());
        let source = upstream.and_then(|up| self.source(node, &up.name));
        let has = source.is_some_and(|(from, ..)| {
            let logs = [from, node].map(|n| self.hosts[n].disk.data.as_ref().map(|d| &d.log));
            matches!(logs, [Some(theirs), Some(ours)] if ours.may_stream_from(theirs))
        });
        if !has {
            self.after(POLL, Event::Postgres { node, instance: number });
        } else if let Some((_, data)) = self.parts(node) {
            data.incomplete = false;
        }
        has
    }

    fn recovered_as_standby(&mut self, node: usize) {
        if !self.is_complete(node) {
            return;
        }
        let clock = self.hosts[node].clock(self.now).0;
        let Some((instance, data)) = self.parts(node) else { return };
        match data.state {
            ControlState::ShutDownInRecovery | ControlState::InArchiveRecovery => {
                instance.replayed = data.minimum.max(data.checkpoint).min(data.log.end());
            }
            ControlState::StartingUp
            | ControlState::ShutDown
            | ControlState::ShuttingDown
            | ControlState::InCrashRecovery
            | ControlState::InProduction => {
                instance.replayed = data.log.end();
                data.minimum = data.log.end();
            }
        }
        data.state = ControlState::InArchiveRecovery;
        instance.phase = Phase::Standby;
        instance.since = clock;
        self.tell(node, || "PostgreSQL is up in recovery".to_owned());
        self.start_replay(node);
        self.start_connecting(node, 1);
        self.notice(node);
    }

    pub(crate) fn begin_promotion(&mut self, node: usize, term: Term, to: Timeline) {
        self.end_receiver_of(node);
        let delay = self.rng.range(30, 700);
        let Some((instance, _)) = self.parts(node) else { return };
        instance.phase = Phase::Promoting(to);
        instance.term = term;
        let number = instance.number;
        self.start_replay(node);
        self.after(delay, Event::Postgres { node, instance: number });
    }

    fn promotion_goes_on(&mut self, node: usize, number: u64, to: Timeline) {
        let Some((instance, data)) = self.parts(node) else { return };
        if instance.replayed < data.log.end() {
            self.after(POLL, Event::Postgres { node, instance: number });
            return;
        }
        let to = to.max(Timeline(data.log.timeline().0 + 1));
        data.log.fork(to);
        data.state = ControlState::InProduction;
        data.standby_signal = false;
        data.conninfo = None;
        instance.timeline = to;
        self.drop_senders(node);
        self.becomes_writable(node);
    }

    /// From here on clients can commit.
    fn becomes_writable(&mut self, node: usize) {
        let clock = self.hosts[node].clock(self.now).0;
        let Some((instance, data)) = self.parts(node) else { return };
        instance.phase = Phase::Primary;
        instance.since = clock;
        instance.taken = data.rule.clone();
        instance.waits = data.rule != SyncRule::Off;
        let (timeline, term) = (instance.timeline, instance.term);
        let end = data.log.end();
        self.tell(node, || {
            format!("PostgreSQL is writable on timeline {timeline} in term {term} from {}", end.0)
        });
        self.checks_of_new_primary(node);
        self.pump_all(node);
        self.notice(node);
    }

    /// A reload of a new rule reaches the processes one by one (A7).
    pub(crate) fn spread_rule(&mut self, node: usize) {
        let streams: Vec<u64> = self
            .streams
            .iter()
            .filter(|(_, s)| s.up == node && s.sender_lives)
            .map(|(id, _)| *id)
            .collect();
        let Some((instance, _)) = self.parts(node) else { return };
        instance.rule_change += 1;
        instance.rule_pending = streams.iter().map(|id| Some(*id)).chain([None]).collect();
        let (number, change) = (instance.number, instance.rule_change);
        for stream in instance.rule_pending.clone() {
            let delay = self.rng.range(1, 120);
            self.after(delay, Event::RuleTaken { node, instance: number, change, stream });
        }
    }

    pub(crate) fn rule_taken(
        &mut self,
        node: usize,
        number: u64,
        change: u64,
        stream: Option<u64>,
    ) {
        let Some((instance, data)) = self.parts(node) else { return };
        if instance.number != number || instance.rule_change != change {
            return;
        }
        let rule = data.rule.clone();
        instance.rule_pending.remove(&stream);
        if instance.rule_pending.is_empty() {
            instance.taken.clone_from(&rule);
            let text = serde_json::to_string(&rule).unwrap_or_default();
            self.tell(node, || format!("every session has taken over {text}"));
        }
        match stream {
            Some(id) => {
                if let Some(stream) = self.streams.get_mut(&id) {
                    stream.rule = rule;
                    self.release_waiting(id);
                }
            }
            None => self.checkpointer_takes(node, &rule),
        }
    }

    fn checkpointer_takes(&mut self, node: usize, rule: &SyncRule) {
        let Some((instance, _)) = self.parts(node) else { return };
        instance.waits = *rule != SyncRule::Off;
        if !instance.waits {
            let waiting = std::mem::take(&mut instance.waiting);
            for (_, waiter) in waiting {
                self.acknowledge(node, waiter);
            }
        }
    }

    pub(crate) fn begin_clean_stop(&mut self, node: usize) {
        let slow = if self.hosts[node].slow_disk > 0 { 4 } else { 1 };
        let delay = self.rng.range(10, 200) * slow;
        let clock = self.hosts[node].clock(self.now).0;
        self.end_receiver_of(node);
        let Some((instance, data)) = self.parts(node) else { return };
        instance.was_standby = instance.in_recovery();
        if instance.writable() {
            data.state = ControlState::ShuttingDown;
        }
        instance.phase = Phase::Stopping;
        instance.since = clock;
        instance.waiting.clear();
        let number = instance.number;
        self.tell(node, || "PostgreSQL stops in an orderly way".to_owned());
        self.after(delay, Event::Postgres { node, instance: number });
        self.notice(node);
    }

    fn write_shutdown_checkpoint(&mut self, node: usize, number: u64) {
        let Some((instance, data)) = self.parts(node) else { return };
        if instance.was_standby {
            data.state = ControlState::ShutDownInRecovery;
            data.minimum = instance.replayed;
        } else if instance.timeline != Timeline(0) {
            data.checkpoint_now(instance.timeline);
            data.state = ControlState::ShutDown;
            instance.phase = Phase::Draining;
            self.pump_all(node);
            self.after(POLL, Event::Postgres { node, instance: number });
            return;
        }
        self.instance_ends(node, "has stopped");
    }

    /// Waits for every walsender (A6).
    fn drain(&mut self, node: usize, number: u64) {
        let end = self.hosts[node].disk.data.as_ref().map_or(Lsn(0), |d| d.log.end());
        let behind =
            self.streams.values().any(|s| s.up == node && s.sender_lives && s.confirmed < end);
        if behind {
            self.after(POLL, Event::Postgres { node, instance: number });
        } else {
            self.instance_ends(node, "has stopped");
        }
    }

    /// The instance ends in an orderly way.
    pub(crate) fn instance_ends(&mut self, node: usize, how: &str) {
        self.end_receiver_of(node);
        self.drop_senders(node);
        self.hosts[node].postgres = None;
        self.tell(node, || format!("PostgreSQL {how}"));
        self.notice(node);
    }

    /// Every process of the instance is killed.
    pub(crate) fn instance_killed(&mut self, node: usize, how: &str) {
        let kept = self.rng.chance(600);
        self.lose_receiver_of(node, kept);
        self.drop_senders(node);
        let low = self.rng.next();
        if let Some((instance, data)) = self.parts(node) {
            if instance.in_recovery() || instance.was_standby {
                // A11: pg_control may lag behind what was replayed.
                let (from, to) = (index(data.minimum), index(instance.replayed));
                if to > from && data.state == ControlState::InArchiveRecovery {
                    let span = u64::try_from(to - from).unwrap_or(0) + 1;
                    data.minimum = Lsn(data.minimum.0 + low % span);
                }
            }
            if instance.phase == Phase::Starting {
                data.state = match data.state {
                    ControlState::ShutDownInRecovery | ControlState::InArchiveRecovery => {
                        ControlState::InArchiveRecovery
                    }
                    ControlState::ShutDown
                    | ControlState::StartingUp
                    | ControlState::ShuttingDown
                    | ControlState::InCrashRecovery
                    | ControlState::InProduction => ControlState::InCrashRecovery,
                };
            }
        }
        self.hosts[node].postgres = None;
        self.tell(node, || format!("PostgreSQL {how}"));
        self.notice(node);
    }

    /// `kill -9` of the postmaster alone (A2, A16).
    pub(crate) fn postmaster_killed(&mut self, node: usize) {
        let stay = self.rng.chance(500);
        let delay = self.rng.range(10, 1_500);
        let Some((instance, _)) = self.parts(node) else { return };
        if !instance.postmaster {
            return;
        }
        instance.postmaster = false;
        let number = instance.number;
        let writable = instance.writable();
        self.tell(node, || "the postmaster is killed, its children live on".to_owned());
        if !(writable && stay) {
            let delay = if writable { delay } else { delay % 500 + 1 };
            self.after(delay, Event::OrphansEnd { node, instance: number });
        }
        self.notice(node);
    }

    pub(crate) fn orphans_end(&mut self, node: usize, number: u64) {
        if self.hosts[node].instance(number).is_some() {
            self.instance_killed(node, "has lost its last process");
        }
    }

    pub(crate) fn start_replay(&mut self, node: usize) {
        let slow = if self.hosts[node].slow_replay > 0 { 1_500 } else { 25 };
        let delay = self.rng.range(1, slow);
        let Some((instance, data)) = self.parts(node) else { return };
        if !instance.in_recovery() || instance.replaying || instance.replayed >= data.log.end() {
            return;
        }
        instance.replaying = true;
        let (number, to) = (instance.number, data.log.end());
        self.after(delay, Event::Replayed { node, instance: number, to });
    }

    pub(crate) fn replayed(&mut self, node: usize, number: u64, to: Lsn) {
        let Some((instance, data)) = self.parts(node) else { return };
        if instance.number != number {
            return;
        }
        instance.replaying = false;
        if instance.in_recovery() {
            instance.replayed = instance.replayed.max(to.min(data.log.end()));
            self.start_replay(node);
        }
    }
}
