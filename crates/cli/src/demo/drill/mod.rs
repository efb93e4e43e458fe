//! The drill: every fault in turn, under writers that never stop, and the books about it.
//!
//! [`faults`] names what can be broken, and it, [`stopped`], [`memory`], [`load`] and [`disks`]
//! break it and mend it; [`report`] holds the figures. This module runs one step after the other
//! and asks the ledger after each.

mod disks;
mod faults;
mod load;
mod memory;
mod report;
mod stopped;

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use lab::ledger::{Ack, PROXY_WRITER};
use lab::process;
use lab::service::Service;
use lab::view;
use lab::volume;
use lab::workload::{self, Plan, Shared, Writer};
use rustix::process::Signal;
use serde_json::json;
use tokio::time::Instant;

use super::DemoArgs;
use super::external;
use super::herd::{Herd, Node};
use super::screen::{Screen, round};

pub(super) use faults::Fault;
pub(super) use report::{Report, Step};

/// Between two inserts through the proxy.
const PROXY_PACE: Duration = Duration::from_millis(10);
/// Between two inserts straight to a node.
const DIRECT_PACE: Duration = Duration::from_millis(50);
/// How long the writers run before the first fault and between two.
const CALM: Duration = Duration::from_secs(2);
/// How long a write may be out of reach; the lease is much shorter.
const ACK_LIMIT: Duration = Duration::from_secs(90);
/// How long the members may take to be healthy again after a fault is over.
const HEALTHY_LIMIT: Duration = Duration::from_secs(90);
/// The same after a planted second writer: its copy, on a timeline that nobody reserved, may have
/// to wait for an operator, and the drill has failed anyway.
const PLANTED_HEALTHY_LIMIT: Duration = Duration::from_secs(15);
/// How often the cluster is looked at.
const POLL: Duration = Duration::from_millis(200);
/// How often in a row it has to be healthy.
const HEALTHY_IN_A_ROW: u32 = 3;
/// How often the ledger is looked at.
const LEDGER_POLL: Duration = Duration::from_millis(20);
/// How long a statement of the drill itself may take.
const SQL_LIMIT: Duration = Duration::from_secs(30);
/// How long a killed member of etcd stays away.
const ETCD_AWAY: Duration = Duration::from_secs(10);
/// How long a planted second writer goes on.
const PLANTED_FOR: Duration = Duration::from_secs(3);

/// A fault of the drill itself: it proves that the drill can fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Plant {
    /// A standby is promoted behind everybody's back, while its agent cannot see it.
    SecondWriter,
    /// An entry vanishes from the ledger.
    LostEntry,
    /// An acknowledged row vanishes from the table.
    LostRow,
}

/// Which member of etcd is killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum EtcdMember {
    /// One that follows.
    Follower,
    /// The leader: its successor restarts every lease.
    Leader,
}

/// Refuses what cannot be drilled.
///
/// # Errors
/// Too few nodes, or somebody else's etcd to be killed.
pub(super) fn check(args: &DemoArgs) -> anyhow::Result<()> {
    if args.drill && args.nodes < 3 {
        bail!("--drill needs three nodes: with fewer, losing one leaves no quorum");
    }
    if args.drill_kill_etcd.is_some() && !args.dcs.is_empty() {
        bail!("--drill-kill-etcd kills members of the demo's own etcd: leave --dcs out");
    }
    Ok(())
}

/// The faults of one round, in their order.
fn faults(args: &DemoArgs) -> Vec<Fault> {
    if !args.drill_only.is_empty() {
        return args.drill_only.clone();
    }
    Fault::ALL.into_iter().filter(|fault| args.drill_all || !fault.is_on_demand()).collect()
}

/// Whether a fault needs data directories with file systems of their own.
pub(super) fn wants_volumes(args: &DemoArgs) -> bool {
    faults(args).into_iter().any(Fault::needs_volume)
}

