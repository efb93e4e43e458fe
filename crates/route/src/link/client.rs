//! The client's end of a conversation, with or without a server.

use std::collections::BTreeMap;
use std::sync::Arc;

use pgproto::wire::{Cut, Cutter};

use super::LinkError;
use super::aborted::Aborted;
use super::settings::{Reported, Settings};
use super::statements::Prepared;
use super::up;

/// For how long a server connection is lent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum PoolMode {
    /// Until the client leaves.
    Session,
    /// Until its transaction ends.
    Transaction,
    /// For one statement; there are no transaction blocks.
    Statement,
}

/// What is done with a statement that leaves something in the session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SessionState {
    /// The connection stays with the client until `DISCARD ALL`, or until it leaves.
    Pin,
    /// The statement is refused.
    Refuse,
}

/// Why a connection stays with its client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Pin {
    /// By the pool's mode.
    Session,
    /// Something was left in the session: what.
    Left(&'static str),
}

/// What the bytes of a client without a server ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Offer {
    /// Nothing yet: its first message is not there as far as it must be.
    More,
    /// A server.
    Server,
    /// It says goodbye.
    Goodbye,
}

/// What lasts as long as the client.
#[derive(Debug)]
pub struct ClientSide {
    pub(crate) cutter: Cutter,
    pub(crate) mode: PoolMode,
    pub(crate) policy: SessionState,
    /// Its prepared statements by its own names; the unnamed one apart.
    pub(crate) statements: BTreeMap<Vec<u8>, Arc<Prepared>>,
    pub(crate) unnamed: Option<Arc<Prepared>>,
    /// The settings that its sessions have, and those it began with.
    pub(crate) wanted: Arc<Settings>,
    pub(crate) begun_with: Arc<Settings>,
    /// The parameter values that it was told.
    pub(crate) told: Arc<Reported>,
    pub(crate) pinned: Option<Pin>,
    pub(crate) aborted: Option<Box<Aborted>>,
    pub(crate) goodbye: bool,
    /// Something may have been written in its name.
    pub(crate) wrote: bool,
    /// Its single reads may be a replica's.
    pub(crate) splits: bool,
    /// The message that passes in pieces is not for the server.
    pub(crate) drops: bool,
}

impl ClientSide {
    /// A client that has signed in with these settings and was told these values.
    #[must_use]
    pub fn new(
        mode: PoolMode,
        policy: SessionState,
        settings: Arc<Settings>,
        told: Arc<Reported>,
    ) -> ClientSide {
        ClientSide {
            cutter: Cutter::default(),
            mode,
            policy,
            statements: BTreeMap::new(),
            unnamed: None,
            wanted: settings.clone(),
            begun_with: settings,
            told,
            pinned: (mode == PoolMode::Session).then_some(Pin::Session),
            aborted: None,
            goodbye: false,
            wrote: false,
            splits: false,
            drops: false,
        }
    }

    /// What these bytes, which begin where the last ones that were taken ended, ask for.
    ///
    /// # Errors
    /// [`LinkError::Client`].
    pub fn offer(&self, mut bytes: &[u8]) -> Result<Offer, LinkError> {
        let mut cutter = self.cutter;
        Ok(match cutter.next(&mut bytes, up::need).map_err(LinkError::Client)? {
            None => Offer::More,
            Some(Cut::Begin { tag: b'X', .. }) => Offer::Goodbye,
            Some(Cut::Begin { .. } | Cut::More { .. }) => Offer::Server,
        })
    }

    /// Whether what was taken of its stream ends with a message.
    #[must_use]
    pub fn at_boundary(&self) -> bool {
        self.cutter.at_boundary()
    }

    /// Whether it said goodbye.
    #[must_use]
    pub fn said_goodbye(&self) -> bool {
        self.goodbye
    }

    /// Why its connection stays with it, if it does.
    #[must_use]
    pub fn pinned(&self) -> Option<Pin> {
        self.pinned
    }

    /// What it was told of the server's parameters.
    #[must_use]
    pub fn told(&self) -> &Arc<Reported> {
        &self.told
    }

    /// Whether its transaction was lost and it has not ended it yet.
    #[must_use]
    pub fn is_aborted(&self) -> bool {
        self.aborted.is_some()
    }

    pub(crate) fn pin(&mut self, what: &'static str) {
        self.pinned.get_or_insert(Pin::Left(what));
    }

    /// The session is as it was at its beginning.
    pub(crate) fn discarded(&mut self) {
        self.statements.clear();
        self.wanted = self.begun_with.clone();
        self.pinned = (self.mode == PoolMode::Session).then_some(Pin::Session);
    }
}
