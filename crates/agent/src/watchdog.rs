//! The watchdog device: opened when there is something to guard, fed while our claim on the lease
//! covers its timeout, disarmed when nothing is to be guarded any more.
//!
//! It stands behind agent and guard: those end PostgreSQL before the lease ends; should both have
//! failed, the device resets the machine before another member can lead (I1). Timeouts are
//! Patroni's (`ttl` less `safety_margin`, from the last feeding). Ours goes on until the lease ends
//! where Patroni's primary would have stopped, so it feeds between renewals, too.

use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use config::WatchdogMode;
use guard::{Driver, Watchdog as Device};
use tokio::sync::Semaphore;
use tokio::task::AbortHandle;
use tokio::time::timeout;
use types::{Fault, Millis, Trouble};

use crate::clock;

/// How long a call to the device may take; a BMC answers in a fraction of that.
const CALL_LIMIT: Duration = Duration::from_secs(1);
/// A device that could not be used counts as unusable for so long, unless it is used before.
const DISTRUST: Millis = Millis(60_000);

/// The times that the device follows; they are dynamic configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Timing {
    pub(crate) ttl: Millis,
    pub(crate) loop_wait: Millis,
    /// The guard kills this long before the lease ends.
    pub(crate) stop_margin: Millis,
}

/// The device of this member. Every call to it runs beside the loop and is given up in time.
#[derive(Clone)]
pub(crate) struct Watchdog {
    inner: Arc<Inner>,
}

struct Inner {
    slot: Mutex<Option<Open>>,
    /// Whose turn it is with `slot`; a call that hangs keeps it.
    turn: Arc<Semaphore>,
    is_open: AtomicBool,
    state: Mutex<State>,
}

struct Open {
    device: Device,
    path: PathBuf,
    driver: Driver,
    wanted_secs: u32,
    /// It refused to be fed, and may have gone: open it anew.
    stale: bool,
}

struct State {
    settings: config::Watchdog,
    timing: Timing,
    /// Since when it cannot be used.
    unusable_since: Option<Millis>,
    /// It failed in use; until then no look at it counts for more.
    distrusted_until: Millis,
    /// The log knows that it is not used.
    said: bool,
    feeder: Option<AbortHandle>,
}

/// A device that was fed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Fed {
    opened: bool,
    timeout_secs: u32,
    can_be_disarmed: bool,
}

impl Watchdog {
    pub(crate) fn new(settings: config::Watchdog, timing: Timing) -> Watchdog {
        let state = State {
            settings,
            timing,
            unusable_since: None,
            distrusted_until: Millis::ZERO,
            said: false,
            feeder: None,
        };
        let inner = Inner {
            slot: Mutex::new(None),
            turn: Arc::new(Semaphore::new(1)),
            is_open: AtomicBool::new(false),
            state: Mutex::new(state),
        };
        Watchdog { inner: Arc::new(inner) }
    }

    /// Takes the file's settings over at the next arming.
    pub(crate) fn configure(&self, settings: config::Watchdog) {
        let mut state = self.state();
        if state.settings != settings {
            (state.settings, state.said) = (settings, false);
            (state.unusable_since, state.distrusted_until) = (None, Millis::ZERO);
        }
    }

    /// Takes the dynamic times over at the next arming.
    pub(crate) fn set_timing(&self, timing: Timing) {
        self.state().timing = timing;
    }

    pub(crate) fn is_required(&self) -> bool {
        self.state().settings.mode == WatchdogMode::Required
    }

    /// A test plays the machine that the device resets.
    pub(crate) fn is_played(&self) -> bool {
        self.state().settings.played
    }

    /// Says once, at start, whether the device can be used. It is not opened: that would start its
    /// clock.
    pub(crate) async fn announce(&self) {
        let (mode, device) = {
            let state = self.state();
            (state.settings.mode, state.settings.device.clone())
        };
        if mode == WatchdogMode::Off {
            return;
        }
        if self.is_played() {
            tracing::warn!(
                "watchdog.driver is testing: NOTHING ends a primary whose agent hangs; only for \
                 tests"
            );
        }
        let Err(error) = self.check().await else { return };
        let device = device.display();
        if mode == WatchdogMode::Required {
            tracing::warn!(%device, %error, "no watchdog: this member cannot lead");
        } else {
            tracing::info!(%device, %error, "no watchdog; the guard alone enforces the lease");
            self.state().said = true;
        }
    }

