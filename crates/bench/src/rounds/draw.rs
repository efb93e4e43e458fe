//! What happens in a round: drawn from the seed and the round's number alone, so that a run can be
//! resumed, and a round be had again.

use std::time::Duration;

use lab::network::Way;
use serde::Serialize;

use crate::dice::Dice;

/// Of a hundred rounds, those with two faults.
const PAIRS_PERCENT: u64 = 25;
/// Of a hundred faults of a member, those that hit the primary.
const PRIMARY_PERCENT: u64 = 60;
/// The second fault of a pair strikes within this many milliseconds after the first.
const APART_MS: u64 = 3000;
/// A short round is held for less than this, in milliseconds.
const SHORT_MS: (u64, u64) = (1000, 4000);
/// A long one for this much more than the lease.
const BEYOND_LEASE_MS: (u64, u64) = (1000, 6000);

/// Whom a fault hits, by the roles at the beginning of the round.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Who {
    /// The primary.
    Primary,
    /// One of the others, by its number among them.
    Standby(usize),
}

/// What is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Fault {
    /// All packets of a host vanish.
    Partition(Who, #[serde(skip)] Way),
    /// Those of a host that go to or come from etcd, its own member's traffic too.
    DcsCut(Who, #[serde(skip)] Way),
    /// The same between the clients' host, where the proxy is, and etcd.
    ProxyDcsCut,
    /// So many of a hundred packets of a host are lost.
    Loss(Who, u8),
    /// Packets of a host are this many milliseconds late.
    Delay(Who, u16),
    /// Every process of a host is frozen.
    Freeze(Who),
    /// kill -9 of an agent, which stays away.
    AgentKilled(Who),
    /// kill -9 of a postmaster.
    PostmasterKilled(Who),
    /// Every process of a host killed at once; they stay away.
    HostKilled(Who),
    /// No block is left for a data directory.
    DiskFull(Who),
    /// So many members of etcd killed, from this host's on; they stay away.
    EtcdKilled(usize, usize),
}

impl Fault {
    /// Its kind, under which the report counts it.
    pub(crate) fn kind(self) -> &'static str {
        match self {
            Fault::Partition(_, Way::Both) => "partition",
            Fault::Partition(_, Way::Out) => "partition-outwards",
            Fault::Partition(_, Way::In) => "partition-inwards",
            Fault::DcsCut(_, Way::Both) => "cut-from-etcd",
            Fault::DcsCut(_, Way::Out | Way::In) => "cut-from-etcd-one-way",
            Fault::ProxyDcsCut => "proxy-cut-from-etcd",
            Fault::Loss(..) => "loss",
            Fault::Delay(..) => "delay",
            Fault::Freeze(_) => "freeze",
            Fault::AgentKilled(_) => "agent-killed",
            Fault::PostmasterKilled(_) => "postmaster-killed",
            Fault::HostKilled(_) => "host-killed",
            Fault::DiskFull(_) => "disk-full",
            Fault::EtcdKilled(..) => "etcd-killed",
        }
    }

    /// Whom it hits, if that is a member.
    fn who(self) -> Option<Who> {
        match self {
            Fault::Partition(who, _)
            | Fault::DcsCut(who, _)
            | Fault::Loss(who, _)
            | Fault::Delay(who, _)
            | Fault::Freeze(who)
            | Fault::AgentKilled(who)
            | Fault::PostmasterKilled(who)
            | Fault::HostKilled(who)
            | Fault::DiskFull(who) => Some(who),
            Fault::ProxyDcsCut | Fault::EtcdKilled(..) => None,
        }
    }
}

/// One round.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Round {
    /// What strikes first.
    pub(crate) first: Fault,
    /// What strikes this much later, if anything.
    pub(crate) second: Option<(Duration, Fault)>,
    /// How long all of it lasts then.
    pub(crate) hold: Duration,
}

