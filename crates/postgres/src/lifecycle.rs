//! Starting and stopping. "Stopped" always means that no process of the instance is left.

use std::fs::OpenOptions;
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use types::{ControlState, Lsn, Millis, Timeline, Upstream};

use crate::command;
use crate::conf;
use crate::conf_files;
use crate::config::InstanceConfig;
use crate::error::Error;
use crate::files::{self, blocking};
use crate::instance::{LocalInstance, read_control};
use crate::processes::{DirId, Watched, belongs_to, of_directory};
use crate::sql::{pause, within};

/// How long a server that answers "starting up" is waited for before it is left to itself, in
/// milliseconds: recovery may take hours, and observations show its progress.
const STARTING_PATIENCE_MS: u128 = 2000;
/// Between looks at a starting server, in milliseconds.
const START_POLL_MS: u64 = 15;
/// Between looks at pg_control during a hand-over, in milliseconds.
const HAND_OVER_POLL_MS: u64 = 5;
/// The limit for killed processes to be gone; more means a disk that hangs.
const KILL_LIMIT: Millis = Millis(30_000);
/// How long a killed postmaster is waited for before all others are killed too.
const POSTMASTER_PATIENCE: Duration = Duration::from_millis(100);
/// How long a postmaster may be outlived before who does so is killed: the logger writes the last
/// lines down.
const LOGGER_PATIENCE: Duration = Duration::from_secs(2);
/// How much of the server's log an error shows, in bytes.
const LOG_TAIL_BYTES_MAX: u64 = 2048;

/// As what PostgreSQL is started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StartAs {
    /// As the one that accepts writes.
    Primary,
    /// In recovery; without an upstream it neither streams nor reads an archive.
    Standby {
        /// Whom to stream from.
        upstream: Option<Upstream>,
    },
}

/// How far a started PostgreSQL has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Started {
    /// It accepts connections.
    Ready,
    /// It is still recovering.
    Recovering,
}

/// How PostgreSQL is stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum StopMode {
    /// Sessions are ended, a checkpoint is written (SIGINT).
    Fast,
    /// No checkpoint; crash recovery follows (SIGQUIT).
    Immediate,
    /// Every process is killed (SIGKILL).
    Kill,
}

/// The outcome of a stop for a hand-over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HandOver {
    /// The timeline that was stopped.
    pub timeline: Timeline,
    /// The end of the shutdown checkpoint, which is the end of the log.
    pub end: Lsn,
    /// Whether the candidate was seen to hold it.
    pub received: bool,
}

pub(crate) async fn start(
    instance: &LocalInstance,
    start_as: StartAs,
    limit: Millis,
) -> Result<Started, Error> {
    instance.require_stopped("start PostgreSQL").await?;
    instance.forget_client().await;
    let config = instance.config();
    let standby = matches!(start_as, StartAs::Standby { .. });
    instance
        .write_conf(move |state| {
            state.upstream = match start_as {
                StartAs::Primary => None,
                StartAs::Standby { upstream } => upstream,
            };
        })
        .await?;
    let prepared = config.clone();
    let floor = blocking(move || prepare(&prepared, standby)).await?;
    let arguments = conf::server_arguments(&config, floor.as_ref());
    let log = config.state_dir.join("postgres.log");
    let opened = log.clone();
    let (file, offset) = blocking(move || open_log(&opened)).await?;
    let program = instance.programs().path("postgres");
    let pid = command::spawn_server(&config, &program, &arguments, file)?;
    let watched = Watched::open(pid).map_err(Error::file("watch", &program))?;
    let watched = instance.adopt(watched.expect("our own child cannot be gone unburied"));
    let started = wait_until_up(instance, &watched, &log, offset, limit).await?;
    // What could not be copied is no reason not to run.
    if let Err(error) = blocking(move || conf_files::save_copies(&config)).await {
        tracing::warn!(%error, "the configuration files were not copied");
    }
    Ok(started)
}

