//! The server over a real socket: routing, access, bounds, and a switchover from end to end.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use types::{Lsn, Revision};

use crate::peers::{Board, Heard, PeerKey, Reception};
use crate::samples::{self, PUBLISHED};
use crate::*;

/// Only a test that hangs waits so long.
pub(crate) const HANG: Duration = Duration::from_secs(60);

pub(crate) struct Server {
    pub(crate) port: u16,
    snapshots: watch::Sender<Published>,
    requests: mpsc::Receiver<ApiRequest>,
    nudge: Arc<Notify>,
    pub(crate) door: watch::Sender<Arc<Door>>,
    pub(crate) waiting: view::Waiting,
    pub(crate) members: Members,
}

/// The other ends of the reception of heartbeats.
pub(crate) struct Members {
    pub(crate) key: watch::Sender<Option<PeerKey>>,
    pub(crate) heard: mpsc::Receiver<Heard>,
    pub(crate) board: Arc<Board>,
}

/// Where `node-0` of `demo` takes heartbeats in; it has no key yet, and waits so long for the first
/// one.
pub(crate) fn reception(queue: usize, first: Duration) -> (Arc<Reception>, Members) {
    let (key, keys) = watch::channel(None);
    let (heard, incoming) = mpsc::channel(queue);
    let board = Arc::<Board>::default();
    let reception = Reception::new("demo", "node-0".into(), keys, heard, Arc::clone(&board));
    let reception = reception.waiting(first, HANG);
    (Arc::new(reception), Members { key, heard: incoming, board })
}

impl Server {
    /// Publishes as the agent does.
    pub(crate) fn publish(&self, snapshot: Snapshot) {
        self.snapshots.send_replace(Arc::new(snapshot));
    }
}

pub(crate) async fn start(snapshot: Snapshot, access: Access) -> Server {
    start_behind(snapshot, Door { access, ..Door::default() }).await
}

pub(crate) async fn start_behind(snapshot: Snapshot, door: Door) -> Server {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let port = listener.local_addr().expect("bound").port();
    let (snapshots, receiver) = watch::channel(Arc::new(snapshot));
    let (sender, requests) = mpsc::channel(REQUESTS_MAX);
    let nudge = Arc::<Notify>::default();
    let (peers, members) = reception(peers::HEARD_MAX, HANG);
    let door = watch::Sender::new(Arc::new(door));
    let waiting = view::Waiting::default();
    let state = ApiState {
        peers,
        snapshots: receiver,
        requests: sender,
        now: || PUBLISHED,
        nudge: Arc::clone(&nudge),
        door: door.subscribe(),
        waiting: waiting.clone(),
    };
    tokio::spawn(serve(listener, state, std::future::pending()));
    Server { port, snapshots, requests, nudge, door, waiting, members }
}

/// Status, head and body of one exchange.
pub(crate) async fn send(
    port: u16,
    method: &str,
    path: &str,
    head: &str,
    body: &str,
) -> (u16, String, String) {
    let length = body.len();
    let text = format!(
        "{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\
         Content-Length: {length}\r\n{head}\r\n{body}"
    );
    exchange(port, &text).await
}

/// The same for a request as it is sent.
async fn exchange(port: u16, text: &str) -> (u16, String, String) {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await.expect("the server listens");
    stream.write_all(text.as_bytes()).await.expect("the server reads");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.expect("the server answers");
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
    let status = head.split(' ').nth(1).expect("a status").parse().expect("a number");
    (status, head.to_owned(), body.to_owned())
}

