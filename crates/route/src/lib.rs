//! The proxy's brain: who may be connected to which server, who waits, who is cut.
//!
//! Pure: `Router::step(now, event)` answers with actions. Session mode only so far: one server
//! connection for each client, until either ends.
//!
//! Invariants:
//! - a read-write client is connected only to the member that the leader key names, and only when
//!   that member's key says `primary` in the leader key's term;
//! - a connection to a primary is bound to the term in which it was opened; once a newer term or
//!   another leader is seen, it is cut, and no later view opens a route to an older term;
//! - no client waits longer than `hold_timeout`, and no more than `hold_limit` wait at once.
#![forbid(unsafe_code)]

mod belief;
mod binding;
mod choice;
mod event;
pub mod link;
mod metrics;
mod pools;
mod router;

pub use belief::{Belief, Word};
pub use choice::Awaited;
pub use event::{Action, ClientId, CutReason, Event, PoolId, Port, Refusal, ServerId, Target};
pub use metrics::{Metrics, PortMetrics, Snapshot};
pub use pools::{PoolUse, ServerPhase, ServerUse, Waiting};
pub use router::{Router, RouterConfig};
