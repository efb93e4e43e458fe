//! A cluster on hosts of a network under writers that never stop, and the books about them: what
//! the faults of [`crate::hosts`] and [`crate::rounds`] happen to.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use lab::cluster::{Cluster, Member, Plan, Settings};
use lab::ledger::{Ack, PROXY_WRITER};
use lab::workload::{self, Shared, Writer};
use tokio::time::Instant;

use crate::say;

/// How long a new cluster may take until it is whole.
const START_LIMIT: Duration = Duration::from_secs(240);
/// How long a write may be out of reach; every lease is shorter.
const ACK_LIMIT: Duration = Duration::from_secs(90);
/// How often the cluster is looked at.
const POLL: Duration = Duration::from_millis(200);
/// How often in a row it has to be whole.
const WHOLE_IN_A_ROW: u32 = 3;
/// How often the ledger is looked at.
const LEDGER_POLL: Duration = Duration::from_millis(20);
/// How long a statement of our own may take.
const SQL_LIMIT: Duration = Duration::from_secs(60);

/// Between two inserts of a writer.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Paces {
    /// Through the proxy.
    pub(crate) proxy: Duration,
    /// Straight to each member.
    pub(crate) direct: Duration,
}

/// The cluster, its writers and their ledger. Everything ends when this is dropped.
pub(crate) struct Stage {
    pub(crate) cluster: Cluster,
    pub(crate) ledger: Shared,
    epoch: Instant,
    /// Acknowledged identifiers that were found missing already.
    missing: BTreeSet<i64>,
    /// Violations that have been told already.
    interleaved: usize,
    _writers: Vec<Writer>,
}

/// What an audit found, beside what earlier ones did.
#[derive(Debug, Default)]
pub(crate) struct Audit {
    /// Acknowledged identifiers that are not there.
    pub(crate) missing: BTreeSet<i64>,
    /// Acknowledgements that must not be.
    pub(crate) interleaved: usize,
    /// The first of these in words.
    pub(crate) first: Option<String>,
}

impl Stage {
    /// A cluster that is whole, and under its writers. `run` tells how often this cluster was
    /// started before: its writers' identifiers are new, and its table is kept.
    ///
    /// # Errors
    /// The cluster cannot be had, or does not get whole.
    pub(crate) async fn start(plan: &Plan, paces: Paces, run: u32) -> anyhow::Result<Stage> {
        /// Far more than a writer gets through before the next run.
        const IDS_PER_RUN: i64 = 1_000_000_000;
        let cluster = Cluster::start(plan)?;
        until_whole(&cluster, START_LIMIT).await.with_context(|| {
            format!("the logs are in {}, unless it is a temporary one", plan.directory.display())
        })?;
        let through_proxy = cluster.through_proxy("pgherd-bench");
        if run == 0 {
            workload::create_table(&through_proxy, SQL_LIMIT).await?;
        }
        let (ledger, epoch) = (Shared::default(), Instant::now());
        let mut writers = Vec::new();
        let skip = i64::from(run) * IDS_PER_RUN;
        let mut start = |number, target, pace| {
            let plan = workload::Plan { number, skip, target, pace };
            writers.push(Writer::start(plan, ledger.clone(), epoch));
        };
        start(PROXY_WRITER, through_proxy, paces.proxy);
        for (number, member) in (1..).zip(&cluster.members) {
            let target = cluster.on_its_host(member, "pgherd-bench-direct");
            start(number, target, paces.direct);
        }
        let stage = Stage {
            cluster,
            ledger,
            epoch,
            missing: BTreeSet::new(),
            interleaved: 0,
            _writers: writers,
        };
        stage.next_ack(Duration::ZERO).await.context("the writers get no answer")?;
        Ok(stage)
    }

    /// Now, in the ledger's time.
    pub(crate) fn now(&self) -> Duration {
        self.epoch.elapsed()
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
        let until = Instant::now() + ACK_LIMIT;
        loop {
            let ack = self.ledger.lock().next_ack(PROXY_WRITER, after);
            if let Some(ack) = ack {
                return Ok(ack);
            }
            ensure!(Instant::now() < until, "no insert was acknowledged within {ACK_LIMIT:?}");
            tokio::time::sleep(LEDGER_POLL).await;
        }
    }

    /// The longest time without an acknowledgement through the proxy since `from`.
    pub(crate) fn longest_gap(&self, from: Duration) -> f64 {
        let gap = self.ledger.lock().longest_gap(PROXY_WRITER, from, self.now());
        (gap.as_secs_f64() * 1000.0).round() / 1000.0
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
        let entries = self.ledger.lock().acks().len();
        let target = self.cluster.through_proxy("pgherd-bench-audit");
        let present = workload::present(&target, SQL_LIMIT).await?;
        let ledger = self.ledger.lock();
        ensure!(ledger.gaps() == 0, "the ledger has lost entries");
        let mut missing = ledger.missing(entries, &present);
        missing.extend(before.iter().flat_map(|(first, last)| absent(&present, *first, *last)));
        let interleaved = ledger.interleaved();
        let fresh = missing.difference(&self.missing).copied().collect();
        let mut audit = Audit { missing: fresh, ..Audit::default() };
        audit.first = interleaved.get(self.interleaved).map(|first| format!("{first:?}"));
        audit.interleaved = interleaved.len().saturating_sub(self.interleaved);
        self.interleaved = self.interleaved.max(interleaved.len());
        self.missing.extend(missing);
        Ok(audit)
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

/// The identifiers of a range that are not there.
fn absent(present: &BTreeSet<i64>, first: i64, last: i64) -> Vec<i64> {
    (first..=last).filter(|id| !present.contains(id)).collect()
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
