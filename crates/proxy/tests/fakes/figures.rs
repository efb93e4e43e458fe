//! What the proxy says of itself by HTTP.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use api::RestClient;
use config::{
    CertificateFiles, HostPort, HttpUser, ProxyAuth, ProxyDatabase, ProxyDatabases, ProxyHttp,
    ProxySecurity,
};
use proxy::{PoolMode, Proxy, ProxyConfig};
use route::Port;
use tls::{ClientSettings, Identity, Verify};
use tokio::net::TcpListener;
use tokio::time::timeout;
use types::RestAddress;

use crate::fake::{Client, FakeServer, PATIENCE, Rig, cluster};
use crate::pools::transaction;

const READ_WRITE: Port = Port::ReadWrite;

fn local() -> ProxyHttp {
    let listen = HostPort { host: "127.0.0.1".to_owned(), port: 0 };
    ProxyHttp { listen, user: None, certificate: None, ca: None }
}

/// Pools of two connections, and metrics of the cluster `demo`.
fn observed(config: &mut ProxyConfig) {
    transaction(config);
    config.cluster = "demo".to_owned();
    config.http = Some(local());
    config.admin_users = ["boss".to_owned()].into();
}

async fn one(change: impl FnOnce(&mut ProxyConfig)) -> (FakeServer, Rig) {
    let a = FakeServer::start("a").await;
    let rig = Rig::start(cluster(Some("a"), 1, &[(&a, "primary", 1)]), change).await;
    (a, rig)
}

async fn get(rig: &Rig, path: &str, user: Option<(&str, &str)>) -> (u16, String) {
    let (host, port) = ("127.0.0.1", rig.http());
    let asked = api::client::request("GET", host, port, path, None, user, PATIENCE).await;
    let (status, body) = asked.unwrap();
    (status, String::from_utf8(body).unwrap())
}

/// All lines with a value, by what stands before it.
async fn metrics(rig: &Rig) -> BTreeMap<String, f64> {
    let (status, text) = get(rig, "/metrics", None).await;
    assert_eq!(status, 200);
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    let mut metrics = BTreeMap::new();
    for line in lines {
        let (name, value) = line.rsplit_once(' ').unwrap();
        let earlier = metrics.insert(name.to_owned(), value.parse().unwrap());
        assert_eq!(earlier, None, "{line} is there twice");
    }
    metrics
}

/// Waits until the metrics say so: they are counted after the client has its answer.
async fn until(rig: &Rig, expected: &[(&str, f64)]) {
    let said = async {
        loop {
            let metrics = metrics(rig).await;
            let wrong = |(name, value): &&(&str, f64)| {
                metrics.get(&format!("pgherd_proxy_{name}")) != Some(value)
            };
            if !expected.iter().any(|line| wrong(&line)) {
                return;
            }
            tokio::task::yield_now().await;
        }
    };
    if timeout(PATIENCE, said).await.is_err() {
        panic!("not {expected:?} but {:#?}", metrics(rig).await);
    }
}

