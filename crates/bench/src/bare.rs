//! Bare PostgreSQL instances, with quorum replication and nobody who watches over them.

use std::fs;
use std::io;
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, ensure};
use lab::workload::{self, Target};
use lab::{process, tools};
use rustix::process::Signal;
use tokio::process::{Child, Command};
use tokio::time::Instant;

/// How many instances.
pub(crate) const INSTANCES: usize = 3;
/// The first port that is tried for them.
const FIRST_PORT: u16 = 25_000;
/// How long an instance may take to start, to stop, or to be copied.
const LIMIT: Duration = Duration::from_secs(60);
/// How long one statement may take.
pub(crate) const SQL_LIMIT: Duration = Duration::from_secs(10);
/// How often it is asked again.
const POLL: Duration = Duration::from_millis(20);
/// Standbys that stream and may acknowledge.
const STREAMING: &str = "SELECT count(*) FROM pg_stat_replication \
    WHERE state = 'streaming' AND sync_state = 'quorum'";
/// Its position, as a number.
const RECEIVED: &str = "SELECT (pg_last_wal_receive_lsn() - '0/0')::bigint";

/// The instances, all of them or none running. Killed when dropped.
pub(crate) struct Bare {
    directory: PathBuf,
    bin_dir: PathBuf,
    owner: Option<(u32, u32)>,
    first_port: u16,
    running: [Option<Child>; INSTANCES],
}

impl Bare {
    /// A primary, which is number 0, and its standbys, all streaming.
    pub(crate) async fn start(directory: &Path) -> anyhow::Result<Bare> {
        fs::create_dir_all(directory)?;
        let owner = tools::postgres_owner()?;
        if let Some((uid, gid)) = owner {
            chown(directory, Some(uid), Some(gid))?;
        }
        let ports = lab::ports::free_block(FIRST_PORT, 10, 3);
        let mut bare = Bare {
            directory: directory.to_owned(),
            bin_dir: tools::postgres_bin_dir()?,
            owner,
            first_port: ports.context("there are no free ports")?,
            running: [None, None, None],
        };
        let data_dir = bare.data_dir(0);
        // The demo's size of a WAL segment: a promotion copies one.
        let size = "--wal-segsize=4";
        let arguments =
            ["-U", "postgres", "-A", "trust", "--data-checksums", "--no-sync", size, "-D"];
        let mut initdb = bare.command("initdb")?;
        initdb.args(arguments).arg(&data_dir);
        finish(&mut initdb).await?;
        bare.run(0, None).await?;
        bare.attach(1, 0).await?;
        bare.attach(2, 0).await?;
        workload::create_table(&bare.target(0), SQL_LIMIT).await?;
        bare.until_streaming(0).await?;
        Ok(bare)
    }

    /// How to reach an instance.
    pub(crate) fn target(&self, number: usize) -> Target {
        workload::target(self.port(number), "postgres", "none", "pgherd-bench")
    }

    fn port(&self, number: usize) -> u16 {
        self.first_port + u16::try_from(number).unwrap_or(0)
    }

    fn data_dir(&self, number: usize) -> PathBuf {
        self.directory.join(format!("n{number}"))
    }

