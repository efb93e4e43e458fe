//! PostgreSQL's formats as pure functions: the wire protocol and pg_control.
#![forbid(unsafe_code)]

pub mod control;
pub mod lowered;
pub mod wire;
