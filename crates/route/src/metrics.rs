//! Numbers for operators.

use std::collections::BTreeMap;

use serde::Serialize;
use types::{MemberName, Term};

use crate::event::{Port, Target};

/// Counters of one port since the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct PortMetrics {
    /// Clients that sent a startup packet.
    pub arrived: u64,
    /// Clients that had to wait for a route; those of pools each time.
    pub held: u64,
    /// Sessions opened.
    pub connected: u64,
    /// Clients refused: waited too long, or too many.
    pub refused: u64,
    /// Attempts to connect to a server that failed.
    pub connect_failures: u64,
    /// Sessions cut since the old primary stepped down.
    pub cut_planned: u64,
    /// Sessions cut since another leader or a newer term was seen.
    pub cut_unplanned: u64,
    /// Sessions that their server ended.
    pub server_lost: u64,
}

/// Counters of both ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Metrics {
    /// The read-write port's.
    pub read_write: PortMetrics,
    /// The read-only port's.
    pub read_only: PortMetrics,
}

impl Metrics {
    pub(crate) fn of(&mut self, port: Port) -> &mut PortMetrics {
        match port {
            Port::ReadWrite => &mut self.read_write,
            Port::ReadOnly => &mut self.read_only,
        }
    }
}

impl Metrics {
    /// Those of one port.
    #[must_use]
    pub fn at(&self, port: Port) -> &PortMetrics {
        match port {
            Port::ReadWrite => &self.read_write,
            Port::ReadOnly => &self.read_only,
        }
    }
}

/// The router at one moment.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Snapshot {
    /// Where read-write clients go; `None` while they are held.
    pub read_write: Option<Target>,
    /// Why read-write clients are held, in words.
    pub awaiting: Option<String>,
    /// Where read-only clients may go; when empty, to the primary.
    pub read_only: Vec<Target>,
    /// The newest term ever seen.
    pub term: Term,
    /// Whether the view is known to be current.
    pub fresh: bool,
    /// Clients that wait now, on both ports.
    pub waiting: usize,
    /// Those of them for whose port no server is known.
    pub on_hold: usize,
    /// Clients for whom a connection is being made now.
    pub connecting: usize,
    /// Connections to each member, open or being made.
    pub connections: BTreeMap<MemberName, usize>,
    /// The leader's hold that is followed: no transaction was begun on the primary since.
    pub hold: Option<u64>,
    /// Clients that have a connection to the primary; while a hold is followed, each of them is in
    /// a transaction or about to be ended.
    pub busy: usize,
    /// Whether clients of pools wait for an operator.
    pub paused: bool,
    /// Counters.
    pub metrics: Metrics,
}

impl Snapshot {
    /// The servers that clients of this port are led to; the primary stands in where there is no
    /// replica.
    #[must_use]
    pub fn targets(&self, port: Port) -> Vec<&Target> {
        let replicas: Vec<&Target> = match port {
            Port::ReadWrite => Vec::new(),
            Port::ReadOnly => self.read_only.iter().collect(),
        };
        if replicas.is_empty() { self.read_write.iter().collect() } else { replicas }
    }
}
