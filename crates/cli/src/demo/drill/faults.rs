//! The faults, and how those are injected and mended that kill, freeze or cut off.

use std::time::Duration;

use anyhow::{Context, ensure};
use lab::process;
use lab::relay::Direction;
use rustix::process::Signal;
use serde::Serialize;
use serde_json::json;

use super::{ACK_LIMIT, Drill, Roles};
use crate::demo::herd::{Herd, Node, RESTART_AFTER};

/// How much longer than the lease a fault lasts that has to outlast it.
const BEYOND_LEASE: Duration = Duration::from_secs(5);
/// How long a lost host stays away after the cluster writes again.
const HOST_AWAY: Duration = Duration::from_secs(3);
/// How long a cut or a hang lasts after the cluster writes again.
pub(super) const CUT_BEYOND: Duration = Duration::from_secs(2);
/// How long a member is frozen before the switchover begins.
const FROZEN_BEFORE: Duration = Duration::from_secs(1);
/// How long a switchover may take.
const SWITCHOVER_LIMIT: Duration = Duration::from_secs(60);
/// How long an agent may take to be started again.
pub(super) const AGENT_RESTART_LIMIT: Duration = RESTART_AFTER.saturating_add(AGENT_START_LIMIT);
/// How long that takes beyond its delay.
const AGENT_START_LIMIT: Duration = Duration::from_secs(10);

/// What the drill does to the cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub(in crate::demo) enum Fault {
    /// kill -9 of the primary's postmaster alone.
    PostmasterKilled,
    /// Every process of the primary's host at one instant.
    HostLost,
    /// The primary's host frozen for longer than the lease, then thawed.
    HostFrozen,
    /// SIGSTOP of the primary's agent and postmaster alone; its backends run on.
    AgentAndPostmasterStopped,
    /// kill -9 of the primary's agent alone.
    AgentKilledRestarted,
    /// The same, and nobody starts it again in time.
    AgentKilledNotRestarted,
    /// The primary cut off from etcd.
    CutFromEtcd,
    /// The primary cut off from everything.
    CutFromEverything,
    /// A planned switchover.
    Switchover,
    /// The same, while a third member is frozen.
    SwitchoverWithFrozenMember,
    /// SIGSTOP of the primary's postmaster alone: its backends run on, nobody can connect.
    PostmasterStopped,
    /// SIGSTOP of the backend that the primary's agent keeps.
    BackendStopped,
    /// SIGSTOP of the primary's agent alone for longer than the lease.
    AgentStopped,
    /// SIGSTOP of the primary's guard for longer than the lease.
    GuardStopped,
    /// The OOM killer ends the primary's agent.
    AgentOom,
    /// The OOM killer looks for somebody to end in the primary's guard's place.
    GuardOom,
    /// The OOM killer ends the primary's postmaster.
    PostmasterOom,
    /// The OOM killer ends a backend of the primary.
    BackendOom,
    /// Four times as many busy processes as processors.
    Starved,
    /// The same, and the primary's postmaster is killed.
    StarvedPostmasterKilled,
    /// Every connection of the primary taken, the reserved ones too.
    ConnectionsExhausted,
    /// Writes to the primary's data directory hang.
    DiskHung,
    /// No block is left for the primary's data directory.
    DiskFull,
    /// All of etcd frozen for less than the lease.
    EtcdOutage,
}

impl Fault {
    /// All of them, in the order of the drill.
    pub(in crate::demo) const ALL: [Fault; 24] = [
        Fault::PostmasterKilled,
        Fault::HostLost,
        Fault::HostFrozen,
        Fault::AgentAndPostmasterStopped,
        Fault::AgentKilledRestarted,
        Fault::AgentKilledNotRestarted,
        Fault::CutFromEtcd,
        Fault::CutFromEverything,
        Fault::Switchover,
        Fault::SwitchoverWithFrozenMember,
        Fault::PostmasterStopped,
        Fault::BackendStopped,
        Fault::AgentStopped,
        Fault::GuardStopped,
        Fault::AgentOom,
        Fault::GuardOom,
        Fault::PostmasterOom,
        Fault::BackendOom,
        Fault::Starved,
        Fault::StarvedPostmasterKilled,
        Fault::ConnectionsExhausted,
        Fault::DiskHung,
        Fault::DiskFull,
        Fault::EtcdOutage,
    ];

