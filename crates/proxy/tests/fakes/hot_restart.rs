//! A new proxy takes the sockets over, and the one before drains.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use api::client::request;
use config::{HostPort, ProxyAuth, ProxyHttp, ProxySecurity};
use proxy::{Naming, PoolMode, Proxy, ProxyConfig, ProxyError, Stage, in_charge};
use route::Port;
use tokio::sync::watch;
use tokio::time::timeout;
use types::ClusterView;

use crate::fake::{Client, FakeServer, Rig, cluster};

const PATIENCE: Duration = Duration::from_secs(20);
const READ_WRITE: Port = Port::ReadWrite;

/// A server, and where proxies of one address and one control socket follow each other.
struct Stand {
    server: FakeServer,
    directory: tempfile::TempDir,
    config: ProxyConfig,
}

/// One of these proxies, which serves.
struct Generation {
    rig: Rig,
    naming: Naming,
    stage: watch::Receiver<Option<Stage>>,
}

impl Stand {
    /// Clients share connections for a transaction, or have one of their own.
    async fn new(pools: bool, drain_timeout: Duration) -> Stand {
        let directory = tempfile::tempdir().unwrap();
        let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
        let mut config = ProxyConfig::new("test", vec![any], vec![any]);
        config.control_socket = Some(directory.path().join("proxy.sock"));
        config.drain_timeout = drain_timeout;
        if pools {
            config.pool_mode = PoolMode::Transaction;
            config.security = ProxySecurity { auth: ProxyAuth::Trust, ..ProxySecurity::default() };
        }
        Stand { server: FakeServer::start("a").await, directory, config }
    }

    fn view(&self) -> Arc<ClusterView> {
        cluster(Some("a"), 1, &[(&self.server, "primary", 1)])
    }

    /// The next proxy, from where it listens to where it is in charge.
    async fn next(&mut self) -> Generation {
        let proxy = Proxy::bind(self.config.clone()).await.unwrap();
        self.serve(proxy).await
    }

    async fn serve(&mut self, mut proxy: Proxy) -> Generation {
        let of = |wanted| {
            let of_port = proxy.addresses().into_iter().filter(move |(port, _)| *port == wanted);
            of_port.map(|(_, address)| address).collect()
        };
        (self.config.read_write, self.config.read_only) = (of(READ_WRITE), of(Port::ReadOnly));
        let stages = watch::Sender::new(None);
        let mut stage = stages.subscribe();
        proxy.on_stage(move |stage| {
            stages.send_replace(Some(stage));
        });
        let naming = proxy.naming();
        let rig = Rig::run(proxy, self.view(), &[]);
        timeout(PATIENCE, stage.wait_for(Option::is_some)).await.unwrap().unwrap();
        Generation { rig, naming, stage }
    }
}

impl Generation {
    fn address(&self) -> SocketAddr {
        self.rig.address(READ_WRITE)
    }

    /// Its process's end.
    async fn ends(mut self) -> Result<(), ProxyError> {
        timeout(PATIENCE, &mut self.rig.running).await.unwrap().unwrap()
    }
}

/// Connects, does one transaction, goes, and again; how often.
async fn come_and_go(address: SocketAddr, until: Arc<std::sync::atomic::AtomicBool>) -> u32 {
    let mut count = 0;
    while !until.load(std::sync::atomic::Ordering::Relaxed) {
        let mut client = Client::open(address).await.unwrap();
        for statement in ["begin", "select 1", "commit"] {
            assert_eq!(client.query(statement).await.unwrap(), format!("a:{statement}"));
        }
        client.goodbye().await;
        count += 1;
    }
    count
}

