//! Sites, and single reads of clients that came to the primary's port.

use types::Lsn;

use super::*;
use crate::freshness::Round;

/// A streaming replica of this site.
fn of_site(name: &str, site: &str) -> (String, String) {
    let more = r#","replication_state":"streaming","timeline":1,"tags":{"site":"#;
    member(name, "replica", None, &format!("{more}{site}}}"))
}

fn leader(name: &str, term: u64, site: &str) -> (String, String) {
    let more = format!(r#","timeline":{term},"tags":{{"site":{site}}}"#);
    member(name, "primary", Some(term), &more)
}

const EAST: &str = r#""east""#;
const WEST: &str = r#""west""#;

fn in_east() -> RouterConfig {
    RouterConfig { site: Some("east".to_owned()), ..config() }
}

#[test]
fn readers_stay_in_their_site_while_it_has_a_replica() {
    let mut story = Story::new(in_east());
    let members = [leader("a", 1, EAST), of_site("b", WEST), of_site("c", EAST)];
    story.step(view(Some("a"), 1, &members));
    story.open(1, ReadOnly, "c");
    story.open(2, ReadOnly, "c");
    assert_eq!(story.arrive(3, ReadOnly), ["connect 3 c"]);
    assert_eq!(story.failed(3), ["connect 3 b"]);
    // Sites may be numbers; without a site all are alike.
    let mut story = Story::new(RouterConfig { site: Some("7".to_owned()), ..config() });
    story.step(view(Some("a"), 1, &[leader("a", 1, EAST), of_site("b", "6"), of_site("c", "7")]));
    story.open(1, ReadOnly, "c");
    story.open(2, ReadOnly, "c");
    let mut story = Story::new(config());
    story.step(view(Some("a"), 1, &members));
    story.open(1, ReadOnly, "b");
    story.open(2, ReadOnly, "c");
}

#[test]
fn readers_of_a_pool_wait_in_their_site_rather_than_leave_it() {
    let mut story = Story::new(in_east());
    let pool = story.router.add_pool("app", "d", 1);
    let reads = |client| Event::Wants { client: ClientId(client), port: ReadOnly, pool };
    story.step(view(Some("a"), 1, &[leader("a", 1, WEST), of_site("b", WEST)]));
    assert_eq!(story.step(reads(1)), ["open 1 b"], "there is none in the own site");
    story.opened(1);
    story.returned(1);
    let members = [leader("a", 1, WEST), of_site("b", WEST), of_site("c", EAST)];
    story.step(view(Some("a"), 1, &members));
    assert_eq!(story.step(reads(1)), ["open 2 c"]);
    assert_eq!(story.opened(2), ["lend 2 to 1"]);
    assert_eq!(story.step(reads(2)), NOTHING, "though a connection to b is idle");
    assert_eq!(story.returned(2), ["lend 2 to 2"]);
    story.step(view(Some("a"), 1, &[leader("a", 1, WEST), of_site("b", WEST)]));
    assert_eq!(story.step(reads(3)), ["lend 1 to 3"]);
}

/// A router whose replicas are `members` without the first, with one pool.
struct Reads {
    story: Story,
    pool: PoolId,
    round: u64,
}

impl Reads {
    fn new(config: RouterConfig, members: &[(String, String)]) -> Reads {
        let mut story = Story::new(config);
        let pool = story.router.add_pool("app", "d", 2);
        story.step(view(Some("a"), 1, members));
        Reads { story, pool, round: 0 }
    }

    /// The primary is asked, then those replicas; they are at these positions.
    fn ask(&mut self, end: u64, replicas: &[(&str, u64)]) {
        self.round += 1;
        self.marks("a", 1, end);
        for (name, lsn) in replicas {
            self.replayed(name, Some(*lsn));
        }
    }

    fn marks(&mut self, name: &str, term: u64, end: u64) {
        let (round, member) = (Round(self.round), MemberName(name.to_owned()));
        let event = Event::WalEnds { round, member, term: Term(term), lsn: Lsn(end) };
        assert_eq!(self.story.step(event), NOTHING);
    }

    fn replayed(&mut self, name: &str, lsn: Option<u64>) {
        let member = MemberName(name.to_owned());
        let event = Event::Replayed { member, lsn: lsn.map(Lsn) };
        assert_eq!(self.story.step(event), NOTHING);
    }

    fn reads(&mut self, client: u64, written: u64) -> Vec<String> {
        let (client, pool) = (ClientId(client), self.pool);
        self.story.step(Event::WantsRead { client, pool, written: Round(written) })
    }

    /// A connection to the primary that is idle.
    fn with_primary(mut self) -> Reads {
        assert_eq!(self.story.wants(99, self.pool), ["open 1 a"]);
        self.story.opened(1);
        self.story.returned(1);
        self
    }
}

fn two() -> [(String, String); 2] {
    [leader("a", 1, EAST), of_site("b", EAST)]
}

#[test]
fn a_read_goes_to_a_replica_that_has_what_its_client_wrote() {
    let mut reads = Reads::new(config(), &two()).with_primary();
    assert_eq!(reads.reads(1, 0), ["lend 1 to 1"], "nothing is known of b");
    reads.story.returned(1);
    reads.ask(100, &[("b", 100)]);
    assert_eq!(reads.reads(1, 0), ["open 2 b", "lend 1 to 1"], "nobody waits for a replica");
    assert_eq!(reads.story.returned(1), NOTHING);
    assert_eq!(reads.reads(1, 0), ["lend 1 to 1"], "it is being opened");
    assert_eq!(reads.story.opened(2), NOTHING);
    assert_eq!(reads.story.returned(1), NOTHING);
    assert_eq!(reads.reads(1, 0), ["lend 1 to 1"], "b has not been asked since");
    assert_eq!(reads.story.returned(1), NOTHING);
    reads.ask(200, &[("b", 100)]);
    reads.ask(300, &[("b", 150)]);
    assert_eq!(reads.reads(1, 0), ["lend 2 to 1 to read"]);
    assert_eq!(reads.reads(2, 1), ["lend 1 to 2"], "it wrote when the first question was out");
    reads.story.returned(1);
    assert_eq!(reads.story.returned(2), NOTHING);
    reads.replayed("b", Some(200));
    assert_eq!(reads.reads(2, 1), ["lend 2 to 2 to read"]);
    assert_eq!(reads.reads(3, 2), ["lend 1 to 3"]);
}

#[test]
fn a_new_term_and_a_lost_session_prove_nothing() {
    let mut reads = Reads::new(config(), &two()).with_primary();
    for _ in 0..3 {
        reads.ask(100, &[("b", 100)]);
    }
    assert_eq!(reads.reads(1, 0), ["open 2 b", "lend 1 to 1"]);
    reads.story.returned(1);
    reads.story.opened(2);
    reads.ask(100, &[("b", 100)]);
    reads.ask(100, &[("b", 100)]);
    assert_eq!(reads.reads(1, 0), ["lend 2 to 1 to read"]);
    reads.story.returned(2);
    // Without a leader key, and without a primary at all, readers are still served.
    reads.story.step(view(None, 1, &two()));
    assert_eq!(reads.reads(1, 0), ["lend 2 to 1 to read"]);
    reads.story.returned(2);
    reads.replayed("b", None);
    reads.story.step(view(Some("a"), 1, &two()));
    assert_eq!(reads.reads(1, 0), ["lend 1 to 1"], "its session with the asker was lost");
    reads.story.returned(1);
    reads.ask(100, &[("b", 100)]);
    reads.ask(100, &[("b", 100)]);
    assert_eq!(reads.reads(1, 0), ["lend 2 to 1 to read"]);
    let elected = [leader("a", 2, EAST), of_site("b", EAST)];
    let taken = reads.story.step(view(Some("a"), 2, &elected));
    assert_eq!(taken, ["close 1"], "a read on a replica goes on");
    reads.story.returned(2);
    reads.round += 1;
    reads.marks("a", 2, 100);
    reads.replayed("b", Some(100));
    reads.replayed("b", Some(100));
    assert_eq!(reads.reads(1, 0), ["open 3 a"], "b is on the old timeline as far as is known");
    let rejoined = member("b", "replica", None, r#","replication_state":"streaming","timeline":2"#);
    reads.story.step(view(Some("a"), 2, &[elected[0].clone(), rejoined]));
    reads.replayed("b", Some(100));
    reads.replayed("b", Some(100));
    assert_eq!(reads.reads(2, 0), ["lend 2 to 2 to read"]);
}

#[test]
fn reads_leave_the_site_only_if_the_primary_is_elsewhere_too() {
    let far = [leader("a", 1, EAST), of_site("b", WEST), of_site("c", EAST)];
    let mut reads = Reads::new(in_east(), &far);
    reads.ask(100, &[("b", 100), ("c", 50)]);
    assert_eq!(reads.reads(1, 0), ["open 1 a"]);
    reads.ask(100, &[("b", 100), ("c", 100)]);
    assert_eq!(reads.reads(2, 0), ["open 2 c", "open 3 a"]);
    let all = [leader("a", 1, WEST), of_site("b", WEST), of_site("c", EAST)];
    let mut reads = Reads::new(in_east(), &all);
    reads.ask(100, &[("b", 100), ("c", 50)]);
    assert_eq!(reads.reads(1, 0), ["open 1 b", "open 2 a"]);
}

#[test]
fn reads_spread_over_replicas_up_to_the_size_of_the_pool() {
    let members = [leader("a", 1, EAST), of_site("b", EAST), of_site("c", EAST)];
    let mut reads = Reads::new(config(), &members).with_primary();
    let both = [("b", 100), ("c", 100)];
    reads.ask(100, &both);
    let mut lent = Vec::new();
    for client in 1..=9 {
        let told = reads.reads(client, 0);
        for line in &told {
            if let Some(server) = line.strip_prefix("open ").and_then(|l| l[..1].parse().ok()) {
                reads.story.opened(server);
                reads.ask(100, &both);
                reads.ask(100, &both);
            }
            if let Some(lend) = line.strip_suffix("to read") {
                lent.push(lend.to_owned());
            }
        }
        // Whoever had the primary's leaves it to the next.
        reads.story.step(Event::ClientGone { client: ClientId(client + 100) });
        if told.iter().any(|line| line.starts_with("lend 1 to") && !line.ends_with("read")) {
            reads.story.returned(1);
        }
    }
    assert_eq!(lent.len(), 4, "two at each: {lent:?}");
    let uses = reads.story.router.servers();
    let at = |name: &str| uses.iter().filter(|u| u.member.0 == name).count();
    assert_eq!((at("b"), at("c"), at("a")), (2, 2, 1), "the rest is the primary's");
}

#[test]
fn a_replica_that_refuses_a_pool_refuses_nobody_of_the_primarys_port() {
    let mut reads = Reads::new(config(), &two());
    reads.ask(100, &[("b", 100)]);
    assert_eq!(reads.reads(1, 0), ["open 1 b", "open 2 a"], "one does not wait for the other");
    let refusal =
        Refusal { sqlstate: "28000".to_owned(), message: "no".to_owned(), hint: String::new() };
    let refused = Event::OpenRefused { server: ServerId(1), refusal };
    assert_eq!(reads.story.step(refused), NOTHING);
    assert_eq!(reads.story.opened(2), ["lend 2 to 1"]);
    reads.story.returned(2);
    assert_eq!(reads.reads(1, 0), ["lend 2 to 1"], "it is left alone for a while");
    reads.story.returned(2);
    reads.story.now += REPLICA_RETRY.0;
    assert_eq!(reads.reads(1, 0), ["open 3 b", "lend 2 to 1"]);
    assert_eq!(reads.story.step(Event::OpenFailed { server: ServerId(3) }), NOTHING);
    reads.story.returned(2);
    assert_eq!(reads.reads(1, 0), ["lend 2 to 1"]);
}

#[test]
fn a_replica_that_does_not_answer_keeps_nobody_from_the_primary() {
    let mut reads = Reads::new(config(), &two());
    let pool = reads.pool;
    let wants = Event::Wants { client: ClientId(1), port: ReadOnly, pool };
    assert_eq!(reads.story.step(wants), ["open 1 b"]);
    assert_eq!(reads.story.wants(2, pool), ["open 2 a"]);
}

#[test]
fn a_pause_is_for_reads_too_and_no_switchover_waits_for_them() {
    let mut reads = Reads::new(config(), &two()).with_primary();
    for _ in 0..2 {
        reads.ask(100, &[("b", 100)]);
        reads.reads(1, 0);
        reads.story.opened(2);
        reads.story.returned(1);
    }
    reads.ask(100, &[("b", 100)]);
    reads.story.step(Event::Pause);
    assert_eq!(reads.reads(1, 0), NOTHING);
    assert_eq!(reads.story.step(Event::Resume), ["lend 1 to 1"]);
    reads.story.returned(1);
    assert_eq!(reads.reads(1, 0), ["lend 2 to 1 to read"]);
    assert_eq!(reads.story.router.snapshot().busy, 0, "no switchover waits for it");
}
