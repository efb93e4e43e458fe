//! One client, from its first packet to its end.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use route::{CutReason, Event, Port, Refusal, ServerId, Target};
use tokio::net::TcpStream;

use crate::admin;
use crate::chosen::{self, Chosen};
use crate::dial::{Opened, open};
use crate::front::{Entered, Newcomer};
use crate::hub::PoolKey;
use crate::login::proxy_protocol::{self, Origin};
use crate::lowering::{Judge, Statements};
use crate::mailbox::Mailbox;
use crate::open::limits;
use crate::relay::{End, Relay};
use crate::secure::{Stream, Welcomed, Wish};
use crate::server::ServerConnection;
use crate::sockets;
use crate::tally::Outcome;
use crate::visitors::{Errand, Visitor};
use crate::welcome;
use crate::words::{self, Ending};

/// A client says what it wants within this time.
const STARTUP_LIMIT: Duration = Duration::from_secs(10);

/// What the hub wants of a client's task now. The newest one counts.
#[derive(Debug)]
pub(crate) enum Command {
    /// Wait for another command.
    Wait,
    /// Connect to this server.
    Connect {
        /// The router's number of the attempt.
        attempt: u32,
        /// The server.
        target: Target,
    },
    /// Tell the client that it is not served.
    Refuse(Refusal),
    /// End the session.
    End(Ending),
    /// The client of a pool has this connection.
    Have(Box<ServerConnection>),
    /// It has it no more.
    Lose {
        /// Which.
        server: ServerId,
        /// Why.
        reason: CutReason,
    },
    /// It was to have one, and was not told in time: ask again.
    Again,
}

/// Posts a command; what is not done for it is returned, and that is the command itself if the
/// client was told to end, for that is final. Several may post at once: whoever takes an end out
/// puts it back.
pub(crate) fn put(mailbox: &Mailbox<Command>, command: Command) -> Option<Command> {
    match mailbox.post(command) {
        Some(end @ Command::End(_)) => mailbox.post(end),
        untaken => untaken,
    }
}

/// Serves a client until its end. Front and hub learn of that from the end of its place.
pub(crate) async fn serve(newcomer: Newcomer, port: Port, caller: (TcpStream, SocketAddr)) {
    // What is needed once is not kept for as long as the client stays.
    let Some((welcomed, address)) = Box::pin(at_the_door(&newcomer, port, caller)).await else {
        return;
    };
    let Welcomed { stream, channel, wish, unread } = welcomed;
    let (startup, packet) = match wish {
        Wish::Session(startup, packet) => (startup, packet),
        Wish::Cancel(key, packet) => {
            let front = &newcomer.front;
            return Box::pin(front.cancel_keys.forward(front, &key, &packet)).await;
        }
    };
    let front = newcomer.front.clone();
    let suffix = front.config.read_only_suffix.as_deref();
    let dbname = |asked: &str| front.destination(asked).dbname(asked).to_owned();
    let chosen = match chosen::choose(port, startup, packet, suffix, dbname) {
        Ok(chosen) => chosen,
        Err(error) => {
            let word = words::no_such_route(&error);
            return front.dismiss(port, stream, &word).await;
        }
    };
    let Chosen { port, database, startup, packet } = chosen;
    let place = newcomer.led_to(&database);
    let user = startup.parameter("user").unwrap_or_default().to_owned();
    let mut judge = Judge::new(place.id, Arc::new(PoolKey { database, user }));
    if judge.refuses_startup(&place.hub.lowering, &startup) {
        return front.dismiss(port, stream, &words::lowered_startup()).await;
    }
    let replicates = startup.parameter("replication").is_some_and(|value| {
        !matches!(value.to_ascii_lowercase().as_str(), "false" | "off" | "no" | "0")
    });
    if place.hub.door.authenticates() && !replicates {
        let place = &place;
        let arrived =
            welcome::Arrived { place, port, address, stream, channel, startup, judge, unread };
        if front.is_asked_itself(&arrived.judge.who().database) {
            return Box::pin(admin::run(arrived)).await;
        }
        return welcome::run(arrived).await;
    }
    if front.is_full() {
        // Each cluster's router counts its own clients only.
        front.tally.logins.add((port, Outcome::Refused));
        let word = words::too_many_clients(front.config.client_limit);
        return front.dismiss(port, stream, &word).await;
    }
    let visitor = Visitor::new(Errand::Session, judge.who().clone(), (&stream, address), &startup);
    place.front().visitors.enter(place.id, visitor);
    place.hub.step(Event::ClientArrived { client: place.id, port });
    let session = Session { place: &place, port, address, unread };
    if let Some(outcome) = Box::pin(session.run(stream, &packet, judge)).await {
        place.front().tally.logins.add((port, outcome));
    }
}

