//! The agent's guard over time: found or started when it is needed, replaced when it is gone or
//! stands still.

use std::io;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use crate::frozen;
use crate::handle::{Handle, is_silent};
use crate::harden::Refused;

/// A guard that stands still again so soon has a cause that another one does not cure.
const REPLACE_PAUSE: Duration = Duration::from_secs(10);

/// Keeps the guard of one instance. Every call may take seconds: not for an event loop.
#[derive(Debug)]
pub struct Keeper {
    exe: PathBuf,
    state_dir: PathBuf,
    data_dir: PathBuf,
    handle: Option<Handle>,
    replaced_at: Option<Instant>,
    joined: Option<Joined>,
}

/// A guard that the keeper has connected to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Joined {
    /// Its process id.
    pub pid: u32,
    /// It was started; else it was there already, with the deadline that it knew.
    pub started: bool,
    /// The one before it, which stood still and was killed.
    pub replaced: Option<u32>,
    /// What it was not permitted; `None` from a guard of an older binary, which does not say.
    pub refused: Option<Refused>,
}

impl Keeper {
    /// A keeper that has no guard yet. The guard is started as `exe guard --state-dir … --data-dir
    /// …`; the state directory must exist by then, mode 0700.
    #[must_use]
    pub fn new(exe: PathBuf, state_dir: PathBuf, data_dir: PathBuf) -> Keeper {
        Keeper { exe, state_dir, data_dir, handle: None, replaced_at: None, joined: None }
    }

    /// Takes over a living guard, deadline included, or starts one. Nobody knows what a guard knew
    /// that is gone, or stood still: a new one is armed for `kill_at` (boot-time milliseconds), in
    /// case PostgreSQL runs as a primary.
    ///
    /// # Errors
    /// If there is no guard that answers now.
    pub fn connect(&mut self, kill_at: u64) -> io::Result<()> {
        self.ask(Handle::ping)?;
        if self.joined.is_some_and(|joined| joined.started) {
            self.arm(kill_at)?;
        }
        Ok(())
    }

    /// See [`Handle::set_deadline`]; a guard that does not answer is replaced, and the new one is
    /// told.
    ///
    /// # Errors
    /// As [`Handle::set_deadline`], or if there is no guard that answers now.
    pub fn arm(&mut self, kill_at: u64) -> io::Result<()> {
        self.ask(|handle| handle.set_deadline(kill_at))
    }

    /// See [`Handle::stand_down`].
    ///
    /// # Errors
    /// As [`Handle::stand_down`], or if there is no guard that answers now.
    pub fn stand_down(&mut self) -> io::Result<()> {
        self.ask(Handle::stand_down)
    }

    /// The guard's work is done: it ends. One that was not asked for anything yet stays.
    ///
    /// # Errors
    /// As [`Handle::exit`].
    pub fn dismiss(&mut self) -> io::Result<()> {
        self.handle.take().map_or(Ok(()), Handle::exit)
    }

    /// The guard that was connected to since the last call, for the log.
    pub fn joined(&mut self) -> Option<Joined> {
        self.joined.take()
    }

    fn ask<T>(&mut self, ask: impl Fn(&mut Handle) -> io::Result<T>) -> io::Result<T> {
        if let Some(handle) = self.handle.as_mut()
            && let Ok(answer) = ask(handle)
        {
            return Ok(answer);
        }
        self.handle = None;
        let (mut handle, replaced) = self.join()?;
        self.joined = Some(Joined {
            pid: handle.pid(),
            started: handle.started_it(),
            replaced,
            refused: handle.refused(),
        });
        let answer = ask(&mut handle)?;
        self.handle = Some(handle);
        Ok(answer)
    }

    /// A guard that answers; and the one that was killed for it, if one stood still.
    fn join(&mut self) -> io::Result<(Handle, Option<u32>)> {
        let join = || Handle::connect_or_spawn(&self.exe, &self.state_dir, &self.data_dir);
        match join() {
            Ok(handle) => Ok((handle, None)),
            Err(error) if is_silent(&error) && self.may_replace() => {
                let ended = frozen::end(&self.state_dir)?;
                if ended.is_some() {
                    self.replaced_at = Some(Instant::now());
                }
                Ok((join()?, ended))
            }
            Err(error) => Err(error),
        }
    }

    fn may_replace(&self) -> bool {
        self.replaced_at.is_none_or(|at| at.elapsed() >= REPLACE_PAUSE)
    }
}
