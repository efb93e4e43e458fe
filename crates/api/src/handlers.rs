//! From an HTTP request to its answer. Patroni chooses by method and first path segment, and
//! treats every other GET path as a health check; so does this.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::body::{Body, Bytes, to_bytes};
use axum::extract::{ConnectInfo, Query, State};
use axum::http::{HeaderValue, Method, Request, StatusCode, Uri, header};
use axum::response::Response;
use serde_json::{Map, Value, json};
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::oneshot;
use types::{Millis, UnixMillis};

use crate::door::Door;
use crate::failsafe::{self, FailsafePost};
use crate::health::{self, Filters};
use crate::json::spaced;
use crate::listener::CalledBy;
use crate::snapshot::{Settings, Snapshot};
use crate::switchover::{self, SwitchoverRequest, validate_switchover};
use crate::view::VIEW_PATH;
use crate::{
    ApiReply, ApiRequest, ApiState, Command, Published, cluster, metrics, peers, received, restart,
    status, view,
};

/// The largest body that is read; larger ones are refused.
const BODY_MAX: usize = 1 << 20;

/// A body that has not arrived by then is refused.
const BODY_WAIT: Duration = Duration::from_secs(10);

/// What a restart may take besides the start and the usual answer: an orderly stop, and one that
/// follows where that did not end.
const RESTART_WAIT: Duration = Duration::from_secs(120);

/// How long a health check waits for the first write of a new primary.
const FIRST_WRITE_WAIT: Duration = Duration::from_millis(500);

const HTML: &str = "text/html";
pub(crate) const JSON: &str = "application/json";
pub(crate) const PROMETHEUS: &str = "text/plain; version=0.0.4";

/// The one handler behind every path.
pub(crate) async fn dispatch(State(state): State<ApiState>, request: Request<Body>) -> Response {
    let door = Arc::clone(&state.door.borrow());
    let mut response = answer_request(state, &door, request).await;
    response.headers_mut().extend(door.headers.clone());
    response
}

async fn answer_request(state: ApiState, door: &Door, request: Request<Body>) -> Response {
    let (mut parts, body) = request.into_parts();
    let called_by = parts.extensions.remove::<ConnectInfo<CalledBy>>();
    let upgrade = parts.extensions.remove();
    let path = parts.uri.path();
    let segment = path.trim_start_matches('/').split('/').next().unwrap_or("").to_owned();
    if parts.method == Method::GET && segment == "received" {
        return received::answer_when_received(state, &parts.uri).await;
    }
    if parts.method == Method::GET && path == VIEW_PATH {
        return view::answer_view(state, &parts.uri).await;
    }
    if parts.method == Method::GET
        && path == "/peers"
        && let Some(welcome) = peers::welcome(&state.peers, &parts.headers, upgrade, state.now)
    {
        return welcome;
    }
    if matches!(parts.method, Method::GET | Method::HEAD | Method::OPTIONS) {
        return look(&state, &parts.method, &segment, &parts.uri).await;
    }
    let method = parts.method.as_str();
    let known = matches!(
        (method, segment.as_str()),
        ("POST" | "DELETE", "switchover" | "restart")
            | ("POST", "failover" | "failsafe" | "reload" | "reinitialize")
            | ("POST", "sigterm" | "citus" | "mpp")
            | ("PATCH" | "PUT", "config")
    );
    if !known {
        return error_page(501, &format!("Unsupported method ({method:?})").replace('"', "'"));
    }
    let authorization = parts.headers.get(header::AUTHORIZATION).map(HeaderValue::as_bytes);
    let caller = called_by.map(|ConnectInfo(CalledBy(caller))| caller);
    let snapshot: Published = state.snapshots.borrow().clone();
    let from = caller.as_ref().map(|caller| caller.address.ip());
    let (view, among_members) = (snapshot.view.as_deref(), segment == "failsafe");
    if let Some(from) = from
        && !door.allowlist.admits(from, view, among_members).await
    {
        return refused(403, "Access is denied");
    }
    let certified = caller.and_then(|caller| caller.certified());
    if let Err(refusal) = door.access.check(authorization, certified) {
        return refused(refusal.status(), &refusal.to_string());
    }
    let counted = [header::CONTENT_LENGTH, header::TRANSFER_ENCODING];
    let counted = counted.iter().any(|name| parts.headers.contains_key(name));
    if !counted && needs_body(method, &segment) {
        let response = error_page(411, "Length Required");
        return if segment == "failsafe" { unasked(&state, response) } else { response };
    }
    change(state, method, &segment, body).await
}

