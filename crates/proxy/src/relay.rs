//! Bytes of a session that has a server connection of its own, both ways.

use std::future::poll_fn;
use std::task::{Context, Poll};

use pgproto::wire::{Exchange, FrameError, TransactionStatus};
use route::{CutReason, Port};

use crate::answers::{Answers, Stop};
use crate::bytes::{Outbox, READ_BYTES, Scratch, with_output};
use crate::cancel::{self, KnownKey};
use crate::client::Command;
use crate::front::Entered;
use crate::lowering::{STATEMENT_BYTES_MAX, Statements};
use crate::mailbox::CancelRequest;
use crate::question;
use crate::secure::Stream;
use crate::sessions::Meter;
use crate::words::Ending;

// Whatever is held back until it is whole leaves room to read on.
const _: () = assert!(STATEMENT_BYTES_MAX <= READ_BYTES);

/// How a relay ended.
#[derive(Debug)]
pub(crate) enum End {
    /// The client closed or cannot be reached.
    ClientGone,
    /// The server closed or cannot be reached.
    ServerGone,
    /// The core has another command.
    Commanded(Command),
    /// The session has `synchronous_commit` lowered, which is refused.
    Lowered,
    /// The client's bytes make no sense.
    ClientBroken(FrameError),
    /// The server's bytes make no sense.
    ServerBroken(FrameError),
    /// The wait for a synchronous standby was cancelled.
    StandbyNotAwaited,
}

/// Client and server, and what is on the way between them.
pub(crate) struct Relay<'a> {
    pub(crate) client: Stream,
    pub(crate) server: Stream,
    pub(crate) exchange: Exchange,
    /// What it moves, for figures.
    pub(crate) meter: Meter,
    statements: Statements<'a>,
    place: &'a Entered,
    answers: Answers,
    /// What the client cancels with.
    key: KnownKey,
    up: Outbox,
    down: Outbox,
}

/// What one look at the sockets came to.
enum Turn {
    Moved,
    Nothing,
    /// The server must be asked a question of ours.
    Ask,
    End(End),
}

impl<'a> Relay<'a> {
    pub(crate) fn new(
        (client, server): (Stream, Stream),
        statements: Statements<'a>,
        (place, port): (&'a Entered, Port),
        key: KnownKey,
    ) -> Relay<'a> {
        Relay {
            client,
            server,
            exchange: Exchange::default(),
            meter: Meter::new(port),
            statements,
            place,
            answers: Answers::default(),
            key,
            up: Outbox::default(),
            down: Outbox::default(),
        }
    }

    /// Relays until either side ends or a command comes. `said` is what the server said already,
    /// `asked` what the client did. In the end `exchange` tells where the session stands.
    pub(crate) async fn run(&mut self, said: &[u8], asked: &[u8]) -> End {
        let first =
            poll_fn(|cx| Poll::Ready((self.take_answer(said, cx), self.take_request(asked, cx))));
        match first.await {
            (Some(end), _) => return end,
            (None, Err(error)) => return End::ClientBroken(error),
            (None, Ok(())) => {}
        }
        loop {
            let turn = poll_fn(|cx| match self.turn(cx) {
                Turn::Nothing => Poll::Pending,
                turn => Poll::Ready(turn),
            });
            match turn.await {
                Turn::Moved | Turn::Nothing => {}
                Turn::Ask => {
                    if let Some(end) = self.ask().await {
                        return end;
                    }
                }
                Turn::End(end) => return end,
            }
        }
    }

    /// Whether the client has all that was on its way to it.
    pub(crate) fn client_is_told(&self) -> bool {
        self.down.is_empty() && self.exchange.client_at_boundary()
    }

    fn turn(&mut self, cx: &mut Context<'_>) -> Turn {
        loop {
            match self.look(cx) {
                Turn::Moved => {}
                turn => return turn,
            }
        }
    }

