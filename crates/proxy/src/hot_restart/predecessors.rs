//! Proxies that drain after this one has taken their sockets: cancel requests for their clients
//! come here.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use pgproto::wire::CancelKey;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::timeout;

use super::ANSWER_LIMIT;
use super::wire::{Message, Talk, TalkError};

/// Requests that wait for one proxy; more are dropped.
const REQUESTS_MAX: usize = 64;
/// How long one request takes in all, at most.
const REQUEST_LIMIT: Duration = Duration::from_secs(5);
/// How long a take-over may leave open who drains.
const SETTLE_LIMIT: Duration = Duration::from_secs(12);

const _: () = assert!(ANSWER_LIMIT.as_millis() < SETTLE_LIMIT.as_millis());

/// A connection to one that drains.
#[derive(Debug)]
pub(crate) struct Predecessor {
    /// What its keys have in common.
    pub(crate) mark: u16,
    pub(crate) talk: Talk,
}

/// One request, and whom to tell that it was handed on.
type Request = (CancelKey, oneshot::Sender<()>);

#[derive(Debug, Clone)]
struct Known {
    mark: u16,
    requests: mpsc::Sender<Request>,
    talk: Arc<Talk>,
}

impl Known {
    /// Whether it is there still, and these are its keys.
    fn serves(&self, mark: u16) -> bool {
        self.mark == mark && !self.requests.is_closed()
    }
}

/// All that drain. One for each restart within `drain_timeout`.
#[derive(Debug)]
pub(crate) struct Predecessors {
    known: Mutex<Vec<Known>>,
    /// It is known who they are.
    settled: watch::Sender<bool>,
}

impl Default for Predecessors {
    fn default() -> Predecessors {
        Predecessors { known: Mutex::default(), settled: watch::Sender::new(true) }
    }
}

impl Predecessors {
    /// A take-over goes on: requests wait until it is known who drains.
    pub(crate) fn are_coming(&self) {
        self.settled.send_replace(false);
    }

    /// These drain; requests are handed on to them from now on.
    pub(crate) fn are(&self, predecessors: Vec<Predecessor>) {
        for Predecessor { mark, talk } in predecessors {
            let (requests, waiting) = mpsc::channel(REQUESTS_MAX);
            let talk = Arc::new(talk);
            tokio::spawn(serve(talk.clone(), waiting));
            self.lock().push(Known { mark, requests, talk });
        }
        self.settled.send_replace(true);
    }

    /// Nothing is handed on any more: a successor does it.
    pub(crate) fn forget(&self) {
        self.lock().clear();
    }

    /// Hands a cancel request on to those whose keys have its mark; `false` if there are none.
    /// Completes when it has arrived.
    pub(crate) async fn cancel(&self, key: &CancelKey, mark: u16) -> bool {
        let mut settled = self.settled.subscribe();
        // Where it does not settle nobody is known to drain.
        drop(timeout(SETTLE_LIMIT, settled.wait_for(|settled| *settled)).await);
        let theirs: Vec<Known> =
            self.lock().iter().filter(|known| known.serves(mark)).cloned().collect();
        for one in &theirs {
            let (done, arrived) = oneshot::channel();
            if one.requests.try_send((key.clone(), done)).is_ok() {
                // The error is that of a proxy that has ended, and its clients with it.
                let arrived = async { arrived.await.unwrap_or_default() };
                timeout(REQUEST_LIMIT, arrived).await.unwrap_or_default();
            }
        }
        !theirs.is_empty()
    }

    /// Copies of the connections, for a successor.
    pub(crate) fn copies(&self) -> Vec<(u16, OwnedFd)> {
        let mut known = self.lock();
        known.retain(|known| !known.requests.is_closed());
        let copy = |known: &Known| {
            let file = known.talk.stream().as_fd().try_clone_to_owned().ok()?;
            Some((known.mark, file))
        };
        known.iter().filter_map(copy).collect()
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Known>> {
        // Every change is one call, so a panic elsewhere leaves it whole.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Hands requests on until the proxy has ended, or a successor does it.
async fn serve(talk: Arc<Talk>, mut requests: mpsc::Receiver<Request>) {
    loop {
        let (key, done) = tokio::select! {
            request = requests.recv() => match request {
                Some(request) => request,
                None => return,
            },
            // It says nothing by itself, so this is its end.
            () = talk.until_it_speaks() => return,
        };
        if let Err(error) = hand_on(&talk, key).await {
            tracing::debug!(%error, "cannot hand a cancel request on to a proxy that drains");
            return;
        }
        // Nobody waits any more if its time was up.
        done.send(()).unwrap_or_default();
    }
}

async fn hand_on(talk: &Talk, key: CancelKey) -> Result<(), TalkError> {
    let cancel = Message::Cancel { process: key.process, secret: key.secret };
    talk.send(&cancel, None).await?;
    talk.receive(REQUEST_LIMIT).await.map(drop)
}
