//! Transactions: compare, then do one thing or the other.

use etcd_proto::etcdserverpb as pb;
use etcd_proto::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use etcd_proto::mvccpb;
use types::{KeyValue, Revision};

/// A condition on one key. Revisions and leases of an absent key are 0.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Compare {
    /// The key was created at this revision.
    CreateRevision(String, Revision),
    /// The key was last written at this revision.
    ModRevision(String, Revision),
    /// The key's value.
    Value(String, Vec<u8>),
    /// The key's lease.
    Lease(String, i64),
}

impl Compare {
    /// The key does not exist.
    #[must_use]
    pub fn absent(key: impl Into<String>) -> Compare {
        Compare::CreateRevision(key.into(), Revision(0))
    }

    /// The key's modification revision is `Some(revision)`, or it is absent for `None`.
    #[must_use]
    pub fn unchanged(key: impl Into<String>, revision: Option<Revision>) -> Compare {
        match revision {
            Some(revision) => Compare::ModRevision(key.into(), revision),
            None => Compare::absent(key),
        }
    }

    fn key(&self) -> &str {
        match self {
            Compare::CreateRevision(key, _)
            | Compare::ModRevision(key, _)
            | Compare::Value(key, _)
            | Compare::Lease(key, _) => key,
        }
    }

    fn to_wire(&self) -> pb::Compare {
        let (target, union) = match self {
            Compare::CreateRevision(_, r) => {
                (CompareTarget::Create, TargetUnion::CreateRevision(r.0))
            }
            Compare::ModRevision(_, r) => (CompareTarget::Mod, TargetUnion::ModRevision(r.0)),
            Compare::Value(_, value) => (CompareTarget::Value, TargetUnion::Value(value.clone())),
            Compare::Lease(_, lease) => (CompareTarget::Lease, TargetUnion::Lease(*lease)),
        };
        pb::Compare {
            result: CompareResult::Equal.into(),
            target: target.into(),
            key: self.key().as_bytes().to_vec(),
            range_end: Vec::new(),
            target_union: Some(union),
        }
    }
}

/// One thing to do. etcd refuses a transaction that writes a key twice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Op {
    /// Writes a key.
    Put {
        /// The key.
        key: String,
        /// Its value.
        value: Vec<u8>,
        /// The lease it shall hang on; 0 for none.
        lease: i64,
    },
    /// Deletes a key.
    Delete(String),
    /// Deletes every key with this prefix.
    DeletePrefix(String),
    /// Reads a key.
    Get(String),
}

impl Op {
    /// A put without a lease.
    #[must_use]
    pub fn put(key: impl Into<String>, value: impl Into<Vec<u8>>) -> Op {
        Op::put_leased(key, value, 0)
    }

    /// A put on a lease.
    #[must_use]
    pub fn put_leased(key: impl Into<String>, value: impl Into<Vec<u8>>, lease: i64) -> Op {
        Op::Put { key: key.into(), value: value.into(), lease }
    }

    pub(crate) fn key(&self) -> &str {
        match self {
            Op::Put { key, .. } | Op::Delete(key) | Op::DeletePrefix(key) | Op::Get(key) => key,
        }
    }

    fn to_wire(&self) -> pb::RequestOp {
        use pb::request_op::Request;
        let request = match self {
            Op::Put { key, value, lease } => Request::RequestPut(pb::PutRequest {
                key: key.as_bytes().to_vec(),
                value: value.clone(),
                lease: *lease,
                ..pb::PutRequest::default()
            }),
            Op::Delete(key) => Request::RequestDeleteRange(pb::DeleteRangeRequest {
                key: key.as_bytes().to_vec(),
                ..pb::DeleteRangeRequest::default()
            }),
            Op::DeletePrefix(prefix) => Request::RequestDeleteRange(pb::DeleteRangeRequest {
                key: prefix.as_bytes().to_vec(),
                range_end: range_end(prefix),
                prev_kv: false,
            }),
            Op::Get(key) => Request::RequestRange(pb::RangeRequest {
                key: key.as_bytes().to_vec(),
                ..pb::RangeRequest::default()
            }),
        };
        pb::RequestOp { request: Some(request) }
    }
}

/// A transaction.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Txn {
    /// All must hold for `then`.
    pub compares: Vec<Compare>,
    /// Done when they hold.
    pub then: Vec<Op>,
    /// Done when they do not.
    pub otherwise: Vec<Op>,
}

