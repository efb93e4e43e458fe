//! Options of TCP sockets, and how one is closed.

use std::io;
use std::os::fd::AsFd;
use std::time::Duration;

use rustix::net::sockopt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::secure::Stream;

/// An idle connection is probed after this much silence, …
const KEEPALIVE_IDLE: Duration = Duration::from_secs(10);
/// … again after this much, …
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(3);
/// … and is dead after so many probes without an answer: 19 s in all.
const KEEPALIVE_PROBES: u32 = 3;
/// How long a last word to a client may take to be written.
const LAST_WORD_TIMEOUT: Duration = Duration::from_secs(1);
/// How long a client may take to close after it was told goodbye.
const GOODBYE_TIMEOUT: Duration = Duration::from_millis(500);

/// Sets what every connection of the proxy has. A socket that refuses an option still works.
/// On Linux a socket has what the one has that accepted it: listeners are prepared, not clients.
pub(crate) fn prepare(socket: &impl AsFd, user_timeout: Option<Duration>) {
    if let Err(error) = set_options(socket, user_timeout) {
        tracing::debug!(%error, "cannot set an option of a TCP socket");
    }
}

fn set_options(socket: &impl AsFd, user_timeout: Option<Duration>) -> io::Result<()> {
    sockopt::set_tcp_nodelay(socket, true)?;
    sockopt::set_socket_keepalive(socket, true)?;
    sockopt::set_tcp_keepidle(socket, KEEPALIVE_IDLE)?;
    sockopt::set_tcp_keepintvl(socket, KEEPALIVE_INTERVAL)?;
    sockopt::set_tcp_keepcnt(socket, KEEPALIVE_PROBES)?;
    // 0 is the system's own, also for a socket that an earlier proxy had other ideas about.
    let limit = user_timeout.unwrap_or_default();
    sockopt::set_tcp_user_timeout(socket, u32::try_from(limit.as_millis()).unwrap_or(u32::MAX))?;
    Ok(())
}

/// Closes a connection to a server so that nothing which the kernel still holds reaches it.
pub(crate) fn reset(stream: Stream) {
    if let Err(error) = sockopt::set_socket_linger(stream.socket(), Some(Duration::ZERO)) {
        tracing::debug!(%error, "cannot reset a TCP socket, closing it");
    }
    drop(stream);
}

/// Writes a last message and closes. A socket that is closed with unread input resets the
/// connection, and the client may lose the message; so what it still sends is read for a moment.
pub(crate) async fn say_goodbye(mut socket: Stream, message: &[u8]) {
    let told = timeout(LAST_WORD_TIMEOUT, async {
        socket.write_all(message).await?;
        socket.shutdown().await
    });
    if !matches!(told.await, Ok(Ok(()))) {
        return;
    }
    let mut discarded = [0; 1024];
    let drained = timeout(GOODBYE_TIMEOUT, async {
        while socket.read(&mut discarded).await.is_ok_and(|count| count > 0) {}
    });
    // A client that does not close in time is closed from here.
    drained.await.unwrap_or_default();
}

/// Completes when the peer has closed, and never while it has sent something unread.
///
/// Cancel safety: safe, nothing is taken from the socket.
pub(crate) async fn closed_by_peer(socket: &TcpStream) {
    if socket.peek(&mut [0]).await.is_ok_and(|count| count > 0) {
        std::future::pending::<()>().await;
    }
}
