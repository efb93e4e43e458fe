//! Prepared statements of the protocol, which clients name for themselves and servers share.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};

use super::effect::{Effect, effect_of};

/// Statements that nobody has any more are forgotten when there are this many more than before.
const FORGET_EVERY: usize = 1024;

/// A statement as clients prepared it: text and parameter types. All that prepared the same share
/// one, and servers know it by one name.
#[derive(Debug, PartialEq, Eq)]
pub struct Prepared {
    /// Its number, never used twice.
    pub(crate) id: u64,
    /// The body of its Parse behind the name: text, zero byte, parameter types.
    pub(crate) tail: Vec<u8>,
    /// What its execution does to a session.
    pub(crate) effect: Effect,
    /// Whether a standby can answer it, once somebody has asked.
    reads_on_standby: OnceLock<bool>,
}

impl Prepared {
    /// Its name on servers.
    pub(crate) fn server_name(&self) -> String {
        format!("pgherd_{}", self.id)
    }

    /// Whether a standby can answer it.
    pub(crate) fn reads_on_standby(&self) -> bool {
        let look = || pgproto::sql::reads_on_standby(statement_text(&self.tail));
        *self.reads_on_standby.get_or_init(look)
    }
}

/// All statements that some client has.
#[derive(Debug, Default)]
pub struct Registry {
    statements: BTreeMap<Vec<u8>, Arc<Prepared>>,
    next: u64,
    forget_at: usize,
}

impl Registry {
    /// The statement of this Parse, known or new.
    pub fn intern(&mut self, tail: &[u8]) -> Arc<Prepared> {
        if let Some(known) = self.statements.get(tail) {
            return known.clone();
        }
        if self.statements.len() >= self.forget_at {
            self.statements.retain(|_, statement| Arc::strong_count(statement) > 1);
            self.forget_at = self.statements.len() + FORGET_EVERY;
        }
        self.next += 1;
        let statement = Arc::new(prepared(self.next, tail));
        self.statements.insert(tail.to_vec(), statement.clone());
        statement
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.statements.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.statements.is_empty()
    }
}

fn statement_text(tail: &[u8]) -> &[u8] {
    tail.iter().position(|byte| *byte == 0).map_or(tail, |end| &tail[..end])
}

/// A statement from the tail of its Parse.
pub(crate) fn prepared(id: u64, tail: &[u8]) -> Prepared {
    let text = statement_text(tail);
    let reads_on_standby = OnceLock::new();
    Prepared { id, tail: tail.to_vec(), effect: effect_of(text), reads_on_standby }
}

/// The statements that one server connection has, by their number, and when each was used last.
#[derive(Debug, Default)]
pub(crate) struct Kept {
    used: BTreeMap<u64, u64>,
    uses: u64,
}

impl Kept {
    /// Whether it is there; notes the use.
    pub(crate) fn has(&mut self, id: u64) -> bool {
        self.uses += 1;
        match self.used.get_mut(&id) {
            Some(used) => {
                *used = self.uses;
                true
            }
            None => false,
        }
    }

    pub(crate) fn add(&mut self, id: u64) {
        self.uses += 1;
        self.used.insert(id, self.uses);
    }

    pub(crate) fn remove(&mut self, id: u64) {
        self.used.remove(&id);
    }

    pub(crate) fn clear(&mut self) {
        self.used.clear();
    }

    /// The one that was not used for longest, if there are `most` already.
    pub(crate) fn one_too_many(&self, most: usize) -> Option<u64> {
        let oldest = || self.used.iter().min_by_key(|(_, used)| **used).map(|(id, _)| *id);
        (self.used.len() >= most).then(oldest)?
    }
}
