//! What the clients of one cluster share: the router, the server connections that nobody has, and
//! the way to each client's task. One mutex guards it; what is done under it is short and never
//! waits.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use route::link::{Prepared, Registry, Reported, Settings};
use route::{Action, ClientId, Event, PoolId, Round, Router, ServerId, Target};
use tokio::sync::Notify;
use tokio::task::AbortHandle;
use tokio::time::Instant;
use types::{Millis, Term};

use crate::admin::{ClusterSurvey, PoolSurvey};
use crate::client::{self, Command};
use crate::config::ProxyConfig;
use crate::door::Door;
use crate::known::Known;
use crate::lowering::Lowering;
use crate::mailbox::Mailbox;
use crate::open;
use crate::rounds::Rounds;
use crate::server::ServerConnection;
use crate::stats::{PERIOD, Stats};
use crate::tally::ClusterTally;
use crate::words::Ending;

/// While the proxy drains, a connection that is idle for so long is more than its clients need.
const DRAINING_IDLE: Millis = Millis(1_000);

/// Who a pool is for; the database is what clients call it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct PoolKey {
    pub(crate) database: String,
    pub(crate) user: String,
}

/// A pool as the shell sees it.
#[derive(Debug)]
pub(crate) struct Pool {
    pub(crate) id: PoolId,
    pub(crate) key: PoolKey,
    /// What servers call the database.
    pub(crate) dbname: String,
    /// What its servers reported last, a primary and a replica: what a client is told that signs in
    /// without one.
    welcome: Mutex<Welcome>,
    /// What servers reported and what clients want, each once, so that equal ones are found equal
    /// without a look.
    reported: Mutex<BTreeSet<Arc<Reported>>>,
    settings: Mutex<BTreeSet<Arc<Settings>>>,
    pub(crate) stats: Stats,
}

#[derive(Debug, Default)]
struct Welcome {
    primary: Option<Arc<Reported>>,
    replica: Option<Arc<Reported>>,
}

/// So many different ones are remembered.
const SHARED_MAX: usize = 256;

fn share<T: Ord>(known: &Mutex<BTreeSet<Arc<T>>>, new: Arc<T>) -> Arc<T> {
    let mut known = known.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(same) = known.get(&new) {
        return same.clone();
    }
    if known.len() >= SHARED_MAX {
        known.retain(|shared| Arc::strong_count(shared) > 1);
    }
    if known.len() < SHARED_MAX {
        known.insert(new.clone());
    }
    new
}

impl Pool {
    /// What a new client at this port is told, if it is known. Drivers look in it for whether it is
    /// a standby where they are.
    pub(crate) fn welcome(&self, port: route::Port) -> Option<Arc<Reported>> {
        let welcome = self.welcome.lock().unwrap_or_else(PoisonError::into_inner);
        match port {
            route::Port::ReadWrite => welcome.primary.clone(),
            route::Port::ReadOnly => welcome.replica.as_ref().or(welcome.primary.as_ref()).cloned(),
        }
    }

    /// Whether any server has let the proxy in.
    pub(crate) fn was_let_in(&self) -> bool {
        let welcome = self.welcome.lock().unwrap_or_else(PoisonError::into_inner);
        welcome.primary.is_some() || welcome.replica.is_some()
    }

    /// A server has let the proxy in, and reports this.
    pub(crate) fn welcomed(&self, reported: &Arc<Reported>, is_primary: bool) {
        let mut welcome = self.welcome.lock().unwrap_or_else(PoisonError::into_inner);
        let of_role = if is_primary { &mut welcome.primary } else { &mut welcome.replica };
        *of_role = Some(reported.clone());
    }

    pub(crate) fn share_reported(&self, reported: Arc<Reported>) -> Arc<Reported> {
        share(&self.reported, reported)
    }

    pub(crate) fn share_settings(&self, settings: Arc<Settings>) -> Arc<Settings> {
        share(&self.settings, settings)
    }
}

/// Of the averages.
struct Period {
    began: Instant,
    /// How long the one before was.
    last: Duration,
}

/// State behind the mutex.
struct Desk {
    router: Router,
    mailboxes: HashMap<ClientId, Arc<Mailbox<Command>>>,
    /// Connections that nobody has.
    idle: HashMap<ServerId, Box<ServerConnection>>,
    /// Tasks that open one.
    opening: HashMap<ServerId, AbortHandle>,
    pools: BTreeMap<PoolKey, Arc<Pool>>,
    by_id: HashMap<PoolId, Arc<Pool>>,
    alarm: Alarm,
}

