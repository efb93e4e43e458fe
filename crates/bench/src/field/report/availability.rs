//! What the second experiment shows.

use super::table::{Line, Table};
use super::{Figure, Section, filled};
use crate::field::availability::{FAULTS_A_YEAR, Outcome};
use crate::field::chart::Bar;
use crate::field::kinds::{Experiment, Shape};

/// One figure, if anything was measured.
///
/// # Errors
/// The chart cannot be drawn.
pub(super) fn section(outcomes: &[Outcome]) -> anyhow::Result<Section> {
    let title = "Served under the same schedule of faults";
    let bars: Vec<Bar> = outcomes.iter().map(bar).collect();
    let unserved = "Seconds of an hour that were not served";
    let figure =
        Figure::new("availability", title, table(outcomes)).charted(unserved, "seconds", &bars)?;
    Ok(Section {
        experiment: Experiment::Availability,
        title: "Availability",
        text: text(),
        figures: filled([figure]),
    })
}

fn text() -> String {
    format!(
        "Everybody operates for as long under the same faults of the primary, drawn from a seed; a \
         fault waits until the one before it is over. A second is served if an insert was \
         acknowledged in it; a request, one every 10 ms, if an insert was acknowledged within a \
         client's second of when it was due. A year is extrapolated: {FAULTS_A_YEAR} such faults a \
         year, and nothing else, are assumed."
    )
}

fn title(outcome: &Outcome) -> String {
    Shape::new(outcome.case.architecture, outcome.case.mode).title()
}

fn bar(outcome: &Outcome) -> Bar {
    let hours = outcome.seconds as f64 / 3600.0;
    let unserved = (outcome.seconds - outcome.seconds_served) as f64 / hours.max(0.01);
    Bar::of_one(title(outcome), unserved, outcome.case.architecture.is_ours())
}

fn table(outcomes: &[Outcome]) -> Table {
    let line = |outcome: &Outcome| {
        Line::new(title(outcome), outcome.case.architecture.is_ours())
            .cell(format!("{:.2}", outcome.seconds_percent()))
            .cell(format!("{:.2}", outcome.requests_percent()))
            .cell(format!("{:.6}", outcome.year_percent()))
            .cell(format!("{:.0}", outcome.unserved_a_year_s()))
            .cell(outcome.faults.len().to_string())
            .cell(outcome.case.minutes.to_string())
            .cell(format!("{:.0}", outcome.latest_s))
            .faults(outcome.lost)
            .faults(outcome.interleaved)
    };
    let header = [
        "architecture",
        "seconds, %",
        "requests, %",
        "of a year, %",
        "unserved of it, s",
        "faults",
        "minutes",
        "latest fault, s",
        "lost",
        "by two",
    ];
    Table::new(&header, outcomes.iter().map(line).collect())
}
