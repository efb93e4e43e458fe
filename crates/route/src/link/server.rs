//! The server's end of a conversation, lent or not.

use std::collections::BTreeMap;
use std::sync::Arc;

use pgproto::wire::{Cut, Cutter, TransactionStatus};

use super::Output;
use super::client::ClientSide;
use super::effect::Effect;
use super::messages::{body, message, parameter_status, text};
use super::pipeline::{Expect, Fate, Pipeline};
use super::reads::IN_HOT_STANDBY;
use super::settings::{Reported, Settings};
use super::statements::{Kept, Prepared};

/// What lasts as long as a server connection.
#[derive(Debug)]
pub struct ServerSide {
    pub(crate) cutter: Cutter,
    pub(crate) status: TransactionStatus,
    pub(crate) pipeline: Pipeline,
    /// The statements that it has, and how many it may have.
    pub(crate) kept: Kept,
    pub(crate) kept_max: usize,
    /// What its unnamed statement is.
    pub(crate) unnamed: Option<Arc<Prepared>>,
    pub(crate) portal: Option<Arc<Prepared>>,
    pub(crate) portals: BTreeMap<Vec<u8>, Arc<Prepared>>,
    /// The settings that were applied to its session.
    pub(crate) applied: Arc<Settings>,
    /// What it reports.
    pub(crate) reported: Arc<Reported>,
    /// After an error it ignores everything up to the next Sync.
    pub(crate) skipping: bool,
    /// Messages of the extended protocol were sent since the last Sync, and ones that may commit.
    pub(crate) unsynced: bool,
    pub(crate) wrote: bool,
    pub(crate) copying_in: bool,
    pub(crate) transaction: Transaction,
    /// Settings that a client's messages must wait for.
    pub(crate) settling: Option<Arc<Settings>>,
    pub(crate) ours_failed: Option<Vec<u8>>,
    /// The message that passes in pieces is not for the client.
    pub(crate) hides: bool,
    /// How often it was ready for a query.
    pub(crate) rounds: u32,
    /// It answered what nobody asked: the books are not to be trusted.
    pub(crate) odd: bool,
    pub(crate) answers: Answers,
}

/// What a server has done for its clients; queries of ours do not count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Answers {
    /// Queries answered, each a simple one or what ends with a Sync.
    pub queries: u64,
    /// Transactions ended.
    pub transactions: u64,
    /// Statements that it was given because a client had prepared them elsewhere.
    pub prepared_again: u64,
}

/// The transaction that goes on, as far as settings made in it matter.
#[derive(Debug, Default)]
pub(crate) struct Transaction {
    /// Session settings whose fate is the transaction's.
    pub(crate) staged: Vec<Effect>,
    /// What the server reported before it reported something else.
    pub(crate) reported_before: Option<Arc<Reported>>,
    pub(crate) in_block: bool,
    pub(crate) saw_error: bool,
    pub(crate) rolled_back: bool,
    pub(crate) to_savepoint: bool,
}

impl ServerSide {
    /// A connection that has just signed in, with what it reports; it keeps at most so many
    /// prepared statements.
    #[must_use]
    pub fn new(reported: Arc<Reported>, statements_max: usize) -> ServerSide {
        ServerSide {
            cutter: Cutter::default(),
            status: TransactionStatus::Idle,
            pipeline: Pipeline::default(),
            kept: Kept::default(),
            kept_max: statements_max.max(1),
            unnamed: None,
            portal: None,
            portals: BTreeMap::new(),
            applied: Arc::default(),
            reported,
            skipping: false,
            unsynced: false,
            wrote: false,
            copying_in: false,
            transaction: Transaction::default(),
            settling: None,
            ours_failed: None,
            hides: false,
            rounds: 0,
            odd: false,
            answers: Answers::default(),
        }
    }

    /// What it reports now.
    #[must_use]
    pub fn reported(&self) -> &Arc<Reported> {
        &self.reported
    }

    /// Puts an equal value, which others have too, in the place of what it reports, and of what the
    /// client was told if that is the same.
    pub fn share_reported(&mut self, client: &mut ClientSide, shared: Arc<Reported>) {
        if Arc::ptr_eq(&client.told, &self.reported) {
            client.told = shared.clone();
        }
        self.reported = shared;
    }

    /// Whether nothing is owed and nothing has begun. A pin is the client's, not seen here.
    #[must_use]
    pub fn is_at_rest(&self) -> bool {
        self.pipeline.is_empty()
            && self.status == TransactionStatus::Idle
            && !self.unsynced
            && !self.copying_in
            && !self.odd
            && self.cutter.at_boundary()
    }

    /// Whether the client is in a transaction, or waits for an answer.
    #[must_use]
    pub fn is_busy(&self) -> bool {
        !self.pipeline.is_empty() || self.status != TransactionStatus::Idle || self.unsynced
    }

    /// What it has done since this was last asked.
    pub fn take_answers(&mut self) -> Answers {
        std::mem::take(&mut self.answers)
    }

