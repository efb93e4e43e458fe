//! A client of a pool: it has a server connection while the router lends it one.

use std::future::poll_fn;
use std::mem::take;
use std::sync::Arc;
use std::task::{Context, Poll};

use route::link::{
    ClientSide, Fate, Help, LinkError, Offer, Output, Prepared, SERIALIZATION_FAILURE, ServerSide,
};
use route::{CutReason, Event, Port};
use tokio::time::Instant;

use crate::bytes::{Outbox, READ_BYTES, Scratch, with_output};
use crate::client::Command;
use crate::front::Entered;
use crate::hub::Pool;
use crate::lowering::Judge;
use crate::mailbox::CancelRequest;
use crate::secure::Stream;
use crate::server::{self, ServerConnection};
use crate::sockets;
use crate::time_limits::Doing;
use crate::words::{self, Ending};

mod split;

use self::split::Split;

/// What a client may send while it waits for a server.
const AHEAD_BYTES_MAX: usize = 2 * READ_BYTES;
/// What may be there of a message that is awaited whole.
const MESSAGE_BYTES_MAX: usize = route::link::STATEMENT_BYTES_MAX + READ_BYTES;

/// How a client's stay ends: what it is told, if anything.
type Farewell = Option<Vec<u8>>;

/// A client that has signed in.
pub(crate) struct Pooled<'a> {
    place: &'a Entered,
    pool: Arc<Pool>,
    port: Port,
    judge: Judge,
    stream: Stream,
    side: ClientSide,
    /// What it sent and nobody has taken yet.
    inbox: Vec<u8>,
    down: Outbox,
    link: Option<Box<ServerConnection>>,
    waits: bool,
    /// What its watch shows, and in which round of its server.
    shown: (Doing, u32),
    waits_since: Option<Instant>,
    /// Of a client whose reads may be a replica's.
    split: Option<Box<Split>>,
    /// Bytes that came from the client, and from its server, and are not counted yet.
    received: usize,
    sent: usize,
}

struct Helper<'a> {
    place: &'a Entered,
    judge: &'a mut Judge,
}

impl Help for Helper<'_> {
    fn intern(&mut self, tail: &[u8]) -> Arc<Prepared> {
        self.place.hub.intern(tail)
    }

    fn replace(&mut self, message: &[u8]) -> Option<Vec<u8>> {
        self.judge.replaces(&self.place.hub.lowering, message)
    }
}

