//! The client and the cluster's operations against a real etcd.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use dcs::{
    Bootstrap, Client, ClusterStore, Compare, Error, Loss, Op, OpAnswer, Refusal, Renewal,
    Resolved, Session, Txn, Winner, Write,
};
use types::{
    Fence, HoldRecord, Lsn, Member, MemberName, Millis, Pledge, Position, Revision, Status,
    SyncState, Term, TermRecord, Timeline,
};

use crate::support::Etcd;

const PREFIX: &str = "/service/demo/";

fn store(client: &Client) -> ClusterStore {
    ClusterStore::new(client.clone(), PREFIX)
}

async fn session(client: &Client) -> Session {
    let session = Session::new(client.clone(), Millis(10_000));
    session.grant(Millis(10_000)).await.unwrap();
    session
}

fn term(number: u64, leader: &str) -> TermRecord {
    TermRecord { term: Term(number), leader: leader.into(), timeline: Timeline(1), position: None }
}

fn winner<'a>(name: &'a MemberName, term: &'a TermRecord, term_mod: Revision) -> Winner<'a> {
    Winner {
        name,
        expect_leader: None,
        sync_mod: None,
        fence_mod: None,
        term_mod: Some(term_mod).filter(|r| r.0 > 0),
        pledges: Vec::new(),
        term,
        sync: None,
        clear_failover: false,
    }
}

#[tokio::test]
async fn transactions_leases_and_listings() {
    let etcd = Etcd::start(1).await;
    let client = etcd.client(3000);

    let lease = client.lease_grant(Millis(9_500)).await.unwrap();
    assert_eq!(lease.ttl_secs, 10);
    let create = Txn {
        compares: vec![Compare::absent("/t/a")],
        then: vec![Op::put_leased("/t/a", "1", lease.lease), Op::Get("/t/b".into())],
        otherwise: vec![Op::Get("/t/a".into())],
    };
    let first = client.txn("test", create.clone()).await.unwrap();
    assert!(first.succeeded);
    assert_eq!(first.responses, [OpAnswer::Put, OpAnswer::Got(None)]);
    let second = client.txn("test", create).await.unwrap();
    assert!(!second.succeeded);
    let [OpAnswer::Got(Some(kv))] = second.responses.as_slice() else {
        panic!("{second:?}");
    };
    assert_eq!((kv.value.as_slice(), kv.lease), (b"1".as_slice(), lease.lease));
    assert_eq!(kv.create_revision, first.revision);

    let kept = client.lease_keep_alive_once(lease.lease).await.unwrap();
    assert_eq!((kept.ttl_secs, kept.raft_term), (10, first.raft_term));
    client.lease_revoke(lease.lease).await.unwrap();
    assert_eq!(client.get("/t/a").await.unwrap().0, None);
    for _ in 0..2 {
        let gone = client.lease_keep_alive_once(lease.lease).await.unwrap_err();
        assert_eq!(gone.refusal(), Some(Refusal::LeaseNotFound));
    }
    let refused = client.put("/t/a", Vec::new(), lease.lease).await.unwrap_err();
    assert_eq!(refused.refusal(), Some(Refusal::LeaseNotFound), "{refused}");

    // More than a page, and neighbours that do not belong.
    for chunk in 0..13 {
        let puts = (0..100).map(|i| Op::put(format!("/t/{:04}", chunk * 100 + i), "v"));
        let txn = Txn { then: puts.collect(), ..Txn::default() };
        assert!(client.txn("test", txn).await.unwrap().succeeded);
    }
    client.put("/u", b"x".to_vec(), 0).await.unwrap();
    let (keys, header) = client.range_prefix("/t/").await.unwrap();
    assert_eq!((keys.len(), keys[1299].key.as_str()), (1300, "1299"));
    assert_eq!(header.revision, client.get("/u").await.unwrap().1.revision);
    assert_eq!(client.member_urls().await.unwrap().len(), 1);
}

