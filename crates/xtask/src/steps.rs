//! Sequences of programs, run in order with the time of each, and counted.
//!
//! A step that fails does not stop the others, so that one run shows everything that is wrong. A
//! step that runs tests counts as its tests, any other step counts as one.

use std::io::{BufRead, BufReader, Read, Write};
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};
use std::time::Instant;

use anyhow::Context;

/// Seeds that every `test` runs; they stay the same, so that two runs of one commit agree. The dev
/// profile optimises the simulator.
const SIMULATOR_TEST: &str = "cargo run --quiet --locked --package sim -- --seeds 2000";
/// The same where only the fence protects, and not the lease.
const SIMULATOR_FENCE: &str = "cargo run --quiet --locked --package sim -- --seeds 500 \
                               --fence-only yes --mode quorum --members 3";
/// The election explored with three members, and one fault or a second failover: 20 s together, and
/// a minute of `cargo test` takes each of its rules away.
const MODEL_FAULT: &str = "cargo run --quiet --locked --package sim -- --model 3 --faults 1";
const MODEL_TWICE: &str =
    "cargo run --quiet --locked --package sim -- --model 3 --faults 0 --terms 3 --fences 2";
/// A whole cluster, every fault of the drill that does not take long.
const DRILL_TEST: &str = "cargo run --quiet --locked --package cli -- demo --drill --json";
/// A cluster on a machine loaded to twice its cores, on a network that loses packets, where silence
/// is held for a loss after a second: it must not hand over once.
const SOAK: &str = "cargo run --release --quiet --locked --package bench -- calm --minutes 30 \
                    --failover-mode fenced --ttl 30 --loss 5";

/// Random faults on hosts with a network of their own, by the program that a step before has built.
const ROUNDS_TEST: &str =
    "cargo run --quiet --locked --package bench -- rounds --rounds 10 --seed 1";
/// The same, many times: with the options that follow.
const ROUNDS: &str = "cargo run --release --quiet --locked --package bench -- rounds";

/// What is fuzzed: the programs of fuzz/. Each begins with its inputs in fuzz/seeds.
const FUZZED: [&str; 5] = ["first_packet", "exchange", "sql", "lowered", "error_response"];
/// Where the inputs that fuzzing found are kept for the next time.
const CORPORA: &str = "target/fuzz/corpus";
/// How long `prove` fuzzes each.
const FUZZ_SECONDS: u32 = 60;

/// One program to run.
pub(crate) struct Step {
    name: &'static str,
    /// Program and arguments, run in the workspace's directory.
    command: Vec<String>,
    environment: Vec<(&'static str, &'static str)>,
    /// When it cannot run here: what to say instead.
    needs: Need,
}

/// What must be there for a step; otherwise it is skipped, and that is said.
enum Need {
    Nothing,
    /// `cargo NAME`, installed beside cargo.
    Subcommand(&'static str),
}

impl Step {
    fn new(name: &'static str, command: &str) -> Step {
        let command = command.split_whitespace().map(str::to_owned).collect();
        Step { name, command, environment: Vec::new(), needs: Need::Nothing }
    }

    fn needs(self, needs: Need) -> Step {
        Step { needs, ..self }
    }

