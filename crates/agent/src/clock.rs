//! The boot-time clock, read in one place.

use rustix::time::{ClockId, clock_gettime};
use types::Millis;

/// Now on `CLOCK_BOOTTIME`: it goes on while the machine sleeps, and nobody sets it.
#[must_use]
pub(crate) fn now() -> Millis {
    let t = clock_gettime(ClockId::Boottime);
    let secs = u64::try_from(t.tv_sec).unwrap_or(0);
    let nanos = u64::try_from(t.tv_nsec).unwrap_or(0);
    Millis(secs * 1000 + nanos / 1_000_000)
}
