//! Server connections that clients share: which are open, whom each is lent to, who waits.

use std::collections::{BTreeMap, BTreeSet};

use types::{ClusterView, MemberName, Millis, Term};

use crate::binding::Binding;
use crate::choice::Replica;
use crate::event::{Action, ClientId, PoolId, Port, ServerId, Target};

mod choose;
mod list;
mod reads;

pub use self::list::{ServerPhase, ServerUse, Waiting};

/// Where clients are led at present.
#[derive(Debug, Clone, Default)]
pub(crate) struct Routes {
    pub(crate) primary: Option<Target>,
    pub(crate) replicas: Vec<Replica>,
    /// The primary is of the proxy's own site, or the proxy has none.
    pub(crate) primary_is_near: bool,
    pub(crate) newest_term: Term,
    /// When the read-write route was closed; a wait for it counts from then on.
    pub(crate) closed_since: Millis,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Opening,
    Idle,
    Lent(ClientId),
    /// Its client has gone, and its session is taken back to its beginning.
    Cleaning,
}

#[derive(Debug, Clone)]
struct Server {
    shelf: usize,
    binding: Binding,
    phase: Phase,
    /// It is closed instead of being lent again.
    retired: bool,
    host: String,
    port: u16,
    /// When it began to be opened.
    since: Millis,
    /// It was opened for reads that nobody waits with.
    spare: bool,
    /// When it was opened, among the answers of replicas.
    opened_after: u64,
}

/// The connections of one pool to one member.
#[derive(Debug, Clone)]
struct Shelf {
    pool: PoolId,
    member: MemberName,
    /// The one used last is lent first, so that few stay warm.
    idle: Vec<ServerId>,
    opening: usize,
    lent: usize,
    /// Nobody's connection is opened before.
    refused_until: Millis,
}

impl Shelf {
    fn count(&self) -> usize {
        self.idle.len() + self.opening + self.lent
    }
}

#[derive(Debug, Clone, Copy)]
struct Wish {
    pool: PoolId,
    port: Port,
    since: Millis,
    /// The order of arrival.
    number: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Gate {
    ClosedUntil(Millis),
    TriedBy(ServerId),
}

/// How many connections a pool may have to one member, and how many it has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PoolUse {
    /// Lent to clients.
    pub lent: usize,
    /// Idle.
    pub idle: usize,
    /// Being opened.
    pub opening: usize,
    /// Clients that wait.
    pub waiting: usize,
    /// When the oldest of them began.
    pub waiting_since: Option<Millis>,
}

/// Limits of what several pools have together at one member; 0 is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct SharedLimits {
    pub(crate) user: usize,
    pub(crate) database: usize,
}

/// The pools that share a limit, by their numbers.
#[derive(Debug, Clone, Default)]
struct Group {
    limit: usize,
    pools: Vec<PoolId>,
}

/// All pools.
#[derive(Debug, Clone, Default)]
pub(crate) struct Pools {
    sizes: Vec<usize>,
    limits: SharedLimits,
    /// The groups, and which each pool is in.
    groups: Vec<Group>,
    groups_of: Vec<Vec<usize>>,
    by_user: BTreeMap<String, usize>,
    by_database: BTreeMap<String, usize>,
    shelves: Vec<Shelf>,
    /// The shelves of each pool, by its number.
    by_pool: Vec<Vec<usize>>,
    servers: BTreeMap<ServerId, Server>,
    next_server: u64,
    wishes: BTreeMap<ClientId, Wish>,
    /// Who waits, in the order of arrival.
    queues: BTreeMap<(PoolId, Port), BTreeSet<(u64, ClientId)>>,
    next_wish: u64,
    lent_to: BTreeMap<ClientId, ServerId>,
    gates: BTreeMap<MemberName, Gate>,
    pub(crate) paused: bool,
}

impl Pools {
    pub(crate) fn new(limits: SharedLimits) -> Pools {
        Pools { limits, ..Pools::default() }
    }

    /// A new pool with at most `size` connections to one member.
    pub(crate) fn add(&mut self, user: &str, database: &str, size: usize) -> PoolId {
        let pool = PoolId(u32::try_from(self.sizes.len()).unwrap_or(u32::MAX));
        self.sizes.push(size.max(1));
        self.by_pool.push(Vec::new());
        let limits = self.limits;
        let names = [
            (&mut self.by_user, user, limits.user),
            (&mut self.by_database, database, limits.database),
        ];
        let mut of_pool = Vec::new();
        for (known, name, limit) in names {
            if limit > 0 {
                let group = *known.entry(name.to_owned()).or_insert(self.groups.len());
                if group == self.groups.len() {
                    self.groups.push(Group { limit, pools: Vec::new() });
                }
                self.groups[group].pools.push(pool);
                of_pool.push(group);
            }
        }
        self.groups_of.push(of_pool);
        pool
    }

