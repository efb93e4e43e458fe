//! One question of our own to a server, while its client is silent.

use std::io;
use std::time::Duration;

use pgproto::wire::{FrameScanner, Step};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// A Query.
const QUESTION: &[u8] = b"Q\0\0\0\x1cSHOW synchronous_commit\0";
/// What a server takes at most for an answer out of its memory.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// More bytes of a row are not kept.
const ROW_BYTES_MAX: usize = 64;
/// In a DataRow, before the first value: the number of values, and the length of the first.
const ROW_HEADER: usize = 6;

/// The session's `synchronous_commit`, whatever role, database or server set it. The server must
/// stand between two requests, and owe nothing.
///
/// # Errors
/// The server closed, was silent, or does not make sense.
pub(crate) async fn synchronous_commit(server: &TcpStream) -> io::Result<Vec<u8>> {
    let answered = timeout(ANSWER_TIMEOUT, async {
        ask(server).await?;
        answer(server).await
    });
    answered.await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

async fn ask(server: &TcpStream) -> io::Result<()> {
    let mut rest = QUESTION;
    while !rest.is_empty() {
        server.writable().await?;
        match server.try_write(rest) {
            Ok(count) => rest = &rest[count..],
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Reads up to ReadyForQuery. Without a row the value is empty.
async fn answer(server: &TcpStream) -> io::Result<Vec<u8>> {
    let mut scanner = FrameScanner::default();
    let (mut row, mut in_row) = (Vec::new(), false);
    let mut buffer = [0; 512];
    loop {
        server.readable().await?;
        let count = match server.try_read(&mut buffer) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
            Err(error) => return Err(error),
        };
        let mut bytes = &buffer[..count];
        loop {
            match scanner.advance(&mut bytes).map_err(io::Error::other)? {
                Step::Begun { tag, .. } => in_row = tag == b'D',
                Step::Body(piece) if in_row && row.len() < ROW_BYTES_MAX => {
                    row.extend_from_slice(piece);
                }
                Step::Ended { tag: b'Z' } => {
                    return Ok(row.get(ROW_HEADER..).unwrap_or_default().to_vec());
                }
                Step::Body(_) | Step::Ended { .. } => {}
                Step::NeedMore => break,
            }
        }
    }
}
