use std::collections::VecDeque;

use super::*;

type Names = BTreeSet<MemberName>;

/// A span of commits acknowledged under one rule: any `number` of `names` hold each of them, and so
/// does everybody in `covered`, who confirmed a position past the span's end.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Era {
    names: Names,
    number: usize,
    covered: Names,
}

/// One state of the leader's bookkeeping, with everything that was ever acknowledged.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct World {
    sync: Option<(usize, Names)>,
    names: Names,
    number: usize,
    taken_over: bool,
    active: Names,
    confirmed: Names,
    past: BTreeSet<Era>,
}

fn subsets(of: &Names, size: usize) -> Vec<Names> {
    let items: Vec<&MemberName> = of.iter().collect();
    (0_u32..1 << items.len())
        .filter(|mask| mask.count_ones() as usize == size)
        .map(|mask| {
            let chosen = items.iter().enumerate().filter(|(i, _)| mask & (1 << i) != 0);
            chosen.map(|(_, name)| (*name).clone()).collect()
        })
        .collect()
}

impl World {
    fn picture(&self, mode: SynchronousMode, wanted: usize, strict: bool) -> SyncPicture {
        let me = MemberName::from("a");
        SyncPicture {
            me: me.clone(),
            mode,
            strict,
            wanted,
            sync: self.sync.clone().map(|(quorum, voters)| SyncState {
                leader: Some(me),
                quorum,
                voters,
            }),
            names: SyncNames { number: self.number, names: self.names.clone() },
            taken_over: self.taken_over,
            active: self.active.iter().cloned().collect(),
            confirmed: self.confirmed.clone(),
        }
    }

    fn apply(&self, step: &SyncStep) -> World {
        let mut next = self.clone();
        match step {
            SyncStep::Settled | SyncStep::Wait => {}
            SyncStep::Write(sync) => next.sync = Some((sync.quorum, sync.voters.clone())),
            SyncStep::Set(rule) => {
                if self.number > 0 {
                    // An earlier span under the same rule that is better covered says less.
                    next.past.retain(|e| (&e.names, e.number) != (&self.names, self.number));
                    next.past.insert(Era {
                        names: self.names.clone(),
                        number: self.number,
                        covered: Names::new(),
                    });
                }
                let names = match rule {
                    SyncRule::Off => SyncNames::default(),
                    SyncRule::First(names) | SyncRule::Any(names) => names.clone(),
                };
                next.names = names.names;
                next.number = names.number;
                next.taken_over = true;
                next.confirmed = Names::new();
            }
        }
        next
    }

    fn confirm(&self, name: &MemberName, everybody: &Names) -> World {
        let mut next = self.clone();
        next.confirmed.insert(name.clone());
        next.past = self
            .past
            .iter()
            .map(|era| {
                let mut era = era.clone();
                era.covered.insert(name.clone());
                era
            })
            .filter(|era| era.covered != *everybody)
            .collect();
        next
    }

    fn toggle(&self, name: &MemberName) -> World {
        let mut next = self.clone();
        if !next.active.remove(name) {
            next.active.insert(name.clone());
        }
        next.confirmed.remove(name);
        next
    }

    /// Every group that could elect meets every group that could have acknowledged.
    fn check(&self) -> Result<(), String> {
        let Some((quorum, voters)) = &self.sync else {
            return Ok(());
        };
        if voters.is_empty() {
            return Ok(());
        }
        let present = Era { names: self.names.clone(), number: self.number, covered: Names::new() };
        if self.number == 0 {
            return Err("voters while commits wait for nobody".to_owned());
        }
        for group in subsets(voters, quorum + 1) {
            for era in self.past.iter().chain([&present]) {
                for acked in subsets(&era.names, era.number) {
                    let holds =
                        |name: &MemberName| acked.contains(name) || era.covered.contains(name);
                    if !group.iter().any(holds) {
                        return Err(format!("{group:?} elects without {acked:?} of {era:?}"));
                    }
                }
            }
        }
        Ok(())
    }
}

/// So many states are looked at, nearest first; two standbys have fewer.
const STATES_MAX: usize = 12_000;

/// Walks the states that comings, goings and confirmations of the standbys can lead to.
fn explore(
    standbys: &[&str],
    mode: SynchronousMode,
    wanted: usize,
    next_of: impl Fn(&SyncPicture) -> SyncStep,
) -> Result<usize, String> {
    let standbys: Names = standbys.iter().copied().map(MemberName::from).collect();
    let start = World {
        sync: None,
        names: standbys.clone(),
        number: wanted,
        taken_over: false,
        active: Names::new(),
        confirmed: Names::new(),
        past: BTreeSet::new(),
    };
    let mut seen = BTreeSet::from([start.clone()]);
    let mut queue = VecDeque::from([start]);
    while let Some(world) = queue.pop_front() {
        world.check().map_err(|why| format!("{why}\nin {world:?}"))?;
        let step = next_of(&world.picture(mode, wanted, false));
        let mut following = vec![world.apply(&step)];
        for name in &standbys {
            following.push(world.toggle(name));
            if world.active.contains(name) && world.names.contains(name) && world.taken_over {
                following.push(world.confirm(name, &standbys));
            }
        }
        for next in following {
            if seen.len() < STATES_MAX && seen.insert(next.clone()) {
                queue.push_back(next);
            }
        }
    }
    Ok(seen.len())
}

