//! What a cluster is to be like, as its dynamic configuration says it.

use std::str::FromStr;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::view::Synchronous;

/// What may start an election.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FailoverMode {
    /// Only the end of the leader's lease.
    Lease,
    /// Also the suspicion of a quorum.
    Fenced,
}

/// How commits wait for standbys.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SynchronousMode {
    /// For a quorum.
    Quorum,
    /// For every one of the set.
    On,
}

impl SynchronousMode {
    /// How many standbys have to be synchronous in a whole cluster.
    #[must_use]
    pub fn standbys(self) -> Synchronous {
        match self {
            SynchronousMode::Quorum => Synchronous::All,
            SynchronousMode::On => Synchronous::One,
        }
    }
}

/// A word that is none of those that there are.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("use {0}")]
pub struct Unknown(&'static str);

impl FromStr for FailoverMode {
    type Err = Unknown;

    fn from_str(word: &str) -> Result<FailoverMode, Unknown> {
        match word {
            "lease" => Ok(FailoverMode::Lease),
            "fenced" => Ok(FailoverMode::Fenced),
            _ => Err(Unknown("lease or fenced")),
        }
    }
}

impl FailoverMode {
    /// The word of the configuration.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            FailoverMode::Lease => "lease",
            FailoverMode::Fenced => "fenced",
        }
    }
}

impl FromStr for SynchronousMode {
    type Err = Unknown;

    fn from_str(word: &str) -> Result<SynchronousMode, Unknown> {
        match word {
            "quorum" => Ok(SynchronousMode::Quorum),
            "on" => Ok(SynchronousMode::On),
            _ => Err(Unknown("quorum or on")),
        }
    }
}

/// What a cluster is to be like.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settings {
    /// How many members.
    pub members: u16,
    /// How commits wait.
    pub synchronous_mode: SynchronousMode,
    /// What starts an election; nothing leaves it to the program.
    pub failover_mode: Option<FailoverMode>,
    /// The leader's lease, in seconds.
    pub ttl: u64,
}

/// The options of `initdb` that go with [`dynamic`]. A promotion copies its last segment, and a
/// standby that changes timelines streams from the beginning of one: small segments, short
/// hand-overs (decision 0007).
#[must_use]
pub fn initdb() -> Value {
    json!(["data-checksums", {"encoding": "UTF8"}, {"wal-segsize": "4"}])
}

/// Our recommendation with this lease and this way to fail over, for copies that nobody will miss:
/// one that cannot be rewound may go.
#[must_use]
pub fn dynamic(ttl: u64, failover_mode: Option<FailoverMode>) -> Value {
    let mut dynamic = config::recommended_with_ttl(ttl);
    dynamic["postgresql"]["remove_data_directory_on_rewind_failure"] = json!(true);
    dynamic["postgresql"]["remove_data_directory_on_diverged_timelines"] = json!(true);
    // `initdb` would derive less from small segments: PostgreSQL's own defaults.
    dynamic["postgresql"]["parameters"]["max_wal_size"] = json!("1GB");
    dynamic["postgresql"]["parameters"]["min_wal_size"] = json!("80MB");
    if let Some(mode) = failover_mode {
        dynamic["pgherd"]["failover_mode"] = json!(mode);
    }
    dynamic
}

impl Settings {
    pub(super) fn dynamic(&self) -> Value {
        let mut dynamic = dynamic(self.ttl, self.failover_mode);
        dynamic["synchronous_mode"] = json!(self.synchronous_mode);
        dynamic
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_configuration_says_what_was_asked_for() {
        let settings = Settings {
            members: 3,
            synchronous_mode: SynchronousMode::On,
            failover_mode: Some(FailoverMode::Fenced),
            ttl: 20,
        };
        let dynamic = settings.dynamic();
        assert_eq!(dynamic["synchronous_mode"], "on");
        assert_eq!(dynamic["postgresql"]["parameters"]["max_wal_size"], "1GB");
        assert_eq!(dynamic["pgherd"]["failover_mode"], "fenced");
        assert_eq!((&dynamic["ttl"], &dynamic["loop_wait"]), (&json!(20), &json!(4)));
        let plain = Settings { failover_mode: None, ..settings }.dynamic();
        assert_eq!(plain["pgherd"], config::recommended_with_ttl(20)["pgherd"]);
    }

    #[test]
    fn words_are_read_as_they_are_written() {
        for word in ["lease", "fenced"] {
            assert_eq!(word.parse::<FailoverMode>().map(FailoverMode::word), Ok(word));
        }
        for word in ["quorum", "on"] {
            let mode: SynchronousMode = word.parse().expect("it is one");
            assert_eq!(json!(mode), word);
        }
        assert!("off".parse::<SynchronousMode>().is_err());
    }
}
