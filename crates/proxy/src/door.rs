//! Who is let in, and how connections are secured: what the configuration's files say of it.
//!
//! Not here: what servers said of users, and what these showed.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use config::{Arrival, Decision, ProxyAuth, ProxySecurity, Rules};

use crate::login::rules::{self, RulesError};
use crate::login::{Password, Secret, StoredSecret, Users, UsersError, UsersFile, read_password};
use crate::secure;

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
    /// That of whoever asks servers about users, if a file holds it.
    password: Mutex<Option<Password>>,
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
            password: Mutex::default(),
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
        self.read_password()
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
        let query = self.security.auth_query.as_ref();
        if let Some(path) = query.and_then(|query| query.password_file.as_ref()) {
            let password = read_password(path)?;
            *lock(&self.password) = Some(password);
        }
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

    /// What the file of users says is stored of a user's password, as it is now.
    pub(crate) fn stored(&self, user: &str) -> Option<StoredSecret> {
        let users: Option<Arc<Users>> = lock(&self.users).as_mut().map(|file| {
            if let Err(error) = file.refresh() {
                tracing::warn!(%error, "the users stay as they were");
            }
            file.users()
        });
        users?.get(user).cloned()
    }

    /// What proves to servers that the proxy may act for this user, as far as files say.
    pub(crate) fn secret(&self, user: &str) -> Secret {
        let asker = self.security.auth_query.as_ref().filter(|query| query.user == user);
        if let Some(password) = asker.and_then(|_| lock(&self.password).clone()) {
            return Secret::Password(password);
        }
        let stored = lock(&self.users).as_ref().and_then(|file| file.users().get(user).cloned());
        stored.map_or(Secret::None, |stored| stored.as_secret())
    }
}

pub(crate) fn lock<T>(of: &Mutex<T>) -> MutexGuard<'_, T> {
    // What is done under these is one call each, so a panic elsewhere leaves them whole.
    of.lock().unwrap_or_else(PoisonError::into_inner)
}
