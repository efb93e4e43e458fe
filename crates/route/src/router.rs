//! The state machine over clients, routes and gates.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use types::{ClusterView, MemberName, Millis};

use crate::binding::Binding;
use crate::choice::{self, Awaited, Replica};
use crate::event::{Action, ClientId, CutReason, Event, PoolId, Port, Refusal, Target};
use crate::freshness::Freshness;
use crate::metrics::{Metrics, Snapshot};
use crate::pools::{PoolUse, Pools, Routes, ServerUse, SharedLimits, Waiting};

mod hold;
mod reads;
mod refusals;

use self::hold::Hold;
use self::refusals::{TOO_MANY_CONNECTIONS, nobody_reached};

/// While clients of pools wait, it is looked so often whose time is up.
const POOL_LOOK: Millis = Millis(100);

/// The router's limits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RouterConfig {
    /// How long a client waits for a route and a connection, at most.
    pub hold_timeout: Millis,
    /// How long a client waits for a connection of its pool while the route is open, at most.
    pub pool_timeout: Millis,
    /// How many clients wait at once, at most; the oldest is refused first.
    pub hold_limit: usize,
    /// How many clients there are in all, at most.
    pub client_limit: usize,
    /// Replicas further behind than this many bytes get no new read-only client.
    pub lag_bytes_max: Option<u64>,
    /// Where the proxy is: replicas of the same site come first.
    pub site: Option<String>,
    /// Server connections of all pools of one user at each member, at most; 0 is no limit.
    pub max_user_connections: usize,
    /// Server connections of all pools of one database at each member, at most; 0 is no limit.
    pub max_db_connections: usize,
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
    since: Millis,
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
    primary: Result<Target, Awaited>,
    routes: Routes,
    freshness: Freshness,
    pools: Pools,
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
    /// What was seen last, for when a hold ends by itself.
    view: Option<Arc<ClusterView>>,
    hold: Option<Hold>,
    /// The hold that was not taken away in its time.
    outlasted: Option<u64>,
    metrics: Metrics,
}

impl Router {
    /// A router that has seen nothing yet.
    #[must_use]
    pub fn new(config: RouterConfig) -> Router {
        let shared =
            SharedLimits { user: config.max_user_connections, database: config.max_db_connections };
        Router {
            config,
            fresh: false,
            primary: Err(Awaited::View),
            routes: Routes::default(),
            freshness: Freshness::default(),
            pools: Pools::new(shared),
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
            view: None,
            hold: None,
            outlasted: None,
            metrics: Metrics::default(),
        }
    }

    /// Takes one event and answers what is to be done, in this order.
    pub fn step(&mut self, now: Millis, event: Event) -> Vec<Action> {
        let mut actions = Vec::new();
        match event {
            // A transaction's two events; nothing else can have come with them.
            Event::Wants { client, port, pool } => {
                self.want(now, client, (pool, port), &mut actions);
                return actions;
            }
            Event::WantsRead { client, pool, written } => {
                self.want_read(now, client, (pool, written), &mut actions);
                return actions;
            }
            Event::WalEnds { round, member, term, lsn } => {
                self.wal_ends(round, &member, term, lsn);
                return actions;
            }
            Event::Replayed { member, lsn } => {
                self.replayed(member, lsn);
                return actions;
            }
            Event::Returned { server } => {
                self.pools.give_back(now, &self.routes, server, &mut actions);
                return actions;
            }
            Event::Cleans { server } => {
                self.pools.clean(server);
                return actions;
            }
            Event::Opened { server } => self.opened(now, server, &mut actions),
            Event::OpenFailed { server } | Event::Lost { server } => {
                self.pools.lost(now, &self.routes, server, &mut actions);
            }
            Event::OpenRefused { server, refusal } => {
                self.open_refused(now, server, &refusal, &mut actions);
            }
            Event::View(view) => {
                self.view = Some(view.clone());
                self.see(now, &view, &mut actions);
            }
            Event::DcsLost => self.fresh = false,
            Event::DcsBack => self.fresh = true,
            Event::ClientArrived { client, port } => self.arrive(now, client, port, &mut actions),
            Event::ClientGone { client } => {
                self.forget(now, client);
                self.pools.client_gone(client);
            }
            Event::ServerConnected { client, attempt } => self.connected(client, attempt),
            Event::ServerFailed { client, attempt } => self.failed(now, client, attempt),
            Event::ServerLost { client } => self.server_lost(now, client),
            Event::Configured { hold_timeout, lag_bytes_max } => {
                self.config.hold_timeout = hold_timeout;
                self.config.lag_bytes_max = lag_bytes_max;
            }
            Event::Reconnect => self.pools.reconnect(&mut actions),
            Event::Pause => self.pools.paused = true,
            Event::Resume => self.pools.paused = false,
            // The timer is used up, also if it came early.
            Event::Tick => {
                self.wake = None;
                self.end_hold(now, &mut actions);
            }
        }
        self.expire(now, &mut actions);
        self.serve(now, &mut actions);
        self.pools.serve_all(now, &self.routes, &mut actions);
        self.count_held_and_limit(now, &mut actions);
        self.wake(now, &mut actions);
        actions
    }