    /// A client wants a connection.
    pub(crate) fn want(
        &mut self,
        now: Millis,
        routes: &Routes,
        client: ClientId,
        (pool, port): (PoolId, Port),
        actions: &mut Vec<Action>,
    ) {
        assert!(!self.lent_to.contains_key(&client), "client {client} has a server");
        let nobody_waits = self.queues.get(&(pool, port)).is_none_or(BTreeSet::is_empty);
        if nobody_waits && !self.paused {
            // The ordinary case: nothing is written down before it is known to wait.
            if let Some(shelf) = self.shelf_with_idle(now, routes, pool, port)
                && let Some(server) = self.shelves[shelf].idle.pop()
            {
                self.lend(client, server, actions);
                return;
            }
        }
        let wish = Wish { pool, port, since: now, number: self.next_wish };
        self.next_wish += 1;
        self.wishes.insert(client, wish);
        self.queues.entry((pool, port)).or_default().insert((wish.number, client));
        self.serve(now, routes, pool, port, actions);
    }

    /// A lent connection is at rest again.
    pub(crate) fn give_back(
        &mut self,
        now: Millis,
        routes: &Routes,
        id: ServerId,
        actions: &mut Vec<Action>,
    ) {
        let lent = self.servers.get_mut(&id).filter(|server| match server.phase {
            Phase::Lent(_) | Phase::Cleaning => true,
            Phase::Opening | Phase::Idle => false,
        });
        let Some(server) = lent else {
            // It was taken from its client at the same moment.
            actions.push(Action::Close { server: id });
            return;
        };
        let retired = server.retired;
        let shelf = server.shelf;
        if let Phase::Lent(client) = std::mem::replace(&mut server.phase, Phase::Idle) {
            self.lent_to.remove(&client);
        }
        self.shelves[shelf].lent -= 1;
        self.shelves[shelf].idle.push(id);
        if retired {
            self.close(id, actions);
        }
        let pool = self.shelves[shelf].pool;
        self.serve_pool(now, routes, pool, actions);
        if !self.groups.is_empty() && !self.wishes.is_empty() {
            // Nobody of its pool wants it; another pool may have its place.
            self.serve_all(now, routes, actions);
        }
    }

    /// The client of a lent connection goes; it is given back, or lost, when its session is clean.
    pub(crate) fn clean(&mut self, id: ServerId) {
        if let Some(server) = self.servers.get_mut(&id)
            && let Phase::Lent(client) = server.phase
        {
            server.phase = Phase::Cleaning;
            self.lent_to.remove(&client);
        }
    }

    /// The connection that was to be opened is there.
    pub(crate) fn opened(
        &mut self,
        now: Millis,
        routes: &Routes,
        (id, opened_after): (ServerId, u64),
        actions: &mut Vec<Action>,
    ) {
        let Some(server) = self.servers.get_mut(&id).filter(|s| s.phase == Phase::Opening) else {
            return;
        };
        (server.phase, server.opened_after) = (Phase::Idle, opened_after);
        self.gates.remove(&server.binding.member);
        let shelf = &mut self.shelves[server.shelf];
        shelf.opening -= 1;
        shelf.idle.push(id);
        // A member that answers may be tried by all.
        self.serve_all(now, routes, actions);
    }

    /// A connection is gone, or could not be opened.
    pub(crate) fn lost(
        &mut self,
        now: Millis,
        routes: &Routes,
        id: ServerId,
        actions: &mut Vec<Action>,
    ) {
        let Some(server) = self.remove(id) else {
            return;
        };
        if server.phase == Phase::Opening {
            let closed = Gate::ClosedUntil(now.plus(server.binding.retry()));
            let gate = self.gates.entry(server.binding.member.clone()).or_insert(closed);
            if *gate == Gate::TriedBy(id) {
                *gate = closed;
            }
        }
        let pool = self.shelves[server.shelf].pool;
        self.serve_pool(now, routes, pool, actions);
    }

