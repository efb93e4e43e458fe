//! What was measured: as one JSON object, as tables, and in the document.

use std::fmt::Write;
use std::path::Path;

use serde_json::{Map, Value, json};

use super::cells::{Measured, Medians, Pace};
use super::idle::Idle;
use super::peers::Who;
use super::switchover::{All, Found};
use crate::document;

/// How the document marks a table; the name of the part follows.
const MARK: &str = "bench-proxy";

/// What there is of each part.
pub(super) struct Report {
    pace: Pace,
    scale: u32,
    pub(super) session: Option<Vec<Measured>>,
    pub(super) transaction: Option<Vec<Measured>>,
    pub(super) idle: Option<Idle>,
    pub(super) planned: Option<All>,
}

impl Report {
    pub(super) fn new(pace: Pace, scale: u32) -> Report {
        Report { pace, scale, session: None, transaction: None, idle: None, planned: None }
    }

    /// The judged object; a part without figures is null.
    pub(super) fn object(&self) -> Value {
        let transaction = self.transaction.as_ref().map(|cells| {
            let mut object = against(cells, Who::PgBouncer);
            object.insert("processor_per_transaction".to_owned(), processor(cells));
            let prepared: Vec<&Measured> = of(cells, Who::HaProxy).collect();
            for other in [Who::HaProxy, Who::Direct] {
                let name = format!("prepared_vs_{}", other.name());
                let ratios = ratios(&prepared, |cell| cell.throughput(other));
                object.insert(name, Value::Object(ratios));
            }
            object
        });
        let planned = self.planned.as_ref();
        json!({
            "session_vs_haproxy": self.session.as_ref().map(|cells| against(cells, Who::HaProxy)),
            "transaction_vs_pgbouncer": transaction,
            "idle_clients": self.idle.as_ref().map(idle_object),
            "switchover": planned.map(|all| planned_object(&all.switchovers, "switchovers")),
            "restart": planned.map(|all| planned_object(&all.restarts, "restarts")),
            "restart_by_switchover":
                planned.map(|all| planned_object(&all.by_switchover, "restarts")),
        })
    }

    /// A table for each part that there is.
    pub(super) fn tables(&self) -> String {
        let parts: Vec<String> = self.parts().into_iter().map(|(_, table)| table).collect();
        parts.join("\n")
    }

    /// Replaces the tables of the document that were measured.
    pub(super) fn write(&self, file: &Path) -> anyhow::Result<()> {
        let parts = self.parts().into_iter();
        let parts: Vec<(String, String)> =
            parts.map(|(name, table)| (format!("{MARK} {name}"), table)).collect();
        document::replace(file, &parts)
    }

    fn parts(&self) -> Vec<(&'static str, String)> {
        let slices = format!(
            "{} rounds of slices of {} s, scale {}.\n",
            self.pace.rounds, self.pace.seconds, self.scale
        );
        let mut parts = Vec::new();
        if let Some(cells) = &self.session {
            let peers = [Who::Direct, Who::HaProxy, Who::PgBouncer, Who::Pgherd];
            let cells: Vec<&Measured> = cells.iter().collect();
            parts.push(("session", format!("{slices}\n{}", table(&cells, &peers))));
        }
        if let Some(cells) = &self.transaction {
            let simple: Vec<&Measured> = of(cells, Who::PgBouncer).collect();
            let prepared: Vec<&Measured> = of(cells, Who::HaProxy).collect();
            let beside_pgbouncer = [Who::Direct, Who::PgBouncer, Who::PgherdOneCore];
            let beside_haproxy = [Who::Direct, Who::HaProxy, Who::Pgherd];
            let simple = table(&simple, &beside_pgbouncer);
            let prepared = table(&prepared, &beside_haproxy);
            parts.push(("transaction", format!("{slices}\n{simple}\n{prepared}")));
        }
        if let Some(idle) = &self.idle {
            parts.push(("idle", idle_table(idle)));
        }
        if let Some(all) = &self.planned {
            parts.push(("switchover", planned_table(&all.switchovers)));
            parts.push(("restart", planned_table(&all.restarts)));
            parts.push(("restart by switchover", planned_table(&all.by_switchover)));
        }
        parts
    }
}

/// The cells that are compared with one peer.
fn of(cells: &[Measured], against: Who) -> impl Iterator<Item = &Measured> {
    cells.iter().filter(move |measured| measured.cell.against == against)
}

/// Throughput by cell, then what else is compared.
fn against(cells: &[Measured], other: Who) -> Map<String, Value> {
    let cells: Vec<&Measured> = of(cells, other).collect();
    let mut object = ratios(&cells, |cell| cell.throughput(cell.cell.against));
    let p50 = ratios(&cells, |cell| cell.added(|medians| medians.p50_us));
    let p99 = ratios(&cells, |cell| cell.added(|medians| medians.p99_us));
    let spread: Map<String, Value> = cells
        .iter()
        .map(|cell| {
            let spread = cell.spread(|one| one.throughput(one.cell.against));
            let spread = spread.map(|(low, high)| [round(low), round(high)]);
            (cell.cell.workload.name(), json!(spread))
        })
        .collect();
    object.insert("added_latency_p50".to_owned(), Value::Object(p50));
    object.insert("added_latency_p99".to_owned(), Value::Object(p99));
    object.insert("spread".to_owned(), Value::Object(spread));
    object
}

