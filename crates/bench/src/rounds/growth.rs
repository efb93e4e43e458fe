//! Whether programs grow: memory, descriptors and threads of each process, looked at after each
//! round, when all is well.

use std::collections::BTreeMap;

use lab::cluster::Cluster;
use lab::{process, usage};
use serde_json::{Value, json};

use crate::statistics::median;

/// A process that was looked at less often is not judged.
const LOOKS_MIN: usize = 30;
/// Of its looks, those that are left out at the beginning: caches fill.
const WARM_UP: usize = 10;
/// What may come on top of the beginning: in parts of it, and in MiB.
const MEMORY_FACTOR: f64 = 1.2;
const MEMORY_MIB: f64 = 8.0;
/// Descriptors and threads that may come on top.
const DESCRIPTORS: f64 = 16.0;
const THREADS: f64 = 4.0;

/// One look at a process.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Look {
    memory_mib: f64,
    descriptors: f64,
    threads: f64,
}

impl Look {
    fn at(pid: u32) -> Option<Look> {
        let count = |count: usize| u32::try_from(count).map_or(f64::MAX, f64::from);
        Some(Look {
            memory_mib: usage::pss_mib(pid)?,
            descriptors: count(usage::descriptors(pid)?),
            threads: count(usage::threads(pid)?),
        })
    }
}

/// All looks, by program and process.
#[derive(Debug, Default)]
pub(super) struct Growth(BTreeMap<(String, u32), Vec<Look>>);

impl Growth {
    /// Looks at every process of ours.
    pub(super) fn look(&mut self, cluster: &Cluster) {
        let mut processes = vec![("proxy".to_owned(), cluster.proxy_pid())];
        for member in &cluster.members {
            let guard = process::guard_of(&member.host.state_dir);
            processes.push((format!("agent of {}", member.name), member.agent.pid()));
            processes.push((format!("guard of {}", member.name), guard));
        }
        for (name, pid) in processes {
            if let Some((pid, look)) = pid.and_then(|pid| Some((pid, Look::at(pid)?))) {
                self.0.entry((name, pid)).or_default().push(look);
            }
        }
    }

    /// Each process that was there for long: what it had in the first and in the last third.
    pub(super) fn object(&self) -> Value {
        let judged = self.0.iter().filter_map(|((name, pid), looks)| {
            let (first, last) = ends(looks)?;
            let pair = |of: fn(&Look) -> f64| json!([of(&first), of(&last)]);
            Some(json!({
                "program": name,
                "pid": pid,
                "looks": looks.len(),
                "memory_mib": pair(|look| (look.memory_mib * 10.0).round() / 10.0),
                "descriptors": pair(|look| look.descriptors),
                "threads": pair(|look| look.threads),
                "grows": grows(&first, &last),
            }))
        });
        judged.collect()
    }

    /// The programs that grow.
    pub(super) fn growing(&self) -> Vec<&str> {
        let grow = |looks: &[Look]| ends(looks).is_some_and(|(first, last)| grows(&first, &last));
        let growing = self.0.iter().filter(|(_, looks)| grow(looks));
        growing.map(|((name, _), _)| name.as_str()).collect()
    }
}

/// Medians of the first and of the last third after the warm-up; nothing for a short life.
fn ends(looks: &[Look]) -> Option<(Look, Look)> {
    let looks = looks.get(WARM_UP..).filter(|_| looks.len() >= LOOKS_MIN)?;
    let third = looks.len() / 3;
    let middle = |looks: &[Look]| {
        let of = |value: fn(&Look) -> f64| median(looks.iter().map(value));
        Some(Look {
            memory_mib: of(|look| look.memory_mib)?,
            descriptors: of(|look| look.descriptors)?,
            threads: of(|look| look.threads)?,
        })
    };
    Some((middle(&looks[..third])?, middle(&looks[looks.len() - third..])?))
}

fn grows(first: &Look, last: &Look) -> bool {
    last.memory_mib > first.memory_mib * MEMORY_FACTOR + MEMORY_MIB
        || last.descriptors > first.descriptors + DESCRIPTORS
        || last.threads > first.threads + THREADS
}

#[cfg(test)]
mod tests {
    use super::*;

    fn growth(look: impl Fn(u32) -> Look, looks: u32) -> Growth {
        let looks = (0..looks).map(look).collect();
        Growth([(("agent".to_owned(), 7), looks)].into())
    }

    const STEADY: Look = Look { memory_mib: 20.0, descriptors: 40.0, threads: 5.0 };

    #[test]
    fn what_wavers_does_not_grow_and_what_leaks_does() {
        let wavers = |round| Look { memory_mib: 20.0 + f64::from(round % 5), ..STEADY };
        assert_eq!(growth(wavers, 90).growing(), [""; 0]);
        let leaks = |round| Look { descriptors: 40.0 + f64::from(round) * 0.5, ..STEADY };
        assert_eq!(growth(leaks, 90).growing(), ["agent"]);
        let swells = |round| Look { memory_mib: 20.0 + f64::from(round), ..STEADY };
        assert_eq!(growth(swells, 90).growing(), ["agent"]);
        assert_eq!(growth(swells, 90).object()[0]["grows"], true);
        assert_eq!(
            growth(|round| Look { threads: f64::from(round), ..STEADY }, 90).growing(),
            ["agent"]
        );
    }

    #[test]
    fn a_short_life_is_not_judged() {
        let swells = |round| Look { memory_mib: 20.0 + 100.0 * f64::from(round), ..STEADY };
        assert_eq!(growth(swells, 29).growing(), [""; 0]);
        assert_eq!(growth(swells, 29).object(), json!([]));
    }
}
