//! Sessions that set `synchronous_commit` below `on`: their commits are acknowledged before a
//! standby has them (I1). They are counted, told of once each, and refused where configured.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use pgproto::wire::{Cut, Cutter, FrameError, Startup};
use pgproto::{lowered, sql};
use route::ClientId;
use serde::Serialize;
use tokio::sync::Notify;

use crate::hub::PoolKey;
use crate::words;

/// A statement up to this length, in bytes with type and length, is read before it goes on; a
/// longer one is let through unread. The bytes are held back until the message is whole.
pub(crate) const STATEMENT_BYTES_MAX: usize = 16 * 1024;

const HEADER: usize = 5;

/// Counters since the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct LoweredCommit {
    /// Sessions that asked for `synchronous_commit` below `on`, by startup packet or statement.
    pub sessions: u64,
    /// Startup packets and statements that were refused for it.
    pub refused: u64,
}

/// What all sessions share.
#[derive(Debug, Default)]
pub(crate) struct Lowering {
    refuse: AtomicBool,
    sessions: AtomicU64,
    refused: AtomicU64,
    /// Wakes the core, which publishes the counters.
    pub(crate) counted: Notify,
}

impl Lowering {
    /// Sets whether it is refused from now on.
    pub(crate) fn set_refuse(&self, refuse: bool) {
        self.refuse.store(refuse, Ordering::Relaxed);
    }

    /// Whether it is refused now.
    pub(crate) fn refuses(&self) -> bool {
        self.refuse.load(Ordering::Relaxed)
    }

    /// Whether sessions with this value, as the server told it, are refused to a pool.
    pub(crate) fn refuses_pool(&self, who: &PoolKey, value: &[u8]) -> bool {
        let refused = lowered::is_below_on(value) && self.refuses();
        if refused {
            self.refused.fetch_add(1, Ordering::Relaxed);
            self.counted.notify_one();
            let (user, database) = (&who.user, &who.database);
            tracing::warn!(user, database, "synchronous_commit is lowered for a role or database");
        }
        refused
    }

    pub(crate) fn counters(&self) -> LoweredCommit {
        LoweredCommit {
            sessions: self.sessions.load(Ordering::Relaxed),
            refused: self.refused.load(Ordering::Relaxed),
        }
    }
}

/// Looks at the statements of one client.
#[derive(Debug)]
pub(crate) struct Judge {
    client: ClientId,
    who: Arc<PoolKey>,
    /// It was counted and told of.
    noted: bool,
}

impl Judge {
    pub(crate) fn new(client: ClientId, who: Arc<PoolKey>) -> Judge {
        Judge { client, who, noted: false }
    }

    /// Whose statements these are.
    pub(crate) fn who(&self) -> &Arc<PoolKey> {
        &self.who
    }

    /// Whether a session that begins with this packet is refused.
    pub(crate) fn refuses_startup(&mut self, lowering: &Lowering, startup: &Startup) -> bool {
        lowered::startup_lowers(startup) && self.note(lowering)
    }

    /// What the server gets in place of this Query or Parse, if it is refused.
    pub(crate) fn replaces(&mut self, lowering: &Lowering, message: &[u8]) -> Option<Vec<u8>> {
        let refused = lowered::message_lowers(message) && self.note(lowering);
        refused.then(|| words::lowered_statement(message))
    }

    /// Counts, and says whether it is refused.
    fn note(&mut self, lowering: &Lowering) -> bool {
        let refused = lowering.refuses();
        if refused {
            lowering.refused.fetch_add(1, Ordering::Relaxed);
        }
        if !self.noted {
            self.noted = true;
            lowering.sessions.fetch_add(1, Ordering::Relaxed);
            let (user, database) = (&self.who.user, &self.who.database);
            let client = self.client;
            tracing::warn!(%client, user, database, refused, "a session lowers synchronous_commit");
        }
        lowering.counted.notify_one();
        refused
    }
}

/// The client's way up, as a session with a connection of its own sees it.
#[derive(Debug)]
pub(crate) struct Statements<'a> {
    lowering: &'a Lowering,
    judge: Judge,
    /// The server was asked what the session has from its role and database.
    asked: bool,
    cutter: Cutter,
    /// The beginning of a statement that is not there as a whole yet.
    held: Vec<u8>,
    /// The last query commits.
    commits: bool,
}

impl<'a> Statements<'a> {
    pub(crate) fn new(lowering: &'a Lowering, judge: Judge) -> Self {
        let (cutter, held) = (Cutter::default(), Vec::new());
        Statements { lowering, judge, asked: false, cutter, held, commits: false }
    }

    /// Whose statements these are.
    pub(crate) fn who(&self) -> &PoolKey {
        self.judge.who()
    }

