//! Where a proxy learns of one cluster: from the DCS, and from members' REST interfaces when that
//! is lost, or when there is none. What is believed of it is [`route::Belief`]'s to say.
//!
//! While the DCS is followed, its view counts, and nobody is asked. When it is lost, every member
//! that is known is asked at the same time, and what is news replaces the last view. When it is
//! back, it counts again once it has been read after the last of that news.

mod member;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use api::RestClient;
use dcs::{ClusterStore, Follower, ViewState};
use route::{Belief, Word};
use tokio::sync::{mpsc, watch};
use tokio::task::{AbortHandle, JoinSet};
use types::{ClusterView, RestAddress};

use self::member::{Asker, Heard};
use crate::views::ViewSource;

/// How many members are asked at the same time, at most.
const ASKED_MAX: usize = 64;
/// Answers that wait to be looked at; whoever has another one waits.
const HEARD_MAX: usize = 16;

/// Where to learn of one cluster.
#[derive(Debug, Clone)]
pub struct Sources {
    /// The cluster's name.
    pub scope: String,
    /// Its keys, where the DCS can be reached. They are followed from [`Sources::follow`] on.
    pub dcs: Option<ClusterStore>,
    /// Members to ask; others are found by what they, or the DCS, have told.
    pub members: Vec<RestAddress>,
    /// How members are reached.
    pub rest: RestClient,
}

/// What is believed of the cluster at one moment.
#[derive(Debug, Clone, Default)]
pub struct Believed {
    /// The view; `None` before the first.
    pub view: Option<Arc<ClusterView>>,
    /// Whether it is current: the DCS is followed, or a member answers that follows it.
    pub fresh: bool,
}

impl ViewSource for Believed {
    fn view(&self) -> Option<Arc<ClusterView>> {
        self.view.clone()
    }

    fn fresh(&self) -> bool {
        self.fresh
    }
}

/// The cluster is followed until this is dropped.
#[derive(Debug)]
pub struct Following {
    known: watch::Receiver<Believed>,
    /// Ends its task when it is dropped.
    _task: JoinSet<()>,
}

impl Following {
    /// Receives what is known, from now on.
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<Believed> {
        self.known.clone()
    }
}

impl Sources {
    /// Begins to follow the cluster, inside a tokio runtime. Nothing need be reachable yet.
    #[must_use = "dropping it ends the following"]
    pub fn follow(self) -> Following {
        let (known, following) = watch::channel(Believed::default());
        let (hearing, heard) = mpsc::channel(HEARD_MAX);
        let dcs = self.dcs.map(|store| {
            let follower = store.follow();
            let mut states = store.subscribe();
            states.mark_changed();
            Dcs { store, states, counts: false, _follower: follower }
        });
        let follow = Follow {
            scope: self.scope,
            dcs,
            members: self.members,
            found: BTreeSet::new(),
            rest: self.rest,
            belief: Belief::default(),
            news_of_members: false,
            asked: BTreeMap::new(),
            asking: JoinSet::new(),
            hearing,
            heard,
            known,
        };
        let mut task = JoinSet::new();
        task.spawn(follow.run());
        Following { known: following, _task: task }
    }
}

struct Dcs {
    store: ClusterStore,
    states: watch::Receiver<ViewState>,
    /// It is followed closely, and so it is right.
    counts: bool,
    _follower: Follower,
}

/// A member that is asked.
struct Asked {
    task: AbortHandle,
    /// What stands behind its last answer; `None` if it does not answer.
    word: Option<Word>,
}

struct Follow {
    scope: String,
    dcs: Option<Dcs>,
    members: Vec<RestAddress>,
    /// Members that the last view with any named.
    found: BTreeSet<RestAddress>,
    rest: RestClient,
    belief: Belief,
    /// A member's view was taken since the DCS counted last.
    news_of_members: bool,
    asked: BTreeMap<RestAddress, Asked>,
    /// Their tasks, which end with it.
    asking: JoinSet<()>,
    hearing: mpsc::Sender<Heard>,
    heard: mpsc::Receiver<Heard>,
    known: watch::Sender<Believed>,
}

/// Waits for another state. Cancel safety: yes.
async fn changed(dcs: &mut Option<Dcs>) {
    if let Some(dcs) = dcs
        && dcs.states.changed().await.is_ok()
    {
        return;
    }
    // There is no DCS. Its states cannot end, as their sender is in the store.
    std::future::pending().await
}