/// Whether a request is nothing without a body, and has to say how long it is.
fn needs_body(method: &str, segment: &str) -> bool {
    matches!(
        (method, segment),
        ("PATCH" | "PUT", _) | ("POST", "switchover" | "failover" | "failsafe" | "citus" | "mpp")
    )
}

/// What changes something; the caller has been let in, and the path is known.
async fn change(state: ApiState, method: &str, segment: &str, body: Body) -> Response {
    match (method, segment) {
        ("DELETE", "restart") => reply_answer(ask(&state, Command::CancelRestart).await),
        ("DELETE", _) => cancel_switchover(&state).await,
        ("PATCH", _) => match read_object(body).await {
            Ok(patch) => patch_config(&state, patch).await,
            Err(response) => *response,
        },
        ("PUT", _) => match read_object(body).await {
            Ok(config) => reply_answer(ask(&state, Command::ReplaceConfig(config)).await),
            Err(response) => *response,
        },
        // Patroni ends by it on Windows alone.
        (_, "sigterm") => answer(202, HTML, "shutdown scheduled".to_owned()),
        // Heard by the coordinator of Citus alone, which there is none of here.
        (_, "citus" | "mpp") => match read_object(body).await {
            Ok(_) => answer(200, HTML, "OK".to_owned()),
            Err(response) => *response,
        },
        // Whatever body comes with it says nothing.
        (_, "reload") => reply_answer(ask(&state, Command::Reload).await),
        (_, "restart") => match read_map(body).await {
            Ok(body) => restart_postgres(&state, &body).await,
            Err(response) => *response,
        },
        (_, "reinitialize") => match read_map(body).await {
            Ok(body) => {
                let (force, from_leader) = restart::reinitialize_words(&body);
                reply_answer(ask(&state, Command::Reinitialize { force, from_leader }).await)
            }
            Err(response) => *response,
        },
        (_, "failsafe") => match read_object(body).await {
            Ok(body) => failsafe(&state, &body).await,
            Err(response) => unasked(&state, *response),
        },
        (_, action) => match read_object(body).await {
            Ok(body) => switch_over(state, action == "failover", &body).await,
            Err(response) => *response,
        },
    }
}

/// GET, and what is answered like it without a body.
async fn look(state: &ApiState, method: &Method, segment: &str, uri: &Uri) -> Response {
    let path = uri.path();
    let mut response = read(state, path, segment, uri);
    if response.status() == StatusCode::SERVICE_UNAVAILABLE && comes_to_lead(state).await {
        response = read(state, path, segment, uri);
    }
    if method == Method::GET {
        return response;
    }
    answer(response.status().as_u16(), HTML, String::new())
}

/// Whether the leader key is ours, as the last view says.
fn holds_leader_key(snapshot: &Snapshot) -> bool {
    snapshot.view.as_deref().and_then(|view| view.leader_name()) == Some(&snapshot.name)
}

/// Waits for the first acknowledged write of a primary that has just got the leader key: it is
/// published moments later, and whoever saw the key asks just then. True if it was.
async fn comes_to_lead(state: &ApiState) -> bool {
    let mut snapshots = state.snapshots.clone();
    let waiting = async {
        loop {
            // Cloned at once: holding the borrow would block the agent's next publication.
            let snapshot: Published = snapshots.borrow_and_update().clone();
            let now = (state.now)();
            if snapshot.leads(now) {
                return true;
            }
            if !holds_leader_key(&snapshot) || snapshots.changed().await.is_err() {
                return false;
            }
        }
    };
    let leads = state.snapshots.borrow().leads((state.now)());
    !leads && tokio::time::timeout(FIRST_WRITE_WAIT, waiting).await.unwrap_or(false)
}

fn read(state: &ApiState, path: &str, segment: &str, uri: &Uri) -> Response {
    // Cloned at once: holding the borrow would block the agent's next publication.
    let snapshot: Published = state.snapshots.borrow().clone();
    let now = (state.now)();
    let pairs = Query::<Vec<(String, String)>>::try_from_uri(uri);
    let filters = Filters::from_pairs(pairs.map(|q| q.0).unwrap_or_default());
    let status_text = || spaced(&status::status_json(&snapshot, now, unix_now()));
    let code = |ok: bool| if ok { 200 } else { 503 };
    match segment {
        "liveness" => answer(code(health::alive(&snapshot, now)), HTML, String::new()),
        "readiness" => answer(code(health::ready(&snapshot, now, &filters)), HTML, String::new()),
        "patroni" => answer(200, JSON, status_text()),
        "cluster" => cluster_answer(&snapshot),
        "history" => answer(200, JSON, history(&snapshot)),
        "config" => config(&snapshot),
        "failsafe" => match failsafe::map(&snapshot) {
            Some(map) => answer(200, JSON, map),
            None => error_page(502, "there is no /failsafe in the DCS"),
        },
        "metrics" => answer(200, PROMETHEUS, metrics(state, &snapshot, now)),
        _ => answer(code(health::passes(&snapshot, now, path, &filters)), JSON, status_text()),
    }
}

