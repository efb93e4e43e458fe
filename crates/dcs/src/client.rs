//! The client: etcd's calls with deadlines and error classes.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use etcd_proto::etcdserverpb as pb;
use tokio::time::{Instant, sleep};
use types::{KeyValue, Millis, Revision};

use crate::attempt::{Budget, Caller, Credentials, Kind};
use crate::config::ClientConfig;
use crate::endpoints::Endpoints;
use crate::error::{Ambiguity, Error, Fault, Refusal};
use crate::keepalive;
use crate::txn::{Op, OpAnswer, Resolved, Txn, TxnAnswer, key_value, range_end};

/// Keys per page of a listing.
const PAGE_KEYS: i64 = 500;
/// A cluster with more keys than this below its prefix is not ours.
const KEYS_MAX: usize = 20_000;
/// A listing whose revision was compacted away between two pages starts over so many times.
const LISTINGS_MAX: u32 = 3;
/// A compare-and-set goes to an endpoint that answered within this span; if none did, a read finds
/// one first, since a transaction swallowed by a frozen member would be ambiguous.
const FRESH: Duration = Duration::from_millis(200);
/// Pause before a compare-and-set is offered to the next endpoint.
const OFFER_PAUSE: Duration = Duration::from_millis(50);

/// Who answered, and when in the store's life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Header {
    /// The etcd cluster.
    pub cluster_id: u64,
    /// The member that answered.
    pub member_id: u64,
    /// The store's revision.
    pub revision: Revision,
    /// The raft term as that member knew it.
    pub raft_term: u64,
}

/// A new lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LeaseGrant {
    /// Its id.
    pub lease: i64,
    /// Seconds, as the server chose them.
    pub ttl_secs: i64,
}

/// A lease kept alive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeepAlive {
    /// Seconds that it lasts from now on.
    pub ttl_secs: i64,
    /// The raft term of the member that answered.
    pub raft_term: u64,
}

/// A client. Clones share connections.
#[derive(Clone)]
pub struct Client {
    inner: Arc<Inner>,
}

struct Inner {
    caller: Arc<Caller>,
    retry_timeout: AtomicU64,
    /// The newest revision seen in any answer.
    newest: AtomicI64,
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client")
            .field("endpoints", &self.inner.caller.endpoints.names())
            .finish_non_exhaustive()
    }
}

impl Client {
    /// Makes a client; connections are opened when they are first needed. Call it inside a tokio
    /// runtime.
    ///
    /// # Errors
    /// [`Error::Config`] if the settings are not usable.
    pub fn connect(config: ClientConfig) -> Result<Client, Error> {
        config.validate()?;
        let seed = config.seed.unwrap_or_else(clock_seed);
        let tls = config.tls.as_ref().map(|tls| tls.connector(Some("h2")));
        let tls = tls.transpose().map_err(|error| Error::Config(with_sources(&error)))?;
        let endpoints = Endpoints::new(config.urls()?, tls.as_ref(), config.retry_timeout, seed)?;
        let credentials = match (config.username, config.password) {
            (Some(username), Some(password)) => Some(Credentials { username, password }),
            (None | Some(_), None | Some(_)) => None,
        };
        Ok(Client {
            inner: Arc::new(Inner {
                caller: Arc::new(Caller::new(endpoints, credentials)),
                retry_timeout: AtomicU64::new(config.retry_timeout.0),
                newest: AtomicI64::new(0),
            }),
        })
    }

    /// Changes the bound of every operation that starts from now on.
    pub fn set_retry_timeout(&self, retry_timeout: Millis) {
        let at_least_one = retry_timeout.0.max(1);
        self.inner.retry_timeout.store(at_least_one, Ordering::Relaxed);
    }

    /// The bound of every operation.
    #[must_use]
    pub fn retry_timeout(&self) -> Millis {
        Millis(self.inner.retry_timeout.load(Ordering::Relaxed))
    }

