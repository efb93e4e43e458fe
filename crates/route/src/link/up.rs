//! From the client to the server.

use std::sync::Arc;

use pgproto::lowered;
use pgproto::wire::{Cut, TransactionStatus};

use super::client::{ClientSide, PoolMode, SessionState};
use super::effect::{Effect, effect_of};
use super::messages::{body, message, text};
use super::pipeline::{Expect, OUTSTANDING_MAX};
use super::server::ServerSide;
use super::settings::identifier;
use super::statements::{Prepared, prepared};
use super::{LinkError, Output, SMALL_BYTES_MAX, STATEMENT_BYTES_MAX};

const FEATURE_NOT_SUPPORTED: &str = "0A000";

/// What a conversation needs from outside.
pub trait Help {
    /// The statement of the Parse with this body behind the name, shared by all who have it.
    fn intern(&mut self, tail: &[u8]) -> Arc<Prepared>;
    /// What the server gets instead of this Query or Parse, if it is refused.
    fn replace(&mut self, message: &[u8]) -> Option<Vec<u8>>;
}

/// How much of a message must be there before it can be taken.
pub(crate) fn need(tag: u8, total: usize) -> usize {
    match tag {
        b'Q' | b'P' if total <= STATEMENT_BYTES_MAX => total,
        b'Q' | b'P' | b'B' | b'D' | b'C' | b'E' => SMALL_BYTES_MAX,
        _ => 0,
    }
}

impl ServerSide {
    /// Takes what the client sent, as far as messages are there; what is left of `input` is the
    /// beginning of one that is not, at most [`STATEMENT_BYTES_MAX`].
    ///
    /// # Errors
    /// [`LinkError`]; the conversation is over.
    pub fn client_sent(
        &mut self,
        client: &mut ClientSide,
        input: &mut &[u8],
        out: &mut Output,
        help: &mut dyn Help,
    ) -> Result<(), LinkError> {
        while !client.goodbye && self.pipeline.0.len() < OUTSTANDING_MAX {
            match client.cutter.next(input, need).map_err(LinkError::Client)? {
                None => break,
                Some(Cut::More { bytes, .. }) => {
                    if !client.drops {
                        out.up.extend_from_slice(bytes);
                    }
                }
                Some(Cut::Begin { tag, bytes, rest }) => {
                    client.drops = false;
                    Up { server: self, client, out, help }.begin(tag, bytes, rest)?;
                }
            }
        }
        Ok(())
    }
}

struct Up<'a> {
    server: &'a mut ServerSide,
    client: &'a mut ClientSide,
    out: &'a mut Output,
    help: &'a mut dyn Help,
}

