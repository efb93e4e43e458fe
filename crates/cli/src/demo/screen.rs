//! What the demo prints: for a terminal a table that is redrawn, for a pipe a line per change, for
//! programs one JSON object a line.

use std::io::{IsTerminal, Write};
use std::time::Duration;

use comfy_table::Table;
use comfy_table::presets::UTF8_FULL_CONDENSED;
use serde_json::{Value, json};

use lab::view::{Row, View};

/// On a pipe, a progress line that has not changed is repeated this often.
const REPEAT: Duration = Duration::from_secs(10);

enum Style {
    /// How many lines at the bottom of the screen are to be redrawn.
    Terminal {
        lines: usize,
    },
    Plain,
    Json,
}

/// Where the demo prints.
pub(super) struct Screen {
    style: Style,
    out: Box<dyn Write>,
    last_members: Option<Vec<Row>>,
    last_progress: Option<(String, Duration)>,
}

impl Screen {
    /// The standard output; with `json`, for programs.
    pub(super) fn new(json: bool) -> Screen {
        let style = match (json, std::io::stdout().is_terminal()) {
            (true, _) => Style::Json,
            (false, true) => Style::Terminal { lines: 0 },
            (false, false) => Style::Plain,
        };
        Screen { style, out: Box::new(std::io::stdout()), last_members: None, last_progress: None }
    }

    /// From now on prints to `out`.
    pub(super) fn redirect(&mut self, out: Box<dyn Write>) {
        self.out = out;
    }

    fn put(&mut self, text: &str) {
        // Nobody may be reading any more; the cluster goes on all the same.
        drop(writeln!(self.out, "{text}").and_then(|()| self.out.flush()));
    }

    fn erase(&mut self) {
        if let Style::Terminal { lines } = &mut self.style
            && *lines > 0
        {
            let up = std::mem::take(lines);
            // As above.
            drop(write!(self.out, "\x1b[{up}A\x1b[0J"));
        }
    }

    /// Text that may be drawn over by what comes next.
    fn draw(&mut self, text: &str) {
        self.erase();
        self.put(text);
        if let Style::Terminal { lines } = &mut self.style {
            *lines = text.lines().count();
        }
    }

    /// A line that stays.
    pub(super) fn note(&mut self, text: &str) {
        match self.style {
            Style::Json => self.put(&json!({"event": "note", "text": text}).to_string()),
            Style::Terminal { .. } | Style::Plain => {
                self.erase();
                self.put(text);
            }
        }
    }

    /// An object for programs; nothing for people.
    pub(super) fn object(&mut self, value: &Value) {
        if matches!(self.style, Style::Json) {
            self.put(&value.to_string());
        }
    }

    /// Lines for people; nothing for programs.
    pub(super) fn text(&mut self, text: &str) {
        if !matches!(self.style, Style::Json) {
            self.erase();
            self.put(text);
        }
    }

    /// What is being waited for.
    pub(super) fn progress(&mut self, waiting_for: &str, elapsed: Duration) {
        let seconds = elapsed.as_secs_f64();
        let line = format!("{seconds:6.1} s  waiting for {waiting_for}");
        if matches!(self.style, Style::Terminal { .. }) {
            return self.draw(&line);
        }
        let told = self
            .last_progress
            .as_ref()
            .is_some_and(|(what, at)| what == waiting_for && elapsed.saturating_sub(*at) < REPEAT);
        if told {
            return;
        }
        self.last_progress = Some((waiting_for.to_owned(), elapsed));
        match self.style {
            Style::Json => self.put(
                &json!({"event": "starting", "waiting_for": waiting_for,
                        "elapsed_seconds": round(elapsed)})
                .to_string(),
            ),
            Style::Terminal { .. } | Style::Plain => self.put(&line),
        }
    }

