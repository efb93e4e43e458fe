//! One host: its clock, its processes, its disk.

use std::collections::BTreeMap;
use std::sync::Arc;

use decide::{Act, ActionId, Brain};
use types::{ClusterView, Compared, Heartbeat, MemberName, Millis, Tags};

use crate::ailments::Ailments;
use crate::postgres::{Disk, Instance};
use crate::world::Event;

/// A host.
pub(crate) struct Host {
    pub(crate) name: MemberName,
    pub(crate) tags: Tags,
    /// Node clock = world time plus this, plus the drift.
    pub(crate) clock_offset: u64,
    /// Drift in parts per million, shifted by [`DRIFT_ZERO`].
    pub(crate) clock_drift: u64,
    pub(crate) up: bool,
    /// Reasons for which everything on it stands still.
    pub(crate) frozen: u32,
    /// Reasons for which the agent stands still.
    pub(crate) agent_frozen: u32,
    /// Reasons for which the postmaster stands still.
    pub(crate) postmaster_frozen: u32,
    pub(crate) postmaster_silent_since: u64,
    pub(crate) slow_disk: u32,
    pub(crate) ailments: Ailments,
    pub(crate) slow_replay: u32,
    /// Reasons for which it cannot reach the DCS.
    pub(crate) dcs_cut: u32,
    pub(crate) agent: Option<Agent>,
    /// Counts agents, so that news for a dead one are dropped.
    pub(crate) agents: u64,
    /// The guard's deadline on the node's clock.
    pub(crate) guard: Option<u64>,
    pub(crate) disk: Disk,
    pub(crate) postgres: Option<Instance>,
    /// What happens here once it is thawed.
    pub(crate) deferred: Vec<Event>,
}

/// The drift value that stands for none.
pub(crate) const DRIFT_ZERO: u64 = 1_000;

impl Host {
    /// The node's boot-time clock.
    pub(crate) fn clock(&self, world: u64) -> Millis {
        let drifted = world * (1_000_000 - DRIFT_ZERO + self.clock_drift) / 1_000_000;
        Millis(drifted + self.clock_offset)
    }

    /// World time at which the node's clock shows `local`, not before `now`.
    pub(crate) fn when(&self, now: u64, local: Millis) -> u64 {
        let wait = local.since(self.clock(now)).0;
        now + wait * 1_000_000 / (1_000_000 - DRIFT_ZERO + self.clock_drift) + u64::from(wait > 0)
    }

    pub(crate) fn instance(&self, number: u64) -> Option<&Instance> {
        self.postgres.as_ref().filter(|i| i.number == number)
    }

    pub(crate) fn instance_mut(&mut self, number: u64) -> Option<&mut Instance> {
        self.postgres.as_mut().filter(|i| i.number == number)
    }

    pub(crate) fn agent_runs(&self, number: u64) -> bool {
        self.agent.is_some() && self.agents == number
    }

    /// What was killed and waits for its disk runs no instruction any more: it acknowledges
    /// nothing.
    pub(crate) fn writable(&self) -> bool {
        !self.ailments.is_doomed() && self.postgres.as_ref().is_some_and(Instance::writable)
    }
}

/// An agent's process: the brain and its shell.
pub(crate) struct Agent {
    pub(crate) brain: Brain,
    /// The lease that its keys hang on; 0 for none.
    pub(crate) lease: i64,
    /// The lease whose time to live the brain was told.
    pub(crate) lease_told: i64,
    /// The last view that was delivered.
    pub(crate) view: Option<Snapshot>,
    pub(crate) started: bool,
    pub(crate) doing: BTreeMap<ActionId, Doing>,
    pub(crate) compared: Option<Compared>,
    pub(crate) wake_at: Option<u64>,
    pub(crate) watch_pending: bool,
    pub(crate) watch_lost: bool,
    pub(crate) probe_pending: bool,
    pub(crate) probed_at: u64,
    /// What its last heartbeats said.
    pub(crate) said: Heartbeat,
}

/// An action under way.
pub(crate) struct Doing {
    pub(crate) act: Act,
    pub(crate) step: u32,
    /// World time at which it was issued.
    pub(crate) issued: u64,
    /// The instance it began with.
    pub(crate) instance: u64,
    /// What it remembers between steps.
    pub(crate) note: u64,
    /// Extra delay of the reply (a planted mistake needs to know it beforehand).
    pub(crate) reply_delay: Option<u64>,
}

/// A snapshot of the store under way to an agent.
pub(crate) type Snapshot = Arc<ClusterView>;
