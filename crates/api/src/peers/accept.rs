//! The side that is dialled.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::body::Body;
use axum::http::header::{CONNECTION, UPGRADE};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::response::Response;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use hyper_util::server::conn::auto::upgrade::downcast;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{mpsc, watch};
use types::{MemberName, Millis};

use super::board::{Board, Report};
use super::frame::{Frame, Opener, Sealer};
use super::link::{Link, LinkError};
use super::proof::{FrameKeys, Nonce, Nonces, Parties, PeerKey, answer_proof, request_proof};
use super::{Heard, PROTOCOL, hasten};
use crate::access::equal_in_constant_time;
use crate::listener::Connection;

/// The cluster that the dialer means.
pub(super) const SCOPE: &str = "pgherd-scope";
/// Who dials.
pub(super) const FROM: &str = "pgherd-from";
/// The sender's nonce.
pub(super) const NONCE: &str = "pgherd-nonce";
/// The sender's proof.
pub(super) const PROOF: &str = "pgherd-proof";

/// The first beat has to come so soon after the answer: until then it could be a request that
/// somebody replayed.
const FIRST_MAX: Duration = Duration::from_secs(2);

/// A connection without a beat for so long is given up; its dialer has done so before.
const SILENCE_MAX: Duration = Duration::from_secs(6);

// Several beats may be late before that.
const _: () = assert!(SILENCE_MAX.as_millis() >= 3 * config::HEARTBEAT_INTERVAL_MAX.0 as u128);

/// Members of whom we know which connection is their newest. Above any sensible cluster.
const NAMES_MAX: usize = 256;

/// What the server needs in order to take heartbeats in.
#[derive(Debug)]
pub struct Reception {
    scope: String,
    name: MemberName,
    key: watch::Receiver<Option<PeerKey>>,
    heard: mpsc::Sender<Heard>,
    board: Arc<Board>,
    newest: Newest,
    patience: Patience,
}

/// How long a connection may be silent.
#[derive(Debug, Clone, Copy)]
pub(super) struct Patience {
    /// After the answer.
    pub(super) first: Duration,
    /// After a beat.
    pub(super) silence: Duration,
}

impl Reception {
    /// The one of member `name` of `scope`. While there is no key everybody is a stranger. Beats
    /// go to `heard`, which is made with [`super::HEARD_MAX`].
    #[must_use]
    pub fn new(
        scope: &str,
        name: MemberName,
        key: watch::Receiver<Option<PeerKey>>,
        heard: mpsc::Sender<Heard>,
        board: Arc<Board>,
    ) -> Reception {
        let newest = Newest::default();
        let patience = Patience { first: FIRST_MAX, silence: SILENCE_MAX };
        Reception { scope: scope.to_owned(), name, key, heard, board, newest, patience }
    }

    /// Hands a beat on; waits for nothing.
    fn pass_on(&self, heard: Heard) -> Result<(), Ended> {
        self.board.update(&heard.from, |peer| peer.hear(heard.at));
        match self.heard.try_send(heard) {
            Ok(()) => Ok(()),
            Err(TrySendError::Full(_)) => {
                self.board.drop_beat();
                Ok(())
            }
            Err(TrySendError::Closed(_)) => Err(Ended::Leaving),
        }
    }

    /// The same with another patience.
    #[cfg(test)]
    pub(crate) fn waiting(mut self, first: Duration, silence: Duration) -> Reception {
        self.patience = Patience { first, silence };
        self
    }

    /// As if this member had just proven itself.
    #[cfg(test)]
    pub(super) fn visitor(&self, from: &str) -> Visitor {
        let mut key = self.key.clone();
        key.mark_unchanged();
        Visitor { from: from.into(), ticket: self.newest.ticket(), key }
    }

    /// What the connections are like, for metrics.
    #[must_use]
    pub fn report(&self) -> Report {
        self.board.report()
    }
}

/// Which connection of each member is the newest. Beats of an older one, which the network may have
/// held back, are not news.
#[derive(Debug, Default)]
struct Newest(Mutex<Tickets>);

#[derive(Debug, Default)]
struct Tickets {
    last: u64,
    of: BTreeMap<MemberName, u64>,
}

impl Newest {
    /// The number of a connection that begins now. It counts only once it is claimed, since
    /// anybody can replay a request.
    fn ticket(&self) -> u64 {
        let mut tickets = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        tickets.last += 1;
        tickets.last
    }

    /// Whether no newer connection of this member has said anything.
    fn claim(&self, from: &MemberName, ticket: u64) -> bool {
        let mut tickets = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let newest = tickets.of.get(from).copied().unwrap_or(0).max(ticket);
        tickets.of.insert(from.clone(), newest);
        if tickets.of.len() > NAMES_MAX {
            let oldest = tickets.of.iter().min_by_key(|(_, ticket)| **ticket);
            let oldest = oldest.map(|(name, _)| name.clone());
            tickets.of.retain(|name, _| Some(name) != oldest.as_ref());
        }
        newest == ticket
    }
}

/// A dialer that has proven itself, and what is needed to go on with it.
pub(super) struct Visitor {
    pub(super) from: MemberName,
    pub(super) ticket: u64,
    /// The key that it was proven with; a change ends the connection.
    pub(super) key: watch::Receiver<Option<PeerKey>>,
}

