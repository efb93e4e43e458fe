//! A transaction whose server is lost, and which surely did not commit: its client stays connected
//! and is told so, in the words in which a server would fail a transaction.

use pgproto::wire::{Cut, ErrorResponse, Severity, TransactionStatus};

use super::client::ClientSide;
use super::effect::{Effect, effect_of};
use super::messages::{body, message, ready_for_query, text};
use super::pipeline::Expect;
use super::server::ServerSide;
use super::up::need;
use super::{LinkError, Output};

/// What a client is told whose transaction surely did not commit.
pub const SERIALIZATION_FAILURE: &str = "40001";
const IN_FAILED_TRANSACTION: &str = "25P02";
const FAILED_MESSAGE: &str =
    "current transaction is aborted, commands ignored until end of transaction block";

/// Where such a client stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Aborted {
    /// It is in a transaction block, which only a rollback ends.
    block: bool,
    /// What it still has to be told with its next statement.
    untold: Option<String>,
    /// Everything up to the next Sync is ignored.
    skipping: bool,
    /// How the unnamed statement, and the unnamed portal, ends the block.
    parsed_end: Option<End>,
    bound_end: Option<End>,
}

/// What a server takes in a failed transaction. A rollback to a savepoint is not possible here: the
/// savepoint is gone with the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Commit,
    Rollback,
}

impl End {
    fn of(effect: &Effect) -> Option<End> {
        match effect {
            Effect::Commit => Some(End::Commit),
            Effect::Rollback => Some(End::Rollback),
            _ => None,
        }
    }
}

fn error(sqlstate: &str, message: &str, hint: Option<&str>, out: &mut Output) {
    let error = ErrorResponse { severity: Severity::Error, sqlstate, message, hint };
    out.down.extend(error.to_bytes());
}

fn tell(why: &str, out: &mut Output) {
    let message = format!("{why}; the transaction was not committed");
    error(SERIALIZATION_FAILURE, &message, Some("Repeat the transaction."), out);
}

impl ServerSide {
    /// The server is lost, for the reason `why`, and [`ServerSide::fate`] is `NotCommitted`, with
    /// the client between two messages: what it is owed is answered by errors, and its transaction
    /// is one that failed.
    pub fn abort(mut self, client: &mut ClientSide, why: &str, out: &mut Output) {
        let block = self.status != TransactionStatus::Idle;
        let mut aborted = Aborted {
            block,
            untold: Some(why.to_owned()),
            skipping: false,
            parsed_end: None,
            bound_end: None,
        };
        // After an error that it was told, the client has only the Sync to come.
        let mut skipping = self.skipping;
        while let Some(expect) = self.pipeline.0.pop_front() {
            let ready = matches!(
                expect,
                Expect::Query { .. } | Expect::Function { .. } | Expect::Sync { .. }
            );
            let fails = !matches!(expect, Expect::Sync { .. } | Expect::Ours) && !skipping;
            if fails {
                aborted.fail(out);
            }
            if ready {
                ready_for_query(&mut out.down, if block { b'E' } else { b'I' });
            }
            skipping = (fails || skipping) && !ready;
            self.undo(client, expect);
        }
        // What was sent and is not outstanding was answered; a Sync is still to come.
        aborted.skipping = skipping;
        if self.unsynced && !skipping {
            aborted.fail(out);
            aborted.skipping = true;
        }
        client.pinned = (client.mode == super::PoolMode::Session).then_some(super::Pin::Session);
        client.unnamed = None;
        client.aborted = (block || aborted.skipping).then(|| Box::new(aborted));
    }
}

