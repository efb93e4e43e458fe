//! The election checked exhaustively: every order of events in small clusters, within bounds.
//!
//! The decisions are production code: [`decide::election::next_move`] with its counting, order and
//! winner's transaction, [`decide::election::binds`], [`decide::sync_set::next_step`],
//! [`types::compare_with_leader`]. Modelled are the store (`transactions`), PostgreSQL
//! (`replication`, with the assumptions A7, A8 and A17 of `postgres`), and the outline of the brain
//! around those functions (`look`, `lead`), where every wait is both over and not over. stateright
//! explores all of it; `sim --model 3 --faults 1` does so from the command line, and `--without
//! RULE` prints the shortest way to what breaks without a rule.
//!
//! # What may happen
//! Any voter may suspect the leader at any time, with enough others. A winner's transaction arrives
//! at any later time or never, whatever happened meanwhile. A leader acts on its last picture of
//! the store for as long as it likes, and a deposed one runs on. At the cost of a fault each: any
//! other request comes late or never, and its answer too; a standby's report comes late; a stream
//! is cut; a host, a primary's PostgreSQL or an agent crashes; the leader's lease ends while its
//! holder runs on. No claim and no guard: the fence alone protects.
//!
//! # What must hold
//! | property | invariant |
//! |---|---|
//! | nothing acknowledged is lost | I2: who is promoted in the newest term has every commit |
//! | one acknowledging writer | I1: an older term acknowledges only what the newest leader has |
//! | a timeline number is used once | two promotions never share one |
//! | no fence blocks for ever | from each state a fair schedule recovers (`recovery`) |
//!
//! # What makes it finite
//! Faults, commits of clients, terms and fences are counted. A request that is not late arrives in
//! the step that makes it: what happens in between could as well have happened before. A number
//! that is only compared is named by where it stands (`canonical`). Not modelled: cascading,
//! members without pgherd, operators' words, priorities, lost data directories, switchovers.
//! Three names of rules at once (an agent restarts while sessions still take a rule over, and sets
//! another) are not either: the agent waits.
//!
//! # What is needed, and what is covered
//! `tests` takes each rule of [`Without`] away and finds what breaks. Two pairs are twins: the
//! comparison of the fence and that of the pledges (voiding deletes both); a write of `/sync` on
//! condition of the leader key and on condition of `/sync` (whoever takes over writes it; alone the
//! latter is needed too, against a leader's own late write). Without these nothing breaks here:
//! - `leader-key-compared`, `term-compared`: whoever takes the leadership also writes `/sync` and
//!   deletes the fence, which are compared. A key that is gone harms nobody.
//! - `timeline-reserved`: a new term's `/sync` names the winner alone, so whoever could win next
//!   has the record with which the last promotion began its timeline. An operator's word, which is
//!   not modelled, gets around that.
//! - `order-by-timeline`: for the same reason all voters of one set are on its leader's timeline.
//! - `pledge-conditional`: a pledge names its fence, which is looked at when it is counted.
//! - `pledge-binds`: while the fence is open, a pledged member goes on with the election and does
//!   not come to the question.
//! - `retake-confirmed`: a leader's own log has all that it acknowledged. The rule is for what
//!   clients read.
//! - `open-conditional`: a fence that is out of date is void.
//! - `void-conditional`: a fence that is voided too late costs time.

mod canonical;
mod lead;
mod log;
mod look;
mod recovery;
mod replication;
mod state;
mod step;
mod story;
mod transactions;
mod without;

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use stateright::{Checker, DiscoveryClassification, HasDiscoveries, Model, Property};

pub use look::Mood;
pub use state::State;
pub use step::{Fault, Step};
pub use without::Without;

use crate::Mode;
use log::Log;
use state::{
    Audit, Lead, LeaderKey, MEMBERS_MAX, Member, Members, Postgres, Primary, Rule, Set, Store,
    TermKey, Violation,
};

/// What must happen somewhere, so that the rest says something.
pub const LAST_TERM: &str = "the last term acknowledges";

/// What is explored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Setup {
    /// Number of members, 2 to 4.
    pub members: u8,
    /// `synchronous_mode`, not `off`.
    pub mode: Mode,
    /// `synchronous_node_count`.
    pub wanted: u8,
    /// `synchronous_mode_strict`.
    pub strict: bool,
    /// How many faults may happen.
    pub faults: u8,
    /// Of which kinds.
    pub kinds: BTreeSet<Fault>,
    /// How many commits clients may send.
    pub writes: u8,
    /// The last term; the first is 1.
    pub terms: u8,
    /// How many fences may be opened.
    pub fences: u8,
    /// How many requests may be under way.
    pub requests: usize,
    /// Whether to check that the cluster recovers from each state, which takes ten times as long.
    pub recovery: bool,
    /// It ends after about so many steps, shortest ways first.
    pub steps: Option<usize>,
    /// Rules that are taken away.
    pub without: BTreeSet<Without>,
}

impl Setup {
    /// The usual bounds for so many members and faults.
    #[must_use]
    pub fn new(members: u8, faults: u8) -> Setup {
        Setup {
            members,
            mode: Mode::Quorum,
            wanted: 1,
            strict: false,
            faults,
            kinds: Fault::ALL.iter().map(|(fault, _)| *fault).collect(),
            writes: 1,
            terms: 2,
            fences: 1,
            requests: 2,
            recovery: false,
            steps: None,
            without: BTreeSet::new(),
        }
    }
}

/// The model.
#[derive(Debug, Clone)]
pub struct Election {
    setup: Setup,
}

impl Election {
    /// A model of this setup.
    #[must_use]
    pub fn new(setup: Setup) -> Election {
        Election { setup }
    }

