//! Sessions over real sockets, against a small server that speaks just enough of the protocol.

use std::time::Duration;

use crate::fake::{Client, FakeServer, PATIENCE, Rig, cluster, cluster_of};
use crate::pools::transaction;
use route::Port;
use tokio::time::timeout;

const READ_WRITE: Port = Port::ReadWrite;

#[tokio::test]
async fn a_session_is_relayed_and_counted() {
    let a = FakeServer::start("a").await;
    let rig = Rig::start(cluster(Some("a"), 1, &[(&a, "primary", 1)]), |_| {}).await;
    let mut client = Client::open(rig.address(READ_WRITE)).await.unwrap();
    assert_eq!(client.query("one").await.unwrap(), "a:one");
    assert_eq!(client.query("two").await.unwrap(), "a:two");
    rig.until(|status| status.routes.metrics.read_write.connected == 1).await;
    client.goodbye().await;
    rig.until(|status| status.clients == 0).await;
    assert_eq!(rig.status.borrow().routes.metrics.read_write.server_lost, 0);
}

#[tokio::test]
async fn encryption_is_refused_and_the_client_goes_on() {
    let a = FakeServer::start("a").await;
    let rig = Rig::start(cluster(Some("a"), 1, &[(&a, "primary", 1)]), |_| {}).await;
    let mut client = Client::connect(rig.address(READ_WRITE)).await;
    for code in [80_877_104, 80_877_103] {
        assert_eq!(client.ask_encryption(code).await, b'N');
    }
    client.start().await.unwrap();
    assert_eq!(client.query("x").await.unwrap(), "a:x");
}

#[tokio::test]
async fn a_failover_ends_old_sessions_and_leads_new_ones_to_the_new_primary() {
    let (a, b) = (FakeServer::start("a").await, FakeServer::start("b").await);
    let members = [(&a, "primary", 1), (&b, "replica", 0)];
    let rig = Rig::start(cluster(Some("a"), 1, &members), |_| {}).await;
    let mut idle = Client::open(rig.address(READ_WRITE)).await.unwrap();
    let mut busy = Client::open(rig.address(READ_WRITE)).await.unwrap();
    let mut torn = Client::open(rig.address(READ_WRITE)).await.unwrap();
    assert_eq!(idle.query("x").await.unwrap(), "a:x");
    busy.send_query("hang").await;
    torn.send_query("half").await;
    torn.read_some().await;
    a.until_queries(3).await;
    rig.views.send_replace((Some(cluster(Some("b"), 2, &[(&a, "primary", 1)])), true));
    assert_eq!(idle.last_word().await, "57P01");
    assert_eq!(busy.last_word().await, "08007");
    assert_eq!(torn.last_word().await, "", "no error inside of a message");
    a.until_sessions(0).await;
    // The new primary is not published yet: a client waits for it.
    let waits = tokio::spawn(Client::open(rig.address(READ_WRITE)));
    rig.until(|status| status.routes.waiting == 1).await;
    let members = [(&a, "primary", 1), (&b, "primary", 2)];
    rig.views.send_replace((Some(cluster(Some("b"), 2, &members)), true));
    let mut served = waits.await.unwrap().unwrap();
    assert_eq!(served.query("y").await.unwrap(), "b:y");
    assert_eq!(rig.status.borrow().routes.metrics.read_write.cut_unplanned, 3);
}

#[tokio::test]
async fn who_waits_in_vain_is_told_why() {
    let rig = Rig::start(cluster(None, 0, &[]), |config| {
        config.hold_timeout = Some(Duration::from_millis(50));
    })
    .await;
    let mut client = Client::connect(rig.address(READ_WRITE)).await;
    client.send_startup().await;
    let error = client.read_error().await;
    assert_eq!(error.sqlstate, "57P03");
    assert!(error.text.contains("no member holds the leader key"), "{}", error.text);
    let mut reader = Client::connect(rig.address(Port::ReadOnly)).await;
    reader.send_startup().await;
    assert_eq!(reader.last_word().await, "57P03");
}