impl<'a> Pooled<'a> {
    pub(crate) fn new(
        place: &'a Entered,
        (pool, port): (Arc<Pool>, Port),
        judge: Judge,
        stream: Stream,
        side: ClientSide,
        inbox: Vec<u8>,
    ) -> Pooled<'a> {
        Pooled {
            place,
            pool,
            port,
            judge,
            stream,
            side,
            inbox,
            down: Outbox::default(),
            link: None,
            waits: false,
            shown: (Doing::Other, 0),
            waits_since: None,
            split: None,
            received: 0,
            sent: 0,
        }
    }

    /// Its single reads go to replicas, if they have what it wrote.
    pub(crate) fn splitting(mut self) -> Self {
        self.place.hub.rounds.enter(self.pool.clone());
        self.split = Some(Box::default());
        self
    }

    /// Serves the client to its end.
    pub(crate) async fn serve(mut self) {
        // What came with its login is looked at first.
        let first = poll_fn(|cx| Poll::Ready(self.process_inbox(cx))).await;
        let farewell = match first {
            Ok(()) => poll_fn(|cx| self.poll(cx)).await,
            Err(farewell) => farewell,
        };
        self.leave();
        if let Some(word) = farewell.filter(|_| self.down.is_empty()) {
            Box::pin(self.place.front().dismiss(self.port, self.stream, &word)).await;
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Farewell> {
        // Once it has moved, this is not what it does any more.
        if let Some(doing) = self.place.mailbox.watch.too_long()
            && let Err(farewell) = self.too_long(doing)
        {
            return Poll::Ready(farewell);
        }
        let mut moved = false;
        loop {
            match self.turn(cx) {
                Ok(true) => moved = true,
                Ok(false) => {
                    self.show(moved);
                    return Poll::Pending;
                }
                Err(farewell) => return Poll::Ready(farewell),
            }
        }
    }

    /// Does what can be done now; `false` if there was nothing. An error is the end.
    fn turn(&mut self, cx: &mut Context<'_>) -> Result<bool, Farewell> {
        // The command comes first: after a loss no byte goes to the server.
        if self.place.mailbox.has_news() {
            while let Poll::Ready(command) = self.place.mailbox.poll_take(cx) {
                self.command(command, cx)?;
            }
            if let Some(request) = self.place.mailbox.take_cancel() {
                self.cancel(Some(request));
            }
            // A cancel request that was on its way may have been what it waited for.
            self.process_inbox(cx)?;
        }
        if !self.down.is_empty() {
            match self.down.poll_flush(&mut self.stream, cx) {
                Poll::Pending => {}
                // What the client sent meanwhile may have waited for this.
                Poll::Ready(Ok(())) => self.process_inbox(cx)?,
                Poll::Ready(Err(_)) => return Err(None),
            }
        }
        self.drain()?;
        // The same for the server that is to be given back.
        if self.inbox.is_empty() || self.replica_is_done() {
            self.release_if_at_rest();
            self.process_inbox(cx)?;
        }
        let from_server = self.read_server(cx)?;
        if from_server && self.link.is_none() {
            // Its answer is there. What the client says next comes in the next turn, if not later.
            return Ok(true);
        }
        let from_client = self.read_client(cx)?;
        Ok(from_server || from_client)
    }

    /// Shows what the client does from now on, if that is not the same as before.
    fn show(&mut self, moved: bool) {
        let (shown, round) = self.shown;
        let doing = self.doing();
        let new_round = self.link.as_ref().map_or(0, |link| link.side.rounds());
        if !doing.goes_on(shown, moved, round == new_round) {
            self.shown = (doing, new_round);
            self.place.mailbox.watch.begins(doing);
        }
    }

    fn doing(&self) -> Doing {
        match &self.link {
            Some(link) if link.side.owes_answer() => Doing::Statement,
            // It may still read what it was told.
            _ if !self.down.is_empty() => Doing::Other,
            Some(link) if link.side.is_busy() => Doing::Transaction,
            Some(_) => Doing::Other,
            None if self.waits => Doing::Other,
            None if self.inbox.is_empty() && self.side.at_boundary() => Doing::Idle,
            None => Doing::Message,
        }
    }

    /// A statement is cancelled first; everything else is the end.
    fn too_long(&mut self, doing: Doing) -> Result<(), Farewell> {
        if doing == Doing::Statement {
            self.cancel(None);
            self.shown.0 = Doing::Cancelled;
            self.place.mailbox.watch.begins(Doing::Cancelled);
            return Ok(());
        }
        let side = self.link.as_ref().map(|link| &link.side);
        let at_boundary = side.is_none_or(ServerSide::client_at_boundary);
        let in_doubt = side.is_some_and(|side| side.fate() == Fate::Unknown);
        tracing::info!(client = %self.place.id, ?doing, "a client did so for too long");
        Err(at_boundary.then(|| words::too_long(doing, in_doubt)))
    }

    /// A connection that is pinned to its client cannot be taken from it unseen; and a proxy that
    /// closes ends every session that is in no transaction.
    fn drain(&mut self) -> Result<(), Farewell> {
        if self.place.hub.closes() && self.is_in_nothing() {
            return Err(self.last_word(Ending::Shutdown));
        }
        let mailbox = &self.place.mailbox;
        if self.side.pinned().is_none() || !mailbox.drains() {
            return Ok(());
        }
        if !self.place.hub.holds() {
            mailbox.forget_drain();
            return Ok(());
        }
        match &self.link {
            Some(link) if link.side.is_at_rest() => {
                Err(self.last_word(Ending::Cut(CutReason::Planned)))
            }
            Some(_) | None => Ok(()),
        }
    }

    /// Whether the client is in no transaction, asks for nothing, and has read what it was told.
    fn is_in_nothing(&self) -> bool {
        let said_all = self.inbox.is_empty() && self.down.is_empty() && !self.waits;
        said_all
            && !self.is_at_replica()
            && match &self.link {
                Some(link) => link.side.is_at_rest() && link.up.is_empty(),
                None => self.side.at_boundary() && !self.side.is_aborted(),
            }
    }

    fn read_server(&mut self, cx: &mut Context<'_>) -> Result<bool, Farewell> {
        let Some(link) = self.link.as_deref_mut() else {
            return Ok(false);
        };
        let flushed = !link.up.is_empty() && {
            match link.up.poll_flush(&mut link.stream, cx) {
                Poll::Pending => false,
                Poll::Ready(Ok(())) => true,
                // Its last words may be there to be read.
                Poll::Ready(Err(_)) => {
                    link.up = Outbox::default();
                    true
                }
            }
        };
        if !self.down.is_empty() {
            return Ok(false);
        }
        let mut scratch = Scratch::take();
        let count = match scratch.poll_read(&mut link.stream, cx) {
            Poll::Pending if flushed => {
                self.process_inbox(cx)?;
                return Ok(true);
            }
            Poll::Pending => return Ok(false),
            Poll::Ready(Ok(count)) => count,
            Poll::Ready(Err(_)) => 0,
        };
        if count == 0 {
            self.lost(Ending::ServerLost, cx)?;
            // What it was lent for may wait for another.
            self.process_inbox(cx)?;
            return Ok(true);
        }
        self.sent += count;
        let settled = link.side.is_settling();
        self.take_answer(scratch.bytes(count), cx)?;
        drop(scratch);
        // Whoever got it for a statement that waits has it for that statement: given back now, it
        // would go round among clients that each want other settings.
        if !settled {
            self.release_if_at_rest();
        }
        self.process_inbox(cx)?;
        if settled && self.inbox.is_empty() {
            self.release_if_at_rest();
        }
        Ok(true)
    }

    fn take_answer(&mut self, bytes: &[u8], cx: &mut Context<'_>) -> Result<(), Farewell> {
        if self.is_at_replica() { self.hear(bytes, cx) } else { self.give_answer(bytes, cx) }
    }

    fn give_answer(&mut self, bytes: &[u8], cx: &mut Context<'_>) -> Result<(), Farewell> {
        let Some(link) = self.link.as_deref_mut() else {
            return Ok(());
        };
        let settling = link.side.is_settling();
        let kept = take(&mut link.inbox);
        let all = if kept.is_empty() { bytes } else { &[&kept, bytes].concat() };
        let mut rest = all;
        let taken = with_output(|out| {
            let taken = link.side.server_sent(&mut self.side, &mut rest, out);
            let told = self.down.send(&mut self.stream, cx, &out.down);
            told.map_err(|_| None).map(|()| taken)
        })?;
        link.inbox = rest.to_vec();
        if settling && !link.side.is_settling() {
            let shared = self.pool.share_reported(link.side.reported().clone());
            link.side.share_reported(&mut self.side, shared);
        }
        match taken {
            Ok(()) => Ok(()),
            Err(LinkError::ServerEnds) => self.lost(Ending::ServerLost, cx),
            Err(_) if self.repeat_at_primary() => Ok(()),
            Err(error) => Err(self.broken(error)),
        }
    }

    fn read_client(&mut self, cx: &mut Context<'_>) -> Result<bool, Farewell> {
        let blocked = self.waits
            || self.is_at_replica()
            || self.link.as_deref_mut().is_some_and(|link| !link.takes_more());
        let room = if blocked { AHEAD_BYTES_MAX } else { MESSAGE_BYTES_MAX };
        if !self.down.is_empty() || self.inbox.len() >= room {
            return Ok(false);
        }
        let mut scratch = Scratch::take();
        let count = match scratch.poll_read(&mut self.stream, cx) {
            Poll::Pending => return Ok(false),
            Poll::Ready(Ok(count)) if count > 0 => count,
            Poll::Ready(_) => return Err(None),
        };
        self.received += count;
        let bytes = scratch.bytes(count);
        if self.inbox.is_empty() && !blocked {
            let used = self.process(bytes, cx)?;
            self.inbox = bytes[used..].to_vec();
        } else {
            self.inbox.extend_from_slice(bytes);
            if !blocked {
                self.process_inbox(cx)?;
            }
        }
        Ok(true)
    }

    fn process_inbox(&mut self, cx: &mut Context<'_>) -> Result<(), Farewell> {
        if self.inbox.is_empty() || self.waits {
            return Ok(());
        }
        let mut inbox = take(&mut self.inbox);
        let used = self.process(&inbox, cx)?;
        if used < inbox.len() {
            inbox.drain(..used);
            self.inbox = inbox;
        }
        Ok(())
    }

    /// Takes what can be taken of the client's bytes; how many that were.
    fn process(&mut self, bytes: &[u8], cx: &mut Context<'_>) -> Result<usize, Farewell> {
        let mut rest = bytes;
        while !rest.is_empty() && self.down.is_empty() {
            if self.side.is_aborted() {
                let mut out = Output::default();
                let taken = self.side.sent_aborted(&mut rest, &mut out);
                self.tell(&out.down, cx)?;
                taken.map_err(|error| self.broken(error))?;
                if self.side.said_goodbye() {
                    return Err(None);
                }
                if self.side.is_aborted() {
                    break;
                }
                continue;
            }
            if self.link.is_none() {
                match self.side.offer(rest).map_err(|error| self.broken(error))? {
                    Offer::More => break,
                    Offer::Goodbye => return Err(None),
                    Offer::Server => {
                        let reads = self.may_ask_replica(rest);
                        if !(if reads { self.want_read(rest, cx)? } else { self.want(cx)? }) {
                            break;
                        }
                    }
                }
            }
            if !self.pass_on(&mut rest, cx)? {
                break;
            }
        }
        Ok(bytes.len() - rest.len())
    }

    /// Gives the server what it may have; `true` if the rest may be looked at, too.
    fn pass_on(&mut self, rest: &mut &[u8], cx: &mut Context<'_>) -> Result<bool, Farewell> {
        let Some(link) = self.link.as_deref_mut() else {
            return Ok(false);
        };
        if !link.takes_more() {
            return Ok(false);
        }
        if link.side.must_settle(&self.side) {
            let told = with_output(|out| {
                link.side.lend_to(&mut self.side, out);
                link.up.send(&mut link.stream, cx, &out.up).unwrap_or_default();
                self.down.send(&mut self.stream, cx, &out.down)
            });
            return told.map(|()| false).map_err(|_| None);
        }
        if take(&mut link.rests) {
            link.begun = Instant::now();
        }
        if self.is_at_replica() {
            return self.pass_to_replica(rest, cx);
        }
        self.send_up(rest, cx)?;
        if self.side.said_goodbye() {
            return Err(None);
        }
        Ok(self.release_if_at_rest())
    }

    fn send_up(&mut self, rest: &mut &[u8], cx: &mut Context<'_>) -> Result<(), Farewell> {
        let Some(link) = self.link.as_deref_mut() else {
            return Ok(());
        };
        let mut helper = Helper { place: self.place, judge: &mut self.judge };
        let taken = with_output(|out| {
            let taken = link.side.client_sent(&mut self.side, rest, out, &mut helper);
            // A server that takes nothing has ended; what it said last is read before it is given
            // up.
            link.up.send(&mut link.stream, cx, &out.up).unwrap_or_default();
            let told = self.down.send(&mut self.stream, cx, &out.down);
            told.map_err(|_| None).map(|()| taken)
        })?;
        taken.map_err(|error| self.broken(error))
    }

    fn tell(&mut self, bytes: &[u8], cx: &mut Context<'_>) -> Result<(), Farewell> {
        self.down.send(&mut self.stream, cx, bytes).map_err(|_| None)
    }

    /// Asks for a server; `true` if there is one now.
    fn want(&mut self, cx: &mut Context<'_>) -> Result<bool, Farewell> {
        let hub = &self.place.hub;
        // Each round takes a dead connection off the pool, so there is an end.
        loop {
            match hub.want(self.place.id, self.port, self.pool.id) {
                Ok(connection) => {
                    if self.begin(connection, cx)? {
                        return Ok(true);
                    }
                }
                Err(since) => {
                    self.wait(since);
                    return Ok(false);
                }
            }
        }
    }

    fn wait(&mut self, since: Instant) {
        self.waits = true;
        self.waits_since.get_or_insert(since);
    }

    /// Begins a loan; `false` if the connection turns out to be dead.
    fn begin(
        &mut self,
        mut connection: Box<ServerConnection>,
        cx: &mut Context<'_>,
    ) -> Result<bool, Farewell> {
        if !connection.is_alive() {
            self.place.hub.step(Event::Lost { server: connection.id });
            return Ok(false);
        }
        self.waits = false;
        // Whatever runs next is new, also if the last one had as many rounds.
        self.shown.0 = Doing::Other;
        if let Some(since) = self.waits_since.take() {
            let waited = connection.begun.saturating_duration_since(since);
            self.pool.stats.at(self.port).waited.observe(waited);
        }
        connection.port = self.port;
        let mut out = Output::default();
        connection.side.lend_to(&mut self.side, &mut out);
        connection.up.send(&mut connection.stream, cx, &out.up).unwrap_or_default();
        self.link = Some(connection);
        self.tell(&out.down, cx)?;
        Ok(true)
    }

    /// Gives the connection back if nothing of this client is left in it.
    fn release_if_at_rest(&mut self) -> bool {
        let may = |link: &mut Box<ServerConnection>| {
            link.side.is_at_rest() && link.up.is_empty() && !link.is_being_cancelled()
        };
        if self.side.pinned().is_some() {
            self.rest();
            return false;
        }
        match self.link.take_if(may) {
            Some(link) => {
                self.count_bytes();
                self.loan_ends(&link.side);
                self.place.hub.give_back(link);
                true
            }
            None => false,
        }
    }

    /// A connection that stays with its client is counted transaction by transaction, too.
    fn rest(&mut self) {
        if let Some(link) = self.link.as_deref_mut()
            && !link.rests
            && link.side.is_at_rest()
        {
            link.account(Instant::now());
            link.rests = true;
            self.count_bytes();
        }
    }

    fn count_bytes(&mut self) {
        let (received, sent) = (take(&mut self.received), take(&mut self.sent));
        let count = |bytes| u64::try_from(bytes).unwrap_or(u64::MAX);
        self.pool.stats.at(self.port).moved(count(received), count(sent));
    }

    fn command(&mut self, command: Command, cx: &mut Context<'_>) -> Result<(), Farewell> {
        match command {
            Command::Have(connection) => {
                self.waits = false;
                if self.begin(connection, cx)? || self.want(cx)? {
                    self.process_inbox(cx)?;
                }
                Ok(())
            }
            Command::Again => {
                self.waits = false;
                self.process_inbox(cx)
            }
            Command::Lose { server, reason } => {
                if self.link.as_ref().is_some_and(|link| link.id == server) {
                    self.place.hub.tally.cuts.add((self.port, reason));
                    self.lost(Ending::Cut(reason), cx)?;
                    self.process_inbox(cx)?;
                }
                Ok(())
            }
            Command::Refuse(refusal) => Err(Some(words::refusal(&refusal))),
            Command::End(ending) => Err(self.last_word(ending)),
            // These are for clients with a connection of their own.
            Command::Wait | Command::Connect { .. } => Ok(()),
        }
    }

    fn last_word(&self, ending: Ending) -> Farewell {
        let Some(link) = &self.link else {
            return Some(words::ending(ending, false));
        };
        let at_boundary = link.side.client_at_boundary();
        at_boundary.then(|| words::ending(ending, link.side.fate() == Fate::Unknown))
    }

    /// The server is lost. The client goes on if it can be told what happened to its transaction.
    fn lost(&mut self, ending: Ending, cx: &mut Context<'_>) -> Result<(), Farewell> {
        if self.repeat_at_primary() {
            return Ok(());
        }
        let last_word = self.last_word(ending);
        let Some(side) = self.drop_link() else {
            return Ok(());
        };
        let fate = side.fate();
        let goes_on = self.side.pinned().is_none() && side.client_at_boundary();
        match fate {
            _ if !goes_on => Err(last_word),
            Fate::Unknown => Err(last_word),
            Fate::Nothing => Ok(()),
            Fate::NotCommitted => {
                let errors = &self.place.front().tally.errors;
                errors.add(self.port, SERIALIZATION_FAILURE);
                let mut out = Output::default();
                side.abort(&mut self.side, words::why(ending), &mut out);
                self.tell(&out.down, cx)
            }
        }
    }

    /// Gives the connection up; what it was in.
    fn drop_link(&mut self) -> Option<ServerSide> {
        let mut link = self.link.take()?;
        let server = link.id;
        link.account(Instant::now());
        self.count_bytes();
        self.leaves_replica();
        let (stream, side) = link.into_parts();
        sockets::reset(stream);
        // If the router took it, it knows that already.
        self.place.hub.step(Event::Lost { server });
        Some(side)
    }

    /// The conversation cannot go on; what the client is told.
    fn broken(&mut self, error: LinkError) -> Farewell {
        let in_doubt = self.link.as_ref().is_some_and(|link| link.side.fate() == Fate::Unknown);
        let at_boundary = self.link.as_ref().is_none_or(|link| link.side.client_at_boundary());
        let client = self.place.id;
        tracing::debug!(%client, %error, "a client's conversation is broken off");
        let word = match error {
            LinkError::Settings(error) => Some(error),
            LinkError::StandbyNotAwaited => Some(words::standby_not_awaited()),
            LinkError::Server | LinkError::ServerEnds => {
                Some(words::ending(Ending::ServerLost, in_doubt))
            }
            LinkError::Client(_) | LinkError::Message { .. } | LinkError::Block => {
                Some(words::violation(&error))
            }
        };
        word.filter(|_| at_boundary)
    }

    /// Forwards a cancel request, unless what runs is a commit that waits for its standby: it
    /// would be acknowledged without it.
    fn cancel(&mut self, request: Option<CancelRequest>) {
        let is_at_replica = self.is_at_replica();
        let Some(link) = self.link.as_deref_mut() else {
            return;
        };
        if link.side.owes_answer() && (is_at_replica || !link.side.may_wait_for_standby()) {
            let asks = link.side.may_commit() && !is_at_replica;
            let asks = asks.then(|| (self.place.hub.clone(), self.pool.clone()));
            link.cancel(self.place.mailbox.clone(), asks, request);
        }
    }

    /// What becomes of the connection when the client goes.
    fn leave(&mut self) {
        self.count_bytes();
        let Some(mut link) = self.link.take() else {
            return;
        };
        link.account(Instant::now());
        let hub = self.place.hub.clone();
        if link.side.is_at_rest() && link.up.is_empty() {
            hub.step(Event::Cleans { server: link.id });
            tokio::spawn(server::discard(hub, link));
        } else {
            // The server ends what it runs by itself, as it does for a client that goes.
            hub.step(Event::Lost { server: link.id });
        }
    }
}
