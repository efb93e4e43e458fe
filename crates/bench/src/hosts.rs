//! Faults of the primary's whole host, on hosts that have a network of their own: lost, frozen, and
//! cut off so that nobody is told.

use std::path::Path;
use std::time::Duration;

use lab::cluster::{Member, Plan, Settings};
use lab::network::{Effect, Network, NetworkError, Rule, Way};

use crate::books::Paces;
use crate::demo::Step;
use crate::stage::{self, Stage};

/// The faults, by the names of the drill where it has them.
pub(crate) const FAULTS: [&str; 3] = ["host-lost", "host-frozen", "host-cut-off"];

/// The drill's paces.
const PACES: Paces = Paces { entry: Duration::from_millis(10), direct: Duration::from_millis(50) };
/// How long the writers run before a fault.
const CALM: Duration = Duration::from_secs(2);
/// How long a host stays away after the cluster writes again.
const AWAY: Duration = Duration::from_secs(3);
/// How much longer than the lease a host is frozen.
const BEYOND_LEASE: Duration = Duration::from_secs(5);
/// How long the members may take to be whole again.
const WHOLE_LIMIT: Duration = Duration::from_secs(90);

/// Whether such hosts can be had here.
///
/// # Errors
/// What is missing.
pub(crate) fn possible() -> Result<(), NetworkError> {
    Network::new(&["trial"]).map(drop)
}

/// Each of `faults` in turn, `rounds` times, in one cluster; `tell` hears of each.
///
/// # Errors
/// The cluster cannot be had, or does not get whole.
pub(crate) async fn measure(
    program: &Path,
    directory: &Path,
    settings: Settings,
    faults: &[&str],
    rounds: u16,
    mut tell: impl FnMut(Step),
) -> anyhow::Result<()> {
    let plan: Plan = stage::plan(program, directory.to_owned(), settings, false)?;
    let mut stage = Box::pin(Stage::start(&plan, PACES, 0)).await?;
    for _ in 0..rounds {
        for fault in faults {
            tell(Box::pin(step(&mut stage, fault)).await?);
        }
    }
    Ok(())
}

/// One fault, from a whole cluster to a whole cluster.
async fn step(stage: &mut Stage, fault: &str) -> anyhow::Result<Step> {
    tokio::time::sleep(CALM).await;
    let leader = stage.leader().await?;
    let etcd_leader_there = stage.cluster.leads_etcd(leader).await;
    let node = leader.name.clone();
    let at = struck(stage, leader, fault).await?;
    stage.cluster.heal()?;
    stage.until_whole(WHOLE_LIMIT).await?;
    let longest_gap_seconds = stage.books.longest_gap(at);
    let audit = stage.audit(&[]).await?;
    Ok(Step {
        fault: fault.to_owned(),
        node: Some(node),
        longest_gap_seconds,
        missing: Some(audit.missing.len()),
        interleaved: audit.interleaved,
        etcd_leader_there,
        note: audit.first,
        ..Step::default()
    })
}

/// Strikes, and waits as long as the fault lasts: when it struck.
async fn struck(stage: &Stage, leader: &Member, fault: &str) -> anyhow::Result<Duration> {
    let at = stage.books.now();
    match fault {
        "host-lost" => leader.lose_host().await?,
        "host-cut-off" => {
            let cut = Rule::around(leader.index, Way::Both, &[], Effect::Drop);
            stage.cluster.ground.network.apply(cut);
        }
        _ => {
            leader.freeze().await?;
            let ttl = Duration::from_secs(stage.cluster.settings.ttl);
            tokio::time::sleep(ttl + BEYOND_LEASE).await;
            return Ok(at);
        }
    }
    stage.next_ack(at).await?;
    tokio::time::sleep(AWAY).await;
    Ok(at)
}
