//! The REST interface of the agent (as Patroni 4.1 has it): health checks, status, metrics, and
//! the operator's requests.
//!
//! It answers from the last published [`Snapshot`] alone, never from a lock of the agent's loop, so
//! a busy agent still answers health checks, and a stuck one answers with what has grown old. It
//! changes nothing by itself: requests go to the agent through a bounded queue. What it does not
//! do: reading the DCS. [`client`] is the other end of the same interface.
//! [`peers`] are the heartbeats between members, which use the same port. [`pages`] is for programs
//! that are no agent: texts of theirs behind the same listener and door.

pub mod client;
pub mod cluster;
pub mod exposition;
pub mod health;
pub mod json;
pub mod metrics;
pub mod pages;
pub mod peers;
pub mod snapshot;
pub mod status;
pub mod switchover;
pub mod view;

mod access;
mod allowlist;
mod bind;
mod door;
mod failsafe;
mod handlers;
mod in_force;
mod listener;
mod received;
mod restart;
#[cfg(test)]
mod samples;
#[cfg(test)]
mod server_tests;
#[cfg(test)]
mod tls_tests;

use std::future::{Future, IntoFuture as _};
use std::sync::Arc;

use serde_json::Value;
use tokio::net::TcpListener;
use tokio::sync::{Notify, mpsc, oneshot, watch};
use types::{Millis, RestartRequest, Revision};

pub use access::{Access, Credentials, base64};
pub use allowlist::Allowlist;
pub use bind::{addresses, bind};
pub use client::RestClient;
pub use door::{Door, Place, headers};
pub use failsafe::FailsafePost;
pub use in_force::{InForce, in_force};
pub use snapshot::{
    FailoverTier, Handover, PATRONI_VERSION, PGHERD_VERSION, Settings, Snapshot, Synchronous,
};
pub use switchover::{SwitchoverRequest, ValidatedSwitchover, validate_switchover};

use self::listener::Bounds;

/// How the agent hands its snapshots over; `None` never occurs, a first one is always there.
pub type Published = Arc<Snapshot>;

/// How many requests may wait for the agent; the next one is refused.
pub const REQUESTS_MAX: usize = 16;

/// What an operator asks of the agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// Write the `failover` key, after a last check against the present view.
    Switchover(ValidatedSwitchover),
    /// Merge this into the `config` key by compare-and-set ([`json::merge_patch`]); the answer is
    /// 200 with the new document, 503 without one, 409 after a conflict.
    PatchConfig(Value),
    /// Put this in the `config` key's place: 200 with the document, 400 if no member would accept
    /// it, 502 if it cannot be written.
    ReplaceConfig(Value),
    /// Read the node's file again: 202, before it is done.
    Reload,
    /// Restart PostgreSQL, now or at its time: 200, 202, 409, 503; answered when it is over.
    Restart(RestartRequest),
    /// Forget the scheduled restart: 200, or 404 if there is none.
    CancelRestart,
    /// Copy the data anew: 200 when that has begun, else 503.
    Reinitialize {
        /// Give up what is under way.
        force: bool,
        /// From the leader, whoever else offers itself.
        from_leader: bool,
    },
    /// Clear a scheduled switchover: 200, or 409 after a conflict.
    CancelSwitchover,
    /// A leader that cannot reach the DCS asks us to wait for it. 200 `Accepted` is a promise: it
    /// is answered only after the agent has taken it in.
    Failsafe(FailsafePost),
}

/// A command and where its answer goes.
#[derive(Debug)]
pub struct ApiRequest {
    /// What is asked.
    pub command: Command,
    /// Where the answer goes; dropped when the client has left.
    pub reply: oneshot::Sender<ApiReply>,
}

/// The agent's answer.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ApiReply {
    /// HTTP status.
    pub status: u16,
    /// The body; JSON if it starts with a brace.
    pub text: String,
    /// For [`Command::Switchover`] with status 200: the revision at which the `failover` key was
    /// written, so that an older view is not taken for its outcome.
    pub written: Option<Revision>,
}

/// What the server needs.
#[derive(Debug, Clone)]
pub struct ApiState {
    /// The agent's publications.
    pub snapshots: watch::Receiver<Published>,
    /// The agent's queue, made with [`REQUESTS_MAX`].
    pub requests: mpsc::Sender<ApiRequest>,
    /// The boot-time clock of the snapshots.
    pub now: fn() -> Millis,
    /// Lets the agent look at its PostgreSQL now.
    pub nudge: Arc<Notify>,
    /// How it is entered.
    pub door: watch::Receiver<Arc<Door>>,
    /// Where other members' heartbeats go.
    pub peers: Arc<peers::Reception>,
    /// Proxies that wait for a newer view.
    pub waiting: view::Waiting,
}

/// Serves until `shutdown` completes; running answers are finished first. The listener stands where
/// the door is now, and goes where it goes.
///
/// # Errors
/// When the listener fails for good.
pub fn serve(
    listener: TcpListener,
    state: ApiState,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> impl Future<Output = std::io::Result<()>> {
    let listener = listener::Bounded::new(listener, state.door.clone(), Bounds::OF_AGENT);
    let app = axum::Router::new().fallback(handlers::dispatch).with_state(state);
    let app = app.into_make_service_with_connect_info::<listener::CalledBy>();
    axum::serve(listener, app).with_graceful_shutdown(shutdown).into_future()
}
