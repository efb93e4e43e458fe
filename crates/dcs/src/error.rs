//! Error classes: what a caller may conclude from a failed call.

use tonic::{Code, ConnectError, Status};
use types::{Millis, Revision};

use crate::txn::Txn;

/// A failed call.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// The settings are wrong; nothing was tried.
    #[error("etcd settings: {0}")]
    Config(String),
    /// No member could be reached, so nothing was executed.
    #[error("etcd: {operation}: no member of {endpoints} could be reached in {limit}: {detail}")]
    NotSent {
        /// What was tried.
        operation: &'static str,
        /// Where.
        endpoints: String,
        /// For how long.
        limit: Millis,
        /// What came back last.
        detail: String,
    },
    /// A call that changes nothing, or may be repeated freely, had no answer.
    #[error("etcd: {operation}: no answer from {endpoints} in {limit}: {detail}")]
    Unanswered {
        /// What was tried.
        operation: &'static str,
        /// Where.
        endpoints: String,
        /// For how long.
        limit: Millis,
        /// What came back last.
        detail: String,
    },
    /// A write was sent and not answered: it may or may not have happened, or may still happen.
    #[error(
        "etcd: {} was sent but not answered, it may have happened: {}; read before going on",
        .0.operation, .0.detail
    )]
    Ambiguous(Box<Ambiguity>),
    /// etcd answered that it did not do it.
    #[error("etcd refused {operation}: {detail}{}", .reason.hint())]
    Refused {
        /// What was tried.
        operation: &'static str,
        /// Why it was refused.
        reason: Refusal,
        /// etcd's text.
        detail: String,
    },
    /// The answer breaks the protocol or one of our limits.
    #[error("etcd: {operation}: unusable answer: {detail}")]
    Malformed {
        /// What was tried.
        operation: &'static str,
        /// What is wrong with it.
        detail: String,
    },
    /// The session has no lease: none was granted yet, or it was lost.
    #[error("etcd: {operation} needs a lease and the session has none; grant one first")]
    NoLease {
        /// What was tried.
        operation: &'static str,
    },
}

/// A write without an answer, with what is needed to find out what became of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ambiguity {
    /// What was tried.
    pub operation: &'static str,
    /// What came back, or how long nothing did.
    pub detail: String,
    /// The transaction, if it was one.
    pub txn: Option<Txn>,
    /// The newest revision known before the write was sent: what it wrote is newer.
    pub floor: Revision,
}

/// Why etcd refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Refusal {
    /// The lease does not exist (any more).
    LeaseNotFound,
    /// The revision asked for was compacted away.
    Compacted,
    /// User, password or token were not accepted.
    Authentication,
    /// The user may not do this.
    Permission,
    /// The store is full.
    NoSpace,
    /// Anything else.
    Other,
}

impl Refusal {
    fn hint(self) -> &'static str {
        match self {
            Refusal::LeaseNotFound | Refusal::Compacted | Refusal::Other => "",
            Refusal::Authentication => "; check username and password of the etcd section",
            Refusal::Permission => "; grant the user readwrite on the cluster's prefix",
            Refusal::NoSpace => "; compact and defragment etcd, then disarm its alarm",
        }
    }
}

impl Error {
    /// Whether the write may have happened.
    #[must_use]
    pub fn is_ambiguous(&self) -> bool {
        matches!(self, Error::Ambiguous(_))
    }

    /// Whether etcd as a whole did not answer (as against: it answered, and said no).
    #[must_use]
    pub fn is_outage(&self) -> bool {
        matches!(self, Error::NotSent { .. } | Error::Unanswered { .. } | Error::Ambiguous(_))
    }

    /// The reason of a refusal.
    #[must_use]
    pub fn refusal(&self) -> Option<Refusal> {
        match self {
            Error::Refused { reason, .. } => Some(*reason),
            Error::Config(_)
            | Error::NotSent { .. }
            | Error::Unanswered { .. }
            | Error::Ambiguous(_)
            | Error::Malformed { .. }
            | Error::NoLease { .. } => None,
        }
    }
}

/// What one attempt on one endpoint came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Fault {
    /// No connection: certainly not executed.
    NotSent(String),
    /// Sent, no usable answer: perhaps executed.
    Unanswered(String),
    /// Answered, not executed, and another member may do better.
    Elsewhere(String),
    /// Not executed; the token is no longer good.
    Token(String),
    /// Not executed; no member will say otherwise.
    Final(Refusal, String),
}

