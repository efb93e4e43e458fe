//! What members send each other besides WAL: heartbeats, and knocks at a leader's PostgreSQL.

use decide::{Act, ActionId, Outcome};
use types::Heartbeat;

use crate::world::{Event, World};

/// `heartbeat_interval`, in milliseconds.
const INTERVAL: u64 = 200;
/// How often an agent looks that waits for a sign of life of its leader, in milliseconds.
const WORRIED: u64 = 100;

impl World {
    /// A heartbeat is due.
    pub(crate) fn beat(&mut self, node: usize, number: u64) {
        if !self.hosts[node].agent_runs(number) {
            return;
        }
        self.send_beats(node);
        self.after(INTERVAL, Event::Beat { node, agent: number });
    }

    /// What an agent has to say anew is said at once; and whoever misses its leader looks often.
    pub(crate) fn speak(&mut self, node: usize) {
        if !self.setup.fenced {
            return;
        }
        let number = self.hosts[node].agents;
        let Some(agent) = &mut self.hosts[node].agent else { return };
        let said = agent.brain.heartbeat();
        let new = agent.said != said;
        agent.said = said;
        let worried = agent.brain.is_worried() && !agent.probe_pending;
        agent.probe_pending |= worried;
        if worried {
            self.after(WORRIED, Event::Probe { node, agent: number });
        }
        if new {
            self.send_beats(node);
        }
    }

    fn send_beats(&mut self, from: usize) {
        let Some(said) = self.hosts[from].agent.as_ref().map(|a| a.brain.heartbeat()) else {
            return;
        };
        for node in 0..self.hosts.len() {
            let delay = self.hop();
            if node != from && self.linked(from, node) {
                let agent = self.hosts[node].agents;
                self.after(delay, Event::Heard { node, agent, from, said: said.clone() });
            }
        }
    }

    pub(crate) fn heard(&mut self, node: usize, number: u64, from: usize, said: Heartbeat) {
        let host = &self.hosts[node];
        let started = host.agent.as_ref().is_some_and(|agent| agent.started);
        if host.agent_runs(number) && started {
            let from = self.hosts[from].name.clone();
            self.feed(node, decide::Event::Heard { from, said });
        }
    }

    /// A knock is answered by any postmaster that runs, refused where none does, and lost where the
    /// host or the network is.
    pub(crate) fn knock(&mut self, node: usize, number: u64, id: ActionId) {
        let doing = self.hosts[node].agent.as_ref().and_then(|agent| agent.doing.get(&id));
        let Some(Act::Knock { leader, limit }) = doing.map(|doing| doing.act.clone()) else {
            return;
        };
        let Some(to) = self.node_named(&leader.name) else { return };
        let host = &self.hosts[to];
        let reached = self.linked(node, to) && self.linked(to, node) && host.up;
        let runs = host.postgres.as_ref().is_some_and(|instance| instance.postmaster);
        let stands = host.frozen > 0 || (runs && host.postmaster_frozen > 0);
        let delay = self.hop() + self.hop();
        let (delay, outcome) = match (reached && !stands, runs) {
            (true, true) => (delay, Outcome::Done),
            (true, false) => (delay, Outcome::Failed),
            (false, _) => (limit.0, Outcome::Failed),
        };
        self.after(delay, Event::End { node, agent: number, id, outcome });
    }
}
