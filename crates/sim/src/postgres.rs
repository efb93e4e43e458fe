//! PostgreSQL as the simulator believes it to be.
//!
//! # Assumptions
//! Tests on real PostgreSQL cite these by name (`crates/postgres/tests/assumptions.rs`). Where
//! versions differ, or a moment depends on luck, the worst case is what is simulated.
//! - **A1 flushed before sent**: a walsender sends only what is flushed on its own host; a record
//!   that was not flushed survives no crash and was seen by nobody.
//! - **A2 backends outlive the postmaster**: after `kill -9` of the postmaster alone its backends
//!   may go on, write and acknowledge until somebody ends them. So may its walsenders, which is the
//!   worst case: a real one ends when it next waits for something and notices the death. Test:
//!   `backends_outlive_the_postmaster`.
//! - **A3 a receiver flushes before it exits**: what a WAL receiver got and had not flushed is in
//!   the log once the receiver is gone in an orderly way. (After a kill of the host it may be
//!   lost.)
//! - **A4 a restart ends a synchronous wait**: a commit whose session ends while it waits stays in
//!   the log, unacknowledged, and is visible after the restart.
//! - **A5 equal timelines hide divergence**: streaming and `pg_rewind` look at timeline numbers,
//!   histories and positions, never at what the records say.
//! - **A6 a clean stop waits for standbys**: after the shutdown checkpoint (`pg_control` says `shut
//!   down` by then) the postmaster waits until every connected walsender has had everything
//!   confirmed, or was dropped after `wal_sender_timeout`.
//! - **A7 who releases a wait**: each walsender decides with its own copy of
//!   `synchronous_standby_names`; a reload reaches the processes one by one. Setting it to empty
//!   releases every waiting session.
//! - **A8 released positions stay released**: within one instance the released position never goes
//!   back, so whoever comes to wait for a position that it covers is released at once, whatever the
//!   rule has become since; a restart begins at zero. Test: `released_positions_stay_released`.
//! - **A9 promotion replays first**: a promoted standby ends its receiver (A3) and replays all that
//!   it has, then begins the timeline after the last history file that follows on its own timeline
//!   without a gap; a file behind a gap is not seen. Tests: `promotion_replays_first`,
//!   `a_promotion_takes_the_reserved_timeline`.
//! - **A10 the received position is not known at first**: until a standby has streamed, only the
//!   replayed position can be asked for.
//! - **A11 `pg_control` of a standby lags**: its minimum recovery end may lie before what was
//!   replayed or received; after a clean stop it is what was replayed, not what was received.
//! - **A12 a promotion is in `pg_control` after its checkpoint**: until then `pg_rewind` up to
//!   PostgreSQL 15 takes the source for one of the former timeline; from 16 on it is not misled.
//!   The worst case, that of 15, is simulated. Test:
//!   `a_promotion_is_in_pg_control_after_its_checkpoint`.
//! - **A13 standby.signal wins**: with it a crashed primary's directory recovers to the end of its
//!   own log and becomes a standby there.
//! - **A14 no record is recycled**: slots and `wal_keep_size` suffice for every outage simulated.
//! - **A15 the guard strikes first**: when a frozen host thaws, its guard's expired timer ends
//!   PostgreSQL before a backend sends another byte. (No clock covers a paused machine; there the
//!   fence and the proxy's term do.)
//! - **A16 a standby's process group ends with its postmaster**: the startup process and the
//!   receiver of a killed standby postmaster are gone within half a second.
//! - **A17 a slot admits one walsender**: a standby that comes back waits until the walsender of
//!   its former connection is gone, so no member is counted twice; without its slot it does not
//!   stream.
//! - **A18 a promotion shows its timeline early**: history file and first segment of the new
//!   timeline are on disk while the server still says that it is in recovery. Seen on PostgreSQL 15
//!   as a leader that released its key in the middle of its own promotion.
//! - **A19 a rewound copy may miss its end**: pg_rewind asks it to replay up to where the source
//!   was writing, and copied only what was written; without an upstream, which sends the rest, it
//!   answers nobody. Test: `a_rewound_copy_becomes_consistent_under_the_next_leader`. (Here
//!   nothing of an upstream arrives before the copy is up, so none has more than it must replay.)

