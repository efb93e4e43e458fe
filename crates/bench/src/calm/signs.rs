//! What the members say of each other's signs of life: suspicions in their journals, and the
//! intervals between heartbeats in their metrics.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use lab::cluster::Cluster;
use serde::Serialize;
use serde_json::{Value, json};

/// How often a member doubted the leader.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub(super) struct Count {
    /// Knocks at the leader's PostgreSQL that had no answer.
    pub(super) knocks_failed: u64,
    /// Times that it held the leader for lost.
    pub(super) suspicions: u64,
    /// Fences that it tried to open.
    pub(super) fences: u64,
}

/// By member.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Counts(pub(super) BTreeMap<String, Count>);

impl Counts {
    /// What has come since an earlier count of the same journals.
    pub(super) fn since(&self, before: &Counts) -> Counts {
        let since = |(name, now): (&String, &Count)| {
            let before = before.0.get(name).copied().unwrap_or_default();
            let count = Count {
                knocks_failed: now.knocks_failed.saturating_sub(before.knocks_failed),
                suspicions: now.suspicions.saturating_sub(before.suspicions),
                fences: now.fences.saturating_sub(before.fences),
            };
            (name.clone(), count)
        };
        Counts(self.0.iter().map(since).collect())
    }
}

/// Counts in every member's journal, the older file too.
pub(super) fn counts(cluster: &Cluster) -> Counts {
    let members = cluster.members.iter();
    let count = members.map(|member| (member.name.clone(), of_journal(&member.host.state_dir)));
    Counts(count.collect())
}

fn of_journal(state_dir: &Path) -> Count {
    let mut count = Count::default();
    for file in ["journal.jsonl.1", "journal.jsonl"] {
        let text = fs::read(state_dir.join(file)).unwrap_or_default();
        for line in String::from_utf8_lossy(&text).lines() {
            count.add(line);
        }
    }
    count
}

impl Count {
    fn add(&mut self, line: &str) {
        let line: Value = serde_json::from_str(line).unwrap_or_default();
        match (line["event"].as_str(), line["act"]["action"].as_str()) {
            // Knocks stand in the journal only when they have failed.
            (Some("begin"), Some("knock")) => self.knocks_failed += 1,
            (Some("begin"), Some("open_fence")) => self.fences += 1,
            (Some("suspicion"), _) if line["detail"]["leader"].is_string() => self.suspicions += 1,
            _ => {}
        }
    }
}

/// What is known of the beats of one member to another.
#[derive(Debug, Clone, PartialEq, Default)]
struct Beats {
    /// How many intervals are up to each bound, at the first look.
    first: BTreeMap<String, u64>,
    /// The same at the last look.
    last: BTreeMap<String, u64>,
    /// The longest one as it has faded.
    fading: Option<f64>,
    /// The longest one that came.
    longest: f64,
}

/// The intervals between beats, by who heard and who spoke.
#[derive(Debug, Clone, PartialEq, Default)]
pub(super) struct Intervals(BTreeMap<(String, String), Beats>);

/// What the members told.
#[derive(Debug)]
pub(super) struct Signs {
    pub(super) counts: Counts,
    pub(super) intervals: Intervals,
}

impl Intervals {
    /// Reads every member's metrics; who does not answer now is read the next time.
    pub(super) async fn look(&mut self, cluster: &Cluster) {
        for member in &cluster.members {
            if let Ok(text) = cluster.metrics(member).await {
                self.take(&member.name, &text);
            }
        }
    }

    fn take(&mut self, hearer: &str, text: &str) {
        let mut counts: BTreeMap<String, BTreeMap<String, u64>> = BTreeMap::new();
        for (metric, labels, value) in text.lines().filter_map(sample) {
            let Some(speaker) = label(labels, "peer") else { continue };
            match (metric, label(labels, "le")) {
                ("pgherd_peer_interval_seconds_bucket", Some(bound)) => {
                    let counts = counts.entry(speaker.to_owned()).or_default();
                    counts.insert(bound.to_owned(), value.parse().unwrap_or(0));
                }
                ("pgherd_peer_longest_interval_seconds", None) => {
                    let beats = self.beats(hearer, speaker);
                    beats.fade(value.parse().unwrap_or(0.0));
                }
                _ => {}
            }
        }
        for (speaker, counts) in counts {
            let beats = self.beats(hearer, &speaker);
            if beats.first.is_empty() {
                beats.first.clone_from(&counts);
            }
            beats.last = counts;
        }
    }

    fn beats(&mut self, hearer: &str, speaker: &str) -> &mut Beats {
        self.0.entry((hearer.to_owned(), speaker.to_owned())).or_default()
    }

    /// The longest interval of all, in seconds.
    pub(super) fn longest(&self) -> f64 {
        self.0.values().map(|beats| beats.longest).fold(0.0, f64::max)
    }

