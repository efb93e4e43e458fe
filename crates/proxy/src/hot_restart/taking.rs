//! The successor's side of a take-over.

use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};

use rustix::net::sockopt;

use super::predecessors::Predecessor;
use super::wire::{Message, Talk};
use super::{ANSWER_LIMIT, TakeoverError};
use crate::listening::Listening;

/// More sockets than this nobody has.
const SOCKETS_MAX: usize = 256;

/// What the one in charge has given; it still serves.
#[derive(Debug)]
pub(crate) struct Takeover {
    talk: Talk,
    control: UnixListener,
    predecessors: Vec<Predecessor>,
    mark: u16,
}

/// The one in charge has left its name to us, and still serves.
#[derive(Debug)]
pub(crate) struct Released(Takeover);

/// What a successor goes on with.
#[derive(Debug)]
pub(crate) struct Taken {
    pub(crate) control: UnixListener,
    pub(crate) predecessors: Vec<Predecessor>,
}

impl Takeover {
    /// Asks the proxy at the other end of `stream` for its sockets.
    ///
    /// # Errors
    /// [`TakeoverError`]; it serves on then.
    pub(crate) async fn begin(
        stream: tokio::net::UnixStream,
    ) -> Result<(Takeover, Vec<Listening>), TakeoverError> {
        let talk = Talk::new(stream);
        let while_it = "taking its sockets";
        say(&talk, &Message::TakeOver, while_it).await?;
        let (mut control, mut listening, mut predecessors) = (None, Vec::new(), Vec::new());
        for _ in 0..SOCKETS_MAX {
            let (said, file) = hear(&talk, while_it).await?;
            match (said, file) {
                (Message::Socket { name }, Some(file)) => {
                    listening.push(Listening { socket: as_listener(&name, file)?, name });
                }
                (Message::ControlSocket, Some(file)) => {
                    listens("control", &file)?;
                    control = Some(UnixListener::from(file));
                }
                (Message::Predecessor { mark }, Some(file)) => {
                    let stream = as_stream(file, while_it)?;
                    predecessors.push(Predecessor { mark, talk: Talk::new(stream) });
                }
                (Message::AllSent { mark }, None) => {
                    let control = control.ok_or_else(|| TakeoverError::NotListening {
                        name: "control".to_owned(),
                    })?;
                    return Ok((Takeover { talk, control, predecessors, mark }, listening));
                }
                (said, _) => return Err(unexpected(said)),
            }
        }
        Err(TakeoverError::TooMany { most: SOCKETS_MAX })
    }

    /// Has the one in charge leave its name in the DCS to us.
    ///
    /// # Errors
    /// [`TakeoverError`]; it serves on then, under that name.
    pub(crate) async fn ready(self) -> Result<Released, TakeoverError> {
        let while_it = "taking its name";
        say(&self.talk, &Message::Ready, while_it).await?;
        match hear(&self.talk, while_it).await? {
            (Message::NameFree, None) => Ok(Released(self)),
            (said, _) => Err(unexpected(said)),
        }
    }
}

impl Released {
    /// We accept clients: the one in charge is to stop.
    ///
    /// # Errors
    /// It has said that it serves on, so we must not. Where it only said nothing any more it has
    /// ended, or will read this, and we are in charge.
    pub(crate) async fn serving(self) -> Result<Taken, TakeoverError> {
        let Takeover { talk, control, mut predecessors, mark } = self.0;
        let while_it = "telling it to stop";
        let told = match say(&talk, &Message::Serving, while_it).await {
            Ok(()) => hear(&talk, while_it).await,
            // Its last word may be there to be read.
            Err(_) => hear(&talk, while_it).await,
        };
        match told {
            Ok((Message::Draining, _)) => predecessors.push(Predecessor { mark, talk }),
            Ok((said, _)) => return Err(unexpected(said)),
            Err(error) => {
                let cause = std::error::Error::source(&error).map(ToString::to_string);
                tracing::warn!(%error, cause, "the proxy before this one has ended, or hangs");
            }
        }
        Ok(Taken { control, predecessors })
    }
}

async fn say(talk: &Talk, message: &Message, while_it: &'static str) -> Result<(), TakeoverError> {
    talk.send(message, None).await.map_err(|source| TakeoverError::Talk { while_it, source })
}

async fn hear(
    talk: &Talk,
    while_it: &'static str,
) -> Result<(Message, Option<OwnedFd>), TakeoverError> {
    let heard = talk.receive(ANSWER_LIMIT).await;
    heard.map_err(|source| TakeoverError::Talk { while_it, source })
}

fn unexpected(said: Message) -> TakeoverError {
    match said {
        Message::Refused { why } => TakeoverError::Refused { why },
        other => TakeoverError::OutOfTurn { said: other.to_string() },
    }
}

fn listens(name: &str, file: &OwnedFd) -> Result<(), TakeoverError> {
    match sockopt::socket_acceptconn(file) {
        Ok(true) => Ok(()),
        Ok(false) | Err(_) => Err(TakeoverError::NotListening { name: name.to_owned() }),
    }
}

fn as_listener(name: &str, file: OwnedFd) -> Result<TcpListener, TakeoverError> {
    listens(name, &file)?;
    Ok(TcpListener::from(file))
}

fn as_stream(
    file: OwnedFd,
    while_it: &'static str,
) -> Result<tokio::net::UnixStream, TakeoverError> {
    let stream = UnixStream::from(file);
    let stream = stream.set_nonblocking(true).map(|()| stream);
    let stream = stream.and_then(tokio::net::UnixStream::from_std);
    stream.map_err(|error| TakeoverError::Talk { while_it, source: error.into() })
}
