//! The running demo: its programs, hosts and relays, and `demo.json` about them.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context;
use lab::cgroup::Group;
use lab::host::{Frozen, Host};
use lab::process;
use lab::relay::{Direction, Relay};
use lab::service::{Service, Spec};
use lab::view::{self, Synchronous, View, Wanted};
use lab::volume::{self, Volume};
use lab::workload;

use super::files::{self, DemoFile, NodeFile};
use super::layout::{Layout, NodePlan};

/// How long after its death a program is started again.
pub(super) const RESTART_AFTER: Duration = Duration::from_secs(3);
/// How long an agent may take to stop its PostgreSQL cleanly.
const AGENT_STOP_LIMIT: Duration = Duration::from_secs(30);
/// How long a proxy or a member of etcd may take to stop.
const OTHER_STOP_LIMIT: Duration = Duration::from_secs(5);
/// How long processes may take to be gone after SIGKILL.
const GONE_LIMIT: Duration = Duration::from_secs(10);
/// How often the processes are looked up for `demo.json`.
const FILE_PERIOD: Duration = Duration::from_millis(500);
/// How long the write that proves health may take.
const PROBE_LIMIT: Duration = Duration::from_secs(3);

/// The network of one node.
pub(super) struct Relays {
    /// Its ways to etcd, one per endpoint.
    pub etcd: Vec<Relay>,
    /// Others' way to its PostgreSQL.
    pub pg: Relay,
    /// Others' way to its REST API.
    pub rest: Relay,
}

impl Relays {
    async fn start(plan: &NodePlan, endpoints: &[SocketAddr]) -> anyhow::Result<Relays> {
        let local = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let mut etcd = Vec::new();
        for (port, endpoint) in plan.etcd_relay_ports.iter().zip(endpoints) {
            etcd.push(Relay::start(*port, *endpoint).await?);
        }
        let pg = Relay::start(plan.pg_relay_port, local(plan.pg_port)).await?;
        let rest = Relay::start(plan.rest_relay_port, local(plan.rest_port)).await?;
        Ok(Relays { etcd, pg, rest })
    }
}

/// One node.
pub(super) struct Node {
    /// Names and places.
    pub plan: NodePlan,
    /// Its processes.
    pub host: Host,
    /// Its agent.
    pub agent: Service,
    /// Its network.
    pub relays: Relays,
}

/// Everything that runs.
pub(super) struct Herd {
    /// What was planned.
    pub layout: Layout,
    /// The members of its own etcd.
    pub etcd: Vec<Service>,
    /// The nodes.
    pub nodes: Vec<Node>,
    /// The proxy.
    pub proxy: Service,
}

impl Herd {
    /// Writes the files and starts everything.
    ///
    /// # Errors
    /// A file cannot be written, or a relay's port is taken.
    pub(super) async fn start(layout: Layout) -> anyhow::Result<Herd> {
        let endpoints = resolve(&layout.endpoints).await?;
        files::prepare(&layout)?;
        for plan in layout.nodes.iter().filter(|plan| plan.volume) {
            Volume::mount(&plan.image(), &plan.mount_point(), layout.owner)?;
        }
        // The relays first: they are all that can still fail here. Volumes are released by
        // [`sweep`], also after a failure.
        let mut relays = Vec::new();
        for plan in &layout.nodes {
            relays.push(Relays::start(plan, &endpoints).await?);
        }
        let etcd = match &layout.etcd_program {
            None => Vec::new(),
            Some(program) => layout
                .etcd
                .iter()
                .map(|member| Service::start(member.service(&layout.etcd, program, RESTART_AFTER)))
                .collect(),
        };
        let nodes = layout.nodes.iter().zip(relays);
        let nodes = nodes.map(|(plan, relays)| start_node(&layout, plan, relays)).collect();
        let proxy = Service::start(Spec {
            name: "proxy".to_owned(),
            program: layout.own_program.clone(),
            arguments: vec!["proxy".into(), "-c".into(), layout.proxy_config().into()],
            log: layout.dir.join("proxy.log"),
            restart_after: RESTART_AFTER,
            group: None,
        });
        Ok(Herd { layout, etcd, nodes, proxy })
    }

    /// The node of this name.
    pub(super) fn node(&self, name: &str) -> Option<&Node> {
        self.nodes.iter().find(|node| node.plan.name == name)
    }

    /// Asks every node.
    pub(super) async fn views(&self) -> Vec<Option<View>> {
        let local = |plan: &NodePlan| SocketAddr::from((Ipv4Addr::LOCALHOST, plan.rest_port));
        let members: Vec<SocketAddr> = self.layout.nodes.iter().map(local).collect();
        view::ask_all(&members).await
    }

    /// How to reach the database on `port` as its superuser.
    pub(super) fn target(&self, port: u16, application_name: &str) -> workload::Target {
        workload::target(port, "postgres", &self.layout.kept.superuser_password, application_name)
    }

