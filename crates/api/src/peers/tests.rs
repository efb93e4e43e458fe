//! Connections over real sockets, and what strangers and bad networks do to them.

use std::sync::Arc;
use std::time::Duration;

use hmac::KeyInit;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use types::{Millis, RestAddress, Term};

use super::accept::{Ended, Visitor, listen};
use super::frame::{Opener, Sealer};
use super::proof::HmacSha256;
use super::*;
use crate::samples::{self, PUBLISHED};
use crate::server_tests::{self, HANG, Members, Server};
use crate::{Access, RestClient};

fn key(text: &str) -> PeerKey {
    PeerKey::from_secret(text.as_bytes())
}

fn parties(from: &str, to: &str) -> Parties {
    Parties { scope: "demo".to_owned(), from: from.into(), to: to.into() }
}

fn beat(seq: u64, term: u64) -> Frame {
    Frame::Beat { seq, said: Heartbeat { term: Term(term), suspects: None } }
}

/// `node-0` with its key.
async fn serve() -> Server {
    let server = server_tests::start(samples::leader(), Access::default()).await;
    server.members.key.send_replace(Some(key("ours")));
    server.members.board.keep(&["node-1".into(), "node-2".into()].into());
    server
}

async fn dialled(port: u16, from: &str) -> Result<Dialled, DialError> {
    dial(
        &RestClient::default(),
        &RestAddress::plain("127.0.0.1", port),
        &parties(from, "node-0"),
        &key("ours"),
        HANG,
    )
    .await
}

/// Sends one beat and waits for its echo.
async fn exchange(link: &mut Dialled, seq: u64, term: u64) {
    link.sending.send(&beat(seq, term)).await.expect("it is open");
    let echo = timeout(HANG, link.receiving.next()).await.expect("no hang").expect("an echo");
    assert_eq!(echo, Frame::Echo { seq });
}

#[tokio::test]
async fn the_kernel_takes_the_options_for_heartbeats() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("it is bound");
    let stream = TcpStream::connect(address).await.expect("it listens");
    hasten(&stream);
    assert!(stream.nodelay().expect("TCP"));
    assert_eq!(sockopt::tcp_user_timeout(&stream).expect("Linux"), USER_TIMEOUT_MS);
    assert!(sockopt::tcp_thin_linear_timeouts(&stream).expect("Linux"));
}

#[tokio::test]
async fn a_member_is_heard_and_echoed() {
    let mut server = serve().await;
    let mut link = dialled(server.port, "node-1").await.expect("the same key");
    for seq in 1..=3 {
        exchange(&mut link, seq, 40 + seq).await;
        let heard = server.members.heard.recv().await.expect("it was passed on");
        let said = Heartbeat { term: Term(40 + seq), suspects: None };
        assert_eq!(heard, Heard { from: "node-1".into(), said, at: PUBLISHED });
    }
    let report = server.members.board.report();
    assert_eq!(report.peers[&"node-1".into()].heard, Some(PUBLISHED));
    assert_eq!((report.refused, report.dropped), (0, 0));
}

#[tokio::test]
async fn who_has_another_key_name_or_cluster_is_refused_and_counted() {
    let server = serve().await;
    let other_cluster = Parties { scope: "other".to_owned(), ..parties("node-1", "node-0") };
    let attempts = [
        (key("theirs"), parties("node-1", "node-0")),
        (key("ours"), parties("node-1", "node-2")),
        (key("ours"), other_cluster),
    ];
    for (key, parties) in &attempts {
        let refused = dial(
            &RestClient::default(),
            &RestAddress::plain("127.0.0.1", server.port),
            parties,
            key,
            HANG,
        )
        .await
        .err();
        assert!(matches!(refused, Some(DialError::Refused { status: 503 })), "{refused:?}");
    }
    server.members.key.send_replace(None);
    assert!(dialled(server.port, "node-1").await.is_err(), "nobody is known without a key");
    assert_eq!(server.members.board.report().refused, 4);
}

/// Reads up to the end of an HTTP head, or of the stream.
async fn read_head(stream: &mut TcpStream) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read_u8().await {
            Ok(byte) => head.push(byte),
            Err(_) => break,
        }
    }
    String::from_utf8(head).expect("it is text")
}

/// Head and body without what changes from one moment to the next.
async fn answer(port: u16, method: &str, path: &str, head: &str) -> (Vec<String>, Value) {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await.expect("it listens");
    let request = format!("{method} {path} HTTP/1.1\r\nHost: x\r\n{head}\r\n");
    stream.write_all(request.as_bytes()).await.expect("it reads");
    let head = timeout(HANG, read_head(&mut stream)).await.expect("it answers");
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
    let length = length.filter(|_| method == "GET").map_or(0, |l| l.parse().expect("a number"));
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await.expect("it is all there");
    let mut body: Value = serde_json::from_slice(&body).unwrap_or_default();
    if let Some(body) = body.as_object_mut() {
        body.remove("dcs_last_seen").expect("the wall clock is shown");
    }
    let lines = head.lines().filter(|line| !line.starts_with("date:"));
    (lines.map(str::to_owned).collect(), body)
}

