//! The crate against real etcd processes, which each test starts for itself.
#![allow(clippy::unwrap_used, missing_docs)]

mod auth;
mod faults;
mod operations;
mod support;
mod transport;
