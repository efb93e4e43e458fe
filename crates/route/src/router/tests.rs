use std::sync::Arc;

use types::{ClusterView, KeyValue, Lsn, Millis, Revision, Term};

use super::*;
use crate::binding::{PRIMARY_RETRY, REPLICA_RETRY};
use crate::event::ServerId;
use crate::freshness::Round;
use crate::pools::ServerPhase;

const HOLD: Millis = Millis(10_000);

/// A view in a few words: the leader with its term and a member line each, as JSON after the name.
struct Story {
    router: Router,
    now: u64,
}

fn config() -> RouterConfig {
    RouterConfig {
        hold_timeout: HOLD,
        pool_timeout: Millis(20_000),
        hold_limit: 3,
        client_limit: 100,
        lag_bytes_max: None,
        site: None,
        max_user_connections: 0,
        max_db_connections: 0,
    }
}

fn member(name: &str, role: &str, term: Option<u64>, more: &str) -> (String, String) {
    let term = term.map(|term| format!(r#","term":{term}"#)).unwrap_or_default();
    let url = format!("postgres://{name}.example:5432/postgres");
    let text = format!(r#"{{"conn_url":"{url}","role":"{role}","state":"running"{term}{more}}}"#);
    (format!("members/{name}"), text)
}

fn primary(name: &str, term: u64) -> (String, String) {
    member(name, "primary", Some(term), r#","timeline":1"#)
}

fn replica(name: &str) -> (String, String) {
    let more = r#","replication_state":"streaming","replay_lsn":1000,"timeline":1"#;
    member(name, "replica", None, more)
}

/// `leader` is the key's value; `term` is what the term record says, of that leader or an earlier.
fn view(leader: Option<&str>, term: u64, members: &[(String, String)]) -> Event {
    let revision = |number: u64| Revision(i64::try_from(number).unwrap());
    let kv = |key: &str, value: &str, created: u64, modified: u64| KeyValue {
        key: key.to_owned(),
        value: value.as_bytes().to_vec(),
        create_revision: revision(created),
        mod_revision: revision(modified),
        lease: 1,
    };
    let mut keys = Vec::new();
    keys.extend(leader.map(|name| kv("leader", name, 100 + term, 100 + term)));
    if term > 0 {
        let record = format!(r#"{{"term":{term},"leader":"x","timeline":1}}"#);
        keys.push(kv("pgherd/term", &record, 1, 100 + term));
    }
    keys.extend(members.iter().map(|(key, value)| kv(key, value, 1, 1)));
    Event::View(Arc::new(ClusterView::from_keys(revision(term), &keys)))
}

impl Story {
    fn new(config: RouterConfig) -> Story {
        Story { router: Router::new(config), now: 1000 }
    }

    /// The actions in short: `connect 1 a`, `hold 1`, `refuse 1 57P03`, `cut 1 planned`.
    fn step(&mut self, event: Event) -> Vec<String> {
        let actions = self.router.step(Millis(self.now), event);
        let told = actions.into_iter().filter_map(|action| match action {
            Action::Connect { client, target, .. } => {
                Some(format!("connect {client} {}", target.member))
            }
            Action::Hold { client } => Some(format!("hold {client}")),
            Action::Refuse { client, refusal } => {
                Some(format!("refuse {client} {}", refusal.sqlstate))
            }
            Action::Cut { client, reason: CutReason::Planned } => {
                Some(format!("cut {client} planned"))
            }
            Action::Cut { client, reason: CutReason::Unplanned } => {
                Some(format!("cut {client} unplanned"))
            }
            Action::Open { server, target, .. } => Some(format!("open {server} {}", target.member)),
            Action::Drain { client } => Some(format!("drain {client}")),
            Action::Lend { client, server } => Some(format!("lend {server} to {client}")),
            Action::LendRead { client, server } => {
                Some(format!("lend {server} to {client} to read"))
            }
            Action::Close { server } => Some(format!("close {server}")),
            Action::Take { client, server, .. } => Some(format!("take {server} from {client}")),
            Action::WakeAt(_) => None,
        });
        told.collect()
    }

    fn arrive(&mut self, client: u64, port: Port) -> Vec<String> {
        self.step(Event::ClientArrived { client: ClientId(client), port })
    }

    fn attempt(&self, client: u64) -> u32 {
        self.router.clients[&ClientId(client)].attempts
    }

    fn connected(&mut self, client: u64) -> Vec<String> {
        let attempt = self.attempt(client);
        self.step(Event::ServerConnected { client: ClientId(client), attempt })
    }

    fn failed(&mut self, client: u64) -> Vec<String> {
        let attempt = self.attempt(client);
        self.step(Event::ServerFailed { client: ClientId(client), attempt })
    }

    fn open(&mut self, client: u64, port: Port, member: &str) {
        assert_eq!(self.arrive(client, port), [format!("connect {client} {member}")]);
        assert_eq!(self.connected(client), NOTHING);
    }
}

const NOTHING: [&str; 0] = [];
use Port::{ReadOnly, ReadWrite};

#[test]
fn a_failover_cuts_the_sessions_and_serves_the_next_by_the_new_primary() {
    let mut story = Story::new(config());
    story.step(view(Some("a"), 1, &[primary("a", 1), replica("b")]));
    story.open(1, ReadWrite, "a");
    // The leader key is gone: the session stays, a new client waits.
    let gone = view(None, 1, &[primary("a", 1), replica("b")]);
    assert_eq!(story.step(gone), NOTHING);
    assert_eq!(story.arrive(2, ReadWrite), NOTHING);
    // The new term is known: the old session ends before the new primary is ready.
    let elected = view(Some("b"), 2, &[primary("a", 1), member("b", "promoted", Some(2), "")]);
    assert_eq!(story.step(elected), ["cut 1 unplanned"]);
    let ready = view(Some("b"), 2, &[primary("a", 1), primary("b", 2)]);
    assert_eq!(story.step(ready), ["connect 2 b"]);
    let snapshot = story.router.snapshot();
    assert_eq!(snapshot.metrics.read_write.cut_unplanned, 1);
    assert_eq!((snapshot.metrics.read_write.held, snapshot.term), (1, Term(2)));
}

#[test]
fn a_step_down_is_a_planned_cut_also_without_a_leader_key() {
    let mut story = Story::new(config());
    story.step(view(Some("a"), 1, &[primary("a", 1)]));
    story.open(1, ReadWrite, "a");
    let down = view(None, 1, &[member("a", "demoted", None, "")]);
    assert_eq!(story.step(down), ["cut 1 planned"]);
    assert!(story.router.snapshot().connections.is_empty());
}

#[test]
fn a_newer_term_is_known_from_its_record_alone() {
    let mut story = Story::new(config());
    story.step(view(Some("a"), 1, &[primary("a", 1)]));
    story.open(1, ReadWrite, "a");
    assert_eq!(story.step(view(None, 2, &[primary("a", 1)])), ["cut 1 unplanned"]);
    // A view of the older term never opens the route again.
    assert_eq!(story.step(view(Some("a"), 1, &[primary("a", 1)])), NOTHING);
    assert_eq!(story.arrive(2, ReadWrite), NOTHING);
    assert!(story.router.snapshot().awaiting.unwrap().contains("term 2 was seen"));
}

#[test]
fn the_same_member_in_a_new_term_is_a_new_primary() {
    let mut story = Story::new(config());
    story.step(view(Some("a"), 1, &[primary("a", 1)]));
    story.open(1, ReadWrite, "a");
    assert_eq!(story.step(view(Some("a"), 2, &[primary("a", 1)])), ["cut 1 unplanned"]);
    assert_eq!(story.arrive(2, ReadWrite), NOTHING, "its key still says term 1");
    assert_eq!(story.step(view(Some("a"), 2, &[primary("a", 2)])), ["connect 2 a"]);
}

#[test]
fn patroni_leaders_are_told_apart_by_name() {
    let mut story = Story::new(config());
    let old = member("p", "master", None, "");
    story.step(view(Some("p"), 0, &[old.clone(), replica("q")]));
    story.open(1, ReadWrite, "p");
    let elected = view(Some("q"), 0, &[old, member("q", "primary", None, "")]);
    assert_eq!(story.step(elected), ["cut 1 unplanned"]);
    story.open(2, ReadWrite, "q");
    // Then a pgherd member takes over.
    let ours = view(Some("h"), 1, &[member("q", "primary", None, ""), primary("h", 1)]);
    assert_eq!(story.step(ours), ["cut 2 unplanned"]);
    story.open(3, ReadWrite, "h");
}

#[test]
fn the_dcs_going_away_changes_no_route() {
    let mut story = Story::new(config());
    assert_eq!(story.arrive(1, ReadWrite), NOTHING, "nothing is known yet");
    assert_eq!(story.step(Event::DcsBack), NOTHING);
    assert_eq!(story.step(view(Some("a"), 1, &[primary("a", 1)])), ["connect 1 a"]);
    story.connected(1);
    assert_eq!(story.step(Event::DcsLost), NOTHING);
    assert!(!story.router.snapshot().fresh);
    story.open(2, ReadWrite, "a");
}

#[test]
fn who_waits_too_long_is_told_what_for() {
    let mut story = Story::new(config());
    story.step(view(Some("a"), 1, &[member("a", "replica", None, "")]));
    let actions = story
        .router
        .step(Millis(1000), Event::ClientArrived { client: ClientId(1), port: ReadWrite });
    assert_eq!(actions, [Action::WakeAt(Millis(11_000))]);
    story.now = 10_999;
    assert_eq!(story.step(Event::Tick), NOTHING);
    story.now = 11_000;
    let actions = story.router.step(Millis(story.now), Event::Tick);
    let [Action::Refuse { client: ClientId(1), refusal }] = actions.as_slice() else {
        panic!("{actions:?}");
    };
    assert_eq!(refusal.sqlstate, "57P03");
    assert!(refusal.hint.contains("a leads and is awaited as primary"), "{}", refusal.hint);
    assert!(story.router.clients.is_empty() && story.router.deadlines.is_empty());
}

#[test]
fn a_silent_server_does_not_stretch_the_wait() {
    let mut story = Story::new(config());
    story.step(view(Some("a"), 1, &[primary("a", 1)]));
    assert_eq!(story.arrive(1, ReadWrite), ["connect 1 a"]);
    story.now += HOLD.0;
    assert_eq!(story.step(Event::Tick), ["refuse 1 57P03"]);
    assert_eq!(story.step(Event::ClientGone { client: ClientId(1) }), NOTHING);
    assert!(story.router.snapshot().connections.is_empty());
}

#[test]
fn too_many_waiting_clients_lose_the_oldest() {
    let mut story = Story::new(config());
    for client in 1..=3 {
        assert_eq!(story.arrive(client, ReadWrite), NOTHING);
    }
    assert_eq!(story.arrive(4, ReadOnly), ["refuse 1 57P03"]);
    let mut story = Story::new(RouterConfig { client_limit: 1, ..config() });
    story.arrive(1, ReadWrite);
    assert_eq!(story.arrive(2, ReadWrite), ["refuse 2 53300"]);
}

#[test]
fn a_primary_that_refuses_is_tried_by_one_client_at_a_time() {
    let mut story = Story::new(config());
    story.step(view(Some("a"), 1, &[primary("a", 1)]));
    for client in 1..=3 {
        assert_eq!(story.arrive(client, ReadWrite), [format!("connect {client} a")]);
    }
    for client in 1..=3 {
        assert_eq!(story.failed(client), NOTHING);
    }
    story.now += PRIMARY_RETRY.0 - 1;
    assert_eq!(story.step(Event::Tick), NOTHING);
    story.now += 1;
    assert_eq!(story.step(Event::Tick), ["connect 1 a"]);
    // The one who tries leaves: another one tries at once.
    assert_eq!(story.step(Event::ClientGone { client: ClientId(1) }), ["connect 2 a"]);
    assert_eq!(story.connected(2), ["connect 3 a"]);
    assert_eq!(story.router.snapshot().metrics.read_write.connect_failures, 3);
}

#[test]
fn the_retry_is_asked_for_as_a_wake_up() {
    let mut story = Story::new(config());
    story.step(view(Some("a"), 1, &[primary("a", 1)]));
    story.arrive(1, ReadWrite);
    let event = Event::ServerFailed { client: ClientId(1), attempt: 1 };
    assert_eq!(story.router.step(Millis(1000), event), [Action::WakeAt(Millis(1020))]);
}

#[test]
fn an_attempt_to_a_deposed_primary_is_taken_back() {
    let mut story = Story::new(config());
    story.step(view(Some("a"), 1, &[primary("a", 1), replica("b")]));
    assert_eq!(story.arrive(1, ReadWrite), ["connect 1 a"]);
    let elected = view(Some("b"), 2, &[primary("a", 1), primary("b", 2)]);
    assert_eq!(story.step(elected), ["hold 1", "connect 1 b"]);
    // The old attempt's late answer changes nothing.
    let late = Event::ServerConnected { client: ClientId(1), attempt: 1 };
    assert_eq!(story.step(late), NOTHING);
    assert_eq!(story.router.snapshot().metrics.read_write.connected, 0);
    assert_eq!(story.connected(1), NOTHING);
    assert_eq!(story.router.snapshot().metrics.read_write.connected, 1);
}

#[test]
fn reads_go_to_the_replica_with_the_fewest_connections() {
    let mut story = Story::new(config());
    story.step(view(Some("a"), 1, &[primary("a", 1), replica("b"), replica("c")]));
    story.open(1, ReadOnly, "b");
    story.open(2, ReadOnly, "c");
    story.step(Event::ClientGone { client: ClientId(1) });
    story.open(3, ReadOnly, "b");
    story.step(Event::ClientGone { client: ClientId(2) });
    story.step(Event::ClientGone { client: ClientId(3) });
    // Equal load goes round.
    story.open(4, ReadOnly, "c");
}

#[test]
fn unfit_replicas_get_no_reads_and_the_primary_stands_in() {
    let mut story = Story::new(RouterConfig { lag_bytes_max: Some(500), ..config() });
    let streaming = r#","replication_state":"streaming""#;
    let tagged = format!(r#"{streaming},"replay_lsn":1000,"tags":{{"noloadbalance":true}}"#);
    let unfit = [
        member("a", "primary", Some(1), r#","xlog_location":1600"#),
        member("behind", "replica", None, &format!(r#"{streaming},"replay_lsn":1000"#)),
        member("lost", "replica", None, streaming),
        member("tagged", "replica", None, &tagged),
        member("still", "replica", None, r#","replay_lsn":1600"#),
    ];
    story.step(view(Some("a"), 1, &unfit));
    story.open(1, ReadOnly, "a");
    let mut fit = unfit.to_vec();
    fit.push(member("fit", "replica", None, &format!(r#"{streaming},"replay_lsn":1100"#)));
    story.step(view(Some("a"), 1, &fit));
    story.open(2, ReadOnly, "fit");
    // The stand-in is bound to its term like any session of the primary.
    let elected = view(Some("fit"), 2, &[primary("a", 1), primary("fit", 2)]);
    assert_eq!(story.step(elected), ["cut 1 unplanned"]);
}

#[test]
fn a_replica_that_cannot_be_reached_is_left_out_for_a_while() {
    let mut story = Story::new(config());
    story.step(view(Some("a"), 1, &[primary("a", 1), replica("b"), replica("c")]));
    assert_eq!(story.arrive(1, ReadOnly), ["connect 1 b"]);
    assert_eq!(story.failed(1), ["connect 1 c"]);
    assert_eq!(story.failed(1), ["connect 1 a"]);
    assert_eq!(story.failed(1), NOTHING);
    story.now += PRIMARY_RETRY.0;
    assert_eq!(story.step(Event::Tick), ["connect 1 a"]);
    assert_eq!(story.connected(1), NOTHING);
    story.now += REPLICA_RETRY.0;
    assert_eq!(story.arrive(2, ReadOnly), ["connect 2 b"]);
}

#[test]
fn a_read_session_on_a_promoted_replica_is_cut_when_that_one_is_deposed() {
    let mut story = Story::new(config());
    story.step(view(Some("a"), 1, &[primary("a", 1), replica("b")]));
    story.open(1, ReadOnly, "b");
    let promoted = view(Some("b"), 2, &[primary("a", 1), primary("b", 2)]);
    assert_eq!(story.step(promoted), NOTHING);
    let deposed = view(Some("c"), 3, &[primary("b", 2), primary("c", 3)]);
    assert_eq!(story.step(deposed), ["cut 1 unplanned"]);
}

#[test]
fn a_lost_server_is_counted_once() {
    let mut story = Story::new(config());
    story.step(view(Some("a"), 1, &[primary("a", 1)]));
    story.open(1, ReadWrite, "a");
    assert_eq!(story.step(Event::ServerLost { client: ClientId(1) }), NOTHING);
    assert_eq!(story.step(Event::ClientGone { client: ClientId(1) }), NOTHING);
    let snapshot = story.router.snapshot();
    assert_eq!(snapshot.metrics.read_write.server_lost, 1);
    assert!(snapshot.connections.is_empty());
}

impl Story {
    /// A pool of two, and a view with a primary `a`.
    fn with_pool() -> (Story, PoolId) {
        let mut story = Story::new(config());
        let pool = story.router.add_pool("app", "app", 2);
        story.step(view(Some("a"), 1, &[primary("a", 1)]));
        (story, pool)
    }

    fn wants(&mut self, client: u64, pool: PoolId) -> Vec<String> {
        self.step(Event::Wants { client: ClientId(client), port: ReadWrite, pool })
    }

    fn returned(&mut self, server: u64) -> Vec<String> {
        self.step(Event::Returned { server: ServerId(server) })
    }

    fn opened(&mut self, server: u64) -> Vec<String> {
        self.step(Event::Opened { server: ServerId(server) })
    }
}

#[test]
fn a_pool_opens_up_to_its_size_and_serves_in_the_order_of_arrival() {
    let (mut story, pool) = Story::with_pool();
    assert_eq!(story.wants(1, pool), ["open 1 a"]);
    assert_eq!(story.wants(2, pool), ["open 2 a"]);
    assert_eq!(story.wants(3, pool), NOTHING, "the pool has two");
    assert_eq!(story.opened(2), ["lend 2 to 1"], "whichever comes first");
    assert_eq!(story.opened(1), ["lend 1 to 2"]);
    assert_eq!(story.returned(1), ["lend 1 to 3"]);
    assert_eq!(story.returned(2), NOTHING);
    assert_eq!(story.wants(2, pool), ["lend 2 to 2"]);
    let used = story.router.pool_use(pool);
    assert_eq!((used.lent, used.idle, used.waiting), (2, 0, 0));
    assert_eq!(story.router.snapshot().connections[&MemberName("a".to_owned())], 2);
}

#[test]
fn a_newer_term_takes_every_connection_of_the_old_primary() {
    let (mut story, pool) = Story::with_pool();
    story.wants(1, pool);
    story.opened(1);
    story.wants(2, pool);
    story.opened(2);
    story.returned(2);
    story.wants(3, pool);
    story.returned(2);
    assert_eq!(
        story.step(view(Some("b"), 2, &[primary("a", 1)])),
        ["take 1 from 1", "close 2"],
        "lent and idle"
    );
    assert_eq!(story.wants(1, pool), NOTHING, "the new primary is not there yet");
    let both = [primary("a", 1), primary("b", 2)];
    assert_eq!(story.step(view(Some("b"), 2, &both)), ["open 3 b"]);
    assert_eq!(story.returned(1), ["close 1"], "what comes late is not taken back");
    assert_eq!(story.opened(3), ["lend 3 to 1"]);
}

#[test]
fn who_waits_for_a_route_or_a_pool_is_told_which() {
    let (mut story, pool) = Story::with_pool();
    for client in 1..=3 {
        story.wants(client, pool);
    }
    story.opened(1);
    story.opened(2);
    story.now += 19_999;
    assert_eq!(story.step(Event::Tick), NOTHING);
    story.now += 1;
    assert_eq!(story.step(Event::Tick), ["refuse 3 53300"]);
    story.step(view(None, 1, &[member("a", "demoted", None, "")]));
    assert_eq!(story.wants(4, pool), NOTHING);
    story.now += HOLD.0;
    assert_eq!(story.step(Event::Tick), ["refuse 4 57P03"]);
    // The wait for a route counts from its end, not from the beginning of the wait.
    story.step(view(Some("a"), 2, &[primary("a", 2)]));
    story.wants(5, pool);
    story.now += HOLD.0 + 1;
    let demoted = view(None, 2, &[member("a", "demoted", None, "")]);
    assert_eq!(story.step(demoted), ["close 3"], "and nobody is refused");
}

#[test]
fn clients_of_pools_and_of_sessions_share_the_limit_of_who_is_held() {
    let mut story = Story::new(config());
    let pool = story.router.add_pool("app", "app", 2);
    assert_eq!(story.wants(1, pool), NOTHING);
    story.now += 1;
    assert_eq!(story.arrive(2, ReadWrite), NOTHING);
    story.now += 1;
    assert_eq!(story.wants(3, pool), NOTHING);
    let snapshot = story.router.snapshot();
    assert_eq!((snapshot.on_hold, snapshot.metrics.read_write.held), (3, 3));
    assert!(snapshot.targets(ReadWrite).is_empty() && snapshot.targets(ReadOnly).is_empty());
    story.now += 1;
    assert_eq!(story.arrive(4, ReadWrite), ["refuse 1 57P03"]);
    story.now += 1;
    assert_eq!(story.wants(5, pool), ["refuse 2 57P03"]);
    story.step(view(Some("a"), 1, &[primary("a", 1)]));
    let snapshot = story.router.snapshot();
    assert_eq!((snapshot.on_hold, snapshot.metrics.read_write.held), (0, 5));
    assert_eq!(snapshot.targets(ReadOnly), snapshot.targets(ReadWrite), "there is no replica");
}

#[test]
fn a_member_that_refuses_is_tried_by_one_connection_at_a_time() {
    let (mut story, pool) = Story::with_pool();
    story.wants(1, pool);
    story.wants(2, pool);
    assert_eq!(story.step(Event::OpenFailed { server: ServerId(1) }), NOTHING);
    assert_eq!(story.step(Event::OpenFailed { server: ServerId(2) }), NOTHING);
    story.now += 20;
    assert_eq!(story.step(Event::Tick), ["open 3 a"]);
    let refusal =
        Refusal { sqlstate: "28P01".to_owned(), message: "no".to_owned(), hint: String::new() };
    let refused = Event::OpenRefused { server: ServerId(3), refusal };
    assert_eq!(story.step(refused), ["refuse 1 28P01", "refuse 2 28P01"]);
}

#[test]
fn readers_of_a_pool_go_to_the_primary_while_no_replica_is_reached() {
    let mut story = Story::new(config());
    let pool = story.router.add_pool("app", "d", 2);
    story.step(view(Some("a"), 1, &[primary("a", 1), replica("b")]));
    let reads = |client| Event::Wants { client: ClientId(client), port: ReadOnly, pool };
    assert_eq!(story.step(reads(1)), ["open 1 b"]);
    assert_eq!(story.step(Event::OpenFailed { server: ServerId(1) }), ["open 2 a"]);
    assert_eq!(story.opened(2), ["lend 2 to 1"]);
    story.now += 2000;
    assert_eq!(story.step(reads(2)), ["open 3 b"], "it is tried again after a while");
}

#[test]
fn a_session_that_is_cleaned_is_nobodys_and_comes_back() {
    let (mut story, pool) = Story::with_pool();
    story.wants(1, pool);
    story.opened(1);
    story.step(Event::Cleans { server: ServerId(1) });
    assert_eq!(story.step(Event::ClientGone { client: ClientId(1) }), NOTHING);
    assert_eq!(story.wants(2, pool), ["open 2 a"]);
    assert_eq!(story.returned(1), ["lend 1 to 2"]);
    assert_eq!(story.opened(2), NOTHING);
    assert_eq!(story.step(Event::ClientGone { client: ClientId(2) }), NOTHING);
    assert_eq!(story.router.pool_use(pool).lent, 0, "it went with its client");
}

/// The view of a leader that has written a hold, and serves on.
fn held(id: u64) -> Event {
    held_with(id, primary("a", 1))
}

/// The view of a leader that has written a hold, with what its member key says now.
fn held_with(id: u64, (key, member): (String, String)) -> Event {
    let kv = |key: &str, value: String, modified: i64| KeyValue {
        key: key.to_owned(),
        value: value.into_bytes(),
        create_revision: Revision(101),
        mod_revision: Revision(modified),
        lease: 1,
    };
    let keys = [
        kv("leader", "a".to_owned(), 101),
        kv("pgherd/term", r#"{"term":1,"leader":"a","timeline":1}"#.to_owned(), 101),
        kv(&key, member, 101),
        kv("pgherd/hold", format!(r#"{{"id":{id},"until":4000,"why":"switchover"}}"#), 102),
    ];
    Event::View(Arc::new(ClusterView::from_keys(Revision(103), &keys)))
}

#[test]
fn a_hold_lets_transactions_end_and_begins_none() {
    let (mut story, pool) = Story::with_pool();
    story.open(10, ReadWrite, "a");
    story.wants(1, pool);
    story.opened(1);
    story.arrive(11, ReadWrite);
    assert_eq!(story.step(held(7)), ["drain 10", "hold 11", "drain 1"]);
    let snapshot = story.router.snapshot();
    assert_eq!((snapshot.hold, snapshot.busy), (Some(7), 2));
    assert!(snapshot.awaiting.unwrap().contains("for a switchover"));
    assert_eq!(story.wants(2, pool), NOTHING);
    assert_eq!(story.returned(1), NOTHING, "its transaction is over");
    assert_eq!(story.step(Event::ClientGone { client: ClientId(10) }), NOTHING);
    assert_eq!(story.router.snapshot().busy, 0);
    // It was given up: the old primary serves on.
    let served = story.step(view(Some("a"), 1, &[primary("a", 1)]));
    assert_eq!(served, ["lend 1 to 2", "connect 11 a"]);
}

/// A restart in place: the same member serves again, in the same term.
#[test]
fn a_hold_over_a_restart_ends_with_the_same_primary() {
    let (mut story, pool) = Story::with_pool();
    story.wants(1, pool);
    story.opened(1);
    story.returned(1);
    story.step(held(7));
    assert_eq!(story.wants(1, pool), NOTHING);
    let down = held_with(7, member("a", "replica", Some(1), ""));
    assert_eq!(story.step(down), ["close 1"], "it went with its server");
    let unpublished = member("a", "promoted", Some(1), "");
    assert_eq!(story.step(held_with(7, unpublished.clone())), NOTHING);
    assert_eq!(story.step(held(7)), NOTHING, "published, and held still");
    assert_eq!(story.step(view(Some("a"), 1, &[primary("a", 1)])), ["open 2 a"]);
    assert_eq!(story.opened(2), ["lend 2 to 1"]);
    // As well if the hold is gone first.
    story.returned(2);
    story.step(held(8));
    assert_eq!(story.wants(1, pool), NOTHING);
    assert_eq!(story.step(view(Some("a"), 1, &[unpublished])), ["close 2"]);
    assert_eq!(story.step(view(Some("a"), 1, &[primary("a", 1)])), ["open 3 a"]);
}

#[test]
fn a_hold_that_nobody_takes_away_ends_by_itself() {
    let (mut story, pool) = Story::with_pool();
    story.wants(1, pool);
    story.opened(1);
    story.returned(1);
    story.step(held(7));
    assert_eq!(story.wants(1, pool), NOTHING);
    story.now += 4000;
    assert_eq!(story.step(Event::Tick), ["lend 1 to 1"]);
    assert_eq!(story.step(held(7)), NOTHING, "the same one does not begin anew");
    assert_eq!(story.router.snapshot().hold, None);
    assert_eq!(story.step(held(8)), ["drain 1"]);
}

#[test]
fn operators_pause_and_replace_connections() {
    let (mut story, pool) = Story::with_pool();
    story.wants(1, pool);
    story.opened(1);
    story.wants(2, pool);
    story.opened(2);
    story.returned(2);
    let phases = |router: &Router| -> Vec<(ServerPhase, bool)> {
        router.servers().iter().map(|server| (server.phase, server.retired)).collect()
    };
    let lent = ServerPhase::Lent(ClientId(1));
    assert_eq!(phases(&story.router), [(lent, false), (ServerPhase::Idle, false)]);
    assert_eq!(story.step(Event::Reconnect), ["close 2"], "at rest");
    assert_eq!(phases(&story.router), [(lent, true)]);
    assert_eq!(story.router.lent_count(), 1);
    assert_eq!(story.returned(1), ["close 1"]);
    assert_eq!(story.router.lent_count(), 0);
    assert_eq!(story.step(Event::Pause), NOTHING);
    assert_eq!(story.wants(1, pool), NOTHING);
    assert!(story.router.snapshot().paused && story.router.is_paused());
    let waiting = Waiting { pool: Some(pool), since: Millis(story.now) };
    assert_eq!(story.router.waiting(), BTreeMap::from([(ClientId(1), waiting)]));
    assert_eq!(story.step(Event::Resume), ["open 3 a"]);
}

#[test]
fn pools_of_one_user_or_database_share_a_limit() {
    let limits = RouterConfig { max_user_connections: 2, max_db_connections: 3, ..config() };
    let mut story = Story::new(limits);
    let [one, two, other] = [("app", "one"), ("app", "two"), ("job", "two")]
        .map(|(u, d)| story.router.add_pool(u, d, 5));
    story.step(view(Some("a"), 1, &[primary("a", 1)]));
    assert_eq!(story.wants(1, one), ["open 1 a"]);
    assert_eq!(story.opened(1), ["lend 1 to 1"]);
    assert_eq!(story.wants(2, two), ["open 2 a"]);
    assert_eq!(story.opened(2), ["lend 2 to 2"]);
    assert_eq!(story.wants(3, two), NOTHING, "its user has two");
    assert_eq!(story.wants(4, other), ["open 3 a"]);
    assert_eq!(story.opened(3), ["lend 3 to 4"]);
    assert_eq!(story.returned(1), ["close 1", "open 4 a"], "an idle one of another pool goes");
    assert_eq!(story.wants(5, other), NOTHING, "the database has three");
    assert_eq!(story.opened(4), ["lend 4 to 3"]);
    assert_eq!(story.wants(6, one), NOTHING);
    let lost = story.step(Event::Lost { server: ServerId(2) });
    assert_eq!(lost, ["open 5 a", "open 6 a"], "one more of the user, and of the database");
}

/// Pools under random events: nobody has two connections, no connection two clients, none is of an
/// old term, and the size holds.
#[test]
fn random_stories_keep_the_pools() {
    let mut reads = 0;
    for seed in 1..=300 {
        let mut dice = Dice(seed);
        let mut story = Story::new(RouterConfig {
            max_user_connections: usize::try_from(dice.roll(4)).unwrap(),
            max_db_connections: usize::try_from(dice.roll(5)).unwrap(),
            ..config()
        });
        let pools = [
            story.router.add_pool("app", "one", 2),
            story.router.add_pool("app", "two", 3),
            story.router.add_pool("job", "two", 3),
        ];
        let mut lent: BTreeMap<u64, u64> = BTreeMap::new();
        let (mut opening, mut wanting) = (BTreeSet::new(), BTreeSet::new());
        let mut term = 1;
        for round in 1..=300 {
            story.now += dice.roll(100);
            let client = 1 + dice.roll(8);
            let some_lent = lent.iter().nth(usize::try_from(dice.roll(4)).unwrap());
            let some_lent = some_lent.map(|(server, client)| (*server, *client));
            let event = match dice.roll(14) {
                // In every other story the cluster is mostly at peace.
                0 if round == 1 || seed % 2 == 0 || dice.roll(10) == 0 => {
                    term += dice.roll(2);
                    random_view(&mut dice, term)
                }
                9..=13 => random_position(&mut dice, round, term),
                1..=3 if !wanting.contains(&client) && !lent.values().any(|c| *c == client) => {
                    wanting.insert(client);
                    let pool = pools[usize::try_from(dice.roll(3)).unwrap()];
                    let client = ClientId(client);
                    match dice.roll(5) {
                        0 => Event::Wants { client, port: ReadOnly, pool },
                        1 | 2 => Event::WantsRead { client, pool, written: Round(dice.roll(3)) },
                        _ => Event::Wants { client, port: ReadWrite, pool },
                    }
                }
                4 | 5 => match some_lent {
                    Some((server, _)) => {
                        lent.remove(&server);
                        Event::Returned { server: ServerId(server) }
                    }
                    None => Event::Tick,
                },
                6 => match some_lent {
                    Some((server, _)) => {
                        lent.remove(&server);
                        Event::Lost { server: ServerId(server) }
                    }
                    None => Event::Tick,
                },
                7 => match opening.pop_first() {
                    Some(server) if dice.roll(4) == 0 => Event::OpenFailed { server },
                    Some(server) => Event::Opened { server },
                    None => Event::Tick,
                },
                8 if dice.roll(3) == 0 => {
                    wanting.remove(&client);
                    lent.retain(|_, owner| *owner != client);
                    Event::ClientGone { client: ClientId(client) }
                }
                _ => Event::Tick,
            };
            for action in story.router.step(Millis(story.now), event) {
                match action {
                    Action::Open { server, .. } => assert!(opening.insert(server)),
                    Action::Lend { client, server } | Action::LendRead { client, server } => {
                        reads += usize::from(matches!(action, Action::LendRead { .. }));
                        assert!(wanting.remove(&client.0), "seed {seed}: {client} wants none");
                        assert!(lent.insert(server.0, client.0).is_none(), "seed {seed}: {server}");
                    }
                    Action::Take { server, .. } => assert!(lent.remove(&server.0).is_some()),
                    Action::Close { server } => {
                        opening.remove(&server);
                        assert!(!lent.contains_key(&server.0), "seed {seed}: {server}");
                    }
                    Action::Refuse { client, .. } => assert!(wanting.remove(&client.0)),
                    Action::Connect { .. }
                    | Action::Drain { .. }
                    | Action::Hold { .. }
                    | Action::Cut { .. }
                    | Action::WakeAt(_) => {}
                }
            }
            let owners: BTreeSet<u64> = lent.values().copied().collect();
            assert_eq!(owners.len(), lent.len(), "seed {seed}: somebody has two");
            story.router.pools.check(&story.router.routes, seed);
            let used = pools.map(|pool| story.router.pool_use(pool));
            assert_eq!(used.iter().map(|used| used.lent).sum::<usize>(), lent.len(), "seed {seed}");
            assert_eq!(used.iter().map(|used| used.waiting).sum::<usize>(), wanting.len());
        }
    }
    assert!(reads > 20, "{reads} reads went to replicas");
}

/// A small generator (xorshift), so that a seed is a story.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % sides
    }
}

/// What the router keeps in several places agrees.
fn check_books(router: &Router, seed: u64) {
    let mut connections = BTreeMap::new();
    let (mut waiting, mut unopened) = (0, 0);
    for (id, client) in &router.clients {
        match &client.phase {
            Phase::Held => {
                waiting += 1;
                let held = match client.port {
                    ReadWrite => &router.held_read_write,
                    ReadOnly => &router.held_read_only,
                };
                assert!(held.contains(id), "seed {seed}: {id} is lost");
            }
            Phase::Connecting(binding) | Phase::Open(binding) => {
                *connections.entry(binding.member.clone()).or_insert(0) += 1;
            }
        }
        if !matches!(client.phase, Phase::Open(_)) {
            unopened += 1;
            assert!(router.deadlines.contains(&(client.deadline, *id)), "seed {seed}: {id}");
        }
    }
    assert_eq!(router.connections, connections, "seed {seed}");
    assert_eq!(router.held_read_write.len() + router.held_read_only.len(), waiting, "seed {seed}");
    assert_eq!(router.deadlines.len(), unopened, "seed {seed}");
    assert!(waiting <= router.config.hold_limit, "seed {seed}");
    for gate in router.gates.values() {
        if let Gate::TriedBy(id) = gate {
            let phase = router.clients.get(id).map(|client| &client.phase);
            assert!(matches!(phase, Some(Phase::Connecting(_))), "seed {seed}: {id} tries");
        }
    }
}

/// No connection of a session or attempt outlives the term it was chosen in.
fn check_terms(router: &Router, seed: u64) {
    for (id, client) in &router.clients {
        match &client.phase {
            Phase::Held => {}
            Phase::Connecting(binding) | Phase::Open(binding) => {
                let bound = binding.primary_since;
                assert!(bound.is_some() || client.port == ReadOnly, "seed {seed}: {id} unbound");
                assert!(
                    bound.is_none_or(|t| t == router.routes.newest_term),
                    "seed {seed}: {id} is old"
                );
            }
        }
    }
}

/// What a member says of its WAL.
fn random_position(dice: &mut Dice, round: u64, term: u64) -> Event {
    let name = ["a", "b", "c"][usize::try_from(dice.roll(3)).unwrap()];
    let (member, lsn) = (MemberName(name.to_owned()), Lsn(dice.roll(5)));
    if dice.roll(3) == 0 {
        Event::WalEnds { round: Round(round), member, term: Term(term), lsn }
    } else {
        Event::Replayed { member, lsn: (dice.roll(9) > 0).then_some(lsn) }
    }
}

fn random_view(dice: &mut Dice, term: u64) -> Event {
    let names = ["a", "b", "c"];
    let leader = names[usize::try_from(dice.roll(3)).unwrap()];
    let members = names.map(|name| match dice.roll(4) {
        0 => member(name, "demoted", None, ""),
        1 if name != leader => primary(name, term.saturating_sub(1)),
        _ if name == leader => primary(name, term),
        _ => replica(name),
    });
    let present = dice.roll(4) > 0;
    view(present.then_some(leader), term, &members)
}

#[test]
fn random_stories_keep_the_books_and_the_terms() {
    for seed in 1..=300 {
        let mut dice = Dice(seed);
        let mut story = Story::new(config());
        let (mut term, mut arrived) = (1, 0);
        for _ in 0..200 {
            story.now += dice.roll(400);
            let client = ClientId(1 + dice.roll(arrived + 1));
            let attempt = story.router.clients.get(&client).map_or(0, |c| c.attempts);
            let event = match dice.roll(8) {
                0 => {
                    // Sometimes an old view: a store that was set back.
                    term += dice.roll(2);
                    let shown = if dice.roll(10) == 0 { term.saturating_sub(1) } else { term };
                    random_view(&mut dice, shown.max(1))
                }
                1 | 2 => {
                    arrived += 1;
                    let port = if dice.roll(2) == 0 { ReadWrite } else { ReadOnly };
                    Event::ClientArrived { client: ClientId(arrived), port }
                }
                3 => Event::ClientGone { client },
                4 | 5 => Event::ServerConnected { client, attempt },
                6 => Event::ServerFailed { client, attempt },
                _ => Event::Tick,
            };
            story.step(event);
            check_books(&story.router, seed);
            check_terms(&story.router, seed);
        }
    }
}

mod reads;