#[tokio::test]
async fn a_primary_that_is_starting_is_tried_until_it_answers() {
    let a = FakeServer::start("a").await;
    a.refuse_sessions(3);
    let rig = Rig::start(cluster(Some("a"), 1, &[(&a, "primary", 1)]), |_| {}).await;
    let mut client = Client::open(rig.address(READ_WRITE)).await.unwrap();
    assert_eq!(client.query("x").await.unwrap(), "a:x");
    assert_eq!(rig.status.borrow().routes.metrics.read_write.connect_failures, 3);
}

#[tokio::test]
async fn a_silent_primary_costs_nothing_but_time_when_another_takes_over() {
    let (a, b) = (FakeServer::start("a").await, FakeServer::start("b").await);
    a.be_silent();
    let rig = Rig::start(cluster(Some("a"), 1, &[(&a, "primary", 1)]), |_| {}).await;
    let opening = tokio::spawn(Client::open(rig.address(READ_WRITE)));
    rig.until(|status| status.routes.connecting == 1).await;
    let members = [(&a, "primary", 1), (&b, "primary", 2)];
    rig.views.send_replace((Some(cluster(Some("b"), 2, &members)), true));
    let mut client = opening.await.unwrap().unwrap();
    assert_eq!(client.query("x").await.unwrap(), "b:x");
}

#[tokio::test]
async fn a_cancel_request_reaches_the_server_of_its_session() {
    let (a, b) = (FakeServer::start("a").await, FakeServer::start("b").await);
    let members = [(&a, "primary", 1), (&b, "replica", 0)];
    let rig = Rig::start(cluster(Some("a"), 1, &members), |_| {}).await;
    let mut writer = Client::open(rig.address(READ_WRITE)).await.unwrap();
    let mut reader = Client::open(rig.address(Port::ReadOnly)).await.unwrap();
    // What runs is cancelled, through either port; the key alone says where.
    reader.send_query("hang").await;
    b.until_queries(1).await;
    Client::cancel(rig.address(READ_WRITE), &reader.key).await;
    b.until_cancelled(1).await;
    assert_eq!(b.cancelled()[0][..8], [&1_u32.to_be_bytes()[..], b"bbbb"].concat(), "its own key");
    // Nothing runs, or it is a commit, which would go on without its standby.
    Client::cancel(rig.address(READ_WRITE), &writer.key).await;
    a.be_silent();
    writer.send_query("commit").await;
    a.until_queries(1).await;
    Client::cancel(rig.address(READ_WRITE), &writer.key).await;
    // A key of a session that has ended goes nowhere.
    let key = reader.key.clone();
    reader.goodbye().await;
    rig.until(|status| status.clients == 1).await;
    Client::cancel(rig.address(READ_WRITE), &key).await;
    assert_eq!((a.cancelled().len(), b.cancelled().len()), (0, 1));
}

