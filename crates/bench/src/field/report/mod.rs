//! What was measured, for people: one HTML file that needs nothing else, and tables for a document.

mod availability;
mod cost;
mod data;
mod failover;
mod response;
mod table;

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use anyhow::Context;
use serde::{Deserialize, Serialize};

pub(super) use self::failover::rows;
use self::table::{Table, escaped};
use super::chart::{self, Bar};
use super::kinds::{Architecture, Experiment};
use super::results::{AllConditions, Experiments};
use crate::document;
use crate::statistics;

/// Where a document's charts are, beside it.
const CHARTS: &str = "charts";

/// Under what it was measured.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Conditions {
    /// When, in UTC.
    pub(super) at: String,
    /// Processors, memory, kernel.
    pub(super) machine: String,
    /// Each program with what it says of itself.
    pub(super) versions: Vec<String>,
    /// When an operator begins after a fault, in seconds: assumed.
    #[serde(default)]
    pub(super) operator_s: u64,
    /// The command.
    pub(super) command: String,
}

impl Conditions {
    /// All that matters to an experiment but the command, in a line.
    fn line(&self, experiment: Experiment) -> String {
        let Conditions { at, machine, versions, operator_s, .. } = self;
        let line = format!("{at}; {machine}; {}", versions.join(", "));
        match experiment {
            Experiment::Failover | Experiment::Availability => {
                format!("{line}; an operator begins after {operator_s} s (assumed)")
            }
            Experiment::ResponseTime | Experiment::Cost | Experiment::Data => line,
        }
    }
}

/// The commands of an experiment, by what else it was measured under.
fn by_line(all: &AllConditions, experiment: Experiment) -> Vec<(String, Vec<&str>)> {
    let mut lines: Vec<(String, Vec<&str>)> = Vec::new();
    for one in all.get(&experiment).into_iter().flatten() {
        let (line, command) = (one.line(experiment), one.command.as_str());
        match lines.iter_mut().find(|(known, _)| *known == line) {
            Some((_, commands)) => commands.push(command),
            None => lines.push((line, vec![command])),
        }
    }
    lines
}

/// One experiment.
struct Section {
    experiment: Experiment,
    title: &'static str,
    /// What was done, and what the columns mean.
    text: String,
    figures: Vec<Figure>,
}

/// One table with its chart, if it has one.
struct Figure {
    /// In names of files.
    name: String,
    title: String,
    chart: Option<String>,
    table: Table,
}

impl Figure {
    fn new(name: &str, title: &str, table: Table) -> Figure {
        Figure { name: name.to_owned(), title: title.to_owned(), chart: None, table }
    }

    /// With these bars, if there are any.
    ///
    /// # Errors
    /// They cannot be drawn.
    fn charted(mut self, title: &str, axis: &str, bars: &[Bar]) -> anyhow::Result<Figure> {
        if !bars.is_empty() {
            self.chart = Some(chart::bars(title, axis, bars)?);
        }
        Ok(self)
    }
}

/// Of the figures those that have any line.
fn filled(figures: impl IntoIterator<Item = Figure>) -> Vec<Figure> {
    figures.into_iter().filter(|figure| !figure.table.lines.is_empty()).collect()
}

/// What there is to show.
fn sections(experiments: &Experiments) -> anyhow::Result<Vec<Section>> {
    let sections = [
        failover::section(&experiments.failover)?,
        availability::section(&experiments.availability)?,
        response::section(&experiments.response_time)?,
        cost::section(&experiments.cost)?,
        data::section(&experiments.data)?,
    ];
    Ok(sections.into_iter().filter(|section| !section.figures.is_empty()).collect())
}

/// The whole page.
///
/// # Errors
/// A chart cannot be drawn.
pub(super) fn page(
    conditions: &AllConditions,
    experiments: &Experiments,
) -> anyhow::Result<String> {
    let mut body = String::new();
    for section in sections(experiments)? {
        write!(body, "<h2>{}</h2>\n<p>{}</p>\n", section.title, escaped(&section.text))?;
        for (line, commands) in by_line(conditions, section.experiment) {
            let commands = commands.iter().map(|one| format!("<code>{}</code>", escaped(one)));
            let commands = commands.collect::<Vec<String>>().join("<br>");
            writeln!(body, "<p>{}:<br>{commands}</p>", escaped(&line))?;
        }
        for Figure { title, chart, table, .. } in &section.figures {
            let chart = chart.as_deref().unwrap_or_default();
            write!(body, "<h3>{}</h3>\n{chart}\n{}", escaped(title), table.html())?;
        }
    }
    let mut settings = String::new();
    for architecture in Architecture::ALL {
        let (title, text) = (escaped(architecture.title()), escaped(architecture.settings()));
        writeln!(settings, "<dt>{title}</dt><dd>{text}</dd>")?;
    }
    Ok(format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <title>{TITLE}</title><style>{STYLE}</style></head><body>\n\
         <h1>{TITLE}</h1>\n\
         <p>Where an operator is needed, a script of theirs begins a while after the fault, which \
         is said below: an assumption, not a measurement.</p>\n{body}\n\
         <h2>Settings</h2>\n<dl>{settings}</dl>\n</body></html>\n"
    ))
}