#[test]
fn no_election_misses_an_acknowledged_commit_in_any_intermediate_state() {
    for mode in [SynchronousMode::On, SynchronousMode::Quorum] {
        for wanted in [1, 2] {
            let few = explore(&["b", "c"], mode, wanted, next_step).expect("safe in every state");
            assert!((50..STATES_MAX).contains(&few), "{few} states, so not all were seen");
            explore(&["b", "c", "d"], mode, wanted, next_step).expect("safe in every state");
        }
    }
}

#[test]
fn adding_a_voter_before_it_confirmed_is_found() {
    let hasty = |picture: &SyncPicture| {
        let mut picture = picture.clone();
        picture.confirmed = picture.names.names.clone();
        next_step(&picture)
    };
    assert!(explore(&["b", "c", "d"], SynchronousMode::Quorum, 1, hasty).is_err());
}

#[test]
fn changing_the_names_before_the_voters_is_found() {
    let reversed = |picture: &SyncPicture| match next_step(picture) {
        SyncStep::Write(_) if picture.sync.is_some() && picture.taken_over => {
            let active: Names = picture.active.iter().cloned().collect();
            let number = picture.wanted.min(active.len());
            let names = SyncNames { number, names: active };
            if names == picture.names {
                next_step(picture)
            } else {
                SyncStep::Set(rule(picture.mode, names))
            }
        }
        step => step,
    };
    assert!(explore(&["b", "c", "d"], SynchronousMode::Quorum, 1, reversed).is_err());
}

#[test]
fn a_settled_quorum_lists_everyone_who_streams() {
    let names: Names = ["b", "c"].into_iter().map(MemberName::from).collect();
    let world = World {
        sync: Some((1, names.clone())),
        names: names.clone(),
        number: 1,
        taken_over: true,
        active: names,
        confirmed: Names::new(),
        past: BTreeSet::new(),
    };
    let picture = world.picture(SynchronousMode::Quorum, 1, false);
    assert_eq!(next_step(&picture), SyncStep::Settled);
}

#[test]
fn strict_mode_waits_for_a_name_that_nobody_has() {
    let world = World {
        sync: Some((0, Names::new())),
        names: Names::new(),
        number: 0,
        taken_over: true,
        active: Names::new(),
        confirmed: Names::new(),
        past: BTreeSet::new(),
    };
    let step = next_step(&world.picture(SynchronousMode::Quorum, 1, true));
    let SyncStep::Set(SyncRule::Any(names)) = step else {
        panic!("{step:?}");
    };
    assert!(names.names.contains(&MemberName::from(STRICT_PLACEHOLDER)));
}

/// The step with `*` in force, `/sync` with these voters, and these standbys.
fn step_from_everybody(mode: SynchronousMode, voters: &[&str], active: &[&str]) -> SyncStep {
    let names = |names: &[&str]| names.iter().map(|n| MemberName::from(*n)).collect::<Names>();
    let quorum = if mode == SynchronousMode::Quorum { voters.len().saturating_sub(1) } else { 0 };
    let world = World {
        sync: Some((quorum, names(voters))),
        names: names(&["*"]),
        number: 1,
        taken_over: true,
        active: names(active),
        confirmed: names(&["*"]),
        past: BTreeSet::new(),
    };
    next_step(&world.picture(mode, 1, true))
}

#[test]
fn a_rule_that_everybody_fulfils_is_replaced_at_once_by_the_one_that_sync_was_made_for() {
    let names = |number, names: &[&str]| SyncNames {
        number,
        names: names.iter().map(|n| MemberName::from(*n)).collect(),
    };
    let (on, quorum) = (SynchronousMode::On, SynchronousMode::Quorum);
    let any = |number, of: &[&str]| SyncStep::Set(SyncRule::Any(names(number, of)));
    let first = |number, of: &[&str]| SyncStep::Set(SyncRule::First(names(number, of)));
    assert_eq!(step_from_everybody(quorum, &["b", "c"], &["c"]), any(1, &["b", "c"]));
    assert_eq!(step_from_everybody(on, &["b"], &["c"]), first(1, &["b"]));
    // Without voters nothing has to be kept.
    assert_eq!(step_from_everybody(quorum, &[], &["c"]), any(1, &["c"]));
    assert_eq!(step_from_everybody(quorum, &[], &[]), any(1, &[STRICT_PLACEHOLDER]));
    assert_eq!(rule(quorum, names(2, &["*", "b"])), SyncRule::Any(names(1, &["b"])));
    assert_eq!(rule(on, names(1, &["*"])), SyncRule::Off);
}
