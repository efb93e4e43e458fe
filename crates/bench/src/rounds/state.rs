//! What is known after each round, in a file, so that a run can be resumed; and the report of it.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use lab::cluster::Settings;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// The rounds of one kind.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Tally {
    /// How many there were.
    pub(crate) n: u32,
    /// The longest time without an acknowledged insert, in seconds.
    pub(crate) longest_gap_s: f64,
}

/// Everything that a later run has to know.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct State {
    /// From which the rounds are drawn.
    pub(crate) seed: u64,
    /// What the cluster is like.
    pub(crate) settings: Settings,
    /// How often the cluster was started.
    pub(crate) runs: u32,
    /// Rounds that are over.
    pub(crate) rounds: u32,
    /// By kind.
    pub(crate) tallies: BTreeMap<String, Tally>,
    /// Every identifier that was acknowledged: first and last of each range.
    pub(crate) acknowledged: Vec<(i64, i64)>,
    /// How many of them were not there when they were looked for.
    pub(crate) lost: usize,
    /// Acknowledgements that must not be.
    pub(crate) interleaved: usize,
    /// What else went wrong.
    pub(crate) trouble: Option<String>,
}

impl State {
    /// Before the first round.
    pub(crate) fn new(seed: u64, settings: Settings) -> State {
        State {
            seed,
            settings,
            runs: 0,
            rounds: 0,
            tallies: BTreeMap::new(),
            acknowledged: Vec::new(),
            lost: 0,
            interleaved: 0,
            trouble: None,
        }
    }

    fn file(directory: &Path) -> PathBuf {
        directory.join("rounds.json")
    }

    /// What an earlier run left in `directory`, if there was one.
    ///
    /// # Errors
    /// It cannot be read.
    pub(crate) fn read(directory: &Path) -> anyhow::Result<Option<State>> {
        let path = State::file(directory);
        match fs::read(&path) {
            Ok(text) => {
                let state = serde_json::from_slice(&text);
                state.with_context(|| format!("{} is damaged", path.display())).map(Some)
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
        }
    }

    /// The state to begin with: a new one, or what is to be resumed.
    ///
    /// # Errors
    /// There is nothing to resume, or something that was not meant to be.
    pub(crate) fn begin(
        directory: &Path,
        resume: bool,
        seed: u64,
        settings: Settings,
    ) -> anyhow::Result<State> {
        let shown = directory.display();
        match (State::read(directory)?, resume) {
            (Some(state), true) if (state.seed, state.settings) != (seed, settings) => bail!(
                "the rounds in {shown} are of seed {} and {:?}: give the same options",
                state.seed,
                state.settings
            ),
            (Some(state), true) => Ok(state),
            (Some(_), false) => bail!("{shown} holds rounds: resume them, or choose another --dir"),
            (None, true) => bail!("{shown} holds no rounds to resume"),
            (None, false) => {
                let occupied = fs::read_dir(directory).is_ok_and(|mut all| all.next().is_some());
                if occupied {
                    bail!("{shown} is not empty and holds no rounds: choose another --dir");
                }
                Ok(State::new(seed, settings))
            }
        }
    }

    /// Writes it down, whole or not at all.
    ///
    /// # Errors
    /// It cannot be written.
    pub(crate) fn write(&self, directory: &Path) -> anyhow::Result<()> {
        let path = State::file(directory);
        let beside = path.with_extension("new");
        let text = serde_json::to_vec(self)?;
        let written = fs::create_dir_all(directory)
            .and_then(|()| fs::write(&beside, text))
            .and_then(|()| fs::rename(&beside, &path));
        written.with_context(|| format!("cannot write {}", path.display()))
    }

    /// Counts a round.
    pub(crate) fn count(&mut self, kind: String, gap: f64) {
        let tally = self.tallies.entry(kind).or_default();
        tally.n += 1;
        tally.longest_gap_s = tally.longest_gap_s.max(gap);
        self.rounds += 1;
    }

    /// Whether nothing went wrong.
    pub(crate) fn is_good(&self) -> bool {
        self.lost == 0 && self.interleaved == 0 && self.trouble.is_none()
    }

    /// The one object of the last line.
    pub(crate) fn object(&self) -> Value {
        let acknowledged: i64 =
            self.acknowledged.iter().map(|(first, last)| last - first + 1).sum();
        let gaps = self.tallies.values().map(|tally| tally.longest_gap_s);
        json!({
            "ok": self.is_good(),
            "seed": self.seed,
            "settings": self.settings,
            "rounds": self.rounds,
            "acknowledged": acknowledged,
            "lost_acknowledged": self.lost,
            "interleaved": self.interleaved,
            "trouble": self.trouble,
            "longest_gap_s": gaps.fold(0.0, f64::max),
            "faults": self.tallies,
        })
    }

    /// The tallies for people, a line each.
    pub(crate) fn table(&self) -> String {
        let line = |(kind, tally): (&String, &Tally)| {
            format!("{kind:<48} {:>4} {:>8.3} s\n", tally.n, tally.longest_gap_s)
        };
        let title = format!("{:<48} {:>4} {:>10}\n", "", "n", "longest");
        title + &self.tallies.iter().map(line).collect::<String>()
    }
}

/// Identifiers as ranges, first and last of each: acknowledged ones have few gaps.
pub(crate) fn ranges(ids: impl IntoIterator<Item = i64>) -> Vec<(i64, i64)> {
    let mut sorted: Vec<i64> = ids.into_iter().collect();
    sorted.sort_unstable();
    let mut ranges: Vec<(i64, i64)> = Vec::new();
    for id in sorted {
        match ranges.last_mut() {
            Some((_, last)) if id <= *last + 1 => *last = id,
            Some(_) | None => ranges.push((id, id)),
        }
    }
    ranges
}

#[cfg(test)]
mod tests {
    use super::*;
    use lab::cluster::SynchronousMode;

