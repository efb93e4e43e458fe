//! The programs between PostgreSQL and its clients. Each is ended when it is dropped.

use std::fs::{self, File};
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use lab::tools;
use lab::usage;
use lab::workload::{self, Target};
use serde_json::{Value, json};
use tokio::process::{Child, Command};
use tokio::time::Instant;

use super::backend::{Backend, NAMESPACE, SCOPE, SQL_LIMIT, service};

/// How long a program may take until it answers.
const START_LIMIT: Duration = Duration::from_secs(20);
/// How often it is asked.
const POLL: Duration = Duration::from_millis(50);
/// Server connections of a pool, of both poolers.
pub(super) const POOL_SIZE: u32 = 20;
/// Server connections where each client has its own.
const POOL_SIZE_SESSION: u32 = 300;
/// Clients that both poolers let in: more than there are.
pub(super) const CLIENTS_MAX: u32 = 60_000;
/// Clients that HAProxy lets in; each counts twice in its open files.
const HAPROXY_CLIENTS_MAX: u32 = 2000;

/// What stands between.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Who {
    /// Nothing.
    Direct,
    /// HAProxy in TCP mode, without health checks.
    HaProxy,
    /// PgBouncer, which has one thread.
    PgBouncer,
    /// pgherd.
    Pgherd,
    /// pgherd with one worker, on the core that PgBouncer is on.
    PgherdOneCore,
}

impl Who {
    /// Its name in figures and tables.
    pub(super) fn name(self) -> &'static str {
        match self {
            Who::Direct => "direct",
            Who::HaProxy => "haproxy",
            Who::PgBouncer => "pgbouncer",
            Who::Pgherd | Who::PgherdOneCore => "pgherd",
        }
    }
}

/// One that runs.
pub(super) struct Peer {
    pub(super) who: Who,
    pub(super) port: u16,
    child: Option<Child>,
}

impl Peer {
    /// Processor time that it has used, in seconds; `None` for no peer at all.
    pub(super) fn processor_seconds(&self) -> Option<f64> {
        usage::processor_seconds(self.pid()?)
    }

    /// Memory, shared pages by their share, in MiB.
    pub(super) fn pss_mib(&self) -> anyhow::Result<f64> {
        let pid = self.pid().context("it has ended")?;
        usage::pss_mib(pid).with_context(|| format!("its memory, process {pid}"))
    }

    fn pid(&self) -> Option<u32> {
        self.child.as_ref().and_then(Child::id)
    }
}

/// Session mode, our default: each client has a server connection of its own. Every peer on all
/// cores.
pub(super) async fn for_sessions(
    lab: &Backend,
    pgherd: &Path,
    directory: &Path,
) -> anyhow::Result<Vec<Peer>> {
    let maker = Maker { lab, pgherd, directory };
    Ok(vec![
        maker.direct(),
        maker.haproxy(3).await?,
        maker.pgbouncer(4, "session", None).await?,
        maker.pgherd(5, Who::Pgherd, json!({}), None).await?,
    ])
}

/// Transaction mode. PgBouncer has one thread, so that pgherd has one too, and both share the last
/// core; one more pgherd is as it comes.
pub(super) async fn for_transactions(
    lab: &Backend,
    pgherd: &Path,
    directory: &Path,
) -> anyhow::Result<Vec<Peer>> {
    let maker = Maker { lab, pgherd, directory };
    let cores = std::thread::available_parallelism().context("the number of cores")?;
    let core = Some(cores.get() - 1);
    let mut one = transaction_mode();
    one["workers"] = json!(1);
    Ok(vec![
        maker.direct(),
        maker.haproxy(3).await?,
        maker.pgbouncer(4, "transaction", core).await?,
        maker.pgherd(5, Who::PgherdOneCore, one, core).await?,
        maker.pgherd(6, Who::Pgherd, transaction_mode(), None).await?,
    ])
}

/// Either pooler alone, for its memory.
pub(super) async fn for_idle_clients(
    lab: &Backend,
    pgherd: &Path,
    directory: &Path,
    who: Who,
) -> anyhow::Result<Peer> {
    let maker = Maker { lab, pgherd, directory };
    match who {
        Who::PgBouncer => maker.pgbouncer(4, "transaction", None).await,
        Who::Pgherd => maker.pgherd(5, who, transaction_mode(), None).await,
        Who::Direct | Who::HaProxy | Who::PgherdOneCore => bail!("{who:?} pools nothing"),
    }
}

fn transaction_mode() -> Value {
    json!({
        "pool_mode": "transaction", "pool_size": POOL_SIZE, "client_limit": CLIENTS_MAX,
        "auth": "trust",
    })
}

struct Maker<'a> {
    lab: &'a Backend,
    pgherd: &'a Path,
    directory: &'a Path,
}

