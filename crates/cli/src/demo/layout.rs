//! What a demo consists of and where: directories, ports, names. Everything that can be wrong with
//! the request is found here, before anything is changed.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use lab::{etcd, ports, process, secret, tools, volume};
use serde::{Deserialize, Serialize};

use super::DemoArgs;

/// The cluster's name.
pub(super) const SCOPE: &str = "demo";
/// Where all clusters' keys stand.
pub(super) const NAMESPACE: &str = "/service/";
/// Whom PostgreSQL runs as when we are root.
pub(super) use lab::tools::OS_USER;
/// The name of the member for disaster recovery.
const DR_NAME: &str = "dr1";

/// Where the search for a free block begins.
const FIRST_PORT: u16 = 15_000;
/// From one candidate block to the next.
const BLOCK_STEP: u16 = 100;
/// Ports before the nodes': two of the proxy, six of etcd, the proxy's for HTTP, one to spare.
const HEAD_PORTS: u16 = 10;
/// Ports of each node: PostgreSQL, REST, a relay for each of these, and one per etcd endpoint.
const NODE_PORTS: u16 = 10;
/// etcd endpoints for which a node has relay ports.
const ENDPOINTS_MAX: usize = 6;
/// Longest path of a Unix socket, from the kernel's `sockaddr_un` without its final zero.
const SOCKET_PATH_MAX: usize = 107;

/// What a new member of etcd writes at once: it reserves its log.
const ETCD_MIB: u64 = 65;
/// What a new node soon has written: 40 MiB of initdb, and some segments of log.
const NODE_MIB: u64 = 120;
/// What a cluster that exists must be able to write when it starts.
const RESTART_MIB: u64 = 32;

/// What is kept beside the cluster so that it can be started again.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Kept {
    /// The cluster's name.
    pub scope: String,
    /// First port of the block: etcd remembers its addresses, so they must not change.
    pub base_port: u16,
    /// The etcd it uses, if that is not its own.
    #[serde(default)]
    pub dcs: Vec<String>,
    /// Whether each data directory has a file system of its own.
    #[serde(default)]
    pub volumes: bool,
    /// Passwords of the roles `postgres`, `replicator` and `rewinder`.
    pub superuser_password: String,
    /// See above.
    pub replication_password: String,
    /// See above.
    pub rewind_password: String,
}

/// One node's names and places.
#[derive(Debug, Clone)]
pub(super) struct NodePlan {
    /// The member's name.
    pub name: String,
    /// Whether it is the member for disaster recovery.
    pub dr: bool,
    /// Everything of this node but its log and configuration.
    pub directory: PathBuf,
    /// Whether its data directory has a file system of its own.
    pub volume: bool,
    /// PostgreSQL's own port.
    pub pg_port: u16,
    /// The agent's own REST port.
    pub rest_port: u16,
    /// Where others reach its PostgreSQL.
    pub pg_relay_port: u16,
    /// Where others reach its REST.
    pub rest_relay_port: u16,
    /// Where it reaches each etcd endpoint.
    pub etcd_relay_ports: Vec<u16>,
    /// Its configuration file.
    pub config: PathBuf,
}

impl NodePlan {
    pub(super) fn data_dir(&self) -> PathBuf {
        if self.volume { self.mount_point().join("data") } else { self.directory.join("data") }
    }

    /// Where its volume is mounted, if it has one.
    pub(super) fn mount_point(&self) -> PathBuf {
        self.directory.join("volume")
    }

    /// What is mounted there.
    pub(super) fn image(&self) -> PathBuf {
        self.directory.join("volume.img")
    }

    pub(super) fn state_dir(&self) -> PathBuf {
        self.directory.join("state")
    }

    pub(super) fn socket_dir(&self) -> PathBuf {
        self.directory.join("socket")
    }
}

/// A whole demo.
#[derive(Debug, Clone)]
pub(super) struct Layout {
    /// Where it lives; absolute.
    pub dir: PathBuf,
    /// Whether the directory is removed at the end.
    pub temporary: bool,
    /// Whether this cluster existed before.
    pub reused: bool,
    /// Passwords and ports.
    pub kept: Kept,
    /// Why no data directory has a file system of its own; `None` if they have one, or if none was
    /// wanted.
    pub no_volumes: Option<String>,
    /// The dynamic configuration of a new cluster.
    pub dynamic: serde_json::Value,
    /// Members of its own etcd; none if it uses another.
    pub etcd: Vec<etcd::Member>,
    /// etcd's endpoints, as `host:port`.
    pub endpoints: Vec<String>,
    /// The nodes.
    pub nodes: Vec<NodePlan>,
    /// User and group that PostgreSQL runs as, when we are root.
    pub owner: Option<(u32, u32)>,
    /// PostgreSQL's programs.
    pub bin_dir: PathBuf,
    /// The etcd server, if one is to be started.
    pub etcd_program: Option<PathBuf>,
    /// This program.
    pub own_program: PathBuf,
}

