//! PostgreSQL as the scripts need it: a data directory, a process, and who streams from whom.

use std::collections::BTreeMap;

use types::{
    Control, ControlState, DataDir, HistoryLine, LocalPostgres, Lsn, MemberName, Millis, Primary,
    Process, Receiver, Replica, Role, Running, Server, Slot, Standby, SyncNames, Timeline,
    Upstream,
};

use crate::world::World;

/// The system identifier of the cluster in the scripts.
pub(crate) const OUR_SYSTEM: &str = "7600000000000000001";

/// A data directory.
#[derive(Debug, Clone)]
pub(crate) struct Data {
    pub(crate) system: String,
    pub(crate) state: ControlState,
    pub(crate) timeline: Timeline,
    pub(crate) end: Lsn,
    pub(crate) history: Vec<HistoryLine>,
    pub(crate) checkpoint: Lsn,
    pub(crate) checkpoint_timeline: Timeline,
    /// What pg_rewind wrote down as the minimum recovery end.
    pub(crate) minimum: Option<(Timeline, Lsn)>,
    pub(crate) standby_signal: bool,
    pub(crate) can_rewind: bool,
    pub(crate) upstream: Option<MemberName>,
    pub(crate) names: SyncNames,
    pub(crate) slots: BTreeMap<String, Option<Lsn>>,
}

impl Data {
    /// A new cluster, as initdb leaves it.
    pub(crate) fn new() -> Data {
        Data {
            system: OUR_SYSTEM.to_owned(),
            state: ControlState::ShutDown,
            timeline: Timeline(1),
            end: Lsn(10),
            history: Vec::new(),
            checkpoint: Lsn(10),
            checkpoint_timeline: Timeline(1),
            minimum: None,
            standby_signal: false,
            can_rewind: true,
            upstream: None,
            names: SyncNames::default(),
            slots: BTreeMap::new(),
        }
    }

    /// What a copy of a running primary, or a rewind against it, leaves.
    pub(crate) fn copy_of(source: &Data) -> Data {
        Data {
            state: ControlState::InArchiveRecovery,
            minimum: None,
            standby_signal: true,
            upstream: None,
            names: SyncNames::default(),
            slots: BTreeMap::new(),
            ..source.clone()
        }
    }

    fn control(&self) -> Control {
        let known = self.state.end_is_certain().then_some((self.timeline, self.end));
        let checkpoint = (self.checkpoint_timeline, self.checkpoint);
        let (end_timeline, end) = known.or(self.minimum).unwrap_or(checkpoint);
        Control {
            system_identifier: self.system.clone(),
            state: self.state,
            timeline: self.checkpoint_timeline,
            checkpoint: self.checkpoint,
            end,
            end_timeline,
            can_rewind: self.can_rewind,
            standby_signal: self.standby_signal,
            unfinished_rewind: self.minimum.is_some(),
        }
    }

    /// Whether a rewound copy received nothing since.
    pub(crate) fn ends_at_control(&self) -> bool {
        self.minimum.is_some_and(|(_, end)| self.end <= end)
    }

    /// Whether PostgreSQL would stream from `upstream` after this log.
    fn may_stream_from(&self, upstream: &Data) -> bool {
        if self.system != upstream.system {
            return false;
        }
        if self.timeline == upstream.timeline {
            return self.end <= upstream.end;
        }
        let left = upstream.history.iter().find(|line| line.timeline == self.timeline);
        left.is_some_and(|line| self.end <= line.switch)
    }
}

/// What runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Proc {
    Stopped,
    Orphaned,
    NotReady(Millis),
    Silent(Millis),
    Primary,
    Standby,
}

impl World {
    /// The member that `down` streams from, if it does.
    pub(crate) fn streams_from(&self, down: &MemberName) -> Option<MemberName> {
        let host = self.hosts.get(down)?;
        let data = host.data.as_ref().filter(|_| host.process == Proc::Standby)?;
        let up = data.upstream.as_ref().filter(|_| !host.stream_cut)?;
        let source = self.hosts.get(up).filter(|s| s.process == Proc::Primary)?;
        let may = data.may_stream_from(source.data.as_ref()?);
        may.then(|| up.clone())
    }

    /// Since when a host has sent nothing on its streams.
    fn silent_since(&self, name: &MemberName) -> Option<Millis> {
        let host = self.hosts.get(name)?;
        host.frozen.or(host.cut_off)
    }

