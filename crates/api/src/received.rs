//! `GET /received?lsn=N`: answered when this standby has received the log up to N, or after a short
//! while with what it has. A leader that hands over asks it, since its clients wait meanwhile; the
//! snapshots that others poll would be a tenth of a second old.

use std::time::Duration;

use axum::extract::Query;
use axum::http::Uri;
use axum::response::Response;
use serde::Deserialize;
use serde_json::json;
use types::Lsn;

use crate::ApiState;
use crate::handlers::answer;
use crate::json::spaced;

/// How long an answer is held back at most.
const WAIT_MAX: Duration = Duration::from_millis(300);

#[derive(Deserialize)]
struct Wanted {
    lsn: u64,
}

/// Answers `{"received": N}`; N is 0 where there is no running standby.
pub(crate) async fn answer_when_received(state: ApiState, uri: &Uri) -> Response {
    let Ok(Query(Wanted { lsn })) = Query::<Wanted>::try_from_uri(uri) else {
        return answer(400, "text/plain", "lsn must be a number of bytes".to_owned());
    };
    let mut snapshots = state.snapshots;
    let give_up = tokio::time::Instant::now() + WAIT_MAX;
    loop {
        let snapshot = snapshots.borrow_and_update().clone();
        let standby = snapshot.standby((state.now)());
        let received = standby.map_or(Lsn(0), |s| s.received.max(s.replayed));
        let news = async {
            if received < Lsn(lsn) {
                state.nudge.notify_one();
                snapshots.changed().await.is_ok()
            } else {
                false
            }
        };
        if !tokio::time::timeout_at(give_up, news).await.unwrap_or(false) {
            return answer(200, "application/json", spaced(&json!({ "received": received })));
        }
    }
}
