//! The one table of known keys: what checks the files, and what the reference is printed from.

use crate::proxy_auth::{
    AUTHS, CLIENT_TLS_MODES, PROXY_PROTOCOL_IN, PROXY_PROTOCOL_OUT, SERVER_TLS_MODES,
};
use crate::proxy_section::{POOL_MODES, SESSION_STATES};
use crate::restapi::SERVER_TOKENS;

/// What stands below a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Type {
    /// Text.
    Text,
    /// Text that is never shown (I6).
    Secret,
    /// on/true/yes/1, off/false/no/0.
    Bool,
    /// A whole number.
    Integer,
    /// Seconds, or a number with a unit.
    Duration,
    /// `host:port`.
    Address,
    /// `host` or `host:port`.
    AddressAnyPort,
    /// A list, or a text with commas.
    List,
    /// A list of lines.
    Lines,
    /// A list or mapping of a program's options.
    Options,
    /// A mapping of names to scalars.
    Scalars,
    /// Anything; whoever uses it checks it.
    Any,
    /// One of these words, or a boolean where `on`/`off` are among them.
    OneOf(&'static [&'static str]),
}

/// What we do about a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Support {
    /// It works.
    Used,
    /// Accepted without a word: it tunes something that does not exist here.
    Quiet,
    /// An error, with what to do instead.
    Refused(&'static str),
}

/// One known key.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Key {
    pub(crate) path: &'static str,
    pub(crate) holds: Type,
    pub(crate) support: Support,
    /// The default, as the reference shows it.
    pub(crate) default: &'static str,
    pub(crate) about: &'static str,
}

const fn used(path: &'static str, holds: Type, default: &'static str, about: &'static str) -> Key {
    Key { path, holds, support: Support::Used, default, about }
}

const fn quiet(path: &'static str, holds: Type) -> Key {
    let about = "Accepted, without effect: there is nothing here that it would tune.";
    Key { path, holds, support: Support::Quiet, default: "", about }
}

const fn refused(path: &'static str, why: &'static str) -> Key {
    let support = Support::Refused(why);
    Key { path, holds: Any, support, default: "", about: why }
}

const NO_STORE: &str = "this store is not supported; run etcd 3.4 or newer and configure the \
     section etcd3 (pause the cluster, then point every node at etcd)";
const ETCD_V2: &str = "etcd's v2 API is not supported; rename the section to etcd3 on every \
     member: the same hosts serve the v3 API from etcd 3.4 on";
const NO_CITUS: &str = "Citus is not supported";
const NO_DISCOVERY: &str = "not supported; list the members under etcd3.hosts (as \
     `dig +short SRV _etcd-client._tcp.<domain>` shows them)";

use Type::{
    Address, AddressAnyPort, Any, Bool, Duration, Integer, Lines, List, OneOf, Options, Scalars,
    Secret, Text,
};

const ON_EVENT: &str = "A command; it is told event, role and scope, and not waited for.";
const PRE_PROMOTE: &str = "A command before a promotion; a failure gives the leader key back.";
const BEFORE_STOP: &str = "A command before PostgreSQL is stopped in order.";
const RECOVERY_CONF: &str =
    "Recovery settings; connection, slot and targets are not taken from it.";
const CUSTOM_CONF: &str = "Included by postgresql.conf instead of what initdb wrote.";
const METHODS: &str = "How a copy is made, in order: basebackup, or sections with a command.";
const METHODS_OLD: &str = "Older name of create_replica_methods.";
const BASEBACKUP: &str = "Options of pg_basebackup.";
const REWIND: &str = "Options of pg_rewind.";
const BIN_NAME: &str = "What the program is called.";
const IN_ROLE: &str = "Server parameters in this role, over parameters.";
const LINES_IN_ROLE: &str = "The lines of the file in this role, instead of the others.";
const KRBSRVNAME: &str = "PostgreSQL's service name in Kerberos.";
const PG_CTL_TIMEOUT: &str = "How long a start of PostgreSQL as a standby is waited for.";

const LIBPQ: &str = "As libpq has it.";

/// What may be said of a role's connections besides name and passwords, by libpq's names.
pub const CONNECTION_KEYS: &[&str] = &[
    "sslmode",
    "sslcert",
    "sslkey",
    "sslrootcert",
    "sslcrl",
    "sslcrldir",
    "gssencmode",
    "channel_binding",
    "sslnegotiation",
];