fn metrics(state: &ApiState, snapshot: &Snapshot, now: Millis) -> String {
    metrics::metrics_text(snapshot, &state.peers.report(), now, unix_now())
}

fn cluster_answer(snapshot: &Snapshot) -> Response {
    match snapshot.view.as_deref() {
        Some(view) => {
            let body = cluster::cluster_json(view, &snapshot.scope, snapshot.in_force().tier);
            answer(200, JSON, spaced(&body))
        }
        None => error_page(503, "the DCS has not been read yet"),
    }
}

fn history(snapshot: &Snapshot) -> String {
    let history = snapshot.view.as_deref().and_then(|v| v.history.as_ref());
    history.map_or_else(|| "[]".to_owned(), |h| spaced(&json!(h.value)))
}

fn config(snapshot: &Snapshot) -> Response {
    match snapshot.view.as_deref().and_then(|v| v.config.as_ref()) {
        Some(config) => answer(200, JSON, spaced(&config.value)),
        None => error_page(502, "there is no dynamic configuration in the DCS"),
    }
}

async fn switch_over(state: ApiState, failover: bool, body: &Value) -> Response {
    let snapshot: Published = state.snapshots.borrow().clone();
    let request = SwitchoverRequest::from_json(failover, body);
    let request = match validate_switchover(&snapshot, request, wall_clock()) {
        Ok(request) => request,
        Err((status, text)) => return answer(status, HTML, text),
    };
    tracing::info!(?request, "an operator asks for a change of leader");
    let old_leader = snapshot.view.as_deref().and_then(|v| v.leader_name()).cloned();
    let reply = ask(&state, Command::Switchover(request.clone())).await;
    if reply.status != 200 {
        return reply_answer(reply);
    }
    if request.is_scheduled() {
        return answer(202, HTML, "Switchover scheduled".to_owned());
    }
    let mut snapshots = state.snapshots.clone();
    let result = switchover::result(&mut snapshots, &request, old_leader.as_ref(), reply.written);
    let (status, text) = result.await;
    answer(status, HTML, text)
}

async fn restart_postgres(state: &ApiState, body: &Map<String, Value>) -> Response {
    let snapshot: Published = state.snapshots.borrow().clone();
    match restart::restart_request(&snapshot, body, wall_clock()) {
        Ok(request) => reply_answer(ask(state, Command::Restart(request)).await),
        Err((status, text)) => answer(status, HTML, text),
    }
}

async fn cancel_switchover(state: &ApiState) -> Response {
    let snapshot: Published = state.snapshots.borrow().clone();
    let request = snapshot.view.as_deref().and_then(|v| v.failover_request());
    if request.and_then(|r| r.scheduled_at.as_ref()).is_none() {
        return answer(404, HTML, "no switchover is scheduled".into());
    }
    reply_answer(ask(state, Command::CancelSwitchover).await)
}

async fn patch_config(state: &ApiState, patch: Value) -> Response {
    let snapshot: Published = state.snapshots.borrow().clone();
    let view = snapshot.view.as_deref();
    if view.is_none_or(|v| v.config.is_none()) {
        return error_page(503, "there is no dynamic configuration in the DCS");
    }
    reply_answer(ask(state, Command::PatchConfig(patch)).await)
}

/// The answer to a leader whose question cannot be read: while failsafe mode is off that is all
/// there is to say.
fn unasked(state: &ApiState, response: Response) -> Response {
    let off = !state.snapshots.borrow().in_force().failsafe;
    if off { error_page(502, "failsafe_mode is off") } else { response }
}

/// A leader without the DCS asks whether it may go on.
async fn failsafe(state: &ApiState, body: &Value) -> Response {
    let Some(post) = FailsafePost::from_json(body) else {
        return error_page(400, "name should be that of the leader");
    };
    let reply = ask(state, Command::Failsafe(post)).await;
    let accepted = reply.status == 200;
    let mut response = reply_answer(reply);
    if accepted {
        let held = failsafe::held(&state.snapshots.borrow(), (state.now)());
        response.headers_mut().insert("lsn", HeaderValue::from(held));
    }
    response
}

