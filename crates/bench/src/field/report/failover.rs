//! What the first experiment shows.

use super::table::{Line, Table};
use super::{Figure, Section, Spread, filled, spread};
use crate::field::chart::Bar;
use crate::field::failover::Outcome;
use crate::field::kinds::{Architecture, Experiment, Fault, Mode, Shape};

/// What one architecture did under one fault.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::field) struct Row {
    architecture: Architecture,
    mode: Mode,
    pub(in crate::field) gap: Spread,
    healthy: Spread,
    lost: usize,
    interleaved: usize,
    by_hand: bool,
}

impl Row {
    /// Whose it is.
    pub(in crate::field) fn of(&self) -> (Architecture, Mode) {
        (self.architecture, self.mode)
    }

    pub(in crate::field) fn title(&self) -> String {
        let hand = if self.by_hand { " (by hand)" } else { "" };
        format!("{}{hand}", Shape::new(self.architecture, self.mode).title())
    }
}

/// The rows of a fault's table, in the order of architectures.
pub(in crate::field) fn rows(outcomes: &[Outcome], fault: Fault) -> Vec<Row> {
    let modes = |architecture: Architecture| {
        architecture.modes().iter().map(move |mode| (architecture, *mode))
    };
    let row = |(architecture, mode)| {
        let case = |one: &&Outcome| {
            let case = &one.case;
            (case.architecture, case.mode, case.fault) == (architecture, mode, fault)
        };
        let of: Vec<&Outcome> = outcomes.iter().filter(case).collect();
        let all = |value: fn(&Outcome) -> f64| -> Vec<f64> {
            of.iter().map(|outcome| value(outcome)).collect()
        };
        Some(Row {
            architecture,
            mode,
            gap: spread(&all(|outcome| outcome.gap_s))?,
            healthy: spread(&all(|outcome| outcome.healthy_s))?,
            lost: of.iter().map(|outcome| outcome.lost).sum(),
            interleaved: of.iter().map(|outcome| outcome.interleaved).sum(),
            by_hand: of.iter().any(|outcome| outcome.by_hand),
        })
    };
    Architecture::ALL.into_iter().flat_map(modes).filter_map(row).collect()
}

/// A figure for each fault that was measured.
///
/// # Errors
/// A chart cannot be drawn.
pub(super) fn section(outcomes: &[Outcome]) -> anyhow::Result<Section> {
    let figures = Fault::ALL.map(|fault| figure(fault, &rows(outcomes, fault)));
    let figures = figures.into_iter().collect::<anyhow::Result<Vec<Figure>>>()?;
    Ok(Section {
        experiment: Experiment::Failover,
        title: "Failover",
        text: TEXT.to_owned(),
        figures: filled(figures),
    })
}

const TEXT: &str = "One writer inserts every 10 ms where applications would, gives an attempt up \
    after one second and connects again. Gap is the longest time without an acknowledged insert \
    after the fault; healthy the time until one primary leads and every other server streams from \
    it again. Lost: acknowledged inserts that were not there afterwards, of all runs together. By \
    two: inserts that a server acknowledged after another one had taken its place.";

fn figure(fault: Fault, rows: &[Row]) -> anyhow::Result<Figure> {
    let bar = |row: &Row| Bar {
        label: Shape::new(row.architecture, row.mode).title(),
        median: row.gap.median,
        min: row.gap.min,
        max: row.gap.max,
        ours: row.architecture.is_ours(),
    };
    let bars: Vec<Bar> = rows.iter().map(bar).collect();
    let name = format!("failover-{}", fault.title().replace(' ', "-"));
    Figure::new(&name, fault.title(), table(rows)).charted(
        &format!("{}: time without an acknowledged write", fault.title()),
        "seconds (median, and from the shortest to the longest)",
        &bars,
    )
}

fn table(rows: &[Row]) -> Table {
    let line = |row: &Row| {
        let Spread { median, min, max, n } = row.gap;
        Line::new(row.title(), row.architecture.is_ours())
            .cell(format!("{median:.2}"))
            .cell(format!("{min:.2} to {max:.2}"))
            .cell(format!("{:.1}", row.healthy.median))
            .faults(row.lost)
            .faults(row.interleaved)
            .cell(n.to_string())
    };
    let header = ["architecture", "gap, s", "spread", "healthy, s", "lost", "by two", "n"];
    Table::new(&header, rows.iter().map(line).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::field::failover::Case;

    #[test]
    fn rows_are_medians_in_the_order_of_architectures() {
        let outcome = |architecture, run, gap_s, lost| {
            let case = Case { architecture, mode: Mode::Async, fault: Fault::HostLost, run };
            let healthy_s = gap_s + 10.0;
            Outcome { case, gap_s, healthy_s, lost, interleaved: 0, by_hand: false }
        };
        let outcomes = [
            outcome(Architecture::PgherdFenced, 1, 2.0, 0),
            outcome(Architecture::Patroni, 1, 30.0, 1),
            outcome(Architecture::Patroni, 2, 20.0, 0),
            outcome(Architecture::Patroni, 3, 25.0, 2),
        ];
        let found = rows(&outcomes, Fault::HostLost);
        assert_eq!(found.len(), 2);
        assert_eq!(found[0].gap, Spread { median: 25.0, min: 20.0, max: 30.0, n: 3 });
        assert_eq!((found[0].lost, found[1].lost), (3, 0));
        assert_eq!(found[1].of(), (Architecture::PgherdFenced, Mode::Async));
        assert_eq!(rows(&outcomes, Fault::DiskFull), []);
        assert_eq!(section(&outcomes).expect("it can be drawn").figures.len(), 1);
    }
}
