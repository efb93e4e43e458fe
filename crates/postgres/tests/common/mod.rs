//! Instances in temporary directories, killed when the test ends.
#![allow(clippy::unwrap_used, dead_code, missing_docs, unreachable_pub)]

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Once, Weak};
use std::time::{Duration, Instant};

use postgres::{
    Credentials, Instance, InstanceConfig, LocalInstance, OsUser, Secret, StartAs, Started,
    SyncRule,
};
use rustix::process::{Pid, Signal};
use types::{
    Control, DataDir, MemberName, Millis, Primary, Process, RoleState, Running, SlotChange,
    Standby, SyncNames, Upstream, slot_name,
};

/// The limit of operations that are expected to succeed.
pub const LIMIT: Millis = Millis(30_000);
/// How long something that must come is waited for; a loaded machine needs a part of it.
const PATIENCE: Duration = Duration::from_secs(20);
/// Free memory for files that is enough for the clusters of all tests, in bytes.
const MEMORY_BYTES_MIN: u64 = 2 << 30;
/// The release that `make test` installs beside the distribution's.
const INSTALLED: &str = "target/tools/postgresql-18/bin";

/// The directories with PostgreSQL's programs to test with: those of `PGHERD_TEST_BINDIRS`, else
/// the distribution's and what `tools/install-test.sh` installed.
pub fn bin_dirs() -> Vec<PathBuf> {
    if let Ok(list) = std::env::var("PGHERD_TEST_BINDIRS") {
        return list.split(':').map(PathBuf::from).collect();
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).unwrap();
    let mut found = Vec::new();
    for place in [Path::new("/usr/lib/postgresql"), &root.join("target/tools/usr/lib/postgresql")] {
        let entries = std::fs::read_dir(place).into_iter().flatten();
        found.extend(entries.flatten().map(|entry| entry.path().join("bin")));
    }
    found.push(root.join(INSTALLED));
    found.retain(|dir| dir.join("initdb").is_file());
    let usable = |dir: &PathBuf| closed_above(dir).is_none();
    let (usable, unreachable): (Vec<_>, Vec<_>) = found.into_iter().partition(usable);
    report(&usable, &unreachable);
    assert!(!usable.is_empty(), "no PostgreSQL to test with: make tools");
    usable
}

/// What keeps the user that PostgreSQL runs as from a directory, if the test is root.
fn closed_above(dir: &Path) -> Option<PathBuf> {
    if !rustix::process::geteuid().is_root() {
        return None;
    }
    let closed = |dir: &&Path| {
        let meta = std::fs::metadata(dir);
        meta.is_ok_and(|meta| meta.permissions().mode() & 0o001 == 0)
    };
    dir.ancestors().find(closed).map(Path::to_owned)
}

/// Says once what is tested and what is not; past the test harness, which shows no output of a test
/// that passes.
fn report(usable: &[PathBuf], unreachable: &[PathBuf]) {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let mut text = String::new();
        for dir in usable {
            text.push_str(&format!("tested with the PostgreSQL of {}\n", dir.display()));
        }
        for dir in unreachable {
            let closed = closed_above(dir).unwrap_or_default();
            text.push_str(&format!(
                "NOT tested with the PostgreSQL of {}: its user may not enter {}\n",
                dir.display(),
                closed.display()
            ));
        }
        if !usable.iter().chain(unreachable).any(|dir| dir.ends_with(INSTALLED)) {
            text.push_str("NOT tested with PostgreSQL 18: tools/install-test.sh installs it\n");
        }
        std::io::stderr().write_all(text.as_bytes()).ok();
    });
}

/// The user that PostgreSQL runs as: `postgres` if the test is root.
pub fn os_user() -> Option<OsUser> {
    if !rustix::process::geteuid().is_root() {
        return None;
    }
    let passwd = std::fs::read_to_string("/etc/passwd").unwrap();
    let line = passwd.lines().find(|l| l.starts_with("postgres:"));
    let fields: Vec<&str> = line.expect("the user postgres").split(':').collect();
    Some(OsUser {
        name: "postgres".to_owned(),
        uid: fields[2].parse().unwrap(),
        gid: fields[3].parse().unwrap(),
    })
}

pub struct Node {
    pub instance: LocalInstance,
    base: tempfile::TempDir,
    template: Option<Arc<Template>>,
}

impl Node {
    pub fn new(name: &str, bin_dir: &Path) -> Node {
        Node::with(name, bin_dir, &[])
    }

