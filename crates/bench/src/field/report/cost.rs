//! What the fourth experiment shows.

use super::table::{Line, Table};
use super::{Figure, Section, filled};
use crate::field::chart::Bar;
use crate::field::cost::Outcome;
use crate::field::herd;
use crate::field::kinds::Experiment;
use crate::field::results::Cost;

/// The tables and charts of what was measured.
///
/// # Errors
/// A chart cannot be drawn.
pub(super) fn section(Cost { clusters, growth }: &Cost) -> anyhow::Result<Section> {
    let (loaded, idle): (Vec<&Outcome>, Vec<&Outcome>) =
        clusters.iter().partition(|outcome| outcome.case.load);
    let grown = Figure::new(
        "cost-growth",
        "pgherd: many clusters of three agents against one etcd",
        grown(growth),
    );
    let figures = [
        figure("cost-idle", "One cluster of three servers without clients", &idle)?,
        figure("cost-load", "The same under the writers", &loaded)?,
        grown.charted(
            "pgherd: requests to the DCS, by clusters",
            "a second",
            &growth.iter().map(requests).collect::<Vec<Bar>>(),
        )?,
    ];
    Ok(Section {
        experiment: Experiment::Cost,
        title: "Cost",
        text: TEXT.to_owned(),
        figures: filled(figures),
    })
}

fn figure(name: &str, title: &str, outcomes: &[&Outcome]) -> anyhow::Result<Figure> {
    let bar = |outcome: &&Outcome| {
        let architecture = outcome.case.architecture;
        let percent = outcome.all().processor_percent;
        Bar::of_one(architecture.title().to_owned(), percent, architecture.is_ours())
    };
    let bars: Vec<Bar> = outcomes.iter().map(bar).collect();
    let table = Table::new(&HEADER, outcomes.iter().map(|outcome| line(outcome)).collect());
    let axis = "processor time beside PostgreSQL, % of one processor";
    Figure::new(name, title, table).charted(title, axis, &bars)
}

fn requests(outcome: &herd::Outcome) -> Bar {
    Bar::of_one(format!("{} clusters", outcome.clusters), outcome.dcs_requests, true)
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
    let quantities = if growth.is_empty() { &[] } else { &herd::QUANTITIES[..] };
    Table { header, lines: quantities.iter().map(line).collect() }
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
        .cell(format!("{:.1}", outcome.requests()))
        .cell(format!("{:.2}", outcome.dcs_changes))
        .cell(format!("{:.1}", outcome.network_bytes / 1000.0))
}
