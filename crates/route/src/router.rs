//! The state machine over clients, routes and gates.

use std::collections::{BTreeMap, BTreeSet};

use types::{ClusterView, MemberName, Millis, Term};

use crate::choice::{self, Awaited};
use crate::event::{Action, ClientId, CutReason, Event, Port, Refusal, Target};
use crate::metrics::{Metrics, Snapshot};

/// After a failed attempt to the primary, the next one follows this much later. A fresh primary is
/// reached within it; a dead one costs one attempt at a time, however many clients wait.
const PRIMARY_RETRY: Millis = Millis(20);
/// A replica that could not be reached is left out this long.
const REPLICA_RETRY: Millis = Millis(2000);

const CANNOT_CONNECT_NOW: &str = "57P03";
const TOO_MANY_CONNECTIONS: &str = "53300";

/// The router's limits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RouterConfig {
    /// How long a client waits for a route and a connection, at most.
    pub hold_timeout: Millis,
    /// How many clients wait at once, at most; the oldest is refused first.
    pub hold_limit: usize,
    /// How many clients there are in all, at most.
    pub client_limit: usize,
    /// Replicas further behind than this many bytes get no new read-only client.
    pub lag_bytes_max: Option<u64>,
}

/// The term and member that a connection to a primary belongs to.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Binding {
    member: MemberName,
    /// For a connection to a primary: the newest term seen when it was chosen.
    primary_since: Option<Term>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Phase {
    Held,
    Connecting(Binding),
    Open(Binding),
}

#[derive(Debug, Clone)]
struct Client {
    port: Port,
    deadline: Millis,
    attempts: u32,
    phase: Phase,
    counted_as_held: bool,
}

/// A member that failed an attempt is tried by one client at a time until it answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Gate {
    ClosedUntil(Millis),
    TriedBy(ClientId),
}

/// The proxy's brain. See the crate's documentation.
#[derive(Debug, Clone)]
pub struct Router {
    config: RouterConfig,
    fresh: bool,
    newest_term: Term,
    primary: Result<Target, Awaited>,
    replicas: Vec<Target>,
    clients: BTreeMap<ClientId, Client>,
    /// The clients in phase `Held`, by port.
    held_read_write: BTreeSet<ClientId>,
    held_read_only: BTreeSet<ClientId>,
    /// Clients put among them in the present step.
    newly_held: Vec<ClientId>,
    /// The deadlines of all clients that are not open yet.
    deadlines: BTreeSet<(Millis, ClientId)>,
    gates: BTreeMap<MemberName, Gate>,
    /// Connections to each member, open or being made.
    connections: BTreeMap<MemberName, usize>,
    /// When each replica was last chosen, so that equal load goes round.
    chosen: BTreeMap<MemberName, u64>,
    choices: u64,
    wake: Option<Millis>,
    metrics: Metrics,
}

impl Router {
    /// A router that has seen nothing yet.
    #[must_use]
    pub fn new(config: RouterConfig) -> Router {
        Router {
            config,
            fresh: false,
            newest_term: Term(0),
            primary: Err(Awaited::View),
            replicas: Vec::new(),
            clients: BTreeMap::new(),
            held_read_write: BTreeSet::new(),
            held_read_only: BTreeSet::new(),
            newly_held: Vec::new(),
            deadlines: BTreeSet::new(),
            gates: BTreeMap::new(),
            connections: BTreeMap::new(),
            chosen: BTreeMap::new(),
            choices: 0,
            wake: None,
            metrics: Metrics::default(),
        }
    }

    /// Takes one event and answers what is to be done, in this order.
    pub fn step(&mut self, now: Millis, event: Event) -> Vec<Action> {
        let mut actions = Vec::new();
        match event {
            Event::View(view) => self.see(now, &view, &mut actions),
            Event::DcsLost => self.fresh = false,
            Event::DcsBack => self.fresh = true,
            Event::ClientArrived { client, port } => self.arrive(now, client, port, &mut actions),
            Event::ClientGone { client } => self.forget(now, client),
            Event::ServerConnected { client, attempt } => self.connected(client, attempt),
            Event::ServerFailed { client, attempt } => self.failed(now, client, attempt),
            Event::ServerLost { client } => self.server_lost(now, client),
            // The timer is used up, also if it came early.
            Event::Tick => self.wake = None,
        }
        self.expire(now, &mut actions);
        self.serve(now, &mut actions);
        self.count_held_and_limit(now, &mut actions);
        self.wake(now, &mut actions);
        actions
    }

