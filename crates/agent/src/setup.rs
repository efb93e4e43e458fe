//! From the file to running parts. Everything that can be refused is refused here, before anything
//! on disk or in the DCS changes.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use api::peers::{Heard, Reception};
use api::{Access, ApiRequest, ApiState, Door, RestClient, Snapshot};
use config::{Dynamic, DynamicPostgresql as PostgresSettings, NodeRole, Static, VerifyClient};
use dcs::{Client, ClientConfig, ClusterStore, Follower, Session};
use decide::{Brain, Node};
use postgres::{Instance, InstanceConfig, LocalInstance, OsUser, Remote, SetupError};
use serde_json::Value;
use tokio::sync::{mpsc, watch};
use types::{ClusterView, Member, MemberName, Millis, keys};

use crate::callbacks::Callbacks;
use crate::clock;
use crate::context::{Context, ContextParts, Limits};
use crate::error::AgentError;
use crate::guarding::Guard;
use crate::heartbeat::{self, Heartbeats, Ingredients, PeerSecret};
use crate::journal::Journal;
use crate::kept::with_kept;
use crate::preflight;
use crate::secure::{self, Ways};
use crate::signals::Signals;
use crate::sources;
use crate::state::StateDir;
use crate::watchdog::Watchdog;

/// What the command line says.
#[derive(Debug, Clone)]
pub struct AgentOptions {
    /// The node's file, or a directory of files; `None` leaves the environment.
    pub config_file: Option<PathBuf>,
    /// Warnings about the file are errors.
    pub strict: bool,
    /// The binary to run as guard and to re-execute as.
    pub exe: PathBuf,
}

/// Between two attempts to reach a DCS that does not answer.
const DCS_PAUSE: std::time::Duration = std::time::Duration::from_secs(5);

/// A twin that lives answers its REST interface within this.
const TWIN_LIMIT: std::time::Duration = std::time::Duration::from_secs(1);

/// The running parts of an agent, for the loop to take.
pub(crate) struct Parts<I: Instance> {
    pub(crate) brain: Brain,
    pub(crate) context: Arc<Context<I>>,
    pub(crate) journal: Journal,
    pub(crate) snapshots: watch::Sender<Arc<Snapshot>>,
    pub(crate) requests: mpsc::Receiver<ApiRequest>,
    pub(crate) signals: Signals,
    pub(crate) reload: Reload,
    pub(crate) lease: Millis,
    /// Keeps the view current while it lives.
    pub(crate) follower: Follower,
    pub(crate) heartbeats: Heartbeats,
    pub(crate) heard: mpsc::Receiver<Heard>,
    pub(crate) callbacks: Callbacks,
}

/// What is needed to read the file again.
pub(crate) struct Reload {
    options: AgentOptions,
    settings: Arc<Static>,
    watchdog: Watchdog,
    peer_secret: watch::Sender<PeerSecret>,
    rest: watch::Sender<RestClient>,
    door: watch::Sender<Arc<Door>>,
}

impl Reload {
    /// Reads the file again; the old settings stay when it is refused.
    pub(crate) fn read_again(&mut self) -> Result<(Node, Arc<Static>), AgentError> {
        let mut settings = read_file(&self.options)?;
        // Only a new cluster begins with what the file says.
        settings.bootstrap.dcs = self.settings.bootstrap.dcs.clone();
        let settings = Arc::new(settings);
        let ways = Ways::read(&settings)?;
        self.rest.send_replace(ways.rest);
        self.door.send_replace(ways.door);
        self.settings = Arc::clone(&settings);
        self.peer_secret.send_replace(ways.peer_secret);
        self.watchdog.configure(settings.watchdog.clone());
        Ok((node_of(&settings), settings))
    }

    /// PostgreSQL's configuration under this dynamic one, which was read from `document`.
    pub(crate) fn instance_config(
        &self,
        dynamic: &Dynamic,
        document: &Value,
        role: Option<NodeRole>,
    ) -> Result<InstanceConfig, AgentError> {
        instance_config(&self.settings, dynamic, document, role)
    }

