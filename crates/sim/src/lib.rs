//! Whole clusters in virtual time: the brains are the production code, everything around them is a
//! model. A seed gives one story; the checkers of [`invariants`] judge it.
//!
//! Where to look: what is assumed of PostgreSQL is in `postgres`, of etcd in `store`; what goes
//! wrong in `faults`; what must hold in `invariants`.
//!
//! What this deliberately does not do: simulate bytes, SQL, or the proxy's connections.
#![forbid(unsafe_code)]

mod ailments;
mod commits;
mod data;
mod failsafe;
mod faults;
mod heartbeats;
mod instance;
pub mod invariants;
mod mistakes;
pub mod model;
mod node;
mod observe;
mod postgres;
mod proxies;
mod replication;
mod rng;
pub mod seeds;
mod shell;
mod store;
mod wal;
mod world;

use serde_json::{Value, json};
use types::{MemberName, Tags};

use crate::invariants::Violation;
use crate::node::{DRIFT_ZERO, Host};
use crate::rng::Rng;
use crate::world::{Event, World};

/// `synchronous_mode` of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Mode {
    /// Asynchronous.
    Off,
    /// All of the listed standbys confirm.
    On,
    /// Any of the listed standbys confirm.
    Quorum,
}

impl Mode {
    /// As the command line names it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Mode::Off => "off",
            Mode::On => "on",
            Mode::Quorum => "quorum",
        }
    }

    /// Reads [`Mode::name`].
    #[must_use]
    pub fn parse(text: &str) -> Option<Mode> {
        [Mode::Off, Mode::On, Mode::Quorum].into_iter().find(|mode| mode.name() == text)
    }
}

/// A known mistake, planted between the brain and the world to see the checkers catch it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Mutation {
    /// Whoever sees the leader key gone promotes, without the election and the lease.
    PromoteWithoutLease,
    /// Every member counts as a voter, and one pledge is enough.
    IgnoreSyncSet,
    /// The claim is counted from the renewal's answer instead of from before its request.
    ClaimFromReply,
    /// Positions are compared while the receivers still run.
    CompareRunningReceivers,
    /// A leader without the store goes on although a member has not agreed.
    FailsafeWithoutAll,
    /// An agent does not mind what the one before it may have promised.
    ForgetPromise,
    /// A voided fence leaves its pledges, and they count for the next one.
    CountWithdrawnPledges,
    /// The winner's transaction does not compare `/sync`; and, since that alone is covered by a
    /// leader's voiding, leaders overlook fences.
    WinWithoutSync,
    /// The winner does not write `/sync`; it leads as if it had.
    WinnerKeepsSync,
    /// Without synchronous replication an election waits for nobody.
    WaitForNobody,
}

/// What a run is made of. Equal setups give equal runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Setup {
    /// The source of all chance.
    pub seed: u64,
    /// Number of members, 1 to 5.
    pub members: usize,
    /// `synchronous_mode`.
    pub mode: Mode,
    /// `synchronous_mode_strict`.
    pub strict: bool,
    /// A planted mistake.
    pub mutation: Option<Mutation>,
    /// Every renewal but the first is answered late, and `stop_margin` is as small as it may be.
    pub slow_answers: bool,
    /// Only faults that take the leader key away under a living leader: there nothing but the fence
    /// protects.
    pub fence_only: bool,
    /// `failover_mode: fenced`, with more of the faults that lead to suspicions.
    pub fenced: bool,
    /// Only leaders that come back just when they are fenced, and are lost soon after.
    pub relapses: bool,
    /// Operators change `ttl`, and leaders lose the store about then.
    pub new_ttls: bool,
    /// A winner's transaction arrives late.
    pub slow_wins: bool,
    /// `failsafe_mode`, with more of the faults that it is for.
    pub failsafe: bool,
    /// More of the faults that leave PostgreSQL alive and of no use.
    pub ailing: bool,
    /// Proxies are registered, and leaders wait for them before a planned hand-over.
    pub proxies: bool,
    /// Whether to write the story.
    pub story: bool,
}

impl Setup {
    /// What a seed stands for: members and mode follow from it, most often three members.
    #[must_use]
    pub fn of_seed(seed: u64) -> Setup {
        let mut rng = Rng::new(seed.wrapping_mul(31).wrapping_add(7));
        let members = [3, 3, 3, 2, 4, 5, 3, 1][rng.index(8)];
        let mode = [Mode::Quorum, Mode::On, Mode::Off, Mode::Quorum][rng.index(4)];
        Setup {
            seed,
            members,
            mode,
            mutation: None,
            slow_answers: false,
            fence_only: false,
            slow_wins: false,
            relapses: false,
            new_ttls: false,
            failsafe: rng.chance(300),
            ailing: rng.chance(300),
            fenced: rng.chance(500),
            // Alone it would wait for ever, as it should.
            strict: rng.chance(250) && members > 1,
            proxies: rng.chance(400),
            story: false,
        }
    }
}

