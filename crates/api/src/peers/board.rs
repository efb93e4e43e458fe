//! What is known of the connections to the other members, for metrics. The tasks of the connections
//! write it, and readers copy it; nobody holds its lock for longer.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use types::{MemberName, Millis};

/// How much of the smoothed round trip a new one makes up: one eighth, as in TCP.
const SMOOTHING: u32 = 8;

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
}

impl PeerReport {
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
    fn a_round_trip_is_smoothed() {
        let mut peer = PeerReport::default();
        peer.echoed(Duration::from_millis(8));
        peer.echoed(Duration::from_millis(16));
        assert_eq!(peer.round_trip, Some(Duration::from_millis(16)));
        assert_eq!(peer.smoothed, Some(Duration::from_millis(9)));
    }
}
