//! What `SHOW` answers, from what is there. Columns are PgBouncer 1.22's, in their order
//! (pgbouncer.org/usage.html, "SHOW commands"); what is not known, or not there, is 0 or empty.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use jiff::Timestamp;
use route::link::PoolMode;
use route::{ClientId, ServerPhase};

use super::rows::Table;
use super::survey::{ClusterSurvey, Survey};
use crate::config::ProxyConfig;
use crate::hub::PoolKey;
use crate::stats::Totals;

/// SHOW POOLS.
pub(super) fn pools(survey: &Survey) -> Table {
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
    let tallies = survey.tallies();
    let mut keys: Vec<&PoolKey> = survey.pools().map(|pool| &pool.key).collect();
    keys.sort();
    for key in keys {
        let tally = tallies.get(key).copied().unwrap_or_default();
        let database = survey.databases.get(&key.database);
        let none = || "0".to_owned();
        table.rows.push(vec![
            key.database.clone(),
            key.user.clone(),
            tally.clients.to_string(),
            tally.waiting.to_string(),
            none(),
            none(),
            tally.lent.to_string(),
            none(),
            none(),
            tally.idle.to_string(),
            none(),
            tally.cleaning.to_string(),
            tally.opening.to_string(),
            tally.longest.as_secs().to_string(),
            tally.longest.subsec_micros().to_string(),
            database.map_or("", |database| mode(database.pool_mode)).to_owned(),
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
    let mut links: BTreeMap<ClientId, String> = BTreeMap::new();
    for (number, cluster) in survey.clusters.iter().enumerate() {
        for server in &cluster.servers {
            if let ServerPhase::Lent(client) = server.phase {
                links.insert(client, survey.server_name(number, server.server));
            }
        }
    }
    let waiting = survey.waiting();
    for (client, visitor) in &survey.visitors {
        let waits = waiting.get(client).copied();
        let link = links.get(client).cloned();
        let none = || "0".to_owned();
        table.rows.push(vec![
            "C".to_owned(),
            visitor.who.user.clone(),
            visitor.who.database.clone(),
            if waits.is_some() { "waiting" } else { "active" }.to_owned(),
            visitor.address.ip().to_string(),
            visitor.address.port().to_string(),
            visitor.local.map(|local| local.ip().to_string()).unwrap_or_default(),
            visitor.local.map_or(0, |local| local.port()).to_string(),
            time(visitor.since),
            String::new(),
            waits.unwrap_or_default().as_secs().to_string(),
            waits.unwrap_or_default().subsec_micros().to_string(),
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
    for (number, cluster) in survey.clusters.iter().enumerate() {
        for (server, key) in cluster.servers() {
            let (state, client) = match server.phase {
                ServerPhase::Opening => ("login", None),
                ServerPhase::Idle => ("idle", None),
                ServerPhase::Lent(client) => ("active", Some(client)),
                ServerPhase::Cleaning => ("tested", None),
            };
            let since = survey.wall.checked_sub(cluster.age(server.since)).unwrap_or(survey.wall);
            let none = || "0".to_owned();
            table.rows.push(vec![
                "S".to_owned(),
                key.user.clone(),
                key.database.clone(),
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
                survey.server_name(number, server.server),
                client.map(|client| client.to_string()).unwrap_or_default(),
                none(),
                String::new(),
                String::new(),
                none(),
            ]);
        }
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

/// SHOW STATS.
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
    for (database, (totals, last, period)) in survey.totals() {
        let averages = averages(&last, period);
        let row = [database.to_owned()].into_iter().chain(counters(&totals)).chain(averages);
        table.rows.push(row.collect());
    }
    table
}

/// Counts and waiting in a second, times of one transaction and of one query.
fn averages(last: &Totals, period: Duration) -> [String; 7] {
    let of = |sum: u64, divisor: u128| u128::from(sum).checked_div(divisor).unwrap_or_default();
    let by_second = |sum: u64| {
        let micros = u128::from(sum).saturating_mul(1_000_000);
        micros.checked_div(period.as_micros()).unwrap_or_default()
    };
    [
        by_second(last.transactions),
        by_second(last.queries),
        by_second(last.received),
        by_second(last.sent),
        of(last.lent_micros, last.transactions.into()),
        of(last.lent_micros, last.queries.into()),
        by_second(last.waited_micros),
    ]
    .map(|average| average.to_string())
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
    for (database, (totals, ..)) in survey.totals() {
        table.rows.push([database.to_owned()].into_iter().chain(counters(&totals)).collect());
    }
    table
}

/// SHOW DATABASES: those that have pools, and those that the configuration names. Host and port are
/// the primary's of now.
pub(super) fn databases(survey: &Survey) -> Table {
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
    let mut connections: BTreeMap<&str, usize> = BTreeMap::new();
    for (_, key) in survey.clusters.iter().flat_map(ClusterSurvey::servers) {
        *connections.entry(&key.database).or_default() += 1;
    }
    for (name, database) in &survey.databases {
        let cluster = survey.clusters.get(database.cluster);
        let primary = cluster.and_then(|cluster| cluster.primary.as_ref());
        let none = || "0".to_owned();
        table.rows.push(vec![
            name.clone(),
            primary.map(|primary| primary.host.clone()).unwrap_or_default(),
            primary.map_or(0, |primary| primary.port).to_string(),
            database.dbname.clone(),
            String::new(),
            database.pool_size.to_string(),
            none(),
            none(),
            mode(database.pool_mode).to_owned(),
            none(),
            connections.get(name.as_str()).copied().unwrap_or_default().to_string(),
            u8::from(cluster.is_some_and(|cluster| cluster.paused)).to_string(),
            none(),
        ]);
    }
    table
}

/// SHOW LISTS. There is no cache of names, and nothing is kept free.
pub(super) fn lists(survey: &Survey) -> Table {
    let mut table = Table::new(&["list", "items"], "si");
    let users: BTreeSet<&str> = survey.pools().map(|pool| pool.key.user.as_str()).collect();
    let servers: usize = survey.clusters.iter().map(|cluster| cluster.servers.len()).sum();
    let signed_in = survey.visitors.len();
    let items = [
        ("databases", survey.databases.len()),
        ("users", users.len()),
        ("peers", 0),
        ("pools", survey.pools().count()),
        ("peer_pools", 0),
        ("free_clients", 0),
        ("used_clients", survey.clients),
        ("login_clients", survey.clients.saturating_sub(signed_in)),
        ("free_servers", 0),
        ("used_servers", servers),
        ("dns_names", 0),
        ("dns_zones", 0),
        ("dns_queries", 0),
        ("dns_pending", 0),
    ];
    table.rows = items.map(|(list, count)| vec![list.to_owned(), count.to_string()]).to_vec();
    table
}

fn seconds(duration: Duration) -> String {
    duration.as_secs_f64().to_string()
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
            ("hold_timeout", config.hold_timeout.map_or_else(String::new, seconds)),
            ("max_client_conn", config.client_limit.to_string()),
            ("name", config.name.clone()),
            ("pool_mode", mode(config.pool_mode).to_owned()),
            ("pool_size", config.pool_size.to_string()),
            ("pool_timeout", config.pool_timeout.as_secs_f64().to_string()),
            ("prepared_statements_max", config.prepared_statements_max.to_string()),
            ("read_write_split", u8::from(config.read_write_split).to_string()),
            ("site", config.site.clone().unwrap_or_default()),
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
