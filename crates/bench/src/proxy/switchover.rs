//! A planned switchover, and a restart of the primary, under clients in transaction mode: who gets
//! an error, who waits how long.

use std::path::Path;
use std::time::{Duration, SystemTime};

use anyhow::{Context, ensure};
use lab::workload;
use serde_json::{Value, json};
use tokio::process::Command;
use tokio::time::Instant;

use super::backend::{self, NAMESPACE};
use super::load::{Script, Workload};
use super::peers::{self, CLIENTS_MAX, POOL_SIZE};
use crate::demo::Demo;
use crate::pgbench::{self, Entry, Log};
use crate::say;

/// Clients.
const CLIENTS: u32 = 256;
/// pgbench's scale in that cluster.
const SCALE: u32 = 10;
/// The first port that is tried for the proxy.
const FIRST_PORT: u16 = 26_500;
/// How long the clients work before it.
const BEFORE: Duration = Duration::from_secs(6);
/// How long in all.
const SECONDS: u64 = 20;
/// How long the tables, and the command, may take.
const LIMIT: Duration = Duration::from_secs(120);
/// How long the members may take until they stream again.
const SETTLED_LIMIT: Duration = Duration::from_secs(90);
/// How often they are looked at.
const POLL: Duration = Duration::from_millis(500);
/// Members beside the primary.
const STANDBYS: usize = 2;

/// What an operator asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Planned {
    Switchover,
    Restart,
    RestartBySwitchover,
}

impl Planned {
    const fn name(self) -> &'static str {
        match self {
            Planned::Switchover => "switchover",
            Planned::Restart => "restart",
            Planned::RestartBySwitchover => "restart by switchover",
        }
    }
}

/// What was seen of one kind.
#[derive(Debug, Clone, Default)]
pub(super) struct Found {
    pub(super) clients: u32,
    pub(super) times: u16,
    /// Clients that pgbench gave up, and transactions that failed.
    pub(super) errors: u64,
    /// What pgbench said first about one.
    pub(super) first_error: Option<String>,
    /// The longest time without a commit of one client, in seconds.
    pub(super) longest_waits: Vec<f64>,
    /// The same in the seconds before.
    pub(super) longest_waits_before: Vec<f64>,
    /// Commits a second then.
    pub(super) tps_before: Vec<f64>,
}

/// What was seen of each kind.
#[derive(Debug, Clone, Default)]
pub(super) struct All {
    pub(super) switchovers: Found,
    pub(super) restarts: Found,
    pub(super) by_switchover: Found,
}

/// A cluster of three, and so many of each kind.
pub(super) async fn measure(pgherd: &Path, directory: &Path, times: u16) -> anyhow::Result<All> {
    say("a cluster of three");
    let cluster = directory.join("cluster");
    let mut demo = Demo::start(pgherd, &cluster, &[])?;
    let healthy = demo.healthy().await?;
    let stage = Stage::new(pgherd, &cluster, directory, &healthy)?;
    let _proxy = stage.proxy().await?;
    stage.fill().await?;
    let none = || Found { clients: CLIENTS, times, ..Found::default() };
    let mut all = All { switchovers: none(), restarts: none(), by_switchover: none() };
    for number in 1..=times {
        for (planned, found) in [
            (Planned::Switchover, &mut all.switchovers),
            (Planned::Restart, &mut all.restarts),
            (Planned::RestartBySwitchover, &mut all.by_switchover),
        ] {
            stage.settled().await?;
            stage.ask(planned, found).await?;
            let wait = found.longest_waits.last().copied().unwrap_or_default();
            let (name, errors) = (planned.name(), found.errors);
            say(&format!(
                "{number}/{times} {name}: longest wait {wait:.3} s, {errors} errors so far"
            ));
        }
    }
    demo.end().await?;
    Ok(all)
}

struct Stage<'a> {
    pgherd: &'a Path,
    cluster: &'a Path,
    directory: &'a Path,
    bin_dir: std::path::PathBuf,
    password: String,
    scope: String,
    etcd: Vec<String>,
    /// The demo's own proxy, in session mode.
    demo_port: u16,
    port: u16,
}