#[tokio::test]
async fn the_view_follows_and_never_goes_back() {
    let etcd = Etcd::start(1).await;
    let client = etcd.client(3000);
    let (store, session) = (store(&client), session(&client).await);
    let follower = store.follow();
    store.subscribe().wait_for(|s| s.fresh).await.unwrap();

    let member = Member { state: "running".into(), ..Member::default() };
    let name = MemberName::from("a");
    let write = store.touch_member(&session, &name, &member).await.unwrap();
    let revision = write.revision().unwrap();
    let view = store.wait_revision(revision, Millis(5000)).await.unwrap();
    assert_eq!(view.revision, revision);
    assert_eq!(view.member(&name).unwrap().state, "running");
    assert_eq!(view.members[&name].lease, session.lease_id().unwrap());

    // What the watch shows is not written again; another value is.
    let again = store.touch_member(&session, &name, &member).await.unwrap();
    assert_eq!(again.revision(), Some(revision));
    assert_eq!(client.get("/other").await.unwrap().1.revision, revision);
    let member = Member { state: "stopped".into(), ..member };
    let changed = store.touch_member(&session, &name, &member).await.unwrap().revision().unwrap();
    assert!(changed > revision);
    let view = store.wait_revision(changed, Millis(5000)).await.unwrap();
    assert_eq!(view.member(&name).unwrap().state, "stopped");
    // A new lease has to carry the key, whatever it says.
    let lease = session.grant(Millis(10_000)).await.unwrap();
    let moved = store.touch_member(&session, &name, &member).await.unwrap().revision().unwrap();
    let view = store.wait_revision(moved, Millis(5000)).await.unwrap();
    assert!(moved > changed && view.members[&name].lease == lease);

    // A write outside the prefix raises the store's revision; a read passes it on.
    let header = client.put("/other", Vec::new(), 0).await.unwrap();
    assert_eq!(store.read().await.unwrap().revision, header.revision);
    session.revoke().await.unwrap();
    let mut states = store.subscribe();
    let state = states.wait_for(|s| s.view.as_ref().unwrap().members.is_empty()).await.unwrap();
    assert!(state.fresh && state.view.as_ref().unwrap().revision > header.revision);
    drop(state);

    // Without a follower `wait_revision` reads.
    drop(follower);
    let write = store.patch_config(None, &serde_json::json!({"ttl": 10})).await.unwrap();
    let revision = write.revision().unwrap();
    let view = store.wait_revision(revision, Millis(50)).await.unwrap();
    assert_eq!(view.config.as_ref().unwrap().value["ttl"], 10);
    let again = store.patch_config(None, &serde_json::json!({})).await.unwrap();
    assert_eq!(again, Write::Conflict);
    let next = store.patch_config(Some(revision), &serde_json::json!({})).await.unwrap();
    assert!(next.revision() > Some(revision));
}

#[tokio::test]
async fn a_bootstrap_is_won_once_and_makes_a_leader() {
    let etcd = Etcd::start(1).await;
    let client = etcd.client(3000);
    let (store, ours, other) = (store(&client), session(&client).await, session(&client).await);
    assert!(store.take_initialize(&ours).await.unwrap().revision().is_some());
    assert_eq!(store.take_initialize(&other).await.unwrap(), Write::Conflict);
    assert_eq!(store.cancel_initialize(&other).await.unwrap(), Write::Conflict);
    assert!(store.cancel_initialize(&ours).await.unwrap().revision().is_some());
    assert!(store.take_initialize(&ours).await.unwrap().revision().is_some());

    let (name, record, sync) = ("a".into(), term(1, "a"), SyncState::default());
    let config = serde_json::json!({"ttl": 10});
    let done = Bootstrap {
        system_identifier: "7412345678901234567",
        config: &config,
        leader: &name,
        term: &record,
        sync: Some(&sync),
    };
    assert_eq!(store.finish_bootstrap(&other, &done).await.unwrap(), Write::Conflict);
    let written = store.finish_bootstrap(&ours, &done).await.unwrap();
    let view = store.read().await.unwrap();
    let leader = view.leader.as_ref().unwrap();
    assert_eq!(Some(leader.create_revision), written.revision());
    assert_eq!(view.leader_term(), Some(Term(1)));
    assert_eq!(view.system_identifier(), Some("7412345678901234567"));
    assert_eq!(view.initialize.as_ref().unwrap().lease, 0);

    // The keys of the leader are conditional on its key.
    let at = leader.create_revision;
    let sync_mod = view.sync.as_ref().map(|s| s.mod_revision);
    let voters = BTreeSet::from([MemberName::from("b")]);
    let next = SyncState { leader: Some(name.clone()), quorum: 0, voters };
    let stranger = store.write_sync(&other, at, sync_mod, &next).await.unwrap();
    assert_eq!(stranger, Write::Conflict);
    let changed = store.write_sync(&ours, at, sync_mod, &next).await.unwrap();
    let stale = store.write_sync(&ours, at, sync_mod, &next).await.unwrap();
    assert_eq!(stale, Write::Conflict);
    let changed = changed.revision().unwrap();
    assert!(store.delete_sync(&ours, at, changed).await.unwrap().revision().is_some());
    assert!(store.write_history(&ours, at, &[]).await.unwrap().revision().is_some());
    let wrong = store.write_config_as_leader(&ours, Revision(1), &config).await.unwrap();
    assert_eq!(wrong, Write::Conflict);

    let hold = HoldRecord { id: 9, until: Millis(4_000), why: "switchover".into() };
    assert_eq!(store.write_hold(&other, at, &hold).await.unwrap(), Write::Conflict);
    assert!(store.write_hold(&ours, at, &hold).await.unwrap().revision().is_some());
    let view = store.read().await.unwrap();
    assert_eq!(view.active_hold().map(|hold| &hold.value), Some(&hold));
    assert_eq!(store.remove_hold(&other, at).await.unwrap(), Write::Conflict);
    assert!(store.remove_hold(&ours, at).await.unwrap().revision().is_some());
    assert!(store.read().await.unwrap().hold.is_none());
    store.write_hold(&ours, at, &hold).await.unwrap();

    let status = Status { optime: Lsn(77), ..Status::default() };
    let released = store.release_leader(&ours, at, Some(&status)).await.unwrap();
    assert!(released.revision().is_some());
    let view = store.read().await.unwrap();
    assert!(view.leader.is_none());
    // What nobody leads for holds nobody.
    assert!(view.hold.is_none());
    assert_eq!(view.status.as_ref().unwrap().value.optime, Lsn(77));
}

