//! Single reads on the primary's port, which replicas answer if they have what the client wrote.

use proxy::ProxyConfig;
use route::Port;

use crate::fake::{Client, FakeServer, Rig, cluster};
use crate::pools::transaction;

fn splitting(config: &mut ProxyConfig) {
    transaction(config);
    config.read_write_split = true;
}

/// A proxy in front of `a`, which leads, and of `b`, which has replayed all of it, and a client.
async fn a_and_b() -> (FakeServer, FakeServer, Rig) {
    let (a, b) = (FakeServer::start("a").await, FakeServer::start("b").await);
    a.be_at(100);
    b.be_at(100);
    b.be_read_only();
    let members = [(&a, "primary", 1), (&b, "replica", 0)];
    let rig = Rig::start(cluster(Some("a"), 1, &members), splitting).await;
    (a, b, rig)
}

async fn client(rig: &Rig) -> Client {
    Client::open(rig.address(Port::ReadWrite)).await.unwrap()
}

impl Client {
    /// Who answers a read.
    async fn reads_at(&mut self) -> String {
        let answer = self.query("select 1").await.unwrap();
        answer.strip_suffix(":select 1").unwrap().to_owned()
    }

    /// Reads until this server answers: it has to be asked where it is first.
    async fn until_reads_at(&mut self, name: &str) {
        while self.reads_at().await != name {}
    }
}

#[tokio::test]
async fn a_client_reads_what_it_wrote_and_others_read_at_the_replica() {
    let (a, b, rig) = a_and_b().await;
    let (mut writer, mut reader) = (client(&rig).await, client(&rig).await);
    writer.until_reads_at("b").await;
    reader.until_reads_at("b").await;
    a.be_at(200);
    assert_eq!(
        writer.query("insert into t values (1)").await.unwrap(),
        "a:insert into t values (1)"
    );
    for _ in 0..3 {
        assert_eq!(writer.reads_at().await, "a");
        assert_eq!(reader.reads_at().await, "b");
        a.until_asked(2).await;
        b.until_asked(2).await;
    }
    // Reading at the primary is no write, so it goes on where it was.
    b.be_at(200);
    writer.until_reads_at("b").await;
    for statement in ["begin", "select 1", "commit"] {
        assert_eq!(writer.query(statement).await.unwrap(), format!("a:{statement}"));
    }
    for other in ["select 1; select 2", "show x", "select nextval('s')", "update t set x = 1"] {
        assert_eq!(writer.query(other).await.unwrap(), format!("a:{other}"));
    }
}

#[tokio::test]
async fn what_a_replica_refuses_the_primary_answers_unseen() {
    let (a, b, rig) = a_and_b().await;
    let mut client = client(&rig).await;
    client.until_reads_at("b").await;
    let before = b.queries();
    a.be_at(200);
    assert_eq!(client.query("select writes()").await.unwrap(), "a:select writes()");
    assert_eq!(b.queries(), before + 1, "the replica was asked");
    assert_eq!(client.reads_at().await, "a", "it may have written");
    b.be_at(200);
    client.until_reads_at("b").await;
    // Two at once are not split.
    client.send_query("select writes()").await;
    client.send_query("select 2").await;
    assert_eq!(client.read_answer().await.unwrap(), "a:select writes()");
    assert!(client.read_answer().await.unwrap().ends_with(":select 2"));
    client.until_reads_at("b").await;
    // An answer that is too long to be kept comes as well.
    assert_eq!(client.query("select 'big'").await.unwrap(), "b:select 'big'");
    client.until_reads_at("b").await;
}

#[tokio::test]
async fn a_replica_that_goes_leaves_its_reads_to_the_primary() {
    let (a, b, rig) = a_and_b().await;
    let mut client = client(&rig).await;
    client.until_reads_at("b").await;
    // The primary hangs too, which shows that it was asked.
    let before = (a.queries(), b.queries());
    client.send_query("select 'hang'").await;
    b.until_queries(before.1 + 1).await;
    b.kill();
    a.until_queries(before.0 + 1).await;
    let mut other = self::client(&rig).await;
    assert_eq!(other.reads_at().await, "a");
}

#[tokio::test]
async fn what_may_have_been_written_by_a_replica_that_was_promoted_is_not_repeated() {
    let (a, b, rig) = a_and_b().await;
    let mut client = client(&rig).await;
    client.until_reads_at("b").await;
    let before = (a.queries(), b.queries());
    client.send_query("select hang()").await;
    b.until_queries(before.1 + 1).await;
    b.kill();
    assert_eq!(client.last_word().await, "08007");
    assert_eq!(a.queries(), before.0);
}

#[tokio::test]
async fn a_read_can_be_cancelled_and_outlasts_the_primary() {
    let (a, b, rig) = a_and_b().await;
    let mut client = client(&rig).await;
    client.until_reads_at("b").await;
    let before = b.queries();
    client.send_query("select 'until cancelled'").await;
    rig.until(|status| status.routes.read_write.is_some()).await;
    // No leader, and then a new term: the read goes on.
    let members = [(&a, "primary", 1), (&b, "replica", 0)];
    rig.views.send_replace((Some(cluster(None, 1, &members)), true));
    rig.until(|status| status.routes.read_write.is_none()).await;
    let members = [(&a, "primary", 2), (&b, "replica", 0)];
    rig.views.send_replace((Some(cluster(Some("a"), 2, &members)), true));
    rig.until(|status| status.routes.read_write.is_some()).await;
    Client::cancel(rig.address(Port::ReadWrite), &client.key).await;
    b.until_cancelled(1).await;
    assert_eq!(client.read_answer().await.unwrap_err().sqlstate, "57014");
    assert_eq!(b.queries(), before + 1);
    client.until_reads_at("b").await;
}

#[tokio::test]
async fn without_the_split_every_statement_is_the_primarys() {
    let (a, b, _rig) = a_and_b().await;
    let members = [(&a, "primary", 1), (&b, "replica", 0)];
    let rig = Rig::start(cluster(Some("a"), 1, &members), transaction).await;
    let mut client = client(&rig).await;
    for _ in 0..10 {
        assert_eq!(client.reads_at().await, "a");
    }
    b.until_sessions(0).await;
}