/// Runs the drill on a healthy cluster.
///
/// # Errors
/// The drill itself could not go on; a cluster that fails it is a report, not an error.
pub(super) async fn run(
    args: &DemoArgs,
    herd: &Herd,
    screen: &mut Screen,
) -> anyhow::Result<Report> {
    // All of them once, then again: leaders alternate.
    let faults = faults(args).repeat(usize::from(args.drill_rounds));
    let mut drill = Drill::start(herd, args.drill_kill_etcd).await?;
    if let Some(plant) = args.drill_plant {
        screen.note(&format!("planting {plant:?}, so the drill has to fail"));
        drill.plant(plant).await?;
        if plant == Plant::SecondWriter {
            drill.healthy_limit = PLANTED_HEALTHY_LIMIT;
        }
    }
    let mut steps = Vec::new();
    for (number, fault) in (1..).zip(&faults) {
        screen.note(&format!("drill {number}/{}: {}", faults.len(), fault.story()));
        let step = drill.step(*fault).await;
        let mut event = json!({"event": "step"});
        if let (Some(event), serde_json::Value::Object(step)) =
            (event.as_object_mut(), serde_json::to_value(&step)?)
        {
            event.extend(step);
        }
        screen.object(&event);
        screen.text(&step.line());
        let goes_on = step.seconds_to_healthy.is_some() || step.skipped.is_some();
        steps.push(step);
        if !goes_on {
            // What a broken cluster does under the next fault says nothing about that fault.
            break;
        }
    }
    Ok(Report::new(steps, faults.len(), &drill.ledger.lock(), drill.missing.len()))
}

/// A drill under way.
struct Drill<'a> {
    herd: &'a Herd,
    ledger: Shared,
    /// The beginning of the ledger's time.
    epoch: Instant,
    /// The same on the clock of all the machine's programs, in milliseconds since it was booted.
    epoch_boot_ms: u64,
    /// Acknowledged identifiers that were found missing, in all steps.
    missing: BTreeSet<i64>,
    /// Violations that earlier steps have counted.
    interleaved: usize,
    kill_etcd: Option<EtcdMember>,
    healthy_limit: Duration,
    /// They write as long as the drill lives.
    _writers: Vec<Writer>,
}