impl Layout {
    /// Works out and checks everything. Changes nothing.
    ///
    /// # Errors
    /// The first thing that makes the request impossible.
    pub(super) fn plan(args: &DemoArgs) -> anyhow::Result<Layout> {
        let bin_dir = tools::postgres_bin_dir()?;
        let owner = tools::postgres_owner()?;
        let dir = match &args.dir {
            Some(dir) => std::path::absolute(dir)
                .with_context(|| format!("{} is not a usable path", dir.display()))?,
            None => fresh_temporary()?,
        };
        let before = read_kept(&dir)?;
        check_not_running(&dir)?;
        let dcs = which_dcs(args, before.as_ref())?;
        let endpoints = dcs.iter().map(|url| endpoint(url)).collect::<Result<Vec<_>, _>>()?;
        let etcd_program = if dcs.is_empty() { Some(tools::etcd()?) } else { None };
        let count = args.nodes + u16::from(args.dr);
        let base = base_port(args, before.as_ref(), HEAD_PORTS + NODE_PORTS * count)?;
        let reused = before.is_some();
        let (volumes, no_volumes) = volumes(args, before.as_ref(), &dir);
        let kept = match before {
            Some(kept) => kept,
            None => Kept {
                scope: SCOPE.to_owned(),
                base_port: base,
                dcs: dcs.clone(),
                volumes,
                superuser_password: secret::password()?,
                replication_password: secret::password()?,
                rewind_password: secret::password()?,
            },
        };
        let etcd = match etcd_program {
            Some(_) => etcd::Member::plan(&dir, base + 2, base + 2 + etcd::MEMBERS),
            None => Vec::new(),
        };
        let own = etcd.iter().map(|member| format!("127.0.0.1:{}", member.client_port));
        let endpoints = if dcs.is_empty() { own.collect() } else { endpoints };
        let mut nodes = nodes(&dir, base, args.nodes, args.dr, endpoints.len());
        nodes.iter_mut().for_each(|node| node.volume = volumes);
        let layout = Layout {
            temporary: args.dir.is_none() || args.temporary,
            own_program: super::own_program()?,
            dir,
            reused,
            kept,
            no_volumes,
            dynamic: lab::cluster::dynamic(args.ttl, args.failover_mode),
            etcd,
            endpoints,
            nodes,
            owner,
            bin_dir,
            etcd_program,
        };
        layout.check_paths()?;
        layout.check_space()?;
        Ok(layout)
    }

    /// The proxy's read-write port.
    pub(super) fn read_write_port(&self) -> u16 {
        self.kept.base_port
    }

    /// The proxy's read-only port.
    pub(super) fn read_only_port(&self) -> u16 {
        self.kept.base_port + 1
    }

    /// The port at which the proxy has its metrics.
    pub(super) fn proxy_http_port(&self) -> u16 {
        self.kept.base_port + 8
    }

    /// A connection string for psql.
    pub(super) fn connection_string(&self, port: u16) -> String {
        format!("postgresql://postgres:{}@127.0.0.1:{port}/postgres", self.kept.superuser_password)
    }

    /// The proxy's configuration file.
    pub(super) fn proxy_config(&self) -> PathBuf {
        self.dir.join("proxy.yml")
    }

    /// etcd's endpoints as URLs.
    pub(super) fn dcs_urls(&self) -> Vec<String> {
        self.endpoints.iter().map(|endpoint| format!("http://{endpoint}")).collect()
    }

    /// A cluster that exists only grows slowly; a new one is written as a whole.
    fn check_space(&self) -> anyhow::Result<()> {
        let members = u64::try_from(self.etcd.len()).unwrap_or(u64::MAX);
        let nodes = u64::try_from(self.nodes.len()).unwrap_or(u64::MAX);
        let whole = members.saturating_mul(ETCD_MIB).saturating_add(nodes.saturating_mul(NODE_MIB));
        check_space_for(&self.dir, if self.reused { RESTART_MIB } else { whole })
    }

    fn check_paths(&self) -> anyhow::Result<()> {
        for node in &self.nodes {
            let socket = node.socket_dir().join(format!(".s.PGSQL.{}", node.pg_port));
            if socket.as_os_str().len() > SOCKET_PATH_MAX {
                bail!(
                    "{} is too long a path for a Unix socket ({SOCKET_PATH_MAX} bytes at most): \
                     choose a shorter --dir",
                    socket.display()
                );
            }
        }
        match self.owner {
            Some((uid, _)) => check_traversable(&self.dir, uid),
            None => Ok(()),
        }
    }
}

