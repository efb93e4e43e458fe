//! Members on loopback, each with a runtime of its own, so that one can be ended as a whole.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use api::peers::Report;
use api::{ApiState, Snapshot};
use lab::relay::{Direction, Relay};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, oneshot};
use tokio::time::timeout;
use types::{KeyValue, Revision, Term};

use super::*;
use crate::clock;

/// Only a test that hangs waits so long.
const HANG: Duration = Duration::from_secs(60);
/// So seldom that no beat in a test is due by it.
const NEVER: Millis = Millis::from_secs(100_000);
const OFTEN: Millis = Millis(50);

/// A view of these members, by port.
fn view(members: &[(&str, u16)]) -> ViewState {
    let key = |key: String, value: String| KeyValue {
        key,
        value: value.into_bytes(),
        create_revision: Revision(1),
        mod_revision: Revision(1),
        lease: 1,
    };
    let mut keys = vec![key("initialize".to_owned(), "7711489607175335743".to_owned())];
    keys.extend(members.iter().map(|(name, port)| {
        let value = format!(r#"{{"api_url":"http://127.0.0.1:{port}/patroni","pgherd":"1"}}"#);
        key(format!("members/{name}"), value)
    }));
    let view = Arc::new(ClusterView::from_keys(Revision(1), &keys));
    ViewState { view: Some(view), fresh: true, error: None }
}

/// A running member; it ends, with all its connections, when dropped.
struct Member {
    port: u16,
    views: watch::Sender<ViewState>,
    heartbeats: Heartbeats,
    heard: mpsc::Receiver<Heard>,
    reports: Arc<dyn Fn() -> Report + Send + Sync>,
    stop: Arc<Notify>,
    thread: Option<JoinHandle<()>>,
}

impl Member {
    async fn start(name: &'static str, port: u16, interval: Millis) -> Member {
        let (views, viewed) = watch::channel(ViewState::default());
        let (started, parts) = oneshot::channel();
        let stop = Arc::<Notify>::default();
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.expect("a runtime").block_on(async {
                let secret = PeerSecret::Password(config::Secret::new("pass"));
                let name = MemberName::from(name);
                let scope = "demo".to_owned();
                let rest = watch::channel(RestClient::default()).1;
                let (name_of, views) = (name.clone(), viewed);
                let of = Ingredients { scope, name: name_of, secret, interval, views, rest };
                let (heartbeats, reception, heard) = start(of);
                let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await;
                let listener = listener.expect("a free port");
                let port = listener.local_addr().expect("it is bound").port();
                let peers = Arc::new(reception);
                let board = Arc::clone(&peers);
                let reports = Arc::new(move || board.report());
                let state = state(name, peers);
                tokio::spawn(api::serve(listener, state, std::future::pending()));
                started.send((port, heartbeats, heard, reports)).ok().expect("the test waits");
                stopped.notified().await;
            });
        });
        let (port, heartbeats, heard, reports) = parts.await.expect("it starts");
        Member { port, views, heartbeats, heard, reports, stop, thread: Some(thread) }
    }

    fn say(&self, term: u64) {
        self.heartbeats.say(Heartbeat { term: Term(term), suspects: None });
    }

    fn sees(&self, members: &[(&str, u16)]) {
        self.views.send_replace(view(members));
    }

    /// Waits until a beat says this.
    async fn hears(&mut self, from: &str, term: u64) {
        let hearing = async {
            loop {
                let heard = self.heard.recv().await.expect("it runs");
                assert_eq!(heard.from, MemberName::from(from));
                if heard.said.term == Term(term) {
                    return;
                }
            }
        };
        timeout(HANG, hearing).await.expect("it is heard");
    }

    /// Waits until the metrics say this.
    async fn reports(&self, wanted: impl Fn(&Report) -> bool) {
        let waiting = async {
            while !wanted(&(self.reports)()) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(HANG, waiting).await.expect("the metrics say so");
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        self.stop.notify_one();
        if let Some(thread) = self.thread.take() {
            thread.join().expect("it did not panic");
        }
    }
}

fn state(name: MemberName, peers: Arc<Reception>) -> ApiState {
    let snapshot = Arc::new(Snapshot::new("demo", name, clock::now()));
    ApiState {
        snapshots: watch::channel(snapshot).1,
        requests: mpsc::channel(1).0,
        now: clock::now,
        nudge: Arc::default(),
        door: watch::channel(Arc::default()).1,
        peers,
        waiting: api::view::Waiting::default(),
    }
}

