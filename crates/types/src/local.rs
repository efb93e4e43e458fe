//! What an agent can observe of its own PostgreSQL and of its own durable state. Probes write
//! these, the core reads them; nothing here is a wish.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::names::MemberName;
use crate::position::{HistoryLine, Lsn, Position, Timeline};
use crate::records::Term;
use crate::slots::Slot;
use crate::time::Millis;

/// One observation of the local instance, complete in itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalPostgres {
    /// When it was taken (before the first probe went out).
    pub at: Millis,
    /// What stands in the data directory.
    pub data_dir: DataDir,
    /// What runs.
    pub process: Process,
    /// Whether it serves new clients, and its volumes take writes.
    pub health: Health,
    /// The agent's durable state.
    pub durable: Durable,
    /// The last comparison with a leader, if one was made since the data directory last changed.
    pub compared: Option<Compared>,
}

/// What trial runs show that no answer of a running session does: whether a new client is served,
/// and whether the data and WAL volumes take a small write to their end. `None` is no trouble, or
/// no answer yet.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Health {
    /// New connections.
    pub connection: Option<Trouble>,
    /// A small fsynced write.
    pub write: Option<Trouble>,
    /// The watchdog device, where this member may not lead without one.
    pub watchdog: Option<Trouble>,
}

/// Trials that have not succeeded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trouble {
    /// When the first trial began that did not succeed, with none after it that did.
    pub since: Millis,
    /// What came back last, or that nothing did.
    pub fault: Fault,
}

/// How a trial did not succeed.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fault {
    /// PostgreSQL does not answer a new client.
    NoAnswer,
    /// PostgreSQL has no connection left for ordinary clients.
    NoConnectionLeft,
    /// A write to a volume of the instance does not end.
    DiskHangs,
    /// A volume of the instance is full.
    DiskFull,
    /// A volume of the instance refuses writes: what came back.
    DiskFails(String),
    /// PostgreSQL did not come up here.
    StartFails,
    /// A promotion here did not come to its end.
    PromotionFails,
    /// The watchdog device that is required cannot be used.
    NoWatchdog,
    /// The guard cannot be armed.
    NoGuard,
}

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Fault::NoAnswer => f.write_str("no answer"),
            Fault::NoConnectionLeft => f.write_str("no connection left"),
            Fault::DiskHangs => f.write_str("disk hangs"),
            Fault::DiskFull => f.write_str("disk full"),
            Fault::DiskFails(what) => write!(f, "disk fails: {what}"),
            Fault::StartFails => f.write_str("start failed"),
            Fault::PromotionFails => f.write_str("promotion failed"),
            Fault::NoWatchdog => f.write_str("no watchdog"),
            Fault::NoGuard => f.write_str("no guard"),
        }
    }
}

/// What stands in the data directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DataDir {
    /// Missing or empty.
    Empty,
    /// It cannot be read, or is not a PostgreSQL data directory.
    Unusable {
        /// What was tried and what came back.
        why: String,
    },
    /// A data directory with a readable pg_control.
    Present(Control),
}

/// The part of pg_control that decisions need.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Control {
    /// Decimal system identifier.
    pub system_identifier: String,
    /// The cluster state.
    pub state: ControlState,
    /// Timeline of the latest checkpoint.
    pub timeline: Timeline,
    /// Position of the latest checkpoint record.
    pub checkpoint: Lsn,
    /// End of what the copy is known to hold: the end of the shutdown checkpoint after a clean
    /// stop, the minimum recovery end of a standby; the latest checkpoint otherwise.
    pub end: Lsn,
    /// The timeline `end` belongs to.
    pub end_timeline: Timeline,
    /// Whether pg_rewind can work on it (checksums or wal_log_hints).
    pub can_rewind: bool,
    /// Whether standby.signal or recovery.signal stands in the directory.
    pub standby_signal: bool,
    /// Whether PostgreSQL was started on what pg_rewind left, and has not replayed as much of the
    /// source's log as that needs.
    pub unfinished_rewind: bool,
}

/// pg_control's `Database cluster state`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ControlState {
    /// `starting up`.
    StartingUp,
    /// `shut down`.
    ShutDown,
    /// `shut down in recovery`.
    ShutDownInRecovery,
    /// `shutting down`.
    ShuttingDown,
    /// `in crash recovery`.
    InCrashRecovery,
    /// `in archive recovery`.
    InArchiveRecovery,
    /// `in production`.
    InProduction,
}

