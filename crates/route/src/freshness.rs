//! Which replicas have replayed what the primary had acknowledged: clients read what they wrote,
//! and no position is kept for each of them.
//!
//! The proxy asks the primary again and again where its WAL ends. Each question has a number. What
//! was acknowledged before a question was sent lies below its answer, so a replica that has
//! replayed up to there has all of it. A client keeps the number of the last question that was
//! begun when its last write was acknowledged; it may read where a later question is known to be
//! met.

use std::collections::{BTreeMap, VecDeque};

use types::{Lsn, MemberName, Term};

use crate::event::Target;

/// The number of a question to the primary; later ones have higher numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Round(pub u64);

/// Answers of the primary that are remembered: a replica that is further behind is not fresh.
const MARKS_MAX: usize = 128;

/// What is known of one replica.
#[derive(Debug, Clone, Copy)]
struct Proof {
    /// It had replayed what this question was answered.
    round: Option<Round>,
    /// What it said last was asked after the answer with this number, and is the one with that.
    asked_after: u64,
    number: u64,
}

/// What is known of all, in one term.
#[derive(Debug, Clone, Default)]
pub(crate) struct Freshness {
    term: Term,
    primary: Option<MemberName>,
    /// Where the WAL ended, by rising positions and rounds.
    marks: VecDeque<(Round, Lsn)>,
    proofs: BTreeMap<MemberName, Proof>,
    /// Answers of replicas so far.
    answers: u64,
}

impl Freshness {
    /// Follows the primary. Without one nothing changes: what was proven stays true in its term.
    pub(crate) fn follow(&mut self, primary: Option<&Target>, newest: Term) {
        let other = primary.is_some_and(|target| Some(&target.member) != self.primary.as_ref());
        if other || newest != self.term {
            self.marks.clear();
            self.proofs.clear();
            self.term = newest;
            self.primary = primary.map(|target| target.member.clone());
        }
    }

    /// The primary's WAL ended there. Who is no primary any more says nothing.
    pub(crate) fn wal_ends(&mut self, round: Round, member: &MemberName, term: Term, lsn: Lsn) {
        let last = self.marks.back().map_or(Round(0), |(round, _)| *round);
        if self.primary.as_ref() != Some(member) || term != self.term || round <= last {
            return;
        }
        // A primary that crashed may have lost what no replica can have either.
        self.marks.truncate(self.marks.partition_point(|(_, end)| *end < lsn));
        if self.marks.len() >= MARKS_MAX {
            self.marks.pop_front();
        }
        self.marks.push_back((round, lsn));
    }

    /// A replica on the primary's timeline has replayed so far.
    pub(crate) fn replayed(&mut self, member: MemberName, lsn: Lsn) {
        self.answers += 1;
        let below = self.marks.partition_point(|(_, end)| *end <= lsn);
        let mark = below.checked_sub(1).and_then(|at| self.marks.get(at));
        let asked_after = self.proofs.get(&member).map_or(0, |proof| proof.number);
        let round = mark.map(|(round, _)| *round);
        self.proofs.insert(member, Proof { round, asked_after, number: self.answers });
    }

    /// Nothing is known of it any more: it may come back as it was earlier.
    pub(crate) fn forget(&mut self, member: &MemberName) {
        self.proofs.remove(member);
    }

    /// Whether the replica has what was acknowledged up to this round.
    pub(crate) fn has(&self, member: &MemberName, written: Round) -> bool {
        let proof = self.proofs.get(member).and_then(|proof| proof.round);
        proof.is_some_and(|round| round > written)
    }

    /// The number of answers so far; a connection that is opened now remembers it.
    pub(crate) fn answers(&self) -> u64 {
        self.answers
    }