    fn with(mut self, name: &'static str, value: &'static str) -> Step {
        self.environment.push((name, value));
        self
    }
}

/// What can be checked without running a test.
pub(crate) fn check() -> Vec<Step> {
    vec![
        Step::new("formatting", "cargo fmt --all --check"),
        Step::new("clippy", "cargo clippy --workspace --all-targets --locked -- -D warnings"),
        Step::new("tidy", "cargo xtask tidy"),
        Step::new("licences and bans", "cargo deny --log-level error check bans licenses sources")
            .needs(Need::Subcommand("deny")),
    ]
}

/// Everything that a change must pass.
pub(crate) fn test() -> Vec<Step> {
    let mut steps = check();
    steps.push(Step::new("tests", "cargo test --workspace --locked --no-fail-fast"));
    steps.push(Step::new("simulator, fixed seeds", SIMULATOR_TEST));
    steps.push(Step::new("simulator, fence alone", SIMULATOR_FENCE));
    steps.push(Step::new("model, one fault", MODEL_FAULT));
    steps.push(Step::new("model, two failovers", MODEL_TWICE));
    // From the share of real clusters: about six minutes.
    steps.push(Step::new("drill", DRILL_TEST));
    // It fails where it cannot be had: who is not root has not tested this.
    steps.push(Step::new("rounds, fixed seed", ROUNDS_TEST));
    steps
}

/// The long twins of what `test` runs quickly.
pub(crate) fn prove(seeds: u64) -> Vec<Step> {
    let simulate = |name, seeds: u64, options: &str| {
        let run = "cargo run --release --quiet --locked --package sim -- --seeds";
        Step::new(name, &format!("{run} {seeds} {options}"))
    };
    let part = seeds / 5;
    // Each explores everything within its bounds: on two cores a quarter of an hour together, and
    // at most 5 GB, which the last one needs.
    let model = |name, options: &str| {
        let run = "cargo run --release --quiet --locked --package sim -- --model";
        Step::new(name, &format!("{run} {options}"))
    };
    let rounds = |name, options: &str| Step::new(name, &format!("{ROUNDS} {options}"));
    let drill = "cargo run --release --quiet --locked --package cli -- demo --drill --json";
    let mut steps = vec![
        simulate("simulator, many seeds", seeds, ""),
        simulate("simulator, fence alone", part, "--fence-only yes --mode quorum --members 3"),
        simulate("simulator, other ttls", part, "--new-ttls yes --mode off"),
        simulate("simulator, strict mode", part, "--strict yes"),
        simulate("simulator, relapses", part, "--fenced yes --relapses yes --mode quorum"),
        simulate("simulator, slow winners", part, "--fenced yes --slow-wins yes"),
        model("model, two faults", "3 --faults 2 --recovery yes"),
        model("model, mode on", "3 --faults 2 --mode on"),
        model("model, strict mode", "3 --faults 2 --mode on --strict yes"),
        model("model, both confirm", "3 --faults 2 --wanted 2"),
        model("model, two failovers", "3 --faults 1 --terms 3 --fences 2 --writes 0"),
        model("model, four members", "4 --faults 1 --writes 0"),
        model("model, four, two faults", "4 --faults 2 --writes 0"),
        Step::new("drill, every fault", &format!("{drill} --drill-all")),
        Step::new("drill, etcd follower dies", &format!("{drill} --drill-kill-etcd follower")),
        Step::new("drill, etcd leader dies", &format!("{drill} --drill-kill-etcd leader")),
        // These and the last one run the program that the drill has built.
        rounds("rounds, quorum", "--rounds 140 --seed 11"),
        rounds("rounds, mode on", "--rounds 30 --seed 12 --mode on"),
        rounds("rounds, five members", "--rounds 30 --seed 13 --members 5"),
        Step::new("loaded, packets lost", SOAK),
    ];
    steps.extend(fuzz(FUZZ_SECONDS));
    steps
}

/// Each target of fuzz/ for that many seconds. What makes one fail stands in fuzz/artifacts then:
/// make a unit test of it.
pub(crate) fn fuzz(seconds: u32) -> Vec<Step> {
    let step = |target: &&'static str| {
        // An input takes at most a second, and little more memory than it has bytes.
        let run = format!(
            "cargo +nightly fuzz run --target-dir target/fuzz {target} {CORPORA}/{target} \
             fuzz/seeds/{target} -- -max_total_time={seconds} -max_len=20000 -timeout=1 \
             -rss_limit_mb=512 -print_final_stats=1 -verbosity=0"
        );
        Step::new(target, &run).needs(Need::Subcommand("fuzz"))
    };
    FUZZED.iter().map(step).collect()
}

/// The fuzzer wants the directory to be there that it adds to.
///
/// # Errors
/// If one cannot be made.
pub(crate) fn make_corpora(root: &Path) -> anyhow::Result<()> {
    for target in FUZZED {
        let directory = root.join(CORPORA).join(target);
        std::fs::create_dir_all(&directory)
            .with_context(|| format!("cannot make {}", directory.display()))?;
    }
    Ok(())
}

/// The brain's scripts alone.
pub(crate) fn scenarios(bless: bool) -> Vec<Step> {
    let step = Step::new("scenarios", "cargo test --package decide");
    vec![if bless { step.with("PGHERD_BLESS", "1") } else { step }]
}

/// Tests or steps that ended one way or the other.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Count {
    passed: u64,
    failed: u64,
}

impl Count {
    /// Adds the numbers of a line `test result: ok. 3 passed; 0 failed; …`.
    fn add_line(&mut self, line: &str) {
        let Some(numbers) = line.trim().strip_prefix("test result: ") else { return };
        for part in numbers.split(['.', ';']) {
            match part.trim().split_once(' ') {
                Some((number, "passed")) => self.passed += number.parse().unwrap_or(0),
                Some((number, "failed")) => self.failed += number.parse().unwrap_or(0),
                Some(_) | None => {}
            }
        }
    }

