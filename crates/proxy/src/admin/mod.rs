//! The proxy's own database, in which operators look at it and give it commands.
//!
//! Who asks for the database `pgherd`, or `pgbouncer`, as programs for PgBouncer are configured,
//! signs in as all do and is not connected to a server. Commands come by the simple protocol.
//!
//! Not here: clients whose authentication passes through to a server; they have no such database.

mod command;
mod rows;
mod show;
mod survey;

use std::future::poll_fn;
use std::task::{Context, Poll};

use pgproto::wire::{ErrorResponse, Severity};
use route::Event;
use route::link::{parameter_status, ready_for_query};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use self::command::{HELP, Order, Subject};
use crate::client::Command;
use crate::config::ProxyConfig;
use crate::front::{Entered, Front};
use crate::login::{MessageError, Messages};
use crate::mailbox::Mailbox;
use crate::visitors::Errand;
use crate::welcome::{self, Arrived};
use crate::words::{self, Ending};

pub(crate) use self::survey::{ClusterSurvey, PoolSurvey, PoolTally, Survey};

/// No command is longer, nor what is sent ahead of an answer.
const COMMAND_BYTES_MAX: usize = 16 * 1024;

const SYNTAX_ERROR: &str = "42601";
const INSUFFICIENT_PRIVILEGE: &str = "42501";
const NOT_LET_IN: &str = "28000";
const NOT_SUPPORTED: &str = "0A000";
const NOT_IN_THIS_STATE: &str = "55000";
const NO_SUCH_OBJECT: &str = "42704";
const CANCELLED: &str = "57014";
const CONFIG_FILE: &str = "F0000";
const PROTOCOL_VIOLATION: &str = "08P01";

/// How a stay ends: what the client is told, if anything.
type Farewell = Option<Vec<u8>>;

/// Whether a client that asks for it comes here.
pub(crate) fn is_its_database(name: &str) -> bool {
    matches!(name, "pgherd" | "pgbouncer")
}

/// Signs the client in and answers it to its end.
pub(crate) async fn run(mut client: Arrived<'_>) {
    if let Err(Some(word)) = Box::pin(talk(&mut client)).await {
        Box::pin(client.place.front().dismiss(client.port, client.stream, &word)).await;
    }
}

/// What a user may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rights {
    Show,
    All,
}

fn rights(config: &ProxyConfig, user: &str) -> Option<Rights> {
    if config.admin_users.contains(user) {
        return Some(Rights::All);
    }
    config.stats_users.contains(user).then_some(Rights::Show)
}

async fn talk(client: &mut Arrived<'_>) -> Result<(), Farewell> {
    let place = client.place;
    let user = client.judge.who().user.clone();
    let mut unread = std::mem::take(&mut client.unread);
    // Nobody learns who may come in without showing who he is. The limit of clients does not count
    // here: this is where an operator looks what they do.
    let mut hello = welcome::authenticated(client, &user, &mut unread).await?;
    let Some(rights) = rights(&place.hub.config, &user) else {
        let message = format!("user \"{user}\" may not look at the proxy");
        tracing::info!(client = %place.id, address = %client.address, message);
        let hint = "pgherd.proxy.admin_users and stats_users say who may.";
        return Err(Some(error(Severity::Fatal, NOT_LET_IN, &message, hint)));
    };
    client.is_in(Errand::Admin);
    let key = place.front().cancel_keys.create(place.id).ok_or(None)?;
    for (name, value) in [
        ("server_version", concat!(env!("CARGO_PKG_VERSION"), "/pgherd")),
        ("client_encoding", "UTF8"),
        ("server_encoding", "UTF8"),
        ("standard_conforming_strings", "on"),
        ("DateStyle", "ISO"),
        ("TimeZone", "GMT"),
        ("integer_datetimes", "on"),
    ] {
        parameter_status(&mut hello, name, value);
    }
    hello.extend(key.key().to_message());
    ready_for_query(&mut hello, b'I');
    let mut console = Console { place, rights, client, unread, user, skips: false };
    console.send(&hello).await?;
    console.serve().await
}

struct Console<'a, 'b> {
    place: &'a Entered,
    rights: Rights,
    client: &'a mut Arrived<'b>,
    unread: Vec<u8>,
    user: String,
    /// After an error in the extended protocol everything up to a Sync is ignored.
    skips: bool,
}