    /// The endpoint that is tried first at present.
    #[must_use]
    pub fn preferred_endpoint(&self) -> String {
        let endpoints = &self.inner.caller.endpoints;
        let first = endpoints.order().first().copied().unwrap_or(0);
        endpoints.nodes.get(first).map(|n| n.url.clone()).unwrap_or_default()
    }

    /// Every key with the prefix, at one revision, linearizable. Keys come without the prefix; keys
    /// that are not UTF-8 are left out.
    ///
    /// # Errors
    /// Any class but `Ambiguous`.
    pub async fn range_prefix(&self, prefix: &str) -> Result<(Vec<KeyValue>, Header), Error> {
        const OPERATION: &str = "listing the cluster's keys";
        let budget = self.budget();
        let mut listings = 0;
        loop {
            listings += 1;
            match self.list(OPERATION, budget, prefix).await {
                Err(error)
                    if error.refusal() == Some(Refusal::Compacted) && listings < LISTINGS_MAX => {}
                other => return other,
            }
        }
    }

    async fn list(
        &self,
        operation: &'static str,
        budget: Budget,
        prefix: &str,
    ) -> Result<(Vec<KeyValue>, Header), Error> {
        let mut request = pb::RangeRequest {
            key: prefix.as_bytes().to_vec(),
            range_end: range_end(prefix),
            limit: PAGE_KEYS,
            ..pb::RangeRequest::default()
        };
        let mut keys = Vec::new();
        let mut first = None;
        loop {
            let answer = self.range(operation, budget, request.clone()).await?;
            let header = self.header(operation, answer.header)?;
            let header = *first.get_or_insert(header);
            let last = answer.kvs.last().map(|kv| kv.key.clone());
            keys.extend(answer.kvs.into_iter().filter_map(|kv| key_value(kv, prefix)));
            let Some(last) = last.filter(|_| answer.more) else {
                return Ok((keys, header));
            };
            if keys.len() > KEYS_MAX {
                let detail = format!("more than {KEYS_MAX} keys below {prefix}");
                return Err(Error::Malformed { operation, detail });
            }
            request.key = last;
            request.key.push(0);
            request.revision = header.revision.0;
        }
    }

    async fn range(
        &self,
        operation: &'static str,
        budget: Budget,
        request: pb::RangeRequest,
    ) -> Result<pb::RangeResponse, Error> {
        self.caller()
            .run(operation, Kind::Read, budget, move |link| {
                let request = link.request(request.clone());
                async move { Ok(link.kv().range(request).await?.into_inner()) }
            })
            .await
    }

    /// One key, with its whole name, linearizable.
    ///
    /// # Errors
    /// Any class but `Ambiguous`.
    pub async fn get(&self, key: &str) -> Result<(Option<KeyValue>, Header), Error> {
        const OPERATION: &str = "reading a key";
        let request =
            pb::RangeRequest { key: key.as_bytes().to_vec(), ..pb::RangeRequest::default() };
        let answer = self.range(OPERATION, self.budget(), request).await?;
        let header = self.header(OPERATION, answer.header)?;
        let kv = answer.kvs.into_iter().next();
        Ok((kv.and_then(|kv| key_value(kv, "")), header))
    }

    /// Writes a key. It is sent again while unanswered, so an older value of the same key may show
    /// up after a newer one was written by somebody else: only for keys with one writer.
    ///
    /// # Errors
    /// Every class; `Ambiguous` after the whole `retry_timeout` only.
    pub async fn put(&self, key: &str, value: Vec<u8>, lease: i64) -> Result<Header, Error> {
        const OPERATION: &str = "writing a key";
        let message = pb::PutRequest {
            key: key.as_bytes().to_vec(),
            value,
            lease,
            ..pb::PutRequest::default()
        };
        let answer = self
            .caller()
            .run(OPERATION, Kind::Repeatable, self.budget(), move |link| {
                let request = link.request(message.clone());
                async move { Ok(link.kv().put(request).await?.into_inner()) }
            })
            .await?;
        self.header(OPERATION, answer.header)
    }

