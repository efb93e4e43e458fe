//! The agent's side: finds or starts the guard, and talks to it.
//!
//! Every call waits for the guard's answer, up to a fifth of a second: only an answered deadline is
//! one that the guard enforces, so a leader must not go on without it (I1).

use std::fs::OpenOptions;
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use crate::LOG;
use crate::harden::Refused;
use crate::protocol::{Answer, LINE_MAX, Request};
use crate::serve::{open_directory, socket_path};

/// How long an answer may take. The guard answers in microseconds unless it stands still.
pub(crate) const ANSWER_LIMIT: Duration = Duration::from_millis(200);
/// How long a new guard may take until it answers.
const START_LIMIT: Duration = Duration::from_secs(3);
/// Between two attempts to reach a new guard.
const START_RETRY: Duration = Duration::from_millis(5);

/// A connection to the guard of one instance. After an error it is of no use any more: drop it and
/// connect again. Dropping it leaves the guard and its deadline alone.
#[derive(Debug)]
pub struct Handle {
    stream: UnixStream,
    pid: u32,
    refused: Option<Refused>,
    broken: bool,
    /// The process, if this handle started it; looked after so that its end leaves no zombie.
    child: Option<Child>,
}

impl Handle {
    /// Takes over the living guard of `state_dir`, deadline included, or starts one as
    /// `exe guard --state-dir … --data-dir …`. The state directory must exist, mode 0700.
    ///
    /// # Errors
    /// If no guard answers: what was tried, and where its last words are. `TimedOut`: one is there
    /// but stands still.
    pub fn connect_or_spawn(exe: &Path, state_dir: &Path, data_dir: &Path) -> io::Result<Handle> {
        let (state_dir, data_dir) =
            (std::path::absolute(state_dir)?, std::path::absolute(data_dir)?);
        match Handle::connect(&state_dir) {
            Ok(handle) => return Ok(handle),
            Err(error) if is_silent(&error) => return Err(frozen(&state_dir, &error)),
            Err(_) => {}
        }
        let mut child = spawn(exe, &state_dir, &data_dir)?;
        let give_up = Instant::now() + START_LIMIT;
        loop {
            let error = match Handle::connect(&state_dir) {
                Ok(mut handle) => {
                    // Another guard may have been faster; then ours has ended by itself.
                    handle.child = Some(child);
                    return Ok(handle);
                }
                Err(error) => error,
            };
            let ended = child.try_wait()?;
            let other_lives = ended.and_then(|s| s.code()) == Some(crate::ALREADY_RUNNING.into());
            if (ended.is_some() && !other_lives) || Instant::now() >= give_up {
                return Err(not_started(exe, &state_dir, &error));
            }
            std::thread::sleep(START_RETRY);
        }
    }

    /// Connects to the living guard of `state_dir`; starts none.
    ///
    /// # Errors
    /// If there is none, or it does not answer.
    pub fn connect(state_dir: &Path) -> io::Result<Handle> {
        let stream = reach(state_dir)?;
        stream.set_read_timeout(Some(ANSWER_LIMIT))?;
        stream.set_write_timeout(Some(ANSWER_LIMIT))?;
        let mut handle = Handle { stream, pid: 0, refused: None, broken: false, child: None };
        let answer = handle.ping()?;
        (handle.pid, handle.refused) = (answer.pid, answer.refused);
        Ok(handle)
    }

    /// Kill at this instant (boot-time milliseconds), unless told a later one before. An earlier
    /// one than is in force changes nothing.
    ///
    /// # Errors
    /// If the guard did not confirm it: then it must be assumed that the older deadline holds.
    pub fn set_deadline(&mut self, boot_ms: u64) -> io::Result<()> {
        let answer = self.ask(Request::Deadline(boot_ms))?;
        if answer.accepted && answer.deadline.is_some_and(|at| at >= boot_ms) {
            return Ok(());
        }
        Err(io::Error::other(format!(
            "guard {} did not take the deadline {boot_ms}: the last one has passed, it is killing",
            self.pid
        )))
    }

    /// There is nothing to kill: no deadline any more.
    ///
    /// # Errors
    /// If the guard did not confirm it, or is killing at this moment.
    pub fn stand_down(&mut self) -> io::Result<()> {
        if self.ask(Request::StandDown)?.accepted {
            return Ok(());
        }
        Err(io::Error::other(format!("guard {} is killing: its deadline has passed", self.pid)))
    }

