//! A whole cluster on hosts of a [`Network`]: each member's agent, guard and PostgreSQL and one
//! member of etcd stand in a host's namespace and cgroup; one more host is the clients', with the
//! proxy. The thread that starts a cluster is on the clients' host as long as the cluster is there.
//!
//! Everything is killed, unmounted and removed when the [`Cluster`] is dropped, after a panic too.

mod files;
mod settings;

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::cgroup::Group;
use crate::etcd;
use crate::host::{Frozen, Host, HostError};
use crate::http;
use crate::network::{self, Inside, Network, NetworkError};
use crate::process;
use crate::secret::NoRandomness;
use crate::service::{Service, Spec};
use crate::tools::{self, Missing, NoUser};
use crate::view::{self, View, Wanted};
use crate::volume::{self, Volume, VolumeError};
use crate::workload::{self, Target};

pub use settings::{FailoverMode, Settings, SynchronousMode, Unknown, dynamic};

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
/// How long processes may take to be gone after SIGKILL.
const GONE_LIMIT: Duration = Duration::from_secs(10);
/// How long the write that proves health may take.
const PROBE_LIMIT: Duration = Duration::from_secs(3);
/// How long an agent may take for its metrics, on a loaded machine.
const METRICS_LIMIT: Duration = Duration::from_secs(3);
/// How long a member of etcd may take to say how it is.
const ETCD_LIMIT: Duration = Duration::from_secs(1);

/// A cluster cannot be had here.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    /// No network.
    #[error(transparent)]
    Network(#[from] NetworkError),
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
    /// No cgroups.
    #[error("cannot make the cgroup {name}: the hosts of a cluster need root and cgroup v2")]
    NoGroup {
        /// Its name.
        name: String,
    },
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
    // What follows goes in this order: processes, file systems, and the thread leaves before the
    // network ends.
    _groups: Groups,
    _mounts: Mounts,
    _inside: Inside,
    /// Its network.
    pub network: Network,
}

impl Cluster {
    /// Writes the files and starts everything; it will take a while to be whole.
    ///
    /// # Errors
    /// What is missing; nothing is left running.
    pub fn start(plan: &Plan) -> Result<Cluster, ClusterError> {
        sweep();
        sweep_directory(&plan.directory, &plan.program)?;
        let mounts = Mounts(plan.directory.clone());
        let files = files::Files::prepare(plan)?;
        let names: Vec<&str> = files.members.iter().map(|member| member.name.as_str()).collect();
        let network = Network::new(&[&names[..], &["client"]].concat())?;
        let mut groups = Groups(Vec::new());
        for host in 0..=names.len() {
            groups.0.push(group(network.name(host))?);
        }
        let inside = network.enter(names.len())?;
        let starter = Starter { plan, files: &files, network: &network };
        let (members, proxy) = starter.start_all(&groups.0)?;
        Ok(Cluster {
            members,
            settings: plan.settings,
            proxy,
            superuser_password: files.passwords.superuser.clone(),
            _groups: groups,
            _mounts: mounts,
            _inside: inside,
            network,
        })
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
        self.network.heal();
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

/// The file systems mounted below a directory, unmounted when dropped.
struct Mounts(PathBuf);

impl Drop for Mounts {
    fn drop(&mut self) {
        if let Err(error) = volume::release_below(&self.0) {
            tracing::warn!(%error, "a volume stays mounted");
        }
    }
}

/// The hosts' cgroups, destroyed when dropped.
struct Groups(Vec<Group>);

impl Drop for Groups {
    fn drop(&mut self) {
        // All at the same time, so that nobody starts an election about the others' going.
        for group in &self.0 {
            drop(group.thaw().and_then(|()| group.kill()));
        }
        for group in &self.0 {
            if let Err(error) = group.destroy(GONE_LIMIT) {
                tracing::warn!(%error, "a host of the laboratory stays");
            }
        }
    }
}

/// Starts the programs of a cluster whose files are there.
struct Starter<'a> {
    plan: &'a Plan,
    files: &'a files::Files,
    network: &'a Network,
}

impl Starter<'_> {
    fn start_all(&self, groups: &[Group]) -> Result<(Vec<Member>, Service), ClusterError> {
        let program = tools::etcd()?;
        let files = self.files;
        let etcd: Vec<Service> = files
            .etcd
            .iter()
            .enumerate()
            .map(|(host, member)| {
                let spec = member.service(&files.etcd, &program, RESTART_AFTER);
                Service::start(self.on_host(host, spec, groups))
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
                group: groups.get(index).cloned(),
            },
            agent: self.start_own(index, "agent", &names.config, &names.name, groups),
            etcd,
            etcd_address: files.etcd[index].client(),
            pg_port: names.pg_port,
            socket_dir: names.socket_dir(),
            volume: self.plan.volumes.then(|| Volume::at(&names.mount_point())),
        });
        let members: Vec<Member> = members.collect();
        let client = members.len();
        let proxy = self.start_own(client, "proxy", &files.proxy_config, "proxy", groups);
        Ok((members, proxy))
    }

    fn start_own(
        &self,
        host: usize,
        command: &str,
        config: &Path,
        name: &str,
        groups: &[Group],
    ) -> Service {
        let spec = Spec {
            name: name.to_owned(),
            program: self.plan.program.clone(),
            arguments: vec![command.into(), "-c".into(), config.into()],
            log: self.plan.directory.join(format!("{name}.log")),
            restart_after: RESTART_AFTER,
            group: None,
        };
        Service::start(self.on_host(host, spec, groups))
    }

    fn on_host(&self, host: usize, spec: Spec, groups: &[Group]) -> Spec {
        let (program, arguments) = self.network.on_host(host, &spec.program, spec.arguments);
        Spec { program, arguments, group: groups.get(host).cloned(), ..spec }
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

/// A host's cgroup, named as its namespace.
fn group(name: &str) -> Result<Group, ClusterError> {
    Group::create(name).ok_or_else(|| ClusterError::NoGroup { name: name.to_owned() })
}

/// Ends what processes left behind that were killed: the hosts of their clusters with everything
/// that runs there, and their networks.
pub fn sweep() {
    let is_left = |name: &str| network::owner(name).is_some_and(|pid| !process::is_alive(pid));
    drop(Groups(Group::find(is_left)));
    network::sweep();
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
