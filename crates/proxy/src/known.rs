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

#[cfg(test)]
mod tests {
    use std::fs::Permissions;
    use std::os::unix::fs::PermissionsExt;

    use config::{AuthQuery, ProxySecurity};

    use super::*;
    use crate::login::Password;

    #[test]
    fn each_cluster_knows_its_own_users_and_files_hold_at_all() {
        let directory = tempfile::tempdir().unwrap();
        let password_file = directory.path().join("password");
        std::fs::write(&password_file, "hush").unwrap();
        std::fs::set_permissions(&password_file, Permissions::from_mode(0o600)).unwrap();
        let query = AuthQuery {
            query: "select $1".to_owned(),
            user: "asker".to_owned(),
            password_file: Some(password_file),
            database: "postgres".to_owned(),
        };
        let security = ProxySecurity { auth_query: Some(query), ..ProxySecurity::default() };
        let door = Arc::new(Door::new(security).unwrap());
        let (here, there) = (Known::new(door.clone()), Known::new(door));
        let password = |text: &str| Secret::Password(Password::new(text.as_bytes()));
        let stored = StoredSecret::parse("red").unwrap();
        here.answered("ann", Some(stored.clone()));
        here.learned(Credentials { user: "ann".to_owned(), secret: password("red") });
        assert_eq!(here.stored("ann"), Some(Some(stored)));
        assert_eq!(there.stored("ann"), None, "to be asked there");
        assert_eq!(here.credentials("ann").secret, password("red"));
        assert_eq!(there.credentials("ann").secret, Secret::None);
        here.learned(Credentials { user: "asker".to_owned(), secret: password("old") });
        assert_eq!(here.credentials("asker").secret, password("old"));
        assert_eq!(there.credentials("asker").secret, password("hush"));
        here.forget("asker");
        assert_eq!(here.credentials("asker").secret, password("hush"), "as the file says");
    }
}
