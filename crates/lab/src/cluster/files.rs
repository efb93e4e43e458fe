//! The files of a cluster: directories, passwords, configurations.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::settings::initdb;
use super::{ClusterError, ETCD_PORTS, PG_PORT, PROXY_PORTS, Plan, REST_PORT};
use crate::etcd;
use crate::network;
use crate::secret;
use crate::tools;
use crate::volume::Volume;

/// The cluster's name.
const SCOPE: &str = "lab";
/// The network that every host is on.
const HOSTS: &str = "10.77.0.0/24";

/// The passwords, kept beside the cluster so that it can go on.
#[derive(Clone, Serialize, Deserialize)]
pub(super) struct Passwords {
    pub(super) superuser: String,
    replication: String,
    rewind: String,
}

/// One member's names and places.
pub(super) struct Names {
    pub(super) name: String,
    pub(super) config: PathBuf,
    pub(super) pg_port: u16,
    directory: PathBuf,
    host: usize,
    volume: bool,
}

impl Names {
    pub(super) fn mount_point(&self) -> PathBuf {
        self.directory.join("volume")
    }

    pub(super) fn data_dir(&self) -> PathBuf {
        if self.volume { self.mount_point().join("data") } else { self.directory.join("data") }
    }

    pub(super) fn state_dir(&self) -> PathBuf {
        self.directory.join("state")
    }

    pub(super) fn socket_dir(&self) -> PathBuf {
        self.directory.join("socket")
    }
}

/// What is on disk.
pub(super) struct Files {
    pub(super) members: Vec<Names>,
    pub(super) etcd: Vec<etcd::Member>,
    pub(super) proxy_config: PathBuf,
    pub(super) passwords: Passwords,
    bin_dir: PathBuf,
}

impl Files {
    /// Makes what is not there, and writes the configurations.
    pub(super) fn prepare(plan: &Plan) -> Result<Files, ClusterError> {
        let owner = tools::postgres_owner()?;
        make_directory(&plan.directory, 0o755, None)?;
        let members = (0..usize::from(plan.settings.members)).zip(PG_PORT..);
        let files = Files {
            members: members.map(|(host, port)| names(plan, host, port)).collect(),
            etcd: super::etcd_members(&plan.directory, usize::from(plan.settings.members)),
            proxy_config: plan.directory.join("proxy.yml"),
            passwords: passwords(&plan.directory.join("passwords.json"))?,
            bin_dir: tools::postgres_bin_dir()?,
        };
        for member in &files.etcd {
            make_directory(&member.data_dir, 0o700, None)?;
        }
        for names in &files.members {
            make_directory(&names.directory, 0o700, owner)?;
            make_directory(&names.socket_dir(), 0o700, owner)?;
            if plan.volumes {
                let image = names.directory.join("volume.img");
                Volume::mount(&image, &names.mount_point(), owner)?;
            }
            // JSON is YAML.
            write_private(&names.config, &files.agent_config(names, &plan.settings.dynamic()))?;
        }
        write_private(&files.proxy_config, &files.proxy_config())?;
        Ok(files)
    }

    fn agent_config(&self, names: &Names, dynamic: &Value) -> Value {
        let rest = format!("{}:{REST_PORT}", network::address(names.host));
        json!({
            "scope": SCOPE,
            "name": names.name,
            "etcd3": {"hosts": self.etcd_hosts()},
            // Several hosts share this machine, and a killed agent must not reset it.
            "watchdog": {"mode": "off"},
            "restapi": {"listen": rest, "connect_address": rest},
            "bootstrap": {
                "dcs": dynamic,
                "initdb": initdb(),
            },
            "postgresql": self.postgresql(names),
            "pgherd": {"state_dir": names.state_dir(), "os_user": tools::OS_USER},
        })
    }

    fn postgresql(&self, names: &Names) -> Value {
        let Passwords { superuser, replication, rewind } = &self.passwords;
        let address = format!("{}:{}", network::address(names.host), names.pg_port);
        json!({
            "listen": address,
            "connect_address": address,
            "data_dir": names.data_dir(),
            "bin_dir": self.bin_dir,
            "pgpass": names.directory.join("pgpass"),
            "use_unix_socket": true,
            "authentication": {
                "superuser": {"username": "postgres", "password": superuser},
                "replication": {"username": "replicator", "password": replication},
                "rewind": {"username": "rewinder", "password": rewind},
            },
            "parameters": {"unix_socket_directories": names.socket_dir()},
            "pg_hba": [
                "local all all scram-sha-256",
                format!("host replication replicator {HOSTS} scram-sha-256"),
                format!("host all all {HOSTS} scram-sha-256"),
            ],
        })
    }