    /// Brings every standby that streams to where its upstream is.
    pub(crate) fn replicate(&mut self) {
        let names: Vec<MemberName> = self.hosts.keys().cloned().collect();
        for name in names {
            let source = self.streams_from(&name).filter(|up| self.silent_since(up).is_none());
            let source = source.and_then(|up| self.hosts.get(&up)?.data.clone());
            let Some((source, host)) = source.zip(self.hosts.get_mut(&name)) else { continue };
            let lags_at = host.lags_at;
            let Some(data) = &mut host.data else { continue };
            let end = lags_at.map_or(source.end, |at| at.min(source.end)).max(data.end);
            data.end = end;
            data.timeline = source.timeline;
            data.history.clone_from(&source.history);
            data.checkpoint = source.checkpoint.min(end);
            data.checkpoint_timeline = source.checkpoint_timeline;
        }
    }

    /// Whether a commit on `name` is acknowledged under its rule.
    pub(crate) fn acknowledges(&self, name: &MemberName) -> bool {
        let Some(data) = self.hosts.get(name).and_then(|h| h.data.as_ref()) else { return false };
        let end = data.end;
        let confirms = |r: &Replica| r.listed && r.known && r.flush >= end;
        let confirm = self.replicas_of(name).into_iter().filter(confirms);
        confirm.count() >= data.names.number
    }

    fn replicas_of(&self, up: &MemberName) -> Vec<Replica> {
        let Some(data) = self.hosts.get(up).and_then(|h| h.data.as_ref()) else {
            return Vec::new();
        };
        let streaming =
            self.hosts.iter().filter(|(name, _)| self.streams_from(name).as_ref() == Some(up));
        let members =
            streaming.filter_map(|(name, host)| Some((name, host.data.as_ref()?.end, true)));
        // Whoever only receives has everything.
        let strangers = self.hosts[up].strangers.iter().map(|name| (name, data.end, false));
        let everybody = MemberName::from("*");
        let replica = |(name, end, known): (&MemberName, Lsn, bool)| {
            let names = &data.names.names;
            let listed = names.contains(name) || names.contains(&everybody);
            Replica {
                name: name.0.clone(),
                streaming: true,
                flush: end,
                replay: end,
                listed,
                known,
            }
        };
        members.chain(strangers).map(replica).collect()
    }

    /// One observation of a node, complete in itself.
    pub(crate) fn observe(&self, name: &MemberName) -> LocalPostgres {
        let host = &self.hosts[name];
        let data_dir = match &host.data {
            None => DataDir::Empty,
            Some(data) => DataDir::Present(data.control()),
        };
        let process = match host.process {
            Proc::Stopped => Process::Stopped,
            Proc::Orphaned => Process::Orphaned,
            Proc::NotReady(since) => Process::NotReady { since, recovery: None },
            Proc::Silent(since) => Process::Silent { since },
            Proc::Primary | Proc::Standby => Process::Running(self.running(name)),
        };
        LocalPostgres {
            at: self.now,
            data_dir,
            process,
            health: host.health.clone(),
            durable: host.durable.clone(),
            compared: host.compared.clone(),
        }
    }

    fn running(&self, name: &MemberName) -> Running {
        let host = &self.hosts[name];
        let data = host.data.clone().unwrap_or_else(Data::new);
        let slots = data.slots.iter();
        let slots = slots.map(|(name, at)| Slot {
            name: name.clone(),
            restart: Some(at.unwrap_or_default()),
            ..Slot::default()
        });
        let server = Server {
            version: 150_000,
            started: host.starts.to_string(),
            slots: slots.collect(),
            ..Server::default()
        };
        let role = if host.process == Proc::Primary {
            Role::Primary(Primary {
                timeline: data.timeline,
                flush: data.end,
                promoted_at: data.history.last().map_or(Lsn(0), |line| line.switch),
                checkpoint_done: data.checkpoint_timeline == data.timeline,
                sync: data.names,
                replicas: self.replicas_of(name),
            })
        } else {
            let receiver = self.streams_from(name).map(|up| {
                let silent = self.silent_since(&up).map_or(Millis::ZERO, |at| self.now.since(at));
                Receiver { streaming: true, silent_for: Some(silent) }
            });
            Role::Standby(Standby {
                timeline: host.promoting.unwrap_or(data.timeline),
                received: data.end,
                replayed: data.end,
                receiver,
                upstream: data.upstream.map(upstream),
                replay_lag: None,
                replayed_at: None,
                replay_paused: false,
                restores: false,
            })
        };
        Running { server, role }
    }
}

/// The address that a member's key in the scripts has.
pub(crate) fn upstream(name: MemberName) -> Upstream {
    let archive = Upstream::archive();
    if name == archive.name {
        return archive;
    }
    Upstream { host: format!("host-{name}"), port: 5432, name }
}