    /// Copies `number` anew from `primary`, and lets it follow.
    pub(crate) async fn attach(&mut self, number: usize, primary: usize) -> anyhow::Result<()> {
        let data_dir = self.data_dir(number);
        match fs::remove_dir_all(&data_dir) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error.into()),
            Ok(()) | Err(_) => {}
        }
        let mut copy = self.command("pg_basebackup")?;
        copy.args(["--checkpoint=fast", "--no-sync", "-D"]).arg(&data_dir);
        copy.arg("-d").arg(self.conninfo(primary, number));
        finish(&mut copy).await?;
        fs::write(data_dir.join("standby.signal"), "")?;
        self.run(number, Some(primary)).await
    }

    /// Starts an instance, and makes the others' slots there: what can be done before a hand-over
    /// is.
    async fn run(&mut self, number: usize, primary: Option<usize>) -> anyhow::Result<()> {
        let data_dir = self.data_dir(number);
        // The last word; a copy brings its origin's.
        fs::write(data_dir.join("postgresql.auto.conf"), self.settings(number, primary))?;
        let log = fs::File::create(self.directory.join(format!("n{number}.log")))?;
        let mut postgres = self.command("postgres")?;
        postgres.arg("-D").arg(&data_dir).stdout(log.try_clone()?).stderr(log);
        let child = postgres.kill_on_drop(true).spawn().context("cannot start PostgreSQL")?;
        self.running[number] = Some(child);
        let target = self.target(number);
        let until = Instant::now() + LIMIT;
        while let Err(error) = workload::execute(&target, "SELECT 1", SQL_LIMIT).await {
            ensure!(Instant::now() < until, "n{number} does not start: {error}");
            tokio::time::sleep(POLL).await;
        }
        for other in others(number) {
            let slot = format!(
                "SELECT pg_create_physical_replication_slot('n{other}') WHERE NOT EXISTS \
                 (SELECT FROM pg_replication_slots WHERE slot_name = 'n{other}')"
            );
            workload::execute(&target, &slot, SQL_LIMIT).await?;
        }
        Ok(())
    }

    fn conninfo(&self, primary: usize, own: usize) -> String {
        let port = self.port(primary);
        format!("host=127.0.0.1 port={port} user=postgres application_name=n{own}")
    }

    /// The demo's settings as far as they bear on a hand-over.
    fn settings(&self, number: usize, primary: Option<usize>) -> String {
        let names: Vec<String> = others(number).map(|other| format!("n{other}")).collect();
        let mut text = format!(
            "listen_addresses = '127.0.0.1'\nport = {}\nunix_socket_directories = ''\n\
             synchronous_standby_names = 'ANY 1 ({})'\nhot_standby = on\nwal_log_hints = on\n\
             wal_retrieve_retry_interval = '200ms'\nwal_sender_timeout = '5s'\n\
             wal_receiver_timeout = '5s'\nprimary_slot_name = 'n{number}'\n",
            self.port(number),
            names.join(", ")
        );
        if let Some(primary) = primary {
            text.push_str(&format!("primary_conninfo = '{}'\n", self.conninfo(primary, number)));
        }
        text
    }

    /// Waits until both standbys stream from `primary`.
    pub(crate) async fn until_streaming(&self, primary: usize) -> anyhow::Result<()> {
        let target = self.target(primary);
        let until = Instant::now() + LIMIT;
        loop {
            match workload::integers(&target, STREAMING, SQL_LIMIT).await {
                Ok(count) if count == [2] => return Ok(()),
                result => ensure!(Instant::now() < until, "no standbys: {result:?}"),
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// Kills every process of an instance.
    pub(crate) async fn kill(&mut self, number: usize, pids: &[u32]) -> anyhow::Result<()> {
        for pid in pids {
            process::signal(*pid, Signal::KILL)?;
        }
        self.gone(number).await
    }

    /// The processes of an instance, the postmaster first.
    pub(crate) fn pids(&self, number: usize) -> Vec<u32> {
        let postmaster = self.running[number].as_ref().and_then(Child::id);
        let rest = process::working_in(&self.data_dir(number));
        let rest = rest.into_iter().filter(|pid| Some(*pid) != postmaster);
        postmaster.into_iter().chain(rest).collect()
    }

    /// Stops an instance cleanly: the fast way.
    pub(crate) async fn stop(&mut self, number: usize) -> anyhow::Result<()> {
        let postmaster = self.running[number].as_ref().and_then(Child::id);
        process::signal(postmaster.context("it does not run")?, Signal::INT)?;
        self.gone(number).await
    }

    async fn gone(&mut self, number: usize) -> anyhow::Result<()> {
        if let Some(mut child) = self.running[number].take() {
            tokio::time::timeout(LIMIT, child.wait()).await.context("it does not end")??;
        }
        Ok(())
    }

    /// Which standby of the gone `primary` has more, and the other one.
    pub(crate) async fn newest(&self, primary: usize) -> anyhow::Result<(usize, usize)> {
        let standbys: Vec<usize> = others(primary).collect();
        let [first, second] = standbys[..] else { anyhow::bail!("there are three instances") };
        let (one, two) = (self.target(first), self.target(second));
        let (one, two) = tokio::try_join!(
            workload::integers(&one, RECEIVED, SQL_LIMIT),
            workload::integers(&two, RECEIVED, SQL_LIMIT)
        )?;
        Ok(if one >= two { (first, second) } else { (second, first) })
    }

    /// Promotes one, and lets the other follow it: the bare script.
    pub(crate) async fn promote(&self, new: usize, other: usize) -> anyhow::Result<()> {
        let conninfo = self.conninfo(new, other);
        let repoint = format!("ALTER SYSTEM SET primary_conninfo = '{conninfo}'");
        let (new, other) = (self.target(new), self.target(other));
        let promote = workload::execute(&new, "SELECT pg_promote(false)", SQL_LIMIT);
        let follow = async {
            workload::execute(&other, &repoint, SQL_LIMIT).await?;
            workload::execute(&other, "SELECT pg_reload_conf()", SQL_LIMIT).await
        };
        tokio::try_join!(promote, follow)?;
        Ok(())
    }

    fn command(&self, program: &str) -> anyhow::Result<Command> {
        let mut command = Command::new(self.bin_dir.join(program));
        command.stdin(Stdio::null()).current_dir(&self.directory);
        if let Some((uid, gid)) = self.owner {
            command.uid(uid).gid(gid);
        }
        Ok(command)
    }
}

impl Drop for Bare {
    fn drop(&mut self) {
        // A killed postmaster's backends notice only when they next look.
        for number in 0..INSTANCES {
            for pid in self.pids(number) {
                drop(process::signal(pid, Signal::KILL));
            }
        }
    }
}

fn others(number: usize) -> impl Iterator<Item = usize> {
    (0..INSTANCES).filter(move |other| *other != number)
}

/// Runs a program to its end.
async fn finish(command: &mut Command) -> anyhow::Result<()> {
    let done = tokio::time::timeout(LIMIT, command.kill_on_drop(true).output()).await;
    let done = done.context("a program does not end")??;
    let said = String::from_utf8_lossy(&done.stderr);
    ensure!(done.status.success(), "{:?} failed: {said}", command.as_std().get_program());
    Ok(())
}
