//! A site under its writers, and what happens to it.

use std::time::Duration;

use anyhow::{Context, ensure};
use lab::network::{Effect, Rule, Way};
use lab::process;
use lab::workload;
use rustix::process::Signal;
use tokio::time::Instant;

use super::kinds::Fault;
use super::site::{Node, Site};
use crate::books::{Books, Paces};

/// Between inserts.
pub(super) const PACES: Paces =
    Paces { entry: Duration::from_millis(10), direct: Duration::from_millis(50) };
/// How long a fault lasts if nobody writes again before.
const LASTS: Duration = Duration::from_secs(120);
/// How much longer it lasts when somebody does.
const AWAY: Duration = Duration::from_secs(3);
/// How long sessions may live on whose postmaster was killed.
const SESSIONS_LIMIT: Duration = Duration::from_secs(10);
/// How long it may take until a write is acknowledged again.
const ACK_LIMIT: Duration = Duration::from_secs(400);
/// How long it may take until all is well again.
const WHOLE_LIMIT: Duration = Duration::from_secs(400);

/// A site with its writers.
pub(super) struct Bench {
    pub(super) site: Site,
    pub(super) books: Books,
    /// When an operator begins, after a fault: an assumption.
    operator: Duration,
}

/// A fault that is over.
#[derive(Debug, Clone, Copy)]
pub(super) struct Endured {
    /// When it began, in the ledger's time.
    pub(super) at: Duration,
    /// How long after that all was well again.
    pub(super) healthy_after: Duration,
    /// Whether an operator was needed.
    pub(super) by_hand: bool,
}

impl Bench {
    /// # Errors
    /// The writers get no answer.
    pub(super) async fn new(site: Site, operator: Duration) -> anyhow::Result<Bench> {
        let direct = site.nodes.iter().map(|node| node.on_its_host("pgherd-bench-direct"));
        let books = Books::open(site.entry("pgherd-bench"), direct, PACES, 0).await?;
        books.next_ack(Duration::ZERO, ACK_LIMIT).await.context("the writers get no answer")?;
        Ok(Bench { site, books, operator })
    }

    /// One fault of the primary, from a whole site to a whole site.
    ///
    /// # Errors
    /// The fault cannot be made or undone, or the site does not get whole again.
    pub(super) async fn fault(&self, fault: Fault) -> anyhow::Result<Endured> {
        let primary = self.site.primary().await.context("there is not one primary")?;
        let (at, struck) = (self.books.now(), Instant::now());
        let by_hand = self.endure(primary, fault, at).await?;
        self.until_whole().await?;
        let healthy_after = struck.elapsed();
        if fault == Fault::Switchover {
            self.ensure_moved(primary).await?;
        }
        Ok(Endured { at, healthy_after, by_hand })
    }

    /// Commands end well that were refused, Patroni's among them.
    async fn ensure_moved(&self, from: &Node) -> anyhow::Result<()> {
        let primary = self.site.primary().await.context("there is not one primary")?;
        let moved = primary.host != from.host || self.site.nodes.len() == 1;
        ensure!(moved, "{} leads as before: nothing was switched over", from.name);
        Ok(())
    }

    /// Waits until all is well.
    ///
    /// # Errors
    /// It is not for a long time.
    pub(super) async fn until_whole(&self) -> anyhow::Result<()> {
        self.site.until_whole(WHOLE_LIMIT).await
    }

    /// Strikes, waits for writes, undoes the fault, and does what an operator has to; whether one
    /// had to.
    async fn endure(&self, primary: &Node, fault: Fault, at: Duration) -> anyhow::Result<bool> {
        let site = &self.site;
        if fault == Fault::Switchover {
            site.switch_over(primary).await?;
            self.books.next_ack(at, ACK_LIMIT).await?;
            return Ok(false);
        }
        strike(site, primary, fault).await?;
        // What was acknowledged while a disk was being filled is no sign that somebody took over.
        let struck = self.books.now();
        if fault.lasts() {
            let limit = match (site.needs_operator(), site.nodes.len()) {
                (false, _) => LASTS,
                // Somebody has to mend it: nobody else can take over.
                (true, 1) => self.operator,
                // It lasts until the operator has failed over.
                (true, _) => self.operator + LASTS,
            };
            let in_time =
                tokio::time::timeout(limit, self.writes_again(primary, fault, struck)).await;
            undo(site, primary, fault)?;
            in_time.unwrap_or(Ok(()))?;
        } else {
            self.writes_again(primary, fault, struck).await?;
        }
        if site.needs_operator_afterwards() {
            site.rejoin_by_hand(primary).await?;
        }
        self.books.next_ack(struck, ACK_LIMIT).await?;
        Ok(site.needs_operator())
    }

    /// Waits for writes after the fault was made, and after what an operator does for them, and for
    /// a while more.
    async fn writes_again(
        &self,
        primary: &Node,
        fault: Fault,
        struck: Duration,
    ) -> anyhow::Result<()> {
        let site = &self.site;
        if site.needs_operator() {
            tokio::time::sleep(self.operator).await;
            match fault {
                Fault::PostmasterKilled => site.start_again(primary).await?,
                _ if site.nodes.len() > 1 => site.fail_over_by_hand(primary).await?,
                // There is nobody to fail over to.
                _ => {}
            }
        }
        self.books.next_ack(struck, ACK_LIMIT).await?;
        tokio::time::sleep(AWAY).await;
        Ok(())
    }
}

/// Makes the fault.
async fn strike(site: &Site, primary: &Node, fault: Fault) -> anyhow::Result<()> {
    match fault {
        Fault::PostmasterKilled => {
            let pid = process::postmaster_of(&primary.data_dir()).context("it does not run")?;
            let sessions = process::working_in(&primary.data_dir());
            process::signal(pid, Signal::KILL)?;
            // They notice it, and may acknowledge what was sent after it before they do.
            let left = process::wait_gone(sessions, SESSIONS_LIMIT).await;
            ensure!(left.is_empty(), "without a postmaster these of its sessions stay: {left:?}");
        }
        Fault::HostLost => site.lose(primary).await?,
        Fault::HostFrozen => site.ground.freeze(primary.host).await?,
        Fault::NetworkCut => {
            let cut = Rule::around(primary.host, Way::Both, &[], Effect::Drop);
            site.ground.network.apply(cut);
        }
        Fault::DiskFull => {
            primary.volume.fill()?;
            workload::use_up_segments(&primary.on_its_host("pgherd-bench-full")).await;
        }
        Fault::Switchover => {}
    }
    Ok(())
}

/// Undoes it.
fn undo(site: &Site, primary: &Node, fault: Fault) -> anyhow::Result<()> {
    match fault {
        Fault::HostLost => site.boot(primary),
        Fault::HostFrozen => site.ground.thaw(primary.host)?,
        Fault::NetworkCut => site.ground.network.heal(),
        Fault::DiskFull => primary.volume.empty()?,
        Fault::PostmasterKilled | Fault::Switchover => {}
    }
    Ok(())
}
