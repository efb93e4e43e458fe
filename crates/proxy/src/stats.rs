//! What a pool has done, counted on the way of each transaction: additions only, no lock.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use route::Port;
use route::link::Answers;

use crate::histogram::Histogram;

/// Counters of one pool since the start of the proxy.
#[derive(Debug, Default)]
pub(crate) struct Stats {
    read_write: Counters,
    read_only: Counters,
    periods: Mutex<Periods>,
}

/// What was done for the clients of one port.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    transactions: AtomicU64,
    queries: AtomicU64,
    prepared_again: AtomicU64,
    received: AtomicU64,
    sent: AtomicU64,
    /// For how long clients had a server.
    pub(crate) lent: Histogram,
    /// How long those waited for one who had to.
    pub(crate) waited: Histogram,
}

#[derive(Debug, Default)]
struct Periods {
    /// The counters when the period began that goes on.
    begun_with: Totals,
    /// What was counted in the one before.
    last: Totals,
}

/// Averages are those of the last whole period, as long as PgBouncer's by default.
pub(crate) const PERIOD: Duration = Duration::from_secs(60);

/// Their values at one moment, and sums of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Totals {
    /// Transactions ended.
    pub(crate) transactions: u64,
    /// Queries answered.
    pub(crate) queries: u64,
    /// Statements that servers were given because a client had prepared them elsewhere.
    pub(crate) prepared_again: u64,
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
    /// Those of one port.
    pub(crate) fn at(&self, port: Port) -> &Counters {
        match port {
            Port::ReadWrite => &self.read_write,
            Port::ReadOnly => &self.read_only,
        }
    }

    /// A period ends, and the next begins.
    pub(crate) fn end_period(&self) {
        let totals = self.totals();
        let mut periods = self.periods.lock().unwrap_or_else(PoisonError::into_inner);
        periods.last = totals - periods.begun_with;
        periods.begun_with = totals;
    }

    /// What was counted in the last whole period.
    pub(crate) fn of_last_period(&self) -> Totals {
        self.periods.lock().unwrap_or_else(PoisonError::into_inner).last
    }

    /// Of both ports.
    pub(crate) fn totals(&self) -> Totals {
        let mut totals = self.read_write.totals();
        totals += self.read_only.totals();
        totals
    }
}

impl Counters {
    /// A server did this within this time.
    pub(crate) fn served(&self, answers: Answers, took: Duration) {
        self.transactions.fetch_add(answers.transactions, Ordering::Relaxed);
        self.queries.fetch_add(answers.queries, Ordering::Relaxed);
        if answers.prepared_again > 0 {
            self.prepared_again.fetch_add(answers.prepared_again, Ordering::Relaxed);
        }
        self.lent.observe(took);
    }

    /// So many bytes came from a client, and from its server.
    pub(crate) fn moved(&self, received: u64, sent: u64) {
        self.received.fetch_add(received, Ordering::Relaxed);
        self.sent.fetch_add(sent, Ordering::Relaxed);
    }

    pub(crate) fn totals(&self) -> Totals {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Totals {
            transactions: get(&self.transactions),
            queries: get(&self.queries),
            prepared_again: get(&self.prepared_again),
            received: get(&self.received),
            sent: get(&self.sent),
            lent_micros: self.lent.micros(),
            waited_micros: self.waited.micros(),
        }
    }
}

impl std::ops::AddAssign for Totals {
    fn add_assign(&mut self, other: Totals) {
        self.transactions += other.transactions;
        self.queries += other.queries;
        self.prepared_again += other.prepared_again;
        self.received += other.received;
        self.sent += other.sent;
        self.lent_micros += other.lent_micros;
        self.waited_micros += other.waited_micros;
    }
}

impl std::ops::Sub for Totals {
    type Output = Totals;

    fn sub(self, earlier: Totals) -> Totals {
        Totals {
            transactions: self.transactions.saturating_sub(earlier.transactions),
            queries: self.queries.saturating_sub(earlier.queries),
            prepared_again: self.prepared_again.saturating_sub(earlier.prepared_again),
            received: self.received.saturating_sub(earlier.received),
            sent: self.sent.saturating_sub(earlier.sent),
            lent_micros: self.lent_micros.saturating_sub(earlier.lent_micros),
            waited_micros: self.waited_micros.saturating_sub(earlier.waited_micros),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_period_has_what_was_counted_in_it() {
        let stats = Stats::default();
        let serve = |transactions, port| {
            let answers = Answers { queries: 2 * transactions, transactions, prepared_again: 0 };
            stats.at(port).served(answers, Duration::from_micros(10));
        };
        serve(1, Port::ReadWrite);
        assert_eq!(stats.of_last_period(), Totals::default());
        stats.end_period();
        serve(3, Port::ReadOnly);
        assert_eq!(stats.of_last_period().transactions, 1);
        stats.end_period();
        let last = Totals { transactions: 3, queries: 6, lent_micros: 10, ..Totals::default() };
        assert_eq!(stats.of_last_period(), last);
        stats.end_period();
        assert_eq!(stats.of_last_period(), Totals::default());
        let all = Totals { transactions: 4, queries: 8, lent_micros: 20, ..Totals::default() };
        assert_eq!(stats.totals(), all);
        assert_eq!(stats.at(Port::ReadOnly).totals(), last);
    }
}
