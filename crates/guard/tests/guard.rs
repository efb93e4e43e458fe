//! The guard as a process of its own, with `sleep` in PostgreSQL's place.
//!
//! This file has a `main` of its own: called with the argument `guard` it is the guard, as `pgherd`
//! is; called with `agent` it is an agent that arms its guard and dies; called with `busy` it takes
//! all the processor time that it gets.
#![allow(clippy::unwrap_used)]

use std::ffi::OsString;
use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use guard::{Handle, Joined, Keeper, boot_time_ms};
use rustix::process::{Pid, Signal, kill_process};

/// Longest wait for anything that must happen.
const PATIENCE: Duration = Duration::from_secs(10);

fn main() -> ExitCode {
    let arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    match arguments.first().and_then(|a| a.to_str()) {
        Some("guard") => return guard::run(arguments.into_iter().skip(1)),
        Some("agent") => return dying_agent(&arguments),
        Some("busy") => return busy(),
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

const TESTS: [(&str, fn()); 19] = [
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
    ("its_memory_is_small_and_locked_where_permitted", small_and_locked),
    ("without_privileges_it_says_once_what_it_lacks_and_kills", unprivileged),
    ("strikes_on_a_machine_loaded_to_four_times_its_processors", starved),
    ("a_restarted_agent_takes_over_guard_and_deadline", restarted_agent),
    ("a_new_guard_kills_in_time_even_if_its_agent_says_nothing_more", new_guard_is_armed),
    ("a_killed_guard_is_replaced_at_the_next_deadline", killed_guard),
    ("a_stopped_guard_is_replaced_at_the_next_deadline_but_not_at_once_again", stopped_guard),
    ("whoever_else_serves_the_socket_is_not_killed", strange_server),
    ("a_guard_of_an_older_binary_is_used_on", older_guard),
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

    fn keeper(&self) -> Keeper {
        Keeper::new(std::env::current_exe().unwrap(), self.state(), self.data())
    }

    /// The guard that a keeper has just connected to; it ends with the test.
    fn joined(&mut self, keeper: &mut Keeper) -> Joined {
        let joined = keeper.joined().unwrap();
        self.guard_pid = Some(joined.pid);
        joined
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

/// A field of `smaps_rollup`, in KiB.
fn memory_kib(pid: u32, field: &str) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap();
    let line = text.lines().find(|line| line.starts_with(&format!("{field}:"))).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

fn small_and_locked() {
    let mut instance = Instance::new("small");
    let handle = instance.handle();
    let (pid, refused) = (handle.pid(), handle.refused().unwrap());
    // Shared pages of the binary do not count: an unoptimised one has far more of them.
    let own = memory_kib(pid, "Pss_Anon") + memory_kib(pid, "Private_Dirty");
    let (all, locked) = (memory_kib(pid, "Pss"), memory_kib(pid, "Locked"));
    eprintln!("     own memory {own} KiB, Pss {all} KiB, locked {locked} KiB; {refused}");
    assert!(own < 2048, "{own} KiB");
    assert_eq!(locked > 0, refused.memory.is_none(), "{locked} KiB locked; {refused}");
    let policy = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    // The 41st field; the 3rd is the first after the name in brackets.
    let policy = policy.rsplit_once(')').unwrap().1.split_whitespace().nth(38).unwrap();
    assert_eq!(policy == "1", refused.priority.is_none(), "policy {policy}; {refused}");
    let score = fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).unwrap();
    assert_eq!(score.trim() == "-1000", refused.oom_score.is_none(), "{score}; {refused}");
    let said = instance.log().contains("not permitted: ");
    assert_eq!(said, !refused.is_nothing(), "{}", instance.log());
}

fn unprivileged() {
    const NOBODY: u32 = 65_534;
    if !rustix::process::geteuid().is_root() {
        eprintln!("     not root: every other test is this one");
        return;
    }
    let instance = Instance::new("unprivileged");
    for directory in [instance.state(), instance.data()] {
        chown(directory, Some(NOBODY), Some(NOBODY)).unwrap();
    }
    // Where the build directory stands may be closed to others.
    let exe = instance.root.join("guard");
    fs::copy(std::env::current_exe().unwrap(), &exe).unwrap();
    fs::set_permissions(&exe, fs::Permissions::from_mode(0o755)).unwrap();
    let mut victim = Command::new("sleep");
    victim.arg("600").current_dir(instance.data()).uid(NOBODY).stdin(Stdio::null());
    let mut victim = Process(victim.spawn().unwrap());
    let mut guard = Command::new(exe);
    guard.arg("guard").arg("--state-dir").arg(instance.state());
    guard.arg("--data-dir").arg(instance.data()).uid(NOBODY).current_dir("/");
    let guard = Process(guard.spawn().unwrap());
    let mut handle = wait_for_handle(&instance);
    assert_eq!(handle.pid(), guard.0.id());
    let refused = handle.refused().unwrap();
    assert!(refused.priority.is_some() && refused.oom_score.is_some(), "{refused}");
    handle.set_deadline(boot_time_ms() + 100).unwrap();
    victim.wait_for_death();
    wait_until_idle(&mut handle);
    assert_eq!(instance.log().matches("not permitted: ").count(), 1, "{}", instance.log());
}

fn wait_for_handle(instance: &Instance) -> Handle {
    let give_up = Instant::now() + PATIENCE;
    loop {
        match Handle::connect(&instance.state()) {
            Ok(handle) => return handle,
            Err(error) => assert!(Instant::now() < give_up, "no guard: {error}"),
        }
        pause();
    }
}

/// `busy`: ends by itself should nobody end it.
fn busy() -> ExitCode {
    let give_up = Instant::now() + 6 * PATIENCE;
    while Instant::now() < give_up {
        std::hint::spin_loop();
    }
    ExitCode::SUCCESS
}

fn starved() {
    let mut instance = Instance::new("starved");
    let mut process = Process::within(&instance.data());
    let mut handle = instance.handle();
    let processors = std::thread::available_parallelism().unwrap().get();
    let exe = std::env::current_exe().unwrap();
    let load: Vec<Process> = (0..4 * processors)
        .map(|_| Process(Command::new(&exe).arg("busy").spawn().unwrap()))
        .collect();
    let deadline = boot_time_ms() + 1500;
    handle.set_deadline(deadline).unwrap();
    process.wait_for_death();
    eprintln!("     seen dead {} ms after the deadline", boot_time_ms() - deadline);
    drop(load);
    wait_until_idle(&mut handle);
}

fn restarted_agent() {
    let mut instance = Instance::new("restarted");
    let far = boot_time_ms() + 3_600_000;
    let mut first = instance.keeper();
    first.connect(far).unwrap();
    let started = instance.joined(&mut first);
    assert!(started.started && started.replaced.is_none(), "{started:?}");
    drop(first);
    let mut second = instance.keeper();
    // What it would tell a new guard does not concern one that knows its deadline.
    second.connect(far + 1).unwrap();
    let found = instance.joined(&mut second);
    assert_eq!(found, Joined { started: false, ..started });
    assert_eq!(Handle::connect(&instance.state()).unwrap().ping().unwrap().deadline, Some(far));
    assert_eq!(second.joined(), None, "said once");
    second.stand_down().unwrap();
    second.dismiss().unwrap();
}

fn new_guard_is_armed() {
    let mut instance = Instance::new("new-guard");
    let mut process = Process::within(&instance.data());
    let mut keeper = instance.keeper();
    keeper.connect(boot_time_ms() + 200).unwrap();
    instance.joined(&mut keeper);
    drop(keeper);
    process.wait_for_death();
}

fn killed_guard() {
    let mut instance = Instance::new("killed-guard");
    let mut process = Process::within(&instance.data());
    let mut keeper = instance.keeper();
    keeper.arm(boot_time_ms() + 3_600_000).unwrap();
    let first = instance.joined(&mut keeper);
    send(first.pid, Signal::KILL);
    keeper.arm(boot_time_ms() + 300).unwrap();
    let second = instance.joined(&mut keeper);
    assert!(second.started && second.pid != first.pid, "{first:?} {second:?}");
    process.wait_for_death();
}

fn stopped_guard() {
    let mut instance = Instance::new("stopped-guard");
    let mut process = Process::within(&instance.data());
    let mut keeper = instance.keeper();
    keeper.arm(boot_time_ms() + 3_600_000).unwrap();
    let first = instance.joined(&mut keeper);
    send(first.pid, Signal::STOP);
    let far = boot_time_ms() + 3_700_000;
    keeper.arm(far).unwrap();
    let second = instance.joined(&mut keeper);
    assert_eq!((second.started, second.replaced), (true, Some(first.pid)));
    assert!(!Path::new(&format!("/proc/{}", first.pid)).exists(), "a zombie is left");
    assert_eq!(Handle::connect(&instance.state()).unwrap().ping().unwrap().deadline, Some(far));
    assert!(process.lives());

    send(second.pid, Signal::STOP);
    let error = keeper.arm(far + 1).unwrap_err();
    assert!(error.to_string().contains("does not answer"), "{error}");
    send(second.pid, Signal::CONT);
    keeper.arm(far + 1).unwrap();
    assert_eq!(instance.joined(&mut keeper), Joined { started: false, replaced: None, ..second });
}

fn strange_server() {
    let instance = Instance::new("stranger");
    // This very process, which answers nothing.
    let _listener = UnixListener::bind_addr(&address(&instance)).unwrap();
    let mut other = Process::within(&instance.root);
    fs::write(instance.state().join(guard::LOCK), format!("{}\n", other.0.id())).unwrap();
    let error = instance.keeper().arm(boot_time_ms() + 3_600_000).unwrap_err();
    assert!(error.to_string().contains("is not the guard"), "{error}");
    assert!(other.lives());
}

/// The guard's socket by way of `/proc`: its own path is too long for an address.
fn address(instance: &Instance) -> std::os::unix::net::SocketAddr {
    let link = instance.root.join("s");
    std::os::unix::fs::symlink(instance.state(), &link).unwrap();
    std::os::unix::net::SocketAddr::from_pathname(link.join(guard::SOCKET)).unwrap()
}

fn older_guard() {
    let instance = Instance::new("older");
    let listener = UnixListener::bind_addr(&address(&instance)).unwrap();
    let server = std::thread::spawn(move || {
        let (stream, _) = listener.accept().unwrap();
        let mut heard = Vec::new();
        for line in BufReader::new(&stream).lines() {
            let line = line.unwrap();
            let deadline = line.strip_prefix("1 deadline ").unwrap_or("none");
            (&stream).write_all(format!("1 ok {deadline} 77\n").as_bytes()).unwrap();
            heard.push(line);
        }
        heard
    });
    let mut keeper = instance.keeper();
    keeper.connect(5).unwrap();
    keeper.arm(9).unwrap();
    keeper.stand_down().unwrap();
    let joined = keeper.joined().unwrap();
    assert_eq!(joined, Joined { pid: 77, started: false, replaced: None, refused: None });
    drop(keeper);
    assert_eq!(server.join().unwrap(), ["1 ping", "1 ping", "1 deadline 9", "1 standdown"]);
}