#[tokio::test]
async fn paths_and_methods() {
    let mut snapshot = samples::leader();
    let mut view = samples::view();
    samples::put(&mut view, "history", r#"[[1,67416152,"x","t","node-0"]]"#);
    snapshot.view = Some(Arc::new(view));
    let server = start(snapshot, Access::default()).await;
    let cases = [
        ("GET", "/", 200),
        ("GET", "/primary", 200),
        ("HEAD", "/primary", 200),
        ("OPTIONS", "/primary", 200),
        ("GET", "/replica?lag=1MB", 503),
        ("GET", "/leader?tag_x=%20", 200),
        ("GET", "/read-only?tag_custom=x", 200),
        ("GET", "/read-only?tag_custom=y", 503),
        ("GET", "/read-only?tag_clonefrom=true", 200),
        ("GET", "/liveness", 200),
        ("GET", "/readiness", 200),
        ("GET", "/patroni", 200),
        ("GET", "/patroni/x", 200),
        ("GET", "/cluster", 200),
        ("GET", "/config", 200),
        ("GET", "/history", 200),
        ("GET", "/failsafe", 502),
        ("POST", "/failsafe", 502),
        ("GET", "/metrics", 200),
        ("GET", "/nonsense", 503),
        ("GET", "/switchover", 503),
        ("POST", "/nonsense", 501),
        ("DELETE", "/failover", 501),
        ("DELETE", "/switchover", 404),
        ("POST", "/switchover", 400),
        ("PUT", "/config", 400),
        ("PUT", "/reload", 501),
        ("POST", "/sigterm", 202),
        ("POST", "/mpp", 400),
        ("POST", "/citus", 400),
    ];
    for (method, path, status) in cases {
        let (got, _, _) = send(server.port, method, path, "", "").await;
        assert_eq!(got, status, "{method} {path}");
    }
    let (_, _, history) = send(server.port, "GET", "/history", "", "").await;
    assert_eq!(history, r#"[[1, 67416152, "x", "t", "node-0"]]"#);
    let (_, head, status) = send(server.port, "GET", "/nonsense", "", "").await;
    assert!(head.contains("application/json"), "{head}");
    let status: Value = serde_json::from_str(&status).expect("JSON");
    assert_eq!(status["role"], "primary");
    let (_, _, page) = send(server.port, "POST", "/nonsense", "", "").await;
    assert!(page.contains("Unsupported method ('POST')"), "{page}");
    let (_, _, body) = send(server.port, "HEAD", "/primary", "", "").await;
    assert_eq!(body, "");
}

#[tokio::test]
async fn bodies_are_bounded_objects() {
    let server = start(samples::leader(), Access::default()).await;
    let large = format!(r#"{{"x":"{}"}}"#, "y".repeat(1 << 20));
    for body in ["", "{", "[]", "{}", "7", &large] {
        let (status, _, _) = send(server.port, "PATCH", "/config", "", body).await;
        assert_eq!(status, 400, "{:.20}", body);
    }
}

#[tokio::test]
async fn a_body_that_is_needed_says_its_length() {
    let server = start(samples::leader(), Access::default()).await;
    for (method, path, status) in [
        ("PATCH", "/config", 411),
        ("PUT", "/config", 411),
        ("POST", "/switchover", 411),
        ("POST", "/failover", 411),
        ("POST", "/failsafe", 502),
        ("POST", "/mpp", 411),
        ("DELETE", "/switchover", 404),
        ("POST", "/sigterm", 202),
    ] {
        let head = format!("{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n");
        let (got, _, _) = exchange(server.port, &format!("{head}\r\n")).await;
        assert_eq!(got, status, "{method} {path}");
    }
    let chunked = "POST /mpp HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\
                   Transfer-Encoding: chunked\r\n\r\n7\r\n{\"a\":1}\r\n0\r\n\r\n";
    let (status, _, body) = exchange(server.port, chunked).await;
    assert_eq!((status, body.as_str()), (200, "OK"));
}

#[tokio::test]
async fn unsafe_endpoints_need_the_password() {
    let credentials = Credentials { username: "ab".into(), password: "cd".into() };
    let access = Access { authentication: Some(credentials), ..Access::default() };
    let server = start(samples::leader(), access).await;
    let (status, head, body) = send(server.port, "POST", "/switchover", "", "{}").await;
    assert_eq!((status, body.as_str()), (401, "no auth header received"));
    assert!(head.to_lowercase().contains("www-authenticate: basic realm=\"patroni\""), "{head}");
    let wrong = "Authorization: Basic eHk6eHk=\r\n";
    let (status, _, body) = send(server.port, "POST", "/switchover", wrong, "{}").await;
    assert_eq!((status, body.as_str()), (401, "not authenticated"));
    let right = "Authorization: Basic YWI6Y2Q=\r\n";
    let (status, _, _) = send(server.port, "POST", "/switchover", right, "{}").await;
    assert_eq!(status, 400);
    let (status, _, _) = send(server.port, "GET", "/primary", "", "").await;
    assert_eq!(status, 200, "safe endpoints are open");

    let access = Access { refuse_without_authentication: true, ..Access::default() };
    let server = start(samples::leader(), access).await;
    let (status, _, _) = send(server.port, "PATCH", "/config", "", "{}").await;
    assert_eq!(status, 403);
}

#[tokio::test]
async fn who_is_not_on_the_list_changes_nothing() {
    let credentials = Credentials { username: "ab".into(), password: "cd".into() };
    let access = Access { authentication: Some(credentials), ..Access::default() };
    let network = |text: &str| config::Allowed::Network(config::Network::parse(text).expect(text));
    let door = |allowed: &[config::Allowed], members| Door {
        allowlist: Allowlist::new(allowed, members),
        access: access.clone(),
        ..Door::default()
    };
    let server = start_behind(samples::leader(), door(&[network("192.0.2.0/24")], true)).await;
    let denied = (403, "Access is denied".to_owned());
    for (method, path) in [("POST", "/switchover"), ("PATCH", "/config"), ("POST", "/failsafe")] {
        let (status, _, body) = send(server.port, method, path, "", "{}").await;
        assert_eq!((status, body), denied, "{method} {path}");
    }
    let (status, _, _) = send(server.port, "GET", "/primary", "", "").await;
    assert_eq!(status, 200, "safe endpoints are open");
    // The password is asked for after the address.
    for (allowed, members, path, expected) in [
        (&[network("127.0.0.0/8")][..], false, "/switchover", 401),
        (&[], true, "/switchover", 403),
        (&[], true, "/failsafe", 401),
    ] {
        server.door.send_replace(Arc::new(door(allowed, members)));
        let (status, _, _) = send(server.port, "POST", path, "", "{}").await;
        assert_eq!(status, expected, "{path}");
    }
}

#[tokio::test]
async fn answers_carry_the_configured_headers() {
    let extras = config::RestapiExtras {
        headers: vec![("X-Frame-Options".to_owned(), "DENY".to_owned())],
        server_tokens: config::ServerTokens::Minimal,
        ..config::RestapiExtras::default()
    };
    let door = Door { headers: headers(&extras), ..Door::default() };
    let server = start_behind(samples::leader(), door).await;
    for (method, path) in [("GET", "/primary"), ("GET", "/metrics"), ("POST", "/nonsense")] {
        let (_, head, _) = send(server.port, method, path, "", "").await;
        let head = head.to_lowercase();
        assert!(head.contains("\r\nserver: patroni/4.1.4\r\n"), "{path}: {head}");
        assert!(head.contains("\r\nx-frame-options: deny\r\n"), "{path}: {head}");
    }
}

#[tokio::test]
async fn the_interface_moves_when_the_door_does() {
    let place = |host: &str, port| {
        let listen = config::HostPort { host: host.to_owned(), port };
        Some(Place { listen, backlog: None })
    };
    let door = |at| Arc::new(Door { at, ..Door::default() });
    let server = start(samples::leader(), Access::default()).await;
    let answers = async |host: &str, port| {
        let ask = client::request("GET", host, port, "/patroni", None, None, HANG);
        ask.await.is_ok_and(|(status, _)| status == 200)
    };
    let comes = async |host: &'static str, port| {
        let asking = async {
            while !answers(host, port).await {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(HANG, asking).await.expect("it listens there");
    };
    let second = lab::ports::reserve().expect("a free port");
    server.door.send_replace(door(place("127.0.0.1", second)));
    comes("127.0.0.1", second).await;
    assert!(!answers("127.0.0.1", server.port).await, "it has left the old place");
    // Every address of a port has the one that is open in it.
    server.door.send_replace(door(place("*", second)));
    comes("127.0.0.2", second).await;
    // It stays where it is as long as it cannot go elsewhere.
    let taken = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let port = taken.local_addr().expect("bound").port();
    server.door.send_replace(door(place("127.0.0.1", port)));
    comes("127.0.0.2", second).await;
}

#[tokio::test]
async fn a_switchover_waits_for_the_new_leader() {
    let mut server = start(samples::leader(), Access::default()).await;
    let port = server.port;
    let body = r#"{"leader":"node-0","candidate":"node-1"}"#;
    let client = tokio::spawn(async move { send(port, "POST", "/switchover", "", body).await });
    let request = server.requests.recv().await.expect("the request arrives");
    let expected = ValidatedSwitchover::Switchover {
        leader: "node-0".into(),
        candidate: Some("node-1".into()),
        scheduled_at: None,
    };
    assert_eq!(request.command, Command::Switchover(expected));
    let reply = ApiReply { status: 200, text: String::new(), written: Some(Revision(101)) };
    request.reply.send(reply).expect("the handler waits");
    let publish = |revision: i64, keys: &[(&str, &str)]| {
        let mut view = samples::view();
        for (key, value) in keys {
            samples::put(&mut view, key, value);
        }
        view.revision = Revision(revision);
        let snapshot = Snapshot { view: Some(Arc::new(view)), ..samples::leader() };
        server.snapshots.send_replace(Arc::new(snapshot));
    };
    publish(100, &[]);
    tokio::task::yield_now().await;
    publish(101, &[("failover", r#"{"leader":"node-0","member":"node-1"}"#)]);
    tokio::task::yield_now().await;
    publish(105, &[("leader", "node-1"), ("failover", "{}")]);
    let (status, _, text) = client.await.expect("no panic");
    assert_eq!((status, text.as_str()), (200, "Successfully switched over to \"node-1\""));
}

#[tokio::test]
async fn the_agent_may_refuse() {
    let mut server = start(samples::leader(), Access::default()).await;
    let port = server.port;
    let body = r#"{"pause":true}"#;
    let client = tokio::spawn(async move { send(port, "PATCH", "/config", "", body).await });
    let request = server.requests.recv().await.expect("the request arrives");
    assert_eq!(request.command, Command::PatchConfig(json!({"pause": true})));
    let reply = ApiReply { status: 409, text: "conflict".into(), written: None };
    request.reply.send(reply).expect("the handler waits");
    let (status, _, text) = client.await.expect("no panic");
    assert_eq!((status, text.as_str()), (409, "conflict"));
    drop(server.requests);
    let (status, _, text) = send(port, "PATCH", "/config", "", body).await;
    assert_eq!((status, text.as_str()), (503, "the agent is shutting down"));
}

#[tokio::test]
async fn the_agent_is_asked_for_what_was_asked() {
    let mut server = start(samples::leader(), Access::default()).await;
    let port = server.port;
    for (method, path, body, command) in [
        ("POST", "/reload", "", Command::Reload),
        (
            "POST",
            "/reinitialize",
            r#"{"from_leader": "on"}"#,
            Command::Reinitialize { force: false, from_leader: true },
        ),
        ("POST", "/reinitialize", "", Command::Reinitialize { force: false, from_leader: false }),
        ("PUT", "/config", r#"{"ttl":20}"#, Command::ReplaceConfig(json!({"ttl": 20}))),
    ] {
        let client = tokio::spawn(async move { send(port, method, path, "", body).await });
        let request = server.requests.recv().await.expect("the request arrives");
        assert_eq!(request.command, command);
        let reply = ApiReply { status: 202, text: "said".into(), written: None };
        request.reply.send(reply).expect("the handler waits");
        let (status, _, text) = client.await.expect("no panic");
        assert_eq!((status, text.as_str()), (202, "said"));
    }
}

#[tokio::test]
async fn our_client_speaks_to_our_server() {
    let credentials = Credentials { username: "ab".into(), password: "cd".into() };
    let access = Access { authentication: Some(credentials), ..Access::default() };
    let server = start(samples::leader(), access).await;
    let limit = Duration::from_secs(5);
    let send = |method: &'static str, path: &'static str, body: Option<Vec<u8>>, auth| async move {
        client::request(method, "127.0.0.1", server.port, path, body, auth, limit).await
    };
    let (status, body) = send("GET", "/patroni", None, None).await.expect("an answer");
    let body: Value = serde_json::from_slice(&body).expect("JSON");
    assert_eq!((status, &body["xlog"]["location"]), (200, &json!(67_416_152)));
    let right = Some(("ab", "cd"));
    let (status, _) = send("PATCH", "/config", Some(b"{}".to_vec()), right).await.expect("answer");
    assert_eq!(status, 400);
    let wrong = Some(("ab", "c"));
    let (status, _) = send("PATCH", "/config", Some(b"{}".to_vec()), wrong).await.expect("answer");
    assert_eq!(status, 401);
    let bad = send("GET", "no path", None, None).await.expect_err("invalid");
    assert!(matches!(bad, client::ClientError::Request { .. }), "{bad}");
}

#[tokio::test]
async fn our_client_does_not_wait_for_ever() {
    let port = lab::ports::reserve().expect("a free port");
    let listener = TcpListener::bind(("127.0.0.1", port)).await.expect("our own");
    let limit = Duration::from_millis(50);
    let error = client::request("GET", "127.0.0.1", port, "/", None, None, limit).await;
    assert!(matches!(error, Err(client::ClientError::Limit { .. })), "{error:?}");
    drop(listener);
    let error = client::request("GET", "127.0.0.1", port, "/", None, None, limit).await;
    assert!(matches!(error, Err(client::ClientError::Connect { .. })), "{error:?}");
}

#[tokio::test]
async fn a_leader_that_hands_over_is_answered_as_soon_as_the_log_is_here() {
    let mut behind = samples::replica("node-2");
    set_received(&mut behind, Lsn(100));
    let mut there = behind.clone();
    set_received(&mut there, Lsn(200));
    let server = start(behind, Access::default()).await;
    let asked = tokio::spawn(send(server.port, "GET", "/received?lsn=150", "", ""));
    // It lets the agent look, which sees that more has come.
    server.nudge.notified().await;
    server.snapshots.send_replace(Arc::new(there));
    let (status, _, body) = asked.await.expect("it ends");
    assert_eq!((status, body.as_str()), (200, r#"{"received": 200}"#));
    let (_, _, body) = send(server.port, "GET", "/received?lsn=300", "", "").await;
    assert_eq!(body, r#"{"received": 200}"#, "not held back for ever");
    let (status, _, _) = send(server.port, "GET", "/received", "", "").await;
    assert_eq!(status, 400);
}

fn set_received(snapshot: &mut Snapshot, lsn: Lsn) {
    if let Some(local) = &mut snapshot.local
        && let types::Process::Running(running) = &mut local.process
        && let types::Role::Standby(standby) = &mut running.role
    {
        standby.received = lsn;
        standby.replayed = Lsn(0);
    }
}

#[tokio::test]
async fn a_promise_is_answered_only_by_the_agent() {
    let mut snapshot = samples::replica("node-1");
    let mut view = samples::view();
    samples::put(&mut view, "failsafe", r#"{"node-0":"http://h:1/patroni"}"#);
    samples::put(&mut view, "config", r#"{"failsafe_mode":true}"#);
    snapshot.view = Some(Arc::new(view));
    let mut server = start(snapshot, Access::default()).await;
    for body in ["", "{}", "[]", "x"] {
        let (status, _, _) = send(server.port, "POST", "/failsafe", "", body).await;
        assert_eq!(status, 400, "{body}");
    }
    let (status, _, map) = send(server.port, "GET", "/failsafe", "", "").await;
    assert_eq!((status, map.as_str()), (200, r#"{"node-0": "http://h:1/patroni"}"#));

    let port = server.port;
    for (status, text) in [(200, "Accepted"), (500, "Running as a leader")] {
        let body = r#"{"name":"node-0","conn_url":"x","api_url":"y","slots":{},"pgherd_term":7}"#;
        let asking = tokio::spawn(send(port, "POST", "/failsafe", "", body));
        let request = server.requests.recv().await.expect("a request");
        let Command::Failsafe(post) = &request.command else { panic!("{request:?}") };
        assert_eq!((post.leader.as_str(), post.term), ("node-0", Some(types::Term(7))));
        let reply = ApiReply { status, text: text.to_owned(), written: None };
        request.reply.send(reply).expect("somebody waits");
        let (got, head, answer) = asking.await.expect("an answer");
        assert_eq!((got, answer.as_str()), (status, text));
        assert_eq!(head.contains("lsn: 67416152"), status == 200, "{head}");
    }
}