    fn look(&mut self, cx: &mut Context<'_>) -> Turn {
        // The command comes first: after a cut no byte goes to the server.
        if let Poll::Ready(command) = self.place.mailbox.poll_take(cx) {
            return Turn::End(End::Commanded(command));
        }
        if let Some(request) = self.place.mailbox.take_cancel() {
            self.cancel(request);
        }
        if let Poll::Ready(Err(_)) = self.down.poll_flush(&mut self.client, cx) {
            return Turn::End(End::ClientGone);
        }
        if let Poll::Ready(Err(_)) = self.up.poll_flush(&mut self.server, cx) {
            // It has closed, but its last words may still be there to be read.
            self.up = Outbox::default();
        }
        let mut moved = false;
        let mut scratch = Scratch::take();
        if self.down.is_empty() {
            match scratch.poll_read(&mut self.server, cx) {
                Poll::Pending => {}
                Poll::Ready(Ok(count)) if count > 0 => {
                    if let Some(end) = self.take_answer(scratch.bytes(count), cx) {
                        return Turn::End(end);
                    }
                    moved = true;
                }
                Poll::Ready(_) => return Turn::End(End::ServerGone),
            }
        }
        if let Some(ending) = self.must_end() {
            return Turn::End(End::Commanded(Command::End(ending)));
        }
        if self.must_ask() {
            return Turn::Ask;
        }
        if self.up.is_empty() {
            match scratch.poll_read(&mut self.client, cx) {
                Poll::Pending => {}
                Poll::Ready(Ok(count)) if count > 0 => {
                    if let Err(error) = self.take_request(scratch.bytes(count), cx) {
                        return Turn::End(End::ClientBroken(error));
                    }
                    moved = true;
                }
                Poll::Ready(_) => return Turn::End(End::ClientGone),
            }
        }
        if moved {
            return Turn::Moved;
        }
        self.count();
        Turn::Nothing
    }

    /// Before it goes to sleep, and at its end: what it has moved counts, once the server has let
    /// the client in.
    pub(crate) fn count(&mut self) {
        let let_in = self.exchange.status().is_some();
        if let_in && !self.meter.is_let_in() {
            let (sessions, tally) = (&self.place.hub.tally.sessions, &self.place.front().tally);
            self.meter.enters(sessions, self.statements.who(), tally);
        }
        let (up, down, exchange) = (&self.up, &self.down, &self.exchange);
        self.meter.count(|| up.is_empty() && down.is_empty() && !exchange.answer_owed());
    }

    fn take_answer(&mut self, bytes: &[u8], cx: &mut Context<'_>) -> Option<End> {
        self.meter.sent(bytes.len());
        with_output(|out| {
            let taken = self.answers.take(bytes, self.key.key(), &mut out.down);
            if self.down.send(&mut self.client, cx, &out.down).is_err() {
                return Some(End::ClientGone);
            }
            if let Err(error) = self.exchange.server_sent(&out.down) {
                return Some(End::ServerBroken(error));
            }
            match taken {
                Ok(()) => None,
                Err(Stop::Broken(error)) => Some(End::ServerBroken(error)),
                Err(Stop::StandbyNotAwaited) => Some(End::StandbyNotAwaited),
            }
        })
    }

    /// Forwards a cancel request, unless what runs is a commit that waits for its standby.
    fn cancel(&mut self, request: CancelRequest) {
        let waits = self.exchange.ends_transaction() || self.statements.commits();
        if let (true, false, Some(key), Ok(address)) = (
            self.exchange.answer_owed(),
            waits,
            self.answers.key.clone(),
            self.server.socket().peer_addr(),
        ) {
            tokio::spawn(async move {
                cancel::send(address, &key).await;
                drop(request);
            });
        }
    }

    fn take_request(&mut self, bytes: &[u8], cx: &mut Context<'_>) -> Result<(), FrameError> {
        self.meter.received(bytes.len());
        self.exchange.client_sent(bytes)?;
        with_output(|out| {
            self.statements.look(bytes, &mut out.up)?;
            // A server that takes nothing has ended; what it said last is read before it is given
            // up.
            self.up.send(&mut self.server, cx, &out.up).unwrap_or_default();
            Ok(())
        })
    }

    /// The primary is about to step down, or the proxy to end, and the session is in no
    /// transaction.
    fn must_end(&mut self) -> Option<Ending> {
        let idle = self.exchange.status() == Some(TransactionStatus::Idle);
        if !idle || !self.is_silent() {
            return None;
        }
        let (hub, mailbox) = (&self.place.hub, &self.place.mailbox);
        if hub.closes() {
            return Some(Ending::Shutdown);
        }
        if !mailbox.drains() {
            return None;
        }
        if !hub.holds() {
            mailbox.forget_drain();
            return None;
        }
        Some(Ending::Cut(CutReason::Planned))
    }

    fn is_silent(&self) -> bool {
        self.up.is_empty() && self.down.is_empty() && !self.exchange.answer_owed()
    }

    /// Authentication is over, and the server has nothing else to say.
    fn must_ask(&mut self) -> bool {
        self.is_silent() && self.exchange.status().is_some() && self.statements.must_ask()
    }

    async fn ask(&mut self) -> Option<End> {
        let answer = tokio::select! {
            biased;
            command = self.place.mailbox.next() => return Some(End::Commanded(command)),
            answer = question::synchronous_commit(&mut self.server) => answer,
        };
        match answer {
            Ok(value) if self.statements.refuses_session(&value) => Some(End::Lowered),
            Ok(_) => None,
            Err(_) => Some(End::ServerGone),
        }
    }
}
