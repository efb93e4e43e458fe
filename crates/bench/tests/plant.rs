//! Rounds that cannot fail prove nothing: with something planted that they have to find, they have
//! to fail.

use std::path::Path;
use std::process::Command;

use serde_json::Value;

/// A seed whose first round is over soon and leaves the primary alone.
const SEED: &str = "84";

/// Runs one round with something planted; the report, of rounds that must have failed.
fn planted(plant: &str) -> Value {
    let program = Path::new(env!("CARGO_BIN_EXE_pgherd-bench"));
    let pgherd = program.with_file_name("pgherd");
    assert!(pgherd.is_file(), "build it first: cargo build --package cli");
    let directory = std::env::temp_dir().join(format!("bench-plant-{}", std::process::id()));
    let mut command = Command::new(program);
    command.args(["rounds", "--rounds", "2", "--seed", SEED, "--ttl", "5", "--plant", plant]);
    let output = command.arg("--dir").arg(&directory).output().expect("it was built");
    let (said, complained) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert_eq!(output.status.code(), Some(1), "{said}\n{complained}");
    let left = lab::process::of_cluster_in(&directory, "pgherd");
    assert!(left.is_empty(), "left running: {left:?}");
    std::fs::remove_dir_all(&directory).expect("nothing is mounted there");
    let report = said.lines().last().and_then(|line| serde_json::from_str(line).ok());
    let report: Value = report.unwrap_or_else(|| panic!("no report in {said}"));
    assert_eq!(report["ok"], false, "{report}");
    assert_eq!(report["rounds"], 1, "it ends with the round that failed: {report}");
    report
}

#[test]
fn a_lost_row_and_a_second_writer_make_the_rounds_fail() {
    if !rustix::process::geteuid().is_root() {
        return; // Such hosts need root; `make test` has a step that says so.
    }
    // One after the other: each is a whole cluster.
    let report = planted("lost-row");
    assert_eq!(report["lost_acknowledged"], 1, "{report}");
    assert_eq!(report["interleaved"], 0, "{report}");
    let report = planted("second-writer");
    assert!(report["interleaved"].as_u64() > Some(0), "{report}");
}
