//! What is known of the users of one cluster: what its servers said of them, and what they showed
//! the proxy when they came in. Nothing of it counts at another cluster, where a user of the same
//! name is somebody else.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::door::{Door, lock};
use crate::login::{Cache, Credentials, Secret, StoredSecret};

/// What a server said of a user is believed so long, and of so many.
const ANSWERS_AGE_MAX: Duration = Duration::from_secs(30);
const ANSWERS_MAX: usize = 10_000;

/// What is known of a cluster's users.
#[derive(Debug)]
pub(crate) struct Known {
    /// What files say of users holds at every cluster.
    door: Arc<Door>,
    stored: Mutex<Cache<Option<StoredSecret>>>,
    roles: Mutex<Cache<BTreeSet<String>>>,
    /// What clients have shown, with which the proxy signs in at servers, by user.
    shown: Mutex<BTreeMap<String, Arc<Credentials>>>,
}

impl Known {
    pub(crate) fn new(door: Arc<Door>) -> Known {
        Known {
            door,
            stored: Mutex::new(Cache::new(ANSWERS_MAX, ANSWERS_AGE_MAX)),
            roles: Mutex::new(Cache::new(ANSWERS_MAX, ANSWERS_AGE_MAX)),
            shown: Mutex::default(),
        }
    }

    /// What is known of a user's stored password without asking a server; `None` if a server has to
    /// be asked.
    pub(crate) fn stored(&self, user: &str) -> Option<Option<StoredSecret>> {
        if let Some(stored) = self.door.stored(user) {
            return Some(Some(stored));
        }
        if self.door.security.auth_query.is_none() {
            return Some(None);
        }
        lock(&self.stored).get(user, Instant::now())
    }

    /// What a server said of a user.
    pub(crate) fn answered(&self, user: &str, stored: Option<StoredSecret>) {
        lock(&self.stored).put(user, stored, Instant::now());
    }

    /// A login failed: what is known may be old.
    pub(crate) fn doubt(&self, user: &str) {
        lock(&self.stored).doubt(user);
    }

    /// Servers are asked again about everybody.
    pub(crate) fn doubt_all(&self) {
        lock(&self.stored).clear();
        lock(&self.roles).clear();
    }

    /// The roles of a user, if a server has said them.
    pub(crate) fn roles(&self, user: &str) -> Option<BTreeSet<String>> {
        lock(&self.roles).get(user, Instant::now())
    }

    /// What a server said of a user's roles.
    pub(crate) fn has_roles(&self, user: &str, roles: BTreeSet<String>) {
        lock(&self.roles).put(user, roles, Instant::now());
    }

    /// A client has shown these; servers are shown them from now on.
    pub(crate) fn learned(&self, credentials: Credentials) {
        // Nothing proves nothing, and would be kept for every name that is made up.
        if !matches!(credentials.secret, Secret::None) {
            lock(&self.shown).insert(credentials.user.clone(), Arc::new(credentials));
        }
    }

    /// A server did not take a user's credentials.
    pub(crate) fn forget(&self, user: &str) {
        lock(&self.shown).remove(user);
        self.doubt(user);
    }

    /// What the proxy signs this user in with.
    pub(crate) fn credentials(&self, user: &str) -> Arc<Credentials> {
        if let Some(shown) = lock(&self.shown).get(user) {
            return shown.clone();
        }
        Arc::new(Credentials { user: user.to_owned(), secret: self.door.secret(user) })
    }
}