    /// A server does not let this pool in, for a reason that another attempt does not change: who
    /// waits in it, at any port.
    pub(crate) fn refused(&mut self, now: Millis, id: ServerId) -> Vec<ClientId> {
        let Some(server) = self.remove(id) else {
            return Vec::new();
        };
        self.gates.remove(&server.binding.member);
        if server.spare {
            self.shelves[server.shelf].refused_until = now.plus(server.binding.retry());
            return Vec::new();
        }
        let pool = self.shelves[server.shelf].pool;
        let waiting = self.wishes.iter().filter(|(_, wish)| wish.pool == pool);
        waiting.map(|(client, _)| *client).collect()
    }

    /// The client that has waited for longest.
    pub(crate) fn oldest(&self) -> Option<(ClientId, Port, Millis)> {
        let firsts = self.queues.values().filter_map(BTreeSet::first);
        let (_, client) = firsts.min()?;
        self.wishes.get(client).map(|wish| (*client, wish.port, wish.since))
    }

    /// A client is gone. A connection that it had is the shell's to end or to give back before.
    pub(crate) fn client_gone(&mut self, client: ClientId) {
        self.forget_wish(client);
        if let Some(server) = self.lent_to.get(&client).copied() {
            self.remove(server);
        }
    }

    /// Gives up a wish; `true` if there was one.
    pub(crate) fn forget_wish(&mut self, client: ClientId) -> bool {
        let Some(wish) = self.wishes.remove(&client) else {
            return false;
        };
        if let Some(queue) = self.queues.get_mut(&(wish.pool, wish.port)) {
            queue.remove(&(wish.number, client));
        }
        true
    }

    /// Ends the connections that the view makes outdated; `bound` was told of promotions before.
    pub(crate) fn see(
        &mut self,
        now: Millis,
        view: &ClusterView,
        routes: &Routes,
        actions: &mut Vec<Action>,
    ) {
        let mut outdated = Vec::new();
        for (id, server) in &mut self.servers {
            if let Some(primary) = &routes.primary {
                server.binding.bind_promoted(primary, routes.newest_term);
            }
            if let Some(reason) = server.binding.outdated(view, routes.newest_term) {
                outdated.push((*id, reason));
            }
        }
        for (id, reason) in outdated {
            match self.servers.get(&id).map(|server| server.phase) {
                Some(Phase::Lent(client)) => {
                    self.remove(id);
                    actions.push(Action::Take { client, server: id, reason });
                }
                Some(Phase::Opening | Phase::Idle | Phase::Cleaning) => self.close(id, actions),
                None => {}
            }
        }
        self.serve_all(now, routes, actions);
    }

    /// What failed before says nothing about a new primary.
    pub(crate) fn open_gates(&mut self) {
        self.gates.clear();
    }

    /// Connections are closed when they are at rest; new ones take their place.
    pub(crate) fn reconnect(&mut self, actions: &mut Vec<Action>) {
        let idle =
            |(id, server): (&ServerId, &Server)| (server.phase == Phase::Idle).then_some(*id);
        let idle: Vec<ServerId> = self.servers.iter().filter_map(idle).collect();
        idle.into_iter().for_each(|id| self.close(id, actions));
        self.servers.values_mut().for_each(|server| server.retired = true);
    }

    /// Serves everybody for whom there is a connection.
    pub(crate) fn serve_all(&mut self, now: Millis, routes: &Routes, actions: &mut Vec<Action>) {
        let keys: Vec<(PoolId, Port)> = self
            .queues
            .iter()
            .filter(|(_, queue)| !queue.is_empty())
            .map(|(key, _)| *key)
            .collect();
        for (pool, port) in keys {
            self.serve(now, routes, pool, port, actions);
        }
    }

