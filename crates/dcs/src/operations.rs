//! The operations on the cluster's keys, each one etcd transaction.
//!
//! None repeats itself after an ambiguous answer: the caller reads first. `touch_member` and
//! `write_failover` are plain puts and may be repeated. Every write of a leader is conditional on
//! its leader key: on the revision that wrote it, and on it hanging on the session's lease.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::Value;
use types::{
    Fence, HistoryEntry, HoldRecord, Member, MemberName, Millis, Pledge, ProxyRecord, Revision,
    Status, SyncState, TermRecord, keys,
};

use crate::cluster::ClusterStore;
use crate::error::Error;
use crate::session::Session;
use crate::txn::{Compare, Op, Txn};

/// What a conditional write came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Write {
    /// Done, at this revision; for a member key that was so already, the one of then.
    Written {
        /// Can be waited for with [`ClusterStore::wait_revision`].
        revision: Revision,
    },
    /// Nothing was written, since the keys are not what the caller took them for.
    Conflict,
}

impl Write {
    /// The revision, if it was written.
    #[must_use]
    pub fn revision(self) -> Option<Revision> {
        match self {
            Write::Written { revision } => Some(revision),
            Write::Conflict => None,
        }
    }
}

/// What the winner of the initialize race publishes at the end of its bootstrap.
#[derive(Debug, Clone)]
pub struct Bootstrap<'a> {
    /// The new cluster's system identifier.
    pub system_identifier: &'a str,
    /// The dynamic configuration.
    pub config: &'a Value,
    /// The bootstrapping member, the first leader.
    pub leader: &'a MemberName,
    /// The first term.
    pub term: &'a TermRecord,
    /// The synchronous state, in a synchronous mode.
    pub sync: Option<&'a SyncState>,
}

/// What the winner of an election saw, and what it writes.
#[derive(Debug, Clone)]
pub struct Winner<'a> {
    /// The winner.
    pub name: &'a MemberName,
    /// The leader key that is taken over, by its modification revision; `None`: there must be none.
    pub expect_leader: Option<Revision>,
    /// `sync`'s modification revision; `None`: it must be absent.
    pub sync_mod: Option<Revision>,
    /// The open fence's modification revision; `None`: there must be none.
    pub fence_mod: Option<Revision>,
    /// `pgherd/term`'s modification revision; `None`: it must be absent.
    pub term_mod: Option<Revision>,
    /// Every counted pledge with its modification revision.
    pub pledges: Vec<(MemberName, Revision)>,
    /// The new term.
    pub term: &'a TermRecord,
    /// The new synchronous state; `None` leaves the key alone.
    pub sync: Option<&'a SyncState>,
    /// Whether an operator's request is done with.
    pub clear_failover: bool,
}

/// Compact JSON.
pub(crate) fn json<T: Serialize>(operation: &'static str, value: &T) -> Result<Vec<u8>, Error> {
    serde_json::to_vec(value).map_err(|e| Error::Malformed {
        operation,
        detail: format!("the value cannot be written as JSON: {e}"),
    })
}

impl ClusterStore {
    /// Makes this member's key say `member` under the session's lease. It is not written if the
    /// watch shows that it does, as Patroni does it too; whatever is in doubt is written.
    ///
    /// # Errors
    /// Every class; `Refused(LeaseNotFound)` also takes the lease from the session.
    pub async fn touch_member(
        &self,
        session: &Session,
        name: &MemberName,
        member: &Member,
    ) -> Result<Write, Error> {
        const OPERATION: &str = "writing the member key";
        let lease = session.require(OPERATION)?;
        let seen = self.current();
        let view = seen.view.filter(|_| seen.fresh);
        if let Some(revision) = view.and_then(|view| view.shows_member(name, member, lease)) {
            return Ok(Write::Written { revision });
        }
        let value = json(OPERATION, member)?;
        let key = self.key(&keys::member(name));
        let answer = self.client().put(&key, value, lease).await;
        let revision = session.note(lease, answer)?.revision;
        Ok(Write::Written { revision })
    }