/// When the router is to be woken. Most times are put off before they come (a client's connection
/// is open, long before its deadline), so whoever keeps the time hears only of an earlier one.
#[derive(Debug, Default)]
struct Alarm {
    due: Option<Instant>,
    /// Whoever keeps the time looks again then, at the latest.
    looks_at: Option<Instant>,
}

impl Alarm {
    /// Whether whoever keeps the time must hear of it now.
    fn set(&mut self, due: Option<Instant>) -> bool {
        self.due = due;
        due.is_some_and(|due| self.looks_at.is_none_or(|looks_at| due < looks_at))
    }

    /// When to look again.
    fn look(&mut self) -> Option<Instant> {
        self.looks_at = self.due;
        self.due
    }

    /// Whether the time has come; it comes once.
    fn rings(&mut self, now: Instant) -> bool {
        self.due.take_if(|due| *due <= now).is_some()
    }
}

/// What the clients of one cluster share.
pub(crate) struct Hub {
    /// What the cluster is called.
    pub(crate) name: String,
    pub(crate) config: Arc<ProxyConfig>,
    pub(crate) door: Arc<Door>,
    /// What is known of the cluster's users.
    pub(crate) known: Known,
    pub(crate) lowering: Lowering,
    pub(crate) rounds: Rounds,
    pub(crate) tally: ClusterTally,
    /// Something worth publishing has happened since it was looked at.
    dirty: AtomicBool,
    /// A hold of the leader's is followed, so that every end of a transaction counts.
    holding: AtomicBool,
    /// A successor accepts the clients.
    draining: AtomicBool,
    /// Sessions end as soon as they are in no transaction.
    closing: AtomicBool,
    /// An operator has paused the pools, and may wait for what is lent.
    paused: AtomicBool,
    /// While paused: a connection was given back or lost, or the pause is over.
    returned: Notify,
    period: Mutex<Period>,
    pub(crate) changed: Notify,
    /// The time to wake at is sooner than it was.
    pub(crate) rescheduled: Notify,
    desk: Mutex<Desk>,
    statements: Mutex<Registry>,
    started: Instant,
}

impl Hub {
    pub(crate) fn new(name: String, config: Arc<ProxyConfig>, door: Arc<Door>) -> Hub {
        Hub {
            name,
            desk: Mutex::new(Desk {
                router: Router::new(config.router()),
                mailboxes: HashMap::new(),
                idle: HashMap::new(),
                opening: HashMap::new(),
                pools: BTreeMap::new(),
                by_id: HashMap::new(),
                alarm: Alarm::default(),
            }),
            config,
            known: Known::new(door.clone()),
            door,
            lowering: Lowering::default(),
            rounds: Rounds::default(),
            tally: ClusterTally::default(),
            dirty: AtomicBool::new(false),
            holding: AtomicBool::new(false),
            draining: AtomicBool::new(false),
            closing: AtomicBool::new(false),
            paused: AtomicBool::new(false),
            returned: Notify::new(),
            period: Mutex::new(Period { began: Instant::now(), last: Duration::ZERO }),
            changed: Notify::new(),
            rescheduled: Notify::new(),
            statements: Mutex::default(),
            started: Instant::now(),
        }
    }

    /// A client is led to this cluster; what the router wants of it comes to this mailbox.
    pub(crate) fn enter(&self, client: ClientId, mailbox: Arc<Mailbox<Command>>) {
        self.desk().mailboxes.insert(client, mailbox);
    }

    /// Its connection is over.
    pub(crate) fn leave(self: &Arc<Hub>, client: ClientId) {
        let mut desk = self.desk();
        desk.mailboxes.remove(&client);
        self.step_at(desk, Event::ClientGone { client });
    }

    /// Tells the router something.
    pub(crate) fn step(self: &Arc<Hub>, event: Event) {
        self.step_at(self.desk(), event);
    }

    fn step_at(self: &Arc<Hub>, mut desk: MutexGuard<'_, Desk>, event: Event) {
        self.step_under(&mut desk, self.millis(Instant::now()), event);
        self.paused.store(desk.router.is_paused(), Ordering::Release);
        drop(desk);
        self.tell_who_paused();
        self.touch();
    }

    fn step_under(self: &Arc<Hub>, desk: &mut Desk, now: Millis, event: Event) {
        for action in desk.router.step(now, event) {
            self.act(desk, action);
        }
        self.holding.store(desk.router.holds(), Ordering::Release);
    }

    /// Whether sessions are to end when they are in no transaction.
    pub(crate) fn holds(&self) -> bool {
        self.holding.load(Ordering::Acquire)
    }

    /// Connections that nobody needs are closed soon from now on: a successor opens its own.
    pub(crate) fn drain(self: &Arc<Hub>) {
        self.draining.store(true, Ordering::Release);
        self.sweep();
    }