impl Stage<'_> {
    fn new<'a>(
        pgherd: &'a Path,
        cluster: &'a Path,
        directory: &'a Path,
        healthy: &Value,
    ) -> anyhow::Result<Stage<'a>> {
        let url = healthy["read_write"].as_str().context("the demo names no port")?;
        let (password, demo_port) = parts(url).context("a connection string of another form")?;
        let etcd = healthy["dcs"].as_array().context("the demo names no etcd")?.iter();
        Ok(Stage {
            pgherd,
            cluster,
            directory,
            bin_dir: backend::bin_dir()?,
            password: password.to_owned(),
            scope: healthy["scope"].as_str().context("the demo has no name")?.to_owned(),
            etcd: etcd.filter_map(Value::as_str).map(str::to_owned).collect(),
            demo_port,
            port: lab::ports::free_block(FIRST_PORT, 1, 1).context("there is no free port")?,
        })
    }

    /// The proxy that is measured.
    async fn proxy(&self) -> anyhow::Result<tokio::process::Child> {
        let users = self.directory.join("users.txt");
        write_private(&users, &format!("\"postgres\" \"{}\"\n", self.password))?;
        let section = json!({
            "pool_mode": "transaction", "pool_size": POOL_SIZE, "client_limit": CLIENTS_MAX,
            "auth": "scram-sha-256", "users_file": users,
        });
        let etcd = &self.etcd;
        let config = peers::pgherd_config(&self.scope, NAMESPACE, etcd, self.port, section);
        let file = self.directory.join("proxy.yml");
        std::fs::write(&file, config.to_string())?;
        let mut command = Command::new(self.pgherd);
        command.args(["proxy", "-c"]).arg(file);
        let target = workload::target(self.port, "postgres", &self.password, "pgherd-bench");
        peers::started(command, &self.directory.join("proxy.log"), &target).await
    }

    fn pgbench(&self, port: u16) -> Command {
        let mut pgbench = backend::pgbench(&self.bin_dir, port);
        pgbench.env("PGPASSWORD", &self.password);
        pgbench
    }

    async fn fill(&self) -> anyhow::Result<()> {
        let mut tables = self.pgbench(self.demo_port);
        tables.args(["-i", "-q", "-s", &SCALE.to_string()]);
        backend::finish(&mut tables, LIMIT).await.map(drop)
    }

    /// Waits until both standbys may acknowledge.
    async fn settled(&self) -> anyhow::Result<()> {
        let until = Instant::now() + SETTLED_LIMIT;
        loop {
            let listed = backend::finish(&mut self.ctl(&["list", "-f", "json"]), LIMIT).await?;
            let rows: Vec<Value> = serde_json::from_str(&listed).context("pgherd list")?;
            if rows.iter().filter(|row| row["Role"] == "Quorum Standby").count() == STANDBYS {
                return Ok(());
            }
            ensure!(Instant::now() < until, "the standbys are not back: {listed}");
            tokio::time::sleep(POLL).await;
        }
    }

    fn ctl(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(self.pgherd);
        command.arg("-c").arg(self.cluster.join("node1.yml")).args(arguments);
        command
    }

    fn command(&self, planned: Planned) -> Command {
        match planned {
            Planned::Switchover => self.ctl(&["switchover", "--force"]),
            Planned::Restart => self.ctl(&["restart", &self.scope, "--role", "leader", "--force"]),
            Planned::RestartBySwitchover => {
                self.ctl(&["restart", &self.scope, "--by-switchover", "--force"])
            }
        }
    }

    /// One of them under clients.
    async fn ask(&self, planned: Planned, found: &mut Found) -> anyhow::Result<()> {
        let workload = Workload { script: Script::Tpcb, prepared: false, clients: CLIENTS };
        let log = Log::new(self.directory)?;
        let mut pgbench = self.pgbench(self.port);
        workload.options(&mut pgbench, SECONDS);
        log.options(&mut pgbench);
        let asked = async {
            tokio::time::sleep(BEFORE).await;
            let at = now_us()?;
            let said = backend::finish(&mut self.command(planned), LIMIT).await?;
            ensure!(!said.contains("ailed"), "the {} was refused: {said}", planned.name());
            Ok(at)
        };
        let (output, at) = tokio::try_join!(pgbench::output(pgbench, SECONDS), asked)?;
        let complaints = String::from_utf8_lossy(&output.stderr);
        let report = String::from_utf8_lossy(&output.stdout);
        let errors = errors(&report, &complaints);
        // Whatever pgbench ends with is somebody's error.
        found.errors += if output.status.success() { errors } else { errors.max(1) };
        if errors > 0 && found.first_error.is_none() {
            found.first_error = complaints.lines().find(|line| is_abort(line)).map(str::to_owned);
        }
        let entries = log.read()?;
        ensure!(!entries.is_empty(), "no transaction was logged: {complaints}");
        let before: Vec<Entry> =
            entries.iter().filter(|entry| entry.ended_us < at).copied().collect();
        let whole = pgbench::cycles(&entries).into_iter().max();
        found.longest_waits.push(seconds(whole.context("no client has two commits")?));
        found
            .longest_waits_before
            .push(seconds(pgbench::cycles(&before).into_iter().max().unwrap_or(0)));
        found.tps_before.push(before.len() as f64 / BEFORE.as_secs_f64());
        Ok(())
    }
}