impl ControlState {
    /// Whether pg_control alone says where the copy's log ends.
    #[must_use]
    pub const fn end_is_certain(self) -> bool {
        match self {
            ControlState::ShutDown | ControlState::ShutDownInRecovery => true,
            // A standby that crashed holds what it received after the last restart point, too.
            ControlState::StartingUp
            | ControlState::ShuttingDown
            | ControlState::InArchiveRecovery
            | ControlState::InCrashRecovery
            | ControlState::InProduction => false,
        }
    }
}

/// The instance's processes.
#[allow(clippy::large_enum_variant)] // there is one of it in each picture
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Process {
    /// No process of the instance is left.
    Stopped,
    /// The postmaster is gone but processes of the instance are left; they may still write.
    Orphaned,
    /// The postmaster lives, connections are not accepted yet (starting, recovering) or no more.
    NotReady {
        /// Since when it has been in this state.
        since: Millis,
        /// The WAL segment that recovery works on, if it says so.
        recovery: Option<String>,
    },
    /// The postmaster lives but did not answer within the probe's limit.
    Silent {
        /// Since when it has not answered.
        since: Millis,
    },
    /// It answered.
    Running(Running),
}

/// What a running PostgreSQL said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Running {
    /// Common to both roles.
    pub server: Server,
    /// In recovery or not.
    pub role: Role,
}

/// Facts of a running server that do not depend on its role.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Server {
    /// `server_version_num`.
    pub version: u32,
    /// Start time of the postmaster as PostgreSQL prints it.
    pub started: String,
    /// The parameters that wait for a restart.
    pub pending_restart: BTreeMap<String, PendingChange>,
    /// Its replication slots that outlive their sessions.
    pub slots: Vec<Slot>,
    /// Where `synchronous_commit` is set below `on`: commits there are acknowledged by nobody (I1).
    pub lowered: BTreeSet<Lowered>,
    /// Its walsenders as it describes them, for display alone.
    pub walsenders: Vec<Walsender>,
}

/// A row of `pg_stat_replication`, by its columns' names.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Walsender {
    /// Who logged in.
    pub usename: Option<String>,
    /// What it calls itself.
    pub application_name: String,
    /// Where it comes from; `None` for the unix socket.
    pub client_addr: Option<String>,
    /// `streaming`, `catchup`, `backup`, ….
    pub state: Option<String>,
    /// `async`, `potential`, `sync` or `quorum`.
    pub sync_state: Option<String>,
    /// Its place among the synchronous ones; 0 for none.
    pub sync_priority: Option<i32>,
}

/// A parameter that waits for a restart, in PostgreSQL's words.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct PendingChange {
    /// What is in force.
    #[serde(default)]
    pub old_value: String,
    /// What is configured.
    #[serde(default)]
    pub new_value: String,
}

/// A place where `synchronous_commit` stands below `on`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Lowered {
    /// The server's own configuration.
    Server,
    /// `ALTER DATABASE … SET`.
    Database(String),
    /// `ALTER ROLE … SET`.
    Role(String),
    /// `ALTER ROLE … IN DATABASE … SET`.
    RoleInDatabase(String, String),
    /// `ALTER FUNCTION … SET`.
    Function(String),
}

impl std::fmt::Display for Lowered {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Lowered::Server => f.write_str("server"),
            Lowered::Database(name) => write!(f, "database {name}"),
            Lowered::Role(name) => write!(f, "role {name}"),
            Lowered::RoleInDatabase(role, database) => {
                write!(f, "role {role} in database {database}")
            }
            Lowered::Function(name) => write!(f, "function {name}"),
        }
    }
}

/// Alias that reads better at use sites.
pub type Role = RoleState;

/// In recovery or not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RoleState {
    /// Accepts writes.
    Primary(Primary),
    /// In recovery.
    Standby(Standby),
}

/// A server that accepts writes.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Primary {
    /// Its timeline.
    pub timeline: Timeline,
    /// Its flush position.
    pub flush: Lsn,
    /// The position at which its timeline began (end of recovery); 0 on timeline 1.
    pub promoted_at: Lsn,
    /// Whether a checkpoint on this timeline is complete (pg_rewind needs it).
    pub checkpoint_done: bool,
    /// What PostgreSQL has taken over as `synchronous_standby_names`, all sessions.
    pub sync: SyncNames,
    /// Its walsenders, of members and of others.
    pub replicas: Vec<Replica>,
}

/// `synchronous_standby_names` as a set with a number.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct SyncNames {
    /// How many must confirm; 0 with an empty set.
    pub number: usize,
    /// Who may confirm.
    pub names: BTreeSet<MemberName>,
}

