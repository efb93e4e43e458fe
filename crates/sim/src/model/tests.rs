use super::*;

/// A search: the bounds in which a removal is looked for.
#[derive(Clone, Copy)]
struct Search {
    faults: u8,
    kinds: &'static [Fault],
    terms: u8,
    fences: u8,
    writes: u8,
}

const PLAIN: Search = Search { faults: 0, kinds: &[], terms: 2, fences: 1, writes: 1 };
/// A fence is voided, and another one opened.
const AGAIN: Search = Search { fences: 2, ..PLAIN };
/// Two elections are won.
const TWICE: Search = Search { terms: 3, fences: 2, ..PLAIN };

fn setup(search: Search, without: &[Without]) -> Setup {
    Setup {
        kinds: search.kinds.iter().copied().collect(),
        terms: search.terms,
        fences: search.fences,
        writes: search.writes,
        without: without.iter().copied().collect(),
        ..Setup::new(3, search.faults)
    }
}

/// Each rule that is needed, alone or with its twins, with the search that shows it.
const NEEDED: &[(&[Without], Search)] = &[
    (&[Without::SyncCompared], PLAIN),
    // Voiding deletes fence and pledges together, so either comparison sees it.
    (&[Without::FenceCompared, Without::PledgesCompared], AGAIN),
    (&[Without::SyncWritten], TWICE),
    (&[Without::VotersCleared], TWICE),
    (&[Without::TermRaised], AGAIN),
    (&[Without::PledgeDurable], Search { faults: 1, kinds: &[Fault::Agent, Fault::Host], ..PLAIN }),
    (&[Without::ConninfoCleared], PLAIN),
    (&[Without::ReceiverGone], PLAIN),
    (&[Without::PositionReadAfter], PLAIN),
    (&[Without::PledgeWithdrawn], AGAIN),
    (&[Without::QuorumPlusOne], PLAIN),
    (&[Without::LogsCompared], TWICE),
    // Whoever takes over gives `/sync` another revision, so either comparison sees it.
    (&[Without::SyncWriteNeedsKey, Without::SyncWriteCompares], TWICE),
    (
        &[Without::SyncWriteCompares],
        Search { faults: 2, kinds: &[Fault::Late, Fault::Stream], ..PLAIN },
    ),
    (&[Without::VotersConfirmed], AGAIN),
    (&[Without::RuleTakenOver], AGAIN),
    (&[Without::SyncLoosenedFirst], PLAIN),
    (
        &[Without::UnknownWrittenAgain],
        Search { faults: 2, kinds: &[Fault::Late, Fault::Stream], ..PLAIN },
    ),
    (
        &[Without::FirstWriteAgain],
        Search { faults: 3, kinds: &[Fault::Late, Fault::Stream, Fault::Agent], ..PLAIN },
    ),
    (
        &[Without::RetakeCompares],
        Search { faults: 3, kinds: &[Fault::Late, Fault::Lease], writes: 0, ..TWICE },
    ),
];

/// Rules without which nothing breaks here. The module's documentation says what covers them.
const COVERED: &[Without] = &[
    Without::LeaderKeyCompared,
    Without::TermCompared,
    Without::TimelineReserved,
    Without::PledgeConditional,
    Without::OrderByTimeline,
    Without::PledgeBinds,
    Without::RetakeConfirmed,
    Without::OpenConditional,
    Without::VoidConditional,
];

#[test]
fn each_needed_rule_is_missed_when_it_is_taken_away() {
    for (without, search) in NEEDED {
        let report = check(&setup(*search, without), 2);
        eprintln!("without {without:?}: {}", report.summary());
        assert!(report.violation.is_some(), "without {without:?} nothing breaks");
    }
}

/// So no removal breaks something that the bounds themselves let happen.
#[test]
fn with_every_rule_the_same_searches_find_nothing() {
    let mut done: Vec<Setup> = Vec::new();
    // Larger ones are steps of `cargo xtask test` and `prove`.
    for (_, search) in NEEDED.iter().filter(|(_, search)| search.faults <= 1 && search.terms == 2) {
        let setup = setup(*search, &[]);
        if !done.contains(&setup) {
            assert_holds(&setup);
            done.push(setup);
        }
    }
}

#[test]
fn every_rule_is_accounted_for() {
    for rule in Without::ALL {
        let needed = NEEDED.iter().any(|(without, _)| without.contains(rule));
        let covered = COVERED.contains(rule) || *rule == Without::StuckVoided;
        assert!(needed != covered, "{} is in no list, or in two", rule.name());
    }
}

#[test]
fn no_fence_blocks_for_ever() {
    let setup = Setup { recovery: true, ..setup(AGAIN, &[]) };
    assert_holds(&setup);
}

#[test]
fn a_winner_that_does_not_act_blocks_for_ever_when_nobody_voids() {
    let setup = Setup { recovery: true, ..setup(PLAIN, &[Without::StuckVoided]) };
    let broken = check(&setup, 2).violation.map(|(property, _)| property);
    assert_eq!(broken, Some("no fence blocks for ever"));
}

#[test]
fn the_other_synchronous_modes_hold() {
    let on = Setup { mode: Mode::On, ..setup(AGAIN, &[]) };
    let both = Setup { wanted: 2, ..setup(PLAIN, &[]) };
    let strict = Setup { strict: true, ..setup(AGAIN, &[]) };
    for setup in [on, both, strict] {
        assert_holds(&setup);
    }
}

fn assert_holds(setup: &Setup) {
    let report = check(setup, 2);
    eprintln!("{setup:?}: {}", report.summary());
    if let Some((property, path)) = &report.violation {
        panic!("{path}broken: {property}");
    }
    assert!(report.reached.contains(LAST_TERM), "the model does nothing");
}