impl Round {
    /// The round of that number.
    pub(crate) fn draw(seed: u64, number: u32, members: u16, ttl: u64) -> Round {
        let mut dice = Dice::new(seed, number);
        let members = usize::from(members);
        let first = fault(&mut dice, members);
        let second = dice.percent(PAIRS_PERCENT).then(|| {
            let apart = Duration::from_millis(dice.between(0, APART_MS));
            (apart, other_than(first, &mut dice, members))
        });
        let hold = if dice.percent(50) {
            dice.between(SHORT_MS.0, SHORT_MS.1)
        } else {
            ttl * 1000 + dice.between(BEYOND_LEASE_MS.0, BEYOND_LEASE_MS.1)
        };
        Round { first, second, hold: Duration::from_millis(hold) }
    }

    /// The name under which the report counts it.
    pub(crate) fn kind(&self) -> String {
        match self.second {
            None => self.first.kind().to_owned(),
            Some((_, second)) => {
                let mut kinds = [self.first.kind(), second.kind()];
                kinds.sort_unstable();
                format!("pair: {}", kinds.join(" + "))
            }
        }
    }
}

/// A fault that hits somebody else than `first` does: a dead host cannot be frozen.
fn other_than(first: Fault, dice: &mut Dice, members: usize) -> Fault {
    loop {
        // Most are: it ends soon.
        let second = fault(dice, members);
        if second.who().is_none() || second.who() != first.who() {
            return second;
        }
    }
}

fn fault(dice: &mut Dice, members: usize) -> Fault {
    let who = if dice.percent(PRIMARY_PERCENT) {
        Who::Primary
    } else {
        Who::Standby(dice.below(members - 1))
    };
    match dice.below(16) {
        0 | 1 => Fault::Partition(who, Way::Both),
        2 => Fault::Partition(who, Way::Out),
        3 => Fault::Partition(who, Way::In),
        4 => Fault::DcsCut(who, Way::Both),
        5 => Fault::DcsCut(who, [Way::Out, Way::In][dice.below(2)]),
        6 => Fault::ProxyDcsCut,
        7 => Fault::Loss(who, [2, 5, 10, 20, 40][dice.below(5)]),
        8 => Fault::Delay(who, [10, 50, 150, 400, 1000][dice.below(5)]),
        9 | 10 => Fault::Freeze(who),
        11 => Fault::AgentKilled(who),
        12 => Fault::PostmasterKilled(who),
        13 => Fault::HostKilled(who),
        14 => Fault::DiskFull(who),
        // One, or as many as take the majority with them.
        _ => {
            let count = if dice.percent(70) { 1 } else { members.div_ceil(2) };
            Fault::EtcdKilled(dice.below(members), count)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    fn rounds(seed: u64, members: u16) -> Vec<Round> {
        (1..=500).map(|number| Round::draw(seed, number, members, 10)).collect()
    }

    #[test]
    fn a_seed_draws_the_same_rounds_again_and_another_seed_others() {
        assert_eq!(rounds(1, 3), rounds(1, 3));
        assert_ne!(rounds(1, 3), rounds(2, 3));
    }

    #[test]
    fn every_kind_comes_and_some_in_pairs() {
        let rounds = rounds(1, 3);
        let kinds: BTreeSet<&str> = rounds.iter().map(|round| round.first.kind()).collect();
        assert_eq!(kinds.len(), 14, "{kinds:?}");
        let pairs = rounds.iter().filter(|round| round.second.is_some()).count();
        assert!((75..=175).contains(&pairs), "{pairs} pairs");
        let long = rounds.iter().filter(|round| round.hold > Duration::from_secs(10)).count();
        assert!((150..=350).contains(&long), "{long} outlast the lease");
    }

    #[test]
    fn a_pair_hits_two_hosts_and_everybody_who_is_named_is_there() {
        for members in [3, 5] {
            for round in rounds(7, members) {
                let second = round.second.map(|(_, fault)| fault);
                if let Some(second) = second {
                    assert!(second.who().is_none() || second.who() != round.first.who());
                }
                for fault in [Some(round.first), second].into_iter().flatten() {
                    let members = usize::from(members);
                    match (fault, fault.who()) {
                        (Fault::EtcdKilled(from, count), _) => {
                            assert!(from < members && count >= 1 && count < members);
                        }
                        (_, Some(Who::Standby(number))) => assert!(number < members - 1),
                        (_, Some(Who::Primary) | None) => {}
                    }
                }
            }
        }
    }
}
