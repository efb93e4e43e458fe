//! Clients of pools: what each gets when its primary goes, and who has which connection.

use std::time::Duration;

use crate::fake::{Client, FakeServer, Rig, cluster};
use config::{ProxyAuth, ProxySecurity};
use proxy::{PoolMode, ProxyConfig};
use route::Port;

const READ_WRITE: Port = Port::ReadWrite;

pub(crate) fn transaction(config: &mut ProxyConfig) {
    config.pool_mode = PoolMode::Transaction;
    config.security = ProxySecurity { auth: ProxyAuth::Trust, ..ProxySecurity::default() };
    config.pool_size = 2;
}

/// A proxy in front of `a`, which leads, and of `b`.
async fn two() -> (FakeServer, FakeServer, Rig) {
    let (a, b) = (FakeServer::start("a").await, FakeServer::start("b").await);
    let members = [(&a, "primary", 1), (&b, "replica", 0)];
    let rig = Rig::start(cluster(Some("a"), 1, &members), transaction).await;
    (a, b, rig)
}

/// `b` leads.
fn fail_over(rig: &Rig, a: &FakeServer, b: &FakeServer) {
    let members = [(a, "primary", 1), (b, "primary", 2)];
    rig.views.send_replace((Some(cluster(Some("b"), 2, &members)), true));
}

#[tokio::test]
async fn many_clients_share_few_connections() {
    let (a, _b, rig) = two().await;
    let mut clients = Vec::new();
    for _ in 0..5 {
        clients.push(Client::open(rig.address(READ_WRITE)).await.unwrap());
    }
    for round in 0..3 {
        for client in &mut clients {
            let query = format!("select {round}");
            assert_eq!(client.query(&query).await.unwrap(), format!("a:{query}"));
        }
    }
    a.until_sessions(1).await;
    // Two at once, each in a transaction of its own; a third waits for one of them to end.
    assert_eq!(clients[0].query("begin").await.unwrap(), "a:begin");
    assert_eq!(clients[1].query("begin").await.unwrap(), "a:begin");
    a.until_sessions(2).await;
    clients[2].send_query("select 3").await;
    rig.until(|status| status.routes.waiting == 1).await;
    assert_eq!(clients[0].query("commit").await.unwrap(), "a:commit");
    assert_eq!(clients[2].read_answer().await.unwrap(), "a:select 3");
    assert_eq!(clients[1].query("commit").await.unwrap(), "a:commit");
    a.until_sessions(2).await;
}

#[tokio::test]
async fn who_has_begun_nothing_is_served_by_the_new_primary() {
    let (a, b, rig) = two().await;
    let mut idle = Client::open(rig.address(READ_WRITE)).await.unwrap();
    assert_eq!(idle.query("select 1").await.unwrap(), "a:select 1");
    // No primary at all for a moment.
    rig.views.send_replace((Some(cluster(None, 1, &[(&a, "demoted", 1)])), true));
    rig.until(|status| status.routes.read_write.is_none()).await;
    a.until_sessions(0).await;
    idle.send_query("select 2").await;
    rig.until(|status| status.routes.waiting == 1).await;
    fail_over(&rig, &a, &b);
    assert_eq!(idle.read_answer().await.unwrap(), "b:select 2");
}

#[tokio::test]
async fn a_transaction_that_surely_did_not_commit_is_told_so_and_the_client_goes_on() {
    let (a, b, rig) = two().await;
    let mut idle = Client::open(rig.address(READ_WRITE)).await.unwrap();
    let mut busy = Client::open(rig.address(READ_WRITE)).await.unwrap();
    for client in [&mut idle, &mut busy] {
        assert_eq!(client.query("begin").await.unwrap(), "a:begin");
    }
    busy.send_query("hang update t").await;
    a.until_queries(3).await;
    fail_over(&rig, &a, &b);
    a.until_sessions(0).await;
    assert_eq!(busy.read_answer().await.unwrap_err().sqlstate, "40001");
    assert_eq!(idle.query("select 1").await.unwrap_err().sqlstate, "40001");
    for client in [&mut idle, &mut busy] {
        assert_eq!(client.query("select 2").await.unwrap_err().sqlstate, "25P02");
        assert_eq!(client.query("rollback").await.unwrap(), "ROLLBACK");
        assert_eq!(client.query("select 3").await.unwrap(), "b:select 3");
    }
}

