//! The report: one HTML file that needs nothing else.

use std::fmt::Write as _;

use serde::{Deserialize, Serialize};

use super::chart::{self, Bar};
use super::failover::Outcome;
use super::kinds::{Architecture, Fault, Mode};

/// Under what it was measured.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Conditions {
    /// When, in UTC.
    pub(super) at: String,
    /// Processors, memory, kernel.
    pub(super) machine: String,
    /// Each program with what it says of itself.
    pub(super) versions: Vec<String>,
    /// The command.
    pub(super) command: String,
}

/// Several measurements of one thing.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Spread {
    pub(super) median: f64,
    pub(super) min: f64,
    pub(super) max: f64,
    pub(super) n: usize,
}

/// Of at least one value; the median of an even number is the lower one.
pub(super) fn spread(values: &[f64]) -> Option<Spread> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let (min, max) = (*sorted.first()?, *sorted.last()?);
    Some(Spread { median: sorted[(sorted.len() - 1) / 2], min, max, n: sorted.len() })
}

/// What one architecture did under one fault.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Row {
    pub(super) architecture: Architecture,
    pub(super) mode: Mode,
    pub(super) gap: Spread,
    pub(super) healthy: Spread,
    pub(super) lost: usize,
    pub(super) interleaved: usize,
    pub(super) by_hand: bool,
}

/// The rows of a fault's table, in the order of architectures.
pub(super) fn rows(outcomes: &[Outcome], fault: Fault) -> Vec<Row> {
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

fn mode_word(mode: Mode) -> &'static str {
    match mode {
        Mode::Async => "asynchronous",
        Mode::Quorum => "synchronous",
    }
}

/// The chart of a fault.
///
/// # Errors
/// It cannot be drawn.
pub(super) fn failover_chart(fault: Fault, rows: &[Row]) -> anyhow::Result<String> {
    let bar = |row: &Row| Bar {
        label: format!("{}, {}", row.architecture.title(), mode_word(row.mode)),
        median: row.gap.median,
        min: row.gap.min,
        max: row.gap.max,
        ours: row.architecture.is_ours(),
    };
    let bars: Vec<Bar> = rows.iter().map(bar).collect();
    let title = format!("{}: time without an acknowledged write", fault.title());
    chart::bars(&title, "seconds (median, and from the shortest to the longest)", &bars)
}

/// The whole page.
///
/// # Errors
/// A chart cannot be drawn.
pub(super) fn page(conditions: &Conditions, outcomes: &[Outcome]) -> anyhow::Result<String> {
    let mut body = String::new();
    for fault in Fault::ALL {
        let rows = rows(outcomes, fault);
        if rows.is_empty() {
            continue;
        }
        write!(body, "<h3>{}</h3>\n{}\n", escaped(fault.title()), failover_chart(fault, &rows)?)?;
        body.push_str(&table(&rows));
    }
    let mut settings = String::new();
    for architecture in Architecture::ALL {
        let (title, text) = (escaped(architecture.title()), escaped(architecture.settings()));
        writeln!(settings, "<dt>{title}</dt><dd>{text}</dd>")?;
    }
    let versions: Vec<String> = conditions.versions.iter().map(|text| escaped(text)).collect();
    Ok(format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <title>pgherd, measured against the field</title><style>{STYLE}</style></head><body>\n\
         <h1>pgherd, measured against the field</h1>\n<p>{}; {}; <code>{}</code></p>\n<p>{}</p>\n\
         <h2>Failover</h2>\n<p>{FAILOVER}</p>\n{body}\n<h2>Settings</h2>\n<dl>{settings}</dl>\n\
         </body></html>\n",
        escaped(&conditions.at),
        escaped(&conditions.machine),
        escaped(&conditions.command),
        versions.join("<br>")
    ))
}

const FAILOVER: &str = "One writer inserts every 10 ms where applications would, gives an attempt \
    up after one second and connects again. <em>Gap</em> is the longest time without an \
    acknowledged insert after the fault; <em>healthy</em> the time until one primary leads and \
    every other server streams from it again. <em>Lost</em>: acknowledged inserts that were not \
    there afterwards, of all runs together. <em>By two</em>: inserts that a server acknowledged \
    after another one had taken its place.";

const STYLE: &str = "body{font:15px/1.5 sans-serif;max-width:60em;margin:2em auto;padding:0 1em}\
    table{border-collapse:collapse;margin:1em 0}td,th{border:1px solid #bbb;padding:.2em .6em;\
    text-align:right}td:first-child,th:first-child{text-align:left}.bad{background:#fdd}\
    .ours{font-weight:bold}svg{max-width:100%;height:auto}";

fn table(rows: &[Row]) -> String {
    let mut text = "<table><tr><th>architecture</th><th>gap, s</th><th>spread</th>\
                    <th>healthy, s</th><th>lost</th><th>by two</th><th>n</th></tr>\n"
        .to_owned();
    for row in rows {
        let class = if row.architecture.is_ours() { " class=\"ours\"" } else { "" };
        let hand = if row.by_hand { " (by hand)" } else { "" };
        let name = format!("{}, {}{hand}", row.architecture.title(), mode_word(row.mode));
        let bad = |count: usize| {
            let class = if count > 0 { " class=\"bad\"" } else { "" };
            format!("<td{class}>{count}</td>")
        };
        let Spread { median, min, max, n } = row.gap;
        text.push_str(&format!(
            "<tr{class}><td>{}</td><td>{median:.2}</td><td>{min:.2} to {max:.2}</td>\
             <td>{:.1}</td>{}{}<td>{n}</td></tr>\n",
            escaped(&name),
            row.healthy.median,
            bad(row.lost),
            bad(row.interleaved)
        ));
    }
    text.push_str("</table>\n");
    text
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::field::failover::Case;

    fn outcome(architecture: Architecture, run: u16, gap_s: f64, lost: usize) -> Outcome {
        let case = Case { architecture, mode: Mode::Async, fault: Fault::HostLost, run };
        let healthy_s = gap_s + 10.0;
        Outcome { case, gap_s, healthy_s, lost, interleaved: 0, by_hand: false }
    }

    #[test]
    fn rows_are_medians_in_the_order_of_architectures() {
        let outcomes = [
            outcome(Architecture::PgherdFenced, 1, 2.0, 0),
            outcome(Architecture::Patroni, 1, 30.0, 1),
            outcome(Architecture::Patroni, 2, 20.0, 0),
            outcome(Architecture::Patroni, 3, 25.0, 2),
        ];
        let rows = rows(&outcomes, Fault::HostLost);
        assert_eq!(rows.len(), 2);
        assert_eq!(rows[0].gap, Spread { median: 25.0, min: 20.0, max: 30.0, n: 3 });
        assert_eq!((rows[0].lost, rows[1].lost), (3, 0));
        assert!(rows[1].architecture.is_ours());
        assert_eq!(super::rows(&outcomes, Fault::DiskFull), []);
    }

    #[test]
    fn the_page_shows_what_was_lost_and_under_what() {
        let conditions = Conditions {
            at: "a day".into(),
            machine: "2 <processors>".into(),
            versions: vec!["x 1.0".into()],
            command: "make bench".into(),
        };
        let page = page(&conditions, &[outcome(Architecture::Patroni, 1, 30.0, 7)]).expect("drawn");
        for text in ["2 &lt;processors&gt;", "x 1.0", "host lost", "<td class=\"bad\">7</td>"] {
            assert!(page.contains(text), "{text}");
        }
        assert!(!page.contains("disk full"), "it was not measured");
    }
}
