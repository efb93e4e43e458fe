//! Hot restart: a new proxy takes the listening sockets over, and the one before drains.
//!
//! The one *in charge* listens on the control socket. The new one, its *successor*, asks there:
//!
//! ```text
//! successor                               in charge
//!   take over            ──────────────>    refuses if another one is at it, or it is paused
//!                        <──────────────    each listening socket, the control socket itself, the
//!                                           connections to those before it that drain still
//!   binds what is new, awaits a view
//!   ready                ──────────────>    takes another name in the DCS
//!                        <──────────────    the name is free
//!   takes the name, accepts clients
//!   serving              ──────────────>    closes its listening sockets
//!                        <──────────────    draining
//!   cancel a statement   ──────────────>    (for as long as it drains)
//! ```
//!
//! Until `serving` the one in charge serves on, whatever becomes of the successor. All sockets, the
//! control socket too, are shared and never closed on the way, so the kernel's queues of clients
//! outlive the take-over, and no path is removed or bound anew. Whoever is in charge and gives up
//! says so before it closes: a successor that hears nothing more knows that the other one ended.
//!
//! Both have one user id; the kernel says so (`SO_PEERCRED`). Every wait has a limit, every message
//! a length.

mod giving;
mod naming;
mod path;
mod predecessors;
mod role;
mod taking;
mod wire;

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::net::UnixStream;

pub(crate) use self::giving::Drains;
pub use self::naming::{Name, Naming, Registrant};
pub(crate) use self::predecessors::Predecessors;
pub(crate) use self::role::HotRestart;
use self::wire::{Message, Talk, TalkError};

/// How long the answer to a message may take.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);
/// How long a successor may take from one of its messages to the next.
const SUCCESSOR_LIMIT: Duration = Duration::from_secs(30);
/// How long the one in charge tries to take its other name in the DCS.
const RENAME_LIMIT: Duration = Duration::from_secs(3);
/// How long a successor waits for what the DCS shows.
const VIEW_LIMIT: Duration = Duration::from_secs(5);

// Who is asked has its own wait behind it before the asker gives up, and the other way round.
const _: () = assert!(RENAME_LIMIT.as_millis() < ANSWER_LIMIT.as_millis());
const _: () = assert!(VIEW_LIMIT.as_millis() < SUCCESSOR_LIMIT.as_millis());

/// What becomes of a proxy, for whoever runs it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// It serves, and nobody else does at its addresses.
    Serving,
    /// Its successor serves; clients that are here may stay for a while.
    HandedOver {
        /// The process, if the kernel says so.
        successor: Option<u32>,
    },
}

/// Why no sockets were taken over.
#[derive(Debug, thiserror::Error)]
pub enum TakeoverError {
    /// The place of the control socket is not ours alone.
    #[error(
        "the control socket's directory {directory} must belong to the proxy's user or root, and \
         nobody else may write there (now: user {user}, mode {mode:o})"
    )]
    Directory {
        /// The directory.
        directory: PathBuf,
        /// Its owner.
        user: u32,
        /// Its permissions.
        mode: u32,
    },
    /// Something else stands in its place.
    #[error("{path} is no socket: name another control_socket, or remove it")]
    NoSocket {
        /// Where.
        path: PathBuf,
    },
    /// The file system refused.
    #[error("the control socket {path}: cannot {what}")]
    Path {
        /// Where.
        path: PathBuf,
        /// What was tried.
        what: &'static str,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// Others are starting there all the time.
    #[error("the directory of the control socket {path} stays locked by another proxy that starts")]
    Locked {
        /// Where.
        path: PathBuf,
    },
    /// Who listens there is another user.
    #[error(
        "the proxy behind {path} runs as user {theirs}, this one as user {ours}: start it as the \
         same user"
    )]
    Stranger {
        /// Where.
        path: PathBuf,
        /// Its user.
        theirs: u32,
        /// Our user.
        ours: u32,
    },
    /// The conversation broke off.
    #[error(
        "the proxy in charge was asked for its sockets and {while_it} failed; it serves on, if it \
         lives"
    )]
    Talk {
        /// What went on.
        while_it: &'static str,
        /// How.
        #[source]
        source: TalkError,
    },
    /// It said no.
    #[error("the proxy in charge does not hand over: {why}")]
    Refused {
        /// What it said.
        why: String,
    },
    /// It did not say what it had to.
    #[error("the proxy in charge said {said:?} where that makes no sense")]
    OutOfTurn {
        /// What it said.
        said: String,
    },
    /// It gave something else than listening sockets.
    #[error("the proxy in charge handed over a socket ({name}) that does not listen")]
    NotListening {
        /// What was to listen there.
        name: String,
    },
    /// More than anybody has.
    #[error("the proxy in charge handed over more than {most} sockets")]
    TooMany {
        /// The limit.
        most: usize,
    },
}

/// The process that is in charge behind a control socket; `None` if there is none.
///
/// # Errors
/// [`TakeoverError`].
pub async fn in_charge(path: &Path) -> Result<Option<u32>, TakeoverError> {
    let stream = match UnixStream::connect(path).await {
        Ok(stream) => stream,
        Err(error) if path::nobody_listens(&error) => return Ok(None),
        Err(source) => {
            let path = path.to_owned();
            return Err(TakeoverError::Path { path, what: "connect to it", source });
        }
    };
    let talk = Talk::new(stream);
    let asked = async {
        talk.send(&Message::WhoIsInCharge, None).await?;
        talk.receive(ANSWER_LIMIT).await
    };
    let failed = |source| TakeoverError::Talk { while_it: "asking who it is", source };
    match asked.await.map_err(failed)? {
        (Message::InCharge { pid }, _) => Ok(Some(pid)),
        (Message::Refused { why }, _) => Err(TakeoverError::Refused { why }),
        (said, _) => Err(TakeoverError::OutOfTurn { said: said.to_string() }),
    }
}
