//! Positions in the write-ahead log, and the arithmetic of timelines.

use serde::{Deserialize, Serialize};

use crate::records::Term;

/// A byte position in the write-ahead log.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Lsn(pub u64);

impl Lsn {
    /// The bytes from `earlier` to `self`, zero if `earlier` is ahead.
    #[must_use]
    pub const fn bytes_since(self, earlier: Lsn) -> u64 {
        self.0.saturating_sub(earlier.0)
    }

    /// The end of the last record, of a position where the next one is to be inserted; block and
    /// segment are PostgreSQL's `wal_block_size` and `wal_segment_size` in bytes. At the beginning
    /// of a block that position lies behind the block's header, which is not written before a
    /// record is, so that no standby comes up to it (`XLogBytePosToRecPtr` and
    /// `XLogBytePosToEndRecPtr` in xlog.c).
    #[must_use]
    pub fn end_of_record(self, block: u64, segment: u64) -> Lsn {
        /// Of the first block of a segment, and of every other one.
        const LONG_HEADER: u64 = 40;
        const HEADER: u64 = 24;
        if self.0.checked_rem(segment) == Some(LONG_HEADER) {
            return Lsn(self.0 - LONG_HEADER);
        }
        let behind_header = self.0.checked_rem(block) == Some(HEADER);
        if behind_header { Lsn(self.0 - HEADER) } else { self }
    }

    /// Parses PostgreSQL's text form, `X/Y` in hexadecimal.
    #[must_use]
    pub fn parse(text: &str) -> Option<Lsn> {
        let (high, low) = text.trim().split_once('/')?;
        let high = u32::from_str_radix(high, 16).ok()?;
        let low = u32::from_str_radix(low, 16).ok()?;
        Some(Lsn((u64::from(high) << 32) | u64::from(low)))
    }
}

impl std::fmt::Display for Lsn {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:X}/{:X}", self.0 >> 32, self.0 & 0xFFFF_FFFF)
    }
}

/// A timeline number; PostgreSQL's first is 1, 0 stands for "not known".
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Timeline(pub u32);

impl std::fmt::Display for Timeline {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// What an election compares. The order is that of the fields: a longer log of an older timeline
/// never outranks a shorter one of a newer. Timeline numbers are reserved, one for each term, and
/// only grow, so the timeline says which term's log this is. The recorded term does not: an agent
/// that is cut off from the DCS can miss a term whose log its PostgreSQL streams and confirms
/// (`docs/decisions/0004-positions-compare-by-timeline.md`).
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
pub struct Position {
    /// The timeline of the last received record.
    pub timeline: Timeline,
    /// The end of what is flushed to disk.
    pub lsn: Lsn,
    /// The newest term that was known when this was noted; what was pledged binds up to it.
    pub term: Term,
}

impl std::fmt::Display for Position {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "term {} timeline {} at {}", self.term, self.timeline, self.lsn)
    }
}

/// One line of a timeline history file: `timeline` was left at `switch`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct HistoryLine {
    /// The timeline that ended.
    pub timeline: Timeline,
    /// The position at which its child began.
    pub switch: Lsn,
}

/// Parses the text of a `.history` file (PostgreSQL, `timeline.c`): tab-separated timeline, switch
/// point and reason; `#` starts a comment. Lines that do not parse are skipped, as they carry no
/// switch point.
#[must_use]
pub fn parse_history_file(text: &str) -> Vec<HistoryLine> {
    let mut lines = Vec::new();
    for line in text.lines() {
        let line = line.trim_start();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let mut fields = line.split_whitespace();
        let timeline = fields.next().and_then(|t| t.parse().ok());
        let switch = fields.next().and_then(Lsn::parse);
        if let (Some(timeline), Some(switch)) = (timeline, switch) {
            lines.push(HistoryLine { timeline: Timeline(timeline), switch });
        }
    }
    lines
}

/// How a copy can come back under a leader.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Rejoin {
    /// Its log is a prefix of the leader's: stream.
    Follow,
    /// It holds records that the leader's history does not: pg_rewind.
    Rewind,
}

/// Compares a local copy with the leader's history.
///
/// `local` is the copy's timeline and the end of its log, `certain_end` whether that end is known
/// (a primary that crashed has records past its last checkpoint, so its end is not), and
/// `leader_history` the leader's history file, empty on timeline 1.
#[must_use]
pub fn compare_with_leader(
    local: (Timeline, Lsn),
    certain_end: bool,
    leader: Timeline,
    leader_history: &[HistoryLine],
) -> Rejoin {
    let (timeline, end) = local;
    if timeline == leader {
        return Rejoin::Follow;
    }
    let switch = leader_history.iter().find(|line| line.timeline == timeline).map(|l| l.switch);
    match switch {
        Some(switch) if certain_end && end <= switch => Rejoin::Follow,
        Some(_) | None => Rejoin::Rewind,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lsn_text_goes_both_ways() {
        let lsn = Lsn::parse("16/B374D848").expect("valid");
        assert_eq!(lsn.0, 0x16_B374_D848);
        assert_eq!(lsn.to_string(), "16/B374D848");
        assert_eq!(Lsn::parse("16B374D848"), None);
        assert_eq!(Lsn::parse("x/1"), None);
    }

    #[test]
    fn a_newer_timeline_outranks_a_longer_log_and_a_newer_note() {
        let old = Position { term: Term(5), timeline: Timeline(2), lsn: Lsn(900) };
        let new = Position { term: Term(4), timeline: Timeline(3), lsn: Lsn(1) };
        assert!(new > old);
    }

    #[test]
    fn history_files_parse_and_skip_comments() {
        let text = "# c\n1\t0/3000000\tno recovery target specified\n\n2\t0/4000148\tx\nnonsense\n";
        let lines = parse_history_file(text);
        assert_eq!(lines.len(), 2);
        assert_eq!(lines[1], HistoryLine { timeline: Timeline(2), switch: Lsn(0x4000148) });
    }

    #[test]
    fn rejoin_follows_only_a_certain_prefix() {
        let history = [HistoryLine { timeline: Timeline(1), switch: Lsn(100) }];
        let at = |tli, lsn, certain| {
            compare_with_leader((Timeline(tli), Lsn(lsn)), certain, Timeline(2), &history)
        };
        assert_eq!(at(2, 500, true), Rejoin::Follow);
        assert_eq!(at(1, 100, true), Rejoin::Follow);
        assert_eq!(at(1, 101, true), Rejoin::Rewind);
        assert_eq!(at(1, 50, false), Rejoin::Rewind, "a crashed primary's end is not known");
        assert_eq!(at(3, 50, true), Rejoin::Rewind, "a timeline the leader never had");
    }
}
