//! Where views of the clusters come in.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::sync::watch;
use types::ClusterView;

/// What the proxy knows about a cluster at one moment. The sender replaces it as a whole.
pub trait ViewSource: Send + Sync + 'static {
    /// The newest view, `None` before the first.
    fn view(&self) -> Option<Arc<ClusterView>>;
    /// Whether the view is known to be current.
    fn fresh(&self) -> bool;
}

impl ViewSource for (Option<Arc<ClusterView>>, bool) {
    fn view(&self) -> Option<Arc<ClusterView>> {
        self.0.clone()
    }

    fn fresh(&self) -> bool {
        self.1
    }
}

/// The views of each cluster of a proxy. One that has none holds its clients.
#[derive(Debug)]
pub struct Views<V> {
    pub(crate) own: watch::Receiver<V>,
    pub(crate) others: BTreeMap<String, watch::Receiver<V>>,
}

impl<V> Views<V> {
    /// With those of another cluster, by its name.
    #[must_use]
    pub fn with(mut self, cluster: impl Into<String>, views: watch::Receiver<V>) -> Views<V> {
        self.others.insert(cluster.into(), views);
        self
    }
}

impl<V> From<watch::Receiver<V>> for Views<V> {
    /// Those of the own cluster.
    fn from(own: watch::Receiver<V>) -> Views<V> {
        Views { own, others: BTreeMap::new() }
    }
}

/// Those of a cluster of which nothing is known.
pub(crate) fn none() -> watch::Receiver<(Option<Arc<ClusterView>>, bool)> {
    watch::Sender::default().subscribe()
}