    /// Has every session end as soon as it is in no transaction, once its task looks.
    pub(crate) fn close(&self) {
        self.closing.store(true, Ordering::Release);
    }

    /// Whether sessions end so.
    pub(crate) fn closes(&self) -> bool {
        self.closing.load(Ordering::Acquire)
    }

    /// How long a connection may be idle.
    fn server_idle_timeout(&self) -> Millis {
        let limit = self.config.limits.server_idle_timeout;
        match self.draining.load(Ordering::Acquire) {
            true if limit == Millis::ZERO => DRAINING_IDLE,
            true => limit.min(DRAINING_IDLE),
            false => limit,
        }
    }

    /// The client wants a connection; it has it at once, or waits for a command from now on, which
    /// is the error.
    pub(crate) fn want(
        self: &Arc<Hub>,
        client: ClientId,
        port: route::Port,
        pool: PoolId,
    ) -> Result<Box<ServerConnection>, Instant> {
        self.want_by(client, Event::Wants { client, port, pool }).map(|(connection, _)| connection)
    }

    /// The same for one statement that reads what was written up to this round; `true` if the
    /// connection is to a replica. Nobody waits for a replica.
    pub(crate) fn want_read(
        self: &Arc<Hub>,
        client: ClientId,
        pool: PoolId,
        written: Round,
    ) -> Result<(Box<ServerConnection>, bool), Instant> {
        self.rounds.want();
        self.want_by(client, Event::WantsRead { client, pool, written })
    }

    fn want_by(
        self: &Arc<Hub>,
        client: ClientId,
        event: Event,
    ) -> Result<(Box<ServerConnection>, bool), Instant> {
        let mut desk = self.desk();
        let now = Instant::now();
        let actions = desk.router.step(self.millis(now), event);
        let mut lent = None;
        let (mut waits, mut reads) = (true, false);
        for action in actions {
            match action {
                Action::Lend { client: to, server } if to == client => {
                    lent = desk.idle.remove(&server);
                    waits = false;
                }
                Action::LendRead { client: to, server } if to == client => {
                    lent = desk.idle.remove(&server);
                    (waits, reads) = (false, true);
                }
                other => self.act(&mut desk, other),
            }
        }
        drop(desk);
        if waits {
            self.touch();
        }
        let mut lent = lent.ok_or(now)?;
        lent.begun = now;
        Ok((lent, reads))
    }

    /// Tells the router of somebody's position in the WAL. Nothing of it is published.
    pub(crate) fn tell_position(self: &Arc<Hub>, event: Event) {
        let mut desk = self.desk();
        self.step_under(&mut desk, self.millis(Instant::now()), event);
    }

    /// Who is asked for it: the primary, the newest term, and the replicas that serve reads.
    pub(crate) fn whom_to_ask(&self) -> Option<(Target, Term, Vec<Target>)> {
        self.desk().router.whom_to_ask()
    }

    /// The connection is at rest; somebody else may have it.
    pub(crate) fn give_back(self: &Arc<Hub>, mut connection: Box<ServerConnection>) {
        let server = connection.id;
        let now = Instant::now();
        connection.account(now);
        let mut desk = self.desk();
        let now = self.millis(now);
        connection.idle_since = now;
        let event = if connection.is_old(now, &self.config.limits) {
            // Dropped, it is closed; whoever waits gets a new one.
            Event::Lost { server }
        } else {
            desk.idle.insert(server, connection);
            Event::Returned { server }
        };
        let actions = desk.router.step(now, event);
        for action in actions {
            self.act(&mut desk, action);
        }
        drop(desk);
        self.tell_who_paused();
        if self.holds() {
            self.touch();
        }
    }

    /// A new connection is there.
    pub(crate) fn opened(self: &Arc<Hub>, mut connection: Box<ServerConnection>) {
        let server = connection.id;
        let now = self.millis(Instant::now());
        (connection.opened_at, connection.idle_since) = (now, now);
        let mut desk = self.desk();
        if desk.opening.remove(&server).is_none() {
            // Taken back meanwhile.
            return;
        }
        desk.idle.insert(server, connection);
        self.step_under(&mut desk, now, Event::Opened { server });
        drop(desk);
        self.touch();
    }

    /// A connection could not be opened.
    pub(crate) fn not_opened(self: &Arc<Hub>, server: ServerId, event: Event) {
        if self.desk().opening.remove(&server).is_some() {
            self.step(event);
        }
    }