impl<'a> Drill<'a> {
    async fn start(herd: &'a Herd, kill_etcd: Option<EtcdMember>) -> anyhow::Result<Drill<'a>> {
        let through_proxy = herd.target(herd.layout.read_write_port(), "pgherd-drill");
        workload::create_table(&through_proxy, SQL_LIMIT).await?;
        let (ledger, epoch) = (Shared::default(), Instant::now());
        let epoch_boot_ms = boot_ms();
        let mut writers = Vec::new();
        let mut start = |number, target, pace| {
            writers.push(Writer::start(
                Plan { number, skip: 0, target, pace },
                ledger.clone(),
                epoch,
            ));
        };
        start(PROXY_WRITER, through_proxy, PROXY_PACE);
        for (number, node) in (1..).zip(&herd.nodes) {
            let target = herd.target(node.plan.pg_port, "pgherd-drill-direct");
            start(number, target, DIRECT_PACE);
        }
        let drill = Drill {
            herd,
            ledger,
            epoch,
            epoch_boot_ms,
            missing: BTreeSet::new(),
            interleaved: 0,
            kill_etcd,
            healthy_limit: HEALTHY_LIMIT,
            _writers: writers,
        };
        drill.next_ack(Duration::ZERO).await.context("the writers get no answer")?;
        tokio::time::sleep(CALM).await;
        Ok(drill)
    }

    /// One fault, from a healthy cluster to a healthy cluster.
    async fn step(&mut self, fault: Fault) -> Step {
        let mut step = Step::new(fault);
        step.skipped = self.impossible(fault);
        if step.skipped.is_some() {
            return step;
        }
        let etcd = self.kill_etcd_member().await;
        let (began, timeline) = (self.epoch.elapsed(), self.proxy_timeline());
        let at = match self.struck(fault, &mut step).await {
            Ok(at) => at,
            Err(error) => {
                step.add_note(&format!("{error:#}"));
                began
            }
        };
        // Whatever went wrong, nothing stays broken on purpose.
        self.mend();
        step.at_boot_ms = Some(self.on_boot_clock(at));
        step.seconds_to_next_ack =
            self.next_ack(at).await.ok().map(|ack| round(ack.acked.saturating_sub(at)));
        if let Some(restart) = etcd {
            restart.await;
        }
        match self.until_healthy().await {
            Ok(()) => {
                step.seconds_to_healthy = Some(round(self.epoch.elapsed().saturating_sub(at)));
            }
            Err(error) => step.add_note(&format!("{error:#}")),
        }
        tokio::time::sleep(CALM).await;
        self.audit(&mut step).await;
        let ledger = self.ledger.lock();
        let gap = ledger.longest_gap(PROXY_WRITER, at, self.epoch.elapsed());
        step.longest_gap_seconds = round(gap);
        let over = ledger.acks().iter().find(|ack| {
            ack.writer == PROXY_WRITER && ack.timeline > timeline && ack.acked >= began
        });
        step.handed_over_at_boot_ms = over.map(|ack| self.on_boot_clock(ack.acked));
        if fault.is_without_hand_over() && over.is_some() {
            step.add_note("the leadership was handed over, although nothing called for it");
        }
        step
    }

    /// Strikes, and returns when; what else there is to say goes into the step.
    async fn struck(&self, fault: Fault, step: &mut Step) -> anyhow::Result<Duration> {
        let roles = self.roles().await?;
        step.node = Some(roles.leader.plan.name.clone());
        // Its future is large.
        let injected = Box::pin(self.inject(fault, &roles)).await?;
        step.how = injected.how;
        step.note = injected.trouble;
        Ok(injected.at)
    }

    /// A moment of the ledger's time in milliseconds since the machine was booted, as the agents'
    /// journals have it.
    fn on_boot_clock(&self, at: Duration) -> u64 {
        self.epoch_boot_ms + u64::try_from(at.as_millis()).unwrap_or(u64::MAX >> 1)
    }

    /// Asks the ledger and the table.
    async fn audit(&mut self, step: &mut Step) {
        let interleaved = self.ledger.lock().interleaved();
        if let Some(first) = interleaved.get(self.interleaved) {
            step.add_note(&format!("{first:?}"));
        }
        step.interleaved = interleaved.len().saturating_sub(self.interleaved);
        self.interleaved = self.interleaved.max(interleaved.len());
        let entries = self.ledger.lock().acks().len();
        let target = self.herd.target(self.herd.layout.read_write_port(), "pgherd-drill-audit");
        match workload::present(&target, SQL_LIMIT).await {
            Ok(present) => {
                let missing = self.ledger.lock().missing(entries, &present);
                let fresh: Vec<i64> = missing.difference(&self.missing).copied().collect();
                step.missing = Some(fresh.len());
                if let Some(first) = fresh.first() {
                    step.add_note(&format!("the first missing id is {first}"));
                }
                self.missing.extend(missing);
            }
            Err(error) => step.add_note(&format!("{error}")),
        }
    }

    /// The first acknowledgement through the proxy of an insert sent after `after`.
    async fn next_ack(&self, after: Duration) -> anyhow::Result<Ack> {
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

    /// Waits until an insert through the proxy was acknowledged on a higher timeline than
    /// `timeline`: somebody else leads.
    async fn until_failed_over(&self, timeline: u32, limit: Duration) -> anyhow::Result<()> {
        let until = Instant::now() + limit;
        while self.proxy_timeline() <= timeline {
            ensure!(Instant::now() < until, "no failover within {limit:?}");
            tokio::time::sleep(LEDGER_POLL).await;
        }
        Ok(())
    }

    /// The timeline of the latest acknowledgement through the proxy.
    fn proxy_timeline(&self) -> u32 {
        let ledger = self.ledger.lock();
        let latest = ledger.acks().iter().rev().find(|ack| ack.writer == PROXY_WRITER);
        latest.map_or(0, |ack| ack.timeline)
    }

    async fn until_healthy(&self) -> anyhow::Result<()> {
        let until = Instant::now() + self.healthy_limit;
        let mut in_a_row = 0;
        loop {
            let waits = self.herd.waiting_for(&self.herd.views().await).await;
            in_a_row = if waits.is_none() { in_a_row + 1 } else { 0 };
            if in_a_row == HEALTHY_IN_A_ROW {
                return Ok(());
            }
            if Instant::now() >= until {
                let what = waits.unwrap_or_else(|| "nothing, at last".to_owned());
                bail!("not healthy after {:?}; it waits for {what}", self.healthy_limit);
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// The leader and the synchronous standbys.
    async fn roles(&self) -> anyhow::Result<Roles<'a>> {
        let views = self.herd.views().await;
        let view = view::newest(&views).context("no agent answers")?;
        let leader = view.leader().and_then(|name| self.herd.node(name));
        let standbys = view.members.iter().filter(|row| row.is_synchronous());
        Ok(Roles {
            leader: leader.context("nobody leads")?,
            standbys: standbys.filter_map(|row| self.herd.node(&row.name)).collect(),
        })
    }

    /// Undoes what can be undone: disks thawed, stopped processes going on, relays whole, agents
    /// allowed to start.
    fn mend(&self) {
        volume::thaw_below(&self.herd.layout.dir);
        let etcd: Vec<u32> = self.herd.etcd.iter().filter_map(Service::pid).collect();
        if let Err(error) = signal_all(&etcd, Signal::CONT) {
            tracing::warn!(%error, "etcd does not go on");
        }
        self.herd.nodes.iter().for_each(Node::wake);
        self.herd.heal();
        self.herd.nodes.iter().for_each(|node| node.agent.release());
    }

    /// Kills a member of etcd, if that was asked for; what is returned starts it again later.
    async fn kill_etcd_member(&self) -> Option<impl Future<Output = ()> + use<'a>> {
        let wanted = self.kill_etcd?;
        let herd = self.herd;
        for (endpoint, service) in herd.layout.endpoints.iter().zip(&herd.etcd) {
            let Ok(status) = external::status(endpoint).await else { continue };
            let Some(pid) = service.pid() else { continue };
            if status.is_leader != (wanted == EtcdMember::Leader) {
                continue;
            }
            service.hold();
            if let Err(error) = process::signal(pid, Signal::KILL) {
                tracing::warn!(%error, "cannot kill a member of etcd");
            }
            service.wait_ended(pid, ETCD_AWAY).await;
            let back_at = Instant::now() + ETCD_AWAY;
            return Some(async move {
                tokio::time::sleep_until(back_at).await;
                service.release();
                // The next fault finds it there again.
                let _pid = service.wait_started(Some(pid), ETCD_AWAY).await;
            });
        }
        None
    }

    async fn plant(&self, plant: Plant) -> anyhow::Result<()> {
        match plant {
            Plant::LostEntry => self.ledger.lock().plant_lost_entry(),
            Plant::LostRow => {
                let id = self.ledger.lock().acks().first().context("nothing is acknowledged")?.id;
                let target = self.herd.target(self.herd.layout.read_write_port(), "pgherd-plant");
                let delete = format!("DELETE FROM pgherd_drill WHERE id = {id}");
                workload::execute(&target, &delete, SQL_LIMIT).await?;
            }
            Plant::SecondWriter => {
                let roles = self.roles().await?;
                let standby = roles.standbys.first().context("there is no standby")?;
                self.plant_second_writer(standby).await?;
            }
        }
        Ok(())
    }

    /// Promotes a standby while its agent stands still and cannot undo it.
    async fn plant_second_writer(&self, standby: &Node) -> anyhow::Result<()> {
        let agent = standby.agent.pid().context("the standby has no agent")?;
        let target = self.herd.target(standby.plan.pg_port, "pgherd-plant");
        standby.host.signal(agent, Signal::STOP)?;
        let promote = async {
            // Nobody streams from it: it would wait for a standby for ever.
            let alone = "ALTER SYSTEM SET synchronous_standby_names = ''";
            workload::execute(&target, alone, SQL_LIMIT).await?;
            let promote = "SELECT pg_reload_conf(), pg_promote()";
            workload::execute(&target, promote, SQL_LIMIT).await
        };
        let promoted = promote.await;
        tokio::time::sleep(PLANTED_FOR).await;
        standby.host.signal(agent, Signal::CONT)?;
        promoted.context("the second writer could not be planted")
    }
}

/// Sends a signal to each of these.
fn signal_all(pids: &[u32], signal: Signal) -> std::io::Result<()> {
    pids.iter().try_for_each(|pid| process::signal(*pid, signal))
}

/// Milliseconds since the machine was booted, times of suspension among them.
fn boot_ms() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
    seconds * 1000 + u64::try_from(now.tv_nsec).unwrap_or(0) / 1_000_000
}

/// Who is what.
struct Roles<'a> {
    leader: &'a Node,
    standbys: Vec<&'a Node>,
}