    /// Why this member may not lead: it must have a watchdog, and has none.
    pub(crate) async fn trouble(&self) -> Option<Trouble> {
        if !self.is_required() {
            return None;
        }
        let distrusted = clock::now() < self.state().distrusted_until;
        if !self.inner.is_open.load(Ordering::Relaxed) && !distrusted {
            let usable = self.check().await.is_ok();
            let mut state = self.state();
            let since = state.unusable_since.unwrap_or_else(clock::now);
            state.unusable_since = (!usable).then_some(since);
        }
        let since = self.state().unusable_since?;
        Some(Trouble { since, fault: Fault::NoWatchdog })
    }

    /// Opens the device if it is not open, feeds it, and goes on feeding as long as the claim that
    /// the guard enforces at `kill_at` allows. Whether it was opened.
    ///
    /// # Errors
    /// If it is required and was not fed.
    pub(crate) async fn arm(&self, kill_at: Millis) -> io::Result<bool> {
        let (settings, timing) = {
            let state = self.state();
            (state.settings.clone(), state.timing)
        };
        let (mode, device) = (settings.mode, settings.device.clone());
        if mode == WatchdogMode::Off {
            return self.stand_down().await.map(|()| false);
        }
        let device = device.display();
        let error = match self.beside(move |slot| feed(slot, &settings, timing)).await {
            Ok(fed) => {
                self.fed(fed, &device);
                self.keep_feeding(kill_at, fed.timeout_secs, timing.stop_margin);
                return Ok(fed.opened);
            }
            Err(error) => error,
        };
        if mode == WatchdogMode::Required {
            let (now, mut state) = (clock::now(), self.state());
            state.unusable_since.get_or_insert(now);
            state.distrusted_until = now.plus(DISTRUST);
            return Err(io::Error::new(error.kind(), format!("watchdog {device}: {error}")));
        }
        if !std::mem::replace(&mut self.state().said, true) {
            tracing::warn!(%device, %error, "the watchdog is not fed; the guard goes on");
        }
        Ok(false)
    }

    /// There is nothing to guard: the device's clock is stopped, and it is closed.
    ///
    /// # Errors
    /// If it could not be stopped: unless it is, it resets the machine.
    pub(crate) async fn stand_down(&self) -> io::Result<()> {
        if let Some(feeder) = self.state().feeder.take() {
            feeder.abort();
        }
        if !self.inner.is_open.load(Ordering::Relaxed) {
            return Ok(());
        }
        self.beside(close).await.map_err(|error| {
            let text = format!("the watchdog was not disarmed, it resets the machine: {error}");
            io::Error::new(error.kind(), text)
        })
    }

    fn fed(&self, fed: Fed, device: &std::path::Display<'_>) {
        let mut state = self.state();
        (state.unusable_since, state.said) = (None, false);
        if !fed.opened {
            return;
        }
        tracing::info!(%device, timeout_s = fed.timeout_secs, "watchdog armed");
        if !fed.can_be_disarmed {
            tracing::warn!(%device, "the watchdog cannot be disarmed: it resets the machine when \
                                     this member leads no more");
        }
    }

    /// Feeds until another arming, or until the device would fire after the lease's end. The last
    /// feeding has it fire halfway between the guard's strike and that end.
    fn keep_feeding(&self, kill_at: Millis, timeout_secs: u32, stop_margin: Millis) {
        let fires_after = Millis::from_secs(timeout_secs.into());
        let last = Millis(kill_at.plus(Millis(stop_margin.0 / 2)).since(fires_after).0);
        let too_late = Millis(kill_at.plus(stop_margin).since(fires_after).0);
        let pause = Millis(fires_after.0 / 3);
        let watchdog = self.clone();
        let feeder = tokio::spawn(async move {
            loop {
                let now = clock::now();
                if now >= last {
                    return;
                }
                let next = now.plus(pause).min(last);
                tokio::time::sleep(next.since(now).as_duration()).await;
                // The machine may have slept.
                if clock::now() >= too_late {
                    return;
                }
                if let Err(error) = watchdog.beside(feed_again).await {
                    tracing::warn!(%error, "the watchdog was not fed");
                    return;
                }
            }
        });
        let old = self.state().feeder.replace(feeder.abort_handle());
        if let Some(old) = old {
            old.abort();
        }
    }