#[tokio::test]
async fn members_hear_each_other_over_cuts_and_restarts() {
    let mut a = Member::start("a", 0, OFTEN).await;
    let mut b = Member::start("b", 0, OFTEN).await;
    let relay = Relay::start(0, (Ipv4Addr::LOCALHOST, b.port).into()).await.expect("a free port");
    let both = [("a", a.port), ("b", relay.port)];
    a.sees(&both);
    b.sees(&both);
    a.say(1);
    b.say(1);
    b.hears("a", 1).await;
    a.hears("b", 1).await;

    // Nothing that is said during the cut gets through on a connection of before.
    relay.cut(Direction::Both);
    a.say(2);
    let name = MemberName::from("b");
    a.reports(|report| !report.peers[&name].connected && report.peers[&name].missed > 0).await;
    relay.heal();
    b.hears("a", 2).await;
    a.reports(|report| report.peers[&name].connected).await;

    let port = b.port;
    drop(b);
    a.say(3);
    let mut b = Member::start("b", port, OFTEN).await;
    b.sees(&both);
    b.hears("a", 3).await;
    b.say(2);
    a.hears("b", 2).await;
    let b = &(a.reports)().peers[&name];
    assert!(b.heard.is_some() && b.round_trip.is_some() && b.smoothed.is_some(), "{b:?}");
}

#[tokio::test]
async fn news_is_said_at_once_and_an_interval_is_kept() {
    let a = Member::start("a", 0, NEVER).await;
    let mut b = Member::start("b", 0, NEVER).await;
    let both = [("a", a.port), ("b", b.port)];
    a.say(1);
    a.sees(&both);
    b.sees(&[]);
    b.hears("a", 1).await;
    for term in 2..=5 {
        a.say(term);
        b.hears("a", term).await;
    }
    // Each news was sent once, unless a connection was slow and given up.
    a.say(5);
    let sent = |report: &Report| {
        let peer = &report.peers[&MemberName::from("b")];
        peer.sent - peer.missed
    };
    assert!(sent(&(a.reports)()) <= 5);
    a.heartbeats.set_interval(OFTEN);
    a.say(6);
    a.reports(|report| sent(report) > 20).await;
}

#[tokio::test]
async fn who_leaves_is_not_dialled_any_more_and_who_moves_is_found() {
    let a = Member::start("a", 0, OFTEN).await;
    let mut b = Member::start("b", 0, OFTEN).await;
    b.sees(&[]);
    let (at, open) = counting_relay(b.port).await;
    a.say(1);
    a.sees(&[("b", at)]);
    b.hears("a", 1).await;
    a.sees(&[]);
    a.reports(|report| report.peers.is_empty()).await;
    let mut closing = open.clone();
    let closed = closing.wait_for(|open| open.now == 0);
    let dialled = timeout(HANG, closed).await.expect("it is closed").expect("it counts").ever;
    a.say(2);
    a.sees(&[("b", b.port)]);
    b.hears("a", 2).await;
    assert_eq!(open.borrow().ever, dialled, "nobody came again");
}

/// Connections through a relay.
#[derive(Default)]
struct Open {
    now: u32,
    ever: u32,
}

/// Forwards to `port`; its port, and how many connections its clients hold open.
async fn counting_relay(port: u16) -> (u16, watch::Receiver<Open>) {
    let relay = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a free port");
    let at = relay.local_addr().expect("it is bound").port();
    let (count, counted) = watch::channel(Open::default());
    tokio::spawn(async move {
        while let Ok((mut client, _)) = relay.accept().await {
            count.send_modify(|open| (open.now, open.ever) = (open.now + 1, open.ever + 1));
            let count = count.clone();
            tokio::spawn(async move {
                let server = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await;
                let mut server = server.expect("it listens");
                // Until the client closes: the server's end of file alone does not end it.
                tokio::io::copy_bidirectional(&mut client, &mut server).await.ok();
                count.send_modify(|open| open.now -= 1);
            });
        }
    });
    (at, counted)
}

#[tokio::test]
async fn a_new_secret_holds_once_both_have_it() {
    let a = Member::start("a", 0, OFTEN).await;
    let mut b = Member::start("b", 0, OFTEN).await;
    b.sees(&[("a", a.port)]);
    a.sees(&[("b", b.port)]);
    a.say(1);
    b.hears("a", 1).await;
    let secret = || PeerSecret::File(PeerKey::from_secret(b"0123456789abcdef"));
    a.heartbeats.secret().send_replace(secret());
    a.say(2);
    b.reports(|report| report.refused > 0).await;
    b.heartbeats.secret().send_replace(secret());
    b.hears("a", 2).await;
}

#[tokio::test]
async fn without_a_secret_nobody_is_dialled() {
    let a = Member::start("a", 0, OFTEN).await;
    let b = Member::start("b", 0, OFTEN).await;
    // `b` has no view, so it has no key and refuses whoever comes.
    a.heartbeats.secret().send_replace(PeerSecret::None);
    a.sees(&[("b", b.port)]);
    a.reports(|report| report.peers.len() == 1).await;
    assert_eq!((b.reports)().refused, 0);
    a.heartbeats.secret().send_replace(PeerSecret::Password(config::Secret::new("pass")));
    b.reports(|report| report.refused > 0).await;
}