    /// The clients that wait: since when, at which port.
    pub(crate) fn waiting(&self) -> impl Iterator<Item = (ClientId, Port, Millis)> + '_ {
        self.wishes.iter().map(|(client, wish)| (*client, wish.port, wish.since))
    }

    /// How many wait.
    pub(crate) fn waiting_count(&self) -> usize {
        self.wishes.len()
    }

    /// Clients that have a connection to the primary.
    pub(crate) fn with_primary(&self) -> Vec<ClientId> {
        let bound = self.servers.values().filter(|s| s.binding.primary_since.is_some());
        let client = |server: &Server| match server.phase {
            Phase::Lent(client) => Some(client),
            Phase::Opening | Phase::Idle | Phase::Cleaning => None,
        };
        bound.filter_map(client).collect()
    }

    /// When a gate opens for somebody who waits.
    pub(crate) fn next_gate(&self, now: Millis) -> Option<Millis> {
        if self.wishes.is_empty() {
            return None;
        }
        let opening = self.gates.values().filter_map(|gate| match gate {
            Gate::ClosedUntil(when) => (*when > now).then_some(*when),
            Gate::TriedBy(_) => None,
        });
        opening.min()
    }

    /// How one pool is used.
    pub(crate) fn used(&self, pool: PoolId) -> PoolUse {
        let mut used = PoolUse::default();
        for shelf in self.of_pool(pool).iter().map(|shelf| &self.shelves[*shelf]) {
            used.lent += shelf.lent;
            used.idle += shelf.idle.len();
            used.opening += shelf.opening;
        }
        let waiting = self.wishes.values().filter(|wish| wish.pool == pool);
        used.waiting_since = waiting.clone().map(|wish| wish.since).min();
        used.waiting = waiting.count();
        used
    }

    /// Connections to each member.
    pub(crate) fn connections(&self) -> BTreeMap<MemberName, usize> {
        let mut counts = BTreeMap::new();
        for shelf in self.shelves.iter().filter(|shelf| shelf.count() > 0) {
            *counts.entry(shelf.member.clone()).or_default() += shelf.count();
        }
        counts
    }

    fn serve_pool(&mut self, now: Millis, routes: &Routes, pool: PoolId, to: &mut Vec<Action>) {
        if self.wishes.is_empty() {
            return;
        }
        for port in [Port::ReadWrite, Port::ReadOnly] {
            self.serve(now, routes, pool, port, to);
        }
    }

    fn serve(
        &mut self,
        now: Millis,
        routes: &Routes,
        pool: PoolId,
        port: Port,
        actions: &mut Vec<Action>,
    ) {
        if self.paused {
            return;
        }
        while let Some((_, client)) = self.queues.get(&(pool, port)).and_then(|q| q.first()) {
            let client = *client;
            let idle = self.shelf_with_idle(now, routes, pool, port);
            let Some(server) = idle.and_then(|shelf| self.shelves[shelf].idle.pop()) else {
                break;
            };
            self.forget_wish(client);
            self.lend(client, server, actions);
        }
        self.open_more(now, routes, pool, port, actions);
    }

    /// As many connections are opened as there are clients waiting, up to the pool's size.
    fn open_more(
        &mut self,
        now: Millis,
        routes: &Routes,
        pool: PoolId,
        port: Port,
        actions: &mut Vec<Action>,
    ) {
        let waiting = self.queues.get(&(pool, port)).map_or(0, BTreeSet::len);
        let mut opening = self.opening_for(routes, pool, port);
        while opening < waiting {
            let Some(target) = self.target_to_open(now, routes, pool, port) else {
                return;
            };
            self.make_room(pool, &target.member, actions);
            self.open(now, routes, (pool, target), false, actions);
            opening += 1;
        }
    }

    fn open(
        &mut self,
        now: Millis,
        routes: &Routes,
        (pool, target): (PoolId, Target),
        spare: bool,
        actions: &mut Vec<Action>,
    ) {
        let shelf = self.shelf(pool, &target.member);
        self.shelves[shelf].opening += 1;
        self.next_server += 1;
        let id = ServerId(self.next_server);
        if let Some(gate) = self.gates.get_mut(&target.member) {
            *gate = Gate::TriedBy(id);
        }
        let server = Server {
            shelf,
            binding: Binding::new(&target, routes.newest_term),
            phase: Phase::Opening,
            retired: false,
            host: target.host.clone(),
            port: target.port,
            since: now,
            spare,
            opened_after: u64::MAX,
        };
        self.servers.insert(id, server);
        actions.push(Action::Open { server: id, pool, target });
    }

    /// Whether the limits that the pool shares leave it one more connection to the member; an idle
    /// one of another pool gives its place up.
    fn groups_have_room(&self, pool: PoolId, member: &MemberName) -> bool {
        self.groups_of(pool).iter().all(|group| {
            self.group_count(*group, member) < self.groups[*group].limit
                || self.idle_in_group(*group, member).is_some()
        })
    }

    /// Closes idle connections of other pools whose places this pool needs.
    fn make_room(&mut self, pool: PoolId, member: &MemberName, actions: &mut Vec<Action>) {
        for number in 0..self.groups_of(pool).len() {
            let group = self.groups_of(pool)[number];
            if self.group_count(group, member) >= self.groups[group].limit
                && let Some(idle) = self.idle_in_group(group, member)
            {
                self.close(idle, actions);
            }
        }
    }

    fn groups_of(&self, pool: PoolId) -> &[usize] {
        self.groups_of.get(pool.index()).map_or(&[], Vec::as_slice)
    }

    fn group_shelves<'a>(
        &'a self,
        group: usize,
        member: &'a MemberName,
    ) -> impl Iterator<Item = &'a Shelf> {
        let pools = self.groups[group].pools.iter();
        pools.filter_map(|pool| Some(&self.shelves[self.find_shelf(*pool, member)?]))
    }

    fn group_count(&self, group: usize, member: &MemberName) -> usize {
        self.group_shelves(group, member).map(Shelf::count).sum()
    }

    /// One that has been idle for longest in its pool.
    fn idle_in_group(&self, group: usize, member: &MemberName) -> Option<ServerId> {
        self.group_shelves(group, member).find_map(|shelf| shelf.idle.first().copied())
    }

    fn of_pool(&self, pool: PoolId) -> &[usize] {
        self.by_pool.get(pool.index()).map_or(&[], Vec::as_slice)
    }

    fn find_shelf(&self, pool: PoolId, member: &MemberName) -> Option<usize> {
        let of_pool = self.of_pool(pool).iter().copied();
        of_pool.into_iter().find(|shelf| self.shelves[*shelf].member == *member)
    }

    fn shelf(&mut self, pool: PoolId, member: &MemberName) -> usize {
        self.find_shelf(pool, member).unwrap_or_else(|| {
            let member = member.clone();
            self.shelves.push(Shelf {
                pool,
                member,
                idle: Vec::new(),
                opening: 0,
                lent: 0,
                refused_until: Millis::ZERO,
            });
            let shelf = self.shelves.len() - 1;
            self.by_pool[pool.index()].push(shelf);
            shelf
        })
    }

    fn lend(&mut self, client: ClientId, id: ServerId, actions: &mut Vec<Action>) {
        if self.mark_lent(client, id) {
            actions.push(Action::Lend { client, server: id });
        }
    }

    fn mark_lent(&mut self, client: ClientId, id: ServerId) -> bool {
        let Some(server) = self.servers.get_mut(&id) else {
            return false;
        };
        debug_assert_eq!(server.phase, Phase::Idle);
        server.phase = Phase::Lent(client);
        self.shelves[server.shelf].lent += 1;
        self.lent_to.insert(client, id);
        true
    }

    fn close(&mut self, id: ServerId, actions: &mut Vec<Action>) {
        self.remove(id);
        actions.push(Action::Close { server: id });
    }

    fn remove(&mut self, id: ServerId) -> Option<Server> {
        let server = self.servers.remove(&id)?;
        let shelf = &mut self.shelves[server.shelf];
        match server.phase {
            Phase::Opening => shelf.opening -= 1,
            Phase::Idle => shelf.idle.retain(|idle| *idle != id),
            Phase::Cleaning => shelf.lent -= 1,
            Phase::Lent(client) => {
                shelf.lent -= 1;
                self.lent_to.remove(&client);
            }
        }
        Some(server)
    }
}

