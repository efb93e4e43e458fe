//! The long-running commands: `pgherd agent` and `pgherd proxy`.

use std::net::{SocketAddr, ToSocketAddrs};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use config::{HostPort, Log, LogLevel, ProxyFile, Static};
use proxy::Sources;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::runtime::{Builder, Runtime};
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::{JoinError, JoinSet};
use tokio_util::sync::CancellationToken;
use types::Millis;

use crate::ctl::CtlOptions;
use crate::generate::{self, GenerateArgs};
use crate::sources::Clusters;

/// `pgherd agent`.
#[derive(Debug, Default, clap::Args)]
pub(crate) struct AgentArgs {
    /// Treat warnings about the file as errors
    #[arg(long)]
    pub(crate) strict: bool,
    /// Say whether the agent would start, and end; nothing is changed
    #[command(flatten)]
    pub(crate) validate: ValidateArgs,
    #[command(flatten)]
    pub(crate) generate: GenerateArgs,
    /// Where a generated configuration goes; without it to standard output
    #[arg(value_name = "FILE")]
    pub(crate) output: Option<PathBuf>,
    /// There is no PostgreSQL: nothing is served, and what agents cost can be counted
    #[arg(long, hide = true)]
    pub(crate) pretend: bool,
    /// The program is called as `patroni`: why it ends stands in its log.
    #[arg(skip)]
    pub(crate) as_patroni: bool,
}

/// Looking at a configuration instead of running it.
#[derive(Debug, Default, clap::Args)]
pub(crate) struct ValidateArgs {
    /// Check the configuration, the host and the DCS, and end
    #[arg(long)]
    pub(crate) validate_config: bool,
    /// Accept that the ports are taken: the agent may be running
    #[arg(short, long, requires = "validate_config")]
    pub(crate) ignore_listen_port: bool,
    /// Print the configuration, files and environment merged, if it is valid
    #[arg(short, long, requires = "validate_config")]
    pub(crate) print: bool,
}

/// `pgherd proxy`.
#[derive(Debug, clap::Args)]
pub(crate) struct ProxyArgs {
    /// Treat warnings about the file as errors
    #[arg(long)]
    strict: bool,
    /// Start it in the background and return when it serves, instead of the one that serves now
    #[arg(long)]
    detach: bool,
}

/// One attempt to reach a server.
const CONNECT_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(1);

/// How long a proxy waits for its key in the DCS before it serves.
const REGISTER_LIMIT: std::time::Duration = std::time::Duration::from_secs(3);

/// How long the end of an agent waits for what it began.
const SHUTDOWN_LIMIT: std::time::Duration = std::time::Duration::from_secs(1);

/// One thread is enough for an agent, and keeps it small.
pub(crate) fn runtime() -> anyhow::Result<Runtime> {
    Builder::new_current_thread().enable_all().build().context("cannot start the runtime")
}

/// Runs an agent to its end.
pub(crate) fn agent(args: AgentArgs, options: &CtlOptions) -> ExitCode {
    if args.generate.wanted() {
        return finish(generate::run(&args.generate, args.output.as_deref()));
    }
    if let Some(file) = &args.output {
        let file = file.display();
        return finish(Err(anyhow::anyhow!("{file} is no option; the configuration follows -c")));
    }
    let ended = (|| {
        let sources = agent::gather(options.config_file.as_deref())?;
        // A file that is refused is refused below, with all that is wrong.
        let mut log = Static::read(&sources).map(|(read, _)| read.log).unwrap_or_default();
        if args.validate.validate_config {
            log = Log { level: LogLevel::Warning, ..Log::default() };
        }
        crate::log::start(log)?;
        let options = agent::AgentOptions {
            config_file: options.config_file.clone(),
            strict: args.strict,
            exe: std::env::current_exe().context("cannot find our own binary")?,
        };
        let runtime = runtime()?;
        if args.validate.validate_config {
            let checked = agent::validate(&options, !args.validate.ignore_listen_port);
            runtime.block_on(checked)?;
            if args.validate.print {
                crate::ctl::print_yaml(&sources.to_json()?)?;
            }
            return Ok(ExitCode::SUCCESS);
        }
        let ended = match args.pretend {
            true => runtime.block_on(agent::run_pretending(options)),
            false => runtime.block_on(agent::run(options)),
        };
        // What still waits for a disk that hangs is left to itself.
        runtime.shutdown_timeout(SHUTDOWN_LIMIT);
        Ok(ended?)
    })();
    let runs_as_patroni = args.as_patroni && !args.validate.validate_config;
    if let (Err(error), true) = (&ended, runs_as_patroni) {
        crate::log::fatal(error);
        return ExitCode::FAILURE;
    }
    finish(ended)
}

/// Runs a proxy to its end.
pub(crate) fn proxy(args: ProxyArgs, options: &CtlOptions) -> ExitCode {
    finish((|| {
        let sources = agent::gather(options.config_file.as_deref())?;
        let (file, warnings) = Static::read_proxy(&sources)?;
        crate::log::start(file.log.clone())?;
        for warning in &warnings {
            tracing::warn!("{warning}");
        }
        anyhow::ensure!(
            !args.strict || warnings.is_empty(),
            "{} warnings about the file, and --strict was given",
            warnings.len()
        );
        if args.detach {
            return crate::hot_restart::detach(file.proxy.control_socket.as_deref());
        }
        // The proxy's workers are threads of their own; this one follows the cluster.
        runtime()?.block_on(run_proxy(file))?;
        Ok(ExitCode::SUCCESS)
    })())
}