/// It has asked for nothing since its server was lost, so the commit is what it is told by.
#[tokio::test]
async fn a_commit_of_a_lost_transaction_is_an_error() {
    let (a, b, rig) = two().await;
    let mut client = Client::open(rig.address(READ_WRITE)).await.unwrap();
    assert_eq!(client.query("begin").await.unwrap(), "a:begin");
    assert_eq!(client.query("update t").await.unwrap(), "a:update t");
    fail_over(&rig, &a, &b);
    a.until_sessions(0).await;
    assert_eq!(client.query("commit").await.unwrap_err().sqlstate, "40001");
    assert_eq!(client.query("select 1").await.unwrap(), "b:select 1", "it is in no transaction");
}

#[tokio::test]
async fn a_commit_or_a_write_of_its_own_without_an_answer_is_in_doubt() {
    let (a, b, rig) = two().await;
    let mut commit = Client::open(rig.address(READ_WRITE)).await.unwrap();
    let mut write = Client::open(rig.address(READ_WRITE)).await.unwrap();
    assert_eq!(commit.query("begin").await.unwrap(), "a:begin");
    a.be_silent();
    commit.send_query("commit").await;
    // A silent server lets no second connection in, so nothing of this one is sent.
    write.send_query("hang update t").await;
    a.until_queries(2).await;
    rig.until(|status| status.routes.waiting == 1).await;
    fail_over(&rig, &a, &b);
    assert_eq!(commit.last_word().await, "08007");
    // It is sent to the new primary, which ends by itself: that is no different.
    b.until_queries(1).await;
    b.kill();
    assert_eq!(write.last_word().await, "08007");
}

/// More than sockets hold is on its way both ways, and everybody waits for everybody.
#[tokio::test]
async fn a_client_that_asks_on_without_reading_gets_everything_in_the_end() {
    let (_a, _b, rig) = two().await;
    let mut client = Client::open(rig.address(READ_WRITE)).await.unwrap();
    for _ in 0..100 {
        client.send_query("big").await;
    }
    for _ in 0..100 {
        assert_eq!(client.read_answer().await.unwrap(), "a:big");
    }
}

/// The same where the proxy itself answers.
#[tokio::test]
async fn errors_of_a_lost_transaction_wait_for_a_client_that_does_not_read() {
    const STATEMENTS: usize = 100_000;
    let (a, b, rig) = two().await;
    let mut client = Client::open(rig.address(READ_WRITE)).await.unwrap();
    client.query("begin").await.unwrap();
    fail_over(&rig, &a, &b);
    a.until_sessions(0).await;
    client.send_queries("select 1", STATEMENTS).await;
    for number in 0..STATEMENTS {
        let sqlstate = client.read_answer().await.unwrap_err().sqlstate;
        assert_eq!(sqlstate, if number == 0 { "40001" } else { "25P02" });
    }
    assert_eq!(client.query("rollback").await.unwrap(), "ROLLBACK");
}

#[tokio::test]
async fn a_torn_answer_cannot_be_followed_by_anything() {
    let (a, b, rig) = two().await;
    let mut torn = Client::open(rig.address(READ_WRITE)).await.unwrap();
    torn.query("begin").await.unwrap();
    torn.send_query("half").await;
    torn.read_some().await;
    fail_over(&rig, &a, &b);
    assert_eq!(torn.last_word().await, "");
}

#[tokio::test]
async fn who_waits_in_vain_is_told_why() {
    let a = FakeServer::start("a").await;
    let view = cluster(Some("a"), 1, &[(&a, "primary", 1)]);
    let rig = Rig::start(view, |config| {
        transaction(config);
        config.hold_timeout = Some(Duration::from_millis(50));
        config.pool_timeout = Duration::from_millis(50);
    })
    .await;
    let mut first = Client::open(rig.address(READ_WRITE)).await.unwrap();
    let mut second = Client::open(rig.address(READ_WRITE)).await.unwrap();
    let mut third = Client::open(rig.address(READ_WRITE)).await.unwrap();
    first.query("begin").await.unwrap();
    second.query("begin").await.unwrap();
    let error = third.query("select 1").await.unwrap_err();
    assert_eq!(error.sqlstate, "53300");
    assert!(error.text.contains("pool_timeout"), "{}", error.text);
    rig.views.send_replace((Some(cluster(None, 2, &[])), true));
    let mut fourth = Client::open(rig.address(READ_WRITE)).await.unwrap();
    let error = fourth.query("select 1").await.unwrap_err();
    assert_eq!(error.sqlstate, "57P03");
    assert!(error.text.contains("no member holds the leader key"), "{}", error.text);
}

