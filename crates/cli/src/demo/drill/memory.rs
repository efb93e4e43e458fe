//! Faults of the OOM killer: a process of the primary has no memory left, and the kernel ends it.
//!
//! Where the kernel cannot be brought to it, the process gets the signal that it would have got;
//! the step says which it was.

use std::time::Duration;

use anyhow::Context;
use lab::memory::Confined;
use lab::process;
use lab::workload::{self, Known};
use rustix::process::Signal;
use tokio::time::Instant;

use super::faults::{AGENT_RESTART_LIMIT, Injected, agent_of, guard_of, postmaster_of};
use super::{Drill, LEDGER_POLL, SQL_LIMIT};
use crate::demo::herd::Node;

/// How long the kernel may take: the victim has to touch memory first.
const KERNEL_LIMIT: Duration = Duration::from_secs(5);
/// How long one poke may take that makes it touch some.
const POKE_LIMIT: Duration = Duration::from_millis(500);
/// How long the guard, which cannot be killed so, has no memory.
const GUARD_WITHOUT: Duration = Duration::from_secs(6);
/// Takes memory in one piece.
const GREEDY: &str = "SELECT length(repeat('x', 256 * 1024 * 1024))";
/// The adjustment that keeps the OOM killer off.
const NEVER: &str = "-1000";

impl Drill<'_> {
    pub(super) async fn agent_oom(&self, leader: &Node) -> anyhow::Result<Injected> {
        let agent = agent_of(leader)?;
        let port = leader.plan.rest_port;
        let poke = async || {
            let asked =
                api::client::request("GET", "127.0.0.1", port, "/patroni", None, None, POKE_LIMIT);
            drop(asked.await);
        };
        let injected = self.end_by_memory(leader, agent, poke).await?;
        let again = leader.agent.wait_started(Some(agent), AGENT_RESTART_LIMIT).await;
        again.context("the agent was not started again")?;
        Ok(injected)
    }

    pub(super) async fn postmaster_oom(&self, leader: &Node) -> anyhow::Result<Injected> {
        let postmaster = postmaster_of(leader)?;
        let target = self.herd.target(leader.plan.pg_port, "pgherd-drill-poke");
        // It forks for each connection, whatever becomes of that.
        let poke = async || drop(workload::execute(&target, "SELECT 1", POKE_LIMIT).await);
        self.end_by_memory(leader, postmaster, poke).await
    }

    pub(super) async fn backend_oom(&self, leader: &Node) -> anyhow::Result<Injected> {
        let target = self.herd.target(leader.plan.pg_port, "pgherd-drill-greedy");
        let greedy = Known::open(&target, SQL_LIMIT).await?;
        let poke = async || drop(greedy.execute(GREEDY, POKE_LIMIT).await);
        self.end_by_memory(leader, greedy.pid, poke).await
    }

    /// A guard that asked the kernel to be spared is spared; one that might not ask is killed, and
    /// its agent starts another. The leader stays in both cases.
    pub(super) async fn guard_oom(&self, leader: &Node) -> anyhow::Result<Injected> {
        let guard = guard_of(leader)?;
        let adjusted = std::fs::read_to_string(format!("/proc/{guard}/oom_score_adj"))?;
        if adjusted.trim() != NEVER {
            return self.end_by_memory(leader, guard, async || {}).await;
        }
        let at = self.epoch.elapsed();
        let confined = Confined::put(&group_name(guard), guard);
        let mut how = "not killed: its oom_score_adj is -1000".to_owned();
        match confined {
            Ok(confined) => {
                tokio::time::sleep(GUARD_WITHOUT).await;
                drop(confined);
            }
            Err(error) => how = format!("{how}; not tried, for want of a cgroup: {error}"),
        }
        let killed = (!process::is_alive(guard)).then(|| "the guard was killed".to_owned());
        Ok(Injected { how: Some(how), trouble: killed, ..Injected::at(at) })
    }

    /// Takes a process's memory away, and pokes it until it is gone.
    async fn end_by_memory(
        &self,
        node: &Node,
        pid: u32,
        poke: impl AsyncFn(),
    ) -> anyhow::Result<Injected> {
        let at = self.epoch.elapsed();
        let confined = Confined::put(&group_name(pid), pid);
        let until = Instant::now() + if confined.is_ok() { KERNEL_LIMIT } else { Duration::ZERO };
        while process::is_alive(pid) && Instant::now() < until {
            poke().await;
            tokio::time::sleep(LEDGER_POLL).await;
        }
        let how = match &confined {
            Ok(confined) if !process::is_alive(pid) && confined.oom_kills() > 0 => {
                return Ok(Injected {
                    how: Some("killed by the kernel's OOM killer".to_owned()),
                    ..Injected::at(at)
                });
            }
            Ok(_) => "SIGKILL: the kernel's OOM killer did not come".to_owned(),
            Err(error) => format!("SIGKILL: there is no memory cgroup ({error})"),
        };
        // The moment of the fault is that of the signal.
        let at = self.epoch.elapsed();
        node.host.signal(pid, Signal::KILL)?;
        Ok(Injected { how: Some(how), ..Injected::at(at) })
    }
}

/// One group a victim, so that nothing of an earlier one counts.
fn group_name(victim: u32) -> String {
    format!("pgherd-demo-{}-oom-{victim}", std::process::id())
}
