//! Figures out of samples, and the one object of the last line.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::demo::Step;
use crate::floor::Floors;
use crate::journal::{PHASES, Phases};

/// What becomes of the samples of one kind.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub(crate) struct Spread {
    pub(crate) median: f64,
    pub(crate) min: f64,
    pub(crate) max: f64,
    pub(crate) n: usize,
}

impl Spread {
    /// `None` without a sample.
    pub(crate) fn of(samples: &[f64]) -> Option<Spread> {
        let mut sorted = samples.to_vec();
        sorted.sort_by(f64::total_cmp);
        let (min, max) = (*sorted.first()?, *sorted.last()?);
        let (lower, upper) = (sorted[(sorted.len() - 1) / 2], sorted[sorted.len() / 2]);
        Some(Spread { median: round((lower + upper) / 2.0), min, max, n: sorted.len() })
    }
}

/// Thousandths are what the samples have.
fn round(value: f64) -> f64 {
    (value * 1000.0).round() / 1000.0
}

/// Which hand-over a bare script would have had to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Bare {
    Killed,
    Switchover,
    Nothing,
}

/// The figures: key of the result, fault of the drill, what a bare script would do.
const FIGURES: [(&str, &str, Bare); 12] = [
    ("postmaster_killed_s", "postmaster-killed", Bare::Killed),
    ("host_lost_s", "host-lost", Bare::Killed),
    ("host_frozen_s", "host-frozen", Bare::Killed),
    ("host_cut_off_s", "host-cut-off", Bare::Killed),
    ("agent_killed_s", "agent-killed-not-restarted", Bare::Killed),
    ("agent_restarted_s", "agent-killed-restarted", Bare::Nothing),
    ("switchover_s", "switchover", Bare::Switchover),
    ("switchover_frozen_member_s", "switchover-with-frozen-member", Bare::Switchover),
    ("postmaster_hung_s", "postmaster-stopped", Bare::Killed),
    ("disk_hung_s", "disk-hung", Bare::Killed),
    ("connections_exhausted_s", "connections-exhausted", Bare::Killed),
    ("disk_full_s", "disk-full", Bare::Killed),
];

/// The object of the last line. A fault that was not tried has no key; one that gave no figure is
/// null.
pub(crate) fn object(steps: &[Step], floors: &Floors, phases: &BTreeMap<String, Phases>) -> Value {
    let mut object = Map::new();
    for (key, fault, bare) in FIGURES {
        let tried = || steps.iter().filter(|step| step.fault == fault);
        if tried().next().is_none() {
            continue;
        }
        let gaps: Vec<f64> = tried().filter_map(Step::gap).collect();
        let with_etcd = |there: bool| {
            let steps = tried().filter(|step| step.etcd_leader_there == Some(there));
            Spread::of(&steps.filter_map(Step::gap).collect::<Vec<f64>>())
        };
        let floor = match bare {
            Bare::Killed => Spread::of(&floors.killed).map(|spread| spread.median),
            Bare::Switchover => Spread::of(&floors.switchover).map(|spread| spread.median),
            Bare::Nothing => Some(0.0),
        };
        let figure = Spread::of(&gaps).map(|Spread { median, min, max, n }| {
            let mut figure =
                json!({"median": median, "min": min, "max": max, "n": n, "floor": floor});
            // A new leader of etcd restarts every lease: two populations, and chance between them.
            if tried().any(|step| step.etcd_leader_there.is_some()) {
                figure["etcd_leader_there"] = json!(with_etcd(true));
                figure["etcd_leader_elsewhere"] = json!(with_etcd(false));
            }
            figure
        });
        object.insert(key.to_owned(), figure.unwrap_or(Value::Null));
    }
    for (key, fault) in [("phases_ms", "postmaster-killed"), ("switchover_phases_ms", "switchover")]
    {
        object.insert(key.to_owned(), phases_object(phases.get(fault)));
    }
    let lost: usize = steps.iter().filter_map(|step| step.missing).sum();
    let interleaved: usize = steps.iter().map(|step| step.interleaved).sum();
    object.insert("lost_acknowledged".to_owned(), lost.into());
    object.insert("interleaved".to_owned(), interleaved.into());
    Value::Object(object)
}

