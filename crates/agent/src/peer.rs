//! What we ask of another member's REST interface.

use std::time::Duration;

use types::Lsn;

/// A question to a peer is given up after this; it is asked again at once by whoever needs it.
const LIMIT: Duration = Duration::from_millis(500);

/// Whether the standby behind this REST address has received everything up to `end`. It answers
/// as soon as it has.
pub(crate) async fn has_received(host: &str, port: u16, end: Lsn) -> bool {
    let path = format!("/received?lsn={}", end.0);
    let answer = api::client::request("GET", host, port, &path, None, None, LIMIT).await;
    let Ok((_, body)) = answer else {
        return false;
    };
    // An older version answers as to a health check, without this field.
    let answer: Option<serde_json::Value> = serde_json::from_slice(&body).ok();
    let received = answer.as_ref().and_then(|a| a.get("received")?.as_u64());
    received.is_some_and(|received| Lsn(received) >= end)
}