impl Follow {
    async fn run(mut self) {
        if self.dcs.is_none() {
            self.ask_members();
        }
        loop {
            tokio::select! {
                () = changed(&mut self.dcs) => self.see_dcs().await,
                Some(heard) = self.heard.recv() => self.hear(heard),
                // Members that are not asked any more.
                Some(_) = self.asking.join_next() => {}
            }
            self.publish();
        }
    }

    async fn see_dcs(&mut self) {
        let Some(dcs) = &mut self.dcs else { return };
        let state = dcs.states.borrow_and_update().clone();
        if !state.fresh {
            self.miss_dcs(state);
            return;
        }
        // The watch may be a little behind what members have told meanwhile; a read is not.
        let view = match state.view {
            Some(_) if !dcs.counts && self.news_of_members => match dcs.store.read().await {
                Ok(view) => Some(view),
                // Members go on telling until the next state.
                Err(error) => {
                    tracing::debug!(%error, "the DCS is back, and cannot be read");
                    return;
                }
            },
            view => view,
        };
        (dcs.counts, self.news_of_members) = (true, false);
        if let Some(view) = view {
            self.belief.follow(view);
            self.find_members();
        }
        if !self.asked.is_empty() {
            tracing::info!(scope = %self.scope, "the DCS is followed, members are not asked");
        }
        self.asked.clear();
        self.asking.abort_all();
    }

    /// The DCS is not followed now; what was read of it last was true then.
    fn miss_dcs(&mut self, state: ViewState) {
        let Some(dcs) = &mut self.dcs else { return };
        dcs.counts = false;
        if let Some(view) = state.view
            && self.belief.hear(view, Word::Current)
        {
            self.find_members();
        }
        if let Some(error) = state.error {
            if self.asked.is_empty() {
                let scope = &self.scope;
                tracing::warn!(%scope, error, "the DCS is lost: members are asked, routes stay");
            }
            self.ask_members();
        }
    }

    fn hear(&mut self, Heard { from, told }: Heard) {
        // What somebody said who is not asked any more is old.
        let Some(asked) = self.asked.get_mut(&from) else { return };
        asked.word = told.as_ref().map(|(_, word)| *word);
        let Some((view, word)) = told else { return };
        if self.belief.hear(view, word) {
            self.news_of_members = true;
            self.find_members();
            self.ask_members();
        }
    }

    /// Takes the members of a new view. When etcd was away their keys have ended, and they are
    /// there all the same: a view without any forgets none.
    fn find_members(&mut self) {
        let found = self.belief.view().map(|view| view.rest_addresses()).unwrap_or_default();
        if !found.is_empty() {
            self.found = found;
        }
    }

    /// Asks all that are known, and goes on asking who answers, while there is room.
    fn ask_members(&mut self) {
        let members = self.members.iter().chain(&self.found).cloned();
        let mut wanted = BTreeSet::new();
        for member in members {
            if wanted.len() < ASKED_MAX {
                wanted.insert(member);
            }
        }
        let mut room = ASKED_MAX - wanted.len();
        self.asked.retain(|member, asked| {
            let is_wanted = wanted.contains(member);
            let stays = is_wanted || (room > 0 && asked.word.is_some());
            if !stays {
                asked.task.abort();
            } else if !is_wanted {
                room -= 1;
            }
            stays
        });
        for member in wanted {
            let Follow { scope, rest, hearing, asking, .. } = self;
            self.asked.entry(member).or_insert_with_key(|member| {
                let (scope, rest) = (scope.clone(), rest.clone());
                let asker = Asker { scope, member: member.clone(), rest };
                let task = asking.spawn(asker.ask_on(hearing.clone()));
                Asked { task, word: None }
            });
        }
    }

    fn publish(&self) {
        let followed = self.dcs.as_ref().is_some_and(|dcs| dcs.counts);
        let tells = |asked: &Asked| asked.word == Some(Word::Current);
        let fresh = followed || self.asked.values().any(tells);
        let view = self.belief.view();
        self.known.send_if_modified(|known| {
            let same_view = match (&known.view, view) {
                (Some(known), Some(view)) => Arc::ptr_eq(known, view),
                (None, None) => true,
                (Some(_), None) | (None, Some(_)) => false,
            };
            let same = same_view && known.fresh == fresh;
            if !same {
                *known = Believed { view: view.cloned(), fresh };
            }
            !same
        });
    }
}