    /// With further server parameters.
    pub fn with(name: &str, bin_dir: &Path, settings: &[(&str, &str)]) -> Node {
        Node::changed(name, bin_dir, |config| {
            for (name, value) in settings {
                config.parameters.insert((*name).to_owned(), (*value).to_owned());
            }
        })
    }

    /// With a changed configuration.
    pub fn changed(name: &str, bin_dir: &Path, change: impl FnOnce(&mut InstanceConfig)) -> Node {
        let base = directory();
        let port = lab::ports::reserve().unwrap();
        let mut config = config(name, bin_dir, base.path(), port, os_user());
        change(&mut config);
        let instance = LocalInstance::new(config).unwrap();
        Node { instance, base, template: None }
    }

    pub fn upstream(&self) -> Upstream {
        let config = self.instance.config();
        Upstream { name: config.member.clone(), host: "127.0.0.1".to_owned(), port: config.port }
    }

    pub fn name(&self) -> MemberName {
        self.instance.config().member.clone()
    }

    pub fn postmaster_pid(&self) -> i32 {
        let path = self.instance.config().data_dir.join("postmaster.pid");
        let text = std::fs::read_to_string(path).unwrap();
        text.lines().next().unwrap().parse().unwrap()
    }

    /// The pid of the server process with this title, if there is one.
    pub fn find_process(&self, title: &str) -> Option<i32> {
        let title = format!("postgres: test: {title}");
        let titled = |pid: &i32| {
            let shown = std::fs::read_to_string(format!("/proc/{pid}/cmdline"));
            shown.is_ok_and(|shown| shown.starts_with(&title))
        };
        self.instance.processes().unwrap().into_iter().find(titled)
    }

    /// The pid of the server process with this title.
    pub fn process(&self, title: &str) -> i32 {
        self.find_process(title).expect(title)
    }

    /// What the server has written to its log.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.instance.config().state_dir.join("postgres.log")).unwrap()
    }

    /// How to connect as superuser.
    pub fn connection(&self) -> tokio_postgres::Config {
        let config = self.instance.config();
        let mut pg = tokio_postgres::Config::new();
        pg.host_path(&config.socket_dir).port(config.port);
        pg.user("postgres").password("super ' secret");
        pg.dbname("postgres");
        pg
    }

    /// Runs statements in a plain session, which ends with them. One that fails gives its error.
    pub async fn try_sql(&self, statement: &str) -> Result<Vec<String>, tokio_postgres::Error> {
        run_in(&self.connection(), statement).await
    }

    /// Runs statements; the first column of their rows.
    pub async fn sql(&self, statement: &str) -> Vec<String> {
        self.try_sql(statement).await.unwrap()
    }

    /// The one value that a statement gives.
    pub async fn value(&self, statement: &str) -> String {
        self.sql(statement).await.remove(0)
    }

    /// Runs statements in a session in the background: whether they were acknowledged, bounded.
    pub fn begin(&self, statement: &str) -> tokio::task::JoinHandle<bool> {
        let (pg, statement) = (self.connection(), statement.to_owned());
        tokio::spawn(async move {
            let ran = tokio::time::timeout(2 * PATIENCE, run_in(&pg, &statement)).await;
            ran.unwrap_or_else(|_| panic!("no answer: {statement}")).is_ok()
        })
    }

    /// Starts it, and says that it answers.
    pub async fn start(&self, start_as: StartAs) {
        let started = self.instance.start(start_as, LIMIT).await.unwrap();
        assert_eq!(started, Started::Ready, "{}", self.log());
    }
}

async fn run_in(
    pg: &tokio_postgres::Config,
    statement: &str,
) -> Result<Vec<String>, tokio_postgres::Error> {
    let (client, connection) = pg.connect(tokio_postgres::NoTls).await?;
    tokio::spawn(connection);
    let mut values = Vec::new();
    for message in client.simple_query(statement).await? {
        if let tokio_postgres::SimpleQueryMessage::Row(row) = message {
            values.push(row.get(0).unwrap_or_default().to_owned());
        }
    }
    Ok(values)
}

