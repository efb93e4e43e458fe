//! The guard as a process of its own, with `sleep` in PostgreSQL's place.
//!
//! This file has a `main` of its own: called with the argument `guard` it is the guard, as `pgherd`
//! is; called with `agent` it is an agent that arms its guard and dies.
#![allow(clippy::unwrap_used)]

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use guard::{Handle, boot_time_ms};
use rustix::process::{Pid, Signal, kill_process};

/// Longest wait for anything that must happen.
const PATIENCE: Duration = Duration::from_secs(10);

fn main() -> ExitCode {
    let arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    match arguments.first().and_then(|a| a.to_str()) {
        Some("guard") => return guard::run(arguments.into_iter().skip(1)),
        Some("agent") => return dying_agent(&arguments),
        _ => {}
    }
    let filter = arguments.iter().filter_map(|a| a.to_str()).find(|a| !a.starts_with('-'));
    for (name, test) in TESTS {
        if filter.is_none_or(|f| name.contains(f)) {
            let begun = Instant::now();
            test();
            eprintln!("test {name} ... ok ({} ms)", begun.elapsed().as_millis());
        }
    }
    ExitCode::SUCCESS
}

const TESTS: [(&str, fn()); 10] = [
    ("kills_at_the_deadline_and_only_in_the_data_directory", kills_at_the_deadline),
    ("does_not_kill_before_an_extended_deadline", extended),
    ("ignores_an_earlier_deadline", earlier),
    ("kills_a_stopped_process", stopped),
    ("survives_its_agent_and_is_taken_over", taken_over),
    ("strikes_after_its_agent_died", agent_dies),
    ("stands_down_and_exits", stands_down),
    ("there_is_one_guard_per_state_directory", only_one),
    ("finds_processes_of_a_replaced_directory", replaced),
    ("a_frozen_guard_kills_before_it_reads_a_late_renewal", frozen),
];

/// An instance in a temporary directory; its guard and processes end with it.
struct Instance {
    root: PathBuf,
    guard_pid: Option<u32>,
}

impl Instance {
    fn new(name: &str) -> Instance {
        let unique = format!("guard-{name}-{}-{}", std::process::id(), boot_time_ms());
        let root = std::env::temp_dir().join(unique);
        fs::create_dir_all(root.join("data")).unwrap();
        // Longer than a socket's path may be.
        fs::create_dir_all(root.join(long_name())).unwrap();
        Instance { root, guard_pid: None }
    }

    fn data(&self) -> PathBuf {
        self.root.join("data")
    }

    fn state(&self) -> PathBuf {
        self.root.join(long_name())
    }

    fn handle(&mut self) -> Handle {
        let exe = std::env::current_exe().unwrap();
        let handle = Handle::connect_or_spawn(&exe, &self.state(), &self.data()).unwrap();
        self.guard_pid = Some(handle.pid());
        handle
    }

    fn log(&self) -> String {
        fs::read_to_string(self.state().join(guard::LOG)).unwrap()
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        if let Some(pid) = self.guard_pid {
            send(pid, Signal::KILL);
        }
        fs::remove_dir_all(&self.root).ok();
    }
}

fn long_name() -> String {
    "s".repeat(120)
}

/// A process with a working directory, killed with the test.
struct Process(Child);

impl Process {
    fn within(directory: &Path) -> Process {
        let mut command = Command::new("sleep");
        Process(command.arg("600").current_dir(directory).stdin(Stdio::null()).spawn().unwrap())
    }

    fn lives(&mut self) -> bool {
        self.0.try_wait().unwrap().is_none()
    }

