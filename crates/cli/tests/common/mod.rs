//! What the tests of the whole program share. Each test ends what it started, also when it fails.
#![allow(clippy::unwrap_used, dead_code, missing_docs, unreachable_pub)]

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

/// Killed processes are gone within this.
const GONE: Duration = Duration::from_secs(60);

/// The program under test.
pub fn pgherd() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_pgherd"))
}

/// A temporary directory that every user may enter.
pub fn directory() -> tempfile::TempDir {
    let dir = tempfile::Builder::new().prefix("pgherd-t").tempdir().unwrap();
    fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o755)).unwrap();
    dir
}

pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// User and group of a name in /etc/passwd.
pub fn user(name: &str) -> Option<(u32, u32)> {
    let text = fs::read_to_string("/etc/passwd").unwrap();
    let line = text.lines().find(|line| line.split(':').next() == Some(name))?;
    let fields: Vec<&str> = line.split(':').collect();
    Some((fields.get(2)?.parse().ok()?, fields.get(3)?.parse().ok()?))
}

/// Whom PostgreSQL runs as: `postgres` when the test is root, else ourselves.
pub fn owner() -> (u32, u32) {
    let own = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    if is_root() { user("postgres").expect("the user postgres") } else { own }
}

/// A loopback port that is this test's own.
pub fn free_port() -> u16 {
    lab::ports::reserve().expect("a free port")
}

/// A program of PostgreSQL.
pub fn postgres_program(name: &str) -> PathBuf {
    lab::tools::postgres_bin_dir().unwrap().join(name)
}

/// Every process, but this one, that works below `dir` or was started with a path below it.
pub fn processes_of(dir: &Path) -> Vec<String> {
    let dir = dir.canonicalize().unwrap();
    let below = |path: &Path| path.starts_with(&dir);
    let pids = lab::process::all().into_iter().filter(|pid| {
        *pid != std::process::id()
            && lab::process::is_alive(*pid)
            && (lab::process::working_directory(*pid).is_some_and(|cwd| below(&cwd))
                || lab::process::arguments(*pid).iter().any(|argument| below(argument)))
    });
    pids.map(|pid| format!("{pid}: {:?}", lab::process::arguments(pid))).collect()
}

/// Waits until `what` gives something.
pub fn wait_for<T>(what: &str, limit: Duration, mut look: impl FnMut() -> Option<T>) -> T {
    let until = Instant::now() + limit;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < until, "not within {limit:?}: {what}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// A child that is killed when it is dropped.
pub struct Killed(pub Child);

impl Drop for Killed {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

/// An etcd of one member in a directory of its own.
pub struct Etcd {
    pub port: u16,
    _child: Killed,
    _dir: tempfile::TempDir,
}

impl Etcd {
    pub fn start() -> Etcd {
        Etcd::start_on(free_port())
    }

    pub fn start_on(port: u16) -> Etcd {
        let peer = free_port();
        let dir = directory();
        let url = |port: u16| format!("http://127.0.0.1:{port}");
        let mut command = Command::new(lab::tools::etcd().unwrap());
        command.args(["--name", "e", "--data-dir"]).arg(dir.path().join("e"));
        command.args(["--listen-client-urls", &url(port), "--advertise-client-urls", &url(port)]);
        command.args(["--listen-peer-urls", &url(peer)]);
        command.args(["--initial-advertise-peer-urls", &url(peer)]);
        command.args(["--initial-cluster", &format!("e={}", url(peer)), "--logger", "zap"]);
        let quiet = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let etcd = Etcd { port, _child: Killed(quiet.spawn().unwrap()), _dir: dir };
        wait_for("etcd answers", Duration::from_secs(20), || etcd.put("/up", "1").ok());
        etcd
    }

    pub fn put(&self, key: &str, value: &str) -> Result<(), dcs::Error> {
        self.ask(async |client| client.put(key, value.as_bytes().to_vec(), 0).await.map(|_| ()))
    }

    /// The value of a key, if it is there.
    pub fn get(&self, key: &str) -> Result<Option<String>, dcs::Error> {
        let (found, _) = self.ask(async |client| client.get(key).await)?;
        Ok(found.map(|found| String::from_utf8(found.value).unwrap()))
    }

    pub fn write(&self, txn: dcs::Txn) -> Result<(), dcs::Error> {
        self.ask(async |client| client.txn("writing for a test", txn).await.map(|_| ()))
    }

    /// What the keys of a cluster say.
    pub fn view(&self, prefix: &str) -> std::sync::Arc<types::ClusterView> {
        self.ask(async |client| dcs::ClusterStore::new(client, prefix).read().await).unwrap()
    }

    fn ask<T>(
        &self,
        question: impl AsyncFnOnce(dcs::Client) -> Result<T, dcs::Error>,
    ) -> Result<T, dcs::Error> {
        let endpoints = vec![format!("127.0.0.1:{}", self.port)];
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let config = dcs::ClientConfig::new(endpoints, types::Millis(1_000));
            question(dcs::Client::connect(config)?).await
        })
    }
}

