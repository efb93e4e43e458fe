//! `pgherd.proxy.clusters` and `pgherd.proxy.databases`: which clusters a proxy follows besides the
//! file's own, and where the databases are that clients ask for.

use std::collections::BTreeMap;

use types::RestAddress;
use types::keys::prefix;

use crate::check::{Findings, check, word};
use crate::etcd;
use crate::keys::{CLUSTER, DATABASE, Key, STATIC};
use crate::problem::Problem;
use crate::proxy_auth::{ProxyAuth, ProxySecurity};
use crate::proxy_section::{POOL_MODES, PoolMode};
use crate::sections::Etcd;
use crate::static_file::Reader;
use crate::text::HostPort;
use crate::tree::{Entry, Kind};
use crate::values;

const CLUSTERS: &str = "pgherd.proxy.clusters";
const DATABASES: &str = "pgherd.proxy.databases";
/// The key of `databases` that stands for every name which has no key of its own.
const EVERY_OTHER: &str = "*";
/// The proxy's own databases.
const OWN_DATABASES: [&str; 2] = ["pgherd", "pgbouncer"];

/// A cluster that a proxy follows besides the file's own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProxyCluster {
    /// The cluster's name in its etcd.
    pub scope: String,
    /// Prefix of all its keys; `None`: the file's.
    pub namespace: Option<String>,
    /// How to reach its etcd; `None`: as the file says, or not at all if members are named.
    pub etcd3: Option<Etcd>,
    /// REST interfaces of its members that tell of it when the DCS does not.
    pub members: Vec<RestAddress>,
}

impl ProxyCluster {
    /// The etcd that it is followed by; `of_file` is the file's.
    #[must_use]
    pub fn etcd3<'a>(&'a self, of_file: Option<&'a Etcd>) -> Option<&'a Etcd> {
        // Who names members and no etcd has none, as at the top of the file.
        self.etcd3.as_ref().or_else(|| of_file.filter(|_| self.members.is_empty()))
    }
}

/// Where a database is, and how clients share connections to it. What is not given is as for every
/// other one.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ProxyDatabase {
    /// Which of the clusters it is in; `None`: the file's own.
    pub cluster: Option<String>,
    /// What it is called there; `None`: as clients call it.
    pub dbname: Option<String>,
    /// Connections for each user at each member, at most.
    pub pool_size: Option<usize>,
    /// How long clients have a connection.
    pub pool_mode: Option<PoolMode>,
}

/// Where the databases are that clients ask for.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ProxyDatabases {
    /// By the names that clients know.
    pub named: BTreeMap<String, ProxyDatabase>,
    /// Every other one. It has no `dbname`.
    pub others: ProxyDatabase,
}

impl ProxyDatabases {
    /// Where the database is that clients call so.
    #[must_use]
    pub fn find(&self, name: &str) -> &ProxyDatabase {
        self.named.get(name).unwrap_or(&self.others)
    }

    /// All that are said, with what they are called; [`EVERY_OTHER`] for the rest.
    fn all(&self) -> impl Iterator<Item = (&str, &ProxyDatabase)> {
        let named = self.named.iter().map(|(name, database)| (name.as_str(), database));
        named.chain([(EVERY_OTHER, &self.others)])
    }
}

/// The prefix of a cluster's keys, and the members of its etcd.
type ClusterPlace = (String, Vec<HostPort>);

/// One member of etcd in common is enough: it is of one etcd only.
fn is_one(left: &ClusterPlace, right: &ClusterPlace) -> bool {
    left.0 == right.0 && left.1.iter().any(|endpoint| right.1.contains(endpoint))
}

impl Reader {
    /// The clusters besides the file's own, by what this file calls them.
    pub(crate) fn proxy_clusters(&mut self) -> BTreeMap<String, ProxyCluster> {
        let mut clusters = BTreeMap::new();
        let scope = self.text("scope");
        // What is wrong with it is said where the file's own cluster is read.
        let etcd3 = etcd::read(&self.tree, &mut Vec::new());
        let own = |scope| ProxyCluster { scope, namespace: None, etcd3: None, members: vec![] };
        let mut followed: Vec<(String, ProxyCluster)> =
            scope.iter().map(|scope| (scope.clone(), own(scope.clone()))).collect();
        for entry in self.mapping(CLUSTERS) {
            let path = format!("{CLUSTERS}.{}", entry.key);
            let Some(cluster) = self.proxy_cluster(&path, &entry) else { continue };
            let place = |cluster: &ProxyCluster| self.place_of_cluster(cluster, etcd3.as_ref());
            let same = followed.iter().find(|(_, known)| is_one(&place(known), &place(&cluster)));
            if let Some((known, _)) = same {
                // Two registrations under one key would answer for each other's clients.
                let why = format!("is the cluster that is followed as {known} already");
                self.errors.push(Problem::new(entry.at, path, why));
            } else if scope.as_ref() == Some(&entry.key) {
                let why = "is what the file's own cluster is called; choose another name";
                self.errors.push(Problem::new(entry.at, path, why));
            }
            followed.push((entry.key.clone(), cluster.clone()));
            clusters.insert(entry.key, cluster);
        }
        clusters
    }

