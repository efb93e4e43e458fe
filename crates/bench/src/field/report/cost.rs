//! What the fourth experiment shows.

use super::table::{Line, Table};
use super::{Figure, Section};
use crate::field::cost::Outcome;
use crate::field::herd;
use crate::field::results::Cost;

/// The tables of what was measured.
pub(super) fn section(Cost { clusters: outcomes, growth }: &Cost) -> Section {
    let mut figures = Vec::new();
    for (load, name, title) in [
        (false, "cost-idle", "One cluster of three servers without clients"),
        (true, "cost-load", "The same under the writers"),
    ] {
        let of = outcomes.iter().filter(|outcome| outcome.case.load == load);
        let lines: Vec<Line> = of.map(line).collect();
        if !lines.is_empty() {
            let table = Table::new(&HEADER, lines);
            figures.push(Figure {
                name: name.to_owned(),
                title: title.to_owned(),
                chart: None,
                table,
            });
        }
    }
    if !growth.is_empty() {
        figures.push(Figure {
            name: "cost-growth".to_owned(),
            title: "pgherd: many clusters of three agents against one etcd".to_owned(),
            chart: None,
            table: grown(growth),
        });
    }
    Section { title: "Cost", text: TEXT.to_owned(), figures }
}

/// A row for each quantity: as measured, and the line through it.
fn grown(growth: &[herd::Outcome]) -> Table {
    let clusters = growth.iter().map(|one| one.clusters.to_string());
    let model = ["at none", "each", "10,000"].map(str::to_owned);
    let header = ["clusters".to_owned()].into_iter().chain(clusters).chain(model).collect();
    let line = |(name, of): &herd::Quantity| {
        let measured = growth.iter().map(of);
        let modelled = herd::model(growth, *of).into_iter().flatten();
        let cell = |line: Line, value: f64| {
            let decimals = if value.abs() < 10.0 { 2 } else { 0 };
            line.cell(format!("{value:.decimals$}"))
        };
        measured.chain(modelled).fold(Line::new((*name).to_owned(), false), cell)
    };
    Table { header, lines: herd::QUANTITIES.iter().map(line).collect() }
}

const TEXT: &str = "What runs beside PostgreSQL on all hosts together: agents, etcd, proxy. \
    Memory is PSS; the processor time has that of children that were waited for; DCS requests are \
    the messages that etcd's members received from clients; changes went through its log. The \
    bytes that hosts sent have PostgreSQL's among them. Many clusters have real agents, without a \
    PostgreSQL, and one etcd of one member, on one host; the last columns are a straight line \
    through what was measured, drawn to 10,000 clusters.";

const HEADER: [&str; 8] = [
    "architecture",
    "memory, MiB",
    "of which",
    "processor, %",
    "of which",
    "DCS requests/s",
    "DCS changes/s",
    "network, kB/s",
];

fn line(outcome: &Outcome) -> Line {
    let parts = |part: fn(&crate::field::cost::Use) -> String| {
        let parts = outcome.programs.iter().map(|(name, one)| format!("{name} {}", part(one)));
        parts.collect::<Vec<_>>().join(", ")
    };
    let all = outcome.all();
    let architecture = outcome.case.architecture;
    Line::new(architecture.title().to_owned(), architecture.is_ours())
        .cell(format!("{:.0}", all.memory_mib))
        .cell(parts(|one| format!("{:.0}", one.memory_mib)))
        .cell(format!("{:.1}", all.processor_percent))
        .cell(parts(|one| format!("{:.1}", one.processor_percent)))
        .cell(format!("{:.1}", outcome.dcs_requests.values().sum::<f64>()))
        .cell(format!("{:.2}", outcome.dcs_changes))
        .cell(format!("{:.1}", outcome.network_bytes / 1000.0))
}