impl Txn {
    pub(crate) fn to_wire(&self) -> pb::TxnRequest {
        pb::TxnRequest {
            compare: self.compares.iter().map(Compare::to_wire).collect(),
            success: self.then.iter().map(Op::to_wire).collect(),
            failure: self.otherwise.iter().map(Op::to_wire).collect(),
        }
    }

    /// Some key of it, for a read with the same permissions.
    pub(crate) fn any_key(&self) -> &str {
        let first = self.compares.first().map(Compare::key);
        first.or_else(|| self.then.first().map(Op::key)).unwrap_or_default()
    }
}

/// What one operation of a transaction answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OpAnswer {
    /// Written.
    Put,
    /// So many keys were deleted.
    Deleted(i64),
    /// The key, with its whole name, if it exists.
    Got(Option<KeyValue>),
}

/// What a transaction answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TxnAnswer {
    /// Whether the compares held.
    pub succeeded: bool,
    /// The store's revision; that of the transaction's writes if it wrote.
    pub revision: Revision,
    /// The raft term of the member that answered.
    pub raft_term: u64,
    /// One answer per operation of the branch that was taken.
    pub responses: Vec<OpAnswer>,
}

impl TxnAnswer {
    /// `None` if the answer lacks its header or an operation's answer.
    pub(crate) fn from_wire(answer: pb::TxnResponse) -> Option<TxnAnswer> {
        use pb::response_op::Response;
        let header = answer.header?;
        let mut responses = Vec::with_capacity(answer.responses.len());
        for op in answer.responses {
            responses.push(match op.response? {
                Response::ResponsePut(_) => OpAnswer::Put,
                Response::ResponseDeleteRange(deleted) => OpAnswer::Deleted(deleted.deleted),
                Response::ResponseRange(range) => {
                    OpAnswer::Got(range.kvs.into_iter().next().and_then(|kv| key_value(kv, "")))
                }
                Response::ResponseTxn(_) => return None,
            });
        }
        Some(TxnAnswer {
            succeeded: answer.succeeded,
            revision: Revision(header.revision),
            raft_term: header.raft_term,
            responses,
        })
    }
}

/// What became of a write without an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resolved {
    /// It happened, at this revision.
    Happened {
        /// The revision of its writes (of the read, if it only deleted).
        revision: Revision,
    },
    /// It did not happen up to now, or was overwritten. It may still happen later, unless its
    /// compares have been made false.
    NotSeen,
}

/// The end of the range of keys with this prefix.
pub(crate) fn range_end(prefix: &str) -> Vec<u8> {
    let mut end = prefix.as_bytes().to_vec();
    while let Some(last) = end.pop() {
        if last < 0xff {
            end.push(last + 1);
            return end;
        }
    }
    // Everything from the key on.
    vec![0]
}

/// The stored pair with its key below `prefix`; `None` for a key elsewhere or not in UTF-8.
pub(crate) fn key_value(kv: mvccpb::KeyValue, prefix: &str) -> Option<KeyValue> {
    let key = std::str::from_utf8(&kv.key).ok()?.strip_prefix(prefix)?;
    Some(KeyValue {
        key: key.to_owned(),
        value: kv.value,
        create_revision: Revision(kv.create_revision),
        mod_revision: Revision(kv.mod_revision),
        lease: kv.lease,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_range_of_a_prefix_ends_behind_its_last_key() {
        assert_eq!(range_end("/a/"), b"/a0");
        assert_eq!(range_end(""), [0]);
    }

    #[test]
    fn compares_carry_etcds_numbers() {
        let wire = Compare::Lease("k".into(), 5).to_wire();
        assert_eq!((wire.result, wire.target), (0, 4));
        assert_eq!(wire.target_union, Some(TargetUnion::Lease(5)));
        let absent = Compare::unchanged("k", None).to_wire();
        assert_eq!(absent.target_union, Some(TargetUnion::CreateRevision(0)));
        let unchanged = Compare::unchanged("k", Some(Revision(9))).to_wire();
        assert_eq!(unchanged.target_union, Some(TargetUnion::ModRevision(9)));
    }

    #[test]
    fn keys_outside_the_prefix_are_left_out() {
        let kv = |key: &[u8]| mvccpb::KeyValue { key: key.to_vec(), ..mvccpb::KeyValue::default() };
        assert_eq!(key_value(kv(b"/a/b"), "/a/").map(|k| k.key).as_deref(), Some("b"));
        assert_eq!(key_value(kv(b"/c/b"), "/a/"), None);
        assert_eq!(key_value(kv(b"/a/\xff"), "/a/"), None);
    }
}