#[tokio::test]
async fn a_stranger_is_answered_as_on_an_unknown_path() {
    let server = serve().await;
    let zeros = "0".repeat(64);
    let good = "Upgrade: pgherd-peers/1\r\npgherd-scope: demo\r\npgherd-from: node-1\r\n";
    let heads = [
        String::new(),
        "Upgrade: websocket\r\n".to_owned(),
        good.to_owned(),
        format!("{good}pgherd-nonce: x\r\npgherd-proof: {zeros}\r\n"),
        format!("{good}pgherd-nonce: {zeros}\r\npgherd-proof: {zeros}\r\n"),
        format!("{good}pgherd-nonce: {zeros}\r\npgherd-proof: \r\n"),
    ];
    for head in &heads {
        let head = format!("Connection: upgrade\r\n{head}");
        for method in ["GET", "HEAD", "OPTIONS", "POST"] {
            let unknown = answer(server.port, method, "/nonsense", &head).await;
            let peers = answer(server.port, method, "/peers", &head).await;
            assert_eq!(peers, unknown, "{method} {head}");
            assert_eq!(peers.1.is_object(), method == "GET", "there is something to compare");
        }
    }
    assert_eq!(server.members.board.report().refused, heads.len() as u64);
}

/// Forwards one connection to `port` and returns what its client said, once that has closed it.
async fn recorder(port: u16) -> (u16, JoinHandle<Vec<u8>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let at = listener.local_addr().expect("it is bound").port();
    let recording = tokio::spawn(async move {
        let (client, _) = listener.accept().await.expect("it is dialled");
        let server = TcpStream::connect(("127.0.0.1", port)).await.expect("it listens");
        let (mut from_client, mut to_client) = client.into_split();
        let (mut from_server, mut to_server) = server.into_split();
        tokio::spawn(async move { tokio::io::copy(&mut from_server, &mut to_client).await });
        let mut said = Vec::new();
        while let Ok(byte) = from_client.read_u8().await {
            said.push(byte);
            to_server.write_u8(byte).await.expect("it listens");
        }
        said
    });
    (at, recording)
}

#[tokio::test]
async fn a_replayed_request_gets_nothing_said_and_displaces_nobody() {
    let mut server = serve().await;
    let (port, recording) = recorder(server.port).await;
    let mut recorded = dialled(port, "node-1").await.expect("the same key");
    exchange(&mut recorded, 1, 7).await;
    drop(recorded);
    let recording = recording.await.expect("it ends");
    let mut link = dialled(server.port, "node-1").await.expect("the same key");
    exchange(&mut link, 1, 8).await;

    let mut replay = TcpStream::connect(("127.0.0.1", server.port)).await.expect("it listens");
    replay.write_all(&recording).await.expect("it listens");
    let mut answer = Vec::new();
    timeout(HANG, replay.read_to_end(&mut answer)).await.expect("it is closed").ok();
    let answer = String::from_utf8_lossy(&answer);
    assert!(answer.starts_with("HTTP/1.1 101 "), "the request itself was genuine: {answer}");

    exchange(&mut link, 2, 9).await;
    for term in [7, 8, 9] {
        assert_eq!(server.members.heard.recv().await.expect("heard").said.term, Term(term));
    }
    assert!(server.members.heard.try_recv().is_err(), "the replayed beat was not heard");
    assert_eq!(server.members.board.report().refused, 1);
}

#[tokio::test]
async fn an_older_connection_of_the_same_member_is_not_news() {
    let mut server = serve().await;
    let mut older = dialled(server.port, "node-1").await.expect("the same key");
    let mut other = dialled(server.port, "node-2").await.expect("the same key");
    let mut newer = dialled(server.port, "node-1").await.expect("the same key");
    exchange(&mut older, 1, 1).await;
    exchange(&mut newer, 1, 2).await;
    exchange(&mut other, 1, 3).await;
    older.sending.send(&beat(2, 4)).await.expect("it is open");
    let ended = timeout(HANG, older.receiving.next()).await.expect("no hang");
    assert!(ended.is_err(), "{ended:?}");
    exchange(&mut newer, 2, 5).await;
    for term in [1, 2, 3, 5] {
        assert_eq!(server.members.heard.recv().await.expect("heard").said.term, Term(term));
    }
}

#[tokio::test]
async fn another_key_ends_the_connections() {
    let server = serve().await;
    let mut link = dialled(server.port, "node-1").await.expect("the same key");
    exchange(&mut link, 1, 1).await;
    server.members.key.send_replace(Some(key("new")));
    let ended = timeout(HANG, link.receiving.next()).await.expect("no hang");
    assert!(ended.is_err(), "{ended:?}");
}

