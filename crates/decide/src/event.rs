//! What the brain is told.

use std::collections::BTreeMap;
use std::sync::Arc;

use types::{ClusterView, Heartbeat, LocalPostgres, Lsn, MemberName, Millis, Term, UnixMillis};

use crate::action::{ActionId, Outcome};
use crate::errand::{Request, RequestId};
use crate::failsafe::FailsafeClaim;
use crate::foreign::ForeignAnswer;

/// One piece of news. Each is followed by a complete evaluation.
#[derive(Debug, Clone)]
pub enum Event {
    /// Nothing new; time has passed ([`Brain::next_wake`](crate::Brain::next_wake) or `loop_wait`).
    Tick,
    /// What the wall clock shows, for what operators schedule. Also a tick.
    WallClock {
        /// Now.
        unix: UnixMillis,
    },
    /// What the DCS holds. Never older than one delivered before.
    View(Arc<ClusterView>),
    /// The time to live of the lease that our keys hang on, as the DCS granted it.
    Lease {
        /// Granted time to live.
        ttl: Millis,
    },
    /// What the local instance looks like.
    Local(Box<LocalPostgres>),
    /// A heartbeat of another member. Followed by an evaluation only if it says something new.
    Heard {
        /// Whose.
        from: MemberName,
        /// What it says.
        said: Heartbeat,
    },
    /// Another member knows of this term.
    TermSeen {
        /// The term.
        term: Term,
    },
    /// What members that do not pledge answered; a member without an answer is `None`.
    Positions {
        /// Everybody who was asked.
        answers: BTreeMap<MemberName, Option<ForeignAnswer>>,
    },
    /// What the members that were asked without the DCS said that they hold.
    Held {
        /// The end of what each has received.
        held: BTreeMap<MemberName, Lsn>,
    },
    /// An action has ended.
    Finished {
        /// Which.
        id: ActionId,
        /// How.
        outcome: Outcome,
    },
    /// A leader that cannot reach the DCS asks us to wait for it. Taken in, it is answered by
    /// [`Brain::failsafe_answer`](crate::Brain::failsafe_answer).
    FailsafeClaim(FailsafeClaim),
    /// An operator asks something of this member. Answered by
    /// [`Brain::take_answers`](crate::Brain::take_answers), at once or after a while.
    Asked {
        /// Named again with the answer.
        id: RequestId,
        /// What is asked.
        request: Request,
    },
    /// The agent was asked to end (SIGTERM): PostgreSQL stops, the leader hands over.
    Shutdown,
}
