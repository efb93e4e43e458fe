use std::sync::Arc;

use route::{PoolId, ServerId, ServerUse, Target, Waiting};
use types::Millis;

use super::*;
use crate::admin::survey::{DatabaseSurvey, PoolSurvey};
use crate::visitors::{Errand, Visitor};

fn key(database: &str, user: &str) -> PoolKey {
    PoolKey { database: database.to_owned(), user: user.to_owned() }
}

fn visitor(database: &str, user: &str) -> Visitor {
    Visitor {
        errand: Errand::Pool,
        who: Arc::new(key(database, user)),
        address: "192.0.2.7:5000".parse().unwrap(),
        local: Some("192.0.2.1:5432".parse().unwrap()),
        since: Timestamp::UNIX_EPOCH,
        tls: true,
        application: "till".into(),
    }
}

fn server(number: u64, pool: u32, phase: ServerPhase) -> ServerUse {
    ServerUse {
        server: ServerId(number),
        pool: PoolId(pool),
        member: "a".into(),
        host: "db1".to_owned(),
        port: 5432,
        phase,
        retired: number == 1,
        since: Millis(1_000),
    }
}

fn pool(number: u32, database: &str, user: &str, totals: Totals) -> PoolSurvey {
    let dbname = if database == "old" { "shop" } else { database }.to_owned();
    PoolSurvey { id: PoolId(number), key: key(database, user), dbname, totals, last: totals }
}

const TOTALS: Totals = Totals {
    transactions: 3,
    queries: 5,
    prepared_again: 0,
    received: 10,
    sent: 20,
    lent_micros: 0,
    waited_micros: 0,
};

/// Two users of one database: the first has a server, the second waits since 1.5 s.
fn survey() -> Survey {
    let more = Totals { lent_micros: 70, waited_micros: 9, ..TOTALS };
    let waiting = Waiting { pool: Some(PoolId(1)), since: Millis(2_500) };
    let cluster = ClusterSurvey {
        name: "demo".to_owned(),
        now: Millis(4_000),
        pools: vec![pool(0, "shop", "ann", TOTALS), pool(1, "shop", "bob", more)],
        period: Duration::from_secs(2),
        servers: vec![
            server(1, 0, ServerPhase::Lent(ClientId(4))),
            server(2, 0, ServerPhase::Idle),
            server(3, 1, ServerPhase::Opening),
        ],
        waiting: BTreeMap::from([(ClientId(5), waiting)]),
        paused: true,
        primary: None,
    };
    let shop = DatabaseSurvey {
        cluster: 0,
        dbname: "shop".to_owned(),
        pool_size: 20,
        pool_mode: PoolMode::Session,
    };
    Survey {
        wall: Timestamp::from_second(60).unwrap(),
        clients: 3,
        visitors: BTreeMap::from([
            (ClientId(4), visitor("shop", "ann")),
            (ClientId(5), visitor("shop", "bob")),
        ]),
        clusters: vec![cluster],
        databases: BTreeMap::from([("shop".to_owned(), shop)]),
    }
}

/// The same, and a client of another cluster's pool, whose numbers are the same.
fn two_clusters() -> Survey {
    let mut survey = survey();
    let mut archive = survey.clusters[0].clone();
    archive.name = "archive".to_owned();
    archive.pools = vec![pool(0, "old", "ann", TOTALS)];
    archive.servers = vec![server(1, 0, ServerPhase::Lent(ClientId(6)))];
    archive.waiting.clear();
    archive.paused = false;
    let (member, host) = ("c".into(), "db7".to_owned());
    archive.primary = Some(Target { member, host, port: 5433, term: None });
    survey.clusters.push(archive);
    survey.visitors.insert(ClientId(6), visitor("old", "ann"));
    let old = DatabaseSurvey {
        cluster: 1,
        dbname: "shop".to_owned(),
        pool_size: 5,
        pool_mode: PoolMode::Transaction,
    };
    survey.databases.insert("old".to_owned(), old);
    survey
}

fn config() -> ProxyConfig {
    ProxyConfig::new("p", Vec::new(), Vec::new())
}

