//! What a query string does to its session, read from its text alone.
//!
//! Whoever lends one server connection to many clients must know which statements leave something
//! behind: [`look`] says it, and errs to "it leaves something". It takes
//! `standard_conforming_strings` for on, and the text to be in an encoding in which ASCII bytes
//! stand only for themselves ([`is_readable_encoding`]). A session in which that is otherwise is to
//! be kept without a look.
//!
//! Not seen is what no text shows: what a function, a procedure or a trigger does, and what a `DO`
//! block builds from pieces.

mod classify;
mod scan;
mod settings;
mod standby;
mod token;
mod word;

#[cfg(test)]
mod tests;

pub use classify::look;
pub use standby::reads_on_standby;

/// What a query string does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Look<'a> {
    /// It is exactly one statement.
    pub single: bool,
    /// What that statement is; of several statements [`Kind::Several`], or [`Kind::ResetAll`] if
    /// that is among them and nothing else is that touches settings.
    pub kind: Kind<'a>,
    /// What it leaves in the session, if anything that the caller cannot keep by itself.
    pub leaves: Option<Leaves>,
    /// There is a COMMIT, END, COMMIT PREPARED or PREPARE TRANSACTION in it: while it runs, it may
    /// wait for a synchronous standby. (So may any statement outside of a transaction.)
    pub commits: bool,
    /// It asks for `currval` or `lastval`. Outside of the transaction in which `nextval` was called
    /// these answer for whoever had the server before.
    pub asks_sequence: bool,
}

/// The statements that a pooler treats in a way of their own. Names and values are as they stand in
/// the text; names compare in any case.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind<'a> {
    /// Nothing but blanks and comments.
    Empty,
    /// BEGIN, START TRANSACTION.
    Begin,
    /// COMMIT, END; also with AND CHAIN.
    Commit,
    /// ROLLBACK, ABORT; also with AND CHAIN.
    Rollback,
    /// ROLLBACK TO SAVEPOINT: settings made since the savepoint are undone.
    RollbackTo,
    /// PREPARE TRANSACTION.
    PrepareTransaction,
    /// COMMIT PREPARED, ROLLBACK PREPARED.
    EndPrepared,
    /// A setting of the session. `SET name TO value` has the effect of the statement: `name` is
    /// made of letters, digits, `_`, `$` and dots, `value` is a list of literals as in the text.
    Set {
        /// The setting: also of SET TIME ZONE (`timezone`), NAMES, SCHEMA, XML OPTION, and of
        /// `SELECT set_config('name', 'value', false)`.
        name: &'a [u8],
        /// The text of its value.
        value: &'a [u8],
    },
    /// SET LOCAL, SET TRANSACTION, SET CONSTRAINTS: nothing that outlives the transaction.
    SetLocal,
    /// RESET name, SET name TO DEFAULT: the value that the session began with.
    Reset(&'a [u8]),
    /// RESET ALL.
    ResetAll,
    /// DISCARD ALL.
    DiscardAll,
    /// DISCARD PLANS, SEQUENCES or TEMP.
    Discard,
    /// DEALLOCATE name, as in the text and with its quotes.
    Deallocate(&'a [u8]),
    /// DEALLOCATE ALL.
    DeallocateAll,
    /// SHOW.
    Show,
    /// It only reads, and calls only functions that are known to do no more.
    Read,
    /// More than one statement.
    Several,
    /// Anything else.
    Other,
}

/// What a statement leaves in its session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Leaves {
    /// LISTEN.
    Listen,
    /// An advisory lock of the session.
    AdvisoryLock,
    /// A temporary table, view or sequence.
    Temporary,
    /// PREPARE.
    PreparedStatement,
    /// DECLARE … WITH HOLD.
    HeldCursor,
    /// LOAD.
    Library,
    /// SET ROLE, SET SESSION AUTHORIZATION.
    Role,
    /// A setting that cannot be told from the text, or a function that sets something.
    Setting,
    /// Settings, or what ends prepared statements, among several statements.
    AmongSeveral,
    /// A setting that changes how statements are read: `standard_conforming_strings`, or an
    /// encoding that is not readable.
    Reading,
    /// The text can be read in more than one way, or runs code in another language.
    Unclear,
}

impl Leaves {
    /// In words, for a message: "… leaves <this> in the session".
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Leaves::Listen => "a LISTEN",
            Leaves::AdvisoryLock => "an advisory lock",
            Leaves::Temporary => "a temporary object",
            Leaves::PreparedStatement => "a prepared statement",
            Leaves::HeldCursor => "a cursor WITH HOLD",
            Leaves::Library => "a loaded library",
            Leaves::Role => "another role",
            Leaves::Setting => "a setting that its text does not tell",
            Leaves::AmongSeveral => "a setting made by one of several statements",
            Leaves::Reading => "another way to read strings",
            Leaves::Unclear => "what its text does not tell",
        }
    }
}

/// Whether a query string ends a transaction, so that it may wait for a synchronous standby while
/// it runs.
#[must_use]
pub fn is_commit(text: &[u8]) -> bool {
    look(text).commits
}

/// Whether [`look`] can read texts in this `client_encoding`: in these a byte of ASCII may be the
/// second one of a character.
#[must_use]
pub fn is_readable_encoding(name: &[u8]) -> bool {
    const OTHERS: [&[u8]; 17] = [
        b"sjis",
        b"shiftjis",
        b"mskanji",
        b"win932",
        b"windows932",
        b"shiftjis2004",
        b"sjis2004",
        b"big5",
        b"win950",
        b"windows950",
        b"gbk",
        b"win936",
        b"windows936",
        b"uhc",
        b"win949",
        b"windows949",
        b"johab",
    ];
    // PostgreSQL compares names of encodings by their letters and digits.
    let plain = || name.iter().filter(|byte| byte.is_ascii_alphanumeric());
    let is = |other: &[u8]| plain().map(u8::to_ascii_lowercase).eq(other.iter().copied());
    !is(b"gb18030") && !OTHERS.iter().any(|other| is(other))
}