    /// The parts of a snapshot that come from the file.
    pub(crate) fn snapshot_base(&self) -> Snapshot {
        let settings = &self.settings;
        Snapshot {
            tags: settings.tags.clone(),
            ..Snapshot::new(&settings.scope, settings.name.clone(), clock::now())
        }
    }
}

/// Reads and checks the node's file; says its warnings.
pub(crate) fn read_file(options: &AgentOptions) -> Result<Static, AgentError> {
    let sources = sources::gather(options.config_file.as_deref())?;
    let (settings, warnings) = Static::read(&sources)?;
    for warning in &warnings {
        tracing::warn!("{warning}");
    }
    if options.strict && !warnings.is_empty() {
        return Err(AgentError::Warnings { count: warnings.len() });
    }
    Ok(settings)
}

/// Everything that an agent may be refused for, looked at. Nothing was changed.
struct Checked<I: Instance> {
    settings: Arc<Static>,
    ways: Ways,
    instance: I,
    client: Client,
    view: Arc<ClusterView>,
    store: ClusterStore,
    listener: Option<tokio::net::TcpListener>,
    dynamic: Dynamic,
}

/// `ports`: the agent's own ports must be free, and no agent of this name may answer.
/// `patient`: a DCS that cannot be reached is waited for.
async fn check<I: Instance>(
    options: &AgentOptions,
    ports: bool,
    patient: bool,
    instance: impl FnOnce(InstanceConfig) -> Result<I, SetupError>,
) -> Result<Checked<I>, AgentError> {
    let settings = Arc::new(with_kept(read_file(options)?));
    let ways = Ways::read(&settings)?;
    let (dynamic, _) = Dynamic::from_json(&settings.bootstrap.dcs)
        .map_err(|errors| AgentError::InitialConfig { detail: errors.join("; ") })?;
    let instance = instance(instance_config(&settings, &dynamic, &settings.bootstrap.dcs, None)?)?;
    let host = preflight::check_host(&settings, &instance, ports).await?;
    let (client, view, store) = reach_dcs(&settings, &dynamic, patient).await?;
    let mut listener = None;
    if ports {
        refuse_twin(&ways.rest, &settings, &view).await?;
        listener = Some(bind(&settings).await?);
    }
    let in_force = view.config.as_ref().and_then(|c| Dynamic::from_json(&c.value).ok());
    let dynamic = in_force.map_or(dynamic, |(dynamic, _)| dynamic).merged(&settings);
    preflight::check_cluster(&settings, &host, &view, &dynamic)?;
    Ok(Checked { settings, ways, instance, client, view, store, listener, dynamic })
}

/// Whether an agent with these options would start. Changes nothing. Without `ports` it does not
/// matter that the ports are taken, as they are where the agent runs already.
///
/// # Errors
/// What an agent would be refused for.
pub async fn validate(options: &AgentOptions, ports: bool) -> Result<(), AgentError> {
    let checked = check(options, ports, false, LocalInstance::new).await?;
    checked.instance.close().await;
    Ok(())
}

