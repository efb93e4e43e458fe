//! Writers that never stop, and the books about what they were told: what a fault of
//! [`crate::stage`] or of [`crate::field`] is judged by.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::ensure;
use lab::ledger::{Ack, Due, PROXY_WRITER};
use lab::workload::{self, Plan, Shared, Target, Writer};
use tokio::time::Instant;

/// How often the ledger is looked at.
const LEDGER_POLL: Duration = Duration::from_millis(20);
/// How long a statement of our own may take.
pub(crate) const SQL_LIMIT: Duration = Duration::from_secs(60);
/// Far more identifiers than a writer gets through before the next run.
const IDS_PER_RUN: i64 = 1_000_000_000;

/// Between two inserts of a writer.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Paces {
    /// As applications write: at the entry.
    pub(crate) entry: Duration,
    /// Straight to each server.
    pub(crate) direct: Duration,
}

/// Writers with their ledger. They end when this is dropped.
pub(crate) struct Books {
    pub(crate) ledger: Shared,
    epoch: Instant,
    /// Acknowledged identifiers that were found missing already.
    missing: BTreeSet<i64>,
    /// Violations that have been told already.
    interleaved: usize,
    /// Entries that the last audit looked at.
    audited: usize,
    _writers: Vec<Writer>,
}

/// What an audit found, beside what earlier ones did.
#[derive(Debug, Default)]
pub(crate) struct Audit {
    /// Acknowledged identifiers that are not there.
    pub(crate) missing: BTreeSet<i64>,
    /// Acknowledgements that must not be.
    pub(crate) interleaved: usize,
    /// The first of these in words.
    pub(crate) first: Option<String>,
}

impl Books {
    /// Starts a writer at the entry and one straight to each server. `run` tells how often the
    /// table was written to before: the writers' identifiers are new, and it is kept.
    ///
    /// # Errors
    /// The table cannot be made.
    pub(crate) async fn open(
        entry: Target,
        direct: impl IntoIterator<Item = Target>,
        paces: Paces,
        run: u32,
    ) -> anyhow::Result<Books> {
        if run == 0 {
            workload::create_table(&entry, SQL_LIMIT).await?;
        }
        let (ledger, epoch) = (Shared::default(), Instant::now());
        let skip = i64::from(run) * IDS_PER_RUN;
        let start = |number, target, pace| {
            let plan = Plan { number, skip, target, pace };
            Writer::start(plan, ledger.clone(), epoch)
        };
        let mut writers = vec![start(PROXY_WRITER, entry, paces.entry)];
        writers.extend((1..).zip(direct).map(|(number, to)| start(number, to, paces.direct)));
        let missing = BTreeSet::new();
        Ok(Books { ledger, epoch, missing, interleaved: 0, audited: 0, _writers: writers })
    }

    /// Now, in the ledger's time.
    pub(crate) fn now(&self) -> Duration {
        self.epoch.elapsed()
    }

    /// The first acknowledgement at the entry of an insert sent after `after`.
    ///
    /// # Errors
    /// There is none for `limit`.
    pub(crate) async fn next_ack(&self, after: Duration, limit: Duration) -> anyhow::Result<Ack> {
        let until = Instant::now() + limit;
        loop {
            let ack = self.ledger.lock().next_ack(PROXY_WRITER, after);
            if let Some(ack) = ack {
                return Ok(ack);
            }
            ensure!(Instant::now() < until, "no insert was acknowledged within {limit:?}");
            tokio::time::sleep(LEDGER_POLL).await;
        }
    }

    /// The longest time without an acknowledgement at the entry since `from`, in seconds.
    pub(crate) fn longest_gap(&self, from: Duration) -> f64 {
        let gap = self.ledger.lock().longest_gap(PROXY_WRITER, from, self.now());
        (gap.as_secs_f64() * 1000.0).round() / 1000.0
    }

    /// How often the writer at the entry was served.
    pub(crate) fn served(&self) -> u64 {
        self.ledger.lock().served(PROXY_WRITER)
    }

    /// In how many seconds since `from` the writer at the entry was served, and of how many.
    pub(crate) fn seconds_served(&self, from: Duration) -> (u64, u64) {
        self.ledger.lock().seconds_served(PROXY_WRITER, from, self.now())
    }

    /// How many of the requests at the entry since `from`, one each `pace`, were served within a
    /// client's second, and of how many. Those of the last second may still be answered.
    pub(crate) fn requests_served(&self, from: Duration, pace: Duration) -> (u64, u64) {
        let patience = workload::ATTEMPT_LIMIT;
        let due = Due { from, until: self.now().saturating_sub(patience), pace, patience };
        self.ledger.lock().requests_served(PROXY_WRITER, due)
    }

    /// Asks for everything that was acknowledged, now and `before` (first and last identifier of
    /// each range), and the ledger for what must not be.
    ///
    /// # Errors
    /// The table cannot be read.
    pub(crate) async fn audit(
        &mut self,
        target: &Target,
        before: &[(i64, i64)],
    ) -> anyhow::Result<Audit> {
        let entries = self.ledger.lock().acks().len();
        let present = workload::present(target, SQL_LIMIT).await?;
        let ledger = self.ledger.lock();
        ensure!(ledger.gaps() == 0, "the ledger has lost entries");
        let mut missing = ledger.missing(entries, &present);
        missing.extend(before.iter().flat_map(|(first, last)| absent(&present, *first, *last)));
        let interleaved = ledger.interleaved();
        let fresh = missing.difference(&self.missing).copied().collect();
        let mut audit = Audit { missing: fresh, ..Audit::default() };
        audit.first = interleaved.get(self.interleaved).map(|first| format!("{first:?}"));
        audit.interleaved = interleaved.len().saturating_sub(self.interleaved);
        self.interleaved = self.interleaved.max(interleaved.len());
        self.missing.extend(missing);
        self.audited = entries;
        Ok(audit)
    }

    /// Forgets what the last audit looked at, here and in the table, if nothing was wrong ever:
    /// for runs that would not end with all of it.
    ///
    /// # Errors
    /// The table cannot be changed.
    pub(crate) async fn close(&mut self, target: &Target) -> anyhow::Result<()> {
        if !self.missing.is_empty() || self.interleaved > 0 {
            return Ok(());
        }
        let mut last: BTreeMap<u16, i64> = BTreeMap::new();
        for ack in &self.ledger.lock().acks()[..self.audited] {
            let newest = last.entry(ack.writer).or_insert(ack.id);
            *newest = ack.id.max(*newest);
        }
        for (writer, id) in last {
            let which = format!("writer = {writer} AND id <= {id}");
            let statement = format!("DELETE FROM pgherd_drill WHERE {which}");
            workload::execute(target, &statement, SQL_LIMIT).await?;
        }
        self.ledger.lock().close(self.audited);
        self.audited = 0;
        Ok(())
    }
}

/// The identifiers of a range that are not there.
fn absent(present: &BTreeSet<i64>, first: i64, last: i64) -> Vec<i64> {
    (first..=last).filter(|id| !present.contains(id)).collect()
}
