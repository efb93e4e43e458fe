//! The side of the proxy that is in charge: it answers on the control socket, and gives its sockets
//! to a successor.

use std::os::fd::AsFd;
use std::os::unix::net::UnixListener as StdUnixListener;
use std::sync::Arc;
use std::time::Duration;

use pgproto::wire::CancelKey;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::predecessors::Predecessors;
use super::wire::{Message, Talk, TalkError};
use super::{ANSWER_LIMIT, Name, Naming, RENAME_LIMIT, SUCCESSOR_LIMIT, Stage};
use crate::front::Front;
use crate::listening::Listening;

/// Conversations at once; more are closed without a word.
const CONVERSATIONS_MAX: usize = 16;
/// How long the accept loops may take to end.
const CLOSE_LIMIT: Duration = Duration::from_secs(5);
/// After a failed accept.
const ACCEPT_RETRY: Duration = Duration::from_millis(100);

const _: () = assert!(CLOSE_LIMIT.as_millis() < ANSWER_LIMIT.as_millis());

/// The way to the task that drains.
#[derive(Debug, Clone)]
pub(crate) struct Drains {
    /// It is to accept no more clients, and to end when those that are here have gone.
    pub(crate) begin: CancellationToken,
    /// It accepts none.
    pub(crate) begun: watch::Sender<bool>,
    /// The successor knows that.
    pub(crate) told: CancellationToken,
}

impl Default for Drains {
    fn default() -> Drains {
        let (begin, told) = (CancellationToken::new(), CancellationToken::new());
        Drains { begin, begun: watch::Sender::new(false), told }
    }
}

/// Tells whoever runs the proxy what becomes of it.
pub(crate) type Tell = Box<dyn Fn(Stage) + Send + Sync>;

/// What is given, and whom it concerns.
pub(crate) struct Giving {
    pub(crate) sockets: Vec<Listening>,
    pub(crate) front: Arc<Front>,
    pub(crate) naming: Naming,
    pub(crate) drains: Drains,
    pub(crate) tell: Tell,
}

