//! One client, from its first packet to its end.

use std::sync::Arc;

use pgproto::wire::Startup;
use route::{CutReason, Event, Port, Refusal, ServerId, Target};
use tokio::net::TcpStream;

use crate::dial::{Opened, open};
use crate::hub::{Entered, PoolKey};
use crate::lowering::{Judge, Statements};
use crate::relay::{End, Relay};
use crate::server::ServerConnection;
use crate::sockets;
use crate::startup::{Unwelcome, Wish, read_wish};
use crate::welcome;
use crate::words::{self, Ending};

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

/// Serves a client until its end. The hub learns of that from the end of its place.
pub(crate) async fn serve(place: Entered, port: Port, mut socket: TcpStream) {
    let config = &place.hub.config;
    sockets::prepare(&socket, config.tcp_user_timeout);
    // What is needed once is not kept for as long as the client stays.
    match Box::pin(read_wish(&mut socket)).await {
        Ok(Wish::Session(startup, packet)) => {
            let who = Arc::new(who(&startup));
            let mut judge = Judge::new(place.id, who.clone());
            if judge.refuses_startup(&place.hub.lowering, &startup) {
                return sockets::say_goodbye(socket, &words::lowered_startup()).await;
            }
            match config.pool_mode.filter(|_| startup.parameter("replication").is_none()) {
                Some(mode) => welcome::run(&place, port, socket, &startup, judge, mode).await,
                None => {
                    let client = place.id;
                    place.hub.step(Event::ClientArrived { client, port });
                    Box::pin(Session { place: &place }.run(socket, &packet, judge)).await;
                }
            }
        }
        Ok(Wish::Cancel(key, packet)) => {
            Box::pin(place.hub.cancel_keys.forward(&place.hub, &key, &packet)).await;
        }
        Err(Unwelcome::Silent) => {}
        Err(error @ (Unwelcome::Packet(_) | Unwelcome::Insists)) => {
            tracing::debug!(client = %place.id, %error, "refused a client's first packet");
            Box::pin(sockets::say_goodbye(socket, &words::violation(&error))).await;
        }
    }
}

/// The user, and the database, which is named after him if nothing else is said.
fn who(startup: &Startup) -> PoolKey {
    let user = startup.parameter("user").unwrap_or_default().to_owned();
    let database = startup.parameter("database").unwrap_or(&user).to_owned();
    PoolKey { database, user }
}

/// A client with a server connection of its own.
struct Session<'a> {
    place: &'a Entered,
}

impl Session<'_> {
    /// Does what the hub wants until there is a server.
    async fn run(&self, socket: TcpStream, startup: &[u8], judge: Judge) {
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
                        () = sockets::closed_by_peer(&socket) => return,
                        opened = self.attempt(attempt, &target, startup) => opened,
                    }
                }
                Command::Refuse(refusal) => {
                    return sockets::say_goodbye(socket, &words::refusal(&refusal)).await;
                }
                Command::End(ending) => {
                    return sockets::say_goodbye(socket, &words::ending(ending, false)).await;
                }
                // These are for clients of pools.
                Command::Have(_) | Command::Lose { .. } | Command::Again => None,
            };
            if let Some(opened) = opened {
                return self.relay(socket, opened, judge).await;
            }
            command = tokio::select! {
                next = mailbox.next() => next,
                () = sockets::closed_by_peer(&socket) => return,
            };
        }
    }

    async fn attempt(&self, attempt: u32, target: &Target, startup: &[u8]) -> Option<Opened> {
        let hub = &self.place.hub;
        let client = self.place.id;
        let config = &hub.config;
        match open(target, startup, config.connect_timeout, config.tcp_user_timeout).await {
            Ok(opened) => {
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

    async fn relay(&self, socket: TcpStream, opened: Opened, judge: Judge) {
        let Opened { socket: server, said } = opened;
        let hub = &self.place.hub;
        let statements = Statements::new(&hub.lowering, judge);
        let keys = (&hub.cancel_keys, self.place.id);
        let mut relay = Relay::new((socket, server), statements, &self.place.mailbox, keys);
        let end = relay.run(&said).await;
        let told = relay.client_is_told();
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
            sockets::say_goodbye(socket, &last_word).await;
        }
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
