//! What an agent can see of its PostgreSQL.

use std::collections::BTreeSet;

use decide::SyncRule;
use types::{
    DataDir, LocalPostgres, Lsn, Millis, Primary, Receiver, Replica, Role, Running, Server,
    Standby, SyncNames,
};

use crate::postgres::{Instance, Phase};
use crate::world::World;

impl World {
    /// One observation, complete in itself.
    pub(crate) fn observe(&self, node: usize) -> LocalPostgres {
        let host = &self.hosts[node];
        let data_dir = match &host.disk.data {
            None => DataDir::Empty,
            Some(data) => DataDir::Present(data.control()),
        };
        LocalPostgres {
            at: host.clock(self.now),
            data_dir,
            process: self.process_of(node),
            health: self.health_of(node),
            durable: host.disk.durable.clone(),
            compared: host.agent.as_ref().and_then(|a| a.compared.clone()),
        }
    }

    pub(crate) fn running(&self, node: usize, instance: &Instance) -> Running {
        let server = Server {
            version: 150_000,
            started: instance.number.to_string(),
            pending_restart: std::collections::BTreeMap::new(),
            slots: self.slots_of(node),
            ..Server::default()
        };
        let role = if instance.writable() {
            Role::Primary(self.primary(node, instance))
        } else {
            Role::Standby(self.standby(node, instance))
        };
        Running { server, role }
    }

    fn primary(&self, node: usize, instance: &Instance) -> Primary {
        let host = &self.hosts[node];
        let Some(data) = &host.disk.data else { return Primary::default() };
        let mut replicas = Vec::new();
        for stream in self.streams.values().filter(|s| s.up == node && s.sender_lives) {
            let name = self.hosts[stream.down].name.clone();
            let listed = match &stream.rule {
                SyncRule::Off => false,
                SyncRule::First(names) | SyncRule::Any(names) => names.names.contains(&name),
            };
            replicas.push(Replica {
                name: name.0,
                streaming: stream.caught_up && stream.confirmed > Lsn(0),
                flush: stream.confirmed,
                replay: stream.replayed,
                listed,
                known: true,
            });
        }
        let sync = match &instance.taken {
            SyncRule::Off => SyncNames { number: 0, names: BTreeSet::new() },
            SyncRule::First(names) | SyncRule::Any(names) => names.clone(),
        };
        Primary {
            timeline: instance.timeline,
            flush: data.log.end(),
            promoted_at: data.log.history.last().map_or(Lsn(0), |l| l.switch),
            checkpoint_done: data.control_timeline() == instance.timeline,
            sync,
            replicas,
        }
    }

    fn standby(&self, node: usize, instance: &Instance) -> Standby {
        let host = &self.hosts[node];
        let Some(data) = &host.disk.data else { return Standby::default() };
        // A10: before it has streamed, only what was replayed is known.
        let received = if instance.has_streamed { data.log.end() } else { instance.replayed };
        // A18: the files of the new timeline are there before recovery is over.
        let timeline = match instance.phase {
            Phase::Promoting(to) => to,
            _ => data.log.timeline_at(received),
        };
        Standby {
            timeline,
            received,
            replayed: instance.replayed,
            receiver: instance.receiver.map(|id| Receiver {
                streaming: true,
                silent_for: self.streams.get(&id).map(|s| Millis(self.now - s.heard_down)),
            }),
            upstream: data.conninfo.clone(),
            replay_lag: None,
            replayed_at: None,
            replay_paused: false,
            restores: false,
        }
    }
}
