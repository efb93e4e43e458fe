//! The PostgreSQL of a measurement, and an etcd that shows it as a cluster's primary.

use std::fs;
use std::net::Ipv4Addr;
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, ensure};
use lab::workload::{self, Target};
use lab::{etcd, process, tools};
use rustix::process::Signal;
use tokio::process::{Child, Command};
use tokio::time::Instant;
use types::keys;

/// The first port that is tried.
const FIRST_PORT: u16 = 26_000;
/// How many ports there are: PostgreSQL's, etcd's two, and those of the peers.
const PORTS: u16 = 10;
/// The cluster's name in etcd.
pub(super) const SCOPE: &str = "bench";
/// Where it is in etcd.
pub(super) const NAMESPACE: &str = "/service/";
/// How long a program may take to start.
const START_LIMIT: Duration = Duration::from_secs(60);
/// How long the tables may take.
const TABLES_LIMIT: Duration = Duration::from_secs(600);
/// How long PostgreSQL may take to end.
const END_LIMIT: Duration = Duration::from_secs(20);
/// How often something is asked again.
const POLL: Duration = Duration::from_millis(50);
/// How long one statement may take.
pub(super) const SQL_LIMIT: Duration = Duration::from_secs(10);
/// More than every peer keeps open together.
const CONNECTIONS_MAX: u32 = 1200;

/// Both, until it is dropped.
pub(super) struct Backend {
    directory: PathBuf,
    data_dir: PathBuf,
    first_port: u16,
    postgres: Child,
    _etcd: Child,
    bin_dir: PathBuf,
}

impl Backend {
    /// Starts both, with pgbench's tables of that scale.
    pub(super) async fn start(directory: &Path, scale: u32) -> anyhow::Result<Backend> {
        let owner = tools::postgres_owner()?;
        if let Some((uid, gid)) = owner {
            chown(directory, Some(uid), Some(gid))?;
        }
        let bin_dir = bin_dir()?;
        let first_port = lab::ports::free_block(FIRST_PORT, PORTS, PORTS);
        let first_port = first_port.context("there are no free ports")?;
        let data_dir = directory.join("data");
        let command = |program: &str| {
            let mut command = service(&bin_dir.join(program));
            command.stdin(Stdio::null()).current_dir(directory).kill_on_drop(true);
            if let Some((uid, gid)) = owner {
                command.uid(uid).gid(gid);
            }
            command
        };
        let mut initdb = command("initdb");
        initdb.args(["-U", "postgres", "-A", "trust", "--no-sync", "-D"]).arg(&data_dir);
        finish(&mut initdb, START_LIMIT).await?;
        fs::write(data_dir.join("postgresql.auto.conf"), settings(first_port))?;
        let log = fs::File::create(directory.join("postgres.log"))?;
        let mut postgres = command("postgres");
        postgres.arg("-D").arg(&data_dir).stdout(log.try_clone()?).stderr(log);
        let postgres = postgres.spawn().context("cannot start PostgreSQL")?;
        let etcd = start_etcd(directory, first_port).await?;
        let directory = directory.to_owned();
        let backend = Backend { directory, data_dir, first_port, postgres, _etcd: etcd, bin_dir };
        until_answers(&backend.target(first_port), "PostgreSQL").await?;
        backend.show(first_port).await?;
        let mut tables = backend.pgbench(first_port);
        tables.args(["-i", "-q", "-s", &scale.to_string()]);
        finish(&mut tables, TABLES_LIMIT).await?;
        Ok(backend)
    }

    /// Where files of a slice may be.
    pub(super) fn directory(&self) -> &Path {
        &self.directory
    }

    /// A port of the block: 0 is PostgreSQL's, 1 and 2 are etcd's, the rest is free.
    pub(super) fn port(&self, number: u16) -> u16 {
        self.first_port + number
    }

    /// Where a proxy finds etcd.
    pub(super) fn etcd(&self) -> String {
        format!("127.0.0.1:{}", self.port(1))
    }

    /// How to reach the database at a port.
    pub(super) fn target(&self, port: u16) -> Target {
        workload::target(port, "postgres", "none", "pgherd-bench")
    }

    /// pgbench, with its options for this database at a port.
    pub(super) fn pgbench(&self, port: u16) -> Command {
        pgbench(&self.bin_dir, port)
    }