impl ClientSide {
    /// Answers a client whose transaction was lost, as far as messages are there, until it has
    /// ended it. From then on it needs a server for its next statement.
    ///
    /// # Errors
    /// [`LinkError::Client`], [`LinkError::Message`].
    pub fn sent_aborted(&mut self, input: &mut &[u8], out: &mut Output) -> Result<(), LinkError> {
        while let Some(mut aborted) = self.aborted.take() {
            let cut = self.cutter.next(input, need);
            let ended = match cut.map_err(LinkError::Client)? {
                None => {
                    self.aborted = Some(aborted);
                    return Ok(());
                }
                Some(Cut::More { .. }) => false,
                Some(Cut::Begin { tag: b'X', .. }) => {
                    self.goodbye = true;
                    return Ok(());
                }
                Some(Cut::Begin { tag, bytes, .. }) => aborted.take(self, tag, bytes, out)?,
            };
            if !ended {
                self.aborted = Some(aborted);
            }
        }
        Ok(())
    }
}

impl Aborted {
    /// One error: the reason first, then as a server goes on.
    fn fail(&mut self, out: &mut Output) {
        match self.untold.take() {
            Some(why) => tell(&why, out),
            None => error(IN_FAILED_TRANSACTION, FAILED_MESSAGE, None, out),
        }
    }

    /// Ends the block; `false` if by an error. A commit whose client has not been told yet that its
    /// transaction failed is told so now: drivers take the answer ROLLBACK for a success.
    fn end(&mut self, end: End, out: &mut Output) -> bool {
        self.block = false;
        match (end, self.untold.take()) {
            (End::Commit, Some(why)) => {
                tell(&why, out);
                false
            }
            (End::Commit, None) | (End::Rollback, _) => {
                message(&mut out.down, b'C', &[b"ROLLBACK\0"]);
                true
            }
        }
    }

    fn status(&self) -> u8 {
        if self.block { b'E' } else { b'I' }
    }

    /// Takes one message; `true` if nothing is left of the transaction.
    fn take(
        &mut self,
        client: &ClientSide,
        tag: u8,
        bytes: &[u8],
        out: &mut Output,
    ) -> Result<bool, LinkError> {
        if self.skipping && tag != b'S' {
            return Ok(false);
        }
        let no_end = LinkError::Message { tag, why: "its text has no end" };
        match tag {
            b'S' => {
                self.skipping = false;
                ready_for_query(&mut out.down, self.status());
                return Ok(!self.block);
            }
            b'Q' => {
                let (sql, _) = text(body(bytes)).ok_or(no_end)?;
                let ended = End::of(&effect_of(sql)).map(|end| self.end(end, out));
                if ended.is_none() {
                    self.fail(out);
                }
                ready_for_query(&mut out.down, self.status());
                return Ok(!self.block);
            }
            b'P' => {
                let (name, tail) = text(body(bytes)).ok_or(no_end.clone())?;
                let (sql, _) = text(tail).ok_or(no_end)?;
                self.parsed_end = End::of(&effect_of(sql)).filter(|_| name.is_empty());
                self.answer(self.parsed_end.is_some(), b'1', out);
            }
            b'B' => {
                let (_, after) = text(body(bytes)).ok_or(no_end.clone())?;
                let (name, _) = text(after).ok_or(no_end)?;
                let known = client.statements.get(name);
                self.bound_end = if name.is_empty() {
                    self.parsed_end
                } else {
                    known.and_then(|statement| End::of(&statement.effect))
                };
                self.answer(self.bound_end.is_some(), b'2', out);
            }
            b'D' => self.answer(self.bound_end.or(self.parsed_end).is_some(), b'n', out),
            b'C' => self.answer(true, b'3', out),
            b'E' => match self.bound_end.take() {
                Some(end) => self.skipping = !self.end(end, out),
                None => {
                    self.fail(out);
                    self.skipping = true;
                }
            },
            b'F' => {
                self.fail(out);
                ready_for_query(&mut out.down, self.status());
            }
            // Flush, and COPY data that was on its way.
            _ => {}
        }
        Ok(false)
    }

    fn answer(&mut self, well: bool, tag: u8, out: &mut Output) {
        if well {
            message(&mut out.down, tag, &[]);
        } else {
            self.fail(out);
            self.skipping = true;
        }
    }
}
