//! What the two streams of one session say together.
//!
//! The one promise that counts: [`Exchange::answer_owed`] is never `false` while the server may
//! still do something that the client has not been told of. Where the protocol leaves doubt (SQL is
//! not read here) it errs to `true`.

use super::frame::{FrameError, FrameScanner, Step};

/// What ReadyForQuery says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum TransactionStatus {
    /// In no transaction.
    Idle,
    /// In a transaction.
    InTransaction,
    /// In a transaction that failed.
    Failed,
}

impl TransactionStatus {
    fn parse(byte: u8) -> Option<TransactionStatus> {
        match byte {
            b'I' => Some(TransactionStatus::Idle),
            b'T' => Some(TransactionStatus::InTransaction),
            b'E' => Some(TransactionStatus::Failed),
            _ => None,
        }
    }
}

/// Follows a session after its startup packet. Feed it the client's bytes *before* they go to the
/// server and the server's bytes *after* they went to the client; then it errs to the safe side.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Exchange {
    client: FrameScanner,
    server: FrameScanner,
    /// What ReadyForQuery says, of the server message that is read here.
    status_byte: Option<u8>,
    keeps: bool,
    status: Option<TransactionStatus>,
    last_server_tag: Option<u8>,
    /// ReadyForQuery messages that the client's Query, Sync and FunctionCall messages will bring.
    owed: u64,
    /// Messages of the extended protocol since the last Sync.
    unsynced: bool,
    /// The last request came as Query, not by the extended protocol.
    simple: bool,
    /// The server asked for COPY data and the client has not ended it.
    copying_in: bool,
    terminated: bool,
}

impl Exchange {
    /// Takes bytes that the client sent.
    ///
    /// # Errors
    /// [`FrameError`]: the client's stream is broken; end the session.
    pub fn client_sent(&mut self, mut bytes: &[u8]) -> Result<(), FrameError> {
        loop {
            match self.client.advance(&mut bytes)? {
                // From the first byte on: whether the rest arrives is not known here.
                Step::Begun { tag, .. } => self.client_began(tag),
                Step::Body(_) | Step::Ended { .. } => {}
                Step::NeedMore => return Ok(()),
            }
        }
    }

    /// Takes bytes of the server that were handed to the client.
    ///
    /// # Errors
    /// [`FrameError`]: the server's stream is broken; end the session.
    pub fn server_sent(&mut self, mut bytes: &[u8]) -> Result<(), FrameError> {
        loop {
            match self.server.advance(&mut bytes)? {
                Step::Begun { tag, body_bytes } => {
                    self.keeps = tag == b'Z' && body_bytes == 1;
                    self.status_byte = None;
                }
                Step::Body(piece) if self.keeps => self.status_byte = piece.first().copied(),
                Step::Body(_) => {}
                Step::Ended { tag } => self.server_ended(tag),
                Step::NeedMore => return Ok(()),
            }
        }
    }

    /// Whether the server owes the client an answer, so that the fate of a statement may be open.
    /// Authentication owes nothing.
    #[must_use]
    pub fn answer_owed(&self) -> bool {
        self.owed > 0 || self.unsynced
    }

    /// Whether the client stands between two of the server's messages, so that one of our own can
    /// follow.
    #[must_use]
    pub fn client_at_boundary(&self) -> bool {
        self.server.at_boundary()
    }

    /// Whether everything that was sent by the extended protocol is executed, and its transaction
    /// ends: a commit may be waiting for a synchronous standby.
    #[must_use]
    pub fn ends_transaction(&self) -> bool {
        self.owed > 0 && !self.simple && self.last_server_tag == Some(b'C')
    }

    /// Whether the client said goodbye.
    #[must_use]
    pub fn terminated(&self) -> bool {
        self.terminated
    }

    /// Whether the last whole message to the client was an error: a server that closes then has
    /// said why.
    #[must_use]
    pub fn ended_with_error(&self) -> bool {
        self.server.at_boundary() && self.last_server_tag == Some(b'E')
    }

    /// The status of the last ReadyForQuery; `None` until authentication is done.
    #[must_use]
    pub fn status(&self) -> Option<TransactionStatus> {
        self.status
    }

    fn client_began(&mut self, tag: u8) {
        match tag {
            // Query and FunctionCall.
            b'Q' | b'F' => {
                self.owed += 1;
                self.simple = true;
            }
            // Sync closes what the extended protocol began; it is answered even if nothing was.
            b'S' => {
                self.owed += 1;
                self.unsynced = false;
                self.simple = false;
            }
            // Parse, Bind, Execute, Describe, Close, Flush.
            b'P' | b'B' | b'E' | b'D' | b'C' | b'H' => {
                self.unsynced = true;
                self.simple = false;
            }
            b'c' | b'f' if self.copying_in => self.copy_ended(),
            b'X' => self.terminated = true,
            // COPY data and authentication answers; a type that nobody knows brings its own error.
            _ => {}
        }
    }

    /// A server in COPY-in ignores Sync (PostgreSQL, "COPY Operations"): of the ones sent so far
    /// none will be answered, but the Query that began the COPY will be.
    fn copy_ended(&mut self) {
        self.copying_in = false;
        self.owed = u64::from(self.simple);
        self.unsynced = !self.simple;
    }