impl Console<'_, '_> {
    async fn serve(&mut self) -> Result<(), Farewell> {
        loop {
            let mut messages = Messages::new(&mut self.client.stream, &mut self.unread);
            let message = tokio::select! {
                ending = ending(&self.place.mailbox) => {
                    return Err(Some(words::ending(ending, false)));
                }
                message = messages.next(COMMAND_BYTES_MAX) => message,
            };
            let message = message.map_err(|broken| match broken {
                MessageError::Broken(_) | MessageError::Closed => None,
                MessageError::Length { .. } | MessageError::Content(_) => {
                    let hint = "The connection is closed.";
                    Some(error(Severity::Fatal, PROTOCOL_VIOLATION, &broken.to_string(), hint))
                }
            })?;
            let answer = match message.tag {
                b'Q' => {
                    let text = message.body.split(|byte| *byte == 0).next().unwrap_or_default();
                    self.answer(&String::from_utf8_lossy(text)).await?
                }
                b'X' => return Ok(()),
                b'S' => {
                    self.skips = false;
                    let mut ready = Vec::new();
                    ready_for_query(&mut ready, b'I');
                    ready
                }
                b'P' | b'B' | b'D' | b'E' | b'C' | b'H' => self.extended(),
                tag => {
                    let message = format!("a message of type {tag:#04x} means nothing here");
                    let hint = "The connection is closed.";
                    return Err(Some(error(Severity::Fatal, PROTOCOL_VIOLATION, &message, hint)));
                }
            };
            self.send(&answer).await?;
        }
    }

    fn extended(&mut self) -> Vec<u8> {
        if std::mem::replace(&mut self.skips, true) {
            return Vec::new();
        }
        let message = "the proxy's database does not speak the extended query protocol";
        let hint = "Use simple queries, without parameters and prepared statements.";
        error(Severity::Error, NOT_SUPPORTED, message, hint)
    }

    /// Does what is asked; the answer, up to ReadyForQuery.
    async fn answer(&mut self, text: &str) -> Result<Vec<u8>, Farewell> {
        let Some(order) = command::parse(text) else {
            let message = "the proxy does not know this command";
            return Ok(failed(SYNTAX_ERROR, message, "SHOW HELP lists what it knows."));
        };
        let front = self.place.front();
        let only_looks = matches!(order, Order::Nothing | Order::Show(_));
        if !only_looks && self.rights != Rights::All {
            let hint = "Users in pgherd.proxy.admin_users may; those in stats_users may SHOW.";
            let message = "only administrators of the proxy may do this";
            return Ok(failed(INSUFFICIENT_PRIVILEGE, message, hint));
        }
        if !only_looks {
            tracing::info!(user = self.user, ?order, "an operator's command");
        }
        let mut bytes = Vec::new();
        match order {
            Order::Nothing => rows::nothing(&mut bytes),
            Order::Show(subject) => bytes = show(front, subject),
            Order::Pause => return self.pause().await,
            Order::Resume if front.resume() => rows::complete(&mut bytes, "RESUME"),
            Order::Resume => {
                bytes = failed(NOT_IN_THIS_STATE, "the proxy is not paused", "PAUSE pauses it.");
            }
            Order::Reconnect => {
                front.hubs().for_each(|hub| hub.step(Event::Reconnect));
                rows::complete(&mut bytes, "RECONNECT");
            }
            Order::Reload => match front.reload() {
                Ok(()) => rows::complete(&mut bytes, "RELOAD"),
                Err(error) => {
                    tracing::error!(%error, "what cannot be read stays as it was");
                    let hint = "What cannot be read stays as it was.";
                    bytes = failed(CONFIG_FILE, &error.to_string(), hint);
                }
            },
            Order::Kill(client) if front.kill(client) => rows::complete(&mut bytes, "KILL"),
            Order::Kill(client) => {
                let message = format!("there is no client {client}");
                bytes = failed(NO_SUCH_OBJECT, &message, "SHOW CLIENTS has their numbers as ptr.");
            }
        }
        Ok(bytes)
    }

