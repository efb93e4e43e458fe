//! From the server to the client.

use std::sync::Arc;

use pgproto::wire::{Cut, TransactionStatus, is_standby_not_awaited, sqlstate_of};

use super::client::{ClientSide, PoolMode};
use super::effect::Effect;
use super::messages::{body, message, text};
use super::pipeline::Expect;
use super::server::{ServerSide, Transaction};
use super::settings::{Reported, Settings};
use super::{LinkError, Output, SMALL_BYTES_MAX};

fn need(tag: u8, _total: usize) -> usize {
    match tag {
        b'Z' | b'C' | b'S' | b'E' | b'N' => SMALL_BYTES_MAX,
        _ => 0,
    }
}

impl ServerSide {
    /// Takes what the server sent, as far as messages are there; what is left of `input` is the
    /// beginning of one that is not. Messages are passed on as they come.
    ///
    /// # Errors
    /// [`LinkError`]; the conversation is over. What `out` holds is for the client all the same.
    pub fn server_sent(
        &mut self,
        client: &mut ClientSide,
        input: &mut &[u8],
        out: &mut Output,
    ) -> Result<(), LinkError> {
        while let Some(cut) = self.cutter.next(input, need).map_err(|_| LinkError::Server)? {
            match cut {
                Cut::More { bytes, .. } => {
                    if !self.hides {
                        out.down.extend_from_slice(bytes);
                    }
                }
                Cut::Begin { tag, bytes, rest } => {
                    self.hides = self.answered(client, tag, bytes, out)?;
                    if !self.hides {
                        out.down.extend_from_slice(bytes);
                    }
                    self.hides &= rest > 0;
                    self.say_what_is_due(out);
                    if tag == b'Z' && self.pipeline.is_empty() {
                        self.after_ready(client)?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Books one message; `true` if it is not for the client.
    fn answered(
        &mut self,
        client: &mut ClientSide,
        tag: u8,
        bytes: &[u8],
        out: &mut Output,
    ) -> Result<bool, LinkError> {
        let ours = matches!(self.pipeline.front(), Some(Expect::Ours));
        match tag {
            b'Z' => {
                self.rounds = self.rounds.wrapping_add(1);
                self.ready(client, body(bytes).first().copied())?;
                if ours {
                    self.settled(client, out)?;
                } else {
                    self.answers.queries += 1;
                    let ended = self.status == TransactionStatus::Idle;
                    self.answers.transactions += u64::from(ended);
                }
                return Ok(ours);
            }
            b'E' => {
                if ours {
                    self.ours_failed = Some(bytes.to_vec());
                } else if ends_session(body(bytes)) {
                    return Err(LinkError::ServerEnds);
                } else {
                    self.failed(client);
                }
            }
            b'C' => self.completed(client, body(bytes)),
            b'1' => return Ok(self.parsed()),
            b'2' => self.pop(|expect| matches!(expect, Expect::Bind)),
            b'3' => {
                let hidden = matches!(self.pipeline.front(), Some(Expect::Close { hidden: true }));
                self.pop(|expect| matches!(expect, Expect::Close { .. }));
                return Ok(hidden);
            }
            b'T' | b'n' => {
                if matches!(self.pipeline.front(), Some(Expect::Describe)) {
                    self.pop(|_| true);
                }
            }
            b'I' | b's' => {
                if matches!(self.pipeline.front(), Some(Expect::Execute { .. })) {
                    self.pop(|_| true);
                }
            }
            b'G' | b'W' => self.copying_in = true,
            b'S' => return Ok(self.reports(client, body(bytes), ours)),
            b'N' => {
                // Whoever cancelled it: the commit is there, and may be lost in a failover.
                if is_standby_not_awaited(body(bytes)) {
                    return Err(LinkError::StandbyNotAwaited);
                }
            }
            b'D' | b'd' | b'c' | b'H' | b't' | b'V' | b'A' => {}
            _ => return Err(LinkError::Server),
        }
        Ok(ours)
    }

    /// Takes the answer that is due off the books, if it is one of these.
    fn pop(&mut self, is: impl Fn(&Expect) -> bool) {
        if self.pipeline.front().is_some_and(is) {
            self.pipeline.0.pop_front();
        } else {
            self.odd = true;
        }
    }

    fn parsed(&mut self) -> bool {
        match self.pipeline.0.pop_front() {
            Some(Expect::Parse { hidden, .. }) => hidden,
            Some(other) => {
                self.pipeline.0.push_front(other);
                self.odd = true;
                false
            }
            None => {
                self.odd = true;
                false
            }
        }
    }

    /// Says the answers that the server is not asked for, once their turn has come.
    pub(crate) fn say_what_is_due(&mut self, out: &mut Output) {
        loop {
            match self.pipeline.front() {
                Some(Expect::SayParsed { .. }) => message(&mut out.down, b'1', &[]),
                Some(Expect::SayClosed) => message(&mut out.down, b'3', &[]),
                _ => return,
            }
            self.pipeline.0.pop_front();
        }
    }

    /// An error: in the extended protocol the server skips to the next Sync.
    fn failed(&mut self, client: &mut ClientSide) {
        self.transaction.saw_error = true;
        if self.copying_in && !matches!(self.pipeline.front(), Some(Expect::Query { .. })) {
            // A Sync that was sent before this may have been ignored, or not: nobody can know
            // whether one more ReadyForQuery comes.
            self.odd = true;
            client.pin("a COPY that failed half-way");
        }
        self.copying_in = false;
        let simple = matches!(
            self.pipeline.front(),
            None | Some(Expect::Query { .. } | Expect::Function { .. } | Expect::Sync { .. })
        );
        if simple {
            return;
        }
        while let Some(expect) = self.pipeline.0.pop_front() {
            if matches!(expect, Expect::Sync { .. }) {
                self.pipeline.0.push_front(expect);
                return;
            }
            self.undo(client, expect);
        }
        self.skipping = true;
    }

    /// What was counted on, and does not happen.
    pub(crate) fn undo(&mut self, client: &mut ClientSide, expect: Expect) {
        match expect {
            Expect::Parse { prepared: Some(statement), name, .. } => {
                if statement.id > 0 {
                    self.kept.remove(statement.id);
                } else {
                    (self.unnamed, client.unnamed) = (None, None);
                }
                if let Some(name) = name {
                    client.statements.remove(&name);
                }
            }
            Expect::SayParsed { name } => {
                client.statements.remove(&name);
            }
            Expect::Parse { prepared: None, .. }
            | Expect::Query { .. }
            | Expect::Function { .. }
            | Expect::Sync { .. }
            | Expect::Bind
            | Expect::Describe
            | Expect::Execute { .. }
            | Expect::Close { .. }
            | Expect::SayClosed
            | Expect::Ours => {}
        }
    }

    fn completed(&mut self, client: &mut ClientSide, body: &[u8]) {
        match body {
            b"ROLLBACK\0" => self.transaction.rolled_back = true,
            b"COMMIT\0" => self.transaction.rolled_back = false,
            _ => {}
        }
        match self.pipeline.front() {
            Some(Expect::Query { effect, .. }) => {
                let effect = effect.clone();
                self.took_effect(client, effect);
            }
            Some(Expect::Execute { prepared, .. }) => {
                let effect = prepared.as_ref().map(|prepared| prepared.effect.clone());
                self.pipeline.0.pop_front();
                self.took_effect(client, effect.unwrap_or_default());
            }
            Some(Expect::Ours) => {}
            _ => self.odd = true,
        }
    }

    fn took_effect(&mut self, client: &mut ClientSide, effect: Effect) {
        match effect {
            Effect::Set { .. } | Effect::Reset { .. } | Effect::ResetAll => {
                self.transaction.staged.push(effect);
            }
            Effect::Deallocate { name } => {
                if client.statements.remove(&name).is_some() {
                    self.kept.clear();
                }
            }
            Effect::DeallocateAll => {
                client.statements.clear();
                self.kept.clear();
            }
            Effect::DiscardAll => {
                client.discarded();
                self.kept.clear();
                self.applied = Arc::default();
                self.transaction = Transaction::default();
            }
            Effect::None
            | Effect::Rollback
            | Effect::ReadOnly
            | Effect::AsksSequence
            | Effect::Begin
            | Effect::Commit
            | Effect::Leaves(_)
            | Effect::Several => {}
        }
    }

    /// A parameter's new value; `true` if the client knows it already, or need not.
    fn reports(&mut self, client: &mut ClientSide, body: &[u8], ours: bool) -> bool {
        let name = text(body);
        let value = name.and_then(|(_, rest)| text(rest));
        let (Some((name, _)), Some((value, _))) = (name, value) else {
            self.odd = true;
            return false;
        };
        let (name, value) = (String::from_utf8_lossy(name), String::from_utf8_lossy(value));
        if !ours && self.transaction.reported_before.is_none() {
            self.transaction.reported_before = Some(self.reported.clone());
        }
        Reported::note(&mut self.reported, &name, &value);
        if ours {
            // What differs is told when all is settled.
            return true;
        }
        Reported::note(&mut client.told, &name, &value);
        false
    }

    fn ready(&mut self, client: &mut ClientSide, status: Option<u8>) -> Result<(), LinkError> {
        let expected = matches!(
            self.pipeline.front(),
            Some(
                Expect::Query { .. } | Expect::Function { .. } | Expect::Sync { .. } | Expect::Ours
            )
        );
        if expected {
            self.pipeline.0.pop_front();
        } else {
            self.odd = true;
        }
        self.copying_in = false;
        self.status = match status {
            Some(b'I') => TransactionStatus::Idle,
            Some(b'T') => TransactionStatus::InTransaction,
            Some(b'E') => TransactionStatus::Failed,
            _ => return Err(LinkError::Server),
        };
        let transaction = &mut self.transaction;
        if self.status != TransactionStatus::Idle {
            transaction.in_block = true;
            // The block goes on, so it was a rollback to a savepoint.
            if std::mem::take(&mut transaction.rolled_back) {
                transaction.to_savepoint = true;
            }
            return Ok(());
        }
        let ended = std::mem::take(transaction);
        if ended.staged.is_empty()
            && ended.reported_before.as_ref().is_some_and(|before| before.differs(&self.reported))
        {
            client.pin("a parameter that a function set");
        }
        if !ended.staged.is_empty() {
            self.decide_staged(client, ended);
        }
        self.portal = None;
        if !self.portals.is_empty() {
            self.portals.clear();
        }
        Ok(())
    }

    /// The settings made in a transaction last if it was committed.
    fn decide_staged(&mut self, client: &mut ClientSide, ended: Transaction) {
        if ended.rolled_back || (!ended.in_block && ended.saw_error) {
            return;
        }
        if ended.in_block && (ended.saw_error || ended.to_savepoint) {
            client.pin("SET in a transaction with savepoints");
            return;
        }
        let (mut wanted, mut applied) = ((*client.wanted).clone(), (*self.applied).clone());
        for effect in ended.staged {
            apply(&effect, &mut wanted, &client.begun_with, &mut applied);
        }
        // One map for both where they are equal, so that they are found equal at once.
        let wanted = Arc::new(wanted);
        self.applied = if applied == *wanted { wanted.clone() } else { Arc::new(applied) };
        client.wanted = wanted;
    }

    /// A query of ours is answered.
    fn settled(&mut self, client: &mut ClientSide, out: &mut Output) -> Result<(), LinkError> {
        if let Some(error) = self.ours_failed.take() {
            return Err(LinkError::Settings(error));
        }
        if let Some(settings) = self.settling.take() {
            self.applied = settings;
        }
        self.tell_news(client, out);
        Ok(())
    }

    fn after_ready(&self, client: &ClientSide) -> Result<(), LinkError> {
        let block = self.status != TransactionStatus::Idle;
        if block && client.mode == PoolMode::Statement && client.pinned.is_none() {
            return Err(LinkError::Block);
        }
        Ok(())
    }
}

fn apply(effect: &Effect, wanted: &mut Settings, begun: &Settings, applied: &mut Settings) {
    match effect {
        Effect::Set { name, value } => {
            wanted.0.insert(name.clone(), value.clone());
            applied.0.insert(name.clone(), value.clone());
        }
        Effect::Reset { name } => {
            applied.0.remove(name);
            match begun.0.get(name) {
                Some(value) => wanted.0.insert(name.clone(), value.clone()),
                None => wanted.0.remove(name),
            };
        }
        Effect::ResetAll => {
            applied.0.clear();
            *wanted = begun.clone();
        }
        _ => {}
    }
}

/// The server shuts down, has crashed, or an administrator ended the session: what becomes of the
/// transaction is said by us.
fn ends_session(body: &[u8]) -> bool {
    let is_fatal = |field: &[u8]| matches!(field, b"VFATAL" | b"VPANIC");
    body.split(|byte| *byte == 0).any(is_fatal)
        && matches!(sqlstate_of(body), Some("57P01" | "57P02" | "57P03"))
}
