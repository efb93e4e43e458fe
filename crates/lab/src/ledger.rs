//! The ledger: every insert that a server acknowledged, and what must be true of them.
//!
//! Pure. Two questions are asked of it. Is anything acknowledged missing (I2)? Did two servers
//! acknowledge at the same time (I1)? Times are spans since the drill began, on one monotonic
//! clock of one process, so they can be compared.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// Identifiers of one writer start at `writer * IDS_PER_WRITER`.
pub const IDS_PER_WRITER: i64 = 1_000_000_000_000;

/// The writer on the read-write port; the others write straight to one node each.
pub const PROXY_WRITER: u16 = 0;

/// One acknowledged insert.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ack {
    /// The row's identifier, unique over all writers.
    pub id: i64,
    /// Who wrote it.
    pub writer: u16,
    /// When it was sent.
    pub sent: Duration,
    /// When the acknowledgement was here.
    pub acked: Duration,
    /// The port of the server that inserted it.
    pub port: u16,
    /// The timeline it was inserted on.
    pub timeline: u32,
}

/// An acknowledgement that must not be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Interleaved {
    /// A server acknowledged an insert that was sent after a higher timeline had acknowledged one.
    OlderTimeline {
        /// The insert on the lower timeline.
        ack: Ack,
        /// The first one that a higher timeline acknowledged.
        newer: Ack,
    },
    /// Two servers acknowledged on one timeline.
    SharedTimeline {
        /// The insert of the second server.
        ack: Ack,
        /// The first insert of the timeline.
        first: Ack,
    },
}

/// What the writers saw.
#[derive(Debug, Default)]
pub struct Ledger {
    acks: Vec<Ack>,
    /// How many acknowledgements each writer counted by itself: the ledger is whole if it has as
    /// many.
    counted: BTreeMap<u16, u64>,
    /// Inserts whose answer never came: they may be there or not.
    unknown: u64,
    /// The first entry of each timeline among those that were closed, and how many were.
    closed_firsts: BTreeMap<u32, Ack>,
    closed: u64,
}

/// Requests that somebody has, one after the other.
#[derive(Debug, Clone, Copy)]
pub struct Due {
    /// When the first one comes.
    pub from: Duration,
    /// Before when the last one comes.
    pub until: Duration,
    /// Between two; not 0.
    pub pace: Duration,
    /// How long each waits for its answer.
    pub patience: Duration,
}

impl Ledger {
    /// Enters an acknowledged insert.
    pub fn acknowledged(&mut self, ack: Ack) {
        *self.counted.entry(ack.writer).or_default() += 1;
        self.acks.push(ack);
    }

    /// Counts an insert whose answer never came.
    pub fn unknown(&mut self) {
        self.unknown += 1;
    }

    /// How often `writer` was served.
    #[must_use]
    pub fn served(&self, writer: u16) -> u64 {
        self.counted.get(&writer).copied().unwrap_or(0)
    }

    /// How many were acknowledged, with those that were closed.
    #[must_use]
    pub fn acknowledged_count(&self) -> u64 {
        self.closed + self.acks.len() as u64
    }

    /// In how many of the whole seconds of `from..until` an insert of `writer` was acknowledged,
    /// and how many these are.
    #[must_use]
    pub fn seconds_served(&self, writer: u16, from: Duration, until: Duration) -> (u64, u64) {
        let all = until.saturating_sub(from).as_secs();
        let acked = self.acks.iter().filter(|ack| ack.writer == writer && ack.acked >= from);
        let seconds: BTreeSet<u64> = acked.map(|ack| (ack.acked - from).as_secs()).collect();
        (seconds.range(..all).count() as u64, all)
    }

