//! The cluster's view, kept current in the background and read on demand.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep, timeout};
use tracing::{debug, info, warn};
use types::{ClusterView, KeyValue, Millis, Revision};

use crate::client::{Client, Header};
use crate::error::Error;
use crate::keymap::{KeyMap, Loaded};
use crate::watch::{Watch, WatchEnd};

/// Pause before the watch is opened again; it doubles up to the second one.
const RESUME_PAUSE: Duration = Duration::from_millis(100);
const RESUME_PAUSE_MAX: Duration = Duration::from_secs(1);
/// A watch that lived this long makes the next pause a short one again.
const RESUME_GOOD: Duration = Duration::from_secs(5);

/// What is published about the cluster.
#[derive(Debug, Clone, Default)]
pub struct ViewState {
    /// The newest view; `None` until the first read succeeded.
    pub view: Option<Arc<ClusterView>>,
    /// Whether the watch is open, so that the view follows the store closely.
    pub fresh: bool,
    /// Why it is not.
    pub error: Option<String>,
}

/// The cluster's keys: the view, and (in `operations.rs`) the transactions on them. Clones share
/// everything.
#[derive(Clone)]
pub struct ClusterStore {
    inner: Arc<Inner>,
}

struct Inner {
    client: Client,
    prefix: String,
    keys: Mutex<KeyMap>,
    state: watch::Sender<ViewState>,
}

/// Ends the background task when dropped.
#[derive(Debug)]
pub struct Follower(AbortHandle);

impl Drop for Follower {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl std::fmt::Debug for ClusterStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ClusterStore").field("prefix", &self.inner.prefix).finish_non_exhaustive()
    }
}

impl ClusterStore {
    /// A store on the keys below `prefix` (see [`types::keys::prefix`]). Nothing is read until
    /// [`Self::follow`] or [`Self::read`] is called.
    #[must_use]
    pub fn new(client: Client, prefix: impl Into<String>) -> ClusterStore {
        let (state, _) = watch::channel(ViewState::default());
        ClusterStore {
            inner: Arc::new(Inner { client, prefix: prefix.into(), keys: Mutex::default(), state }),
        }
    }

    /// The client below.
    #[must_use]
    pub fn client(&self) -> &Client {
        &self.inner.client
    }

    /// The prefix of all keys, with its slash at the end.
    #[must_use]
    pub fn prefix(&self) -> &str {
        &self.inner.prefix
    }

    /// The whole name of a key below the prefix.
    #[must_use]
    pub fn key(&self, below: &str) -> String {
        format!("{}{below}", self.inner.prefix)
    }

    /// Starts the task that keeps the view current, until the returned guard is dropped. Call it
    /// once per store, inside a tokio runtime.
    #[must_use = "dropping the follower ends it"]
    pub fn follow(&self) -> Follower {
        Follower(tokio::spawn(follow(self.clone())).abort_handle())
    }

    /// Receives every published state (the newest one, when several came at once).
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<ViewState> {
        self.inner.state.subscribe()
    }

    /// The newest published state.
    #[must_use]
    pub fn current(&self) -> ViewState {
        self.inner.state.borrow().clone()
    }

    /// Reads everything, linearizable, and publishes it if it is newer than what is known. The view
    /// returned is at least as new as the call.
    ///
    /// # Errors
    /// Any class but `Ambiguous`.
    pub async fn read(&self) -> Result<Arc<ClusterView>, Error> {
        let floor = self.keys().revision();
        let (keys, header) = self.inner.client.range_prefix(&self.inner.prefix).await?;
        Ok(self.take_listing(keys, header, floor))
    }

