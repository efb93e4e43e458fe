//! What the fifth experiment shows.

use std::collections::BTreeSet;

use super::table::{Line, Table};
use super::{Figure, Section, filled, spread};
use crate::field::chart::Bar;
use crate::field::data::{Case, Finding, Outcome, Part};
use crate::field::kinds::{Experiment, Fault, Mode, Shape};

/// The tables of what was measured, and a chart.
///
/// # Errors
/// It cannot be drawn.
pub(super) fn section(outcomes: &[Outcome]) -> anyhow::Result<Section> {
    let latency = Figure::new(
        "data-latency",
        "How long an insert takes, ms (median, 99th percentile)",
        latency(outcomes),
    );
    let bars: Vec<Bar> = outcomes.iter().filter_map(bar).collect();
    let figures = [
        latency.charted(
            &format!("An insert with {CHART_DELAY_MS} ms each way between sites"),
            "ms: the bar is the median, the line ends at the 99th percentile",
            &bars,
        )?,
        Figure::new(
            "data-loss",
            "Acknowledged inserts that were lost with the primary",
            loss(outcomes),
        ),
        Figure::new(
            "data-lacks",
            "What a standby far away lacked when everything else was lost",
            lacks(outcomes),
        ),
    ];
    Ok(Section {
        experiment: Experiment::Data,
        title: "Data",
        text: TEXT.to_owned(),
        figures: filled(figures),
    })
}

/// The delay of the chart.
const CHART_DELAY_MS: u64 = 20;

fn bar(outcome: &Outcome) -> Option<Bar> {
    match outcome.finding {
        Finding::Latency { p50_ms, p99_ms, .. } if outcome.delay_ms == CHART_DELAY_MS => {
            let (label, ours) = name(&outcome.case);
            Some(Bar { label, median: p50_ms, min: p50_ms, max: p99_ms, ours })
        }
        _ => None,
    }
}

const TEXT: &str = "Three servers in three sites; each packet between two of them is later by the \
    delay that heads the column, one way. Clients and proxy are in the site of the primary.";

/// Whose the outcomes are, in order.
fn cases(outcomes: &[Outcome], is: impl Fn(&Finding) -> bool) -> Vec<Case> {
    let mut cases: Vec<Case> = Vec::new();
    for outcome in outcomes.iter().filter(|outcome| is(&outcome.finding)) {
        if !cases.contains(&outcome.case) {
            cases.push(outcome.case);
        }
    }
    cases
}

fn name(case: &Case) -> (String, bool) {
    let mode = match case.part {
        Part::Mode(mode) => mode,
        Part::Remote => Mode::Quorum,
    };
    let shape = Shape { remote: case.part == Part::Remote, ..Shape::new(case.architecture, mode) };
    (shape.title(), case.architecture.is_ours())
}

/// A column for each delay; `text` tells of a finding.
fn by_delay(outcomes: &[Outcome], text: impl Fn(&Finding) -> Option<String>) -> Table {
    let told = outcomes.iter().filter(|outcome| text(&outcome.finding).is_some());
    let delays: BTreeSet<u64> = told.map(|outcome| outcome.delay_ms).collect();
    let line = |case: &Case| {
        let (name, ours) = name(case);
        delays.iter().fold(Line::new(name, ours), |line, delay| {
            let mut of = outcomes.iter().filter(|o| o.case == *case && o.delay_ms == *delay);
            line.cell(of.find_map(|outcome| text(&outcome.finding)).unwrap_or_default())
        })
    };
    let lines = cases(outcomes, |finding| text(finding).is_some()).iter().map(line).collect();
    let delays = delays.iter().map(|delay| format!("{delay} ms"));
    Table { header: ["architecture".to_owned()].into_iter().chain(delays).collect(), lines }
}

fn latency(outcomes: &[Outcome]) -> Table {
    by_delay(outcomes, |finding| match finding {
        Finding::Latency { p50_ms, p99_ms, .. } => Some(format!("{p50_ms:.1}, {p99_ms:.1}")),
        Finding::Loss { .. } | Finding::Lacks { .. } => None,
    })
}

fn lacks(outcomes: &[Outcome]) -> Table {
    by_delay(outcomes, |finding| match finding {
        Finding::Lacks { writes, seconds } => Some(format!("{writes} inserts, {seconds:.3} s")),
        Finding::Latency { .. } | Finding::Loss { .. } => None,
    })
}

fn loss(outcomes: &[Outcome]) -> Table {
    let is = |finding: &Finding| matches!(finding, Finding::Loss { .. });
    let mut lines = Vec::new();
    for case in cases(outcomes, is) {
        for fault in Fault::ALL {
            let of = outcomes.iter().filter(|outcome| outcome.case == case);
            let found: Vec<(usize, f64)> = of
                .filter_map(|outcome| match &outcome.finding {
                    Finding::Loss { fault: of, lost, gap_s, .. } if *of == fault => {
                        Some((*lost, *gap_s))
                    }
                    _ => None,
                })
                .collect();
            let gaps: Vec<f64> = found.iter().map(|(_, gap)| *gap).collect();
            let Some(gap) = spread(&gaps) else { continue };
            let (name, ours) = name(&case);
            let lost = found.iter().map(|(lost, _)| lost).sum();
            let line = Line::new(format!("{name}, {}", fault.title()), ours).faults(lost);
            lines.push(line.cell(found.len().to_string()).cell(format!("{:.2}", gap.median)));
        }
    }
    Table::new(&["architecture", "lost in all", "runs", "gap, s"], lines)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::field::kinds::Architecture;

    #[test]
    fn each_question_has_its_table() {
        let case = Case { architecture: Architecture::Patroni, part: Part::Mode(Mode::On) };
        let latency = |delay_ms, p50_ms| Outcome {
            case,
            delay_ms,
            finding: Finding::Latency { p50_ms, p99_ms: 9.0, n: 5 },
        };
        let loss = |run, lost| Outcome {
            case,
            delay_ms: 20,
            finding: Finding::Loss { fault: Fault::HostLost, run, lost, gap_s: 2.0 },
        };
        let outcomes = [latency(0, 1.0), latency(80, 161.0), loss(1, 2), loss(2, 1)];
        let section = section(&outcomes).expect("it can be drawn");
        assert_eq!(section.figures.len(), 2, "nobody was far away");
        let tables: Vec<String> = section.figures.iter().map(|one| one.table.markdown()).collect();
        assert!(tables[0].starts_with("| architecture | 0 ms | 80 ms |"), "{}", tables[0]);
        assert!(tables[0].contains("| 1.0, 9.0 | 161.0, 9.0 |"), "{}", tables[0]);
        assert!(tables[1].contains("host lost | 3 | 2 | 2.00 |"), "{}", tables[1]);
    }
}