    /// Whether it takes long, or the whole machine with it: only on demand then.
    pub(super) fn is_on_demand(self) -> bool {
        match self {
            Fault::BackendStopped
            | Fault::GuardStopped
            | Fault::AgentOom
            | Fault::GuardOom
            | Fault::PostmasterOom
            | Fault::BackendOom
            | Fault::Starved
            | Fault::StarvedPostmasterKilled => true,
            Fault::PostmasterKilled
            | Fault::HostLost
            | Fault::HostFrozen
            | Fault::AgentAndPostmasterStopped
            | Fault::AgentKilledRestarted
            | Fault::AgentKilledNotRestarted
            | Fault::CutFromEtcd
            | Fault::CutFromEverything
            | Fault::Switchover
            | Fault::SwitchoverWithFrozenMember
            | Fault::PostmasterStopped
            | Fault::AgentStopped
            | Fault::ConnectionsExhausted
            | Fault::DiskHung
            | Fault::DiskFull
            | Fault::EtcdOutage => false,
        }
    }

    /// Whether the leader has to be the same afterwards.
    pub(super) fn is_without_hand_over(self) -> bool {
        matches!(
            self,
            Fault::AgentKilledRestarted
                | Fault::BackendStopped
                | Fault::GuardStopped
                | Fault::AgentOom
                | Fault::GuardOom
                | Fault::Starved
                | Fault::EtcdOutage
        )
    }

    /// Whether the data directory needs a file system of its own.
    pub(super) fn needs_volume(self) -> bool {
        matches!(self, Fault::DiskHung | Fault::DiskFull)
    }

    /// One line for people.
    pub(in crate::demo) fn story(self) -> &'static str {
        match self {
            Fault::PostmasterKilled => "kill -9 of the primary's postmaster",
            Fault::HostLost => "every process of the primary's host killed at once",
            Fault::HostFrozen => "the primary's host frozen for longer than its lease",
            Fault::AgentAndPostmasterStopped => {
                "SIGSTOP of the primary's agent and postmaster, whose backends run on"
            }
            Fault::AgentKilledRestarted => "kill -9 of the primary's agent, restarted",
            Fault::AgentKilledNotRestarted => "kill -9 of the primary's agent, not restarted",
            Fault::CutFromEtcd => "the primary cut off from etcd",
            Fault::CutFromEverything => "the primary cut off from everything",
            Fault::Switchover => "a planned switchover",
            Fault::SwitchoverWithFrozenMember => "a planned switchover with a frozen third member",
            Fault::PostmasterStopped => "SIGSTOP of the primary's postmaster",
            Fault::BackendStopped => "SIGSTOP of the agent's backend: no hand-over",
            Fault::AgentStopped => "SIGSTOP of the primary's agent for longer than its lease",
            Fault::GuardStopped => "SIGSTOP of the primary's guard, then SIGCONT: no hand-over",
            Fault::AgentOom => "the primary's agent out of memory, restarted: no hand-over",
            Fault::GuardOom => "the primary's guard out of memory: no hand-over",
            Fault::PostmasterOom => "the primary's postmaster out of memory",
            Fault::BackendOom => "a backend of the primary out of memory",
            Fault::Starved => "the machine loaded to four times its cores: no hand-over",
            Fault::StarvedPostmasterKilled => "kill -9 of the postmaster on a loaded machine",
            Fault::ConnectionsExhausted => "every connection of the primary taken",
            Fault::DiskHung => "the primary's disk hangs",
            Fault::DiskFull => "the primary's disk is full",
            Fault::EtcdOutage => "all of etcd frozen for 2 s: no hand-over",
        }
    }
}

/// A fault that was injected and is over.
pub(super) struct Injected {
    /// When it struck, in the ledger's time.
    pub(super) at: Duration,
    /// What did not go as it should.
    pub(super) trouble: Option<String>,
    /// How it was done, where there is more than one way.
    pub(super) how: Option<String>,
}

impl Injected {
    pub(super) fn at(at: Duration) -> Injected {
        Injected { at, trouble: None, how: None }
    }

    /// With the error of what should have followed, if there is one.
    pub(super) fn followed_by(self, result: anyhow::Result<()>) -> Injected {
        Injected { trouble: result.err().map(|error| format!("{error:#}")), ..self }
    }
}

/// Seconds that the demo configures.
fn configured(dynamic: &serde_json::Value, key: &str) -> Duration {
    let value = dynamic[key].as_u64();
    Duration::from_secs(value.expect("the recommendation names every time"))
}

/// The lease's length with what is configured, and some more.
fn beyond_lease(dynamic: &serde_json::Value) -> Duration {
    configured(dynamic, "ttl") + BEYOND_LEASE
}

