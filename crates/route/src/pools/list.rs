//! Each connection of the pools, for operators.

use types::{MemberName, Millis};

use super::{Phase, Pools};
use crate::event::{ClientId, PoolId, ServerId};

/// What a connection is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ServerPhase {
    /// It is being opened.
    Opening,
    /// Nobody has it.
    Idle,
    /// This client has it.
    Lent(ClientId),
    /// Its client has gone, and its session is taken back to its beginning.
    Cleaning,
}

/// One connection of a pool.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerUse {
    /// Its number.
    pub server: ServerId,
    /// Whose it is.
    pub pool: PoolId,
    /// The member that it leads to.
    pub member: MemberName,
    /// Where that listens.
    pub host: String,
    /// Its TCP port.
    pub port: u16,
    /// What it is in.
    pub phase: ServerPhase,
    /// It is closed instead of being lent again.
    pub retired: bool,
    /// When it began to be opened.
    pub since: Millis,
}

/// A client that waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Waiting {
    /// For a connection of this pool; `None`: for one of its own.
    pub pool: Option<PoolId>,
    /// Since when.
    pub since: Millis,
}

impl Pools {
    /// The clients that wait for one.
    pub(crate) fn list_waiting(&self) -> impl Iterator<Item = (ClientId, Waiting)> + '_ {
        let waiting = |(client, wish): (&ClientId, &super::Wish)| {
            (*client, Waiting { pool: Some(wish.pool), since: wish.since })
        };
        self.wishes.iter().map(waiting)
    }

    /// Every connection, in the order in which they were opened.
    pub(crate) fn list(&self) -> Vec<ServerUse> {
        let of_server = |(id, server): (&ServerId, &super::Server)| {
            let shelf = &self.shelves[server.shelf];
            ServerUse {
                server: *id,
                pool: shelf.pool,
                member: shelf.member.clone(),
                host: server.host.clone(),
                port: server.port,
                phase: match server.phase {
                    Phase::Opening => ServerPhase::Opening,
                    Phase::Idle => ServerPhase::Idle,
                    Phase::Lent(client) => ServerPhase::Lent(client),
                    Phase::Cleaning => ServerPhase::Cleaning,
                },
                retired: server.retired,
                since: server.since,
            }
        };
        self.servers.iter().map(of_server).collect()
    }

    /// How many are lent, or being cleaned after that.
    pub(crate) fn lent_count(&self) -> usize {
        self.shelves.iter().map(|shelf| shelf.lent).sum()
    }
}