const TITLE: &str = "pgherd, measured against the field";

const STYLE: &str = "body{font:15px/1.5 sans-serif;max-width:60em;margin:2em auto;padding:0 1em}\
    table{border-collapse:collapse;margin:1em 0}td,th{border:1px solid #bbb;padding:.2em .6em;\
    text-align:right}td:first-child,th:first-child{text-align:left}.bad{background:#fdd}\
    .ours{font-weight:bold}svg{max-width:100%;height:auto}";

/// Replaces the tables of a document between their marks, and the charts beside it.
///
/// # Errors
/// The document has no marks for what was measured, or a file cannot be written.
pub(super) fn write(
    document: &Path,
    conditions: &AllConditions,
    experiments: &Experiments,
) -> anyhow::Result<()> {
    let charts = document.with_file_name(CHARTS);
    fs::create_dir_all(&charts).with_context(|| format!("cannot make {}", charts.display()))?;
    let mut parts = Vec::new();
    for section in sections(experiments)? {
        let mut text = String::new();
        for (line, commands) in by_line(conditions, section.experiment) {
            let commands = commands.iter().map(|one| format!("- `{one}`\n")).collect::<String>();
            writeln!(text, "{line}:\n\n{commands}")?;
        }
        for Figure { name, title, chart, table } in &section.figures {
            write!(text, "{title}:\n\n{}\n", table.markdown())?;
            let Some(chart) = chart else { continue };
            let file = charts.join(format!("{name}.svg"));
            fs::write(&file, chart).with_context(|| format!("cannot write {}", file.display()))?;
            writeln!(text, "![{title}]({CHARTS}/{name}.svg)\n")?;
        }
        parts.push((format!("bench {}", section.title.to_lowercase()), text));
    }
    document::replace(document, &parts)
}

/// Several measurements of one thing.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Spread {
    pub(super) median: f64,
    pub(super) min: f64,
    pub(super) max: f64,
    pub(super) n: usize,
}

/// Of at least one value.
fn spread(values: &[f64]) -> Option<Spread> {
    let (min, max) = statistics::spread(values)?;
    Some(Spread { median: statistics::median(values.iter().copied())?, min, max, n: values.len() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::field::failover::{Case, Outcome};
    use crate::field::kinds::{Fault, Mode};

    fn experiments() -> Experiments {
        let case = Case {
            architecture: Architecture::Patroni,
            mode: Mode::Async,
            fault: Fault::HostLost,
            run: 1,
        };
        let outcome =
            Outcome { case, gap_s: 30.0, healthy_s: 40.0, lost: 7, interleaved: 0, by_hand: false };
        Experiments { failover: vec![outcome], ..Experiments::default() }
    }

    #[test]
    fn the_page_shows_what_was_lost_and_under_what() {
        let conditions = Conditions {
            machine: "2 <processors>".into(),
            versions: vec!["x 1.0".into()],
            operator_s: 61,
            command: "one".into(),
            ..Conditions::default()
        };
        let resumed = Conditions { command: "two".into(), ..conditions.clone() };
        let all = AllConditions::from([(Experiment::Failover, vec![conditions, resumed])]);
        let page = page(&all, &experiments()).expect("it can be drawn");
        for text in [
            "2 &lt;processors&gt;",
            "x 1.0",
            "host lost",
            "<td class=\"bad\">7</td>",
            "after 61 s (assumed):<br><code>one</code><br><code>two</code>",
        ] {
            assert!(page.contains(text), "{text}");
        }
        assert!(!page.contains("disk full"), "it was not measured");
    }

    #[test]
    fn a_document_has_tables_and_charts() {
        let directory = std::env::temp_dir().join(format!("bench-report-{}", std::process::id()));
        fs::create_dir_all(&directory).expect("a temporary directory");
        let document = directory.join("benchmarks.md");
        fs::write(&document, "a\n<!-- bench failover -->\nold\n<!-- /bench failover -->\nb\n")
            .expect("it is ours");
        write(&document, &AllConditions::new(), &experiments()).expect("it has the marks");
        let text = fs::read_to_string(&document).expect("it is there");
        assert!(text.contains("| 30.00 |") && !text.contains("old"), "{text}");
        assert!(directory.join("charts/failover-host-lost.svg").is_file());
        fs::remove_dir_all(&directory).expect("it is ours");
    }
}
