//! A connection to a server, as pools keep them.

use std::mem::MaybeUninit;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use config::ProxyLimits;
use pgproto::wire::CancelKey;
use route::link::{Answers, ClientSide, Output, PoolMode, ServerSide, SessionState};
use route::{Event, Port, ServerId, Target};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt, ReadBuf};
use tokio::sync::oneshot::{self, error::TryRecvError};
use tokio::time::{Instant, timeout};
use types::Millis;

use crate::bytes::Outbox;
use crate::cancel;
use crate::client::Command;
use crate::hub::{Hub, Pool};
use crate::mailbox::{CancelRequest, Mailbox};
use crate::open;
use crate::secure::Stream;
use crate::sockets;

/// A server takes at most so long for DISCARD ALL.
const DISCARD_TIMEOUT: Duration = Duration::from_secs(10);

/// A server that says more than this unasked is not lent any more.
const UNASKED_BYTES_MAX: usize = 1024;

/// One connection, signed in.
#[derive(Debug)]
pub(crate) struct ServerConnection {
    pub(crate) id: ServerId,
    pub(crate) stream: Stream,
    pub(crate) side: ServerSide,
    /// The beginning of a message that is not there yet as far as it must be.
    pub(crate) inbox: Vec<u8>,
    pub(crate) up: Outbox,
    pub(crate) key: CancelKey,
    pub(crate) address: SocketAddr,
    target: Target,
    /// When it was opened, and when nobody had it any more, on the hub's clock.
    pub(crate) opened_at: Millis,
    pub(crate) idle_since: Millis,
    /// Ends with the cancel request that is on its way.
    cancelling: Option<oneshot::Receiver<()>>,
    pool: Arc<Pool>,
    /// Where the client came to who has it, or had it last.
    pub(crate) port: Port,
    /// When it was lent; of a client that keeps it, when its transaction began.
    pub(crate) begun: Instant,
    /// Its client keeps it, and is in no transaction.
    pub(crate) rests: bool,
}

impl ServerConnection {
    pub(crate) fn new(
        (id, pool): (ServerId, Arc<Pool>),
        stream: Stream,
        side: ServerSide,
        key: CancelKey,
        (address, target): (SocketAddr, Target),
    ) -> ServerConnection {
        ServerConnection {
            id,
            stream,
            side,
            inbox: Vec::new(),
            up: Outbox::default(),
            key,
            address,
            target,
            opened_at: Millis::ZERO,
            idle_since: Millis::ZERO,
            cancelling: None,
            pool,
            port: Port::ReadWrite,
            begun: Instant::now(),
            rests: false,
        }
    }

    /// Counts what it has done since it was lent.
    pub(crate) fn account(&mut self, now: Instant) {
        let answers = self.side.take_answers();
        if answers != Answers::default() {
            let took = now.saturating_duration_since(self.begun);
            self.pool.stats.at(self.port).served(answers, took);
        }
        self.begun = now;
    }

    /// Whether an idle connection can still be lent: it has not ended, and has said nothing but
    /// what servers say unasked.
    pub(crate) fn is_alive(&mut self) -> bool {
        let mut bytes = [MaybeUninit::uninit(); UNASKED_BYTES_MAX];
        let mut buffer = ReadBuf::uninit(&mut bytes);
        let mut cx = Context::from_waker(Waker::noop());
        match Pin::new(&mut self.stream).poll_read(&mut cx, &mut buffer) {
            Poll::Pending => true,
            Poll::Ready(Ok(())) if !buffer.filled().is_empty() => {
                self.side.said_unasked(buffer.filled())
            }
            Poll::Ready(_) => false,
        }
    }

    /// Whether it has lived for as long as it may.
    pub(crate) fn is_old(&self, now: Millis, limits: &ProxyLimits) -> bool {
        is_over(now.since(self.opened_at), lifetime(self.id, limits.server_lifetime))
    }

    /// Whether nobody has had it for as long as it may be idle.
    pub(crate) fn is_unused(&self, now: Millis, idle_timeout: Millis) -> bool {
        is_over(now.since(self.idle_since), idle_timeout)
    }

    /// Closes it so that nothing which the kernel still holds reaches the server.
    pub(crate) fn reset(self) {
        sockets::reset(self.stream);
    }

    pub(crate) fn into_parts(self) -> (Stream, ServerSide) {
        (self.stream, self.side)
    }

