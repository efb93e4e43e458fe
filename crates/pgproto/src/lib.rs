//! PostgreSQL's formats as pure functions: the wire protocol, what passwords become in it, and
//! pg_control.
#![forbid(unsafe_code)]

pub mod control;
pub mod lowered;
pub mod md5;
pub mod scram;
pub mod wire;
