//! The sections of the static file, as values.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde_json::Value;
use types::Millis;

use crate::hooks::{CommandLine, CustomBootstrap, Hooks};
use crate::problem::Problem;
use crate::proxy_section::ProxySection;
use crate::restapi::RestapiExtras;
use crate::text::{HostPort, Secret};
use crate::tree::Node;
use crate::values;

/// An option of a PostgreSQL program: `--name` or `--name=value`.
pub type ProgramOption = (String, Option<String>);

/// `etcd3`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Etcd {
    /// At least one.
    pub endpoints: Vec<HostPort>,
    /// Whether it is reached over TLS.
    pub tls: bool,
    /// Who stands behind its certificate; `None`: the system's authorities.
    pub cacert: Option<PathBuf>,
    /// What is shown to it.
    pub certificate: Option<CertificateFiles>,
    /// User, if etcd's authentication is on; then there is a password too.
    pub username: Option<String>,
    /// Its password.
    pub password: Option<Secret>,
}

/// A user of the REST API.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BasicAuth {
    /// Its name.
    pub username: String,
    /// Its password.
    pub password: Secret,
}

/// A certificate of ours and its key, as files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateFiles {
    /// The certificate.
    pub certfile: PathBuf,
    /// Its key; `None`: in the same file.
    pub keyfile: Option<PathBuf>,
    /// What the key is encrypted with.
    pub keyfile_password: Option<Secret>,
}

impl CertificateFiles {
    /// Those that these two keys name; the key's password has the key's name with `_password`.
    pub(crate) fn read(
        tree: &Node,
        certfile: &str,
        keyfile: &str,
        problems: &mut Vec<Problem>,
    ) -> Option<CertificateFiles> {
        let text = |key: &str| tree.at(key).and_then(values::text);
        let key = text(keyfile).map(PathBuf::from);
        let Some(file) = text(certfile) else {
            if key.is_some() {
                let why = format!("is of no use without {certfile}");
                problems.push(Problem::new(tree.place_of(keyfile), keyfile, why));
            }
            return None;
        };
        let keyfile_password = text(&format!("{keyfile}_password")).map(Secret::new);
        Some(CertificateFiles { certfile: file.into(), keyfile: key, keyfile_password })
    }
}

/// `restapi.verify_client`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum VerifyClient {
    /// Nobody shows a certificate.
    #[default]
    None,
    /// Who changes something does.
    Optional,
    /// Everybody does.
    Required,
}

/// What commands, and agents among each other, reach the members' REST with: `ctl`, and of
/// `restapi` what stands in for it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RestClient {
    /// Who stands behind the members' certificates: `ctl.cacert`, or `restapi.cafile`; `None`: the
    /// system's authorities.
    pub cacert: Option<PathBuf>,
    /// What is shown to them.
    pub certificate: Option<CertificateFiles>,
    /// `ctl.insecure`: commands check no host, and without a certificate of their own nothing.
    pub insecure: bool,
}

/// `restapi`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Restapi {
    /// Where it listens.
    pub listen: HostPort,
    /// How others reach it; never a wildcard.
    pub connect_address: HostPort,
    /// Asked for by requests that change something; `None`: nobody is asked.
    pub authentication: Option<BasicAuth>,
    /// What it is over TLS; `None`: plain HTTP.
    pub certificate: Option<CertificateFiles>,
    /// Who stands behind clients' certificates.
    pub cafile: Option<PathBuf>,
    /// Whether clients show certificates.
    pub verify_client: VerifyClient,
    /// Who is let in from where, and what answers carry.
    pub extras: RestapiExtras,
}

impl Restapi {
    /// `http` or `https`.
    #[must_use]
    pub fn scheme(&self) -> &'static str {
        if self.certificate.is_some() { "https" } else { "http" }
    }
}

/// `bootstrap`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bootstrap {
    /// The dynamic configuration of a new cluster, checked; an object.
    pub dcs: Value,
    /// Options of initdb.
    pub initdb: Vec<ProgramOption>,
    /// Lines that are added to pg_hba.conf of a new cluster.
    pub pg_hba: Option<Vec<String>>,
    /// What makes the cluster instead of initdb.
    pub custom: Option<CustomBootstrap>,
    /// What is called with a connection string when the new cluster accepts connections.
    pub post_bootstrap: Option<CommandLine>,
}