#[tokio::test]
async fn a_pools_figures_are_those_of_show_stats() {
    let (_a, rig) = one(observed).await;
    let mut clients = Vec::new();
    for _ in 0..4 {
        clients.push(Client::open(rig.address(READ_WRITE)).await.unwrap());
    }
    for client in &mut clients[..2] {
        client.query("begin").await.unwrap();
    }
    clients[2].send_query("select 1").await;
    rig.until(|status| status.routes.waiting == 1).await;
    let pool = r#"cluster="demo",database="app",user="app""#;
    let busy = [
        (r#"pool_clients{POOL,state="active"}"#, 2.0),
        (r#"pool_clients{POOL,state="idle"}"#, 1.0),
        (r#"pool_clients{POOL,state="waiting"}"#, 1.0),
        (r#"pool_connections{POOL,member="a",state="active"}"#, 2.0),
        (r#"pool_size{POOL}"#, 2.0),
        (r#"clients_waiting{cluster="demo"}"#, 1.0),
        (r#"clients_on_hold{cluster="demo"}"#, 0.0),
        (r#"member_connections{cluster="demo",member="a"}"#, 2.0),
        (r#"pool_connect_seconds_count{cluster="demo"}"#, 2.0),
        ("client_connections", 4.0),
        (r#"logins_total{port="read_write",outcome="let_in"}"#, 4.0),
    ];
    let lines = busy.map(|(name, value)| (name.replace("POOL", pool), value));
    until(&rig, &lines.each_ref().map(|(name, value)| (name.as_str(), *value))).await;

    for key in [&clients[3].key, &vec![7; 8]] {
        Client::cancel(rig.address(READ_WRITE), key).await;
    }
    let led = |to: &str| format!(r#"cancel_requests_total{{led_to="{to}"}}"#);
    until(&rig, &[(&led("own"), 1.0), (&led("unknown"), 1.0), (&led("other_proxy"), 0.0)]).await;

    for client in &mut clients[..2] {
        client.query("commit").await.unwrap();
    }
    clients[2].read_answer().await.unwrap();
    let bytes = 2 * ("begin".len() + 6 + "commit".len() + 6) + "select 1".len() + 6;
    let done = [
        (r#"transactions_total{POOL,PORT}"#, 3.0),
        (r#"queries_total{POOL,PORT}"#, 5.0),
        (r#"transaction_seconds_count{POOL,PORT}"#, 3.0),
        (r#"transaction_seconds_bucket{POOL,PORT,le="+Inf"}"#, 3.0),
        // One for a second connection, one for its turn.
        (r#"wait_seconds_count{POOL,PORT}"#, 2.0),
        (
            r#"received_bytes_total{POOL,kind="pool",PORT}"#,
            f64::from(u32::try_from(bytes).unwrap()),
        ),
        (r#"pool_connections{POOL,member="a",state="idle"}"#, 2.0),
    ];
    let named = |name: &str| name.replace("POOL", pool).replace("PORT", r#"port="read_write""#);
    let lines = done.map(|(name, value)| (named(name), value));
    until(&rig, &lines.each_ref().map(|(name, value)| (name.as_str(), *value))).await;

    let mut boss = Client::open_as(rig.address(READ_WRITE), "boss", "pgherd").await.unwrap();
    let row = boss.rows("SHOW STATS_TOTALS").await.pop().unwrap();
    let now = metrics(&rig).await;
    let shown = |column: &str| row[column].parse::<f64>().unwrap();
    for (column, metric, unit) in [
        ("xact_count", "transactions_total{POOL,PORT}", 1.0),
        ("query_count", "queries_total{POOL,PORT}", 1.0),
        ("bytes_sent", r#"sent_bytes_total{POOL,kind="pool",PORT}"#, 1.0),
        ("xact_time", "transaction_seconds_sum{POOL,PORT}", 1e6),
        ("wait_time", "wait_seconds_sum{POOL,PORT}", 1e6),
    ] {
        let value = now[&format!("pgherd_proxy_{}", named(metric))];
        assert!((value * unit - shown(column)).abs() < 0.5, "{metric} {value} {row:?}");
    }
    assert!(now["process_open_fds"] > 0.0);
}

#[tokio::test]
async fn errors_are_counted_by_what_clients_are_told() {
    let (a, b) = (FakeServer::start("a").await, FakeServer::start("b").await);
    let members = [(&a, "primary", 1), (&b, "replica", 0)];
    let rig = Rig::start(cluster(Some("a"), 1, &members), |config| {
        observed(config);
        config.hold_timeout = Some(Duration::from_millis(50));
        config.pool_timeout = Duration::from_millis(50);
    })
    .await;
    let mut first = Client::open(rig.address(READ_WRITE)).await.unwrap();
    let mut second = Client::open(rig.address(READ_WRITE)).await.unwrap();
    let mut third = Client::open(rig.address(READ_WRITE)).await.unwrap();
    for client in [&mut first, &mut second] {
        client.query("begin").await.unwrap();
    }
    assert_eq!(third.query("select 1").await.unwrap_err().sqlstate, "53300");
    let told =
        |sqlstate: &str| format!(r#"errors_total{{port="read_write",sqlstate="{sqlstate}"}}"#);
    until(&rig, &[(&told("53300"), 1.0), (&told("40001"), 0.0)]).await;
    a.be_silent();
    second.send_query("commit").await;
    a.until_queries(3).await;
    let members = [(&a, "primary", 1), (&b, "primary", 2)];
    rig.views.send_replace((Some(cluster(Some("b"), 2, &members)), true));
    assert_eq!(second.last_word().await, "08007");
    assert_eq!(first.query("select 1").await.unwrap_err().sqlstate, "40001");
    let mut boss = Client::open_as(rig.address(READ_WRITE), "boss", "pgherd").await.unwrap();
    let clients = boss.rows("SHOW CLIENTS").await;
    let app = clients.iter().find(|row| row["user"] == "app").unwrap();
    boss.query(&format!("KILL {}", app["ptr"])).await.unwrap();
    assert_eq!(first.last_word().await, "57P01");
    rig.views.send_replace((Some(cluster(None, 2, &[])), true));
    let mut fourth = Client::open(rig.address(READ_WRITE)).await.unwrap();
    assert_eq!(fourth.query("select 1").await.unwrap_err().sqlstate, "57P03");
    let cut = r#"cuts_total{cluster="demo",port="read_write",kind="unplanned"}"#;
    let held = r#"clients_held_total{cluster="demo",port="read_write"}"#;
    let mut lines = vec![(cut.to_owned(), 2.0), (held.to_owned(), 1.0)];
    for sqlstate in ["53300", "40001", "08007", "57P01", "57P03"] {
        lines.push((told(sqlstate), 1.0));
    }
    let lines: Vec<(&str, f64)> = lines.iter().map(|(n, v)| (n.as_str(), *v)).collect();
    until(&rig, &lines).await;
}

#[tokio::test]
async fn names_that_somebody_makes_up_have_no_figures() {
    let dir = tempfile::tempdir().unwrap();
    let rules = dir.path().join("rules");
    std::fs::write(&rules, "host app app,late all trust\nhost pgherd boss all trust\n").unwrap();
    let (a, rig) = one(|config| {
        observed(config);
        config.pool_timeout = Duration::from_secs(2);
        config.security =
            ProxySecurity { auth: ProxyAuth::Rules(rules), ..ProxySecurity::default() };
    })
    .await;
    let address = rig.address(READ_WRITE);
    let ghost = Client::open_as(address, "ghost", "app").await.err().unwrap();
    assert_eq!(ghost.sqlstate, "28000");
    // A rule admits it, and no server does.
    a.refuse_sessions(u32::MAX);
    let late = Client::open_as(address, "late", "app").await.err().unwrap();
    assert_eq!(late.sqlstate, "53300");
    a.refuse_sessions(0);
    let mut app = Client::open_as(address, "app", "app").await.unwrap();
    app.query("select 1").await.unwrap();
    until(
        &rig,
        &[
            (r#"logins_total{port="read_write",outcome="rejected"}"#, 1.0),
            (r#"logins_total{port="read_write",outcome="refused"}"#, 1.0),
            (r#"logins_total{port="read_write",outcome="let_in"}"#, 1.0),
        ],
    )
    .await;
    let (_, text) = get(&rig, "/metrics", None).await;
    assert!(text.contains(r#"user="app""#) && !text.contains("late"), "{text}");
    let mut boss = Client::open_as(address, "boss", "pgherd").await.unwrap();
    let pools = boss.rows("SHOW POOLS").await;
    assert!(pools.iter().all(|row| row["user"] != "ghost"), "{pools:?}");
}

#[tokio::test]
async fn sessions_with_a_connection_of_their_own_have_figures_while_they_last() {
    let (a, rig) = one(|config| {
        config.cluster = "demo".to_owned();
        config.http = Some(local());
    })
    .await;
    let mut client = Client::open(rig.address(READ_WRITE)).await.unwrap();
    client.query("select 1").await.unwrap();
    let names = r#"cluster="demo",database="app",user="app""#;
    let open = format!(r#"sessions{{{names},port="read_write"}}"#);
    let received = format!(r#"received_bytes_total{{{names},kind="session",port="read_write"}}"#);
    let let_in = r#"logins_total{port="read_write",outcome="let_in"}"#;
    until(&rig, &[(&open, 1.0), (&received, 14.0), (let_in, 1.0)]).await;
    client.query("big").await.unwrap();
    until(&rig, &[(&received, 23.0)]).await;
    let sent =
        format!(r#"pgherd_proxy_sent_bytes_total{{{names},kind="session",port="read_write"}}"#);
    assert!(metrics(&rig).await[&sent] > 200_000.0);
    rig.views.send_replace((Some(cluster(None, 1, &[(&a, "demoted", 1)])), true));
    assert_eq!(client.last_word().await, "57P01");
    drop(client);
    until(
        &rig,
        &[
            (&open, 0.0),
            (&received, 23.0),
            (r#"cuts_total{cluster="demo",port="read_write",kind="planned"}"#, 1.0),
            (r#"errors_total{port="read_write",sqlstate="57P01"}"#, 1.0),
        ],
    )
    .await;
}

#[tokio::test]
async fn load_balancers_learn_where_clients_are_led() {
    let a = FakeServer::start("a").await;
    let members = [(&a, "primary", 1)];
    let rig = Rig::start(cluster(Some("a"), 1, &members), observed).await;
    rig.until(|status| status.routes.read_write.is_some()).await;
    let check = async |expected: [(&str, u16); 5]| {
        for (path, status) in expected {
            let (got, text) = get(&rig, path, None).await;
            assert_eq!(got, status, "{path}: {text}");
        }
    };
    let always = [("/health", 200), ("/liveness", 200)];
    let [health, liveness] = always;
    check([health, liveness, ("/ready", 200), ("/read-write", 200), ("/read-only", 200)]).await;
    until(&rig, &[(r#"route_open{cluster="demo",port="read_write"}"#, 1.0)]).await;
    assert_eq!(get(&rig, "/read-write", None).await.1, "led to a\n");
    let (_, status) = get(&rig, "/status", None).await;
    let status: serde_json::Value = serde_json::from_str(&status).unwrap();
    assert_eq!(status["routes"]["read_write"]["member"], "a");
    assert_eq!(get(&rig, "/elsewhere", None).await.0, 404);

    // A primary is awaited: clients may come and be held.
    rig.views.send_replace((Some(cluster(None, 1, &[(&a, "demoted", 1)])), true));
    rig.until(|status| status.routes.read_write.is_none()).await;
    check([health, liveness, ("/ready", 200), ("/read-write", 503), ("/read-only", 503)]).await;
    let open = r#"route_open{cluster="demo",port="read_write"}"#;
    let fresh = r#"view_fresh{cluster="demo"}"#;
    let age = r#"view_age_seconds{cluster="demo"}"#;
    until(&rig, &[(open, 0.0), (fresh, 1.0), (age, 0.0), (r#"term{cluster="demo"}"#, 1.0)]).await;

    // Nothing is known any more: another proxy may do better.
    rig.views.send_replace((Some(cluster(None, 1, &[(&a, "demoted", 1)])), false));
    rig.until(|status| !status.routes.fresh).await;
    check([health, liveness, ("/ready", 503), ("/read-write", 503), ("/read-only", 503)]).await;
    assert!(metrics(&rig).await[&format!("pgherd_proxy_{age}")] > 0.0);
}

#[tokio::test]
async fn each_cluster_has_figures_and_checks_of_its_own() {
    let (a, b) = (FakeServer::start("a").await, FakeServer::start("b").await);
    let billing = cluster(Some("b"), 1, &[(&b, "primary", 1)]);
    let own = cluster(Some("a"), 1, &[(&a, "primary", 1)]);
    let rig = Rig::start_with(own, &[("billing", billing)], |config| {
        observed(config);
        let there =
            ProxyDatabase { cluster: Some("billing".to_owned()), ..ProxyDatabase::default() };
        let named = [("invoices".to_owned(), ProxyDatabase { pool_size: Some(7), ..there })];
        config.databases = ProxyDatabases { named: named.into(), others: ProxyDatabase::default() };
    })
    .await;
    let mut clients = Vec::new();
    for database in ["shop", "invoices"] {
        let mut client = Client::open_as(rig.address(READ_WRITE), "app", database).await.unwrap();
        client.query("begin").await.unwrap();
        clients.push(client);
    }
    let (shop, invoices) = (
        r#"cluster="demo",database="shop",user="app""#,
        r#"cluster="billing",database="invoices",user="app""#,
    );
    let lines = [
        (format!(r#"pool_connections{{{shop},member="a",state="active"}}"#), 1.0),
        (format!(r#"pool_connections{{{invoices},member="b",state="active"}}"#), 1.0),
        (format!(r#"pool_clients{{{invoices},state="active"}}"#), 1.0),
        (format!("pool_size{{{shop}}}"), 2.0),
        (format!("pool_size{{{invoices}}}"), 7.0),
    ];
    until(&rig, &lines.each_ref().map(|(name, value)| (name.as_str(), *value))).await;
    let gone = (Some(cluster(None, 1, &[(&b, "demoted", 1)])), false);
    rig.other_views["billing"].send_replace(gone);
    rig.until_other("billing", |status| !status.routes.fresh).await;
    for (path, status) in [
        ("/ready", 200),
        ("/ready/demo", 200),
        ("/ready/billing", 503),
        ("/read-write", 200),
        ("/read-write/billing", 503),
        ("/read-only/demo", 200),
        ("/ready/elsewhere", 404),
        ("/metrics/billing", 404),
    ] {
        assert_eq!(get(&rig, path, None).await.0, status, "{path}");
    }
    let (_, status) = get(&rig, "/status/billing", None).await;
    let status: serde_json::Value = serde_json::from_str(&status).unwrap();
    assert_eq!(
        (&status["cluster"], &status["routes"]["read_write"]),
        (&"billing".into(), &().into())
    );
}

#[tokio::test]
async fn a_port_that_is_taken_is_named() {
    let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = taken.local_addr().unwrap().port();
    let any = vec!["127.0.0.1:0".parse().unwrap()];
    let listen = HostPort { port, ..local().listen };
    let http = Some(ProxyHttp { listen, ..local() });
    let config = ProxyConfig { http, ..ProxyConfig::new("test", any, Vec::new()) };
    let error = Proxy::bind(config).await.unwrap_err().to_string();
    assert!(error.contains(&format!("127.0.0.1:{port} (pgherd.proxy.http)")), "{error}");
}

#[tokio::test]
async fn who_does_not_know_the_password_of_now_sees_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("password");
    let write = |password: &str| {
        std::fs::write(&file, password).unwrap();
        let private = std::os::unix::fs::PermissionsExt::from_mode(0o600);
        std::fs::set_permissions(&file, private).unwrap();
    };
    write("one\n");
    let (_a, rig) = one(|config| {
        observed(config);
        let user = HttpUser { username: "eye".to_owned(), password_file: file.clone() };
        config.http = Some(ProxyHttp { user: Some(user), ..local() });
    })
    .await;
    for path in ["/metrics", "/status", "/health", "/read-write", "/elsewhere"] {
        for user in [None, Some(("eye", "two")), Some(("boss", "one"))] {
            assert_eq!(get(&rig, path, user).await.0, 401, "{path} {user:?}");
        }
    }
    assert_eq!(get(&rig, "/metrics", Some(("eye", "one"))).await.0, 200);
    write("two\n");
    let mut boss = Client::open_as(rig.address(READ_WRITE), "boss", "pgherd").await.unwrap();
    assert_eq!(boss.query("RELOAD").await.unwrap(), "RELOAD");
    assert_eq!(get(&rig, "/metrics", Some(("eye", "one"))).await.0, 401);
    assert_eq!(get(&rig, "/metrics", Some(("eye", "two"))).await.0, 200);
    write("");
    assert_eq!(boss.query("RELOAD").await.unwrap_err().sqlstate, "F0000");
    assert_eq!(get(&rig, "/metrics", Some(("eye", "two"))).await.0, 200, "it stays as it was");
}

/// A certificate that is its own authority.
fn certificate(dir: &Path) -> Identity {
    let (key, crt) = (dir.join("one.key"), dir.join("one.crt"));
    let done = Command::new("openssl")
        .args(["req", "-x509", "-new", "-nodes", "-newkey", "ec", "-subj", "/CN=proxy"])
        .args(["-pkeyopt", "ec_paramgen_curve:prime256v1"])
        .args(["-addext", "subjectAltName=IP:127.0.0.1", "-keyout"])
        .arg(&key)
        .arg("-out")
        .arg(&crt)
        .output();
    assert!(done.expect("openssl is there").status.success());
    Identity { certificate: crt, key: Some(key), password: None }
}

#[tokio::test]
async fn with_an_authority_only_who_shows_a_certificate_of_it_is_let_in() {
    let dir = tempfile::tempdir().unwrap();
    let identity = certificate(dir.path());
    let files = CertificateFiles {
        certfile: identity.certificate.clone(),
        keyfile: identity.key.clone(),
        keyfile_password: None,
    };
    let (_a, rig) = one(|config| {
        observed(config);
        config.pool_mode = PoolMode::Session;
        let ca = Some(identity.certificate.clone());
        config.http = Some(ProxyHttp { certificate: Some(files), ca, ..local() });
    })
    .await;
    let ask = async |shows: Option<&Identity>| {
        let client = RestClient::new(ClientSettings {
            authorities: Some(identity.certificate.clone()),
            revoked: Vec::new(),
            verify: Verify::AuthorityAndHost,
            identity: shows.cloned(),
        });
        let address = RestAddress { tls: true, ..RestAddress::plain("127.0.0.1", rig.http()) };
        let asked = client.request("GET", &address, "/metrics", None, None, PATIENCE).await;
        asked.ok().map(|(status, _)| status)
    };
    assert_eq!(ask(Some(&identity)).await, Some(200));
    assert_eq!(ask(None).await, None);
}
