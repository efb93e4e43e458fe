//! Servers that nobody watches: what an operator's script does about a fault.

use std::fs;
use std::time::Duration;

use anyhow::{Context, ensure};
use lab::ground::Ground;
use lab::workload;
use tokio::time::Instant;

use super::node::{Hands, Node, conninfo, write};
use crate::field::kinds::{Mode, Shape};

/// How long one statement may take.
const SQL_LIMIT: Duration = Duration::from_secs(5);
/// How long a server may take to follow.
const FOLLOW_LIMIT: Duration = Duration::from_secs(60);
/// How often it is looked at.
const POLL: Duration = Duration::from_millis(100);

/// Everything that a script has.
pub(super) struct Script<'a> {
    pub(super) ground: &'a Ground,
    pub(super) nodes: &'a [Node],
    pub(super) hands: &'a Hands,
    pub(super) shape: Shape,
    /// What the servers load at their start.
    pub(super) libraries: Option<&'static str>,
}

impl Script<'_> {
    /// A primary, which is the first, and its standbys.
    pub(super) async fn set_up(&self) -> anyhow::Result<()> {
        self.set_up_first().await?;
        let (first, rest) = self.nodes.split_first().context("there are servers")?;
        for node in rest {
            self.hands.copy(self.ground, node, first).await?;
            self.point(node, Some(first))?;
            self.hands.start(self.ground, node).await?;
        }
        Ok(())
    }

    /// The first alone.
    pub(super) async fn set_up_first(&self) -> anyhow::Result<()> {
        let first = self.nodes.first().context("there are servers")?;
        self.hands.initdb(self.ground, first).await?;
        let configuration = first.data_dir().join("postgresql.conf");
        let mut text = fs::read_to_string(&configuration)?;
        text.push_str("wal_log_hints = on\nwal_keep_size = '512MB'\n");
        text.push_str(&format!("max_connections = {}\n", self.shape.connections()));
        let names: Vec<&str> = self.nodes.iter().map(|node| node.name.as_str()).collect();
        let names = names.join(", ");
        let rule = match self.shape.mode {
            Mode::Async => String::new(),
            // Nobody changes it, so that it is as strict as it can be.
            Mode::On | Mode::Strict => format!("FIRST 1 ({names})"),
            Mode::Quorum => format!("ANY 1 ({names})"),
        };
        text.push_str(&format!("synchronous_standby_names = '{rule}'\n"));
        if let Some(libraries) = self.libraries {
            text.push_str(&format!("shared_preload_libraries = '{libraries}'\n"));
        }
        write(&configuration, &text, self.hands.owner)?;
        self.hands.start(self.ground, first).await
    }

    /// Whom a server is to follow from its next start or reload on.
    fn point(&self, node: &Node, upstream: Option<&Node>) -> anyhow::Result<()> {
        let text = upstream.map_or_else(String::new, |upstream| {
            format!("primary_conninfo = '{}'\n", conninfo(upstream, node))
        });
        write(&node.data_dir().join("postgresql.auto.conf"), &text, self.hands.owner)
    }

    /// Makes the newest standby that answers the primary, and lets the other ones that answer
    /// follow it.
    pub(super) async fn fail_over(&self, lost: &Node) -> anyhow::Result<()> {
        const RECEIVED: &str = "SELECT (pg_last_wal_receive_lsn() - '0/0')::bigint";
        let mut standbys = Vec::new();
        for node in self.nodes.iter().filter(|node| node.host != lost.host) {
            let target = over_the_network(node);
            if let Ok(position) = workload::integers(&target, RECEIVED, SQL_LIMIT).await {
                standbys.push((position, node));
            }
        }
        standbys.sort_by_key(|(position, node)| (std::cmp::Reverse(position.clone()), node.host));
        let (_, new) = standbys.first().context("no standby answers")?;
        self.promote(new).await?;
        for (_, other) in &standbys[1..] {
            self.follow(other, new).await?;
        }
        Ok(())
    }

    async fn promote(&self, new: &Node) -> anyhow::Result<()> {
        let statement = "SELECT pg_promote(true)";
        Ok(workload::execute(&over_the_network(new), statement, FOLLOW_LIMIT).await?)
    }

    async fn follow(&self, node: &Node, upstream: &Node) -> anyhow::Result<()> {
        self.point(node, Some(upstream))?;
        let target = over_the_network(node);
        Ok(workload::execute(&target, "SELECT pg_reload_conf()", SQL_LIMIT).await?)
    }

    /// Another primary, as planned.
    pub(super) async fn switch_over(&self, from: &Node, to: &Node) -> anyhow::Result<()> {
        self.hands.stop(self.ground, from).await?;
        self.promote(to).await?;
        for node in self.nodes.iter().filter(|n| n.host != from.host && n.host != to.host) {
            self.follow(node, to).await?;
        }
        self.point(from, Some(to))?;
        write(&from.data_dir().join("standby.signal"), "", self.hands.owner)?;
        self.hands.start(self.ground, from).await
    }

    /// After a promotion, or pg_rewind finds the new primary on the old one's timeline, and nothing
    /// to do.
    pub(super) async fn checkpoint(&self, primary: &Node) -> anyhow::Result<()> {
        let target = primary.on_its_host("pgherd-bench-operator");
        Ok(workload::execute(&target, "CHECKPOINT", FOLLOW_LIMIT).await?)
    }

    /// A former primary becomes a standby of `primary`.
    pub(super) async fn rejoin(&self, node: &Node, primary: &Node) -> anyhow::Result<()> {
        if lab::process::postmaster_of(&node.data_dir()).is_some() {
            self.hands.stop(self.ground, node).await?;
        }
        self.hands.rewind(self.ground, node, primary).await?;
        self.point(node, Some(primary))?;
        self.hands.start(self.ground, node).await
    }

    /// Waits until a server accepts connections.
    pub(super) async fn until_answers(&self, node: &Node) -> anyhow::Result<()> {
        let until = Instant::now() + FOLLOW_LIMIT;
        let target = node.on_its_host("pgherd-bench-operator");
        while let Err(error) = workload::execute(&target, "SELECT 1", SQL_LIMIT).await {
            ensure!(Instant::now() < until, "{} does not answer: {error}", node.name);
            tokio::time::sleep(POLL).await;
        }
        Ok(())
    }
}

/// As an operator elsewhere reaches it.
fn over_the_network(node: &Node) -> workload::Target {
    let host = node.address().to_string();
    workload::target_at(&host, node.port, "postgres", "none", "pgherd-bench-operator")
}
