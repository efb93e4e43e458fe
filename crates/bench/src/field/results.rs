//! What was measured, as `results.json` keeps it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::Context;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::failover::{Case, Outcome};
use super::report::{self, Conditions};

/// The results, for programs.
const FILE: &str = "results.json";
/// The report, for people.
const REPORT: &str = "report.html";

/// All experiments.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Experiments {
    #[serde(default)]
    failover: Vec<Outcome>,
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct File {
    #[serde(default)]
    conditions: Conditions,
    experiments: Experiments,
}

/// The file, and the report beside it, written anew with each result.
pub(super) struct Results {
    directory: PathBuf,
    file: File,
}

impl Results {
    /// Nothing, or what an earlier run left in that directory.
    ///
    /// # Errors
    /// The file cannot be read, or is none of ours.
    pub(super) fn open(directory: &Path, resume: bool) -> anyhow::Result<Results> {
        let mut results = Results { directory: directory.to_owned(), file: File::default() };
        if resume {
            let path = directory.join(FILE);
            let text = fs::read(&path).with_context(|| {
                format!("cannot read {}: there is nothing to go on with", path.display())
            })?;
            results.file = serde_json::from_slice(&text)
                .with_context(|| format!("{} is not what a run writes", path.display()))?;
        }
        Ok(results)
    }

    pub(super) fn has(&self, case: &Case) -> bool {
        self.file.experiments.failover.iter().any(|outcome| outcome.case == *case)
    }

    pub(super) fn add_failover(&mut self, outcome: Outcome) -> anyhow::Result<()> {
        self.file.experiments.failover.push(outcome);
        self.save()
    }

    pub(super) fn note_conditions(&mut self, conditions: Conditions) {
        self.file.conditions = conditions;
    }

    fn save(&self) -> anyhow::Result<()> {
        let results = serde_json::to_string_pretty(&self.file)?;
        let page = report::page(&self.file.conditions, &self.file.experiments.failover)?;
        let save = || -> io::Result<()> {
            fs::create_dir_all(&self.directory)?;
            // Whole at any time: another file takes its place.
            for (name, text) in [(FILE, results), (REPORT, page)] {
                let new = self.directory.join(format!("{name}.new"));
                fs::write(&new, text)?;
                fs::rename(&new, self.directory.join(name))?;
            }
            Ok(())
        };
        save().with_context(|| format!("cannot write to {}", self.directory.display()))
    }

    pub(super) fn summary(&self) -> Value {
        json!({"failover": self.file.experiments.failover.len()})
    }
}
