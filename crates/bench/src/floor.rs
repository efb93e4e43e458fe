//! The floor: what the shortest script needs for a hand-over that already knows what happened: kill
//! or stop the primary, promote the standby that has more, point the other one at it.

use std::path::Path;
use std::time::Duration;

use anyhow::ensure;
use lab::ledger::Ack;
use lab::process;
use lab::workload::{Plan, Shared, Writer};
use tokio::time::Instant;

use crate::bare::Bare;
use crate::say;

/// Between two inserts: the drill's pace.
const PACE: Duration = Duration::from_millis(10);
/// How long the writer runs before each hand-over.
const CALM: Duration = Duration::from_secs(1);
/// How long it may take until a write is acknowledged.
const ACK_LIMIT: Duration = Duration::from_secs(60);
/// How often the ledger is looked at.
const LEDGER_POLL: Duration = Duration::from_millis(5);
/// How long killed processes may take to be gone.
const GONE_LIMIT: Duration = Duration::from_secs(10);

/// Seconds without an acknowledged insert.
#[derive(Debug, Default)]
pub(crate) struct Floors {
    /// The primary was killed.
    pub(crate) killed: Vec<f64>,
    /// It was stopped cleanly.
    pub(crate) switchover: Vec<f64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum How {
    Kill,
    Stop,
}

/// Measures both `rounds` times, with instances in `directory`.
///
/// # Errors
/// PostgreSQL could not be started, or a hand-over did not succeed.
pub(crate) async fn measure(
    directory: &Path,
    rounds: u16,
    floors: &mut Floors,
) -> anyhow::Result<()> {
    let bare = Bare::start(directory).await?;
    let (ledger, epoch) = (Shared::default(), Instant::now());
    let mut floor = Floor { bare, primary: 0, ledger, epoch, writers: 0 };
    for round in 1..=rounds {
        let killed = floor.hand_over(How::Kill).await?;
        let switchover = floor.hand_over(How::Stop).await?;
        say(&format!("{round}/{rounds} killed {killed:.3} s, switchover {switchover:.3} s"));
        floors.killed.push(killed);
        floors.switchover.push(switchover);
    }
    Ok(())
}

struct Floor {
    bare: Bare,
    primary: usize,
    ledger: Shared,
    epoch: Instant,
    /// How many writers there were: each has identifiers of its own.
    writers: u16,
}

impl Floor {
    /// One hand-over; the seconds between the last acknowledged insert on the old primary and the
    /// first on the new one.
    async fn hand_over(&mut self, how: How) -> anyhow::Result<f64> {
        let old = self.primary;
        let before = self.writer(old);
        self.ack_of(self.writers).await?;
        tokio::time::sleep(CALM).await;
        let pids = self.bare.pids(old);
        match how {
            How::Kill => self.bare.kill(old, &pids).await?,
            How::Stop => self.bare.stop(old).await?,
        }
        let (new, other) = self.bare.newest(old).await?;
        let number = self.writers;
        // It is refused until the promotion is done.
        let after = self.writer(new);
        self.bare.promote(new, other).await?;
        let first = self.ack_of(self.writers).await?;
        let last = self.last_of(number);
        drop((before, after));
        let left = process::wait_gone(pids, GONE_LIMIT).await;
        ensure!(left.is_empty(), "processes {left:?} are still there");
        self.bare.attach(old, new).await?;
        self.bare.until_streaming(new).await?;
        self.primary = new;
        Ok((first.acked.saturating_sub(last).as_secs_f64() * 1000.0).round() / 1000.0)
    }

    fn writer(&mut self, instance: usize) -> Writer {
        self.writers += 1;
        let target = self.bare.target(instance);
        let plan = Plan { number: self.writers, skip: 0, target, pace: PACE };
        Writer::start(plan, self.ledger.clone(), self.epoch)
    }

    /// The first acknowledgement of a writer.
    async fn ack_of(&self, writer: u16) -> anyhow::Result<Ack> {
        let until = Instant::now() + ACK_LIMIT;
        loop {
            let ack = self.ledger.lock().next_ack(writer, Duration::ZERO);
            if let Some(ack) = ack {
                return Ok(ack);
            }
            ensure!(Instant::now() < until, "no insert was acknowledged within {ACK_LIMIT:?}");
            tokio::time::sleep(LEDGER_POLL).await;
        }
    }

    /// When the last insert of a writer was acknowledged.
    fn last_of(&self, writer: u16) -> Duration {
        let ledger = self.ledger.lock();
        let acks = ledger.acks().iter().filter(|ack| ack.writer == writer);
        acks.map(|ack| ack.acked).max().unwrap_or_default()
    }
}
