//! One member of three dead, frozen or flapping: no call fails.

use std::time::{Duration, Instant};

use dcs::{ClusterStore, Compare, Op, Renewal, Session, Txn, Winner};
use types::{MemberName, Millis, Revision, Status, Term, TermRecord, Timeline};

use crate::support::Etcd;

const RETRY_TIMEOUT: u64 = 3000;

/// A leader on this cluster; returns its store, session and leader key's create revision.
async fn leader(etcd: &Etcd) -> (ClusterStore, Session, Revision) {
    let client = etcd.client(RETRY_TIMEOUT);
    let store = ClusterStore::new(client.clone(), "/service/faults/");
    let session = Session::new(client, Millis(10_000));
    session.grant(Millis(10_000)).await.unwrap();
    let name = MemberName::from("a");
    let term =
        TermRecord { term: Term(1), leader: name.clone(), timeline: Timeline(1), position: None };
    let winner = Winner {
        name: &name,
        expect_leader: None,
        sync_mod: None,
        fence_mod: None,
        term_mod: None,
        pledges: Vec::new(),
        term: &term,
        sync: None,
        clear_failover: false,
    };
    let taken = store.take_leadership(&session, &winner).await.unwrap();
    (store, session, taken.revision().unwrap())
}

/// One put, one compare-and-set and one renewal; returns the longest of them.
async fn work(store: &ClusterStore, session: &Session, leader: Revision, i: usize) -> Duration {
    let client = store.client();
    let mut longest = Duration::ZERO;
    let started = Instant::now();
    let key = format!("/service/faults/key{i}");
    client.put(&key, i.to_string().into_bytes(), 0).await.unwrap();
    longest = longest.max(started.elapsed());

    let started = Instant::now();
    let txn = Txn {
        compares: vec![Compare::Value(key.clone(), i.to_string().into_bytes())],
        then: vec![Op::put(key, "set")],
        otherwise: Vec::new(),
    };
    assert!(client.txn("test", txn).await.unwrap().succeeded);
    longest = longest.max(started.elapsed());

    let started = Instant::now();
    let status = i.is_multiple_of(2).then(Status::default);
    let renewed = store.renew(session, leader, status.as_ref()).await.unwrap();
    assert!(matches!(renewed, Renewal::Renewed { .. }), "{renewed:?}");
    longest.max(started.elapsed())
}

#[tokio::test]
async fn no_call_fails_while_one_member_is_frozen() {
    let etcd = Etcd::start(3).await;
    let (store, session, leader) = leader(&etcd).await;
    let mut longest = Duration::ZERO;
    // Each member in turn, so that raft's leader is among them, and the preferred endpoint twice.
    for turn in 0..4 {
        let preferred = etcd.member(&store.client().preferred_endpoint());
        let frozen = if turn == 3 { preferred } else { turn };
        etcd.freeze(frozen);
        for i in 0..10 {
            longest = longest.max(work(&store, &session, leader, turn * 10 + i).await);
        }
        etcd.thaw(frozen);
        // One is away at a time: the next turn needs it in the quorum.
        etcd.wait_ready_for(&etcd.client_of(&[frozen], 2000)).await;
    }
    eprintln!("longest call with a frozen member: {longest:?}");
    assert!(longest < Duration::from_millis(RETRY_TIMEOUT), "{longest:?}");
}

#[tokio::test]
async fn no_call_fails_while_one_member_is_dead_or_flapping() {
    let mut etcd = Etcd::start(3).await;
    let (store, session, leader) = leader(&etcd).await;
    let mut longest = Duration::ZERO;
    for turn in 0..3 {
        let killed = etcd.member(&store.client().preferred_endpoint());
        etcd.kill(killed);
        for i in 0..10 {
            longest = longest.max(work(&store, &session, leader, turn * 10 + i).await);
        }
        etcd.restart(killed);
        for i in 0..3 {
            longest = longest.max(work(&store, &session, leader, 100 + turn * 3 + i).await);
        }
        // The next turn needs a quorum without the next victim.
        etcd.wait_ready_for(&etcd.client_of(&[killed], 2000)).await;
    }
    eprintln!("longest call with a dead member: {longest:?}");
    assert!(longest < Duration::from_millis(RETRY_TIMEOUT), "{longest:?}");
}

/// Waits until the view has so many members; returns how long that took.
async fn seen(store: &ClusterStore, members: usize) -> Duration {
    let started = Instant::now();
    let mut states = store.subscribe();
    let all = states.wait_for(|s| s.view.as_ref().is_some_and(|v| v.members.len() == members));
    let waited = tokio::time::timeout(Duration::from_secs(15), all).await;
    waited.expect("the watch lost a key").unwrap();
    started.elapsed()
}

/// Kills or freezes the member that the watch is on and writes on: every key must arrive.
async fn watch_survives(freeze: bool) {
    let mut etcd = Etcd::start(3).await;
    let patient = 20 * RETRY_TIMEOUT;
    let watching = ClusterStore::new(etcd.client(patient), "/service/watched/");
    let _follower = watching.follow();
    watching.subscribe().wait_for(|s| s.fresh).await.unwrap();
    let victim = etcd.member(&watching.client().preferred_endpoint());

    let others: Vec<usize> = (0..3).filter(|&i| i != victim).collect();
    let writer = etcd.client_of(&others, 10_000);
    let mut revision = Revision(0);
    for i in 0..20 {
        if i == 5 && freeze {
            etcd.freeze(victim);
        } else if i == 5 {
            etcd.kill(victim);
        }
        let key = format!("/service/watched/members/m{i}");
        revision = writer.put(&key, b"{}".to_vec(), 0).await.unwrap().revision;
    }
    let took = seen(&watching, 20).await;
    eprintln!("keys all seen {took:?} after the last write (frozen: {freeze})");
    assert!(watching.current().view.unwrap().revision >= revision);
    // An election does not wait for as long as a call may take.
    assert!(took < Duration::from_millis(patient / 8), "{took:?} of {patient} ms");
    // And it follows again, by the watch: nothing else reads here.
    watching.subscribe().wait_for(|s| s.fresh).await.unwrap();
    let key = "/service/watched/members/last";
    writer.put(key, b"{}".to_vec(), 0).await.unwrap();
    seen(&watching, 21).await;
}

#[tokio::test]
async fn a_watch_resumes_when_its_member_is_killed() {
    watch_survives(false).await;
}

#[tokio::test]
async fn a_watch_resumes_when_its_member_is_frozen() {
    watch_survives(true).await;
}
