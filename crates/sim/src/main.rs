//! `sim --seed N` prints the story of one seed; `sim --seeds N` or `A..B` runs many and prints
//! those that fail, each with the line that replays it.
#![allow(clippy::print_stdout, reason = "a command whose output is its result")]

use std::num::NonZero;
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};

mod model_command;

use sim::{Mode, Mutation, Setup, run};

const USAGE: &str = "\
usage: sim --seed N | --seeds N | --seeds A..B [--members N] [--mode off|on|quorum]
           [--mistake promote-without-lease|ignore-sync-set|claim-from-reply|running-receivers|
                      failsafe-without-all|forget-promise|count-withdrawn-pledges|
                      win-without-sync|winner-keeps-sync|wait-for-nobody]
           [--slow-answers yes] [--slow-wins yes] [--relapses yes] [--fence-only yes]
           [--new-ttls yes] [--fenced yes|no] [--failsafe yes|no] [--ailing yes|no]
           [--proxies yes|no] [--strict yes|no] [--tail LINES]";

/// What the command line says.
#[derive(Default)]
struct Options {
    seed: Option<u64>,
    seeds: Option<(u64, u64)>,
    members: Option<usize>,
    mode: Option<Mode>,
    mistake: Option<Mutation>,
    tail: Option<usize>,
    slow_answers: bool,
    slow_wins: bool,
    relapses: bool,
    new_ttls: bool,
    fence_only: bool,
    fenced: Option<bool>,
    proxies: Option<bool>,
    failsafe: Option<bool>,
    ailing: Option<bool>,
    strict: Option<bool>,
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if arguments.first().is_some_and(|first| first == "--model") {
        return model_command::main(&arguments);
    }
    let Some(options) = parse(&arguments) else {
        eprintln!("{USAGE}");
        return ExitCode::from(2);
    };
    if let Some(seed) = options.seed {
        tell(&options, seed)
    } else if let Some((from, to)) = options.seeds {
        many(&options, from, to)
    } else {
        eprintln!("{USAGE}");
        ExitCode::from(2)
    }
}

fn parse(arguments: &[String]) -> Option<Options> {
    let mut options = Options::default();
    for pair in arguments.chunks(2) {
        let [name, value] = pair else { return None };
        match name.as_str() {
            "--seed" => options.seed = Some(value.parse().ok()?),
            "--seeds" => options.seeds = Some(range(value)?),
            "--members" => {
                options.members = Some(value.parse().ok().filter(|n| (1..=5).contains(n))?);
            }
            "--mode" => options.mode = Some(Mode::parse(value)?),
            "--mistake" => options.mistake = Some(mistake(value)?),
            "--slow-answers" => options.slow_answers = value == "yes",
            "--relapses" => options.relapses = value == "yes",
            "--new-ttls" => options.new_ttls = value == "yes",
            "--slow-wins" => options.slow_wins = value == "yes",
            "--proxies" => options.proxies = Some(value == "yes"),
            "--fenced" => options.fenced = Some(value == "yes"),
            "--failsafe" => options.failsafe = Some(value == "yes"),
            "--strict" => options.strict = Some(value == "yes"),
            "--ailing" => options.ailing = Some(value == "yes"),
            "--fence-only" => options.fence_only = value == "yes",
            "--tail" => options.tail = Some(value.parse().ok()?),
            _ => return None,
        }
    }
    Some(options)
}

fn range(text: &str) -> Option<(u64, u64)> {
    match text.split_once("..") {
        Some((from, to)) => Some((from.parse().ok()?, to.parse().ok()?)),
        None => Some((0, text.parse().ok()?)),
    }
}