#[cfg(test)]
impl Pools {
    /// What is kept in several places agrees, sizes hold, and nothing is of an old term.
    pub(crate) fn check(&self, routes: &Routes, seed: u64) {
        for (number, shelf) in self.shelves.iter().enumerate() {
            let of = |phase: fn(&Phase) -> bool| {
                self.servers.values().filter(|s| s.shelf == number && phase(&s.phase)).count()
            };
            assert_eq!(shelf.idle.len(), of(|p| *p == Phase::Idle), "seed {seed}");
            assert_eq!(shelf.opening, of(|p| *p == Phase::Opening), "seed {seed}");
            let lent = of(|p| matches!(p, Phase::Lent(_) | Phase::Cleaning));
            assert_eq!(shelf.lent, lent, "seed {seed}");
            assert!(shelf.count() <= self.sizes[shelf.pool.index()], "seed {seed}");
        }
        for group in &self.groups {
            for member in self.shelves.iter().map(|shelf| &shelf.member) {
                let count: usize = group
                    .pools
                    .iter()
                    .filter_map(|pool| self.find_shelf(*pool, member))
                    .map(|shelf| self.shelves[shelf].count())
                    .sum();
                assert!(count <= group.limit, "seed {seed}: {count} at {member}");
            }
        }
        for server in self.servers.values() {
            let bound = server.binding.primary_since;
            assert!(bound.is_none_or(|term| term == routes.newest_term), "seed {seed}");
        }
        let queued: usize = self.queues.values().map(BTreeSet::len).sum();
        assert_eq!(queued, self.wishes.len(), "seed {seed}");
    }
}
