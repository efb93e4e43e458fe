//! Clients with a connection of their own, by user and database, for figures. Only those count whom
//! a server has let in: anybody can make names up.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use route::Port;

use crate::hub::PoolKey;
use crate::stats::Stats;
use crate::tally::{Outcome, Tally};

/// So many users of databases are told apart. Roles may come and go on a server.
const NAMES_MAX: usize = 1000;
/// The user and the database of all further ones.
const OTHER: &str = "(other)";
/// So much is counted at once, at the latest.
const UNCOUNTED_BYTES_MAX: u64 = 64 * 1024;

/// The sessions of one user in one database.
#[derive(Debug, Default)]
pub(crate) struct Sessions {
    /// Those that are open.
    pub(crate) open: [AtomicUsize; 2],
    pub(crate) stats: Stats,
}

impl Sessions {
    pub(crate) fn open_at(&self, port: Port) -> &AtomicUsize {
        let [read_write, read_only] = &self.open;
        match port {
            Port::ReadWrite => read_write,
            Port::ReadOnly => read_only,
        }
    }
}

/// All that there were since the start.
#[derive(Debug, Default)]
pub(crate) struct AllSessions(Mutex<BTreeMap<PoolKey, Arc<Sessions>>>);

impl AllSessions {
    /// Those of this user and database.
    fn of(&self, who: &PoolKey) -> Arc<Sessions> {
        let mut known = self.lock();
        if let Some(sessions) = known.get(who) {
            return sessions.clone();
        }
        let key = if known.len() < NAMES_MAX {
            who.clone()
        } else {
            PoolKey { database: OTHER.to_owned(), user: OTHER.to_owned() }
        };
        known.entry(key).or_default().clone()
    }

    pub(crate) fn all(&self) -> Vec<(PoolKey, Arc<Sessions>)> {
        self.lock().iter().map(|(key, sessions)| (key.clone(), sessions.clone())).collect()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<PoolKey, Arc<Sessions>>> {
        // Every change is one call on the map, so a panic elsewhere leaves it whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Counts what one session moves. What is not counted yet is counted when this is dropped, if the
/// client was let in.
#[derive(Debug)]
pub(crate) struct Meter {
    port: Port,
    let_in: Option<Arc<Sessions>>,
    received: u64,
    sent: u64,
}

impl Meter {
    pub(crate) fn new(port: Port) -> Meter {
        Meter { port, let_in: None, received: 0, sent: 0 }
    }

    pub(crate) fn received(&mut self, bytes: usize) {
        self.received += u64::try_from(bytes).unwrap_or(u64::MAX);
    }

    pub(crate) fn sent(&mut self, bytes: usize) {
        self.sent += u64::try_from(bytes).unwrap_or(u64::MAX);
    }

    pub(crate) fn is_let_in(&self) -> bool {
        self.let_in.is_some()
    }

    /// The server has let the client in.
    pub(crate) fn enters(&mut self, all: &AllSessions, who: &PoolKey, tally: &Tally) {
        let sessions = all.of(who);
        sessions.open_at(self.port).fetch_add(1, Ordering::Relaxed);
        tally.logins.add((self.port, Outcome::LetIn));
        self.let_in = Some(sessions);
    }

    /// Adds up what there is if it is much, or if nothing is under way.
    pub(crate) fn count(&mut self, rests: impl FnOnce() -> bool) {
        let uncounted = self.received + self.sent;
        if uncounted > UNCOUNTED_BYTES_MAX || uncounted > 0 && rests() {
            self.count_all();
        }
    }

    fn count_all(&mut self) {
        if let Some(sessions) = &self.let_in {
            sessions.stats.at(self.port).moved(self.received, self.sent);
            (self.received, self.sent) = (0, 0);
        }
    }
}

impl Drop for Meter {
    fn drop(&mut self) {
        self.count_all();
        if let Some(sessions) = &self.let_in {
            sessions.open_at(self.port).fetch_sub(1, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn who(user: usize) -> PoolKey {
        PoolKey { database: "d".to_owned(), user: user.to_string() }
    }

    #[test]
    fn who_is_let_in_counts_from_the_first_byte_and_to_the_last() {
        let (all, tally) = (AllSessions::default(), Tally::default());
        let mut made_up = Meter::new(Port::ReadWrite);
        made_up.received(10);
        made_up.count(|| true);
        drop(made_up);
        assert!(all.all().is_empty());
        let mut meter = Meter::new(Port::ReadOnly);
        meter.received(10);
        meter.enters(&all, &who(1), &tally);
        meter.sent(20);
        let sessions = all.all().pop().unwrap().1;
        let counted = || {
            let totals = sessions.stats.at(Port::ReadOnly).totals();
            let open = sessions.open_at(Port::ReadOnly).load(Ordering::Relaxed);
            (totals.received, totals.sent, open)
        };
        meter.count(|| false);
        assert_eq!(counted(), (0, 0, 1), "little, and something is under way");
        meter.count(|| true);
        assert_eq!(counted(), (10, 20, 1));
        meter.sent(100_000);
        meter.count(|| false);
        assert_eq!(counted(), (10, 100_020, 1), "much");
        meter.received(1);
        drop(meter);
        assert_eq!(counted(), (11, 100_020, 0));
        assert_eq!(tally.logins.all(), [((Port::ReadOnly, Outcome::LetIn), 1)].into());
    }

    #[test]
    fn there_is_an_end_of_names() {
        let all = AllSessions::default();
        for number in 0..2 * NAMES_MAX {
            all.of(&who(number));
        }
        assert_eq!(all.all().len(), NAMES_MAX + 1);
        assert!(Arc::ptr_eq(&all.of(&who(NAMES_MAX)), &all.of(&who(NAMES_MAX + 1))));
        assert!(!Arc::ptr_eq(&all.of(&who(0)), &all.of(&who(1))));
    }
}
