//! How long clients of pools are silent, and how long their statements run. One look at all of them
//! each second takes the time, so that none has a timer, and none looks at a clock.
//!
//! A client's task writes what it does now; the look writes when it first saw that. So a limit is
//! never taken too early, and at most two looks too late.

use std::sync::atomic::{AtomicU64, Ordering};

use config::ProxyLimits;
use types::Millis;

/// How long a server may take for a cancel request.
const CANCEL_LIMIT: Millis = Millis(5000);

/// What a client does, as far as it has a limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Doing {
    /// What is limited elsewhere, or not at all.
    Other,
    /// It has no server connection and says nothing.
    Idle,
    /// It has no server connection and has begun a message.
    Message,
    /// It is in a transaction and says nothing.
    Transaction,
    /// A statement runs.
    Statement,
    /// A statement was cancelled and runs on.
    Cancelled,
}

impl Doing {
    fn from_bits(bits: u64) -> Doing {
        let all = [Doing::Idle, Doing::Message, Doing::Transaction, Doing::Statement];
        let known = all.into_iter().chain([Doing::Cancelled]);
        known.into_iter().find(|doing| *doing as u64 == bits).unwrap_or(Doing::Other)
    }

    /// Whether this is what was done at the last look already, and not the same anew: bytes have
    /// moved since, or not, and the server is in the same round, or in another one.
    pub(crate) fn goes_on(self, before: Doing, moved: bool, same_round: bool) -> bool {
        match self {
            // Parts of a message, or of an answer, do not make it another one.
            Doing::Statement => matches!(before, Doing::Statement | Doing::Cancelled) && same_round,
            Doing::Other | Doing::Message | Doing::Cancelled => before == self,
            Doing::Idle | Doing::Transaction => before == self && !moved,
        }
    }

    /// How long it may last; 0 is for ever.
    fn limit(self, limits: &ProxyLimits) -> Millis {
        match self {
            Doing::Other => Millis::ZERO,
            Doing::Idle => limits.client_idle_timeout,
            Doing::Message => limits.client_login_timeout,
            Doing::Transaction => limits.idle_transaction_timeout,
            Doing::Statement => limits.query_timeout,
            Doing::Cancelled => CANCEL_LIMIT,
        }
    }
}

/// The low bits say what is done, the next that it was done for too long, the rest since when: the
/// milliseconds and one, 0 if nobody has looked yet.
const DOING: u64 = 0b0111;
const TOO_LONG: u64 = 0b1000;
const SINCE_SHIFT: u32 = 4;

/// What one client does, and since when.
#[derive(Debug, Default)]
pub(crate) struct Watch(AtomicU64);

impl Watch {
    /// The client's task: this begins now.
    pub(crate) fn begins(&self, doing: Doing) {
        // The mailbox's lock orders it with the nudge; a look that comes between takes no harm.
        self.0.store(doing as u64, Ordering::Relaxed);
    }

    /// The client's task: what was done for too long, up to now.
    pub(crate) fn too_long(&self) -> Option<Doing> {
        let word = self.0.load(Ordering::Relaxed);
        (word & TOO_LONG > 0).then(|| Doing::from_bits(word & DOING))
    }

    /// Whether the time has come now.
    pub(crate) fn look(&self, now: Millis, limits: &ProxyLimits) -> bool {
        let word = self.0.load(Ordering::Relaxed);
        let limit = Doing::from_bits(word & DOING).limit(limits);
        if limit == Millis::ZERO || word & TOO_LONG > 0 {
            return false;
        }
        let since = word >> SINCE_SHIFT;
        let over = since > 0 && now.plus(Millis(1)).since(Millis(since)) >= limit;
        let new = match (since, over) {
            (0, _) => word | now.plus(Millis(1)).0 << SINCE_SHIFT,
            (_, true) => word | TOO_LONG,
            (_, false) => return false,
        };
        // If the client did something meanwhile, that stays.
        let changed = self.0.compare_exchange(word, new, Ordering::Relaxed, Ordering::Relaxed);
        over && changed.is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_counts_from_the_first_look_and_anew_with_every_beginning() {
        let limits = ProxyLimits { query_timeout: Millis(1000), ..ProxyLimits::default() };
        let watch = Watch::default();
        let look = |now| watch.look(Millis(now), &limits);
        watch.begins(Doing::Statement);
        assert!(!look(5000), "when it began, nobody knows");
        assert!(!look(5999));
        watch.begins(Doing::Statement);
        assert!(!look(6000), "another statement");
        assert_eq!(watch.too_long(), None);
        assert!(look(7000));
        assert_eq!(watch.too_long(), Some(Doing::Statement));
        assert!(!look(8000), "it is told once");
        watch.begins(Doing::Idle);
        assert_eq!(watch.too_long(), None);
        assert!(!look(9000) && !look(1_000_000), "that has no limit");
    }

    #[test]
    fn bytes_end_a_silence_and_neither_a_message_nor_a_statement() {
        let moved = |doing: Doing| doing.goes_on(doing, true, true);
        assert!(!moved(Doing::Idle) && !moved(Doing::Transaction));
        assert!(moved(Doing::Message) && moved(Doing::Statement));
        assert!(Doing::Statement.goes_on(Doing::Cancelled, true, true), "it is cancelled once");
        assert!(!Doing::Statement.goes_on(Doing::Statement, true, false), "it is another one");
        assert!(!Doing::Statement.goes_on(Doing::Transaction, true, true));
        assert!(Doing::Idle.goes_on(Doing::Idle, false, true));
    }

    #[test]
    fn everything_that_has_a_limit_is_written_and_read() {
        use Doing::{Cancelled, Idle, Message, Other, Statement, Transaction};
        for doing in [Other, Idle, Message, Transaction, Statement, Cancelled] {
            assert_eq!(Doing::from_bits(doing as u64), doing);
        }
    }
}
