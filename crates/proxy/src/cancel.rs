//! Cancel requests: each goes to the server whose session it names.

use std::cell::RefCell;
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
use crate::hot_restart::Predecessors;
use crate::tally::Cancelled;

/// From connecting until the server has closed, which says that the signal was sent.
const CANCEL_TIMEOUT: Duration = Duration::from_secs(5);
/// The same from a client's request, with the question whether a commit waits for its standby.
const OWN_TIMEOUT: Duration = Duration::from_secs(10);

/// The sessions that can be cancelled, by the keys that the proxy gave them. One for each session
/// at most, so the limit of clients bounds it.
#[derive(Debug)]
pub(crate) struct CancelKeys {
    keys: Mutex<HashMap<CancelKey, ClientId>>,
    /// What our keys have in common, so that another proxy knows whose they are.
    mark: u16,
    /// Those before us whose clients' requests come to us.
    pub(crate) predecessors: Predecessors,
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

/// Random bytes of a key.
type Random = [u8; 6];
/// So many keys' are taken from the system at once, which takes longer than all the rest.
const RANDOM_AHEAD: usize = 40;

thread_local! {
    static RANDOM: RefCell<Vec<Random>> = const { RefCell::new(Vec::new()) };
}

/// Bytes that nobody else has or can foresee; each are given once.
fn random() -> Result<Random, getrandom::Error> {
    RANDOM.with_borrow_mut(|ahead| {
        if ahead.is_empty() {
            let mut bytes = [0; RANDOM_AHEAD * size_of::<Random>()];
            getrandom::fill(&mut bytes)?;
            ahead.extend_from_slice(bytes.as_chunks().0);
        }
        ahead.pop().ok_or(getrandom::Error::UNEXPECTED)
    })
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
        let predecessors = Predecessors::default();
        CancelKeys { keys: Mutex::default(), mark: mark_of(id), predecessors }
    }

    pub(crate) fn mark(&self) -> u16 {
        self.mark
    }

    /// A key of our own for a client; `None` if the system has no random bytes.
    pub(crate) fn create(self: &Arc<CancelKeys>, owner: ClientId) -> Option<KnownKey> {
        let [low @ .., s0, s1, s2, s3] = match random() {
            Ok(random) => random,
            Err(error) => {
                tracing::error!(%error, "no random bytes for a cancel key");
                return None;
            }
        };
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

    /// Sends the request to our client's task; `None` if no client of ours has this key. What is
    /// returned completes when the server has taken the request.
    pub(crate) fn cancel_own(
        &self,
        front: &Front,
        key: &CancelKey,
    ) -> Option<impl Future<Output = ()> + use<>> {
        let client = self.lock().get(key).copied()?;
        front.tally.cancels.add(Cancelled::Own);
        let done = front.cancel(client);
        Some(async move {
            if let Some(done) = done {
                timeout(OWN_TIMEOUT, done).await.unwrap_or_default();
            }
        })
    }

    /// Sends the request to where it belongs: to our client's task, or to the proxy that gave the
    /// key. One that nobody knows is dropped without a word, as a server does. Completes when the
    /// server has taken it, so that whoever asked may go on: our closing says so to the client, as
    /// a server's does.
    pub(crate) async fn forward(&self, front: &Front, key: &CancelKey, packet: &[u8]) {
        if let Some(done) = self.cancel_own(front, key) {
            return done.await;
        }
        let mark = u16::try_from(key.process >> 16).unwrap_or_default();
        if self.predecessors.cancel(key, mark).await {
            front.tally.cancels.add(Cancelled::OtherProxy);
            return;
        }
        // A request with our mark goes to no other proxy, so none goes round in circles.
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
