//! What an operator can set.

use std::net::SocketAddr;
use std::time::Duration;

use route::RouterConfig;
use types::Millis;

const HOLD_TIMEOUT: Duration = Duration::from_secs(30);
const HOLD_LIMIT: usize = 1_000;
const CLIENT_LIMIT: usize = 10_000;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

/// The proxy's settings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProxyConfig {
    /// Its name, for status and logs.
    pub name: String,
    /// Where clients of the primary connect.
    pub read_write: Vec<SocketAddr>,
    /// Where clients of the replicas connect.
    pub read_only: Vec<SocketAddr>,
    /// How long a client waits for a route and a connection, at most.
    pub hold_timeout: Duration,
    /// How many clients wait at once, at most; beyond it the oldest is refused.
    pub hold_limit: usize,
    /// How many clients there are, at most, waiting or served.
    pub client_limit: usize,
    /// How long one attempt to reach a server's TCP port takes, at most.
    pub connect_timeout: Duration,
    /// Replicas further behind than this many bytes get no new client; `None` is no limit.
    pub maximum_lag_bytes: Option<u64>,
    /// TCP_USER_TIMEOUT of both connections of a session. `None` leaves the system's (about 15
    /// minutes): Linux also counts the time in which a living peer does not read, so a low value
    /// would end a `COPY` that waits for a lock, and a client that reads slowly.
    pub tcp_user_timeout: Option<Duration>,
}

impl ProxyConfig {
    /// The defaults: 30 s and 1000 clients on hold, 10000 clients, 1 s to connect.
    #[must_use]
    pub fn new(
        name: impl Into<String>,
        read_write: Vec<SocketAddr>,
        read_only: Vec<SocketAddr>,
    ) -> ProxyConfig {
        ProxyConfig {
            name: name.into(),
            read_write,
            read_only,
            hold_timeout: HOLD_TIMEOUT,
            hold_limit: HOLD_LIMIT,
            client_limit: CLIENT_LIMIT,
            connect_timeout: CONNECT_TIMEOUT,
            maximum_lag_bytes: None,
            tcp_user_timeout: None,
        }
    }

    pub(crate) fn router(&self) -> RouterConfig {
        let hold_timeout = u64::try_from(self.hold_timeout.as_millis()).unwrap_or(u64::MAX);
        RouterConfig {
            hold_timeout: Millis(hold_timeout),
            hold_limit: self.hold_limit,
            client_limit: self.client_limit,
            lag_bytes_max: self.maximum_lag_bytes,
        }
    }
}