    /// Whether something runs.
    #[must_use]
    pub fn owes_answer(&self) -> bool {
        !self.pipeline.is_empty()
    }

    /// How often it was ready for a query, modulo 2^32: another number means that another statement
    /// runs, if one does.
    #[must_use]
    pub fn rounds(&self) -> u32 {
        self.rounds
    }

    /// Whether the client stands between two of the server's messages.
    #[must_use]
    pub fn client_at_boundary(&self) -> bool {
        self.cutter.at_boundary() || self.hides
    }

    /// Whether what runs may be a commit that is there already and waits for a synchronous standby,
    /// as far as the protocol shows it.
    #[must_use]
    pub fn may_wait_for_standby(&self) -> bool {
        match self.pipeline.front() {
            Some(Expect::Query { effect, may_commit }) => *may_commit && *effect == Effect::Commit,
            Some(Expect::Execute { prepared, may_commit }) => {
                *may_commit && prepared.as_ref().is_some_and(|p| p.effect == Effect::Commit)
            }
            // Everything was executed, the transaction ends.
            Some(Expect::Sync { may_commit }) => *may_commit,
            _ => false,
        }
    }

    /// Whether a commit may happen in what runs.
    #[must_use]
    pub fn may_commit(&self) -> bool {
        self.pipeline.may_commit()
    }

    /// Takes what the server says to nobody: new values of parameters, and notices. `false` if it
    /// is anything else, or not whole: it is not to be lent any more.
    pub fn said_unasked(&mut self, bytes: &[u8]) -> bool {
        let mut rest = bytes;
        while let Ok(Some(Cut::Begin { tag, bytes, rest: 0 })) =
            self.cutter.next(&mut rest, |_, total| total)
        {
            let strings = text(body(bytes)).and_then(|(name, rest)| Some((name, text(rest)?.0)));
            match (tag, strings) {
                (b'S', Some((name, value))) => Reported::note(
                    &mut self.reported,
                    &String::from_utf8_lossy(name),
                    &String::from_utf8_lossy(value),
                ),
                (b'N', _) => {}
                _ => return false,
            }
        }
        rest.is_empty()
    }

    /// Whether the client's messages must wait for an answer to a query of ours.
    #[must_use]
    pub fn is_settling(&self) -> bool {
        matches!(self.pipeline.front(), Some(Expect::Ours))
    }

    /// What became of the transaction, should the server be lost now.
    #[must_use]
    pub fn fate(&self) -> Fate {
        let begun = self.status != TransactionStatus::Idle || self.unsynced;
        match self.pipeline.0.iter().all(|expect| matches!(expect, Expect::Ours)) {
            true if !begun => Fate::Nothing,
            _ if self.pipeline.may_commit() => Fate::Unknown,
            _ => Fate::NotCommitted,
        }
    }

    /// Whether the session is in a transaction block whatever becomes of what is outstanding.
    pub(crate) fn surely_in_block(&self) -> bool {
        self.status != TransactionStatus::Idle && !self.pipeline.may_end_block()
    }

    /// Begins a loan: asks for the client's settings if the session has others, and tells the
    /// client what it does not know of the server. While [`ServerSide::is_settling`], the client's
    /// messages wait.
    pub fn lend_to(&mut self, client: &mut ClientSide, out: &mut Output) {
        debug_assert!(self.is_at_rest(), "lent while {self:?}");
        let same = Arc::ptr_eq(&self.applied, &client.wanted) || self.applied == client.wanted;
        if same {
            self.tell_news(client, out);
            return;
        }
        let sql = self.applied.change_to(&client.wanted);
        self.settling = Some(client.wanted.clone());
        self.ask(&sql, out);
    }

    /// Whether the session of a client that keeps the connection is no more what the client wants:
    /// it was taken back to the connection's beginning, which is not the client's. Then it is lent
    /// anew.
    #[must_use]
    pub fn must_settle(&self, client: &ClientSide) -> bool {
        client.pinned.is_some()
            && !Arc::ptr_eq(&self.applied, &client.wanted)
            && self.is_at_rest()
            && self.applied != client.wanted
    }

    /// Takes the session back to its beginning; the connection is at rest again, and as new, when
    /// that is answered.
    pub fn discard(&mut self, out: &mut Output) {
        self.kept.clear();
        self.settling = Some(Arc::default());
        self.ask("DISCARD ALL", out);
    }

    fn ask(&mut self, sql: &str, out: &mut Output) {
        message(&mut out.up, b'Q', &[sql.as_bytes(), &[0]]);
        self.unnamed = None;
        self.pipeline.push(Expect::Ours);
    }

    /// Tells the client the values that are not what it was told last.
    pub(crate) fn tell_news(&self, client: &mut ClientSide, out: &mut Output) {
        if Arc::ptr_eq(&client.told, &self.reported) {
            return;
        }
        for (name, value) in client.told.news(&self.reported) {
            if !client.splits || name != IN_HOT_STANDBY {
                parameter_status(&mut out.down, name, value);
            }
        }
        client.told = self.reported.clone();
    }
}