    /// Whether what is known of the replica is true of a connection that was opened after so many
    /// answers. A standby that crashes comes back at an earlier position. All its sessions end
    /// before it takes new ones; so a session that was there already when the last question was
    /// asked, and still is, has not seen that since.
    pub(crate) fn is_proven(&self, member: &MemberName, opened_after: u64) -> bool {
        self.proofs.get(member).is_some_and(|proof| proof.asked_after > opened_after)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(name: &str) -> MemberName {
        MemberName(name.to_owned())
    }

    fn led_by(member: &str) -> Target {
        Target { member: name(member), host: String::new(), port: 0, term: Some(Term(1)) }
    }

    fn of_a() -> Freshness {
        let mut freshness = Freshness::default();
        freshness.follow(Some(&led_by("a")), Term(1));
        freshness
    }

    impl Freshness {
        fn mark(&mut self, round: u64, lsn: u64) {
            self.wal_ends(Round(round), &name("a"), Term(1), Lsn(lsn));
        }

        /// The highest round after which a write is known to be there.
        fn known(&self, member: &str) -> Option<u64> {
            (0..300).rev().find(|written| self.has(&name(member), Round(*written)))
        }
    }

    #[test]
    fn a_replica_is_as_fresh_as_the_newest_answer_that_it_has_reached() {
        let mut freshness = of_a();
        freshness.replayed(name("b"), Lsn(1000));
        assert_eq!(freshness.known("b"), None, "nothing to compare with");
        freshness.mark(1, 100);
        freshness.mark(2, 200);
        freshness.mark(4, 200);
        freshness.replayed(name("b"), Lsn(99));
        assert_eq!(freshness.known("b"), None);
        freshness.replayed(name("b"), Lsn(199));
        assert_eq!(freshness.known("b"), Some(0), "the first, which a write of round 0 precedes");
        freshness.replayed(name("b"), Lsn(200));
        assert_eq!(freshness.known("b"), Some(3), "without WAL between them both are met");
        assert_eq!(freshness.known("c"), None);
        freshness.mark(3, 900);
        freshness.replayed(name("b"), Lsn(200));
        assert_eq!(freshness.known("b"), Some(3), "an answer that comes late counts for nothing");
        // It has come back behind where it was.
        freshness.replayed(name("b"), Lsn(150));
        assert_eq!(freshness.known("b"), Some(0));
    }

    #[test]
    fn another_primary_or_term_begins_anew_and_none_changes_nothing() {
        let mut freshness = of_a();
        freshness.mark(1, 100);
        freshness.replayed(name("b"), Lsn(100));
        freshness.follow(None, Term(1));
        assert_eq!(freshness.known("b"), Some(0));
        freshness.follow(Some(&led_by("a")), Term(1));
        assert_eq!(freshness.known("b"), Some(0));
        freshness.follow(Some(&led_by("a")), Term(2));
        assert_eq!(freshness.known("b"), None);
        freshness.mark(2, 100);
        freshness.replayed(name("b"), Lsn(100));
        assert_eq!(freshness.known("b"), None, "that was an answer in the old term");
        freshness.wal_ends(Round(3), &name("b"), Term(2), Lsn(1));
        freshness.replayed(name("b"), Lsn(100));
        assert_eq!(freshness.known("b"), None, "that was no answer of the primary");
        freshness.follow(None, Term(3));
        freshness.follow(Some(&led_by("b")), Term(3));
        freshness.wal_ends(Round(4), &name("b"), Term(3), Lsn(1));
        freshness.replayed(name("c"), Lsn(1));
        assert_eq!(freshness.known("c"), Some(3));
    }

    #[test]
    fn a_primary_that_went_back_is_believed() {
        let mut freshness = of_a();
        freshness.mark(1, 100);
        freshness.mark(2, 200);
        freshness.mark(3, 150);
        freshness.replayed(name("b"), Lsn(150));
        assert_eq!(freshness.known("b"), Some(2));
        freshness.replayed(name("b"), Lsn(120));
        assert_eq!(freshness.known("b"), Some(0));
    }

    #[test]
    fn no_more_answers_are_kept_than_is_said() {
        let mut freshness = of_a();
        for round in 1..=2 * 128 {
            freshness.mark(round, 10 * round);
        }
        assert_eq!(freshness.marks.len(), MARKS_MAX);
        freshness.replayed(name("b"), Lsn(1280));
        assert_eq!(freshness.known("b"), None, "too far behind");
        freshness.replayed(name("b"), Lsn(1290));
        assert_eq!(freshness.known("b"), Some(128));
    }

    #[test]
    fn only_what_was_asked_after_it_was_opened_says_something_of_a_connection() {
        let mut freshness = of_a();
        freshness.mark(1, 100);
        let first = freshness.answers();
        freshness.replayed(name("b"), Lsn(100));
        assert!(!freshness.is_proven(&name("b"), first), "it may have been asked before");
        freshness.replayed(name("b"), Lsn(100));
        assert!(freshness.is_proven(&name("b"), first));
        let second = freshness.answers();
        freshness.replayed(name("b"), Lsn(100));
        assert!(!freshness.is_proven(&name("b"), second), "this one was asked before");
        freshness.forget(&name("b"));
        assert!(!freshness.is_proven(&name("b"), first));
        freshness.replayed(name("b"), Lsn(100));
        assert!(!freshness.is_proven(&name("b"), first), "a new session may be of a new server");
    }
}
