//! How long clients and connections of pools last, and how many there are.

use std::time::Duration;

use config::{ProxyAuth, ProxyLimits, ProxySecurity};
use proxy::{PoolMode, ProxyConfig};
use route::Port;
use tokio::time::timeout;
use types::Millis;

use crate::fake::{Client, FakeServer, PATIENCE, Rig, cluster};

/// It ends with the second look or the third one: a busy machine has more than a second for what a
/// client does between.
const SHORT: Millis = Millis(1500);

/// A proxy with these limits in front of `a`, which leads.
async fn limited(limits: ProxyLimits, change: impl FnOnce(&mut ProxyConfig)) -> (FakeServer, Rig) {
    let a = FakeServer::start("a").await;
    let view = cluster(Some("a"), 1, &[(&a, "primary", 1)]);
    let rig = Rig::start(view, |config| {
        config.pool_mode = PoolMode::Transaction;
        config.security = ProxySecurity { auth: ProxyAuth::Trust, ..ProxySecurity::default() };
        config.limits = limits;
        change(config);
    })
    .await;
    (a, rig)
}

async fn open(rig: &Rig) -> Client {
    Client::open(rig.address(Port::ReadWrite)).await.unwrap()
}

/// The proxy looks at the time once a second, so each of these takes seconds: they wait together.
#[tokio::test]
async fn what_lasts_too_long_is_ended() {
    tokio::join!(
        a_connection_that_nobody_uses_is_closed(),
        a_client_that_is_silent_is_told_to_go(),
        a_silent_transaction_ends_with_its_connection(),
        a_long_statement_is_cancelled_and_then_given_up(),
        a_statement_that_ends_when_it_is_cancelled_keeps_its_client(),
        what_follows_a_long_statement_waits_for_its_cancelling(false),
        what_follows_a_long_statement_waits_for_its_cancelling(true),
        a_message_that_is_begun_is_ended_in_time(),
        an_old_connection_is_closed_when_it_is_given_back(),
    );
}

async fn a_connection_that_nobody_uses_is_closed() {
    let limits = ProxyLimits { server_idle_timeout: SHORT, ..ProxyLimits::default() };
    let (a, rig) = limited(limits, |_| {}).await;
    let (mut idle, mut busy) = (open(&rig).await, open(&rig).await);
    assert_eq!(busy.query("begin").await.unwrap(), "a:begin");
    assert_eq!(idle.query("select 1").await.unwrap(), "a:select 1");
    a.until_sessions(1).await;
    assert_eq!(busy.query("commit").await.unwrap(), "a:commit", "it was in use");
    a.until_sessions(0).await;
    rig.until(|status| status.routes.connections.is_empty()).await;
    assert_eq!(idle.query("select 2").await.unwrap(), "a:select 2");
}

async fn an_old_connection_is_closed_when_it_is_given_back() {
    let limits = ProxyLimits { server_lifetime: Millis(1), ..ProxyLimits::default() };
    let (a, rig) = limited(limits, |config| config.pool_size = 1).await;
    let (mut first, mut second) = (open(&rig).await, open(&rig).await);
    a.until_sessions(0).await;
    assert_eq!(first.query("begin").await.unwrap(), "a:begin");
    second.send_query("begin").await;
    rig.until(|status| status.routes.waiting == 1).await;
    assert_eq!(first.query("hello").await.unwrap(), "a:hello");
    assert_eq!(first.query("commit").await.unwrap(), "a:commit");
    assert_eq!(second.read_answer().await.unwrap(), "a:begin");
    a.until_sessions(1).await;
    second.send_query("hang").await;
    a.until_queries(5).await;
    Client::cancel(rig.address(Port::ReadWrite), &second.key).await;
    a.until_cancelled(1).await;
    // The first answered the login, the second the first client.
    assert_eq!(a.cancelled()[0][..4], 3u32.to_be_bytes(), "the second client has a new one");
}

async fn a_client_that_is_silent_is_told_to_go() {
    let limits = ProxyLimits { client_idle_timeout: SHORT, ..ProxyLimits::default() };
    let (a, rig) = limited(limits, |_| {}).await;
    let (mut idle, mut busy) = (open(&rig).await, open(&rig).await);
    assert_eq!(busy.query("begin").await.unwrap(), "a:begin");
    assert_eq!(idle.query("select 1").await.unwrap(), "a:select 1");
    assert_eq!(idle.last_word().await, "57P05");
    assert_eq!(
        busy.query("select 2").await.unwrap(),
        "a:select 2",
        "a transaction is another thing"
    );
    assert_eq!(busy.query("commit").await.unwrap(), "a:commit");
    assert_eq!(busy.last_word().await, "57P05");
    rig.until(|status| status.clients == 0).await;
    a.until_sessions(2).await;
}

