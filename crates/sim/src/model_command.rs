//! `sim --model N`: explores the model of the election with N members, and prints the way to what
//! breaks a property, or how much was explored.

use std::process::ExitCode;

use sim::Mode;
use sim::model::{Fault, Setup, Without, check};

const USAGE: &str = "\
usage: sim --model MEMBERS [--faults N] [--writes N] [--terms N] [--fences N] [--requests N]
           [--mode on|quorum] [--wanted N] [--strict yes|no] [--recovery yes|no]
           [--kinds late,stream,host,postgres,agent,lease] [--steps N] [--without RULE]...
rules:";

pub(crate) fn main(arguments: &[String]) -> ExitCode {
    let Some(setup) = parse(arguments) else {
        eprintln!("{USAGE}");
        for rule in Without::ALL {
            eprintln!("  {}", rule.name());
        }
        return ExitCode::from(2);
    };
    let report = check(&setup, 2);
    if let Some((property, path)) = &report.violation {
        println!("{path}broken: {property}");
    }
    println!("{}", report.summary());
    for name in &report.reached {
        println!("reached: {name}");
    }
    if report.violation.is_none() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn kind(text: &str) -> Option<Fault> {
    Fault::ALL.iter().find(|(_, name)| *name == text).map(|(fault, _)| *fault)
}

fn parse(arguments: &[String]) -> Option<Setup> {
    let mut setup = Setup::new(3, 1);
    for pair in arguments.chunks(2) {
        let [name, value] = pair else { return None };
        match name.as_str() {
            "--model" => {
                setup.members = value.parse().ok().filter(|n| (2..=4).contains(n))?;
            }
            "--faults" => setup.faults = value.parse().ok()?,
            "--writes" => setup.writes = value.parse().ok().filter(|n| *n <= 4)?,
            "--terms" => setup.terms = value.parse().ok().filter(|n| *n <= 5)?,
            "--steps" => setup.steps = Some(value.parse().ok()?),
            "--fences" => setup.fences = value.parse().ok()?,
            "--recovery" => setup.recovery = value == "yes",
            "--kinds" => setup.kinds = value.split(',').map(kind).collect::<Option<_>>()?,
            "--requests" => setup.requests = value.parse().ok()?,
            "--mode" => setup.mode = Mode::parse(value).filter(|mode| *mode != Mode::Off)?,
            "--wanted" => setup.wanted = value.parse().ok()?,
            "--strict" => setup.strict = value == "yes",
            "--without" => {
                let rule = Without::ALL.iter().find(|rule| rule.name() == value)?;
                setup.without.insert(*rule);
            }
            _ => return None,
        }
    }
    Some(setup)
}
