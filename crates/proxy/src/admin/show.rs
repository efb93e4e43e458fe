//! What `SHOW` answers, from what is there. Columns are PgBouncer 1.22's, in their order
//! (pgbouncer.org/usage.html, "SHOW commands"); what is not known, or not there, is 0 or empty.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use jiff::Timestamp;
use route::link::PoolMode;
use route::{ClientId, PoolId, ServerPhase, ServerUse, Target, Waiting};
use types::Millis;

use super::rows::Table;
use crate::config::ProxyConfig;
use crate::hub::PoolKey;
use crate::stats::Totals;
use crate::visitors::{Errand, Visitor};

/// What there is at one moment.
#[derive(Debug, Clone)]
pub(crate) struct Survey {
    /// The router's time.
    pub(crate) now: Millis,
    /// The same as people have it.
    pub(crate) wall: Timestamp,
    /// Connections from clients, signed in or not.
    pub(crate) clients: usize,
    pub(crate) pools: Vec<(PoolId, PoolKey, Totals)>,
    pub(crate) servers: Vec<ServerUse>,
    pub(crate) waiting: BTreeMap<ClientId, Waiting>,
    pub(crate) visitors: BTreeMap<ClientId, Visitor>,
    pub(crate) paused: bool,
    pub(crate) primary: Option<Target>,
}

impl Survey {
    fn age(&self, since: Millis) -> Duration {
        Millis(self.now.0.saturating_sub(since.0)).as_duration()
    }

    fn key(&self, pool: PoolId) -> Option<&PoolKey> {
        self.pools.iter().find(|(id, _, _)| *id == pool).map(|(_, key, _)| key)
    }

    /// The counters of each database.
    fn totals(&self) -> BTreeMap<&str, Totals> {
        let mut sums: BTreeMap<&str, Totals> = BTreeMap::new();
        for (_, key, totals) in &self.pools {
            *sums.entry(&key.database).or_default() += *totals;
        }
        sums
    }

    fn lent_to(&self, client: ClientId) -> Option<&ServerUse> {
        self.servers.iter().find(|server| server.phase == ServerPhase::Lent(client))
    }
}

/// SHOW POOLS.
pub(super) fn pools(survey: &Survey, config: &ProxyConfig) -> Table {
    let names = [
        "database",
        "user",
        "cl_active",
        "cl_waiting",
        "cl_active_cancel_req",
        "cl_waiting_cancel_req",
        "sv_active",
        "sv_active_cancel",
        "sv_being_canceled",
        "sv_idle",
        "sv_used",
        "sv_tested",
        "sv_login",
        "maxwait",
        "maxwait_us",
        "pool_mode",
    ];
    let mut table = Table::new(&names, "ssiiiiiiiiiiiiis");
    for (id, key, _) in &survey.pools {
        let waits = || survey.waiting.values().filter(|waiting| waiting.pool == Some(*id));
        let longest = waits().map(|waiting| survey.age(waiting.since)).max().unwrap_or_default();
        let active = survey.visitors.iter().filter(|(client, visitor)| {
            visitor.errand == Errand::Pool(*id) && !survey.waiting.contains_key(client)
        });
        let servers = |is: fn(ServerPhase) -> bool| {
            survey.servers.iter().filter(|s| s.pool == *id && is(s.phase)).count().to_string()
        };
        let none = || "0".to_owned();
        table.rows.push(vec![
            key.database.clone(),
            key.user.clone(),
            active.count().to_string(),
            waits().count().to_string(),
            none(),
            none(),
            servers(|phase| matches!(phase, ServerPhase::Lent(_))),
            none(),
            none(),
            servers(|phase| phase == ServerPhase::Idle),
            none(),
            servers(|phase| phase == ServerPhase::Cleaning),
            servers(|phase| phase == ServerPhase::Opening),
            longest.as_secs().to_string(),
            longest.subsec_micros().to_string(),
            mode(config.pool_mode).to_owned(),
        ]);
    }
    table
}

/// The columns of clients and servers.
fn sockets() -> Table {
    let names = [
        "type",
        "user",
        "database",
        "state",
        "addr",
        "port",
        "local_addr",
        "local_port",
        "connect_time",
        "request_time",
        "wait",
        "wait_us",
        "close_needed",
        "ptr",
        "link",
        "remote_pid",
        "tls",
        "application_name",
        "prepared_statements",
    ];
    Table::new(&names, "sssssisissiiississi")
}

