//! `GET /pgherd/view`: the cluster as this agent sees it, for proxies that cannot ask the DCS.
//!
//! With `wait=SECONDS` the answer is held back until it is other than what the asker knows (`after`
//! is the revision that it was told last, `fresh` whether that was called fresh), or the time is
//! over: so a change is heard of as fast as by a watch. A longer wait is cut to [`WAIT_MAX`]. While
//! too many wait already, the answer comes at once.

use std::sync::Arc;
use std::time::Duration;

use axum::extract::Query;
use axum::http::Uri;
use axum::response::Response;
use serde::Deserialize;
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout_at};
use types::{ClusterView, Millis, Revision, Teller, ToldView};

use crate::handlers::{answer, error_page};
use crate::snapshot::Snapshot;
use crate::{ApiState, Published};

/// Where it is.
pub const VIEW_PATH: &str = "/pgherd/view";

/// How long an answer is held back at most.
pub const WAIT_MAX: Duration = Duration::from_secs(30);

/// How many answers are held back at a time: a quarter of the connections.
pub(crate) const WAITING_MAX: usize = 64;

/// The largest answer, in bytes.
const VIEW_MAX: usize = 1 << 20;

/// Counts the answers that are held back.
#[derive(Debug, Clone)]
pub struct Waiting(Arc<Semaphore>);

impl Default for Waiting {
    fn default() -> Waiting {
        Waiting(Arc::new(Semaphore::new(WAITING_MAX)))
    }
}

#[derive(Deserialize)]
struct Asked {
    after: Option<Revision>,
    fresh: Option<bool>,
    wait: Option<u64>,
}

impl Asked {
    /// Whether the asker does not know this yet.
    fn is_news(&self, view: &ClusterView, is_fresh: bool) -> bool {
        self.after != Some(view.revision) || self.fresh.unwrap_or(true) != is_fresh
    }
}

/// Answers when there is news, or the time is over.
pub(crate) async fn answer_view(state: ApiState, uri: &Uri) -> Response {
    let Ok(Query(asked)) = Query::<Asked>::try_from_uri(uri) else {
        let text = "after is a revision, fresh is true or false, wait a number of seconds";
        return error_page(400, text);
    };
    let wait = Duration::from_secs(asked.wait.unwrap_or(0)).min(WAIT_MAX);
    let give_up = Instant::now() + wait;
    // Held until the answer is made.
    let place = state.waiting.0.try_acquire();
    let mut snapshots = state.snapshots.clone();
    loop {
        // Cloned at once: holding the borrow would block the agent's next publication.
        let snapshot: Published = snapshots.borrow_and_update().clone();
        let told = || tell(&snapshot, (state.now)());
        let Some(view) = snapshot.view.as_deref() else {
            return told();
        };
        if place.is_err() || asked.is_news(view, snapshot.view_is_fresh) {
            return told();
        }
        if !matches!(timeout_at(give_up, snapshots.changed()).await, Ok(Ok(()))) {
            return told();
        }
    }
}

