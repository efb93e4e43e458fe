//! What a pool has done, counted on the way of each transaction: additions only, no lock.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use route::link::Answers;

/// Counters of one pool since the start of the proxy.
#[derive(Debug, Default)]
pub(crate) struct Stats {
    transactions: AtomicU64,
    queries: AtomicU64,
    received: AtomicU64,
    sent: AtomicU64,
    lent_micros: AtomicU64,
    waited_micros: AtomicU64,
}

/// Their values at one moment, and sums of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Totals {
    /// Transactions ended.
    pub(crate) transactions: u64,
    /// Queries answered.
    pub(crate) queries: u64,
    /// Bytes that came from clients.
    pub(crate) received: u64,
    /// Bytes that servers sent.
    pub(crate) sent: u64,
    /// For how long clients had a server for a transaction, in microseconds.
    pub(crate) lent_micros: u64,
    /// For how long clients waited for a server, in microseconds.
    pub(crate) waited_micros: u64,
}

impl Stats {
    /// A server did this within this time.
    pub(crate) fn served(&self, answers: Answers, took: Duration) {
        self.transactions.fetch_add(answers.transactions, Ordering::Relaxed);
        self.queries.fetch_add(answers.queries, Ordering::Relaxed);
        self.lent_micros.fetch_add(micros(took), Ordering::Relaxed);
    }

    /// So many bytes came from a client, and from its server.
    pub(crate) fn moved(&self, received: u64, sent: u64) {
        self.received.fetch_add(received, Ordering::Relaxed);
        self.sent.fetch_add(sent, Ordering::Relaxed);
    }

    /// A client waited so long.
    pub(crate) fn waited(&self, time: Duration) {
        self.waited_micros.fetch_add(micros(time), Ordering::Relaxed);
    }

    pub(crate) fn totals(&self) -> Totals {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Totals {
            transactions: get(&self.transactions),
            queries: get(&self.queries),
            received: get(&self.received),
            sent: get(&self.sent),
            lent_micros: get(&self.lent_micros),
            waited_micros: get(&self.waited_micros),
        }
    }
}

impl std::ops::AddAssign for Totals {
    fn add_assign(&mut self, other: Totals) {
        self.transactions += other.transactions;
        self.queries += other.queries;
        self.received += other.received;
        self.sent += other.sent;
        self.lent_micros += other.lent_micros;
        self.waited_micros += other.waited_micros;
    }
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}
