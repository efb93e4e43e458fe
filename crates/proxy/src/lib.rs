//! The proxy: listeners and sockets around [`route::Router`].
//!
//! A client has a server connection of its own, and bytes are relayed as they are, so that
//! authentication passes end to end; or it is a client of a pool, signs in here, and is lent a
//! connection for a transaction, a statement or its whole stay.
//!
//! Layers: [`Proxy`] binds and runs; the front holds what all clients share, a hub what those of
//! one cluster do, with its router in it; workers accept clients, and each client's task moves its
//! own bytes; a core task follows a cluster, keeps the time and publishes.
//!
//! Invariants:
//! - after the router has cut a session, no byte goes to its server; what the kernel still holds
//!   for it is discarded (the connection is reset);
//! - an error of ours never lands inside a message of the server;
//! - a client is told 57P01 only when no statement of its own can be in doubt, 08007 otherwise;
//! - a client that has been told nothing may be moved to another server unseen.
//!
//! Whether a client sets `synchronous_commit` below `on` (I1) is looked at in either case. That is
//! counted, and refused where the dynamic configuration says so.
//!
//! Where views of the cluster come from, [`Proxy::run`] is told; usually [`Sources`].

mod admin;
mod answers;
mod bytes;
mod cancel;
mod chosen;
mod client;
mod config;
mod core;
mod destination;
mod dial;
mod door;
mod draining;
mod figures;
mod front;
mod histogram;
mod hot_restart;
mod http;
mod hub;
mod known;
mod lanes;
mod listening;
#[doc(hidden)]
pub mod login;
mod lowering;
mod mailbox;
mod open;
mod pooled;
mod prober;
mod process;
mod question;
mod registration;
mod relay;
mod rounds;
mod running;
#[doc(hidden)]
pub mod secure;
mod server;
mod sessions;
mod sockets;
mod sources;
mod startup;
mod stats;
mod tally;
mod time_limits;
mod users;
mod views;
mod visitors;
mod welcome;
mod words;
mod worker;

use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;

use serde::Serialize;
use tokio::sync::{Notify, watch};
use tokio::task::{AbortHandle, JoinSet};
use tokio_util::sync::CancellationToken;

pub use self::config::{ProxyConfig, pool_mode};
pub use self::destination::UnknownCluster;
pub use self::door::DoorError;
pub use self::hot_restart::{Name, Naming, Registrant, Stage, TakeoverError, in_charge};
pub use self::lowering::LoweredCommit;
pub use self::registration::register;
pub use self::sources::{Believed, Following, Sources};
pub use self::views::{ViewSource, Views};
pub use route::link::{PoolMode, SessionState};

use self::core::Core;
use self::door::Door;
use self::front::Front;
use self::hot_restart::{Drains, HotRestart};
use self::hub::Hub;
use self::running::Workers;

/// The proxy at one moment, at one of its clusters, for operators.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Status {
    /// The proxy's name.
    pub name: String,
    /// The cluster's.
    pub cluster: String,
    /// Connections from clients, whichever cluster they are led to, including those that have not
    /// said yet what they want.
    pub clients: usize,
    /// Clients whose task panicked, likewise. Each one is a bug.
    pub panics: u64,
    /// Sessions that set `synchronous_commit` below `on`.
    pub lowered: LoweredCommit,
    /// Routes, waiting clients, counters.
    pub routes: route::Snapshot,
}