    /// Of those who come one each `pace` in `from..until`, how many see an insert of `writer`
    /// acknowledged within `patience`, and how many these are.
    #[must_use]
    pub fn requests_served(&self, writer: u16, due: Due) -> (u64, u64) {
        let acked = self.acks.iter().filter(|ack| ack.writer == writer).map(|ack| ack.acked);
        let mut acked = acked.peekable();
        let (mut served, mut all, mut at) = (0, 0, due.from);
        while at < due.until {
            while acked.next_if(|acked| *acked < at).is_some() {}
            served += u64::from(acked.peek().is_some_and(|acked| *acked <= at + due.patience));
            all += 1;
            at += due.pace;
        }
        (served, all)
    }

    /// How long each insert of `writer` took that was sent within `from..until`.
    #[must_use]
    pub fn latencies(&self, writer: u16, from: Duration, until: Duration) -> Vec<Duration> {
        let within = |ack: &&Ack| ack.writer == writer && ack.sent >= from && ack.sent < until;
        self.acks.iter().filter(within).map(|ack| ack.acked.saturating_sub(ack.sent)).collect()
    }

    /// The acknowledged inserts, in the order in which they were entered.
    #[must_use]
    pub fn acks(&self) -> &[Ack] {
        &self.acks
    }

    /// Inserts whose answer never came.
    #[must_use]
    pub fn unknown_count(&self) -> u64 {
        self.unknown
    }

    /// Loses an entry, as a fault of the ledger itself; it must be noticed by [`Ledger::gaps`].
    pub fn plant_lost_entry(&mut self) {
        self.acks.pop();
    }

    /// Entries that the writers counted and the ledger does not have: not zero means that the books
    /// cannot be trusted.
    #[must_use]
    pub fn gaps(&self) -> u64 {
        let counted: u64 = self.counted.values().sum();
        counted.abs_diff(self.acknowledged_count())
    }

    /// The first `entries` acknowledged inserts that `present`, the table's identifiers, does not
    /// hold. `entries` is how many there were before the table was read: later ones need not be
    /// in what was read.
    #[must_use]
    pub fn missing(&self, entries: usize, present: &BTreeSet<i64>) -> BTreeSet<i64> {
        let entered = self.acks.iter().take(entries);
        entered.map(|ack| ack.id).filter(|id| !present.contains(id)).collect()
    }

    /// The acknowledgements that must not be, in the order of their time.
    ///
    /// An insert that was on its way when a higher timeline came may still be acknowledged late: it
    /// was committed before. One that was *sent* afterwards may not.
    #[must_use]
    pub fn interleaved(&self) -> Vec<Interleaved> {
        let mut by_time: Vec<Ack> = self.acks.clone();
        by_time.sort_by_key(|ack| (ack.acked, ack.id));
        let mut first = self.closed_firsts.clone();
        for ack in &by_time {
            first.entry(ack.timeline).or_insert(*ack);
        }
        by_time.iter().filter_map(|ack| violation(ack, &first)).collect()
    }

    /// When the first insert of `writer` that was sent at or after `after` was acknowledged.
    #[must_use]
    pub fn next_ack(&self, writer: u16, after: Duration) -> Option<Ack> {
        self.acks
            .iter()
            .filter(|ack| ack.writer == writer && ack.sent >= after)
            .min_by_key(|ack| ack.acked)
            .copied()
    }

    /// The longest time between two acknowledgements of `writer` that touches `from..until`.
    #[must_use]
    pub fn longest_gap(&self, writer: u16, from: Duration, until: Duration) -> Duration {
        let times = self.acks.iter().filter(|ack| ack.writer == writer).map(|ack| ack.acked);
        let times: BTreeSet<Duration> = times.collect();
        let before = times.range(..from).next_back().copied().unwrap_or(from);
        let inside = times.range(from..until).copied();
        let mut longest = Duration::ZERO;
        let mut last = before;
        for time in inside.chain([times.range(until..).next().copied().unwrap_or(until)]) {
            longest = longest.max(time.saturating_sub(last));
            last = time;
        }
        longest
    }

