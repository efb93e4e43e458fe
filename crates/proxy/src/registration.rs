//! The proxy's key in the DCS, by which a leader that hands over learns that no transaction is
//! begun on it any more.
//!
//! A proxy that drains beside its successor has a key of another name. It writes that before it
//! stops writing the one of its own name, and the successor writes that one before it accepts
//! clients: a leader sees both, and a key that nobody writes for a moment speaks for no client. A
//! key goes with the lease of its last write, so the successor's stays when the older lease ends.

use std::time::Duration;

use dcs::{ClusterStore, Session};
use tokio::sync::watch;
use tokio::time::{interval, sleep};
use tokio_util::sync::CancellationToken;
use types::{Millis, ProxyRecord};

use crate::Status;
use crate::hot_restart::{Name, Registrant};

/// The key outlives its proxy by this much, and a leader that hands over meanwhile waits a moment
/// for an answer that does not come.
const TTL: Millis = Millis(10_000);
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(3);
/// After a call that failed.
const RETRY: Duration = Duration::from_secs(1);

/// Keeps the key `pgherd/proxies/<id>` as the status says, until `shutdown` or the proxy's end.
/// While the proxy drains the key is another one.
pub async fn register(
    store: ClusterStore,
    (id, address): (String, String),
    mut status: watch::Receiver<Status>,
    mut registrant: Registrant,
    shutdown: CancellationToken,
) {
    let cluster = status.borrow().cluster.clone();
    let key = |name: Name| Key {
        id: name.of(&id),
        session: Session::new(store.client().clone(), TTL),
        written: None,
    };
    let (mut own, mut draining) = (key(Name::Own), key(Name::Draining));
    let mut keep_alive = interval(KEEP_ALIVE_INTERVAL);
    let mut well = true;
    while !shutdown.is_cancelled() {
        let name = *registrant.wanted.borrow_and_update();
        let (key, other) = match name {
            Name::Own => (&mut own, &mut draining),
            Name::Draining => (&mut draining, &mut own),
        };
        let record = record(&address, &status.borrow_and_update());
        let kept = key.keep(&store, &record).await;
        match &kept {
            Ok(()) if !well => {
                tracing::info!(cluster, id = key.id, "the proxy is registered again");
            }
            Err(error) if well => {
                tracing::warn!(cluster, id = key.id, %error, "cannot keep the proxy's key");
            }
            Ok(()) | Err(_) => {}
        }
        well = kept.is_ok();
        registrant.written.send_replace(well.then_some(name));
        // It is not known what becomes of the other one from here on.
        other.written = None;
        if !well {
            key.written = None;
            tokio::select! {
                () = sleep(RETRY) => continue,
                () = shutdown.cancelled() => break,
            }
        }
        if name == Name::Own {
            // Nobody took over after all, so nobody drains.
            draining.session.revoke().await.unwrap_or_default();
        }
        tokio::select! {
            _ = keep_alive.tick() => {}
            changed = until_other(&mut status, &address, &record) => if !changed { break },
            // Once the place is handed over nobody wants another name.
            Ok(()) = registrant.wanted.changed() => {}
            () = shutdown.cancelled() => break,
        }
    }
    // It would end by itself, but a leader should not wait for a proxy that is gone. While we drain
    // our own name is the successor's business.
    let ended = match *registrant.wanted.borrow() {
        Name::Own => own.session,
        Name::Draining => draining.session,
    };
    ended.revoke().await.unwrap_or_default();
}

fn record(address: &str, status: &Status) -> ProxyRecord {
    let hold = status.routes.hold;
    // Without a hold nobody looks at it, and it changes with every transaction.
    let busy = if hold.is_some() { u64::try_from(status.routes.busy).unwrap_or(0) } else { 0 };
    ProxyRecord { address: address.to_owned(), hold, busy }
}

/// Waits until the key must say something else; `false` if the proxy has ended.
async fn until_other(
    status: &mut watch::Receiver<Status>,
    address: &str,
    said: &ProxyRecord,
) -> bool {
    status.wait_for(|status| record(address, status) != *said).await.is_ok()
}

/// One key, under a lease of its own.
struct Key {
    id: String,
    session: Session,
    written: Option<ProxyRecord>,
}

impl Key {
    async fn keep(&mut self, store: &ClusterStore, record: &ProxyRecord) -> Result<(), dcs::Error> {
        let (lease, new_lease) = self.session.ensure().await?;
        let known = self.written.as_ref() == Some(record) && !new_lease;
        if !known || self.is_lost(store, lease) {
            self.written = None;
            store.touch_proxy(&self.session, &self.id, record).await?;
            self.written = Some(record.clone());
        }
        Ok(())
    }

    /// Whether the view shows that the key is not ours: a successor that was refused in the end has
    /// written it, and may have taken it along.
    fn is_lost(&self, store: &ClusterStore, lease: i64) -> bool {
        let seen = store.current();
        let view = seen.view.as_ref().filter(|_| seen.fresh);
        view.is_some_and(|view| view.proxies.get(&self.id).is_none_or(|key| key.lease != lease))
    }
}