/// Planted mistakes by name.
const MISTAKES: [(&str, Mutation); 10] = [
    ("promote-without-lease", Mutation::PromoteWithoutLease),
    ("ignore-sync-set", Mutation::IgnoreSyncSet),
    ("claim-from-reply", Mutation::ClaimFromReply),
    ("running-receivers", Mutation::CompareRunningReceivers),
    ("failsafe-without-all", Mutation::FailsafeWithoutAll),
    ("forget-promise", Mutation::ForgetPromise),
    ("count-withdrawn-pledges", Mutation::CountWithdrawnPledges),
    ("win-without-sync", Mutation::WinWithoutSync),
    ("winner-keeps-sync", Mutation::WinnerKeepsSync),
    ("wait-for-nobody", Mutation::WaitForNobody),
];

fn mistake(text: &str) -> Option<Mutation> {
    MISTAKES.iter().find(|(name, _)| *name == text).map(|(_, mutation)| *mutation)
}

fn setup(options: &Options, seed: u64) -> Setup {
    let of_seed = Setup::of_seed(seed);
    Setup {
        members: options.members.unwrap_or(of_seed.members),
        mode: options.mode.unwrap_or(of_seed.mode),
        mutation: options.mistake,
        slow_answers: options.slow_answers,
        slow_wins: options.slow_wins,
        relapses: options.relapses,
        new_ttls: options.new_ttls,
        fence_only: options.fence_only,
        fenced: options.fenced.unwrap_or(of_seed.fenced),
        proxies: options.proxies.unwrap_or(of_seed.proxies),
        failsafe: options.failsafe.unwrap_or(of_seed.failsafe),
        ailing: options.ailing.unwrap_or(of_seed.ailing),
        strict: options.strict.unwrap_or(of_seed.strict),
        ..of_seed
    }
}

fn tell(options: &Options, seed: u64) -> ExitCode {
    let report = run(&Setup { story: true, ..setup(options, seed) });
    let lines: Vec<&str> = report.story.lines().collect();
    let skipped = options.tail.map_or(0, |tail| lines.len().saturating_sub(tail));
    for line in &lines[skipped..] {
        println!("{line}");
    }
    println!(
        "seed {seed}: {} commits acknowledged, {} promotions, {} events",
        report.acknowledged, report.promotions, report.events
    );
    if report.violation.is_some() { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

/// Runs the seeds on every core; what fails is told as it is found.
fn many(options: &Options, from: u64, to: u64) -> ExitCode {
    let (next, failed) = (AtomicU64::new(from), AtomicU64::new(0));
    let work = || {
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= to {
                break;
            }
            let setup = setup(options, seed);
            if let Some(violation) = run(&setup).violation {
                failed.fetch_add(1, Ordering::Relaxed);
                let replay = arguments_of(&setup);
                println!(
                    "seed {seed}: {}: {}\n  replay: cargo run -p sim -- {replay}",
                    violation.invariant, violation.seen
                );
            }
        }
    };
    let threads = std::thread::available_parallelism().map_or(1, NonZero::get);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(work);
        }
    });
    let failed = failed.into_inner();
    println!("{} seeds, {failed} failed", to.saturating_sub(from));
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// The command line that replays a setup.
fn arguments_of(setup: &Setup) -> String {
    let Setup { seed, members, mode, .. } = setup;
    let mut line = format!("--seed {seed} --members {members} --mode {}", mode.name());
    if let Some(mistake) = setup.mutation {
        let name = MISTAKES.iter().find(|(_, m)| *m == mistake).map_or("", |(name, _)| name);
        line.push_str(&format!(" --mistake {name}"));
    }
    for (set, name) in [
        (setup.slow_answers, "slow-answers"),
        (setup.slow_wins, "slow-wins"),
        (setup.relapses, "relapses"),
        (setup.new_ttls, "new-ttls"),
        (setup.fence_only, "fence-only"),
    ] {
        if set {
            line.push_str(&format!(" --{name} yes"));
        }
    }
    for (set, name) in [
        (setup.fenced, "fenced"),
        (setup.proxies, "proxies"),
        (setup.failsafe, "failsafe"),
        (setup.ailing, "ailing"),
        (setup.strict, "strict"),
    ] {
        line.push_str(&format!(" --{name} {}", if set { "yes" } else { "no" }));
    }
    line
}