    /// Waits at most `limit` until the view holds `revision`, which some answer named; then reads.
    /// After the store was replaced the view may still be at a lower revision.
    ///
    /// # Errors
    /// Those of [`Self::read`].
    pub async fn wait_revision(
        &self,
        revision: Revision,
        limit: Millis,
    ) -> Result<Arc<ClusterView>, Error> {
        let mut states = self.subscribe();
        let there = |state: &ViewState| state.view.as_ref().is_some_and(|v| v.revision >= revision);
        // Cloned out at once: the channel's lock must not be held while the read below waits.
        let waited = timeout(limit.as_duration(), states.wait_for(there))
            .await
            .ok()
            .and_then(|shown| shown.ok()?.view.clone());
        match waited {
            Some(view) => Ok(view),
            None => self.read().await,
        }
    }

    fn take_listing(
        &self,
        listing: Vec<KeyValue>,
        header: Header,
        floor: Revision,
    ) -> Arc<ClusterView> {
        let mut keys = self.keys();
        let known = keys.cluster_id();
        match keys.load(listing, header, floor) {
            Loaded::Stale => {}
            Loaded::Taken => self.publish(&keys),
            Loaded::Replaced => {
                warn!(
                    known,
                    found = header.cluster_id,
                    known_revision = floor.0,
                    found_revision = header.revision.0,
                    "etcd's store was replaced or set back; what it says now counts"
                );
                self.publish(&keys);
            }
        }
        let published = self.inner.state.borrow().view.clone();
        published.unwrap_or_else(|| Arc::new(keys.view()))
    }

    /// Called with the keys locked, so that views are published in their order.
    fn publish(&self, keys: &KeyMap) {
        let view = Arc::new(keys.view());
        self.inner.state.send_modify(|state| {
            let same = state.view.as_ref().is_some_and(|old| *old == view);
            if !same {
                state.view = Some(view);
            }
        });
    }

    fn publish_health(&self, fresh: bool, error: Option<String>) {
        self.inner.state.send_if_modified(|state| {
            let changed = state.fresh != fresh || state.error != error;
            state.fresh = fresh;
            state.error = error;
            changed
        });
    }

    fn keys(&self) -> MutexGuard<'_, KeyMap> {
        // A panic in between leaves keys that the next listing replaces.
        self.inner.keys.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Why following has to start over with a listing.
#[derive(Debug, thiserror::Error)]
enum Lost {
    #[error(transparent)]
    Call(#[from] Error),
    #[error(transparent)]
    Watch(#[from] WatchEnd),
    #[error("another etcd cluster answered the watch")]
    OtherCluster,
}

async fn follow(store: ClusterStore) {
    let mut pause = RESUME_PAUSE;
    loop {
        let started = Instant::now();
        let Err(lost) = follow_once(&store).await;
        let was_fresh = store.inner.state.borrow().fresh;
        store.publish_health(false, Some(lost.to_string()));
        if was_fresh {
            info!(reason = %lost, "the watch on the cluster's keys ended, starting it again");
        } else {
            debug!(reason = %lost, "the watch on the cluster's keys does not start");
        }
        if started.elapsed() >= RESUME_GOOD && was_fresh {
            pause = RESUME_PAUSE;
        }
        sleep(pause).await;
        pause = (pause * 2).min(RESUME_PAUSE_MAX);
    }
}

/// Lists everything, then watches from there. Listing anew after each break keeps one path for
/// every cause: compaction, a replaced store, a missed event.
async fn follow_once(store: &ClusterStore) -> Result<std::convert::Infallible, Lost> {
    store.read().await?;
    let (cluster_id, revision) = {
        let keys = store.keys();
        (keys.cluster_id(), keys.revision())
    };
    let start = Revision(revision.0 + 1);
    let mut watch = Watch::open(&store.inner.client, &store.inner.prefix, start).await?;
    store.publish_health(true, None);
    loop {
        let batch = watch.next().await?;
        let mut keys = store.keys();
        // A read may have met a new store meanwhile: then this watch is on the old one.
        if batch.cluster_id != cluster_id || keys.cluster_id() != cluster_id {
            return Err(Lost::OtherCluster);
        }
        if keys.apply(&store.inner.prefix, batch.events) {
            store.publish(&keys);
        }
    }
}