    /// A new lease. One that is granted without our learning it ends by itself, without keys.
    ///
    /// # Errors
    /// Any class but `Ambiguous`.
    pub async fn lease_grant(&self, ttl: Millis) -> Result<LeaseGrant, Error> {
        const OPERATION: &str = "granting a lease";
        let seconds = i64::try_from(ttl.0.div_ceil(1000)).unwrap_or(i64::MAX).max(1);
        let answer = self
            .caller()
            .run(OPERATION, Kind::Read, self.budget(), move |link| {
                let request = link.request(pb::LeaseGrantRequest { ttl: seconds, id: 0 });
                async move { Ok(link.lease().lease_grant(request).await?.into_inner()) }
            })
            .await?;
        self.header(OPERATION, answer.header)?;
        if answer.id == 0 || !answer.error.is_empty() {
            let detail = format!("no lease: {}", answer.error);
            return Err(Error::Malformed { operation: OPERATION, detail });
        }
        Ok(LeaseGrant { lease: answer.id, ttl_secs: answer.ttl })
    }

    /// Restarts the lease's TTL, once.
    ///
    /// # Errors
    /// `Refused(LeaseNotFound)` if the lease is gone; any class but `Ambiguous`.
    pub async fn lease_keep_alive_once(&self, lease: i64) -> Result<KeepAlive, Error> {
        self.keep_alive_within(self.budget(), lease).await
    }

    pub(crate) async fn keep_alive_within(
        &self,
        budget: Budget,
        lease: i64,
    ) -> Result<KeepAlive, Error> {
        const OPERATION: &str = "keeping the lease alive";
        let call = move |link| keepalive::ask(link, lease);
        let answer = self.caller().run(OPERATION, Kind::Read, budget, call).await?;
        let header = self.header(OPERATION, answer.header)?;
        if answer.ttl <= 0 {
            return Err(Error::Refused {
                operation: OPERATION,
                reason: Refusal::LeaseNotFound,
                detail: format!("lease {lease:x} is gone"),
            });
        }
        Ok(KeepAlive { ttl_secs: answer.ttl, raft_term: header.raft_term })
    }

    /// Ends a lease and deletes its keys. A lease that is gone already is a success.
    ///
    /// # Errors
    /// Any class.
    pub async fn lease_revoke(&self, lease: i64) -> Result<(), Error> {
        const OPERATION: &str = "revoking the lease";
        let answer = self
            .caller()
            .run(OPERATION, Kind::Repeatable, self.budget(), move |link| {
                let request = link.request(pb::LeaseRevokeRequest { id: lease });
                async move { Ok(link.lease().lease_revoke(request).await?.into_inner()) }
            })
            .await;
        match answer {
            Err(error) if error.refusal() == Some(Refusal::LeaseNotFound) => Ok(()),
            other => other.map(|_| ()),
        }
    }

    /// The client URLs of etcd's members, as etcd knows them.
    ///
    /// # Errors
    /// Any class but `Ambiguous`.
    pub async fn member_urls(&self) -> Result<Vec<String>, Error> {
        let answer = self
            .caller()
            .run("listing etcd's members", Kind::Read, self.budget(), |link| {
                let request = link.request(pb::MemberListRequest { linearizable: true });
                async move { Ok(link.cluster().member_list(request).await?.into_inner()) }
            })
            .await?;
        Ok(answer.members.into_iter().flat_map(|m| m.client_urls).collect())
    }