    fn server_ended(&mut self, tag: u8) {
        self.last_server_tag = Some(tag);
        match tag {
            b'G' => self.copying_in = true,
            b'Z' => {
                // The first one ends authentication and answers nothing.
                if self.status.is_some() {
                    self.owed = self.owed.saturating_sub(1);
                }
                let status = self.status_byte.and_then(TransactionStatus::parse);
                // A status that nobody knows counts as the one with the most at stake.
                self.status = Some(status.unwrap_or(TransactionStatus::InTransaction));
                self.copying_in = false;
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(tag: u8, body: &[u8]) -> Vec<u8> {
        let length = u32::try_from(body.len() + 4).expect("small");
        [&[tag], &length.to_be_bytes()[..], body].concat()
    }

    fn ready(status: u8) -> Vec<u8> {
        message(b'Z', &[status])
    }

    fn open() -> Exchange {
        let mut exchange = Exchange::default();
        exchange.client_sent(&message(b'p', b"proof")).expect("valid");
        assert_eq!((exchange.answer_owed(), exchange.status()), (false, None));
        let key = message(b'K', &[0, 0, 0, 7, 1, 2, 3, 4]);
        let hello = [message(b'R', &[0; 4]), key, ready(b'I')].concat();
        exchange.server_sent(&hello).expect("valid");
        exchange
    }

    fn tags(exchange: &mut Exchange, client: bool, tags: &[u8]) {
        for tag in tags {
            let bytes = message(*tag, b"I");
            let taken =
                if client { exchange.client_sent(&bytes) } else { exchange.server_sent(&bytes) };
            taken.expect("valid");
        }
    }

    #[test]
    fn authentication_owes_nothing() {
        let exchange = open();
        assert_eq!(exchange.status(), Some(TransactionStatus::Idle));
        assert!(!exchange.answer_owed() && exchange.client_at_boundary());
    }

    #[test]
    fn a_query_is_owed_from_its_first_byte_to_the_end_of_ready() {
        let mut exchange = open();
        let query = message(b'Q', b"commit\0");
        exchange.client_sent(&query[..5]).expect("valid");
        assert!(exchange.answer_owed());
        exchange.client_sent(&query[5..]).expect("valid");
        let answer = [message(b'C', b"COMMIT\0"), ready(b'T')].concat();
        let (most, last) = answer.split_at(answer.len() - 1);
        exchange.server_sent(most).expect("valid");
        assert!(exchange.answer_owed() && !exchange.client_at_boundary());
        exchange.server_sent(last).expect("valid");
        assert!(!exchange.answer_owed() && exchange.client_at_boundary());
        assert_eq!(exchange.status(), Some(TransactionStatus::InTransaction));
    }

    #[test]
    fn pipelines_owe_one_ready_for_each_sync() {
        let mut exchange = open();
        tags(&mut exchange, true, b"PBDESBES");
        tags(&mut exchange, false, b"12T");
        assert!(!exchange.ends_transaction());
        tags(&mut exchange, false, b"C");
        assert!(exchange.ends_transaction());
        tags(&mut exchange, false, b"Z");
        assert!(exchange.answer_owed() && !exchange.ends_transaction());
        tags(&mut exchange, false, b"2CZ");
        assert!(!exchange.answer_owed());
        tags(&mut exchange, true, b"PBE");
        assert!(exchange.answer_owed(), "executed before any Sync");
    }

    #[test]
    fn copy_in_by_either_protocol_ends_balanced() {
        for (begin, end) in [(&b"Q"[..], &b"dc"[..]), (b"PBDES", b"dcS"), (b"PBDES", b"dfS")] {
            let mut exchange = open();
            tags(&mut exchange, true, begin);
            tags(&mut exchange, false, b"G");
            assert!(exchange.answer_owed());
            tags(&mut exchange, true, end);
            assert!(exchange.answer_owed());
            tags(&mut exchange, false, b"CZ");
            assert!(!exchange.answer_owed(), "{begin:?}");
        }
    }

    #[test]
    fn goodbyes_and_last_words_are_noticed() {
        let mut exchange = open();
        exchange.server_sent(&message(b'E', b"SFATAL\0\0")).expect("valid");
        assert!(exchange.ended_with_error());
        exchange.client_sent(&message(b'X', b"")).expect("valid");
        assert!(exchange.terminated());
        assert!(exchange.client_sent(b"Q\0\0\0\0").is_err());
    }

    /// A small generator (xorshift): the tests of a pure crate draw no randomness from outside.
    fn next(seed: &mut u64) -> u64 {
        *seed ^= *seed << 13;
        *seed ^= *seed >> 7;
        *seed ^= *seed << 17;
        *seed
    }

    #[test]
    fn random_streams_in_random_splits_end_as_whole_ones_do() {
        for start in 1..200u64 {
            let mut seed = start;
            let mut stream = Vec::new();
            for _ in 0..1 + next(&mut seed) % 30 {
                let tag = b"KZDGEC1T"[usize::try_from(next(&mut seed) % 8).expect("small")];
                let body = vec![b'I'; usize::try_from(next(&mut seed) % 300).expect("small")];
                stream.extend(message(tag, &body));
            }
            let mut whole = Exchange::default();
            whole.server_sent(&stream).expect("valid");
            let mut split = Exchange::default();
            let mut rest = stream.as_slice();
            while !rest.is_empty() {
                let most = u64::try_from(rest.len()).expect("small").min(40);
                let take = usize::try_from(1 + next(&mut seed) % most).expect("small");
                split.server_sent(&rest[..take]).expect("valid");
                rest = &rest[take..];
            }
            assert_eq!(split, whole, "seed {start}");
            assert!(whole.client_at_boundary());
        }
    }
}