impl Maker<'_> {
    fn direct(&self) -> Peer {
        Peer { who: Who::Direct, port: self.lab.port(0), child: None }
    }

    async fn haproxy(&self, number: u16) -> anyhow::Result<Peer> {
        let port = self.lab.port(number);
        let server = self.lab.port(0);
        let text = format!(
            "global\n    maxconn {HAPROXY_CLIENTS_MAX}\ndefaults\n    mode tcp\n    \
             timeout connect 5s\n    timeout client 30m\n    timeout server 30m\n\
             listen postgres\n    bind 127.0.0.1:{port}\n    server n1 127.0.0.1:{server}\n"
        );
        let file = self.write("haproxy.cfg", &text)?;
        let mut command = service(&installed("haproxy")?);
        command.args(["-db", "-f"]).arg(file);
        self.start(Who::HaProxy, port, command).await
    }

    async fn pgbouncer(
        &self,
        number: u16,
        mode: &str,
        core: Option<usize>,
    ) -> anyhow::Result<Peer> {
        let port = self.lab.port(number);
        let users = self.write("users.txt", "\"postgres\" \"\"\n")?;
        let pool = if mode == "session" { POOL_SIZE_SESSION } else { POOL_SIZE };
        let server = self.lab.port(0);
        // It would write a line for each connection, as no other peer does.
        let text = format!(
            "[databases]\n* = host=127.0.0.1 port={server}\n[pgbouncer]\n\
             listen_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\n\
             auth_type = trust\nauth_file = {}\npool_mode = {mode}\n\
             default_pool_size = {pool}\nmax_client_conn = {CLIENTS_MAX}\n\
             ignore_startup_parameters = extra_float_digits\n\
             log_connections = 0\nlog_disconnections = 0\n",
            users.display()
        );
        let file = self.write("pgbouncer.ini", &text)?;
        let mut command = on_core(core, &installed("pgbouncer")?);
        command.arg(file);
        // It refuses to run as root.
        if let Some((uid, gid)) = tools::postgres_owner()? {
            command.uid(uid).gid(gid);
        }
        self.start(Who::PgBouncer, port, command).await
    }

    async fn pgherd(
        &self,
        number: u16,
        who: Who,
        section: Value,
        core: Option<usize>,
    ) -> anyhow::Result<Peer> {
        let port = self.lab.port(number);
        let config = pgherd_config(SCOPE, NAMESPACE, &[self.lab.etcd()], port, section);
        let file = self.write(&format!("proxy-{number}.yml"), &config.to_string())?;
        let mut command = on_core(core, self.pgherd);
        command.args(["proxy", "-c"]).arg(file);
        self.start(who, port, command).await
    }

    /// A file that whom PostgreSQL runs as may read too.
    fn write(&self, name: &str, text: &str) -> anyhow::Result<PathBuf> {
        let path = self.directory.join(name);
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
        if let Some((uid, gid)) = tools::postgres_owner()? {
            chown(&path, Some(uid), Some(gid))?;
        }
        Ok(path)
    }

    async fn start(&self, who: Who, port: u16, command: Command) -> anyhow::Result<Peer> {
        let log = self.directory.join(format!("{}-{port}.log", who.name()));
        let child = started(command, &log, &self.lab.target(port)).await?;
        Ok(Peer { who, port, child: Some(child) })
    }
}

/// A proxy's configuration; JSON is YAML too.
pub(super) fn pgherd_config(
    scope: &str,
    namespace: &str,
    etcd: &[String],
    port: u16,
    mut section: Value,
) -> Value {
    section["name"] = json!("bench");
    section["read_write"] = json!(format!("127.0.0.1:{port}"));
    json!({
        "scope": scope, "namespace": namespace, "etcd3": {"hosts": etcd},
        "pgherd": {"proxy": section},
    })
}

fn installed(program: &str) -> anyhow::Result<PathBuf> {
    tools::for_administrators(program)
        .with_context(|| format!("{program} is not there: tools/install-bench.sh installs it"))
}

fn on_core(core: Option<usize>, program: &Path) -> Command {
    let Some(core) = core else { return service(program) };
    let mut command = service(Path::new("taskset"));
    command.args(["-c", &core.to_string()]).arg(program);
    command
}

/// Starts a program, and waits until a statement is answered through it.
pub(super) async fn started(
    mut command: Command,
    log: &Path,
    target: &Target,
) -> anyhow::Result<Child> {
    let output = File::create(log)?;
    command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output);
    let mut child = command.kill_on_drop(true).spawn().with_context(|| {
        format!("cannot run {}", command.as_std().get_program().to_string_lossy())
    })?;
    let until = Instant::now() + START_LIMIT;
    while let Err(error) = workload::execute(target, "SELECT 1", SQL_LIMIT).await {
        let said = || fs::read_to_string(log).unwrap_or_default();
        if let Some(status) = child.try_wait()? {
            bail!("{} ended, {status}: {}", log.display(), said().trim_end());
        }
        ensure!(Instant::now() < until, "{}: {error}: {}", log.display(), said().trim_end());
        tokio::time::sleep(POLL).await;
    }
    Ok(child)
}