    async fn check(&self) -> io::Result<()> {
        let (settings, timing) = {
            let state = self.state();
            (state.settings.clone(), state.timing)
        };
        wanted_secs(&settings, timing)?;
        self.beside(move |_| Device::check(&settings.device, driver(&settings))).await
    }

    /// Runs one call beside the loop. One that does not end in time is given up; whatever it opens
    /// later is closed again.
    async fn beside<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Option<Open>) -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        let hangs = |_| io::Error::new(io::ErrorKind::TimedOut, "the device does not answer");
        let turn = timeout(CALL_LIMIT, Arc::clone(&self.inner.turn).acquire_owned()).await;
        let turn = turn.map_err(hangs)?.map_err(io::Error::other)?;
        let given_up = Arc::new(AtomicBool::new(false));
        let (inner, is_given_up) = (Arc::clone(&self.inner), Arc::clone(&given_up));
        let call = tokio::task::spawn_blocking(move || {
            let _turn = turn;
            let mut slot = inner.slot.lock().unwrap_or_else(PoisonError::into_inner);
            let result = work(&mut slot);
            if is_given_up.load(Ordering::Acquire) {
                close(&mut slot).ok();
            }
            inner.is_open.store(slot.is_some(), Ordering::Relaxed);
            result
        });
        let ended = timeout(CALL_LIMIT, call).await;
        given_up.store(ended.is_err(), Ordering::Release);
        ended.map_err(hangs)?.unwrap_or_else(|error| Err(io::Error::other(error)))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.inner.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn driver(settings: &config::Watchdog) -> Driver {
    match settings.driver {
        config::WatchdogDriver::Default => Driver::Linux,
        config::WatchdogDriver::Testing => Driver::Testing,
    }
}

fn wanted_secs(settings: &config::Watchdog, timing: Timing) -> io::Result<u32> {
    settings.timeout_secs(timing.ttl, timing.loop_wait).ok_or_else(|| {
        let text = "ttl less watchdog.safety_margin is shorter than loop_wait";
        io::Error::new(io::ErrorKind::InvalidInput, text)
    })
}

/// Feeds the device, opened and set up as the settings say.
fn feed(slot: &mut Option<Open>, settings: &config::Watchdog, timing: Timing) -> io::Result<Fed> {
    let wanted_secs = match wanted_secs(settings, timing) {
        Ok(secs) => secs,
        Err(error) => {
            close(slot)?;
            return Err(error);
        }
    };
    let driver = driver(settings);
    let is_it = |open: &Open| open.path == settings.device && open.driver == driver;
    if slot.as_ref().is_some_and(|open| !is_it(open)) {
        close(slot)?;
    }
    if slot.as_ref().is_some_and(|open| open.stale) {
        *slot = None;
    }
    let opened = slot.is_none();
    if opened {
        let (path, stale) = (settings.device.clone(), false);
        let device = Device::open(&path, driver, wanted_secs)?;
        *slot = Some(Open { device, path, driver, wanted_secs, stale });
    }
    let Some(open) = slot.as_mut() else { return Err(io::ErrorKind::NotConnected.into()) };
    if open.wanted_secs != wanted_secs {
        open.device.set_timeout(wanted_secs)?;
        open.wanted_secs = wanted_secs;
    }
    let (timeout_secs, can_be_disarmed) =
        (open.device.timeout_secs(), open.device.can_be_disarmed());
    let too_short = u64::from(timeout_secs) * 1000 < timing.loop_wait.0;
    let too_long = timeout_secs > wanted_secs && settings.mode == WatchdogMode::Required;
    if too_short || too_long {
        close(slot)?;
        let text = format!("its timeout is {timeout_secs} s, wanted is {wanted_secs} s");
        return Err(io::Error::new(io::ErrorKind::InvalidInput, text));
    }
    open.device.feed().inspect_err(|_| open.stale = true)?;
    Ok(Fed { opened, timeout_secs, can_be_disarmed })
}

fn feed_again(slot: &mut Option<Open>) -> io::Result<()> {
    let Some(open) = slot else { return Ok(()) };
    open.device.feed().inspect_err(|_| open.stale = true)
}

/// Stops the device's clock. One that cannot be stopped stays open, to be tried again.
fn close(slot: &mut Option<Open>) -> io::Result<()> {
    if let Some(open) = slot {
        open.device.disarm()?;
    }
    *slot = None;
    Ok(())
}

#[cfg(test)]
#[path = "watchdog_tests.rs"]
mod tests;
