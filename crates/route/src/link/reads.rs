//! Single statements that only read: what can be asked of a replica in the primary's place, and
//! asked again of the primary if the replica fails.
//!
//! What a replica says is kept until its whole answer is there, or too long to be kept. Until then
//! the client has been told nothing, and the same bytes can go to the primary.

use std::sync::Arc;

use pgproto::sql::{is_readable_encoding, reads_on_standby};
use pgproto::wire::{Cut, Cutter, sqlstate_of};

use super::SMALL_BYTES_MAX;
use super::client::{ClientSide, PoolMode};
use super::messages::{body, text};
use super::server::ServerSide;
use super::settings::Settings;
use super::statements::Prepared;

/// A longer request is the primary's: a copy of it is kept while the replica is asked.
const REQUEST_BYTES_MAX: usize = 32 * 1024;
/// A longer answer is given to the client as it comes.
const ANSWER_BYTES_MAX: usize = 16 * 1024;
/// The client, or a limit of time that it set, wants the statement to end.
const QUERY_CANCELED: &str = "57014";
/// What a server reports of itself, since PostgreSQL 14.
pub(super) const IN_HOT_STANDBY: &str = "in_hot_standby";

impl ClientSide {
    /// The client's reads may go to replicas, which it does not notice.
    #[must_use]
    pub fn splitting(mut self, splits: bool) -> ClientSide {
        self.splits = splits;
        self
    }

    /// Whether these bytes, which begin where the last ones that were taken ended, are one request
    /// and nothing else, whose only statement reads what a replica has too.
    #[must_use]
    pub fn asks_to_read(&self, bytes: &[u8]) -> bool {
        bytes.len() <= REQUEST_BYTES_MAX
            && self.cutter.at_boundary()
            && self.mode != PoolMode::Session
            && self.pinned.is_none()
            && self.aborted.is_none()
            && self.wanted.suit_replicas()
            && self.is_one_read(bytes).unwrap_or(false)
    }

    /// `None` if it is not all there.
    fn is_one_read(&self, mut bytes: &[u8]) -> Option<bool> {
        let mut cutter = Cutter::default();
        let mut next = || match cutter.next(&mut bytes, |_, total| total) {
            Ok(Some(Cut::Begin { tag, bytes, rest: 0 })) => Some((tag, body(bytes))),
            Ok(_) | Err(_) => None,
        };
        let first = next()?;
        let reads = match first {
            (b'Q', body) => reads_on_standby(text(body)?.0),
            _ => self.is_one_execution(first, &mut next)?,
        };
        Some(reads && bytes.is_empty())
    }

    /// Parse, Bind, Describe, Execute, Sync, by the unnamed statement or one that is prepared
    /// already, and by the unnamed portal.
    fn is_one_execution<'a>(
        &self,
        first: (u8, &'a [u8]),
        next: &mut impl FnMut() -> Option<(u8, &'a [u8])>,
    ) -> Option<bool> {
        let mut message = first;
        let mut parsed = None;
        if let (b'P', body) = message {
            let (name, tail) = text(body)?;
            if !name.is_empty() {
                return Some(false);
            }
            parsed = Some(text(tail)?.0);
            message = next()?;
        }
        // A statement may be described before it is bound.
        if message.0 == b'D' {
            message = next()?;
        }
        let (b'B', bind) = message else {
            return Some(false);
        };
        let (portal, after) = text(bind)?;
        if !portal.is_empty() || !self.bound_reads(parsed, text(after)?.0) {
            return Some(false);
        }
        message = next()?;
        if message.0 == b'D' {
            message = next()?;
        }
        let executes = message.0 == b'E' && message.1.first() == Some(&0);
        Some(executes && next()?.0 == b'S')
    }

    /// Whether the statement that is bound reads: the one that was just parsed, or one of before.
    fn bound_reads(&self, parsed: Option<&[u8]>, name: &[u8]) -> bool {
        let known = match (parsed, name.is_empty()) {
            (Some(sql), true) => return reads_on_standby(sql),
            (Some(_), false) => None,
            (None, true) => self.unnamed.as_ref(),
            (None, false) => self.statements.get(name),
        };
        known.is_some_and(|statement| statement.reads_on_standby())
    }

    /// Whether something may have been written in its name since this was last asked.
    pub fn take_wrote(&mut self) -> bool {
        std::mem::take(&mut self.wrote)
    }
}

impl Settings {
    /// Whether a session with these can be a replica's: none takes serializable transactions. And
    /// whether statements can be read at all.
    fn suit_replicas(&self) -> bool {
        let plain = |name: &str| self.0.get(name).map(|value| value.trim_matches('\''));
        let serializable = |value: &str| value.eq_ignore_ascii_case("serializable");
        !plain("default_transaction_isolation").is_some_and(serializable)
            && plain("client_encoding").is_none_or(|name| is_readable_encoding(name.as_bytes()))
            && plain("standard_conforming_strings").is_none_or(|v| v.eq_ignore_ascii_case("on"))
    }
}

impl ServerSide {
    /// Whether it says that it is no standby any more: what its clients did may have been written.
    #[must_use]
    pub fn is_promoted(&self) -> bool {
        self.reported.0.get(IN_HOT_STANDBY).is_some_and(|value| value == "off")
    }
}

/// A request that a replica is asked.
#[derive(Debug)]
pub struct Trial {
    request: Vec<u8>,
    /// The client's unnamed statement before it.
    unnamed: Option<Arc<Prepared>>,
    /// What the replica said, and how far it was looked at.
    heard: Vec<u8>,
    looked: usize,
    cutter: Cutter,
    /// The statement has been executed, and a parameter has changed in the session.
    completed: bool,
    altered: bool,
    /// The replica has become a primary.
    promoted: bool,
}

/// What a replica's words are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Heard {
    /// Not enough to tell.
    Part,
    /// The client's answer.
    Answer,
    /// An error: the primary may do better. The connection can be used again once it is at rest.
    Error,
    /// An answer, by which something was set in the session; the primary is to do that. The
    /// connection is of no use any more.
    Altered,
}