    /// The members, and below them `footer`.
    pub(super) fn members(&mut self, view: &View, footer: &str) {
        if matches!(self.style, Style::Terminal { .. }) {
            let text = format!("{}\n{footer}", table(&view.members));
            return self.draw(&text);
        }
        // Lag changes all the time, and is no event.
        let shape: Vec<Row> = view
            .members
            .iter()
            .map(|row| Row { lag: None, replay_lag_seconds: None, ..row.clone() })
            .collect();
        let before = self.last_members.replace(shape.clone());
        if before.as_ref() == Some(&shape) {
            return;
        }
        if matches!(self.style, Style::Json) {
            let event = json!({"event": "members", "term": view.term, "members": view.members});
            return self.put(&event.to_string());
        }
        match before {
            None => self.put(&table(&view.members).to_string()),
            Some(before) => {
                for line in changes(&before, &shape) {
                    self.put(&line);
                }
            }
        }
    }
}

/// Seconds with three digits after the point.
pub(super) fn round(span: Duration) -> f64 {
    (span.as_secs_f64() * 1000.0).round() / 1000.0
}

/// An empty table with these headings.
pub(super) fn new_table(headings: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(UTF8_FULL_CONDENSED).set_header(headings.to_vec());
    table
}

fn table(rows: &[Row]) -> Table {
    let mut table = new_table(&["member", "role", "state", "TL", "lag", "lag in time", "sync"]);
    for row in rows {
        table.add_row(vec![
            row.name.clone(),
            role(row).to_owned(),
            row.state.clone(),
            row.timeline.map(|timeline| timeline.to_string()).unwrap_or_default(),
            lag(row.lag.as_ref()),
            row.replay_lag_seconds.map(|lag| format!("{lag:.1} s")).unwrap_or_default(),
            sync(row).to_owned(),
        ]);
    }
    table
}

fn role(row: &Row) -> &str {
    if row.leads() { "leader" } else { "replica" }
}

fn sync(row: &Row) -> &'static str {
    match row.role.as_str() {
        "sync_standby" => "sync",
        "quorum_standby" => "quorum",
        _ => "",
    }
}

fn lag(lag: Option<&Value>) -> String {
    match lag {
        None => String::new(),
        Some(Value::Number(bytes)) => format!("{bytes} B"),
        Some(other) => other.as_str().unwrap_or("unknown").to_owned(),
    }
}

fn changes(before: &[Row], after: &[Row]) -> Vec<String> {
    let describe = |row: &Row| {
        let timeline = row.timeline.map(|timeline| format!(" timeline {timeline}"));
        format!("{} {}{}", row.role, row.state, timeline.unwrap_or_default())
    };
    let changed = after.iter().filter(|row| !before.contains(row)).map(|row| {
        let old = before.iter().find(|old| old.name == row.name);
        let old = old.map_or_else(|| "new".to_owned(), describe);
        format!("{}: {old} -> {}", row.name, describe(row))
    });
    let gone = before
        .iter()
        .filter(|old| !after.iter().any(|row| row.name == old.name))
        .map(|old| format!("{}: gone", old.name));
    changed.chain(gone).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(name: &str, role: &str, state: &str) -> Row {
        Row {
            name: name.to_owned(),
            role: role.to_owned(),
            state: state.to_owned(),
            timeline: Some(1),
            lag: Some(json!(16)),
            replay_lag_seconds: Some(0.25),
        }
    }

    #[test]
    fn the_table_shows_lag_in_bytes_and_seconds() {
        let text = table(&[row("a", "leader", "running"), row("b", "quorum_standby", "streaming")]);
        let text = text.to_string();
        assert!(text.contains("16 B") && text.contains("0.2 s") && text.contains("quorum"));
    }

    #[test]
    fn only_changes_are_told() {
        let before = [row("a", "leader", "running"), row("b", "replica", "streaming")];
        let after = [row("a", "replica", "stopped"), row("b", "replica", "streaming")];
        assert_eq!(
            changes(&before, &after),
            ["a: leader running timeline 1 -> replica stopped timeline 1"]
        );
        assert_eq!(changes(&before, &before[..1]), ["b: gone"]);
    }
}
