//! What members tell each other in heartbeats.

use serde::{Deserialize, Serialize};

use crate::names::MemberName;
use crate::records::{Revision, Term};

/// A member holds a leader for lost: neither its heartbeats nor its WAL stream have come for longer
/// than they should.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Suspicion {
    /// The leader.
    pub leader: MemberName,
    /// Its leader key, by the revision at which it was written: a later leadership of the same
    /// member is another one.
    pub key: Revision,
}

/// What one heartbeat says about its sender.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct Heartbeat {
    /// The newest term that it knows of.
    pub term: Term,
    /// Whom it suspects.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub suspects: Option<Suspicion>,
}
