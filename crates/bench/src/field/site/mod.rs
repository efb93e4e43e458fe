//! One architecture on hosts of its own: what is measured.

mod agents;
mod by_hand;
mod node;
mod repmgr;

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, bail};
use lab::ground::{self, Ground};
use lab::http;
use lab::tools;
use lab::workload::{self, Target};
use tokio::process::Command;
use tokio::time::Instant;

use self::agents::Agents;
use self::by_hand::Script;
use self::node::Hands;
pub(crate) use self::node::Node;
use self::repmgr::Repmgr;
use super::kinds::{Architecture, Shape};
use crate::say;

/// Where a proxy serves writes, on the clients' host.
const ENTRY_PORT: u16 = 5000;
/// The same for reads.
const READ_PORT: u16 = 5001;
/// How long a new site may take until it is whole.
const START_LIMIT: Duration = Duration::from_secs(240);
/// How long one statement may take.
const SQL_LIMIT: Duration = Duration::from_secs(3);
/// How often the site is looked at.
const POLL: Duration = Duration::from_millis(200);
/// How often in a row it has to be whole.
const WHOLE_IN_A_ROW: u32 = 3;
/// Whether it is a standby.
const RECOVERS: &str = "SELECT pg_is_in_recovery()::int::bigint";
/// Who streams from it.
const STREAMING: &str = "SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming'";
/// Who of these acknowledges commits.
const ACKNOWLEDGING: &str = "SELECT count(*) FROM pg_stat_replication \
    WHERE state = 'streaming' AND sync_state IN ('quorum', 'sync')";

/// The programs that sites are made of, beside PostgreSQL's and the distribution's.
#[derive(Debug, Clone)]
pub(crate) struct Programs {
    pub(crate) pgherd: PathBuf,
    /// The directory of Patroni's.
    pub(crate) patroni: PathBuf,
}

/// The PostgreSQL of all sites: the newest one that repmgr is there for, if it is there at all, so
/// that everybody is measured with the same.
///
/// # Errors
/// There is none.
pub(crate) fn postgres_bin_dir() -> Result<PathBuf, tools::Missing> {
    tools::postgres_bin_dir_with("repmgr.so").map_or_else(tools::postgres_bin_dir, Ok)
}

/// Servers with whoever keeps them writable.
pub(crate) struct Site {
    pub(crate) shape: Shape,
    pub(crate) nodes: Vec<Node>,
    hands: Hands,
    keeper: Keeper,
    pub(crate) ground: Ground,
}

/// Who keeps it writable.
enum Keeper {
    /// An operator.
    Nobody,
    /// Daemons that promote; an operator does the rest.
    Repmgr(Repmgr),
    /// Agents, whom nobody helps.
    Agents(Box<Agents>),
}

impl Site {
    /// Makes one in a directory, and waits until it is whole.
    ///
    /// # Errors
    /// What is missing, or did not come up.
    pub(crate) async fn start(
        shape: Shape,
        programs: &Programs,
        directory: &Path,
    ) -> anyhow::Result<Site> {
        ground::sweep();
        let names = (1..=shape.servers).map(|number| format!("node{number}"));
        let hosts: Vec<String> = names.chain(["client".to_owned()]).collect();
        let ground = Ground::new(directory, &hosts)?;
        let hands = Hands::new()?;
        let nodes = (0..shape.servers).map(|host| Node::make(directory, host, hands.owner));
        let nodes = nodes.collect::<anyhow::Result<Vec<Node>>>()?;
        let mut site = Site { shape, nodes, hands, keeper: Keeper::Nobody, ground };
        if shape.architecture.has_agents() {
            let (nodes, hands) = (&site.nodes, &site.hands);
            let plan = agents::Plan { shape, directory, nodes, programs, hands };
            site.keeper = Keeper::Agents(Box::new(Agents::start(&site.ground, &plan)?));
        } else if shape.architecture == Architecture::Repmgr {
            site.keeper = Keeper::Repmgr(Repmgr::start(&site.script(), directory).await?);
        } else {
            site.script().set_up().await?;
        }
        site.until_whole(START_LIMIT).await.with_context(|| {
            format!("{}: the logs are in {}", shape.title(), directory.display())
        })?;
        Ok(site)
    }

