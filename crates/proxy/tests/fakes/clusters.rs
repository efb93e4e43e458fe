//! Several clusters behind one proxy, and what is said of single databases.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use config::{AuthQuery, PoolMode, ProxyAuth, ProxyDatabase, ProxyDatabases, ProxySecurity};
use proxy::{Proxy, ProxyConfig, ProxyError};
use route::Port;
use types::{ClusterView, Revision};

use crate::fake::{Client, FakeServer, Rig, cluster, cluster_of};
use crate::pools::transaction;

const READ_WRITE: Port = Port::ReadWrite;

/// A database of the cluster `billing`.
fn billing() -> ProxyDatabase {
    ProxyDatabase { cluster: Some("billing".to_owned()), ..ProxyDatabase::default() }
}

fn databases(named: &[(&str, ProxyDatabase)]) -> ProxyDatabases {
    let named = named.iter().map(|(name, database)| ((*name).to_owned(), database.clone()));
    ProxyDatabases { named: named.collect(), others: ProxyDatabase::default() }
}

/// A cluster that this server leads.
fn led_by(server: &FakeServer, term: i64) -> Arc<ClusterView> {
    let own_term = u64::try_from(term).unwrap();
    cluster(Some(server.name), term, &[(server, "primary", own_term)])
}

/// A proxy of a cluster led by `a` and of `billing`, led by `b`, with the database `invoices`.
async fn two(change: impl FnOnce(&mut ProxyConfig)) -> (FakeServer, FakeServer, Rig) {
    let (a, b) = (FakeServer::start("a").await, FakeServer::start("b").await);
    let rig = Rig::start_with(led_by(&a, 1), &[("billing", led_by(&b, 1))], |config| {
        config.databases = databases(&[("invoices", billing())]);
        change(config);
    })
    .await;
    (a, b, rig)
}

async fn open(rig: &Rig, database: &str) -> Client {
    Client::open_as(rig.address(READ_WRITE), "app", database).await.unwrap()
}

#[tokio::test]
async fn databases_are_in_their_clusters_and_a_failover_in_one_leaves_the_others_alone() {
    let (a, b, rig) = two(transaction).await;
    let (mut own, mut invoices) = (open(&rig, "shop").await, open(&rig, "invoices").await);
    assert_eq!(own.query("begin").await.unwrap(), "a:begin");
    assert_eq!(invoices.query("begin").await.unwrap(), "b:begin");
    let c = FakeServer::start("c").await;
    rig.other_views["billing"].send_replace((Some(led_by(&c, 2)), true));
    b.until_sessions(0).await;
    assert_eq!(invoices.query("select 1").await.unwrap_err().sqlstate, "40001");
    assert_eq!(invoices.query("rollback").await.unwrap(), "ROLLBACK");
    assert_eq!(invoices.query("select 1").await.unwrap(), "c:select 1");
    assert_eq!(own.query("select 1").await.unwrap(), "a:select 1");
    assert_eq!(own.query("commit").await.unwrap(), "a:commit");
    assert_eq!((a.databases(), b.databases(), c.databases()), asked("shop", "invoices"));
    rig.until(|status| status.routes.term.0 == 1 && status.clients == 2).await;
    rig.until_other("billing", |status| status.routes.term.0 == 2 && status.clients == 2).await;
}

fn asked(own: &str, other: &str) -> (Vec<String>, Vec<String>, Vec<String>) {
    let one = |name: &str| vec![name.to_owned()];
    (one(own), one(other), one(other))
}

#[tokio::test]
async fn a_database_may_have_another_name_there_whoever_authenticates() {
    let map = |config: &mut ProxyConfig| {
        let till = ProxyDatabase { dbname: Some("till".to_owned()), ..billing() };
        config.databases = databases(&[("shop", till.clone()), ("app", till)]);
        config.read_only_suffix = Some("_ro".to_owned());
    };
    for pooled in [false, true] {
        let (a, b, rig) = two(|config| {
            map(config);
            if pooled {
                transaction(config);
            }
        })
        .await;
        for name in ["shop", "shop_ro"] {
            assert_eq!(open(&rig, name).await.query("x").await.unwrap(), "b:x");
        }
        // Whoever names none wants that of his own name.
        let mut default = Client::open(rig.address(READ_WRITE)).await.unwrap();
        assert_eq!(default.query("x").await.unwrap(), "b:x");
        assert_eq!(open(&rig, "till").await.query("x").await.unwrap(), "a:x");
        assert!(b.databases().iter().all(|name| name == "till"), "{:?}", b.databases());
        assert_eq!(a.databases(), ["till"], "that of its own cluster");
    }
}

