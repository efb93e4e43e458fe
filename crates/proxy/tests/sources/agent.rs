//! The REST interface of an agent, without the agent.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use api::peers::{Board, HEARD_MAX, Reception};
use api::{ApiState, Door, Published, REQUESTS_MAX, Snapshot};
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use types::{ClusterView, KeyValue, Millis, Revision};

/// The instant of all that is published.
const NOW: Millis = Millis(1_000_000);

pub(crate) struct Agent {
    pub(crate) port: u16,
    base: Snapshot,
    snapshots: watch::Sender<Published>,
    asked: Arc<AtomicU64>,
    /// It ends with this, and its connections with it.
    _tasks: JoinSet<()>,
}

impl Agent {
    pub(crate) async fn start(name: &str) -> Agent {
        Agent::of("demo", name).await
    }

    pub(crate) async fn of(scope: &str, name: &str) -> Agent {
        let base = Snapshot::new(scope, name.into(), NOW);
        let (snapshots, published) = watch::channel(Arc::new(base.clone()));
        let (heard, _) = mpsc::channel(HEARD_MAX);
        let keys = watch::channel(None).1;
        let peers = Reception::new(scope, name.into(), keys, heard, Arc::<Board>::default());
        let state = ApiState {
            snapshots: published,
            requests: mpsc::channel(REQUESTS_MAX).0,
            now: || NOW,
            nudge: Arc::default(),
            door: watch::channel(Arc::<Door>::default()).1,
            peers: Arc::new(peers),
            waiting: api::view::Waiting::default(),
        };
        let server = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let behind = server.local_addr().unwrap();
        // Each question is a connection: they are counted on their way.
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let asked = Arc::new(AtomicU64::new(0));
        let counted = asked.clone();
        let mut tasks = JoinSet::new();
        tasks
            .spawn(async move { api::serve(server, state, std::future::pending()).await.unwrap() });
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((mut client, _)) = listener.accept().await {
                counted.fetch_add(1, Ordering::SeqCst);
                connections.spawn(async move {
                    let mut server = TcpStream::connect(behind).await.unwrap();
                    // Whoever breaks it off is not this test's business.
                    copy_bidirectional(&mut client, &mut server).await.ok();
                });
            }
        });
        Agent { port, base, snapshots, asked, _tasks: tasks }
    }

    /// It sees the cluster in this term, at this revision of the store.
    pub(crate) fn sees(&self, term: u64, revision: i64, fresh: bool) {
        self.publish(view(term, revision, None), fresh, false);
    }

    /// The same, with another member in it.
    pub(crate) fn sees_with(&self, term: u64, revision: i64, fresh: bool, other: &Agent) {
        self.publish(view(term, revision, Some(other.port)), fresh, false);
    }

    /// It has lost the DCS, leads and may go on.
    pub(crate) fn leads(&self, term: u64, revision: i64) {
        self.publish(view(term, revision, None), false, true);
    }

    fn publish(&self, view: ClusterView, view_is_fresh: bool, leads: bool) {
        let claim_until = leads.then(|| NOW.plus(Millis(5_000)));
        let view = Some(Arc::new(view));
        let snapshot = Snapshot { view, view_is_fresh, claim_until, ..self.base.clone() };
        self.snapshots.send_replace(Arc::new(snapshot));
    }

    /// How often it was asked.
    pub(crate) fn asked(&self) -> u64 {
        self.asked.load(Ordering::SeqCst)
    }

    /// Waits until it was asked more often than that: the answer before has been looked at.
    pub(crate) async fn is_asked_after(&self, count: u64) {
        let waiting = async {
            while self.asked() <= count {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(super::PATIENCE, waiting).await.expect("it is asked");
    }
}

fn view(term: u64, revision: i64, other: Option<u16>) -> ClusterView {
    let kv = |key: &str, value: String| KeyValue {
        key: key.to_owned(),
        value: value.into_bytes(),
        create_revision: Revision(1),
        mod_revision: Revision(1),
        lease: 7,
    };
    let record = format!(r#"{{"term":{term},"leader":"a","timeline":1}}"#);
    let mut keys = vec![kv("leader", "a".to_owned()), kv("pgherd/term", record)];
    keys.extend(other.map(|port| {
        let url = format!(r#"{{"api_url":"http://127.0.0.1:{port}/patroni"}}"#);
        kv("members/other", url)
    }));
    ClusterView { store: 1, ..ClusterView::from_keys(Revision(revision), &keys) }
}