/// The rows, with blanks between the cells; `-` is an empty one.
#[track_caller]
fn check(table: &Table, expected: &[&str]) {
    let cell = |cell: &String| if cell.is_empty() { "-".to_owned() } else { cell.clone() };
    let row = |row: &Vec<String>| row.iter().map(cell).collect::<Vec<String>>().join(" ");
    assert_eq!(table.rows.iter().map(row).collect::<Vec<String>>(), expected);
    assert!(table.rows.iter().all(|row| row.len() == table.columns.len()));
}

#[test]
fn pools_are_counted_by_user() {
    check(
        &pools(&survey()),
        &[
            "shop ann 1 0 0 0 1 0 0 1 0 0 0 0 0 session",
            "shop bob 0 1 0 0 0 0 0 0 0 0 1 1 500000 session",
        ],
    );
}

#[test]
fn clients_and_servers_name_each_other() {
    let since = "1970-01-01 00:00:00 UTC";
    let client = |user: &str, state: &str, rest: &str| {
        format!("C {user} shop {state} 192.0.2.7 5000 192.0.2.1 5432 {since} - {rest} TLS till 0")
    };
    let first = client("ann", "active", "0 0 0 4 1 0");
    let second = client("bob", "waiting", "1 500000 0 5 - 0");
    check(&clients(&survey()), &[&first, &second]);
    let server = |user: &str, state: &str, rest: &str| {
        format!("S {user} shop {state} db1 5432 - 0 1970-01-01 00:00:57 UTC - 0 0 {rest} 0 - - 0")
    };
    let lent = server("ann", "active", "1 1 4");
    let idle = server("ann", "idle", "0 2 -");
    let login = server("bob", "login", "0 3 -");
    check(&servers(&survey()), &[&lent, &idle, &login]);
}

#[test]
fn counters_are_summed_by_database() {
    check(&stats(&survey()), &["shop 6 10 20 40 70 70 9 3 5 10 20 11 7 4"]);
    let mut young = survey();
    young.clusters[0].pools.clear();
    check(&stats(&young), &[]);
    assert_eq!(averages(&Totals::default(), Duration::ZERO).concat(), "0000000");
    check(&stats_totals(&survey()), &["shop 6 10 20 40 70 70 9"]);
    check(&databases(&survey()), &["shop - 0 shop - 20 0 0 session 0 3 1 0"]);
}

#[test]
fn lists_and_settings_have_the_names_that_exporters_look_for() {
    let listed = lists(&survey());
    for expected in ["databases 1", "users 2", "pools 2", "used_clients 3", "login_clients 1"] {
        assert!(listed.rows.iter().any(|row| row.join(" ") == expected), "{expected}");
    }
    let mut config = config();
    config.client_limit = 7;
    let shown = super::config(&config);
    let limit = shown.rows.iter().find(|row| row[0] == "max_client_conn").unwrap();
    assert_eq!(limit[1..], ["7", "10000", "no"]);
}

#[test]
fn clusters_stand_in_one_table_under_the_names_that_clients_know() {
    let survey = two_clusters();
    check(
        &pools(&survey),
        &[
            "old ann 1 0 0 0 1 0 0 0 0 0 0 0 0 transaction",
            "shop ann 1 0 0 0 1 0 0 1 0 0 0 0 0 session",
            "shop bob 0 1 0 0 0 0 0 0 0 0 1 1 500000 session",
        ],
    );
    check(
        &databases(&survey),
        &[
            "old db7 5433 shop - 5 0 0 transaction 0 1 0 0",
            "shop - 0 shop - 20 0 0 session 0 3 1 0",
        ],
    );
    let column = |table: &Table, name: &str| {
        let at = table.columns.iter().position(|column| column.0 == name).unwrap();
        table.rows.iter().map(|row| row[at].clone()).collect::<Vec<String>>()
    };
    assert_eq!(column(&clients(&survey), "link"), ["1", "", "archive/1"]);
    assert_eq!(column(&servers(&survey), "ptr"), ["1", "2", "3", "archive/1"]);
    assert_eq!(column(&stats(&survey), "database"), ["old", "shop"]);
    assert!(lists(&survey).rows.contains(&vec!["used_servers".to_owned(), "4".to_owned()]));
}