    /// A new pool of this user and database, with at most `size` connections to each member.
    pub fn add_pool(&mut self, user: &str, database: &str, size: usize) -> PoolId {
        self.pools.add(user, database, size)
    }

    /// How one pool is used.
    #[must_use]
    pub fn pool_use(&self, pool: PoolId) -> PoolUse {
        self.pools.used(pool)
    }

    /// Every connection of the pools, in the order in which they were opened.
    #[must_use]
    pub fn servers(&self) -> Vec<ServerUse> {
        self.pools.list()
    }

    /// How many of them clients have.
    #[must_use]
    pub fn lent_count(&self) -> usize {
        self.pools.lent_count()
    }

    /// The clients that wait for a connection.
    #[must_use]
    pub fn waiting(&self) -> BTreeMap<ClientId, Waiting> {
        let held = self.held_read_write.iter().chain(&self.held_read_only);
        let held = held.filter_map(|id| {
            Some((*id, Waiting { pool: None, since: self.clients.get(id)?.since }))
        });
        held.chain(self.pools.list_waiting()).collect()
    }

    /// Whether clients of pools wait for an operator.
    #[must_use]
    pub fn is_paused(&self) -> bool {
        self.pools.paused
    }

    /// Whether a hold is followed.
    #[must_use]
    pub fn holds(&self) -> bool {
        self.hold.is_some()
    }

    /// Ids and addresses of the cluster's proxies, as the last view shows them.
    #[must_use]
    pub fn proxies(&self) -> Vec<(String, String)> {
        let proxies = self.view.iter().flat_map(|view| &view.proxies);
        proxies.map(|(id, proxy)| (id.clone(), proxy.value.address.clone())).collect()
    }

