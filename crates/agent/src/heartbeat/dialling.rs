//! One other member: dialled, told what there is to say, dialled again.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use api::peers::{DialError, Dialled, Frame, LinkError, Parties, PeerKey, dial};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until};
use types::{Heartbeat, MemberName, RestAddress};

use super::Shared;

/// A connection is there within this, or is given up.
const DIAL_MAX: Duration = Duration::from_secs(1);
/// A connection whose echoes stay out for so long is given up. Its packets may be lost for good, as
/// after a cut, where a new one gets through.
const ECHO_MAX: Duration = Duration::from_secs(2);
/// The pause before the next attempt, at first.
const PAUSE_MIN: Duration = Duration::from_millis(200);
/// The pause at most; it doubles up to this.
const PAUSE_MAX: Duration = Duration::from_secs(2);
/// The pause where nobody is expected to answer (a Patroni member).
const PAUSE_SLOW: Duration = Duration::from_secs(30);
/// Beats without an echo at a time; further ones are left out.
const UNANSWERED_MAX: usize = 64;
/// So many refusals in a row are told: fewer happen while members start or change their secret.
const REFUSALS_TOLD: u32 = 6;

// The shortest interval does not fill it before the connection is given up.
const _: () = assert!(
    ECHO_MAX.as_millis() / (config::HEARTBEAT_INTERVAL_MIN.0 as u128) < UNANSWERED_MAX as u128
);

/// How eagerly a member is dialled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pace {
    /// It runs pgherd.
    Quick,
    /// It does not, as far as is known.
    Slow,
}

/// Another member.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Peer {
    pub(super) name: MemberName,
    pub(super) address: RestAddress,
    pub(super) pace: Pace,
}

/// Why a connection has ended.
#[derive(Debug, thiserror::Error)]
enum Ended {
    #[error(transparent)]
    Link(#[from] LinkError),
    #[error("no echo for {} s", ECHO_MAX.as_secs())]
    Overdue,
    #[error("the secret has changed")]
    Rekeyed,
    #[error("the agent ends")]
    Leaving,
}

/// Says what there is to say to this member until the task is ended.
pub(super) async fn keep_beating(peer: Peer, shared: Arc<Shared>) {
    let (scope, from) = (shared.scope.clone(), shared.name.clone());
    let parties = Parties { scope, from, to: peer.name.clone() };
    let mut keys = shared.key.clone();
    let mut pause = PAUSE_MIN;
    let mut refusals = 0;
    loop {
        let Some(key) = some_key(&mut keys).await else { return };
        let rest = shared.rest.borrow().clone();
        match dial(&rest, &peer.address, &parties, &key, DIAL_MAX).await {
            Ok(link) => {
                refusals = 0;
                let began = Instant::now();
                beat(&peer, &shared, link, &mut keys).await;
                // One that breaks at once again and again is not dialled at this pace for ever.
                if began.elapsed() >= PAUSE_MAX {
                    pause = PAUSE_MIN;
                }
            }
            Err(error) => {
                tracing::debug!(peer = %peer.name, ?error, "no connection for heartbeats");
                refusals = if is_refusal(&error) { refusals + 1 } else { 0 };
                if refusals == REFUSALS_TOLD && peer.pace == Pace::Quick {
                    let peer = &peer.name;
                    tracing::warn!(%peer, why = %error, "heartbeats are refused");
                }
            }
        }
        sleep(if peer.pace == Pace::Slow { PAUSE_SLOW } else { pause }).await;
        pause = (pause * 2).min(PAUSE_MAX);
    }
}

/// Waits for a key. `None` when the agent ends.
async fn some_key(keys: &mut watch::Receiver<Option<PeerKey>>) -> Option<PeerKey> {
    keys.wait_for(Option::is_some).await.ok()?.clone()
}

fn is_refusal(error: &DialError) -> bool {
    match error {
        DialError::Refused { .. } | DialError::Unproven | DialError::Request { .. } => true,
        DialError::Random { .. }
        | DialError::Connect { .. }
        | DialError::Exchange { .. }
        | DialError::Limit { .. } => false,
    }
}

/// Beats on one connection until it ends.
async fn beat(
    peer: &Peer,
    shared: &Shared,
    link: Dialled,
    keys: &mut watch::Receiver<Option<PeerKey>>,
) {
    let mut beating = Beating {
        peer,
        shared,
        link,
        saying: shared.saying.clone(),
        unanswered: VecDeque::new(),
        sent: 0,
        next: Instant::now(),
        answered: false,
    };
    let why = beating.run(keys).await;
    let missed = beating.unanswered.len() as u64;
    shared.board.update(&peer.name, |report| {
        report.connected = false;
        report.missed += missed;
    });
    if beating.answered {
        tracing::info!(peer = %peer.name, %why, "heartbeats are not answered any more");
    }
}

/// A beat without an echo yet.
struct Unanswered {
    seq: u64,
    sent: Instant,
}

/// One connection.
struct Beating<'a> {
    peer: &'a Peer,
    shared: &'a Shared,
    link: Dialled,
    saying: watch::Receiver<Heartbeat>,
    unanswered: VecDeque<Unanswered>,
    sent: u64,
    /// When the next beat is due.
    next: Instant,
    /// An echo has come.
    answered: bool,
}

