//! A drill that cannot fail proves nothing: with a fault of the drill itself planted, it has to.
#![allow(clippy::unwrap_used)]

mod common;

use std::time::Duration;

use common::{Demo, directory};
use serde_json::Value;

/// Runs one quick fault with something planted; the report, of a drill that must have failed.
fn planted(plant: &str) -> Value {
    let root = directory();
    let demo = Demo::new(&root.path().join("d"));
    let [option, port] = demo.ports();
    let only = ["--drill", "--json", "--drill-only", "switchover", "--drill-plant", plant];
    let output = demo.demo(&[&only[..], &[&option, &port]].concat(), Duration::from_secs(240));
    let (said, complained) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert_eq!(output.status.code(), Some(1), "{said}\n{complained}");
    assert_eq!(common::processes_of(root.path()), Vec::<String>::new(), "left running");
    let last = said.lines().last().unwrap_or_default();
    let report: Value = serde_json::from_str(last).unwrap_or_else(|_| panic!("{said}"));
    assert_eq!(report["ok"], false, "{report}");
    report
}

#[test]
fn a_second_writer_and_a_lost_entry_make_the_drill_fail() {
    // One after the other: each is a whole cluster.
    let report = planted("second-writer");
    assert!(report["steps"][0]["interleaved"].as_u64() > Some(0), "{report}");
    let report = planted("lost-entry");
    assert_eq!(report["ledger_gaps"], 1, "{report}");
}
