//! The journal: every action with its reason as one JSON line (I5), rotated by size.
//!
//! The renewals and member-key writes that each `loop_wait` brings are written only when they fail:
//! they say nothing else, and would push out what an operator looks for.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use decide::{Act, Action, ActionId, Outcome};
use serde_json::{Value, json};

/// A journal file is rotated at this size; one older file is kept.
const SIZE_MAX: u64 = 8 * 1024 * 1024;

/// The open journal.
#[derive(Debug)]
pub(crate) struct Journal {
    path: PathBuf,
    file: File,
    size: u64,
    /// Routine actions whose lines are held back until they fail.
    held: std::collections::BTreeMap<ActionId, Value>,
}

impl Journal {
    /// Opens `journal.jsonl` in the state directory.
    pub(crate) fn open(state_dir: &Path) -> io::Result<Journal> {
        let path = state_dir.join("journal.jsonl");
        let file = append(&path)?;
        let size = file.metadata()?.len();
        Ok(Journal { path, file, size, held: std::collections::BTreeMap::new() })
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

    fn write(&mut self, mut line: Value) {
        if let Value::Object(map) = &mut line {
            let at = jiff::Timestamp::now().to_string();
            map.shift_insert(0, "at".to_owned(), Value::String(at));
            map.shift_insert(1, "boot_ms".to_owned(), json!(crate::clock::now().0));
        }
        let mut text = line.to_string();
        text.push('\n');
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
        Act::Renew { .. } | Act::TouchMember { .. } | Act::ArmGuard { .. } | Act::SyncSlots { .. }
    )
}

fn append(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).mode(0o600).open(path)
}
