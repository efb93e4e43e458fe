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

use crate::front::Front;
use crate::tally::Cancelled;

/// From connecting until the server has closed, which says that the signal was sent.
const CANCEL_TIMEOUT: Duration = Duration::from_secs(5);

/// The sessions that can be cancelled, by the keys that the proxy gave them. One for each session
/// at most, so the limit of clients bounds it.
#[derive(Debug)]
pub(crate) struct CancelKeys {
    keys: Mutex<HashMap<CancelKey, ClientId>>,
    /// What our keys have in common, so that another proxy knows whose they are.
    mark: u16,
}

/// Keeps a key known; dropping it forgets the key, also when the client's task panics.
#[derive(Debug)]
pub(crate) struct KnownKey {
    keys: Arc<CancelKeys>,
    key: CancelKey,
}

impl KnownKey {
    pub(crate) fn key(&self) -> &CancelKey {
        &self.key
    }
}

/// The mark of a proxy's keys: a hash of its id in the DCS (FNV-1a, which is the same everywhere).
fn mark_of(id: &str) -> u16 {
    let hash = id
        .bytes()
        .fold(0x811C_9DC5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
    u16::try_from(hash >> 17).unwrap_or_default()
}

impl CancelKeys {
    /// Those of the proxy with this id.
    pub(crate) fn new(id: &str) -> CancelKeys {
        CancelKeys { keys: Mutex::default(), mark: mark_of(id) }
    }

    /// A key of our own for a client; `None` if the system has no random bytes.
    pub(crate) fn create(self: &Arc<CancelKeys>, owner: ClientId) -> Option<KnownKey> {
        let mut random = [0; 6];
        if let Err(error) = getrandom::fill(&mut random) {
            tracing::error!(%error, "no random bytes for a cancel key");
            return None;
        }
        let [low @ .., s0, s1, s2, s3] = random;
        // The mark has 15 bits: clients show the number as a signed one.
        let process = u32::from(self.mark) << 16 | u32::from(u16::from_be_bytes(low)) | 1;
        let key = CancelKey { process, secret: vec![s0, s1, s2, s3] };
        self.lock().insert(key.clone(), owner);
        Some(KnownKey { keys: self.clone(), key })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<CancelKey, ClientId>> {
        // Every change is one call on the map, so a panic elsewhere leaves it whole.
        self.keys.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends the request to where it belongs: to our client's task, or to the proxy that gave the
    /// key. One that nobody knows is dropped without a word, as a server does.
    pub(crate) async fn forward(&self, front: &Front, key: &CancelKey, packet: &[u8]) {
        let known = self.lock().get(key).copied();
        if let Some(client) = known {
            front.tally.cancels.add(Cancelled::Own);
            front.cancel(client);
            return;
        }
        // A request with our mark is not handed on, so none goes round in circles.
        let mark = u16::try_from(key.process >> 16).unwrap_or_default();
        let others = front.proxies();
        let theirs = others.iter().filter(|(id, _)| mark != self.mark && mark_of(id) == mark);
        let mut nobodys = true;
        for (id, address) in theirs {
            nobodys = false;
            front.tally.cancels.add(Cancelled::OtherProxy);
            tracing::debug!(id, address, "a cancel request goes to the proxy that gave the key");
            deliver(address, packet).await;
        }
        if nobodys {
            front.tally.cancels.add(Cancelled::Unknown);
        }
    }
}

/// Asks a server to cancel what the session of this key runs, and waits until it has taken it.
pub(crate) async fn send(server: SocketAddr, key: &CancelKey) {
    deliver(&server.to_string(), &key.to_request()).await;
}

async fn deliver(server: &str, packet: &[u8]) {
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
        self.keys.lock().remove(&self.key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_names_its_proxy_and_is_forgotten_with_its_client() {
        let keys = Arc::new(CancelKeys::new("host:5000"));
        assert_ne!(keys.mark, mark_of("host:5001"));
        let key = keys.create(ClientId(1)).unwrap();
        assert_eq!(key.key().process >> 16, u32::from(keys.mark));
        assert!(i32::try_from(key.key().process).is_ok_and(|process| process > 0));
        assert_eq!(keys.lock().len(), 1);
        drop(key);
        assert!(keys.lock().is_empty());
    }
}