async fn wait_until_up(
    instance: &LocalInstance,
    postmaster: &Arc<Watched>,
    log: &Path,
    offset: u64,
    limit: Millis,
) -> Result<Started, Error> {
    let begun = Instant::now();
    loop {
        if postmaster.is_dead() {
            let log = log.to_owned();
            let log = blocking(move || log_tail(&log, offset)).await;
            return Err(Error::EndedWhileStarting { log });
        }
        let error = match instance.client().await {
            Ok(_) => return Ok(Started::Ready),
            Err(error) => error,
        };
        let elapsed = begun.elapsed().as_millis();
        if matches!(&error, Error::Connect { starting: true, .. }) && elapsed > STARTING_PATIENCE_MS
        {
            return Ok(Started::Recovering);
        }
        if elapsed > u128::from(limit.0) {
            let what = format!("the start of PostgreSQL ({error})");
            return Err(Error::timed_out(what, limit));
        }
        pause(START_POLL_MS).await;
    }
}

/// Directories, signal files and the stale pid file. Returns the floor of a standby's parameters.
fn prepare(
    config: &InstanceConfig,
    standby: bool,
) -> Result<Option<pgproto::control::ControlFile>, Error> {
    let (owner, dir) = (config.os_user.as_ref(), &config.data_dir);
    files::make_dir(&config.socket_dir, 0o755, owner)?;
    files::make_dir(&config.state_dir, 0o700, None)?;
    files::remove_if_present(&dir.join("recovery.signal"))?;
    let signal = dir.join("standby.signal");
    let floor = if standby {
        write_signal(config, &signal)?;
        Some(read_control(dir)?)
    } else {
        if files::remove_if_present(&signal)? {
            files::sync_parent(&signal).map_err(Error::file("remove", &signal))?;
        }
        None
    };
    // No process of the instance is left, so the file is stale; its pid may be somebody's by now.
    files::remove_if_present(&dir.join("postmaster.pid"))?;
    Ok(floor)
}

/// Creates standby.signal durably.
pub(crate) fn write_signal(config: &InstanceConfig, path: &Path) -> Result<(), Error> {
    if path.exists() {
        return Ok(());
    }
    let mode = path.parent().map_or(0o600, files::mode_in);
    files::write_durably(path, "", mode, config.os_user.as_ref())?;
    Ok(())
}

pub(crate) fn open_log(path: &Path) -> Result<(std::fs::File, u64), Error> {
    let mut options = OpenOptions::new();
    let file = options.append(true).create(true).mode(0o600).open(path);
    let file = file.map_err(Error::file("open", path))?;
    let offset = file.metadata().map_or(0, |meta| meta.len());
    Ok((file, offset))
}

pub(crate) fn log_tail(path: &Path, offset: u64) -> String {
    let read = || -> std::io::Result<String> {
        let mut file = std::fs::File::open(path)?;
        let length = file.metadata()?.len();
        let from = offset.max(length.saturating_sub(LOG_TAIL_BYTES_MAX));
        file.seek(SeekFrom::Start(from))?;
        let mut bytes = Vec::new();
        file.take(LOG_TAIL_BYTES_MAX).read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).trim().replace('\n', " | "))
    };
    read().unwrap_or_else(|e| format!("(cannot read {}: {e})", path.display()))
}

pub(crate) async fn stop(
    instance: &LocalInstance,
    mode: StopMode,
    limit: Millis,
) -> Result<(), Error> {
    let signal = match mode {
        StopMode::Fast => Signal::INT,
        // One that is frozen takes no SIGQUIT.
        StopMode::Immediate if !is_frozen(instance).await? => Signal::QUIT,
        StopMode::Immediate | StopMode::Kill => {
            within(limit, "the end of all killed processes", kill_all(instance)).await?;
            instance.forget_client().await;
            return Ok(());
        }
    };
    let stopped = within(limit, "the stop of PostgreSQL", async {
        if let Some(postmaster) = instance.postmaster().await? {
            signal_postmaster(instance, &postmaster, signal)?;
            postmaster.exited().await;
        }
        // All others end before their postmaster: whoever is left had one that was killed.
        match tokio::time::timeout(LOGGER_PATIENCE, wait_until_gone(instance)).await {
            Ok(gone) => gone,
            // Unless somebody has started another one meanwhile.
            Err(_) if instance.postmaster().await?.is_none() => kill_all(instance).await,
            Err(_) => wait_until_gone(instance).await,
        }
    });
    stopped.await?;
    instance.forget_client().await;
    Ok(())
}

