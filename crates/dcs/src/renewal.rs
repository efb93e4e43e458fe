//! The leader's renewal: two answers that together extend its claim (design, section 4).

use types::{Millis, Revision, Status, keys};

use crate::attempt::Budget;
use crate::client::KeepAlive;
use crate::cluster::ClusterStore;
use crate::error::{Error, Refusal};
use crate::operations::json;
use crate::session::Session;
use crate::txn::{Compare, Op, Txn, TxnAnswer};

/// A renewal whose answers come from two raft terms is made again so many times.
const REPEATS_MAX: u32 = 2;
const OPERATION: &str = "renewing the leader key";

/// What a renewal came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Renewal {
    /// The leader key is ours. The claim runs from before the call.
    Renewed {
        /// The store's revision; that of the status write if there was one.
        revision: Revision,
        /// How long the lease lasts at least, from before the call.
        ttl: Millis,
    },
    /// It is not ours any more.
    Lost(Loss),
}

/// How the leader key was lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Loss {
    /// Our lease is gone.
    Lease,
    /// The key is gone, was written anew, or hangs on another lease.
    Key,
}

impl ClusterStore {
    /// Keeps the lease alive and shows, by a linearizable transaction, that the leader key written
    /// at `leader` still hangs on it, and writes `status` if given. Both requests go out after the
    /// call; it is made again, within the same `retry_timeout`, if the answers come from two raft
    /// terms. A keep-alive alone proves nothing: a deposed etcd leader may still answer it.
    ///
    /// # Errors
    /// Every class: nothing is known, and the claim ends when it would have ended before.
    pub async fn renew(
        &self,
        session: &Session,
        leader: Revision,
        status: Option<&Status>,
    ) -> Result<Renewal, Error> {
        let Ok(lease) = session.require(OPERATION) else {
            return Ok(Renewal::Lost(Loss::Lease));
        };
        let budget = self.client().budget();
        let txn = self.renewal_txn(lease, leader, status)?;
        for _ in 0..=REPEATS_MAX {
            let (kept, shown) = self.renew_once(budget, lease, &txn).await;
            match kept {
                Err(error) if error.refusal() == Some(Refusal::LeaseNotFound) => {
                    return session
                        .note::<Renewal>(lease, Err(error))
                        .or(Ok(Renewal::Lost(Loss::Lease)));
                }
                Err(error) => return Err(error),
                Ok(kept) => {
                    let shown = shown?;
                    if !shown.succeeded {
                        return Ok(Renewal::Lost(Loss::Key));
                    }
                    if kept.raft_term == shown.raft_term {
                        let secs = u64::try_from(kept.ttl_secs).unwrap_or(0);
                        let (revision, ttl) = (shown.revision, Millis::from_secs(secs));
                        return Ok(Renewal::Renewed { revision, ttl });
                    }
                }
            }
        }
        Err(Error::Unanswered {
            operation: OPERATION,
            endpoints: self.client().endpoint_names(),
            limit: budget.limit,
            detail: "the raft term changed in every attempt".to_owned(),
        })
    }

    async fn renew_once(
        &self,
        budget: Budget,
        lease: i64,
        txn: &Txn,
    ) -> (Result<KeepAlive, Error>, Result<TxnAnswer, Error>) {
        tokio::join!(
            self.client().keep_alive_within(budget, lease),
            self.client().txn_repeatable(OPERATION, budget, txn),
        )
    }

    fn renewal_txn(
        &self,
        lease: i64,
        leader: Revision,
        status: Option<&Status>,
    ) -> Result<Txn, Error> {
        let op = match status {
            Some(status) => Op::put(self.key(keys::STATUS), json(OPERATION, status)?),
            None => Op::Get(self.key(keys::LEADER)),
        };
        Ok(Txn {
            compares: vec![
                Compare::ModRevision(self.key(keys::LEADER), leader),
                Compare::Lease(self.key(keys::LEADER), lease),
            ],
            then: vec![op],
            otherwise: Vec::new(),
        })
    }
}
