//! Faults of too much: processes that want the processors, clients that want the connections.

use std::time::Duration;

use anyhow::ensure;
use lab::crowd::Crowd;
use lab::load::Load;

use super::faults::{CUT_BEYOND, Injected};
use super::{ACK_LIMIT, Drill};
use crate::demo::herd::Node;

/// Busy processes for each processor.
const LOAD: usize = 4;
/// How long the machine is loaded.
const STARVED_FOR: Duration = Duration::from_secs(30);
/// How long it is loaded before the postmaster is killed.
const STARVED_BEFORE: Duration = Duration::from_secs(5);
/// How long it may take until a server has no connection left.
const CROWD_LIMIT: Duration = Duration::from_secs(30);

impl Drill<'_> {
    pub(super) async fn starved(&self) -> anyhow::Result<Injected> {
        let at = self.epoch.elapsed();
        let load = Load::start(LOAD)?;
        tokio::time::sleep(STARVED_FOR).await;
        drop(load);
        Ok(Injected::at(at))
    }

    pub(super) async fn starved_postmaster_killed(
        &self,
        leader: &Node,
    ) -> anyhow::Result<Injected> {
        let timeline = self.proxy_timeline();
        let load = Load::start(LOAD)?;
        tokio::time::sleep(STARVED_BEFORE).await;
        let injected = self.postmaster_killed(leader)?;
        let followed = self.until_failed_over(timeline, ACK_LIMIT).await;
        drop(load);
        Ok(injected.followed_by(followed))
    }

    /// The crowd comes as a superuser, so it takes the reserved connections as well. What others
    /// give back it takes too, as long as the fault lasts.
    pub(super) async fn connections_exhausted(&self, leader: &Node) -> anyhow::Result<Injected> {
        let timeline = self.proxy_timeline();
        let crowd = Crowd::start(self.herd.target(leader.plan.pg_port, "pgherd-drill-crowd"));
        ensure!(crowd.wait_refused(CROWD_LIMIT).await, "the server takes more and more clients");
        let at = self.epoch.elapsed();
        let followed = self.until_failed_over(timeline, self.beyond_hang()).await;
        if followed.is_ok() {
            tokio::time::sleep(CUT_BEYOND).await;
        }
        drop(crowd);
        Ok(Injected::at(at).followed_by(followed))
    }
}
