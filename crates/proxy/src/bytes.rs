//! Reading and writing without buffers of one's own: most connections are idle, and must cost
//! nothing.

use std::cell::{Cell, RefCell};
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use route::link::Output;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// What is read at once. A reader that is slower than its writer has so much waiting for it, and
/// the rest stays with the writer.
pub(crate) const READ_BYTES: usize = 32 * 1024;

thread_local! {
    /// One for each worker.
    static SCRATCH: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// The worker's buffer, as long as this lives.
pub(crate) struct Scratch(Vec<u8>);

impl Scratch {
    pub(crate) fn take() -> Scratch {
        let mut bytes = SCRATCH.take();
        bytes.resize(READ_BYTES, 0);
        Scratch(bytes)
    }

    /// Reads once: how many bytes came, 0 at the stream's end.
    pub(crate) fn poll_read<S: AsyncRead + Unpin>(
        &mut self,
        stream: &mut S,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<usize>> {
        let mut buffer = ReadBuf::new(&mut self.0);
        let ready = Pin::new(stream).poll_read(cx, &mut buffer);
        ready.map_ok(|()| buffer.filled().len())
    }

    /// The first bytes of it.
    pub(crate) fn bytes(&self, count: usize) -> &[u8] {
        &self.0[..count]
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        SCRATCH.set(std::mem::take(&mut self.0));
    }
}

thread_local! {
    static OUTPUT: Cell<Output> = const { Cell::new(Output { up: Vec::new(), down: Vec::new() }) };
}

/// What came out of one look stays in place for the next, up to this much.
const OUTPUT_BYTES_KEPT: usize = 4 * READ_BYTES;

/// Runs `f` with an empty output, whose memory is the worker's.
pub(crate) fn with_output<R>(f: impl FnOnce(&mut Output) -> R) -> R {
    let mut output = OUTPUT.take();
    output.up.clear();
    output.down.clear();
    let result = f(&mut output);
    if output.up.capacity() + output.down.capacity() <= OUTPUT_BYTES_KEPT {
        OUTPUT.set(output);
    }
    result
}

/// Bytes that a stream has not taken yet.
#[derive(Debug, Default)]
pub(crate) struct Outbox {
    bytes: Vec<u8>,
    written: usize,
}

impl Outbox {
    pub(crate) fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Writes at once what the stream takes, and keeps the rest.
    ///
    /// # Errors
    /// The stream's; it is of no use any more.
    pub(crate) fn send<S: AsyncWrite + Unpin>(
        &mut self,
        stream: &mut S,
        cx: &mut Context<'_>,
        mut bytes: &[u8],
    ) -> io::Result<()> {
        if self.bytes.is_empty() {
            while !bytes.is_empty() {
                match Pin::new(&mut *stream).poll_write(cx, bytes) {
                    Poll::Ready(Ok(0)) => return Err(io::ErrorKind::WriteZero.into()),
                    Poll::Ready(Ok(count)) => bytes = &bytes[count..],
                    Poll::Ready(Err(error)) => return Err(error),
                    Poll::Pending => break,
                }
            }
            if bytes.is_empty() {
                return match Pin::new(stream).poll_flush(cx) {
                    Poll::Ready(flushed) => flushed,
                    // The stream has the bytes; it is flushed with the next look at it.
                    Poll::Pending => Ok(()),
                };
            }
        }
        self.bytes.extend_from_slice(bytes);
        Ok(())
    }

    /// Writes what is left; ready when nothing is.
    pub(crate) fn poll_flush<S: AsyncWrite + Unpin>(
        &mut self,
        stream: &mut S,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        while self.written < self.bytes.len() {
            match Pin::new(&mut *stream).poll_write(cx, &self.bytes[self.written..]) {
                Poll::Ready(Ok(0)) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Poll::Ready(Ok(count)) => self.written += count,
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => return Poll::Pending,
            }
        }
        // The memory goes back: the next burst may be long in coming.
        (self.bytes, self.written) = (Vec::new(), 0);
        Pin::new(stream).poll_flush(cx)
    }
}
