//! The journal: every action with its reason as one JSON line (I5), rotated by size.
//!
//! The renewals and member-key writes that each `loop_wait` brings are written only when they fail:
//! they say nothing else, and would push out what an operator looks for.
//!
//! A thread writes it, behind a bounded queue: a disk that hangs costs lines, which are counted,
//! and never time of the loop's.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::Duration;

use decide::{Act, Action, ActionId, Outcome};
use serde_json::{Value, json};

/// A journal file is rotated at this size; one older file is kept.
const SIZE_MAX: u64 = 8 * 1024 * 1024;

/// Lines that wait for the disk; what comes beyond them is dropped.
const QUEUE_MAX: usize = 1024;
/// How long the end of the agent waits for the lines that are left.
const FLUSH_LIMIT: Duration = Duration::from_millis(500);

/// The open journal. When it is dropped, what is left is written, within `FLUSH_LIMIT`.
#[derive(Debug)]
pub(crate) struct Journal {
    /// Empty only while it is dropped.
    lines: Option<SyncSender<Value>>,
    /// Lines that found the queue full, since the last one that did not.
    dropped: Arc<AtomicU64>,
    /// Ends with the thread.
    written: Receiver<()>,
    /// Routine actions whose lines are held back until they fail.
    held: std::collections::BTreeMap<ActionId, Value>,
}

/// The journal's file, on its thread.
struct Log {
    path: PathBuf,
    file: File,
    size: u64,
}

impl Journal {
    /// Opens `journal.jsonl` in the state directory.
    pub(crate) fn open(state_dir: &Path) -> io::Result<Journal> {
        let path = state_dir.join("journal.jsonl");
        let file = append(&path)?;
        let size = file.metadata()?.len();
        Journal::start(Log { path, file, size })
    }

    fn start(mut log: Log) -> io::Result<Journal> {
        let (lines, incoming) = sync_channel(QUEUE_MAX);
        let (done, written) = sync_channel(1);
        let dropped = Arc::new(AtomicU64::new(0));
        let count = Arc::clone(&dropped);
        let work = move || {
            let _done: SyncSender<()> = done;
            for line in incoming {
                log.write(&line);
                let lost = count.swap(0, Ordering::Relaxed);
                if lost > 0 {
                    log.write(&stamped(json!({ "event": "dropped", "detail": { "lines": lost } })));
                }
            }
        };
        std::thread::Builder::new().name("journal".to_owned()).spawn(work)?;
        let held = std::collections::BTreeMap::new();
        Ok(Journal { lines: Some(lines), dropped, written, held })
    }

    /// An action begins.
    pub(crate) fn begin(&mut self, action: &Action) {
        let line = json!({
            "event": "begin",
            "id": action.id.0,
            "act": serde_json::to_value(&action.act).unwrap_or(Value::Null),
            "why": serde_json::to_value(&action.why).unwrap_or(Value::Null),
        });
        if is_routine(&action.act) {
            self.held.insert(action.id, line);
        } else {
            self.write(line);
        }
    }

    /// An action has ended. `detail` is what came back, if anything is worth telling.
    pub(crate) fn end(
        &mut self,
        id: ActionId,
        outcome: Outcome,
        millis: u64,
        detail: Option<&str>,
    ) {
        let held = self.held.remove(&id);
        if let Some(line) = held {
            if outcome == Outcome::Done {
                return;
            }
            self.write(line);
        }
        self.write(json!({
            "event": "end",
            "id": id.0,
            "outcome": serde_json::to_value(outcome).unwrap_or(Value::Null),
            "ms": millis,
            "detail": detail,
        }));
    }

    /// Something that is no action: start, reload, re-execution, a request.
    pub(crate) fn note(&mut self, what: &str, detail: Value) {
        self.write(json!({ "event": what, "detail": detail }));
    }

    fn write(&mut self, line: Value) {
        let queued = self.lines.as_ref().is_some_and(|lines| lines.try_send(stamped(line)).is_ok());
        if !queued && self.dropped.fetch_add(1, Ordering::Relaxed) == 0 {
            tracing::error!("the journal's disk does not keep up; lines are dropped");
        }
    }
}