/// Keys of the static file.
pub(crate) const STATIC: &[Key] = &[
    used("scope", Text, "required", "The cluster's name; also PostgreSQL's cluster_name."),
    used("namespace", Text, "/service/", "Prefix of all keys in etcd."),
    used("name", Text, "required", "This member's name, unique in the cluster."),
    quiet("thread_pool_size", Integer),
    quiet("thread_stack_size", Any),
    used("etcd3.host", AddressAnyPort, "", "One etcd endpoint, `host:port`, port 2379."),
    used("etcd3.port", Integer, "2379", "Port for endpoints that name none."),
    used("etcd3.hosts", List, "", "All etcd endpoints; beats host."),
    used(
        "etcd3.url",
        Text,
        "",
        "One endpoint as a URL, which may hold user and password; beats hosts and host.",
    ),
    used("etcd3.proxy", Text, "", "The same; beats url."),
    used("etcd3.protocol", OneOf(&["http", "https"]), "http", "https for TLS."),
    used("etcd3.username", Text, "", "User, if etcd's authentication is on."),
    used("etcd3.password", Secret, "", "Its password."),
    used("etcd3.cacert", Text, "the system's", "The authorities behind etcd's certificate."),
    used("etcd3.cert", Text, "", "The certificate that is shown to etcd."),
    used("etcd3.key", Text, "in cert", "Its key."),
    refused("etcd3.srv", NO_DISCOVERY),
    refused("etcd3.discovery_srv", NO_DISCOVERY),
    refused("etcd3.srv_domain", NO_DISCOVERY),
    refused("etcd3.srv_suffix", NO_DISCOVERY),
    quiet("etcd3.use_proxies", Bool),
    refused("etcd", ETCD_V2),
    refused("consul", NO_STORE),
    refused("zookeeper", NO_STORE),
    refused("exhibitor", NO_STORE),
    refused("kubernetes", NO_STORE),
    refused("raft", NO_STORE),
    refused("citus", NO_CITUS),
    used("log.level", Text, "INFO", "Least severe level that is logged."),
    used("log.type", OneOf(&["plain", "json"]), "plain", "Lines of text, or JSON objects."),
    quiet("log.traceback_level", Text),
    used("log.format", Any, "%(asctime)s %(levelname)s: %(message)s", "What a line looks like."),
    used("log.dateformat", Text, "with milliseconds", "strftime's format of asctime."),
    used("log.static_fields", Scalars, "", "Constants in each JSON object."),
    quiet("log.max_queue_size", Integer),
    used("log.dir", Text, "standard error", "Directory of patroni.log."),
    used("log.mode", Integer, "by umask", "The file's mode, octal with a leading 0."),
    used("log.file_size", Integer, "25000000", "Bytes after which the file is set aside."),
    used("log.file_num", Integer, "4", "Files set aside that are kept."),
    quiet("log.loggers", Any),
    quiet("log.deduplicate_heartbeat_logs", Bool),
    used("restapi.listen", Address, "required", "Where the REST API listens; `*` for all."),
    used("restapi.connect_address", Address, "listen", "How other members reach it."),
    used("restapi.authentication.username", Text, "", "For requests that change something."),
    used("restapi.authentication.password", Secret, "", "Its password."),
    used("restapi.certfile", Text, "", "The certificate of the REST API; makes it https."),
    used("restapi.keyfile", Text, "in certfile", "Its key."),
    used("restapi.keyfile_password", Secret, "", "What the key is encrypted with."),
    used("restapi.cafile", Text, "the system's", "The authorities behind clients' certificates."),
    quiet("restapi.ciphers", Text),
    used(
        "restapi.verify_client",
        OneOf(&["none", "optional", "required"]),
        "none",
        "Who shows a certificate: nobody, who changes something, everybody.",
    ),
    used("restapi.allowlist", List, "", "Who may change things: addresses, networks, hosts."),
    used("restapi.allowlist_include_members", Bool, "false", "Members of the cluster may, too."),
    used("restapi.http_extra_headers", Scalars, "", "Headers of each answer."),
    used("restapi.https_extra_headers", Scalars, "", "Headers of each answer over TLS."),
    used("restapi.request_queue_size", Integer, "the system's", "Connections that may wait."),
    quiet("restapi.thread_pool_size", Integer),
    used("restapi.server_tokens", OneOf(SERVER_TOKENS), "original", "What `Server` says."),
    used("ctl.insecure", Bool, "false", "Commands do not check the members' certificates."),
    used("ctl.cacert", Text, "restapi.cafile", "The authorities behind members' certificates."),
    used("ctl.certfile", Text, "", "The certificate that is shown to members."),
    used("ctl.keyfile", Text, "in certfile", "Its key."),
    used("ctl.keyfile_password", Secret, "", "What the key is encrypted with."),
    used("ctl.authentication.username", Text, "restapi's", "What commands log in with."),
    used("ctl.authentication.password", Secret, "restapi's", "Its password."),
    used(
        "watchdog.mode",
        Text,
        "automatic",
        "The device that resets the machine unless this agent feeds it: off, automatic (if it can \
         be used), or required (else this member does not lead).",
    ),
    used("watchdog.device", Text, "/dev/watchdog", "The device."),
    used(
        "watchdog.safety_margin",
        Integer,
        "5",
        "The device's timeout is ttl less these seconds; -1: half of ttl.",
    ),
    used(
        "watchdog.driver",
        Text,
        "default",
        "default: a watchdog of Linux; testing: anything that can be written to.",
    ),
    used("tags", Any, "{}", "Member tags: nofailover, nosync, clonefrom, and others."),
    used("bootstrap.dcs", Any, "{}", "The dynamic configuration of a new cluster."),
    used(
        "bootstrap.method",
        Text,
        "initdb",
        "Or the name of a section beside it with the command that makes the new cluster.",
    ),
    used("bootstrap.initdb", Options, "[]", "Options of initdb for a new cluster."),
    used("bootstrap.pg_hba", Lines, "", "Lines added to pg_hba.conf of a new cluster."),
    used(
        "bootstrap.post_bootstrap",
        Text,
        "",
        "A command that gets a connection string when the new cluster accepts connections.",
    ),
    used("bootstrap.post_init", Text, "", "Older name of the same."),
    quiet("bootstrap.users", Any),
    used("postgresql.listen", Address, "required", "`addr[,addr]:port`; `*` for all."),
    used("postgresql.connect_address", Address, "listen", "How others reach PostgreSQL."),
    used(
        "postgresql.proxy_address",
        Address,
        "",
        "How clients reach it through a pooler beside it; published as proxy_url.",
    ),
    used("postgresql.data_dir", Text, "required", "The data directory."),
    used("postgresql.config_dir", Text, "data_dir", "Where the configuration files are."),
    used("postgresql.config_base_name", Text, "postgresql", "The main file's name, without .conf."),
    used("postgresql.bin_dir", Text, "PATH", "Where PostgreSQL's programs are."),
    used("postgresql.bin_name.postgres", Text, "postgres", BIN_NAME),
    used("postgresql.bin_name.initdb", Text, "initdb", BIN_NAME),
    used("postgresql.bin_name.pg_basebackup", Text, "pg_basebackup", BIN_NAME),
    used("postgresql.bin_name.pg_rewind", Text, "pg_rewind", BIN_NAME),
    quiet("postgresql.bin_name.pg_ctl", Text),
    quiet("postgresql.bin_name.pg_controldata", Text),
    quiet("postgresql.bin_name.pg_isready", Text),
    used("postgresql.database", Text, "postgres", "The database that probes connect to."),
    used("postgresql.pgpass", Text, "in state_dir", "The password file we write for libpq."),
    used("postgresql.authentication.superuser.username", Text, "postgres", "The superuser."),
    used("postgresql.authentication.superuser.password", Secret, "", "Its password."),
    used("postgresql.authentication.replication.username", Text, "required", "For standbys."),
    used("postgresql.authentication.replication.password", Secret, "", "Its password."),
    used("postgresql.authentication.rewind.username", Text, "superuser", "For pg_rewind."),
    used("postgresql.authentication.rewind.password", Secret, "", "Its password."),
    used("postgresql.authentication.superuser.sslmode", Text, "libpq's", LIBPQ),
    used("postgresql.authentication.superuser.sslcert", Text, "libpq's", LIBPQ),
    used("postgresql.authentication.superuser.sslkey", Text, "libpq's", LIBPQ),
    used("postgresql.authentication.superuser.sslpassword", Secret, "", LIBPQ),
    used("postgresql.authentication.superuser.sslrootcert", Text, "libpq's", LIBPQ),
    used("postgresql.authentication.superuser.sslcrl", Text, "libpq's", LIBPQ),
    used("postgresql.authentication.superuser.sslcrldir", Text, "libpq's", LIBPQ),
    used("postgresql.authentication.superuser.gssencmode", Text, "libpq's", LIBPQ),
    used("postgresql.authentication.superuser.channel_binding", Text, "libpq's", LIBPQ),
    used("postgresql.authentication.superuser.sslnegotiation", Text, "libpq's", LIBPQ),
    used("postgresql.authentication.replication.sslmode", Text, "libpq's", LIBPQ),
    used("postgresql.authentication.replication.sslcert", Text, "libpq's", LIBPQ),
    used("postgresql.authentication.replication.sslkey", Text, "libpq's", LIBPQ),
    used("postgresql.authentication.replication.sslpassword", Secret, "", LIBPQ),
    used("postgresql.authentication.replication.sslrootcert", Text, "libpq's", LIBPQ),
    used("postgresql.authentication.replication.sslcrl", Text, "libpq's", LIBPQ),
    used("postgresql.authentication.replication.sslcrldir", Text, "libpq's", LIBPQ),
    used("postgresql.authentication.replication.gssencmode", Text, "libpq's", LIBPQ),
    used("postgresql.authentication.replication.channel_binding", Text, "libpq's", LIBPQ),
    used("postgresql.authentication.replication.sslnegotiation", Text, "libpq's", LIBPQ),
    used("postgresql.authentication.rewind.sslmode", Text, "libpq's", LIBPQ),
    used("postgresql.authentication.rewind.sslcert", Text, "libpq's", LIBPQ),
    used("postgresql.authentication.rewind.sslkey", Text, "libpq's", LIBPQ),
    used("postgresql.authentication.rewind.sslpassword", Secret, "", LIBPQ),
    used("postgresql.authentication.rewind.sslrootcert", Text, "libpq's", LIBPQ),
    used("postgresql.authentication.rewind.sslcrl", Text, "libpq's", LIBPQ),
    used("postgresql.authentication.rewind.sslcrldir", Text, "libpq's", LIBPQ),
    used("postgresql.authentication.rewind.gssencmode", Text, "libpq's", LIBPQ),
    used("postgresql.authentication.rewind.channel_binding", Text, "libpq's", LIBPQ),
    used("postgresql.authentication.rewind.sslnegotiation", Text, "libpq's", LIBPQ),
    used("postgresql.parameters", Scalars, "{}", "Server parameters of this member."),
    used("postgresql.parameters_primary", Scalars, "{}", IN_ROLE),
    used("postgresql.parameters_replica", Scalars, "{}", IN_ROLE),
    used("postgresql.parameters_standby_leader", Scalars, "{}", IN_ROLE),
    used("postgresql.pg_hba_primary", Lines, "", LINES_IN_ROLE),
    used("postgresql.pg_hba_replica", Lines, "", LINES_IN_ROLE),
    used("postgresql.pg_hba_standby_leader", Lines, "", LINES_IN_ROLE),
    used("postgresql.pg_ident_primary", Lines, "", LINES_IN_ROLE),
    used("postgresql.pg_ident_replica", Lines, "", LINES_IN_ROLE),
    used("postgresql.pg_ident_standby_leader", Lines, "", LINES_IN_ROLE),
    used("postgresql.pg_hba", Lines, "", "The lines of pg_hba.conf."),
    used("postgresql.pg_ident", Lines, "", "The lines of pg_ident.conf."),
    used("postgresql.recovery_conf", Scalars, "", RECOVERY_CONF),
    used("postgresql.custom_conf", Text, "", CUSTOM_CONF),
    used("postgresql.callbacks.on_start", Text, "", ON_EVENT),
    used("postgresql.callbacks.on_stop", Text, "", ON_EVENT),
    used("postgresql.callbacks.on_restart", Text, "", ON_EVENT),
    used("postgresql.callbacks.on_reload", Text, "", ON_EVENT),
    used("postgresql.callbacks.on_role_change", Text, "", ON_EVENT),
    used("postgresql.create_replica_methods", List, "basebackup", METHODS),
    used("postgresql.create_replica_method", List, "basebackup", METHODS_OLD),
    used("postgresql.basebackup", Options, "[]", BASEBACKUP),
    used("postgresql.rewind", Options, "[]", REWIND),
    used("postgresql.use_pg_rewind", Bool, "dynamic", "Beats the dynamic configuration."),
    used("postgresql.remove_data_directory_on_rewind_failure", Bool, "dynamic", "Likewise."),
    used("postgresql.remove_data_directory_on_diverged_timelines", Bool, "dynamic", "Likewise."),
    used("postgresql.use_unix_socket", Bool, "false", "Probes use the unix socket."),
    quiet("postgresql.use_unix_socket_repl", Bool),
    used("postgresql.pg_ctl_timeout", Duration, "60", PG_CTL_TIMEOUT),
    used("postgresql.pre_promote", Text, "", PRE_PROMOTE),
    used("postgresql.before_stop", Text, "", BEFORE_STOP),
    used("postgresql.krbsrvname", Text, "", KRBSRVNAME),
    used("pgherd.state_dir", Text, "<data_dir>.pgherd", "The agent's durable state."),
    used("pgherd.os_user", Text, "postgres", "Whom PostgreSQL runs as if the agent is root."),
    used(
        "pgherd.peers.secret_file",
        Text,
        "",
        "A file with the secret that members share for their heartbeats; else it is derived from \
         the replication password.",
    ),
    used("pgherd.stop_margin", Duration, "dynamic", "Beats the dynamic configuration."),
    used("pgherd.proxy.name", Text, "the host's", "The proxy's name."),
    used(
        "pgherd.proxy.members",
        List,
        "as the cluster's keys say",
        "REST interfaces of members, as http://host:port, which tell of the cluster without etcd.",
    ),
    used("pgherd.proxy.read_write", Address, "", "Where it listens for the primary's clients."),
    used("pgherd.proxy.read_only", Address, "", "Where it listens for the replicas' clients."),
    used(
        "pgherd.proxy.read_only_suffix",
        Text,
        "",
        "Who asks for a database whose name ends so is led to replicas, and to the one without it.",
    ),
    used(
        "pgherd.proxy.read_write_split",
        Bool,
        "false",
        "Single statements that only read go to replicas which have what their client wrote.",
    ),
    used("pgherd.proxy.site", Text, "", "Where it is; replicas whose tag site says so come first."),
    used("pgherd.proxy.hold_timeout", Duration, "dynamic", "How long a client waits at most."),
    used("pgherd.proxy.hold_limit", Integer, "1000", "How many clients wait at most."),
    used("pgherd.proxy.client_limit", Integer, "10000", "How many clients there are at most."),
    used(
        "pgherd.proxy.pool_mode",
        OneOf(POOL_MODES),
        "session",
        "How long a client has a server connection: for its stay, a transaction, a statement.",
    ),
    used(
        "pgherd.proxy.pool_size",
        Integer,
        "20",
        "Server connections for each user and database, at each member.",
    ),
    used(
        "pgherd.proxy.pool_timeout",
        Duration,
        "120",
        "How long a client waits for a connection of its pool.",
    ),
    used(
        "pgherd.proxy.session_state",
        OneOf(SESSION_STATES),
        "pin",
        "What leaves something in a session keeps the connection for its client, or is refused.",
    ),
    used(
        "pgherd.proxy.prepared_statements_max",
        Integer,
        "200",
        "Prepared statements on each server connection.",
    ),
    used(
        "pgherd.proxy.server_idle_timeout",
        Duration,
        "600",
        "A server connection that nobody uses for so long is closed; 0: never.",
    ),
    used(
        "pgherd.proxy.server_lifetime",
        Duration,
        "3600",
        "A server connection this old is closed when nobody has it; 0: never.",
    ),
    used(
        "pgherd.proxy.client_idle_timeout",
        Duration,
        "0",
        "How long a client without a server connection may be silent; 0: any time.",
    ),
    used(
        "pgherd.proxy.idle_transaction_timeout",
        Duration,
        "0",
        "How long a client in a transaction may be silent; 0: any time.",
    ),
    used(
        "pgherd.proxy.query_timeout",
        Duration,
        "0",
        "A statement that runs for so long is cancelled; 0: never.",
    ),
    used(
        "pgherd.proxy.client_login_timeout",
        Duration,
        "60",
        "How long a login may take, and a message that is begun.",
    ),
    used(
        "pgherd.proxy.max_user_connections",
        Integer,
        "0",
        "Server connections for each user at each member; 0: as pools want.",
    ),
    used(
        "pgherd.proxy.max_db_connections",
        Integer,
        "0",
        "Server connections for each database at each member; 0: as pools want.",
    ),
    used(
        "pgherd.proxy.client_limit_per_user",
        Integer,
        "0",
        "Clients of each user that sign in at the proxy; 0: any number.",
    ),
    used("pgherd.proxy.workers", Integer, "processors", "Threads that serve clients."),
    used(
        "pgherd.proxy.admin_users",
        List,
        "",
        "Who may command the proxy, in its database pgherd; better known from users_file.",
    ),
    used("pgherd.proxy.stats_users", List, "", "Who may look at the proxy there, by SHOW."),
    used(
        "pgherd.proxy.clusters",
        Any,
        "",
        "Clusters to follow besides the file's own: names, each with scope, namespace, etcd3 and \
         members.",
    ),
    used(
        "pgherd.proxy.databases",
        Any,
        "",
        "Where databases are that clients ask for: names, or * for all others, each with the keys \
         of the table below.",
    ),
    used("pgherd.proxy.http", Address, "", "Where it has metrics and health checks, by HTTP."),
    used("pgherd.proxy.http_username", Text, "", "Who may ask there; required but on loopback."),
    used("pgherd.proxy.http_password_file", Text, "", "A file with his password."),
    used("pgherd.proxy.http_tls.cert", Text, "", "Its certificate: HTTPS."),
    used("pgherd.proxy.http_tls.key", Text, "in cert", "Its key."),
    used("pgherd.proxy.http_tls.key_password", Secret, "", "What the key is encrypted with."),
    used("pgherd.proxy.http_tls.ca", Text, "", "Who stands behind the clients' certificates."),
    used(
        "pgherd.proxy.control_socket",
        Text,
        "",
        "A Unix socket by which a new proxy takes over from this one: hot restart.",
    ),
    used(
        "pgherd.proxy.drain_timeout",
        Duration,
        "60",
        "How long clients may stay after a take-over with the proxy that they came to.",
    ),
    used("pgherd.proxy.auth", OneOf(AUTHS), "pass_through", "How clients authenticate."),
    used("pgherd.proxy.users_file", Text, "", "Stored passwords, as in PgBouncer's userlist.txt."),
    used("pgherd.proxy.rules_file", Text, "", "Who is let in from where, as in pg_hba.conf."),
    used("pgherd.proxy.auth_user", Text, "", "Who asks the server for stored passwords."),
    used("pgherd.proxy.auth_password_file", Text, "", "A file with that user's password."),
    used("pgherd.proxy.auth_database", Text, "postgres", "The database to ask in."),
    used("pgherd.proxy.auth_query", Text, "of pg_shadow", "Gives the name and password of $1."),
    used("pgherd.proxy.tls.mode", OneOf(CLIENT_TLS_MODES), "disable", "TLS of clients."),
    used("pgherd.proxy.tls.cert", Text, "", "The proxy's certificate."),
    used("pgherd.proxy.tls.key", Text, "in cert", "Its key."),
    used("pgherd.proxy.tls.key_password", Secret, "", "What the key is encrypted with."),
    used("pgherd.proxy.tls.ca", Text, "", "Who stands behind clients' certificates."),
    used(
        "pgherd.proxy.server_tls.mode",
        OneOf(SERVER_TLS_MODES),
        "prefer; disable with pass_through",
        "TLS of the connections to servers: libpq's sslmode.",
    ),
    used("pgherd.proxy.server_tls.ca", Text, "system's", "Who stands behind their certificates."),
    used("pgherd.proxy.server_tls.crl", Text, "", "Revocation lists: a file, or a directory."),
    used("pgherd.proxy.server_tls.cert", Text, "", "What is shown to servers that ask."),
    used("pgherd.proxy.server_tls.key", Text, "in cert", "Its key."),
    used("pgherd.proxy.server_tls.key_password", Secret, "", "What the key is encrypted with."),
    used(
        "pgherd.proxy.proxy_protocol.in",
        OneOf(PROXY_PROTOCOL_IN),
        "off",
        "Every client's connection begins with a header of HAProxy's PROXY protocol.",
    ),
    used(
        "pgherd.proxy.proxy_protocol.out",
        OneOf(PROXY_PROTOCOL_OUT),
        "off",
        "Servers (or what stands before them) are told the client's address in this version.",
    ),
];

