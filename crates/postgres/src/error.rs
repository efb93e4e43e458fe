//! What can go wrong with a local instance.

use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;
use types::Millis;

/// Why an operation on the instance failed. The text never holds a password (I6).
#[derive(Debug, Error)]
pub enum Error {
    /// A file operation failed.
    #[error("cannot {what} {path}: {source}", path = path.display())]
    File {
        /// The verb: `read`, `write`, `rename`, ….
        what: &'static str,
        /// The path.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A program could not be started.
    #[error("cannot start {program}: {source}; check bin_dir")]
    Spawn {
        /// The program.
        program: String,
        /// What the system said.
        source: io::Error,
    },
    /// A program failed.
    #[error("{program} failed ({status}): {output}")]
    Program {
        /// The program.
        program: String,
        /// Its exit status.
        status: String,
        /// The end of what it printed.
        output: String,
    },
    /// A command of the operator's failed.
    #[error("{what} failed: {outcome}")]
    Hook {
        /// What it is for, and the program.
        what: String,
        /// Its exit status, or why it did not run.
        outcome: String,
    },
    /// PostgreSQL could not be reached.
    #[error("cannot connect to PostgreSQL at {address}: {message}")]
    Connect {
        /// Where.
        address: String,
        /// What came back.
        message: String,
        /// The server said that it accepts no connections yet (SQLSTATE 57P03).
        starting: bool,
    },
    /// A statement failed.
    #[error("cannot {what}: {message}")]
    Sql {
        /// What was tried.
        what: &'static str,
        /// What the server said.
        message: String,
    },
    /// The limit ran out.
    #[error("{what} was not done within {limit}")]
    TimedOut {
        /// What was waited for.
        what: String,
        /// The limit.
        limit: Millis,
    },
    /// The instance is not in a state in which this may be done; nothing was changed.
    #[error("{what}")]
    Refused {
        /// Why, and what to do.
        what: String,
    },
    /// PostgreSQL ended while it was started.
    #[error("PostgreSQL ended while starting; the end of its log: {log}")]
    EndedWhileStarting {
        /// The last lines of the log.
        log: String,
    },
    /// pg_control could not be read.
    #[error("{path}: {source}", path = path.display())]
    Control {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        source: pgproto::control::ControlError,
    },
}

impl Error {
    /// A file operation failed.
    pub(crate) fn file(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
        let path = path.to_owned();
        move |source| Error::File { what, path, source }
    }

    /// A precondition does not hold.
    pub(crate) fn refused(what: impl Into<String>) -> Error {
        Error::Refused { what: what.into() }
    }

    /// The limit ran out.
    pub(crate) fn timed_out(what: impl Into<String>, limit: Millis) -> Error {
        Error::TimedOut { what: what.into(), limit }
    }
}

/// Why an instance cannot be set up: one line per problem.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{}", problems.join("\n"))]
pub struct SetupError {
    /// Each says what was found and what to do.
    pub problems: Vec<String>,
}