impl Trial {
    /// Before the request is sent.
    #[must_use]
    pub fn new(client: &ClientSide, request: &[u8]) -> Trial {
        Trial {
            request: request.to_vec(),
            unnamed: client.unnamed.clone(),
            heard: Vec::new(),
            looked: 0,
            cutter: Cutter::default(),
            completed: false,
            altered: false,
            promoted: false,
        }
    }

    /// How long the request is.
    #[must_use]
    pub fn request_bytes(&self) -> usize {
        self.request.len()
    }

    /// Takes what the replica says.
    pub fn hear(&mut self, bytes: &[u8]) -> Heard {
        self.heard.extend_from_slice(bytes);
        let mut rest = &self.heard[self.looked..];
        let mut verdict = None;
        while verdict.is_none() {
            match self.cutter.next(&mut rest, need) {
                Ok(Some(Cut::Begin { tag: b'E', bytes, .. })) => {
                    let canceled = sqlstate_of(body(bytes)) == Some(QUERY_CANCELED);
                    // What was done may have been written, if it is a primary by now.
                    let given = canceled || self.completed;
                    verdict = Some(if given { Heard::Answer } else { Heard::Error });
                }
                Ok(Some(Cut::Begin { tag: b'C', .. })) => self.completed = true,
                Ok(Some(Cut::Begin { tag: b'S', bytes, .. })) => match text(body(bytes)) {
                    Some((name, _)) if name == IN_HOT_STANDBY.as_bytes() => self.promoted = true,
                    Some(_) | None => self.altered = true,
                },
                Ok(Some(Cut::Begin { tag: b'Z', .. })) => {
                    // What a primary did may have been written, and is not done again.
                    let again = self.altered && !self.promoted;
                    verdict = Some(if again { Heard::Altered } else { Heard::Answer });
                }
                Ok(Some(Cut::Begin { .. } | Cut::More { .. })) => {}
                Ok(None) => break,
                Err(_) => verdict = Some(Heard::Error),
            }
        }
        self.looked = self.heard.len() - rest.len();
        let too_long = self.heard.len() > ANSWER_BYTES_MAX;
        verdict.unwrap_or(if too_long { Heard::Answer } else { Heard::Part })
    }

    /// What was heard, none of which the client was told.
    pub fn take_heard(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.heard)
    }

    /// The request, for the primary. The client is as it was before.
    pub fn give_up(self, client: &mut ClientSide) -> Vec<u8> {
        client.unnamed = self.unnamed;
        self.request
    }
}

fn need(tag: u8, _total: usize) -> usize {
    if matches!(tag, b'E' | b'S') { SMALL_BYTES_MAX } else { 0 }
}