#[tokio::test]
async fn an_election_counts_only_unchanged_pledges() {
    let etcd = Etcd::start(1).await;
    let client = etcd.client(3000);
    let (store, session) = (store(&client), session(&client).await);
    let fence = Fence {
        id: "b-1".into(),
        leader_revision: Revision(0),
        sync_revision: Revision(0),
        candidate: "b".into(),
    };
    let opened = store.open_fence(None, None, &fence).await.unwrap().revision().unwrap();
    assert_eq!(store.open_fence(None, None, &fence).await.unwrap(), Write::Conflict);
    let pledge = Pledge { fence: "b-1".into(), position: Position::default() };
    let (b, c) = (MemberName::from("b"), MemberName::from("c"));
    let pledged = store.write_pledge(&b, &pledge, opened).await.unwrap().revision().unwrap();

    // Voided: neither counts nor is written any more.
    assert!(store.void_fence(opened).await.unwrap().revision().is_some());
    assert_eq!(store.write_pledge(&c, &pledge, opened).await.unwrap(), Write::Conflict);
    let record = term(1, "b");
    let mut win = winner(&b, &record, Revision(0));
    win.fence_mod = Some(opened);
    win.pledges = vec![(b.clone(), pledged)];
    assert_eq!(store.take_leadership(&session, &win).await.unwrap(), Write::Conflict);

    let opened = store.open_fence(None, None, &fence).await.unwrap().revision().unwrap();
    let pledged = store.write_pledge(&b, &pledge, opened).await.unwrap().revision().unwrap();
    win.fence_mod = Some(opened);
    win.pledges = vec![(b.clone(), pledged)];
    win.clear_failover = true;
    let taken = store.take_leadership(&session, &win).await.unwrap();
    let view = store.read().await.unwrap();
    assert_eq!(view.leader.as_ref().map(|l| l.create_revision), taken.revision());
    assert_eq!(view.leader_term(), Some(Term(1)));
    assert!(view.fence.is_none() && view.pledges.is_empty());
    let failover = view.failover.as_ref().unwrap();
    assert_eq!(failover.value, None);
    let request = serde_json::json!({"leader": "b", "member": "c"});
    store.write_failover(&request).await.unwrap();
    let stale = store.clear_failover(failover.mod_revision).await.unwrap();
    assert_eq!(stale, Write::Conflict);
}