    /// Writes a proxy's key under the session's lease.
    ///
    /// # Errors
    /// Every class; `Refused(LeaseNotFound)` also takes the lease from the session.
    pub async fn touch_proxy(
        &self,
        session: &Session,
        id: &str,
        proxy: &ProxyRecord,
    ) -> Result<Write, Error> {
        const OPERATION: &str = "writing the proxy's key";
        let lease = session.require(OPERATION)?;
        let value = json(OPERATION, proxy)?;
        let answer = self.client().put(&self.key(&keys::proxy(id)), value, lease).await;
        let revision = session.note(lease, answer)?.revision;
        Ok(Write::Written { revision })
    }

    /// Gets a lease of `ttl` and writes the member key, and a leader's key with its term record,
    /// under it, on condition that the leader key is unchanged and no fence is open. The session
    /// has the new lease then; the one before is left to end by itself. Otherwise the new one is
    /// revoked, so that nothing that comes late can hang on it.
    ///
    /// Returns how long the new lease lives.
    ///
    /// # Errors
    /// Every class. After an ambiguous one the member key says on which lease it hangs.
    pub async fn move_lease(
        &self,
        session: &Session,
        ttl: Millis,
        (name, member): (&MemberName, &Member),
        leading: Option<(Revision, &TermRecord)>,
    ) -> Result<(Write, Millis), Error> {
        const OPERATION: &str = "moving the keys to a lease with the new ttl";
        let value = json(OPERATION, member)?;
        let old = session.require(OPERATION)?;
        let mut compares = vec![Compare::unchanged(self.key(keys::FENCE), None)];
        let granted = self.client().lease_grant(ttl).await?;
        let new = granted.lease;
        let mut then = vec![Op::put_leased(self.key(&keys::member(name)), value, new)];
        if let Some((leader, term)) = leading {
            compares.push(self.leader_is(Some(leader)));
            compares.push(Compare::Lease(self.key(keys::LEADER), old));
            then.push(Op::put_leased(self.key(keys::LEADER), name.as_str(), new));
            then.push(Op::put(self.key(keys::TERM), json(OPERATION, term)?));
        }
        let answer = self.write(OPERATION, compares, then).await;
        if matches!(answer, Ok(Write::Written { .. })) {
            session.replace(new, ttl);
        } else if !matches!(answer, Err(Error::Ambiguous { .. })) {
            // It ends by itself, too.
            self.client().lease_revoke(new).await.ok();
        }
        let lives = Millis::from_secs(u64::try_from(granted.ttl_secs).unwrap_or(0));
        answer.map(|write| (write, lives))
    }

    /// Takes part in the initialize race: creates the key, empty, under the session's lease, so
    /// that a bootstrap that dies with its node gives the race free again.
    ///
    /// # Errors
    /// Every class.
    pub async fn take_initialize(&self, session: &Session) -> Result<Write, Error> {
        const OPERATION: &str = "taking the initialize key";
        let lease = session.require(OPERATION)?;
        let key = self.key(keys::INITIALIZE);
        let compares = vec![Compare::absent(key.clone())];
        let then = vec![Op::put_leased(key, "", lease)];
        session.note(lease, self.write(OPERATION, compares, then).await)
    }

    /// Gives the initialize key back after a failed bootstrap, if it is still ours.
    ///
    /// # Errors
    /// Every class.
    pub async fn cancel_initialize(&self, session: &Session) -> Result<Write, Error> {
        const OPERATION: &str = "giving the initialize key back";
        let compares = self.initialize_is_ours(session.require(OPERATION)?);
        let then = vec![Op::Delete(self.key(keys::INITIALIZE))];
        self.write(OPERATION, compares, then).await
    }

    fn initialize_is_ours(&self, lease: i64) -> Vec<Compare> {
        vec![
            Compare::Lease(self.key(keys::INITIALIZE), lease),
            Compare::Value(self.key(keys::INITIALIZE), Vec::new()),
        ]
    }

