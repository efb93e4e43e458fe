//! What the third experiment shows.

use super::table::{Line, Table};
use super::{Figure, Section, Spread, filled, spread};
use crate::field::chart::Bar;
use crate::field::kinds::Experiment;
use crate::field::response::{Case, Finding, Load, Outcome};

/// All runs of one case.
struct Row {
    case: Case,
    /// Transactions a second and response times, of the runs that were served; none if none was.
    served: Option<Served>,
    /// What happened in how many runs that should not.
    wrong: Vec<(String, usize)>,
    runs: usize,
}

/// Of several runs.
struct Served {
    tps: Spread,
    mean_ms: f64,
    p50_ms: f64,
    p99_ms: f64,
    /// Of the runs in which it was measured.
    keepers_percent: Option<f64>,
}

/// A table and a chart for each load that was measured.
///
/// # Errors
/// A chart cannot be drawn.
pub(super) fn section(outcomes: &[Outcome]) -> anyhow::Result<Section> {
    let (offered, saturating): (Vec<Row>, Vec<Row>) =
        rows(outcomes).into_iter().partition(|row| matches!(row.case.load, Load::Offered(_)));
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

/// What is to be compared stands together.
fn rows(outcomes: &[Outcome]) -> Vec<Row> {
    let any_run = |outcome: &Outcome| Case { run: 1, ..outcome.case };
    let mut outcomes: Vec<&Outcome> = outcomes.iter().collect();
    outcomes.sort_by_cached_key(|outcome| {
        let Case { replicas, clients, load, .. } = outcome.case;
        (replicas, clients, load == Load::Saturating, outcome.case.title())
    });
    outcomes.chunk_by(|one, other| any_run(one) == any_run(other)).map(row).collect()
}

fn row(outcomes: &[&Outcome]) -> Row {
    let mut wrong: Vec<(String, usize)> = Vec::new();
    let mut note = |what: &str| match wrong.iter_mut().find(|(known, _)| known == what) {
        Some((_, runs)) => *runs += 1,
        None => wrong.push((what.to_owned(), 1)),
    };
    // Transactions a second, mean, median, 99th percentile; what agents and DCS used.
    let mut figures: [Vec<f64>; 4] = Default::default();
    let mut keepers = Vec::new();
    for outcome in outcomes {
        match &outcome.finding {
            Finding::Served { tps, mean_ms, p50_ms, p99_ms, keepers_percent, handed_over } => {
                keepers.extend(*keepers_percent);
                for (all, one) in figures.iter_mut().zip([tps, mean_ms, p50_ms, p99_ms]) {
                    all.push(*one);
                }
                if *handed_over {
                    note("a failover");
                }
            }
            Finding::Refused { why } => note(&of_any_client(why)),
        }
    }
    let served = || {
        let [tps, mean, p50, p99] = figures.map(|all| spread(&all));
        let (mean_ms, p50_ms, p99_ms) = (mean?.median, p50?.median, p99?.median);
        let keepers_percent = spread(&keepers).map(|spread| spread.median);
        Some(Served { tps: tps?, mean_ms, p50_ms, p99_ms, keepers_percent })
    };
    Row { case: outcomes[0].case, served: served(), wrong, runs: outcomes.len() }
}

/// A complaint without the number of the client: that is another one in each run.
fn of_any_client(why: &str) -> String {
    let numbered = why.split_once("client ").map(|(before, after)| {
        (before, after, after.trim_start_matches(|c: char| c.is_ascii_digit()))
    });
    match numbered {
        Some((before, after, rest)) if rest.len() < after.len() => {
            format!("{before}a client{rest}")
        }
        _ => why.to_owned(),
    }
}

fn figure(name: &str, title: &str, rows: &[Row]) -> anyhow::Result<Figure> {
    let bar = |row: &Row| {
        let Case { architecture, replicas, clients, .. } = row.case;
        let served = row.served.as_ref()?;
        Some(Bar {
            label: format!("{}: {clients} clients, {replicas} replicas", row.case.title()),
            median: served.mean_ms,
            min: served.p50_ms,
            max: served.p99_ms,
            ours: architecture.is_ours(),
        })
    };
    let bars: Vec<Bar> = rows.iter().filter_map(bar).collect();
    let axis = "ms: the bar is the mean, the line goes from the median to the 99th percentile";
    Figure::new(name, title, table(rows)).charted(title, axis, &bars)
}

const TEXT: &str = "Nine of ten transactions of pgbench read one row (where reads are served, \
    which is by replicas if there are any), one of ten changes one; each server with its agent and \
    its etcd has a fifth of one processor, clients and proxy have the rest. A response time counts \
    from when the transaction was due. Asynchronous replication; each client has a connection to a \
    server, but for \"pooled\", where twenty to each server are shared by transactions. Figures \
    are medians of the runs that were served to the end, the spread is of transactions a second. \
    Agents and members of the DCS: what they used of the servers' shares.";

fn table(rows: &[Row]) -> Table {
    let line = |row: &Row| {
        let line = Line::new(row.case.title(), row.case.architecture.is_ours())
            .cell(row.case.replicas.to_string())
            .cell(row.case.clients.to_string());
        let figures = row.served.as_ref().map_or([const { String::new() }; 6], |served| {
            let Served { tps: Spread { median, min, max, .. }, mean_ms, p50_ms, p99_ms, .. } =
                served;
            let [mean, p50, p99] = [mean_ms, p50_ms, p99_ms].map(|ms| format!("{ms:.1}"));
            let keepers = served.keepers_percent.map_or(String::new(), |part| format!("{part:.1}"));
            [format!("{median:.0}"), format!("{min:.0} to {max:.0}"), mean, p50, p99, keepers]
        });
        let line = figures.into_iter().fold(line, Line::cell).cell(row.runs.to_string());
        let wrong = row.wrong.iter().map(|(what, runs)| format!("{what} ({runs} of {})", row.runs));
        let wrong: Vec<String> = wrong.collect();
        if wrong.is_empty() { line.cell(String::new()) } else { line.fault(wrong.join("; ")) }
    };
    let header = [
        "architecture",
        "replicas",
        "clients",
        "tps",
        "spread",
        "mean, ms",
        "p50, ms",
        "p99, ms",
        "agents, DCS, %",
        "n",
        "what went wrong",
    ];
    Table::new(&header, rows.iter().map(line).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::field::kinds::Architecture;

    fn outcome(clients: u32, run: u16, finding: Finding) -> Outcome {
        let architecture = Architecture::Patroni;
        let load = Load::Saturating;
        let case = Case { architecture, replicas: 2, clients, load, pooled: false, run };
        Outcome { case, finding }
    }

    fn served(tps: f64, handed_over: bool) -> Finding {
        Finding::Served {
            tps,
            mean_ms: tps / 100.0,
            p50_ms: 0.5,
            p99_ms: 9.0,
            keepers_percent: (tps > 100.0).then_some(tps / 20.0),
            handed_over,
        }
    }

    #[test]
    fn clients_that_were_cut_off_are_told_of() {
        let refused = |client| Finding::Refused { why: format!("client {client} was cut off") };
        let section = section(&[
            outcome(10, 1, served(100.4, true)),
            outcome(1000, 1, refused(7)),
            outcome(1000, 2, refused(89)),
        ]);
        let section = section.expect("drawn");
        let [figure] = &section.figures[..] else { panic!("nothing was offered") };
        let text = figure.table.markdown();
        let one = "| 2 | 10 | 100 | 100 to 100 | 1.0 | 0.5 | 9.0 | 5.0 | 1 | a failover (1 of 1) |";
        assert!(text.contains(one), "{text}");
        let both = "| 2 | 1000 |  |  |  |  |  |  | 2 | a client was cut off (2 of 2) |";
        assert!(text.contains(both), "{text}");
        let chart = figure.chart.as_deref().expect("one was served");
        assert!(chart.contains("10 clients") && !chart.contains("1000 clients"));
    }

    #[test]
    fn the_runs_of_a_case_are_one_row() {
        let runs = [(1, 300.0), (2, 100.0), (3, 200.0)];
        let mut outcomes: Vec<Outcome> =
            runs.map(|(run, tps)| outcome(10, run, served(tps, false))).to_vec();
        outcomes.insert(1, outcome(1, 1, served(50.0, false)));
        let table = table(&rows(&outcomes)).markdown();
        let row = "| 2 | 10 | 200 | 100 to 300 | 2.0 | 0.5 | 9.0 | 12.5 | 3 |  |";
        assert!(table.contains(row) && table.lines().count() == 2 + 2, "{table}");
    }
}