    /// For each pair: how many, the longest, and how many were longer than each bound.
    pub(super) fn object(&self) -> Value {
        let pair = |((hearer, speaker), beats): (&(String, String), &Beats)| {
            (format!("{speaker} to {hearer}"), beats.object())
        };
        self.0.iter().map(pair).collect::<serde_json::Map<_, _>>().into()
    }
}

impl Beats {
    /// A new longest interval shows by a rise, since otherwise it fades. What was there at the
    /// first look came before.
    fn fade(&mut self, now: f64) {
        if self.fading.is_some_and(|before| now > before) {
            self.longest = self.longest.max(now);
        }
        self.fading = Some(now);
    }

    fn object(&self) -> Value {
        let come = |bound: &str| {
            let first = self.first.get(bound).copied().unwrap_or(0);
            self.last.get(bound).copied().unwrap_or(0).saturating_sub(first)
        };
        let all = come("+Inf");
        let bounds = self.last.keys().filter(|bound| *bound != "+Inf");
        let over = bounds.map(|bound| (bound.clone(), json!(all.saturating_sub(come(bound)))));
        let over: serde_json::Map<String, Value> = over.collect();
        let longest = (self.longest * 1000.0).round() / 1000.0;
        json!({"n": all, "longest_s": longest, "longer_than_s": over})
    }
}

/// One line of Prometheus' text with labels: metric, labels, value.
fn sample(line: &str) -> Option<(&str, &str, &str)> {
    let (metric, rest) = line.split_once('{')?;
    let (labels, value) = rest.rsplit_once("} ")?;
    Some((metric, labels, value))
}

/// A label's value. The laboratory's names have no quotes and commas.
fn label<'a>(labels: &'a str, name: &str) -> Option<&'a str> {
    labels.split(',').find_map(|pair| {
        let (key, value) = pair.split_once('=')?;
        (key == name).then_some(value.trim_matches('"'))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn metrics(longest: &str, counts: [u64; 3]) -> String {
        let labels = r#"scope="lab",name="node1",peer="node2""#;
        let [short, middle, all] = counts;
        format!(
            "# TYPE pgherd_peer_interval_seconds histogram\n\
             pgherd_peer_longest_interval_seconds{{{labels}}} {longest}\n\
             pgherd_peer_interval_seconds_bucket{{{labels},le=\"0.25\"}} {short}\n\
             pgherd_peer_interval_seconds_bucket{{{labels},le=\"1\"}} {middle}\n\
             pgherd_peer_interval_seconds_bucket{{{labels},le=\"+Inf\"}} {all}\n\
             pgherd_peer_interval_seconds_count{{{labels}}} {all}\n\
             pgherd_cluster_term{{scope=\"lab\",name=\"node1\"}} 1\n"
        )
    }

    #[test]
    fn what_was_there_before_does_not_count() {
        let mut intervals = Intervals::default();
        intervals.take("node1", &metrics("3", [100, 104, 105]));
        for (longest, counts) in [("2.9", [110, 114, 115]), ("0.5", [300, 304, 305])] {
            intervals.take("node1", &metrics(longest, counts));
        }
        assert!(intervals.longest() < 0.1, "nothing rose");
        intervals.take("node1", &metrics("1.25", [400, 407, 409]));
        intervals.take("node1", &metrics("1.1", [420, 427, 429]));
        let object = intervals.object();
        let beats = &object["node2 to node1"];
        assert_eq!((&beats["n"], &beats["longest_s"]), (&json!(324), &json!(1.25)));
        assert_eq!(beats["longer_than_s"], json!({"0.25": 4, "1": 1}));
    }

    #[test]
    fn a_journal_tells_doubts_apart_from_routine() {
        let mut before = Count::default();
        for line in [
            r#"{"event":"begin","id":1,"act":{"action":"knock","limit":900},"why":{}}"#,
            r#"{"event":"end","id":1,"outcome":"failed"}"#,
            r#"{"event":"suspicion","detail":{"leader":"node1"}}"#,
            r#"{"event":"suspicion","detail":{"leader":null}}"#,
            r#"{"event":"begin","id":2,"act":{"action":"open_fence"}}"#,
            r#"{"event":"begin","id":3,"act":{"action":"follow"}}"#,
            "half a li",
        ] {
            before.add(line);
        }
        assert_eq!(before, Count { knocks_failed: 1, suspicions: 1, fences: 1 });
        let mut now = before;
        now.add(r#"{"event":"suspicion","detail":{"leader":"node1"}}"#);
        let counts = |count| Counts([("node2".to_owned(), count)].into());
        let since = counts(now).since(&counts(before));
        assert_eq!(since, counts(Count { suspicions: 1, ..Count::default() }));
    }
}
