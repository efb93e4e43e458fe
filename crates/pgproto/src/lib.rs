//! PostgreSQL's formats as pure functions: the wire protocol, what statements do to a session, what
//! passwords become in a login, and pg_control.
#![forbid(unsafe_code)]

pub mod control;
pub mod lowered;
pub mod md5;
pub mod scram;
pub mod sql;
pub mod wire;