/// A role of the database.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Credentials {
    /// Its name.
    pub username: String,
    /// Its password, if it logs in with one.
    pub password: Option<Secret>,
    /// What libpq is told besides: the names of [`crate::CONNECTION_KEYS`] that are given.
    pub connection: BTreeMap<&'static str, String>,
    /// What the key in `sslkey` is encrypted with.
    pub sslpassword: Option<Secret>,
}

/// `postgresql.authentication`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Authentication {
    /// The superuser.
    pub superuser: Credentials,
    /// Whom standbys and pg_basebackup log in as.
    pub replication: Credentials,
    /// Whom pg_rewind logs in as; `None`: the superuser.
    pub rewind: Option<Credentials>,
}

/// `postgresql`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PostgresqlSection {
    /// Where it listens: the host may be a list with commas, or `*`.
    pub listen: HostPort,
    /// How others reach it; never a wildcard.
    pub connect_address: HostPort,
    /// How clients reach PostgreSQL through a pooler or proxy beside it.
    pub proxy_address: Option<HostPort>,
    /// The data directory; absolute.
    pub data_dir: PathBuf,
    /// Where the configuration files are; absolute; `None`: in the data directory.
    pub config_dir: Option<PathBuf>,
    /// What the main configuration file is called, without `.conf`.
    pub config_base_name: String,
    /// Where the programs are; `None`: wherever they are found.
    pub bin_dir: Option<PathBuf>,
    /// What programs are called that have another name than PostgreSQL's.
    pub bin_name: BTreeMap<&'static str, String>,
    /// The database that probes connect to.
    pub database: String,
    /// The password file that is written for libpq; `None`: one in the state directory.
    pub pgpass: Option<PathBuf>,
    /// Roles.
    pub authentication: Authentication,
    /// Server parameters of this member; see [`crate::effective_parameters`].
    pub parameters: BTreeMap<String, String>,
    /// Lines of pg_hba.conf.
    pub pg_hba: Option<Vec<String>>,
    /// Lines of pg_ident.conf.
    pub pg_ident: Option<Vec<String>>,
    /// Commands, and what else the dynamic configuration may say too.
    pub hooks: Hooks,
    /// Beats the dynamic configuration.
    pub use_pg_rewind: Option<bool>,
    /// Beats the dynamic configuration.
    pub remove_data_directory_on_rewind_failure: Option<bool>,
    /// Beats the dynamic configuration.
    pub remove_data_directory_on_diverged_timelines: Option<bool>,
}

/// `watchdog`: a device that resets the machine unless it is fed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Watchdog {
    /// Whether it is used.
    pub mode: WatchdogMode,
    /// Its path.
    pub device: PathBuf,
    /// How long before the lease's end it fires, in seconds; -1: its timeout is half of `ttl`.
    pub safety_margin: i64,
    /// What stands at the path.
    pub driver: WatchdogDriver,
    /// A test written for Patroni plays the machine (`driver: testing`, and no `pgherd:` section):
    /// it wants to see what the device would do, and nothing else ends PostgreSQL before.
    pub played: bool,
}

/// `watchdog.mode`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WatchdogMode {
    /// Never.
    Off,
    /// If it is there.
    Automatic,
    /// This member does not lead without it.
    Required,
}

/// `watchdog.driver`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WatchdogDriver {
    /// A watchdog of Linux.
    Default,
    /// Anything that can be written to.
    Testing,
}

impl Watchdog {
    /// The device's timeout in seconds; `None` if these settings leave it none that outlasts a
    /// round of the loop, as Patroni has it.
    #[must_use]
    pub fn timeout_secs(&self, ttl: Millis, loop_wait: Millis) -> Option<u32> {
        let ttl_secs = i64::try_from(ttl.0 / 1000).ok()?;
        let timeout = match self.safety_margin {
            -1 => ttl_secs / 2,
            margin => ttl_secs.checked_sub(margin)?,
        };
        let timeout = u32::try_from(timeout).ok()?;
        (timeout > 0 && u64::from(timeout) * 1000 >= loop_wait.0).then_some(timeout)
    }
}

/// `pgherd` of a node's file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PgherdSection {
    /// The file has this section, so it was written for us: what a file of Patroni's opens stays
    /// closed.
    pub declared: bool,
    /// The agent's durable state.
    pub state_dir: PathBuf,
    /// Whom PostgreSQL runs as if the agent is root.
    pub os_user: String,
    /// A file with the secret that members share; `None`: it is derived.
    pub peers_secret_file: Option<PathBuf>,
    /// Beats the dynamic configuration.
    pub stop_margin: Option<Millis>,
    /// A proxy to run beside the agent.
    pub proxy: Option<ProxySection>,
}
