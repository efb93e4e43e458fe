//! A new connection to a server: to its port, and for a session of its own up to its first answer.

use std::io;
use std::time::Duration;

use pgproto::wire::sqlstate_of;
use route::Target;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::sockets;

/// The first answer is read in pieces of at most this many bytes, and an error in it that is longer
/// is passed on unread.
const FIRST_ANSWER_BYTES: usize = 8 * 1024;
const HEADER: usize = 5;
/// "The database system is starting up", and its like.
const CANNOT_CONNECT_NOW: &str = "57P03";

/// A connection that the server answered on.
#[derive(Debug)]
pub(crate) struct Opened {
    /// The connection.
    pub(crate) socket: TcpStream,
    /// What the server has said so far; not empty.
    pub(crate) said: Vec<u8>,
}

/// Why an attempt failed. The client has been told nothing, so another one may follow.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OpenError {
    /// No TCP connection.
    #[error("cannot connect")]
    Connect(#[source] io::Error),
    /// No TCP connection in time.
    #[error("no connection within {0:?}")]
    Timeout(Duration),
    /// The connection broke.
    #[error("the server closed before its first answer")]
    Closed(#[source] io::Error),
    /// The server answered that it is starting, stopping or recovering.
    #[error("the server does not take connections now")]
    NotNow,
}

/// Connects to the server's port.
///
/// Cancel safety: dropped half-way it closes the connection.
pub(crate) async fn connect(
    target: &Target,
    connect_timeout: Duration,
    user_timeout: Option<Duration>,
) -> Result<TcpStream, OpenError> {
    let connected =
        timeout(connect_timeout, TcpStream::connect((target.host.as_str(), target.port)));
    let socket = match connected.await {
        Ok(Ok(socket)) => socket,
        Ok(Err(error)) => return Err(OpenError::Connect(error)),
        Err(_) => return Err(OpenError::Timeout(connect_timeout)),
    };
    sockets::prepare(&socket, user_timeout);
    Ok(socket)
}

/// Connects, sends the startup packet and waits for the first answer. How long that takes is
/// bounded by the client's hold time, which the router watches.
///
/// Cancel safety: dropped half-way it closes the connection; the startup packet may be sent.
pub(crate) async fn open(
    target: &Target,
    startup: &[u8],
    connect_timeout: Duration,
    user_timeout: Option<Duration>,
) -> Result<Opened, OpenError> {
    let mut socket = connect(target, connect_timeout, user_timeout).await?;
    socket.write_all(startup).await.map_err(OpenError::Closed)?;
    let said = first_answer(&mut socket).await.map_err(OpenError::Closed)?;
    if is_not_now(&said) {
        return Err(OpenError::NotNow);
    }
    Ok(Opened { socket, said })
}

/// Reads something, and the whole message if it is an error of ordinary size.
async fn first_answer(socket: &mut TcpStream) -> io::Result<Vec<u8>> {
    let mut said = Vec::with_capacity(FIRST_ANSWER_BYTES);
    loop {
        if socket.read_buf(&mut said).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let is_error = said.first() == Some(&b'E');
        if !is_error || said.len() >= FIRST_ANSWER_BYTES || error_body(&said).is_some() {
            return Ok(said);
        }
    }
}

fn is_not_now(said: &[u8]) -> bool {
    error_body(said).and_then(sqlstate_of) == Some(CANNOT_CONNECT_NOW)
}

/// The body of the error message at the beginning, if it is there as a whole.
fn error_body(said: &[u8]) -> Option<&[u8]> {
    let ([b'E', length @ ..], _) = said.split_first_chunk::<HEADER>()? else {
        return None;
    };
    let length = usize::try_from(u32::from_be_bytes(*length)).ok()?;
    said.get(HEADER..length.checked_add(1)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_whole_error_is_looked_into() {
        let error = b"E\0\0\0\x13SFATAL\0C57P03\0\0";
        for cut in 0..error.len() {
            assert!(!is_not_now(&error[..cut]), "{cut} bytes");
        }
        assert!(is_not_now(error));
        assert!(!is_not_now(b"R\0\0\0\x08\0\0\0\0"));
        assert!(!is_not_now(b"E\xff\xff\xff\xff"));
    }
}