    fn state() -> State {
        let settings = Settings {
            members: 3,
            synchronous_mode: SynchronousMode::Quorum,
            failover_mode: None,
            ttl: 10,
        };
        State::new(7, settings)
    }

    #[test]
    fn ranges_hold_every_identifier_once() {
        assert_eq!(ranges([5, 1, 2, 3, 9, 10]), [(1, 3), (5, 5), (9, 10)]);
        assert_eq!(ranges([2, 2, 1]), [(1, 2)]);
        assert_eq!(ranges([]), []);
    }

    #[test]
    fn tallies_keep_the_longest_gap_and_the_report_has_them() {
        let mut state = state();
        state.acknowledged = vec![(1, 10), (21, 25)];
        state.count("freeze".to_owned(), 2.0);
        state.count("freeze".to_owned(), 1.0);
        state.count("loss".to_owned(), 3.5);
        let object = state.object();
        assert_eq!(object["faults"]["freeze"], json!({"n": 2, "longest_gap_s": 2.0}));
        assert_eq!(object["longest_gap_s"], 3.5);
        assert_eq!((&object["acknowledged"], &object["rounds"]), (&json!(15), &json!(3)));
        assert_eq!(object["ok"], true);
        assert!(state.table().contains("freeze"));
    }

    #[test]
    fn whatever_goes_wrong_is_not_good() {
        assert!(state().is_good());
        assert!(!State { lost: 1, ..state() }.is_good());
        assert!(!State { interleaved: 1, ..state() }.is_good());
        assert!(!State { trouble: Some("not whole".to_owned()), ..state() }.is_good());
    }

    #[test]
    fn a_state_is_resumed_as_it_was_written_and_not_by_accident() {
        let directory = std::env::temp_dir().join(format!("bench-rounds-{}", std::process::id()));
        let settings = state().settings;
        let begin = |resume, seed| State::begin(&directory, resume, seed, settings);
        assert!(begin(true, 7).is_err(), "there is nothing to resume");
        let mut written = begin(false, 7).expect("a new one");
        written.count("loss".to_owned(), 1.25);
        written.acknowledged = vec![(1, 4)];
        written.write(&directory).expect("a temporary directory");
        assert_eq!(begin(true, 7).expect("it is there"), written);
        assert!(begin(true, 8).is_err(), "another seed");
        assert!(begin(false, 7).is_err(), "it would be overwritten");
        fs::remove_dir_all(&directory).expect("it is ours");
    }
}