fn phases_object(phases: Option<&Phases>) -> Value {
    let of = |name: &str| phases.and_then(|phases| phases.get(name)).map_or(&[][..], Vec::as_slice);
    let spread = |name: &&str| json!(Spread::of(of(name)));
    PHASES.iter().map(|name| ((*name).to_owned(), spread(name))).collect::<Map<_, _>>().into()
}

/// Whether everything that was tried gave a figure, and nothing was lost.
pub(crate) fn is_good(object: &Value) -> bool {
    let whole = FIGURES.iter().all(|(key, _, _)| object.get(key).is_none_or(Value::is_object));
    whole && object["lost_acknowledged"] == 0 && object["interleaved"] == 0
}

/// The figures for people, a line each.
pub(crate) fn table(object: &Value) -> String {
    let line = |key: &str, figure: &Value| {
        let part = |name: &str| figure[name].as_f64().map_or("-".to_owned(), |n| format!("{n:.3}"));
        let [median, min, max, floor] = ["median", "min", "max", "floor"].map(part);
        format!("{key:<28} {median:>8} {min:>8} {max:>8} {:>4} {floor:>8}\n", figure["n"])
    };
    let title =
        format!("{:<28} {:>8} {:>8} {:>8} {:>4} {:>8}\n", "", "median", "min", "max", "n", "floor");
    let figures = FIGURES.iter().filter_map(|(key, _, _)| Some(line(key, object.get(key)?)));
    title + &figures.collect::<String>()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(fault: &str, gap: f64) -> Step {
        Step {
            fault: fault.to_owned(),
            longest_gap_seconds: gap,
            missing: Some(0),
            ..Step::default()
        }
    }

    #[test]
    fn the_median_of_an_even_number_lies_between_the_two_in_the_middle() {
        let spread = Spread::of(&[4.0, 1.0, 2.0, 3.0]).expect("there are samples");
        assert_eq!(spread, Spread { median: 2.5, min: 1.0, max: 4.0, n: 4 });
        assert_eq!(Spread::of(&[0.5]).map(|spread| spread.median), Some(0.5));
        assert_eq!(Spread::of(&[]), None);
    }

    #[test]
    fn each_fault_stands_beside_what_a_bare_script_needs() {
        let steps = [
            step("postmaster-killed", 0.3),
            step("switchover", 0.2),
            step("agent-killed-restarted", 0.02),
        ];
        let floors = Floors { killed: vec![0.1, 0.2, 0.3], switchover: vec![0.09] };
        let object = object(&steps, &floors, &BTreeMap::new());
        assert_eq!(
            object["postmaster_killed_s"],
            json!({"median": 0.3, "min": 0.3, "max": 0.3, "n": 1, "floor": 0.2})
        );
        assert_eq!(object["switchover_s"]["floor"], 0.09);
        assert_eq!(object["agent_restarted_s"]["floor"], 0.0);
        assert!(object.get("host_lost_s").is_none(), "it was not tried");
        assert!(object["phases_ms"]["elect"].is_null());
        assert!(is_good(&object));
        assert!(table(&object).contains("switchover_s"));
    }

    #[test]
    fn a_lost_leader_of_etcd_is_told_apart() {
        let there = |there, gap| Step { etcd_leader_there: Some(there), ..step("host-lost", gap) };
        let steps = [there(true, 12.5), there(false, 9.0), there(false, 9.5)];
        let object = object(&steps, &Floors::default(), &BTreeMap::new());
        let figure = &object["host_lost_s"];
        assert_eq!((&figure["n"], &figure["median"]), (&json!(3), &json!(9.5)));
        assert_eq!(figure["etcd_leader_there"]["n"], 1);
        assert_eq!(figure["etcd_leader_elsewhere"]["median"], 9.25);
    }

    #[test]
    fn losses_and_faults_without_a_figure_are_not_good() {
        let floors = Floors::default();
        let of = |step: Step| is_good(&object(&[step], &floors, &BTreeMap::new()));
        assert!(of(step("host-lost", 9.0)));
        assert!(!of(Step { missing: Some(1), ..step("host-lost", 9.0) }));
        assert!(!of(Step { interleaved: 1, ..step("host-lost", 9.0) }));
        let skipped = Some("no root".to_owned());
        assert!(!of(Step { skipped, ..step("disk-full", 0.0) }), "it gave no figure");
    }
}