/// How a run ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// The first invariant that was broken.
    pub violation: Option<Violation>,
    /// Every event with its time, node and reason, if asked for.
    pub story: String,
    /// Commits acknowledged.
    pub acknowledged: usize,
    /// Promotions seen.
    pub promotions: usize,
    /// Holds that proxies followed.
    pub holds_answered: usize,
    /// Events that happened.
    pub events: u64,
}

/// Virtual time after the last fault until the judgement, in milliseconds.
const HEALING: u64 = 70_000;

/// How many proxies there are, if any.
const PROXIES: u64 = 2;

/// Runs one cluster through its faults and judges it.
///
/// # Panics
/// If the setup has no member or more than five, or if the brain breaks its contract with the
/// shell.
#[must_use]
pub fn run(setup: &Setup) -> Report {
    assert!((1..=5).contains(&setup.members), "{} members", setup.members);
    let mut rng = Rng::new(setup.seed);
    let heal = rng.range(30_000, 110_000);
    let faults = faults::plan(&mut rng, setup, heal);
    let mut world = World::empty(setup.clone(), rng);
    for index in 0..setup.members {
        let host = new_host(&mut world.rng, index, setup.members);
        world.hosts.push(host);
        let delay = world.rng.range(1, 2_000);
        world.after(delay, Event::HostBoot { node: index });
        world.after(delay, Event::NodeWriter { node: index });
    }
    if setup.proxies {
        for (index, number) in (0..PROXIES).enumerate() {
            let proxy = proxies::Proxy::new(setup.seed, number);
            world.after(proxy.begins(), Event::ProxyBeat { index });
            world.proxies.push(proxy);
        }
    }
    world.after(1, Event::AppWriter);
    for (index, fault) in faults.iter().enumerate() {
        world.after(fault.at, Event::Fault { index });
    }
    world.faults = faults;
    world.after(heal + 1, Event::Heal);
    world.after(heal + HEALING, Event::Judge);
    let (members, mode) = (setup.members, setup.mode.name());
    let strict = if setup.strict { " (strict)" } else { "" };
    world.tell_all(|| format!("{members} members, synchronous_mode {mode}{strict}"));
    world.run();
    conclude(world)
}

fn conclude(mut world: World) -> Report {
    let violation = world.checks.violation.take();
    let mut story = world.story.take().unwrap_or_default();
    if world.setup.story {
        match &violation {
            Some(v) => {
                story.push_str(&format!("VIOLATED {}: {} (at {} ms)\n", v.invariant, v.seen, v.at))
            }
            None => story.push_str("everything held\n"),
        }
    }
    Report {
        violation,
        story,
        acknowledged: world.checks.acknowledged.len(),
        promotions: world.checks.promotions.len(),
        holds_answered: world.checks.holds_answered,
        events: world.events,
    }
}

fn new_host(rng: &mut Rng, index: usize, members: usize) -> Host {
    let letter = char::from(b'a' + u8::try_from(index).unwrap_or(0));
    // Now and then the last member is one that never leads, as of a second site.
    let last = members >= 3 && index + 1 == members && rng.chance(150);
    Host {
        name: MemberName(letter.to_string()),
        tags: Tags::from(json!({ "nofailover": last, "nosync": last })),
        clock_offset: rng.range(1_000, 100_000),
        clock_drift: DRIFT_ZERO - 200 + rng.range(0, 400),
        up: false,
        frozen: 0,
        agent_frozen: 0,
        postmaster_frozen: 0,
        postmaster_silent_since: 0,
        slow_disk: 0,
        ailments: ailments::Ailments::default(),
        slow_replay: 0,
        dcs_cut: 0,
        agent: None,
        agents: 0,
        guard: None,
        disk: postgres::Disk::default(),
        postgres: None,
        deferred: Vec::new(),
    }
}

/// The dynamic configuration of a simulated cluster: what `pgherd init` recommends.
pub(crate) fn config_document(setup: &Setup, mode: Mode, node_count: u64, ttl: u64) -> Value {
    json!({
        "ttl": ttl / 1_000,
        "loop_wait": 2,
        "retry_timeout": 3,
        "failsafe_mode": setup.failsafe,
        "pgherd": { "failover_mode": if setup.fenced { "fenced" } else { "lease" } },
        "synchronous_mode": mode.name(),
        "synchronous_mode_strict": setup.strict,
        "synchronous_node_count": node_count,
        "postgresql": {
            "use_pg_rewind": true,
            "use_slots": true,
            "remove_data_directory_on_rewind_failure": true,
            "remove_data_directory_on_diverged_timelines": true,
        },
    })
}
