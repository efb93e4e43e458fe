//! What clients are told.

use pgproto::wire::{ErrorResponse, Severity};
use route::{CutReason, Refusal};

use crate::chosen::NoSuchRoute;
use crate::secure::NotWelcome;
use crate::time_limits::Doing;

const ADMIN_SHUTDOWN: &str = "57P01";
const OUTCOME_UNKNOWN: &str = "08007";
const PROTOCOL_VIOLATION: &str = "08P01";
const INSUFFICIENT_PRIVILEGE: &str = "42501";
const LOWERED: &str = "synchronous_commit below on is refused by the proxy";
const LOWERED_HINT: &str = "Such commits may be lost in a failover; \
     pgherd.refuse_lowered_commit in the dynamic configuration says that they are refused.";

/// Why a session ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ending {
    /// The router cut it.
    Cut(CutReason),
    /// Its server closed the connection.
    ServerLost,
    /// The proxy stops.
    Shutdown,
    /// An operator wants it.
    Killed,
}

/// What happened.
pub(crate) fn why(ending: Ending) -> &'static str {
    match ending {
        Ending::Cut(CutReason::Planned) => "the primary has stepped down",
        Ending::Cut(CutReason::Unplanned) => "the primary has changed",
        Ending::ServerLost => "the server closed the connection",
        Ending::Shutdown => "the proxy is shutting down",
        Ending::Killed => "an operator of the proxy ended it",
    }
}

/// The message for a client whose commit did not wait for its standby, since that was cancelled.
pub(crate) fn standby_not_awaited() -> Vec<u8> {
    let message = "the wait for the synchronous standby was cancelled; \
         the transaction is committed on the primary, and may be lost in a failover";
    fatal(OUTCOME_UNKNOWN, message, "Reconnect and look whether it took effect.")
}

/// The last message of a session; `in_doubt` if a statement's outcome is not known.
pub(crate) fn ending(ending: Ending, in_doubt: bool) -> Vec<u8> {
    let why = why(ending);
    if in_doubt {
        let message = format!("{why}; the outcome of the last statement is unknown");
        return fatal(OUTCOME_UNKNOWN, &message, "Reconnect and look whether it took effect.");
    }
    let message = format!("terminating connection: {why}");
    fatal(ADMIN_SHUTDOWN, &message, "Nothing was in progress; reconnect.")
}

/// The message for a client that wants to be led where nothing is.
pub(crate) fn no_such_route(error: &NoSuchRoute) -> Vec<u8> {
    fatal("22023", &error.to_string(), "Leave it out to be led by the port.")
}

/// The message for a client beyond the limit.
pub(crate) fn too_many_clients(limit: usize) -> Vec<u8> {
    let hint = format!("Its limit is {limit} clients.");
    fatal("53300", "the proxy has too many clients already", &hint)
}

/// The message for a client beyond the limit of its user.
pub(crate) fn too_many_of_user(user: &str, limit: usize) -> Vec<u8> {
    let message = format!("too many clients of the user \"{user}\" at the proxy");
    fatal("53300", &message, &format!("client_limit_per_user is {limit}."))
}

/// The last message for a client that did something for too long, or nothing; `in_doubt` if a
/// statement's outcome is not known.
pub(crate) fn too_long(doing: Doing, in_doubt: bool) -> Vec<u8> {
    match doing {
        Doing::Message => fatal(
            PROTOCOL_VIOLATION,
            "terminating connection: a message was begun and not ended in time",
            "client_login_timeout limits it.",
        ),
        Doing::Transaction => fatal(
            "25P03",
            "terminating connection due to idle-in-transaction timeout",
            "idle_transaction_timeout limits it; the transaction was not committed.",
        ),
        Doing::Statement | Doing::Cancelled if in_doubt => fatal(
            OUTCOME_UNKNOWN,
            "query_timeout has passed; the outcome of the last statement is unknown",
            "Reconnect and look whether it took effect.",
        ),
        Doing::Statement | Doing::Cancelled => fatal(
            "57014",
            "terminating connection: a statement ran for longer than query_timeout",
            "It did not end when it was cancelled; nothing of its transaction is committed.",
        ),
        Doing::Idle | Doing::Other => fatal(
            "57P05",
            "terminating connection due to idle-session timeout",
            "client_idle_timeout limits it; nothing was in progress, reconnect.",
        ),
    }
}

/// The message for a client that is not let in so.
pub(crate) fn not_welcome(error: &NotWelcome) -> Option<Vec<u8>> {
    let sqlstate = error.sqlstate()?;
    Some(fatal(sqlstate, &error.to_string(), "The connection is closed."))
}

/// The message for a client that is not served.
pub(crate) fn refusal(refusal: &Refusal) -> Vec<u8> {
    fatal(&refusal.sqlstate, &refusal.message, &refusal.hint)
}

/// The message for a client whose bytes make no sense.
pub(crate) fn violation(error: &dyn std::error::Error) -> Vec<u8> {
    fatal(PROTOCOL_VIOLATION, &error.to_string(), "Reconnect; the connection is closed.")
}

/// The message for a client whose startup packet lowers `synchronous_commit`.
pub(crate) fn lowered_startup() -> Vec<u8> {
    fatal(INSUFFICIENT_PRIVILEGE, LOWERED, LOWERED_HINT)
}

/// The last message of a session that has `synchronous_commit` lowered from its beginning.
pub(crate) fn lowered_session() -> Vec<u8> {
    refusal(&lowered_pool())
}

/// Why nobody is served whose sessions have it lowered from their beginning.
pub(crate) fn lowered_pool() -> Refusal {
    Refusal {
        sqlstate: INSUFFICIENT_PRIVILEGE.to_owned(),
        message:
            "synchronous_commit is below on for this role or database, which the proxy refuses"
                .to_owned(),
        hint: LOWERED_HINT.to_owned(),
    }
}

/// The last message of a session in which a function set what only a replica knows now.
pub(crate) fn set_on_replica() -> Vec<u8> {
    let message =
        "a function set a parameter of the session in a statement that a replica answered";
    let hint = "read_write_split is on: call such functions in a transaction block.";
    fatal("0A000", message, hint)
}

/// What the server gets in place of a statement that lowers `synchronous_commit`.
pub(crate) fn lowered_statement(message: &[u8]) -> Vec<u8> {
    pgproto::lowered::refusal(message, INSUFFICIENT_PRIVILEGE, LOWERED, LOWERED_HINT)
}

fn fatal(sqlstate: &str, message: &str, hint: &str) -> Vec<u8> {
    ErrorResponse { severity: Severity::Fatal, sqlstate, message, hint: Some(hint) }.to_bytes()
}