/// Starts every part. Nothing of the cluster changes before the loop runs.
pub(crate) async fn start<I: Instance>(
    options: AgentOptions,
    instance: impl FnOnce(InstanceConfig) -> Result<I, SetupError>,
) -> Result<Parts<I>, AgentError> {
    let Checked { settings, ways, instance, client, view, store, listener, dynamic } =
        check(&options, true, true, instance).await?;
    let listener = listener.expect("ports were asked for");

    // From here on things change; the guard comes last, so that no failure leaves one behind.
    let session = Session::new(client, dynamic.ttl);
    let cluster = keys::prefix(&settings.namespace, &settings.scope);
    let mut state = StateDir::open(&settings.pgherd.state_dir, &settings.name, &cluster)?;
    let asked = clock::now();
    let lease = take_lease(&session, &view, &settings, &mut state, dynamic.ttl).await?;
    let journal = Journal::open(state.path())
        .map_err(|source| AgentError::Journal { path: state.path().to_owned(), source })?;
    let signals = Signals::install().map_err(|source| AgentError::Signals { source })?;
    let limits = Limits::of(&dynamic);
    let watchdog = Watchdog::new(settings.watchdog.clone(), limits.timing());
    watchdog.announce().await;
    let kill_at = Millis(asked.plus(lease).0.saturating_sub(limits.stop_margin.0));
    let guard = connect_guard(&options, &settings, &watchdog, kill_at).await?;

    let mut brain = Brain::new(node_of(&settings), seed()?);
    brain.reconfigure(node_of(&settings), Arc::clone(&settings));
    let follower = store.follow();
    let interval = dynamic.pgherd.heartbeat_interval;
    let (rest, door) = (watch::Sender::new(ways.rest), watch::Sender::new(ways.door));
    let (views, secret) = (store.subscribe(), ways.peer_secret);
    let ingredients = Ingredients::of(&settings, secret, interval, views, rest.subscribe());
    let (heartbeats, reception, heard) = heartbeat::start(ingredients);
    let context = Context::new(ContextParts {
        name: settings.name.clone(),
        instance,
        store,
        session,
        guard,
        initial_config: settings.bootstrap.dcs.clone(),
        rest_credentials: rest_credentials(&settings),
        rest: rest.subscribe(),
        state,
        limits,
        hooks: dynamic.postgresql.hooks.clone(),
        os_user: os_user(&settings.pgherd.os_user)?,
    });
    let callbacks = Callbacks::of(&settings.scope, &context);
    let peer_secret = heartbeats.secret();
    let reload =
        Reload { options, settings: Arc::clone(&settings), watchdog, peer_secret, rest, door };
    let (snapshots, published) = watch::channel(Arc::new(reload.snapshot_base()));
    let nudge = Arc::clone(&context.look_again);
    let requests = serve_api(listener, published, reload.door.subscribe(), nudge, reception);
    Ok(Parts {
        brain,
        context,
        journal,
        snapshots,
        requests,
        signals,
        reload,
        lease,
        follower,
        heartbeats,
        heard,
        callbacks,
    })
}

/// The guard of this agent, which kills PostgreSQL then unless it hears of a later time.
async fn connect_guard(
    options: &AgentOptions,
    settings: &Static,
    watchdog: &Watchdog,
    kill_at: Millis,
) -> Result<Guard, AgentError> {
    let guard = Guard::new(
        options.exe.clone(),
        settings.pgherd.state_dir.clone(),
        settings.postgresql.data_dir.clone(),
        watchdog.clone(),
    );
    guard.connect(kill_at).await.map_err(|source| AgentError::Guard { source })?;
    Ok(guard)
}

async fn bind(settings: &Static) -> Result<tokio::net::TcpListener, AgentError> {
    let place = secure::place(&settings.restapi);
    let failed = |source| AgentError::Listen { address: place.listen.to_string(), source };
    api::bind(&place).await.map_err(failed)
}

/// A DCS that answers with an error is not waited for: that does not pass by itself.
async fn reach_dcs(
    settings: &Static,
    dynamic: &Dynamic,
    patient: bool,
) -> Result<(Client, Arc<ClusterView>, ClusterStore), AgentError> {
    let client = Client::connect(dcs_config(settings, dynamic.retry_timeout)?)
        .map_err(|source| AgentError::Dcs { source })?;
    let store =
        ClusterStore::new(client.clone(), keys::prefix(&settings.namespace, &settings.scope));
    let view = loop {
        match store.read().await {
            Ok(view) => break view,
            Err(error) if patient && is_silent(&error) => {
                tracing::info!(why = %error, "waiting on etcd");
                tokio::time::sleep(DCS_PAUSE).await;
            }
            Err(source) if source.refusal() == Some(dcs::Refusal::Authentication) => {
                return Err(AgentError::EtcdAuthentication { source });
            }
            Err(source) => return Err(AgentError::Dcs { source }),
        }
    };
    Ok((client, view, store))
}