    /// Publishes a finished bootstrap: system identifier, configuration, leader key, term and
    /// synchronous state in one.
    ///
    /// # Errors
    /// Every class.
    pub async fn finish_bootstrap(
        &self,
        session: &Session,
        done: &Bootstrap<'_>,
    ) -> Result<Write, Error> {
        const OPERATION: &str = "publishing the new cluster";
        let lease = session.require(OPERATION)?;
        let mut compares = self.initialize_is_ours(lease);
        compares.push(Compare::absent(self.key(keys::LEADER)));
        let mut then = vec![
            Op::put(self.key(keys::INITIALIZE), done.system_identifier),
            Op::put(self.key(keys::CONFIG), json(OPERATION, done.config)?),
            Op::put_leased(self.key(keys::LEADER), done.leader.as_str(), lease),
            Op::put(self.key(keys::TERM), json(OPERATION, done.term)?),
        ];
        then.extend(done.sync.map(|sync| self.put_sync(sync)));
        session.note(lease, self.write(OPERATION, compares, then).await)
    }

    /// Opens a fence if everything is as the opener saw it: the fence it wants to replace (or
    /// none), the leader key that the fence names (or none), and `sync`.
    ///
    /// # Errors
    /// Every class.
    pub async fn open_fence(
        &self,
        expect_fence_mod: Option<Revision>,
        sync_mod: Option<Revision>,
        fence: &Fence,
    ) -> Result<Write, Error> {
        const OPERATION: &str = "opening a fence";
        let compares = vec![
            Compare::unchanged(self.key(keys::FENCE), expect_fence_mod),
            self.leader_is(fence.leader()),
            Compare::unchanged(self.key(keys::SYNC), sync_mod),
        ];
        let then = vec![Op::put(self.key(keys::FENCE), json(OPERATION, fence)?)];
        self.write(OPERATION, compares, then).await
    }

    /// Writes this member's pledge, if its fence is still open.
    ///
    /// # Errors
    /// Every class.
    pub async fn write_pledge(
        &self,
        name: &MemberName,
        pledge: &Pledge,
        fence_mod: Revision,
    ) -> Result<Write, Error> {
        const OPERATION: &str = "writing the pledge";
        let compares = vec![Compare::ModRevision(self.key(keys::FENCE), fence_mod)];
        let value = json(OPERATION, pledge)?;
        let then = vec![Op::put(self.key(&keys::pledge(name)), value)];
        self.write(OPERATION, compares, then).await
    }

    /// Deletes the fence and every pledge, so that a late winner cannot count them.
    ///
    /// # Errors
    /// Every class.
    pub async fn void_fence(&self, fence_mod: Revision) -> Result<Write, Error> {
        let compares = vec![Compare::ModRevision(self.key(keys::FENCE), fence_mod)];
        let then =
            vec![Op::Delete(self.key(keys::FENCE)), Op::DeletePrefix(self.key(keys::PLEDGES))];
        self.write("voiding the fence", compares, then).await
    }

    /// Takes the leader key under the session's lease, with the next term and the new synchronous
    /// state, and ends the election: the fence and all pledges go.
    ///
    /// etcd lets no transaction write a key twice, so a leader key that exists is overwritten and
    /// keeps its create revision: a leadership is told by the modification revision.
    ///
    /// # Errors
    /// Every class.
    pub async fn take_leadership(
        &self,
        session: &Session,
        winner: &Winner<'_>,
    ) -> Result<Write, Error> {
        const OPERATION: &str = "taking the leader key";
        let lease = session.require(OPERATION)?;
        let mut compares = vec![
            self.leader_is(winner.expect_leader),
            Compare::unchanged(self.key(keys::SYNC), winner.sync_mod),
            Compare::unchanged(self.key(keys::FENCE), winner.fence_mod),
            Compare::unchanged(self.key(keys::TERM), winner.term_mod),
        ];
        for (name, revision) in &winner.pledges {
            let key = self.key(&keys::pledge(name));
            compares.push(Compare::ModRevision(key, *revision));
        }
        let mut then = vec![
            Op::put_leased(self.key(keys::LEADER), winner.name.as_str(), lease),
            Op::put(self.key(keys::TERM), json(OPERATION, winner.term)?),
            Op::Delete(self.key(keys::FENCE)),
            Op::DeletePrefix(self.key(keys::PLEDGES)),
        ];
        then.extend(winner.sync.map(|sync| self.put_sync(sync)));
        if winner.clear_failover {
            then.push(Op::put(self.key(keys::FAILOVER), "{}"));
        }
        session.note(lease, self.write(OPERATION, compares, then).await)
    }

