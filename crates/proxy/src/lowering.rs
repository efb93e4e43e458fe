//! Sessions that set `synchronous_commit` below `on`: their commits are acknowledged before a
//! standby has them (I1). They are counted, told of once each, and refused where configured.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use pgproto::lowered;
use pgproto::wire::Startup;
use route::ClientId;
use serde::Serialize;
use tokio::sync::Notify;

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

    pub(crate) fn counters(&self) -> LoweredCommit {
        LoweredCommit {
            sessions: self.sessions.load(Ordering::Relaxed),
            refused: self.refused.load(Ordering::Relaxed),
        }
    }
}

/// The client's way up, as one session sees it.
#[derive(Debug)]
pub(crate) struct Statements<'a> {
    lowering: &'a Lowering,
    client: ClientId,
    user: String,
    database: String,
    /// It was counted and told of.
    noted: bool,
    /// The server was asked what the session has from its role and database.
    asked: bool,
    /// What is still to come of a message that goes on unread.
    passing: usize,
}

impl<'a> Statements<'a> {
    pub(crate) fn new(lowering: &'a Lowering, client: ClientId, startup: &Startup) -> Self {
        let user = startup.parameter("user").unwrap_or_default().to_owned();
        let database = startup.parameter("database").unwrap_or(&user).to_owned();
        Statements { lowering, client, user, database, noted: false, asked: false, passing: 0 }
    }

    /// Whether a session that begins with this packet is refused.
    pub(crate) fn refuses_startup(&mut self, startup: &Startup) -> bool {
        lowered::startup_lowers(startup) && self.note()
    }

    /// Whether the server must be asked now what the session has from its role and database, at the
    /// first moment at which it owes nothing. True once at most.
    pub(crate) fn must_ask(&mut self) -> bool {
        // Between two messages of the client only.
        self.passing == 0
            && !std::mem::replace(&mut self.asked, true)
            && self.lowering.refuse.load(Ordering::Relaxed)
    }

    /// Whether a session with this value, as the server told it, is refused.
    pub(crate) fn refuses_session(&mut self, value: &[u8]) -> bool {
        lowered::is_below_on(value) && self.note()
    }

    /// Looks at what stands in `buffer` from `begin` on, where an earlier call left off, and puts a
    /// refusal in the place of each statement that is refused. Returns up to where it may be sent;
    /// what follows is the beginning of a statement that is not yet whole.
    pub(crate) fn look(&mut self, buffer: &mut Vec<u8>, begin: usize) -> usize {
        let mut at = begin;
        loop {
            let passed = self.passing.min(buffer.len() - at);
            self.passing -= passed;
            at += passed;
            let Some(whole_bytes) = message_bytes(&buffer[at..]) else {
                return at;
            };
            let read = matches!(buffer[at], b'Q' | b'P') && whole_bytes <= STATEMENT_BYTES_MAX;
            if !read {
                self.passing = whole_bytes;
                continue;
            }
            let Some(message) = buffer.get(at..at + whole_bytes) else {
                return at;
            };
            let refused = lowered::message_lowers(message) && self.note();
            if refused {
                let instead = words::lowered_statement(message);
                let end = at + instead.len();
                buffer.splice(at..at + whole_bytes, instead);
                at = end;
            } else {
                at += whole_bytes;
            }
        }
    }

    /// Counts, and says whether it is refused.
    fn note(&mut self) -> bool {
        let refused = self.lowering.refuse.load(Ordering::Relaxed);
        if refused {
            self.lowering.refused.fetch_add(1, Ordering::Relaxed);
        }
        if !self.noted {
            self.noted = true;
            self.lowering.sessions.fetch_add(1, Ordering::Relaxed);
            let (user, database) = (&self.user, &self.database);
            let client = self.client;
            tracing::warn!(%client, user, database, refused, "a session lowers synchronous_commit");
        }
        self.lowering.counted.notify_one();
        refused
    }
}

/// The length of the message at the beginning, type included, once its header is there.
fn message_bytes(bytes: &[u8]) -> Option<usize> {
    let ([_, length @ ..], _) = bytes.split_first_chunk::<HEADER>()?;
    let length = usize::try_from(u32::from_be_bytes(*length)).unwrap_or(usize::MAX);
    // A length below 4 ends the session elsewhere; here it must only lead on.
    Some(length.saturating_add(1).max(HEADER))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(tag: u8, body: &[u8]) -> Vec<u8> {
        let length = u32::try_from(body.len() + 4).unwrap();
        [&[tag], &length.to_be_bytes()[..], body].concat()
    }

    fn statements(lowering: &Lowering) -> Statements<'_> {
        let parameters = vec![("user".to_owned(), "app".to_owned())];
        Statements::new(lowering, ClientId(1), &Startup { minor: 0, parameters })
    }

    /// What reaches the server of a stream that arrives in pieces of `piece_bytes`.
    fn passed(lowering: &Lowering, stream: &[u8], piece_bytes: usize) -> Vec<u8> {
        let mut statements = statements(lowering);
        let (mut sent, mut buffer) = (Vec::new(), Vec::new());
        for piece in stream.chunks(piece_bytes) {
            buffer.extend_from_slice(piece);
            let ready = statements.look(&mut buffer, 0);
            sent.extend(buffer.drain(..ready));
            assert!(buffer.len() < STATEMENT_BYTES_MAX, "no more is held back");
        }
        assert!(buffer.is_empty(), "the stream ends with a whole message");
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

    #[test]
    fn lengths_that_make_no_sense_lead_on() {
        let lowering = Lowering::default();
        for length in [0_u32, 3, u32::MAX] {
            let mut buffer = [&b"Q"[..], &length.to_be_bytes(), b"abc"].concat();
            assert!(statements(&lowering).look(&mut buffer, 0) >= HEADER);
        }
    }
}
