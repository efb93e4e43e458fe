//! What a statement does to its session, as far as a pool has to know.

use pgproto::sql::{Kind, look};

/// One statement string's effect.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Effect {
    /// Nothing that outlasts its transaction.
    #[default]
    None,
    /// Nothing at all: it only reads, so there is nothing to commit.
    ReadOnly,
    /// Begins a transaction block.
    Begin,
    /// Ends one by a commit, or tries to.
    Commit,
    /// Ends one by a rollback.
    Rollback,
    /// One parameter is set for the session, to a value that can be set again elsewhere.
    Set {
        /// The parameter, in lower case.
        name: String,
        /// SQL that may follow `SET name TO`.
        value: String,
    },
    /// One parameter goes back to its default.
    Reset {
        /// The parameter, in lower case.
        name: String,
    },
    /// All parameters go back; there may be other statements with it.
    ResetAll,
    /// The whole session goes back to its beginning.
    DiscardAll,
    /// One statement of the protocol's is given up.
    Deallocate {
        /// Its name.
        name: Vec<u8>,
    },
    /// All are.
    DeallocateAll,
    /// It asks what the session last drew from a sequence: outside of the transaction that drew it,
    /// that may be what another client drew.
    AsksSequence,
    /// Something is left in the session that only this connection has.
    Leaves(&'static str),
    /// Several statements, none of which leaves anything; one may commit.
    Several,
}

impl Effect {
    /// Whether a commit may happen in it though the session is surely in a transaction block.
    pub(crate) fn may_end_block(&self) -> bool {
        match self {
            Effect::Commit | Effect::Several | Effect::ResetAll | Effect::Leaves(_) => true,
            Effect::None
            | Effect::ReadOnly
            | Effect::AsksSequence
            | Effect::Begin
            | Effect::Rollback
            | Effect::Set { .. }
            | Effect::Reset { .. }
            | Effect::DiscardAll
            | Effect::Deallocate { .. }
            | Effect::DeallocateAll => false,
        }
    }

    /// Whether nothing can be committed by it, whatever the session is in.
    pub(crate) fn commits_nothing(&self) -> bool {
        matches!(self, Effect::ReadOnly | Effect::Begin | Effect::Rollback)
    }
}

/// The effect of a statement string.
#[must_use]
pub fn effect_of(sql: &[u8]) -> Effect {
    let seen = look(sql);
    if let Some(leaves) = seen.leaves {
        return Effect::Leaves(leaves.as_str());
    }
    if seen.asks_sequence && seen.single {
        return Effect::AsksSequence;
    }
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    match seen.kind {
        Kind::Read | Kind::Show | Kind::Empty => Effect::ReadOnly,
        Kind::Begin => Effect::Begin,
        Kind::Commit | Kind::PrepareTransaction | Kind::EndPrepared => Effect::Commit,
        Kind::Rollback => Effect::Rollback,
        Kind::Set { name, value } => {
            Effect::Set { name: text(name).to_ascii_lowercase(), value: text(value) }
        }
        Kind::Reset(name) => Effect::Reset { name: text(name).to_ascii_lowercase() },
        // Among several statements: it counts if all of them go well.
        Kind::ResetAll => Effect::ResetAll,
        Kind::DiscardAll => Effect::DiscardAll,
        Kind::Deallocate(name) => Effect::Deallocate { name: folded(name) },
        Kind::DeallocateAll => Effect::DeallocateAll,
        Kind::Several => Effect::Several,
        Kind::SetLocal | Kind::Discard | Kind::RollbackTo | Kind::Other => Effect::None,
    }
}

/// A name as the server reads it.
fn folded(name: &[u8]) -> Vec<u8> {
    match name.strip_prefix(b"\"").and_then(|rest| rest.strip_suffix(b"\"")) {
        Some(quoted) => {
            let mut bytes = Vec::with_capacity(quoted.len());
            let mut rest = quoted.iter();
            while let Some(byte) = rest.next() {
                bytes.push(*byte);
                if *byte == b'"' {
                    rest.next();
                }
            }
            bytes
        }
        None => name.to_ascii_lowercase(),
    }
}