    fn act(self: &Arc<Hub>, desk: &mut Desk, action: Action) {
        match action {
            Action::Connect { client, attempt, target } => {
                post(desk, client, Command::Connect { attempt, target });
            }
            Action::Hold { client } => post(desk, client, Command::Wait),
            Action::Refuse { client, refusal } => post(desk, client, Command::Refuse(refusal)),
            Action::Cut { client, reason } => {
                post(desk, client, Command::End(Ending::Cut(reason)));
            }
            Action::Drain { client } => {
                if let Some(mailbox) = desk.mailboxes.get(&client) {
                    mailbox.post_drain();
                }
            }
            Action::Open { server, pool, target } => self.open(desk, server, pool, target),
            Action::Lend { client, server } => {
                if let Some(mut connection) = desk.idle.remove(&server) {
                    connection.begun = Instant::now();
                    post(desk, client, Command::Have(connection));
                }
            }
            // A read is lent to who asks for it, at once, and nobody else asks here.
            Action::LendRead { client, .. } => unreachable!("{client} has not asked for a read"),
            Action::Close { server } => {
                if let Some(connection) = desk.idle.remove(&server) {
                    connection.reset();
                }
                if let Some(task) = desk.opening.remove(&server) {
                    task.abort();
                }
            }
            Action::Take { client, server, reason } => {
                let Some(mailbox) = desk.mailboxes.get(&client) else {
                    return;
                };
                let untaken = client::put(mailbox, Command::Lose { server, reason });
                if matches!(untaken, Some(Command::Have(_))) {
                    // It has not heard of it yet, so it has lost nothing.
                    drop(client::put(mailbox, Command::Again));
                }
            }
            Action::WakeAt(when) => {
                // Up to the next whole millisecond, so that the router finds its time come.
                let when = self.started.checked_add(when.as_duration());
                let due = when.and_then(|when| when.checked_add(Duration::from_micros(1)));
                if desk.alarm.set(due) {
                    self.rescheduled.notify_one();
                }
            }
        }
    }

    fn open(self: &Arc<Hub>, desk: &mut Desk, server: ServerId, pool: PoolId, target: Target) {
        let Some(pool) = desk.by_id.get(&pool).cloned() else {
            return;
        };
        let hub = self.clone();
        let task = tokio::spawn(async move { open::run(hub, server, pool, target).await });
        desk.opening.insert(server, task.abort_handle());
    }

    /// The pool of this user and database, which servers call `dbname`, with at most `size`
    /// connections to one member.
    pub(crate) fn pool(&self, key: PoolKey, dbname: &str, size: usize) -> Arc<Pool> {
        let mut desk = self.desk();
        if let Some(pool) = desk.pools.get(&key) {
            return pool.clone();
        }
        let id = desk.router.add_pool(&key.user, &key.database, size);
        let pool = Arc::new(Pool {
            id,
            key: key.clone(),
            dbname: dbname.to_owned(),
            welcome: Mutex::default(),
            reported: Mutex::default(),
            settings: Mutex::default(),
            stats: Stats::default(),
        });
        desk.pools.insert(key, pool.clone());
        desk.by_id.insert(id, pool.clone());
        pool
    }

    /// The shared statement of a Parse.
    pub(crate) fn intern(&self, tail: &[u8]) -> Arc<Prepared> {
        self.statements.lock().unwrap_or_else(PoisonError::into_inner).intern(tail)
    }

    /// Ids and addresses of the cluster's proxies, as they are registered.
    pub(crate) fn proxies(&self) -> Vec<(String, String)> {
        self.desk().router.proxies()
    }

    pub(crate) fn snapshot(&self) -> route::Snapshot {
        self.desk().router.snapshot()
    }

    /// When the core looks at the time again, unless it hears of a sooner one.
    pub(crate) fn look_at_time(&self) -> Option<Instant> {
        self.desk().alarm.look()
    }

    /// Wakes the router, if its time has come.
    pub(crate) fn tick(self: &Arc<Hub>) {
        let mut desk = self.desk();
        if desk.alarm.rings(Instant::now()) {
            self.step_at(desk, Event::Tick);
        }
    }

    /// Closes idle connections that are dead, that are old, or that nobody needed for long.
    pub(crate) fn sweep(self: &Arc<Hub>) {
        let (limits, idle) = (&self.config.limits, self.server_idle_timeout());
        self.end_period();
        let mut lost = Vec::new();
        let mut desk = self.desk();
        let now = self.millis(Instant::now());
        desk.idle.retain(|id, connection| {
            let stays = connection.is_alive()
                && !connection.is_old(now, limits)
                && !connection.is_unused(now, idle);
            if !stays {
                lost.push(*id);
            }
            stays
        });
        // The router hears of it before it can lend one of them.
        let any = !lost.is_empty();
        for server in lost {
            self.step_under(&mut desk, now, Event::Lost { server });
        }
        drop(desk);
        if any {
            self.touch();
        }
    }

