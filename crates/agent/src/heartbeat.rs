//! Heartbeats to and from the other members of the view. One task dials each of them and says what
//! this member has to say, at an interval and whenever that changes; what they say comes in through
//! the REST interface ([`api::peers`]) and goes to the loop. What follows from it is the brain's.

mod dialling;
mod secret;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use api::RestClient;
use api::peers::{Board, HEARD_MAX, Heard, PeerKey, Reception};
use config::Static;
use dcs::ViewState;
use tokio::sync::{mpsc, watch};
use tokio::task::AbortHandle;
use types::{ClusterView, Heartbeat, MemberName, Millis};

pub use secret::SecretError;

pub(crate) use secret::PeerSecret;

use dialling::{Pace, Peer, keep_beating};

/// The handle of this member's heartbeats; they end when it is dropped.
pub(crate) struct Heartbeats {
    said: watch::Sender<Heartbeat>,
    interval: watch::Sender<Duration>,
    secret: watch::Sender<PeerSecret>,
    _manager: Task,
}

/// What heartbeats are made of.
pub(crate) struct Ingredients {
    pub(crate) scope: String,
    pub(crate) name: MemberName,
    pub(crate) secret: PeerSecret,
    pub(crate) interval: Millis,
    pub(crate) views: watch::Receiver<ViewState>,
    pub(crate) rest: watch::Receiver<RestClient>,
}

impl Ingredients {
    pub(crate) fn of(
        settings: &Static,
        secret: PeerSecret,
        interval: Millis,
        views: watch::Receiver<ViewState>,
        rest: watch::Receiver<RestClient>,
    ) -> Ingredients {
        let (scope, name) = (settings.scope.clone(), settings.name.clone());
        Ingredients { scope, name, secret, interval, views, rest }
    }
}

/// Begins: what the REST interface needs, and what comes in.
pub(crate) fn start(of: Ingredients) -> (Heartbeats, Reception, mpsc::Receiver<Heard>) {
    let (said, saying) = watch::channel(Heartbeat::default());
    let (interval, pace) = watch::channel(of.interval.as_duration());
    let (secret, secrets) = watch::channel(of.secret);
    let (key, keys) = watch::channel(None);
    let (heard, incoming) = mpsc::channel(HEARD_MAX);
    let board = Arc::<Board>::default();
    let reception =
        Reception::new(&of.scope, of.name.clone(), keys.clone(), heard, Arc::clone(&board));
    let shared = Shared {
        scope: of.scope,
        name: of.name,
        key: keys,
        saying,
        interval: pace,
        board,
        rest: of.rest,
    };
    let manager = Manager {
        shared: Arc::new(shared),
        key,
        keyed_by: None,
        system_identifier: None,
        dialling: BTreeMap::new(),
    };
    let manager = Task(tokio::spawn(manager.run(of.views, secrets)).abort_handle());
    (Heartbeats { said, interval, secret, _manager: manager }, reception, incoming)
}

impl Heartbeats {
    /// What this member says from now on. It is sent at once if it is news.
    pub(crate) fn say(&self, heartbeat: Heartbeat) {
        self.said.send_if_modified(|said| {
            let news = *said != heartbeat;
            *said = heartbeat;
            news
        });
    }

    /// Takes the interval over; it holds from the next beat on.
    pub(crate) fn set_interval(&self, interval: Millis) {
        self.interval.send_replace(interval.as_duration());
    }

    /// Where a new secret goes; every connection is made anew then.
    pub(crate) fn secret(&self) -> watch::Sender<PeerSecret> {
        self.secret.clone()
    }
}

/// A task that ends with its handle.
struct Task(AbortHandle);

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// What the dialling tasks share.
struct Shared {
    scope: String,
    name: MemberName,
    key: watch::Receiver<Option<PeerKey>>,
    saying: watch::Receiver<Heartbeat>,
    interval: watch::Receiver<Duration>,
    board: Arc<Board>,
    rest: watch::Receiver<RestClient>,
}

/// Keeps key and dialling tasks as view and secret want them.
struct Manager {
    shared: Arc<Shared>,
    key: watch::Sender<Option<PeerKey>>,
    keyed_by: Option<PeerSecret>,
    /// The last one known: a wiped DCS does not change what the copies are.
    system_identifier: Option<String>,
    dialling: BTreeMap<MemberName, (Peer, Task)>,
}

impl Manager {
    async fn run(
        mut self,
        mut views: watch::Receiver<ViewState>,
        mut secrets: watch::Receiver<PeerSecret>,
    ) {
        loop {
            let view = views.borrow_and_update().view.clone();
            let secret = secrets.borrow_and_update().clone();
            self.rekey(secret, view.as_deref());
            if let Some(view) = view {
                self.arrange(&view);
            }
            let changed = tokio::select! {
                changed = views.changed() => changed,
                changed = secrets.changed() => changed,
            };
            // The agent ends.
            if changed.is_err() {
                return;
            }
        }
    }

    fn rekey(&mut self, secret: PeerSecret, view: Option<&ClusterView>) {
        let identifier = view.and_then(|v| v.system_identifier().map(str::to_owned));
        let identifier = identifier.or_else(|| self.system_identifier.clone());
        if self.keyed_by.as_ref() == Some(&secret) && self.system_identifier == identifier {
            return;
        }
        if secret == PeerSecret::None && self.keyed_by != Some(PeerSecret::None) {
            tracing::warn!(
                "no heartbeats between members: set pgherd.peers.secret_file to the same secret on \
                 every member, or the same password of the replication user, and reload"
            );
        }
        let key = secret.key(identifier.as_deref());
        self.key.send_if_modified(|known| {
            let news = *known != key;
            *known = key;
            news
        });
        self.keyed_by = Some(secret);
        self.system_identifier = identifier;
    }

    /// Ends the tasks of who has left or moved, begins those of who is new.
    fn arrange(&mut self, view: &ClusterView) {
        let others = view.members.iter().filter(|(name, _)| **name != self.shared.name);
        let wanted: BTreeMap<&MemberName, Peer> = others
            .filter_map(|(name, member)| {
                let address = member.value.api_address()?;
                let ours = member.value.pgherd.is_some();
                let pace = if ours { Pace::Quick } else { Pace::Slow };
                Some((name, Peer { name: name.clone(), address, pace }))
            })
            .collect();
        self.dialling.retain(|name, (peer, _)| wanted.get(name) == Some(peer));
        let names: BTreeSet<MemberName> = wanted.keys().map(|name| (*name).clone()).collect();
        self.shared.board.keep(&names);
        for (name, peer) in wanted {
            if !self.dialling.contains_key(name) {
                let task = tokio::spawn(keep_beating(peer.clone(), Arc::clone(&self.shared)));
                self.dialling.insert(name.clone(), (peer, Task(task.abort_handle())));
            }
        }
    }
}