async fn is_frozen(instance: &LocalInstance) -> Result<bool, Error> {
    Ok(instance.postmaster().await?.is_some_and(|postmaster| postmaster.is_frozen()))
}

fn signal_postmaster(
    instance: &LocalInstance,
    postmaster: &Watched,
    signal: Signal,
) -> Result<(), Error> {
    let dir = instance.config().data_dir.clone();
    let sent = postmaster.signal(signal);
    sent.map_err(Error::file("signal the postmaster of", &dir))
}

/// Waits for every process of the instance.
async fn wait_until_gone(instance: &LocalInstance) -> Result<(), Error> {
    loop {
        let pids = instance.pids().await?;
        if pids.is_empty() {
            return Ok(());
        }
        for pid in pids {
            let watched = Watched::open(pid).map_err(Error::file("watch", Path::new("/proc")))?;
            if let Some(watched) = watched {
                watched.exited().await;
            }
        }
    }
}

/// Kills the postmaster, then everything else, until nothing is left.
async fn kill_all(instance: &LocalInstance) -> Result<(), Error> {
    if let Some(postmaster) = instance.postmaster().await? {
        signal_postmaster(instance, &postmaster, Signal::KILL)?;
        // One that waits for a disk that hangs does not die; who can still answer a client must.
        tokio::time::timeout(POSTMASTER_PATIENCE, postmaster.exited()).await.ok();
    }
    match instance.dir_id().await? {
        Some(id) => kill_in(id).await,
        None => Ok(()),
    }
}

/// Kills every PostgreSQL process that works in a directory, until none is left.
pub(crate) async fn kill_in(id: DirId) -> Result<(), Error> {
    let proc = Path::new("/proc");
    loop {
        let pids = of_directory(id).map_err(Error::file("read", proc))?;
        if pids.is_empty() {
            return Ok(());
        }
        let mut dying = Vec::new();
        for pid in pids {
            // The handle first, then the question whose process it is: a pid may be used again.
            let watched = Watched::open(pid).map_err(Error::file("watch", proc))?;
            if let Some(watched) = watched.filter(|_| belongs_to(pid, id)) {
                watched.signal(Signal::KILL).map_err(Error::file("kill in", proc))?;
                dying.push(watched);
            }
        }
        for watched in dying {
            watched.exited().await;
        }
    }
}

pub(crate) async fn end_orphans(instance: &LocalInstance) -> Result<(), Error> {
    if let Some(postmaster) = instance.postmaster().await? {
        return Err(Error::refused(format!(
            "the postmaster lives (pid {}); its processes are no orphans",
            postmaster.pid()
        )));
    }
    within(KILL_LIMIT, "the end of orphaned processes", kill_all(instance)).await?;
    instance.forget_client().await;
    Ok(())
}

pub(crate) async fn stop_for_hand_over<F, W>(
    instance: &LocalInstance,
    received: F,
    limit: Millis,
) -> Result<HandOver, Error>
where
    F: Fn(Lsn) -> W + Send + Sync,
    W: Future<Output = bool> + Send,
{
    let Some(postmaster) = instance.postmaster().await? else {
        return Err(Error::refused("PostgreSQL does not run, there is nothing to hand over"));
    };
    signal_postmaster(instance, &postmaster, Signal::INT)?;
    let outcome = within(limit, "the stop for a hand-over", async {
        loop {
            // Asked before pg_control is read: what is read then is final if it was dead.
            let dead = postmaster.is_dead();
            let control = instance.control().await?;
            if control.state == ControlState::ShutDown {
                let end = control.checkpoint_end();
                let received = received(end).await;
                if received || dead {
                    return Ok(HandOver { timeline: control.timeline, end, received });
                }
            } else if dead {
                return Err(Error::refused(format!(
                    "PostgreSQL ended without a shutdown checkpoint ({:?})",
                    control.state
                )));
            }
            pause(HAND_OVER_POLL_MS).await;
        }
    });
    let outcome = outcome.await?;
    // What is left waits for another standby or the archiver; nothing it writes is WAL any more.
    within(KILL_LIMIT, "the end of all killed processes", kill_all(instance)).await?;
    instance.forget_client().await;
    Ok(outcome)
}