#[tokio::test]
async fn a_dialer_is_not_kept_waiting_and_believes_no_impostor() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let port = listener.local_addr().expect("it is bound").port();
    let parties = parties("node-1", "node-0");
    let limit = Duration::from_millis(50);
    let mute = dial(
        &RestClient::default(),
        &RestAddress::plain("127.0.0.1", port),
        &parties,
        &key("ours"),
        limit,
    )
    .await
    .err();
    assert!(matches!(mute, Some(DialError::Limit { .. })), "{mute:?}");

    let zeros = "0".repeat(64);
    let answer = format!(
        "HTTP/1.1 101 x\r\nConnection: upgrade\r\nUpgrade: {PROTOCOL}\r\n\
         pgherd-nonce: {zeros}\r\npgherd-proof: {zeros}\r\n\r\n"
    );
    tokio::spawn(async move {
        // The mute attempt is still the first one in the queue; nobody is there any more.
        loop {
            let (mut stream, _) = listener.accept().await.expect("somebody dials");
            read_head(&mut stream).await;
            stream.write_all(answer.as_bytes()).await.ok();
        }
    });
    let impostor = dial(
        &RestClient::default(),
        &RestAddress::plain("127.0.0.1", port),
        &parties,
        &key("ours"),
        HANG,
    )
    .await
    .err();
    assert!(matches!(impostor, Some(DialError::Unproven)), "{impostor:?}");
}

/// An accepted connection on a pipe, and its dialer's end.
struct Pipe {
    dialer: DuplexStream,
    sealer: Sealer,
    listening: JoinHandle<Ended>,
    members: Members,
}

fn pipe(queue: usize, first: Duration) -> Pipe {
    let (reception, members) = server_tests::reception(queue, first);
    let hmac = || HmacSha256::new_from_slice(b"frames").expect("any length");
    let (dialer, accepted) = duplex(1 << 16);
    let link = Link::new(accepted, Vec::new(), Sealer::new(hmac()), Opener::new(hmac()));
    let visitor: Visitor = reception.visitor("node-1");
    let listening = tokio::spawn(async move {
        let reception = Arc::clone(&reception);
        listen(&reception, link, visitor, || Millis(1)).await
    });
    Pipe { dialer, sealer: Sealer::new(hmac()), listening, members }
}

impl Pipe {
    async fn ended(self) -> (Ended, Members) {
        let ended = timeout(HANG, self.listening).await.expect("no hang").expect("no panic");
        (ended, self.members)
    }
}

#[tokio::test]
async fn who_says_nothing_after_the_answer_is_left_and_counted() {
    let pipe = pipe(1, Duration::from_millis(20));
    let (ended, members) = pipe.ended().await;
    assert!(matches!(ended, Ended::Silent { .. }), "{ended}");
    assert_eq!(members.board.report().refused, 1);
}

#[tokio::test]
async fn bytes_that_are_no_frame_end_the_connection() {
    let tampered = |mut bytes: Vec<u8>| {
        bytes[10] ^= 1;
        bytes
    };
    let twice = |bytes: Vec<u8>| [bytes.clone(), bytes].concat();
    let oversized = |_: Vec<u8>| vec![0xff; 2];
    type Spoil = fn(Vec<u8>) -> Vec<u8>;
    let cases: [(&str, Spoil, usize); 3] =
        [("tampered", tampered, 0), ("replayed", twice, 1), ("oversized", oversized, 0)];
    for (what, spoil, heard) in cases {
        let mut pipe = pipe(8, HANG);
        let bytes = spoil(pipe.sealer.seal(&beat(1, 1)).expect("short"));
        pipe.dialer.write_all(&bytes).await.expect("it is open");
        let (ended, members) = pipe.ended().await;
        assert!(matches!(ended, Ended::Link(LinkError::Frame(_))), "{what}: {ended}");
        assert_eq!((members.heard.len(), members.board.report().refused), (heard, 1), "{what}");
    }
}

#[tokio::test]
async fn beats_that_nobody_takes_are_dropped_and_still_echoed() {
    let mut pipe = pipe(1, HANG);
    let hmac = HmacSha256::new_from_slice(b"frames").expect("any length");
    let (mut opener, mut buffer) = (Opener::new(hmac), Vec::new());
    for seq in 1..=3 {
        let bytes = pipe.sealer.seal(&beat(seq, seq)).expect("short");
        pipe.dialer.write_all(&bytes).await.expect("it is open");
        let echo = loop {
            if let Some(frame) = opener.open(&mut buffer).expect("genuine") {
                break frame;
            }
            let read = timeout(HANG, pipe.dialer.read_buf(&mut buffer)).await.expect("no hang");
            assert_ne!(read.expect("it is open"), 0);
        };
        assert_eq!(echo, Frame::Echo { seq });
    }
    assert_eq!(pipe.members.heard.len(), 1);
    assert_eq!(pipe.members.board.report().dropped, 2);
}