#[tokio::test]
async fn the_failsafe_map_is_the_leaders_and_a_lost_key_is_taken_again_only_in_its_term() {
    let etcd = Etcd::start(1).await;
    let client = etcd.client(3000);
    let (store, mine, other) = (store(&client), session(&client).await, session(&client).await);
    let (a, b) = (MemberName::from("a"), MemberName::from("b"));
    let first = term(1, "a");
    let won = store.take_leadership(&mine, &winner(&a, &first, Revision(0))).await.unwrap();
    let created = won.revision().unwrap();

    let map = BTreeMap::from([(a.clone(), "http://h:1/patroni".to_owned())]);
    let conflict = store.write_failsafe(&other, created, None, &map).await.unwrap();
    assert_eq!(conflict, Write::Conflict, "the leader key hangs on another lease");
    let written = store.write_failsafe(&mine, created, None, &map).await.unwrap();
    let view = store.read().await.unwrap();
    let there = view.failsafe.as_ref().unwrap();
    assert_eq!((&there.value, Some(there.mod_revision)), (&map, written.revision()));
    let again = store.write_failsafe(&mine, created, None, &map).await.unwrap();
    assert_eq!(again, Write::Conflict, "it is not absent any more");

    // The lease ends. Nobody has led since: the key is taken again, with the next term.
    mine.revoke().await.unwrap();
    assert!(store.read().await.unwrap().leader.is_none());
    let mine = session(&client).await;
    let (second, third) = (term(2, "a"), term(3, "b"));
    let retaken = store.take_leadership(&mine, &winner(&a, &second, created)).await.unwrap();
    assert!(retaken.revision().is_some());
    assert_eq!(store.read().await.unwrap().leader_term(), Some(Term(2)));
    let late = store.write_failsafe(&mine, created, written.revision(), &map).await.unwrap();
    assert_eq!(late, Write::Conflict, "a late write of the term before");

    // Somebody else led meanwhile: the term is another one, and so the key stays away.
    mine.revoke().await.unwrap();
    let last = winner(&b, &third, retaken.revision().unwrap());
    assert!(store.take_leadership(&other, &last).await.unwrap().revision().is_some());
    other.revoke().await.unwrap();
    let mine = session(&client).await;
    let late = winner(&a, &second, retaken.revision().unwrap());
    assert_eq!(store.take_leadership(&mine, &late).await.unwrap(), Write::Conflict);
}

#[tokio::test]
async fn a_renewal_is_lost_with_the_lease_and_with_the_key() {
    let etcd = Etcd::start(1).await;
    let client = etcd.client(3000);
    let (store, ours, other) = (store(&client), session(&client).await, session(&client).await);
    let (a, b) = (MemberName::from("a"), MemberName::from("b"));
    let first = term(1, "a");
    let taken = store.take_leadership(&ours, &winner(&a, &first, Revision(0))).await.unwrap();
    let at = taken.revision().unwrap();
    let status = Status { optime: Lsn(5), ..Status::default() };
    let renewed = store.renew(&ours, at, Some(&status)).await.unwrap();
    let Renewal::Renewed { revision, ttl } = renewed else {
        panic!("{renewed:?}");
    };
    assert_eq!(ttl, Millis(10_000));
    assert_eq!(store.read().await.unwrap().status.as_ref().unwrap().mod_revision, revision);

    // The key is deleted and taken by another; our lease lives on.
    client.txn("test", delete("leader")).await.unwrap();
    let second = term(2, "b");
    let taken = store.take_leadership(&other, &winner(&b, &second, at)).await.unwrap();
    assert!(taken.revision().is_some());
    let lost = store.renew(&ours, at, Some(&status)).await.unwrap();
    assert_eq!(lost, Renewal::Lost(Loss::Key));

    // The other's lease is revoked behind its back, and the key taken anew by us.
    let at = taken.revision().unwrap();
    client.lease_revoke(other.lease_id().unwrap()).await.unwrap();
    let third = term(3, "a");
    let again = store.take_leadership(&ours, &winner(&a, &third, at)).await.unwrap();
    assert!(again.revision().is_some());
    let lost = store.renew(&other, at, None).await.unwrap();
    assert_eq!(lost, Renewal::Lost(Loss::Lease));
    assert_eq!(other.lease_id(), None);
    let (lease, new) = other.ensure().await.unwrap();
    assert!(new && other.lease_id() == Some(lease));
    assert_eq!(other.ensure().await.unwrap(), (lease, false));
    // A restarted agent goes on with the lease of its keys.
    let restarted = Session::new(client.clone(), Millis(10_000));
    restarted.adopt(ours.lease_id().unwrap());
    let renewed = store.renew(&restarted, again.revision().unwrap(), None).await.unwrap();
    assert!(matches!(renewed, Renewal::Renewed { .. }), "{renewed:?}");
}

