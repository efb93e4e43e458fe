//! The proxy over real sockets, against a small server that speaks just enough of the protocol.
#![allow(clippy::unwrap_used, missing_docs)]

mod admin;
mod clusters;
mod fake;
mod figures;
mod hot_restart;
mod limits;
mod pools;
mod sessions;
mod split;
