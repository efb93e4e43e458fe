//! Views of a cluster from its members' REST interfaces, as agents serve them.
#![allow(clippy::unwrap_used, missing_docs)]

mod agent;

use std::time::Duration;

use api::RestClient;
use proxy::{Believed, Following, Sources};
use tokio::time::timeout;
use types::{ClusterView, RestAddress, Revision, Term};

use self::agent::Agent;

/// Everything here happens within seconds; this only ends a test that hangs.
const PATIENCE: Duration = Duration::from_secs(60);

fn follow(agents: &[&Agent]) -> Following {
    let members = agents.iter().map(|agent| RestAddress::plain("127.0.0.1", agent.port)).collect();
    let scope = "demo".to_owned();
    Sources { scope, dcs: None, members, rest: RestClient::default() }.follow()
}

/// Waits until this is known.
async fn until(following: &Following, wanted: impl Fn(&Believed) -> bool) {
    let mut known = following.subscribe();
    let met = timeout(PATIENCE, known.wait_for(|known| wanted(known))).await;
    met.expect("it came to be known").expect("somebody follows");
}

fn at(known: &Believed) -> Option<(Term, Revision)> {
    let view: &ClusterView = known.view.as_ref()?;
    Some((view.newest_term(), view.revision))
}

fn is_at(known: &Believed, term: u64, revision: i64) -> bool {
    at(known) == Some((Term(term), Revision(revision)))
}

#[tokio::test]
async fn news_of_any_member_is_taken_and_what_is_older_is_not() {
    let (a, b) = (Agent::start("a").await, Agent::start("b").await);
    a.sees(4, 10, true);
    b.sees(4, 9, true);
    let following = follow(&[&a, &b]);
    until(&following, |known| is_at(known, 4, 10) && known.fresh).await;
    // It is told while the answer is held back, so at once.
    b.sees(4, 12, true);
    until(&following, |known| is_at(known, 4, 12)).await;
    // Who has lost the DCS may have seen the next term before; who follows it may be behind.
    a.sees(5, 11, false);
    until(&following, |known| is_at(known, 5, 11) && known.fresh).await;
    let asked = b.asked();
    b.sees(4, 13, true);
    b.is_asked_after(asked).await;
    assert!(is_at(&following.subscribe().borrow(), 5, 11));
    // Nobody who follows it is left.
    b.sees(4, 14, false);
    until(&following, |known| !known.fresh && is_at(known, 5, 11)).await;
    b.sees(5, 15, true);
    until(&following, |known| known.fresh && is_at(known, 5, 15)).await;
}

#[tokio::test]
async fn a_memory_opens_nothing_and_a_leaders_word_does() {
    let (a, b) = (Agent::start("a").await, Agent::start("b").await);
    a.sees(4, 10, false);
    b.sees(3, 9, false);
    let following = follow(&[&a, &b]);
    let mut known = following.subscribe();
    a.is_asked_after(1).await;
    b.is_asked_after(1).await;
    a.sees(4, 11, false);
    a.is_asked_after(2).await;
    // As it is in failsafe mode: nobody reaches the DCS, and the leader goes on.
    a.leads(4, 12);
    timeout(PATIENCE, known.changed()).await.expect("it came to be known").unwrap();
    let known = known.borrow();
    assert!(is_at(&known, 4, 12) && !known.fresh, "the first of all views: {known:?}");
}

#[tokio::test]
async fn members_are_found_through_members_and_may_come_and_go() {
    let (a, b) = (Agent::start("a").await, Agent::start("b").await);
    let following = follow(&[&a]);
    // It has read nothing yet.
    a.is_asked_after(1).await;
    assert!(following.subscribe().borrow().view.is_none());
    b.sees(4, 20, true);
    a.sees_with(4, 10, true, &b);
    until(&following, |known| is_at(known, 4, 20)).await;
    drop(a);
    b.sees(5, 30, true);
    until(&following, |known| is_at(known, 5, 30) && known.fresh).await;
    drop(b);
    until(&following, |known| is_at(known, 5, 30) && !known.fresh).await;
}

#[tokio::test]
async fn agents_of_other_clusters_are_not_heard() {
    let (ours, other) = (Agent::start("a").await, Agent::of("other", "a").await);
    other.sees(9, 99, true);
    ours.sees(4, 10, true);
    let following = follow(&[&other, &ours]);
    other.is_asked_after(1).await;
    until(&following, |known| is_at(known, 4, 10)).await;
}