/// Why a connection that was accepted has ended.
#[derive(Debug, thiserror::Error)]
pub(super) enum Ended {
    #[error(transparent)]
    Link(#[from] LinkError),
    #[error("no beat for {} s", limit.as_secs())]
    Silent { limit: Duration },
    #[error("a newer connection of the same member is there")]
    Superseded,
    #[error("the secret has changed")]
    Rekeyed,
    #[error("the upgrade failed")]
    Upgrade(#[source] hyper::Error),
    #[error("the agent ends")]
    Leaving,
}

/// Answers `GET /peers`: with 101 for a member, with `None` for a stranger, whom the caller answers
/// as on any unknown path.
pub(crate) fn welcome(
    reception: &Arc<Reception>,
    headers: &HeaderMap,
    upgrade: Option<OnUpgrade>,
    now: fn() -> Millis,
) -> Option<Response> {
    let proven = upgrade.and_then(|upgrade| Some((upgrade, prove(reception, headers)?)));
    let Some((upgrade, proven)) = proven else {
        reception.board.refuse();
        return None;
    };
    let Proven { visitor, keys, nonce, proof } = proven;
    let reception = Arc::clone(reception);
    tokio::spawn(async move {
        let from = visitor.from.clone();
        let ended = match take_over(upgrade, keys).await {
            Ok(link) => listen(&reception, link, visitor, now).await,
            Err(ended) => ended,
        };
        tracing::debug!(%from, why = %ended, "a connection for heartbeats ended");
    });
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let hexadecimal = |text: &str| HeaderValue::from_str(text).expect("it is hex");
    let headers = response.headers_mut();
    headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_static(PROTOCOL));
    headers.insert(NONCE, hexadecimal(&nonce));
    headers.insert(PROOF, hexadecimal(&proof));
    Some(response)
}

struct Proven {
    visitor: Visitor,
    keys: FrameKeys,
    nonce: String,
    proof: String,
}

fn prove(reception: &Reception, headers: &HeaderMap) -> Option<Proven> {
    let get = |name: &str| std::str::from_utf8(headers.get(name)?.as_bytes()).ok();
    if get(UPGRADE.as_str())? != PROTOCOL || get(SCOPE)? != reception.scope {
        return None;
    }
    let mut watching = reception.key.clone();
    let key = watching.borrow_and_update().clone()?;
    let from = MemberName::from(get(FROM)?);
    let dialer = Nonce::given(get(NONCE)?)?;
    let (scope, to) = (reception.scope.clone(), reception.name.clone());
    let parties = Parties { scope, from, to };
    let expected = request_proof(&key, &parties, &dialer);
    if !equal_in_constant_time(get(PROOF)?.as_bytes(), expected.as_bytes()) {
        return None;
    }
    // Without chance nobody is let in: the frames' keys would not be fresh.
    let nonces = Nonces { dialer, acceptor: Nonce::draw().ok()? };
    Some(Proven {
        keys: FrameKeys::of(&key, &parties, &nonces),
        nonce: nonces.acceptor.as_str().to_owned(),
        proof: answer_proof(&key, &parties, &nonces),
        visitor: Visitor { from: parties.from, ticket: reception.newest.ticket(), key: watching },
    })
}

/// Takes the connection over from HTTP once the answer is written.
async fn take_over(upgrade: OnUpgrade, keys: FrameKeys) -> Result<Link<Connection>, Ended> {
    let upgraded = tokio::time::timeout(FIRST_MAX, upgrade).await;
    let upgraded = upgraded.map_err(|_| Ended::Silent { limit: FIRST_MAX })?;
    let parts = downcast::<TokioIo<Connection>>(upgraded.map_err(Ended::Upgrade)?);
    let Ok(parts) = parts else { unreachable!("the server has no other listener") };
    let stream = parts.io.into_inner();
    if let Some(socket) = stream.socket() {
        hasten(socket);
    }
    let (sealer, opener) = (Sealer::new(keys.from_acceptor), Opener::new(keys.from_dialer));
    Ok(Link::new(stream, parts.read_buf.to_vec(), sealer, opener))
}

/// Takes beats in and echoes them until the connection ends.
pub(super) async fn listen<S: AsyncRead + AsyncWrite>(
    reception: &Reception,
    mut link: Link<S>,
    mut visitor: Visitor,
    now: fn() -> Millis,
) -> Ended {
    let mut limit = reception.patience.first;
    let mut proven = false;
    loop {
        let frame = match next(&mut link, &mut visitor, limit).await {
            Ok(frame) => frame,
            Err(ended) => {
                let forged = matches!(ended, Ended::Link(LinkError::Frame(_)));
                // Somebody who replays a request has nothing to say.
                if forged || !proven {
                    reception.board.refuse();
                }
                return ended;
            }
        };
        proven = true;
        let Frame::Beat { seq, said } = frame else { continue };
        limit = reception.patience.silence;
        if !reception.newest.claim(&visitor.from, visitor.ticket) {
            return Ended::Superseded;
        }
        let heard = Heard { from: visitor.from.clone(), said, at: now() };
        if let Err(ended) = reception.pass_on(heard) {
            return ended;
        }
        if let Err(error) = link.sending.send(&Frame::Echo { seq }).await {
            return Ended::Link(error);
        }
    }
}

async fn next<S: AsyncRead + AsyncWrite>(
    link: &mut Link<S>,
    visitor: &mut Visitor,
    limit: Duration,
) -> Result<Frame, Ended> {
    tokio::select! {
        frame = tokio::time::timeout(limit, link.receiving.next()) => match frame {
            Ok(frame) => Ok(frame?),
            Err(_) => Err(Ended::Silent { limit }),
        },
        // An error means that the agent ends, and this with it.
        _ = visitor.key.changed() => Err(Ended::Rekeyed),
    }
}
