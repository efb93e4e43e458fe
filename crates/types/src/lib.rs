//! Words that every other crate speaks: positions, terms, the DCS's JSON shapes, and what an agent
//! can know about its own PostgreSQL.
//!
//! Pure: no I/O, no clock, no randomness. Everything here is data and arithmetic on data.
#![forbid(unsafe_code)]

pub mod fencing;
pub mod keys;
pub mod local;
pub mod names;
pub mod peers;
pub mod position;
pub mod records;
pub mod requests;
pub mod schedule;
pub mod slots;
pub mod tags;
pub mod time;
pub mod told;
pub mod view;

pub use fencing::Unfenced;
pub use local::{
    Compared, Control, ControlState, DataDir, Durable, DurablePledge, DurablePromise, Fault,
    Health, InProgress, LocalPostgres, Lowered, PendingChange, Primary, Process, Receiver, Replica,
    Role, RoleState, Running, Server, Standby, SyncNames, Trouble, Upstream, Walsender,
};
pub use names::{MemberName, slot_name};
pub use peers::{Heartbeat, Suspicion};
pub use position::{
    HistoryLine, Lsn, Position, Rejoin, Timeline, compare_with_leader, parse_history_file,
};
pub use records::{
    FailoverRequest, Fence, HistoryEntry, HoldRecord, LeaderKey, Member, Pledge, ProxyRecord,
    RestAddress, Revision, Status, SyncState, Term, TermRecord,
};
pub use requests::{RESTART_ROLES, RestartRequest, version_number, version_problem};
pub use schedule::{NoInstant, UnixMillis};
pub use slots::{LogicalSlot, Slot, SlotChange};
pub use tags::Tags;
pub use time::Millis;
pub use told::{NotTold, Revised, TOLD_VERSION, Teller, ToldConfig, ToldLeader, ToldView};
pub use view::{ClusterView, KeyValue, Versioned};
