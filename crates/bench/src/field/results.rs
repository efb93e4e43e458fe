//! What was measured, as `results.json` keeps it.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::Context;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::kinds::Experiment;
use super::report::{self, Conditions};
use super::{availability, cost, data, failover, herd, response};

/// The results, for programs.
const FILE: &str = "results.json";
/// The report, for people.
const REPORT: &str = "report.html";

/// All experiments, each with what was measured of it.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Experiments {
    #[serde(default)]
    pub(super) failover: Vec<failover::Outcome>,
    #[serde(default)]
    pub(super) availability: Vec<availability::Outcome>,
    #[serde(default)]
    pub(super) response_time: Vec<response::Outcome>,
    #[serde(default)]
    pub(super) cost: Cost,
    #[serde(default)]
    pub(super) data: Vec<data::Outcome>,
}

/// What one cluster costs, and how that grows.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Cost {
    #[serde(default)]
    pub(super) clusters: Vec<cost::Outcome>,
    #[serde(default)]
    pub(super) growth: Vec<herd::Outcome>,
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct File {
    #[serde(default)]
    conditions: AllConditions,
    experiments: Experiments,
}

/// Under what each experiment was measured: more than one if a run was gone on with.
pub(super) type AllConditions = BTreeMap<Experiment, Vec<Conditions>>;

impl File {
    fn read(path: &Path) -> anyhow::Result<File> {
        let text = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        serde_json::from_slice(&text)
            .with_context(|| format!("{} is not what a run writes", path.display()))
    }
}

/// The file, and the report beside it, written anew with each result.
pub(super) struct Results {
    directory: PathBuf,
    file: File,
    /// Those of what is added from now on.
    conditions: Conditions,
}

impl Results {
    /// Nothing, or what an earlier run left in that directory; under these conditions it is added
    /// to.
    ///
    /// # Errors
    /// The file cannot be read, or is none of ours.
    pub(super) fn open(
        directory: &Path,
        resume: bool,
        conditions: Conditions,
    ) -> anyhow::Result<Results> {
        let file = match resume {
            true => File::read(&directory.join(FILE)).context("there is nothing to go on with")?,
            false => File::default(),
        };
        Ok(Results { directory: directory.to_owned(), file, conditions })
    }

    /// What another run measured of failover.
    ///
    /// # Errors
    /// The file cannot be read, or is none of ours.
    pub(super) fn read(path: &Path) -> anyhow::Result<Vec<failover::Outcome>> {
        Ok(File::read(path)?.experiments.failover)
    }

    pub(super) fn failover(&self) -> &[failover::Outcome] {
        &self.file.experiments.failover
    }

    pub(super) fn has_case(&self, case: &failover::Case) -> bool {
        self.file.experiments.failover.iter().any(|outcome| outcome.case == *case)
    }

    pub(super) fn has_hour(&self, case: &availability::Case) -> bool {
        self.file.experiments.availability.iter().any(|outcome| outcome.case == *case)
    }

    pub(super) fn has_response(&self, case: &response::Case) -> bool {
        self.file.experiments.response_time.iter().any(|outcome| outcome.case == *case)
    }

    pub(super) fn has_cost(&self, case: &cost::Case) -> bool {
        self.file.experiments.cost.clusters.iter().any(|outcome| outcome.case == *case)
    }

    pub(super) fn has_herd(&self, clusters: u16) -> bool {
        self.file.experiments.cost.growth.iter().any(|outcome| outcome.clusters == clusters)
    }

    pub(super) fn has_data(&self, case: &data::Case) -> bool {
        self.file.experiments.data.iter().any(|outcome| outcome.case == *case)
    }

    pub(super) fn add_failover(&mut self, outcome: failover::Outcome) -> anyhow::Result<()> {
        self.file.experiments.failover.push(outcome);
        self.save(Experiment::Failover)
    }

    pub(super) fn add_hour(&mut self, outcome: availability::Outcome) -> anyhow::Result<()> {
        self.file.experiments.availability.push(outcome);
        self.save(Experiment::Availability)
    }

    pub(super) fn add_response(&mut self, outcome: response::Outcome) -> anyhow::Result<()> {
        self.file.experiments.response_time.push(outcome);
        self.save(Experiment::ResponseTime)
    }

