//! The guard: a tiny process that kills PostgreSQL when the leader's lease runs out unrenewed (I1).
//!
//! The agent tells it each deadline over a socket in the state directory. At the deadline, on the
//! boot-time clock, it kills every process whose working directory is the data directory until none
//! is left. It lives in a session of its own and outlives its agent; the next agent takes it over
//! (I7).
//!
//! It does not: decide, talk to etcd, read configuration, or start anything.

mod deadline;
mod frozen;
mod handle;
mod harden;
mod hunt;
mod keeper;
mod protocol;
mod serve;
mod watchdog;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

pub use handle::Handle;
pub use harden::Refused;
pub use keeper::{Joined, Keeper};
pub use protocol::Answer;
pub use watchdog::{Driver, Watchdog};

/// The name of the socket in the state directory.
pub const SOCKET: &str = "guard.sock";
/// The file whose lock makes a guard the only one of its state directory; it holds the guard's pid.
pub const LOCK: &str = "guard.lock";
/// What the guard did, one line each.
pub const LOG: &str = "guard.log";

/// Exit code when another guard serves this state directory.
pub const ALREADY_RUNNING: u8 = 3;
const USAGE: u8 = 2;

/// Runs the guard until it is told to exit. `arguments` are those after the subcommand:
/// `--state-dir DIR --data-dir DIR`, both absolute. To be called before any thread is started.
pub fn run(arguments: impl Iterator<Item = OsString>) -> ExitCode {
    let Some(directories) = parse(arguments) else {
        eprintln!("usage: pgherd guard --state-dir DIR --data-dir DIR (absolute paths)");
        return ExitCode::from(USAGE);
    };
    match serve::serve(&directories) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("pgherd guard: {error}");
            match error {
                serve::Error::AlreadyRunning { .. } => ExitCode::from(ALREADY_RUNNING),
                serve::Error::Io { .. } => ExitCode::FAILURE,
            }
        }
    }
}

/// The two directories of an instance.
pub(crate) struct Directories {
    pub(crate) state: PathBuf,
    pub(crate) data: PathBuf,
}

fn parse(mut arguments: impl Iterator<Item = OsString>) -> Option<Directories> {
    let (mut state, mut data) = (None, None);
    while let Some(name) = arguments.next() {
        let value = PathBuf::from(arguments.next()?);
        match name.to_str()? {
            "--state-dir" => state = Some(value),
            "--data-dir" => data = Some(value),
            _ => return None,
        }
    }
    let absolute = |path: &PathBuf| Path::is_absolute(path);
    Some(Directories { state: state.filter(absolute)?, data: data.filter(absolute)? })
}

/// Milliseconds on the boot-time clock, which goes on while the machine sleeps.
#[must_use]
pub fn boot_time_ms() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
    let nanoseconds = u64::try_from(now.tv_nsec).unwrap_or(0);
    seconds.saturating_mul(1000).saturating_add(nanoseconds / 1_000_000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_are_two_absolute_paths() {
        let parsed = |words: &[&str]| parse(words.iter().map(OsString::from)).is_some();
        assert!(parsed(&["--state-dir", "/s", "--data-dir", "/d"]));
        assert!(!parsed(&["--state-dir", "/s", "--data-dir", "d"]));
        assert!(!parsed(&["--state-dir", "/s"]));
        assert!(!parsed(&["--state-dir", "/s", "--data-dir", "/d", "--x"]));
    }
}