/// Runs a command to its end; killed, and the test failed, after `limit`.
pub fn run(mut command: Command, limit: Duration) -> Output {
    let shown = format!("{command:?}");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = Killed(command.spawn().unwrap());
    // Read beside, so that a full pipe stops nobody.
    let read = |from: Option<Box<dyn Read + Send>>| {
        let mut from = from.unwrap();
        std::thread::spawn(move || {
            let mut bytes = Vec::new();
            from.read_to_end(&mut bytes).unwrap();
            bytes
        })
    };
    let stdout = read(child.0.stdout.take().map(|pipe| Box::new(pipe) as Box<dyn Read + Send>));
    let stderr = read(child.0.stderr.take().map(|pipe| Box::new(pipe) as Box<dyn Read + Send>));
    let until = Instant::now() + limit;
    let status = loop {
        if let Some(status) = child.0.try_wait().unwrap() {
            break status;
        }
        if Instant::now() >= until {
            child.0.kill().unwrap();
            child.0.wait().unwrap();
            let said = String::from_utf8_lossy(&stderr.join().unwrap()).into_owned();
            panic!("{shown} did not end within {limit:?}; it said:\n{said}");
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    Output { status, stdout: stdout.join().unwrap(), stderr: stderr.join().unwrap() }
}

/// What stands below a directory: path to mode, owner, size, time of change and contents' time.
pub fn listing(dir: &Path) -> BTreeMap<PathBuf, String> {
    let mut found = BTreeMap::new();
    let mut waiting = vec![dir.to_owned()];
    while let Some(path) = waiting.pop() {
        let meta = fs::symlink_metadata(&path).unwrap();
        let (changed, nanoseconds) = (meta.mtime(), meta.mtime_nsec());
        let (mode, owner, size) = (meta.mode(), meta.uid(), meta.size());
        if meta.is_dir() {
            waiting.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        }
        let text = format!("{mode:o} {owner} {size} {changed}.{nanoseconds:09}");
        found.insert(path, text);
    }
    found
}

/// A demo that is stopped, and whose last processes are killed, when it is dropped.
pub struct Demo {
    pub dir: PathBuf,
    program: PathBuf,
    user: Option<(u32, u32)>,
    base_port: u16,
}

impl Demo {
    pub fn new(dir: &Path) -> Demo {
        Demo::of(dir, pgherd(), None)
    }

    /// As another user, who has a copy of the program that he can reach.
    pub fn as_user(dir: &Path, program: &Path, user: (u32, u32)) -> Demo {
        Demo::of(dir, program, Some(user))
    }

    /// Its ports are not where others look first: demos of other people may run here.
    fn of(dir: &Path, program: &Path, user: Option<(u32, u32)>) -> Demo {
        let base_port = lab::ports::reserve_block(60).expect("free ports");
        Demo { dir: dir.to_owned(), program: program.to_owned(), user, base_port }
    }

    /// `pgherd …` as the demo's user.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.args(arguments);
        if let Some((uid, gid)) = self.user {
            let home = self.dir.parent().unwrap();
            command.uid(uid).gid(gid).env("HOME", home).current_dir(home);
        }
        command
    }

    /// The first of its ports.
    pub fn base_port(&self) -> u16 {
        self.base_port
    }

    /// The options of a demo that is started.
    pub fn ports(&self) -> [String; 2] {
        ["--base-port".to_owned(), self.base_port.to_string()]
    }

    /// `pgherd demo --dir DIR …`.
    pub fn demo(&self, arguments: &[&str], limit: Duration) -> Output {
        let mut command = self.command(&["demo", "--dir"]);
        command.arg(&self.dir).args(arguments);
        run(command, limit)
    }

    /// `pgherd -c DIR/node1.yml …`; its standard output. It must succeed.
    pub fn ctl(&self, arguments: &[&str]) -> String {
        let mut command = self.command(&["-c"]);
        command.arg(self.dir.join("node1.yml")).args(arguments);
        succeeded(run(command, Duration::from_secs(60)))
    }

    /// Starts it in the background; the event that says that it is healthy.
    pub fn start(&self, arguments: &[&str]) -> serde_json::Value {
        let [option, port] = self.ports();
        let arguments = [&["--detach", "--json", &option, &port], arguments].concat();
        let said = succeeded(self.demo(&arguments, Duration::from_secs(120)));
        let last = said.lines().last().expect("it says something");
        let event: serde_json::Value = serde_json::from_str(last).unwrap();
        assert_eq!(event["event"], "healthy", "{said}");
        event
    }

    /// `demo.json`.
    pub fn file(&self) -> serde_json::Value {
        serde_json::from_slice(&fs::read(self.dir.join("demo.json")).unwrap()).unwrap()
    }

    pub fn stop(&self) {
        succeeded(self.demo(&["--stop"], Duration::from_secs(120)));
        assert_eq!(processes_of(&self.dir), Vec::<String>::new(), "processes are left");
    }

    /// The members as `pgherd list` shows them, with their roles.
    pub fn roles(&self) -> BTreeMap<String, String> {
        let rows: serde_json::Value =
            serde_json::from_str(&self.ctl(&["list", "-f", "json"])).unwrap();
        let text = |row: &serde_json::Value, key| row[key].as_str().unwrap_or("").to_owned();
        let rows = rows.as_array().unwrap();
        rows.iter().map(|row| (text(row, "Member"), text(row, "Role"))).collect()
    }

    /// Waits until one member leads and `standbys` are synchronous; the leader.
    pub fn settled(&self, standbys: usize) -> String {
        wait_for("one leader and its standbys", Duration::from_secs(60), || {
            let roles = self.roles();
            let with = |wanted| roles.iter().filter(move |(_, role)| *role == wanted);
            let leaders: Vec<&String> = with("Leader").map(|(name, _)| name).collect();
            let complete = with("Quorum Standby").count() == standbys && leaders.len() == 1;
            complete.then(|| leaders[0].clone())
        })
    }
}

impl Drop for Demo {
    fn drop(&mut self) {
        let mut command = self.command(&["demo", "--stop", "--dir"]);
        command.arg(&self.dir).stdout(Stdio::null()).stderr(Stdio::null());
        command.status().ok();
    }
}

/// The standard output of a command that had to succeed.
pub fn succeeded(output: Output) -> String {
    let (said, complained) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{}\n{said}\n{complained}", output.status);
    said.into_owned()
}

/// Runs SQL with psql, as a user would.
pub fn psql(url: &str, sql: &str) -> Output {
    let mut command = Command::new(postgres_program("psql"));
    command.args(["-X", "-At", "-v", "ON_ERROR_STOP=1", "-c", sql, url]);
    command.env("PGCONNECT_TIMEOUT", "20");
    run(command, Duration::from_secs(60))
}

pub fn signal(pid: u32, signal: Signal) {
    let pid = Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
    kill_process(pid, signal).ok();
}

/// Kills every process that works below `dir` or was started with a path below it.
pub fn kill_all(dir: &Path) {
    let below = |path: &Path| path.starts_with(dir);
    wait_for("no process is left", GONE, || {
        let left: Vec<u32> = lab::process::all()
            .into_iter()
            .filter(|pid| *pid != std::process::id() && lab::process::is_alive(*pid))
            .filter(|pid| {
                lab::process::working_directory(*pid).is_some_and(|cwd| below(&cwd))
                    || lab::process::arguments(*pid).iter().any(|argument| below(argument))
            })
            .collect();
        for pid in &left {
            signal(*pid, Signal::KILL);
        }
        left.is_empty().then_some(())
    });
}
