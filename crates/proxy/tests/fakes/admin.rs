//! Operators in the proxy's own database.

use std::collections::BTreeMap;

use crate::fake::{Client, FakeServer, Rig, cluster};
use crate::pools::transaction;
use proxy::PoolMode;
use route::Port;

const READ_WRITE: Port = Port::ReadWrite;

/// A proxy in front of `a`, which leads. `boss` may do everything, `eye` may look.
async fn one(mode: PoolMode) -> (FakeServer, Rig) {
    let a = FakeServer::start("a").await;
    let view = cluster(Some("a"), 1, &[(&a, "primary", 1)]);
    let rig = Rig::start(view, |config| {
        transaction(config);
        config.pool_mode = mode;
        config.admin_users = ["boss".to_owned()].into();
        config.stats_users = ["eye".to_owned()].into();
    })
    .await;
    (a, rig)
}

async fn boss(rig: &Rig) -> Client {
    Client::open_as(rig.address(READ_WRITE), "boss", "pgherd").await.unwrap()
}

/// Some columns of the only row.
async fn only(client: &mut Client, query: &str, columns: &[&str]) -> Vec<String> {
    let mut rows = client.rows(query).await;
    let row: BTreeMap<String, String> = rows.pop().unwrap();
    assert!(rows.is_empty(), "{query}: {rows:?}");
    columns.iter().map(|column| row[*column].clone()).collect()
}

#[tokio::test]
async fn operators_see_pools_clients_servers_and_what_they_did() {
    let (_a, rig) = one(PoolMode::Transaction).await;
    let mut client = Client::open(rig.address(READ_WRITE)).await.unwrap();
    let mut boss = boss(&rig).await;
    let queries = ["begin", "select 1", "commit", "select 2"];
    for query in queries {
        client.query(query).await.unwrap();
    }
    let pool = ["database", "user", "cl_active", "sv_active", "sv_idle", "pool_mode"];
    let idle = only(&mut boss, "SHOW POOLS;", &pool).await;
    assert_eq!(idle, ["app", "app", "1", "0", "1", "transaction"]);
    let counted = ["database", "total_xact_count", "total_query_count", "total_received"];
    // With type, length, and the zero at the end.
    let bytes: usize = queries.iter().map(|query| query.len() + 6).sum();
    let done = only(&mut boss, "show stats", &counted).await;
    assert_eq!(done, ["app", "2", "4", &bytes.to_string()]);
    let time = only(&mut boss, "show stats_totals", &["xact_time", "wait_time"]).await;
    assert!(time.iter().all(|micros| micros.parse::<u64>().unwrap() < 20_000_000), "{time:?}");
    assert_ne!(time[0], "0");

    client.query("begin").await.unwrap();
    assert_eq!(only(&mut boss, "SHOW POOLS", &pool[2..5]).await, ["1", "1", "0"]);
    let server = only(&mut boss, "SHOW SERVERS", &["type", "state", "ptr", "link"]).await;
    let clients = boss.rows("SHOW CLIENTS").await;
    let app = clients.iter().find(|row| row["user"] == "app").unwrap();
    assert_eq!(server, ["S", "active", &app["link"], &app["ptr"]]);
    assert_eq!(clients.len(), 2, "the operator is one of them");
    let lists = boss.rows("SHOW LISTS").await;
    let used = lists.iter().find(|row| row["list"] == "used_clients").unwrap();
    assert_eq!(used["items"], "2");
    assert_eq!(only(&mut boss, "SHOW DATABASES", &["name", "paused"]).await, ["app", "0"]);
    assert!(boss.rows("SHOW CONFIG").await.iter().any(|row| row["key"] == "max_client_conn"));
    assert!(only(&mut boss, "SHOW VERSION", &["version"]).await[0].starts_with("pgherd "));
}

#[tokio::test]
async fn only_those_come_in_who_are_named_and_some_may_only_look() {
    let (_a, rig) = one(PoolMode::Transaction).await;
    let address = rig.address(READ_WRITE);
    let refused = Client::open_as(address, "app", "pgherd").await.err().unwrap();
    assert_eq!(refused.sqlstate, "28000");
    let mut eye = Client::open_as(rig.address(Port::ReadOnly), "eye", "pgbouncer").await.unwrap();
    assert!(eye.rows("SHOW POOLS").await.is_empty(), "its own database has no pool");
    for command in ["PAUSE", "RESUME", "RECONNECT", "RELOAD", "KILL 1"] {
        assert_eq!(eye.query(command).await.unwrap_err().sqlstate, "42501", "{command}");
    }
    assert_eq!(eye.query("SELECT 1").await.unwrap_err().sqlstate, "42601");
    assert_eq!(eye.query(";").await.unwrap(), "");
    // A Parse, a Bind and a Sync: one error, and the session goes on.
    eye.send(b"P\0\0\0\x08\0\0\0\0B\0\0\0\x0c\0\0\0\0\0\0\0\0S\0\0\0\x04").await;
    assert_eq!(eye.read_answer().await.unwrap_err().sqlstate, "0A000");
    assert_eq!(eye.query("show help").await.unwrap(), "SHOW");
}

