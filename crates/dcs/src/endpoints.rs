//! The endpoints: one lazy connection each, and the order in which they are tried.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tls::Connector;
use tokio::time::Instant;
use tonic::transport::{Channel, Endpoint};
use types::Millis;

use crate::dial::Dial;
use crate::error::Error;
use crate::keepalive::KeepAliveSlot;

/// A connection attempt longer than this is to a dead host.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// An endpoint that failed within this span is tried after the others.
const SUSPECT_FOR: Duration = Duration::from_secs(5);
/// Shortest interval of HTTP/2 pings: etcd closes a connection that is pinged more often than every
/// 5 s (`--grpc-keepalive-min-time`).
const PING_INTERVAL_MIN: Duration = Duration::from_secs(6);

/// One endpoint.
pub(crate) struct Node {
    pub(crate) url: String,
    pub(crate) keep_alive: KeepAliveSlot,
    dial: Dial,
    connection: Mutex<Connection>,
}

struct Connection {
    channel: Channel,
    since: Instant,
}

impl Node {
    /// The connection, opened when it is first used.
    pub(crate) fn channel(&self) -> Channel {
        self.connection().channel.clone()
    }

    /// Calls from now on use a new connection, calls under way keep the old one. TCP alone takes up
    /// to two minutes to notice that the host at the other end was restarted.
    fn reconnect(&self) {
        let mut connection = self.connection();
        if connection.since.elapsed() >= SUSPECT_FOR {
            *connection = Connection { channel: self.dial.lazily(), since: Instant::now() };
        }
    }

    fn connection(&self) -> MutexGuard<'_, Connection> {
        self.connection.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// All endpoints with what was last seen of each.
pub(crate) struct Endpoints {
    pub(crate) nodes: Vec<Arc<Node>>,
    seen: Mutex<Seen>,
}

struct Seen {
    preferred: usize,
    answered: Vec<Option<Instant>>,
    failed: Vec<Option<Instant>>,
}

impl Endpoints {
    /// Must be called inside a tokio runtime, as the connections' tasks are spawned there. Nothing
    /// is sent yet.
    pub(crate) fn new(
        mut urls: Vec<String>,
        tls: Option<&Connector>,
        retry_timeout: Millis,
        seed: u64,
    ) -> Result<Endpoints, Error> {
        shuffle(&mut urls, seed);
        let nodes = urls
            .into_iter()
            .map(|url| node(url, tls, retry_timeout).map(Arc::new))
            .collect::<Result<Vec<_>, _>>()?;
        let seen = Seen {
            preferred: 0,
            answered: vec![None; nodes.len()],
            failed: vec![None; nodes.len()],
        };
        Ok(Endpoints { nodes, seen: Mutex::new(seen) })
    }

    /// Last good first, those that failed lately last.
    pub(crate) fn order(&self) -> Vec<usize> {
        let seen = self.seen();
        let now = Instant::now();
        let mut order: Vec<usize> = (0..self.nodes.len()).collect();
        let suspect = |i: usize| {
            let failed = seen.failed.get(i).copied().flatten();
            failed.is_some_and(|at| now.duration_since(at) < SUSPECT_FOR)
        };
        order.sort_by_key(|&i| (suspect(i), i != seen.preferred, i));
        order
    }

    /// `index` answered: it is tried first from now on.
    pub(crate) fn answered(&self, index: usize) {
        let mut seen = self.seen();
        seen.preferred = index;
        if let Some(at) = seen.answered.get_mut(index) {
            *at = Some(Instant::now());
        }
        if let Some(at) = seen.failed.get_mut(index) {
            *at = None;
        }
    }

    /// `index` did not answer in time, or later than another that was asked after it.
    pub(crate) fn silent(&self, index: usize) {
        self.failed(index);
        if let Some(node) = self.nodes.get(index) {
            node.reconnect();
        }
    }

    /// The watch on this endpoint heard from it, so it is tried first; unless a call to it failed
    /// lately: a member that cannot reach its raft leader still answers for itself.
    pub(crate) fn heard(&self, node: &Arc<Node>) {
        let Some(index) = self.index_of(node) else { return };
        let mut seen = self.seen();
        let failed = seen.failed.get(index).copied().flatten();
        if failed.is_none_or(|at| at.elapsed() >= SUSPECT_FOR) {
            seen.preferred = index;
        }
    }

    /// As [`Self::silent`].
    pub(crate) fn node_silent(&self, node: &Arc<Node>) {
        if let Some(index) = self.index_of(node) {
            self.silent(index);
        }
    }

