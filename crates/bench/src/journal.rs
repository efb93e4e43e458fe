//! The phases of a hand-over, out of the agents' journals.
//!
//! A new leader writes `handover`: when the leader key was vacant, won, PostgreSQL promoted, its
//! own first write acknowledged, its place published. An old leader whose PostgreSQL ended writes
//! `primary_lost`: when that was noticed, when the last process was gone, when the key was given
//! away. All times are milliseconds since the machine was booted, as are those of the drill, since
//! all programs run on one machine.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::demo::Step;

/// The phases, in their order.
pub(crate) const PHASES: [&str; 6] = ["detect", "end", "elect", "promote", "first_write", "routed"];

/// Milliseconds of each phase, one for each hand-over that tells.
pub(crate) type Phases = BTreeMap<&'static str, Vec<f64>>;

/// One line of a journal that this program understands.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Entry {
    /// Whose journal it is.
    node: String,
    boot_ms: i64,
    event: String,
    detail: Value,
}

impl Entry {
    fn parse(node: &str, line: &str) -> Option<Entry> {
        let value: Value = serde_json::from_str(line).ok()?;
        let event = value["event"].as_str()?;
        ["handover", "primary_lost"].contains(&event).then_some(())?;
        Some(Entry {
            node: node.to_owned(),
            boot_ms: value["boot_ms"].as_i64()?,
            event: event.to_owned(),
            detail: value["detail"].clone(),
        })
    }

    fn at(&self, moment: &str) -> Option<i64> {
        self.detail[moment].as_i64()
    }
}

/// The hand-overs in the journals of a demo in `directory`, the older files too.
pub(crate) fn read(directory: &Path) -> Vec<Entry> {
    let nodes = fs::read_dir(directory).into_iter().flatten().flatten();
    let mut entries = Vec::new();
    for node in nodes {
        let name = node.file_name().to_string_lossy().into_owned();
        for file in ["journal.jsonl.1", "journal.jsonl"] {
            let text = fs::read(node.path().join("state").join(file)).unwrap_or_default();
            let text = String::from_utf8_lossy(&text);
            entries.extend(text.lines().filter_map(|line| Entry::parse(&name, line)));
        }
    }
    entries
}

/// The phases of the hand-overs after each kind of fault.
pub(crate) fn phases(steps: &[Step], entries: &[Entry]) -> BTreeMap<String, Phases> {
    let mut all: BTreeMap<String, Phases> = BTreeMap::new();
    for (index, step) in steps.iter().enumerate() {
        let Some(at) = step.at_boot_ms else { continue };
        let until = steps[index + 1..].iter().find_map(|next| next.at_boot_ms);
        let phases = all.entry(step.fault.clone()).or_default();
        for (name, millis) in phases_of(step, at, until.unwrap_or(i64::MAX), entries) {
            phases.entry(name).or_default().push(millis);
        }
    }
    all
}

/// What the journals tell of one hand-over, between its fault and the next.
fn phases_of(step: &Step, at: i64, until: i64, entries: &[Entry]) -> Vec<(&'static str, f64)> {
    let inside = |entry: &&Entry| (at..until).contains(&entry.boot_ms);
    let found = |event: &str| {
        let of_event = move |entry: &&Entry| entry.event == event;
        entries.iter().filter(inside).filter(of_event).min_by_key(|entry| entry.boot_ms).cloned()
    };
    let new = found("handover");
    let old = found("primary_lost").filter(|old| step.node.as_ref() == Some(&old.node));
    let of_new = |moment: &str| new.as_ref()?.at(moment);
    let of_old = |moment: &str| old.as_ref()?.at(moment);
    let span = |from: Option<i64>, to: Option<i64>| {
        // Spans of minutes at most: exact in a float.
        i32::try_from(to?.checked_sub(from?)?).ok().map(f64::from)
    };
    let spans = [
        span(Some(at), of_old("noticed").or(of_new("vacant"))),
        span(of_old("noticed"), of_old("ended")),
        span(of_new("vacant"), of_new("won")),
        span(of_new("won"), of_new("promoted")),
        span(of_new("promoted"), of_new("written")),
        span(of_new("written"), step.handed_over_at_boot_ms),
    ];
    let named = PHASES.into_iter().zip(spans);
    named.filter_map(|(name, millis)| Some((name, millis?))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOST: &str = r#"{"at":"x","boot_ms":1300,"event":"primary_lost","detail":
        {"term":4,"noticed":1010,"ended":1015,"released":1020}}"#;
    const WON: &str = r#"{"at":"x","boot_ms":1400,"event":"handover","detail":
        {"term":5,"vacant":1022,"won":1050,"promoted":1100,"written":1130,"published":null}}"#;

    fn step(fault: &str, at: i64) -> Step {
        Step {
            fault: fault.to_owned(),
            node: Some("node1".to_owned()),
            at_boot_ms: Some(at),
            handed_over_at_boot_ms: Some(at + 150),
            ..Step::default()
        }
    }

    fn entries() -> Vec<Entry> {
        let line = |node, text: &str| Entry::parse(node, text).expect("it is understood");
        vec![line("node1", LOST), line("node2", WON)]
    }

    #[test]
    fn each_phase_is_told_from_the_two_journals() {
        let phases = phases(&[step("postmaster-killed", 1000)], &entries());
        let phases = &phases["postmaster-killed"];
        let told: Vec<f64> = PHASES.iter().map(|name| phases[name][0]).collect();
        assert_eq!(told, [10.0, 5.0, 28.0, 50.0, 30.0, 20.0]);
    }

    #[test]
    fn without_a_lost_primary_a_vacant_key_is_what_was_detected() {
        let phases = phases(&[step("switchover", 1000)], &entries()[1..]);
        assert_eq!(phases["switchover"]["detect"], [22.0]);
        assert!(!phases["switchover"].contains_key("end"));
    }

    #[test]
    fn a_hand_over_belongs_to_the_fault_before_it() {
        let steps = [step("switchover", 500), step("postmaster-killed", 1000)];
        let phases = phases(&steps, &entries());
        assert!(phases["switchover"].is_empty());
        assert_eq!(phases["postmaster-killed"]["elect"], [28.0]);
        // Another node's loss is not this one's.
        let other = Step { node: Some("node3".to_owned()), ..step("host-lost", 1000) };
        assert!(!super::phases(&[other], &entries())["host-lost"].contains_key("end"));
    }

    #[test]
    fn other_lines_are_passed_over() {
        assert_eq!(Entry::parse("n", r#"{"event":"begin","id":7}"#), None);
        assert_eq!(Entry::parse("n", "half a li"), None);
    }
}
