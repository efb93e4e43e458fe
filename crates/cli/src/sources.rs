//! Where a proxy learns of its clusters, from its file: etcd, members' REST interfaces, or both.

use std::collections::BTreeMap;

use anyhow::Context;
use api::RestClient;
use config::{Etcd, ProxyCluster, ProxyFile};
use dcs::{Client, ClientConfig, ClusterStore};
use proxy::{Believed, Following, Sources, Views};
use types::{Millis, RestAddress, keys};

/// A call to the DCS by the proxy is given up after this and made again; routes stay meanwhile.
const PROXY_RETRY_TIMEOUT: Millis = Millis(3_000);

type Members = Vec<RestAddress>;

/// Where the proxy learns of its clusters.
pub(crate) struct Clusters {
    /// The file's own.
    pub(crate) own: Sources,
    /// By what the file calls them.
    pub(crate) others: BTreeMap<String, Sources>,
}

impl Clusters {
    /// As the file says.
    ///
    /// # Errors
    /// It names what cannot be used.
    pub(crate) fn of(file: &ProxyFile) -> anyhow::Result<Clusters> {
        let insecure = file.rest_client.insecure;
        let rest = RestClient::new(agent::rest_client(&file.rest_client, insecure));
        let client = file.etcd3.as_ref().map(etcd).transpose()?;
        let sources = |client: Option<Client>, namespace: &str, scope: &str, members: &Members| {
            let store = |client| ClusterStore::new(client, keys::prefix(namespace, scope));
            let (dcs, members) = (client.map(store), members.clone());
            Sources { scope: scope.to_owned(), dcs, members, rest: rest.clone() }
        };
        let other = |(name, cluster): (&String, &ProxyCluster)| {
            let client = match (&cluster.etcd3, cluster.etcd3(file.etcd3.as_ref())) {
                (Some(its_own), _) => {
                    Some(etcd(its_own).with_context(|| format!("the cluster {name}"))?)
                }
                (None, Some(_)) => client.clone(),
                (None, None) => None,
            };
            let namespace = cluster.namespace.as_ref().unwrap_or(&file.namespace);
            Ok((name.clone(), sources(client, namespace, &cluster.scope, &cluster.members)))
        };
        let others = file.proxy.clusters.iter().map(other).collect::<anyhow::Result<_>>()?;
        let own = sources(client.clone(), &file.namespace, &file.scope, &file.proxy.members);
        let clusters = Clusters { own, others };
        if clusters.all().any(|sources| sources.members.iter().any(|member| member.tls)) {
            rest.prepare().context("cannot prepare TLS to the members that the file names")?;
        }
        Ok(clusters)
    }

    fn all(&self) -> impl Iterator<Item = &Sources> {
        [&self.own].into_iter().chain(self.others.values())
    }

    /// A proxy that knows of no primary holds its clients; so nobody need answer for it to start.
    pub(crate) fn follow(&self) -> Followed {
        let others = self.others.iter();
        let others = others.map(|(name, sources)| (name.clone(), sources.clone().follow()));
        Followed { own: self.own.clone().follow(), others: others.collect() }
    }
}

/// The clusters, which are followed until this is dropped.
pub(crate) struct Followed {
    own: Following,
    others: BTreeMap<String, Following>,
}

impl Followed {
    /// What is believed of each.
    pub(crate) fn views(&self) -> Views<Believed> {
        let own = Views::from(self.own.subscribe());
        let others = self.others.iter();
        others.fold(own, |views, (name, following)| views.with(name, following.subscribe()))
    }
}

fn etcd(etcd3: &Etcd) -> anyhow::Result<Client> {
    Ok(Client::connect(ClientConfig {
        endpoints: etcd3.endpoints.iter().map(ToString::to_string).collect(),
        username: etcd3.username.clone(),
        password: etcd3.password.as_ref().map(|p| p.expose().to_owned()),
        tls: agent::etcd_client(etcd3),
        retry_timeout: PROXY_RETRY_TIMEOUT,
        seed: None,
    })?)
}
