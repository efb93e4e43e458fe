//! A write-ahead log, as far as it matters who wrote which record on which timeline.

use types::{HistoryLine, Lsn, Timeline};

use super::state::{Id, Place};

/// The most records that a log holds.
pub(super) const LOG_MAX: usize = 10;

/// Records from the beginning; each names its timeline and its writer, so that two records are the
/// same exactly when timeline, writer and position are.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub(super) struct Log {
    length: u8,
    records: [u8; LOG_MAX],
}

impl Log {
    pub(super) fn length(&self) -> u8 {
        self.length
    }

    pub(super) fn is_full(&self) -> bool {
        usize::from(self.length) == LOG_MAX
    }

    /// Timeline and writer of each record.
    pub(super) fn records(&self) -> impl Iterator<Item = (u8, Id)> {
        let used = &self.records[..usize::from(self.length)];
        used.iter().map(|record| (record >> 4, record & 15))
    }

    pub(super) fn push(&mut self, timeline: u8, writer: Id) {
        self.records[usize::from(self.length)] = timeline << 4 | writer;
        self.length += 1;
    }

    /// Takes the next record over from a longer log.
    pub(super) fn copy_next(&mut self, from: &Log) {
        let at = usize::from(self.length);
        self.records[at] = from.records[at];
        self.length += 1;
    }

    pub(super) fn truncated(&self, length: u8) -> Log {
        let mut log = Log { length, ..*self };
        log.records[usize::from(length)..].fill(0);
        log
    }

    pub(super) fn holds(&self, other: &Log) -> bool {
        other.length <= self.length && self.truncated(other.length) == *other
    }

    /// How far two logs have the same timelines: what `pg_rewind` takes for the same log.
    pub(super) fn common_timelines(&self, other: &Log) -> u8 {
        let same = self.records().zip(other.records()).take_while(|(a, b)| a.0 == b.0).count();
        u8::try_from(same).unwrap_or(0)
    }

    /// The timeline of the last record.
    pub(super) fn timeline(&self) -> u8 {
        self.records().last().map_or(0, |(timeline, _)| timeline)
    }

    pub(super) fn place(&self, term: u8) -> Place {
        Place { timeline: self.timeline(), length: self.length, term }
    }

    /// Its history file when it goes on in `timeline`.
    pub(super) fn history(&self, timeline: u8) -> Vec<HistoryLine> {
        let mut lines: Vec<HistoryLine> = Vec::new();
        for (number, (of, _)) in (1_u64..).zip(self.records()) {
            let line = HistoryLine { timeline: Timeline(of.into()), switch: Lsn(number) };
            match lines.last_mut() {
                Some(last) if last.timeline == line.timeline => last.switch = line.switch,
                Some(_) | None => lines.push(line),
            }
        }
        lines.retain(|line| line.timeline.0 != u32::from(timeline));
        lines
    }
}

impl std::fmt::Display for Log {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (timeline, writer) in self.records() {
            write!(f, "{timeline}{} ", super::story::letter(writer))?;
        }
        write!(f, "|")
    }
}
