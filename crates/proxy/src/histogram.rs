//! How long things take, counted in classes of which each is twice as wide as the one before.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// The bound of the first class; [`micros_of`] has the others.
const FIRST_MICROS: u64 = 100;
/// Classes with a bound: up to 105 seconds.
const BOUNDS: usize = 21;
const CLASSES: usize = BOUNDS + 1;

/// Additions only, no lock: what is read of it may be of slightly different moments.
#[derive(Debug, Default)]
pub(crate) struct Histogram {
    counts: [AtomicU64; CLASSES],
    micros: AtomicU64,
}

/// What was counted up to one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Spread {
    counts: [u64; CLASSES],
    micros: u64,
}

impl Histogram {
    /// Something took so long.
    pub(crate) fn observe(&self, took: Duration) {
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        if let Some(count) = self.counts.get(class_of(micros)) {
            count.fetch_add(1, Ordering::Relaxed);
        }
        self.micros.fetch_add(micros, Ordering::Relaxed);
    }

    /// How long everything took together.
    pub(crate) fn micros(&self) -> u64 {
        self.micros.load(Ordering::Relaxed)
    }

    pub(crate) fn spread(&self) -> Spread {
        let counts = self.counts.each_ref().map(|count| count.load(Ordering::Relaxed));
        Spread { counts, micros: self.micros() }
    }
}

impl Spread {
    /// Whether nothing was counted.
    pub(crate) fn is_empty(&self) -> bool {
        self.counts.iter().all(|count| *count == 0)
    }

    /// As an exposition has it, with these labels.
    pub(crate) fn exposed(&self, label: String) -> api::exposition::Histogram {
        let below = self.counts.iter().scan(0, |below, count| {
            *below += count;
            Some(*below)
        });
        let bounds = (0..BOUNDS).map(|class| seconds(micros_of(class)).to_string());
        let counts = bounds.chain(["+Inf".to_owned()]).zip(below).collect();
        api::exposition::Histogram { label, counts, sum: seconds(self.micros) }
    }
}

/// The upper bound of a class, which is in it.
fn micros_of(class: usize) -> u64 {
    FIRST_MICROS << class
}

/// The class of a time: how often the first bound has to be doubled.
fn class_of(micros: u64) -> usize {
    let above = micros.saturating_sub(1) / FIRST_MICROS;
    let doubled = usize::try_from(u64::BITS - above.leading_zeros()).unwrap_or(BOUNDS);
    doubled.min(BOUNDS)
}

/// Microseconds in the unit that metrics have.
pub(crate) fn seconds(micros: u64) -> f64 {
    // Exact up to 285 years.
    micros as f64 / 1e6
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_in_the_first_class_whose_bound_it_does_not_exceed() {
        assert_eq!((class_of(0), class_of(1)), (0, 0));
        for class in 0..BOUNDS {
            let bound = micros_of(class);
            assert_eq!((class_of(bound), class_of(bound + 1)), (class, class + 1), "{bound}");
        }
        assert_eq!(class_of(u64::MAX), BOUNDS);
    }

    #[test]
    fn classes_are_exposed_as_sums_of_those_below() {
        let histogram = Histogram::default();
        assert!(histogram.spread().is_empty());
        for micros in [50, 150, 150, 1_000_000_000] {
            histogram.observe(Duration::from_micros(micros));
        }
        let spread = histogram.spread();
        assert!(!spread.is_empty());
        let shown = spread.exposed("a=\"b\"".to_owned());
        let counts: Vec<(&str, u64)> = shown.counts.iter().map(|(b, c)| (b.as_str(), *c)).collect();
        assert_eq!(counts[..3], [("0.0001", 1), ("0.0002", 3), ("0.0004", 3)]);
        assert_eq!(counts[BOUNDS - 1..], [("104.8576", 3), ("+Inf", 4)]);
        assert_eq!((shown.label.as_str(), shown.sum), ("a=\"b\"", 1000.00035));
    }
}
