//! Bytes of one session, both ways.

use std::io;
use std::ops::Range;

use pgproto::wire::{Exchange, FrameError};
use tokio::net::TcpStream;
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::sync::watch;

use crate::cancel::{CancelKeys, KnownKey};
use crate::client::Command;
use crate::lowering::{STATEMENT_BYTES_MAX, Statements};
use crate::question;

/// What one direction holds at most. Nothing is read before it has been written on, so a slow
/// reader slows its writer.
const BUFFER_BYTES: usize = 16 * 1024;

// Whatever is held back until it is whole leaves room to read on.
const _: () = assert!(STATEMENT_BYTES_MAX <= BUFFER_BYTES);

/// How a relay ended.
#[derive(Debug)]
pub(crate) enum End {
    /// The client closed or cannot be reached.
    ClientGone,
    /// The server closed or cannot be reached.
    ServerGone,
    /// The core has another command.
    Commanded,
    /// The session has `synchronous_commit` lowered, which is refused.
    Lowered,
    /// The client's bytes make no sense.
    ClientBroken(FrameError),
    /// The server's bytes make no sense.
    ServerBroken(FrameError),
}

/// Relays between client and server until either side ends or a command comes. `said` is what the
/// server said already. In the end `exchange` tells where the session stands.
pub(crate) async fn relay(
    (client, server): (&mut TcpStream, &mut TcpStream),
    said: Vec<u8>,
    exchange: &mut Exchange,
    statements: &mut Statements<'_>,
    commands: &mut watch::Receiver<Command>,
    cancel_keys: (&CancelKeys, u64),
) -> End {
    let server_address = server.peer_addr().ok();
    let (client_read, client_write) = client.split();
    let (server_read, server_write) = server.split();
    let mut up = Pipe { buffer: Vec::new(), written: 0, ready: 0 };
    let mut down = Pipe { ready: said.len(), buffer: said, written: 0 };
    let mut server_writable = true;
    let mut known_key: Option<KnownKey> = None;
    loop {
        let turned = tokio::select! {
            // The command comes first: after a cut no byte goes to the server.
            biased;
            _ = commands.changed() => return End::Commanded,
            turned = async { tokio::select! {
                turn = up.turn(&client_read, &server_write), if server_writable => (Way::Up, turn),
                turn = down.turn(&server_read, &client_write) => (Way::Down, turn),
            }} => turned,
        };
        match turned {
            (Way::Up, Turn::Read(range)) => {
                if let Err(error) = exchange.client_sent(&up.buffer[range]) {
                    return End::ClientBroken(error);
                }
                up.ready = statements.look(&mut up.buffer, up.ready);
            }
            (Way::Down, Turn::Wrote(range)) => {
                if let Err(error) = exchange.server_sent(&down.buffer[range]) {
                    return End::ServerBroken(error);
                }
                if let (Some(key), Some(address)) = (exchange.take_key(), server_address) {
                    known_key = Some(cancel_keys.0.remember(key, cancel_keys.1, address));
                }
                down.release();
                // Authentication is over, and the server has nothing else to say.
                let silent = up.buffer.is_empty() && down.buffer.is_empty();
                let silent = silent && !exchange.answer_owed();
                if silent && exchange.status().is_some() && statements.must_ask() {
                    let answer = question::synchronous_commit(&server_read, &server_write);
                    let answer = tokio::select! {
                        biased;
                        _ = commands.changed() => return End::Commanded,
                        answer = answer => answer,
                    };
                    match answer {
                        Ok(value) if statements.refuses_session(&value) => return End::Lowered,
                        Ok(_) => {}
                        Err(_) => break,
                    }
                }
            }
            (Way::Up, Turn::Wrote(_)) => up.release(),
            (Way::Down, Turn::Read(range)) => down.ready = range.end,
            (Way::Up | Way::Down, Turn::Nothing) => {}
            (Way::Up, Turn::Ended) | (Way::Down, Turn::Refused) => return End::ClientGone,
            (Way::Down, Turn::Ended) => break,
            // It has closed, but its last words may still be on their way to the client.
            (Way::Up, Turn::Refused) => server_writable = false,
        }
    }
    drop(known_key);
    End::ServerGone
}

#[derive(Debug, Clone, Copy)]
enum Way {
    /// Client to server.
    Up,
    /// Server to client.
    Down,
}

enum Turn {
    /// These bytes of the buffer are new.
    Read(Range<usize>),
    /// These bytes of the buffer were written.
    Wrote(Range<usize>),
    /// The socket was not ready after all.
    Nothing,
    /// The reading side has ended.
    Ended,
    /// The writing side takes nothing any more.
    Refused,
}

/// One direction. The buffer exists only while it holds something: most sessions are idle.
struct Pipe {
    buffer: Vec<u8>,
    written: usize,
    /// Up to where it may be written; what follows is held back.
    ready: usize,
}

impl Pipe {
    /// One read or one write.
    ///
    /// Cancel safety: safe, a read or write that happened is in the pipe's state, and the caller
    /// gets to know it since there is no `await` after it.
    async fn turn(&mut self, from: &ReadHalf<'_>, to: &WriteHalf<'_>) -> Turn {
        if self.written == self.ready {
            if from.readable().await.is_err() {
                return Turn::Ended;
            }
            let held = self.buffer.len();
            self.buffer.reserve_exact(BUFFER_BYTES - held);
            return match from.try_read_buf(&mut self.buffer) {
                Ok(0) => Turn::Ended,
                Ok(_) => Turn::Read(held..self.buffer.len()),
                Err(error) => self.not_ready(&error, Turn::Ended),
            };
        }
        if to.writable().await.is_err() {
            return Turn::Refused;
        }
        match to.try_write(&self.buffer[self.written..self.ready]) {
            Ok(0) => Turn::Refused,
            Ok(count) => {
                let begin = self.written;
                self.written += count;
                Turn::Wrote(begin..self.written)
            }
            Err(error) => self.not_ready(&error, Turn::Refused),
        }
    }

    fn not_ready(&mut self, error: &io::Error, otherwise: Turn) -> Turn {
        self.release();
        match error.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => Turn::Nothing,
            _ => otherwise,
        }
    }

    /// Gives the memory back once everything is written, but for what is held back.
    fn release(&mut self) {
        if self.written == self.ready {
            self.buffer = self.buffer[self.ready..].to_vec();
            (self.written, self.ready) = (0, 0);
        }
    }
}