/// Whether each data directory gets a file system of its own, and why not although it was wanted.
/// A cluster that exists stays as it is.
fn volumes(args: &DemoArgs, before: Option<&Kept>, dir: &Path) -> (bool, Option<String>) {
    let wanted = args.drill && super::drill::wants_volumes(args);
    match before {
        Some(kept) => {
            let missing = wanted && !kept.volumes;
            let why = "the cluster in --dir was made without file systems of its own";
            (kept.volumes, missing.then(|| why.to_owned()))
        }
        None if wanted => {
            let there = dir.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"));
            match volume::possible(there) {
                Ok(()) => (true, None),
                Err(error) => (false, Some(format!("no file system can be mounted: {error}"))),
            }
        }
        None => (false, None),
    }
}

/// Refuses a place whose file system has fewer than `needed` MiB left.
fn check_space_for(dir: &Path, needed: u64) -> anyhow::Result<()> {
    let there = dir.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"));
    // What cannot be asked is not refused: the first write will tell.
    let Ok(found) = rustix::fs::statvfs(there) else { return Ok(()) };
    let available = found.f_bavail.saturating_mul(found.f_frsize) >> 20;
    // Some file systems keep no account at all.
    if found.f_blocks != 0 && available < needed {
        bail!(
            "the file system of {} is full ({available} MiB left, {needed} MiB needed): free \
             space there, or choose another --dir",
            dir.display()
        );
    }
    Ok(())
}

/// The nodes, numbered from 1, and the member for disaster recovery after them.
fn nodes(dir: &Path, base: u16, count: u16, dr: bool, endpoints: usize) -> Vec<NodePlan> {
    let numbered = (1..=count).map(|n| (format!("node{n}"), false));
    let members = numbered.chain(dr.then(|| (DR_NAME.to_owned(), true)));
    let first = base + HEAD_PORTS;
    (0_u16..)
        .zip(members)
        .map(|(index, (name, dr))| {
            let port = first + NODE_PORTS * index;
            let relays = (port + 4..).take(endpoints);
            NodePlan {
                directory: dir.join(&name),
                volume: false,
                config: dir.join(format!("{name}.yml")),
                name,
                dr,
                pg_port: port,
                rest_port: port + 1,
                pg_relay_port: port + 2,
                rest_relay_port: port + 3,
                etcd_relay_ports: relays.collect(),
            }
        })
        .collect()
}

fn kept_file(dir: &Path) -> PathBuf {
    dir.join("herd.json")
}

/// What an earlier demo left in `dir`; `None` for a directory that is empty or not there.
fn read_kept(dir: &Path) -> anyhow::Result<Option<Kept>> {
    let file = kept_file(dir);
    match fs::read(&file) {
        Ok(bytes) => {
            let kept: Kept = serde_json::from_slice(&bytes).with_context(|| {
                format!("{} is damaged: remove the directory, or choose another", file.display())
            })?;
            if kept.scope != SCOPE {
                bail!(
                    "{} holds the cluster {:?}, not {SCOPE:?}: choose another --dir",
                    dir.display(),
                    kept.scope
                );
            }
            Ok(Some(kept))
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let occupied = fs::read_dir(dir).is_ok_and(|mut entries| entries.next().is_some());
            if occupied {
                bail!("{} is not empty and holds no demo: choose another --dir", dir.display());
            }
            Ok(None)
        }
        Err(error) => Err(error).with_context(|| format!("cannot read {}", file.display())),
    }
}

/// Writes down what has to be kept.
pub(super) fn write_kept(layout: &Layout) -> anyhow::Result<()> {
    let text = serde_json::to_string_pretty(&layout.kept)?;
    super::files::write_private(&kept_file(&layout.dir), &text)
}

/// Refuses a directory whose demo runs, or whose processes do.
fn check_not_running(dir: &Path) -> anyhow::Result<()> {
    let own = super::own_program()?;
    let own = own.file_name().and_then(|name| name.to_str()).unwrap_or("pgherd");
    let running = process::of_cluster_in(dir, own);
    if let Some(pid) = running.first() {
        bail!(
            "a demo in {} still has processes (one is {pid}): end it with \
             `pgherd demo --stop --dir {}`",
            dir.display(),
            dir.display()
        );
    }
    Ok(())
}

/// The other etcd to use, if any.
fn which_dcs(args: &DemoArgs, before: Option<&Kept>) -> anyhow::Result<Vec<String>> {
    if args.dcs.len() > ENDPOINTS_MAX {
        bail!("--dcs: {ENDPOINTS_MAX} endpoints at most");
    }
    match before {
        Some(kept) if args.dcs.is_empty() => Ok(kept.dcs.clone()),
        Some(kept) if kept.dcs.is_empty() => {
            bail!("the cluster in this directory has an etcd of its own: leave --dcs out")
        }
        Some(_) | None => Ok(args.dcs.clone()),
    }
}

