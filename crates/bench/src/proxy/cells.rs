//! Slices in rotation, round after round, so that whatever the machine does at the moment hits
//! every peer; and what is compared of them.

use std::collections::BTreeMap;
use std::time::Instant;

use anyhow::{Context, ensure};

use super::backend::Backend;
use super::load::{self, Script, Slice, Workload};
use super::peers::{POOL_SIZE, Peer, Who};
use crate::say;
use crate::statistics::{median, spread};

/// Clients of each workload.
const CLIENTS: [u32; 4] = [1, 8, 32, 256];
/// The rate at which latencies are measured, in parts of what the slowest peer can do: nobody waits
/// for a processor for long.
const RATE: f64 = 0.25;

/// How often a slice is tried that had no time for a transaction, twice as long each time.
const ATTEMPTS_MAX: u32 = 4;

/// How long and how often.
#[derive(Debug, Clone)]
pub(super) struct Pace {
    /// Of one slice.
    pub(super) seconds: u64,
    /// Slices of each peer in each cell.
    pub(super) rounds: u16,
    /// Only these cells; all if it is empty.
    pub(super) only: Vec<String>,
}

/// A workload, who carries it, and who is compared with whom.
#[derive(Debug, Clone)]
pub(super) struct Cell {
    pub(super) workload: Workload,
    peers: &'static [Who],
    subject: Who,
    pub(super) against: Who,
}

/// Session mode beside HAProxy.
pub(super) fn sessions() -> Vec<Cell> {
    const PEERS: &[Who] = &[Who::Direct, Who::HaProxy, Who::Pgherd];
    const AND_PGBOUNCER: &[Who] = &[Who::Direct, Who::HaProxy, Who::PgBouncer, Who::Pgherd];
    let cell = |workload: Workload| {
        // It is not judged here, and shown where it tells something.
        let with_pgbouncer = workload.script == Script::Connect || workload.clients == 8;
        let peers = if with_pgbouncer { AND_PGBOUNCER } else { PEERS };
        Cell { workload, peers, subject: Who::Pgherd, against: Who::HaProxy }
    };
    let both = [Script::Select, Script::Tpcb];
    let mut workloads: Vec<Workload> = Vec::new();
    for script in both {
        workloads.extend(each(script, false));
        workloads.extend(each(script, true));
    }
    workloads.extend(each(Script::Connect, false));
    workloads.into_iter().map(cell).collect()
}

/// Transaction mode: the simple protocol beside PgBouncer, prepared statements, which that one does
/// not know there, beside HAProxy.
pub(super) fn transactions() -> Vec<Cell> {
    const SIMPLE: &[Who] = &[Who::Direct, Who::PgBouncer, Who::PgherdOneCore];
    const PREPARED: &[Who] = &[Who::Direct, Who::HaProxy, Who::Pgherd];
    let simple = |workload| Cell {
        workload,
        peers: SIMPLE,
        subject: Who::PgherdOneCore,
        against: Who::PgBouncer,
    };
    let prepared =
        |workload| Cell { workload, peers: PREPARED, subject: Who::Pgherd, against: Who::HaProxy };
    let both = [Script::Select, Script::Tpcb];
    let all = [Script::Select, Script::Tpcb, Script::Connect];
    let mut cells: Vec<Cell> = Vec::new();
    cells.extend(all.into_iter().flat_map(|script| each(script, false)).map(simple));
    // pgbench waits for each Parse before it looks at its other clients. In transactions, more
    // clients than the pool has connections would wait for each other.
    let fits =
        |workload: &Workload| workload.script == Script::Select || workload.clients <= POOL_SIZE;
    let each_prepared = both.into_iter().flat_map(|script| each(script, true));
    cells.extend(each_prepared.filter(fits).map(prepared));
    cells
}

fn each(script: Script, prepared: bool) -> impl Iterator<Item = Workload> {
    CLIENTS.into_iter().map(move |clients| Workload { script, prepared, clients })
}

/// What one peer did in one slice.
#[derive(Debug, Clone, Copy)]
struct Sample {
    slice: Slice,
    /// Processor time of the peer for each transaction.
    processor_us: Option<f64>,
}

/// A cell and what was measured in it.
pub(super) struct Measured {
    pub(super) cell: Cell,
    /// As fast as it goes.
    samples: BTreeMap<&'static str, Vec<Sample>>,
    /// At the cell's rate.
    paced: BTreeMap<&'static str, Vec<Slice>>,
}

/// Of each peer the slice of one round.
fn at<T: Copy>(
    all: &BTreeMap<&'static str, Vec<T>>,
    round: usize,
) -> BTreeMap<&'static str, Vec<T>> {
    let one = |values: &Vec<T>| values.get(round).copied().into_iter().collect();
    all.iter().map(|(name, values)| (*name, one(values))).collect()
}

/// Medians of a peer over the rounds; latencies at the cell's rate, if it has one.
#[derive(Debug, Clone, Copy)]
pub(super) struct Medians {
    pub(super) tps: f64,
    pub(super) p50_us: f64,
    pub(super) p99_us: f64,
    pub(super) processor_us: Option<f64>,
}

