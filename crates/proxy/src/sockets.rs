//! Options of TCP sockets, and how one is closed.

use std::ffi::{c_int, c_void};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
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
/// A client that has not said anything after this long is accepted all the same.
const SILENCE_LIMIT: Duration = Duration::from_secs(10);
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

/// Has clients accepted when they have said something: clients of PostgreSQL speak first, and a
/// worker is woken once for both.
pub(crate) fn accept_who_speaks(listener: &impl AsFd) {
    if let Err(error) = defer_accept(listener.as_fd()) {
        tracing::debug!(%error, "clients are accepted before they speak");
    }
}

fn defer_accept(listener: BorrowedFd<'_>) -> io::Result<()> {
    /// `IPPROTO_TCP` and `TCP_DEFER_ACCEPT` of tcp(7).
    const TCP: c_int = 6;
    const DEFER_ACCEPT: c_int = 9;
    let seconds = c_int::try_from(SILENCE_LIMIT.as_secs()).unwrap_or(c_int::MAX);
    let length = u32::try_from(size_of::<c_int>()).unwrap_or_default();
    // SAFETY: the call reads one C int, which outlives it, and changes nothing in memory.
    #[allow(unsafe_code)] // neither the standard library nor rustix has this option of listeners
    let result = unsafe {
        setsockopt(listener.as_raw_fd(), TCP, DEFER_ACCEPT, (&raw const seconds).cast(), length)
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[allow(unsafe_code)] // as above
unsafe extern "C" {
    fn setsockopt(
        socket: RawFd,
        level: c_int,
        name: c_int,
        value: *const c_void,
        length: u32,
    ) -> c_int;
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