#[tokio::test]
async fn a_pause_waits_for_transactions_and_holds_the_next_ones() {
    let (_a, rig) = one(PoolMode::Transaction).await;
    let mut busy = Client::open(rig.address(READ_WRITE)).await.unwrap();
    let mut next = Client::open(rig.address(READ_WRITE)).await.unwrap();
    let (mut first, mut second) = (boss(&rig).await, boss(&rig).await);
    busy.query("begin").await.unwrap();
    first.send_query("PAUSE").await;
    rig.until(|status| status.routes.paused).await;
    assert_eq!(second.query("PAUSE").await.unwrap_err().sqlstate, "55000");
    next.send_query("select 1").await;
    rig.until(|status| status.routes.waiting == 1).await;
    let waits = ["cl_waiting", "sv_active"];
    assert_eq!(only(&mut second, "SHOW POOLS", &waits).await, ["1", "1"]);
    assert_eq!(busy.query("commit").await.unwrap(), "a:commit");
    assert_eq!(first.read_answer().await.unwrap(), "PAUSE");
    assert_eq!(only(&mut second, "SHOW POOLS", &waits).await, ["1", "0"]);
    assert_eq!(second.query("RESUME").await.unwrap(), "RESUME");
    assert_eq!(next.read_answer().await.unwrap(), "a:select 1");
    assert_eq!(second.query("RESUME").await.unwrap_err().sqlstate, "55000");
    let waited = only(&mut second, "SHOW STATS", &["total_wait_time"]).await;
    assert_ne!(waited, ["0"]);
}

#[tokio::test]
async fn a_pause_that_its_operator_gives_up_is_taken_back() {
    let (_a, rig) = one(PoolMode::Transaction).await;
    let mut busy = Client::open(rig.address(READ_WRITE)).await.unwrap();
    busy.query("begin").await.unwrap();
    let mut cancels = boss(&rig).await;
    cancels.send_query("PAUSE").await;
    rig.until(|status| status.routes.paused).await;
    Client::cancel(rig.address(READ_WRITE), &cancels.key).await;
    assert_eq!(cancels.read_answer().await.unwrap_err().sqlstate, "57014");
    rig.until(|status| !status.routes.paused).await;
    let mut leaves = boss(&rig).await;
    leaves.send_query("PAUSE").await;
    rig.until(|status| status.routes.paused).await;
    leaves.goodbye().await;
    rig.until(|status| !status.routes.paused).await;
    let mut waits = boss(&rig).await;
    waits.send_query("PAUSE").await;
    rig.until(|status| status.routes.paused).await;
    assert_eq!(cancels.query("RESUME").await.unwrap(), "RESUME");
    assert_eq!(waits.read_answer().await.unwrap_err().sqlstate, "55000");
}

#[tokio::test]
async fn connections_are_replaced_and_clients_ended_on_demand() {
    let (a, rig) = one(PoolMode::Transaction).await;
    let mut client = Client::open(rig.address(READ_WRITE)).await.unwrap();
    let mut boss = boss(&rig).await;
    assert_eq!(client.query("select 1").await.unwrap(), "a:select 1");
    let before = only(&mut boss, "SHOW SERVERS", &["ptr"]).await;
    assert_eq!(boss.query("RECONNECT").await.unwrap(), "RECONNECT");
    a.until_sessions(0).await;
    assert_eq!(client.query("select 2").await.unwrap(), "a:select 2");
    assert_ne!(only(&mut boss, "SHOW SERVERS", &["ptr"]).await, before);
    assert_eq!(boss.query("RELOAD").await.unwrap(), "RELOAD");

    let clients = boss.rows("SHOW CLIENTS").await;
    let app = clients.iter().find(|row| row["user"] == "app").unwrap();
    let kill = format!("KILL {}", app["ptr"]);
    assert_eq!(boss.query(&kill).await.unwrap(), "KILL");
    assert_eq!(client.last_word().await, "57P01");
    drop(client);
    while boss.rows("SHOW CLIENTS").await.len() > 1 {}
    assert_eq!(boss.query(&kill).await.unwrap_err().sqlstate, "42704");
    let own = boss.rows("SHOW CLIENTS").await.pop().unwrap();
    boss.send_query(&format!("KILL {}", own["ptr"])).await;
    rig.until(|status| status.clients == 0).await;
}

#[tokio::test]
async fn clients_that_keep_their_connection_are_counted_by_transaction() {
    let (_a, rig) = one(PoolMode::Session).await;
    let mut client = Client::open(rig.address(READ_WRITE)).await.unwrap();
    let mut boss = boss(&rig).await;
    for query in ["select 1", "begin", "select 2", "rollback", "begin"] {
        client.query(query).await.unwrap();
    }
    let counted = ["total_xact_count", "total_query_count"];
    assert_eq!(only(&mut boss, "SHOW STATS", &counted).await, ["2", "4"], "the last one goes on");
}