    /// The exit status has the last word: a failure that no test reported is one more, and a step
    /// that reported no test is one itself.
    fn finish(&mut self, success: bool) {
        if !success && self.failed == 0 {
            self.failed = 1;
        }
        if success && self.failed == 0 && self.passed == 0 {
            self.passed = 1;
        }
    }
}

/// Runs the steps; `true` if nothing failed. The last line is `N passed, N failed`.
///
/// # Errors
/// If a program cannot be started.
pub(crate) fn run(root: &Path, steps: &[Step]) -> anyhow::Result<bool> {
    let begun = Instant::now();
    let mut total = Count::default();
    let mut summary = String::new();
    for step in steps {
        if let Some(why) = missing(&step.needs) {
            say(&format!("\n==> {}: skipped: {why}", step.name))?;
            summary.push_str(&format!("  {:<26} skipped: {why}\n", step.name));
            continue;
        }
        say(&format!("\n==> {}: {}", step.name, step.command.join(" ")))?;
        let step_begun = Instant::now();
        let count = run_one(root, step).with_context(|| format!("step `{}`", step.name))?;
        let seconds = step_begun.elapsed().as_secs_f64();
        total.passed += count.passed;
        total.failed += count.failed;
        let verdict = if count.failed == 0 { "ok" } else { "FAILED" };
        summary.push_str(&format!("  {:<26} {verdict:<6} {seconds:>7.1} s\n", step.name));
    }
    say(&format!("\n{summary}  {:<26} {:>14.1} s\n", "together", begun.elapsed().as_secs_f64()))?;
    say(&format!("{} passed, {} failed", total.passed, total.failed))?;
    Ok(total.failed == 0)
}

/// Why a step cannot run here.
fn missing(need: &Need) -> Option<String> {
    match need {
        Need::Nothing => None,
        Need::Subcommand(name) => {
            let quiet = Command::new("cargo")
                .args([name, "--version"])
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .status();
            let found = quiet.is_ok_and(|status| status.success());
            (!found).then(|| format!("cargo-{name} is not installed"))
        }
    }
}

fn run_one(root: &Path, step: &Step) -> anyhow::Result<Count> {
    let (program, arguments) = step.command.split_first().context("a step without a command")?;
    let mut child = Command::new(program)
        .args(arguments)
        .envs(step.environment.iter().copied())
        .current_dir(root)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot run `{program}`"))?;
    let output = child.stdout.take().context("stdout is piped")?;
    let mut count = copy_and_count(output, &mut std::io::stdout())?;
    let status: ExitStatus = child.wait()?;
    count.finish(status.success());
    if !status.success() {
        say(&format!("==> {}: {status}", step.name))?;
    }
    Ok(count)
}

/// Passes a program's output on as it comes, and counts the tests in it.
fn copy_and_count(output: impl Read, copy: &mut impl Write) -> anyhow::Result<Count> {
    let mut count = Count::default();
    let mut reader = BufReader::new(output);
    let mut line = Vec::new();
    while reader.read_until(b'\n', &mut line)? > 0 {
        copy.write_all(&line)?;
        copy.flush()?;
        count.add_line(&String::from_utf8_lossy(&line));
        line.clear();
    }
    Ok(count)
}

fn say(text: &str) -> anyhow::Result<()> {
    let mut stdout = std::io::stdout().lock();
    writeln!(stdout, "{text}")?;
    stdout.flush()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_results_are_counted_from_the_output() {
        let output = "running 3 tests\n\
            test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out\n\
            test result: FAILED. 5 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out\n";
        let mut copy = Vec::new();
        let count = copy_and_count(output.as_bytes(), &mut copy).expect("plain text");
        assert_eq!(copy, output.as_bytes());
        assert_eq!(count, Count { passed: 8, failed: 2 });
    }

    #[test]
    fn the_exit_status_has_the_last_word() {
        let finished = |passed, success| {
            let mut count = Count { passed, failed: 0 };
            count.finish(success);
            (count.passed, count.failed)
        };
        assert_eq!(finished(0, true), (1, 0), "a step without tests is one itself");
        assert_eq!(finished(4, true), (4, 0));
        assert_eq!(finished(4, false), (4, 1), "a failure that no test reported");
        assert_eq!(finished(0, false), (0, 1));
    }

    #[test]
    fn a_missing_tool_skips_its_step_and_is_named() {
        let why = missing(&Need::Subcommand("surely-not-installed"));
        assert_eq!(why.as_deref(), Some("cargo-surely-not-installed is not installed"));
        assert!(missing(&Need::Nothing).is_none());
    }
}
