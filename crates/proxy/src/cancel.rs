//! Cancel requests: each goes to the server whose session it names.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use pgproto::wire::CancelKey;
use route::ClientId;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::hub::Hub;

/// From connecting until the server has closed, which says that the signal was sent.
const CANCEL_TIMEOUT: Duration = Duration::from_secs(5);

/// The sessions that can be cancelled, by cancel key. It holds one key for each session at most, so
/// the limit of clients bounds it.
#[derive(Debug, Clone, Default)]
pub(crate) struct CancelKeys(Arc<Mutex<HashMap<CancelKey, (ClientId, Whose)>>>);

/// Who takes a cancel request with a key.
#[derive(Debug, Clone, Copy)]
enum Whose {
    /// The server that gave the key.
    Server(SocketAddr),
    /// The client's task, which knows the server; we gave the key.
    Ours,
}

/// Keeps a key known; dropping it forgets the key, also when the client's task panics.
#[derive(Debug)]
pub(crate) struct KnownKey {
    keys: CancelKeys,
    key: CancelKey,
    owner: ClientId,
}

impl KnownKey {
    pub(crate) fn key(&self) -> &CancelKey {
        &self.key
    }
}

impl CancelKeys {
    /// Makes a server's key known. `owner` tells apart sessions of two servers that drew the same.
    pub(crate) fn remember(&self, key: CancelKey, owner: ClientId, server: SocketAddr) -> KnownKey {
        self.lock().insert(key.clone(), (owner, Whose::Server(server)));
        KnownKey { keys: self.clone(), key, owner }
    }

    /// Makes a key of our own for a client, from random bytes.
    pub(crate) fn create(&self, owner: ClientId, random: [u8; 8]) -> KnownKey {
        let [p0, p1, p2, p3, secret @ ..] = random;
        // Clients show it as a signed number, and take it for a process of the server's.
        let process = u32::from_be_bytes([p0, p1, p2, p3]) & 0x7FFF_FFFF | 1;
        let key = CancelKey { process, secret: secret.to_vec() };
        self.lock().insert(key.clone(), (owner, Whose::Ours));
        KnownKey { keys: self.clone(), key, owner }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<CancelKey, (ClientId, Whose)>> {
        // Every change is one call on the map, so a panic elsewhere leaves it whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends the request to where it belongs and waits until it was taken. An unknown key is
    /// dropped without a word, as a server does.
    pub(crate) async fn forward(&self, hub: &Hub, key: &CancelKey, packet: &[u8]) {
        let known = self.lock().get(key).copied();
        match known {
            Some((_, Whose::Server(server))) => deliver(server, packet).await,
            Some((client, Whose::Ours)) => hub.cancel(client),
            None => tracing::debug!("a cancel request for a session that is not known"),
        }
    }
}

/// Asks a server to cancel what the session of this key runs, and waits until it has taken it.
pub(crate) async fn send(server: SocketAddr, key: &CancelKey) {
    deliver(server, &key.to_request()).await;
}

async fn deliver(server: SocketAddr, packet: &[u8]) {
    let sent = timeout(CANCEL_TIMEOUT, async {
        let mut socket = TcpStream::connect(server).await?;
        socket.write_all(packet).await?;
        socket.read(&mut [0]).await
    });
    match sent.await {
        Ok(Ok(_)) => {}
        Ok(Err(error)) => tracing::debug!(%server, %error, "cannot forward a cancel request"),
        Err(_) => tracing::debug!(%server, "no answer to a cancel request"),
    }
}

impl Drop for KnownKey {
    fn drop(&mut self) {
        let mut keys = self.keys.lock();
        if keys.get(&self.key).is_some_and(|(owner, _)| *owner == self.owner) {
            keys.remove(&self.key);
        }
    }
}