    fn lacks(&self, rule: Without) -> bool {
        self.setup.without.contains(&rule)
    }
}

impl Model for Election {
    type State = State;
    type Action = Step;

    fn init_states(&self) -> Vec<State> {
        vec![initial(&self.setup)]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Step>) {
        self.steps(state, actions);
    }

    fn next_state(&self, last: &State, action: Step) -> Option<State> {
        self.after(last, action)
    }

    fn properties(&self) -> Vec<Property<Election>> {
        vec![
            Property::always("nothing acknowledged is lost", |_, state: &State| {
                let (newest, _) = state.audit.newest;
                state.audit.violation != Some(Violation::Lost)
                    && state.member(newest).log.holds(&state.audit.acknowledged)
            }),
            Property::always("one acknowledging writer", |_, state: &State| {
                state.audit.violation != Some(Violation::TwoWriters)
            }),
            Property::always("a timeline number is used once", |_, state: &State| {
                state.audit.violation != Some(Violation::TimelineTwice)
            }),
            Property::always("no fence blocks for ever", |model: &Election, state: &State| {
                !model.setup.recovery || model.recovers(state)
            }),
            Property::sometimes(LAST_TERM, |model, state: &State| {
                let (newest, term) = state.audit.newest;
                let last = state.audit.acknowledged.records().last();
                term == model.setup.terms && last.is_some_and(|(_, writer)| writer == newest)
            }),
        ]
    }
}

/// The first member leads in term 1, the others stream from it and vote.
fn initial(setup: &Setup) -> State {
    let others = Members::all(setup.members).without(0);
    let number = setup.wanted.min(setup.members - 1);
    let mut log = Log::default();
    log.push(1, 0);
    let length = log.length();
    let member = |id: u8| Member {
        log,
        pledge: None,
        term: 1,
        conninfo: (id != 0).then_some(0),
        postgres: Postgres::Standby,
        receiver: (id != 0).then_some(0),
        stopping: None,
        lead: None,
        rule: Rule::default(),
        next_rule: None,
        changed_at: None,
        released: 0,
        heard: [0; MEMBERS_MAX],
        sent: [0; MEMBERS_MAX],
    };
    let mut members: Vec<Member> = (0..setup.members).map(member).collect();
    let set = Set { leader: 0, quorum: setup.members - 1 - number, voters: others };
    let leader = &mut members[0];
    leader.postgres = Postgres::Primary(Primary { term: 1, timeline: 1, begun: 0 });
    leader.lead = Some(Lead {
        key: 1,
        sync: set,
        sync_rev: 2,
        writing: false,
        unknown: false,
        setting: false,
        releasing: false,
    });
    leader.rule = Rule { number, names: others };
    leader.changed_at = Some(length);
    leader.released = length;
    for id in others.iter() {
        leader.heard[usize::from(id)] = length;
        leader.sent[usize::from(id)] = length;
    }
    State {
        store: Store {
            leader: Some(LeaderKey { holder: 0, rev: 1 }),
            sync: set,
            sync_rev: 2,
            term: TermKey { term: 1, leader: 0, timeline: 1, position: None, rev: 1 },
            fence: None,
            pledges: [None; MEMBERS_MAX],
        },
        members,
        requests: Vec::new(),
        audit: Audit { acknowledged: log, newest: (0, 1), timelines: 1 << 1, violation: None },
        faults: setup.faults,
        writes: setup.writes,
        fences: setup.fences,
    }
}

/// What came out.
#[derive(Debug, Clone)]
pub struct Report {
    /// A property that does not hold, and the way there.
    pub violation: Option<(&'static str, String)>,
    /// States that differ.
    pub states: usize,
    /// Steps tried.
    pub steps: usize,
    /// The longest shortest way to a state.
    pub depth: usize,
    /// What should happen somewhere, and does.
    pub reached: BTreeSet<&'static str>,
    /// It ended before everything was explored.
    pub cut: bool,
    /// How long it took.
    pub took: Duration,
}

impl Report {
    /// How much was explored, in a line.
    #[must_use]
    pub fn summary(&self) -> String {
        let Report { states, steps, depth, took, .. } = self;
        let cut = if self.cut { ", cut short: not everything" } else { "" };
        format!("{states} states, {steps} steps, depth {depth}, {:.1} s{cut}", took.as_secs_f64())
    }
}

/// Explores everything, or until a property is found not to hold.
#[must_use]
pub fn check(setup: &Setup, threads: usize) -> Report {
    let begun = Instant::now();
    let model = Election::new(setup.clone());
    let mut builder = model.checker().threads(threads).finish_when(HasDiscoveries::AnyFailures);
    if let Some(steps) = setup.steps {
        builder = builder.target_state_count(steps);
    }
    let checker = builder.spawn_bfs().join();
    let mut violation = None;
    let mut reached = BTreeSet::new();
    for (name, path) in checker.discoveries() {
        if matches!(checker.discovery_classification(name), DiscoveryClassification::Example) {
            reached.insert(name);
            continue;
        }
        let mut text = String::new();
        let steps = path.into_vec();
        for (at, action) in &steps {
            text.push_str(&story::state(at));
            if let Some(action) = action {
                text.push_str(&format!("{}\n", story::step(at, *action)));
            }
        }
        violation = Some((name, text));
    }
    Report {
        violation,
        states: checker.unique_state_count(),
        steps: checker.state_count(),
        depth: checker.max_depth(),
        cut: setup.steps.is_some_and(|limit| checker.state_count() >= limit),
        reached,
        took: begun.elapsed(),
    }
}

#[cfg(test)]
mod tests;