    /// Sends a cancel request to the server. Until it was taken, the connection is not lent to
    /// anybody else, and has no further statement of its client's: it would hit that one.
    ///
    /// `asks` is given where what runs may be a commit that waits for its standby: the server is
    /// asked first, and if it is so nothing is sent, since the commit would be acknowledged without
    /// its standby.
    pub(crate) fn cancel(
        &mut self,
        owner: Arc<Mailbox<Command>>,
        asks: Option<(Arc<Hub>, Arc<Pool>)>,
        request: Option<CancelRequest>,
    ) {
        if self.is_being_cancelled() {
            return;
        }
        let (address, key, target) = (self.address, self.key.clone(), self.target.clone());
        let (on_its_way, cancelling) = oneshot::channel::<()>();
        self.cancelling = Some(cancelling);
        tokio::spawn(async move {
            let waits = match &asks {
                Some((hub, pool)) => open::waits_for_standby(hub, pool, &target, key.process).await,
                None => false,
            };
            if waits {
                let member = &target.member;
                tracing::info!(%member, "not cancelled: a commit awaits its standby");
            } else {
                cancel::send(address, &key).await;
            }
            drop(request);
            // First, since the owner looks at once.
            drop(on_its_way);
            owner.nudge();
        });
    }

    /// Whether it takes what its client sends.
    pub(crate) fn takes_more(&mut self) -> bool {
        let is_ready = self.up.is_empty() && !self.side.is_settling();
        is_ready && (self.side.owes_answer() || !self.is_being_cancelled())
    }

    pub(crate) fn is_being_cancelled(&mut self) -> bool {
        let goes_on = |end: &mut oneshot::Receiver<()>| end.try_recv() == Err(TryRecvError::Empty);
        self.cancelling.take_if(|end| !goes_on(end));
        self.cancelling.is_some()
    }
}

/// Connections that were opened together, as after a failover, do not all end together: some live
/// for up to an eighth less.
fn lifetime(id: ServerId, limit: Millis) -> Millis {
    Millis(limit.0 - limit.0 / 128 * (id.0 % 16))
}

/// A limit of 0 is none.
fn is_over(span: Millis, limit: Millis) -> bool {
    limit > Millis::ZERO && span >= limit
}

/// Takes a session back to its beginning and gives the connection back; if that does not succeed,
/// it is closed.
pub(crate) async fn discard(hub: Arc<Hub>, mut connection: Box<ServerConnection>) {
    let server = connection.id;
    if let Some(end) = connection.cancelling.take() {
        // It ends by its own limit.
        end.await.unwrap_or_default();
    }
    match timeout(DISCARD_TIMEOUT, discard_all(&mut connection)).await {
        Ok(Some(())) => hub.give_back(connection),
        Ok(None) | Err(_) => hub.step(Event::Lost { server }),
    }
}

async fn discard_all(connection: &mut ServerConnection) -> Option<()> {
    let mut nobody = ClientSide::new(
        PoolMode::Transaction,
        SessionState::Pin,
        Arc::default(),
        connection.side.reported().clone(),
    );
    let mut out = Output::default();
    connection.side.discard(&mut out);
    connection.rests = false;
    connection.stream.write_all(&out.up).await.ok()?;
    let mut bytes = Vec::new();
    while !connection.side.is_at_rest() {
        if connection.stream.read_buf(&mut bytes).await.ok()? == 0 {
            return None;
        }
        let mut rest = bytes.as_slice();
        connection.side.server_sent(&mut nobody, &mut rest, &mut out).ok()?;
        bytes = rest.to_vec();
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lifetimes_are_spread_and_none_is_none() {
        let hour = Millis::from_secs(3600);
        let lives: Vec<Millis> = (0..16).map(|id| lifetime(ServerId(id), hour)).collect();
        assert_eq!((lives[0], lives[15]), (hour, Millis(3_600_000 - 15 * 28_125)));
        assert!(lives.is_sorted_by(|a, b| a > b), "{lives:?}");
        assert_eq!(lifetime(ServerId(7), Millis(1)), Millis(1), "never 0, which is for ever");
        assert!(is_over(hour, hour) && !is_over(Millis(1), hour));
        assert!(!is_over(hour, lifetime(ServerId(3), Millis::ZERO)));
    }
}
