//! This agent's lease. Its member key hangs on it, and the leader key while it leads.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use types::Millis;

use crate::client::{Client, KeepAlive};
use crate::error::{Error, Refusal};

/// A lease and its TTL. Clones share it.
#[derive(Clone, Debug)]
pub struct Session {
    client: Client,
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Clone, Copy)]
struct State {
    lease: i64,
    ttl: Millis,
}

impl Session {
    /// A session without a lease yet.
    #[must_use]
    pub fn new(client: Client, ttl: Millis) -> Session {
        let state = Arc::new(Mutex::new(State { lease: 0, ttl }));
        Session { client, state }
    }

    /// Gets a new lease and takes it; an older one is left to end by itself.
    ///
    /// # Errors
    /// Those of [`Client::lease_grant`].
    pub async fn grant(&self, ttl: Millis) -> Result<i64, Error> {
        let granted = self.client.lease_grant(ttl).await?;
        *self.state() = State { lease: granted.lease, ttl };
        Ok(granted.lease)
    }

    /// Continues a lease that an earlier run of this agent got: the one that its leader or member
    /// key hangs on. The next keep-alive says whether it still lives.
    pub fn adopt(&self, lease: i64) {
        self.state().lease = lease;
    }

    /// Goes on with a lease that the keys were moved to.
    pub(crate) fn replace(&self, lease: i64, ttl: Millis) {
        *self.state() = State { lease, ttl };
    }

    /// The lease; `None` if there is none or it was lost.
    #[must_use]
    pub fn lease_id(&self) -> Option<i64> {
        Some(self.state().lease).filter(|&lease| lease != 0)
    }

    /// The TTL that leases are granted with.
    #[must_use]
    pub fn ttl(&self) -> Millis {
        self.state().ttl
    }

    /// Changes the TTL of the next grant. The present lease keeps its own.
    pub fn set_ttl(&self, ttl: Millis) {
        self.state().ttl = ttl;
    }

    /// Restarts the lease's TTL. When the lease turns out to be gone the session has none any more.
    ///
    /// # Errors
    /// [`Error::NoLease`], `Refused(LeaseNotFound)`, or those of a read.
    pub async fn keep_alive(&self) -> Result<KeepAlive, Error> {
        let lease = self.require("keeping the lease alive")?;
        let answer = self.client.lease_keep_alive_once(lease).await;
        self.note(lease, answer)
    }

    /// Restarts the lease's TTL, or gets a new lease if there is none any more; returns the lease,
    /// and whether it is new, so that the keys have to be written again.
    ///
    /// # Errors
    /// Those of a read.
    pub async fn ensure(&self) -> Result<(i64, bool), Error> {
        if let Some(lease) = self.lease_id() {
            match self.keep_alive().await {
                Ok(_) => return Ok((lease, false)),
                Err(error) if error.refusal() == Some(Refusal::LeaseNotFound) => {}
                Err(error) => return Err(error),
            }
        }
        let ttl = self.ttl();
        Ok((self.grant(ttl).await?, true))
    }

    /// Ends the lease and deletes its keys, the leader key included.
    ///
    /// # Errors
    /// Those of [`Client::lease_revoke`]; the session has no lease any more in any case.
    pub async fn revoke(&self) -> Result<(), Error> {
        let Some(lease) = self.lease_id() else {
            return Ok(());
        };
        self.forget(lease);
        self.client.lease_revoke(lease).await
    }

    /// The lease for an operation that needs one.
    pub(crate) fn require(&self, operation: &'static str) -> Result<i64, Error> {
        self.lease_id().ok_or(Error::NoLease { operation })
    }

    /// Passes an answer on; if it says that `lease` is gone, the session forgets it.
    pub(crate) fn note<T>(&self, lease: i64, answer: Result<T, Error>) -> Result<T, Error> {
        if let Err(error) = &answer
            && error.refusal() == Some(Refusal::LeaseNotFound)
        {
            self.forget(lease);
        }
        answer
    }

    fn forget(&self, lease: i64) {
        let mut state = self.state();
        if state.lease == lease {
            state.lease = 0;
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