/// The one line that says what went wrong, with everything below it.
fn finish(result: anyhow::Result<ExitCode>) -> ExitCode {
    match result {
        Ok(code) => code,
        Err(error) => {
            eprintln!("Error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run_proxy(file: ProxyFile) -> anyhow::Result<()> {
    let clusters = Clusters::of(&file)?;
    let section = &file.proxy;
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let config = proxy_config(&file, &host)?;
    let id = config.id.clone();
    let listen = section.read_write.as_ref().or(section.read_only.as_ref());
    open_files(config.client_limit);
    let mut proxy = proxy::Proxy::bind(config).await?;
    let following = clusters.follow();
    let shutdown = CancellationToken::new();
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let (stop, handed_over) = (shutdown.clone(), crate::hot_restart::tell(&mut proxy));
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        if !handed_over.is_cancelled() {
            agent::service_manager::stopping();
        }
        stop.cancel();
    });
    let mut hang_up = signal(SignalKind::hangup())?;
    let reload = proxy.reload();
    tokio::spawn(async move {
        while hang_up.recv().await.is_some() {
            reload.notify_one();
        }
    });
    tokio::select! {
        taken = proxy.take_name(following.views()) => taken?,
        // Whoever is in charge serves on.
        () = shutdown.cancelled() => return Ok(()),
    }
    let naming = proxy.naming();
    let mut registered = JoinSet::new();
    if let Some(listen) = listen {
        let at = HostPort { host: reachable(listen, &host), port: listen.port }.to_string();
        // Without the DCS no leader knows of this proxy, or waits for it.
        let mut register = |sources: &Sources, status| {
            let (names, ended) = ((id.clone(), at.clone()), shutdown.clone());
            if let Some(store) = sources.dcs.clone() {
                registered.spawn(proxy::register(store, names, status, naming.join(), ended));
            }
        };
        register(&clusters.own, proxy.status());
        for (name, status) in proxy.other_statuses() {
            if let Some(sources) = clusters.others.get(&name) {
                register(sources, status);
            }
        }
    }
    // Leaders are to know of it before it has clients, if the DCS is there at all.
    naming.until_written(proxy::Name::Own, REGISTER_LIMIT).await;
    drop(naming);
    let ended = proxy.run(following.views(), shutdown.clone()).await;
    shutdown.cancel();
    // Its keys go with it, so that no leader waits for this proxy. A DCS that does not answer must
    // not keep the others waiting.
    let all = async {
        while let Some(ended) = registered.join_next().await {
            ended?;
        }
        Ok::<(), JoinError>(())
    };
    tokio::time::timeout(SHUTDOWN_LIMIT, all).await.unwrap_or(Ok(()))?;
    Ok(ended?)
}

/// Takes as many open files as the system allows: every client is one, or two with a connection of
/// its own.
fn open_files(clients: usize) {
    let allowed = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: allowed.maximum, maximum: allowed.maximum };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        tracing::warn!(%error, "cannot raise the limit of open files");
    }
    let needed = u64::try_from(clients).unwrap_or(u64::MAX).saturating_mul(2);
    if let Some(limit) = allowed.maximum.filter(|limit| *limit < needed) {
        tracing::warn!(
            limit,
            clients,
            "fewer open files are allowed than two for each client: raise LimitNOFILE of the \
             service, or lower client_limit"
        );
    }
}

/// Where others reach what listens there.
fn reachable(listen: &HostPort, host: &str) -> String {
    if listen.is_wildcard() { host.to_owned() } else { listen.host.clone() }
}

fn proxy_config(file: &ProxyFile, host: &str) -> anyhow::Result<proxy::ProxyConfig> {
    let section = &file.proxy;
    let processors = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let name = section.name.clone().unwrap_or_else(|| host.to_owned());
    let (read_write, read_only) =
        (addresses(section.read_write.as_ref())?, addresses(section.read_only.as_ref())?);
    let listen = section.read_write.as_ref().or(section.read_only.as_ref());
    Ok(proxy::ProxyConfig {
        // Two proxies of one host have two ports.
        id: format!("{name}:{}", listen.map_or(0, |listen| listen.port)),
        cluster: file.scope.clone(),
        clusters: section.clusters.keys().cloned().collect(),
        databases: section.databases.clone(),
        read_only_suffix: section.read_only_suffix.clone(),
        read_write_split: section.read_write_split,
        site: section.site.clone(),
        hold_timeout: section.hold_timeout.map(Millis::as_duration),
        hold_limit: section.hold_limit,
        client_limit: section.client_limit,
        pool_mode: proxy::pool_mode(section.pool_mode),
        security: section.security.clone(),
        pool_size: section.pool_size,
        pool_timeout: section.pool_timeout.as_duration(),
        session_state: match section.session_state {
            config::SessionState::Pin => proxy::SessionState::Pin,
            config::SessionState::Refuse => proxy::SessionState::Refuse,
        },
        prepared_statements_max: section.prepared_statements_max,
        limits: section.limits.clone(),
        workers: section.workers.unwrap_or(processors),
        admin_users: section.admin_users.iter().cloned().collect(),
        stats_users: section.stats_users.iter().cloned().collect(),
        http: section.http.clone(),
        control_socket: section.control_socket.clone(),
        drain_timeout: section.drain_timeout.as_duration(),
        connect_timeout: CONNECT_TIMEOUT,
        ..proxy::ProxyConfig::new(name, read_write, read_only)
    })
}

fn addresses(listen: Option<&HostPort>) -> anyhow::Result<Vec<SocketAddr>> {
    let Some(listen) = listen else {
        return Ok(Vec::new());
    };
    let host = if listen.is_wildcard() { "0.0.0.0" } else { listen.host.as_str() };
    let found = (host, listen.port)
        .to_socket_addrs()
        .with_context(|| format!("cannot resolve {host}:{}", listen.port))?;
    Ok(found.collect())
}
