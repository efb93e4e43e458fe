//! `pgherd.proxy`: where the proxy listens, how long clients wait, how connections are shared.

use std::collections::BTreeMap;
use std::path::PathBuf;

use types::{Millis, RestAddress};

use crate::proxy_auth::{ProxyAuth, ProxySecurity};
use crate::proxy_clusters::{ProxyCluster, ProxyDatabases};
use crate::proxy_http::ProxyHttp;
use crate::proxy_limits::ProxyLimits;
use crate::static_file::Reader;
use crate::text::HostPort;
use crate::tree::Node;
use crate::values;

const HOLD_LIMIT_DEFAULT: usize = 1000;
/// Words of `pool_mode`.
pub(crate) const POOL_MODES: &[&str] = &["session", "transaction", "statement"];
/// Words of `session_state`.
pub(crate) const SESSION_STATES: &[&str] = &["pin", "refuse"];

const POOL_SIZE_DEFAULT: usize = 20;
const CLIENT_LIMIT_DEFAULT: usize = 10_000;
const PREPARED_STATEMENTS_MAX_DEFAULT: usize = 200;
const POOL_TIMEOUT_DEFAULT: Millis = Millis(120_000);
/// Members that are asked at the same time.
const MEMBERS_MAX: usize = 32;
const DRAIN_TIMEOUT_DEFAULT: Millis = Millis(60_000);
/// The kernel's limit is 107; a new socket has a longer name until it is in its place.
const SOCKET_PATH_BYTES_MAX: usize = 90;
/// More threads than this serve nobody faster.
const WORKERS_MAX: usize = 256;

/// For how long a client has a server connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PoolMode {
    /// As long as it stays.
    Session,
    /// For a transaction.
    Transaction,
    /// For a statement.
    Statement,
}

impl PoolMode {
    /// That of one of [`POOL_MODES`]; any other word was refused with its type.
    pub(crate) fn of_word(word: &str) -> PoolMode {
        match word {
            "transaction" => PoolMode::Transaction,
            "statement" => PoolMode::Statement,
            _ => PoolMode::Session,
        }
    }
}

/// What is done with statements that leave something in a session which others share.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SessionState {
    /// The connection stays with the client.
    Pin,
    /// They are refused.
    Refuse,
}

/// `pgherd.proxy`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProxySection {
    /// Its name; `None`: the host's.
    pub name: Option<String>,
    /// REST interfaces of members that tell it of the cluster when the DCS does not.
    pub members: Vec<RestAddress>,
    /// Where it listens for clients of the primary.
    pub read_write: Option<HostPort>,
    /// Where it listens for clients of the replicas.
    pub read_only: Option<HostPort>,
    /// Databases with this suffix are for readers.
    pub read_only_suffix: Option<String>,
    /// Single reads of the primary's clients go to replicas.
    pub read_write_split: bool,
    /// Where it is: replicas of this site come first.
    pub site: Option<String>,
    /// How long a client waits for a route at most; `None`: the dynamic configuration's.
    pub hold_timeout: Option<Millis>,
    /// How many clients wait at most.
    pub hold_limit: usize,
    /// Authentication, TLS and PROXY protocol.
    pub security: ProxySecurity,
    /// How many clients there are at most.
    pub client_limit: usize,
    /// How long clients have a connection.
    pub pool_mode: PoolMode,
    /// Connections for each user and database at each member, at most.
    pub pool_size: usize,
    /// How long a client waits for one of them at most.
    pub pool_timeout: Millis,
    /// What is done with statements that leave something in a session.
    pub session_state: SessionState,
    /// Prepared statements on each server connection, at most.
    pub prepared_statements_max: usize,
    /// How long clients and connections of pools last, and how many there are.
    pub limits: ProxyLimits,
    /// Threads that serve clients; `None`: as many as there are processors.
    pub workers: Option<usize>,
    /// Who may look at the proxy and give it commands.
    pub admin_users: Vec<String>,
    /// Who may look at it.
    pub stats_users: Vec<String>,
    /// Where it says by HTTP how it is, if it does.
    pub http: Option<ProxyHttp>,
    /// The clusters that it follows besides the file's own, by what the file calls them.
    pub clusters: BTreeMap<String, ProxyCluster>,
    /// Where the databases are that clients ask for.
    pub databases: ProxyDatabases,
    /// Where a proxy that is started anew asks this one for its sockets; `None`: nowhere.
    pub control_socket: Option<PathBuf>,
    /// How long clients may stay with a proxy whose sockets were taken over.
    pub drain_timeout: Millis,
}

