//! Heartbeats between members, over the port of the REST interface.
//!
//! A member dials every other one and asks `GET /peers` to become a connection of ours
//! (`Upgrade: pgherd-peers/1`). Each side proves that it has the members' common key: the dialer
//! with an HMAC over version, scope, both names and its nonce, the other side with one over both
//! nonces. The keys of the frames come from the common key and both nonces, one for each direction,
//! and each frame carries an HMAC over its number and content. So a stranger on the path can
//! neither inject nor change, replay or reorder frames; a request that is replayed gets a
//! connection on which it can say nothing.
//!
//! Whoever has not the key is answered as if the path were unknown, and counted. Nothing is
//! encrypted: what heartbeats say is no secret.
//!
//! What follows from heartbeats, or from silence, is not decided here. What is deliberately absent:
//! any wait for the agent's loop. A beat that finds its queue full is dropped and counted.

mod accept;
mod board;
mod dial;
mod frame;
mod link;
mod proof;
#[cfg(test)]
mod tests;

use std::time::Duration;

use rustix::net::sockopt;
use tokio::net::TcpStream;
use types::{Heartbeat, MemberName, Millis};

pub use accept::Reception;
pub(crate) use accept::welcome;
pub use board::{Board, INTERVAL_BOUNDS_MS, Intervals, PeerReport, Report};
pub use dial::{DialError, Dialled, dial};
pub use frame::{FRAME_MAX, Frame, FrameError};
pub use link::{Link, LinkError, Receiving, Sending};
pub use proof::{Parties, PeerKey};

/// The protocol, as it stands in the `Upgrade` header. A later version gets another number.
pub const PROTOCOL: &str = "pgherd-peers/1";

/// Beats that wait for the agent's loop; further ones are dropped.
pub const HEARD_MAX: usize = 64;

/// What is not acknowledged by the other host for so long breaks the connection.
const USER_TIMEOUT_MS: u32 = 2_000;

/// A frame that cannot be handed to the kernel for so long means that nothing gets through.
const SEND_MAX: Duration = Duration::from_secs(2);

/// A heartbeat of another member.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Heard {
    /// Whose it is; proven.
    pub from: MemberName,
    /// What it says.
    pub said: Heartbeat,
    /// When it came (boot-time clock).
    pub at: Millis,
}

/// Prepares a socket for small messages that must not wait: what is lost is repeated at a steady
/// pace, and what gets no answer breaks the connection.
fn hasten(stream: &TcpStream) {
    let options = || {
        stream.set_nodelay(true)?;
        sockopt::set_tcp_user_timeout(stream, USER_TIMEOUT_MS)?;
        sockopt::set_tcp_thin_linear_timeouts(stream, true)?;
        std::io::Result::Ok(())
    };
    // What the kernel does not offer is done without: it makes heartbeats late, not wrong.
    if let Err(error) = options() {
        tracing::debug!(%error, "the kernel lacks an option for heartbeats");
    }
}