impl Drop for Journal {
    fn drop(&mut self) {
        self.lines = None;
        // It never gets a message: it ends when the thread does.
        if self.written.recv_timeout(FLUSH_LIMIT) == Err(RecvTimeoutError::Timeout) {
            tracing::error!("the journal was not written to its end");
        }
    }
}

/// A line with the time at which it was said.
fn stamped(mut line: Value) -> Value {
    if let Value::Object(map) = &mut line {
        let at = jiff::Timestamp::now().to_string();
        map.shift_insert(0, "at".to_owned(), Value::String(at));
        map.shift_insert(1, "boot_ms".to_owned(), json!(crate::clock::now().0));
    }
    line
}

impl Log {
    fn write(&mut self, line: &Value) {
        let text = format!("{line}\n");
        // A journal that cannot be written must not stop a failover: it is said, and goes on.
        if let Err(error) = self.append_line(text.as_bytes()) {
            tracing::error!(path = %self.path.display(), %error, "cannot write the journal");
        }
    }

    fn append_line(&mut self, text: &[u8]) -> io::Result<()> {
        if self.size > SIZE_MAX {
            std::fs::rename(&self.path, self.path.with_extension("jsonl.1"))?;
            self.file = append(&self.path)?;
            self.size = 0;
        }
        self.file.write_all(text)?;
        self.size += text.len() as u64;
        Ok(())
    }
}

fn is_routine(act: &Act) -> bool {
    matches!(
        act,
        Act::Renew { .. }
            | Act::TouchMember { .. }
            | Act::ArmGuard { .. }
            | Act::AskFailsafe { .. }
            | Act::Knock { .. }
            | Act::SyncSlots { .. }
            | Act::DecodeSlots { .. }
    )
}

fn append(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).mode(0o600).open(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(path: &Path) -> Vec<Value> {
        let text = std::fs::read_to_string(path).expect("readable");
        text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
    }

    #[test]
    fn what_was_said_is_written_when_the_journal_ends() {
        let dir = tempfile::tempdir().expect("temp dir");
        let mut journal = Journal::open(dir.path()).expect("opened");
        for number in 0..100 {
            journal.note("test", json!(number));
        }
        drop(journal);
        let written = lines(&dir.path().join("journal.jsonl"));
        let details: Vec<_> = written.iter().map(|line| line["detail"].clone()).collect();
        assert_eq!(details, (0..100).map(|number| json!(number)).collect::<Vec<_>>());
    }

    /// A pipe that nobody reads is a disk that hangs.
    #[test]
    fn a_disk_that_hangs_costs_lines_and_they_are_counted() {
        let (mut reader, writer) = io::pipe().expect("a pipe");
        let file = File::from(std::os::fd::OwnedFd::from(writer));
        let log = Log { path: PathBuf::from("a pipe"), file, size: 0 };
        let mut journal = Journal::start(log).expect("started");
        let said = 4 * QUEUE_MAX;
        for _ in 0..said {
            journal.note("test", json!("x".repeat(100)));
        }
        let read = std::thread::spawn(move || {
            let mut text = String::new();
            io::Read::read_to_string(&mut reader, &mut text).expect("readable");
            text
        });
        drop(journal);
        let text = read.join().expect("no panic");
        // What the pipe takes before it is full may have let some lines in between.
        let said_lost = text.lines().filter(|line| line.contains("dropped")).map(|line| {
            let line: Value = serde_json::from_str(line).expect("JSON");
            line["detail"]["lines"].as_u64().expect("a number")
        });
        let lost: u64 = said_lost.sum();
        assert!(lost > 0, "the loop did not wait, and what that cost is said");
        let written = text.lines().filter(|line| line.contains("\"test\"")).count();
        assert_eq!(written as u64 + lost, said as u64);
    }

    #[test]
    fn the_end_does_not_wait_for_a_disk_that_hangs() {
        let (reader, writer) = io::pipe().expect("a pipe");
        let file = File::from(std::os::fd::OwnedFd::from(writer));
        let log = Log { path: PathBuf::from("a pipe"), file, size: 0 };
        let mut journal = Journal::start(log).expect("started");
        for _ in 0..QUEUE_MAX {
            journal.note("test", json!("x".repeat(1000)));
        }
        drop(journal);
        drop(reader);
    }
}