/// Keys of the dynamic configuration.
pub(crate) const DYNAMIC: &[Key] = &[
    used("ttl", Duration, "30", "The leader's lease."),
    used("loop_wait", Duration, "10", "Longest time between two evaluations."),
    used("retry_timeout", Duration, "10", "Limit of one operation on etcd."),
    used("maximum_lag_on_failover", Integer, "1048576", "Bytes that a candidate may lack."),
    used(
        "maximum_lag_on_syncnode",
        Integer,
        "-1",
        "Bytes after which a synchronous standby is left out.",
    ),
    used("max_timelines_history", Integer, "0", "Entries kept; 0: all."),
    used("primary_start_timeout", Duration, "300", "How long a crashed primary may recover."),
    used("master_start_timeout", Duration, "300", "Older name of primary_start_timeout."),
    used(
        "primary_stop_timeout",
        Duration,
        "0",
        "In synchronous mode: after so long a primary that stops for another is stopped at once; \
         0: 15 s.",
    ),
    used("master_stop_timeout", Duration, "0", "Older name of primary_stop_timeout."),
    used(
        "primary_race_backoff",
        Duration,
        "0",
        "No election so long while a primary without its key still sends WAL.",
    ),
    used("check_timeline", Bool, "false", "Who is on an older timeline does not lead."),
    used("failsafe_mode", Bool, "false", "Without etcd, go on if every member agrees."),
    used("pause", Bool, "false", "No automatic changes."),
    used("synchronous_mode", OneOf(&["off", "on", "quorum"]), "off", "Commits wait."),
    used("synchronous_mode_strict", Bool, "false", "Rather no writes than alone."),
    used("synchronous_node_count", Integer, "1", "How many standbys a commit waits for."),
    used("member_slots_ttl", Duration, "1800", "How long an absent member keeps its slot."),
    used("slots", Any, "{}", "Slots that every member keeps: type, database, plugin."),
    used("permanent_slots", Any, "{}", "Goes before slots."),
    used("permanent_replication_slots", Any, "{}", "Goes before permanent_slots."),
    used("ignore_slots", Any, "[]", "Slots left alone: name, type, database, plugin."),
    used("standby_cluster.host", Text, "", "The node outside that this whole cluster follows."),
    used("standby_cluster.port", Integer, "5432", "Its port."),
    used("standby_cluster.primary_slot_name", Text, "", "The slot that is used there."),
    used("standby_cluster.restore_command", Text, "", "How WAL is taken from its archive."),
    used("standby_cluster.archive_cleanup_command", Text, "", "What clears that archive."),
    used("standby_cluster.recovery_min_apply_delay", Any, "", "How far the leader stays behind."),
    used("standby_cluster.create_replica_methods", List, "", "How the first copy is made."),
    used("postgresql.use_slots", Bool, "true", "Slots for members."),
    used("postgresql.use_pg_rewind", Bool, "false", "Rewind instead of copying anew."),
    used("postgresql.remove_data_directory_on_rewind_failure", Bool, "false", "Copy anew then."),
    used(
        "postgresql.remove_data_directory_on_diverged_timelines",
        Bool,
        "false",
        "Copy anew where rewinding is off.",
    ),
    used("postgresql.parameters", Scalars, "{}", "Server parameters of all members."),
    used("postgresql.pg_hba", Lines, "", "The lines of pg_hba.conf."),
    used("postgresql.pg_ident", Lines, "", "The lines of pg_ident.conf."),
    used("postgresql.parameters_primary", Scalars, "{}", IN_ROLE),
    used("postgresql.parameters_replica", Scalars, "{}", IN_ROLE),
    used("postgresql.parameters_standby_leader", Scalars, "{}", IN_ROLE),
    used("postgresql.pg_hba_primary", Lines, "", LINES_IN_ROLE),
    used("postgresql.pg_hba_replica", Lines, "", LINES_IN_ROLE),
    used("postgresql.pg_hba_standby_leader", Lines, "", LINES_IN_ROLE),
    used("postgresql.pg_ident_primary", Lines, "", LINES_IN_ROLE),
    used("postgresql.pg_ident_replica", Lines, "", LINES_IN_ROLE),
    used("postgresql.pg_ident_standby_leader", Lines, "", LINES_IN_ROLE),
    used("postgresql.recovery_conf", Scalars, "", RECOVERY_CONF),
    used("postgresql.callbacks.on_start", Text, "", ON_EVENT),
    used("postgresql.callbacks.on_stop", Text, "", ON_EVENT),
    used("postgresql.callbacks.on_restart", Text, "", ON_EVENT),
    used("postgresql.callbacks.on_reload", Text, "", ON_EVENT),
    used("postgresql.callbacks.on_role_change", Text, "", ON_EVENT),
    used("postgresql.create_replica_methods", List, "basebackup", METHODS),
    used("postgresql.create_replica_method", List, "basebackup", METHODS_OLD),
    used("postgresql.basebackup", Options, "[]", BASEBACKUP),
    used("postgresql.rewind", Options, "[]", REWIND),
    used("postgresql.krbsrvname", Text, "", KRBSRVNAME),
    used("postgresql.use_unix_socket", Bool, "false", "Probes use the unix socket."),
    quiet("postgresql.use_unix_socket_repl", Any),
    used("postgresql.pg_ctl_timeout", Duration, "60", PG_CTL_TIMEOUT),
    used("postgresql.custom_conf", Text, "", CUSTOM_CONF),
    used("postgresql.pre_promote", Text, "", PRE_PROMOTE),
    used("postgresql.before_stop", Text, "", BEFORE_STOP),
    used(
        "pgherd.failover_mode",
        OneOf(&["lease", "fenced"]),
        "lease",
        "What a failover of a silent leader waits for: the end of its lease, or the pledges of \
         enough synchronous standbys (docs/failover.md).",
    ),
    used(
        "pgherd.failure_detection_timeout",
        Duration,
        "1",
        "After so long without any sign of life a leader is suspected (failover_mode: fenced).",
    ),
    used("pgherd.heartbeat_interval", Duration, "0.2", "Between two heartbeats; 0.05 to 2."),
    used(
        "pgherd.failover_min_interval",
        Duration,
        "0",
        "A leadership younger than this is not given up for what may be cured in place.",
    ),
    used("pgherd.hold_timeout", Duration, "10", "How long a proxy lets clients wait."),
    used(
        "pgherd.maximum_lag",
        Integer,
        "",
        "Replicas behind by more bytes get no new client of the proxies' read-only port.",
    ),
    used(
        "pgherd.switchover_grace",
        Duration,
        "3",
        "How long a switchover waits for transactions of the proxies' clients.",
    ),
    used("pgherd.stop_margin", Duration, "1", "PostgreSQL is dead this long before the lease."),
    used(
        "pgherd.refuse_lowered_commit",
        Bool,
        "false",
        "Proxies refuse to set synchronous_commit below on.",
    ),
];

