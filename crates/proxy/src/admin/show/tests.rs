use std::sync::Arc;

use super::*;

fn visitor(pool: u32, user: &str) -> Visitor {
    let who = PoolKey { database: "shop".to_owned(), user: user.to_owned() };
    Visitor {
        errand: Errand::Pool(PoolId(pool)),
        who: Arc::new(who),
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

/// Two users of one database: the first has a server, the second waits since 1.5 s.
fn survey() -> Survey {
    let pool = |number: u32, user: &str, totals: Totals| PoolSurvey {
        id: PoolId(number),
        key: PoolKey { database: "shop".to_owned(), user: user.to_owned() },
        totals,
        last: totals,
    };
    let totals =
        Totals { transactions: 3, queries: 5, received: 10, sent: 20, ..Totals::default() };
    let more = Totals { lent_micros: 70, waited_micros: 9, ..totals };
    let waiting = Waiting { pool: Some(PoolId(1)), since: Millis(2_500) };
    Survey {
        now: Millis(4_000),
        wall: Timestamp::from_second(60).unwrap(),
        clients: 3,
        pools: vec![pool(0, "ann", totals), pool(1, "bob", more)],
        period: Duration::from_secs(2),
        servers: vec![
            server(1, 0, ServerPhase::Lent(ClientId(4))),
            server(2, 0, ServerPhase::Idle),
            server(3, 1, ServerPhase::Opening),
        ],
        waiting: BTreeMap::from([(ClientId(5), waiting)]),
        visitors: BTreeMap::from([
            (ClientId(4), visitor(0, "ann")),
            (ClientId(5), visitor(1, "bob")),
        ]),
        paused: true,
        primary: None,
    }
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
        &pools(&survey(), &config()),
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
    let young = Survey { period: Duration::ZERO, pools: Vec::new(), ..survey() };
    check(&stats(&young), &[]);
    assert_eq!(averages(&Totals::default(), Duration::ZERO).concat(), "0000000");
    check(&stats_totals(&survey()), &["shop 6 10 20 40 70 70 9"]);
    check(&databases(&survey(), &config()), &["shop - 0 shop - 20 0 0 session 0 3 1 0"]);
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
