//! `pgherd.proxy`: how long clients and connections of pools last, and how many there are.

use types::Millis;

use crate::static_file::Reader;

/// Limits of pools and of their clients. A limit of 0 is none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProxyLimits {
    /// A server connection that nobody has had for so long is closed.
    pub server_idle_timeout: Millis,
    /// A server connection that is this old, or up to an eighth less, is closed as soon as nobody
    /// has it.
    pub server_lifetime: Millis,
    /// A client that has no server connection and says nothing for so long is told to go.
    pub client_idle_timeout: Millis,
    /// A client that is in a transaction and says nothing for so long is told to go.
    pub idle_transaction_timeout: Millis,
    /// A statement that runs for so long is cancelled.
    pub query_timeout: Millis,
    /// A client signs in within this time, and ends within it a message that it has begun while it
    /// has no server connection. Never 0.
    pub client_login_timeout: Millis,
    /// Server connections of all pools of one user, at each member.
    pub max_user_connections: usize,
    /// Server connections of all pools of one database, at each member.
    pub max_db_connections: usize,
    /// Clients of one user that have signed in at the proxy.
    pub client_limit_per_user: usize,
}

impl Default for ProxyLimits {
    fn default() -> ProxyLimits {
        ProxyLimits {
            server_idle_timeout: Millis::from_secs(600),
            server_lifetime: Millis::from_secs(3600),
            client_idle_timeout: Millis::ZERO,
            idle_transaction_timeout: Millis::ZERO,
            query_timeout: Millis::ZERO,
            client_login_timeout: Millis::from_secs(60),
            max_user_connections: 0,
            max_db_connections: 0,
            client_limit_per_user: 0,
        }
    }
}

impl Reader {
    /// The limits that are set, the defaults for the others.
    pub(crate) fn proxy_limits(&mut self) -> ProxyLimits {
        let none = ProxyLimits::default();
        let mut time = |key: &str, default: Millis| {
            self.proxy_duration(&format!("pgherd.proxy.{key}")).unwrap_or(default)
        };
        let server_idle_timeout = time("server_idle_timeout", none.server_idle_timeout);
        let server_lifetime = time("server_lifetime", none.server_lifetime);
        let client_idle_timeout = time("client_idle_timeout", none.client_idle_timeout);
        let idle_transaction_timeout =
            time("idle_transaction_timeout", none.idle_transaction_timeout);
        let query_timeout = time("query_timeout", none.query_timeout);
        let client_login_timeout = time("client_login_timeout", none.client_login_timeout);
        if client_login_timeout == Millis::ZERO {
            self.error("pgherd.proxy.client_login_timeout", "must be more than 0");
        }
        let mut count = |key: &str| self.proxy_count(key, 0).unwrap_or(0);
        ProxyLimits {
            server_idle_timeout,
            server_lifetime,
            client_idle_timeout,
            idle_transaction_timeout,
            query_timeout,
            client_login_timeout,
            max_user_connections: count("max_user_connections"),
            max_db_connections: count("max_db_connections"),
            client_limit_per_user: count("client_limit_per_user"),
        }
    }
}
