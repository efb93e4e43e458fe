//! The guard's whole memory of what it was told: pure, so that every order of events can be tested.

use crate::protocol::Request;

/// What the guard is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    /// Nothing to kill.
    Idle,
    /// It kills at this instant.
    Armed(u64),
    /// It is killing, until nothing is left.
    Striking,
    /// It was told to end.
    Exiting,
}

/// The bookkeeping of deadlines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Deadline {
    state: State,
}

impl Deadline {
    pub(crate) const fn new() -> Deadline {
        Deadline { state: State::Idle }
    }

    pub(crate) const fn state(self) -> State {
        self.state
    }

    /// The deadline in force.
    pub(crate) const fn at(self) -> Option<u64> {
        match self.state {
            State::Armed(at) => Some(at),
            State::Idle | State::Striking | State::Exiting => None,
        }
    }

    /// Lets time pass; a deadline that is reached strikes.
    pub(crate) fn tick(&mut self, now: u64) {
        if let State::Armed(at) = self.state
            && now >= at
        {
            self.state = State::Striking;
        }
    }

    /// Carries a request out, and says whether it did. Time comes first: a renewal that was sent in
    /// time but is read too late, because machine or guard stood still, does not count (I1).
    pub(crate) fn apply(&mut self, request: Request, now: u64) -> bool {
        self.tick(now);
        let (next, accepted) = match (self.state, request) {
            (state, Request::Ping) => (state, true),
            // Deadlines only move forward: an older one is a late message.
            (State::Armed(old), Request::Deadline(new)) => (State::Armed(old.max(new)), true),
            (State::Idle, Request::Deadline(new)) => (State::Armed(new), true),
            (State::Idle | State::Armed(_), Request::StandDown) => (State::Idle, true),
            (State::Idle, Request::Exit) => (State::Exiting, true),
            (State::Armed(at), Request::Exit) => (State::Armed(at), false),
            // Whatever is started now would be killed, or would escape.
            (
                state @ (State::Striking | State::Exiting),
                Request::Deadline(_) | Request::StandDown | Request::Exit,
            ) => (state, false),
        };
        self.state = next;
        self.tick(now);
        accepted
    }

    /// The killing is done.
    pub(crate) fn struck(&mut self) {
        assert!(self.state == State::Striking, "nothing was being killed: {:?}", self.state);
        self.state = State::Idle;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn armed(at: u64) -> Deadline {
        let mut deadline = Deadline::new();
        assert!(deadline.apply(Request::Deadline(at), 0));
        deadline
    }

    #[test]
    fn a_deadline_strikes_when_it_is_reached_and_not_before() {
        let mut deadline = armed(100);
        deadline.tick(99);
        assert_eq!(deadline.state(), State::Armed(100));
        deadline.tick(100);
        assert_eq!(deadline.state(), State::Striking);
    }

    #[test]
    fn deadlines_only_move_forward() {
        let mut deadline = armed(100);
        assert!(deadline.apply(Request::Deadline(50), 10));
        assert_eq!(deadline.at(), Some(100));
        assert!(deadline.apply(Request::Deadline(200), 10));
        assert_eq!(deadline.at(), Some(200));
    }

    #[test]
    fn a_renewal_that_is_read_too_late_does_not_count() {
        for request in [Request::Deadline(500), Request::StandDown] {
            let mut deadline = armed(100);
            assert!(!deadline.apply(request, 100));
            assert_eq!(deadline.state(), State::Striking);
        }
    }

    #[test]
    fn a_deadline_in_the_past_strikes_at_once() {
        let mut deadline = Deadline::new();
        assert!(deadline.apply(Request::Deadline(5), 10));
        assert_eq!(deadline.state(), State::Striking);
    }

    #[test]
    fn while_it_kills_nothing_is_accepted_but_a_ping() {
        let mut deadline = armed(1);
        deadline.tick(1);
        for request in [Request::Deadline(9), Request::StandDown, Request::Exit] {
            assert!(!deadline.apply(request, 2));
        }
        assert!(deadline.apply(Request::Ping, 2));
        deadline.struck();
        assert_eq!(deadline.state(), State::Idle);
        assert!(deadline.apply(Request::Deadline(9), 2));
    }

    #[test]
    fn it_ends_only_without_a_deadline() {
        let mut deadline = armed(100);
        assert!(!deadline.apply(Request::Exit, 1));
        assert!(deadline.apply(Request::StandDown, 1));
        assert!(deadline.apply(Request::Exit, 1));
        assert_eq!(deadline.state(), State::Exiting);
    }
}
