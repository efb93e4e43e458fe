//! What the agent tells a local instance: where it lives, who it is, how it is to be configured.

use std::collections::BTreeMap;
use std::path::PathBuf;

use types::{MemberName, Millis};

use crate::hooks::Hooks;

/// The file of the data directory that keeps the cluster's configuration, as with Patroni.
pub const DYNAMIC_FILE: &str = "patroni.dynamic.json";

/// A password. It never shows in debug output (I6).
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Wraps a password.
    #[must_use]
    pub fn new(text: impl Into<String>) -> Secret {
        Secret(text.into())
    }

    /// The password itself; only for the wire, a password file, or the bootstrap's statements.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// A role of the database, and how it connects.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Credentials {
    /// The role's name.
    pub username: String,
    /// Its password, if it logs in with one.
    pub password: Option<Secret>,
    /// What libpq is told of its connections besides: `sslmode` and its like, by libpq's names.
    pub connection: BTreeMap<&'static str, String>,
    /// What the key of its certificate is encrypted with.
    pub sslpassword: Option<Secret>,
}

/// The operating-system user that PostgreSQL runs as when the agent is root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OsUser {
    /// Its name.
    pub name: String,
    /// Its user id.
    pub uid: u32,
    /// Its group id.
    pub gid: u32,
}

/// An option of a PostgreSQL program: `--name` or `--name=value`.
pub type ProgramOption = (String, Option<String>);

/// How log is taken from the node that a whole standby cluster follows.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Remote {
    /// The slot there; streaming without one where it is `None`.
    pub slot: Option<String>,
    /// `restore_command` and `archive_cleanup_command` of every member.
    pub recovery: BTreeMap<&'static str, String>,
    /// `recovery_min_apply_delay` of the member that follows the node itself.
    pub apply_delay: Option<String>,
}

/// Everything a local instance needs to know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InstanceConfig {
    /// This member.
    pub member: MemberName,
    /// The cluster's name; becomes `cluster_name`.
    pub scope: String,
    /// The data directory.
    pub data_dir: PathBuf,
    /// Where the configuration files are, if that is not the data directory.
    pub config_dir: Option<PathBuf>,
    /// What the main configuration file is called, without `.conf`.
    pub config_base_name: String,
    /// Whose name stands in the header of the configuration files.
    pub written_by: &'static str,
    /// Where PostgreSQL's programs are; `None` searches `PATH` and the usual places.
    pub bin_dir: Option<PathBuf>,
    /// What programs are called that have another name than PostgreSQL's.
    pub bin_name: BTreeMap<&'static str, String>,
    /// `listen_addresses`.
    pub listen: Vec<String>,
    /// The port, for TCP and for the socket's name.
    pub port: u16,
    /// The directory of the unix socket that probes use, and of that of the private server; keep it
    /// short (107 bytes with the socket's name).
    pub socket_dir: PathBuf,
    /// `unix_socket_directories`; `None` leaves PostgreSQL's default.
    pub socket_directories: Option<String>,
    /// Whom PostgreSQL runs as; needed when the agent is root, else `None`.
    pub os_user: Option<OsUser>,
    /// The superuser.
    pub superuser: Credentials,
    /// The role that standbys and pg_basebackup log in with.
    pub replication: Credentials,
    /// The role that pg_rewind logs in with; an empty name means the superuser.
    pub rewind: Credentials,
    /// The database that probes connect to.
    pub database: String,
    /// The password file that this crate writes for libpq; mode 0600.
    pub pgpass: PathBuf,
    /// The agent's state directory; `postgres.log` goes there.
    pub state_dir: PathBuf,
    /// Server parameters, merged from all sources.
    pub parameters: BTreeMap<String, String>,
    /// Lines of pg_hba.conf; empty leaves the file as it is.
    pub pg_hba: Vec<String>,
    /// Lines of pg_ident.conf; empty leaves the file as it is.
    pub pg_ident: Vec<String>,
    /// Further options of initdb.
    pub initdb: Vec<ProgramOption>,
    /// Further options of pg_basebackup.
    pub basebackup: Vec<ProgramOption>,
    /// Further options of pg_rewind.
    pub rewind_options: Vec<ProgramOption>,
    /// The service name of PostgreSQL in Kerberos.
    pub krbsrvname: Option<String>,
    /// Commands of the operator's for new data directories.
    pub hooks: Hooks,
    /// Recovery settings of the operator's.
    pub recovery_conf: BTreeMap<String, String>,
    /// A configuration file that is included instead of what initdb wrote.
    pub custom_conf: Option<PathBuf>,
    /// The cluster's configuration, which the data directory keeps; empty for none.
    pub dynamic: String,
    /// Whether probes use the unix socket.
    pub use_unix_socket: bool,
    /// Whether standbys stream by slots, each by its own.
    pub use_slots: bool,
    /// How a standby cluster takes log from outside; `None` in any other.
    pub remote: Option<Remote>,
    /// `hot_standby_feedback` is on whatever the parameters say.
    pub force_feedback: bool,
    /// The program that is run as `HELPER probe --data-dir DIR`, by PostgreSQL's user: it calls
    /// `run_disk_helper`.
    pub helper: PathBuf,
    /// Between two trials of a healthy instance.
    pub trial_interval: Millis,
}

impl InstanceConfig {
    /// Whom pg_rewind and the comparison with a leader log in as.
    #[must_use]
    pub fn rewind_role(&self) -> &Credentials {
        if self.rewind.username.is_empty() { &self.superuser } else { &self.rewind }
    }

    /// Where only PostgreSQL's user may look while a private server runs. Members on one host may
    /// share a directory for sockets, but no port.
    pub(crate) fn private_dir(&self) -> PathBuf {
        self.socket_dir.join(format!("pgherd-init-{}", self.port))
    }

    /// libpq's service file, beside the password file.
    pub(crate) fn service_file(&self) -> PathBuf {
        let mut path = self.pgpass.clone().into_os_string();
        path.push(".service");
        PathBuf::from(path)
    }

    /// A path beside the data directory: its name with `suffix` appended.
    #[must_use]
    pub fn beside(&self, suffix: &str) -> PathBuf {
        let mut name = self.data_dir.clone().into_os_string();
        name.push(suffix);
        PathBuf::from(name)
    }

    /// The address that local TCP probes use.
    #[must_use]
    pub fn local_host(&self) -> String {
        let first = self.listen.first().map_or("localhost", String::as_str);
        match first.trim() {
            "*" | "0.0.0.0" | "" => "127.0.0.1".to_owned(),
            "::" => "::1".to_owned(),
            other => other.to_owned(),
        }
    }
}