    /// The prefix of its keys, and where they are.
    fn place_of_cluster(&self, it: &ProxyCluster, of_file: Option<&Etcd>) -> ClusterPlace {
        let of_file_namespace = self.namespace();
        let namespace = it.namespace.as_ref().unwrap_or(&of_file_namespace);
        let endpoints = it.etcd3(of_file).map(|etcd3| etcd3.endpoints.clone()).unwrap_or_default();
        (prefix(namespace, &it.scope), endpoints)
    }

    fn proxy_cluster(&mut self, path: &str, entry: &Entry) -> Option<ProxyCluster> {
        let wanted = |key: &&Key| {
            matches!(key.path, "scope" | "namespace") || key.path.starts_with("etcd3.")
        };
        let table: Vec<Key> = STATIC.iter().filter(wanted).chain(CLUSTER).copied().collect();
        self.checked(path, entry, &table)?;
        let text = |key: &str| entry.node.at(key).and_then(values::text);
        let Some(scope) = text("scope").filter(|scope| !scope.trim().is_empty()) else {
            self.errors.push(Problem::new(entry.at, format!("{path}.scope"), "is required"));
            return None;
        };
        let etcd3 = match entry.node.at("etcd3") {
            Some(_) => {
                let mut problems = Vec::new();
                let read = etcd::read(&entry.node, &mut problems);
                self.below(path, problems);
                Some(read?)
            }
            None => None,
        };
        let members = self.proxy_members(&format!("{path}.members"), Some(&entry.node));
        if etcd3.is_none() && members.is_empty() && self.tree.at("etcd3").is_none() {
            let why = "needs etcd3, or members: the file has no etcd3";
            self.errors.push(Problem::new(entry.at, path, why));
        }
        Some(ProxyCluster { scope, namespace: text("namespace"), etcd3, members })
    }

    /// Where the databases are.
    pub(crate) fn proxy_databases(&mut self, security: &ProxySecurity) -> ProxyDatabases {
        let mut databases = ProxyDatabases::default();
        let own = self.text("scope");
        // What is wrong with one of them is said there.
        let said: Vec<String> = self.mapping(CLUSTERS).into_iter().map(|entry| entry.key).collect();
        for entry in self.mapping(DATABASES) {
            let path = format!("{DATABASES}.{}", entry.key);
            let Some(mut database) = self.proxy_database(&path, &entry) else { continue };
            // The own cluster has a name too.
            database.cluster = database.cluster.filter(|cluster| own.as_ref() != Some(cluster));
            if let Some(cluster) = database.cluster.as_ref().filter(|name| !said.contains(name)) {
                let known = if said.is_empty() { "none".to_owned() } else { said.join(", ") };
                let why = format!("{cluster:?} is no cluster of {CLUSTERS}, which has {known}");
                self.errors.push(Problem::new(entry.at, format!("{path}.cluster"), why));
            }
            if entry.key == EVERY_OTHER {
                databases.others = database;
            } else {
                databases.named.insert(entry.key, database);
            }
        }
        self.databases_together(&databases, security);
        databases
    }

    fn proxy_database(&mut self, path: &str, entry: &Entry) -> Option<ProxyDatabase> {
        self.checked(path, entry, DATABASE)?;
        let at = |key: &str| entry.node.at(key);
        let text = |key: &str| at(key).and_then(values::text).filter(|text| !text.is_empty());
        let pool_size = at("pool_size").and_then(values::integer).map(|size| {
            usize::try_from(size).ok().filter(|size| *size >= 1).unwrap_or_else(|| {
                let key = format!("{path}.pool_size");
                self.errors.push(Problem::new(entry.at, key, "must be at least 1"));
                1
            })
        });
        let mode = at("pool_mode").and_then(|node| word(node, POOL_MODES));
        Some(ProxyDatabase {
            cluster: text("cluster"),
            dbname: text("dbname"),
            pool_size,
            pool_mode: mode.map(PoolMode::of_word),
        })
    }