    /// A transaction that must not happen twice. It is sent to one endpoint, and offered to another
    /// only if it was certainly not executed.
    ///
    /// # Errors
    /// Every class. After `Ambiguous` read before going on, or see [`Client::resolve`].
    pub async fn txn(&self, operation: &'static str, txn: Txn) -> Result<TxnAnswer, Error> {
        let budget = self.budget();
        let endpoints = &self.caller().endpoints;
        loop {
            if !endpoints.first_answered_within(FRESH) {
                self.find_endpoint(operation, budget, txn.any_key()).await?;
            }
            let floor = self.newest();
            let first = endpoints.order().first().copied().unwrap_or(0);
            let message = txn.to_wire();
            let call = move |link: crate::attempt::Link| async move {
                let request = link.request(message.clone());
                Ok(link.kv().txn(request).await?.into_inner())
            };
            let fault = match self.caller().attempt(first, budget.deadline, call).await {
                Ok(answer) => {
                    endpoints.answered(first);
                    return self.txn_answer(operation, answer);
                }
                Err(fault) => fault,
            };
            endpoints.failed(first);
            match fault {
                Fault::Final(reason, detail) => {
                    return Err(Error::Refused { operation, reason, detail });
                }
                Fault::Unanswered(detail) => {
                    let txn = Some(txn);
                    let what = Ambiguity { operation, detail, txn, floor };
                    return Err(Error::Ambiguous(Box::new(what)));
                }
                Fault::NotSent(detail) | Fault::Elsewhere(detail) | Fault::Token(detail) => {
                    if Instant::now() + OFFER_PAUSE >= budget.deadline {
                        return Err(self.not_sent(operation, budget.limit, detail));
                    }
                    sleep(OFFER_PAUSE).await;
                }
            }
        }
    }

    /// Makes an endpoint that reaches a raft quorum the first one, by a linearizable read.
    async fn find_endpoint(
        &self,
        operation: &'static str,
        budget: Budget,
        key: &str,
    ) -> Result<(), Error> {
        let request = pb::RangeRequest {
            key: key.as_bytes().to_vec(),
            count_only: true,
            ..pb::RangeRequest::default()
        };
        match self.range(operation, budget, request).await {
            Ok(answer) => self.header(operation, answer.header).map(|_| ()),
            // Only the read went out.
            Err(Error::Unanswered { limit, detail, .. }) => {
                Err(self.not_sent(operation, limit, detail))
            }
            Err(other) => Err(other),
        }
    }

    pub(crate) fn endpoint_names(&self) -> String {
        self.caller().endpoints.names()
    }

    fn not_sent(&self, operation: &'static str, limit: Millis, detail: String) -> Error {
        let endpoints = self.caller().endpoints.names();
        Error::NotSent { operation, endpoints, limit, detail }
    }

    /// A transaction that may safely happen twice, and late: it is sent again while unanswered.
    pub(crate) async fn txn_repeatable(
        &self,
        operation: &'static str,
        budget: Budget,
        txn: &Txn,
    ) -> Result<TxnAnswer, Error> {
        let message = txn.to_wire();
        let answer = self
            .caller()
            .run(operation, Kind::Repeatable, budget, move |link| {
                let request = link.request(message.clone());
                async move { Ok(link.kv().txn(request).await?.into_inner()) }
            })
            .await?;
        self.txn_answer(operation, answer)
    }

    /// Finds out by a read whether an unanswered transaction happened: each key that it writes must
    /// have its value and lease, newly written, all at one revision; one that only deletes happened
    /// if its keys are gone.
    ///
    /// # Errors
    /// Any class but `Ambiguous`.
    pub async fn resolve(&self, what: &Ambiguity) -> Result<Resolved, Error> {
        const OPERATION: &str = "reading back a transaction";
        let Some(txn) = &what.txn else {
            return Ok(Resolved::NotSeen);
        };
        let single = |op: &&Op| matches!(op, Op::Put { .. } | Op::Delete(_));
        let written: Vec<&Op> = txn.then.iter().filter(single).collect();
        let gets = written.iter().map(|op| Op::Get(op.key().to_owned()));
        let read = Txn { then: gets.collect(), ..Txn::default() };
        let answer = self.txn_repeatable(OPERATION, self.budget(), &read).await?;
        Ok(resolve(what.floor, &written, &answer))
    }

