//! What an operator can set.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use ::config::{ProxyDatabases, ProxyHttp, ProxyLimits, ProxySecurity};
use route::RouterConfig;
use route::link::{PoolMode, SessionState};
use types::Millis;

/// Until the cluster's configuration is seen.
const HOLD_TIMEOUT: Duration = Duration::from_secs(10);
const HOLD_LIMIT: usize = 1_000;
const CLIENT_LIMIT: usize = 10_000;
const POOL_SIZE: usize = 20;
const POOL_TIMEOUT: Duration = Duration::from_secs(120);
const PREPARED_STATEMENTS_MAX: usize = 200;
const DRAIN_TIMEOUT: Duration = Duration::from_secs(60);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

/// The proxy's settings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProxyConfig {
    /// Its name, for status and logs.
    pub name: String,
    /// What it is called in the DCS, where no two proxies may have the same id.
    pub id: String,
    /// What its own cluster is called, for status, logs and figures.
    pub cluster: String,
    /// The clusters that it follows besides its own, by name.
    pub clusters: BTreeSet<String>,
    /// Which databases are in which of them; all are in the own cluster if nothing is said.
    pub databases: ProxyDatabases,
    /// Where clients of the primary connect.
    pub read_write: Vec<SocketAddr>,
    /// Where clients of the replicas connect.
    pub read_only: Vec<SocketAddr>,
    /// Who asks for a database whose name ends so is led as a reader to the one without the suffix.
    pub read_only_suffix: Option<String>,
    /// Single statements of the primary's clients that only read are asked of replicas, where
    /// clients have no connection of their own.
    pub read_write_split: bool,
    /// Where it is: replicas whose tag `site` says the same come first.
    pub site: Option<String>,
    /// How long a client waits for a route and a connection, at most; `None` is what the cluster's
    /// configuration says.
    pub hold_timeout: Option<Duration>,
    /// How many clients wait at once, at most; beyond it the oldest is refused.
    pub hold_limit: usize,
    /// How many clients there are, at most, waiting or served.
    pub client_limit: usize,
    /// Who is let in, and how connections are secured. Where authentication passes through, each
    /// client has a server connection of its own.
    pub security: ProxySecurity,
    /// How long clients that sign in at the proxy have a server connection.
    pub pool_mode: PoolMode,
    /// Server connections for each user and database at each member, at most.
    pub pool_size: usize,
    /// How long a client waits for one of them, at most.
    pub pool_timeout: Duration,
    /// What becomes of statements that leave something in a session.
    pub session_state: SessionState,
    /// Prepared statements on each server connection, at most.
    pub prepared_statements_max: usize,
    /// How long clients and connections of pools last, and how many there are.
    pub limits: ProxyLimits,
    /// Threads that serve clients.
    pub workers: usize,
    /// Who may look at the proxy in its own database and give it commands. What is stored of them
    /// should be in the file of users: while the proxy is paused, or there is no primary, nobody
    /// can ask a server.
    pub admin_users: BTreeSet<String>,
    /// Who may look at it there.
    pub stats_users: BTreeSet<String>,
    /// Where it says by HTTP how it is, if it does.
    pub http: Option<ProxyHttp>,
    /// Where a proxy that is started anew asks this one for its sockets.
    pub control_socket: Option<PathBuf>,
    /// How long clients may stay then with this one.
    pub drain_timeout: Duration,
    /// How long one attempt to reach a server's TCP port takes, at most.
    pub connect_timeout: Duration,
    /// Replicas further behind than this many bytes get no new client; `None` is what the cluster's
    /// configuration says.
    pub maximum_lag_bytes: Option<u64>,
    /// TCP_USER_TIMEOUT of both connections of a session. `None` leaves the system's (about 15
    /// minutes): Linux also counts the time in which a living peer does not read, so a low value
    /// would end a `COPY` that waits for a lock, and a client that reads slowly.
    pub tcp_user_timeout: Option<Duration>,
}

impl ProxyConfig {
    /// The defaults: 1000 clients on hold, 10000 clients, 1 s to connect.
    #[must_use]
    pub fn new(
        name: impl Into<String>,
        read_write: Vec<SocketAddr>,
        read_only: Vec<SocketAddr>,
    ) -> ProxyConfig {
        let name = name.into();
        ProxyConfig {
            id: name.clone(),
            cluster: "own".to_owned(),
            clusters: BTreeSet::new(),
            databases: ProxyDatabases::default(),
            name,
            read_write,
            read_only,
            read_only_suffix: None,
            read_write_split: false,
            site: None,
            hold_timeout: None,
            hold_limit: HOLD_LIMIT,
            client_limit: CLIENT_LIMIT,
            security: ProxySecurity::default(),
            pool_mode: PoolMode::Session,
            pool_size: POOL_SIZE,
            pool_timeout: POOL_TIMEOUT,
            session_state: SessionState::Pin,
            prepared_statements_max: PREPARED_STATEMENTS_MAX,
            limits: ProxyLimits::default(),
            workers: 1,
            admin_users: BTreeSet::new(),
            stats_users: BTreeSet::new(),
            http: None,
            control_socket: None,
            drain_timeout: DRAIN_TIMEOUT,
            connect_timeout: CONNECT_TIMEOUT,
            maximum_lag_bytes: None,
            tcp_user_timeout: None,
        }
    }

    pub(crate) fn router(&self) -> RouterConfig {
        let millis = |d: Duration| Millis(u64::try_from(d.as_millis()).unwrap_or(u64::MAX));
        RouterConfig {
            hold_timeout: millis(self.hold_timeout.unwrap_or(HOLD_TIMEOUT)),
            pool_timeout: millis(self.pool_timeout),
            hold_limit: self.hold_limit,
            client_limit: self.client_limit,
            lag_bytes_max: self.maximum_lag_bytes,
            site: self.site.clone(),
            max_user_connections: self.limits.max_user_connections,
            max_db_connections: self.limits.max_db_connections,
        }
    }
}

/// How long clients have a connection, as the file says it.
#[must_use]
pub fn pool_mode(of_file: ::config::PoolMode) -> PoolMode {
    match of_file {
        ::config::PoolMode::Session => PoolMode::Session,
        ::config::PoolMode::Transaction => PoolMode::Transaction,
        ::config::PoolMode::Statement => PoolMode::Statement,
    }
}
