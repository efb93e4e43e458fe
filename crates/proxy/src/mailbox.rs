//! What the hub wants of one client's task.

use std::future::poll_fn;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use tokio::sync::watch;

use crate::time_limits::Watch;

/// Room for the newest command, and requests to cancel and to drain. One task reads it.
#[derive(Debug)]
pub(crate) struct Mailbox<C> {
    slot: Mutex<Slot<C>>,
    /// Something was put in since the task last found nothing, or its waker is not there.
    news: AtomicBool,
    /// How long the client has been doing what it does.
    pub(crate) watch: Watch,
}

/// Somebody asks for what runs to be cancelled, and waits. Dropping it says that it was done, or
/// that there was nothing to cancel: a client that goes on before may have its next statement hit,
/// for PostgreSQL signals a server process twice.
#[derive(Debug)]
pub(crate) struct CancelRequest(watch::Sender<()>);

#[derive(Debug)]
struct Slot<C> {
    command: Option<C>,
    cancel: Option<CancelRequest>,
    drain: bool,
    waker: Option<Waker>,
}

impl<C> Default for Mailbox<C> {
    fn default() -> Mailbox<C> {
        let slot = Slot { command: None, cancel: None, drain: false, waker: None };
        let news = AtomicBool::new(true);
        Mailbox { slot: Mutex::new(slot), news, watch: Watch::default() }
    }
}

impl<C> Mailbox<C> {
    /// Puts a command in the place of any earlier one that was not taken yet, which is returned.
    pub(crate) fn post(&self, command: C) -> Option<C> {
        self.put(|slot| slot.command.replace(command))
    }

    /// Asks for the running statement to be cancelled. What is returned completes when that was
    /// done; several who ask before the task looks share one request.
    ///
    /// Cancel safety: safe.
    pub(crate) fn post_cancel(&self) -> impl Future<Output = ()> + use<C> {
        let mut done = self.put(|slot| {
            let new = || CancelRequest(watch::Sender::new(()));
            slot.cancel.get_or_insert_with(new).0.subscribe()
        });
        // Nothing is ever sent: it ends with the sender.
        async move { drop(done.changed().await) }
    }

    /// Asks for the session to end as soon as it is in no transaction.
    pub(crate) fn post_drain(&self) {
        self.put(|slot| slot.drain = true);
    }

    /// Wakes the client's task, which looks what has changed.
    pub(crate) fn nudge(&self) {
        self.put(|_| ());
    }

    fn put<R>(&self, change: impl FnOnce(&mut Slot<C>) -> R) -> R {
        let mut slot = self.lock();
        let result = change(&mut slot);
        self.news.store(true, Ordering::Release);
        let waker = slot.waker.take();
        drop(slot);
        if let Some(waker) = waker {
            waker.wake();
        }
        result
    }

    /// Whether there is anything to take; no look under the lock is needed otherwise. For a task
    /// whose wakers are all the same.
    pub(crate) fn has_news(&self) -> bool {
        // Whoever puts something in wakes the task after that, so that it looks again.
        self.news.load(Ordering::Acquire)
    }

    /// Takes the command, if there is one.
    pub(crate) fn poll_take(&self, cx: &Context<'_>) -> Poll<C> {
        let mut slot = self.lock();
        match slot.command.take() {
            Some(command) => Poll::Ready(command),
            None => {
                if slot.waker.as_ref().is_none_or(|waker| !waker.will_wake(cx.waker())) {
                    slot.waker = Some(cx.waker().clone());
                }
                self.news.store(slot.cancel.is_some(), Ordering::Release);
                Poll::Pending
            }
        }
    }

    /// What was asked for since the last call.
    pub(crate) fn take_cancel(&self) -> Option<CancelRequest> {
        self.lock().cancel.take()
    }

    /// Whether the session is to end when it is in no transaction.
    pub(crate) fn drains(&self) -> bool {
        self.lock().drain
    }

    /// It goes on after all.
    pub(crate) fn forget_drain(&self) {
        self.lock().drain = false;
    }

    /// The next command.
    ///
    /// Cancel safety: safe, a command that was not taken stays.
    pub(crate) async fn next(&self) -> C {
        poll_fn(|cx| self.poll_take(cx)).await
    }

    fn lock(&self) -> MutexGuard<'_, Slot<C>> {
        // Every change is a single assignment, so a panic elsewhere leaves it whole.
        self.slot.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