    /// The highest timeline that acknowledged anything.
    #[must_use]
    pub fn highest_timeline(&self) -> u32 {
        let closed = self.closed_firsts.keys().next_back().copied().unwrap_or(0);
        self.acks.iter().map(|ack| ack.timeline).max().unwrap_or(0).max(closed)
    }

    /// Forgets the first `entries`, which were found good, but for what later ones are held
    /// against: the first of each timeline.
    pub fn close(&mut self, entries: usize) {
        for ack in self.acks.drain(..entries.min(self.acks.len())) {
            self.closed += 1;
            let first = self.closed_firsts.entry(ack.timeline).or_insert(ack);
            if (ack.acked, ack.id) < (first.acked, first.id) {
                *first = ack;
            }
        }
    }
}

fn violation(ack: &Ack, first: &BTreeMap<u32, Ack>) -> Option<Interleaved> {
    let newer = first.range(ack.timeline + 1..).map(|(_, newer)| newer).min_by_key(|a| a.acked);
    if let Some(newer) = newer.filter(|newer| ack.sent > newer.acked) {
        return Some(Interleaved::OlderTimeline { ack: *ack, newer: *newer });
    }
    let first = first.get(&ack.timeline)?;
    (first.port != ack.port).then_some(Interleaved::SharedTimeline { ack: *ack, first: *first })
}

#[cfg(test)]
mod tests {
    use super::*;

    const OLD: (u16, u32) = (15_010, 1);
    const NEW: (u16, u32) = (15_020, 2);

    fn ack(id: i64, sent: u64, acked: u64, (port, timeline): (u16, u32)) -> Ack {
        Ack {
            id,
            writer: PROXY_WRITER,
            sent: Duration::from_millis(sent),
            acked: Duration::from_millis(acked),
            port,
            timeline,
        }
    }

    fn ledger(acks: &[Ack]) -> Ledger {
        let mut ledger = Ledger::default();
        acks.iter().for_each(|ack| ledger.acknowledged(*ack));
        ledger
    }

    fn failover() -> Vec<Ack> {
        vec![ack(1, 0, 5, OLD), ack(2, 10, 15, OLD), ack(3, 900, 950, NEW), ack(4, 960, 965, NEW)]
    }

    #[test]
    fn a_failover_without_overlap_is_clean() {
        let ledger = ledger(&failover());
        assert_eq!(ledger.interleaved(), vec![]);
        assert_eq!(ledger.missing(4, &BTreeSet::from([1, 2, 3, 4, 5])), BTreeSet::new());
        assert_eq!(ledger.gaps(), 0);
        assert_eq!(ledger.highest_timeline(), 2);
    }

    #[test]
    fn a_second_is_served_if_anything_is_acknowledged_in_it() {
        let at = |second: u64| ack(i64::try_from(second).expect("small"), 0, second * 1000, OLD);
        let ledger = ledger(&[at(1), at(2), at(5)]);
        let seconds = |from, until| {
            ledger.seconds_served(
                PROXY_WRITER,
                Duration::from_millis(from),
                Duration::from_millis(until),
            )
        };
        assert_eq!(seconds(900, 6000), (3, 5));
        assert_eq!(seconds(900, 5800), (2, 4), "what is acknowledged in the rest does not count");
        assert_eq!(ledger.latencies(PROXY_WRITER, Duration::ZERO, Duration::from_secs(9)).len(), 3);
        assert_eq!((ledger.served(PROXY_WRITER), ledger.served(1)), (3, 0));
    }

    #[test]
    fn a_request_is_served_if_an_answer_comes_in_time() {
        let ms = Duration::from_millis;
        let at = |id: i64, acked: u64| ack(id, 0, acked, OLD);
        // One each 10 ms but for a gap from 30 to 70; another writer does not count.
        let mut acks: Vec<Ack> =
            [5, 18, 30, 70, 81, 90].into_iter().zip(1..).map(|(t, id)| at(id, t)).collect();
        acks.push(Ack { writer: 1, ..at(9, 50) });
        acks.sort_by_key(|ack| ack.acked);
        let ledger = ledger(&acks);
        let due =
            |patience| Due { from: ms(0), until: ms(100), pace: ms(10), patience: ms(patience) };
        assert_eq!(
            ledger.requests_served(PROXY_WRITER, due(15)),
            (8, 10),
            "not those of 40 and 50"
        );
        assert_eq!(ledger.requests_served(PROXY_WRITER, due(30)), (10, 10));
        assert_eq!(ledger.requests_served(PROXY_WRITER, due(0)).0, 3, "30, 70 and 90");
    }

