//! Whole messages of a connection, bounded.

use std::io;

use pgproto::wire::LoginMessageError;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use zeroize::Zeroizing;

const HEADER: usize = 5;
const LENGTH_WORD: usize = 4;
/// Room for a read: the whole login of a server fits in.
const READ_BYTES: usize = 4 * 1024;

/// Why the next message cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum MessageError {
    /// The connection broke.
    #[error("the connection broke")]
    Broken(#[source] io::Error),
    /// The other side closed in order.
    #[error("the other side closed the connection")]
    Closed,
    /// The message is too long, or its length is none.
    #[error("a message of type {tag:#04x} announces {length} bytes, allowed are {limit}")]
    Length {
        /// Its type.
        tag: u8,
        /// What its length word says.
        length: u32,
        /// How long its body may be, in bytes.
        limit: usize,
    },
    /// What is in it cannot be.
    #[error(transparent)]
    Content(#[from] LoginMessageError),
}

/// A connection as messages. `unread` holds what has been read of it and not yet been taken, before
/// and after.
pub(crate) struct Messages<'a, S> {
    stream: &'a mut S,
    unread: &'a mut Vec<u8>,
}

/// A message.
pub(crate) struct Message {
    pub(crate) tag: u8,
    /// A password may be in it.
    pub(crate) body: Zeroizing<Vec<u8>>,
}

impl<'a, S: AsyncRead + AsyncWrite + Unpin> Messages<'a, S> {
    pub(crate) fn new(stream: &'a mut S, unread: &'a mut Vec<u8>) -> Messages<'a, S> {
        Messages { stream, unread }
    }

    /// The next message, whose body is no longer than `limit` bytes.
    pub(crate) async fn next(&mut self, limit: usize) -> Result<Message, MessageError> {
        loop {
            if let Some(message) = self.take(limit)? {
                return Ok(message);
            }
            self.unread.reserve(READ_BYTES);
            match self.stream.read_buf(self.unread).await {
                Ok(0) => return Err(MessageError::Closed),
                Ok(_) => {}
                Err(error) => return Err(MessageError::Broken(error)),
            }
        }
    }

    fn take(&mut self, limit: usize) -> Result<Option<Message>, MessageError> {
        let Some([tag, length @ ..]) = self.unread.first_chunk::<HEADER>() else {
            return Ok(None);
        };
        let (tag, length) = (*tag, u32::from_be_bytes(*length));
        let body_bytes = usize::try_from(length).ok().and_then(|n| n.checked_sub(LENGTH_WORD));
        let Some(body_bytes) = body_bytes.filter(|bytes| *bytes <= limit) else {
            return Err(MessageError::Length { tag, length, limit });
        };
        let end = HEADER + body_bytes;
        let Some(body) = self.unread.get(HEADER..end) else {
            return Ok(None);
        };
        let body = Zeroizing::new(body.to_vec());
        self.unread.drain(..end);
        Ok(Some(Message { tag, body }))
    }

    pub(crate) async fn send(&mut self, bytes: &[u8]) -> Result<(), MessageError> {
        let sent = async {
            self.stream.write_all(bytes).await?;
            self.stream.flush().await
        };
        sent.await.map_err(MessageError::Broken)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn messages_come_whole_and_bounded() {
        let (mut near, mut far) = tokio::io::duplex(8);
        let (mut unread, mut none) = (b"A\0\0".to_vec(), Vec::new());
        let send = async {
            Messages::new(&mut far, &mut none).send(b"\0\x06abB\0\0\0\x04C\0\0\0\x07").await
        };
        let read = async {
            let mut messages = Messages::new(&mut near, &mut unread);
            let first = messages.next(2).await.expect("a message");
            assert_eq!((first.tag, &first.body[..]), (b'A', &b"ab"[..]));
            let second = messages.next(0).await.expect("a message");
            assert_eq!((second.tag, second.body.len()), (b'B', 0));
            let third = messages.next(2).await.err();
            assert!(matches!(third, Some(MessageError::Length { tag: b'C', length: 7, .. })));
        };
        let (sent, ()) = tokio::join!(send, read);
        sent.expect("sent");
        drop(far);
        let mut unread = b"D\0\0\0\x03".to_vec();
        let end = Messages::new(&mut near, &mut unread).next(9).await.err();
        assert!(matches!(end, Some(MessageError::Length { length: 3, .. })), "{end:?}");
        let mut unread = Vec::new();
        let end = Messages::new(&mut near, &mut unread).next(9).await.err();
        assert!(matches!(end, Some(MessageError::Closed)), "{end:?}");
    }
}