/// What the client wants, and where it comes from.
async fn at_the_door(
    newcomer: &Newcomer,
    port: Port,
    (mut socket, peer): (TcpStream, SocketAddr),
) -> Option<(Welcomed, SocketAddr)> {
    let door = &newcomer.front.door;
    let mut address = peer;
    if door.security.proxy_protocol_in {
        match proxy_protocol::receive(&mut socket, STARTUP_LIMIT).await {
            Ok(Origin::Proxied { source, .. }) => address = source,
            Ok(Origin::Unknown) => {}
            Err(error) => {
                tracing::debug!(client = %newcomer.id, %address, %error, "no header of a proxy");
                return None;
            }
        }
    }
    match door.clients.welcome(socket, peer, STARTUP_LIMIT).await {
        Ok(welcomed) => Some((welcomed, address)),
        Err((error, stream)) => {
            let client = newcomer.id;
            tracing::debug!(%client, %address, %error, "refused a client's first packet");
            if let (Some(stream), Some(word)) = (stream, words::not_welcome(&error)) {
                newcomer.front.dismiss(port, stream, &word).await;
            }
            None
        }
    }
}

/// A client with a server connection of its own.
struct Session<'a> {
    place: &'a Entered,
    port: Port,
    address: SocketAddr,
    /// What the client sent behind its startup packet.
    unread: Vec<u8>,
}