impl Reader {
    /// The section, if it is there.
    pub(crate) fn proxy_section(&mut self) -> Option<ProxySection> {
        self.tree.at("pgherd.proxy")?;
        let security = ProxySecurity::read(&self.tree, &mut self.errors);
        let clusters = self.proxy_clusters();
        Some(ProxySection {
            name: self.text("pgherd.proxy.name"),
            members: self.proxy_members("pgherd.proxy.members", None),
            read_write: self.address("pgherd.proxy.read_write"),
            read_only: self.address("pgherd.proxy.read_only"),
            read_only_suffix: self.text("pgherd.proxy.read_only_suffix").filter(|s| !s.is_empty()),
            read_write_split: self.proxy_split(&security.auth),
            site: self.text("pgherd.proxy.site").filter(|site| !site.is_empty()),
            hold_timeout: self.proxy_duration("pgherd.proxy.hold_timeout"),
            hold_limit: self.proxy_count("hold_limit", 0).unwrap_or(HOLD_LIMIT_DEFAULT),
            client_limit: self.proxy_count("client_limit", 1).unwrap_or(CLIENT_LIMIT_DEFAULT),
            pool_mode: self.proxy_shared_mode(&security.auth),
            pool_size: self.proxy_count("pool_size", 1).unwrap_or(POOL_SIZE_DEFAULT),
            pool_timeout: self
                .proxy_duration("pgherd.proxy.pool_timeout")
                .unwrap_or(POOL_TIMEOUT_DEFAULT),
            session_state: match self.text("pgherd.proxy.session_state").as_deref() {
                Some("refuse") => SessionState::Refuse,
                _ => SessionState::Pin,
            },
            prepared_statements_max: self
                .proxy_count("prepared_statements_max", 1)
                .unwrap_or(PREPARED_STATEMENTS_MAX_DEFAULT),
            limits: self.proxy_limits(),
            workers: self.proxy_count("workers", 1).map(|workers| workers.min(WORKERS_MAX)),
            admin_users: self.proxy_users("admin_users", &security.auth),
            stats_users: self.proxy_users("stats_users", &security.auth),
            http: ProxyHttp::read(&self.tree, &mut self.errors),
            databases: self.proxy_databases(&security),
            clusters,
            control_socket: self.control_socket(),
            drain_timeout: self
                .proxy_duration("pgherd.proxy.drain_timeout")
                .unwrap_or(DRAIN_TIMEOUT_DEFAULT),
            security,
        })
    }

    /// Members of a cluster, as `path` names them, which stands below another node where one is
    /// given.
    pub(crate) fn proxy_members(&mut self, path: &str, below: Option<&Node>) -> Vec<RestAddress> {
        let node = below.map_or_else(|| self.tree.at(path), |node| node.at("members"));
        let urls = node.and_then(values::comma_list).unwrap_or_default();
        let mut members = Vec::new();
        for url in urls {
            let is_http = url.starts_with("http://") || url.starts_with("https://");
            match RestAddress::of_url(&url).filter(|_| is_http) {
                Some(address) if !members.contains(&address) => members.push(address),
                Some(_) => {}
                None => self.error(path, format!("{url:?} is not http://host:port")),
            }
        }
        if members.len() > MEMBERS_MAX {
            self.error(
                path,
                format!("must be at most {MEMBERS_MAX}; the others are found by them"),
            );
        }
        members
    }

    fn proxy_pool_mode(&self) -> PoolMode {
        let word = self.text("pgherd.proxy.pool_mode");
        word.map_or(PoolMode::Session, |word| PoolMode::of_word(&word))
    }

    /// Where logins pass through, no connection can be another client's.
    fn proxy_shared_mode(&mut self, auth: &ProxyAuth) -> PoolMode {
        let mode = self.proxy_pool_mode();
        if mode != PoolMode::Session && *auth == ProxyAuth::PassThrough {
            let why = "needs a proxy that signs clients in itself: set pgherd.proxy.auth to \
                       scram-sha-256, md5, cert, trust or rules";
            self.error("pgherd.proxy.pool_mode", why);
        }
        mode
    }

    /// A client that keeps its connection has one server for all that it does.
    fn proxy_split(&mut self, auth: &ProxyAuth) -> bool {
        const PATH: &str = "pgherd.proxy.read_write_split";
        let splits = self.boolean(PATH).unwrap_or(false);
        let keeps = self.proxy_pool_mode() == PoolMode::Session || *auth == ProxyAuth::PassThrough;
        if splits && keeps {
            let why = "needs pgherd.proxy.pool_mode transaction or statement, and another \
                       pgherd.proxy.auth than pass_through: else a client has one server for \
                       its stay";
            self.error(PATH, why);
        }
        splits
    }

    /// Users of the proxy's own database, which it has only where it signs clients in itself.
    fn proxy_users(&mut self, key: &str, auth: &ProxyAuth) -> Vec<String> {
        let path = format!("pgherd.proxy.{key}");
        let users = self.tree.at(&path).and_then(values::comma_list).unwrap_or_default();
        if !users.is_empty() && *auth == ProxyAuth::PassThrough {
            let why = "is for a proxy that signs clients in itself: set pgherd.proxy.auth to \
                       scram-sha-256, md5, cert, trust or rules";
            self.error(&path, why.to_owned());
        }
        users
    }

    /// A path that the kernel takes, and that means the same wherever the program is started.
    fn control_socket(&mut self) -> Option<PathBuf> {
        const KEY: &str = "pgherd.proxy.control_socket";
        let path = self.text(KEY).filter(|path| !path.is_empty())?;
        if !path.starts_with('/') {
            self.error(KEY, "must be an absolute path");
        }
        if path.len() > SOCKET_PATH_BYTES_MAX {
            let (bytes, most) = (path.len(), SOCKET_PATH_BYTES_MAX);
            self.error(
                KEY,
                format!("is too long for a Unix socket: {bytes} bytes, at most {most}"),
            );
        }
        Some(PathBuf::from(path))
    }

    pub(crate) fn proxy_duration(&mut self, path: &str) -> Option<Millis> {
        self.tree.at(path).and_then(values::duration)
    }

    pub(crate) fn proxy_count(&mut self, key: &str, least: usize) -> Option<usize> {
        let path = format!("pgherd.proxy.{key}");
        let number = self.tree.at(&path).and_then(values::integer)?;
        let count = usize::try_from(number).ok().filter(|count| *count >= least);
        if count.is_none() {
            self.error(&path, format!("must be at least {least}"));
        }
        count
    }
}
