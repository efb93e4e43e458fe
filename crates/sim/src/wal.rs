//! A write-ahead log as a list of whole records. A position (`Lsn`) is a number of records.

use types::{HistoryLine, Lsn, Timeline};

/// What a record says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Content {
    /// A client's commit with its unique id.
    Commit(u64),
    /// The agent's own write that proves a quorum.
    Proof,
    /// A checkpoint, of any kind.
    Checkpoint,
    /// The first record of a timeline after the first.
    EndOfRecovery,
}

/// One record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Record {
    pub(crate) timeline: Timeline,
    pub(crate) content: Content,
}

/// One copy's flushed log with the history of its timelines.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Log {
    pub(crate) records: Vec<Record>,
    pub(crate) history: Vec<HistoryLine>,
}

impl Log {
    pub(crate) fn end(&self) -> Lsn {
        lsn(self.records.len())
    }

    /// The timeline of the last record.
    pub(crate) fn timeline(&self) -> Timeline {
        self.records.last().map_or(Timeline(1), |r| r.timeline)
    }

    /// The timeline of the record that ends at `end`.
    pub(crate) fn timeline_at(&self, end: Lsn) -> Timeline {
        let last = index(end).checked_sub(1).and_then(|i| self.records.get(i));
        last.map_or(Timeline(1), |r| r.timeline)
    }

    pub(crate) fn append(&mut self, timeline: Timeline, content: Content) -> Lsn {
        self.records.push(Record { timeline, content });
        self.end()
    }

    /// Appends what a receiver flushed; a new timeline brings its history with it.
    pub(crate) fn extend(&mut self, records: &[Record], upstream: &[HistoryLine]) {
        let before = self.timeline();
        self.records.extend_from_slice(records);
        let now = self.timeline();
        if now != before {
            self.history = upstream.iter().filter(|l| l.timeline < now).copied().collect();
        }
    }

    /// Begins `timeline` at the present end.
    pub(crate) fn fork(&mut self, timeline: Timeline) {
        self.history.push(HistoryLine { timeline: self.timeline(), switch: self.end() });
        self.append(timeline, Content::EndOfRecovery);
    }

    /// Whether PostgreSQL would stream from `upstream` after this log: it looks at timelines and
    /// positions only (A5).
    pub(crate) fn may_stream_from(&self, upstream: &Log) -> bool {
        let (mine, theirs) = (self.timeline(), upstream.timeline());
        if mine == theirs {
            return self.end() <= upstream.end();
        }
        let switch = upstream.history.iter().find(|l| l.timeline == mine).map(|l| l.switch);
        mine < theirs && switch.is_some_and(|switch| self.end() <= switch)
    }
}

pub(crate) fn lsn(records: usize) -> Lsn {
    Lsn(u64::try_from(records).unwrap_or(u64::MAX))
}

pub(crate) fn index(lsn: Lsn) -> usize {
    usize::try_from(lsn.0).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log(parts: &[(u32, u64)]) -> Log {
        let mut log = Log::default();
        for (timeline, commits) in parts {
            if *timeline > 1 {
                log.fork(Timeline(*timeline));
            }
            for id in 0..*commits {
                log.append(Timeline(*timeline), Content::Commit(id));
            }
        }
        log
    }

    #[test]
    fn a_log_streams_only_from_where_the_upstream_passed() {
        let leader = log(&[(1, 5), (3, 2)]);
        assert!(log(&[(1, 5)]).may_stream_from(&leader));
        assert!(log(&[(1, 2)]).may_stream_from(&leader));
        assert!(!log(&[(1, 6)]).may_stream_from(&leader), "past the switch point");
        assert!(!log(&[(1, 5), (2, 1)]).may_stream_from(&leader), "another timeline");
        assert!(!leader.may_stream_from(&log(&[(1, 9)])), "the upstream is behind");
    }

    #[test]
    fn equal_timelines_hide_divergence() {
        let mut one = log(&[(1, 5)]);
        let mut two = one.clone();
        one.append(Timeline(1), Content::Commit(100));
        two.append(Timeline(1), Content::Commit(200));
        two.append(Timeline(1), Content::Commit(201));
        assert!(one.may_stream_from(&two));
    }
}