/// SHOW CLIENTS. `ptr` is the number by which a client is killed, `link` that of its server.
pub(super) fn clients(survey: &Survey) -> Table {
    let mut table = sockets();
    let servers: BTreeMap<ClientId, &ServerUse> = survey
        .visitors
        .keys()
        .filter_map(|client| Some((*client, survey.lent_to(*client)?)))
        .collect();
    for (client, visitor) in &survey.visitors {
        let waiting = survey.waiting.get(client);
        let waits = waiting.map(|waiting| survey.age(waiting.since)).unwrap_or_default();
        let link = servers.get(client).map(|server| server.server.to_string());
        let none = || "0".to_owned();
        table.rows.push(vec![
            "C".to_owned(),
            visitor.who.user.clone(),
            visitor.who.database.clone(),
            if waiting.is_some() { "waiting" } else { "active" }.to_owned(),
            visitor.address.ip().to_string(),
            visitor.address.port().to_string(),
            visitor.local.map(|local| local.ip().to_string()).unwrap_or_default(),
            visitor.local.map_or(0, |local| local.port()).to_string(),
            time(visitor.since),
            String::new(),
            waits.as_secs().to_string(),
            waits.subsec_micros().to_string(),
            none(),
            client.to_string(),
            link.unwrap_or_default(),
            none(),
            if visitor.tls { "TLS" } else { "" }.to_owned(),
            visitor.application.clone().into(),
            none(),
        ]);
    }
    table
}

/// SHOW SERVERS. `ptr` is the number of the connection, `link` that of its client.
pub(super) fn servers(survey: &Survey) -> Table {
    let mut table = sockets();
    for server in &survey.servers {
        let key = survey.key(server.pool);
        let (state, client) = match server.phase {
            ServerPhase::Opening => ("login", None),
            ServerPhase::Idle => ("idle", None),
            ServerPhase::Lent(client) => ("active", Some(client)),
            ServerPhase::Cleaning => ("tested", None),
        };
        let since = survey.wall.checked_sub(survey.age(server.since)).unwrap_or(survey.wall);
        let none = || "0".to_owned();
        table.rows.push(vec![
            "S".to_owned(),
            key.map(|key| key.user.clone()).unwrap_or_default(),
            key.map(|key| key.database.clone()).unwrap_or_default(),
            state.to_owned(),
            server.host.clone(),
            server.port.to_string(),
            String::new(),
            none(),
            time(since),
            String::new(),
            none(),
            none(),
            u8::from(server.retired).to_string(),
            server.server.to_string(),
            client.map(|client| client.to_string()).unwrap_or_default(),
            none(),
            String::new(),
            String::new(),
            none(),
        ]);
    }
    table
}

/// The counters of a database. The time of queries is that of transactions: the time between two
/// statements of a transaction is in it.
fn counters(totals: &Totals) -> [String; 7] {
    [
        totals.transactions,
        totals.queries,
        totals.received,
        totals.sent,
        totals.lent_micros,
        totals.lent_micros,
        totals.waited_micros,
    ]
    .map(|counter| counter.to_string())
}

/// SHOW STATS. Averages are not kept.
pub(super) fn stats(survey: &Survey) -> Table {
    let names = [
        "database",
        "total_xact_count",
        "total_query_count",
        "total_received",
        "total_sent",
        "total_xact_time",
        "total_query_time",
        "total_wait_time",
        "avg_xact_count",
        "avg_query_count",
        "avg_recv",
        "avg_sent",
        "avg_xact_time",
        "avg_query_time",
        "avg_wait_time",
    ];
    let mut table = Table::new(&names, "snnnnnnnnnnnnnn");
    for (database, totals) in survey.totals() {
        let averages = [const { String::new() }; 7].map(|_| "0".to_owned());
        let row = [database.to_owned()].into_iter().chain(counters(&totals)).chain(averages);
        table.rows.push(row.collect());
    }
    table
}

/// SHOW STATS_TOTALS.
pub(super) fn stats_totals(survey: &Survey) -> Table {
    let names = [
        "database",
        "xact_count",
        "query_count",
        "bytes_received",
        "bytes_sent",
        "xact_time",
        "query_time",
        "wait_time",
    ];
    let mut table = Table::new(&names, "snnnnnnn");
    for (database, totals) in survey.totals() {
        table.rows.push([database.to_owned()].into_iter().chain(counters(&totals)).collect());
    }
    table
}