#[tokio::test]
async fn keys_move_to_a_lease_of_another_length_together_or_not_at_all() {
    let etcd = Etcd::start(1).await;
    let client = etcd.client(3000);
    let (store, session) = (store(&client), session(&client).await);
    let (a, member) = (MemberName::from("a"), Member::default());
    let first = term(1, "a");
    let taken = store.take_leadership(&session, &winner(&a, &first, Revision(0))).await.unwrap();
    let at = taken.revision().unwrap();
    store.touch_member(&session, &a, &member).await.unwrap();
    let old = session.lease_id().unwrap();

    // Another revision of the leader key: nothing moves, and the new lease is gone.
    let stale = Some((Revision(at.0 - 1), &first));
    let (write, _) =
        store.move_lease(&session, Millis(20_000), (&a, &member), stale).await.unwrap();
    assert_eq!(write, Write::Conflict);
    assert_eq!(session.lease_id(), Some(old));
    let view = store.read().await.unwrap();
    assert_eq!((view.leader.as_ref().unwrap().lease, view.members[&a].lease), (old, old));

    let leading = Some((at, &first));
    let moved = store.move_lease(&session, Millis(20_000), (&a, &member), leading).await.unwrap();
    assert_eq!(moved.1, Millis(20_000));
    let new = session.lease_id().unwrap();
    assert_ne!(new, old);
    let view = store.read().await.unwrap();
    assert_eq!((view.leader.as_ref().unwrap().lease, view.members[&a].lease), (new, new));
    assert_eq!(view.leader_term(), Some(Term(1)), "the same term under the new revision");

    // The lease before may end: nothing hangs on it, and the renewal goes by the new one.
    client.lease_revoke(old).await.unwrap();
    let renewed = store.renew(&session, moved.0.revision().unwrap(), None).await.unwrap();
    let Renewal::Renewed { ttl, .. } = renewed else { panic!("{renewed:?}") };
    assert_eq!(ttl, Millis(20_000));
    assert!(store.read().await.unwrap().members.contains_key(&a));
}

fn delete(key: &str) -> Txn {
    Txn { then: vec![Op::Delete(format!("{PREFIX}{key}"))], ..Txn::default() }
}

#[tokio::test]
async fn a_compare_and_set_into_a_frozen_member_is_ambiguous_and_can_be_resolved() {
    let etcd = Etcd::start(1).await;
    let client = etcd.client(1000);
    let txn = Txn {
        compares: vec![Compare::absent("/x")],
        then: vec![Op::put("/x", "1")],
        otherwise: Vec::new(),
    };
    // If it answered just now the transaction goes out and is swallowed. On a busy machine "just
    // now" may have passed: then again.
    let what = loop {
        client.get("/x").await.unwrap();
        etcd.freeze(0);
        match client.txn("test", txn.clone()).await.unwrap_err() {
            Error::Ambiguous(what) => break what,
            error => assert!(matches!(error, Error::NotSent { .. }), "{error}"),
        }
        etcd.thaw(0);
    };
    // Nothing has answered lately: the read in front fails, and the transaction is not sent.
    tokio::time::sleep(Duration::from_millis(300)).await;
    let error = client.txn("test", txn).await.unwrap_err();
    assert!(matches!(error, Error::NotSent { .. }), "{error}");
    let error = client.get("/x").await.unwrap_err();
    assert!(matches!(error, Error::Unanswered { .. }), "{error}");
    etcd.thaw(0);
    // Whether the late transaction ran is a race inside etcd; the helper must agree with a read.
    tokio::time::sleep(Duration::from_millis(300)).await;
    let resolved = client.resolve(&what).await.unwrap();
    let (found, _) = client.get("/x").await.unwrap();
    let expected =
        found.map_or(Resolved::NotSeen, |kv| Resolved::Happened { revision: kv.mod_revision });
    assert_eq!(resolved, expected);
}

#[tokio::test]
async fn nobody_there_is_not_sent() {
    let mut etcd = Etcd::start(1).await;
    let client = etcd.client(500);
    etcd.kill(0);
    let error = client.put("/x", Vec::new(), 0).await.unwrap_err();
    assert!(matches!(error, Error::NotSent { .. }) && error.is_outage(), "{error}");
}