    /// Writes what an agent would.
    async fn show(&self, postgres: u16) -> anyhow::Result<()> {
        let member = serde_json::json!({
            "conn_url": format!("postgres://127.0.0.1:{postgres}/postgres"),
            "role": "primary", "state": "running", "term": 1, "timeline": 1,
        });
        let term = serde_json::json!({"term": 1, "leader": "n1", "timeline": 1});
        let prefix = keys::prefix(NAMESPACE, SCOPE);
        let records = [
            (keys::LEADER.to_owned(), "n1".to_owned()),
            (format!("{}n1", keys::MEMBERS), member.to_string()),
            (keys::TERM.to_owned(), term.to_string()),
        ];
        for (key, value) in records {
            let mut put = Command::new("etcdctl");
            put.env("ETCDCTL_API", "3").args(["--endpoints", &self.etcd(), "put"]);
            put.arg(format!("{prefix}{key}")).arg(value);
            finish(&mut put, START_LIMIT).await.context("etcdctl (tools/install-bench.sh)")?;
        }
        Ok(())
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        // The immediate way; killed, it would leave shared memory behind.
        if let Some(pid) = self.postgres.id() {
            drop(process::signal(pid, Signal::QUIT));
        }
        let until = std::time::Instant::now() + END_LIMIT;
        while matches!(self.postgres.try_wait(), Ok(None)) && std::time::Instant::now() < until {
            std::thread::sleep(POLL);
        }
        for pid in process::working_in(&self.data_dir) {
            drop(process::signal(pid, Signal::KILL));
        }
    }
}

/// The distribution's PostgreSQL, the newest of them; another one where it has none.
pub(super) fn bin_dir() -> anyhow::Result<PathBuf> {
    let versions = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let version = |entry: fs::DirEntry| entry.file_name().to_str()?.parse::<u32>().ok();
    let newest = versions.filter_map(version).max();
    let installed =
        newest.map(|version| PathBuf::from(format!("/usr/lib/postgresql/{version}/bin")));
    match installed.filter(|directory| directory.join("postgres").is_file()) {
        Some(directory) => Ok(directory),
        None => Ok(tools::postgres_bin_dir()?),
    }
}

/// pgbench's program and where it connects to.
pub(super) fn pgbench(bin_dir: &Path, port: u16) -> Command {
    let mut command = service(&bin_dir.join("pgbench"));
    command.env("PGHOST", "127.0.0.1").env("PGPORT", port.to_string());
    command.env("PGUSER", "postgres").env("PGDATABASE", "postgres");
    command.stdin(Stdio::null()).kill_on_drop(true);
    command
}

/// A program in a session of its own, as a service is: the scheduler shares processors out between
/// sessions (sched(7), autogroups), whichever one this is. `setsid` becomes the program, so that
/// the process is the program's.
pub(super) fn service(program: &Path) -> Command {
    let mut command = Command::new("setsid");
    command.arg(program);
    command
}

/// Nothing that speeds commits up. What comes at its own time, and would hit one peer and not
/// another, is put off: checkpoints, and autovacuum (pgbench vacuums what needs it).
fn settings(port: u16) -> String {
    format!(
        "listen_addresses = '127.0.0.1'\nport = {port}\nunix_socket_directories = ''\n\
         max_connections = {CONNECTIONS_MAX}\nshared_buffers = '512MB'\nautovacuum = off\n\
         max_wal_size = '4GB'\ncheckpoint_timeout = '60min'\n"
    )
}

async fn start_etcd(directory: &Path, first_port: u16) -> anyhow::Result<Child> {
    let member = etcd::Member {
        name: "etcd".to_owned(),
        data_dir: directory.join("etcd"),
        address: Ipv4Addr::LOCALHOST,
        client_port: first_port + 1,
        peer_port: first_port + 2,
    };
    let program = tools::etcd()?;
    let spec = member.service(std::slice::from_ref(&member), &program, Duration::ZERO);
    let log = fs::File::create(&spec.log)?;
    let mut command = service(&spec.program);
    command.args(&spec.arguments).stdin(Stdio::null()).kill_on_drop(true);
    let child = command.stdout(log.try_clone()?).stderr(log).spawn();
    let child = child.with_context(|| format!("cannot run {}", program.display()))?;
    let until = Instant::now() + START_LIMIT;
    while !matches!(lab::http::get(member.client(), "/health", POLL).await, Ok((200, _))) {
        ensure!(Instant::now() < until, "etcd does not start");
        tokio::time::sleep(POLL).await;
    }
    Ok(child)
}

/// Waits until a statement is answered there.
pub(super) async fn until_answers(target: &Target, what: &str) -> anyhow::Result<()> {
    let until = Instant::now() + START_LIMIT;
    while let Err(error) = workload::execute(target, "SELECT 1", SQL_LIMIT).await {
        ensure!(Instant::now() < until, "{what} does not start: {error}");
        tokio::time::sleep(POLL).await;
    }
    Ok(())
}

/// Runs a program to its end; what it printed.
pub(super) async fn finish(command: &mut Command, limit: Duration) -> anyhow::Result<String> {
    let program = command.as_std().get_program().to_owned();
    let done = tokio::time::timeout(limit, command.kill_on_drop(true).output()).await;
    let done = done.with_context(|| format!("{program:?} does not end"))?;
    let done = done.with_context(|| format!("cannot run {program:?}"))?;
    let said = String::from_utf8_lossy(&done.stderr);
    ensure!(done.status.success(), "{program:?} failed: {said}");
    Ok(String::from_utf8_lossy(&done.stdout).into_owned())
}