fn is_silent(error: &dcs::Error) -> bool {
    matches!(error, dcs::Error::NotSent { .. } | dcs::Error::Unanswered { .. })
}

/// Two agents of one name would share lease and leadership (as Patroni 4.1 has it).
async fn refuse_twin(
    rest: &RestClient,
    settings: &Static,
    view: &ClusterView,
) -> Result<(), AgentError> {
    let Some(address) = view.member(&settings.name).and_then(Member::api_address) else {
        return Ok(());
    };
    let answer = rest.request("GET", &address, "/liveness", None, None, TWIN_LIMIT);
    match answer.await {
        Ok(_) => {
            Err(AgentError::Twin { name: settings.name.to_string(), address: address.to_string() })
        }
        Err(_) => Ok(()),
    }
}

fn dcs_config(settings: &Static, retry_timeout: Millis) -> Result<ClientConfig, AgentError> {
    let etcd = &settings.etcd3;
    Ok(ClientConfig {
        endpoints: etcd.endpoints.iter().map(ToString::to_string).collect(),
        username: etcd.username.clone(),
        password: etcd.password.as_ref().map(|p| p.expose().to_owned()),
        tls: secure::etcd_client(etcd),
        retry_timeout,
        seed: Some(seed()?),
    })
}

/// A restarted agent goes on with the lease that its keys hang on, so that PostgreSQL stays (I7).
async fn take_lease(
    session: &Session,
    view: &ClusterView,
    settings: &Static,
    state: &mut StateDir,
    ttl: Millis,
) -> Result<Millis, AgentError> {
    let failed = |source| AgentError::Dcs { source };
    let leading = view.leader.as_ref().filter(|l| l.value.name == settings.name).map(|l| l.lease);
    let member = view.members.get(&settings.name).map(|m| m.lease);
    // Only the lease that this very agent was granted: a copy of the machine has the same name.
    let ours = leading.or(member).filter(|lease| *lease != 0 && *lease == state.lease());
    if let Some(lease) = ours {
        session.adopt(lease);
        match session.keep_alive().await {
            Ok(kept) => return Ok(Millis::from_secs(u64::try_from(kept.ttl_secs).unwrap_or(0))),
            Err(error) if error.refusal() == Some(dcs::Refusal::LeaseNotFound) => {}
            Err(error) => return Err(failed(error)),
        }
    }
    let lease = session.grant(ttl).await.map_err(failed)?;
    state.record_lease(lease)?;
    Ok(session.ttl())
}

/// The members of a cluster share the password of their REST interfaces (as Patroni 4.1 has it).
fn rest_credentials(settings: &Static) -> Option<(String, String)> {
    let auth = settings.restapi.authentication.as_ref()?;
    Some((auth.username.clone(), auth.password.expose().to_owned()))
}

/// Whether requests that change something need no password although they may come from other hosts:
/// as Patroni serves a file that says nothing else.
fn is_open(settings: &Static) -> bool {
    !is_local(settings) && settings.restapi.authentication.is_none() && !settings.pgherd.declared
}

/// Whether the REST interface can be reached from this host alone.
fn is_local(settings: &Static) -> bool {
    let listen = &settings.restapi.listen;
    let loopback = |host: &str| {
        host == "localhost"
            || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
    };
    !listen.is_wildcard() && listen.hosts().iter().all(|host| loopback(host))
}

/// Who may change things here.
pub(crate) fn access(settings: &Static) -> Access {
    let section = &settings.restapi;
    let authentication = section.authentication.as_ref().map(|auth| api::Credentials {
        username: auth.username.clone(),
        password: auth.password.expose().to_owned(),
    });
    if is_open(settings) {
        tracing::warn!(
            listen = %section.listen,
            "anybody who reaches the REST interface can change this cluster; set \
             restapi.authentication"
        );
    }
    let closed = !is_local(settings) && authentication.is_none() && settings.pgherd.declared;
    Access {
        refuse_without_authentication: closed,
        authentication,
        client_certificate: section.verify_client != VerifyClient::None,
    }
}

