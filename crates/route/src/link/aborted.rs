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
    /// The unnamed statement, and the unnamed portal, ends the block.
    parsed_end: bool,
    bound_end: bool,
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
            parsed_end: false,
            bound_end: false,
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
                ready_for_query(&mut out.down, if self.block { b'E' } else { b'I' });
                return Ok(!self.block);
            }
            b'Q' => {
                let (sql, _) = text(body(bytes)).ok_or(no_end)?;
                if ends_block(&effect_of(sql)) {
                    message(&mut out.down, b'C', &[b"ROLLBACK\0"]);
                    ready_for_query(&mut out.down, b'I');
                    return Ok(true);
                }
                self.fail(out);
                ready_for_query(&mut out.down, b'E');
            }
            b'P' => {
                let (name, tail) = text(body(bytes)).ok_or(no_end.clone())?;
                let (sql, _) = text(tail).ok_or(no_end)?;
                self.parsed_end = name.is_empty() && ends_block(&effect_of(sql));
                self.answer(self.parsed_end, b'1', out);
            }
            b'B' => {
                let (_, after) = text(body(bytes)).ok_or(no_end.clone())?;
                let (name, _) = text(after).ok_or(no_end)?;
                let known = client.statements.get(name);
                self.bound_end = if name.is_empty() {
                    self.parsed_end
                } else {
                    known.is_some_and(|statement| ends_block(&statement.effect))
                };
                self.answer(self.bound_end, b'2', out);
            }
            b'D' => self.answer(self.bound_end || self.parsed_end, b'n', out),
            b'C' => self.answer(true, b'3', out),
            b'E' if self.bound_end => {
                message(&mut out.down, b'C', &[b"ROLLBACK\0"]);
                (self.block, self.bound_end) = (false, false);
            }
            b'E' | b'F' => {
                self.fail(out);
                self.skipping = tag == b'E';
                if tag == b'F' {
                    ready_for_query(&mut out.down, b'E');
                }
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

/// What a server takes in a failed transaction. A rollback to a savepoint is not possible here: the
/// savepoint is gone with the server.
fn ends_block(effect: &Effect) -> bool {
    matches!(effect, Effect::Commit | Effect::Rollback)
}
