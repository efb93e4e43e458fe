//! What happens seldom, counted by its kind: logins, errors that clients are told, cuts.

use std::collections::BTreeMap;
use std::sync::atomic::AtomicU64;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use pgproto::wire::sqlstate_of;
use route::{CutReason, Port};
use tokio::time::Instant;

use crate::histogram::Histogram;
use crate::sessions::AllSessions;

/// SQLSTATEs that are told apart at each port. Some are a server's, which may say anything.
const SQLSTATES_MAX: usize = 64;
/// All further ones.
const OTHER: &str = "other";
const HEADER: usize = 5;

/// Counts by kind since the start of the proxy.
#[derive(Debug)]
pub(crate) struct Counts<K>(Mutex<BTreeMap<K, u64>>);

impl<K> Default for Counts<K> {
    fn default() -> Counts<K> {
        Counts(Mutex::default())
    }
}

impl<K: Ord + Clone> Counts<K> {
    pub(crate) fn add(&self, kind: K) {
        *self.lock().entry(kind).or_default() += 1;
    }

    pub(crate) fn all(&self) -> BTreeMap<K, u64> {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<K, u64>> {
        // Every change is one call on the map, so a panic elsewhere leaves it whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How a client's login ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Outcome {
    /// It is in.
    LetIn,
    /// It did not show who it is, or no rule admits it.
    Rejected,
    /// There was no place or no server for it.
    Refused,
    /// It went, or could not be told anything.
    Left,
}

impl Outcome {
    pub(crate) const ALL: [(Outcome, &'static str); 4] = [
        (Outcome::LetIn, "let_in"),
        (Outcome::Rejected, "rejected"),
        (Outcome::Refused, "refused"),
        (Outcome::Left, "left"),
    ];
}

/// Where a cancel request was led.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Cancelled {
    /// To a client of ours.
    Own,
    /// To the proxy that gave the key.
    OtherProxy,
    /// Nowhere: nobody knows the key.
    Unknown,
}

impl Cancelled {
    pub(crate) const ALL: [(Cancelled, &'static str); 3] = [
        (Cancelled::Own, "own"),
        (Cancelled::OtherProxy, "other_proxy"),
        (Cancelled::Unknown, "unknown"),
    ];
}

/// What is counted of all clients of the proxy.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    pub(crate) logins: Counts<(Port, Outcome)>,
    pub(crate) cancels: Counts<Cancelled>,
    pub(crate) errors: Errors,
}

/// What is counted of one cluster.
#[derive(Debug, Default)]
pub(crate) struct ClusterTally {
    /// Connections that were taken from clients of pools; the router counts cut sessions.
    pub(crate) cuts: Counts<(Port, CutReason)>,
    /// How long it took to open a connection of a pool, signed in.
    pub(crate) opened: Histogram,
    pub(crate) not_opened: AtomicU64,
    pub(crate) sessions: AllSessions,
    /// Since when the view is not known to be current; `None`: it is.
    stale_since: Mutex<Option<Instant>>,
}

impl ClusterTally {
    /// The view is known to be current from now on, or is no longer.
    pub(crate) fn view_is(&self, fresh: bool) {
        *self.stale_since.lock().unwrap_or_else(PoisonError::into_inner) =
            (!fresh).then(Instant::now);
    }

    /// For how long the view has not been known to be current.
    pub(crate) fn view_age(&self) -> Duration {
        let since = *self.stale_since.lock().unwrap_or_else(PoisonError::into_inner);
        since.map(|since| since.elapsed()).unwrap_or_default()
    }
}

/// What clients were told, by SQLSTATE.
#[derive(Debug, Default)]
pub(crate) struct Errors(Counts<(Port, String)>);

impl Errors {
    /// A client is told this by us; nothing is counted if it is no error.
    pub(crate) fn told(&self, port: Port, message: &[u8]) {
        let body = message.get(HEADER..).filter(|_| message.first() == Some(&b'E'));
        if let Some(sqlstate) = body.and_then(sqlstate_of) {
            self.add(port, sqlstate);
        }
    }

    /// A client is told an error with this SQLSTATE.
    pub(crate) fn add(&self, port: Port, sqlstate: &str) {
        let mut counts = self.0.lock();
        let mut kind = (port, sqlstate.to_owned());
        if !counts.contains_key(&kind) {
            let known = counts.keys().filter(|(at, _)| *at == port).count();
            if known >= SQLSTATES_MAX {
                kind.1 = OTHER.to_owned();
            }
        }
        *counts.entry(kind).or_default() += 1;
    }

    pub(crate) fn all(&self) -> BTreeMap<(Port, String), u64> {
        self.0.all()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::words::{self, Ending};

    #[test]
    fn errors_are_counted_by_sqlstate_and_there_is_an_end_of_them() {
        let errors = Errors::default();
        for in_doubt in [true, false, false] {
            errors.told(Port::ReadWrite, &words::ending(Ending::Killed, in_doubt));
        }
        errors.told(Port::ReadOnly, b"");
        errors.told(Port::ReadOnly, b"Z\0\0\0\x05I");
        let kind = |sqlstate: &str| (Port::ReadWrite, sqlstate.to_owned());
        assert_eq!(errors.all(), [(kind("08007"), 1), (kind("57P01"), 2)].into());
        for number in 0..1000 {
            errors.add(Port::ReadWrite, &number.to_string());
        }
        errors.add(Port::ReadWrite, "57P01");
        let all = errors.all();
        assert_eq!(all.len(), SQLSTATES_MAX + 1);
        assert_eq!((all[&kind("57P01")], all[&kind(OTHER)]), (3, 1000 - 62));
    }
}
