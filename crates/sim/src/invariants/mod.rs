//! What must hold, one file each. The first violation ends a run.

use std::collections::{BTreeMap, BTreeSet};

use types::{MemberName, Term, Timeline};

use crate::wal::{Content, Log};

mod a_healthy_cluster_gets_a_leader;
mod a_timeline_number_is_used_once;
mod no_copy_is_destroyed_on_a_guess;
mod nothing_acknowledged_is_lost;
mod one_acknowledging_writer;
mod who_holds_more_is_heard;

/// A broken invariant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// The invariant, as a sentence, with its number in the design.
    pub invariant: &'static str,
    /// What was seen.
    pub seen: String,
    /// Virtual time in milliseconds.
    pub at: u64,
}

/// What the checkers remember of a run.
#[derive(Debug, Default)]
pub(crate) struct Checks {
    /// Every acknowledged commit.
    pub(crate) acknowledged: BTreeSet<u64>,
    /// The newest term that acknowledged anything, and where.
    pub(crate) newest: Option<(Term, usize)>,
    /// When each node last acknowledged a commit.
    pub(crate) last: BTreeMap<usize, u64>,
    /// When the last fence was opened.
    pub(crate) fence_opened: u64,
    /// Which node began each timeline.
    pub(crate) promotions: BTreeMap<Timeline, (usize, Term)>,
    /// Somebody deleted a leader key by hand: then only the fence protects (I1's second half).
    pub(crate) leader_key_deleted: bool,
    pub(crate) violation: Option<Violation>,
    /// Holds that proxies followed.
    pub(crate) holds_answered: usize,
    pub(crate) leader_told: Option<MemberName>,
    pub(crate) lease_check_at: u64,
}

impl Checks {
    pub(crate) fn failed(&self) -> bool {
        self.violation.is_some()
    }

    pub(crate) fn violate(&mut self, at: u64, invariant: &'static str, seen: String) {
        self.violation.get_or_insert(Violation { invariant, seen, at });
    }
}

/// The commits a log holds.
pub(crate) fn commits(log: &Log) -> BTreeSet<u64> {
    log.records
        .iter()
        .filter_map(|r| match r.content {
            Content::Commit(id) => Some(id),
            Content::Proof | Content::Checkpoint | Content::EndOfRecovery => None,
        })
        .collect()
}