    fn proxy_config(&self) -> Value {
        let [read_write, read_only] = PROXY_PORTS.map(|port| format!("127.0.0.1:{port}"));
        json!({
            "scope": SCOPE,
            "etcd3": {"hosts": self.etcd_hosts()},
            "pgherd": {
                "proxy": {"name": "proxy1", "read_write": read_write, "read_only": read_only},
            },
        })
    }

    fn etcd_hosts(&self) -> Vec<String> {
        let hosts = 0..self.members.len();
        hosts.map(|host| format!("{}:{}", network::address(host), ETCD_PORTS[0])).collect()
    }
}

/// The name of the member on this host.
pub(super) fn name(host: usize) -> String {
    format!("node{}", host + 1)
}

fn names(plan: &Plan, host: usize, pg_port: u16) -> Names {
    let name = name(host);
    Names {
        config: plan.directory.join(format!("{name}.yml")),
        directory: plan.directory.join(&name),
        name,
        host,
        pg_port,
        volume: plan.volumes,
    }
}

/// The passwords of the cluster that was there before, or new ones.
fn passwords(path: &Path) -> Result<Passwords, ClusterError> {
    match fs::read(path) {
        Ok(text) => serde_json::from_slice(&text)
            .map_err(|source| ClusterError::Damaged { path: path.to_owned(), source }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let passwords = Passwords {
                superuser: secret::password()?,
                replication: secret::password()?,
                rewind: secret::password()?,
            };
            write_private(path, &json!(passwords))?;
            Ok(passwords)
        }
        Err(source) => Err(ClusterError::File { path: path.to_owned(), source }),
    }
}

/// Makes a directory unless it is there.
fn make_directory(path: &Path, mode: u32, owner: Option<(u32, u32)>) -> Result<(), ClusterError> {
    let make = || -> io::Result<()> {
        if path.is_dir() {
            return Ok(());
        }
        fs::create_dir_all(path)?;
        fs::set_permissions(path, fs::Permissions::from_mode(mode))?;
        match owner {
            Some((uid, gid)) => chown(path, Some(uid), Some(gid)),
            None => Ok(()),
        }
    };
    make().map_err(|source| ClusterError::File { path: path.to_owned(), source })
}

/// Writes a file that only its owner may read.
fn write_private(path: &Path, value: &Value) -> Result<(), ClusterError> {
    let write = || -> io::Result<()> {
        let mut options = fs::OpenOptions::new();
        let mut file = options.create(true).truncate(true).write(true).mode(0o600).open(path)?;
        file.write_all(format!("{value:#}\n").as_bytes())
    };
    write().map_err(|source| ClusterError::File { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use config::Sources;

    use super::*;
    use crate::cluster::{Settings, SynchronousMode};

    #[test]
    fn what_is_written_is_what_the_programs_read() {
        let settings = Settings {
            members: 3,
            synchronous_mode: SynchronousMode::Quorum,
            failover_mode: None,
            ttl: 10,
        };
        let plan = Plan { directory: "/d".into(), program: "/p".into(), settings, volumes: true };
        let passwords =
            Passwords { superuser: "01".into(), replication: "23".into(), rewind: "45".into() };
        let files = Files {
            members: (0..3).zip(PG_PORT..).map(|(host, port)| names(&plan, host, port)).collect(),
            etcd: super::super::etcd_members(&plan.directory, 3),
            proxy_config: "/d/proxy.yml".into(),
            passwords,
            bin_dir: "/b".into(),
        };
        let mut ports = std::collections::BTreeSet::new();
        for names in &files.members {
            let text = format!("{:#}", files.agent_config(names, &settings.dynamic()));
            let (_, warnings) =
                config::Static::read(&Sources::default().with_file("node.yml", text))
                    .expect("it is valid");
            assert!(warnings.is_empty(), "{warnings:?}");
            ports.insert(names.pg_port);
        }
        assert_eq!(ports.len(), 3, "the ledger knows a server by its port");
        let text = format!("{:#}", files.proxy_config());
        let (_, warnings) =
            config::Static::read_proxy(&Sources::default().with_file("proxy.yml", text))
                .expect("it is valid");
        assert!(warnings.is_empty(), "{warnings:?}");
        assert_eq!(files.etcd[2].client().to_string(), "10.77.0.3:2379");
    }
}