    /// The present state for operators.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        let held = self.held_read_write.len() + self.held_read_only.len();
        let mut connections = self.connections.clone();
        for (member, count) in self.pools.connections() {
            *connections.entry(member).or_default() += count;
        }
        Snapshot {
            read_write: self.primary.as_ref().ok().cloned(),
            awaiting: self.primary.as_ref().err().map(ToString::to_string),
            read_only: self.routes.replicas.iter().map(|r| r.target.clone()).collect(),
            term: self.routes.newest_term,
            fresh: self.fresh,
            waiting: held + self.pools.waiting_count(),
            on_hold: self.on_hold(),
            connecting: self.deadlines.len().saturating_sub(held),
            connections,
            hold: self.hold.map(|hold| hold.id),
            busy: self.busy(),
            paused: self.pools.paused,
            metrics: self.metrics,
        }
    }

    fn see(&mut self, now: Millis, view: &ClusterView, actions: &mut Vec<Action>) {
        self.routes.newest_term = self.routes.newest_term.max(view.newest_term());
        let mut primary = choice::primary_route(view, self.routes.newest_term);
        let begins = self.follow_hold(now, view);
        if let (Some(_), Ok(target)) = (self.hold, &primary) {
            let why = view.active_hold().map(|hold| hold.value.why.clone()).unwrap_or_default();
            primary = Err(Awaited::Held { leader: target.member.clone(), why });
        }
        if primary.is_ok() && primary != self.primary {
            // What failed before says nothing about a new primary.
            self.gates.clear();
            self.pools.open_gates();
        }
        if primary.is_err() && self.primary.is_ok() {
            self.routes.closed_since = now;
        }
        self.routes.primary = primary.as_ref().ok().cloned();
        self.primary = primary;
        let site = self.config.site.as_deref();
        self.routes.replicas = choice::replicas(view, self.config.lag_bytes_max, site);
        self.follow_primary(view);
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
        self.pools.see(now, view, &self.routes, actions);
        if begins {
            self.drain(actions);
        }
    }

    /// Sessions on a replica that is promoted are bound to its term from now on.
    fn bind_promoted(&mut self) {
        let Ok(primary) = &self.primary else {
            return;
        };
        for client in self.clients.values_mut() {
            match &mut client.phase {
                Phase::Held => {}
                Phase::Connecting(binding) | Phase::Open(binding) => {
                    binding.bind_promoted(primary, self.routes.newest_term);
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
        binding.outdated(view, self.routes.newest_term)
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
                sqlstate: TOO_MANY_CONNECTIONS.to_owned(),
                message: "the proxy has too many clients already".to_owned(),
                hint: format!("Its limit is {} clients.", self.config.client_limit),
            };
            actions.push(Action::Refuse { client: id, refusal });
            return;
        }
        let deadline = now.plus(self.config.hold_timeout);
        let client = Client {
            port,
            since: now,
            deadline,
            attempts: 0,
            phase: Phase::Held,
            counted_as_held: false,
        };
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
        let closed = Gate::ClosedUntil(now.plus(binding.retry()));
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
                break;
            }
            let port = self.clients.get(&id).map_or(Port::ReadWrite, |client| client.port);
            self.refuse(now, id, nobody_reached(port), actions);
        }
        let late: Vec<(ClientId, Port, bool)> = self
            .pools
            .waiting()
            .map(|(client, port, since)| (client, port, since, self.is_open(port)))
            .filter(|(_, _, since, open)| self.waited_too_long(now, *since, *open))
            .map(|(client, port, _, open)| (client, port, open))
            .collect();
        for (client, port, open) in late {
            let refusal =
                if open { self.pool_is_full() } else { self.refusal(nobody_reached(port)) };
            self.metrics.of(port).refused += 1;
            self.refuse_waiting(client, refusal, actions);
        }
    }

    fn is_open(&self, port: Port) -> bool {
        match port {
            Port::ReadWrite => self.primary.is_ok(),
            Port::ReadOnly => self.primary.is_ok() || !self.routes.replicas.is_empty(),
        }
    }

    fn waited_too_long(&self, now: Millis, since: Millis, open: bool) -> bool {
        let end = if open {
            since.plus(self.config.pool_timeout)
        } else {
            since.max(self.routes.closed_since).plus(self.config.hold_timeout)
        };
        end <= now
    }

    /// The clients of pools that wait for a route count as held, too.
    fn limit_waiting(&mut self, now: Millis, port: Port, actions: &mut Vec<Action>) {
        if !self.is_open(port) {
            self.metrics.of(port).held += 1;
            self.limit_held(now, actions);
        }
    }

    /// While a client of a pool waits, the time is looked at so often.
    fn wake_for_pools(&mut self, now: Millis, actions: &mut Vec<Action>) {
        if self.pools.waiting_count() > 0 && self.wake.is_none_or(|when| when > now.plus(POOL_LOOK))
        {
            let when = now.plus(POOL_LOOK);
            self.wake = Some(when);
            actions.push(Action::WakeAt(when));
        }
    }

    fn refuse(&mut self, now: Millis, id: ClientId, message: &str, actions: &mut Vec<Action>) {
        if let Some(client) = self.clients.get(&id) {
            self.metrics.of(client.port).refused += 1;
        }
        let refusal = self.refusal(message);
        self.forget(now, id);
        actions.push(Action::Refuse { client: id, refusal });
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
                let replicas = self.routes.replicas.iter();
                let usable = replicas.filter(|r| self.gate_open(&r.target.member, now));
                let order = |replica: &&Replica| {
                    let member = &replica.target.member;
                    let load = self.connections.get(member).copied().unwrap_or(0);
                    (!replica.near, load, self.chosen.get(member).copied().unwrap_or(0))
                };
                usable.min_by_key(order).map(|r| &r.target).or(primary).cloned()
            }
        }
    }

    fn connect(&mut self, id: ClientId, target: Target, actions: &mut Vec<Action>) {
        let Some(client) = self.clients.get_mut(&id) else {
            return;
        };
        let binding = Binding::new(&target, self.routes.newest_term);
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
        self.limit_held(now, actions);
    }

    /// The oldest is refused first, whether it waits for a session or for a pool's connection.
    fn limit_held(&mut self, now: Millis, actions: &mut Vec<Action>) {
        const TOO_MANY: &str = "too many clients wait for a server";
        loop {
            let pooled = if self.is_open(Port::ReadWrite) { 0 } else { self.pools.waiting_count() };
            let held = self.held_read_write.len() + self.held_read_only.len();
            if held + pooled <= self.config.hold_limit {
                return;
            }
            let firsts = [self.held_read_write.first(), self.held_read_only.first()];
            let session = firsts.into_iter().flatten().min().copied();
            let since = |id: &ClientId| self.clients.get(id).map_or(now, |client| client.since);
            match (session, self.pools.oldest().filter(|_| pooled > 0)) {
                (Some(id), Some((_, _, waits))) if since(&id) <= waits => {
                    self.refuse(now, id, TOO_MANY, actions);
                }
                (_, Some((client, port, _))) => {
                    self.metrics.of(port).refused += 1;
                    let refusal = self.refusal(TOO_MANY);
                    self.refuse_waiting(client, refusal, actions);
                }
                (Some(id), None) => self.refuse(now, id, TOO_MANY, actions),
                (None, None) => return,
            }
        }
    }

    fn wake(&mut self, now: Millis, actions: &mut Vec<Action>) {
        let deadline = self.deadlines.first().map(|(deadline, _)| *deadline);
        let someone_waits = !self.held_read_write.is_empty() || !self.held_read_only.is_empty();
        let gates = self.gates.values().filter_map(|gate| match gate {
            Gate::ClosedUntil(when) => (someone_waits && *when > now).then_some(*when),
            Gate::TriedBy(_) => None,
        });
        let pools = (self.pools.waiting_count() > 0).then(|| now.plus(POOL_LOOK));
        let gates = gates.chain(self.pools.next_gate(now)).chain(self.hold.map(|hold| hold.ends));
        let wake = gates.chain(deadline).chain(pools).min();
        if let Some(when) = wake.filter(|when| Some(*when) != self.wake) {
            actions.push(Action::WakeAt(when));
        }
        self.wake = wake;
    }
}

#[cfg(test)]
mod tests;