/// A line about a client that pgbench gives up.
fn is_abort(line: &str) -> bool {
    // Its last line says that of the whole run.
    line.contains(" client ") && line.contains(" aborted ")
}

/// Clients that were given up, and transactions that failed.
fn errors(report: &str, complaints: &str) -> u64 {
    let aborted = complaints.lines().filter(|line| is_abort(line)).count() as u64;
    let failed = report.lines().find_map(|line| {
        let rest = line.strip_prefix("number of failed transactions: ")?;
        rest.split(' ').next()?.parse::<u64>().ok()
    });
    aborted + failed.unwrap_or(0)
}

/// Password and port of `postgresql://postgres:PASSWORD@HOST:PORT/…`.
fn parts(url: &str) -> Option<(&str, u16)> {
    let (_, rest) = url.split_once("://")?;
    let (user, place) = rest.split_once('@')?;
    let (_, password) = user.split_once(':')?;
    let (_, port) = place.split('/').next()?.rsplit_once(':')?;
    Some((password, port.parse().ok()?))
}

fn seconds(us: u64) -> f64 {
    us as f64 / 1e6
}

/// The clock of pgbench's log.
fn now_us() -> anyhow::Result<u64> {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?;
    Ok(u64::try_from(since.as_micros())?)
}

/// A file that only we may read.
fn write_private(path: &Path, text: &str) -> anyhow::Result<()> {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;
    let mut options = std::fs::OpenOptions::new();
    options.create(true).truncate(true).write(true).mode(0o600);
    options.open(path)?.write_all(text.as_bytes())?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_clients_given_up_and_failed_transactions() {
        let report = "number of failed transactions: 3 (0.100%)\n";
        let complaints = "pgbench: error: client 7 script 0 aborted in command 4 query 0: FATAL\n\
            pgbench: error: Run was aborted; the above results are incomplete.\n";
        assert_eq!(errors(report, ""), 3);
        assert_eq!(errors(report, complaints), 4);
        assert_eq!(errors("number of failed transactions: 0 (0.000%)\n", ""), 0);
    }

    #[test]
    fn a_connection_string_has_a_password_and_a_port() {
        let url = "postgresql://postgres:0a1b@127.0.0.1:5000/postgres?sslmode=prefer";
        assert_eq!(parts(url), Some(("0a1b", 5000)));
        assert_eq!(parts("postgresql://127.0.0.1:5000/postgres"), None);
    }
}
