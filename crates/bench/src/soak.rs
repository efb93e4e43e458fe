//! `pgherd-bench soak`: a cluster under its writers on a loaded machine, where nothing may happen.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use lab::ledger::PROXY_WRITER;
use lab::load::Load;
use lab::workload::{self, Plan, Shared, Target, Writer};
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::demo::{self, Demo};
use crate::{Scratch, say};

/// Between two inserts through the proxy, and straight to a node: the drill's pace.
const PROXY_PACE: Duration = Duration::from_millis(10);
const DIRECT_PACE: Duration = Duration::from_millis(50);
/// How long the table may take to make and to read on a loaded machine.
const SQL_LIMIT: Duration = Duration::from_secs(60);
/// How often it says how far it is.
const TELL_PERIOD: Duration = Duration::from_secs(60);
/// A gap that touches the end is one that goes on: how long the last answer may be late.
const SETTLE: Duration = Duration::from_secs(2);

/// Options of `soak`.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// How long
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u64).range(1..=100_000))]
    minutes: u64,
    /// Busy processes for each processor
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u16).range(0..=100))]
    load: u16,
    /// The program to measure (default: the one beside this one)
    #[arg(long, value_name = "FILE")]
    pgherd: Option<PathBuf>,
}

/// Runs it, and prints the figures; `false` if anything was handed over or lost.
///
/// # Errors
/// The cluster could not be started, written to, or ended.
pub(crate) async fn run(options: &Options) -> anyhow::Result<bool> {
    let program = demo::program(options.pgherd.as_ref())?;
    let scratch = Scratch::new("soak")?;
    let mut demo = Demo::start(&program, &scratch.0.join("herd"), &[])?;
    let herd = demo.healthy().await?;
    let through_proxy = target(&herd, 0)?;
    workload::create_table(&through_proxy, SQL_LIMIT).await?;
    let (ledger, epoch) = (Shared::default(), Instant::now());
    let writers = writers(&herd, &ledger, epoch)?;
    let load = Load::start(usize::from(options.load))?;
    let listened = listen(&mut demo, &ledger, epoch, Duration::from_secs(options.minutes * 60));
    listened.await?;
    drop(load);
    let until = epoch.elapsed();
    tokio::time::sleep(SETTLE).await;
    let entries = ledger.lock().acks().len();
    let present = workload::present(&through_proxy, SQL_LIMIT).await?;
    drop(writers);
    let object = figures(options.minutes, &ledger, until, entries, &present);
    demo.end().await?;
    println!("{object}");
    Ok(["failovers", "lost_acknowledged", "interleaved"].iter().all(|key| object[key] == 0))
}

/// One writer through the proxy, one straight to each node.
fn writers(herd: &Value, ledger: &Shared, epoch: Instant) -> anyhow::Result<Vec<Writer>> {
    let nodes = herd["nodes"].as_array().context("the demo names no nodes")?;
    let mut writers = Vec::new();
    for number in 0..=u16::try_from(nodes.len())? {
        let pace = if number == PROXY_WRITER { PROXY_PACE } else { DIRECT_PACE };
        let plan = Plan { number, skip: 0, target: target(herd, usize::from(number))?, pace };
        writers.push(Writer::start(plan, ledger.clone(), epoch));
    }
    Ok(writers)
}

/// How to reach the proxy (0), or the node of that number, with what the demo says of itself.
fn target(herd: &Value, number: usize) -> anyhow::Result<Target> {
    let url = herd["read_write"].as_str().context("the demo names no read-write port")?;
    let mut target: Target = url.parse().context("the connection string")?;
    target.application_name("pgherd-soak");
    let Some(node) = number.checked_sub(1) else { return Ok(target) };
    let port = herd["nodes"][node]["pg_port"].as_u64().context("a node without a port")?;
    let password = target.get_password().unwrap_or_default().to_vec();
    let password = String::from_utf8(password).context("the password")?;
    Ok(workload::target(u16::try_from(port)?, "postgres", &password, "pgherd-soak-direct"))
}

/// Waits as long as it is to last, and tells how far it is.
async fn listen(
    demo: &mut Demo,
    ledger: &Shared,
    epoch: Instant,
    length: Duration,
) -> anyhow::Result<()> {
    let end = epoch + length;
    let mut tell = tokio::time::interval(TELL_PERIOD);
    loop {
        tokio::select! {
            () = tokio::time::sleep_until(end) => return Ok(()),
            event = demo.said() => anyhow::ensure!(event?.is_some(), "the demo has ended"),
            _ = tell.tick() => {
                let gap = {
                    let ledger = ledger.lock();
                    ledger.longest_gap(PROXY_WRITER, Duration::ZERO, epoch.elapsed())
                };
                let left = end.saturating_duration_since(Instant::now()).as_secs();
                say(&format!("longest gap {:.3} s; {left} s left", gap.as_secs_f64()));
            }
        }
    }
}

fn figures(
    minutes: u64,
    ledger: &Shared,
    until: Duration,
    entries: usize,
    present: &std::collections::BTreeSet<i64>,
) -> Value {
    let ledger = ledger.lock();
    let timelines: std::collections::BTreeSet<u32> =
        ledger.acks().iter().map(|ack| ack.timeline).collect();
    let gap = ledger.longest_gap(PROXY_WRITER, Duration::ZERO, until);
    json!({
        "minutes": minutes,
        "failovers": timelines.len().saturating_sub(1),
        "longest_gap_s": (gap.as_secs_f64() * 1000.0).round() / 1000.0,
        "lost_acknowledged": ledger.missing(entries, present).len(),
        "interleaved": ledger.interleaved().len(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use lab::ledger::Ack;
    use std::collections::BTreeSet;

    fn ledger(timelines: &[u32]) -> Shared {
        let ledger = Shared::default();
        for (id, timeline) in (1..).zip(timelines) {
            let at = Duration::from_millis(u64::try_from(id).unwrap_or(0) * 100);
            let port = u16::try_from(*timeline).unwrap_or(0);
            let ack = Ack { id, writer: 0, sent: at, acked: at, port, timeline: *timeline };
            ledger.lock().acknowledged(ack);
        }
        ledger
    }

    #[test]
    fn each_new_timeline_is_a_failover() {
        let object =
            figures(1, &ledger(&[3, 3, 4]), Duration::from_millis(300), 3, &[1, 2, 3].into());
        assert_eq!(object["failovers"], 1);
        assert_eq!(object["longest_gap_s"], 0.1);
        assert_eq!(object["lost_acknowledged"], 0);
        let lost = figures(1, &ledger(&[3, 3]), Duration::from_millis(900), 2, &BTreeSet::new());
        assert_eq!(lost["failovers"], 0);
        assert_eq!(lost["lost_acknowledged"], 2);
    }

    #[test]
    fn the_demo_says_where_it_is_reached() {
        let herd = json!({"read_write": "postgresql://postgres:secret@127.0.0.1:7/postgres",
            "nodes": [{"pg_port": 8}]});
        let ports = |number| target(&herd, number).map(|target| target.get_ports().to_vec());
        assert_eq!(ports(0).ok(), Some(vec![7]));
        assert_eq!(ports(1).ok(), Some(vec![8]));
        assert!(ports(2).is_err());
    }
}
