//! Single reads of a client of the primary's port, which replicas answer.
//!
//! A replica is asked on trial: as long as the client has been told nothing, the primary can be
//! asked the same. The client's next message waits meanwhile, since it may be the primary's.

use std::task::Context;

use route::Round;
use route::link::{Fate, Heard, Output, ServerSide, Trial};

use super::{Farewell, Pooled};
use crate::words;

/// Where a read stands.
#[derive(Debug)]
enum Stage {
    /// There is a connection, whose settings are perhaps not the client's yet.
    Lent(Box<Trial>),
    /// The request was sent.
    Asked(Box<Trial>),
    /// The answer goes to the client as it comes.
    Answered,
    /// The replica gave an error, and may have something to say yet; the primary is next.
    Failed(Box<Trial>),
}

/// What is kept for a client whose reads are split.
#[derive(Debug, Default)]
pub(super) struct Split {
    /// The last question to the primary that was begun when the client's last write ended.
    written: Round,
    stage: Option<Stage>,
    /// A replica failed, so that the next request goes to the primary.
    to_primary: bool,
}

impl Split {
    /// Whether the connection is a replica's.
    pub(super) fn is_at_replica(&self) -> bool {
        self.stage.is_some()
    }
}

impl Pooled<'_> {
    /// Whether the client has a connection to a replica, for one statement.
    pub(super) fn is_at_replica(&self) -> bool {
        self.split.as_deref().is_some_and(Split::is_at_replica)
    }

    /// Whether all that a replica is needed for has been said.
    pub(super) fn replica_is_done(&self) -> bool {
        let stage = self.split.as_deref().and_then(|split| split.stage.as_ref());
        matches!(stage, Some(Stage::Answered | Stage::Failed(_)))
    }

    pub(super) fn leaves_replica(&mut self) {
        if let Some(split) = self.split.as_deref_mut() {
            split.stage = None;
        }
    }

    /// Whether a replica may be asked for what these bytes are.
    pub(super) fn may_ask_replica(&self, bytes: &[u8]) -> bool {
        let splits = self.split.as_deref().is_some_and(|split| !split.to_primary);
        splits && self.side.asks_to_read(bytes)
    }

    /// Asks for a connection for this read; `true` if there is one now, to whomever.
    pub(super) fn want_read(
        &mut self,
        request: &[u8],
        cx: &mut Context<'_>,
    ) -> Result<bool, Farewell> {
        let written = self.split.as_deref().map(|split| split.written).unwrap_or_default();
        // Each round takes a dead connection off the pool, so there is an end.
        loop {
            match self.place.hub.want_read(self.place.id, self.pool.id, written) {
                Ok((connection, is_replica)) => {
                    if !self.begin(connection, cx)? {
                        continue;
                    }
                    if let Some(split) = self.split.as_deref_mut().filter(|_| is_replica) {
                        let trial = Trial::new(&self.side, request);
                        split.stage = Some(Stage::Lent(Box::new(trial)));
                    }
                    return Ok(true);
                }
                Err(since) => {
                    self.wait(since);
                    return Ok(false);
                }
            }
        }
    }

    /// Sends the replica its request, which `rest` begins with, and no more.
    pub(super) fn pass_to_replica(
        &mut self,
        rest: &mut &[u8],
        cx: &mut Context<'_>,
    ) -> Result<bool, Farewell> {
        let Some(split) = self.split.as_deref_mut() else {
            return Ok(false);
        };
        match split.stage.take() {
            Some(Stage::Lent(trial)) => {
                let (mut request, after) = rest.split_at(trial.request_bytes().min(rest.len()));
                split.stage = Some(Stage::Asked(trial));
                self.send_up(&mut request, cx)?;
                *rest = after;
            }
            other => split.stage = other,
        }
        Ok(false)
    }

    /// Takes what the replica says.
    pub(super) fn hear(&mut self, bytes: &[u8], cx: &mut Context<'_>) -> Result<(), Farewell> {
        let Some(split) = self.split.as_deref_mut() else {
            return Ok(());
        };
        match split.stage.take() {
            Some(Stage::Asked(mut trial)) => match trial.hear(bytes) {
                Heard::Part => {
                    split.stage = Some(Stage::Asked(trial));
                    Ok(())
                }
                Heard::Answer => {
                    split.stage = Some(Stage::Answered);
                    self.give_replicas_answer(&trial.take_heard(), cx)
                }
                Heard::Error => {
                    let heard = trial.take_heard();
                    split.stage = Some(Stage::Failed(trial));
                    self.take_unseen(&heard);
                    Ok(())
                }
                Heard::Altered => {
                    self.drop_link();
                    self.ask_primary(*trial);
                    Ok(())
                }
            },
            Some(Stage::Failed(trial)) => {
                split.stage = Some(Stage::Failed(trial));
                self.take_unseen(bytes);
                Ok(())
            }
            other => {
                split.stage = other;
                self.give_replicas_answer(bytes, cx)
            }
        }
    }

    /// An answer to the client, or to our own settings of its session.
    fn give_replicas_answer(&mut self, bytes: &[u8], cx: &mut Context<'_>) -> Result<(), Farewell> {
        self.give_answer(bytes, cx)?;
        if self.side.pinned().is_some() && self.is_at_replica() {
            // The answer was too long to be kept until this was known.
            return Err(Some(words::set_on_replica()));
        }
        Ok(())
    }

    /// Books what the client is not told.
    fn take_unseen(&mut self, bytes: &[u8]) {
        let Some(link) = self.link.as_deref_mut() else {
            return;
        };
        let kept = std::mem::take(&mut link.inbox);
        let all = [&kept, bytes].concat();
        let (mut rest, mut out) = (all.as_slice(), Output::default());
        let taken = link.side.server_sent(&mut self.side, &mut rest, &mut out);
        link.inbox = rest.to_vec();
        if taken.is_err() {
            // It ends the session with its error, mostly.
            self.repeat_at_primary();
        }
    }

    /// The connection does not go on. If the client has been told nothing, the primary is asked in
    /// the replica's place; `false` if it has, or if the replica may have become a primary and have
    /// written something.
    pub(super) fn repeat_at_primary(&mut self) -> bool {
        let fate = self.link.as_ref().map_or(Fate::Nothing, |link| link.side.fate());
        let Some(split) = self.split.as_deref_mut() else {
            return false;
        };
        let trial = match split.stage.take() {
            Some(Stage::Asked(trial)) if fate != Fate::Unknown => Some(trial),
            Some(Stage::Failed(trial)) => Some(trial),
            // The request is still with the client's other bytes.
            Some(Stage::Lent(_)) => {
                split.to_primary = true;
                None
            }
            told => {
                split.stage = told;
                return false;
            }
        };
        self.drop_link();
        if let Some(trial) = trial {
            self.ask_primary(*trial);
        }
        true
    }

    /// The request goes to the primary, before anything that the client has sent since.
    fn ask_primary(&mut self, trial: Trial) {
        let mut request = trial.give_up(&mut self.side);
        request.append(&mut self.inbox);
        self.inbox = request;
        if let Some(split) = self.split.as_deref_mut() {
            split.to_primary = true;
        }
    }

    /// The connection is given back.
    pub(super) fn loan_ends(&mut self, server: &ServerSide) {
        let Some(split) = self.split.as_deref_mut() else {
            return;
        };
        let wrote = self.side.take_wrote();
        let stage = split.stage.take();
        // Nothing is written on a replica.
        if wrote && (stage.is_none() || server.is_promoted()) {
            split.written = self.place.hub.rounds.last();
        }
        match stage {
            None => split.to_primary = false,
            Some(Stage::Failed(trial)) => self.ask_primary(*trial),
            Some(Stage::Lent(_) | Stage::Asked(_) | Stage::Answered) => {}
        }
    }
}
