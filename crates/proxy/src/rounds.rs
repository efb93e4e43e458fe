//! What clients whose reads are split and the prober have in common. Nobody else looks here.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use route::Round;
use tokio::sync::Notify;

use crate::hub::Pool;

/// The questions to the primary, and whether anybody needs them.
#[derive(Debug, Default)]
pub(crate) struct Rounds {
    begun: AtomicU64,
    /// Somebody has wanted to read since this was looked at.
    wanted: AtomicBool,
    wake: Notify,
    /// The pool of the client that came last: its user can sign in at the servers.
    asker: Mutex<Option<Arc<Pool>>>,
}

impl Rounds {
    /// A client is there whose reads are split.
    pub(crate) fn enter(&self, pool: Arc<Pool>) {
        *self.asker.lock().unwrap_or_else(PoisonError::into_inner) = Some(pool);
        self.want();
    }

    /// A client wants to read.
    pub(crate) fn want(&self) {
        if !self.wanted.load(Ordering::Relaxed) && !self.wanted.swap(true, Ordering::Relaxed) {
            self.wake.notify_one();
        }
    }

    /// The last question that was begun. Asked by a client whose write was acknowledged before:
    /// every later question is sent after that.
    pub(crate) fn last(&self) -> Round {
        Round(self.begun.load(Ordering::SeqCst))
    }

    /// The number of the next question, which is sent after this.
    pub(crate) fn begin(&self) -> Round {
        Round(self.begun.fetch_add(1, Ordering::SeqCst) + 1)
    }

    /// Whether somebody has wanted to read since the last call.
    pub(crate) fn take_wanted(&self) -> bool {
        self.wanted.swap(false, Ordering::Relaxed)
    }

    /// Completes when somebody wants to read.
    ///
    /// Cancel safety: safe.
    pub(crate) async fn wanted(&self) {
        while !self.wanted.load(Ordering::Relaxed) {
            self.wake.notified().await;
        }
    }

    /// By whose credentials the servers are asked.
    pub(crate) fn asker(&self) -> Option<Arc<Pool>> {
        self.asker.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