#[tokio::test]
async fn clients_that_come_and_go_notice_nothing() {
    let mut stand = Stand::new(true, PATIENCE).await;
    let mut present = stand.next().await;
    let over = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let visits = |_| tokio::spawn(come_and_go(present.address(), over.clone()));
    let visitors: Vec<_> = (0..4).map(visits).collect();
    for _ in 0..5 {
        let next = stand.next().await;
        assert_eq!(next.address(), present.address());
        let successor = Some(std::process::id());
        assert_eq!(*present.stage.borrow(), Some(Stage::HandedOver { successor }));
        // It has no client that stays, so it ends.
        present.ends().await.unwrap();
        present = next;
    }
    over.store(true, std::sync::atomic::Ordering::Relaxed);
    for visitor in visitors {
        assert!(visitor.await.unwrap() > 0);
    }
    drop(stand.directory);
}

#[tokio::test]
async fn sessions_stay_for_a_while_and_end_between_transactions() {
    for pools in [true, false] {
        let mut stand = Stand::new(pools, Duration::ZERO).await;
        let old = stand.next().await;
        let mut idle = Client::open(old.address()).await.unwrap();
        assert_eq!(idle.query("select 1").await.unwrap(), "a:select 1");
        let mut busy = Client::open(old.address()).await.unwrap();
        assert_eq!(busy.query("begin").await.unwrap(), "a:begin");
        let new = stand.next().await;
        assert_eq!(idle.last_word().await, "57P01", "pools: {pools}");
        assert_eq!(busy.query("select 2").await.unwrap(), "a:select 2");
        assert_eq!(busy.query("commit").await.unwrap(), "a:commit");
        assert_eq!(busy.last_word().await, "57P01", "pools: {pools}");
        old.ends().await.unwrap();
        stand.server.until_sessions(0).await;
        let mut again = Client::open(new.address()).await.unwrap();
        assert_eq!(again.query("select 3").await.unwrap(), "a:select 3");
    }
}

#[tokio::test]
async fn what_a_draining_proxy_does_not_need_is_closed() {
    let mut stand = Stand::new(true, PATIENCE).await;
    let old = stand.next().await;
    let mut stays = Client::open(old.address()).await.unwrap();
    assert_eq!(stays.query("select 1").await.unwrap(), "a:select 1");
    stand.server.until_sessions(1).await;
    let _new = stand.next().await;
    stand.server.until_sessions(0).await;
    assert_eq!(stays.query("select 2").await.unwrap(), "a:select 2");
    stays.goodbye().await;
    old.ends().await.unwrap();
}

#[tokio::test]
async fn cancel_requests_reach_every_proxy_that_drains() {
    let mut stand = Stand::new(true, PATIENCE).await;
    let first = stand.next().await;
    let mut of_first = Client::open(first.address()).await.unwrap();
    of_first.send_query("until cancelled").await;
    let second = stand.next().await;
    let mut of_second = Client::open(second.address()).await.unwrap();
    assert_eq!(of_second.query("begin").await.unwrap(), "a:begin");
    let third = stand.next().await;
    Client::cancel(third.address(), &of_first.key).await;
    assert_eq!(of_first.read_answer().await.unwrap_err().sqlstate, "57014");
    of_second.send_query("hang").await;
    stand.server.until_queries(3).await;
    Client::cancel(third.address(), &of_second.key).await;
    stand.server.until_cancelled(2).await;
    // One that drains no more is missed by nobody.
    of_first.goodbye().await;
    first.ends().await.unwrap();
    Client::cancel(third.address(), &of_second.key).await;
    stand.server.until_cancelled(3).await;
}

