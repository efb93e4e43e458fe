//! The task that all clusters share: it starts the workers, looks at time limits, reads files
//! again, and ends every client at the end.

use std::sync::Arc;
use std::time::Duration;

use route::Port;
use tokio::net::TcpListener;
use tokio::sync::Notify;
use tokio::time::{MissedTickBehavior, interval, timeout};
use tokio_util::sync::CancellationToken;

use crate::front::Front;
use crate::words::Ending;
use crate::worker;

/// How long clients may take to hear that the proxy stops.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(2);
/// How often the time limits of clients are looked at.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// Serves until `shutdown`.
pub(crate) async fn run(
    front: Arc<Front>,
    listeners: Vec<(Port, TcpListener)>,
    reload: Arc<Notify>,
    shutdown: CancellationToken,
) {
    let stop = CancellationToken::new();
    let _stop_at_the_end = stop.clone().drop_guard();
    start_workers(&front, listeners, &stop);
    let mut look = interval(LOOK_INTERVAL);
    look.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = shutdown.cancelled() => break,
            () = reload.notified() => match front.reload() {
                Ok(()) => tracing::info!("read certificates, users and rules again"),
                Err(error) => tracing::error!(%error, "what cannot be read stays as it was"),
            },
            _ = look.tick() => front.look_at_time_limits(),
        }
    }
    end_all(&front).await;
}

fn start_workers(
    front: &Arc<Front>,
    listeners: Vec<(Port, TcpListener)>,
    stop: &CancellationToken,
) {
    let sockets: Vec<(Port, std::net::TcpListener)> = listeners
        .into_iter()
        .filter_map(|(port, listener)| Some((port, listener.into_std().ok()?)))
        .collect();
    for number in 1..=front.config.workers.max(1) {
        // All accept from the same sockets: who is idle takes the next client.
        let own =
            sockets.iter().filter_map(|(port, socket)| Some((*port, socket.try_clone().ok()?)));
        let started = worker::start(number, front.clone(), own.collect(), stop.clone());
        if let Err(error) = started {
            tracing::error!(number, %error, "cannot start a worker");
        }
    }
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
