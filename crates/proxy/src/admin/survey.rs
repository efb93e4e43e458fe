//! What there is at one moment, in all clusters: what `SHOW` shows.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use route::link::PoolMode;
use route::{ClientId, PoolId, ServerId, ServerPhase, ServerUse, Target, Waiting};
use types::Millis;

use crate::front::Front;
use crate::hub::PoolKey;
use crate::stats::Totals;
use crate::visitors::{Errand, Visitor};

/// What there is at one moment.
#[derive(Debug, Clone)]
pub(crate) struct Survey {
    pub(crate) wall: Timestamp,
    /// Connections from clients, signed in or not.
    pub(crate) clients: usize,
    pub(crate) visitors: BTreeMap<ClientId, Visitor>,
    /// The own cluster first.
    pub(crate) clusters: Vec<ClusterSurvey>,
    /// Those that have pools, and those that the configuration names.
    pub(crate) databases: BTreeMap<String, DatabaseSurvey>,
}

/// A cluster at that moment.
#[derive(Debug, Clone)]
pub(crate) struct ClusterSurvey {
    pub(crate) name: String,
    /// The router's time.
    pub(crate) now: Millis,
    /// By database and user.
    pub(crate) pools: Vec<PoolSurvey>,
    /// How long the last whole period of averages was; 0 before the first has ended.
    pub(crate) period: Duration,
    pub(crate) servers: Vec<ServerUse>,
    pub(crate) waiting: BTreeMap<ClientId, Waiting>,
    pub(crate) paused: bool,
    pub(crate) primary: Option<Target>,
}

/// A pool at that moment.
#[derive(Debug, Clone)]
pub(crate) struct PoolSurvey {
    pub(crate) id: PoolId,
    pub(crate) key: PoolKey,
    /// What servers call the database.
    pub(crate) dbname: String,
    /// Since the start.
    pub(crate) totals: Totals,
    /// Of the last whole period.
    pub(crate) last: Totals,
}

/// Where a database is.
#[derive(Debug, Clone)]
pub(crate) struct DatabaseSurvey {
    /// The number of its cluster among those of the survey.
    pub(crate) cluster: usize,
    pub(crate) dbname: String,
    pub(crate) pool_size: usize,
    pub(crate) pool_mode: PoolMode,
}

/// How the clients and the servers of a pool are.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct PoolTally {
    pub(crate) clients: usize,
    pub(crate) waiting: usize,
    pub(crate) longest: Duration,
    pub(crate) lent: usize,
    pub(crate) idle: usize,
    pub(crate) cleaning: usize,
    pub(crate) opening: usize,
}

impl ClusterSurvey {
    pub(super) fn age(&self, since: Millis) -> Duration {
        Millis(self.now.0.saturating_sub(since.0)).as_duration()
    }

    pub(crate) fn keys(&self) -> BTreeMap<PoolId, &PoolKey> {
        self.pools.iter().map(|pool| (pool.id, &pool.key)).collect()
    }

    /// Its servers, each with whose it is.
    pub(super) fn servers(&self) -> impl Iterator<Item = (&ServerUse, &PoolKey)> {
        let keys = self.keys();
        self.servers.iter().filter_map(move |server| Some((server, *keys.get(&server.pool)?)))
    }
}

impl Survey {
    /// What there is now.
    pub(crate) fn of(front: &Front) -> Survey {
        // Clients first: one that comes meanwhile has no server that could be missing here.
        let visitors = front.visitors.all();
        let mut databases = BTreeMap::new();
        let mut clusters = Vec::new();
        for (number, hub) in front.hubs().enumerate() {
            let mut cluster = hub.survey();
            for pool in &mut cluster.pools {
                let destination = front.destination(&pool.key.database);
                if !Arc::ptr_eq(&destination.hub, hub) {
                    // What the proxy asks there about users: no client is led there by this name.
                    pool.key.database = format!("{}@{}", pool.key.database, hub.name);
                }
                let database = DatabaseSurvey {
                    cluster: number,
                    dbname: pool.dbname.clone(),
                    pool_size: destination.pool_size,
                    pool_mode: destination.pool_mode,
                };
                databases.insert(pool.key.database.clone(), database);
            }
            for name in front.databases() {
                let destination = front.destination(name);
                if Arc::ptr_eq(&destination.hub, hub) {
                    let database = DatabaseSurvey {
                        cluster: number,
                        dbname: destination.dbname(name).to_owned(),
                        pool_size: destination.pool_size,
                        pool_mode: destination.pool_mode,
                    };
                    databases.insert(name.to_owned(), database);
                }
            }
            clusters.push(cluster);
        }
        Survey { wall: Timestamp::now(), clients: front.count(), visitors, clusters, databases }
    }

    pub(super) fn pools(&self) -> impl Iterator<Item = &PoolSurvey> {
        self.clusters.iter().flat_map(|cluster| &cluster.pools)
    }

    /// The number of a server connection, which is unique in its cluster only.
    pub(super) fn server_name(&self, cluster: usize, server: ServerId) -> String {
        match self.clusters.get(cluster) {
            Some(of) if cluster > 0 => format!("{}/{server}", of.name),
            Some(_) | None => server.to_string(),
        }
    }

    /// How long each client has waited.
    pub(super) fn waiting(&self) -> BTreeMap<ClientId, Duration> {
        let of = |cluster: &ClusterSurvey| {
            let age =
                |(client, waiting): (&ClientId, &Waiting)| (*client, cluster.age(waiting.since));
            cluster.waiting.iter().map(age).collect::<Vec<_>>()
        };
        self.clusters.iter().flat_map(of).collect()
    }

    /// The counters of each database: since the start, in the last period, and how long that was.
    pub(super) fn totals(&self) -> BTreeMap<&str, (Totals, Totals, Duration)> {
        let mut sums: BTreeMap<&str, (Totals, Totals, Duration)> = BTreeMap::new();
        for cluster in &self.clusters {
            for pool in &cluster.pools {
                let (totals, last, period) = sums.entry(&pool.key.database).or_default();
                *totals += pool.totals;
                *last += pool.last;
                *period = cluster.period;
            }
        }
        sums
    }

    /// Each pool that has any of them.
    pub(crate) fn tallies(&self) -> BTreeMap<&PoolKey, PoolTally> {
        let mut tallies: BTreeMap<&PoolKey, PoolTally> = BTreeMap::new();
        let mut waiting_anywhere = BTreeSet::new();
        for cluster in &self.clusters {
            for (server, key) in cluster.servers() {
                let tally = tallies.entry(key).or_default();
                match server.phase {
                    ServerPhase::Opening => tally.opening += 1,
                    ServerPhase::Idle => tally.idle += 1,
                    ServerPhase::Lent(_) => tally.lent += 1,
                    ServerPhase::Cleaning => tally.cleaning += 1,
                }
            }
            let keys = cluster.keys();
            for (client, waiting) in &cluster.waiting {
                waiting_anywhere.insert(*client);
                if let Some(key) = waiting.pool.and_then(|pool| keys.get(&pool)) {
                    let tally = tallies.entry(key).or_default();
                    tally.waiting += 1;
                    tally.longest = tally.longest.max(cluster.age(waiting.since));
                }
            }
        }
        for (client, visitor) in &self.visitors {
            match visitor.errand {
                Errand::Pool if !waiting_anywhere.contains(client) => {
                    tallies.entry(&visitor.who).or_default().clients += 1;
                }
                Errand::Pool | Errand::Session | Errand::Admin => {}
            }
        }
        tallies
    }
}