    fn script(&self) -> Script<'_> {
        let Site { shape, ground, nodes, hands, .. } = self;
        let libraries = (shape.architecture == Architecture::Repmgr).then_some("repmgr");
        Script { ground, nodes, hands, shape: *shape, libraries }
    }

    /// Where applications go.
    pub(crate) fn entry(&self, application_name: &str) -> Target {
        if self.shape.architecture.has_agents() {
            return workload::target(ENTRY_PORT, "postgres", "none", application_name);
        }
        let servers: Vec<_> = self.nodes.iter().map(|node| (node.address(), node.port)).collect();
        workload::target_among(&servers, "postgres", "none", application_name)
    }

    /// Where writes go, for programs that take one address: nothing here fails over.
    pub(crate) fn entry_address(&self) -> (Ipv4Addr, u16) {
        match self.shape.architecture.has_agents() {
            true => (Ipv4Addr::LOCALHOST, ENTRY_PORT),
            false => (self.nodes[0].address(), self.nodes[0].port),
        }
    }

    /// Where reads go.
    pub(crate) fn read_address(&self) -> (Ipv4Addr, u16) {
        match self.shape.architecture.has_agents() {
            true => (Ipv4Addr::LOCALHOST, READ_PORT),
            // Nobody leads clients to a replica.
            false => self.entry_address(),
        }
    }

    /// pgbench on the clients' host.
    pub(crate) fn pgbench(&self, (address, port): (Ipv4Addr, u16)) -> Command {
        let mut command = Command::new(self.hands.bin_dir.join("pgbench"));
        let (address, port) = (address.to_string(), port.to_string());
        command.args(["-h", &address, "-p", &port, "-U", "postgres"]);
        // Not by its option, which in older versions is the one for its debugging output.
        command.env("PGDATABASE", "postgres");
        command.env("PGPASSWORD", "none").stdin(Stdio::null()).kill_on_drop(true);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// The server that takes writes, as its own host sees it; nothing if none does, or several do.
    pub(crate) async fn primary(&self) -> Option<&Node> {
        let mut primaries = Vec::new();
        for node in &self.nodes {
            let target = node.on_its_host("pgherd-bench-look");
            if let Ok(answer) = workload::integers(&target, RECOVERS, SQL_LIMIT).await
                && answer == [0]
            {
                primaries.push(node);
            }
        }
        match primaries[..] {
            [primary] => Some(primary),
            _ => None,
        }
    }

    /// What still keeps it from being whole: one primary from which everybody else streams, and
    /// acknowledges where commits wait, and a write at the entry that can be read back.
    pub(crate) async fn waiting_for(&self) -> Option<String> {
        let Some(primary) = self.primary().await else {
            return Some("exactly one primary".to_owned());
        };
        let target = primary.on_its_host("pgherd-bench-look");
        let standbys = self.nodes.len().saturating_sub(1);
        let acknowledging = self.shape.acknowledging();
        for (statement, wanted) in [(STREAMING, standbys), (ACKNOWLEDGING, acknowledging)] {
            match workload::integers(&target, statement, SQL_LIMIT).await {
                Ok(count) if count == [i64::try_from(wanted).unwrap_or(i64::MAX)] => {}
                Ok(count) => {
                    return Some(format!("{wanted} standbys of {} ({count:?})", primary.name));
                }
                Err(error) => return Some(format!("{} ({error})", primary.name)),
            }
        }
        match workload::probe(&self.entry("pgherd-bench-probe"), SQL_LIMIT).await {
            Ok(()) => None,
            Err(error) => Some(format!("a write at the entry ({error})")),
        }
    }

    /// Waits until it is whole.
    ///
    /// # Errors
    /// It is not within `limit`; what it waits for.
    pub(crate) async fn until_whole(&self, limit: Duration) -> anyhow::Result<()> {
        let until = Instant::now() + limit;
        let mut in_a_row = 0;
        loop {
            let waits = self.waiting_for().await;
            in_a_row = if waits.is_none() { in_a_row + 1 } else { 0 };
            if in_a_row == WHOLE_IN_A_ROW {
                return Ok(());
            }
            if Instant::now() >= until {
                let what = waits.unwrap_or_else(|| "nothing, at last".to_owned());
                bail!("not whole after {limit:?}; it waits for {what}");
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// Waits until a server is asked where reads go: a proxy may take longer for those than for
    /// writes.
    ///
    /// # Errors
    /// None is within `limit`; what the last try said.
    pub(crate) async fn until_reads(&self, limit: Duration) -> anyhow::Result<()> {
        let until = Instant::now() + limit;
        let (address, port) = self.read_address();
        let (host, name) = (address.to_string(), "pgherd-bench-probe");
        let target = workload::target_at(&host, port, "postgres", "none", name);
        while let Err(error) = workload::integers(&target, RECOVERS, SQL_LIMIT).await {
            if Instant::now() >= until {
                return Err(error).context(format!("no read was served in {limit:?}"));
            }
            tokio::time::sleep(POLL).await;
        }
        Ok(())
    }

    /// The metrics of each member of etcd, if there is one.
    ///
    /// # Errors
    /// One does not answer.
    pub(crate) async fn dcs_metrics(&self) -> anyhow::Result<Vec<String>> {
        let mut all = Vec::new();
        if !self.shape.architecture.has_agents() {
            return Ok(all);
        }
        for node in &self.nodes {
            let address = (node.address(), agents::ETCD_PORTS[0]).into();
            let asked = http::get(address, "/metrics", SQL_LIMIT).await;
            let (_, body) = asked.with_context(|| format!("etcd at {address}"))?;
            all.push(String::from_utf8_lossy(&body).into_owned());
        }
        Ok(all)
    }

    /// Kills every process of a host; nothing of it comes back before [`Site::boot`].
    ///
    /// # Errors
    /// The kernel refused.
    pub(crate) async fn lose(&self, node: &Node) -> anyhow::Result<()> {
        match &self.keeper {
            Keeper::Agents(agents) => agents.hold(node.host),
            Keeper::Repmgr(repmgr) => repmgr.hold(node.host),
            Keeper::Nobody => {}
        }
        Ok(self.ground.kill(node.host).await?)
    }

    /// A lost host is there again: whatever starts by itself does.
    pub(crate) fn boot(&self, node: &Node) {
        match &self.keeper {
            Keeper::Agents(agents) => agents.release(node.host),
            Keeper::Repmgr(repmgr) => repmgr.release(node.host),
            Keeper::Nobody => {}
        }
    }

    /// An operator asks for another primary.
    ///
    /// # Errors
    /// The command, or the script, failed.
    pub(crate) async fn switch_over(&self, from: &Node) -> anyhow::Result<()> {
        let Some(to) = self.nodes.iter().find(|node| node.host != from.host) else {
            // There is no other: what is planned is a restart.
            self.hands.stop(&self.ground, from).await?;
            return self.hands.start(&self.ground, from).await;
        };
        match &self.keeper {
            Keeper::Agents(agents) => agents.switch_over(&self.ground, from, to).await,
            Keeper::Repmgr(repmgr) => repmgr.switch_over(&self.script(), from, to).await,
            Keeper::Nobody => self.script().switch_over(from, to).await,
        }
    }

    /// Whether an operator has to see to it that somebody takes writes.
    pub(crate) fn needs_operator(&self) -> bool {
        matches!(self.keeper, Keeper::Nobody)
    }

    /// Whether an operator has to take a former primary back.
    pub(crate) fn needs_operator_afterwards(&self) -> bool {
        !matches!(self.keeper, Keeper::Agents(_))
    }

    /// What an operator does who finds the primary's PostgreSQL ended, and its host well.
    ///
    /// # Errors
    /// It does not start.
    pub(crate) async fn start_again(&self, node: &Node) -> anyhow::Result<()> {
        self.hands.start(&self.ground, node).await
    }

    /// What an operator does who cannot reach the primary.
    ///
    /// # Errors
    /// No standby can be promoted.
    pub(crate) async fn fail_over_by_hand(&self, lost: &Node) -> anyhow::Result<()> {
        say(&format!("the operator fails over from {}", lost.name));
        self.script().fail_over(lost).await
    }

    /// What an operator does when the former primary's host is well again.
    ///
    /// # Errors
    /// It cannot be rewound, or does not start.
    pub(crate) async fn rejoin_by_hand(&self, node: &Node) -> anyhow::Result<()> {
        // The old one may still take writes: who is the new one is seen at the others.
        for other in self.nodes.iter().filter(|other| other.host != node.host) {
            let target = other.on_its_host("pgherd-bench-look");
            if let Ok(answer) = workload::integers(&target, RECOVERS, SQL_LIMIT).await
                && answer == [0]
            {
                self.script().checkpoint(other).await?;
                return match &self.keeper {
                    Keeper::Repmgr(repmgr) => repmgr.rejoin(&self.script(), node, other).await,
                    _ => self.script().rejoin(node, other).await,
                };
            }
        }
        // There is no other one.
        if lab::process::postmaster_of(&node.data_dir()).is_none() {
            self.start_again(node).await?;
        }
        self.script().until_answers(node).await
    }
}
