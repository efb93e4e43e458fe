//! What all clients of the proxy share, whichever cluster they are led to: the door, who is here,
//! and the way to each client's task.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use route::{ClientId, Port};
use tokio::sync::Notify;
use tokio::time::Instant;
use types::Millis;

use crate::admin;
use crate::cancel::CancelKeys;
use crate::client::{self, Command};
use crate::config::ProxyConfig;
use crate::destination::{Destination, Destinations, UnknownCluster};
use crate::door::{Door, DoorError};
use crate::http::HttpDoor;
use crate::hub::Hub;
use crate::mailbox::Mailbox;
use crate::secure::Stream;
use crate::sockets;
use crate::tally::Tally;
use crate::users::Users;
use crate::visitors::Visitors;
use crate::words::Ending;

/// What all clients share.
pub(crate) struct Front {
    pub(crate) config: Arc<ProxyConfig>,
    pub(crate) door: Arc<Door>,
    pub(crate) cancel_keys: Arc<CancelKeys>,
    /// Clients of pools, which have signed in.
    pub(crate) users: Users,
    pub(crate) visitors: Visitors,
    pub(crate) tally: Tally,
    /// Who may look at the proxy by HTTP, if it has that.
    pub(crate) http: Option<HttpDoor>,
    /// The cluster that clients are led to if nothing else is said.
    pub(crate) own: Arc<Hub>,
    /// The others, by name.
    pub(crate) others: BTreeMap<String, Arc<Hub>>,
    destinations: Destinations,
    /// Held while the clusters are paused, or resumed: all are, or none is.
    pausing: Mutex<()>,
    clients: AtomicUsize,
    panics: AtomicU64,
    /// A client has gone.
    pub(crate) gone: Notify,
    /// Everybody who is here; connections that are accepted bound it.
    mailboxes: Mutex<HashMap<ClientId, Arc<Mailbox<Command>>>>,
    next_client: AtomicU64,
    started: Instant,
}

impl std::fmt::Debug for Front {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Front").field("config", &self.config).finish_non_exhaustive()
    }
}

impl Front {
    /// A proxy's, which nobody has come to yet.
    ///
    /// # Errors
    /// [`UnknownCluster`].
    pub(crate) fn new(
        config: ProxyConfig,
        door: Door,
        http: Option<HttpDoor>,
    ) -> Result<Front, UnknownCluster> {
        let (config, door) = (Arc::new(config), Arc::new(door));
        let hub = |name: &String| Arc::new(Hub::new(name.clone(), config.clone(), door.clone()));
        let own = hub(&config.cluster);
        let others = config.clusters.iter().map(|name| (name.clone(), hub(name))).collect();
        Ok(Front {
            cancel_keys: Arc::new(CancelKeys::new(&config.id)),
            destinations: Destinations::new(&config, &own, &others)?,
            own,
            others,
            config,
            door,
            pausing: Mutex::default(),
            users: Users::default(),
            visitors: Visitors::default(),
            tally: Tally::default(),
            http,
            clients: AtomicUsize::new(0),
            panics: AtomicU64::new(0),
            gone: Notify::new(),
            mailboxes: Mutex::default(),
            next_client: AtomicU64::new(1),
            started: Instant::now(),
        })
    }

    /// Those of all clusters, the own one first.
    pub(crate) fn hubs(&self) -> impl Iterator<Item = &Arc<Hub>> {
        [&self.own].into_iter().chain(self.others.values())
    }

    /// Where the clients of the database are led that they call so.
    pub(crate) fn destination(&self, asked: &str) -> &Destination {
        self.destinations.find(asked)
    }

    /// Whether a client that asks for this database wants to look at the proxy itself.
    pub(crate) fn is_asked_itself(&self, database: &str) -> bool {
        self.door.authenticates() && admin::is_its_database(database)
    }

    /// The databases of which the configuration says where they are.
    pub(crate) fn databases(&self) -> impl Iterator<Item = &str> {
        self.destinations.named()
    }

    /// A client has connected: its number, and where its commands come.
    pub(crate) fn enter(self: &Arc<Front>) -> Newcomer {
        let id = ClientId(self.next_client.fetch_add(1, Ordering::Relaxed));
        let mailbox = Arc::new(Mailbox::default());
        self.mailboxes().insert(id, mailbox.clone());
        self.clients.fetch_add(1, Ordering::Relaxed);
        self.touch();
        Newcomer { front: self.clone(), id, mailbox }
    }

    /// How many clients there are, including those that have not said yet what they want.
    pub(crate) fn count(&self) -> usize {
        self.clients.load(Ordering::Relaxed)
    }

    /// Clients whose task panicked.
    pub(crate) fn panics(&self) -> u64 {
        self.panics.load(Ordering::Relaxed)
    }

    /// Whether there are more clients than are to be served; those that signed in before stay.
    pub(crate) fn is_full(&self) -> bool {
        self.count() > self.config.client_limit
    }

    /// Asks a client's task to cancel what it runs; what is returned completes when that was done.
    pub(crate) fn cancel(&self, client: ClientId) -> Option<impl Future<Output = ()> + use<>> {
        Some(self.mailbox(client)?.post_cancel())
    }

    /// Ends a client's session; `false` if there is no such client.
    pub(crate) fn kill(&self, client: ClientId) -> bool {
        let Some(mailbox) = self.mailbox(client) else {
            return false;
        };
        drop(client::put(&mailbox, Command::End(Ending::Killed)));
        true
    }