    /// Whether the server must be asked now what the session has from its role and database, at the
    /// first moment at which it owes nothing. True once at most.
    pub(crate) fn must_ask(&mut self) -> bool {
        // Between two messages of the client only.
        self.cutter.at_boundary()
            && self.held.is_empty()
            && !std::mem::replace(&mut self.asked, true)
            && self.lowering.refuses()
    }

    /// Whether a session with this value, as the server told it, is refused.
    pub(crate) fn refuses_session(&mut self, value: &[u8]) -> bool {
        lowered::is_below_on(value) && self.judge.note(self.lowering)
    }

    /// Whether the last query of the simple protocol was a commit: while it runs, it may wait for a
    /// synchronous standby.
    pub(crate) fn commits(&self) -> bool {
        self.commits
    }

    /// Looks at bytes of the client; what may be sent goes to `out`, with a refusal in the place of
    /// each statement that is refused. The beginning of a statement waits until it is whole.
    ///
    /// # Errors
    /// [`FrameError`]: the client's stream is broken.
    pub(crate) fn look(&mut self, bytes: &[u8], out: &mut Vec<u8>) -> Result<(), FrameError> {
        let held = std::mem::take(&mut self.held);
        let all = if held.is_empty() { bytes } else { &[&held, bytes].concat() };
        let mut rest = all;
        while let Some(cut) = self.cutter.next(&mut rest, need)? {
            let (Cut::Begin { bytes, .. } | Cut::More { bytes, .. }) = cut;
            if let Cut::Begin { tag: b'Q', bytes, .. } = cut {
                self.commits = sql::is_commit(bytes.get(HEADER..).unwrap_or_default());
            }
            let instead = match cut {
                Cut::Begin { tag: b'Q' | b'P', rest: 0, .. } => {
                    self.judge.replaces(self.lowering, bytes)
                }
                Cut::Begin { .. } | Cut::More { .. } => None,
            };
            out.extend_from_slice(instead.as_deref().unwrap_or(bytes));
        }
        self.held = rest.to_vec();
        Ok(())
    }
}

/// A longer statement is let through unread.
fn need(tag: u8, total: usize) -> usize {
    if matches!(tag, b'Q' | b'P') && total <= STATEMENT_BYTES_MAX { total } else { 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(tag: u8, body: &[u8]) -> Vec<u8> {
        let length = u32::try_from(body.len() + 4).unwrap();
        [&[tag], &length.to_be_bytes()[..], body].concat()
    }

    fn statements(lowering: &Lowering) -> Statements<'_> {
        let who = Arc::new(PoolKey { database: "d".to_owned(), user: "app".to_owned() });
        Statements::new(lowering, Judge::new(ClientId(1), who))
    }

    /// What reaches the server of a stream that arrives in pieces of `piece_bytes`.
    fn passed(lowering: &Lowering, stream: &[u8], piece_bytes: usize) -> Vec<u8> {
        let mut statements = statements(lowering);
        let mut sent = Vec::new();
        for piece in stream.chunks(piece_bytes) {
            statements.look(piece, &mut sent).unwrap();
            assert!(statements.held.len() < STATEMENT_BYTES_MAX, "no more is held back");
        }
        assert!(statements.held.is_empty(), "the stream ends with a whole message");
        sent
    }

    #[test]
    fn what_is_not_refused_arrives_as_it_was_in_any_split() {
        let lowering = Lowering::default();
        let long = [b"select '", &[b'x'; STATEMENT_BYTES_MAX][..], b"'\0"].concat();
        let stream = [
            message(b'p', b"proof"),
            message(b'Q', b"set synchronous_commit = off\0"),
            message(b'd', b"Q\0\0\0\x20set synchronous_commit = off"),
            message(b'Q', &long),
            message(b'P', b"\0select 1\0\0\0"),
            message(b'S', b""),
        ]
        .concat();
        for piece_bytes in [1, 3, 1000, stream.len()] {
            assert_eq!(passed(&lowering, &stream, piece_bytes), stream, "{piece_bytes}");
        }
        assert_eq!(lowering.counters(), LoweredCommit { sessions: 4, refused: 0 });
    }

    #[test]
    fn only_the_refused_statement_is_replaced() {
        let lowering = Lowering::default();
        lowering.set_refuse(true);
        let (before, after) = (message(b'Q', b"select 1\0"), message(b'S', b""));
        let refused = message(b'P', b"s\0set synchronous_commit = off\0\0\0");
        let stream = [&before[..], &refused, &refused, &after].concat();
        let instead = words::lowered_statement(&refused);
        let wanted = [&before[..], &instead, &instead, &after].concat();
        for piece_bytes in [1, 7, stream.len()] {
            assert_eq!(passed(&lowering, &stream, piece_bytes), wanted, "{piece_bytes}");
        }
        assert_eq!(lowering.counters(), LoweredCommit { sessions: 3, refused: 6 });
    }
}
