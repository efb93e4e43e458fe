//! What PostgreSQL itself says about server parameters, before anything rests on them: one that it
//! does not know, or that has no such value, would keep it from starting.
//!
//! `postgres -C` reads a configuration and starts nothing. What it finds wrong is left out, a
//! number out of range becomes the nearest one within it, and it is asked again.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write as _;
use std::process::{Command, Stdio};

use rustix::fs::MemfdFlags;

use crate::conf;
use crate::setup::Programs;

/// How often it is asked: names are told one by one.
const ROUNDS_MAX: usize = 50;

/// What is wrong with a parameter.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Fault {
    /// No such name, or no such value.
    Remove,
    /// Nearest to what was asked for.
    Clamp(String),
}

/// The parameters that PostgreSQL takes. What is left out or changed is said in the log.
pub(crate) fn accepted(
    programs: &Programs,
    wanted: &BTreeMap<String, String>,
) -> BTreeMap<String, String> {
    let mut kept = wanted.clone();
    // It would change the language of the answers.
    let aside = kept.remove_entry("lc_messages");
    for _ in 0..ROUNDS_MAX {
        let Some(said) = ask(programs, &kept) else {
            break;
        };
        let faults = faults(&said);
        if !apply(&mut kept, &faults) {
            if !said.is_empty() {
                tracing::warn!(said = said.trim(), "PostgreSQL does not take its parameters");
            }
            break;
        }
    }
    kept.extend(aside);
    kept
}

/// Returns whether anything was changed.
fn apply(kept: &mut BTreeMap<String, String>, faults: &[(String, Fault)]) -> bool {
    let mut changed = false;
    for (name, fault) in faults {
        let found = kept.keys().find(|known| known.eq_ignore_ascii_case(name)).cloned();
        let Some((name, value)) = found.and_then(|found| kept.remove_entry(&found)) else {
            continue;
        };
        changed = true;
        // A command may hold what is nobody's business (I6).
        let shown = if name.ends_with("_command") { "…" } else { value.as_str() };
        match fault {
            Fault::Remove => {
                tracing::warn!(
                    "Removing unexpected parameter={name} value={shown} from the config"
                );
            }
            Fault::Clamp(to) => {
                tracing::warn!(
                    "Value={shown} of parameter={name} is out of range, changing to {to}"
                );
                kept.insert(name, to.clone());
            }
        }
    }
    changed
}

/// What PostgreSQL says of a configuration with these parameters: nothing, if it takes them. `None`
/// if it cannot be asked.
fn ask(programs: &Programs, parameters: &BTreeMap<String, String>) -> Option<String> {
    let mut text = String::new();
    for (name, value) in parameters {
        conf::line(&mut text, name, value);
    }
    // It reads the file twice, which a pipe does not allow.
    let memory = rustix::fs::memfd_create("pgherd", MemfdFlags::CLOEXEC).ok()?;
    let mut file = File::from(memory);
    file.write_all(text.as_bytes()).ok()?;
    let output = Command::new(programs.path("postgres"))
        .args(["-C", "port", "-D", "/", "--config-file=/dev/stdin"])
        .env_clear()
        .env("LC_ALL", "C")
        .current_dir("/")
        .stdin(Stdio::from(file))
        .output()
        .ok()?;
    if output.status.success() {
        return Some(String::new());
    }
    Some(String::from_utf8_lossy(&output.stderr).into_owned())
}

fn faults(said: &str) -> Vec<(String, Fault)> {
    said.lines().filter_map(fault).collect()
}

fn fault(line: &str) -> Option<(String, Fault)> {
    let quoted = |after: &str| {
        let rest = line.split_once(after)?.1;
        Some(rest.split_once('"')?.0.to_owned())
    };
    if let Some(name) = quoted("unrecognized configuration parameter \"") {
        return Some((name, Fault::Remove));
    }
    if let Some(name) = quoted(" is outside the valid range for parameter \"") {
        let clamp = nearest(line).map_or(Fault::Remove, Fault::Clamp);
        return Some((name, clamp));
    }
    let others = ["invalid value for parameter \"", "requires a numeric value", "parameter \""];
    let [invalid, numeric, named] = others;
    if line.contains(invalid) {
        return Some((quoted(invalid)?, Fault::Remove));
    }
    let bad = [numeric, "requires a Boolean value", "cannot be changed", "cannot be set"];
    let bad = bad.iter().any(|text| line.contains(text));
    if bad { Some((quoted(named)?, Fault::Remove)) } else { None }
}

/// `5 kB is outside the valid range for parameter "work_mem" (64 kB .. 2147483647 kB)`; units stand
/// there from PostgreSQL 15 on.
fn nearest(line: &str) -> Option<String> {
    let (before, after) = line.split_once(" is outside the valid range")?;
    let given = before.rsplit_once(":  ").map_or(before, |(_, value)| value);
    let range = after.rsplit_once('(')?.1.split_once(')')?.0;
    let (least, most) = range.split_once(" .. ")?;
    let number = |text: &str| text.split(' ').next()?.parse::<f64>().ok();
    let bound = if number(given)? < number(least)? { least } else { most };
    Some(bound.replace(' ', ""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_postgresql_says_is_understood() {
        let line = "2026-11-27 02:17:28.969 GMT [26647] LOG:  5 kB is outside the valid range for \
            parameter \"work_mem\" (64 kB .. 2147483647 kB)";
        let clamp = |text: &str| Fault::Clamp(text.to_owned());
        assert_eq!(fault(line), Some(("work_mem".to_owned(), clamp("64kB"))));
        let line = "LOG:  1000 is outside the valid range for parameter \"port\" (1 .. 65)";
        assert_eq!(fault(line), Some(("port".to_owned(), clamp("65"))));
        let line = "LOG:  unrecognized configuration parameter \"foo\" in file \"x\" line 1";
        assert_eq!(fault(line), Some(("foo".to_owned(), Fault::Remove)));
        let line = "LOG:  invalid value for parameter \"TimeZone\": \"Mars\"";
        assert_eq!(fault(line), Some(("TimeZone".to_owned(), Fault::Remove)));
        let line = "LOG:  parameter \"autovacuum\" requires a Boolean value";
        assert_eq!(fault(line), Some(("autovacuum".to_owned(), Fault::Remove)));
        assert_eq!(fault("FATAL:  configuration file \"/dev/stdin\" contains errors"), None);
    }
}
