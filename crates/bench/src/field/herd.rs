//! How the cost grows: many clusters of three agents against one DCS. The agents are real; their
//! PostgreSQL is not there, or the machine would be full of servers. A line through what was
//! measured says what many more would need.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, ensure};
use lab::cluster::FailoverMode;
use lab::ground::{self, Ground};
use lab::service::{Service, Spec};
use lab::{etcd, http, network, tools, usage, view};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::time::Instant;

use super::cost::{changes, requests};
use super::results::Results;
use super::{Run, rounded};
use crate::statistics::line;

/// How many clusters at a time.
const CLUSTERS: [u16; 6] = [1, 2, 5, 10, 20, 50];
/// What the line is drawn to.
pub(crate) const MANY: f64 = 10_000.0;
/// Agents of a cluster.
const MEMBERS: u16 = 3;
/// How long is measured.
const WINDOW: Duration = Duration::from_secs(60);
/// How long they are left alone before.
const CALM: Duration = Duration::from_secs(10);
/// How long clusters may take to have a leader, all of them.
const START_LIMIT: Duration = Duration::from_secs(180);
/// How often they are looked at.
const POLL: Duration = Duration::from_millis(500);
/// Between the starts of two clusters: they are not to begin all at once.
const STAGGER: Duration = Duration::from_millis(300);
const RESTART_AFTER: Duration = Duration::from_secs(3);
/// How long something may take that tells something.
const LIMIT: Duration = Duration::from_secs(10);
const ETCD_PORTS: [u16; 2] = [2379, 2380];
/// The first REST port, and the first of the ports that nobody listens at.
const REST_PORT: u16 = 20_000;
const POSTGRES_PORT: u16 = 30_000;

/// What so many clusters used together.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(crate) struct Outcome {
    pub(crate) clusters: u16,
    /// Of all agents and guards.
    pub(crate) agents_memory_mib: f64,
    /// In percent of one processor.
    pub(crate) agents_processor: f64,
    pub(crate) etcd_memory_mib: f64,
    pub(crate) etcd_processor: f64,
    /// A second.
    pub(crate) dcs_requests: f64,
    /// A second.
    pub(crate) dcs_changes: f64,
    /// Between agents and etcd, and among agents.
    pub(crate) network_bytes: f64,
}