/// `host:port` of an etcd URL.
fn endpoint(url: &str) -> anyhow::Result<String> {
    let rest = match url.split_once("://") {
        Some(("http", rest)) => rest,
        Some((scheme, _)) => bail!("--dcs {url}: {scheme} is not supported, use http"),
        None => url,
    };
    let rest = rest.trim_end_matches('/');
    match rest.rsplit_once(':') {
        Some((host, port)) if !host.is_empty() && port.parse::<u16>().is_ok() => {
            Ok(rest.to_owned())
        }
        Some(_) => bail!("--dcs {url}: not of the form http://host:port"),
        None if rest.is_empty() => bail!("--dcs {url}: not of the form http://host:port"),
        None => Ok(format!("{rest}:2379")),
    }
}

fn base_port(args: &DemoArgs, before: Option<&Kept>, length: u16) -> anyhow::Result<u16> {
    let wanted = match (args.base_port, before) {
        (Some(wanted), Some(kept)) if wanted != kept.base_port => bail!(
            "the cluster in this directory has its ports from {}: leave --base-port out",
            kept.base_port
        ),
        (Some(wanted), _) => Some(wanted),
        (None, kept) => kept.map(|kept| kept.base_port),
    };
    match wanted {
        Some(base) => match ports::first_taken(base, length) {
            None => Ok(base),
            Some(port) => bail!(
                "port {port} is in use, and the demo needs {base} to {}: end what holds it, or \
                 choose another --base-port",
                u32::from(base) + u32::from(length) - 1
            ),
        },
        None => ports::free_block(FIRST_PORT, BLOCK_STEP, length)
            .with_context(|| format!("no block of {length} free ports from {FIRST_PORT} on")),
    }
}

fn fresh_temporary() -> anyhow::Result<PathBuf> {
    let mut suffix = secret::password()?;
    suffix.truncate(8);
    Ok(std::env::temp_dir().join(format!("pgherd-demo-{suffix}")))
}

/// Refuses a place that the user `uid` cannot enter.
fn check_traversable(dir: &Path, uid: u32) -> anyhow::Result<()> {
    for directory in dir.ancestors() {
        let Ok(metadata) = fs::metadata(directory) else { continue };
        let mode = metadata.permissions().mode();
        let enters = mode & 0o001 != 0 || (metadata.uid() == uid && mode & 0o100 != 0);
        if !enters {
            bail!(
                "PostgreSQL runs as {OS_USER}, who cannot enter {}: choose another --dir",
                directory.display()
            );
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_port_is_used_once() {
        let nodes = nodes(Path::new("/d"), 15_000, 9, true, ENDPOINTS_MAX);
        assert_eq!(nodes.len(), 10);
        let mut all: Vec<u16> = nodes
            .iter()
            .flat_map(|node| {
                let own = [node.pg_port, node.rest_port, node.pg_relay_port, node.rest_relay_port];
                own.into_iter().chain(node.etcd_relay_ports.clone())
            })
            .collect();
        let count = all.len();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), count);
        assert!(all[0] >= 15_000 + HEAD_PORTS);
        assert_eq!(nodes[9].name, DR_NAME);
        assert!(nodes[9].dr && !nodes[8].dr);
    }

    #[test]
    fn etcd_urls_are_understood_or_refused() {
        assert_eq!(endpoint("http://a:1/").ok().as_deref(), Some("a:1"));
        assert_eq!(endpoint("a:1").ok().as_deref(), Some("a:1"));
        assert_eq!(endpoint("http://a").ok().as_deref(), Some("a:2379"));
        for wrong in ["https://a:1", "http://", "http://a:b", "a:99999"] {
            assert!(endpoint(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_foreign_directory_is_refused_and_left_alone() {
        let dir = std::env::temp_dir().join(format!("pgherd-layout-{}", std::process::id()));
        assert!(read_kept(&dir).expect("it is not there").is_none());
        fs::create_dir_all(&dir).expect("a temporary directory");
        assert!(read_kept(&dir).expect("it is empty").is_none());
        fs::write(dir.join("thesis.txt"), "").expect("it is ours");
        let error = read_kept(&dir).expect_err("it is somebody's").to_string();
        assert!(error.contains("holds no demo"), "{error}");
        let other = r#"{"scope":"other","base_port":1,"superuser_password":"",
            "replication_password":"","rewind_password":""}"#;
        fs::write(kept_file(&dir), other).expect("it is ours");
        let error = read_kept(&dir).expect_err("it is another cluster's").to_string();
        assert!(error.contains("\"other\""), "{error}");
        assert_eq!(fs::read_dir(&dir).expect("it is there").count(), 2);
        fs::remove_dir_all(&dir).expect("it is ours");
    }
}
