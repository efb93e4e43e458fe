//! A leader that cannot reach the DCS asks the other members which term they know of: a newer one
//! ends its leadership at once, before its lease would. A lost answer costs nothing but that.

use types::{ClusterView, LocalPostgres, Millis, Term};

use crate::action::Act;
use crate::brain::Brain;
use crate::reason::Reason;

/// How long a member may take to answer.
const ANSWER_LIMIT: Millis = Millis(500);

impl Brain {
    /// Somebody knows of this term.
    pub(crate) fn note_term(&mut self, term: Term) {
        self.term_seen = self.term_seen.max(term);
    }

    /// Whether another member leads by now, whatever the last view says. Then nothing becomes
    /// writable here any more, and what is writable is stopped (I1, I4).
    pub(crate) fn is_deposed(&mut self, now: Millis, local: &LocalPostgres, term: Term) -> bool {
        if term == Term(0) || self.term_seen <= term {
            return false;
        }
        if self.may_be_primary(local) {
            self.stop_now(now, local, Reason::NewerTerm { term: self.term_seen });
        }
        true
    }

    /// Asks each lease period while the DCS does not answer.
    pub(crate) fn ask_for_newer_term(&mut self, now: Millis, view: &ClusterView) {
        if !self.dcs_is_silent() {
            return;
        }
        let due = self.asked_terms_at.map_or(now, |at| at.plus(self.lease_period()));
        if now < due {
            self.wake_at(due);
            return;
        }
        let others = view.members.iter().filter(|(name, _)| **name != self.node.name);
        let members =
            others.map(|(name, member)| (name.clone(), member.value.api_url.clone())).collect();
        let act = Act::AskTerms { members, limit: ANSWER_LIMIT };
        if self.issue_if_free(now, act, Reason::DcsDoesNotAnswer) {
            self.asked_terms_at = Some(now);
        }
    }
}