/// Below each name in `pgherd.proxy.clusters`, besides `scope`, `namespace` and `etcd3`.
pub(crate) const CLUSTER: &[Key] = &[used("members", List, "", "As pgherd.proxy.members.")];

/// Below each name in `pgherd.proxy.databases`.
pub(crate) const DATABASE: &[Key] = &[
    used("cluster", Text, "the file's own", "Which of the clusters it is in."),
    used("dbname", Text, "the same", "What it is called there."),
    used("pool_size", Integer, "the proxy's", "Server connections for each user, at each member."),
    used("pool_mode", OneOf(POOL_MODES), "the proxy's", "How long a client has a connection."),
];

/// What a value must look like, for errors and the reference.
pub(crate) fn type_name(holds: Type) -> String {
    let name = match holds {
        Text => "a text",
        Secret => "a text (secret)",
        Bool => "true or false",
        Integer => "a whole number",
        Duration => "seconds, or a number with ms, s, min, h or d",
        Address => "host:port",
        AddressAnyPort => "host or host:port",
        List => "a list, or a text with commas",
        Lines => "a list of texts",
        Options => "a list or mapping of options",
        Scalars => "a mapping of names to texts or numbers",
        Any => "any",
        OneOf(words) => return format!("one of {}", words.join(", ")),
    };
    name.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_key_stands_twice_or_inside_another() {
        for table in [STATIC, CLUSTER, DATABASE, DYNAMIC] {
            for (index, key) in table.iter().enumerate() {
                for other in &table[index + 1..] {
                    let (a, b) = (format!("{}.", key.path), format!("{}.", other.path));
                    assert!(!a.starts_with(&b) && !b.starts_with(&a), "{a} {b}");
                }
            }
        }
    }
}