fn ratios(cells: &[&Measured], ratio: impl Fn(&Measured) -> Option<f64>) -> Map<String, Value> {
    let entry = |cell: &&Measured| (cell.cell.workload.name(), json!(ratio(cell).map(round)));
    cells.iter().map(entry).collect()
}

fn processor(cells: &[Measured]) -> Value {
    let entries = of(cells, Who::PgBouncer).map(|cell| {
        let spread = cell.spread(Measured::processor);
        let spread = spread.map(|(low, high)| [round(low), round(high)]);
        let ratio = cell.processor().map(round);
        (cell.cell.workload.name(), json!({"ratio": ratio, "spread": spread}))
    });
    Value::Object(entries.collect())
}

fn idle_object(idle: &Idle) -> Value {
    json!({
        "n": idle.clients,
        "pss_mib": round(idle.pgherd.pss_mib),
        "pgbouncer_pss_mib": round(idle.pgbouncer.pss_mib),
        "empty_pss_mib": round(idle.pgherd.empty_mib),
        "pgbouncer_empty_pss_mib": round(idle.pgbouncer.empty_mib),
    })
}

fn planned_object(found: &Found, name: &str) -> Value {
    let longest = |waits: &[f64]| waits.iter().copied().reduce(f64::max).map(round);
    json!({
        "clients": found.clients,
        "errors": found.errors,
        "longest_wait_s": longest(&found.longest_waits),
        name: found.times,
        "longest_waits_s": found.longest_waits.iter().copied().map(round).collect::<Vec<_>>(),
        "longest_wait_before_s": longest(&found.longest_waits_before),
        "first_error": found.first_error,
    })
}

/// Throughput and latencies of each peer, and the three ratios.
fn table(cells: &[&Measured], peers: &[Who]) -> String {
    let mut text = String::from("| |");
    for who in peers {
        text.push_str(&format!(" {}: tps | p50, p99 µs |", who.name()));
    }
    text.push_str(" tps | added p50 | added p99 | processor |\n|---|");
    text.push_str(&"---|".repeat(peers.len() * 2 + 4));
    text.push('\n');
    for cell in cells {
        text.push_str(&format!("| {} |", cell.cell.workload.name().replace('_', " ")));
        for who in peers {
            match cell.medians(*who) {
                Some(medians) => text.push_str(&peer_columns(&medians)),
                None => text.push_str(" | |"),
            }
        }
        let throughput = cell.throughput(cell.cell.against);
        let added = [cell.added(|m| m.p50_us), cell.added(|m| m.p99_us), cell.processor()];
        for ratio in [throughput].into_iter().chain(added) {
            let ratio = ratio.map_or_else(String::new, |ratio| format!("{ratio:.2}"));
            text.push_str(&format!(" {ratio} |"));
        }
        text.push('\n');
    }
    text
}

fn peer_columns(medians: &Medians) -> String {
    format!(" {:.0} | {:.0}, {:.0} |", medians.tps, medians.p50_us, medians.p99_us)
}

fn idle_table(idle: &Idle) -> String {
    let row =
        |name, empty: f64, full: f64| format!("| {name} | {empty:.1} MiB | {full:.1} MiB |\n");
    let rows = [
        row("pgherd", idle.pgherd.empty_mib, idle.pgherd.pss_mib),
        row("PgBouncer", idle.pgbouncer.empty_mib, idle.pgbouncer.pss_mib),
    ];
    format!("| PSS | no client | {} clients |\n|---|---|---|\n{}", idle.clients, rows.concat())
}

fn planned_table(found: &Found) -> String {
    let mut text = String::from(
        "| clients | errors | longest wait | the longest in the seconds before | commits a second \
         before |\n|---|---|---|---|---|\n",
    );
    let rounds = found.longest_waits.iter().zip(&found.longest_waits_before);
    for ((wait, before), tps) in rounds.zip(&found.tps_before) {
        let row =
            writeln!(text, "| {} | | {wait:.3} s | {before:.3} s | {tps:.0} |", found.clients);
        // Writing to a string does not fail.
        row.unwrap_or_default();
    }
    text.push_str(&format!("| all | {} | | | |\n", found.errors));
    text
}

/// To three decimals.
fn round(value: f64) -> f64 {
    (value * 1000.0).round() / 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_object_has_its_keys_whatever_was_measured() {
        let pace = Pace { seconds: 1, rounds: 1, only: vec![] };
        let mut report = Report::new(pace, 10);
        let memory = super::super::idle::Memory { empty_mib: 5.0, pss_mib: 50.123_456 };
        report.idle = Some(Idle { clients: 10_000, pgherd: memory, pgbouncer: memory });
        let switchovers =
            Found { clients: 256, times: 2, longest_waits: vec![0.5, 0.75], ..Found::default() };
        report.planned = Some(All { switchovers, ..All::default() });
        let object = report.object();
        let keys: Vec<&String> = object.as_object().expect("an object").keys().collect();
        let expected = [
            "session_vs_haproxy",
            "transaction_vs_pgbouncer",
            "idle_clients",
            "switchover",
            "restart",
            "restart_by_switchover",
        ];
        assert_eq!(keys, expected);
        assert_eq!(object["idle_clients"]["pss_mib"], 50.123);
        assert_eq!(object["switchover"]["longest_wait_s"], 0.75);
        assert_eq!(object["switchover"]["errors"], 0);
        assert_eq!(object["switchover"]["switchovers"], 2);
        assert_eq!(object["session_vs_haproxy"], Value::Null);
    }
}
