//! The proxy's figures at one moment. [`text`] writes them down for Prometheus.
//!
//! Users and databases have figures once a server has let one of their sessions in: names that
//! somebody makes up have none.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::time::Duration;

use route::{CutReason, PoolId, Port, ServerPhase, Snapshot};

use crate::LoweredCommit;
use crate::admin::{ClusterSurvey, PoolTally, Survey};
use crate::front::Front;
use crate::histogram::Spread;
use crate::hub::{Hub, PoolKey};
use crate::stats::{Counters, Stats, Totals};
use crate::tally::{Cancelled, Outcome};

mod text;

const PORTS: [Port; 2] = [Port::ReadWrite, Port::ReadOnly];

/// All figures.
#[derive(Debug, Clone)]
pub(crate) struct Figures {
    clients: usize,
    clients_max: usize,
    panics: u64,
    logins: BTreeMap<(Port, Outcome), u64>,
    errors: BTreeMap<(Port, String), u64>,
    cancels: BTreeMap<Cancelled, u64>,
    clusters: Vec<Cluster>,
}

/// Those of one cluster.
#[derive(Debug, Clone)]
struct Cluster {
    name: String,
    routes: Snapshot,
    view_age: Duration,
    lowered: LoweredCommit,
    cuts: BTreeMap<(Port, CutReason), u64>,
    opened: Spread,
    not_opened: u64,
    pools: Vec<Pool>,
    sessions: Vec<Sessions>,
}

/// Those of a pool.
#[derive(Debug, Clone)]
struct Pool {
    key: PoolKey,
    size: usize,
    now: PoolTally,
    /// Connections by member and phase.
    servers: BTreeMap<(String, &'static str), usize>,
    work: Vec<Work>,
}

/// What was done for the clients of one port.
#[derive(Debug, Clone)]
struct Work {
    port: Port,
    totals: Totals,
    lent: Spread,
    waited: Spread,
}

/// Those of clients with a connection of their own.
#[derive(Debug, Clone)]
struct Sessions {
    key: PoolKey,
    open: Vec<(Port, usize)>,
    work: Vec<Work>,
}

impl Figures {
    /// What there is now.
    pub(crate) fn of(front: &Front) -> Figures {
        Figures {
            clients: front.count(),
            clients_max: front.config.client_limit,
            panics: front.panics(),
            logins: front.tally.logins.all(),
            errors: front.tally.errors.all(),
            cancels: front.tally.cancels.all(),
            clusters: Cluster::all(front),
        }
    }
}

impl Cluster {
    fn all(front: &Front) -> Vec<Cluster> {
        let survey = Survey::of(front);
        let tallies = survey.tallies();
        let clusters = survey.clusters.iter().zip(front.hubs());
        clusters.map(|(cluster, hub)| Cluster::of((&survey, &tallies), cluster, hub)).collect()
    }

    fn of(
        (survey, tallies): (&Survey, &BTreeMap<&PoolKey, PoolTally>),
        cluster: &ClusterSurvey,
        hub: &Hub,
    ) -> Cluster {
        let shown = cluster.keys();
        let mut servers = servers(cluster);
        let pools = hub.pools();
        let known = pools.iter().filter(|pool| pool.was_let_in());
        let pools = known.filter_map(|pool| {
            // What SHOW shows it as; one that is newer than the survey comes the next time.
            let shown = *shown.get(&pool.id)?;
            Some(Pool {
                key: pool.key.clone(),
                size: survey.databases.get(&shown.database)?.pool_size,
                now: tallies.get(shown).copied().unwrap_or_default(),
                servers: servers.remove(&pool.id).unwrap_or_default(),
                work: work(&pool.stats),
            })
        });
        let tally = &hub.tally;
        let sessions = tally.sessions.all().into_iter().map(|(key, sessions)| Sessions {
            key,
            open: PORTS.map(|port| (port, sessions.open_at(port).load(Ordering::Relaxed))).to_vec(),
            work: work(&sessions.stats),
        });
        Cluster {
            name: hub.name.clone(),
            pools: pools.collect(),
            sessions: sessions.collect(),
            routes: hub.snapshot(),
            view_age: tally.view_age(),
            lowered: hub.lowering.counters(),
            cuts: tally.cuts.all(),
            opened: tally.opened.spread(),
            not_opened: tally.not_opened.load(Ordering::Relaxed),
        }
    }
}

/// The connections of each pool, by member and phase.
fn servers(cluster: &ClusterSurvey) -> BTreeMap<PoolId, BTreeMap<(String, &'static str), usize>> {
    let mut pools: BTreeMap<PoolId, BTreeMap<_, usize>> = BTreeMap::new();
    for server in &cluster.servers {
        let phase = match server.phase {
            ServerPhase::Opening => "opening",
            ServerPhase::Idle => "idle",
            ServerPhase::Lent(_) => "active",
            ServerPhase::Cleaning => "cleaning",
        };
        let place = (server.member.0.clone(), phase);
        *pools.entry(server.pool).or_default().entry(place).or_default() += 1;
    }
    pools
}

/// The ports that had clients.
fn work(stats: &Stats) -> Vec<Work> {
    let of = |port| {
        let counters: &Counters = stats.at(port);
        let (totals, waited) = (counters.totals(), counters.waited.spread());
        let idle = totals == Totals::default() && waited.is_empty();
        (!idle).then(|| Work { port, totals, lent: counters.lent.spread(), waited })
    };
    PORTS.into_iter().filter_map(of).collect()
}