    fn index_of(&self, node: &Arc<Node>) -> Option<usize> {
        self.nodes.iter().position(|other| Arc::ptr_eq(other, node))
    }

    /// `index` failed.
    pub(crate) fn failed(&self, index: usize) {
        if let Some(at) = self.seen().failed.get_mut(index) {
            *at = Some(Instant::now());
        }
    }

    /// Whether the endpoint that is tried first answered within `span`.
    pub(crate) fn first_answered_within(&self, span: Duration) -> bool {
        let Some(first) = self.order().first().copied() else {
            return false;
        };
        let at = self.seen().answered.get(first).copied().flatten();
        at.is_some_and(|at| at.elapsed() <= span)
    }

    /// Every URL, for messages.
    pub(crate) fn names(&self) -> String {
        let urls: Vec<&str> = self.nodes.iter().map(|n| n.url.as_str()).collect();
        urls.join(", ")
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        // The data is valid after any panic: each change is one assignment.
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn node(url: String, tls: Option<&Connector>, retry_timeout: Millis) -> Result<Node, Error> {
    let bad = |e: &dyn std::fmt::Display| Error::Config(format!("etcd endpoint {url:?}: {e}"));
    let origin = url.parse().map_err(|e| bad(&e))?;
    // The library refuses https where the TLS is not its own: what the requests say of where they
    // go is set apart from what is dialled.
    let dialled = url.replacen("https://", "http://", 1);
    let endpoint = Endpoint::from_shared(dialled).map_err(|e| bad(&e))?.origin(origin);
    // No pings on a connection without calls: etcd counts them as abuse and closes it. The watch
    // and the keep-alive stream count as calls.
    let endpoint = endpoint
        .connect_timeout(CONNECT_TIMEOUT)
        .tcp_nodelay(true)
        .tcp_keepalive(Some(retry_timeout.as_duration()))
        .http2_keep_alive_interval(retry_timeout.as_duration().max(PING_INTERVAL_MIN))
        .keep_alive_timeout(retry_timeout.as_duration())
        .keep_alive_while_idle(false);
    let dial = Dial { endpoint, tls: tls.cloned() };
    let connection = Connection { channel: dial.lazily(), since: Instant::now() };
    Ok(Node { url, keep_alive: KeepAliveSlot::default(), dial, connection: Mutex::new(connection) })
}

/// Fisher-Yates with splitmix64: members of one cluster shall not all start at one endpoint.
fn shuffle(urls: &mut [String], seed: u64) {
    let mut state = seed;
    for i in (1..urls.len()).rev() {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^= z >> 31;
        let bound = i as u64 + 1;
        let j = usize::try_from(z % bound).unwrap_or(i);
        urls.swap(i, j);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn three() -> Endpoints {
        let urls = (1..=3).map(|i| format!("http://127.0.0.1:{i}")).collect();
        Endpoints::new(urls, None, Millis(3000), 1).expect("valid")
    }

    #[tokio::test]
    async fn last_good_is_first_and_the_failed_are_last() {
        let endpoints = three();
        assert_eq!(endpoints.order(), [0, 1, 2]);
        endpoints.answered(2);
        assert_eq!(endpoints.order(), [2, 0, 1]);
        assert!(endpoints.first_answered_within(Duration::from_secs(60)));
        endpoints.failed(2);
        assert_eq!(endpoints.order(), [0, 1, 2]);
        assert!(!endpoints.first_answered_within(Duration::from_secs(60)));
        endpoints.failed(0);
        assert_eq!(endpoints.order(), [1, 2, 0]);
        endpoints.heard(&endpoints.nodes[0]);
        assert_eq!(endpoints.order(), [1, 2, 0], "a call to it failed");
        endpoints.heard(&endpoints.nodes[1]);
        endpoints.answered(2);
        endpoints.heard(&endpoints.nodes[1]);
        assert_eq!(endpoints.order(), [1, 2, 0], "the watch has the last word");
    }

    #[test]
    fn the_order_depends_on_the_seed_only() {
        let urls = |seed| {
            let mut urls: Vec<String> = ["a", "b", "c"].map(str::to_owned).into();
            shuffle(&mut urls, seed);
            urls
        };
        assert_eq!(urls(5), urls(5));
        let firsts: std::collections::BTreeSet<String> =
            (0..32).map(|s| urls(s).swap_remove(0)).collect();
        assert_eq!(firsts.len(), 3);
    }
}
