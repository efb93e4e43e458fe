//! How far a run is, and how much longer it takes as far as what is done tells.

use std::time::{Duration, Instant};

use crate::say;

/// Characters of the bar.
const BAR: u32 = 24;

/// Expected times, against which real ones are held.
pub(super) struct Progress {
    total: Duration,
    left: Duration,
    began: Instant,
}

impl Progress {
    pub(super) fn new(total: Duration) -> Progress {
        Progress { total, left: total, began: Instant::now() }
    }

    /// Something is done that was expected to take so long.
    pub(super) fn done(&mut self, expected: Duration) {
        self.left = self.left_after(expected);
    }

    /// What will be left, as expected, after something that is expected to take so long.
    pub(super) fn left_after(&self, expected: Duration) -> Duration {
        self.left.saturating_sub(expected)
    }

    /// So much is left, whatever was given up.
    pub(super) fn left_is(&mut self, left: Duration) {
        self.left = left;
    }

    /// A line about what was just done.
    pub(super) fn tell(&self, text: &str) {
        say(&format!("{} {text}", bar(self.total, self.left, self.began.elapsed())));
    }
}

/// `[######------] 50 %, 12 min left`.
fn bar(total: Duration, left: Duration, spent: Duration) -> String {
    let done = total.saturating_sub(left);
    let part = if total.is_zero() { 1.0 } else { done.as_secs_f64() / total.as_secs_f64() };
    let pace = if done.is_zero() { 1.0 } else { spent.as_secs_f64() / done.as_secs_f64() };
    let full = (part * f64::from(BAR)).round();
    let line: String = (0..BAR).map(|at| if f64::from(at) < full { '#' } else { '-' }).collect();
    let seconds = left.as_secs_f64() * pace;
    let left = if seconds < 90.0 {
        format!("{seconds:.0} s")
    } else {
        format!("{:.0} min", seconds / 60.0)
    };
    format!("[{line}] {:.0} %, {left} left:", part * 100.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_takes_as_much_longer_as_what_is_done_took() {
        let minutes = |minutes: u64| Duration::from_secs(minutes * 60);
        let half = bar(minutes(20), minutes(10), minutes(15));
        assert_eq!(half, "[############------------] 50 %, 15 min left:");
        assert_eq!(bar(minutes(1), minutes(1), minutes(0)).matches('#').count(), 0);
        assert!(bar(minutes(2), Duration::ZERO, minutes(2)).contains("100 %, 0 s left"));
        assert!(bar(Duration::ZERO, Duration::ZERO, Duration::ZERO).contains("100 %"));
    }
}