#[tokio::test]
async fn who_is_told_to_go_while_idle_gets_another_connection() {
    let (a, _b, rig) = two().await;
    let mut client = Client::open(rig.address(READ_WRITE)).await.unwrap();
    // The server ends the session for a reason of its own.
    let error = client.query("fatal").await.unwrap_err();
    assert_eq!(error.sqlstate, "XX000");
    a.until_sessions(0).await;
    let mut client = Client::open(rig.address(READ_WRITE)).await.unwrap();
    assert_eq!(client.query("select 1").await.unwrap(), "a:select 1");
}

#[tokio::test]
async fn cancel_requests_reach_the_connection_that_the_client_has_now() {
    let (a, _b, rig) = two().await;
    let mut first = Client::open(rig.address(READ_WRITE)).await.unwrap();
    let mut second = Client::open(rig.address(READ_WRITE)).await.unwrap();
    first.query("begin").await.unwrap();
    second.send_query("hang select f()").await;
    a.until_queries(2).await;
    let key = second.key.clone();
    Client::cancel(rig.address(READ_WRITE), &key).await;
    a.until_cancelled(1).await;
    let cancelled = a.cancelled();
    assert_ne!(cancelled[0], key, "the server gets a key of its own");
    assert_eq!(cancelled[0][..4], 2u32.to_be_bytes(), "of the second connection");
    // Nothing runs for the first client between its statements, and nobody has a made-up key.
    Client::cancel(rig.address(READ_WRITE), &first.key).await;
    Client::cancel(rig.address(READ_WRITE), &[7; 8]).await;
    assert_eq!(a.cancelled().len(), 1);
}

#[tokio::test]
async fn a_connection_is_lent_again_when_the_cancel_request_has_arrived() {
    let a = FakeServer::start("a").await;
    let view = cluster(Some("a"), 1, &[(&a, "primary", 1)]);
    let rig = Rig::start(view, |config| {
        transaction(config);
        config.pool_size = 1;
    })
    .await;
    let mut client = Client::open(rig.address(READ_WRITE)).await.unwrap();
    let mut next = Client::open(rig.address(READ_WRITE)).await.unwrap();
    client.send_query("until cancelled").await;
    rig.until(|status| status.routes.busy == 1).await;
    next.send_query("select 1").await;
    Client::cancel(rig.address(READ_WRITE), &client.key.clone()).await;
    assert_eq!(client.read_answer().await.unwrap_err().sqlstate, "57014");
    assert_eq!(next.read_answer().await.unwrap(), "a:select 1");
}

/// Each finds the other's settings in the one connection, and must not give it back for that.
#[tokio::test]
async fn clients_of_different_settings_take_turns() {
    let a = FakeServer::start("a").await;
    let view = cluster(Some("a"), 1, &[(&a, "primary", 1)]);
    let rig = Rig::start(view, |config| {
        transaction(config);
        config.pool_size = 1;
    })
    .await;
    let mut clients = Vec::new();
    for number in 0..4 {
        let mut client = Client::open(rig.address(READ_WRITE)).await.unwrap();
        client.query(&format!("set work_mem to '{number}MB'")).await.unwrap();
        clients.push(tokio::spawn(async move {
            for _ in 0..100 {
                assert_eq!(client.query("select 1").await.unwrap(), "a:select 1");
            }
        }));
    }
    for client in clients {
        client.await.unwrap();
    }
}

#[tokio::test]
async fn a_client_that_leaves_in_a_transaction_takes_its_connection_along() {
    let (a, _b, rig) = two().await;
    let mut client = Client::open(rig.address(READ_WRITE)).await.unwrap();
    client.query("begin").await.unwrap();
    client.goodbye().await;
    a.until_sessions(0).await;
    rig.until(|status| status.clients == 0 && status.routes.connections.is_empty()).await;
}

#[tokio::test]
async fn a_session_is_taken_back_to_its_beginning_for_the_next_client() {
    let a = FakeServer::start("a").await;
    let view = cluster(Some("a"), 1, &[(&a, "primary", 1)]);
    let rig = Rig::start(view, |config| {
        transaction(config);
        config.pool_mode = PoolMode::Session;
    })
    .await;
    let mut first = Client::open(rig.address(READ_WRITE)).await.unwrap();
    assert_eq!(first.query("select 1").await.unwrap(), "a:select 1");
    first.goodbye().await;
    a.until_queries(2).await;
    let mut second = Client::open(rig.address(READ_WRITE)).await.unwrap();
    assert_eq!(second.query("select 2").await.unwrap(), "a:select 2");
    a.until_sessions(1).await;
    // Planned or not, a session cannot be moved.
    rig.views.send_replace((Some(cluster(None, 1, &[(&a, "demoted", 1)])), true));
    assert_eq!(second.last_word().await, "57P01");
}
