//! What happens to a packet on its way: pure, so that every kind of broken network is a value.

use std::time::Duration;

/// What a rule does to the packets that it names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// They vanish; nobody is told.
    Drop,
    /// This many of a hundred vanish.
    Lose {
        /// Of a hundred.
        percent: u8,
    },
    /// They arrive this much later.
    Delay(Duration),
}

/// One fault of the network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rule {
    /// The host that sends, by its number; nothing means any.
    pub from: Option<usize>,
    /// The host that receives.
    pub to: Option<usize>,
    /// Packets from or to one of these TCP ports; none means all packets.
    pub ports: &'static [u16],
    /// What becomes of them.
    pub effect: Effect,
}

/// Which way a link is broken, seen from the host that it is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// What it sends.
    Out,
    /// What it is sent.
    In,
    /// Both.
    Both,
}

impl Rule {
    /// The rules that do this to all packets between `host` and everybody else.
    #[must_use]
    pub fn around(host: usize, way: Way, ports: &'static [u16], effect: Effect) -> Vec<Rule> {
        let out = Rule { from: Some(host), to: None, ports, effect };
        let back = Rule { from: None, to: Some(host), ports, effect };
        match way {
            Way::Out => vec![out],
            Way::In => vec![back],
            Way::Both => vec![out, back],
        }
    }

    /// The rules that do this to all packets between any two of the first so many hosts.
    #[must_use]
    pub fn among(hosts: usize, effect: Effect) -> Vec<Rule> {
        let pairs = (0..hosts).flat_map(|from| (0..hosts).map(move |to| (from, to)));
        let rule = |(from, to)| Rule { from: Some(from), to: Some(to), ports: &[], effect };
        pairs.filter(|(from, to)| from != to).map(rule).collect()
    }

    fn names(&self, flow: &Flow) -> bool {
        let ports = self.ports.is_empty()
            || flow.ports.is_some_and(|ends| ends.iter().any(|port| self.ports.contains(port)));
        ports
            && self.from.is_none_or(|host| host == flow.from)
            && self.to.is_none_or(|host| host == flow.to)
    }
}

/// Where a packet comes from and goes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Flow {
    pub(super) from: usize,
    pub(super) to: usize,
    /// Source and destination port of a TCP packet.
    pub(super) ports: Option<[u16; 2]>,
}

/// What becomes of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    Vanish,
    Pass { after: Duration },
}

/// All rules together; `dice` gives a number below a hundred for each that loses some.
pub(super) fn verdict(rules: &[Rule], flow: &Flow, mut dice: impl FnMut() -> u8) -> Verdict {
    let mut after = Duration::ZERO;
    for rule in rules.iter().filter(|rule| rule.names(flow)) {
        match rule.effect {
            Effect::Drop => return Verdict::Vanish,
            Effect::Lose { percent } if dice() < percent => return Verdict::Vanish,
            Effect::Lose { .. } => {}
            Effect::Delay(delay) => after += delay,
        }
    }
    Verdict::Pass { after }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Verdict = Verdict::Pass { after: Duration::ZERO };

    fn flow(from: usize, to: usize) -> Flow {
        Flow { from, to, ports: Some([40_000, 2379]) }
    }

    fn check(rules: &[Rule], flow: Flow, dice: u8) -> Verdict {
        verdict(rules, &flow, || dice)
    }

    #[test]
    fn a_cut_one_way_lets_the_other_way_through() {
        let out = Rule::around(1, Way::Out, &[], Effect::Drop);
        assert_eq!(check(&out, flow(1, 2), 0), Verdict::Vanish);
        assert_eq!(check(&out, flow(2, 1), 0), NOW);
        assert_eq!(check(&out, flow(0, 2), 0), NOW, "others are not concerned");
        let both = Rule::around(1, Way::Both, &[], Effect::Drop);
        assert_eq!(check(&both, flow(2, 1), 0), Verdict::Vanish);
    }

    #[test]
    fn a_rule_about_ports_names_either_end_and_no_packet_without_one() {
        let rules = Rule::around(1, Way::Both, &[2379], Effect::Drop);
        assert_eq!(check(&rules, flow(1, 2), 0), Verdict::Vanish);
        let answer = Flow { from: 2, to: 1, ports: Some([2379, 40_000]) };
        assert_eq!(check(&rules, answer, 0), Verdict::Vanish);
        assert_eq!(check(&rules, Flow { ports: Some([40_000, 5432]), ..answer }, 0), NOW);
        assert_eq!(check(&rules, Flow { ports: None, ..answer }, 0), NOW);
    }

    #[test]
    fn among_some_hosts_is_between_each_two_of_them_both_ways_once() {
        let rules = Rule::among(2, Effect::Delay(Duration::from_millis(20)));
        let late = Verdict::Pass { after: Duration::from_millis(20) };
        assert_eq!([(0, 1), (1, 0)].map(|(from, to)| check(&rules, flow(from, to), 0)), [late; 2]);
        assert_eq!([(0, 2), (2, 1)].map(|(from, to)| check(&rules, flow(from, to), 0)), [NOW; 2]);
    }

    #[test]
    fn the_dice_decide_what_is_lost_and_delays_add_up() {
        let mut rules = Rule::around(1, Way::Out, &[], Effect::Lose { percent: 30 });
        assert_eq!(check(&rules, flow(1, 2), 29), Verdict::Vanish);
        assert_eq!(check(&rules, flow(1, 2), 30), NOW);
        for ms in [20, 30] {
            let delay = Effect::Delay(Duration::from_millis(ms));
            rules.extend(Rule::around(1, Way::Out, &[], delay));
        }
        let late = Verdict::Pass { after: Duration::from_millis(50) };
        assert_eq!(check(&rules, flow(1, 2), 99), late);
    }
}
