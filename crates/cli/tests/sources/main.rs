//! Where proxies learn of their cluster, with real ones: from etcd and the members, from the
//! members alone; and what a proxy does that could learn nothing, since it was frozen or killed.
//!
//! One cluster goes through all of it: half a minute.
#![allow(clippy::unwrap_used, missing_docs, unreachable_pub)]

#[path = "../common/mod.rs"]
mod common;
mod lab;

use std::collections::BTreeSet;

use ::lab::process::signal;
use ::lab::relay::{Direction, Relay};
use rustix::process::Signal;
use serde_json::{Value, json};
use tokio::task::spawn_blocking;
use tokio_postgres::error::SqlState;

use self::common::wait_for;
use self::lab::{LIMIT, Lab, Proxy, Session, password, psql_at, write};

/// 40001, 57P01 and 08007: what docs/proxy.md says a client gets when its primary goes.
const LOST: [SqlState; 3] = [
    SqlState::T_R_SERIALIZATION_FAILURE,
    SqlState::ADMIN_SHUTDOWN,
    SqlState::TRANSACTION_RESOLUTION_UNKNOWN,
];

struct Site {
    lab: Lab,
    password: String,
    /// Of a proxy with its way to etcd.
    relays: Vec<Relay>,
    /// It has members alone.
    by_members: Proxy,
    /// It has etcd, and names no member.
    by_etcd: Proxy,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn proxies_follow_their_cluster_by_etcd_and_by_its_members() {
    let mut site = Site::start().await;
    a_planned_switchover_by_members(&site).await;
    a_failover_without_etcd(&site).await;
    a_proxy_that_was_frozen(&site).await;
    a_proxy_that_is_killed(&mut site).await;
    site.lab.demo.stop();
}

impl Site {
    /// The proxy is there first, and a client with it, who waits for the cluster.
    async fn start() -> Site {
        let lab = Lab::new();
        let members = json!({"members": lab.members(), "hold_timeout": LIMIT.as_secs()});
        let by_members = lab.proxy("by-members", &Value::Null, &members);
        by_members.says("a member tells nothing of the cluster", 3);
        // Sessions wait for as long as they are told to, and a cluster takes its time to begin.
        let (dir, port) = (lab.demo.dir.clone(), by_members.port);
        let served = tokio::spawn(async move {
            let password = spawn_blocking(move || password(&dir)).await.unwrap();
            let session = Session::open(port, &password).await.expect("it is served");
            (password, session.primary().await)
        });
        lab.demo.start(&[]);
        let (password, primary) = served.await.unwrap();
        let leader = lab.demo.settled(2);
        assert_eq!(primary, lab.postgres_port(&leader));
        let mut relays = Vec::new();
        for endpoint in lab.etcd() {
            relays.push(Relay::start(0, endpoint).await.unwrap());
        }
        let hosts: Vec<String> =
            relays.iter().map(|relay| format!("127.0.0.1:{}", relay.port)).collect();
        let pooling = lab.pooling(&password);
        let by_etcd = lab.proxy("by-etcd", &json!({"etcd3": {"hosts": hosts}}), &pooling);
        psql_at(&[by_etcd.port], &password, "CREATE TABLE t (id int PRIMARY KEY)");
        Site { lab, password, relays, by_members, by_etcd }
    }

    async fn session(&self, proxy: &Proxy) -> Session {
        Session::open(proxy.port, &self.password).await.expect("it is served")
    }