    /// Writes the last `status` and deletes the leader key, with a hold, if it is still ours.
    ///
    /// # Errors
    /// Every class.
    pub async fn release_leader(
        &self,
        session: &Session,
        leader: Revision,
        status: Option<&Status>,
    ) -> Result<Write, Error> {
        const OPERATION: &str = "releasing the leader key";
        let mut then = vec![Op::Delete(self.key(keys::LEADER)), Op::Delete(self.key(keys::HOLD))];
        if let Some(status) = status {
            then.push(Op::put(self.key(keys::STATUS), json(OPERATION, status)?));
        }
        self.write_as_leader(OPERATION, session, leader, None, then).await
    }

    /// Asks the proxies to hold their clients, as the leader. The key hangs on the leader's lease.
    ///
    /// # Errors
    /// Every class.
    pub async fn write_hold(
        &self,
        session: &Session,
        leader: Revision,
        hold: &HoldRecord,
    ) -> Result<Write, Error> {
        const OPERATION: &str = "writing the hold for the proxies";
        let lease = session.require(OPERATION)?;
        let then = vec![Op::put_leased(self.key(keys::HOLD), json(OPERATION, hold)?, lease)];
        self.write_as_leader(OPERATION, session, leader, None, then).await
    }

    /// Deletes the hold, as the leader.
    ///
    /// # Errors
    /// Every class.
    pub async fn remove_hold(&self, session: &Session, leader: Revision) -> Result<Write, Error> {
        let then = vec![Op::Delete(self.key(keys::HOLD))];
        self.write_as_leader("removing the hold for the proxies", session, leader, None, then).await
    }

    /// Changes `sync` from the value read at `expected_mod` (or from absent), as the leader.
    ///
    /// # Errors
    /// Every class.
    pub async fn write_sync(
        &self,
        session: &Session,
        leader: Revision,
        expected_mod: Option<Revision>,
        sync: &SyncState,
    ) -> Result<Write, Error> {
        let expected = Compare::unchanged(self.key(keys::SYNC), expected_mod);
        let then = vec![self.put_sync(sync)];
        self.write_as_leader("writing /sync", session, leader, Some(expected), then).await
    }

    /// Deletes `sync` (synchronous mode was turned off), as the leader.
    ///
    /// # Errors
    /// Every class.
    pub async fn delete_sync(
        &self,
        session: &Session,
        leader: Revision,
        expected_mod: Revision,
    ) -> Result<Write, Error> {
        let expected = Compare::ModRevision(self.key(keys::SYNC), expected_mod);
        let then = vec![Op::Delete(self.key(keys::SYNC))];
        self.write_as_leader("deleting /sync", session, leader, Some(expected), then).await
    }

    /// Deletes every key of the cluster.
    ///
    /// # Errors
    /// Every class.
    pub async fn remove(&self) -> Result<Write, Error> {
        let then = vec![Op::DeletePrefix(self.prefix().to_owned())];
        self.write("removing the cluster", Vec::new(), then).await
    }

    /// Writes `history`, as the leader.
    ///
    /// # Errors
    /// Every class.
    pub async fn write_history(
        &self,
        session: &Session,
        leader: Revision,
        history: &[HistoryEntry],
    ) -> Result<Write, Error> {
        const OPERATION: &str = "writing /history";
        let then = vec![Op::put(self.key(keys::HISTORY), json(OPERATION, &history)?)];
        self.write_as_leader(OPERATION, session, leader, None, then).await
    }

