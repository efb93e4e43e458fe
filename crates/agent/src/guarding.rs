//! Our end of the guard: tells it when to kill, and starts it anew if it is gone.

use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use guard::Handle;
use types::Millis;

/// The guard of this instance. Talking to it takes well below a millisecond, but a guard may be
/// frozen with its host, so every call runs beside the loop.
#[derive(Clone)]
pub(crate) struct Guard {
    inner: Arc<Inner>,
}

struct Inner {
    exe: PathBuf,
    state_dir: PathBuf,
    data_dir: PathBuf,
    handle: Mutex<Option<Handle>>,
}

impl Guard {
    pub(crate) fn new(exe: PathBuf, state_dir: PathBuf, data_dir: PathBuf) -> Guard {
        let handle = Mutex::new(None);
        Guard { inner: Arc::new(Inner { exe, state_dir, data_dir, handle }) }
    }

    /// Takes over a living guard, or starts one.
    pub(crate) async fn connect(&self) -> io::Result<()> {
        self.call(|_| Ok(())).await
    }

    /// Kill at this instant, unless told a later one before.
    pub(crate) async fn arm(&self, kill_at: Millis) -> io::Result<()> {
        self.call(move |handle| handle.set_deadline(kill_at.0)).await
    }

    /// There is nothing to kill.
    pub(crate) async fn stand_down(&self) -> io::Result<()> {
        self.call(Handle::stand_down).await
    }

    /// The guard's work is done: PostgreSQL is down and this agent ends.
    pub(crate) async fn dismiss(&self) -> io::Result<()> {
        self.stand_down().await?;
        let inner = Arc::clone(&self.inner);
        let asked = tokio::task::spawn_blocking(move || {
            let mut slot = inner.handle.lock().unwrap_or_else(PoisonError::into_inner);
            slot.take().map_or(Ok(()), Handle::exit)
        });
        asked.await.unwrap_or_else(|error| Err(io::Error::other(error)))
    }

    async fn call(
        &self,
        ask: impl Fn(&mut Handle) -> io::Result<()> + Send + 'static,
    ) -> io::Result<()> {
        let inner = Arc::clone(&self.inner);
        let asked = tokio::task::spawn_blocking(move || inner.with(ask)).await;
        asked.unwrap_or_else(|error| Err(io::Error::other(error)))
    }
}

impl Inner {
    /// Asks; a guard that does not answer is replaced once, since a new one is soon armed again.
    fn with(&self, ask: impl Fn(&mut Handle) -> io::Result<()>) -> io::Result<()> {
        let mut slot = self.handle.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(handle) = slot.as_mut()
            && ask(handle).is_ok()
        {
            return Ok(());
        }
        *slot = None;
        let mut handle = Handle::connect_or_spawn(&self.exe, &self.state_dir, &self.data_dir)?;
        ask(&mut handle)?;
        *slot = Some(handle);
        Ok(())
    }
}
