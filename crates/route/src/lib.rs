//! The proxy's brain: who may be connected to which server, who waits, who is cut.
//!
//! Pure: `Router::step(now, event)` answers with actions.
//!
//! Invariants:
//! - a read-write client is connected only to the member that the leader key names, and only when
//!   that member's key says `primary` in the leader key's term;
//! - a connection to a primary is bound to the term in which it was opened; once a newer term or
//!   another leader is seen, it is cut, and no later view opens a route to an older term;
//! - a single read of a read-write client goes to a replica only if that one is known to have all
//!   that the client was told is written, in the present term;
//! - no client waits longer than `hold_timeout`, and no more than `hold_limit` wait at once.
#![forbid(unsafe_code)]

mod belief;
mod binding;
mod choice;
mod drain;
mod event;
mod freshness;
pub mod link;
mod metrics;
mod pools;
mod router;

pub use belief::{Belief, Word};
pub use choice::Awaited;
pub use drain::{Drain, DrainStep};
pub use event::{Action, ClientId, CutReason, Event, PoolId, Port, Refusal, ServerId, Target};
pub use freshness::Round;
pub use metrics::{Metrics, PortMetrics, Snapshot};
pub use pools::{PoolUse, ServerPhase, ServerUse, Waiting};
pub use router::{Router, RouterConfig};
