//! Our end of the guard, and of the watchdog device behind it: told when to kill, and that there is
//! nothing to kill.

use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use guard::{Joined, Keeper};
use types::{Millis, Trouble};

use crate::watchdog::{Timing, Watchdog};

/// The guard of this instance. Talking to it takes well below a millisecond, but a guard may be
/// frozen with its host, or has to be started, so every call runs beside the loop.
#[derive(Clone)]
pub(crate) struct Guard {
    keeper: Arc<Mutex<Keeper>>,
    watchdog: Watchdog,
}

impl Guard {
    pub(crate) fn new(
        exe: PathBuf,
        state_dir: PathBuf,
        data_dir: PathBuf,
        watchdog: Watchdog,
    ) -> Guard {
        let keeper = Arc::new(Mutex::new(Keeper::new(exe, state_dir, data_dir)));
        Guard { keeper, watchdog }
    }

    /// Takes over a living guard, or starts one, which kills at this instant unless told otherwise:
    /// what its predecessor knew is lost, and PostgreSQL may run.
    pub(crate) async fn connect(&self, kill_at: Millis) -> io::Result<()> {
        let (connected, joined) = self.call(move |keeper| keeper.connect(kill_at.0)).await?;
        if let Some(Joined { pid, started, .. }) = joined {
            tracing::info!(pid, started, "guard");
        }
        connected
    }

    /// Kill at this instant, unless told a later one before. Where the watchdog is required, an
    /// error means that the guard may not have been told.
    pub(crate) async fn arm(&self, kill_at: Millis) -> io::Result<()> {
        if !self.watchdog.is_required() {
            // Nothing holds the guard up: the device may be slow.
            self.arm_guard(kill_at).await?;
            return self.watchdog.arm(kill_at).await.map(drop);
        }
        // The device first: nobody stands a guard down that was not known to be armed.
        let opened = self.watchdog.arm(kill_at).await?;
        let armed = self.arm_guard(kill_at).await;
        if armed.is_err() && opened {
            self.watchdog.stand_down().await?;
        }
        armed
    }

    /// There is nothing to kill. Guard and device are told each, whatever becomes of the other.
    pub(crate) async fn stand_down(&self) -> io::Result<()> {
        let disarmed = self.watchdog.stand_down().await;
        let (stood_down, joined) = self.call(Keeper::stand_down).await?;
        warn_of_another(joined);
        stood_down.and(disarmed)
    }

    /// The guard's work is done: PostgreSQL is down and this agent ends.
    pub(crate) async fn dismiss(&self) -> io::Result<()> {
        self.stand_down().await?;
        self.call(Keeper::dismiss).await?.0
    }

    /// Takes over times that have changed.
    pub(crate) fn set_timing(&self, timing: Timing) {
        self.watchdog.set_timing(timing);
    }

    /// Why this member may not lead for lack of a watchdog.
    pub(crate) async fn watchdog_trouble(&self) -> Option<Trouble> {
        self.watchdog.trouble().await
    }

    async fn arm_guard(&self, kill_at: Millis) -> io::Result<()> {
        if self.watchdog.is_played() {
            let (stood_down, joined) = self.call(Keeper::stand_down).await?;
            warn_of_another(joined);
            return stood_down;
        }
        let (armed, joined) = self.call(move |keeper| keeper.arm(kill_at.0)).await?;
        warn_of_another(joined);
        armed
    }

    /// Asks, and gives the guard that was newly connected to, if one was.
    async fn call(
        &self,
        ask: impl FnOnce(&mut Keeper) -> io::Result<()> + Send + 'static,
    ) -> io::Result<(io::Result<()>, Option<Joined>)> {
        let keeper = Arc::clone(&self.keeper);
        let asked = tokio::task::spawn_blocking(move || {
            let mut keeper = keeper.lock().unwrap_or_else(PoisonError::into_inner);
            let result = ask(&mut keeper);
            (result, keeper.joined())
        });
        let (result, joined) = asked.await.map_err(io::Error::other)?;
        if let Some(refused) = joined.and_then(|j| j.refused).filter(|r| !r.is_nothing()) {
            tracing::info!(%refused, "the guard was not permitted everything");
        }
        Ok((result, joined))
    }
}

