//! Who has come in, for operators. Nothing of a transaction looks here.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use jiff::Timestamp;
use pgproto::wire::Startup;
use route::ClientId;

use crate::hub::PoolKey;
use crate::secure::Stream;

/// What a client is here for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Errand {
    /// It is a client of a pool: that of its user and database.
    Pool,
    /// It has a server connection of its own.
    Session,
    /// It looks at the proxy.
    Admin,
}

/// A client that has come in.
#[derive(Debug, Clone)]
pub(crate) struct Visitor {
    pub(crate) errand: Errand,
    pub(crate) who: Arc<PoolKey>,
    pub(crate) address: SocketAddr,
    /// Where it came to.
    pub(crate) local: Option<SocketAddr>,
    pub(crate) since: Timestamp,
    pub(crate) tls: bool,
    pub(crate) application: Box<str>,
}

impl Visitor {
    /// One who comes in now from this address.
    pub(crate) fn new(
        errand: Errand,
        who: Arc<PoolKey>,
        (stream, address): (&Stream, SocketAddr),
        startup: &Startup,
    ) -> Visitor {
        Visitor {
            errand,
            who,
            address,
            local: stream.socket().local_addr().ok(),
            since: Timestamp::now(),
            tls: stream.is_tls(),
            application: startup.parameter("application_name").unwrap_or_default().into(),
        }
    }
}

/// All that are here; the limit of clients bounds it.
#[derive(Debug, Default)]
pub(crate) struct Visitors(Mutex<BTreeMap<ClientId, Visitor>>);

impl Visitors {
    pub(crate) fn enter(&self, client: ClientId, visitor: Visitor) {
        self.lock().insert(client, visitor);
    }

    pub(crate) fn leave(&self, client: ClientId) {
        self.lock().remove(&client);
    }

    pub(crate) fn all(&self) -> BTreeMap<ClientId, Visitor> {
        self.lock().clone()
    }

    /// Those who look at the proxy.
    pub(crate) fn operators(&self) -> Vec<ClientId> {
        let visitors = self.lock();
        let operators = visitors.iter().filter(|(_, visitor)| visitor.errand == Errand::Admin);
        operators.map(|(client, _)| *client).collect()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<ClientId, Visitor>> {
        // Every change is one call on the map, so a panic elsewhere leaves it whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
