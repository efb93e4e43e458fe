//! How the faults of a round are done. All of them are undone by `Cluster::heal`.

use std::time::Duration;

use anyhow::Context;
use lab::cluster::{Cluster, ETCD_PORTS, Member};
use lab::network::{Effect, Rule, Way};
use lab::process;
use lab::workload;
use rustix::process::Signal;

use super::draw::{Fault, Who};

/// Who was what when the round began.
pub(crate) struct Roles<'a> {
    cluster: &'a Cluster,
    primary: &'a Member,
}

impl<'a> Roles<'a> {
    pub(crate) fn new(cluster: &'a Cluster, primary: &'a Member) -> Roles<'a> {
        Roles { cluster, primary }
    }

    fn member(&self, who: Who) -> &'a Member {
        let mut others = self.cluster.members.iter().filter(|m| m.index != self.primary.index);
        match who {
            Who::Primary => self.primary,
            // A cluster has as many as were counted when this was drawn.
            Who::Standby(number) => others.nth(number).unwrap_or(self.primary),
        }
    }

    /// The names of those whom a fault hits.
    pub(crate) fn names(&self, fault: Fault) -> String {
        match fault {
            Fault::Partition(who, _)
            | Fault::DcsCut(who, _)
            | Fault::Loss(who, _)
            | Fault::Delay(who, _)
            | Fault::Freeze(who)
            | Fault::AgentKilled(who)
            | Fault::PostmasterKilled(who)
            | Fault::HostKilled(who)
            | Fault::DiskFull(who) => {
                let role = if who == Who::Primary { "primary " } else { "" };
                format!("{role}{}", self.member(who).name)
            }
            Fault::ProxyDcsCut => "proxy".to_owned(),
            Fault::EtcdKilled(from, count) => {
                let hosts = self.etcd_hosts(from, count);
                hosts.map(|member| member.name.as_str()).collect::<Vec<_>>().join(" ")
            }
        }
    }

    fn etcd_hosts(&self, from: usize, count: usize) -> impl Iterator<Item = &'a Member> {
        self.cluster.members.iter().cycle().skip(from).take(count)
    }

    /// Does it.
    ///
    /// # Errors
    /// The kernel refused.
    pub(crate) async fn strike(&self, fault: Fault) -> anyhow::Result<()> {
        let network = &self.cluster.ground.network;
        let around = |who, way, ports, effect| {
            network.apply(Rule::around(self.member(who).index, way, ports, effect));
        };
        match fault {
            Fault::Partition(who, way) => around(who, way, &[], Effect::Drop),
            Fault::DcsCut(who, way) => around(who, way, &ETCD_PORTS, Effect::Drop),
            Fault::ProxyDcsCut => {
                let client = self.cluster.client();
                network.apply(Rule::around(client, Way::Both, &ETCD_PORTS, Effect::Drop));
            }
            Fault::Loss(who, percent) => around(who, Way::Both, &[], Effect::Lose { percent }),
            Fault::Delay(who, ms) => {
                let delay = Duration::from_millis(u64::from(ms));
                around(who, Way::Both, &[], Effect::Delay(delay));
            }
            Fault::Freeze(who) => self.member(who).freeze().await?,
            Fault::AgentKilled(who) => {
                let agent = &self.member(who).agent;
                agent.hold();
                kill(agent.pid())?;
            }
            Fault::PostmasterKilled(who) => {
                kill(process::postmaster_of(&self.member(who).host.data_dir))?;
            }
            Fault::HostKilled(who) => self.member(who).lose_host().await?,
            Fault::DiskFull(who) => self.fill_disk(self.member(who)).await?,
            Fault::EtcdKilled(from, count) => {
                for member in self.etcd_hosts(from, count) {
                    member.etcd.hold();
                    kill(member.etcd.pid())?;
                }
            }
        }
        Ok(())
    }

    async fn fill_disk(&self, member: &Member) -> anyhow::Result<()> {
        member.volume().context("it has no file system of its own")?.fill()?;
        let target = self.cluster.on_its_host(member, "pgherd-bench-full");
        workload::use_up_segments(&target).await;
        Ok(())
    }
}

/// Kills a process, unless it is gone already: the other fault of a pair may have seen to it.
fn kill(pid: Option<u32>) -> anyhow::Result<()> {
    match pid {
        Some(pid) => Ok(process::signal(pid, Signal::KILL)?),
        None => Ok(()),
    }
}
