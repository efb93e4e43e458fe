//! The task that all clusters share: it starts the workers, looks at time limits, reads files
//! again, and ends every client at the end.

use std::convert::Infallible;
use std::net::TcpListener;
use std::sync::Arc;
use std::time::Duration;

use route::Port;
use tokio::sync::{Notify, mpsc};
use tokio::time::{MissedTickBehavior, interval, timeout};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::draining::Draining;
use crate::front::Front;
use crate::hot_restart::Drains;
use crate::lanes::Lanes;
use crate::words::Ending;
use crate::worker::{self, Worker};

/// How long clients may take to hear that the proxy stops.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(2);
/// How often the time limits of clients are looked at.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// How long the accept loops may take to end.
const CLOSE_LIMIT: Duration = Duration::from_secs(2);
/// How long it may take to tell the successor.
const TELL_LIMIT: Duration = Duration::from_secs(1);

/// The workers, from outside.
pub(crate) struct Workers {
    close: CancellationToken,
    /// Ends when no worker accepts any more.
    accepting: mpsc::Receiver<Infallible>,
    /// Ends the workers when it is dropped.
    _stop: DropGuard,
}

impl Workers {
    /// Starts the threads that serve clients.
    pub(crate) fn start(front: &Arc<Front>, sockets: &[(Port, TcpListener)]) -> Workers {
        let (stop, close) = (CancellationToken::new(), CancellationToken::new());
        let (open, accepting) = mpsc::channel(1);
        let until = worker::Until { close: close.clone(), accepting: open, stop: stop.clone() };
        let (lanes, given) = Lanes::new(front.config.workers.max(1));
        for (number, given) in given.into_iter().enumerate() {
            // All accept from the same sockets.
            let own =
                sockets.iter().filter_map(|(port, socket)| Some((*port, socket.try_clone().ok()?)));
            let (front, lanes) = (front.clone(), lanes.clone());
            let worker = Worker { front, number, lanes, given };
            let started = worker::start(worker, own.collect(), until.clone());
            if let Err(error) = started {
                tracing::error!(number, %error, "cannot start a worker");
            }
        }
        Workers { close, accepting, _stop: stop.drop_guard() }
    }

    /// Has no client accepted from now on.
    async fn close(&mut self) {
        self.close.cancel();
        let closed = timeout(CLOSE_LIMIT, self.accepting.recv());
        if closed.await.is_err() {
            tracing::error!("a worker does not stop accepting clients");
        }
    }
}

/// Serves until `shutdown`, or until a successor serves and the clients here have gone.
pub(crate) async fn run(
    front: Arc<Front>,
    mut workers: Workers,
    (reload, drains): (Arc<Notify>, Drains),
    shutdown: CancellationToken,
) {
    let mut look = interval(LOOK_INTERVAL);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut draining: Option<Draining> = None;
    loop {
        tokio::select! {
            () = shutdown.cancelled() => break,
            () = drains.begin.cancelled(), if draining.is_none() => {
                workers.close().await;
                draining = Some(Draining::begin(front.clone()));
                drains.begun.send_replace(true);
                // Without a client this is the end, and the successor would take it for a crash.
                timeout(TELL_LIMIT, drains.told.cancelled()).await.unwrap_or_default();
            }
            () = front.gone.notified(), if draining.is_some() => {}
            () = reload.notified() => match front.reload() {
                Ok(()) => tracing::info!("read certificates, users and rules again"),
                Err(error) => tracing::error!(%error, "what cannot be read stays as it was"),
            },
            _ = look.tick() => front.look_at_time_limits(),
        }
        if draining.as_mut().is_some_and(Draining::is_over) {
            break;
        }
    }
    end_all(&front).await;
}

/// Tells every client and waits a moment for them to hear it.
async fn end_all(front: &Front) {
    front.end_all(Ending::Shutdown);
    let all_ended = timeout(SHUTDOWN_TIMEOUT, async {
        while front.count() > 0 {
            front.gone.notified().await;
        }
    });
    if all_ended.await.is_err() {
        let clients = front.count();
        tracing::warn!(clients, "closing clients that did not hear it");
    }
}
