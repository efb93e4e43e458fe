//! What the third experiment shows.

use super::table::{Line, Table};
use super::{Section, plain};
use crate::field::response::{Load, Outcome};

/// A table for each load that was measured.
pub(super) fn section(outcomes: &[Outcome]) -> Section {
    let offered = |outcome: &&Outcome| matches!(outcome.case.load, Load::Offered(_));
    let saturating = |outcome: &&Outcome| outcome.case.load == Load::Saturating;
    let tables = [
        ("response-offered", "At the offered load", table(outcomes.iter().filter(offered))),
        ("response-saturating", "As fast as they go", table(outcomes.iter().filter(saturating))),
    ];
    Section { title: "Response time", text: TEXT.to_owned(), figures: plain(tables) }
}

const TEXT: &str = "Nine of ten transactions of pgbench read one row (where reads are served, \
    which is by replicas if there are any), one of ten changes one; each server with its agent and \
    its etcd has a fifth of one processor, clients and proxy have the rest. A response time counts \
    from when the transaction was due. Asynchronous replication; pools in session mode.";

fn table<'a>(outcomes: impl Iterator<Item = &'a Outcome>) -> Table {
    let line = |outcome: &Outcome| {
        let case = &outcome.case;
        Line::new(case.architecture.title().to_owned(), case.architecture.is_ours())
            .cell(case.replicas.to_string())
            .cell(case.clients.to_string())
            .cell(format!("{:.0}", outcome.tps))
            .cell(format!("{:.1}", outcome.mean_ms))
            .cell(format!("{:.1}", outcome.p50_ms))
            .cell(format!("{:.1}", outcome.p99_ms))
            .faults(usize::from(outcome.handed_over))
    };
    let header = [
        "architecture",
        "replicas",
        "clients",
        "tps",
        "mean, ms",
        "p50, ms",
        "p99, ms",
        "failovers",
    ];
    Table::new(&header, outcomes.map(line).collect())
}
