//! Why an agent does not start. One clear line each; nothing was changed.

use std::io;
use std::path::PathBuf;

use crate::heartbeat::SecretError;
use crate::state::StateError;

/// A refusal at start.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    /// The node's file cannot be read.
    #[error("cannot read {path}")]
    ReadFile {
        /// The file.
        path: PathBuf,
        /// What came back.
        #[source]
        source: io::Error,
    },
    /// There is neither a file nor a variable.
    #[error(
        "no configuration: name a file or a directory of files with -c/--config-file, or set \
         PATRONI_SCOPE, PATRONI_NAME and the others"
    )]
    NoConfig,
    /// The node's file is wrong.
    #[error(transparent)]
    Config(#[from] config::ConfigError),
    /// Warnings count as errors.
    #[error("{count} warnings about the file, and --strict was given")]
    Warnings {
        /// How many.
        count: usize,
    },
    /// The secret of the heartbeats cannot be used.
    #[error(transparent)]
    PeerSecret(#[from] SecretError),
    /// TLS cannot be set up.
    #[error("no TLS with the settings of the section {section}")]
    Tls {
        /// Whose settings.
        section: &'static str,
        /// What is wrong.
        #[source]
        source: tls::TlsError,
    },
    /// `bootstrap.dcs` is wrong.
    #[error("bootstrap.dcs: {detail}")]
    InitialConfig {
        /// What is wrong.
        detail: String,
    },
    /// PostgreSQL's programs, paths or data directory are not usable.
    #[error(transparent)]
    Setup(#[from] postgres::SetupError),
    /// The REST address cannot be listened on.
    #[error("cannot listen on {address} (restapi.listen); is another process using the port?")]
    Listen {
        /// The address.
        address: String,
        /// What came back.
        #[source]
        source: io::Error,
    },
    /// PostgreSQL could not listen.
    #[error(
        "PostgreSQL cannot listen on {address} (postgresql.listen); end what uses the port, or \
         choose another"
    )]
    PostgresPort {
        /// The address.
        address: String,
        /// What came back.
        #[source]
        source: io::Error,
    },
    /// The data directory is there, but not usable.
    #[error("cannot use data_dir {path}: {detail}; name another, or move it away")]
    DataDir {
        /// The directory.
        path: PathBuf,
        /// What is wrong with it.
        detail: String,
    },
    /// The data directory is of another cluster.
    #[error(
        "data_dir {path} is of the cluster with system identifier {found}, but {scope} in the DCS \
         is {cluster}; name the right data_dir or scope, or move the directory away"
    )]
    OtherCluster {
        /// The directory.
        path: PathBuf,
        /// Its system identifier.
        found: String,
        /// The cluster's name.
        scope: String,
        /// The cluster's system identifier.
        cluster: String,
    },
    /// There is no space.
    #[error(
        "the file system of {path} is full ({available_kib} KiB left, {needed_kib} KiB needed); \
         free space there"
    )]
    DiskFull {
        /// What would be written.
        path: PathBuf,
        /// What is left.
        available_kib: u64,
        /// What is needed to begin.
        needed_kib: u64,
    },
    /// A member of this name runs already.
    #[error(
        "Can't start; there is already a node named '{name}' running: its REST interface answers \
         at {address}; give this one another name"
    )]
    Twin {
        /// The name.
        name: String,
        /// Where it answers.
        address: String,
    },
    /// The DCS does not answer.
    #[error("cannot reach the DCS; check etcd3.hosts and that etcd runs")]
    Dcs {
        /// What came back.
        #[source]
        source: dcs::Error,
    },
    /// etcd does not take the user and password, or wants some.
    #[error("Etcd3 authentication failed")]
    EtcdAuthentication {
        /// What came back.
        #[source]
        source: dcs::Error,
    },
    /// The state directory is not usable.
    #[error(transparent)]
    State(#[from] StateError),
    /// The journal cannot be opened.
    #[error("cannot open the journal in {path}")]
    Journal {
        /// The state directory.
        path: PathBuf,
        /// What came back.
        #[source]
        source: io::Error,
    },
    /// The guard does not start.
    #[error("cannot start the guard; see guard.log in the state directory")]
    Guard {
        /// What came back.
        #[source]
        source: io::Error,
    },
    /// Signal handlers cannot be installed.
    #[error("cannot install signal handlers")]
    Signals {
        /// What came back.
        #[source]
        source: io::Error,
    },
    /// The kernel gives no random bytes.
    #[error("no random bytes from the kernel: {detail}")]
    Random {
        /// What came back.
        detail: String,
    },
    /// The user that PostgreSQL shall run as is not known.
    #[error("the user {name} (pgherd.os_user) does not exist; create it or name another")]
    OsUser {
        /// The name.
        name: String,
    },
}