async fn a_silent_transaction_ends_with_its_connection() {
    let limits = ProxyLimits { idle_transaction_timeout: SHORT, ..ProxyLimits::default() };
    let (a, rig) = limited(limits, |_| {}).await;
    let (mut idle, mut runs) = (open(&rig).await, open(&rig).await);
    assert_eq!(runs.query("begin").await.unwrap(), "a:begin");
    runs.send_query("hang").await;
    a.until_queries(2).await;
    assert_eq!(idle.query("begin").await.unwrap(), "a:begin");
    assert_eq!(idle.last_word().await, "25P03");
    a.until_sessions(1).await;
    rig.until(|status| status.clients == 1).await;
}

async fn a_long_statement_is_cancelled_and_then_given_up() {
    let limits = ProxyLimits { query_timeout: SHORT, ..ProxyLimits::default() };
    let (a, rig) = limited(limits, |_| {}).await;
    let (mut write, mut block, mut idle) = (open(&rig).await, open(&rig).await, open(&rig).await);
    assert_eq!(idle.query("begin").await.unwrap(), "a:begin");
    assert_eq!(block.query("begin").await.unwrap(), "a:begin");
    block.send_query("hang update t").await;
    write.send_query("hang update t").await;
    a.until_cancelled(2).await;
    assert_eq!(block.last_word().await, "57014", "the block did not commit");
    assert_eq!(write.last_word().await, "08007", "this one may have");
    assert_eq!(idle.query("commit").await.unwrap(), "a:commit", "nothing ran for it");
}

async fn a_statement_that_ends_when_it_is_cancelled_keeps_its_client() {
    let limits = ProxyLimits { query_timeout: SHORT, ..ProxyLimits::default() };
    let (_a, rig) = limited(limits, |_| {}).await;
    let mut client = open(&rig).await;
    let error = client.query("until cancelled").await.unwrap_err();
    assert_eq!(error.sqlstate, "57014");
    assert_eq!(client.query("select 1").await.unwrap(), "a:select 1");
}

/// It would hit a statement that nobody wants cancelled.
async fn what_follows_a_long_statement_waits_for_its_cancelling(in_block: bool) {
    let limits = ProxyLimits { query_timeout: SHORT, ..ProxyLimits::default() };
    let (a, rig) = limited(limits, |_| {}).await;
    let mut client = open(&rig).await;
    if in_block {
        assert_eq!(client.query("begin").await.unwrap(), "a:begin");
    }
    a.hold_cancels(true);
    let error = client.query("until cancelled").await.unwrap_err();
    assert_eq!(error.sqlstate, "57014");
    client.send_query("select 1").await;
    let early = timeout(Duration::from_millis(300), client.read_answer()).await;
    assert!(early.is_err(), "in a block: {in_block}: the server may be signalled once more");
    a.hold_cancels(false);
    assert_eq!(timeout(PATIENCE, client.read_answer()).await.unwrap().unwrap(), "a:select 1");
}

async fn a_message_that_is_begun_is_ended_in_time() {
    let limits = ProxyLimits { client_login_timeout: SHORT, ..ProxyLimits::default() };
    let (_a, rig) = limited(limits, |_| {}).await;
    let (mut slow, mut idle) = (open(&rig).await, open(&rig).await);
    // A Query of 100 bytes, of which some are there.
    slow.send(b"Q\0\0\0\x64select").await;
    assert_eq!(slow.last_word().await, "08P01");
    assert_eq!(idle.query("select 1").await.unwrap(), "a:select 1", "silence is no message");
}

#[tokio::test]
async fn clients_of_one_user_have_a_limit() {
    let limits = ProxyLimits { client_limit_per_user: 2, ..ProxyLimits::default() };
    let (_a, rig) = limited(limits, |_| {}).await;
    let first = open(&rig).await;
    let mut second = open(&rig).await;
    let Err(refused) = Client::open(rig.address(Port::ReadWrite)).await else {
        panic!("there are two");
    };
    assert_eq!(refused.sqlstate, "53300");
    assert!(refused.text.contains("client_limit_per_user is 2"), "{}", refused.text);
    assert_eq!(second.query("select 1").await.unwrap(), "a:select 1");
    first.goodbye().await;
    rig.until(|status| status.clients == 1).await;
    open(&rig).await;
}

#[tokio::test]
async fn connections_of_one_database_have_a_limit() {
    let limits = ProxyLimits { max_db_connections: 1, ..ProxyLimits::default() };
    let (a, rig) = limited(limits, |_| {}).await;
    let (mut first, mut second) = (open(&rig).await, open(&rig).await);
    assert_eq!(first.query("begin").await.unwrap(), "a:begin");
    second.send_query("select 1").await;
    rig.until(|status| status.routes.waiting == 1).await;
    a.until_sessions(1).await;
    assert_eq!(first.query("commit").await.unwrap(), "a:commit");
    assert_eq!(second.read_answer().await.unwrap(), "a:select 1");
}