    /// Changes `failsafe` from the value read at `expected_mod` (or from absent), as the leader.
    ///
    /// # Errors
    /// Every class.
    pub async fn write_failsafe(
        &self,
        session: &Session,
        leader: Revision,
        expected_mod: Option<Revision>,
        members: &BTreeMap<MemberName, String>,
    ) -> Result<Write, Error> {
        const OPERATION: &str = "writing /failsafe";
        let expected = Compare::unchanged(self.key(keys::FAILSAFE), expected_mod);
        let then = vec![Op::put(self.key(keys::FAILSAFE), json(OPERATION, members)?)];
        self.write_as_leader(OPERATION, session, leader, Some(expected), then).await
    }

    /// Writes `config` whatever it was, as the leader (restores a lost one).
    ///
    /// # Errors
    /// Every class.
    pub async fn write_config_as_leader(
        &self,
        session: &Session,
        leader: Revision,
        config: &Value,
    ) -> Result<Write, Error> {
        const OPERATION: &str = "writing /config";
        let then = vec![Op::put(self.key(keys::CONFIG), json(OPERATION, config)?)];
        self.write_as_leader(OPERATION, session, leader, None, then).await
    }

    /// Changes `config` from the value read at `expected_mod` (or from absent).
    ///
    /// # Errors
    /// Every class.
    pub async fn patch_config(
        &self,
        expected_mod: Option<Revision>,
        config: &Value,
    ) -> Result<Write, Error> {
        const OPERATION: &str = "changing /config";
        let compares = vec![Compare::unchanged(self.key(keys::CONFIG), expected_mod)];
        let then = vec![Op::put(self.key(keys::CONFIG), json(OPERATION, config)?)];
        self.write(OPERATION, compares, then).await
    }

    /// Writes an operator's request, over any older one.
    ///
    /// # Errors
    /// Every class.
    pub async fn write_failover(&self, request: &Value) -> Result<Write, Error> {
        let value = json("writing /failover", request)?;
        let header = self.client().put(&self.key(keys::FAILOVER), value, 0).await?;
        Ok(Write::Written { revision: header.revision })
    }

    /// Sets `failover` to `{}`, if it still is the request read at `expected_mod`.
    ///
    /// # Errors
    /// Every class.
    pub async fn clear_failover(&self, expected_mod: Revision) -> Result<Write, Error> {
        let compares = vec![Compare::ModRevision(self.key(keys::FAILOVER), expected_mod)];
        let then = vec![Op::put(self.key(keys::FAILOVER), "{}")];
        self.write("clearing /failover", compares, then).await
    }

    fn put_sync(&self, sync: &SyncState) -> Op {
        Op::put(self.key(keys::SYNC), sync.to_json())
    }

    fn leader_is(&self, revision: Option<Revision>) -> Compare {
        Compare::unchanged(self.key(keys::LEADER), revision)
    }

    async fn write_as_leader(
        &self,
        operation: &'static str,
        session: &Session,
        leader: Revision,
        expected: Option<Compare>,
        then: Vec<Op>,
    ) -> Result<Write, Error> {
        let lease = session.require(operation)?;
        let mut compares = vec![
            Compare::ModRevision(self.key(keys::LEADER), leader),
            Compare::Lease(self.key(keys::LEADER), lease),
        ];
        compares.extend(expected);
        self.write(operation, compares, then).await
    }

    async fn write(
        &self,
        operation: &'static str,
        compares: Vec<Compare>,
        then: Vec<Op>,
    ) -> Result<Write, Error> {
        let txn = Txn { compares, then, otherwise: Vec::new() };
        let answer = self.client().txn(operation, txn).await?;
        Ok(if answer.succeeded {
            Write::Written { revision: answer.revision }
        } else {
            Write::Conflict
        })
    }
}
