//! Cancel requests: each goes to the server whose session it names.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use pgproto::wire::CancelKey;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// From connecting until the server has closed, which says that the signal was sent.
const CANCEL_TIMEOUT: Duration = Duration::from_secs(5);

/// The servers of all open sessions, by cancel key. It holds one key for each session at most, so
/// the limit of clients bounds it.
#[derive(Debug, Clone, Default)]
pub(crate) struct CancelKeys(Arc<Mutex<HashMap<CancelKey, (u64, SocketAddr)>>>);

/// Keeps a key known; dropping it forgets the key, also when the client's task panics.
#[derive(Debug)]
pub(crate) struct KnownKey {
    keys: CancelKeys,
    key: CancelKey,
    owner: u64,
}

impl CancelKeys {
    /// Makes a key known. `owner` tells apart sessions of two servers that drew the same key.
    pub(crate) fn remember(&self, key: CancelKey, owner: u64, server: SocketAddr) -> KnownKey {
        self.lock().insert(key.clone(), (owner, server));
        KnownKey { keys: self.clone(), key, owner }
    }

    fn server_of(&self, key: &CancelKey) -> Option<SocketAddr> {
        self.lock().get(key).map(|(_, server)| *server)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<CancelKey, (u64, SocketAddr)>> {
        // Every change is one call on the map, so a panic elsewhere leaves it whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends the request on and waits until the server has taken it. An unknown key is dropped
    /// without a word, as the server does.
    pub(crate) async fn forward(&self, key: &CancelKey, packet: &[u8]) {
        let Some(server) = self.server_of(key) else {
            tracing::debug!("a cancel request for a session that is not known");
            return;
        };
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
}

impl Drop for KnownKey {
    fn drop(&mut self) {
        let mut keys = self.keys.lock();
        if keys.get(&self.key).is_some_and(|(owner, _)| *owner == self.owner) {
            keys.remove(&self.key);
        }
    }
}