    #[test]
    fn a_second_writer_is_seen() {
        let mut acks = failover();
        let second = Ack { writer: 1, ..ack(5, 955, 958, OLD) };
        acks.push(second);
        let found = ledger(&acks).interleaved();
        let newer = acks[2];
        assert_eq!(found, vec![Interleaved::OlderTimeline { ack: second, newer }]);
    }

    #[test]
    fn closed_books_still_tell_who_came_first() {
        let mut acks = failover();
        acks.push(Ack { writer: 1, ..ack(5, 955, 958, OLD) });
        let expected = ledger(&acks).interleaved();
        let mut closed = ledger(&failover());
        closed.close(4);
        assert_eq!((closed.gaps(), closed.highest_timeline(), closed.acks()), (0, 2, &[][..]));
        closed.acknowledged(acks[4]);
        assert_eq!(closed.interleaved(), expected);
        assert_eq!(closed.gaps(), 0);
    }

    #[test]
    fn a_late_answer_to_an_old_insert_is_no_second_writer() {
        let mut acks = failover();
        acks.push(ack(5, 20, 955, OLD));
        assert_eq!(ledger(&acks).interleaved(), vec![]);
    }

    #[test]
    fn two_servers_on_one_timeline_are_seen() {
        let mut acks = failover();
        let second = ack(5, 970, 975, (OLD.0, NEW.1));
        acks.push(second);
        let first = acks[2];
        assert_eq!(
            ledger(&acks).interleaved(),
            vec![Interleaved::SharedTimeline { ack: second, first }]
        );
    }

    #[test]
    fn the_order_of_entry_does_not_matter() {
        let mut acks = failover();
        acks.push(ack(5, 955, 958, OLD));
        acks.reverse();
        assert_eq!(ledger(&acks).interleaved().len(), 1);
    }

    #[test]
    fn a_missing_row_is_named() {
        let ledger = ledger(&failover());
        assert_eq!(ledger.missing(4, &BTreeSet::from([1, 3, 4])), BTreeSet::from([2]));
        assert_eq!(ledger.missing(3, &BTreeSet::from([1, 2, 3])), BTreeSet::new());
    }

    #[test]
    fn a_lost_ledger_entry_is_noticed() {
        let mut ledger = ledger(&failover());
        ledger.plant_lost_entry();
        assert_eq!(ledger.gaps(), 1);
    }

    #[test]
    fn the_next_acknowledgement_is_of_an_insert_sent_after_the_fault() {
        let ledger = ledger(&failover());
        let at = |ms| Duration::from_millis(ms);
        // Sent at 10, before the fault at 12, although acknowledged after it.
        assert_eq!(ledger.next_ack(PROXY_WRITER, at(12)).map(|ack| ack.id), Some(3));
        assert_eq!(ledger.next_ack(PROXY_WRITER, at(961)), None);
        assert_eq!(ledger.next_ack(7, at(0)), None);
    }

    #[test]
    fn the_longest_gap_begins_at_the_last_answer_before_the_fault() {
        let ledger = ledger(&failover());
        let at = |ms| Duration::from_millis(ms);
        assert_eq!(ledger.longest_gap(PROXY_WRITER, at(20), at(2000)), at(1035));
        assert_eq!(ledger.longest_gap(PROXY_WRITER, at(20), at(960)), at(935));
        assert_eq!(ledger.longest_gap(9, at(20), at(960)), at(940));
    }
}