#[tokio::test]
async fn pools_of_a_database_may_be_of_another_size_and_mode() {
    let (_a, b, rig) = two(|config| {
        transaction(config);
        let kept =
            ProxyDatabase { pool_size: Some(1), pool_mode: Some(PoolMode::Session), ..billing() };
        config.databases = databases(&[("kept", kept), ("invoices", billing())]);
    })
    .await;
    let (mut first, mut second) = (open(&rig, "kept").await, open(&rig, "kept").await);
    assert_eq!(first.query("select 1").await.unwrap(), "b:select 1");
    second.send_query("select 2").await;
    rig.until_other("billing", |status| status.routes.waiting == 1).await;
    let mut others = [open(&rig, "invoices").await, open(&rig, "invoices").await];
    for other in &mut others {
        assert_eq!(other.query("begin").await.unwrap(), "b:begin");
    }
    b.until_sessions(3).await;
    assert_eq!(first.query("select 3").await.unwrap(), "b:select 3", "it still has it");
    first.goodbye().await;
    assert_eq!(second.read_answer().await.unwrap(), "b:select 2");
}

/// Both clusters have a user `ann`, who is somebody else at each.
#[tokio::test]
async fn what_one_cluster_knows_of_a_user_opens_no_other() {
    let directory = tempfile::tempdir().unwrap();
    let rules = directory.path().join("rules");
    std::fs::write(&rules, "host all all all password\n").unwrap();
    let (a, b, rig) = two(|config| {
        transaction(config);
        config.admin_users = ["eve".to_owned()].into();
        config.databases = ProxyDatabases {
            named: [("shop".to_owned(), ProxyDatabase::default())].into(),
            others: billing(),
        };
        config.security = ProxySecurity {
            auth: ProxyAuth::Rules(rules),
            auth_query: Some(AuthQuery {
                query: "SELECT $1".to_owned(),
                user: "asker".to_owned(),
                password_file: None,
                database: "postgres".to_owned(),
            }),
            ..ProxySecurity::default()
        };
    })
    .await;
    a.knows("ann", "red");
    b.knows("ann", "blue");
    b.knows("eve", "blue");
    let address = rig.address(READ_WRITE);
    let open = async |password, database| {
        let opened = Client::open_with_password(address, ("ann", password), database).await;
        opened.map_err(|told| told.sqlstate)
    };
    // Whatever the proxy has learnt by then, each password is worth something at its own cluster.
    for _ in 0..2 {
        let mut own = open("red", "shop").await.unwrap();
        assert_eq!(own.query("x").await.unwrap(), "a:x");
        assert_eq!(open("red", "invoices").await.err().as_deref(), Some("28P01"));
        let mut invoices = open("blue", "invoices").await.unwrap();
        assert_eq!(invoices.query("x").await.unwrap(), "b:x");
        assert_eq!(open("blue", "shop").await.err().as_deref(), Some("28P01"));
    }
    // Nor does it open the proxy, which its own cluster's administrators command.
    let opened = Client::open_with_password(address, ("eve", "blue"), "pgherd").await;
    assert_eq!(opened.err().map(|told| told.sqlstate).as_deref(), Some("28P01"));
    assert_eq!(a.databases(), ["postgres", "shop"], "asked for ann, and for her");
    assert_eq!(b.databases(), ["postgres", "invoices"]);
}

#[tokio::test]
async fn a_cluster_without_a_view_holds_its_own_clients_only() {
    let a = FakeServer::start("a").await;
    let nothing = Arc::new(ClusterView::from_keys(Revision(1), &[]));
    let mut rig = Rig::start_with(led_by(&a, 1), &[("billing", nothing)], |config| {
        transaction(config);
        config.databases = databases(&[("invoices", billing())]);
        config.hold_timeout = Some(Duration::from_millis(50));
    })
    .await;
    rig.until(|status| status.routes.read_write.is_some()).await;
    // Its source ends, too.
    rig.other_views.clear();
    rig.until_other("billing", |status| !status.routes.fresh).await;
    let held = Client::open_as(rig.address(READ_WRITE), "app", "invoices").await.err().unwrap();
    assert_eq!(held.sqlstate, "57P03");
    assert_eq!(open(&rig, "shop").await.query("x").await.unwrap(), "a:x");
    assert!(rig.status.borrow().routes.fresh);
    rig.until_other("billing", |status| status.routes.metrics.read_write.refused == 1).await;
    rig.shutdown.cancel();
    (&mut rig.running).await.unwrap().unwrap();
}