    /// The present state for operators.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        let waiting = self.held_read_write.len() + self.held_read_only.len();
        Snapshot {
            read_write: self.primary.as_ref().ok().cloned(),
            awaiting: self.primary.as_ref().err().map(ToString::to_string),
            read_only: self.replicas.clone(),
            term: self.newest_term,
            fresh: self.fresh,
            waiting,
            connecting: self.deadlines.len().saturating_sub(waiting),
            connections: self.connections.clone(),
            metrics: self.metrics,
        }
    }

    fn see(&mut self, now: Millis, view: &ClusterView, actions: &mut Vec<Action>) {
        self.newest_term = self.newest_term.max(choice::newest_term(view));
        let primary = choice::primary_route(view, self.newest_term);
        if primary.is_ok() && primary != self.primary {
            // What failed before says nothing about a new primary.
            self.gates.clear();
        }
        self.primary = primary;
        self.replicas = choice::replicas(view, self.config.lag_bytes_max);
        self.chosen.retain(|name, _| view.members.contains_key(name));
        self.bind_promoted();
        let outdated: Vec<(ClientId, CutReason)> = self
            .clients
            .iter()
            .filter_map(|(id, client)| Some((*id, self.outdated(view, client)?)))
            .collect();
        for (client, reason) in outdated {
            self.give_up(now, client, reason, actions);
        }
    }

    /// A session that came to a replica is bound from the moment on that this becomes the primary:
    /// when it is deposed later, the session must not go on writing there.
    fn bind_promoted(&mut self) {
        let Ok(primary) = &self.primary else {
            return;
        };
        for client in self.clients.values_mut() {
            match &mut client.phase {
                Phase::Held => {}
                Phase::Connecting(binding) | Phase::Open(binding) => {
                    if binding.member == primary.member && binding.primary_since.is_none() {
                        binding.primary_since = Some(self.newest_term);
                    }
                }
            }
        }
    }

    /// Why the client's connection must end, if it must.
    fn outdated(&self, view: &ClusterView, client: &Client) -> Option<CutReason> {
        let binding = match &client.phase {
            Phase::Held => return None,
            Phase::Connecting(binding) | Phase::Open(binding) => binding,
        };
        let since = binding.primary_since?;
        // A member key that cannot be read has no role; that says nothing.
        let key = view.member(&binding.member).filter(|member| !member.role.is_empty());
        if key.is_some_and(|member| !choice::is_primary(member)) {
            return Some(CutReason::Planned);
        }
        // Without a leader key a session stays: its primary may still hold its lease.
        let other_leads = view.leader_name().is_some_and(|leader| *leader != binding.member);
        (other_leads || self.newest_term > since).then_some(CutReason::Unplanned)
    }

    /// Ends an open session, or takes back an attempt: that client has seen nothing yet.
    fn give_up(&mut self, now: Millis, id: ClientId, reason: CutReason, actions: &mut Vec<Action>) {
        let Some(client) = self.clients.get(&id) else {
            return;
        };
        match &client.phase {
            Phase::Held => {}
            Phase::Connecting(_) => {
                self.release_gate(now, id);
                self.hold(id);
                actions.push(Action::Hold { client: id });
            }
            Phase::Open(_) => {
                let counters = self.metrics.of(client.port);
                match reason {
                    CutReason::Planned => counters.cut_planned += 1,
                    CutReason::Unplanned => counters.cut_unplanned += 1,
                }
                self.remove(id);
                actions.push(Action::Cut { client: id, reason });
            }
        }
    }

    fn arrive(&mut self, now: Millis, id: ClientId, port: Port, actions: &mut Vec<Action>) {
        self.metrics.of(port).arrived += 1;
        if self.clients.len() >= self.config.client_limit {
            self.metrics.of(port).refused += 1;
            let refusal = Refusal {
                sqlstate: TOO_MANY_CONNECTIONS,
                message: "the proxy has too many clients already".to_owned(),
                hint: format!("Its limit is {} clients.", self.config.client_limit),
            };
            actions.push(Action::Refuse { client: id, refusal });
            return;
        }
        let deadline = now.plus(self.config.hold_timeout);
        let client =
            Client { port, deadline, attempts: 0, phase: Phase::Held, counted_as_held: false };
        let earlier = self.clients.insert(id, client);
        assert!(earlier.is_none(), "client {id} arrived twice");
        self.deadlines.insert((deadline, id));
        self.held(port).insert(id);
        self.newly_held.push(id);
    }

    fn forget(&mut self, now: Millis, id: ClientId) {
        self.release_gate(now, id);
        self.remove(id);
    }

    fn server_lost(&mut self, now: Millis, id: ClientId) {
        if let Some(client) = self.clients.get(&id) {
            self.metrics.of(client.port).server_lost += 1;
        }
        self.forget(now, id);
    }

    fn connected(&mut self, id: ClientId, attempt: u32) {
        let Some(client) = self.clients.get_mut(&id).filter(|c| c.attempts == attempt) else {
            return;
        };
        let Phase::Connecting(binding) = &client.phase else {
            return;
        };
        self.gates.remove(&binding.member);
        client.phase = Phase::Open(binding.clone());
        self.deadlines.remove(&(client.deadline, id));
        self.metrics.of(client.port).connected += 1;
    }

    fn failed(&mut self, now: Millis, id: ClientId, attempt: u32) {
        let Some(client) = self.clients.get(&id).filter(|c| c.attempts == attempt) else {
            return;
        };
        let Phase::Connecting(binding) = &client.phase else {
            return;
        };
        self.metrics.of(client.port).connect_failures += 1;
        let pause = if binding.primary_since.is_some() { PRIMARY_RETRY } else { REPLICA_RETRY };
        let closed = Gate::ClosedUntil(now.plus(pause));
        let gate = self.gates.entry(binding.member.clone()).or_insert(closed);
        // Late failures of a crowd do not put off the attempt that is due.
        if *gate == Gate::TriedBy(id) {
            *gate = closed;
        }
        self.hold(id);
    }

    /// Refuses the clients whose time is up.
    fn expire(&mut self, now: Millis, actions: &mut Vec<Action>) {
        while let Some((deadline, id)) = self.deadlines.first().copied() {
            if deadline > now {
                return;
            }
            let port = self.clients.get(&id).map_or(Port::ReadWrite, |client| client.port);
            let message = match port {
                Port::ReadWrite => "no primary could be reached in time",
                Port::ReadOnly => "no server for reads could be reached in time",
            };
            self.refuse(now, id, message, actions);
        }
    }

    fn refuse(&mut self, now: Millis, id: ClientId, message: &str, actions: &mut Vec<Action>) {
        if let Some(client) = self.clients.get(&id) {
            self.metrics.of(client.port).refused += 1;
        }
        let refusal = Refusal {
            sqlstate: CANNOT_CONNECT_NOW,
            message: message.to_owned(),
            hint: self.hint(),
        };
        self.forget(now, id);
        actions.push(Action::Refuse { client: id, refusal });
    }

    fn hint(&self) -> String {
        let waited = self.config.hold_timeout;
        let stale = if self.fresh { "" } else { " The proxy does not reach the DCS now." };
        match &self.primary {
            Err(awaited) => format!("hold_timeout is {waited}: {awaited}.{stale}"),
            Ok(Target { member, host, port, .. }) => format!(
                "hold_timeout is {waited}: the primary {member} at {host}:{port} does not take \
                 connections.{stale}"
            ),
        }
    }

    /// Connects everyone who waits and for whom there is a server.
    fn serve(&mut self, now: Millis, actions: &mut Vec<Action>) {
        for port in [Port::ReadWrite, Port::ReadOnly] {
            while let Some(id) = self.held(port).first().copied() {
                let Some(target) = self.choose(port, now) else {
                    break;
                };
                self.connect(id, target, actions);
            }
        }
    }

    fn choose(&self, port: Port, now: Millis) -> Option<Target> {
        let primary = self.primary.as_ref().ok().filter(|t| self.gate_open(&t.member, now));
        match port {
            Port::ReadWrite => primary.cloned(),
            Port::ReadOnly => {
                let usable = self.replicas.iter().filter(|t| self.gate_open(&t.member, now));
                let order = |target: &&Target| {
                    let load = self.connections.get(&target.member).copied().unwrap_or(0);
                    (load, self.chosen.get(&target.member).copied().unwrap_or(0))
                };
                usable.min_by_key(order).or(primary).cloned()
            }
        }
    }

    fn connect(&mut self, id: ClientId, target: Target, actions: &mut Vec<Action>) {
        let Some(client) = self.clients.get_mut(&id) else {
            return;
        };
        let newest = self.newest_term;
        let binding =
            Binding { member: target.member.clone(), primary_since: target.term.map(|_| newest) };
        client.phase = Phase::Connecting(binding);
        client.attempts += 1;
        let attempt = client.attempts;
        let port = client.port;
        self.held(port).remove(&id);
        if let Some(gate) = self.gates.get_mut(&target.member) {
            *gate = Gate::TriedBy(id);
        }
        self.choices += 1;
        self.chosen.insert(target.member.clone(), self.choices);
        *self.connections.entry(target.member.clone()).or_default() += 1;
        actions.push(Action::Connect { client: id, attempt, target });
    }

    /// Puts a client whose attempt is over back among those who wait, at its old age.
    fn hold(&mut self, id: ClientId) {
        let Some(client) = self.clients.get_mut(&id) else {
            return;
        };
        let port = client.port;
        let phase = std::mem::replace(&mut client.phase, Phase::Held);
        self.release_connection(&phase);
        self.held(port).insert(id);
        self.newly_held.push(id);
    }

    fn remove(&mut self, id: ClientId) {
        let Some(client) = self.clients.remove(&id) else {
            return;
        };
        self.deadlines.remove(&(client.deadline, id));
        self.held(client.port).remove(&id);
        self.release_connection(&client.phase);
    }

    fn release_connection(&mut self, phase: &Phase) {
        let member = match phase {
            Phase::Held => return,
            Phase::Connecting(binding) | Phase::Open(binding) => &binding.member,
        };
        if let Some(count) = self.connections.get_mut(member) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                self.connections.remove(member);
            }
        }
    }

    /// The one who tried a member leaves: the next may try.
    fn release_gate(&mut self, now: Millis, id: ClientId) {
        for gate in self.gates.values_mut() {
            if *gate == Gate::TriedBy(id) {
                *gate = Gate::ClosedUntil(now);
            }
        }
    }

    fn gate_open(&self, member: &MemberName, now: Millis) -> bool {
        match self.gates.get(member) {
            None => true,
            Some(Gate::ClosedUntil(when)) => now >= *when,
            Some(Gate::TriedBy(_)) => false,
        }
    }

    fn held(&mut self, port: Port) -> &mut BTreeSet<ClientId> {
        match port {
            Port::ReadWrite => &mut self.held_read_write,
            Port::ReadOnly => &mut self.held_read_only,
        }
    }

    fn count_held_and_limit(&mut self, now: Millis, actions: &mut Vec<Action>) {
        for id in std::mem::take(&mut self.newly_held) {
            let waits = |client: &&mut Client| client.phase == Phase::Held;
            let Some(client) = self.clients.get_mut(&id).filter(waits) else {
                continue;
            };
            if !client.counted_as_held {
                client.counted_as_held = true;
                self.metrics.of(client.port).held += 1;
            }
        }
        while self.held_read_write.len() + self.held_read_only.len() > self.config.hold_limit {
            let firsts = [self.held_read_write.first(), self.held_read_only.first()];
            let Some(oldest) = firsts.into_iter().flatten().min().copied() else {
                return;
            };
            self.refuse(now, oldest, "too many clients wait for a server", actions);
        }
    }

    fn wake(&mut self, now: Millis, actions: &mut Vec<Action>) {
        let deadline = self.deadlines.first().map(|(deadline, _)| *deadline);
        let someone_waits = !self.held_read_write.is_empty() || !self.held_read_only.is_empty();
        let gates = self.gates.values().filter_map(|gate| match gate {
            Gate::ClosedUntil(when) => (someone_waits && *when > now).then_some(*when),
            Gate::TriedBy(_) => None,
        });
        let wake = gates.chain(deadline).min();
        if let Some(when) = wake.filter(|when| Some(*when) != self.wake) {
            actions.push(Action::WakeAt(when));
        }
        self.wake = wake;
    }
}

#[cfg(test)]
mod tests;