impl Session<'_> {
    /// Does what the hub wants until there is a server. `None` if the client was let in.
    async fn run(&self, socket: Stream, startup: &[u8], judge: Judge) -> Option<Outcome> {
        let mailbox = &self.place.mailbox;
        let mut command = Command::Wait;
        loop {
            let opened = match command {
                Command::Wait => None,
                Command::Connect { attempt, target } => {
                    tokio::select! {
                        biased;
                        next = mailbox.next() => {
                            command = next;
                            continue;
                        }
                        () = sockets::closed_by_peer(socket.socket()) => return Some(Outcome::Left),
                        opened = self.attempt(attempt, &target, startup, &socket) => opened,
                    }
                }
                Command::Refuse(refusal) => {
                    return self.refuse(socket, &words::refusal(&refusal)).await;
                }
                Command::End(ending) => {
                    return self.refuse(socket, &words::ending(ending, false)).await;
                }
                // These are for clients of pools.
                Command::Have(_) | Command::Lose { .. } | Command::Again => None,
            };
            if let Some(opened) = opened {
                return self.relay(socket, opened, judge).await;
            }
            command = tokio::select! {
                next = mailbox.next() => next,
                () = sockets::closed_by_peer(socket.socket()) => return Some(Outcome::Left),
            };
        }
    }

    async fn refuse(&self, socket: Stream, word: &[u8]) -> Option<Outcome> {
        self.place.front().dismiss(self.port, socket, word).await;
        Some(Outcome::Refused)
    }

    async fn attempt(
        &self,
        attempt: u32,
        target: &Target,
        startup: &[u8],
        client_stream: &Stream,
    ) -> Option<Opened> {
        let hub = &self.place.hub;
        let client = self.place.id;
        let preface = self.preface(client_stream);
        match open(&hub.door.servers, target, (&preface, startup), limits(hub)).await {
            Ok(mut opened) => {
                opened.offer_no_channel_binding();
                hub.step(Event::ServerConnected { client, attempt });
                Some(opened)
            }
            Err(error) => {
                let cause = std::error::Error::source(&error).map(ToString::to_string);
                tracing::debug!(%client, member = %target.member, %error, cause, "attempt failed");
                hub.step(Event::ServerFailed { client, attempt });
                None
            }
        }
    }

    /// Where the client comes from, for a server behind something that asks for it.
    fn preface(&self, client: &Stream) -> Vec<u8> {
        let version = self.place.hub.door.security.proxy_protocol_out;
        match (version, client.socket().local_addr()) {
            (Some(version), Ok(here)) => proxy_protocol::header(version, self.address, here),
            (None, _) | (_, Err(_)) => Vec::new(),
        }
    }

    async fn relay(&self, socket: Stream, opened: Opened, judge: Judge) -> Option<Outcome> {
        let Opened { stream: server, said } = opened;
        let hub = &self.place.hub;
        let statements = Statements::new(&hub.lowering, judge);
        let Some(key) = self.place.front().cancel_keys.create(self.place.id) else {
            return Some(Outcome::Left);
        };
        let sockets = (socket, server);
        let mut relay = Relay::new(sockets, statements, (self.place, self.port), key);
        let end = relay.run(&said, &self.unread).await;
        relay.count();
        let told = relay.client_is_told();
        let outcome = (!relay.meter.is_let_in()).then(|| match &end {
            End::ClientGone => Outcome::Left,
            End::ServerGone if relay.exchange.ended_with_error() => Outcome::Rejected,
            End::ServerGone
            | End::Commanded(_)
            | End::Lowered
            | End::ClientBroken(_)
            | End::ServerBroken(_)
            | End::StandbyNotAwaited => Outcome::Refused,
        });
        let Relay { client: socket, server, exchange, .. } = relay;
        let last_word = match end {
            End::ClientGone => None,
            End::ServerGone => {
                if exchange.status().is_some() && !exchange.terminated() {
                    hub.step(Event::ServerLost { client: self.place.id });
                }
                // A server that said why needs no word of ours.
                let said_why = exchange.ended_with_error() || exchange.terminated();
                let in_doubt = exchange.answer_owed();
                let word = words::ending(Ending::ServerLost, in_doubt);
                Some(if said_why { Vec::new() } else { word })
            }
            End::Commanded(command) => {
                sockets::reset(server);
                Some(words::ending(commanded(&command), exchange.answer_owed()))
            }
            End::Lowered => {
                sockets::reset(server);
                Some(words::lowered_session())
            }
            End::StandbyNotAwaited => {
                sockets::reset(server);
                Some(words::standby_not_awaited())
            }
            End::ClientBroken(error) => {
                sockets::reset(server);
                Some(words::violation(&error))
            }
            End::ServerBroken(error) => {
                // The client has these bytes already; nothing can follow them.
                tracing::warn!(client = %self.place.id, %error, "a server's stream is broken");
                None
            }
        };
        if let Some(last_word) = last_word.filter(|_| told) {
            self.place.front().dismiss(self.port, socket, &last_word).await;
        }
        outcome
    }
}

/// The command that ended a relay. A command to wait or to connect elsewhere crossed with the news
/// that this server had answered: the route is gone all the same.
fn commanded(command: &Command) -> Ending {
    match command {
        Command::End(ending) => *ending,
        Command::Wait
        | Command::Connect { .. }
        | Command::Refuse(_)
        | Command::Have(_)
        | Command::Lose { .. }
        | Command::Again => Ending::Cut(CutReason::Unplanned),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_end_is_not_replaced() {
        let mailbox = Mailbox::default();
        assert!(put(&mailbox, Command::Wait).is_none());
        let untaken = put(&mailbox, Command::End(Ending::Killed));
        assert!(matches!(untaken, Some(Command::Wait)));
        assert!(matches!(put(&mailbox, Command::Again), Some(Command::Again)));
        assert!(matches!(mailbox.next().await, Command::End(Ending::Killed)));
    }
}
