//! How a proxy comes to its end whose place another one has taken: its clients go on, and those
//! that stay too long are asked to connect again.

use types::Millis;

/// What is in a transaction when the time is up has this much more for it.
const GRACE: Millis = Millis(10_000);
/// How often it is said who is left.
const TELL_INTERVAL: Millis = Millis(5_000);

/// What is to be done about the clients.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DrainStep {
    /// Nothing.
    GoOn,
    /// Say how many are left.
    Tell,
    /// Whoever is in no transaction is to go, from now on; this comes once.
    EndResting,
    /// Whoever is left is ended, and the proxy with them.
    Over,
}

/// The clock of a drain.
#[derive(Debug, Clone)]
pub struct Drain {
    /// When clients in no transaction are ended, and when all others are.
    rest_until: Millis,
    ends: Millis,
    resting_ended: bool,
    told: Millis,
}

impl Drain {
    /// A drain that begins now, and lets clients stay for `timeout`.
    #[must_use]
    pub fn new(now: Millis, timeout: Millis) -> Drain {
        let rest_until = now.plus(timeout);
        Drain { rest_until, ends: rest_until.plus(GRACE), resting_ended: false, told: now }
    }

    /// What is to be done now that so many clients are left.
    pub fn step(&mut self, now: Millis, clients: usize) -> DrainStep {
        if clients == 0 || self.ends <= now {
            return DrainStep::Over;
        }
        if self.rest_until <= now && !self.resting_ended {
            self.resting_ended = true;
            return DrainStep::EndResting;
        }
        if self.told.plus(TELL_INTERVAL) <= now {
            self.told = now;
            return DrainStep::Tell;
        }
        DrainStep::GoOn
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_go_by_themselves_or_when_their_time_is_up() {
        let at = |seconds: u64| Millis::from_secs(100 + seconds);
        let mut drain = Drain::new(at(0), Millis::from_secs(12));
        let story = [
            (0, 3, DrainStep::GoOn),
            (5, 3, DrainStep::Tell),
            (6, 3, DrainStep::GoOn),
            (11, 2, DrainStep::Tell),
            (12, 2, DrainStep::EndResting),
            (13, 1, DrainStep::GoOn),
            (16, 1, DrainStep::Tell),
            (21, 1, DrainStep::Tell),
            (22, 1, DrainStep::Over),
        ];
        for (second, clients, expected) in story {
            assert_eq!(drain.step(at(second), clients), expected, "at {second} s");
        }
        let mut drain = Drain::new(at(0), Millis::from_secs(12));
        assert_eq!(drain.step(at(1), 0), DrainStep::Over);
        // Without time to stay, whoever rests goes at once.
        let mut drain = Drain::new(at(0), Millis::ZERO);
        assert_eq!(drain.step(at(0), 1), DrainStep::EndResting);
    }
}