/// One walsender.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Replica {
    /// `application_name`.
    pub name: MemberNameOrEmpty,
    /// `streaming`, `catchup`, ….
    pub streaming: bool,
    /// The position it has confirmed as flushed.
    pub flush: Lsn,
    /// The position it has replayed.
    pub replay: Lsn,
    /// PostgreSQL counts it as synchronous candidate now (`sync_priority` above 0).
    pub listed: bool,
    /// It is known to be the member of that name: it logged in as the replication user, and streams
    /// by that member's slot or, where slots are not used, is the only one of that name.
    pub known: bool,
}

/// A member's name; walsenders of strangers carry whatever they like.
pub type MemberNameOrEmpty = String;

/// A server in recovery.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Standby {
    /// The timeline of what it received or replayed last.
    pub timeline: Timeline,
    /// End of what was received and flushed; never below `replayed`.
    pub received: Lsn,
    /// End of what was replayed.
    pub replayed: Lsn,
    /// Its WAL receiver, if one lives.
    pub receiver: Option<Receiver>,
    /// Whom its configuration on disk names as upstream; `None` if `primary_conninfo` is empty.
    pub upstream: Option<Upstream>,
    /// Milliseconds since the last replayed commit while anything is left to replay.
    pub replay_lag: Option<Millis>,
    /// When the last replayed commit was made, as PostgreSQL prints it.
    pub replayed_at: Option<String>,
    /// An operator has paused replay.
    pub replay_paused: bool,
    /// It restores from an archive where it does not stream (`restore_command` is set).
    pub restores: bool,
}

/// A WAL receiver.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Receiver {
    /// It streams (as opposed to starting, waiting, restarting).
    pub streaming: bool,
    /// How long ago, when this was observed, its upstream had last sent anything; `None` if it has
    /// not yet.
    pub silent_for: Option<Millis>,
}

/// Whom a standby's configuration names.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Upstream {
    /// The member's name.
    pub name: MemberName,
    /// Its host.
    pub host: String,
    /// Its PostgreSQL port.
    pub port: u16,
}

/// The name of an upstream outside of the cluster; no member's key can hold it.
const REMOTE: &str = "/remote";

impl Upstream {
    /// A node outside of the cluster, which a standby cluster follows.
    #[must_use]
    pub fn remote(host: &str, port: u16) -> Upstream {
        Upstream { name: REMOTE.into(), host: host.to_owned(), port }
    }

    /// Nobody to stream from, but an archive to restore from.
    #[must_use]
    pub fn archive() -> Upstream {
        Upstream::remote("", 0)
    }

    /// Whether it is outside of the cluster.
    #[must_use]
    pub fn is_remote(&self) -> bool {
        self.name.as_str() == REMOTE
    }

    /// Whether it is an archive alone.
    #[must_use]
    pub fn is_archive(&self) -> bool {
        self.host.is_empty()
    }
}

/// What the agent has written into its state directory.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Durable {
    /// The newest term whose leader this copy has followed, or been.
    #[serde(default)]
    pub term: Term,
    /// A pledge that still binds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pledge: Option<DurablePledge>,
    /// A rewind or rebuild that was begun and not finished.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub in_progress: Option<InProgress>,
    /// Whether this copy was cloned anew, or its identity was lost, since it last was a voter; then
    /// it neither pledges nor leads until it is a voter again.
    #[serde(default)]
    pub fresh_copy: bool,
    /// A promise to a leader that cannot reach the DCS.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub promise: Option<DurablePromise>,
}

/// How long this member waits for a leader that cannot reach the DCS (`failsafe_mode`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct DurablePromise {
    /// Until when, on the boot-time clock.
    pub until: Millis,
    /// How long that was when it was promised.
    pub span: Millis,
}

/// A pledge as it stands in the state directory.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct DurablePledge {
    /// The fence's `id`.
    pub fence: String,
    /// What the copy held when its receiver was gone.
    pub position: Position,
}

/// An operation on the data directory that must be finished before it is started again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum InProgress {
    /// pg_rewind.
    Rewind,
    /// A new copy.
    Rebuild,
    /// The making of a new cluster, in the place of the data directory.
    Bootstrap,
}

/// The outcome of a comparison with a leader.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Compared {
    /// Whom it was compared with.
    pub leader: MemberName,
    /// In which term.
    pub term: Term,
    /// The leader's timeline.
    pub timeline: Timeline,
    /// The leader's history file.
    pub history: Vec<HistoryLine>,
    /// Whether the copy's log ended at or before its control file's `end`; `None` if it was not
    /// stopped then.
    pub ends_at_control: Option<bool>,
}
