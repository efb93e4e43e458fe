//! A whole cluster on a [`Ground`]: each member's agent, guard and PostgreSQL and one member of
//! etcd stand on one host; the clients' host has the proxy.
//!
//! Everything is killed, unmounted and removed when the [`Cluster`] is dropped, after a panic too.

mod files;
mod settings;

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::etcd;
use crate::ground::{self, Ground, GroundError};
use crate::host::{Frozen, Host, HostError};
use crate::http;
use crate::network;
use crate::process;
use crate::secret::NoRandomness;
use crate::service::{Service, Spec};
use crate::tools::{self, Missing, NoUser};
use crate::view::{self, View, Wanted};
use crate::volume::{self, Volume, VolumeError};
use crate::workload::{self, Target};

pub use settings::{FailoverMode, Settings, SynchronousMode, Unknown, dynamic, initdb};

/// How long after its death a program is started again: the demo's.
pub const RESTART_AFTER: Duration = Duration::from_secs(3);
/// Client and peer port of etcd, on each host.
pub const ETCD_PORTS: [u16; 2] = [2379, 2380];
/// The agents' REST port.
const REST_PORT: u16 = 8008;
/// The port of the first member's PostgreSQL. Each has another one: the ledger knows a server by
/// its port.
const PG_PORT: u16 = 5433;
/// The proxy's read-write and read-only port.
const PROXY_PORTS: [u16; 2] = [5000, 5001];
/// How long the write that proves health may take.
const PROBE_LIMIT: Duration = Duration::from_secs(3);
/// How long an agent may take for its metrics, on a loaded machine.
const METRICS_LIMIT: Duration = Duration::from_secs(3);
/// How long a member of etcd may take to say how it is.
const ETCD_LIMIT: Duration = Duration::from_secs(1);