    /// Ends the period of averages when its time has come.
    fn end_period(&self) {
        let mut period = self.period.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        let length = now.saturating_duration_since(period.began);
        if length < PERIOD {
            return;
        }
        *period = Period { began: now, last: length };
        self.pools().iter().for_each(|pool| pool.stats.end_period());
    }

    /// All pools, by database and user.
    pub(crate) fn pools(&self) -> Vec<Arc<Pool>> {
        self.desk().pools.values().cloned().collect()
    }

    /// Has nobody lent a connection from now on; `false` if that is so already.
    pub(crate) fn pause(self: &Arc<Hub>) -> bool {
        self.change_pause(true)
    }

    /// Ends a pause; `false` if there is none.
    pub(crate) fn resume(self: &Arc<Hub>) -> bool {
        self.change_pause(false)
    }

    fn change_pause(self: &Arc<Hub>, pause: bool) -> bool {
        let desk = self.desk();
        if desk.router.is_paused() == pause {
            return false;
        }
        self.step_at(desk, if pause { Event::Pause } else { Event::Resume });
        self.returned.notify_waiters();
        true
    }

    /// Completes when no connection is lent any more, with `true`, or when the pause is over.
    ///
    /// Cancel safety: safe.
    pub(crate) async fn until_returned(&self) -> bool {
        loop {
            let returned = self.returned.notified();
            let (paused, lent) = {
                let router = &self.desk().router;
                (router.is_paused(), router.lent_count())
            };
            if !paused || lent == 0 {
                return paused;
            }
            returned.await;
        }
    }

    fn tell_who_paused(&self) {
        if self.paused.load(Ordering::Acquire) {
            self.returned.notify_waiters();
        }
    }

    /// What there is now.
    pub(crate) fn survey(&self) -> ClusterSurvey {
        let desk = self.desk();
        let (router, now) = (&desk.router, Instant::now());
        let (servers, waiting) = (router.servers(), router.waiting());
        let routes = router.snapshot();
        let pools: Vec<Arc<Pool>> = desk.pools.values().cloned().collect();
        drop(desk);
        let pools = pools.iter().map(|pool| PoolSurvey {
            id: pool.id,
            key: pool.key.clone(),
            dbname: pool.dbname.clone(),
            totals: pool.stats.totals(),
            last: pool.stats.of_last_period(),
        });
        ClusterSurvey {
            name: self.name.clone(),
            now: self.millis(now),
            pools: pools.collect(),
            period: self.period.lock().unwrap_or_else(PoisonError::into_inner).last,
            servers,
            waiting,
            paused: routes.paused,
            primary: routes.read_write,
        }
    }

    /// Has the state published soon. Waking another thread costs more than a transaction, so it is
    /// done once until that thread has looked.
    pub(crate) fn touch(&self) {
        if !self.dirty.swap(true, Ordering::Relaxed) {
            self.changed.notify_one();
        }
    }

    /// What happens from now on is worth another look.
    pub(crate) fn looked(&self) {
        self.dirty.store(false, Ordering::Relaxed);
    }

    fn millis(&self, at: Instant) -> Millis {
        let since = at.saturating_duration_since(self.started);
        Millis(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
    }

    fn desk(&self) -> MutexGuard<'_, Desk> {
        // A panic under it is a bug of ours; the other clients are better served than ended.
        self.desk.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn post(desk: &mut Desk, client: ClientId, command: Command) {
    if let Some(mailbox) = desk.mailboxes.get(&client) {
        // A connection that the client did not take yet is closed with its command.
        drop(client::put(mailbox, command));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_keeps_the_time_hears_of_a_sooner_one_only() {
        let now = Instant::now();
        let after = |seconds| now.checked_add(Duration::from_secs(seconds));
        let mut alarm = Alarm::default();
        assert!(alarm.set(after(5)), "nobody looks yet");
        assert_eq!(alarm.look(), after(5));
        assert!(!alarm.set(after(9)), "put off");
        assert!(!alarm.set(after(6)), "sooner, but there is a look before it");
        assert!(!alarm.rings(after(5).unwrap()));
        assert_eq!(alarm.look(), after(6));
        assert!(alarm.set(after(2)), "sooner than the next look");
        assert!(alarm.rings(after(2).unwrap()));
        assert!(!alarm.rings(after(2).unwrap()), "once");
        assert_eq!(alarm.look(), None);
        assert!(alarm.set(after(9)), "nobody looks any more");
    }
}
