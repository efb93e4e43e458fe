//! Faults of the primary's disk, on the file system that its data directory has for itself.

use std::time::Duration;

use anyhow::Context;
use lab::volume::Volume;
use lab::workload;

use super::Drill;
use super::faults::{CUT_BEYOND, Injected};
use crate::demo::herd::Node;

/// Asks for a new segment of WAL. Written ones are used again, so a full disk does not bite before
/// those are used up; neither statement waits for a standby.
const NEXT_SEGMENT: &str = "SELECT pg_create_restore_point('full'); SELECT pg_switch_wal()";
/// More segments than a server of this size keeps for use; what is streamed of them fits into the
/// other members' volumes.
const SEGMENTS_MAX: u32 = 24;
/// How long one of them may take.
const SEGMENT_LIMIT: Duration = Duration::from_secs(2);

impl Drill<'_> {
    pub(super) async fn disk_hung(&self, leader: &Node) -> anyhow::Result<Injected> {
        let volume = volume_of(leader)?;
        let timeline = self.proxy_timeline();
        let at = self.epoch.elapsed();
        volume.freeze()?;
        let thaw = Undo(|| volume.thaw());
        let followed = self.until_failed_over(timeline, self.beyond_hang()).await;
        tokio::time::sleep(CUT_BEYOND).await;
        drop(thaw);
        Ok(Injected::at(at).followed_by(followed))
    }

    pub(super) async fn disk_full(&self, leader: &Node) -> anyhow::Result<Injected> {
        let volume = volume_of(leader)?;
        let target = self.herd.target(leader.plan.pg_port, "pgherd-drill-full");
        let timeline = self.proxy_timeline();
        let empty = Undo(|| volume.empty());
        let filled = volume.fill();
        let at = self.epoch.elapsed();
        filled?;
        for _ in 0..SEGMENTS_MAX {
            // An error is what is wanted: there is no room for the next one.
            if workload::execute(&target, NEXT_SEGMENT, SEGMENT_LIMIT).await.is_err() {
                break;
            }
        }
        let followed = self.until_failed_over(timeline, self.beyond_hang()).await;
        tokio::time::sleep(CUT_BEYOND).await;
        drop(empty);
        Ok(Injected::at(at).followed_by(followed))
    }
}

fn volume_of(node: &Node) -> anyhow::Result<Volume> {
    node.volume().with_context(|| format!("{} has no volume", node.plan.name))
}

/// Mends a disk when it is dropped, also when the drill is interrupted.
struct Undo<F: FnMut() -> Result<(), lab::volume::VolumeError>>(F);

impl<F: FnMut() -> Result<(), lab::volume::VolumeError>> Drop for Undo<F> {
    fn drop(&mut self) {
        if let Err(error) = (self.0)() {
            tracing::warn!(%error, "a disk is not mended");
        }
    }
}
