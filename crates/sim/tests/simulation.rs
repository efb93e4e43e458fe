//! The simulator's own tests: it is deterministic, its seeds hold, and it sees planted mistakes.
#![allow(clippy::unwrap_used)]

use sim::seeds::{REGRESSIONS, Regression};
use sim::{Mode, Mutation, Setup, run};

/// Seeds that every `cargo test` runs.
const SEEDS: u64 = 300;
/// Within so many seeds a planted mistake must be seen.
const SEEDS_PER_MISTAKE: u64 = 150;

fn of(seed: u64, members: usize, mode: Mode) -> Setup {
    let of_seed = Setup::of_seed(seed);
    let of_seed = Setup { proxies: false, strict: false, fenced: false, ..of_seed };
    Setup { members, mode, failsafe: false, ailing: false, ..of_seed }
}

#[test]
fn one_seed_run_twice_is_byte_for_byte_the_same() {
    for seed in [3, 17, 99] {
        let setup = Setup { story: true, ..Setup::of_seed(seed) };
        let (one, two) = (run(&setup), run(&setup));
        assert!(one.story.len() > 1_000);
        assert_eq!(one, two);
    }
}

#[test]
fn telling_the_story_changes_nothing() {
    for seed in 0..20 {
        let quiet = run(&Setup::of_seed(seed));
        let told = run(&Setup { story: true, ..Setup::of_seed(seed) });
        assert_eq!(quiet.events, told.events, "seed {seed}");
    }
}

#[test]
fn every_invariant_holds_over_the_fixed_seeds() {
    let mut promotions = 0;
    for seed in 0..SEEDS {
        let report = run(&Setup::of_seed(seed));
        assert_eq!(report.violation, None, "replay: cargo run -p sim -- --seed {seed}");
        promotions += report.promotions;
    }
    assert!(promotions > 100, "only {promotions} promotions: the faults do not bite");
}

#[test]
fn a_lease_of_another_length_promises_nothing_that_it_cannot_keep() {
    for seed in 0..100 {
        let mode = if seed % 2 == 0 { Mode::Off } else { Mode::Quorum };
        let setup = Setup { new_ttls: true, ..of(seed, 3, mode) };
        assert_eq!(run(&setup).violation, None, "{setup:?}");
    }
}

#[test]
fn seeds_that_failed_once_hold() {
    for regression in REGRESSIONS {
        let setup = of(regression.seed, regression.members, regression.mode);
        let Regression { fence_only, ailing, failsafe, fenced, new_ttls, .. } = *regression;
        let setup = Setup { fence_only, ailing, failsafe, fenced, new_ttls, ..setup };
        let Regression { proxies, strict, .. } = *regression;
        let report = run(&Setup { proxies, strict, ..setup });
        assert_eq!(report.violation, None, "{}: {regression:?}", regression.name);
    }
}

#[test]
fn every_invariant_holds_where_only_the_fence_protects() {
    for seed in 0..SEEDS {
        let setup = Setup { fence_only: true, ..of(seed, 3, Mode::Quorum) };
        assert_eq!(run(&setup).violation, None, "seed {seed} --fence-only yes");
    }
}

/// What hangs, is full or cannot be promoted is handed over, and leads to nothing worse.
#[test]
fn every_invariant_holds_where_postgresql_ails() {
    for seed in 0..SEEDS {
        let setup = Setup { ailing: true, failsafe: false, ..Setup::of_seed(seed) };
        assert_eq!(run(&setup).violation, None, "seed {seed} --ailing yes --failsafe no");
    }
}

/// Without synchronous replication nothing but the members' promises protects there.
#[test]
fn every_invariant_holds_where_only_the_promises_protect() {
    for seed in 0..SEEDS {
        let setup = Setup { failsafe: true, ..of(seed, 3, Mode::Off) };
        assert_eq!(run(&setup).violation, None, "seed {seed} --mode off --failsafe yes");
    }
}

/// Proxies that answer at once, late, never, or die: hand-overs wait for them, and end.
#[test]
fn every_invariant_holds_where_proxies_hold_their_clients() {
    let mut answered = 0;
    for seed in 0..SEEDS {
        let setup = Setup { proxies: true, ..Setup::of_seed(seed) };
        let report = run(&setup);
        assert_eq!(report.violation, None, "seed {seed} --proxies yes");
        answered += report.holds_answered;
    }
    assert!(answered > 100, "only {answered} holds were answered: nothing was held");
}

/// A stop for a successor that never ends, under a frozen postmaster that is killed then, is given
/// up after its limit.
#[test]
fn a_stop_that_does_not_end_is_given_up() {
    let setup = Setup { proxies: true, ailing: true, ..of(7210, 3, Mode::Quorum) };
    assert_eq!(run(&setup).violation, None, "{setup:?}");
}