#[tokio::test]
async fn clients_of_all_clusters_count_together() {
    for pooled in [false, true] {
        let (_a, _b, rig) = two(|config| {
            if pooled {
                transaction(config);
            }
            config.client_limit = 1;
        })
        .await;
        let address = rig.address(READ_WRITE);
        let first = open(&rig, "shop").await;
        let refused = Client::open_as(address, "app", "invoices").await.err().unwrap();
        assert_eq!(refused.sqlstate, "53300", "pooled: {pooled}");
        first.goodbye().await;
        rig.until(|status| status.clients == 0).await;
        open(&rig, "invoices").await;
    }
}

#[tokio::test]
async fn a_cancel_request_finds_a_proxy_that_is_registered_in_any_of_the_clusters() {
    let (_a, b, rig) = two(|config| config.id = "one:1".to_owned()).await;
    let proxies = [("one:1", rig.address(READ_WRITE))];
    let view = cluster_of(Some("b"), 1, &[(&b, "primary", 1)], &proxies);
    let other = Rig::start_with(cluster(None, 0, &[]), &[("billing", view)], |config| {
        config.id = "two:1".to_owned();
    })
    .await;
    other.until_other("billing", |status| status.routes.read_write.is_some()).await;
    let mut client = open(&rig, "invoices").await;
    client.send_query("hang").await;
    b.until_queries(1).await;
    Client::cancel(other.address(READ_WRITE), &client.key).await;
    b.until_cancelled(1).await;
}

#[tokio::test]
async fn operators_see_and_pause_all_clusters() {
    let (_a, b, rig) = two(|config| {
        transaction(config);
        config.admin_users = ["boss".to_owned()].into();
        let old = ProxyDatabase { dbname: Some("till".to_owned()), ..billing() };
        config.databases = databases(&[("invoices", billing()), ("old", old)]);
    })
    .await;
    let address = rig.address(READ_WRITE);
    let (mut own, mut invoices) = (open(&rig, "shop").await, open(&rig, "invoices").await);
    own.query("select 1").await.unwrap();
    invoices.query("begin").await.unwrap();
    let mut boss = Client::open_as(address, "boss", "pgherd").await.unwrap();
    let column = |rows: Vec<BTreeMap<String, String>>, name: &str| {
        rows.iter().map(|row| row[name].clone()).collect::<Vec<String>>()
    };
    assert_eq!(column(boss.rows("SHOW POOLS").await, "database"), ["invoices", "shop"]);
    let databases = boss.rows("SHOW DATABASES").await;
    assert_eq!(column(databases.clone(), "name"), ["invoices", "old", "shop"]);
    assert_eq!(column(databases.clone(), "database"), ["invoices", "till", "shop"]);
    assert_eq!(databases[1]["port"], b.address.port().to_string());
    // What is lent in the other cluster is waited for, too.
    boss.send_query("PAUSE").await;
    rig.until_other("billing", |status| status.routes.paused).await;
    own.send_query("select 2").await;
    rig.until(|status| status.routes.waiting == 1).await;
    assert_eq!(invoices.query("commit").await.unwrap(), "b:commit");
    assert_eq!(boss.read_answer().await.unwrap(), "PAUSE");
    assert_eq!(boss.query("RESUME").await.unwrap(), "RESUME");
    assert_eq!(own.read_answer().await.unwrap(), "a:select 2");
    rig.until_other("billing", |status| !status.routes.paused).await;
    assert_eq!(boss.query("RECONNECT").await.unwrap(), "RECONNECT");
    b.until_sessions(0).await;
}

#[tokio::test]
async fn a_database_of_a_cluster_that_is_not_there_is_refused() {
    let any = "127.0.0.1:0".parse().unwrap();
    let mut config = ProxyConfig::new("test", vec![any], Vec::new());
    config.databases = databases(&[("invoices", billing())]);
    let refused = Proxy::bind(config).await.unwrap_err();
    assert!(matches!(refused, ProxyError::Cluster(_)), "{refused}");
    let text = "the database \"invoices\" is in the cluster \"billing\"";
    assert!(refused.to_string().starts_with(text), "{refused}");
}