#[tokio::test]
async fn a_second_successor_is_refused_and_the_end_of_the_first_leaves_all_as_it_was() {
    let mut stand = Stand::new(true, PATIENCE).await;
    let old = stand.next().await;
    let registrant = old.naming.join();
    let mut client = Client::open(old.address()).await.unwrap();
    let mut first = Proxy::bind(stand.config.clone()).await.unwrap();
    let error = Proxy::bind(stand.config.clone()).await.unwrap_err().to_string();
    assert!(error.contains("another proxy is taking its sockets over at this moment"), "{error}");
    // Even with the name in the DCS left to it.
    let renamed = async {
        let mut wanted = registrant.wanted.clone();
        wanted.wait_for(|name| *name == proxy::Name::Draining).await.unwrap();
        registrant.written.send_replace(Some(proxy::Name::Draining));
    };
    let (_views, view) = watch::channel((Some(stand.view()), true));
    let (named, ()) = tokio::join!(first.take_name(view), renamed);
    named.unwrap();
    drop(first);
    let mut wanted = registrant.wanted.clone();
    let own = wanted.wait_for(|name| *name == proxy::Name::Own);
    timeout(PATIENCE, own).await.unwrap().unwrap();
    assert_eq!(*old.stage.borrow(), Some(Stage::Serving));
    let path = stand.config.control_socket.clone().unwrap();
    assert_eq!(in_charge(&path).await.unwrap(), Some(std::process::id()));
    assert_eq!(client.query("select 1").await.unwrap(), "a:select 1");
    drop(registrant);
    let next = stand.next().await;
    client.goodbye().await;
    old.ends().await.unwrap();
    drop(next);
}

#[tokio::test]
async fn what_the_successor_cannot_have_leaves_the_old_one_in_charge() {
    let mut stand = Stand::new(true, PATIENCE).await;
    let old = stand.next().await;
    let taken = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut config = stand.config.clone();
    config.read_only = vec![taken.local_addr().unwrap()];
    assert!(matches!(Proxy::bind(config).await.unwrap_err(), ProxyError::Listen { .. }));
    let mut client = Client::open(old.address()).await.unwrap();
    assert_eq!(client.query("select 1").await.unwrap(), "a:select 1");
    // One without its read-only port closes that.
    stand.config.read_only.clear();
    let read_only = old.rig.address(Port::ReadOnly);
    let new = stand.next().await;
    client.goodbye().await;
    old.ends().await.unwrap();
    assert!(tokio::net::TcpStream::connect(read_only).await.is_err());
    assert!(Client::open(new.address()).await.is_ok());
}

#[tokio::test]
async fn http_goes_over_with_the_other_sockets() {
    let mut stand = Stand::new(true, PATIENCE).await;
    let place = |port| HostPort { host: "127.0.0.1".to_owned(), port };
    let http = |listen| ProxyHttp { listen, user: None, certificate: None, ca: None };
    stand.config.http = Some(http(place(0)));
    let old = stand.next().await;
    let port = old.rig.http();
    stand.config.http = Some(http(place(port)));
    // The old one stays for its client, and its pages do not.
    let mut stays = Client::open(old.address()).await.unwrap();
    let clients = async || {
        let asked = request("GET", "127.0.0.1", port, "/status", None, None, PATIENCE).await;
        let status: serde_json::Value = serde_json::from_slice(&asked.unwrap().1).unwrap();
        status["clients"].as_u64()
    };
    old.rig.until(|status| status.clients == 1).await;
    assert_eq!(clients().await, Some(1));
    let new = stand.next().await;
    assert_eq!((new.rig.http(), clients().await), (port, Some(0)));
    assert_eq!(stays.query("select 1").await.unwrap(), "a:select 1");
    stays.goodbye().await;
    old.ends().await.unwrap();
    assert_eq!(clients().await, Some(0));
}

#[tokio::test]
async fn a_paused_proxy_does_not_hand_over() {
    let mut stand = Stand::new(true, PATIENCE).await;
    stand.config.admin_users.insert("boss".to_owned());
    let old = stand.next().await;
    let mut boss = Client::open_as(old.address(), "boss", "pgherd").await.unwrap();
    assert_eq!(boss.query("PAUSE").await.unwrap(), "PAUSE");
    let error = Proxy::bind(stand.config.clone()).await.unwrap_err().to_string();
    assert!(error.contains("its pools are paused by an operator; RESUME first"), "{error}");
    assert_eq!(boss.query("RESUME").await.unwrap(), "RESUME");
    let _next = stand.next().await;
}