use std::collections::{BTreeMap, BTreeSet};

use decide::SyncRule;
use types::{Control, ControlState, Durable, Lsn, Term, Timeline, Upstream};

use crate::wal::{Content, Log, lsn};

/// `wal_sender_timeout` and `wal_receiver_timeout`, in milliseconds.
pub(crate) const STREAM_TIMEOUT: u64 = 5_000;
/// `wal_retrieve_retry_interval`, in milliseconds.
pub(crate) const RECONNECT: u64 = 200;

/// What survives everything but the loss of the disk.
#[derive(Debug, Clone, Default)]
pub(crate) struct Disk {
    pub(crate) data: Option<DataDirectory>,
    pub(crate) durable: Durable,
}

/// A data directory.
#[derive(Debug, Clone)]
pub(crate) struct DataDirectory {
    pub(crate) system_identifier: String,
    pub(crate) log: Log,
    pub(crate) state: ControlState,
    pub(crate) checkpoint: Lsn,
    /// Minimum recovery end (A11).
    pub(crate) minimum: Lsn,
    pub(crate) standby_signal: bool,
    pub(crate) conninfo: Option<Upstream>,
    pub(crate) rule: SyncRule,
    /// A rewind was begun and not finished; nothing can start it.
    pub(crate) broken: bool,
    /// pg_rewind copied less than what it asks the copy to replay (A19).
    pub(crate) incomplete: bool,
    /// Physical slots with the position they were advanced to.
    pub(crate) slots: BTreeMap<String, Option<Lsn>>,
}

impl DataDirectory {
    /// What initdb makes.
    pub(crate) fn new(system_identifier: String) -> DataDirectory {
        let mut log = Log::default();
        for _ in 0..3 {
            log.append(Timeline(1), Content::Checkpoint);
        }
        DataDirectory {
            system_identifier,
            checkpoint: log.end(),
            minimum: Lsn(0),
            log,
            state: ControlState::ShutDown,
            standby_signal: false,
            conninfo: None,
            rule: SyncRule::Off,
            broken: false,
            incomplete: false,
            slots: BTreeMap::new(),
        }
    }

    /// A copy of `source` as pg_basebackup or pg_rewind leaves it.
    pub(crate) fn copy_of(source: &DataDirectory, rewound: bool) -> DataDirectory {
        DataDirectory {
            state: if rewound {
                ControlState::InArchiveRecovery
            } else {
                ControlState::InProduction
            },
            minimum: source.log.end(),
            standby_signal: true,
            conninfo: None,
            rule: SyncRule::Off,
            broken: false,
            incomplete: false,
            slots: BTreeMap::new(),
            ..source.clone()
        }
    }

    /// The timeline of the latest checkpoint.
    pub(crate) fn control_timeline(&self) -> Timeline {
        self.log.timeline_at(self.checkpoint)
    }

    pub(crate) fn control(&self) -> Control {
        let end = match self.state {
            ControlState::ShutDown => self.log.end(),
            ControlState::ShutDownInRecovery | ControlState::InArchiveRecovery => self.minimum,
            ControlState::StartingUp
            | ControlState::ShuttingDown
            | ControlState::InCrashRecovery
            | ControlState::InProduction => self.checkpoint,
        };
        Control {
            system_identifier: self.system_identifier.clone(),
            state: self.state,
            timeline: self.control_timeline(),
            checkpoint: self.checkpoint,
            end,
            end_timeline: self.log.timeline_at(end),
            can_rewind: true,
            standby_signal: self.standby_signal,
            unfinished_rewind: self.incomplete,
        }
    }

    pub(crate) fn checkpoint_now(&mut self, timeline: Timeline) {
        self.checkpoint = self.log.append(timeline, Content::Checkpoint);
    }
}