    fn wait_for_death(&mut self) {
        let give_up = Instant::now() + PATIENCE;
        while self.lives() {
            assert!(Instant::now() < give_up, "process {} lives on", self.0.id());
            pause();
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

fn send(pid: u32, signal: Signal) {
    let pid = Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
    kill_process(pid, signal).ok();
}

fn pause() {
    std::thread::sleep(Duration::from_millis(5));
}

/// The guard has no deadline any more and is not killing.
fn wait_until_idle(handle: &mut Handle) {
    let give_up = Instant::now() + PATIENCE;
    while handle.stand_down().is_err() {
        assert!(Instant::now() < give_up, "the guard kills on and on");
        pause();
    }
}

fn kills_at_the_deadline() {
    let mut instance = Instance::new("kills");
    let (mut one, mut two) = (Process::within(&instance.data()), Process::within(&instance.data()));
    let mut other = Process::within(&instance.root);
    let mut handle = instance.handle();
    let deadline = boot_time_ms() + 300;
    handle.set_deadline(deadline).unwrap();
    while one.lives() {
        assert!(boot_time_ms() < deadline + 5000, "not killed");
        pause();
    }
    assert!(boot_time_ms() >= deadline, "killed too early");
    two.wait_for_death();
    wait_until_idle(&mut handle);
    assert!(other.lives());
    assert!(instance.log().contains("killed 2 processes"), "{}", instance.log());
    assert_eq!(handle.ping().unwrap().deadline, None);
}

fn extended() {
    let mut instance = Instance::new("extended");
    let mut process = Process::within(&instance.data());
    let mut handle = instance.handle();
    let mut deadline = boot_time_ms() + 2000;
    let first = deadline;
    handle.set_deadline(deadline).unwrap();
    while boot_time_ms() < first + 100 {
        deadline = boot_time_ms() + 2000;
        handle.set_deadline(deadline).unwrap();
        assert!(process.lives(), "killed although the deadline was extended");
        std::thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(handle.ping().unwrap().deadline, Some(deadline));
    process.wait_for_death();
    assert!(boot_time_ms() >= deadline, "killed too early");
}

fn earlier() {
    let mut instance = Instance::new("earlier");
    let mut process = Process::within(&instance.data());
    let mut handle = instance.handle();
    let far = boot_time_ms() + 3_600_000;
    handle.set_deadline(far).unwrap();
    handle.set_deadline(boot_time_ms()).unwrap();
    assert_eq!(handle.ping().unwrap().deadline, Some(far));
    assert!(process.lives());
}

fn stopped() {
    let mut instance = Instance::new("stopped");
    let mut process = Process::within(&instance.data());
    send(process.0.id(), Signal::STOP);
    instance.handle().set_deadline(boot_time_ms() + 100).unwrap();
    process.wait_for_death();
}

fn taken_over() {
    let mut instance = Instance::new("takeover");
    let mut process = Process::within(&instance.data());
    let mut first = instance.handle();
    let pid = first.pid();
    let far = boot_time_ms() + 3_600_000;
    first.set_deadline(far).unwrap();
    let mut second = instance.handle();
    assert_eq!(second.pid(), pid);
    assert_eq!(second.ping().unwrap().deadline, Some(far));
    drop(first);
    second.set_deadline(far + 1).unwrap();
    assert_eq!(second.ping().unwrap().deadline, Some(far + 1));
    assert!(process.lives());
    wait_until_idle(&mut second);
}

/// `agent STATE DATA`: arms its guard and dies without a word.
fn dying_agent(arguments: &[OsString]) -> ExitCode {
    let (state, data) = (Path::new(&arguments[1]), Path::new(&arguments[2]));
    let exe = std::env::current_exe().unwrap();
    let mut handle = Handle::connect_or_spawn(&exe, state, data).unwrap();
    handle.set_deadline(boot_time_ms() + 300).unwrap();
    send(std::process::id(), Signal::KILL);
    ExitCode::FAILURE
}

fn agent_dies() {
    let mut instance = Instance::new("agent-dies");
    let mut process = Process::within(&instance.data());
    let mut agent = Command::new(std::env::current_exe().unwrap());
    let status = agent.arg("agent").arg(instance.state()).arg(instance.data()).status().unwrap();
    assert_eq!(status.code(), None, "killed by its own signal");
    process.wait_for_death();
    wait_until_idle(&mut instance.handle());
    assert!(instance.log().contains("killed 1 processes"), "{}", instance.log());
}

fn stands_down() {
    let mut instance = Instance::new("stands-down");
    let mut process = Process::within(&instance.data());
    let mut handle = instance.handle();
    handle.set_deadline(boot_time_ms() + 1000).unwrap();
    assert!(Handle::connect(&instance.state()).unwrap().exit().is_err());
    handle.stand_down().unwrap();
    assert_eq!(handle.ping().unwrap().deadline, None);
    std::thread::sleep(Duration::from_millis(1200));
    assert!(process.lives());
    handle.exit().unwrap();
    let give_up = Instant::now() + PATIENCE;
    while Handle::connect(&instance.state()).is_ok() {
        assert!(Instant::now() < give_up, "the guard did not end");
        pause();
    }
}

fn only_one() {
    let mut instance = Instance::new("only-one");
    let mut handle = instance.handle();
    let mut second = Command::new(std::env::current_exe().unwrap());
    second.arg("guard").arg("--state-dir").arg(instance.state());
    let output = second.arg("--data-dir").arg(instance.data()).output().unwrap();
    assert_eq!(output.status.code(), Some(i32::from(guard::ALREADY_RUNNING)));
    let words = String::from_utf8(output.stderr).unwrap();
    assert!(words.starts_with("pgherd guard: another guard holds"), "{words}");
    handle.ping().unwrap();
}

fn replaced() {
    let mut instance = Instance::new("replaced");
    let old = instance.root.join("old");
    let mut first = Process::within(&instance.data());
    let mut handle = instance.handle();
    handle.set_deadline(boot_time_ms() + 500).unwrap();
    fs::rename(instance.data(), &old).unwrap();
    fs::create_dir(instance.data()).unwrap();
    let mut second = Process::within(&instance.data());
    first.wait_for_death();
    second.wait_for_death();
    wait_until_idle(&mut handle);

    // Deleted while a process is in it, before the guard is armed.
    let mut third = Process::within(&instance.data());
    fs::remove_dir(instance.data()).unwrap();
    fs::create_dir(instance.data()).unwrap();
    handle.set_deadline(boot_time_ms() + 100).unwrap();
    third.wait_for_death();
}

fn frozen() {
    let mut instance = Instance::new("frozen");
    let mut process = Process::within(&instance.data());
    let mut handle = instance.handle();
    let deadline = boot_time_ms() + 300;
    handle.set_deadline(deadline).unwrap();
    send(handle.pid(), Signal::STOP);
    assert!(handle.set_deadline(deadline + 60_000).is_err(), "a frozen guard cannot have answered");
    assert!(handle.ping().is_err(), "a connection is of no use after an error");
    while boot_time_ms() < deadline + 50 {
        pause();
    }
    assert!(process.lives());
    send(handle.pid(), Signal::CONT);
    process.wait_for_death();
}
