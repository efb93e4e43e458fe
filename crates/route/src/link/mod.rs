//! One client's conversation with the server connection that is lent to it: what of the one's
//! messages goes to the other, what is put in, what is left out, and when the connection can be
//! lent to somebody else.
//!
//! Pure: bytes in, bytes out. [`ClientSide`] lasts as long as the client, [`ServerSide`] as long as
//! the connection; between two transactions the two have nothing to do with each other.
//!
//! Invariants:
//! - a connection is given back only when the server owes nothing, is in no transaction, and has
//!   nothing in its session that its next client would not get from its own settings;
//! - whatever else leaves something in the session pins the connection, or is refused;
//! - what the client is told of prepared statements and parameters is what it would be told by a
//!   connection of its own;
//! - [`ServerSide::fate`] is never [`Fate::NotCommitted`] while a commit may have happened.

mod aborted;
mod client;
mod down;
mod effect;
mod messages;
mod pipeline;
mod reads;
mod server;
mod settings;
mod statements;
mod up;

pub use aborted::{Aborted, SERIALIZATION_FAILURE};
pub use client::{ClientSide, Offer, Pin, PoolMode, SessionState};
pub use effect::{Effect, effect_of};
pub use messages::{parameter_status, ready_for_query};
pub use pipeline::Fate;
pub use reads::{Heard, Trial};
pub use server::{Answers, ServerSide};
pub use settings::{Reported, Settings};
pub use statements::{Prepared, Registry};
pub use up::Help;

use pgproto::wire::FrameError;

/// A statement up to this length, in bytes with its header, is read whole; a longer one pins.
pub const STATEMENT_BYTES_MAX: usize = 1024 * 1024;
/// What else is read whole: names, errors, parameters.
pub(crate) const SMALL_BYTES_MAX: usize = 16 * 1024;

/// Bytes for either end. The shell writes them in its own time, in this order for each end.
#[derive(Debug, Default)]
pub struct Output {
    /// For the server.
    pub up: Vec<u8>,
    /// For the client.
    pub down: Vec<u8>,
}

/// Why the client cannot go on. The server connection is not to be used again either.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LinkError {
    /// The client's stream is broken.
    #[error("the client's stream is broken")]
    Client(#[source] FrameError),
    /// A message of the client's makes no sense, or is larger than allowed.
    #[error("a message of type {tag:#04x} from the client cannot be read: {why}")]
    Message {
        /// Its type.
        tag: u8,
        /// What is wrong with it.
        why: &'static str,
    },
    /// The server's stream is broken, or it answers what nobody asked.
    #[error("the server's stream is broken")]
    Server,
    /// The server ends the session: it shuts down, has crashed, or was told to.
    #[error("the server ends the session")]
    ServerEnds,
    /// The server did not take the client's settings; its error, as it came.
    #[error("the server refused the client's settings")]
    Settings(Vec<u8>),
    /// The wait for a synchronous standby was cancelled: the commit is local, and whether it is
    /// kept in a failover nobody knows.
    #[error("the wait for the synchronous standby was cancelled")]
    StandbyNotAwaited,
    /// A transaction block in statement mode.
    #[error("transaction blocks are not allowed in statement mode")]
    Block,
}

#[cfg(test)]
mod tests;