fn serve_api(
    listener: tokio::net::TcpListener,
    snapshots: watch::Receiver<Arc<Snapshot>>,
    door: watch::Receiver<Arc<Door>>,
    nudge: Arc<tokio::sync::Notify>,
    reception: Reception,
) -> mpsc::Receiver<ApiRequest> {
    let (requests, incoming) = mpsc::channel(api::REQUESTS_MAX);
    let peers = Arc::new(reception);
    let waiting = api::view::Waiting::default();
    let state = ApiState { snapshots, requests, now: clock::now, nudge, door, peers, waiting };
    tokio::spawn(async move {
        if let Err(error) = api::serve(listener, state, std::future::pending()).await {
            tracing::error!(%error, "the REST interface ended");
        }
    });
    incoming
}

/// Eight bytes of chance; the pure crates are handed theirs.
fn seed() -> Result<u64, AgentError> {
    let mut bytes = [0; 8];
    getrandom::fill(&mut bytes)
        .map_err(|error| AgentError::Random { detail: error.to_string() })?;
    Ok(u64::from_le_bytes(bytes))
}

fn node_of(settings: &Static) -> Node {
    let database = &settings.postgresql.database;
    let postgres = &settings.postgresql.connect_address;
    let rest = &settings.restapi.connect_address;
    let proxy = settings.postgresql.proxy_address.as_ref();
    Node {
        name: settings.name.clone(),
        tags: settings.tags.clone(),
        member: Member {
            conn_url: format!("postgres://{postgres}/{database}"),
            api_url: format!("{}://{rest}/patroni", settings.restapi.scheme()),
            version: api::PATRONI_VERSION.to_owned(),
            pgherd: Some(api::PGHERD_VERSION.to_owned()),
            tags: settings.tags.clone(),
            open_rest: is_open(settings),
            proxy_url: proxy.map(|address| format!("postgres://{address}/{database}")),
            ..Member::default()
        },
        may_bootstrap: !settings.bootstrap.dcs.is_null(),
        stop_margin: settings.pgherd.stop_margin.unwrap_or(Millis::from_secs(1)),
        initial_config: settings.bootstrap.dcs.clone(),
    }
}

fn credentials(of: &config::Credentials) -> postgres::Credentials {
    let secret = |secret: &config::Secret| postgres::Secret::new(secret.expose());
    postgres::Credentials {
        username: of.username.clone(),
        password: of.password.as_ref().map(secret),
        connection: of.connection.clone(),
        sslpassword: of.sslpassword.as_ref().map(secret),
    }
}

