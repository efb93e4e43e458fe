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
#![forbid(unsafe_code)]

mod admin;
mod answers;
mod bytes;
mod cancel;
mod chosen;
mod client;
mod config;
mod core;
mod dial;
mod door;
mod front;
mod hub;
mod known;
#[doc(hidden)]
pub mod login;
mod lowering;
mod mailbox;
mod open;
mod pooled;
mod question;
mod registration;
mod relay;
mod running;
#[doc(hidden)]
pub mod secure;
mod server;
mod sockets;
mod sources;
mod startup;
mod stats;
mod time_limits;
mod users;
mod visitors;
mod welcome;
mod words;
mod worker;

use std::net::SocketAddr;
use std::sync::Arc;

use serde::Serialize;
use tokio::net::TcpListener;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;
use types::ClusterView;

pub use self::config::ProxyConfig;
pub use self::door::DoorError;
pub use self::lowering::LoweredCommit;
pub use self::registration::register;
pub use self::sources::{Believed, Following, Sources};
pub use route::link::{PoolMode, SessionState};

use self::core::Core;
use self::door::Door;
use self::front::Front;

/// What the proxy knows about the cluster at one moment. The sender replaces it as a whole.
pub trait ViewSource: Send + Sync + 'static {
    /// The newest view, `None` before the first.
    fn view(&self) -> Option<Arc<ClusterView>>;
    /// Whether the view is known to be current.
    fn fresh(&self) -> bool;
}

impl ViewSource for (Option<Arc<ClusterView>>, bool) {
    fn view(&self) -> Option<Arc<ClusterView>> {
        self.0.clone()
    }

    fn fresh(&self) -> bool {
        self.1
    }
}

/// The proxy at one moment, for operators.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Status {
    /// The proxy's name.
    pub name: String,
    /// Connections from clients, including those that have not said yet what they want.
    pub clients: usize,
    /// Clients whose task panicked. Each one is a bug.
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
    /// An address cannot be taken.
    #[error("cannot listen on {address}; is another proxy or server using it?")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
}

/// A proxy that listens. Clients that connect before [`Proxy::run`] wait in the kernel's queue.
#[derive(Debug)]
pub struct Proxy {
    config: ProxyConfig,
    door: Door,
    listeners: Vec<(route::Port, TcpListener)>,
    status: watch::Sender<Status>,
    reload: Arc<Notify>,
}

impl Proxy {
    /// Takes all addresses.
    ///
    /// # Errors
    /// [`ProxyError`], naming the address.
    pub async fn bind(config: ProxyConfig) -> Result<Proxy, ProxyError> {
        let read_write = config.read_write.iter().map(|a| (route::Port::ReadWrite, *a));
        let read_only = config.read_only.iter().map(|a| (route::Port::ReadOnly, *a));
        let door = Door::new(config.security.clone())?;
        let mut listeners = Vec::new();
        for (port, address) in read_write.chain(read_only) {
            let listener = TcpListener::bind(address)
                .await
                .map_err(|source| ProxyError::Listen { address, source })?;
            sockets::prepare(&listener, config.tcp_user_timeout);
            listeners.push((port, listener));
        }
        if listeners.is_empty() {
            return Err(ProxyError::NoAddress { name: config.name });
        }
        let status = watch::Sender::new(Status { name: config.name.clone(), ..Status::default() });
        Ok(Proxy { config, door, listeners, status, reload: Arc::default() })
    }

    /// The addresses taken, in the order of the configuration, read-write ones first.
    #[must_use]
    pub fn addresses(&self) -> Vec<(route::Port, SocketAddr)> {
        let address = |(port, listener): &(route::Port, TcpListener)| {
            Some((*port, listener.local_addr().ok()?))
        };
        self.listeners.iter().filter_map(address).collect()
    }

    /// Follows the proxy's status from now on.
    #[must_use]
    pub fn status(&self) -> watch::Receiver<Status> {
        self.status.subscribe()
    }

    /// Whoever notifies this has certificates, users and rules read again.
    #[must_use]
    pub fn reload(&self) -> Arc<Notify> {
        self.reload.clone()
    }

    /// Serves clients until `shutdown` is cancelled; they are told so, and it returns within about
    /// two seconds. When the sender of `views` goes away, open routes stay as they are.
    pub async fn run<V: ViewSource>(self, views: watch::Receiver<V>, shutdown: CancellationToken) {
        let front = Arc::new(Front::new(self.config, self.door));
        let cluster = Core::new(front.clone(), front.hub.clone(), self.status).run(views);
        tokio::select! {
            () = cluster => {}
            () = running::run(front, self.listeners, self.reload, shutdown) => {}
        }
    }
}

/// [`Proxy::bind`] and [`Proxy::run`].
///
/// # Errors
/// [`ProxyError`] if it cannot listen.
pub async fn run<V: ViewSource>(
    config: ProxyConfig,
    views: watch::Receiver<V>,
    shutdown: CancellationToken,
) -> Result<(), ProxyError> {
    Proxy::bind(config).await?.run(views, shutdown).await;
    Ok(())
}
