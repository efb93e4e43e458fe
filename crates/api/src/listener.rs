//! A listener with bounds: so many connections, and none that is silent for long. Slow or idle
//! clients cannot starve health checks. With TLS, each connection shakes hands when it is first
//! read, so that nobody waits for another's handshake. It moves when the door does.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::OnceLock;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::extract::connect_info::Connected;
use axum::serve::IncomingStream;
use tls::{Handshake, Stream};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::{Instant, Sleep};

use crate::bind::bind;
use crate::door::{Door, Place};

/// What a listener takes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bounds {
    /// Connections at a time; the next ones wait in the kernel's backlog.
    pub(crate) connections: usize,
    /// A connection on which nothing moves for this long is cut.
    pub(crate) silence: Duration,
    /// A handshake of TLS is done within this.
    pub(crate) handshake: Duration,
}

impl Bounds {
    /// The agent's. The silence is above twice the usual `loop_wait`, which a switchover's client
    /// waits.
    pub(crate) const OF_AGENT: Bounds = Bounds {
        connections: 256,
        silence: Duration::from_secs(180),
        handshake: Duration::from_secs(10),
    };
}

/// Between two attempts to open where nothing is open any more.
const REOPEN_PAUSE: Duration = Duration::from_secs(5);

pub(crate) struct Bounded {
    /// `None` after a move that failed, back included.
    listener: Option<TcpListener>,
    /// Where it is, if the door says so.
    at: Option<Place>,
    bounds: Bounds,
    permits: Arc<Semaphore>,
    door: watch::Receiver<Arc<Door>>,
}

impl Bounded {
    pub(crate) fn new(
        listener: TcpListener,
        door: watch::Receiver<Arc<Door>>,
        bounds: Bounds,
    ) -> Bounded {
        let permits = Arc::new(Semaphore::new(bounds.connections));
        let at = door.borrow().at.clone();
        Bounded { listener: Some(listener), at, bounds, permits, door }
    }

    /// The next connection; `None` when the door has changed, or a new attempt to open is due.
    async fn next(&mut self) -> Option<(TcpStream, SocketAddr)> {
        let Bounded { listener, door, .. } = self;
        let connection = async {
            match listener {
                // axum's own accept waits and goes on after errors such as too many open files.
                Some(listener) => Some(axum::serve::Listener::accept(listener).await),
                None => {
                    tokio::time::sleep(REOPEN_PAUSE).await;
                    None
                }
            }
        };
        let changed = async {
            // Nobody changes a door whose owner is gone.
            if door.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        };
        tokio::select! {
            connection = connection => connection,
            () = changed => None,
        }
    }

    /// Goes to where the door is now. The old place is kept until the new one is open, unless they
    /// overlap.
    async fn follow_the_door(&mut self) {
        let wanted = self.door.borrow_and_update().at.clone();
        let Some(wanted) = wanted.or_else(|| self.at.clone()) else { return };
        let moves = self.at.as_ref().is_none_or(|at| at.listen != wanted.listen);
        if !moves && self.listener.is_some() {
            return;
        }
        let mut opened = bind(&wanted).await;
        if moves && opened.as_ref().is_err_and(|e| e.kind() == io::ErrorKind::AddrInUse) {
            self.listener = None;
            opened = bind(&wanted).await;
        }
        match opened {
            Ok(listener) => {
                tracing::info!(listen = %wanted.listen, "the REST interface listens here now");
                self.listener = Some(listener);
                self.at = Some(wanted);
            }
            Err(error) => {
                let listen = &wanted.listen;
                tracing::error!(%error, %listen, "cannot listen there (restapi.listen)");
                if let (None, Some(at)) = (&self.listener, &self.at) {
                    self.listener = bind(at).await.ok();
                }
            }
        }
    }
}

