//! A cluster on hosts of a network under writers that never stop, and the books about them: what
//! the faults of [`crate::hosts`] and [`crate::rounds`] happen to.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use lab::cluster::{Cluster, Member, Plan, Settings};
use lab::ledger::Ack;
use lab::workload;
use tokio::time::Instant;

use crate::books::{Audit, Books, Paces, SQL_LIMIT};
use crate::say;

/// How long a new cluster may take until it is whole.
const START_LIMIT: Duration = Duration::from_secs(240);
/// How long a write may be out of reach; every lease is shorter.
const ACK_LIMIT: Duration = Duration::from_secs(90);
/// How often the cluster is looked at.
const POLL: Duration = Duration::from_millis(200);
/// How often in a row it has to be whole.
const WHOLE_IN_A_ROW: u32 = 3;

/// The cluster and its books. Everything ends when this is dropped.
pub(crate) struct Stage {
    pub(crate) cluster: Cluster,
    pub(crate) books: Books,
}

impl Stage {
    /// A cluster that is whole, and under its writers. `run` tells how often this cluster was
    /// started before: its writers' identifiers are new, and its table is kept.
    ///
    /// # Errors
    /// The cluster cannot be had, or does not get whole.
    pub(crate) async fn start(plan: &Plan, paces: Paces, run: u32) -> anyhow::Result<Stage> {
        let cluster = Cluster::start(plan)?;
        until_whole(&cluster, START_LIMIT).await.with_context(|| {
            format!("the logs are in {}, unless it is a temporary one", plan.directory.display())
        })?;
        let direct = cluster.members.iter();
        let direct = direct.map(|member| cluster.on_its_host(member, "pgherd-bench-direct"));
        let entry = cluster.through_proxy("pgherd-bench");
        let books = Books::open(entry, direct, paces, run).await?;
        let stage = Stage { cluster, books };
        stage.next_ack(Duration::ZERO).await.context("the writers get no answer")?;
        Ok(stage)
    }

    /// The member that leads.
    ///
    /// # Errors
    /// No member names one.
    pub(crate) async fn leader(&self) -> anyhow::Result<&Member> {
        self.cluster.leader().await.context("no member names a leader")
    }

    /// The first acknowledgement through the proxy of an insert sent after `after`.
    ///
    /// # Errors
    /// There is none for a long time.
    pub(crate) async fn next_ack(&self, after: Duration) -> anyhow::Result<Ack> {
        self.books.next_ack(after, ACK_LIMIT).await
    }

    /// Waits until the cluster is whole.
    ///
    /// # Errors
    /// It is not within `limit`; what it waits for.
    pub(crate) async fn until_whole(&self, limit: Duration) -> anyhow::Result<()> {
        until_whole(&self.cluster, limit).await
    }

    /// Asks the present primary for everything that was acknowledged, now and `before` (first and
    /// last identifier of each range), and the ledger for what must not be.
    ///
    /// # Errors
    /// The table cannot be read.
    pub(crate) async fn audit(&mut self, before: &[(i64, i64)]) -> anyhow::Result<Audit> {
        let target = self.cluster.through_proxy("pgherd-bench-audit");
        self.books.audit(&target, before).await
    }

    /// Forgets what the last audit found good.
    ///
    /// # Errors
    /// The table cannot be changed.
    pub(crate) async fn close(&mut self) -> anyhow::Result<()> {
        let target = self.cluster.through_proxy("pgherd-bench-audit");
        self.books.close(&target).await
    }

    /// Runs a statement on the primary, through the proxy.
    ///
    /// # Errors
    /// It failed.
    pub(crate) async fn execute(&self, statement: &str) -> anyhow::Result<()> {
        let target = self.cluster.through_proxy("pgherd-bench");
        Ok(workload::execute(&target, statement, SQL_LIMIT).await?)
    }
}

async fn until_whole(cluster: &Cluster, limit: Duration) -> anyhow::Result<()> {
    let until = Instant::now() + limit;
    let mut in_a_row = 0;
    loop {
        let waits = cluster.waiting_for().await;
        in_a_row = if waits.is_none() { in_a_row + 1 } else { 0 };
        if in_a_row == WHOLE_IN_A_ROW {
            return Ok(());
        }
        if Instant::now() >= until {
            let what = waits.unwrap_or_else(|| "nothing, at last".to_owned());
            bail!("the cluster is not whole after {limit:?}; it waits for {what}");
        }
        tokio::time::sleep(POLL).await;
    }
}

/// What to start in `directory`.
pub(crate) fn plan(
    program: &Path,
    directory: PathBuf,
    settings: Settings,
    volumes: bool,
) -> anyhow::Result<Plan> {
    let program = std::path::absolute(program).context("the path of pgherd")?;
    let directory = std::path::absolute(directory).context("the path of the directory")?;
    say(&format!("a cluster of {} in {}", settings.members, directory.display()));
    Ok(Plan { directory, program, settings, volumes })
}
