//! Under what something was measured: the machine and the programs.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use lab::tools;

use super::report::Conditions;
use super::site::{self, Programs};

/// What can be found out here and now.
pub(super) fn conditions(programs: &Programs, operator: Duration) -> Conditions {
    let said = |program: &Path, argument: &str| {
        let output = Command::new(program).arg(argument).stdin(Stdio::null()).output().ok()?;
        let said = [output.stdout, output.stderr].concat();
        let said = String::from_utf8_lossy(&said);
        said.lines().find(|line| !line.trim().is_empty()).map(|line| line.trim().to_owned())
    };
    let named = |name: &str| tools::for_administrators(name);
    let beside = |name: &str| site::postgres_bin_dir().ok().map(|directory| directory.join(name));
    let programs = [
        (Some(programs.pgherd.clone()), "--version"),
        (beside("postgres"), "--version"),
        (Some(programs.patroni.join("patroni")), "--version"),
        (tools::etcd().ok(), "--version"),
        (named("haproxy"), "-v"),
        (beside("repmgr"), "--version"),
    ];
    let versions = programs.iter().filter_map(|(program, option)| said(program.as_ref()?, option));
    Conditions {
        at: said(Path::new("date"), "-uI").unwrap_or_default(),
        machine: machine(),
        versions: versions.collect(),
        operator_s: operator.as_secs(),
        command: std::env::args()
            .skip(1)
            .fold("pgherd-bench".to_owned(), |all, argument| format!("{all} {argument}")),
    }
}

fn machine() -> String {
    let processors = std::thread::available_parallelism().map_or(0, std::num::NonZero::get);
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let memory = read("/proc/meminfo");
    let kilobytes = memory.lines().find_map(|line| {
        line.strip_prefix("MemTotal:")?.split_ascii_whitespace().next()?.parse::<u64>().ok()
    });
    let gibibytes = kilobytes.unwrap_or(0) / (1 << 20);
    let kernel = read("/proc/sys/kernel/osrelease");
    // What follows the version says who built it.
    let kernel = kernel.trim().split('-').next().unwrap_or_default();
    format!("{processors} processors, {gibibytes} GiB, Linux {kernel}")
}