/// `role`: what this member is; `None` as long as that is not known.
fn instance_config(
    settings: &Static,
    dynamic: &Dynamic,
    document: &Value,
    role: Option<NodeRole>,
) -> Result<InstanceConfig, AgentError> {
    let section = &settings.postgresql;
    let auth = &section.authentication;
    let dynamic = dynamic.merged(settings);
    let PostgresSettings { parameters, pg_hba, pg_ident, hooks, .. } =
        dynamic.postgresql.in_role(role);
    let mut beside = section.data_dir.clone().into_os_string();
    beside.push(".run");
    let beside = PathBuf::from(beside);
    let probed = hooks.use_unix_socket.unwrap_or(false);
    let sockets = Sockets::of(&parameters, probed || settings.pgherd.declared, &beside);
    Ok(InstanceConfig {
        member: settings.name.clone(),
        scope: settings.scope.clone(),
        data_dir: section.data_dir.clone(),
        bin_dir: section.bin_dir.clone(),
        listen: section.listen.hosts().into_iter().map(str::to_owned).collect(),
        port: section.listen.port,
        socket_dir: sockets.probes,
        socket_directories: sockets.written,
        config_dir: section.config_dir.clone().filter(|dir| *dir != section.data_dir),
        config_base_name: section.config_base_name.clone(),
        written_by: if settings.pgherd.declared { "pgherd" } else { "Patroni" },
        bin_name: section.bin_name.clone(),
        os_user: os_user(&settings.pgherd.os_user)?,
        superuser: credentials(&auth.superuser),
        replication: credentials(&auth.replication),
        rewind: auth.rewind.as_ref().map_or_else(|| credentials(&auth.superuser), credentials),
        database: section.database.clone(),
        // Not in the state directory, which only the agent may enter.
        pgpass: section.pgpass.clone().unwrap_or_else(|| beside.join("pgpass")),
        state_dir: settings.pgherd.state_dir.clone(),
        parameters,
        pg_hba: pg_hba.unwrap_or_default(),
        pg_ident: pg_ident.unwrap_or_default(),
        initdb: settings.bootstrap.initdb.clone(),
        basebackup: hooks.basebackup.clone().unwrap_or_default(),
        rewind_options: hooks.rewind.clone().unwrap_or_default(),
        krbsrvname: hooks.krbsrvname.clone(),
        hooks: crate::hooks::for_the_instance(settings, &dynamic),
        recovery_conf: hooks.recovery_conf.clone().unwrap_or_default(),
        custom_conf: hooks.custom_conf.clone(),
        dynamic: api::json::spaced(document),
        use_unix_socket: probed,
        // This very program, whatever has become of the file: an upgrade may have replaced it, and
        // PostgreSQL's user may not reach it.
        helper: PathBuf::from("/proc/self/exe"),
        trial_interval: dynamic.loop_wait,
        use_slots: dynamic.postgresql.use_slots,
        remote: dynamic.standby_cluster.as_ref().map(remote_of),
        // Told with the first view.
        force_feedback: false,
    })
}

/// Where PostgreSQL's unix sockets are.
struct Sockets {
    /// The directory that probes use.
    probes: PathBuf,
    /// `unix_socket_directories`; `None`: PostgreSQL's default.
    written: Option<String>,
}

impl Sockets {
    /// Without a word about them a file of Patroni's leaves them to PostgreSQL, where clients look;
    /// probes that shall use them need a place that is known.
    fn of(parameters: &BTreeMap<String, String>, known: bool, beside: &Path) -> Sockets {
        if let Some(given) = parameters.get("unix_socket_directories") {
            let first = given.split(',').map(str::trim).find(|dir| dir.starts_with('/'));
            let probes = first.map_or_else(|| beside.to_owned(), PathBuf::from);
            return Sockets { probes, written: Some(given.clone()) };
        }
        let written = known.then(|| beside.to_string_lossy().into_owned());
        Sockets { probes: beside.to_owned(), written }
    }
}

/// What of a standby cluster's section PostgreSQL's configuration needs.
fn remote_of(section: &config::StandbyCluster) -> Remote {
    let slot = section.primary_slot_name.as_ref();
    let recovery = [
        ("restore_command", &section.restore_command),
        ("archive_cleanup_command", &section.archive_cleanup_command),
    ];
    Remote {
        slot: slot.map(|name| types::slot_name(&MemberName::from(name.as_str()))),
        recovery: recovery.into_iter().filter_map(|(n, v)| Some((n, v.clone()?))).collect(),
        apply_delay: section.recovery_min_apply_delay.clone(),
    }
}

/// The user that PostgreSQL runs as; only root can choose.
fn os_user(name: &str) -> Result<Option<OsUser>, AgentError> {
    if !rustix::process::geteuid().is_root() {
        return Ok(None);
    }
    let unknown = || AgentError::OsUser { name: name.to_owned() };
    let text = std::fs::read_to_string("/etc/passwd")
        .map_err(|source| AgentError::ReadFile { path: "/etc/passwd".into(), source })?;
    let line = text.lines().find(|l| l.split(':').next() == Some(name)).ok_or_else(unknown)?;
    let mut fields = line.split(':').skip(2);
    let mut id = || fields.next().and_then(|f| f.parse().ok()).ok_or_else(unknown);
    Ok(Some(OsUser { name: name.to_owned(), uid: id()?, gid: id()? }))
}
