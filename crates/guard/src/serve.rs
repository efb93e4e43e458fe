//! The guard's loop: one thread, one timer, one socket.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read as _, Seek as _, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{Mode, OFlags};
use rustix::time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec};

use crate::deadline::{Deadline, State};
use crate::harden::{self, Refused};
use crate::hunt::{Hunter, Quarry, Scan};
use crate::protocol::{Answer, LINE_MAX, Request};
use crate::{Directories, LOCK, LOG, SOCKET, boot_time_ms};

/// One agent talks to a guard; a restarted one beside its dying predecessor makes two.
const CLIENTS_MAX: usize = 8;
/// How often an idle guard looks whether its state directory still is there.
const IDLE_CHECK_SECS: i64 = 10;
/// A log larger than this is emptied when a guard starts.
const LOG_BYTES_MAX: u64 = 1 << 20;

/// Why a guard could not start or go on.
#[derive(Debug)]
pub(crate) enum Error {
    /// Another one serves the state directory.
    AlreadyRunning {
        /// Its lock file.
        lock: PathBuf,
    },
    /// The operating system refused something.
    Io {
        /// What was tried.
        tried: String,
        /// What came back.
        source: io::Error,
    },
}

impl std::fmt::Display for Error {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Error::AlreadyRunning { lock } => {
                write!(f, "another guard holds {}; one per state directory", lock.display())
            }
            Error::Io { tried, source } => write!(f, "cannot {tried}: {source}"),
        }
    }
}

fn failed<E: Into<io::Error>>(tried: impl Into<String>) -> impl FnOnce(E) -> Error {
    move |source| Error::Io { tried: tried.into(), source: source.into() }
}

/// Serves until an agent says `exit`, or the state directory is gone.
pub(crate) fn serve(directories: &Directories) -> Result<(), Error> {
    detach();
    let mut guard = Guard::new(directories)?;
    guard.harden()?;
    while guard.deadline.state() != State::Exiting {
        guard.wait()?;
        // Time first: what is overdue is killed before any renewal is read (I1).
        guard.deadline.tick(boot_time_ms());
        guard.strike();
        guard.answer_clients();
        guard.accept();
        if guard.is_abandoned() {
            return Ok(());
        }
    }
    // The agent starts the next guard when it needs one; a stale socket is replaced then, too.
    std::fs::remove_file(directories.state.join(SOCKET)).map_err(failed(format!("remove {SOCKET}")))
}

/// Leaves everything that could end or hinder the guard together with its agent.
fn detach() {
    // Fails for the leader of a process group, which a shell makes of a guard started by hand; such
    // a guard stays in its session.
    rustix::process::setsid().ok();
    rustix::process::umask(Mode::RWXG | Mode::RWXO);
    // So that it keeps no file system busy. Every path is absolute; a failure changes nothing.
    rustix::process::chdir(c"/").ok();
}

struct Client {
    stream: UnixStream,
    line: [u8; LINE_MAX],
    filled: usize,
}

struct Guard {
    deadline: Deadline,
    data_dir: PathBuf,
    state_dir: PathBuf,
    timer: OwnedFd,
    listener: UnixListener,
    socket: Option<(u64, u64)>,
    clients: Vec<Client>,
    hunter: Hunter,
    quarry: Option<Quarry>,
    hunt: Option<Hunt>,
    log: File,
    pid: u32,
    refused: Refused,
    /// Its lock is held as long as the guard lives.
    _lock: File,
}

/// A hunt under way.
#[derive(Debug, Clone, Copy)]
struct Hunt {
    started: u64,
    next: u64,
}

impl Guard {
    fn new(directories: &Directories) -> Result<Guard, Error> {
        let lock = lock(&directories.state.join(LOCK))?;
        let log = open_log(&directories.state.join(LOG))?;
        let listener = listen(&directories.state)?;
        let flags = TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC;
        let timer = rustix::time::timerfd_create(TimerfdClockId::Boottime, flags)
            .map_err(failed("create a timer on the boot-time clock"))?;
        Ok(Guard {
            deadline: Deadline::new(),
            data_dir: directories.data.clone(),
            socket: identity(&directories.state.join(SOCKET)),
            state_dir: directories.state.clone(),
            timer,
            listener,
            clients: Vec::with_capacity(CLIENTS_MAX),
            hunter: Hunter::new().map_err(failed("open /proc"))?,
            quarry: None,
            hunt: None,
            log,
            pid: std::process::id(),
            refused: Refused::default(),
            _lock: lock,
        })
    }

