//! Faults that stop a single program with SIGSTOP: it is there, and does nothing.

use std::time::Duration;

use anyhow::{Context, ensure};
use lab::service::Service;
use lab::workload;
use rustix::process::Signal;

use super::faults::{CUT_BEYOND, Injected, agent_of, guard_of, postmaster_of};
use super::{ACK_LIMIT, Drill, SQL_LIMIT, signal_all};
use crate::demo::herd::Node;

/// How long etcd is away: shorter than the lease, longer than an agent's interval.
const ETCD_OUTAGE: Duration = Duration::from_secs(2);
/// The backend of the session that the agent keeps: the oldest under its name, since those that
/// only try whether one can connect come and go.
const KEPT_SESSION: &str = "SELECT pid::bigint FROM pg_stat_activity \
    WHERE application_name = 'pgherd' AND backend_type = 'client backend' \
    ORDER BY backend_start LIMIT 1";

impl Drill<'_> {
    pub(super) async fn postmaster_stopped(&self, leader: &Node) -> anyhow::Result<Injected> {
        let postmaster = postmaster_of(leader)?;
        let timeline = self.proxy_timeline();
        let at = self.epoch.elapsed();
        leader.host.signal(postmaster, Signal::STOP)?;
        let followed = self.until_failed_over(timeline, self.beyond_hang()).await;
        tokio::time::sleep(CUT_BEYOND).await;
        leader.wake();
        Ok(Injected::at(at).followed_by(followed))
    }

    pub(super) async fn backend_stopped(&self, leader: &Node) -> anyhow::Result<Injected> {
        let target = self.herd.target(leader.plan.pg_port, "pgherd-drill-look");
        let found = workload::integers(&target, KEPT_SESSION, SQL_LIMIT).await?;
        let backend = found.first().and_then(|pid| u32::try_from(*pid).ok());
        let backend = backend.context("the agent keeps no session")?;
        let at = self.epoch.elapsed();
        leader.host.signal(backend, Signal::STOP)?;
        tokio::time::sleep(self.beyond_hang()).await;
        leader.wake();
        Ok(Injected::at(at))
    }

    pub(super) async fn agent_stopped(&self, leader: &Node) -> anyhow::Result<Injected> {
        let agent = agent_of(leader)?;
        let timeline = self.proxy_timeline();
        let at = self.epoch.elapsed();
        leader.host.signal(agent, Signal::STOP)?;
        tokio::time::sleep(self.beyond_lease()).await;
        leader.host.signal(agent, Signal::CONT)?;
        let followed = self.until_failed_over(timeline, ACK_LIMIT).await;
        Ok(Injected::at(at).followed_by(followed))
    }

    pub(super) async fn guard_stopped(&self, leader: &Node) -> anyhow::Result<Injected> {
        let guard = guard_of(leader)?;
        let at = self.epoch.elapsed();
        leader.host.signal(guard, Signal::STOP)?;
        tokio::time::sleep(self.beyond_lease()).await;
        // Its deadline is long over when it wakes, and another one is armed by then.
        leader.host.signal(guard, Signal::CONT)?;
        tokio::time::sleep(CUT_BEYOND).await;
        Ok(Injected::at(at))
    }

    pub(super) async fn etcd_outage(&self) -> anyhow::Result<Injected> {
        let pids: Vec<u32> = self.herd.etcd.iter().filter_map(Service::pid).collect();
        // One may be away on purpose (--drill-kill-etcd).
        ensure!(!pids.is_empty(), "no member of etcd runs");
        let at = self.epoch.elapsed();
        let stopped = signal_all(&pids, Signal::STOP);
        tokio::time::sleep(ETCD_OUTAGE).await;
        signal_all(&pids, Signal::CONT)?;
        stopped?;
        Ok(Injected::at(at))
    }
}
