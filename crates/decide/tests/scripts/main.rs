//! Runs the scripts of `testdata/` through the real brain.
//!
//! A script is a story that a DBA can read: stanzas of what is so and what happens, each followed
//! after `----` by what the nodes did and why. `cargo xtask scenarios --bless` records the answers
//! anew; review the diff. The words are listed in `testdata/README.md`, and read in `words`.
// A test that reads its scripts from files; the brain under it still does no I/O.
#![allow(clippy::disallowed_methods)]

use std::path::{Path, PathBuf};

mod data;
mod execute;
mod failsafe;
mod say;
mod setup;
mod store;
mod words;
mod world;

use world::World;

/// Stands between a stanza and its answer.
const SEPARATOR: &str = "----";

#[test]
fn every_script_is_answered_as_recorded() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata");
    let bless = std::env::var_os("PGHERD_BLESS").is_some();
    let mut failures = String::new();
    let scripts = scripts(&folder);
    assert!(!scripts.is_empty(), "no script in {}", folder.display());
    for path in scripts {
        let recorded = std::fs::read_to_string(&path).expect("a readable script");
        let name = path.file_name().map_or_else(String::new, |n| n.to_string_lossy().into_owned());
        let answered = match answer(&name, &recorded) {
            Ok(answered) => answered,
            Err(problem) => {
                failures.push_str(&format!("{problem}\n"));
                continue;
            }
        };
        if answered == recorded {
            continue;
        }
        if bless {
            std::fs::write(&path, answered).expect("a writable script");
        } else {
            failures.push_str(&difference(&name, &recorded, &answered));
        }
    }
    assert!(
        failures.is_empty(),
        "{failures}\nIf this is what the nodes should do: cargo xtask scenarios --bless"
    );
}

#[test]
fn bad_words_name_file_and_line() {
    let script = "# bad\n\nnode a primary\nnode b dances\n----\n";
    let problem = answer("bad.txt", script).expect_err("nobody dances");
    assert!(problem.starts_with("bad.txt:4: "), "{problem}");
    let problem = answer("bad.txt", "tick 2s\n").expect_err("no answer follows");
    assert!(problem.starts_with("bad.txt:1: "), "{problem}");
}

/// The scripts in the order of their names.
fn scripts(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).expect("the folder of the scripts");
    let mut paths: Vec<PathBuf> = entries
        .map(|entry| entry.expect("a readable folder").path())
        .filter(|path| path.extension().is_some_and(|e| e == "txt"))
        .collect();
    paths.sort();
    paths
}

/// The script with the answers that the nodes give now.
fn answer(file: &str, script: &str) -> Result<String, String> {
    let mut world = World::new();
    let mut answered = String::new();
    let mut lines = script.lines().enumerate().peekable();
    let mut open = None;
    while let Some((index, line)) = lines.next() {
        let at = |problem: String| format!("{file}:{}: {problem}", index + 1);
        answered.push_str(line);
        answered.push('\n');
        if line.trim() != SEPARATOR {
            let words = line.split('#').next().unwrap_or_default();
            if !words.trim().is_empty() {
                open = Some(index + 1);
                words::obey(&mut world, words).map_err(at)?;
            }
            continue;
        }
        open = None;
        world.settle().map_err(at)?;
        let said = world.take_said();
        answered.push_str(if said.is_empty() { "nothing\n" } else { &said });
        // The recorded answer ends at an empty line.
        while lines.next_if(|(_, recorded)| !recorded.trim().is_empty()).is_some() {}
    }
    match open {
        Some(line) => Err(format!("{file}:{line}: no {SEPARATOR} follows this stanza")),
        None => Ok(answered),
    }
}

/// The first place where two texts differ.
fn difference(name: &str, recorded: &str, answered: &str) -> String {
    let mut recorded_lines = recorded.lines();
    for (index, new) in answered.lines().enumerate() {
        let old = recorded_lines.next().unwrap_or("(nothing more)");
        if old != new {
            return format!("{name}:{}:\n  recorded: {old}\n  now:      {new}\n", index + 1);
        }
    }
    format!("{name}: the recorded answers are longer\n")
}
