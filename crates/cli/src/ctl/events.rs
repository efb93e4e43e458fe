//! `events`: the agent's journal, one line for each action and its reason (I5).

use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use serde_json::{Map, Value};

use super::{CtlConfig, say};

/// The journal's name in the state directory.
const JOURNAL: &str = "journal.jsonl";

/// At most this much of the journal's end is read.
const TAIL_MAX: u64 = 4 << 20;

/// `events`.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct EventsArgs {
    /// The agent's state directory; from the configuration file if not given
    #[arg(long, value_name = "DIR")]
    pub(crate) state_dir: Option<PathBuf>,
    /// How many of the newest events
    #[arg(short = 'n', long, default_value_t = 50)]
    pub(crate) number: usize,
    /// Output format
    #[arg(short, long, value_enum, default_value = "pretty")]
    pub(crate) format: EventsFormat,
}

/// `-f` of `events`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum EventsFormat {
    /// Time, action, reason.
    Pretty,
    /// The journal's own lines.
    Json,
}

pub(super) async fn run(args: EventsArgs, config: &CtlConfig) -> anyhow::Result<ExitCode> {
    let dir =
        args.state_dir.as_ref().or(config.state_dir.as_ref()).context(
            "no state directory is known; give --state-dir DIR, or -c FILE of the agent",
        )?;
    let path = dir.join(JOURNAL);
    let text = tokio::task::spawn_blocking(move || tail(&path)).await??;
    let lines = newest(&text, args.number);
    let shown = lines.iter().map(|line| match args.format {
        EventsFormat::Json => format!("{line}\n"),
        EventsFormat::Pretty => pretty(line),
    });
    say(&shown.collect::<String>())?;
    Ok(ExitCode::SUCCESS)
}

/// The end of the journal, from the first whole line on.
fn tail(path: &Path) -> anyhow::Result<String> {
    let read = || -> std::io::Result<String> {
        let mut file = std::fs::File::open(path)?;
        let start = file.metadata()?.len().saturating_sub(TAIL_MAX);
        file.seek(SeekFrom::Start(start))?;
        let mut bytes = Vec::new();
        file.take(TAIL_MAX).read_to_end(&mut bytes)?;
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let whole = if start == 0 { Some(0) } else { text.find('\n').map(|at| at + 1) };
        Ok(whole.map_or_else(String::new, |at| text[at..].to_owned()))
    };
    read().with_context(|| format!("cannot read the journal {}", path.display()))
}

fn newest(text: &str, number: usize) -> Vec<&str> {
    let lines: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    lines[lines.len().saturating_sub(number)..].to_vec()
}

/// One line of the journal for people: `begin` with the action and its reason, `end` with the
/// outcome, or a note. A line that is no JSON object is shown as it is: the end of a journal whose
/// writer was killed.
fn pretty(line: &str) -> String {
    let Ok(Value::Object(mut event)) = serde_json::from_str(line) else {
        return format!("{line}\n");
    };
    let at = take(&mut event, "at");
    // The boot-time clock is for machines.
    event.shift_remove("boot_ms");
    let kind = take(&mut event, "event");
    let text = match kind.as_str() {
        "begin" => {
            let id = take(&mut event, "id");
            let act = tagged(event.shift_remove("act"), "action");
            let why = tagged(event.shift_remove("why"), "reason");
            format!("#{id:<6} {act}  because {why}{}", fields(&event))
        }
        "end" => {
            let id = take(&mut event, "id");
            let outcome = take(&mut event, "outcome");
            let millis = take(&mut event, "ms");
            format!("#{id:<6} {outcome} after {millis} ms{}", fields(&event))
        }
        other => {
            let detail = event.shift_remove("detail").map(|d| tagged(Some(d), ""));
            let detail = detail.filter(|text| !text.is_empty()).map(|text| format!("  {text}"));
            format!("{other}{}{}", detail.unwrap_or_default(), fields(&event))
        }
    };
    format!("{at}  {text}\n")
}

/// A value whose variant stands in the field `tag`: the variant first, then its fields.
fn tagged(value: Option<Value>, tag: &str) -> String {
    match value {
        None | Some(Value::Null) => String::new(),
        Some(Value::Object(mut map)) => {
            let name = map.shift_remove(tag).map(|v| word(&v)).unwrap_or_default();
            format!("{name}{}", fields(&map)).trim_start().to_owned()
        }
        Some(other) => word(&other),
    }
}

/// ` key=value` for each; nulls say nothing.
fn fields(map: &Map<String, Value>) -> String {
    let filled = map.iter().filter(|(_, value)| !value.is_null());
    filled.map(|(key, value)| format!(" {key}={}", word(value))).collect()
}

fn take(event: &mut Map<String, Value>, key: &str) -> String {
    event.shift_remove(key).map_or_else(|| "-".to_owned(), |value| word(&value))
}

fn word(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_readable() {
        let begin = concat!(
            r#"{"at":"2026-11-23T22:01:02.5Z","boot_ms":7,"event":"begin","id":12,"#,
            r#""act":{"action":"promote","term":3},"why":{"reason":"won_election","term":3}}"#
        );
        assert_eq!(
            pretty(begin),
            "2026-11-23T22:01:02.5Z  #12     promote term=3  because won_election term=3\n"
        );
        let end =
            r#"{"at":"T","boot_ms":7,"event":"end","id":12,"outcome":"done","ms":4,"detail":null}"#;
        assert_eq!(pretty(end), "T  #12     done after 4 ms\n");
        let note = r#"{"at":"T","boot_ms":7,"event":"start","detail":{"version":"1"}}"#;
        assert_eq!(pretty(note), "T  start  version=1\n");
        assert_eq!(pretty("{\"at\":"), "{\"at\":\n");
    }

    #[test]
    fn the_newest_come_last() {
        assert_eq!(newest("1\n2\n\n3\n", 2), ["2", "3"]);
        assert_eq!(newest("1\n", 5), ["1"]);
        assert!(newest("", 5).is_empty());
    }

    #[test]
    fn only_the_end_of_a_large_journal_is_read() {
        let path = std::env::temp_dir().join(format!("pgherd-events-{}", std::process::id()));
        let line = format!("{{\"x\":\"{}\"}}\n", "y".repeat(1 << 16));
        std::fs::write(&path, line.repeat(80)).expect("a writable temporary directory");
        let text = tail(&path).expect("readable");
        std::fs::remove_file(&path).expect("it was written above");
        assert!(text.len() < (4 << 20) && text.len() > (3 << 20));
        assert!(text.starts_with("{\"x\"") && text.ends_with("}\n"));
        let missing = tail(Path::new("/nonexistent/journal.jsonl")).expect_err("missing");
        assert!(missing.to_string().contains("/nonexistent/journal.jsonl"));
    }
}