/// A cluster cannot be had here.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    /// No hosts.
    #[error(transparent)]
    Ground(#[from] GroundError),
    /// A program is missing.
    #[error(transparent)]
    Missing(#[from] Missing),
    /// PostgreSQL has nobody to run as.
    #[error(transparent)]
    NoUser(#[from] NoUser),
    /// No passwords.
    #[error(transparent)]
    NoRandomness(#[from] NoRandomness),
    /// No file systems for the data directories.
    #[error(transparent)]
    Volume(#[from] VolumeError),
    /// A file or directory cannot be made.
    #[error("cannot write {path}: {source}")]
    File {
        /// Which.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// What an earlier cluster left there cannot be used.
    #[error("{path} is damaged ({source}): remove the directory, or choose another")]
    Damaged {
        /// Which.
        path: PathBuf,
        /// What is wrong.
        source: serde_json::Error,
    },
}

/// What to start, and where.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Where it lives; absolute. A cluster that was there before goes on.
    pub directory: PathBuf,
    /// The program `pgherd`.
    pub program: PathBuf,
    /// What it is to be like.
    pub settings: Settings,
    /// Whether each data directory has a file system of its own, which can be filled.
    pub volumes: bool,
}

/// One member, on a host of its own.
pub struct Member {
    /// Its name.
    pub name: String,
    /// Its host's number in the network.
    pub index: usize,
    /// Its processes, those of its etcd among them.
    pub host: Host,
    /// Its agent.
    pub agent: Service,
    /// Its member of etcd.
    pub etcd: Service,
    etcd_address: SocketAddr,
    pg_port: u16,
    socket_dir: PathBuf,
    volume: Option<Volume>,
}

/// A cluster that runs.
pub struct Cluster {
    /// Its members.
    pub members: Vec<Member>,
    /// What it was told to be like.
    pub settings: Settings,
    proxy: Service,
    superuser_password: String,
    /// Its hosts.
    pub ground: Ground,
}

impl Cluster {
    /// Writes the files and starts everything; it will take a while to be whole.
    ///
    /// # Errors
    /// What is missing; nothing is left running.
    pub fn start(plan: &Plan) -> Result<Cluster, ClusterError> {
        ground::sweep();
        sweep_directory(&plan.directory, &plan.program)?;
        let names = (0..usize::from(plan.settings.members)).map(files::name);
        let hosts: Vec<String> = names.chain(["client".to_owned()]).collect();
        // Before anything is mounted, which it undoes.
        let ground = Ground::new(&plan.directory, &hosts)?;
        let files = files::Files::prepare(plan)?;
        let (members, proxy) = Starter { plan, files: &files, ground: &ground }.start_all()?;
        let superuser_password = files.passwords.superuser.clone();
        Ok(Cluster { members, settings: plan.settings, proxy, superuser_password, ground })
    }

    /// The proxy's process, while it runs.
    #[must_use]
    pub fn proxy_pid(&self) -> Option<u32> {
        self.proxy.pid()
    }

    /// The number of the clients' host.
    #[must_use]
    pub fn client(&self) -> usize {
        self.members.len()
    }

    /// How to reach the primary through the proxy, as its superuser.
    #[must_use]
    pub fn through_proxy(&self, application_name: &str) -> Target {
        let password = &self.superuser_password;
        workload::target(PROXY_PORTS[0], "postgres", password, application_name)
    }

    /// How to reach a member as somebody on its host does, by a Unix socket: whatever the network
    /// does, so that a primary that is cut off and still writes is seen to.
    #[must_use]
    pub fn on_its_host(&self, member: &Member, application_name: &str) -> Target {
        let (host, password) = (member.socket_dir.to_string_lossy(), &self.superuser_password);
        workload::target_at(&host, member.pg_port, "postgres", password, application_name)
    }

    /// The member that leads, as the members say.
    pub async fn leader(&self) -> Option<&Member> {
        let views = self.views().await;
        let name = view::newest(&views)?.leader()?;
        self.members.iter().find(|member| member.name == name)
    }

    /// What still keeps the cluster from being whole; `None` when nothing does: etcd has all its
    /// members, every agent names the same leader, the standbys stream and are synchronous, and a
    /// write through the proxy can be read back.
    pub async fn waiting_for(&self) -> Option<String> {
        for member in &self.members {
            let health = http::get(member.etcd_address, "/health", ETCD_LIMIT).await;
            if !matches!(health, Ok((200, _))) {
                return Some(format!("the etcd of {}", member.name));
            }
        }
        let wanted = self.members.iter();
        let wanted: Vec<Wanted> =
            wanted.map(|member| Wanted { name: member.name.clone(), dr: false }).collect();
        let synchronous = self.settings.synchronous_mode.standbys();
        if let Some(what) = view::waiting_for(&self.views().await, &wanted, synchronous) {
            return Some(what);
        }
        let lost = |member: &&Member| {
            member.agent.pid().is_none() || process::postmaster_of(&member.host.data_dir).is_none()
        };
        if let Some(member) = self.members.iter().find(lost) {
            return Some(format!("the processes of {}", member.name));
        }
        if self.proxy.pid().is_none() {
            return Some("the proxy".to_owned());
        }
        let probe = self.through_proxy("pgherd-lab-probe");
        match workload::probe(&probe, PROBE_LIMIT).await {
            Ok(()) => None,
            Err(error) => Some(format!("a write through the proxy ({error})")),
        }
    }

    /// Whether a member's etcd leads the others; nothing if it does not say.
    pub async fn leads_etcd(&self, member: &Member) -> Option<bool> {
        let (status, text) = http::get(member.etcd_address, "/metrics", ETCD_LIMIT).await.ok()?;
        let text = String::from_utf8(text).ok().filter(|_| status == 200)?;
        let value = text.lines().find_map(|line| line.strip_prefix("etcd_server_is_leader "))?;
        Some(value.trim() == "1")
    }

    /// What a member's agent has on `/metrics`.
    ///
    /// # Errors
    /// It does not answer in time.
    pub async fn metrics(&self, member: &Member) -> io::Result<String> {
        let address = (network::address(member.index), REST_PORT).into();
        let (status, text) = http::get(address, "/metrics", METRICS_LIMIT).await?;
        match status {
            200 => String::from_utf8(text).map_err(io::Error::other),
            _ => Err(io::Error::other(format!("{address} answered /metrics with {status}"))),
        }
    }

    async fn views(&self) -> Vec<Option<View>> {
        let address = |member: &Member| (network::address(member.index), REST_PORT).into();
        let members: Vec<SocketAddr> = self.members.iter().map(address).collect();
        view::ask_all(&members).await
    }

    /// Undoes every fault that is undone by letting go: the network is whole, nothing is frozen or
    /// full, and everything may be started again. What stopped by itself comes back later.
    ///
    /// # Errors
    /// The kernel refused.
    pub fn heal(&self) -> Result<(), MendError> {
        self.ground.network.heal();
        for member in &self.members {
            if let Some(group) = &member.host.group {
                group.thaw().map_err(|source| MendError::Thaw(member.name.clone(), source))?;
            }
            if let Some(volume) = &member.volume {
                volume.empty()?;
            }
            member.agent.release();
            member.etcd.release();
        }
        Ok(())
    }
}

impl Member {
    /// Kills every process of its host, its etcd's too; nothing is started again before
    /// [`Cluster::heal`].
    ///
    /// # Errors
    /// The kernel refused, or a process survived.
    pub async fn lose_host(&self) -> Result<(), HostError> {
        self.agent.hold();
        self.etcd.hold();
        self.host.kill_all_at_once(self.agent.pid()).await
    }

    /// Freezes every process of its host, its etcd's too, until [`Cluster::heal`].
    ///
    /// # Errors
    /// The kernel refused, or processes appear faster than they can be stopped.
    pub async fn freeze(&self) -> Result<(), HostError> {
        match self.host.freeze(self.agent.pid()).await? {
            Frozen::Group => Ok(()),
            // Nobody would wake these. A fault that did not happen is an error.
            frozen @ Frozen::Signals(_) => {
                self.host.thaw(&frozen)?;
                Err(HostError::NotFrozen { host: self.name.clone() })
            }
        }
    }

    /// Freezes every process of its host for so long, from the moment at which the last one stands
    /// still. Cancel safety: [`Cluster::heal`] thaws.
    ///
    /// # Errors
    /// The kernel refused.
    pub async fn stall(&self, length: Duration) -> Result<(), HostError> {
        self.freeze().await?;
        tokio::time::sleep(length).await;
        self.host.thaw(&Frozen::Group)
    }

    /// Its data directory's own file system, if it has one.
    #[must_use]
    pub fn volume(&self) -> Option<&Volume> {
        self.volume.as_ref()
    }
}

/// A fault cannot be undone.
#[derive(Debug, thiserror::Error)]
pub enum MendError {
    /// A frozen host.
    #[error("cannot thaw {0}: {1}")]
    Thaw(String, #[source] io::Error),
    /// A full disk.
    #[error(transparent)]
    Volume(#[from] VolumeError),
}

/// Starts the programs of a cluster whose files are there.
struct Starter<'a> {
    plan: &'a Plan,
    files: &'a files::Files,
    ground: &'a Ground,
}

impl Starter<'_> {
    fn start_all(&self) -> Result<(Vec<Member>, Service), ClusterError> {
        let program = tools::etcd()?;
        let files = self.files;
        let etcd: Vec<Service> = files
            .etcd
            .iter()
            .enumerate()
            .map(|(host, member)| {
                self.ground.start(host, member.service(&files.etcd, &program, RESTART_AFTER))
            })
            .collect();
        let members = files.members.iter().zip(etcd).enumerate();
        let members = members.map(|(index, (names, etcd))| Member {
            name: names.name.clone(),
            index,
            host: Host {
                name: names.name.clone(),
                data_dir: names.data_dir(),
                state_dir: names.state_dir(),
                group: Some(self.ground.group(index).clone()),
            },
            agent: self.start_own(index, "agent", &names.config, &names.name),
            etcd,
            etcd_address: files.etcd[index].client(),
            pg_port: names.pg_port,
            socket_dir: names.socket_dir(),
            volume: self.plan.volumes.then(|| Volume::at(&names.mount_point())),
        });
        let members: Vec<Member> = members.collect();
        let client = members.len();
        let proxy = self.start_own(client, "proxy", &files.proxy_config, "proxy");
        Ok((members, proxy))
    }

    fn start_own(&self, host: usize, command: &str, config: &Path, name: &str) -> Service {
        let spec = Spec {
            name: name.to_owned(),
            program: self.plan.program.clone(),
            arguments: vec![command.into(), "-c".into(), config.into()],
            log: self.plan.directory.join(format!("{name}.log")),
            restart_after: RESTART_AFTER,
            group: None,
        };
        self.ground.start(host, spec)
    }
}

/// The members of etcd, one on each host.
fn etcd_members(directory: &Path, count: usize) -> Vec<etcd::Member> {
    let member = |host| {
        let name = format!("etcd-{}", host + 1);
        etcd::Member {
            data_dir: directory.join(&name),
            name,
            address: network::address(host),
            client_port: ETCD_PORTS[0],
            peer_port: ETCD_PORTS[1],
        }
    };
    (0..count).map(member).collect()
}

/// Ends what runs in this directory, and unmounts what is mounted there.
fn sweep_directory(directory: &Path, program: &Path) -> Result<(), ClusterError> {
    let own = program.file_name().and_then(|name| name.to_str()).unwrap_or("pgherd");
    for pid in process::of_cluster_in(directory, own) {
        process::signal(pid, rustix::process::Signal::KILL)
            .map_err(|source| ClusterError::File { path: directory.to_owned(), source })?;
    }
    Ok(volume::release_below(directory)?)
}