impl Measured {
    fn of(&self, who: Who) -> &[Sample] {
        self.samples.get(who.name()).map_or(&[], Vec::as_slice)
    }

    /// What a peer did, if it is in the cell.
    pub(super) fn medians(&self, who: Who) -> Option<Medians> {
        let samples = self.of(who);
        let paced = self.paced.get(who.name()).filter(|slices| !slices.is_empty());
        let slices = || samples.iter().map(|sample| sample.slice);
        let timed: Vec<Slice> = paced.cloned().unwrap_or_else(|| slices().collect());
        Some(Medians {
            tps: median(slices().map(|slice| slice.tps))?,
            p50_us: median(timed.iter().map(|slice| slice.p50_us))?,
            p99_us: median(timed.iter().map(|slice| slice.p99_us))?,
            processor_us: median(samples.iter().filter_map(|sample| sample.processor_us)),
        })
    }

    /// Our throughput in parts of another's.
    pub(super) fn throughput(&self, other: Who) -> Option<f64> {
        Some(self.medians(self.cell.subject)?.tps / self.medians(other)?.tps)
    }

    /// What we add to a latency in parts of what the other adds; nothing where that one adds
    /// nothing that could be measured.
    pub(super) fn added(&self, latency: fn(&Medians) -> f64) -> Option<f64> {
        let direct = latency(&self.medians(Who::Direct)?);
        let ours = latency(&self.medians(self.cell.subject)?) - direct;
        let theirs = latency(&self.medians(self.cell.against)?) - direct;
        (theirs > 0.0).then(|| ours / theirs)
    }

    /// Our processor time for each transaction in parts of the other's.
    pub(super) fn processor(&self) -> Option<f64> {
        let ours = self.medians(self.cell.subject)?.processor_us?;
        Some(ours / self.medians(self.cell.against)?.processor_us?)
    }

    /// The smallest and the largest of `ratio` in one round.
    pub(super) fn spread(&self, ratio: fn(&Self) -> Option<f64>) -> Option<(f64, f64)> {
        let rounds = self.of(self.cell.subject).len();
        let ratios: Vec<f64> = (0..rounds).filter_map(|round| ratio(&self.round(round))).collect();
        spread(&ratios)
    }

    /// One round as if it were all.
    fn round(&self, round: usize) -> Measured {
        let (samples, paced) = (at(&self.samples, round), at(&self.paced, round));
        Measured { cell: self.cell.clone(), samples, paced }
    }

    /// The rate of the paced slices, the same in all rounds: from the first one.
    fn rate(&self) -> Option<f64> {
        let first = self.samples.values().filter_map(|samples| samples.first());
        let slowest = first.map(|sample| sample.slice.tps).reduce(f64::min)?;
        self.cell.workload.is_paced().then_some(slowest * RATE)
    }
}

/// All cells, round after round.
pub(super) async fn measure(
    lab: &Backend,
    peers: &[Peer],
    cells: Vec<Cell>,
    pace: &Pace,
) -> anyhow::Result<Vec<Measured>> {
    let wanted = |cell: &Cell| pace.only.is_empty() || pace.only.contains(&cell.workload.name());
    let cells = cells.into_iter().filter(wanted);
    let mut all: Vec<Measured> = cells
        .map(|cell| Measured { cell, samples: BTreeMap::new(), paced: BTreeMap::new() })
        .collect();
    ensure!(!all.is_empty(), "no cell is called so");
    let kinds = |measured: &Measured| if measured.cell.workload.is_paced() { 2 } else { 1 };
    let slices: usize =
        all.iter().map(|measured| measured.cell.peers.len() * kinds(measured)).sum();
    let count = slices * usize::from(pace.rounds);
    let mut progress = Progress { begun: Instant::now(), done: 0, count };
    for round in 0..usize::from(pace.rounds) {
        for measured in &mut all {
            // Another one begins in each round.
            let (end, begin) = measured.cell.peers.split_at(round % measured.cell.peers.len());
            let order: Vec<Who> = begin.iter().chain(end).copied().collect();
            let find = |who| peers.iter().find(move |peer| peer.who == who);
            let mut order: Vec<&Peer> = order.into_iter().filter_map(find).collect();
            if round % 2 == 1 {
                // Nobody always comes behind the same one: what that leaves to the kernel, as
                // thousands of closed connections, is the next one's burden.
                order.reverse();
            }
            ensure!(order.len() == measured.cell.peers.len(), "a peer of the cell does not run");
            let (workload, seconds) = (measured.cell.workload, pace.seconds);
            for peer in &order {
                let sample = sample(lab, peer, workload, seconds).await?;
                measured.samples.entry(peer.who.name()).or_default().push(sample);
            }
            progress.done += order.len();
            if let Some(rate) = measured.rate() {
                for peer in &order {
                    let slice = slice(lab, peer, workload, seconds, Some(rate)).await?;
                    measured.paced.entry(peer.who.name()).or_default().push(slice);
                }
                progress.done += order.len();
            }
            progress.tell(measured);
        }
    }
    Ok(all)
}

