//! Who is let in, and how connections are secured: what the configuration's files say of it, and
//! what is known of users.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::{Duration, Instant};

use config::{Arrival, Decision, ProxyAuth, ProxySecurity, Rules};

use crate::login::rules::{self, RulesError};
use crate::login::{
    Cache, Credentials, Secret, StoredSecret, Users, UsersError, UsersFile, read_password,
};
use crate::secure;

/// What a server said of a user is believed so long, and of so many.
const ANSWERS_AGE_MAX: Duration = Duration::from_secs(30);
const ANSWERS_MAX: usize = 10_000;

/// Why the proxy cannot open its door.
#[derive(Debug, thiserror::Error)]
pub enum DoorError {
    /// A file of TLS.
    #[error(transparent)]
    Tls(#[from] tls::TlsError),
    /// The file of users, or with the password of `auth_user`.
    #[error(transparent)]
    Users(#[from] UsersError),
    /// The file of rules.
    #[error(transparent)]
    Rules(#[from] RulesError),
    /// The system gives no random bytes.
    #[error("no random bytes: {0}")]
    Random(getrandom::Error),
}

/// Who wants to come in.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Caller<'a> {
    pub(crate) user: &'a str,
    pub(crate) database: &'a str,
    pub(crate) address: SocketAddr,
    pub(crate) tls: bool,
}

/// The door of a proxy.
#[derive(Debug)]
pub(crate) struct Door {
    pub(crate) clients: secure::ClientSide,
    pub(crate) servers: secure::ServerSide,
    pub(crate) security: ProxySecurity,
    /// Salts of users that do not exist come from it.
    pub(crate) salt_secret: [u8; 32],
    users: Mutex<Option<UsersFile>>,
    rules: RwLock<Option<Arc<Rules>>>,
    stored: Mutex<Cache<Option<StoredSecret>>>,
    roles: Mutex<Cache<BTreeSet<String>>>,
    /// What the proxy signs in with at servers, by user.
    credentials: Mutex<BTreeMap<String, Arc<Credentials>>>,
}

impl Door {
    /// Reads every file that the configuration names.
    ///
    /// # Errors
    /// [`DoorError`], naming the file.
    pub(crate) fn new(security: ProxySecurity) -> Result<Door, DoorError> {
        let mut salt_secret = [0; 32];
        getrandom::fill(&mut salt_secret).map_err(DoorError::Random)?;
        let door = Door {
            clients: secure::ClientSide::new(&security.tls, security.proxy_protocol_in)?,
            servers: secure::ServerSide::new(&security.server_tls)?,
            salt_secret,
            users: Mutex::new(security.users_file.as_ref().map(UsersFile::open).transpose()?),
            rules: RwLock::default(),
            stored: Mutex::new(Cache::new(ANSWERS_MAX, ANSWERS_AGE_MAX)),
            roles: Mutex::new(Cache::new(ANSWERS_MAX, ANSWERS_AGE_MAX)),
            credentials: Mutex::default(),
            security,
        };
        door.read_rules()?;
        door.read_password()?;
        Ok(door)
    }

    /// Reads the files again: certificates, users, rules. What cannot be read stays as it was.
    ///
    /// # Errors
    /// The first [`DoorError`].
    pub(crate) fn reload(&self) -> Result<(), DoorError> {
        self.clients.reload()?;
        self.servers.reload()?;
        if let Some(users) = lock(&self.users).as_mut() {
            users.refresh()?;
        }
        self.read_rules()?;
        self.read_password()?;
        lock(&self.stored).clear();
        lock(&self.roles).clear();
        Ok(())
    }

    /// Whether clients sign in at the proxy, and not through it at the server.
    pub(crate) fn authenticates(&self) -> bool {
        self.security.auth != ProxyAuth::PassThrough
    }

    fn read_rules(&self) -> Result<(), DoorError> {
        if let ProxyAuth::Rules(path) = &self.security.auth {
            let read = Arc::new(rules::read(path, &self.security)?);
            *self.rules.write().unwrap_or_else(PoisonError::into_inner) = Some(read);
        }
        Ok(())
    }

    fn read_password(&self) -> Result<(), DoorError> {
        let Some(query) = &self.security.auth_query else {
            return Ok(());
        };
        let Some(path) = &query.password_file else {
            return Ok(());
        };
        let secret = Secret::Password(read_password(path)?);
        self.learned(Credentials { user: query.user.clone(), secret });
        Ok(())
    }

    /// What the configuration asks of this client. `roles` are the roles that it is a member of, if
    /// they are known.
    pub(crate) fn decide(&self, caller: Caller<'_>, roles: Option<&BTreeSet<String>>) -> Decision {
        if let Some(method) = self.security.auth.method() {
            return Decision::Let(method);
        }
        let rules = self.rules.read().unwrap_or_else(PoisonError::into_inner).clone();
        let arrival = Arrival {
            address: caller.address.ip(),
            tls: caller.tls,
            database: caller.database,
            replication: false,
            user: caller.user,
            roles,
        };
        rules.map_or(Decision::NoRule, |rules| rules.decide(&arrival))
    }

    /// What is known of a user's stored password without asking a server; `None` if a server has to
    /// be asked.
    pub(crate) fn known(&self, user: &str) -> Option<Option<StoredSecret>> {
        let users: Option<Arc<Users>> = lock(&self.users).as_mut().map(|file| {
            if let Err(error) = file.refresh() {
                tracing::warn!(%error, "the users stay as they were");
            }
            file.users()
        });
        if let Some(stored) = users.as_ref().and_then(|users| users.get(user)) {
            return Some(Some(stored.clone()));
        }
        if self.security.auth_query.is_none() {
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
            lock(&self.credentials).insert(credentials.user.clone(), Arc::new(credentials));
        }
    }

    /// A server did not take a user's credentials.
    pub(crate) fn forget(&self, user: &str) {
        lock(&self.credentials).remove(user);
        self.doubt(user);
    }

    /// What the proxy signs this user in with.
    pub(crate) fn credentials(&self, user: &str) -> Arc<Credentials> {
        if let Some(known) = lock(&self.credentials).get(user) {
            return known.clone();
        }
        let stored = lock(&self.users).as_ref().and_then(|file| file.users().get(user).cloned());
        let secret = stored.map_or(Secret::None, |stored| stored.as_secret());
        Arc::new(Credentials { user: user.to_owned(), secret })
    }
}

fn lock<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    // What is done under these is one call each, so a panic elsewhere leaves them whole.
    of.lock().unwrap_or_else(PoisonError::into_inner)
}