    /// Asks how things stand.
    ///
    /// # Errors
    /// If the guard does not answer.
    pub fn ping(&mut self) -> io::Result<Answer> {
        self.ask(Request::Ping)
    }

    /// Ends the guard; for an agent that stops for good, after it stood down.
    ///
    /// # Errors
    /// If the guard refused because it has a deadline, or did not answer.
    pub fn exit(mut self) -> io::Result<()> {
        if !self.ask(Request::Exit)?.accepted {
            let text = format!("guard {} still has a deadline, or is killing", self.pid);
            return Err(io::Error::other(text));
        }
        Ok(())
    }

    /// The guard's process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// What the guard was not permitted; `None` from one of an older binary, which does not say.
    #[must_use]
    pub fn refused(&self) -> Option<Refused> {
        self.refused
    }

    /// Whether this handle started the guard.
    #[must_use]
    pub fn started_it(&self) -> bool {
        self.child.as_ref().is_some_and(|child| child.id() == self.pid)
    }

    fn ask(&mut self, request: Request) -> io::Result<Answer> {
        if self.broken {
            return Err(io::Error::new(
                io::ErrorKind::NotConnected,
                "an earlier call to the guard failed; connect again",
            ));
        }
        // An answer that comes late must not be taken for that of the next request.
        self.broken = true;
        self.stream.write_all(request.to_string().as_bytes())?;
        let answer = self.read_answer()?;
        self.broken = false;
        Ok(answer)
    }

    fn read_answer(&mut self) -> io::Result<Answer> {
        let give_up = Instant::now() + ANSWER_LIMIT;
        let mut line = [0_u8; LINE_MAX];
        let mut filled = 0;
        while filled < LINE_MAX && Instant::now() < give_up {
            match self.stream.read(&mut line[filled..])? {
                0 => {
                    let text = "the guard closed the connection (ended, or an older version)";
                    return Err(io::Error::new(io::ErrorKind::ConnectionAborted, text));
                }
                read => filled += read,
            }
            if line[..filled].ends_with(b"\n") {
                let text = std::str::from_utf8(&line[..filled]).unwrap_or_default();
                return Answer::parse(text).ok_or_else(|| {
                    io::Error::other(format!("guard: answer not understood: {text:?}"))
                });
            }
        }
        Err(io::Error::new(io::ErrorKind::TimedOut, "the guard's answer did not end in time"))
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            // Only to reap it if it has ended; a living guard lives on.
            child.try_wait().ok();
        }
    }
}

/// Connects to the socket of `state_dir`, without waiting: a guard that stands still takes no
/// connections from its queue, and a full queue would hold us.
pub(crate) fn reach(state_dir: &Path) -> io::Result<UnixStream> {
    let directory = open_directory(state_dir)?;
    let address = SocketAddrUnix::new(socket_path(&directory))?;
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let kind = SocketType::STREAM;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, kind, flags, None)?;
    rustix::net::connect(&socket, &address)?;
    let stream = UnixStream::from(socket);
    stream.set_nonblocking(false)?;
    Ok(stream)
}

pub(crate) fn is_silent(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)
}

fn spawn(exe: &Path, state_dir: &Path, data_dir: &Path) -> io::Result<Child> {
    let log: PathBuf = state_dir.join(LOG);
    let words =
        OpenOptions::new().create(true).append(true).mode(0o600).open(&log).map_err(|e| {
            io::Error::new(e.kind(), format!("cannot open {} for the guard: {e}", log.display()))
        })?;
    Command::new(exe)
        .arg("guard")
        .arg("--state-dir")
        .arg(state_dir)
        .arg("--data-dir")
        .arg(data_dir)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(words)
        .current_dir("/")
        .spawn()
        .map_err(|e| io::Error::new(e.kind(), format!("cannot start {} guard: {e}", exe.display())))
}

fn frozen(state_dir: &Path, error: &io::Error) -> io::Error {
    let text = format!(
        "the guard of {} is there but does not answer ({error}); see the pid in {} and whether \
         that process is stopped",
        state_dir.display(),
        state_dir.join(crate::LOCK).display()
    );
    io::Error::new(io::ErrorKind::TimedOut, text)
}

fn not_started(exe: &Path, state_dir: &Path, error: &io::Error) -> io::Error {
    let text = format!(
        "{} guard was started but did not answer: {error}; see {}",
        exe.display(),
        state_dir.join(LOG).display()
    );
    io::Error::new(error.kind(), text)
}