impl Up<'_> {
    fn begin(&mut self, tag: u8, bytes: &[u8], rest: usize) -> Result<(), LinkError> {
        if self.server.skipping && matches!(tag, b'Q' | b'P' | b'B' | b'D' | b'C' | b'E' | b'F') {
            // The server ignores it, so it need not have it.
            self.client.drops = true;
            return Ok(());
        }
        if matches!(tag, b'P' | b'B' | b'D' | b'C' | b'E') {
            self.server.unsynced = true;
        }
        match tag {
            b'Q' => self.query(bytes, rest),
            b'P' => self.parse(bytes, rest),
            b'B' => self.bind(bytes, rest),
            b'D' => self.describe(whole(tag, bytes, rest)?),
            b'C' => self.close(whole(tag, bytes, rest)?),
            b'E' => self.execute(whole(tag, bytes, rest)?),
            b'S' => {
                self.sync(bytes);
                Ok(())
            }
            b'F' => {
                let may_commit = !self.server.surely_in_block();
                self.client.wrote = true;
                self.server.pipeline.push(Expect::Function { may_commit });
                self.pass(bytes);
                Ok(())
            }
            b'c' | b'f' => {
                if std::mem::take(&mut self.server.copying_in) {
                    self.server.pipeline.drop_syncs();
                    // By the extended protocol, another Sync follows.
                    let extended =
                        matches!(self.server.pipeline.front(), Some(Expect::Execute { .. }));
                    self.server.unsynced |= extended;
                    self.server.wrote |= extended;
                }
                self.pass(bytes);
                Ok(())
            }
            b'd' | b'H' => {
                self.pass(bytes);
                Ok(())
            }
            b'X' => {
                self.client.goodbye = true;
                Ok(())
            }
            _ => Err(broken(tag, "no client sends it here")),
        }
    }

    fn pass(&mut self, bytes: &[u8]) {
        self.out.up.extend_from_slice(bytes);
    }

    fn query(&mut self, bytes: &[u8], rest: usize) -> Result<(), LinkError> {
        // A simple query destroys the unnamed statement.
        self.server.unnamed = None;
        if rest > 0 {
            self.client.wrote = true;
            return self.long_statement(
                bytes,
                Expect::Query { effect: Effect::Leaves(LONG), may_commit: true },
            );
        }
        if let Some(instead) = self.help.replace(bytes) {
            return self.refused(&instead);
        }
        let (sql, _) = text(body(bytes)).ok_or(broken(b'Q', "its text has no end"))?;
        let (effect, instead) = self.own_beginning(effect_of(sql));
        if let Some(sql) = instead {
            message(&mut self.out.up, b'Q', &[sql.as_bytes(), &[0]]);
            self.expect_query(effect);
            return Ok(());
        }
        if let Some(why) = self.refuses(&effect) {
            return self.refused(&refusal(bytes, &why));
        }
        match &effect {
            Effect::Leaves(what) => self.client.pin(what),
            // The server knows the statement by another name, and clients share it.
            Effect::Deallocate { name } if self.client.statements.contains_key(name) => {
                message(&mut self.out.up, b'Q', &[b"DEALLOCATE ALL\0"]);
                self.expect_query(effect);
                return Ok(());
            }
            _ => {}
        }
        self.expect_query(effect);
        self.pass(bytes);
        Ok(())
    }

    /// What the client's session began with is not what the connection did: a RESET of such a
    /// parameter goes as a SET.
    fn own_beginning(&self, effect: Effect) -> (Effect, Option<String>) {
        let Effect::Reset { name } = &effect else {
            return (effect, None);
        };
        let Some(value) = self.client.begun_with.0.get(name) else {
            return (effect, None);
        };
        let sql = format!("SET {} TO {value}", identifier(name));
        (Effect::Set { name: name.clone(), value: value.clone() }, Some(sql))
    }

    fn expect_query(&mut self, effect: Effect) {
        let harmless =
            effect.commits_nothing() || (self.server.surely_in_block() && !effect.may_end_block());
        self.client.wrote |= !effect.commits_nothing();
        self.server.pipeline.push(Expect::Query { effect, may_commit: !harmless });
    }

    /// A statement that raises an error goes in its place.
    fn refused(&mut self, instead: &[u8]) -> Result<(), LinkError> {
        self.expect_query(Effect::None);
        self.pass(instead);
        Ok(())
    }

    /// Why a statement with this effect is not taken, if it is not.
    fn refuses(&self, effect: &Effect) -> Option<String> {
        match effect {
            Effect::Leaves(what)
                if self.client.policy == SessionState::Refuse && self.client.pinned.is_none() =>
            {
                Some(format!("{what} is refused by the proxy in this pool mode"))
            }
            Effect::AsksSequence if self.is_first() => Some(SEQUENCE.to_owned()),
            // Outside of one, the settings are applied again before the next statement.
            Effect::ResetAll if self.in_block() && !self.client.begun_with.0.is_empty() => {
                Some("RESET ALL in a transaction is refused by the proxy".to_owned())
            }
            Effect::Begin if self.client.mode == PoolMode::Statement => {
                Some("transaction blocks are not allowed in statement mode".to_owned())
            }
            _ => None,
        }
    }

    /// The session may be in a transaction block when what comes next is executed.
    fn in_block(&self) -> bool {
        self.server.status != TransactionStatus::Idle || self.server.pipeline.has_statement()
    }

    /// The connection was lent for this statement, and may have been another client's before.
    fn is_first(&self) -> bool {
        self.client.pinned.is_none()
            && self.server.status == TransactionStatus::Idle
            && !self.server.pipeline.has_statement()
    }

    /// Too long to be looked into: it passes, and the connection stays with the client.
    fn long_statement(&mut self, bytes: &[u8], expect: Expect) -> Result<(), LinkError> {
        if self.client.policy == SessionState::Refuse && self.client.pinned.is_none() {
            return Err(broken(bytes[0], "longer than 1 MiB, and session_state is refuse"));
        }
        self.client.pin(LONG);
        self.server.pipeline.push(expect);
        self.pass(bytes);
        Ok(())
    }

    fn parse(&mut self, bytes: &[u8], rest: usize) -> Result<(), LinkError> {
        const NO_END: &str = "its name or text has no end";
        let (name, tail) = text(body(bytes)).ok_or(broken(b'P', NO_END))?;
        if rest > 0 {
            self.client.statements.remove(name);
            let expect = Expect::Parse { prepared: None, name: None, hidden: false };
            return self.long_statement(bytes, expect);
        }
        let (sql, _) = text(tail).ok_or(broken(b'P', NO_END))?;
        let (effect, reset) = self.own_beginning(effect_of(sql));
        let instead = self.help.replace(bytes).or_else(|| {
            if let Some(sql) = reset {
                let mut parse = Vec::new();
                message(&mut parse, b'P', &[name, &[0], sql.as_bytes(), &[0, 0, 0]]);
                return Some(parse);
            }
            // When it is executed counts, not when it is prepared.
            let why = self.refuses(&effect).filter(|_| effect != Effect::AsksSequence)?;
            Some(refusal(bytes, &why))
        });
        // What goes in its place is a statement like others; a refusal is one that raises an error.
        let bytes = instead.as_deref().unwrap_or(bytes);
        let (name, tail) = text(body(bytes)).ok_or(broken(b'P', NO_END))?;
        if name.is_empty() {
            let statement = Arc::new(prepared(0, tail));
            self.client.unnamed = Some(statement.clone());
            self.server.unnamed = Some(statement.clone());
            self.expect_parse(Some(statement), None, false);
            self.pass(bytes);
            return Ok(());
        }
        if let Some(known) = self.client.statements.get(name).cloned() {
            // The server says that it exists already, as it would to a client of its own.
            self.ensure(&known);
            self.send_parse(&known.server_name(), &known.tail);
            self.expect_parse(None, None, false);
            return Ok(());
        }
        let statement = self.help.intern(tail);
        let name = name.to_vec();
        self.client.statements.insert(name.clone(), statement.clone());
        if self.server.kept.has(statement.id) {
            self.server.pipeline.push(Expect::SayParsed { name });
            self.server.say_what_is_due(self.out);
        } else {
            self.make_room();
            self.server.kept.add(statement.id);
            self.send_parse(&statement.server_name(), &statement.tail);
            self.expect_parse(Some(statement), Some(name), false);
        }
        Ok(())
    }

    fn expect_parse(
        &mut self,
        prepared: Option<Arc<Prepared>>,
        name: Option<Vec<u8>>,
        hidden: bool,
    ) {
        self.server.pipeline.push(Expect::Parse { prepared, name, hidden });
    }

    fn send_parse(&mut self, name: &str, tail: &[u8]) {
        message(&mut self.out.up, b'P', &[name.as_bytes(), &[0], tail]);
    }

    /// Lets the server have a statement before it is used.
    fn ensure(&mut self, statement: &Arc<Prepared>) {
        if self.server.kept.has(statement.id) {
            return;
        }
        self.make_room();
        self.server.kept.add(statement.id);
        self.server.answers.prepared_again += 1;
        self.send_parse(&statement.server_name(), &statement.tail);
        self.expect_parse(Some(statement.clone()), None, true);
    }

    fn make_room(&mut self) {
        if let Some(id) = self.server.kept.one_too_many(self.server.kept_max) {
            self.server.kept.remove(id);
            let name = format!("Spgherd_{id}\0");
            message(&mut self.out.up, b'C', &[name.as_bytes()]);
            self.server.pipeline.push(Expect::Close { hidden: true });
        }
    }

    /// The client's statement of this name, which the server has from now on.
    fn statement(&mut self, name: &[u8]) -> Option<Arc<Prepared>> {
        if !name.is_empty() {
            let statement = self.client.statements.get(name)?.clone();
            self.ensure(&statement);
            return Some(statement);
        }
        let statement = self.client.unnamed.clone()?;
        let there = self.server.unnamed.as_ref().is_some_and(|u| Arc::ptr_eq(u, &statement));
        if !there {
            self.server.answers.prepared_again += 1;
            self.send_parse("", &statement.tail);
            self.server.unnamed = Some(statement.clone());
            self.expect_parse(Some(statement.clone()), None, true);
        }
        Some(statement)
    }

    fn bind(&mut self, bytes: &[u8], rest: usize) -> Result<(), LinkError> {
        const NO_END: &str = "its names have no end";
        let (portal, after) = text(body(bytes)).ok_or(broken(b'B', NO_END))?;
        let (name, after) = text(after).ok_or(broken(b'B', NO_END))?;
        let statement = self.statement(name);
        match &statement {
            Some(statement) if statement.id > 0 => {
                // The length changes with the name, also if the rest is still to come.
                let server_name = statement.server_name();
                let begin = self.out.up.len();
                message(
                    &mut self.out.up,
                    b'B',
                    &[portal, &[0], server_name.as_bytes(), &[0], after],
                );
                if rest > 0 {
                    let there = self.out.up.len() - begin;
                    let length = u32::try_from(there - 1 + rest).unwrap_or(u32::MAX);
                    self.out.up[begin + 1..begin + 5].copy_from_slice(&length.to_be_bytes());
                }
            }
            // Not known here: the server says so.
            Some(_) | None => self.pass(bytes),
        }
        if portal.is_empty() {
            self.server.portal = statement;
        } else if let Some(statement) = statement {
            self.server.portals.insert(portal.to_vec(), statement);
        }
        self.server.pipeline.push(Expect::Bind);
        Ok(())
    }

    fn describe(&mut self, bytes: &[u8]) -> Result<(), LinkError> {
        let (name, _) = text(body(bytes)).ok_or(broken(b'D', "its name has no end"))?;
        let statement = match name.split_first() {
            Some((b'S', name)) => self.statement(name).filter(|statement| statement.id > 0),
            _ => None,
        };
        match statement {
            Some(statement) => {
                message(&mut self.out.up, b'D', &[b"S", statement.server_name().as_bytes(), &[0]]);
            }
            None => self.pass(bytes),
        }
        self.server.pipeline.push(Expect::Describe);
        Ok(())
    }

    fn close(&mut self, bytes: &[u8]) -> Result<(), LinkError> {
        let (name, _) = text(body(bytes)).ok_or(broken(b'C', "its name has no end"))?;
        if let Some((b'S', name)) = name.split_first()
            && self.client.statements.remove(name).is_some()
        {
            // Others share it, so the server keeps it.
            self.server.pipeline.push(Expect::SayClosed);
            self.server.say_what_is_due(self.out);
            return Ok(());
        }
        if name == b"S" {
            (self.client.unnamed, self.server.unnamed) = (None, None);
        }
        if let Some((b'P', portal)) = name.split_first() {
            self.server.portals.remove(portal);
        }
        self.server.pipeline.push(Expect::Close { hidden: false });
        self.pass(bytes);
        Ok(())
    }

    fn execute(&mut self, bytes: &[u8]) -> Result<(), LinkError> {
        let (portal, _) = text(body(bytes)).ok_or(broken(b'E', "its name has no end"))?;
        let prepared = if portal.is_empty() {
            self.server.portal.clone()
        } else {
            self.server.portals.get(portal).cloned()
        };
        let effect = prepared.as_ref().map(|prepared| &prepared.effect);
        if let Some(Effect::Leaves(what)) = effect {
            self.client.pin(what);
        }
        if effect == Some(&Effect::AsksSequence) && self.is_first() {
            // The server says that there is no such portal, and so fails what it has to.
            message(&mut self.out.up, b'E', &[SEQUENCE.as_bytes(), &[0; 5]]);
            self.server.pipeline.push(Expect::Execute { prepared: None, may_commit: false });
            return Ok(());
        }
        let ends = effect.is_none_or(Effect::may_end_block);
        let writes = effect.is_none_or(|effect| !effect.commits_nothing());
        self.server.wrote |= writes;
        self.client.wrote |= writes;
        self.server.pipeline.push(Expect::Execute { prepared, may_commit: ends });
        self.pass(bytes);
        Ok(())
    }

    fn sync(&mut self, bytes: &[u8]) {
        let wrote = std::mem::take(&mut self.server.wrote);
        let may_commit = wrote && !self.server.surely_in_block();
        self.server.skipping = false;
        self.server.unsynced = false;
        self.server.pipeline.push(Expect::Sync { may_commit });
        self.pass(bytes);
    }
}

const SEQUENCE: &str =
    "currval and lastval outside of a transaction are refused by the proxy in this pool mode";
const LONG: &str = "a statement of more than 1 MiB";

fn broken(tag: u8, why: &'static str) -> LinkError {
    LinkError::Message { tag, why }
}

fn whole(tag: u8, bytes: &[u8], rest: usize) -> Result<&[u8], LinkError> {
    if rest == 0 { Ok(bytes) } else { Err(broken(tag, "its name is too long")) }
}

fn refusal(message: &[u8], why: &str) -> Vec<u8> {
    lowered::refusal(
        message,
        FEATURE_NOT_SUPPORTED,
        why,
        "session_state: pin lets it pass and keeps the server connection for this client.",
    )
}
