//! What we ask of another member's REST interface.

use std::time::Duration;

use types::Lsn;

/// A question to a peer is given up after this; it is asked again at once by whoever needs it.
const LIMIT: Duration = Duration::from_millis(500);

/// Whether the standby behind this REST address has received everything up to `end`.
pub(crate) async fn has_received(host: &str, port: u16, end: Lsn) -> bool {
    let answer = api::client::request("GET", host, port, "/patroni", None, None, LIMIT).await;
    let Ok((_, body)) = answer else {
        return false;
    };
    let Ok(status) = serde_json::from_slice::<serde_json::Value>(&body) else {
        return false;
    };
    let at = |key| status.get("xlog").and_then(|x| x.get(key)).and_then(serde_json::Value::as_u64);
    at("received_location").max(at("replayed_location")).is_some_and(|lsn| Lsn(lsn) >= end)
}