    /// Pauses, and waits until nothing is lent. An operator who does not wait for that takes the
    /// pause back, for nobody would know of it.
    async fn pause(&mut self) -> Result<Vec<u8>, Farewell> {
        let front = self.place.front().clone();
        let mailbox = self.place.mailbox.clone();
        // A cancel that came earlier was for something else.
        drop(mailbox.take_cancel());
        if !front.pause() {
            let hint = "RESUME ends the pause.";
            return Ok(failed(NOT_IN_THIS_STATE, "the proxy is paused already", hint));
        }
        let mut pause = Pause { front: &front, stays: false };
        tokio::select! {
            paused = front.until_returned() => {
                pause.stays = true;
                if !paused {
                    let hint = "What was lent then had not been given back.";
                    return Ok(failed(NOT_IN_THIS_STATE, "another operator ended the pause", hint));
                }
                let mut bytes = Vec::new();
                rows::complete(&mut bytes, "PAUSE");
                Ok(bytes)
            }
            disturbed = cancelled_or_ended(&mailbox) => match disturbed {
                None => {
                    let hint = "Clients still had connections; the pause is taken back.";
                    Ok(failed(CANCELLED, "canceling statement due to user request", hint))
                }
                Some(ending) => Err(Some(words::ending(ending, false))),
            },
            () = self.gives_up() => Err(None),
        }
    }

    /// Completes when the client closes, or sends too much ahead.
    ///
    /// Cancel safety: safe, what it sends is kept.
    async fn gives_up(&mut self) {
        while self.unread.len() < COMMAND_BYTES_MAX {
            let read = self.client.stream.read_buf(&mut self.unread).await;
            if !read.is_ok_and(|count| count > 0) {
                return;
            }
        }
    }

    async fn send(&mut self, bytes: &[u8]) -> Result<(), Farewell> {
        let stream = &mut self.client.stream;
        let sent = async {
            stream.write_all(bytes).await?;
            stream.flush().await
        };
        tokio::select! {
            // What was sent may end within a message; nothing can follow it.
            _ = ending(&self.place.mailbox) => Err(None),
            sent = sent => sent.map_err(|_| None),
        }
    }
}

/// Takes a pause back unless it stays.
struct Pause<'a> {
    front: &'a Front,
    stays: bool,
}

impl Drop for Pause<'_> {
    fn drop(&mut self) {
        if !self.stays {
            self.front.resume();
        }
    }
}

fn show(front: &Front, subject: Subject) -> Vec<u8> {
    let survey = || Survey::of(front);
    let table = match subject {
        Subject::Clients => show::clients(&survey()),
        Subject::Config => show::config(&front.config),
        Subject::Databases => show::databases(&survey()),
        Subject::Lists => show::lists(&survey()),
        Subject::Pools => show::pools(&survey()),
        Subject::Servers => show::servers(&survey()),
        Subject::Stats => show::stats(&survey()),
        Subject::StatsTotals => show::stats_totals(&survey()),
        Subject::Version => show::version(),
        Subject::Help => {
            let mut bytes = Vec::new();
            rows::notice(&mut bytes, HELP);
            rows::complete(&mut bytes, "SHOW");
            return bytes;
        }
    };
    table.to_bytes()
}

/// Completes when the hub ends the session.
///
/// Cancel safety: safe.
async fn ending(mailbox: &Mailbox<Command>) -> Ending {
    poll_fn(|cx| poll_ending(mailbox, cx)).await
}

/// Completes with `None` when a cancel request has come, or when the hub ends the session.
///
/// Cancel safety: safe.
async fn cancelled_or_ended(mailbox: &Mailbox<Command>) -> Option<Ending> {
    poll_fn(|cx| match poll_ending(mailbox, cx) {
        Poll::Ready(ending) => Poll::Ready(Some(ending)),
        // The mailbox wakes for a cancel from here on, so it is looked for after that.
        Poll::Pending if mailbox.take_cancel().is_some() => Poll::Ready(None),
        Poll::Pending => Poll::Pending,
    })
    .await
}

fn poll_ending(mailbox: &Mailbox<Command>, cx: &Context<'_>) -> Poll<Ending> {
    loop {
        match mailbox.poll_take(cx) {
            Poll::Pending => return Poll::Pending,
            Poll::Ready(Command::End(ending)) => return Poll::Ready(ending),
            // These are for clients of servers.
            Poll::Ready(
                Command::Wait
                | Command::Connect { .. }
                | Command::Refuse(_)
                | Command::Have(_)
                | Command::Lose { .. }
                | Command::Again,
            ) => {}
        }
    }
}

fn error(severity: Severity, sqlstate: &str, message: &str, hint: &str) -> Vec<u8> {
    ErrorResponse { severity, sqlstate, message, hint: Some(hint) }.to_bytes()
}

/// An error, and ReadyForQuery.
fn failed(sqlstate: &str, message: &str, hint: &str) -> Vec<u8> {
    let mut bytes = error(Severity::Error, sqlstate, message, hint);
    ready_for_query(&mut bytes, b'I');
    bytes
}