/// SHOW DATABASES: those that have pools. Host and port are the primary's.
pub(super) fn databases(survey: &Survey, config: &ProxyConfig) -> Table {
    let names = [
        "name",
        "host",
        "port",
        "database",
        "force_user",
        "pool_size",
        "min_pool_size",
        "reserve_pool",
        "pool_mode",
        "max_connections",
        "current_connections",
        "paused",
        "disabled",
    ];
    let mut table = Table::new(&names, "ssissiiisiiii");
    let databases: BTreeSet<&str> =
        survey.pools.iter().map(|(_, key, _)| key.database.as_str()).collect();
    for database in databases {
        let is_its = |pool| survey.key(pool).is_some_and(|key| key.database == database);
        let connections = survey.servers.iter().filter(|server| is_its(server.pool)).count();
        let primary = survey.primary.as_ref();
        let none = || "0".to_owned();
        table.rows.push(vec![
            database.to_owned(),
            primary.map(|primary| primary.host.clone()).unwrap_or_default(),
            primary.map_or(0, |primary| primary.port).to_string(),
            database.to_owned(),
            String::new(),
            config.pool_size.to_string(),
            none(),
            none(),
            mode(config.pool_mode).to_owned(),
            none(),
            connections.to_string(),
            u8::from(survey.paused).to_string(),
            none(),
        ]);
    }
    table
}

/// SHOW LISTS. There is no cache of names, and nothing is kept free.
pub(super) fn lists(survey: &Survey) -> Table {
    let mut table = Table::new(&["list", "items"], "si");
    let keys = || survey.pools.iter().map(|(_, key, _)| key);
    let databases: BTreeSet<&str> = keys().map(|key| key.database.as_str()).collect();
    let users: BTreeSet<&str> = keys().map(|key| key.user.as_str()).collect();
    let signed_in = survey.visitors.len();
    let items = [
        ("databases", databases.len()),
        ("users", users.len()),
        ("peers", 0),
        ("pools", survey.pools.len()),
        ("peer_pools", 0),
        ("free_clients", 0),
        ("used_clients", survey.clients),
        ("login_clients", survey.clients.saturating_sub(signed_in)),
        ("free_servers", 0),
        ("used_servers", survey.servers.len()),
        ("dns_names", 0),
        ("dns_zones", 0),
        ("dns_queries", 0),
        ("dns_pending", 0),
    ];
    table.rows = items.map(|(list, count)| vec![list.to_owned(), count.to_string()]).to_vec();
    table
}

/// SHOW CONFIG: what sizes the proxy, by the configuration's names, and the limit of clients by
/// PgBouncer's too, which exporters look for. Nothing changes without a restart.
pub(super) fn config(config: &ProxyConfig) -> Table {
    let mut table = Table::new(&["key", "value", "default", "changeable"], "ssss");
    let default = ProxyConfig::new("", Vec::new(), Vec::new());
    let values = |config: &ProxyConfig| {
        let list = |users: &BTreeSet<String>| {
            users.iter().map(String::as_str).collect::<Vec<&str>>().join(",")
        };
        [
            ("admin_users", list(&config.admin_users)),
            ("client_limit", config.client_limit.to_string()),
            ("hold_limit", config.hold_limit.to_string()),
            ("hold_timeout", config.hold_timeout.as_secs_f64().to_string()),
            ("max_client_conn", config.client_limit.to_string()),
            ("name", config.name.clone()),
            ("pool_mode", mode(config.pool_mode).to_owned()),
            ("pool_size", config.pool_size.to_string()),
            ("pool_timeout", config.pool_timeout.as_secs_f64().to_string()),
            ("prepared_statements_max", config.prepared_statements_max.to_string()),
            ("stats_users", list(&config.stats_users)),
            ("workers", config.workers.to_string()),
        ]
    };
    for ((key, value), (_, default)) in values(config).into_iter().zip(values(&default)) {
        table.rows.push(vec![key.to_owned(), value, default, "no".to_owned()]);
    }
    table
}

/// SHOW VERSION.
pub(super) fn version() -> Table {
    let mut table = Table::new(&["version"], "s");
    table.rows.push(vec![format!("pgherd {}", env!("CARGO_PKG_VERSION"))]);
    table
}

fn mode(mode: PoolMode) -> &'static str {
    match mode {
        PoolMode::Session => "session",
        PoolMode::Transaction => "transaction",
        PoolMode::Statement => "statement",
    }
}

fn time(at: Timestamp) -> String {
    at.strftime("%Y-%m-%d %H:%M:%S UTC").to_string()
}

#[cfg(test)]
mod tests;