impl Fault {
    pub(crate) fn detail(&self) -> &str {
        match self {
            Fault::NotSent(text)
            | Fault::Unanswered(text)
            | Fault::Elsewhere(text)
            | Fault::Token(text)
            | Fault::Final(_, text) => text,
        }
    }
}

/// Sorts a status into its class. The texts are part of the API of etcd (`rpctypes`): its
/// own clients compare them too.
pub(crate) fn classify(status: &Status) -> Fault {
    if is_connect_error(status) {
        return Fault::NotSent(chain(status));
    }
    let text = status.message().to_owned();
    let says = |part: &str| text.contains(part);
    match status.code() {
        Code::NotFound if says("lease not found") => Fault::Final(Refusal::LeaseNotFound, text),
        Code::OutOfRange if says("has been compacted") => Fault::Final(Refusal::Compacted, text),
        // A member that is behind its peers.
        Code::OutOfRange if says("future revision") => Fault::Elsewhere(text),
        Code::PermissionDenied => Fault::Final(Refusal::Permission, text),
        Code::Unauthenticated => Fault::Token(text),
        Code::InvalidArgument if says("authentication failed") => {
            Fault::Final(Refusal::Authentication, text)
        }
        Code::InvalidArgument
            if says("user name is empty") || says("revision in header is old") =>
        {
            Fault::Token(text)
        }
        Code::ResourceExhausted if says("space exceeded") => Fault::Final(Refusal::NoSpace, text),
        Code::ResourceExhausted => Fault::Elsewhere(text),
        // Answered before anything was proposed to the other members.
        Code::Unavailable if says("etcdserver: no leader") || says("not capable") => {
            Fault::Elsewhere(text)
        }
        Code::FailedPrecondition if says("not leader") || says("primary lessor") => {
            Fault::Elsewhere(text)
        }
        Code::Unavailable
        | Code::Unknown
        | Code::Cancelled
        | Code::Internal
        | Code::DeadlineExceeded
        | Code::Aborted
        | Code::DataLoss => Fault::Unanswered(chain(status)),
        _ => Fault::Final(Refusal::Other, text),
    }
}

fn is_connect_error(status: &Status) -> bool {
    let mut source = std::error::Error::source(status);
    while let Some(error) = source {
        if error.is::<ConnectError>() {
            return true;
        }
        source = error.source();
    }
    false
}

/// Message and innermost cause, as transport errors say little in their first line.
fn chain(status: &Status) -> String {
    let mut innermost = None;
    let mut source = std::error::Error::source(status);
    while let Some(error) = source {
        innermost = Some(error.to_string());
        source = error.source();
    }
    match innermost {
        Some(cause) if cause != status.message() && !status.message().is_empty() => {
            format!("{}: {cause}", status.message())
        }
        Some(cause) => cause,
        None if status.message().is_empty() => format!("{:?}", status.code()),
        None => status.message().to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn etcds_texts_are_sorted_into_classes() {
        let elsewhere = classify(&Status::unavailable("etcdserver: no leader"));
        assert!(matches!(elsewhere, Fault::Elsewhere(_)));
        // These three may hide an executed write.
        for text in [
            "etcdserver: request timed out",
            "etcdserver: leader changed",
            "etcdserver: request timed out, possibly due to previous leader failure",
        ] {
            let fault = classify(&Status::unavailable(text));
            assert!(matches!(fault, Fault::Unanswered(_)), "{text}");
        }
        let lease = classify(&Status::not_found("etcdserver: requested lease not found"));
        assert!(matches!(lease, Fault::Final(Refusal::LeaseNotFound, _)));
        let text = "etcdserver: mvcc: required revision has been compacted";
        let compacted = classify(&Status::out_of_range(text));
        assert!(matches!(compacted, Fault::Final(Refusal::Compacted, _)));
        let token = classify(&Status::unauthenticated("etcdserver: invalid auth token"));
        assert!(matches!(token, Fault::Token(_)));
        let text = "etcdserver: authentication failed, invalid user ID or password";
        let password = classify(&Status::invalid_argument(text));
        assert!(matches!(password, Fault::Final(Refusal::Authentication, _)));
    }
}