    /// What still keeps the cluster from being healthy; `None` when nothing does: a leader that
    /// every member names, standbys that stream and are in the quorum, and a write through the
    /// proxy that can be read back.
    pub(super) async fn waiting_for(&self, views: &[Option<View>]) -> Option<String> {
        let nodes = self.layout.nodes.iter();
        let wanted: Vec<Wanted> =
            nodes.map(|plan| Wanted { name: plan.name.clone(), dr: plan.dr }).collect();
        if let Some(what) = view::waiting_for(views, &wanted, Synchronous::All) {
            return Some(what);
        }
        let lost = self.nodes.iter().find(|node| {
            node.agent.pid().is_none() || process::postmaster_of(&node.host.data_dir).is_none()
        });
        if let Some(node) = lost {
            return Some(format!("the processes of {}", node.plan.name));
        }
        let target = self.target(self.layout.read_write_port(), "pgherd-demo-probe");
        match workload::probe(&target, PROBE_LIMIT).await {
            Ok(()) => None,
            Err(error) => Some(format!("a write through the proxy ({error})")),
        }
    }

    /// Cuts a node off from everything: nothing gets out to etcd or to the other nodes, and nothing
    /// gets in.
    pub(super) fn cut_off(&self, node: &Node) {
        let own = &node.relays;
        own.etcd.iter().chain([&own.pg, &own.rest]).for_each(|relay| relay.cut(Direction::Both));
        let sources = node.sources();
        for other in self.nodes.iter().filter(|other| other.plan.name != node.plan.name) {
            other.relays.pg.cut_sources(Arc::clone(&sources));
            other.relays.rest.cut_sources(Arc::clone(&sources));
        }
    }

    /// Mends the whole network.
    pub(super) fn heal(&self) {
        for Node { relays, .. } in &self.nodes {
            relays.etcd.iter().chain([&relays.pg, &relays.rest]).for_each(Relay::heal);
        }
    }

    /// Keeps `demo.json` current, for ever.
    pub(super) async fn keep_file(&self) {
        let mut written = None;
        loop {
            let file = self.file().await;
            if written.as_ref() != Some(&file) {
                match self.write_file(&file) {
                    Ok(()) => written = Some(file),
                    Err(error) => tracing::warn!(error = format!("{error:#}"), "no demo.json"),
                }
            }
            tokio::time::sleep(FILE_PERIOD).await;
        }
    }

    /// Writes `demo.json`.
    ///
    /// # Errors
    /// It cannot be written.
    pub(super) fn write_file(&self, file: &DemoFile) -> anyhow::Result<()> {
        let text = serde_json::to_string_pretty(file)? + "\n";
        files::write_private(&files::demo_file(&self.layout.dir), &text)
    }

    /// What `demo.json` should say now.
    pub(super) async fn file(&self) -> DemoFile {
        let places: Vec<(PathBuf, PathBuf)> = self
            .nodes
            .iter()
            .map(|node| (node.host.state_dir.clone(), node.host.data_dir.clone()))
            .collect();
        // All of /proc is read: not on the thread that carries the cluster's network.
        let look = move || -> Vec<(Option<u32>, Option<u32>)> {
            let pids = places.iter().map(|(state_dir, data_dir)| {
                (process::guard_of(state_dir), process::postmaster_of(data_dir))
            });
            pids.collect()
        };
        let pids = tokio::task::spawn_blocking(look).await.unwrap_or_default();
        let layout = &self.layout;
        let nodes = self.nodes.iter().enumerate().map(|(index, node)| {
            let (guard_pid, postmaster_pid) = pids.get(index).copied().unwrap_or_default();
            NodeFile {
                name: node.plan.name.clone(),
                agent_pid: node.agent.pid(),
                guard_pid,
                postmaster_pid,
                data_dir: node.plan.data_dir(),
                pg_port: node.plan.pg_port,
                rest_url: format!("http://127.0.0.1:{}", node.plan.rest_port),
                config: node.plan.config.clone(),
            }
        });
        DemoFile {
            pid: std::process::id(),
            scope: layout.kept.scope.clone(),
            dcs: layout.dcs_urls(),
            dcs_pids: self.etcd.iter().map(Service::pid).collect(),
            proxy_pid: self.proxy.pid(),
            proxy_url: format!("http://127.0.0.1:{}", layout.proxy_http_port()),
            read_write: layout.connection_string(layout.read_write_port()),
            read_only: layout.connection_string(layout.read_only_port()),
            nodes: nodes.collect(),
        }
    }