/// Hands a command to the agent and waits for its answer, both with a bound.
async fn ask(state: &ApiState, command: Command) -> ApiReply {
    let limit = answer_wait(&state.snapshots.borrow().settings, &command);
    let (reply, answer) = oneshot::channel();
    let failed = |text: String| ApiReply { status: 503, text, written: None };
    match state.requests.try_send(ApiRequest { command, reply }) {
        Ok(()) => {}
        Err(TrySendError::Full(_)) => {
            return failed("the agent is busy with other requests; try again".into());
        }
        Err(TrySendError::Closed(_)) => return failed("the agent is shutting down".into()),
    }
    match tokio::time::timeout(limit, answer).await {
        Ok(Ok(reply)) => reply,
        Ok(Err(_)) => failed("the agent dropped the request; its log says why".into()),
        Err(_) => failed(format!(
            "the agent did not answer within {} seconds; operation may still be in progress",
            limit.as_secs()
        )),
    }
}

/// How long the agent may take. A restart leaves the synchronous set, makes a checkpoint and stops
/// before it starts; each has its own limit there.
fn answer_wait(settings: &Settings, command: &Command) -> Duration {
    let usual = switchover::result_wait(settings);
    match command {
        Command::Restart(request) => {
            let asked = request.timeout.map(Duration::from_secs);
            let start = settings.primary_start_timeout.as_duration();
            usual + RESTART_WAIT + start + asked.unwrap_or(start)
        }
        _ => usual,
    }
}

/// A body that is absent, or a JSON object.
async fn read_map(body: Body) -> Result<Map<String, Value>, Box<Response>> {
    let bytes = read_body(body).await?;
    if bytes.is_empty() {
        return Ok(Map::new());
    }
    match serde_json::from_slice(&bytes) {
        Ok(Value::Object(map)) => Ok(map),
        Ok(_) => Err(Box::new(error_page(400, "the body should be a JSON object"))),
        Err(_) => Err(Box::new(error_page(400, "the body is not JSON"))),
    }
}

async fn read_body(body: Body) -> Result<Bytes, Box<Response>> {
    let bad = |text: &str| Box::new(error_page(400, text));
    let bytes = tokio::time::timeout(BODY_WAIT, to_bytes(body, BODY_MAX)).await;
    let bytes = bytes.map_err(|_| bad("the body did not arrive in time"))?;
    bytes.map_err(|_| bad("the body cannot be read, or is larger than 1 MiB"))
}

/// A body that is a JSON object with content. The error is boxed as a response is large.
async fn read_object(body: Body) -> Result<Value, Box<Response>> {
    let bad = |text: &str| Box::new(error_page(400, text));
    let bytes = read_body(body).await?;
    match serde_json::from_slice(&bytes) {
        Ok(Value::Object(map)) if !map.is_empty() => Ok(Value::Object(map)),
        Ok(_) => Err(bad("the body should be a JSON object with content")),
        Err(_) => Err(bad("the body is not JSON")),
    }
}

fn reply_answer(reply: ApiReply) -> Response {
    let kind = if reply.text.starts_with('{') { JSON } else { HTML };
    answer(reply.status, kind, reply.text)
}

fn refused(status: u16, text: &str) -> Response {
    let mut response = answer(status, HTML, text.to_owned());
    if status == 401 {
        let challenge = HeaderValue::from_static("Basic realm=\"Patroni\"");
        response.headers_mut().insert(header::WWW_AUTHENTICATE, challenge);
    }
    response
}

pub(crate) fn error_page(status: u16, text: &str) -> Response {
    let body = format!(
        "<html><head><title>Error response</title></head><body><h1>Error response</h1>\
         <p>Error code: {status}</p><p>Message: {text}.</p></body></html>\n"
    );
    answer(status, HTML, body)
}

pub(crate) fn answer(status: u16, kind: &'static str, text: String) -> Response {
    let mut response = Response::new(Body::from(text));
    // An agent that replied with a number that is no status is a fault of ours, not the client's.
    *response.status_mut() =
        StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}

/// The wall clock, for what operators schedule.
fn wall_clock() -> UnixMillis {
    UnixMillis(i64::try_from(unix_now()).unwrap_or(i64::MAX))
}

/// The wall clock in milliseconds, for display alone.
fn unix_now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