    fn txn_answer(
        &self,
        operation: &'static str,
        answer: pb::TxnResponse,
    ) -> Result<TxnAnswer, Error> {
        self.header(operation, answer.header)?;
        TxnAnswer::from_wire(answer).ok_or_else(|| Error::Malformed {
            operation,
            detail: "an operation of the transaction has no answer".to_owned(),
        })
    }

    pub(crate) fn header(
        &self,
        operation: &'static str,
        header: Option<pb::ResponseHeader>,
    ) -> Result<Header, Error> {
        let Some(header) = header else {
            let detail = "it has no header".to_owned();
            return Err(Error::Malformed { operation, detail });
        };
        self.inner.newest.fetch_max(header.revision, Ordering::Relaxed);
        Ok(Header {
            cluster_id: header.cluster_id,
            member_id: header.member_id,
            revision: Revision(header.revision),
            raft_term: header.raft_term,
        })
    }

    fn newest(&self) -> Revision {
        Revision(self.inner.newest.load(Ordering::Relaxed))
    }

    pub(crate) fn caller(&self) -> &Arc<Caller> {
        &self.inner.caller
    }

    pub(crate) fn budget(&self) -> Budget {
        Budget::start(self.retry_timeout())
    }
}

fn resolve(floor: Revision, written: &[&Op], answer: &TxnAnswer) -> Resolved {
    let mut at = None;
    for (op, got) in written.iter().zip(&answer.responses) {
        let OpAnswer::Got(got) = got else {
            return Resolved::NotSeen;
        };
        match (op, got) {
            (Op::Put { value, lease, .. }, Some(kv)) => {
                let ours = kv.value == *value && kv.lease == *lease && kv.mod_revision > floor;
                if !ours || *at.get_or_insert(kv.mod_revision) != kv.mod_revision {
                    return Resolved::NotSeen;
                }
            }
            (Op::Delete(_), None) => {}
            (Op::Put { .. } | Op::Delete(_), _) | (Op::DeletePrefix(_) | Op::Get(_), _) => {
                return Resolved::NotSeen;
            }
        }
    }
    let revision = at.unwrap_or(answer.revision);
    Resolved::Happened { revision }
}

/// An error with its causes, in one line.
fn with_sources(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |error| error.source());
    causes.fold(format!("TLS to etcd: {error}"), |text, cause| format!("{text}: {cause}"))
}

fn clock_seed() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let nanos = now.map_or(0, |d| u64::from(d.subsec_nanos()) ^ d.as_secs());
    nanos ^ (u64::from(std::process::id()) << 32)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn got(value: &str, revision: i64) -> OpAnswer {
        OpAnswer::Got(Some(KeyValue {
            key: "k".to_owned(),
            value: value.as_bytes().to_vec(),
            create_revision: Revision(1),
            mod_revision: Revision(revision),
            lease: 0,
        }))
    }

    #[test]
    fn a_write_is_ours_only_if_it_is_new_and_at_one_revision() {
        let (a, b, gone) = (Op::put("a", "x"), Op::put("b", "x"), Op::Delete("c".into()));
        let check = |responses: Vec<OpAnswer>| {
            let answer =
                TxnAnswer { succeeded: true, revision: Revision(20), raft_term: 1, responses };
            resolve(Revision(9), &[&a, &b, &gone], &answer)
        };
        let none = OpAnswer::Got(None);
        let happened = Resolved::Happened { revision: Revision(10) };
        assert_eq!(check(vec![got("x", 10), got("x", 10), none.clone()]), happened);
        for (first, second, third) in [
            (got("x", 10), got("x", 11), none.clone()),
            (got("x", 9), got("x", 9), none.clone()),
            (got("x", 10), got("y", 10), none.clone()),
            (got("x", 10), none.clone(), none.clone()),
            (got("x", 10), got("x", 10), got("z", 3)),
        ] {
            assert_eq!(check(vec![first, second, third]), Resolved::NotSeen);
        }
    }
}