impl Beating<'_> {
    async fn run(&mut self, keys: &mut watch::Receiver<Option<PeerKey>>) -> Ended {
        loop {
            let overdue = self.unanswered.front().map(|beat| beat.sent + ECHO_MAX);
            let done = tokio::select! {
                frame = self.link.receiving.next() => match frame {
                    Ok(frame) => {
                        self.take(&frame);
                        Ok(())
                    }
                    Err(error) => Err(error.into()),
                },
                changed = self.saying.changed() => match changed {
                    Ok(()) => self.say().await,
                    Err(_) => Err(Ended::Leaving),
                },
                () = sleep_until(self.next) => self.say().await,
                () = sleep_until(overdue.unwrap_or(self.next)), if overdue.is_some() => {
                    Err(Ended::Overdue)
                }
                changed = keys.changed() => Err(match changed {
                    Ok(()) => Ended::Rekeyed,
                    Err(_) => Ended::Leaving,
                }),
            };
            if let Err(ended) = done {
                return ended;
            }
        }
    }

    /// Sends what there is to say, unless too much is on its way.
    async fn say(&mut self) -> Result<(), Ended> {
        let said = self.saying.borrow_and_update().clone();
        let now = Instant::now();
        self.next = now + *self.shared.interval.borrow();
        if self.unanswered.len() >= UNANSWERED_MAX {
            return Ok(());
        }
        self.sent += 1;
        let seq = self.sent;
        self.unanswered.push_back(Unanswered { seq, sent: now });
        self.shared.board.update(&self.peer.name, |report| report.sent += 1);
        Ok(self.link.sending.send(&Frame::Beat { seq, said }).await?)
    }

    fn take(&mut self, frame: &Frame) {
        let seq = match frame {
            Frame::Echo { seq } => *seq,
            Frame::Beat { .. } | Frame::Unknown => return,
        };
        // Echoes come in the order of their beats.
        while let Some(beat) = self.unanswered.front().filter(|beat| beat.seq <= seq) {
            let round_trip = (beat.seq == seq).then(|| beat.sent.elapsed());
            self.shared.board.update(&self.peer.name, |report| {
                report.connected = true;
                match round_trip {
                    Some(round_trip) => report.echoed(round_trip),
                    None => report.missed += 1,
                }
            });
            self.unanswered.pop_front();
        }
        if !self.answered {
            self.answered = true;
            tracing::info!(peer = %self.peer.name, "heartbeats are answered");
        }
    }
}