impl axum::serve::Listener for Bounded {
    type Io = Connection;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Connection, SocketAddr) {
        let permit = Arc::clone(&self.permits).acquire_owned().await;
        let permit = permit.expect("this semaphore is never closed");
        let (stream, address) = loop {
            match self.next().await {
                Some(connection) => break connection,
                None => self.follow_the_door().await,
            }
        };
        let caller = Arc::new(Caller { address, certified: OnceLock::new() });
        let acceptor = self.door.borrow().tls.clone();
        let bounds = self.bounds;
        let (stage, patience) = match acceptor {
            None => (Stage::Open(Stream::Plain(stream)), bounds.silence),
            Some(acceptor) => (Stage::Greeting(acceptor.accept(stream)), bounds.handshake),
        };
        let silence = Box::pin(tokio::time::sleep(patience));
        let silence_max = bounds.silence;
        (Connection { stage, caller, silence, silence_max, _permit: permit }, address)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        let listener = self.listener.as_ref().ok_or(io::ErrorKind::NotConnected)?;
        listener.local_addr()
    }
}

/// Who is at the other end of a connection.
#[derive(Debug)]
pub(crate) struct Caller {
    /// Where it comes from.
    pub(crate) address: SocketAddr,
    /// Set when hands are shaken: whether a certificate was shown.
    certified: OnceLock<bool>,
}

impl Caller {
    /// Whether it has shown a certificate that is believed; `None` without TLS.
    pub(crate) fn certified(&self) -> Option<bool> {
        self.certified.get().copied()
    }
}

/// [`Caller`], as requests carry it.
#[derive(Debug, Clone)]
pub(crate) struct CalledBy(pub(crate) Arc<Caller>);

impl Connected<IncomingStream<'_, Bounded>> for CalledBy {
    fn connect_info(stream: IncomingStream<'_, Bounded>) -> CalledBy {
        CalledBy(Arc::clone(&stream.io().caller))
    }
}

enum Stage {
    Greeting(Handshake<TcpStream>),
    Open(Stream<TcpStream>),
    /// The handshake failed, and the other side was told why.
    Failed,
}

pub(crate) struct Connection {
    stage: Stage,
    caller: Arc<Caller>,
    silence: Pin<Box<Sleep>>,
    silence_max: Duration,
    _permit: OwnedSemaphorePermit,
}

impl Connection {
    /// The socket, for its options; `None` before hands are shaken.
    pub(crate) fn socket(&self) -> Option<&TcpStream> {
        match &self.stage {
            Stage::Open(stream) => Some(stream.socket()),
            Stage::Greeting(_) | Stage::Failed => None,
        }
    }

    /// The stream, once hands are shaken.
    fn open(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<&mut Stream<TcpStream>>> {
        if let Stage::Greeting(handshake) = &mut self.stage {
            match ready!(Pin::new(handshake).poll(cx)) {
                Ok(stream) => {
                    self.caller.certified.get_or_init(|| stream.is_certified());
                    self.stage = Stage::Open(stream);
                }
                Err(error) => {
                    self.stage = Stage::Failed;
                    tracing::debug!(from = %self.caller.address, %error, "no TLS connection");
                    return Poll::Ready(Err(error));
                }
            }
        }
        Poll::Ready(match &mut self.stage {
            Stage::Open(stream) => Ok(stream),
            Stage::Greeting(_) | Stage::Failed => Err(io::ErrorKind::NotConnected.into()),
        })
    }

    /// Passes what the stream said on, unless it has been silent for too long.
    fn watched<T>(
        &mut self,
        cx: &mut Context<'_>,
        poll: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if poll.is_ready() {
            self.silence.as_mut().reset(Instant::now() + self.silence_max);
            return poll;
        }
        match self.silence.as_mut().poll(cx) {
            Poll::Ready(()) => Poll::Ready(Err(io::ErrorKind::TimedOut.into())),
            Poll::Pending => Poll::Pending,
        }
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let poll = match self.open(cx) {
            Poll::Ready(Ok(stream)) => Pin::new(stream).poll_read(cx, buffer),
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            Poll::Pending => Poll::Pending,
        };
        self.watched(cx, poll)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let poll = match self.open(cx) {
            Poll::Ready(Ok(stream)) => Pin::new(stream).poll_write(cx, bytes),
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            Poll::Pending => Poll::Pending,
        };
        self.watched(cx, poll)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match ready!(self.open(cx)) {
            Ok(stream) => Pin::new(stream).poll_flush(cx),
            Err(error) => Poll::Ready(Err(error)),
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.stage {
            Stage::Open(stream) => Pin::new(stream).poll_shutdown(cx),
            Stage::Greeting(_) | Stage::Failed => Poll::Ready(Ok(())),
        }
    }
}
