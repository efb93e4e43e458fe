//! Ends a guard that stands still, so that another can take its place.
//!
//! It is known for sure: the kernel says which process listens on the socket in the state directory
//! (only its owner may enter that), the lock file says the same, and a pidfd holds on to it. No
//! file of `/proc` is read that could hang with the process.

use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::AsFd as _;
use rustix::process::{Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, pidfd_open, waitid};

use crate::LOCK;
use crate::handle::{Handle, reach};

/// A guard that is not stopped but silent may merely be starved; it gets so much more time, since
/// the deadline that it knows is worth more than a new guard without one.
const SILENCE_LIMIT: Duration = Duration::from_secs(2);
/// Between two looks at a silent guard.
const LOOK_AGAIN: Duration = Duration::from_millis(50);
/// A killed process is gone within this, unless it hangs in the kernel.
const END_LIMIT: Timespec = Timespec { tv_sec: 1, tv_nsec: 0 };

/// Ends the guard of `state_dir` if it does not answer; its process id. `None` if it does answer
/// after all.
///
/// # Errors
/// If there is none, it is not surely this state directory's guard, or it does not end.
pub(crate) fn end(state_dir: &Path) -> io::Result<Option<u32>> {
    let pid = listener(state_dir)?;
    let process = pidfd_open(pid, PidfdFlags::empty())?;
    // Still listening: the number was not reused before the pidfd held it.
    if listener(state_dir)? != pid || locked_by(state_dir)? != pid {
        return Err(io::Error::other(format!(
            "process {} serves the guard's socket but is not the guard that {LOCK} names",
            pid.as_raw_nonzero()
        )));
    }
    let give_up = Instant::now() + SILENCE_LIMIT;
    while !is_stopped(pid) && Instant::now() < give_up {
        if Handle::connect(state_dir).is_ok() {
            return Ok(None);
        }
        std::thread::sleep(LOOK_AGAIN);
    }
    rustix::process::pidfd_send_signal(&process, Signal::KILL)?;
    let mut fds = [PollFd::new(&process, PollFlags::IN)];
    if poll(&mut fds, Some(&END_LIMIT))? == 0 {
        let text = format!("guard {} hangs in the kernel and cannot be killed", pid.as_raw_pid());
        return Err(io::Error::new(io::ErrorKind::TimedOut, text));
    }
    // If it was ours to wait for; else somebody else does.
    waitid(WaitId::PidFd(process.as_fd()), WaitIdOptions::EXITED | WaitIdOptions::NOHANG).ok();
    Ok(u32::try_from(pid.as_raw_pid()).ok())
}

/// The process that listens on the guard's socket, as the kernel noted it.
fn listener(state_dir: &Path) -> io::Result<Pid> {
    let stream = reach(state_dir)?;
    Ok(rustix::net::sockopt::socket_peercred(&stream)?.pid)
}

/// The process that the lock file names.
fn locked_by(state_dir: &Path) -> io::Result<Pid> {
    let text = std::fs::read_to_string(state_dir.join(LOCK))?;
    let pid = text.trim().parse().ok().and_then(Pid::from_raw);
    pid.ok_or_else(|| io::Error::other(format!("{LOCK} names no process: {text:?}")))
}

/// Whether the process is stopped, by a signal or a debugger: then waiting is of no use.
fn is_stopped(pid: Pid) -> bool {
    let path = format!("/proc/{}/stat", pid.as_raw_pid());
    let text = std::fs::read_to_string(path).unwrap_or_default();
    // The state follows the program's name, which stands in brackets and may hold any character.
    let state = text.rsplit_once(')').and_then(|(_, rest)| rest.trim_start().chars().next());
    matches!(state, Some('T' | 't'))
}
