//! One client, from its first packet to its end.

use std::sync::Arc;

use pgproto::wire::Exchange;
use route::{ClientId, CutReason, Event, Port, Refusal, Target};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, watch};

use crate::cancel::CancelKeys;
use crate::config::ProxyConfig;
use crate::lowering::{Lowering, Statements};
use crate::relay::{End, relay};
use crate::server::{Opened, open};
use crate::sockets;
use crate::startup::{Unwelcome, Wish, read_wish};
use crate::words::{self, Ending};

/// What the core wants of a client's task now. The newest one counts.
#[derive(Debug, Clone, PartialEq, Eq)]
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
}

/// One client's task.
pub(crate) struct Client {
    /// Who.
    pub(crate) id: ClientId,
    /// Where it came to.
    pub(crate) port: Port,
    /// The settings.
    pub(crate) config: Arc<ProxyConfig>,
    /// To the core. It is always read, so a full queue only means a moment's wait.
    pub(crate) events: mpsc::Sender<Event>,
    /// The cancel keys of all sessions.
    pub(crate) cancel_keys: CancelKeys,
    /// Who lowers `synchronous_commit`.
    pub(crate) lowering: Arc<Lowering>,
}

impl Client {
    /// Serves the client until its end. The core learns of that from the task's end.
    pub(crate) async fn serve(self, mut socket: TcpStream, mut commands: watch::Receiver<Command>) {
        sockets::prepare(&socket, self.config.tcp_user_timeout);
        match read_wish(&mut socket).await {
            Ok(Wish::Session(startup, packet)) => {
                let mut statements = Statements::new(&self.lowering, self.id, &startup);
                if statements.refuses_startup(&startup) {
                    return sockets::say_goodbye(socket, &words::lowered_startup()).await;
                }
                self.tell(Event::ClientArrived { client: self.id, port: self.port }).await;
                self.session(socket, &packet, &mut statements, &mut commands).await;
            }
            Ok(Wish::Cancel(key, packet)) => self.cancel_keys.forward(&key, &packet).await,
            Err(Unwelcome::Silent) => {}
            Err(error @ (Unwelcome::Packet(_) | Unwelcome::Insists)) => {
                tracing::debug!(client = %self.id, %error, "refused a client's first packet");
                sockets::say_goodbye(socket, &words::violation(&error)).await;
            }
        }
    }

    async fn tell(&self, event: Event) {
        // A core that is gone has ended every session already.
        self.events.send(event).await.unwrap_or_default();
    }

    /// Does what the core wants until there is a server.
    async fn session(
        &self,
        socket: TcpStream,
        startup: &[u8],
        statements: &mut Statements<'_>,
        commands: &mut watch::Receiver<Command>,
    ) {
        loop {
            let command = commands.borrow_and_update().clone();
            let opened = match command {
                Command::Wait => None,
                Command::Connect { attempt, target } => {
                    tokio::select! {
                        biased;
                        changed = commands.changed() => {
                            if changed.is_err() {
                                return;
                            }
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
            };
            if let Some(opened) = opened {
                return self.relay(socket, opened, statements, commands).await;
            }
            tokio::select! {
                changed = commands.changed() => if changed.is_err() { return },
                () = sockets::closed_by_peer(&socket) => return,
            }
        }
    }

    async fn attempt(&self, attempt: u32, target: &Target, startup: &[u8]) -> Option<Opened> {
        let config = &self.config;
        let client = self.id;
        match open(target, startup, config.connect_timeout, config.tcp_user_timeout).await {
            Ok(opened) => {
                self.tell(Event::ServerConnected { client, attempt }).await;
                Some(opened)
            }
            Err(error) => {
                let cause = std::error::Error::source(&error).map(ToString::to_string);
                tracing::debug!(%client, member = %target.member, %error, cause, "attempt failed");
                self.tell(Event::ServerFailed { client, attempt }).await;
                None
            }
        }
    }

    async fn relay(
        &self,
        mut socket: TcpStream,
        opened: Opened,
        statements: &mut Statements<'_>,
        commands: &mut watch::Receiver<Command>,
    ) {
        let Opened { socket: mut server, said } = opened;
        let mut exchange = Exchange::default();
        let keys = (&self.cancel_keys, self.id.0);
        let sockets = (&mut socket, &mut server);
        let end = relay(sockets, said, &mut exchange, statements, commands, keys).await;
        let last_word = match end {
            End::ClientGone => None,
            End::ServerGone => {
                drop(server);
                return self.server_gone(socket, &exchange).await;
            }
            End::Commanded => {
                sockets::reset(server);
                Some(words::ending(commanded(commands), exchange.answer_owed()))
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
                tracing::warn!(client = %self.id, %error, "a server's stream is broken");
                None
            }
        };
        if let Some(last_word) = last_word.filter(|_| exchange.client_at_boundary()) {
            sockets::say_goodbye(socket, &last_word).await;
        }
    }

    async fn server_gone(&self, socket: TcpStream, exchange: &Exchange) {
        if exchange.terminated() {
            return;
        }
        if exchange.status().is_some() {
            self.tell(Event::ServerLost { client: self.id }).await;
        }
        if !exchange.client_at_boundary() {
            return;
        }
        // A server that said why needs no word of ours.
        let last_word = if exchange.ended_with_error() {
            Vec::new()
        } else {
            words::ending(Ending::ServerLost, exchange.answer_owed())
        };
        sockets::say_goodbye(socket, &last_word).await;
    }
}

/// The command that ended a relay. A command to wait or to connect elsewhere crossed with the news
/// that this server had answered: the route is gone all the same.
fn commanded(commands: &watch::Receiver<Command>) -> Ending {
    match &*commands.borrow() {
        Command::End(ending) => *ending,
        Command::Wait | Command::Connect { .. } | Command::Refuse(_) => {
            Ending::Cut(CutReason::Unplanned)
        }
    }
}
