//! Threads that serve clients. Each has a runtime of its own, and a client stays with the one that
//! it was given to, so that nothing of a transaction crosses threads unless a server connection
//! does.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use route::Port;
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Builder;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{interval, sleep};
use tokio_util::sync::CancellationToken;

use crate::client;
use crate::front::{Front, Newcomer};
use crate::lanes::{Accepted, Lanes, Seat};

/// Connections beyond the limit of clients: cancel requests, and clients to be told of the limit.
const CONNECTIONS_BEYOND_LIMIT: usize = 64;
/// Nothing that clients are waited for is due sooner.
const SOON: Duration = Duration::from_secs(1);
/// After a failed accept (no file descriptors left, mostly), and while there are too many.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

/// Until when a worker works.
#[derive(Debug, Clone)]
pub(crate) struct Until {
    /// It accepts no more from here on.
    pub(crate) close: CancellationToken,
    /// Each accept loop has a copy; when the last one is gone, everybody who was accepted counts as
    /// a client.
    pub(crate) accepting: mpsc::Sender<Infallible>,
    /// The end.
    pub(crate) stop: CancellationToken,
}

/// A worker among others.
pub(crate) struct Worker {
    pub(crate) front: Arc<Front>,
    /// Its number, from 0.
    pub(crate) number: usize,
    pub(crate) lanes: Arc<Lanes>,
    /// What others accepted for it.
    pub(crate) given: mpsc::Receiver<Accepted>,
}

/// Starts a worker, which accepts from these sockets.
pub(crate) fn start(
    worker: Worker,
    listeners: Vec<(Port, std::net::TcpListener)>,
    until: Until,
) -> io::Result<JoinHandle<()>> {
    let runtime = Builder::new_current_thread().enable_all().build()?;
    thread::Builder::new().name(format!("proxy-{}", worker.number + 1)).spawn(move || {
        runtime.block_on(run(worker, listeners, until));
        // What still runs had its time; sockets close with it.
        runtime.shutdown_background();
    })
}

async fn run(worker: Worker, listeners: Vec<(Port, std::net::TcpListener)>, until: Until) {
    let Worker { front, number, lanes, mut given } = worker;
    let Until { close, accepting: open, stop } = until;
    // Dropping the set at the end ends the accept loops.
    let mut accepting = JoinSet::new();
    for (port, listener) in listeners {
        match TcpListener::from_std(listener) {
            Ok(listener) => {
                let (front, lanes) = (front.clone(), (lanes.clone(), number));
                accepting.spawn(accept(front, port, listener, lanes, open.clone()));
            }
            Err(error) => tracing::error!(%error, "a worker cannot listen"),
        }
    }
    drop(open);
    // A timer that is due before all others (of logins, mostly): each of those would wake the
    // runtime when it is set, which costs as much as a message.
    let mut soon = interval(SOON);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = close.cancelled(), if !accepting.is_empty() => accepting.shutdown().await,
            _ = soon.tick() => {}
            Some(accepted) = given.recv() => take(accepted),
        }
    }
}

/// Serves a client here.
fn serve(newcomer: Newcomer, port: Port, caller: (TcpStream, SocketAddr), seat: Seat) {
    tokio::spawn(async move {
        client::serve(newcomer, port, caller).await;
        drop(seat);
    });
}

/// Serves a client here that left the runtime of the worker which accepted it.
fn take(accepted: Accepted) {
    let Accepted { newcomer, port, socket, address, seat } = accepted;
    match TcpStream::from_std(socket) {
        Ok(socket) => serve(newcomer, port, (socket, address), seat),
        Err(error) => tracing::warn!(%error, "cannot serve a client of another worker"),
    }
}

/// Gives a client to the worker of its seat.
fn give(lanes: &Arc<Lanes>, own: usize, accepted: Accepted) {
    if let Err(mut accepted) = lanes.send(accepted) {
        accepted.seat = lanes.seat_at(own);
        take(accepted);
    }
}

async fn accept(
    front: Arc<Front>,
    port: Port,
    listener: TcpListener,
    (lanes, own): (Arc<Lanes>, usize),
    _open: mpsc::Sender<Infallible>,
) {
    let most = front.config.client_limit.saturating_add(CONNECTIONS_BEYOND_LIMIT);
    loop {
        if front.count() >= most {
            sleep(ACCEPT_RETRY).await;
            continue;
        }
        match listener.accept().await {
            Ok((socket, address)) => {
                let (newcomer, seat) = (front.enter(), lanes.seat(own));
                if seat.worker() == own {
                    serve(newcomer, port, (socket, address), seat);
                    continue;
                }
                match socket.into_std() {
                    Ok(socket) => {
                        give(&lanes, own, Accepted { newcomer, port, socket, address, seat });
                    }
                    Err(error) => tracing::warn!(%error, "cannot give a client to its worker"),
                }
            }
            Err(error) => {
                tracing::warn!(%error, "cannot accept a client");
                sleep(ACCEPT_RETRY).await;
            }
        }
    }
}