    /// What does not go together.
    fn databases_together(&mut self, databases: &ProxyDatabases, security: &ProxySecurity) {
        let suffix = self.text("pgherd.proxy.read_only_suffix").filter(|s| !s.is_empty());
        let asked_about = security.auth_query.as_ref().map(|query| query.database.as_str());
        let passes = security.auth == ProxyAuth::PassThrough;
        let mut wrong = Vec::new();
        for (name, database) in databases.all() {
            if !passes && OWN_DATABASES.contains(&name) {
                wrong.push((name, "", "is the proxy's own database; clients cannot be led away"));
            }
            if suffix
                .as_ref()
                .is_some_and(|suffix| name.len() > suffix.len() && name.ends_with(suffix))
            {
                let why = "ends with read_only_suffix, which is taken off before it is looked for";
                wrong.push((name, "", why));
            }
            if passes && database.pool_mode.is_some_and(|mode| mode != PoolMode::Session) {
                let why = "needs a proxy that signs clients in itself: pass_through is for \
                           sessions only";
                wrong.push((name, ".pool_mode", why));
            }
            if passes && database.pool_size.is_some() {
                let why = "is of no use with pass_through, where each client has a connection of \
                           its own";
                wrong.push((name, ".pool_size", why));
            }
            if database.dbname.is_some() && name == EVERY_OTHER {
                let why = "would lead every name to one database; give them one by one";
                wrong.push((name, ".dbname", why));
            }
            if database.dbname.is_some() && asked_about == Some(name) {
                let why = "must not be given for auth_database, which is asked by its own name at \
                           every cluster";
                wrong.push((name, ".dbname", why));
            }
        }
        for (name, key, why) in wrong {
            let entry = self.mapping(DATABASES).into_iter().find(|entry| entry.key == name);
            let at = entry.map_or(self.tree.place_of(DATABASES), |entry| entry.at);
            self.errors.push(Problem::new(at, format!("{DATABASES}.{name}{key}"), why));
        }
    }

    /// The entries of a mapping whose keys are names.
    fn mapping(&mut self, path: &str) -> Vec<Entry> {
        match self.tree.at(path).map(|node| (&node.kind, node)) {
            Some((Kind::Map(_), node)) => node.entries().to_vec(),
            Some((Kind::Null, _)) | None => Vec::new(),
            Some(_) => {
                self.error(path, "must be a mapping of names");
                Vec::new()
            }
        }
    }

    /// Holds what stands below a name against its table; `None` if that is wrong.
    fn checked(&mut self, path: &str, entry: &Entry, table: &[Key]) -> Option<()> {
        let Findings { ill_typed, unknown, refused } = check(&entry.node, table, &[]);
        let problems: Vec<Problem> = ill_typed.into_iter().chain(unknown).chain(refused).collect();
        let good = problems.is_empty();
        self.below(path, problems);
        good.then_some(())
    }

    /// Problems of a part, as problems of the whole.
    fn below(&mut self, path: &str, problems: Vec<Problem>) {
        let whole = |problem: Problem| {
            let key = format!("{path}.{}", problem.key);
            Problem { key: key.trim_end_matches('.').to_owned(), ..problem }
        };
        self.errors.extend(problems.into_iter().map(whole));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ProxySection, Sources, Static};

    const POOLED: &str = "auth: scram-sha-256, auth_user: asker, read_only_suffix: _ro";
    const TWO: &str = "clusters: {billing: {scope: bills}, archive: {scope: old, namespace: /x/, \
                       etcd3: {hosts: ['e2:2379', 'e3:2379'], username: u, password: hush}}}";

    /// The section of a proxy of the cluster `demo`.
    fn read(keys: &[&str]) -> Result<ProxySection, String> {
        let keys = keys.join(",\n");
        let text = format!(
            "scope: demo\netcd3: {{host: e1}}\npgherd: {{proxy: {{read_write: 'h:5000', {keys}}}}}"
        );
        let read = Static::read_proxy(&Sources::default().with_file("p.yml", text));
        read.map(|(file, _)| file.proxy).map_err(|error| error.to_string())
    }

    #[test]
    fn clusters_and_databases_are_read() {
        let databases = "databases: {invoices: {cluster: billing}, old: {cluster: archive, dbname: \
                         invoices, pool_size: 5, pool_mode: session}, mine: {cluster: demo}, \
                         '*': {cluster: archive}, bare: }";
        let section = read(&[POOLED, "pool_mode: transaction", TWO, databases]).expect("good");
        let archive = &section.clusters["archive"];
        assert_eq!(archive.etcd3.as_ref().expect("its own").endpoints.len(), 2);
        assert_eq!((archive.scope.as_str(), archive.namespace.as_deref()), ("old", Some("/x/")));
        let billing = &section.clusters["billing"];
        assert_eq!((billing.scope.as_str(), &billing.etcd3), ("bills", &None));
        assert!(!format!("{section:?}").contains("hush"));
        let find = |name: &str| section.databases.find(name).clone();
        let cluster = |name: &str| find(name).cluster;
        assert_eq!(cluster("invoices").as_deref(), Some("billing"));
        assert_eq!(cluster("other").as_deref(), Some("archive"));
        assert_eq!((cluster("mine"), cluster("bare")), (None, None), "the file's own");
        let old = ProxyDatabase {
            cluster: Some("archive".to_owned()),
            dbname: Some("invoices".to_owned()),
            pool_size: Some(5),
            pool_mode: Some(PoolMode::Session),
        };
        assert_eq!(find("old"), old);
        let told = "clusters: {a: {scope: demo, members: 'http://m1, http://m2:8'}}";
        let told = &read(&[POOLED, told]).expect("not in the file's etcd").clusters["a"];
        let file = &archive.etcd3;
        assert_eq!((told.members.len(), told.etcd3(file.as_ref())), (2, None));
        assert_eq!(billing.etcd3(file.as_ref()), file.as_ref());
        let elsewhere = "clusters: {a: {scope: demo, etcd3: {hosts: e9}}}";
        assert_eq!(read(&[POOLED, elsewhere]).expect("another etcd").clusters.len(), 1);
        let plain = read(&[POOLED]).expect("good");
        assert_eq!((plain.clusters.len(), plain.databases), (0, ProxyDatabases::default()));
    }

