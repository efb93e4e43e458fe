//! Where the databases are that clients ask for. This is the one place that says it.

use std::collections::BTreeMap;
use std::sync::Arc;

use ::config::ProxyDatabase;
use route::link::PoolMode;

use crate::config::ProxyConfig;
use crate::hub::Hub;

/// A database names a cluster that the proxy does not follow.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "the database \"{database}\" is in the cluster \"{cluster}\", which the proxy does not know"
)]
pub struct UnknownCluster {
    /// The database, as clients call it.
    pub database: String,
    /// The cluster.
    pub cluster: String,
}

/// Where the clients of a database are led, and how they share connections there.
pub(crate) struct Destination {
    pub(crate) hub: Arc<Hub>,
    /// What the database is called there; `None`: as clients call it.
    dbname: Option<String>,
    /// Connections of each user at each member, at most.
    pub(crate) pool_size: usize,
    /// How long clients have one of them.
    pub(crate) pool_mode: PoolMode,
}

impl Destination {
    /// What servers call the database that clients call so.
    pub(crate) fn dbname<'a>(&'a self, asked: &'a str) -> &'a str {
        self.dbname.as_deref().unwrap_or(asked)
    }
}

/// Every database's destination, by the names that clients know.
pub(crate) struct Destinations {
    named: BTreeMap<String, Destination>,
    others: Destination,
}

impl Destinations {
    /// Those of the configuration; `own` is the hub of the cluster that needs no name.
    ///
    /// # Errors
    /// [`UnknownCluster`].
    pub(crate) fn new(
        config: &ProxyConfig,
        own: &Arc<Hub>,
        others: &BTreeMap<String, Arc<Hub>>,
    ) -> Result<Destinations, UnknownCluster> {
        let destination = |name: &str, database: &ProxyDatabase| {
            let hub = match &database.cluster {
                None => own,
                Some(cluster) => others.get(cluster).ok_or_else(|| UnknownCluster {
                    database: name.to_owned(),
                    cluster: cluster.clone(),
                })?,
            };
            Ok(Destination {
                hub: hub.clone(),
                dbname: database.dbname.clone(),
                pool_size: database.pool_size.unwrap_or(config.pool_size),
                pool_mode: database.pool_mode.map_or(config.pool_mode, crate::config::pool_mode),
            })
        };
        let named = config.databases.named.iter();
        let named = named.map(|(name, database)| Ok((name.clone(), destination(name, database)?)));
        Ok(Destinations {
            named: named.collect::<Result<_, _>>()?,
            others: destination("*", &config.databases.others)?,
        })
    }

    /// Where the clients of the database are led that they call so.
    pub(crate) fn find(&self, asked: &str) -> &Destination {
        self.named.get(asked).unwrap_or(&self.others)
    }

    /// The databases that have a destination of their own.
    pub(crate) fn named(&self) -> impl Iterator<Item = &str> {
        self.named.keys().map(String::as_str)
    }
}
