//! What the third experiment shows.

use super::table::{Line, Table};
use super::{Figure, Section, filled};
use crate::field::chart::Bar;
use crate::field::kinds::Experiment;
use crate::field::response::{Case, Finding, Load, Outcome};

/// A table and a chart for each load that was measured.
///
/// # Errors
/// A chart cannot be drawn.
pub(super) fn section(outcomes: &[Outcome]) -> anyhow::Result<Section> {
    // What is to be compared stands together.
    let mut outcomes: Vec<&Outcome> = outcomes.iter().collect();
    outcomes.sort_by_key(|outcome| (outcome.case.replicas, outcome.case.clients));
    let (offered, saturating): (Vec<&Outcome>, Vec<&Outcome>) =
        outcomes.into_iter().partition(|outcome| matches!(outcome.case.load, Load::Offered(_)));
    let figures = [
        figure("response-offered", "At the offered load", &offered)?,
        figure("response-saturating", "As fast as they go", &saturating)?,
    ];
    Ok(Section {
        experiment: Experiment::ResponseTime,
        title: "Response time",
        text: TEXT.to_owned(),
        figures: filled(figures),
    })
}

fn figure(name: &str, title: &str, outcomes: &[&Outcome]) -> anyhow::Result<Figure> {
    let bar = |outcome: &&Outcome| {
        let Case { architecture, replicas, clients, .. } = outcome.case;
        let Finding::Served { mean_ms, p50_ms, p99_ms, .. } = outcome.finding else { return None };
        Some(Bar {
            label: format!("{}: {clients} clients, {replicas} replicas", outcome.case.title()),
            median: mean_ms,
            min: p50_ms,
            max: p99_ms,
            ours: architecture.is_ours(),
        })
    };
    let bars: Vec<Bar> = outcomes.iter().filter_map(bar).collect();
    let axis = "ms: the bar is the mean, the line goes from the median to the 99th percentile";
    Figure::new(name, title, table(outcomes)).charted(title, axis, &bars)
}

const TEXT: &str = "Nine of ten transactions of pgbench read one row (where reads are served, \
    which is by replicas if there are any), one of ten changes one; each server with its agent and \
    its etcd has a fifth of one processor, clients and proxy have the rest. A response time counts \
    from when the transaction was due. Asynchronous replication; each client has a connection to a \
    server, but for \"pooled\", where twenty to each server are shared by transactions.";

fn table(outcomes: &[&Outcome]) -> Table {
    let line = |outcome: &&Outcome| {
        let Outcome { case, finding } = outcome;
        let line = Line::new(case.title(), case.architecture.is_ours())
            .cell(case.replicas.to_string())
            .cell(case.clients.to_string());
        match finding {
            Finding::Served { tps, mean_ms, p50_ms, p99_ms, handed_over } => {
                let times = [mean_ms, p50_ms, p99_ms].map(|ms| format!("{ms:.1}"));
                let line = times.into_iter().fold(line.cell(format!("{tps:.0}")), Line::cell);
                if *handed_over {
                    line.fault("a failover".to_owned())
                } else {
                    line.cell(String::new())
                }
            }
            Finding::Refused { why } => {
                (0..4).fold(line, |line, _| line.cell(String::new())).fault(why.clone())
            }
        }
    };
    let header = [
        "architecture",
        "replicas",
        "clients",
        "tps",
        "mean, ms",
        "p50, ms",
        "p99, ms",
        "what went wrong",
    ];
    Table::new(&header, outcomes.iter().map(line).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::field::kinds::Architecture;

    #[test]
    fn clients_that_were_cut_off_are_told_of() {
        let outcome = |clients, finding| Outcome {
            case: Case {
                architecture: Architecture::Patroni,
                replicas: 2,
                clients,
                load: Load::Saturating,
                pooled: false,
            },
            finding,
        };
        let served = Finding::Served {
            tps: 100.4,
            mean_ms: 1.0,
            p50_ms: 0.5,
            p99_ms: 9.0,
            handed_over: true,
        };
        let refused = Finding::Refused { why: "cut off".to_owned() };
        let section = section(&[outcome(10, served), outcome(1000, refused)]).expect("drawn");
        let [figure] = &section.figures[..] else { panic!("nothing was offered") };
        let text = figure.table.markdown();
        assert!(text.contains("| 2 | 10 | 100 | 1.0 | 0.5 | 9.0 | a failover |"), "{text}");
        assert!(text.contains("| 2 | 1000 |  |  |  |  | cut off |"), "{text}");
        let chart = figure.chart.as_deref().expect("one was served");
        assert!(chart.contains("10 clients") && !chart.contains("1000 clients"));
    }
}
