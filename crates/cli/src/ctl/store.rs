//! The DCS as these commands use it: one linearizable read at a time.

use std::sync::Arc;

use anyhow::Context;
use dcs::Write;
use serde_json::Value;
use types::{ClusterView, FailoverRequest, Revision, keys};

use super::CtlConfig;

/// One cluster in the DCS.
pub(super) struct Store {
    store: dcs::ClusterStore,
}

impl Store {
    /// Prepares the client; the first read connects.
    pub(super) fn open(config: &CtlConfig, scope: &str) -> anyhow::Result<Store> {
        anyhow::ensure!(
            !config.endpoints.is_empty(),
            "no etcd endpoints are known; give -d HOST:PORT, or -c FILE with an etcd3 section"
        );
        let client = dcs::Client::connect(dcs::ClientConfig {
            username: config.username.clone(),
            password: config.password.clone(),
            tls: config.etcd_tls.clone(),
            ..dcs::ClientConfig::new(config.endpoints.clone(), config.retry_timeout)
        })?;
        let prefix = keys::prefix(&config.namespace, scope);
        Ok(Store { store: dcs::ClusterStore::new(client, prefix) })
    }

    /// The cluster as it is now.
    pub(super) async fn read(&self) -> anyhow::Result<Arc<ClusterView>> {
        self.store.read().await.context("cannot read the cluster from etcd")
    }

    /// Writes the `failover` key past the agents, for when none of them answers.
    pub(super) async fn request_failover(&self, request: &FailoverRequest) -> anyhow::Result<()> {
        let request = serde_json::to_value(request)?;
        let written = self.store.write_failover(&request).await;
        written.map(|_| ()).context("cannot write the failover key to etcd")
    }

    /// Discards the pending request, if it is still the one that was read.
    pub(super) async fn clear_failover(&self, read: Revision) -> anyhow::Result<()> {
        match self.store.clear_failover(read).await {
            Ok(Write::Written { .. }) => Ok(()),
            Ok(Write::Conflict) => anyhow::bail!("the failover key was changed by somebody else"),
            Err(error) => Err(error).context("cannot write the failover key to etcd"),
        }
    }

    /// Changes the dynamic configuration, if it is still the one that was read.
    pub(super) async fn change_config(&self, read: Revision, config: &Value) -> anyhow::Result<()> {
        match self.store.patch_config(Some(read), config).await {
            Ok(Write::Written { .. }) => Ok(()),
            Ok(Write::Conflict) => {
                anyhow::bail!("Config modification aborted due to concurrent changes")
            }
            Err(error) => Err(error).context("cannot write the configuration to etcd"),
        }
    }

    /// Deletes everything.
    pub(super) async fn remove(&self) -> anyhow::Result<()> {
        let removed = self.store.remove().await;
        removed.map(|_| ()).context("cannot remove the cluster from etcd")
    }
}