/// One of its quantities.
pub(crate) type Quantity = (&'static str, fn(&Outcome) -> f64);

/// All of them, with their units.
pub(crate) const QUANTITIES: [Quantity; 7] = [
    ("memory of agents, MiB", |one| one.agents_memory_mib),
    ("processor of agents, %", |one| one.agents_processor),
    ("memory of etcd, MiB", |one| one.etcd_memory_mib),
    ("processor of etcd, %", |one| one.etcd_processor),
    ("requests to etcd a second", |one| one.dcs_requests),
    ("changes in etcd a second", |one| one.dcs_changes),
    ("network, kB/s", |one| one.network_bytes / 1000.0),
];

/// What counts up, as it was at one moment.
struct Counters {
    agents_seconds: f64,
    etcd_seconds: f64,
    requests: f64,
    changes: f64,
    bytes: f64,
}

/// What of it is not measured yet.
pub(super) fn todo(results: &Results) -> Vec<u16> {
    CLUSTERS.into_iter().filter(|clusters| !results.has_herd(*clusters)).collect()
}

/// About how long these take.
pub(super) fn expected(todo: &[u16]) -> Duration {
    todo.iter().map(|clusters| WINDOW + CALM * 2 + STAGGER * u32::from(*clusters)).sum()
}

/// Measures them; `false` if one was given up.
///
/// # Errors
/// The results cannot be written.
pub(super) async fn measure(run: &mut Run<'_>) -> anyhow::Result<bool> {
    let mut complete = true;
    for clusters in todo(&run.results) {
        let outcome = of_many(run, clusters).await;
        run.progress.done(expected(&[clusters]));
        match outcome {
            Ok(outcome) => {
                run.progress.tell(&format!("{clusters} clusters: {outcome:?}"));
                run.results.add_herd(outcome)?;
            }
            Err(error) => {
                complete = false;
                run.given_up(&format!("{clusters} clusters"), &error);
            }
        }
    }
    Ok(complete)
}

/// Many clusters on one host.
struct Herd {
    etcd: Service,
    agents: Vec<Service>,
    clusters: u16,
    ground: Ground,
}

async fn of_many(run: &Run<'_>, clusters: u16) -> anyhow::Result<Outcome> {
    let scratch = run.scratch()?;
    ground::sweep();
    let ground = Ground::new(&scratch.0, &["herd", "client"])?;
    let etcd = start_etcd(&ground, &scratch.0)?;
    let mut herd = Herd { etcd, agents: Vec::new(), clusters, ground };
    for cluster in 0..clusters {
        for member in 0..MEMBERS {
            let spec = agent(&run.programs.pgherd, &scratch.0, cluster, member)?;
            herd.agents.push(herd.ground.start(0, spec));
        }
        tokio::time::sleep(STAGGER).await;
    }
    herd.until_led().await?;
    tokio::time::sleep(CALM).await;
    let before = herd.counters().await?;
    tokio::time::sleep(WINDOW).await;
    let after = herd.counters().await?;
    let a_second = |before: f64, after: f64| rounded((after - before) / WINDOW.as_secs_f64());
    let (agents, etcd) = herd.pids();
    let memory = |pids: &[u32]| rounded(pids.iter().filter_map(|pid| usage::pss_mib(*pid)).sum());
    Ok(Outcome {
        clusters,
        agents_memory_mib: memory(&agents),
        agents_processor: rounded(a_second(before.agents_seconds, after.agents_seconds) * 100.0),
        etcd_memory_mib: memory(&etcd),
        etcd_processor: rounded(a_second(before.etcd_seconds, after.etcd_seconds) * 100.0),
        dcs_requests: a_second(before.requests, after.requests),
        dcs_changes: a_second(before.changes, after.changes),
        network_bytes: a_second(before.bytes, after.bytes),
    })
}

fn start_etcd(ground: &Ground, directory: &Path) -> anyhow::Result<Service> {
    let [client_port, peer_port] = ETCD_PORTS;
    let member = etcd::Member {
        name: "etcd".to_owned(),
        data_dir: directory.join("etcd"),
        address: network::address(0),
        client_port,
        peer_port,
    };
    let program = tools::etcd()?;
    Ok(ground.start(0, member.service(std::slice::from_ref(&member), &program, RESTART_AFTER)))
}

fn scope(cluster: u16) -> String {
    format!("pretended-{cluster}")
}

fn rest_port(cluster: u16, member: u16) -> u16 {
    REST_PORT + cluster * MEMBERS + member
}

/// One agent, with its file.
fn agent(program: &Path, directory: &Path, cluster: u16, member: u16) -> anyhow::Result<Spec> {
    let name = format!("node{}", member + 1);
    let own = directory.join(scope(cluster)).join(&name);
    std::fs::create_dir_all(&own).with_context(|| format!("cannot make {}", own.display()))?;
    let file = own.join("agent.json");
    let text = serde_json::to_string_pretty(&configuration(&own, cluster, member)?)?;
    std::fs::write(&file, text).with_context(|| format!("cannot write {}", file.display()))?;
    Ok(Spec {
        name: format!("{}-{name}", scope(cluster)),
        program: program.to_owned(),
        arguments: ["agent", "--pretend", "-c"]
            .map(OsString::from)
            .into_iter()
            .chain([file.into()])
            .collect(),
        log: own.join("agent.log"),
        restart_after: RESTART_AFTER,
        group: None,
    })
}

fn configuration(own: &Path, cluster: u16, member: u16) -> anyhow::Result<Value> {
    let host = network::address(0);
    let rest = format!("{host}:{}", rest_port(cluster, member));
    let postgres = format!("{host}:{}", POSTGRES_PORT + cluster * MEMBERS + member);
    let login = |name: &str| json!({"username": name, "password": "none"});
    let bin_dir: PathBuf = super::site::postgres_bin_dir()?;
    Ok(json!({
        "scope": scope(cluster),
        "name": format!("node{}", member + 1),
        "etcd3": {"hosts": [format!("{host}:{}", ETCD_PORTS[0])]},
        "watchdog": {"mode": "off"},
        "restapi": {"listen": rest, "connect_address": rest},
        "bootstrap": {"dcs": lab::cluster::dynamic(10, Some(FailoverMode::Fenced))},
        "postgresql": {
            "listen": postgres,
            "connect_address": postgres,
            "data_dir": own.join("data"),
            "bin_dir": bin_dir,
            "authentication": {
                "superuser": login("postgres"),
                "replication": login("replicator"),
                "rewind": login("rewinder"),
            },
        },
        "pgherd": {"state_dir": own.join("state"), "os_user": tools::OS_USER},
    }))
}

impl Herd {
    /// Waits until every cluster has a leader and all its members.
    async fn until_led(&self) -> anyhow::Result<()> {
        let until = Instant::now() + START_LIMIT;
        for cluster in 0..self.clusters {
            let address = (network::address(0), rest_port(cluster, 0)).into();
            loop {
                let views = view::ask_all(&[address]).await;
                let view = views.first().and_then(Option::as_ref);
                let whole = |view: &view::View| {
                    view.leader().is_some() && view.members.len() == usize::from(MEMBERS)
                };
                if view.is_some_and(whole) {
                    break;
                }
                ensure!(
                    Instant::now() < until,
                    "{} is not whole after {START_LIMIT:?}: {view:?}",
                    scope(cluster)
                );
                tokio::time::sleep(POLL).await;
            }
        }
        Ok(())
    }

    /// The processes of agents, with their guards, and of etcd.
    fn pids(&self) -> (Vec<u32>, Vec<u32>) {
        let etcd: Vec<u32> = self.etcd.pid().into_iter().collect();
        let all = self.ground.group(0).pids();
        (all.into_iter().filter(|pid| !etcd.contains(pid)).collect(), etcd)
    }

    async fn counters(&self) -> anyhow::Result<Counters> {
        let started = self.agents.iter().map(|agent| agent.state().starts);
        let restarts: u32 = started.map(|starts| starts.saturating_sub(1)).sum();
        ensure!(restarts == 0, "agents have ended {restarts} times");
        let (agents, etcd) = self.pids();
        let seconds = |pids: &[u32]| -> f64 {
            pids.iter().filter_map(|pid| usage::processor_seconds_with_children(*pid)).sum()
        };
        let address = (network::address(0), ETCD_PORTS[0]).into();
        let (_, metrics) = http::get(address, "/metrics", LIMIT).await.context("etcd")?;
        let metrics = String::from_utf8_lossy(&metrics);
        let devices = super::cost::devices(&self.ground, 0).await?;
        Ok(Counters {
            agents_seconds: seconds(&agents),
            etcd_seconds: seconds(&etcd),
            requests: requests(&metrics).values().sum(),
            changes: changes(&metrics),
            bytes: super::cost::sent(&devices, "lo:").context("no loopback")?,
        })
    }
}

/// A line through one quantity: at no cluster, for each more, and at [`MANY`].
pub(crate) fn model(outcomes: &[Outcome], of: fn(&Outcome) -> f64) -> Option<[f64; 3]> {
    let points = outcomes.iter().map(|one| (f64::from(one.clusters), of(one)));
    let (at_none, each) = line(&points.collect::<Vec<_>>())?;
    Some([at_none, each, at_none + each * MANY])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_what_many_would_need() {
        let outcome = |clusters: u16| Outcome {
            clusters,
            agents_memory_mib: 0.0,
            agents_processor: 0.0,
            etcd_memory_mib: 20.0 + f64::from(clusters) * 0.5,
            etcd_processor: 0.0,
            dcs_requests: f64::from(clusters) * 3.0,
            dcs_changes: 0.0,
            network_bytes: 0.0,
        };
        let outcomes = [outcome(1), outcome(10), outcome(50)];
        let [at_none, each, many] =
            model(&outcomes, |one| one.etcd_memory_mib).expect("there are points");
        assert!((at_none - 20.0).abs() < 1e-6 && (each - 0.5).abs() < 1e-9);
        assert!((many - 5020.0).abs() < 1e-3);
        assert_eq!(model(&outcomes[..1], |one| one.dcs_requests), None);
    }

    #[test]
    fn no_two_agents_share_a_port() {
        let last = rest_port(CLUSTERS[CLUSTERS.len() - 1] - 1, MEMBERS - 1);
        assert!(last < POSTGRES_PORT && rest_port(0, 2) < rest_port(1, 0));
    }
}