/// How long a primary that hangs may stay one, and some more.
fn beyond_hang(dynamic: &serde_json::Value) -> Duration {
    configured(dynamic, "retry_timeout") + beyond_lease(dynamic)
}

pub(super) fn agent_of(node: &Node) -> anyhow::Result<u32> {
    node.agent.pid().with_context(|| format!("{} has no agent", node.plan.name))
}

pub(super) fn postmaster_of(node: &Node) -> anyhow::Result<u32> {
    process::postmaster_of(&node.host.data_dir)
        .with_context(|| format!("{} has no postmaster", node.plan.name))
}

pub(super) fn guard_of(node: &Node) -> anyhow::Result<u32> {
    process::guard_of(&node.host.state_dir)
        .with_context(|| format!("{} has no guard", node.plan.name))
}

impl Drill<'_> {
    pub(super) fn beyond_lease(&self) -> Duration {
        beyond_lease(&self.herd.layout.dynamic)
    }

    pub(super) fn beyond_hang(&self) -> Duration {
        beyond_hang(&self.herd.layout.dynamic)
    }

    /// Why a fault cannot be had here, if it cannot.
    pub(super) fn impossible(&self, fault: Fault) -> Option<String> {
        let layout = &self.herd.layout;
        if fault.needs_volume() && !layout.kept.volumes {
            let why = layout.no_volumes.as_deref();
            return Some(why.unwrap_or("no file system of its own").to_owned());
        }
        let foreign = fault == Fault::EtcdOutage && self.herd.etcd.is_empty();
        foreign.then(|| "etcd is somebody else's".to_owned())
    }

    /// Injects a fault, waits as long as it lasts, and mends it.
    pub(super) async fn inject(&self, fault: Fault, roles: &Roles<'_>) -> anyhow::Result<Injected> {
        let leader = roles.leader;
        match fault {
            Fault::PostmasterKilled => self.postmaster_killed(leader),
            Fault::HostLost => self.host_lost(leader).await,
            Fault::HostFrozen => self.host_frozen(leader).await,
            Fault::AgentAndPostmasterStopped => self.agent_and_postmaster_stopped(leader).await,
            Fault::AgentKilledRestarted => self.agent_killed_restarted(leader).await,
            Fault::AgentKilledNotRestarted => self.agent_killed_not_restarted(leader).await,
            Fault::CutFromEtcd => {
                self.cut(leader, |_, node| {
                    node.relays.etcd.iter().for_each(|relay| relay.cut(Direction::Both));
                })
                .await
            }
            Fault::CutFromEverything => self.cut(leader, Herd::cut_off).await,
            Fault::Switchover => self.switchover(roles).await,
            Fault::SwitchoverWithFrozenMember => self.switchover_with_frozen_member(roles).await,
            Fault::PostmasterStopped => self.postmaster_stopped(leader).await,
            Fault::BackendStopped => self.backend_stopped(leader).await,
            Fault::AgentStopped => self.agent_stopped(leader).await,
            Fault::GuardStopped => self.guard_stopped(leader).await,
            Fault::AgentOom => self.agent_oom(leader).await,
            Fault::GuardOom => self.guard_oom(leader).await,
            Fault::PostmasterOom => self.postmaster_oom(leader).await,
            Fault::BackendOom => self.backend_oom(leader).await,
            Fault::Starved => self.starved().await,
            Fault::StarvedPostmasterKilled => self.starved_postmaster_killed(leader).await,
            Fault::ConnectionsExhausted => self.connections_exhausted(leader).await,
            Fault::DiskHung => self.disk_hung(leader).await,
            Fault::DiskFull => self.disk_full(leader).await,
            Fault::EtcdOutage => self.etcd_outage().await,
        }
    }

    pub(super) fn postmaster_killed(&self, leader: &Node) -> anyhow::Result<Injected> {
        let postmaster = postmaster_of(leader)?;
        let at = self.epoch.elapsed();
        leader.host.signal(postmaster, Signal::KILL)?;
        Ok(Injected::at(at))
    }

    async fn host_lost(&self, leader: &Node) -> anyhow::Result<Injected> {
        let agent = agent_of(leader)?;
        leader.agent.hold();
        let at = self.epoch.elapsed();
        leader.host.kill_all_at_once(Some(agent)).await?;
        self.next_ack(at).await?;
        tokio::time::sleep(HOST_AWAY).await;
        leader.agent.release();
        Ok(Injected::at(at))
    }

    async fn host_frozen(&self, leader: &Node) -> anyhow::Result<Injected> {
        let agent = agent_of(leader)?;
        let at = self.epoch.elapsed();
        let frozen = leader.host.freeze(Some(agent)).await?;
        tokio::time::sleep(self.beyond_lease()).await;
        leader.host.thaw(&frozen)?;
        Ok(Injected::at(at))
    }

    async fn agent_and_postmaster_stopped(&self, leader: &Node) -> anyhow::Result<Injected> {
        let pids = [agent_of(leader)?, postmaster_of(leader)?];
        let at = self.epoch.elapsed();
        pids.iter().try_for_each(|pid| leader.host.signal(*pid, Signal::STOP))?;
        tokio::time::sleep(self.beyond_lease()).await;
        // The guard may have killed the postmaster by now, which is no error.
        pids.iter().try_for_each(|pid| leader.host.signal(*pid, Signal::CONT))?;
        Ok(Injected::at(at))
    }

    async fn agent_killed_restarted(&self, leader: &Node) -> anyhow::Result<Injected> {
        let agent = agent_of(leader)?;
        let at = self.epoch.elapsed();
        leader.host.signal(agent, Signal::KILL)?;
        let again = leader.agent.wait_started(Some(agent), AGENT_RESTART_LIMIT).await;
        again.context("the agent was not started again")?;
        Ok(Injected::at(at))
    }

    async fn agent_killed_not_restarted(&self, leader: &Node) -> anyhow::Result<Injected> {
        let agent = agent_of(leader)?;
        let timeline = self.proxy_timeline();
        leader.agent.hold();
        let at = self.epoch.elapsed();
        leader.host.signal(agent, Signal::KILL)?;
        self.until_failed_over(timeline, ACK_LIMIT).await?;
        tokio::time::sleep(HOST_AWAY).await;
        leader.agent.release();
        Ok(Injected::at(at))
    }

    async fn cut(&self, leader: &Node, how: impl FnOnce(&Herd, &Node)) -> anyhow::Result<Injected> {
        let timeline = self.proxy_timeline();
        let at = self.epoch.elapsed();
        how(self.herd, leader);
        self.until_failed_over(timeline, ACK_LIMIT).await?;
        tokio::time::sleep(CUT_BEYOND).await;
        self.herd.heal();
        Ok(Injected::at(at))
    }

    async fn switchover(&self, roles: &Roles<'_>) -> anyhow::Result<Injected> {
        let candidate = roles.standbys.first().context("there is no candidate")?;
        let body = json!({"leader": roles.leader.plan.name, "candidate": candidate.plan.name});
        let body = Some(serde_json::to_vec(&body)?);
        let (host, port) = ("127.0.0.1", roles.leader.plan.rest_port);
        let at = self.epoch.elapsed();
        let (status, answer) =
            api::client::request("POST", host, port, "/switchover", body, None, SWITCHOVER_LIMIT)
                .await?;
        let answer = String::from_utf8_lossy(&answer).into_owned();
        let wanted = status == 200 && answer.contains(&candidate.plan.name);
        let trouble = (!wanted).then(|| format!("the switchover was answered {status}: {answer}"));
        Ok(Injected { trouble, ..Injected::at(at) })
    }

    async fn switchover_with_frozen_member(&self, roles: &Roles<'_>) -> anyhow::Result<Injected> {
        ensure!(roles.standbys.len() >= 2, "there is no third member");
        let third = roles.standbys[1];
        let frozen = third.host.freeze(Some(agent_of(third)?)).await?;
        tokio::time::sleep(FROZEN_BEFORE).await;
        let result = self.switchover(roles).await;
        let acknowledged = match &result {
            Ok(injected) => self.next_ack(injected.at).await.map(|_| ()),
            Err(_) => Ok(()),
        };
        third.host.thaw(&frozen)?;
        acknowledged?;
        result
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::ValueEnum;

    #[test]
    fn the_drill_has_every_fault_once_and_in_the_order_of_their_declaration() {
        assert_eq!(Fault::value_variants(), Fault::ALL);
    }

    #[test]
    fn reports_and_options_name_a_fault_alike() {
        for fault in Fault::ALL {
            let option = fault.to_possible_value().expect("none is skipped");
            let report = serde_json::to_value(fault).expect("it is a name");
            assert_eq!(report, option.get_name());
        }
    }

    #[test]
    fn a_fault_that_has_to_outlast_the_lease_does() {
        for ttl in [5, 10, 30] {
            let dynamic = lab::cluster::dynamic(ttl, None);
            let of = |key| configured(&dynamic, key);
            assert!(beyond_lease(&dynamic) > of("ttl"));
            assert!(beyond_hang(&dynamic) > of("ttl") + of("retry_timeout"));
        }
    }
}