async fn sample(
    lab: &Backend,
    peer: &Peer,
    workload: Workload,
    seconds: u64,
) -> anyhow::Result<Sample> {
    let before = peer.processor_seconds();
    let slice = slice(lab, peer, workload, seconds, None).await?;
    let used = before.and_then(|before| Some(peer.processor_seconds()? - before));
    let each = |used: f64| used * 1e6 / slice.transactions.max(1) as f64;
    Ok(Sample { slice, processor_us: used.map(each) })
}

async fn slice(
    lab: &Backend,
    peer: &Peer,
    workload: Workload,
    seconds: u64,
    rate: Option<f64>,
) -> anyhow::Result<Slice> {
    let failed = || format!("through {:?}", peer.who);
    for attempt in 0..ATTEMPTS_MAX {
        let (pgbench, seconds) = (lab.pgbench(peer.port), seconds << attempt);
        let slice = load::run(pgbench, workload, seconds, rate, lab.directory()).await;
        if let Some(slice) = slice.with_context(failed)? {
            return Ok(slice);
        }
    }
    Err(anyhow::anyhow!("{} had no time for a transaction", workload.name())).with_context(failed)
}

/// How far it is.
struct Progress {
    begun: Instant,
    done: usize,
    count: usize,
}

impl Progress {
    fn tell(&self, measured: &Measured) {
        let left = self.count.saturating_sub(self.done) as f64;
        let left = self.begun.elapsed().as_secs_f64() / self.done as f64 * left;
        let latest = measured.samples.iter().filter_map(|(name, samples)| {
            samples.last().map(|sample| format!("{name} {:.0}", sample.slice.tps))
        });
        let latest: Vec<String> = latest.collect();
        let (done, count, name) = (self.done, self.count, measured.cell.workload.name());
        say(&format!("{done}/{count} {name}: {} tps; {left:.0} s left", latest.join(", ")));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measured(tps: [&[f64]; 3]) -> Measured {
        let cell = transactions().remove(0);
        let sample = |tps: f64| Sample {
            slice: Slice { tps, transactions: 1, p50_us: 1e6 / tps, p99_us: 2e6 / tps },
            processor_us: Some(1e5 / tps),
        };
        let names = ["direct", "pgbouncer", "pgherd"];
        let samples = names.into_iter().zip(tps);
        let samples = samples.map(|(name, tps)| (name, tps.iter().copied().map(sample).collect()));
        Measured { cell, samples: samples.collect(), paced: BTreeMap::new() }
    }

    #[test]
    fn ratios_are_of_medians() {
        let found = measured([&[20_000.0], &[8_000.0, 10_000.0, 1.0], &[10_000.0, 12_500.0, 1.0]]);
        assert_eq!(found.throughput(Who::PgBouncer), Some(10_000.0 / 8_000.0));
        // 125 and 100 µs beside 50.
        assert_eq!(found.added(|medians| medians.p50_us), Some(50.0 / 75.0));
        assert_eq!(found.processor(), Some(0.8));
        assert_eq!(found.spread(|one| one.throughput(Who::PgBouncer)), Some((1.0, 1.25)));
    }

    #[test]
    fn latencies_are_those_at_the_rate_where_there_is_one() {
        let mut found = measured([&[20_000.0], &[8_000.0], &[10_000.0]]);
        assert_eq!(found.rate(), None, "one client is paced by itself");
        found.cell.workload.clients = 8;
        assert_eq!(found.rate(), Some(2_000.0));
        let slice = Slice { tps: 2_000.0, transactions: 1, p50_us: 7.0, p99_us: 9.0 };
        found.paced.insert("pgherd", vec![slice]);
        let medians = found.medians(Who::PgherdOneCore).expect("it is in the cell");
        assert_eq!((medians.tps, medians.p50_us, medians.p99_us), (10_000.0, 7.0, 9.0));
        let direct = found.medians(Who::Direct).expect("it is in the cell");
        assert_eq!(direct.p50_us, 50.0);
    }

    #[test]
    fn nothing_is_divided_by_nothing() {
        let found = measured([&[8_000.0], &[10_000.0], &[10_000.0]]);
        assert_eq!(found.added(|medians| medians.p50_us), None);
        assert_eq!(measured([&[], &[], &[]]).throughput(Who::PgBouncer), None);
    }

    #[test]
    fn every_workload_is_a_cell_of_its_own() {
        // Without prepared transactions of more clients than there are connections.
        for (cells, count) in [(sessions(), 20), (transactions(), 18)] {
            let names = cells.iter().map(|cell| cell.workload.name());
            assert_eq!(names.collect::<std::collections::BTreeSet<_>>().len(), count);
            assert_eq!(cells.len(), count);
            for cell in cells {
                assert!(cell.peers.contains(&cell.subject) && cell.peers.contains(&cell.against));
            }
        }
    }
}
