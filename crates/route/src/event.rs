//! What the router is told and what it asks for.

use std::sync::Arc;

use serde::Serialize;
use types::{ClusterView, Lsn, MemberName, Millis, Term};

use crate::freshness::Round;

/// One client connection. Later ones have higher numbers; none is used twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct ClientId(pub u64);

impl std::fmt::Display for ClientId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// Which of the proxy's ports a client came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Port {
    /// To the primary.
    ReadWrite,
    /// To a replica, or to the primary if there is none.
    ReadOnly,
}

/// A pool: the connections of one user to one database.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct PoolId(pub u32);

impl PoolId {
    pub(crate) fn index(self) -> usize {
        usize::try_from(self.0).unwrap_or(usize::MAX)
    }
}

/// A server connection of a pool. None is used twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct ServerId(pub u64);

impl std::fmt::Display for ServerId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// A server that a client can be connected to.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Target {
    /// Its name.
    pub member: MemberName,
    /// Host name or address.
    pub host: String,
    /// TCP port.
    pub port: u16,
    /// Set if it is the primary: its term, `Term(0)` for a Patroni leader.
    pub term: Option<Term>,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The DCS shows this now.
    View(Arc<ClusterView>),
    /// The view is no longer known to be current. Routes stay as they are: the primary's lease and
    /// guard fence it (I1).
    DcsLost,
    /// The view is current again.
    DcsBack,
    /// A client has sent its startup packet.
    ClientArrived {
        /// Who.
        client: ClientId,
        /// Where.
        port: Port,
    },
    /// A client's connection is over, for any reason.
    ClientGone {
        /// Who.
        client: ClientId,
    },
    /// The server of the attempt accepted the connection.
    ServerConnected {
        /// For whom.
        client: ClientId,
        /// The number that came with [`Action::Connect`]; an outdated one is ignored.
        attempt: u32,
    },
    /// The attempt failed, and the client has not been told anything.
    ServerFailed {
        /// For whom.
        client: ClientId,
        /// The number that came with [`Action::Connect`]; an outdated one is ignored.
        attempt: u32,
    },
    /// The server ended an open session. The shell tells the client, and [`Event::ClientGone`]
    /// follows.
    ServerLost {
        /// Whose.
        client: ClientId,
    },
    /// A client of a pool, which has none, wants a connection.
    Wants {
        /// Who.
        client: ClientId,
        /// Where it came to.
        port: Port,
        /// Of which pool.
        pool: PoolId,
    },
    /// A client of a pool, which has none and came to the primary's port, wants a connection for
    /// one statement that only reads.
    WantsRead {
        /// Who.
        client: ClientId,
        /// Of which pool.
        pool: PoolId,
        /// The last question to the primary that was begun when the client's last write ended.
        written: Round,
    },
    /// The primary was asked where its WAL ends.
    WalEnds {
        /// The number of the question; what was acknowledged before it was sent lies below the
        /// answer.
        round: Round,
        /// Who was asked.
        member: MemberName,
        /// The newest term when it was asked.
        term: Term,
        /// The answer.
        lsn: Lsn,
    },
    /// A replica was asked how far it has replayed. A member is asked again only when this was
    /// told.
    Replayed {
        /// Who was asked.
        member: MemberName,
        /// The answer; `None` if there is none, or its session was lost.
        lsn: Option<Lsn>,
    },
    /// A lent connection is at rest, with nothing of its client left in it.
    Returned {
        /// Which.
        server: ServerId,
    },
    /// The client of a lent connection goes, and its session is taken back to its beginning;
    /// `Returned` or `Lost` follows.
    Cleans {
        /// Which.
        server: ServerId,
    },
    /// The connection of an [`Action::Open`] is there.
    Opened {
        /// Which.
        server: ServerId,
    },
    /// It cannot be opened now.
    OpenFailed {
        /// Which.
        server: ServerId,
    },
    /// The server does not let the pool in.
    OpenRefused {
        /// Which.
        server: ServerId,
        /// What the clients are told that wait for it.
        refusal: Refusal,
    },
    /// A pool's connection is gone, lent or not.
    Lost {
        /// Which.
        server: ServerId,
    },
    /// The cluster's configuration says this to proxies from now on.
    Configured {
        /// How long clients wait for a route, at most.
        hold_timeout: Millis,
        /// Replicas further behind than this many bytes get no new read-only client.
        lag_bytes_max: Option<u64>,
    },
    /// Every connection of the pools is replaced as soon as it is at rest.
    Reconnect,
    /// Nobody of the pools is lent a connection until `Resume`.
    Pause,
    /// The end of a `Pause`.
    Resume,
    /// The time of an [`Action::WakeAt`] has come.
    Tick,
}

/// Why an open session is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum CutReason {
    /// The old primary has stepped down by itself: a switchover, or an orderly demotion.
    Planned,
    /// Another leader or a newer term is there, and nothing is known of the old primary.
    Unplanned,
}

/// An error for a client that is not served; it is FATAL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// SQLSTATE.
    pub sqlstate: String,
    /// What happened.
    pub message: String,
    /// What is awaited, or what to do.
    pub hint: String,
}

/// What the shell shall do. The latest action for a client replaces any earlier one that is not
/// done yet. The shell must look for a [`Action::Cut`] or [`Action::Hold`] before each write to a
/// server: after it no byte goes there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Connect the client, and answer `ServerConnected` or `ServerFailed`.
    Connect {
        /// Whom.
        client: ClientId,
        /// Number of this attempt among the client's.
        attempt: u32,
        /// To what.
        target: Target,
    },
    /// Give up the attempt that goes on and keep the client waiting.
    Hold {
        /// Whom.
        client: ClientId,
    },
    /// Tell the client why it is not served, and close. The router has forgotten it.
    Refuse {
        /// Whom.
        client: ClientId,
        /// What to say.
        refusal: Refusal,
    },
    /// End an open session. The router has forgotten it.
    Cut {
        /// Whose.
        client: ClientId,
        /// Why.
        reason: CutReason,
    },
    /// End the session as soon as it is in no transaction: the primary is about to step down. A
    /// client of a pool goes on if its connection can be taken from it then. The router has not
    /// forgotten it.
    Drain {
        /// Whose.
        client: ClientId,
    },
    /// Open a connection for a pool, and answer `Opened`, `OpenFailed` or `OpenRefused`.
    Open {
        /// Its number.
        server: ServerId,
        /// For which pool.
        pool: PoolId,
        /// To what.
        target: Target,
    },
    /// The client has this connection from now on, until `Returned` or `Lost`.
    Lend {
        /// Who.
        client: ClientId,
        /// Which.
        server: ServerId,
    },
    /// The same for a [`Event::WantsRead`], of a connection to a replica.
    LendRead {
        /// Who.
        client: ClientId,
        /// Which.
        server: ServerId,
    },
    /// Close a connection that nobody has, or that is being opened. The router has forgotten it.
    Close {
        /// Which.
        server: ServerId,
    },
    /// No byte goes to this connection any more. The router has forgotten it; the client has none,
    /// and may want another.
    Take {
        /// Whose.
        client: ClientId,
        /// Which.
        server: ServerId,
        /// Why.
        reason: CutReason,
    },
    /// Send [`Event::Tick`] then, in place of any time asked for before.
    WakeAt(Millis),
}