/// A client that is told too early may have its next statement hit.
#[tokio::test]
async fn who_cancels_is_told_when_the_server_has_taken_it() {
    for pooled in [false, true] {
        let a = FakeServer::start("a").await;
        let view = cluster(Some("a"), 1, &[(&a, "primary", 1)]);
        let rig = Rig::start(view, |config| {
            if pooled {
                transaction(config);
            }
        })
        .await;
        let mut client = Client::open(rig.address(READ_WRITE)).await.unwrap();
        a.hold_cancels(true);
        client.send_query("hang").await;
        a.until_queries(1).await;
        let (address, key) = (rig.address(READ_WRITE), client.key.clone());
        let mut asking = tokio::spawn(async move { Client::cancel(address, &key).await });
        a.until_cancelled(1).await;
        let early = timeout(Duration::from_millis(300), &mut asking).await;
        assert!(early.is_err(), "pooled: {pooled}");
        a.hold_cancels(false);
        timeout(PATIENCE, asking).await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn a_cancel_request_at_another_proxy_goes_to_the_one_that_gave_the_key() {
    let a = FakeServer::start("a").await;
    let members = [(&a, "primary", 1)];
    let first = Rig::start(cluster(Some("a"), 1, &members), |c| c.id = "one:1".to_owned()).await;
    let proxies =
        [("one:1", first.address(READ_WRITE)), ("gone:1", "127.0.0.1:1".parse().unwrap())];
    let view = cluster_of(Some("a"), 1, &members, &proxies);
    let second = Rig::start(view, |config| config.id = "two:1".to_owned()).await;
    let mut client = Client::open(first.address(READ_WRITE)).await.unwrap();
    client.send_query("hang").await;
    a.until_queries(1).await;
    Client::cancel(second.address(READ_WRITE), &client.key).await;
    a.until_cancelled(1).await;
}

#[tokio::test]
async fn a_server_that_dies_ends_its_sessions_with_a_word() {
    let a = FakeServer::start("a").await;
    let rig = Rig::start(cluster(Some("a"), 1, &[(&a, "primary", 1)]), |_| {}).await;
    let mut idle = Client::open(rig.address(READ_WRITE)).await.unwrap();
    let mut busy = Client::open(rig.address(READ_WRITE)).await.unwrap();
    assert_eq!(idle.query("x").await.unwrap(), "a:x");
    busy.send_query("hang").await;
    a.until_queries(2).await;
    a.kill();
    assert_eq!(idle.last_word().await, "57P01");
    assert_eq!(busy.last_word().await, "08007");
    // Before the first client was published, there were none either.
    rig.until(|status| status.routes.metrics.read_write.server_lost == 2).await;
}

#[tokio::test]
async fn what_a_server_says_at_its_end_is_not_said_twice() {
    let a = FakeServer::start("a").await;
    let rig = Rig::start(cluster(Some("a"), 1, &[(&a, "primary", 1)]), |_| {}).await;
    let mut client = Client::open(rig.address(READ_WRITE)).await.unwrap();
    client.send_query("fatal").await;
    assert_eq!(client.last_word().await, "XX000");
}

#[tokio::test]
async fn large_answers_arrive_whole() {
    let a = FakeServer::start("a").await;
    let rig = Rig::start(cluster(Some("a"), 1, &[(&a, "primary", 1)]), |_| {}).await;
    let mut client = Client::open(rig.address(READ_WRITE)).await.unwrap();
    let text = "0123456789abcdef".repeat(200_000);
    assert_eq!(client.query(&text).await.unwrap(), format!("a:{text}"));
}

#[tokio::test]
async fn nonsense_is_answered_with_a_violation() {
    let a = FakeServer::start("a").await;
    let rig = Rig::start(cluster(Some("a"), 1, &[(&a, "primary", 1)]), |_| {}).await;
    let mut client = Client::connect(rig.address(READ_WRITE)).await;
    client.send(b"GET / HTTP/1.1\r\n\r\n").await;
    assert_eq!(client.last_word().await, "08P01");
    let mut client = Client::open(rig.address(READ_WRITE)).await.unwrap();
    client.send(b"Q\0\0\0\0").await;
    assert_eq!(client.last_word().await, "08P01");
}

#[tokio::test]
async fn too_many_clients_are_told_so() {
    let a = FakeServer::start("a").await;
    let view = cluster(Some("a"), 1, &[(&a, "primary", 1)]);
    let rig = Rig::start(view, |config| config.client_limit = 1).await;
    let _first = Client::open(rig.address(READ_WRITE)).await.unwrap();
    let mut second = Client::connect(rig.address(READ_WRITE)).await;
    second.send_startup().await;
    assert_eq!(second.last_word().await, "53300");
}

#[tokio::test]
async fn the_end_of_the_proxy_is_told_to_everyone() {
    let a = FakeServer::start("a").await;
    let mut rig = Rig::start(cluster(Some("a"), 1, &[(&a, "primary", 1)]), |_| {}).await;
    let mut client = Client::open(rig.address(READ_WRITE)).await.unwrap();
    rig.shutdown.cancel();
    assert_eq!(client.last_word().await, "57P01");
    drop(client);
    timeout(Duration::from_secs(10), &mut rig.running).await.unwrap().unwrap().unwrap();
}

#[tokio::test]
async fn routes_outlive_the_source_of_views() {
    let a = FakeServer::start("a").await;
    let view = cluster(Some("a"), 1, &[(&a, "primary", 1)]);
    let mut rig = Rig::start(view, |_| {}).await;
    rig.until(|status| status.routes.fresh).await;
    rig.views = tokio::sync::watch::Sender::default();
    rig.until(|status| !status.routes.fresh).await;
    let mut client = Client::open(rig.address(READ_WRITE)).await.unwrap();
    assert_eq!(client.query("x").await.unwrap(), "a:x");
}