/// No lease is waited for, whoever lives.
#[test]
fn every_invariant_holds_where_leaders_are_fenced() {
    let mut deposed = 0;
    for seed in 0..SEEDS {
        let setup = Setup { fenced: true, ..Setup::of_seed(seed) };
        assert_eq!(run(&setup).violation, None, "seed {seed} --fenced yes");
        if seed < 30 {
            let report = run(&Setup { story: true, ..setup });
            deposed += report.story.matches("leader_lost").count();
        }
    }
    assert!(deposed > 10, "only {deposed} leaders were lost: the silences do not bite");
}

#[test]
fn every_invariant_holds_where_winners_are_slow_and_leaders_come_back() {
    for seed in 0..SEEDS / 2 {
        let fenced = Setup { fenced: true, slow_wins: true, ..of(seed, 3, Mode::On) };
        assert_eq!(run(&fenced).violation, None, "{fenced:?}");
        let relapses = Setup { fenced: true, relapses: true, ..of(seed, 3, Mode::Quorum) };
        assert_eq!(run(&relapses).violation, None, "{relapses:?}");
    }
}

/// How many seeds break an invariant with the mistake; only those that hold without it count.
fn caught(mutation: Mutation, base: impl Fn(u64) -> Setup) -> usize {
    caught_within(SEEDS_PER_MISTAKE, mutation, base)
}

fn caught_within(seeds: u64, mutation: Mutation, base: impl Fn(u64) -> Setup) -> usize {
    let mut seen = 0;
    for seed in 0..seeds {
        let report = run(&Setup { mutation: Some(mutation), ..base(seed) });
        let broken = report.violation.is_some_and(|v| v.invariant.starts_with('I'));
        seen += usize::from(broken && run(&base(seed)).violation.is_none());
        if seen >= 2 {
            break;
        }
    }
    seen
}

#[test]
fn promoting_without_the_lease_is_caught() {
    let seen = caught(Mutation::PromoteWithoutLease, |seed| of(seed, 3, Mode::Quorum));
    assert!(seen >= 2);
}

#[test]
fn ignoring_the_sync_set_is_caught() {
    let seen = caught(Mutation::IgnoreSyncSet, |seed| of(seed, 3, Mode::Quorum));
    assert!(seen >= 2);
}

#[test]
fn counting_the_claim_from_the_answer_is_caught() {
    let seen = caught(Mutation::ClaimFromReply, |seed| Setup {
        slow_answers: true,
        ..of(seed, 3, Mode::Off)
    });
    assert!(seen >= 2);
}

#[test]
fn comparing_positions_of_running_receivers_is_caught() {
    let seen = caught(Mutation::CompareRunningReceivers, |seed| Setup {
        fence_only: true,
        ..of(seed, 3, Mode::Quorum)
    });
    assert!(seen >= 2);
}

#[test]
fn going_on_although_a_member_did_not_agree_is_caught() {
    let seen = caught(Mutation::FailsafeWithoutAll, |seed| Setup {
        failsafe: true,
        ..of(seed + 120, 3, Mode::Off)
    });
    assert!(seen >= 2);
}

#[test]
fn an_agent_that_does_not_mind_former_promises_is_caught() {
    // A leader that is not answered gives up early, which leaves little time for it.
    let two = |seed| Setup { failsafe: true, ..of(seed, 2, Mode::Off) };
    let seen = caught_within(400, Mutation::ForgetPromise, two);
    assert!(seen >= 2);
}

#[test]
fn counting_a_withdrawn_pledge_is_caught() {
    let seen = caught_within(700, Mutation::CountWithdrawnPledges, |seed| Setup {
        fenced: true,
        relapses: true,
        ..of(seed, 3, Mode::Quorum)
    });
    assert!(seen >= 2);
}

#[test]
fn a_win_that_is_not_conditional_on_the_set_is_caught() {
    let seen = caught(Mutation::WinWithoutSync, |seed| Setup {
        fenced: true,
        slow_wins: true,
        ..of(seed, 3, Mode::On)
    });
    assert!(seen >= 2);
}

#[test]
fn a_winner_that_does_not_write_the_set_is_caught() {
    let seen = caught_within(300, Mutation::WinnerKeepsSync, |seed| Setup {
        fenced: true,
        ..of(seed, 5, Mode::On)
    });
    assert!(seen >= 2);
}

#[test]
fn passing_over_who_was_not_heard_is_caught() {
    let seen = caught(Mutation::WaitForNobody, |seed| of(seed, 3, Mode::Off));
    assert!(seen >= 2);
}