    pub(super) fn add_cost(&mut self, outcome: cost::Outcome) -> anyhow::Result<()> {
        self.file.experiments.cost.clusters.push(outcome);
        self.save(Experiment::Cost)
    }

    pub(super) fn add_herd(&mut self, outcome: herd::Outcome) -> anyhow::Result<()> {
        self.file.experiments.cost.growth.push(outcome);
        self.save(Experiment::Cost)
    }

    pub(super) fn add_data(&mut self, outcomes: Vec<data::Outcome>) -> anyhow::Result<()> {
        self.file.experiments.data.extend(outcomes);
        self.save(Experiment::Data)
    }

    /// Where the report for people is.
    pub(super) fn report(&self) -> PathBuf {
        self.directory.join(REPORT)
    }

    /// Replaces the tables of a document, the charts beside it, and the single runs: those are the
    /// document's name with the ending `json`.
    ///
    /// # Errors
    /// The document has no marks, or a file cannot be written.
    pub(super) fn write(&self, document: &Path) -> anyhow::Result<()> {
        report::write(document, &self.file.conditions, &self.file.experiments)?;
        let runs = document.with_extension("json");
        let text = serde_json::to_string(&self.file)?;
        fs::write(&runs, text + "\n").with_context(|| format!("cannot write {}", runs.display()))
    }

    /// Writes everything, after something was added to this experiment.
    fn save(&mut self, experiment: Experiment) -> anyhow::Result<()> {
        let conditions = self.file.conditions.entry(experiment).or_default();
        if conditions.last() != Some(&self.conditions) {
            conditions.push(self.conditions.clone());
        }
        let results = serde_json::to_string_pretty(&self.file)?;
        let page = report::page(&self.file.conditions, &self.file.experiments)?;
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

    /// How many results there are of each experiment.
    pub(super) fn summary(&self) -> Value {
        let Experiments { failover, availability, response_time, cost, data } =
            &self.file.experiments;
        json!({
            "failover": failover.len(),
            "availability": availability.len(),
            "response_time": response_time.len(),
            "cost": cost.clusters.len() + cost.growth.len(),
            "data": data.len(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::field::kinds::{Architecture, Fault, Mode};

    #[test]
    fn an_interrupted_run_is_gone_on_with() {
        let directory = std::env::temp_dir().join(format!("bench-results-{}", std::process::id()));
        let by =
            |command: &str| Conditions { command: command.to_owned(), ..Conditions::default() };
        assert!(Results::open(&directory, true, by("one")).is_err(), "there is nothing yet");
        let case = failover::Case {
            architecture: Architecture::Single,
            mode: Mode::Async,
            fault: Fault::HostLost,
            run: 1,
        };
        let outcome = failover::Outcome {
            case,
            gap_s: 1.0,
            healthy_s: 2.0,
            lost: 0,
            interleaved: 0,
            by_hand: true,
        };
        let mut results = Results::open(&directory, false, by("one")).expect("a new one");
        results.add_failover(outcome.clone()).expect("it can be written");
        let mut again = Results::open(&directory, true, by("two")).expect("it is there");
        let second = failover::Case { run: 2, ..case };
        assert!(again.has_case(&case) && !again.has_case(&second));
        for _ in 0..2 {
            let outcome = failover::Outcome { case: second, ..outcome.clone() };
            again.add_failover(outcome).expect("it can be written");
        }
        let text = fs::read_to_string(directory.join(FILE)).expect("it is there");
        let object: Value = serde_json::from_str(&text).expect("JSON");
        for key in ["failover", "availability", "response_time", "cost", "data"] {
            assert!(!object["experiments"][key].is_null(), "{key}");
        }
        assert_eq!(Results::read(&directory.join(FILE)).expect("the same")[0], outcome);
        let commands = object["conditions"]["failover"].as_array().expect("a list");
        let commands: Vec<&Value> = commands.iter().map(|one| &one["command"]).collect();
        assert_eq!(commands, ["one", "two"], "each once");
        let document = directory.join("document.md");
        fs::write(&document, "<!-- bench failover -->\n<!-- /bench failover -->\n").expect("ours");
        again.write(&document).expect("it has the marks");
        let runs = Results::read(&directory.join("document.json")).expect("what a run writes");
        assert_eq!(runs.len(), 3);
        fs::remove_dir_all(&directory).expect("it is ours");
    }
}
