//! The brain: from what is observed to what is done, and why.
//!
//! `Brain::step(now, event) -> Vec<Action>` is the whole interface. It is a pure function of the
//! events so far: no clock, no randomness, no I/O. Production, the test scripts, the simulator and
//! the model checker run this same code.
//!
//! Where to look: who becomes leader is in [`election`]; what the leader does in `leader`,
//! everybody else in `follower` and `unlocked`; going on without the DCS
//! in `failsafe`; which standbys are waited for in [`sync_set`]; replication slots in
//! [`slots`]; the lease arithmetic in `claim`.
#![forbid(unsafe_code)]

mod action;
mod brain;
mod claim;
mod deposed;
pub mod election;
mod errand;
mod event;
mod failsafe;
mod fenced;
mod follower;
pub mod foreign;
mod hand_over;
mod health;
mod hold;
mod leader;
mod member_key;
mod pause;
mod race;
mod reason;
mod restart_in_place;
pub mod slots;
mod standby_cluster;
mod strangers;
mod suspicion;
mod switchover;
pub mod sync_set;
mod take_over;
mod unlocked;

pub use action::{
    Act, Action, ActionId, Lane, Leading, Outcome, Retake, STOP_FAST, StartAs, StopMode, SyncRule,
    Winner,
};
pub use brain::{Brain, Node};
pub use errand::{Answer, Request, RequestId};
pub use event::Event;
pub use failsafe::{FailsafeAnswer, FailsafeClaim};
pub use reason::Reason;