/// Why nothing was handed over.
#[derive(Debug, thiserror::Error)]
enum NotGiven {
    #[error("the conversation with the successor failed")]
    Talk(#[from] TalkError),
    #[error("the successor said {0} where that makes no sense")]
    OutOfTurn(String),
}

/// What conversations share.
struct Shared {
    giving: Giving,
    control: UnixListener,
    /// Who takes over; one at a time, and one in all.
    turn: Semaphore,
    handed_over: CancellationToken,
}

impl Giving {
    /// Answers on the control socket until a successor does, and hands cancel requests of our
    /// clients' to them for as long as it is polled.
    pub(crate) async fn answer(self, control: StdUnixListener) {
        let control = match UnixListener::from_std(control) {
            Ok(control) => control,
            Err(error) => {
                tracing::error!(%error, "cannot listen on the control socket: no hot restart");
                return;
            }
        };
        let (turn, handed_over) = (Semaphore::new(1), CancellationToken::new());
        let shared = Arc::new(Shared { giving: self, control, turn, handed_over });
        let mut talks = JoinSet::new();
        loop {
            let accepted = tokio::select! {
                () = shared.handed_over.cancelled() => break,
                _ = talks.join_next(), if !talks.is_empty() => continue,
                accepted = shared.control.accept() => accepted,
            };
            match accepted {
                Ok((stream, _)) if talks.len() < CONVERSATIONS_MAX => {
                    talks.spawn(converse(shared.clone(), stream));
                }
                Ok(_) => tracing::warn!("too many connections to the control socket"),
                Err(error) => {
                    tracing::warn!(%error, "cannot accept on the control socket");
                    sleep(ACCEPT_RETRY).await;
                }
            }
        }
        drop(shared);
        while talks.join_next().await.is_some() {}
    }
}

async fn converse(shared: Arc<Shared>, stream: UnixStream) {
    let ours = rustix::process::geteuid().as_raw();
    match stream.peer_cred() {
        Ok(theirs) if theirs.uid() == ours => {
            let successor = theirs.pid().and_then(|pid| u32::try_from(pid).ok());
            let talk = Talk::new(stream);
            if let Err(error) = answer(shared, &talk, successor).await {
                let cause = std::error::Error::source(&error).map(ToString::to_string);
                tracing::debug!(%error, cause, "a conversation on the control socket has ended");
            }
        }
        Ok(theirs) => {
            let user = theirs.uid();
            tracing::warn!(
                user,
                "another user has connected to the control socket, and is refused"
            );
        }
        Err(error) => tracing::warn!(%error, "cannot learn who connects to the control socket"),
    }
}

async fn answer(shared: Arc<Shared>, talk: &Talk, successor: Option<u32>) -> Result<(), NotGiven> {
    match talk.receive(ANSWER_LIMIT).await? {
        (Message::WhoIsInCharge, _) => {
            let pid = std::process::id();
            Ok(talk.send(&Message::InCharge { pid }, None).await?)
        }
        (Message::TakeOver, _) => take_turns(shared, talk, successor).await,
        (said, _) => Err(NotGiven::OutOfTurn(said.to_string())),
    }
}

/// Hands over to one successor at a time. Until the end of that we serve on.
async fn take_turns(
    shared: Arc<Shared>,
    talk: &Talk,
    successor: Option<u32>,
) -> Result<(), NotGiven> {
    let front = shared.giving.front.clone();
    let Ok(turn) = shared.turn.try_acquire() else {
        let why = "another proxy is taking its sockets over at this moment; look whether that one \
                   serves before a further one is started";
        return refuse(talk, why).await;
    };
    if front.is_paused() {
        return refuse(talk, "its pools are paused by an operator; RESUME first").await;
    }
    tracing::info!(successor, "another proxy asks for the listening sockets");
    match hand_over(&shared, talk, successor).await {
        Ok(()) => {
            // Nobody else gets a turn.
            turn.forget();
            shared.handed_over.cancel();
            drop(shared);
            serve_cancels(&front, talk).await
        }
        Err(error) => {
            shared.giving.naming.want(Name::Own);
            let cause = std::error::Error::source(&error).map(ToString::to_string);
            tracing::warn!(successor, %error, cause, "nothing is handed over, we serve on");
            let cause = cause.map_or_else(String::new, |cause| format!(": {cause}"));
            refuse(talk, &format!("{error}{cause}")).await
        }
    }
}

async fn refuse(talk: &Talk, why: &str) -> Result<(), NotGiven> {
    Ok(talk.send(&Message::Refused { why: why.to_owned() }, None).await?)
}

async fn hand_over(shared: &Shared, talk: &Talk, successor: Option<u32>) -> Result<(), NotGiven> {
    let Giving { sockets, front, naming, drains, tell } = &shared.giving;
    for Listening { name, socket } in sockets {
        talk.send(&Message::Socket { name: name.clone() }, Some(socket.as_fd())).await?;
    }
    talk.send(&Message::ControlSocket, Some(shared.control.as_fd())).await?;
    let predecessors: &Predecessors = &front.cancel_keys.predecessors;
    for (mark, copy) in predecessors.copies() {
        talk.send(&Message::Predecessor { mark }, Some(copy.as_fd())).await?;
    }
    talk.send(&Message::AllSent { mark: front.cancel_keys.mark() }, None).await?;
    expect(talk, &Message::Ready).await?;
    naming.want(Name::Draining);
    if !naming.until_written(Name::Draining, RENAME_LIMIT).await {
        // Nor would it see a leader's hold then.
        tracing::warn!("the DCS does not answer: the clients here are in no leader's sight");
    }
    talk.send(&Message::NameFree, None).await?;
    expect(talk, &Message::Serving).await?;
    predecessors.forget();
    tell(Stage::HandedOver { successor });
    drains.begin.cancel();
    let mut begun = drains.begun.subscribe();
    // Where it takes longer it is done all the same.
    drop(timeout(CLOSE_LIMIT, begun.wait_for(|begun| *begun)).await);
    // A successor that has ended by now has none of our clients.
    talk.send(&Message::Draining, None).await.unwrap_or_default();
    drains.told.cancel();
    Ok(())
}

async fn expect(talk: &Talk, message: &Message) -> Result<(), NotGiven> {
    match talk.receive(SUCCESSOR_LIMIT).await? {
        (said, _) if said == *message => Ok(()),
        (said, _) => Err(NotGiven::OutOfTurn(said.to_string())),
    }
}

/// Takes cancel requests for our clients from the successor, for as long as either is there.
async fn serve_cancels(front: &Front, talk: &Talk) -> Result<(), NotGiven> {
    loop {
        talk.until_it_speaks().await;
        match talk.receive(ANSWER_LIMIT).await? {
            (Message::Cancel { process, secret }, _) => {
                // The other requests do not wait for this one's server.
                drop(front.cancel_keys.cancel_own(front, &CancelKey { process, secret }));
                talk.send(&Message::Cancelled, None).await?;
            }
            (said, _) => return Err(NotGiven::OutOfTurn(said.to_string())),
        }
    }
}
