//! The first experiment: how long until the next acknowledged write, and until all is well again;
//! and what was lost, or acknowledged by two servers at once.

use std::time::Duration;

use anyhow::Context;
use lab::process;
use rustix::process::Signal;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use super::kinds::{Architecture, Fault, Mode};
use super::site::{Node, Site};
use crate::books::{Books, Paces};
use crate::say;

/// Between inserts.
const PACES: Paces = Paces { entry: Duration::from_millis(10), direct: Duration::from_millis(50) };
/// How long the writers run before a fault.
const CALM: Duration = Duration::from_secs(2);
/// When an operator begins, after the fault: an assumption.
const OPERATOR: Duration = Duration::from_secs(60);
/// How long a fault lasts if nobody writes again before.
const LASTS: Duration = Duration::from_secs(60);
/// How much longer it lasts when somebody does.
const AWAY: Duration = Duration::from_secs(5);
/// How long it may take until a write is acknowledged again.
const ACK_LIMIT: Duration = Duration::from_secs(400);
/// How long it may take until all is well again.
const WHOLE_LIMIT: Duration = Duration::from_secs(400);

/// What is measured once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct Case {
    pub(crate) architecture: Architecture,
    pub(crate) mode: Mode,
    pub(crate) fault: Fault,
    /// From 1.
    pub(crate) run: u16,
}

/// How it went.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Outcome {
    #[serde(flatten)]
    pub(crate) case: Case,
    /// The longest time without an acknowledged write, in seconds.
    pub(crate) gap_s: f64,
    /// From the fault until everything was as before it, in seconds.
    pub(crate) healthy_s: f64,
    /// Acknowledged writes that are not there.
    pub(crate) lost: usize,
    /// Writes that were acknowledged by a server after another one had taken its place.
    pub(crate) interleaved: usize,
    /// Whether an operator was needed.
    pub(crate) by_hand: bool,
}

/// A site with its writers, for one case after the other.
pub(crate) struct Bench {
    site: Site,
    books: Books,
}

impl Bench {
    /// # Errors
    /// The writers get no answer.
    pub(crate) async fn new(site: Site) -> anyhow::Result<Bench> {
        let direct = site.nodes.iter().map(|node| node.on_its_host("pgherd-bench-direct"));
        let books = Books::open(site.entry("pgherd-bench"), direct, PACES, 0).await?;
        books.next_ack(Duration::ZERO, ACK_LIMIT).await.context("the writers get no answer")?;
        Ok(Bench { site, books })
    }

    /// One fault, from a whole site to a whole site.
    ///
    /// # Errors
    /// The fault cannot be made or undone, or the site does not get whole again.
    pub(crate) async fn case(&mut self, case: Case) -> anyhow::Result<Outcome> {
        tokio::time::sleep(CALM).await;
        let primary = self.site.primary().await.context("there is not one primary")?;
        let (at, struck) = (self.books.now(), Instant::now());
        let by_hand = self.endure(primary, case.fault, at).await?;
        self.site.until_whole(WHOLE_LIMIT).await?;
        let healthy_s = (struck.elapsed().as_secs_f64() * 1000.0).round() / 1000.0;
        let gap_s = self.books.longest_gap(at);
        let entry = self.site.entry("pgherd-bench-audit");
        let audit = self.books.audit(&entry, &[]).await?;
        if let Some(first) = audit.first {
            say(&format!("  two servers acknowledged: {first}"));
        }
        let (lost, interleaved) = (audit.missing.len(), audit.interleaved);
        Ok(Outcome { case, gap_s, healthy_s, lost, interleaved, by_hand })
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
        let writes_again = async {
            if site.needs_operator() {
                tokio::time::sleep(OPERATOR).await;
                match fault {
                    Fault::PostmasterKilled => site.start_again(primary).await?,
                    _ if site.nodes.len() > 1 => site.fail_over_by_hand(primary).await?,
                    // There is nobody to fail over to.
                    _ => {}
                }
            }
            self.books.next_ack(at, ACK_LIMIT).await?;
            tokio::time::sleep(AWAY).await;
            anyhow::Ok(())
        };
        if fault.lasts() {
            // Where an operator fails over it lasts until that is done.
            let replaced = site.needs_operator() && site.nodes.len() > 1;
            let limit = if replaced { OPERATOR + LASTS } else { LASTS };
            let in_time = tokio::time::timeout(limit, writes_again).await;
            undo(site, primary, fault)?;
            in_time.unwrap_or(Ok(()))?;
        } else {
            writes_again.await?;
        }
        if site.needs_operator_afterwards() {
            site.rejoin_by_hand(primary).await?;
        }
        self.books.next_ack(at, ACK_LIMIT).await?;
        Ok(site.needs_operator())
    }
}

/// Makes the fault.
async fn strike(site: &Site, primary: &Node, fault: Fault) -> anyhow::Result<()> {
    use lab::network::{Effect, Rule, Way};
    match fault {
        Fault::PostmasterKilled => {
            let pid = process::postmaster_of(&primary.data_dir()).context("it does not run")?;
            process::signal(pid, Signal::KILL)?;
        }
        Fault::HostLost => site.lose(primary).await?,
        Fault::HostFrozen => site.ground.freeze(primary.host).await?,
        Fault::NetworkCut => {
            let cut = Rule::around(primary.host, Way::Both, &[], Effect::Drop);
            site.ground.network.apply(cut);
        }
        Fault::DiskFull => primary.volume.fill()?,
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