    fn port(&self, member: &str) -> BTreeSet<u16> {
        [self.lab.postgres_port(member)].into()
    }
}

async fn a_planned_switchover_by_members(site: &Site) {
    let session = site.session(&site.by_members).await;
    let leader = site.lab.switch_over();
    // In session mode it cannot go on elsewhere, and is told so.
    let end = session.end().await.expect("an error");
    assert_eq!(end.code(), Some(&SqlState::ADMIN_SHUTDOWN), "{end}");
    for proxy in [&site.by_members, &site.by_etcd] {
        assert_eq!(site.session(proxy).await.primary().await, site.lab.postgres_port(&leader));
    }
}

async fn a_failover_without_etcd(site: &Site) {
    let old = site.lab.demo.settled(2);
    let session = site.session(&site.by_etcd).await;
    assert_eq!(session.primary().await, site.lab.postgres_port(&old));
    for relay in &site.relays {
        relay.cut(Direction::Both);
    }
    wait_for("the DCS is lost", LIMIT, || site.by_etcd.asks_members().then_some(()));
    assert_eq!(session.primary().await, site.lab.postgres_port(&old), "an open route stays");

    signal(site.lab.pid(&old, "postmaster_pid"), Signal::KILL).unwrap();
    let leader = site.lab.deposed(&old);
    // Nothing was begun: it waits, if it has to, and goes on at the new primary.
    let new = session.primary().await;
    assert_eq!(new, site.lab.postgres_port(&leader));
    // The old one runs again, as a standby.
    assert_eq!(site.lab.demo.settled(2), leader);
    let servers = write(site.by_etcd.port, &site.password, 0..10).await;
    assert_eq!(servers, site.port(&leader));
    let servers = write(site.by_members.port, &site.password, 10..20).await;
    assert_eq!(servers, site.port(&leader));
    assert!(site.by_etcd.asks_members(), "etcd is away still");

    for relay in &site.relays {
        relay.heal();
    }
    wait_for("the DCS is followed", LIMIT, || (!site.by_etcd.asks_members()).then_some(()));
    assert_eq!(session.primary().await, new);
    let leader = site.lab.switch_over();
    assert_eq!(session.primary().await, site.lab.postgres_port(&leader));
}

/// The old primary and the proxy stand still while the others elect, and go on at the same time:
/// what the client says meanwhile may reach the old one, and is acknowledged by nobody.
async fn a_proxy_that_was_frozen(site: &Site) {
    let old = site.lab.demo.settled(2);
    let session = site.session(&site.by_etcd).await;
    assert_eq!(session.primary().await, site.lab.postgres_port(&old));
    session.run("BEGIN; INSERT INTO t VALUES (1000)").await.expect("the transaction is open");
    let (host, agent) = (site.lab.host(&old), site.lab.pid(&old, "agent_pid"));
    signal(site.by_etcd.pid(), Signal::STOP).unwrap();
    let frozen = host.freeze(Some(agent)).await.unwrap();
    let leader = site.lab.deposed(&old);
    let servers = write(site.by_members.port, &site.password, 20..21).await;
    assert_eq!(servers, site.port(&leader));

    let committing = session.run("COMMIT");
    let thawing = async {
        signal(site.by_etcd.pid(), Signal::CONT).unwrap();
        host.thaw(&frozen).unwrap();
    };
    let (committed, ()) = tokio::join!(committing, thawing);
    let error = committed.expect_err("it is not acknowledged");
    assert!(error.code().is_some_and(|code| LOST.contains(code)), "{error:?}");

    let servers = write(site.by_etcd.port, &site.password, 21..22).await;
    assert_eq!(servers, site.port(&leader));
    let session = site.session(&site.by_etcd).await;
    let rows = session.run("SELECT count(*) FROM t WHERE id = 1000").await.unwrap();
    assert_eq!(rows, ["0"], "nobody was told that it was there, and it is not");
    let leader = site.lab.demo.settled(2);
    assert_eq!(session.primary().await, site.lab.postgres_port(&leader));
}

/// A client with both proxies in its connection string finds the other one.
async fn a_proxy_that_is_killed(site: &mut Site) {
    let ports = [site.by_members.port, site.by_etcd.port];
    let session = site.session(&site.by_members).await;
    assert_eq!(psql_at(&ports, &site.password, "SELECT count(*) FROM t"), "22");
    signal(site.by_members.pid(), Signal::KILL).unwrap();
    site.by_members.process.0.wait().unwrap();
    assert!(session.run("SELECT 1").await.is_err());
    assert_eq!(psql_at(&ports, &site.password, "SELECT count(*) FROM t"), "22");
}