fn tell(snapshot: &Snapshot, now: Millis) -> Response {
    let Some(view) = snapshot.view.as_deref() else {
        return error_page(503, "the DCS has not been read yet");
    };
    let told_by = Teller {
        name: snapshot.name.clone(),
        role: snapshot.role(now).to_owned(),
        state: snapshot.state(now).to_owned(),
        term: snapshot.member.as_ref().and_then(|member| member.term),
        holds_claim: snapshot.has_lock(now),
    };
    let told = ToldView::new(&snapshot.scope, view, snapshot.view_is_fresh, told_by);
    match serde_json::to_string_pretty(&told) {
        Ok(text) if text.len() <= VIEW_MAX => answer(200, "application/json", text + "\n"),
        Ok(text) => error_page(
            500,
            &format!("the view has {} bytes, at most {VIEW_MAX} are told", text.len()),
        ),
        Err(error) => error_page(500, &format!("the view cannot be written as JSON: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;
    use tokio::task::JoinHandle;
    use types::Role;

    use super::*;
    use crate::access::Access;
    use crate::samples;
    use crate::server_tests::{HANG, Server, send, start};

    async fn get(port: u16, question: &str) -> (u16, String) {
        let path = format!("{VIEW_PATH}{question}");
        let asked = send(port, "GET", &path, "", "");
        let (status, _, body) = tokio::time::timeout(HANG, asked).await.expect("an answer");
        (status, body)
    }

    async fn told(port: u16, question: &str) -> ToldView {
        let (status, body) = get(port, question).await;
        assert_eq!(status, 200, "{body}");
        serde_json::from_str(&body).expect("a view")
    }

    /// Waits until so many answers are held back.
    async fn held_back(server: &Server, count: usize) {
        while WAITING_MAX - server.waiting.0.available_permits() != count {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    fn ask(server: &Server, question: &'static str) -> JoinHandle<ToldView> {
        let port = server.port;
        tokio::spawn(async move { told(port, question).await })
    }

    #[tokio::test]
    async fn it_tells_the_view_and_who_tells_it() {
        let mut leader = samples::leader();
        let server = start(leader.clone(), Access::default()).await;
        let (_, text) = get(server.port, "").await;
        let body: Value = serde_json::from_str(&text).expect("JSON");
        assert!(text.contains("\n  \"scope\": \"demo\""), "for people, too: {text}");
        assert_eq!((&body["version"], &body["revision"]), (&1.into(), &100.into()));
        assert_eq!((&body["fresh"], &body["leader"]["name"]), (&true.into(), &"node-0".into()));
        assert_eq!(body["members"]["node-1"]["replication_state"], "streaming");
        let us = serde_json::json!({
            "name": "node-0", "role": "primary", "state": "running", "holds_claim": true
        });
        assert_eq!(body["told_by"], us);
        let told = told(server.port, "").await;
        assert!(told.is_leaders() && told.view("demo").is_ok());

        leader.claim_until = None;
        leader.view = None;
        server.publish(leader);
        let (status, page) = get(server.port, "?after=100&wait=30").await;
        assert_eq!(status, 503, "{page}");
        for wrong in ["?after=x", "?wait=-1", "?fresh=7"] {
            assert_eq!(get(server.port, wrong).await.0, 400, "{wrong}");
        }
    }

    #[tokio::test]
    async fn an_answer_waits_for_a_newer_view_or_for_the_end_of_freshness() {
        let replica = samples::replica("node-1");
        let server = start(replica.clone(), Access::default()).await;
        // What is other than what one knows is told at once.
        assert_eq!(told(server.port, "?after=99&wait=30").await.revision, Revision(100));
        assert!(told(server.port, "?after=100&fresh=false&wait=30").await.fresh);
        // The end of the wait is an answer, too.
        assert_eq!(told(server.port, "?after=100&wait=1").await.revision, Revision(100));

        let asking = ask(&server, "?after=100&wait=3600");
        held_back(&server, 1).await;
        // A publication that says nothing new is no answer.
        server.publish(Snapshot { looped_at: Millis(7), ..replica.clone() });
        let newer = ClusterView { revision: Revision(101), ..samples::view() };
        server.publish(Snapshot { view: Some(Arc::new(newer)), ..replica.clone() });
        assert_eq!(asking.await.expect("an answer").revision, Revision(101));

        server.publish(replica.clone());
        let asking = ask(&server, "?after=100&fresh=true&wait=3600");
        held_back(&server, 1).await;
        server.publish(Snapshot { view_is_fresh: false, ..replica });
        assert!(!asking.await.expect("an answer").fresh);
    }

    #[tokio::test]
    async fn who_comes_when_too_many_wait_is_answered_at_once() {
        let server = start(samples::replica("node-1"), Access::default()).await;
        let question = "?after=100&wait=3600";
        let mut asking: Vec<_> = (0..WAITING_MAX).map(|_| ask(&server, question)).collect();
        held_back(&server, WAITING_MAX).await;
        assert_eq!(told(server.port, question).await.revision, Revision(100));
        assert!(asking.iter().all(|asking| !asking.is_finished()));
        // Who leaves makes room.
        asking.pop().expect("many").abort();
        held_back(&server, WAITING_MAX - 1).await;
    }

    #[tokio::test]
    async fn a_view_that_is_too_large_is_not_told() {
        let mut view = samples::view();
        let huge = serde_json::json!({"pgherd": {"x": "x".repeat(VIEW_MAX)}});
        samples::put(&mut view, "config", &huge.to_string());
        let standby = types::Standby::default();
        let snapshot = Snapshot {
            view: Some(Arc::new(view)),
            ..samples::snapshot("node-1", Role::Standby(standby))
        };
        let server = start(snapshot, Access::default()).await;
        let (status, page) = get(server.port, "").await;
        assert!(status == 500 && page.contains("at most 1048576 are told"), "{status} {page}");
    }
}