impl Drop for Node {
    fn drop(&mut self) {
        for _ in 0..100 {
            let pids = self.instance.processes().unwrap_or_default();
            if pids.is_empty() {
                return;
            }
            for pid in pids.into_iter().filter_map(Pid::from_raw) {
                rustix::process::kill_process(pid, Signal::KILL).ok();
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

/// In memory if there is room: no test is about a disk, and a busy one makes them slow.
fn parent() -> PathBuf {
    let memory = Path::new("/dev/shm");
    let free = rustix::fs::statvfs(memory).map_or(0, |stat| stat.f_bavail * stat.f_frsize);
    let room = std::env::var_os("TMPDIR").is_none() && free >= MEMORY_BYTES_MIN;
    if room { memory.to_owned() } else { std::env::temp_dir() }
}

/// A temporary directory that PostgreSQL's user can work in.
fn directory() -> tempfile::TempDir {
    let base = tempfile::Builder::new().prefix("pgh").tempdir_in(parent()).unwrap();
    std::fs::set_permissions(base.path(), PermissionsExt::from_mode(0o755)).unwrap();
    if let Some(user) = os_user() {
        chown(base.path(), Some(user.uid), Some(user.gid)).unwrap();
    }
    base
}

/// A data directory as initdb leaves it, which nodes are copied from.
struct Template {
    base: tempfile::TempDir,
}

/// One for each version, as long as a node uses it.
static TEMPLATES: tokio::sync::Mutex<BTreeMap<PathBuf, Weak<Template>>> =
    tokio::sync::Mutex::const_new(BTreeMap::new());

async fn template(bin_dir: &Path) -> Arc<Template> {
    let mut templates = TEMPLATES.lock().await;
    if let Some(template) = templates.get(bin_dir).and_then(Weak::upgrade) {
        return template;
    }
    let node = Node::new("template", bin_dir);
    let mut config = (*node.instance.config()).clone();
    // Small segments: less to copy.
    config.initdb.push(("wal-segsize".to_owned(), Some("1".to_owned())));
    assert!(!node.instance.apply(config).await.unwrap(), "there is no file yet");
    node.instance.bootstrap(false).await.unwrap();
    let template = Arc::new(Template { base: directory() });
    let data_dir = node.instance.config().data_dir.clone();
    std::fs::rename(data_dir, template.base.path().join("data")).unwrap();
    templates.insert(bin_dir.to_owned(), Arc::downgrade(&template));
    template
}

/// A running cluster: the first node is the primary, the others stream from it, each with its slot.
/// All begin as copies of one directory, which is quicker than initdb and pg_basebackup.
pub async fn cluster<const N: usize>(
    bin_dir: &Path,
    names: [&str; N],
    settings: &[(&str, &str)],
) -> [Node; N] {
    let template = template(bin_dir).await;
    let nodes = names.map(|name| {
        let mut node = Node::with(name, bin_dir, settings);
        let mut copy = Command::new("cp");
        copy.arg("-a").arg(template.base.path().join("data")).arg(node.base.path());
        assert!(copy.status().unwrap().success());
        node.template = Some(template.clone());
        node
    });
    let primary = &nodes[0];
    primary.start(StartAs::Primary).await;
    let wanted: Vec<SlotChange> = nodes[1..].iter().map(own_slot).collect();
    primary.instance.change_slots(&wanted).await.unwrap();
    for node in &nodes[1..] {
        node.start(StartAs::Standby { upstream: Some(primary.upstream()) }).await;
        streaming(node).await;
    }
    nodes
}

/// Waits until what must come has come.
pub async fn until(what: &str, mut come: impl AsyncFnMut() -> bool) {
    let begun = Instant::now();
    while !come().await {
        assert!(begun.elapsed() < PATIENCE, "{what}");
        pause(5).await;
    }
}

pub async fn pause(millis: u64) {
    tokio::time::sleep(Duration::from_millis(millis)).await;
}

pub fn signal(pid: i32, signal: Signal) {
    rustix::process::kill_process(Pid::from_raw(pid).unwrap(), signal).unwrap();
}

/// Stops a process by SIGSTOP; returns when it stands.
pub async fn freeze(pid: i32) {
    signal(pid, Signal::STOP);
    until("the process stands", async || {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        stat.rsplit_once(") ").unwrap().1.starts_with('T')
    })
    .await;
}

pub fn thaw(pid: i32) {
    signal(pid, Signal::CONT);
}

pub async fn running(node: &Node) -> Running {
    let begun = Instant::now();
    loop {
        match node.instance.observe().await.process {
            Process::Running(running) => return running,
            other => assert!(begun.elapsed() < PATIENCE, "{other:?}"),
        }
        pause(20).await;
    }
}

pub async fn primary(node: &Node) -> Primary {
    match running(node).await.role {
        RoleState::Primary(primary) => primary,
        RoleState::Standby(standby) => panic!("{standby:?}"),
    }
}

pub async fn standby(node: &Node) -> Standby {
    match running(node).await.role {
        RoleState::Standby(standby) => standby,
        RoleState::Primary(primary) => panic!("{primary:?}"),
    }
}

pub async fn streaming(node: &Node) -> Standby {
    let begun = Instant::now();
    loop {
        let seen = standby(node).await;
        if seen.receiver.as_ref().is_some_and(|r| r.streaming) {
            return seen;
        }
        assert!(
            begun.elapsed() < PATIENCE,
            "{seen:?}
{}",
            node.log()
        );
        pause(20).await;
    }
}

pub async fn control(node: &Node) -> Control {
    match node.instance.observe().await.data_dir {
        DataDir::Present(control) => control,
        other => panic!("{other:?}"),
    }
}

pub fn any(number: usize, names: &[&Node]) -> SyncRule {
    let names: BTreeSet<_> = names.iter().map(|n| n.name()).collect();
    SyncRule::Any(SyncNames { number, names })
}

pub async fn new_primary(node: &Node) {
    node.instance.bootstrap(false).await.unwrap();
    node.start(StartAs::Primary).await;
}

/// Creates the slot that a member streams by.
pub fn own_slot(node: &Node) -> SlotChange {
    SlotChange::Create { name: slot_name(&node.name()) }
}

pub async fn new_standby(node: &Node, of: &Node) {
    of.instance.change_slots(&[own_slot(node)]).await.unwrap();
    let bytes = std::sync::atomic::AtomicU64::new(0);
    let progress = |p: postgres::CopyProgress| {
        bytes.store(p.done, std::sync::atomic::Ordering::Relaxed);
    };
    node.instance.clone_from(Some(&of.upstream()), None, progress).await.unwrap();
    assert!(bytes.into_inner() > 1_000_000, "progress was reported");
    let upstream = Some(of.upstream());
    node.instance.start(StartAs::Standby { upstream }, LIMIT).await.unwrap();
    assert_eq!(streaming(node).await.upstream, Some(of.upstream()));
}

/// The helper program, copied if PostgreSQL's user may not reach it.
fn helper(base: &Path) -> PathBuf {
    let built = Path::new(env!("CARGO_BIN_EXE_disk-helper"));
    if closed_above(built).is_none() {
        return built.to_owned();
    }
    let copy = base.join("disk-helper");
    std::fs::copy(built, &copy).unwrap();
    copy
}

fn config(
    name: &str,
    bin_dir: &Path,
    base: &Path,
    port: u16,
    os_user: Option<OsUser>,
) -> InstanceConfig {
    let role = |name: &str, password: &str| Credentials {
        username: name.to_owned(),
        password: Some(Secret::new(password)),
        ..Credentials::default()
    };
    let parameters = [
        ("wal_retrieve_retry_interval", "200ms"),
        ("shared_buffers", "16MB"),
        ("max_connections", "30"),
        ("fsync", "off"),
        ("log_min_messages", "log"),
        ("wal_keep_size", "64MB"),
        ("wal_receiver_status_interval", "1s"),
    ];
    let parameters = parameters.map(|(n, v)| (n.to_owned(), v.to_owned()));
    let pg_hba = [
        "local all all scram-sha-256",
        "host all all 127.0.0.1/32 scram-sha-256",
        "host replication all 127.0.0.1/32 scram-sha-256",
    ];
    InstanceConfig {
        member: name.into(),
        scope: "test".to_owned(),
        data_dir: base.join("data"),
        bin_dir: Some(bin_dir.to_owned()),
        listen: vec!["127.0.0.1".to_owned()],
        port,
        socket_dir: base.join("s"),
        socket_directories: Some(base.join("s").display().to_string()),
        config_dir: None,
        config_base_name: "postgresql".to_owned(),
        written_by: "pgherd",
        bin_name: BTreeMap::new(),
        rewind_options: Vec::new(),
        krbsrvname: None,
        os_user,
        superuser: role("postgres", "super ' secret"),
        replication: role("replicator", "rep:\\pass"),
        rewind: role("rewind_user", "rewind pass"),
        database: "postgres".to_owned(),
        pgpass: base.join("pgpass"),
        state_dir: base.join("state"),
        parameters: BTreeMap::from(parameters),
        pg_hba: pg_hba.map(str::to_owned).to_vec(),
        pg_ident: Vec::new(),
        initdb: Vec::new(),
        hooks: postgres::Hooks::default(),
        recovery_conf: BTreeMap::new(),
        custom_conf: None,
        dynamic: "{\"ttl\": 30}".to_owned(),
        basebackup: vec![("no-sync".to_owned(), None)],
        use_unix_socket: true,
        use_slots: true,
        remote: None,
        force_feedback: false,
        helper: helper(base),
        trial_interval: Millis(1000),
    }
}