    /// Ends every client's session.
    pub(crate) fn end_all(&self, ending: Ending) {
        let mailboxes: Vec<_> = self.mailboxes().values().cloned().collect();
        for mailbox in mailboxes {
            drop(client::put(&mailbox, Command::End(ending)));
        }
    }

    /// A successor accepts the clients: connections that nobody needs are closed soon.
    pub(crate) fn drain(&self) {
        self.hubs().for_each(|hub| hub.drain());
    }

    /// Has every session end as soon as it is in no transaction.
    pub(crate) fn close(&self) {
        self.hubs().for_each(|hub| hub.close());
        let operators = self.visitors.operators();
        for mailbox in operators.into_iter().filter_map(|operator| self.mailbox(operator)) {
            drop(client::put(&mailbox, Command::End(Ending::Shutdown)));
        }
        self.mailboxes().values().for_each(|mailbox| mailbox.nudge());
    }

    /// Whether an operator has paused the pools.
    pub(crate) fn is_paused(&self) -> bool {
        self.hubs().any(|hub| hub.snapshot().paused)
    }

    /// Wakes clients whose time is up.
    pub(crate) fn look_at_time_limits(&self) {
        let since = Instant::now().saturating_duration_since(self.started);
        let now = Millis(u64::try_from(since.as_millis()).unwrap_or(u64::MAX));
        for mailbox in self.mailboxes().values() {
            if mailbox.watch.look(now, &self.config.limits) {
                mailbox.nudge();
            }
        }
    }

    /// Reads certificates, users and rules again. What cannot be read stays as it was.
    ///
    /// # Errors
    /// The first [`DoorError`].
    pub(crate) fn reload(&self) -> Result<(), DoorError> {
        self.door.reload()?;
        if let Some(http) = &self.http {
            http.reload()?;
        }
        self.hubs().for_each(|hub| hub.known.doubt_all());
        Ok(())
    }

    /// Has nobody lent a connection from now on; `false` if that is so already.
    pub(crate) fn pause(&self) -> bool {
        let _pausing = self.pausing.lock().unwrap_or_else(PoisonError::into_inner);
        let mut changed = false;
        self.hubs().for_each(|hub| changed |= hub.pause());
        changed
    }

    /// Ends a pause; `false` if there is none.
    pub(crate) fn resume(&self) -> bool {
        let _pausing = self.pausing.lock().unwrap_or_else(PoisonError::into_inner);
        let mut changed = false;
        self.hubs().for_each(|hub| changed |= hub.resume());
        changed
    }

    /// Completes when no connection is lent any more, with `true`, or when the pause is over.
    ///
    /// Cancel safety: safe.
    pub(crate) async fn until_returned(&self) -> bool {
        for hub in self.hubs() {
            // While the pause goes on, a cluster where nothing is lent stays so.
            if !hub.until_returned().await {
                return false;
            }
        }
        true
    }

    /// Tells a client of this port a last word, and closes.
    pub(crate) async fn dismiss(&self, port: Port, stream: Stream, word: &[u8]) {
        self.tally.errors.told(port, word);
        sockets::say_goodbye(stream, word).await;
    }

    /// Ids and addresses of proxies, as they are registered in any of the clusters.
    pub(crate) fn proxies(&self) -> BTreeSet<(String, String)> {
        self.hubs().flat_map(|hub| hub.proxies()).collect()
    }

    /// Has the number of clients published soon.
    fn touch(&self) {
        self.hubs().for_each(|hub| hub.touch());
    }

    fn mailbox(&self, client: ClientId) -> Option<Arc<Mailbox<Command>>> {
        self.mailboxes().get(&client).cloned()
    }

    fn mailboxes(&self) -> MutexGuard<'_, HashMap<ClientId, Arc<Mailbox<Command>>>> {
        // Every change is one call on the map, so a panic elsewhere leaves it whole.
        self.mailboxes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A client that has connected; it counts until this is dropped, also when its task panics.
pub(crate) struct Newcomer {
    pub(crate) front: Arc<Front>,
    pub(crate) id: ClientId,
    mailbox: Arc<Mailbox<Command>>,
}

impl Newcomer {
    /// Its place, now that it has said which database it wants.
    pub(crate) fn led_to(self, database: &str) -> Entered {
        let front = &self.front;
        // Who may command the proxy is known to its own cluster, wherever other names lead.
        let asks_front = front.is_asked_itself(database);
        let hub = if asks_front { &front.own } else { &front.destination(database).hub }.clone();
        hub.enter(self.id, self.mailbox.clone());
        Entered { hub, id: self.id, mailbox: self.mailbox.clone(), newcomer: self }
    }
}

impl Drop for Newcomer {
    fn drop(&mut self) {
        let front = &self.front;
        if std::thread::panicking() {
            front.panics.fetch_add(1, Ordering::Relaxed);
            let client = self.id;
            tracing::error!(%client, "a client's task panicked; its connection is closed");
        }
        front.mailboxes().remove(&self.id);
        front.visitors.leave(self.id);
        front.clients.fetch_sub(1, Ordering::Relaxed);
        front.gone.notify_one();
        front.touch();
    }
}

/// A client's place at its cluster; leaving it tells the router.
pub(crate) struct Entered {
    pub(crate) hub: Arc<Hub>,
    pub(crate) id: ClientId,
    pub(crate) mailbox: Arc<Mailbox<Command>>,
    newcomer: Newcomer,
}

impl Entered {
    /// What it shares with the clients of other clusters.
    pub(crate) fn front(&self) -> &Arc<Front> {
        &self.newcomer.front
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        self.hub.leave(self.id);
    }
}