/// How far an instance has come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Recovering; nobody can connect.
    Starting,
    /// In recovery, readable.
    Standby,
    /// Told to promote; still in recovery.
    Promoting(Timeline),
    /// Writable.
    Primary,
    /// A clean stop was asked for; the shutdown checkpoint is not written yet.
    Stopping,
    /// The shutdown checkpoint is written; waits for walsenders (A6).
    Draining,
}

/// Who waits for a commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Waiter {
    /// A client's commit.
    Client(u64),
    /// The agent's proof.
    Agent,
}

/// A running instance.
#[derive(Debug, Clone)]
pub(crate) struct Instance {
    pub(crate) number: u64,
    pub(crate) phase: Phase,
    /// Node clock at which the phase began.
    pub(crate) since: u64,
    /// False once the postmaster was killed alone (A2).
    pub(crate) postmaster: bool,
    pub(crate) as_primary: bool,
    /// The term it was promoted or started in.
    pub(crate) term: Term,
    pub(crate) replayed: Lsn,
    pub(crate) replaying: bool,
    /// It has streamed since it started (A10).
    pub(crate) has_streamed: bool,
    /// The stream whose receiver it is.
    pub(crate) receiver: Option<u64>,
    pub(crate) connecting: bool,
    /// The released position (A8).
    pub(crate) released: Lsn,
    /// Backends wait at all (A7).
    pub(crate) waits: bool,
    /// What every session has taken over.
    pub(crate) taken: SyncRule,
    /// Bumped by each change of the rule, so that old take-overs are void.
    pub(crate) rule_change: u64,
    /// Who has not taken the change over: the checkpointer (`None`) and walsenders.
    pub(crate) rule_pending: BTreeSet<Option<u64>>,
    pub(crate) waiting: Vec<(Lsn, Waiter)>,
    /// Proofs acknowledged so far.
    pub(crate) proofs: u64,
    /// The timeline it writes on; 0 until it is writable.
    pub(crate) timeline: Timeline,
    /// A clean stop found it in recovery.
    pub(crate) was_standby: bool,
}

impl Instance {
    pub(crate) fn new(number: u64, since: u64, as_primary: bool, term: Term) -> Instance {
        Instance {
            number,
            phase: Phase::Starting,
            since,
            postmaster: true,
            as_primary,
            term,
            replayed: lsn(0),
            replaying: false,
            has_streamed: false,
            receiver: None,
            connecting: false,
            released: lsn(0),
            waits: false,
            taken: SyncRule::Off,
            rule_change: 0,
            rule_pending: BTreeSet::new(),
            was_standby: false,
            waiting: Vec::new(),
            proofs: 0,
            timeline: Timeline(0),
        }
    }

    /// Its processes can commit.
    pub(crate) fn writable(&self) -> bool {
        self.phase == Phase::Primary
    }

    pub(crate) fn in_recovery(&self) -> bool {
        matches!(self.phase, Phase::Standby | Phase::Promoting(_))
    }

    /// It accepts a new connection.
    pub(crate) fn accepts(&self) -> bool {
        self.postmaster && (self.writable() || self.in_recovery())
    }
}

/// What a walsender and the receiver at its other end know.
#[derive(Debug, Clone)]
pub(crate) struct Stream {
    pub(crate) up: usize,
    pub(crate) up_instance: u64,
    pub(crate) down: usize,
    pub(crate) down_instance: u64,
    pub(crate) sender_lives: bool,
    pub(crate) receiver_lives: bool,
    /// Records sent so far, counted from the start of the log.
    pub(crate) sent: usize,
    pub(crate) in_flight: bool,
    /// It had caught up once: state `streaming`.
    pub(crate) caught_up: bool,
    /// Got and not flushed.
    pub(crate) buffer: Vec<crate::wal::Record>,
    pub(crate) flushing: bool,
    pub(crate) confirmed: Lsn,
    pub(crate) replayed: Lsn,
    /// The walsender's own copy of the rule (A7).
    pub(crate) rule: SyncRule,
    pub(crate) heard_up: u64,
    pub(crate) heard_down: u64,
}
