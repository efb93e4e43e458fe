//! The proxy's key in the DCS, by which a leader that hands over learns that no transaction is
//! begun on it any more.

use std::time::Duration;

use dcs::{ClusterStore, Session};
use tokio::sync::watch;
use tokio::time::{interval, sleep};
use tokio_util::sync::CancellationToken;
use types::{Millis, ProxyRecord};

use crate::Status;

/// The key outlives its proxy by this much, and a leader that hands over meanwhile waits a moment
/// for an answer that does not come.
const TTL: Millis = Millis(10_000);
const KEEP_ALIVE_INTERVAL: Duration = Duration::from_secs(3);
/// After a call that failed.
const RETRY: Duration = Duration::from_secs(1);

/// Keeps the key `pgherd/proxies/<id>` as the status says, until `shutdown`.
pub async fn register(
    store: ClusterStore,
    id: String,
    address: String,
    mut status: watch::Receiver<Status>,
    shutdown: CancellationToken,
) {
    let cluster = status.borrow().cluster.clone();
    let session = Session::new(store.client().clone(), TTL);
    let mut keep_alive = interval(KEEP_ALIVE_INTERVAL);
    let mut written = None;
    let mut well = true;
    while !shutdown.is_cancelled() {
        let record = record(&address, &status.borrow_and_update());
        let kept = keep(&store, &session, &id, &record, &mut written).await;
        match &kept {
            Ok(()) if !well => tracing::info!(cluster, id, "the proxy is registered again"),
            Err(error) if well => {
                tracing::warn!(cluster, id, %error, "cannot keep the proxy's key");
            }
            Ok(()) | Err(_) => {}
        }
        well = kept.is_ok();
        if !well {
            written = None;
            tokio::select! {
                () = sleep(RETRY) => continue,
                () = shutdown.cancelled() => break,
            }
        }
        tokio::select! {
            _ = keep_alive.tick() => {}
            changed = until_other(&mut status, &address, &record) => if !changed { break },
            () = shutdown.cancelled() => break,
        }
    }
    // It would end by itself, but a leader should not wait for a proxy that is gone.
    session.revoke().await.unwrap_or_default();
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

async fn keep(
    store: &ClusterStore,
    session: &Session,
    id: &str,
    record: &ProxyRecord,
    written: &mut Option<ProxyRecord>,
) -> Result<(), dcs::Error> {
    let (_, new_lease) = session.ensure().await?;
    if new_lease || written.as_ref() != Some(record) {
        *written = None;
        store.touch_proxy(session, id, record).await?;
        *written = Some(record.clone());
    }
    Ok(())
}
