//! Which member, in which term, a connection belongs to.

use types::{ClusterView, MemberName, Millis, Term};

use crate::choice;
use crate::event::{CutReason, Target};

/// After a failed attempt to the primary, the next one follows this much later. A fresh primary is
/// reached within it; a dead one costs one attempt at a time, however many clients wait.
pub(crate) const PRIMARY_RETRY: Millis = Millis(20);
/// A replica that could not be reached is left out this long.
pub(crate) const REPLICA_RETRY: Millis = Millis(2000);

/// The term and member that a connection belongs to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Binding {
    pub(crate) member: MemberName,
    /// For a connection to a primary: the newest term seen when it was chosen.
    pub(crate) primary_since: Option<Term>,
}

impl Binding {
    pub(crate) fn new(target: &Target, newest: Term) -> Binding {
        Binding { member: target.member.clone(), primary_since: target.term.map(|_| newest) }
    }

    /// A connection that was made to a replica is bound from the moment on that this becomes the
    /// primary: when it is deposed later, nobody must go on writing there.
    pub(crate) fn bind_promoted(&mut self, primary: &Target, newest: Term) {
        if self.member == primary.member && self.primary_since.is_none() {
            self.primary_since = Some(newest);
        }
    }

    /// How long after a failed attempt the member is tried again.
    pub(crate) fn retry(&self) -> Millis {
        if self.primary_since.is_some() { PRIMARY_RETRY } else { REPLICA_RETRY }
    }

    /// Why the connection must end, if it must.
    pub(crate) fn outdated(&self, view: &ClusterView, newest: Term) -> Option<CutReason> {
        let since = self.primary_since?;
        // A member key that cannot be read has no role; that says nothing.
        let key = view.member(&self.member).filter(|member| !member.role.is_empty());
        if key.is_some_and(|member| !choice::is_primary(member)) {
            return Some(CutReason::Planned);
        }
        // Without a leader key a session stays: its primary may still hold its lease.
        let other_leads = view.leader_name().is_some_and(|leader| *leader != self.member);
        (other_leads || newest > since).then_some(CutReason::Unplanned)
    }
}