/// A guard that is another one than before, while this agent runs.
fn warn_of_another(joined: Option<Joined>) {
    match joined {
        Some(Joined { pid, replaced: Some(frozen), .. }) => {
            tracing::warn!(pid, frozen, "the guard stood still; it was ended and replaced");
        }
        Some(Joined { pid, started: true, .. }) => {
            tracing::warn!(pid, "the guard was gone; another one was started");
        }
        Some(_) | None => {}
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead as _, BufReader, Write as _};
    use std::os::unix::net::UnixListener;
    use std::path::Path;
    use std::thread::JoinHandle;

    use config::{WatchdogDriver, WatchdogMode};

    use super::*;
    use crate::clock;

    /// A guard that answers one agent with this word, and gives what it heard.
    fn stand_in(state_dir: &Path, word: &'static str) -> JoinHandle<Vec<String>> {
        let listener = UnixListener::bind(state_dir.join(guard::SOCKET)).expect("a socket");
        std::thread::spawn(move || {
            let mut heard = Vec::new();
            let (stream, _) = listener.accept().expect("an agent");
            for line in BufReader::new(&stream).lines().map_while(Result::ok) {
                let deadline = line.strip_prefix("1 deadline ").unwrap_or("none");
                let answer = format!("1 {word} {deadline} 77\n");
                heard.push(line.clone());
                if (&stream).write_all(answer.as_bytes()).is_err() {
                    break;
                }
            }
            heard
        })
    }

    fn guard(directory: &Path, mode: WatchdogMode) -> Guard {
        let timing =
            Timing { ttl: Millis(30_000), loop_wait: Millis(10_000), stop_margin: Millis(1) };
        let device = directory.join("watchdog");
        let driver = WatchdogDriver::Testing;
        let played = false;
        let settings = config::Watchdog { mode, device, safety_margin: 5, driver, played };
        let watchdog = Watchdog::new(settings, timing);
        // Another guard cannot be started.
        Guard::new("/bin/false".into(), directory.to_owned(), directory.to_owned(), watchdog)
    }

    #[tokio::test]
    async fn without_the_watchdog_that_is_required_the_guard_is_not_armed() {
        let directory = tempfile::tempdir().expect("a directory");
        let server = stand_in(directory.path(), "ok");
        let guard = guard(directory.path(), WatchdogMode::Required);
        guard.connect(Millis(5)).await.expect("there is one");
        let kill_at = clock::now().plus(Millis(29_000));
        let error = guard.arm(kill_at).await.expect_err("no device");
        assert!(error.to_string().starts_with("watchdog "), "{error}");
        std::fs::write(directory.path().join("watchdog"), "").expect("a device");
        guard.arm(kill_at).await.expect("both");
        guard.stand_down().await.expect("both");
        drop(guard);
        let device = std::fs::read_to_string(directory.path().join("watchdog")).expect("read");
        assert_eq!(device, "Ctimeout=25\n1V");
        let deadline = format!("1 deadline {}", kill_at.0);
        assert_eq!(server.join().expect("ends"), ["1 ping", "1 ping", &deadline, "1 standdown"]);
    }

    #[tokio::test]
    async fn a_watchdog_is_not_left_armed_without_a_guard() {
        let directory = tempfile::tempdir().expect("a directory");
        let server = stand_in(directory.path(), "refused");
        std::fs::write(directory.path().join("watchdog"), "").expect("a device");
        let guard = guard(directory.path(), WatchdogMode::Required);
        guard.connect(Millis(5)).await.expect("there is one");
        guard.arm(clock::now().plus(Millis(29_000))).await.expect_err("refused");
        drop(guard);
        let device = std::fs::read_to_string(directory.path().join("watchdog")).expect("read");
        assert_eq!(device, "Ctimeout=25\n1V");
        server.join().expect("ends");
    }

    #[tokio::test]
    async fn the_guard_is_armed_though_an_optional_watchdog_is_missing() {
        let directory = tempfile::tempdir().expect("a directory");
        let server = stand_in(directory.path(), "ok");
        let guard = guard(directory.path(), WatchdogMode::Automatic);
        let kill_at = clock::now().plus(Millis(29_000));
        guard.arm(kill_at).await.expect("the guard");
        drop(guard);
        let deadline = format!("1 deadline {}", kill_at.0);
        assert_eq!(server.join().expect("ends"), ["1 ping", &deadline]);
    }
}