    /// Whatever keeps the guard able to strike on a machine without memory or time, where it is
    /// permitted. The rehearsal comes before the memory is locked, so that it locks the right
    /// pages.
    fn harden(&mut self) -> Result<(), Error> {
        self.refused.oom_score = harden::leave_oom_killer_alone();
        self.refused.priority = harden::take_priority();
        harden::forget_the_start();
        let quarry = Quarry::look(&self.data_dir);
        self.hunter.rehearse(quarry.as_ref(), &self.data_dir);
        self.poll(Some(boot_time_ms()), Some(Timespec { tv_sec: 0, tv_nsec: 0 }))?;
        self.note(&format!("guards {}", self.data_dir.display()));
        self.refused.memory = harden::lock_memory();
        if !self.refused.is_nothing() {
            self.note(&format!("not permitted: {}", self.refused));
        }
        Ok(())
    }

    /// Waits for the next instant, a request, or a new client.
    fn wait(&self) -> Result<(), Error> {
        let next = match self.deadline.state() {
            State::Armed(at) => Some(at),
            State::Striking => Some(self.hunt.map_or(0, |hunt| hunt.next)),
            State::Idle | State::Exiting => None,
        };
        let idle = next.is_none() && self.clients.is_empty();
        self.poll(next, idle.then_some(Timespec { tv_sec: IDLE_CHECK_SECS, tv_nsec: 0 }))
    }

    /// Waits for an event, until `next` on the boot-time clock, or for `limit`.
    fn poll(&self, next: Option<u64>, limit: Option<Timespec>) -> Result<(), Error> {
        self.set_timer(next)?;
        let mut fds = Vec::with_capacity(2 + CLIENTS_MAX);
        fds.push(PollFd::new(&self.timer, PollFlags::IN));
        fds.push(PollFd::new(&self.listener, PollFlags::IN));
        fds.extend(self.clients.iter().map(|c| PollFd::new(&c.stream, PollFlags::IN)));
        match poll(&mut fds, limit.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(error) => Err(failed("wait for events")(error)),
        }
    }

    /// The timer runs on the boot-time clock, so that it strikes at once when a sleeping machine
    /// wakes up too late. An instant of 0 would disarm it.
    fn set_timer(&self, next: Option<u64>) -> Result<(), Error> {
        let ms = next.map_or(0, |at| at.max(1));
        let it_value = Timespec {
            tv_sec: i64::try_from(ms / 1000).unwrap_or(i64::MAX),
            tv_nsec: i64::try_from(ms % 1000 * 1_000_000).unwrap_or(0),
        };
        let spec = Itimerspec { it_interval: Timespec { tv_sec: 0, tv_nsec: 0 }, it_value };
        rustix::time::timerfd_settime(&self.timer, TimerfdTimerFlags::ABSTIME, &spec)
            .map(drop)
            .map_err(failed("set the timer"))
    }

    /// Goes on with the killing, if there is any to be done now.
    fn strike(&mut self) {
        if self.deadline.state() != State::Striking {
            return;
        }
        let now = boot_time_ms();
        let hunt = self.hunt.get_or_insert_with(|| {
            self.hunter.start();
            Hunt { started: now, next: now }
        });
        if now < hunt.next {
            return;
        }
        let scan = self.hunter.scan(self.quarry.as_ref(), &self.data_dir);
        let took = boot_time_ms().saturating_sub(hunt.started);
        match scan {
            Scan::Done(killed) => {
                self.hunt = None;
                self.quarry = None;
                self.deadline.struck();
                self.note(&format!("deadline passed: killed {killed} processes in {took} ms"));
            }
            // Nothing is logged before the end: the log may stand on the very disk that hangs.
            Scan::Again(wait) => hunt.next = boot_time_ms().saturating_add(wait),
        }
    }

    fn note(&mut self, text: &str) {
        let unix = rustix::time::clock_gettime(rustix::time::ClockId::Realtime).tv_sec;
        let line = format!("unix={unix} boot_ms={} pid={} {text}\n", boot_time_ms(), self.pid);
        // A full disk must not keep the guard from its work.
        self.log.write_all(line.as_bytes()).ok();
    }

    fn accept(&mut self) {
        while let Ok((stream, _)) = self.listener.accept() {
            if self.clients.len() < CLIENTS_MAX && stream.set_nonblocking(true).is_ok() {
                self.clients.push(Client { stream, line: [0; LINE_MAX], filled: 0 });
            }
        }
    }

