//! What the server still has to answer.

use std::collections::VecDeque;
use std::sync::Arc;

use super::effect::Effect;
use super::statements::Prepared;

/// Answers that may be outstanding at once. A client that sends on without reading waits.
pub(crate) const OUTSTANDING_MAX: usize = 10_000;

/// What happened to a client's transaction when its server is lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// Nothing had begun.
    Nothing,
    /// It surely did not commit.
    NotCommitted,
    /// It may have.
    Unknown,
}

/// One answer, in the order in which the server gives them.
#[derive(Debug)]
pub(crate) enum Expect {
    /// Up to ReadyForQuery.
    Query { effect: Effect, may_commit: bool },
    /// FunctionCall, up to ReadyForQuery.
    Function { may_commit: bool },
    /// ReadyForQuery.
    Sync { may_commit: bool },
    /// ParseComplete; hidden if the client did not ask for it. `name` is what the client calls it.
    Parse { prepared: Option<Arc<Prepared>>, name: Option<Vec<u8>>, hidden: bool },
    /// BindComplete.
    Bind,
    /// RowDescription or NoData.
    Describe,
    /// CommandComplete and its like.
    Execute { prepared: Option<Arc<Prepared>>, may_commit: bool },
    /// CloseComplete.
    Close { hidden: bool },
    /// The server is not asked: ParseComplete is ours to say, once its turn has come.
    SayParsed { name: Vec<u8> },
    /// CloseComplete is ours to say.
    SayClosed,
    /// A query of ours, up to ReadyForQuery; nothing of it is for the client.
    Ours,
}

impl Expect {
    fn may_commit(&self) -> bool {
        match self {
            Expect::Query { may_commit, .. }
            | Expect::Function { may_commit }
            | Expect::Sync { may_commit }
            | Expect::Execute { may_commit, .. } => *may_commit,
            Expect::Parse { .. }
            | Expect::Bind
            | Expect::Describe
            | Expect::Close { .. }
            | Expect::SayParsed { .. }
            | Expect::SayClosed
            | Expect::Ours => false,
        }
    }

    /// Whether the block that the session was in may be over after it.
    fn may_end_block(&self) -> bool {
        match self {
            Expect::Query { effect, .. } => effect.may_end_block() || *effect == Effect::Rollback,
            Expect::Execute { prepared, .. } => prepared.as_ref().is_none_or(|prepared| {
                prepared.effect.may_end_block() || prepared.effect == Effect::Rollback
            }),
            Expect::Function { .. }
            | Expect::Sync { .. }
            | Expect::Parse { .. }
            | Expect::Bind
            | Expect::Describe
            | Expect::Close { .. }
            | Expect::SayParsed { .. }
            | Expect::SayClosed
            | Expect::Ours => false,
        }
    }
}

/// The answers that are outstanding.
#[derive(Debug, Default)]
pub(crate) struct Pipeline(pub(crate) VecDeque<Expect>);

impl Pipeline {
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn push(&mut self, expect: Expect) {
        self.0.push_back(expect);
    }

    pub(crate) fn front(&self) -> Option<&Expect> {
        self.0.front()
    }

    pub(crate) fn may_commit(&self) -> bool {
        self.0.iter().any(Expect::may_commit)
    }

    /// Whether a statement is among what is outstanding.
    pub(crate) fn has_statement(&self) -> bool {
        let is = |e: &Expect| matches!(e, Expect::Query { .. } | Expect::Execute { .. });
        self.0.iter().any(is)
    }

    pub(crate) fn may_end_block(&self) -> bool {
        self.0.iter().any(Expect::may_end_block)
    }

    /// In COPY from the client, the server ignores Sync (PostgreSQL, "COPY Operations"): of those
    /// sent since the COPY began, none will be answered.
    pub(crate) fn drop_syncs(&mut self) {
        self.0.retain(|expect| !matches!(expect, Expect::Sync { .. }));
    }
}