/// Why the proxy cannot run.
#[derive(Debug, thiserror::Error)]
pub enum ProxyError {
    /// Nothing to do.
    #[error("the proxy {name} has no address to listen on; set its read-write or read-only port")]
    NoAddress {
        /// The proxy's name.
        name: String,
    },
    /// Something about authentication or TLS.
    #[error(transparent)]
    Door(#[from] DoorError),
    /// The address for HTTP cannot be taken.
    #[error("cannot listen on {listen} (pgherd.proxy.http); is another program using it?")]
    ListenHttp {
        /// The address.
        listen: ::config::HostPort,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// A database is where the proxy cannot lead anybody.
    #[error(transparent)]
    Cluster(#[from] UnknownCluster),
    /// An address cannot be taken.
    #[error(
        "cannot listen on {address}; is another proxy or server using it? (one that this proxy is \
         to take over from needs the same control_socket)"
    )]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// Another proxy was to hand over.
    #[error(transparent)]
    Takeover(#[from] TakeoverError),
}

/// A proxy that listens. Clients that connect before [`Proxy::run`] wait in the kernel's queue, or
/// are served by the proxy that this one takes over from.
#[derive(Debug)]
pub struct Proxy {
    front: Arc<Front>,
    listeners: Vec<(route::Port, TcpListener)>,
    http: Option<tokio::net::TcpListener>,
    status: watch::Sender<Status>,
    /// Of the clusters besides its own, by name.
    others: BTreeMap<String, watch::Sender<Status>>,
    reload: Arc<Notify>,
    restart: HotRestart,
}

impl Proxy {
    /// Takes all addresses; where a proxy is in charge behind the control socket, from that.
    ///
    /// # Errors
    /// [`ProxyError`], naming the address. A proxy that is in charge serves on then.
    pub async fn bind(config: ProxyConfig) -> Result<Proxy, ProxyError> {
        let read_write = config.read_write.iter().map(|a| (route::Port::ReadWrite, *a));
        let read_only = config.read_only.iter().map(|a| (route::Port::ReadOnly, *a));
        let door = Door::new(config.security.clone())?;
        let (mut restart, mut sockets) =
            HotRestart::begin(config.control_socket.as_deref()).await?;
        let mut listeners = Vec::new();
        for (port, address) in read_write.chain(read_only) {
            let name = match port {
                route::Port::ReadWrite => "read_write",
                route::Port::ReadOnly => "read_only",
            };
            let listener = sockets
                .listen(name, address)
                .await
                .map_err(|source| ProxyError::Listen { address, source })?;
            sockets::prepare(&listener, config.tcp_user_timeout);
            sockets::accept_who_speaks(&listener);
            listeners.push((port, listener));
        }
        if listeners.is_empty() {
            return Err(ProxyError::NoAddress { name: config.name });
        }
        let (http, http_listener) = match config.http.clone() {
            Some(config) => Some(http::open(config, &mut sockets).await?),
            None => None,
        }
        .unzip();
        restart.holds(sockets);
        let name = config.name.clone();
        let front = Arc::new(Front::new(config, door, http)?);
        let status = |hub: &Arc<Hub>| {
            let (name, cluster) = (name.clone(), hub.name.clone());
            watch::Sender::new(Status { name, cluster, ..Status::default() })
        };
        let others = front.others.iter().map(|(name, hub)| (name.clone(), status(hub))).collect();
        let status = status(&front.own);
        let reload = Arc::default();
        Ok(Proxy { front, listeners, http: http_listener, status, others, reload, restart })
    }

    /// Has whoever runs the proxy told what becomes of it.
    pub fn on_stage(&mut self, tell: impl Fn(Stage) + Send + Sync + 'static) {
        self.restart.on_stage(Box::new(tell));
    }

    /// By which name the proxy is to be registered in the DCS.
    #[must_use]
    pub fn naming(&self) -> Naming {
        self.restart.naming()
    }

    /// Where sockets are taken over: waits a moment for what the DCS shows, and has the proxy in
    /// charge leave its name there to this one. From here to [`Proxy::run`] is a matter of seconds.
    ///
    /// # Errors
    /// [`ProxyError`]; the proxy in charge serves on then.
    pub async fn take_name<V: ViewSource>(
        &mut self,
        views: impl Into<Views<V>>,
    ) -> Result<(), ProxyError> {
        Ok(self.restart.take_name(views.into()).await?)
    }

    /// Where it answers HTTP, if it does.
    #[must_use]
    pub fn http_address(&self) -> Option<SocketAddr> {
        self.http.as_ref().and_then(|listener| listener.local_addr().ok())
    }

    /// The addresses taken, in the order of the configuration, read-write ones first.
    #[must_use]
    pub fn addresses(&self) -> Vec<(route::Port, SocketAddr)> {
        let address = |(port, listener): &(route::Port, TcpListener)| {
            Some((*port, listener.local_addr().ok()?))
        };
        self.listeners.iter().filter_map(address).collect()
    }

    /// Follows the status of its own cluster from now on.
    #[must_use]
    pub fn status(&self) -> watch::Receiver<Status> {
        self.status.subscribe()
    }

    /// Follows the status of each of the other clusters from now on, by name.
    #[must_use]
    pub fn other_statuses(&self) -> BTreeMap<String, watch::Receiver<Status>> {
        self.others.iter().map(|(name, status)| (name.clone(), status.subscribe())).collect()
    }

    /// Of all clusters, by name.
    fn statuses(&self) -> BTreeMap<String, watch::Receiver<Status>> {
        let own = (self.front.own.name.clone(), self.status());
        self.other_statuses().into_iter().chain([own]).collect()
    }

    /// Whoever notifies this has certificates, users and rules read again.
    #[must_use]
    pub fn reload(&self) -> Arc<Notify> {
        self.reload.clone()
    }

    /// Serves clients until `shutdown` is cancelled; they are told so, and it returns within about
    /// two seconds. Or until a successor has taken the sockets over, and the clients that are here
    /// have gone. When the sender of `views` goes away, open routes stay as they are.
    ///
    /// # Errors
    /// The proxy in charge does not hand over after all.
    pub async fn run<V: ViewSource>(
        self,
        views: impl Into<Views<V>>,
        shutdown: CancellationToken,
    ) -> Result<(), ProxyError> {
        if shutdown.is_cancelled() {
            // Whoever is in charge is not to stop for one that ends.
            return Ok(());
        }
        let statuses = self.statuses();
        let Views { own, others: mut views } = views.into();
        let front = self.front;
        let drains = Drains::default();
        let shutdown = shutdown.child_token();
        // It is known that others may drain before clients come.
        let restart = self.restart.of(front.clone(), drains.clone());
        let workers = Workers::start(&front, &self.listeners);
        drop(self.listeners);
        let refused = shutdown.clone();
        let restart = tokio::spawn(async move {
            let ended = restart.run().await;
            if ended.is_err() {
                refused.cancel();
            }
            ended
        });
        let ends_with_us = AbortOnDrop(restart.abort_handle());
        let core = |hub: &Arc<Hub>, status| Core::new(front.clone(), hub.clone(), status);
        let mut cores = JoinSet::new();
        cores.spawn(core(&front.own, self.status).run(own));
        for (name, status) in self.others {
            let Some(core) = front.others.get(&name).map(|hub| core(hub, status)) else { continue };
            match views.remove(&name) {
                Some(views) => cores.spawn(core.run(views)),
                None => cores.spawn(core.run(views::none())),
            };
        }
        let mut probers = JoinSet::new();
        for hub in front.hubs().filter(|hub| hub.config.read_write_split) {
            probers.spawn(prober::run(hub.clone()));
        }
        let pages = http::serve(front.clone(), self.http, statuses, drains.begin.clone());
        tokio::select! {
            () = pages => {}
            Some(Err(ended)) = cores.join_next() => {
                // They end with a panic only, and nothing is to be served without them.
                if let Ok(panic) = ended.try_into_panic() {
                    std::panic::resume_unwind(panic);
                }
            }
            () = running::run(front.clone(), workers, (self.reload, drains), shutdown) => {}
        }
        drop(ends_with_us);
        restart.await.map_or(Ok(()), |ended| Ok(ended?))
    }
}

/// A task that ends with whoever began it.
struct AbortOnDrop(AbortHandle);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// [`Proxy::bind`] and [`Proxy::run`].
///
/// # Errors
/// [`ProxyError`] if it cannot listen.
pub async fn run<V: ViewSource>(
    config: ProxyConfig,
    views: impl Into<Views<V>>,
    shutdown: CancellationToken,
) -> Result<(), ProxyError> {
    Proxy::bind(config).await?.run(views, shutdown).await
}