    fn answer_clients(&mut self) {
        let mut clients = std::mem::take(&mut self.clients);
        clients.retain_mut(|client| self.answer(client));
        self.clients = clients;
    }

    /// Serves what a client sent; `false` ends the connection.
    fn answer(&mut self, client: &mut Client) -> bool {
        match client.stream.read(&mut client.line[client.filled..]) {
            Ok(0) => return false,
            Ok(read) => client.filled += read,
            Err(error) => return error.kind() == io::ErrorKind::WouldBlock,
        }
        while let Some(end) = client.line[..client.filled].iter().position(|b| *b == b'\n') {
            let text = std::str::from_utf8(&client.line[..end]).unwrap_or_default();
            let Some(request) = Request::parse(text) else { return false };
            client.line.copy_within(end + 1..client.filled, 0);
            client.filled -= end + 1;
            let answer = self.carry_out(request);
            // The socket's buffer holds many answers; a client that reads none is ended.
            if client.stream.write_all(answer.to_string().as_bytes()).is_err() {
                return false;
            }
        }
        client.filled < LINE_MAX
    }

    fn carry_out(&mut self, request: Request) -> Answer {
        let accepted = self.deadline.apply(request, boot_time_ms());
        let known = self.quarry.as_ref().is_some_and(|q| q.is_current(&self.data_dir));
        match self.deadline.state() {
            State::Armed(_) if known => {}
            // A deadline that has passed already strikes without having been armed.
            State::Striking if self.quarry.is_some() => {}
            State::Armed(_) | State::Striking => {
                self.quarry = Quarry::look(&self.data_dir).or(self.quarry.take());
            }
            State::Idle | State::Exiting => self.quarry = None,
        }
        let refused = Some(self.refused);
        Answer { accepted, deadline: self.deadline.at(), pid: self.pid, refused }
    }

    /// Whether nobody can reach this guard any more and it has nothing to do.
    fn is_abandoned(&self) -> bool {
        self.deadline.state() == State::Idle
            && self.clients.is_empty()
            && identity(&self.state_dir.join(SOCKET)) != self.socket
    }
}

fn identity(path: &Path) -> Option<(u64, u64)> {
    std::fs::symlink_metadata(path).ok().map(|m| (m.dev(), m.ino()))
}

fn lock(path: &Path) -> Result<File, Error> {
    let tried = || format!("lock {}", path.display());
    let mut file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(path)
        .map_err(failed(tried()))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            return Err(Error::AlreadyRunning { lock: path.to_owned() });
        }
        Err(TryLockError::Error(source)) => return Err(failed(tried())(source)),
    }
    let pid = format!("{}\n", std::process::id());
    file.set_len(0)
        .and_then(|()| file.rewind())
        .and_then(|()| file.write_all(pid.as_bytes()))
        .map_err(failed(format!("write {}", path.display())))?;
    Ok(file)
}

fn open_log(path: &Path) -> Result<File, Error> {
    let tried = || format!("open {}", path.display());
    let file = OpenOptions::new().create(true).append(true).mode(0o600).open(path);
    let file = file.map_err(failed(tried()))?;
    if file.metadata().map_err(failed(tried()))?.len() > LOG_BYTES_MAX {
        file.set_len(0).map_err(failed(tried()))?;
    }
    Ok(file)
}

/// Listens in the state directory, in place of a dead predecessor (the lock says that it is dead).
/// The umask makes the socket the owner's alone.
fn listen(state_dir: &Path) -> Result<UnixListener, Error> {
    let tried = || format!("listen on {}", state_dir.join(SOCKET).display());
    let directory = open_directory(state_dir).map_err(failed(tried()))?;
    let path = socket_path(&directory);
    match std::fs::remove_file(&path) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(failed(tried())(error)),
    }
    let listener = UnixListener::bind(&path).map_err(failed(tried()))?;
    listener.set_nonblocking(true).map_err(failed(tried()))?;
    Ok(listener)
}

pub(crate) fn open_directory(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(rustix::fs::open(path, flags, Mode::empty())?)
}

/// The socket's path by way of an open directory: a socket's path may have 107 bytes at most, a
/// state directory's more.
pub(crate) fn socket_path(directory: &OwnedFd) -> PathBuf {
    use std::os::fd::AsRawFd as _;
    PathBuf::from(format!("/proc/self/fd/{}/{SOCKET}", directory.as_fd().as_raw_fd()))
}