    /// Stops everything, in order, and leaves no process.
    ///
    /// # Errors
    /// Processes are still there.
    pub(super) async fn stop(mut self) -> anyhow::Result<()> {
        self.heal();
        // Who writes on a frozen file system can not even be killed.
        volume::thaw_below(&self.layout.dir);
        for node in &self.nodes {
            // A drill that was interrupted may have left it frozen; thawing what is not is nothing.
            if node.host.group.is_some()
                && let Err(error) = node.host.thaw(&Frozen::Group)
            {
                tracing::debug!(%error, "cannot thaw");
            }
            node.wake();
        }
        // All agents at the same time: nobody is to start an election about the others' going.
        let stopping = self.nodes.iter_mut().map(|node| node.agent.stop(AGENT_STOP_LIMIT));
        let stopping: Vec<_> = stopping.map(Box::pin).collect();
        all(stopping).await;
        for node in &self.nodes {
            node.host.kill_all_at_once(None).await?;
        }
        self.proxy.stop(OTHER_STOP_LIMIT).await;
        let stopping = self.etcd.iter_mut().map(|member| member.stop(OTHER_STOP_LIMIT));
        let stopping: Vec<_> = stopping.map(Box::pin).collect();
        all(stopping).await;
        for node in &self.nodes {
            node.host.group.iter().for_each(Group::remove);
        }
        sweep(&self.layout).await
    }
}

impl Node {
    /// Its own file system, if it has one.
    pub(super) fn volume(&self) -> Option<Volume> {
        self.plan.volume.then(|| Volume::at(&self.plan.mount_point()))
    }

    /// Wakes processes that a drill stopped one by one.
    pub(super) fn wake(&self) {
        for pid in self.host.pids(self.agent.pid()) {
            if let Err(error) = self.host.signal(pid, rustix::process::Signal::CONT) {
                tracing::debug!(%error, "cannot wake");
            }
        }
    }

    /// Tells whether a loopback port is a connection of this node's processes.
    fn sources(&self) -> lab::relay::Sources {
        let (host, agent) = (self.host.clone(), self.agent.pid());
        // A port keeps its owner while its connection lives; looking one up reads much of /proc.
        let known = Mutex::new(std::collections::BTreeMap::new());
        Arc::new(move |port| {
            let mut known = known.lock().unwrap_or_else(PoisonError::into_inner);
            *known.entry(port).or_insert_with(|| process::hold_port(&host.pids(agent), port))
        })
    }
}

/// Runs all of these at the same time.
async fn all<F: Future<Output = ()> + Unpin>(mut futures: Vec<F>) {
    use std::task::Poll;
    std::future::poll_fn(|context| {
        futures.retain_mut(|future| std::pin::Pin::new(future).poll(context).is_pending());
        if futures.is_empty() { Poll::Ready(()) } else { Poll::Pending }
    })
    .await;
}

/// The name of a host's cgroup in the demo that is process `demo`.
pub(super) fn group_name(demo: u32, node: &str) -> String {
    format!("pgherd-demo-{demo}-{node}")
}

fn start_node(layout: &Layout, plan: &NodePlan, relays: Relays) -> Node {
    let group = Group::create(&group_name(std::process::id(), &plan.name));
    let host = Host {
        name: plan.name.clone(),
        data_dir: plan.data_dir(),
        state_dir: plan.state_dir(),
        group: group.clone(),
    };
    let agent = Service::start(Spec {
        name: plan.name.clone(),
        program: layout.own_program.clone(),
        arguments: vec!["agent".into(), "-c".into(), plan.config.clone().into()],
        log: layout.dir.join(format!("{}.log", plan.name)),
        restart_after: RESTART_AFTER,
        group,
    });
    Node { plan: plan.clone(), host, agent, relays }
}

async fn resolve(endpoints: &[String]) -> anyhow::Result<Vec<SocketAddr>> {
    let mut addresses = Vec::new();
    for endpoint in endpoints {
        let found = tokio::net::lookup_host(endpoint).await;
        let mut found = found.with_context(|| format!("cannot resolve the etcd {endpoint}"))?;
        let address = found.next().with_context(|| format!("etcd {endpoint} has no address"))?;
        addresses.push(address);
    }
    Ok(addresses)
}

/// Kills what is left of the cluster in this directory, waits until it is gone, and unmounts its
/// volumes.
///
/// # Errors
/// Processes are still there, or a volume is.
pub(super) async fn sweep(layout: &Layout) -> anyhow::Result<()> {
    sweep_directory(&layout.dir, &layout.own_program).await
}

/// As [`sweep`], for a directory alone.
pub(super) async fn sweep_directory(
    dir: &std::path::Path,
    program: &std::path::Path,
) -> anyhow::Result<()> {
    let own = program.file_name().and_then(|name| name.to_str()).unwrap_or("pgherd");
    volume::thaw_below(dir);
    let left = process::of_cluster_in(dir, own);
    for pid in &left {
        process::signal(*pid, rustix::process::Signal::KILL)
            .with_context(|| format!("cannot kill process {pid}"))?;
    }
    let left = process::wait_gone(left, GONE_LIMIT).await;
    anyhow::ensure!(left.is_empty(), "processes {left:?} are still there after SIGKILL");
    Ok(volume::release_below(dir)?)
}