    #[test]
    fn what_is_wrong_is_refused_with_its_place() {
        let pass = "auth: pass_through";
        for (auth, keys, says) in [
            (POOLED, "clusters: [a]", "clusters: must be a mapping of names"),
            (POOLED, "clusters: {a: b}", "clusters.a: "),
            (POOLED, "clusters: {a: {}}", "p.yml:4: pgherd.proxy.clusters.a.scope: is required"),
            (
                POOLED,
                "clusters: {a: {scop: b}}",
                "clusters.a.scop: unknown key; did you mean scope",
            ),
            (POOLED, "clusters: {a: {scope: b, etcd3: {}}}", "clusters.a.etcd3: is required"),
            (POOLED, "clusters: {a: {scope: b, etcd3: {hots: c}}}", "etcd3.hots: unknown key"),
            (POOLED, "clusters: {a: {scope: b, members: m1}}", "a.members: \"m1\" is not http:"),
            (POOLED, "clusters: {a: {scope: demo}}", "clusters.a: is the cluster that is followed"),
            (
                POOLED,
                "clusters: {a: {scope: demo, namespace: service, etcd3: {hosts: 'e9, e1:2379'}}}",
                "is the cluster that is followed as demo already",
            ),
            (
                POOLED,
                "clusters: {a: {scope: x}, b: {scope: x, namespace: /service}}",
                "clusters.b: is the cluster that is followed as a already",
            ),
            (POOLED, "clusters: {demo: {scope: b}}", "is what the file's own cluster is called"),
            (
                POOLED,
                "clusters: {a: {scop: b}}, databases: {d: {cluster: a}}",
                "clusters.a.scop: unknown key",
            ),
            (POOLED, "databases: none", "databases: must be a mapping of names"),
            (POOLED, "databases: {d: {cluster: x}}", "d.cluster: \"x\" is no cluster of pgherd"),
            (POOLED, "databases: {d: {dbnam: x}}", "databases.d.dbnam: unknown key; did you mean"),
            (POOLED, "databases: {d: {pool_size: 0}}", "databases.d.pool_size: must be at least 1"),
            (POOLED, "databases: {d: {pool_mode: some}}", "d.pool_mode: must be one of session"),
            (POOLED, "databases: {pgherd: {dbname: d}}", "databases.pgherd: is the proxy's own"),
            (
                POOLED,
                "databases: {d_ro: {dbname: d}}",
                "databases.d_ro: ends with read_only_suffix",
            ),
            (POOLED, "databases: {'*': {dbname: d}}", "databases.*.dbname: would lead every name"),
            (POOLED, "databases: {postgres: {dbname: d}}", "must not be given for auth_database"),
            (pass, "databases: {d: {pool_mode: statement}}", "d.pool_mode: needs a proxy that"),
            (pass, "databases: {d: {pool_size: 5}}", "d.pool_size: is of no use with pass_through"),
        ] {
            let error = read(&[auth, keys]).expect_err(keys);
            assert!(error.contains(says), "{keys}: {error}");
            assert_eq!(error.lines().count(), 1, "{error}");
        }
        let text = "scope: demo\npgherd: {proxy: {read_write: 'h:5000', members: 'http://m', \
                    clusters: {a: {scope: b}}}}";
        let read_whole = |text| Static::read_proxy(&Sources::default().with_file("p.yml", text));
        let error = read_whole(text).expect_err("nobody tells of it").to_string();
        assert!(error.ends_with("clusters.a: needs etcd3, or members: the file has no etcd3"));
        let led = "databases: {pgherd: {dbname: d}, d: {dbname: e, pool_mode: session}}";
        read(&[pass, led]).expect("without a database of its own");
    }
}
