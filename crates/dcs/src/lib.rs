//! The etcd v3 client and the cluster's key layout on top of it.
//!
//! Layers, lowest first: [`Client`] spreads calls over the endpoints and sorts failures into error
//! classes; [`ClusterStore`] keeps a current [`types::ClusterView`] by a resuming watch and offers
//! each operation on the cluster's keys as one etcd transaction; [`Session`] is this agent's lease.
//!
//! What a caller can rely on:
//! - every call ends within the client's `retry_timeout`, whatever the members do;
//! - one dead, frozen or flapping member of three fails no call, since an attempt without an answer
//!   is joined early by one to another member;
//! - a compare-and-set is sent once: without an answer it is [`Error::Ambiguous`], and the caller
//!   reads before it goes on (see [`Client::resolve`]);
//! - a watch is a hint: a broken one costs latency, never a wrong view (design, section 2).
//!
//! Not here: TLS, and any decision.
#![forbid(unsafe_code)]

mod attempt;
mod client;
mod cluster;
mod config;
mod dial;
mod endpoints;
mod error;
mod keepalive;
mod keymap;
mod operations;
mod renewal;
mod session;
mod txn;
mod watch;

pub use client::{Client, Header, KeepAlive, LeaseGrant};
pub use cluster::{ClusterStore, Follower, ViewState};
pub use config::ClientConfig;
pub use error::{Ambiguity, Error, Refusal};
pub use operations::{Bootstrap, Winner, Write};
pub use renewal::{Loss, Renewal};
pub use session::Session;
pub use txn::{Compare, Op, OpAnswer, Resolved, Txn, TxnAnswer};
