//! What is known of the connections to the other members, for metrics. The tasks of the connections
//! write it, and readers copy it; nobody holds its lock for longer.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use types::{MemberName, Millis};

/// How much of the smoothed round trip a new one makes up: one eighth, as in TCP.
const SMOOTHING: u32 = 8;

/// The upper bounds of the classes that intervals between beats are counted in, in milliseconds.
/// The default is a beat each 200 ms, and a time-out of 1 s.
pub const INTERVAL_BOUNDS_MS: [u64; 10] = [250, 300, 400, 500, 600, 800, 1000, 1500, 2000, 4000];

/// How many intervals between the beats of a member were how long.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Intervals {
    /// By class; those beyond the last bound come last.
    pub counts: [u64; INTERVAL_BOUNDS_MS.len() + 1],
    /// All together.
    pub sum: Millis,
}

impl Intervals {
    fn count(&mut self, interval: Millis) {
        let class = INTERVAL_BOUNDS_MS.partition_point(|bound| *bound < interval.0);
        self.counts[class] += 1;
        self.sum = self.sum.plus(interval);
    }
}

/// One other member.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PeerReport {
    /// Our connection to it is up.
    pub connected: bool,
    /// From a beat to its echo, last.
    pub round_trip: Option<Duration>,
    /// The same, smoothed.
    pub smoothed: Option<Duration>,
    /// Beats sent to it.
    pub sent: u64,
    /// Beats whose echo had not come when their connection ended.
    pub missed: u64,
    /// When its last beat came to us (boot-time clock).
    pub heard: Option<Millis>,
    /// The intervals between its beats, as they came.
    pub intervals: Intervals,
}

impl PeerReport {
    /// Takes a beat in.
    pub fn hear(&mut self, at: Millis) {
        if let Some(before) = self.heard.replace(at) {
            self.intervals.count(at.since(before));
        }
    }

    /// Takes a round trip in.
    pub fn echoed(&mut self, round_trip: Duration) {
        self.round_trip = Some(round_trip);
        let before = self.smoothed.unwrap_or(round_trip);
        self.smoothed = Some((before * (SMOOTHING - 1) + round_trip) / SMOOTHING);
    }
}

/// A copy of the board.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Report {
    /// The other members.
    pub peers: BTreeMap<MemberName, PeerReport>,
    /// Attempts and frames without a right proof.
    pub refused: u64,
    /// Beats that found the queue to the agent's loop full.
    pub dropped: u64,
}

/// The board.
#[derive(Debug, Default)]
pub struct Board {
    peers: Mutex<BTreeMap<MemberName, PeerReport>>,
    refused: AtomicU64,
    dropped: AtomicU64,
}

impl Board {
    /// From now on these are the other members; what is known of others is forgotten.
    pub fn keep(&self, members: &BTreeSet<MemberName>) {
        let mut peers = self.peers.lock().unwrap_or_else(PoisonError::into_inner);
        peers.retain(|name, _| members.contains(name));
        for name in members {
            peers.entry(name.clone()).or_default();
        }
    }

    /// Writes something about one of the members down; who is none is not written about.
    pub fn update(&self, name: &MemberName, change: impl FnOnce(&mut PeerReport)) {
        let mut peers = self.peers.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(peer) = peers.get_mut(name) {
            change(peer);
        }
    }

    /// Somebody had no right proof.
    pub(super) fn refuse(&self) {
        self.refused.fetch_add(1, Ordering::Relaxed);
    }

    /// A beat found the queue full.
    pub(super) fn drop_beat(&self) {
        self.dropped.fetch_add(1, Ordering::Relaxed);
    }

    /// A copy of everything.
    #[must_use]
    pub fn report(&self) -> Report {
        Report {
            peers: self.peers.lock().unwrap_or_else(PoisonError::into_inner).clone(),
            refused: self.refused.load(Ordering::Relaxed),
            dropped: self.dropped.load(Ordering::Relaxed),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_members_are_written_about() {
        let board = Board::default();
        let name = MemberName::from;
        board.update(&name("a"), |peer| peer.sent += 1);
        assert!(board.report().peers.is_empty());
        board.keep(&[name("a"), name("b")].into());
        board.update(&name("a"), |peer| peer.sent += 1);
        board.keep(&[name("a")].into());
        let report = board.report();
        assert_eq!(report.peers.keys().collect::<Vec<_>>(), [&name("a")]);
        assert_eq!(report.peers[&name("a")].sent, 1);
    }

    #[test]
    fn intervals_between_beats_are_counted_by_their_length() {
        let mut peer = PeerReport::default();
        for at in [1_000, 1_200, 1_450, 1_701, 9_000] {
            peer.hear(Millis(at));
        }
        assert_eq!(peer.heard, Some(Millis(9_000)));
        assert_eq!(peer.intervals.sum, Millis(8_000));
        assert_eq!(peer.intervals.counts, [2, 1, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
    }

    #[test]
    fn a_round_trip_is_smoothed() {
        let mut peer = PeerReport::default();
        peer.echoed(Duration::from_millis(8));
        peer.echoed(Duration::from_millis(16));
        assert_eq!(peer.round_trip, Some(Duration::from_millis(16)));
        assert_eq!(peer.smoothed, Some(Duration::from_millis(9)));
    }
}
