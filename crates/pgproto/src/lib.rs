//! PostgreSQL's formats as pure functions: the wire protocol, what statements do to a session, and
//! pg_control.
#![forbid(unsafe_code)]

pub mod control;
pub mod lowered;
pub mod sql;
pub mod wire;
