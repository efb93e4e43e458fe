//! Who is measured, how it is set, and what happens to it.

use serde::{Deserialize, Serialize};

/// Who keeps a cluster writable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Architecture {
    /// One server, which an operator's script starts again.
    Single,
    /// Replicas, one of which an operator's script promotes.
    Manual,
    /// Replicas under repmgrd.
    Repmgr,
    /// Patroni, etcd and HAProxy as their manuals have them.
    Patroni,
    /// The same with the shortest times that they allow.
    PatroniTight,
    /// Ours, where only the end of the lease starts an election.
    PgherdLease,
    /// Ours, with suspicion of a quorum.
    PgherdFenced,
}

impl Architecture {
    /// In the order of tables.
    pub(crate) const ALL: [Architecture; 7] = [
        Architecture::Single,
        Architecture::Manual,
        Architecture::Repmgr,
        Architecture::Patroni,
        Architecture::PatroniTight,
        Architecture::PgherdLease,
        Architecture::PgherdFenced,
    ];

    /// What tables call it.
    pub(crate) fn title(self) -> &'static str {
        match self {
            Architecture::Single => "single server, operator's script",
            Architecture::Manual => "replicas, operator's script",
            Architecture::Repmgr => "repmgr with repmgrd",
            Architecture::Patroni => "Patroni, etcd, HAProxy (default)",
            Architecture::PatroniTight => "Patroni, etcd, HAProxy (tightest)",
            Architecture::PgherdLease => "pgherd (lease)",
            Architecture::PgherdFenced => "pgherd (fenced)",
        }
    }

    /// How it is set, for the conditions of a report.
    pub(crate) fn settings(self) -> &'static str {
        match self {
            Architecture::Single | Architecture::Manual => {
                "the script begins 60 s after the fault: an assumption, not a measurement"
            }
            Architecture::Repmgr => {
                "reconnect_attempts 6, reconnect_interval 10, monitor_interval_secs 2 (defaults); \
                 clients name every server, target_session_attrs=read-write; a former primary is \
                 rejoined by the operator's script"
            }
            Architecture::Patroni => {
                "ttl 30, loop_wait 10, retry_timeout 10; HAProxy inter 3s fall 3 rise 2, \
                 on-marked-down shutdown-sessions"
            }
            Architecture::PatroniTight => {
                "ttl 20, loop_wait 1, retry_timeout 3, primary_start_timeout 0; HAProxy inter 1s \
                 fall 1 rise 1, on-marked-down shutdown-sessions"
            }
            Architecture::PgherdLease => "ttl 10, failover_mode lease, WAL segments of 4 MiB",
            Architecture::PgherdFenced => "ttl 10, failover_mode fenced, WAL segments of 4 MiB",
        }
    }

    /// How commits may wait.
    pub(crate) fn modes(self) -> &'static [Mode] {
        match self {
            Architecture::Single => &[Mode::Async],
            _ => &[Mode::Async, Mode::Quorum],
        }
    }

    /// How many servers.
    pub(crate) fn servers(self) -> usize {
        if self == Architecture::Single { 1 } else { 3 }
    }

    /// Whether a program of its own reads Patroni's configuration.
    pub(crate) fn has_agents(self) -> bool {
        !matches!(self, Architecture::Single | Architecture::Manual | Architecture::Repmgr)
    }

    /// Whether it is one of ours.
    pub(crate) fn is_ours(self) -> bool {
        matches!(self, Architecture::PgherdLease | Architecture::PgherdFenced)
    }
}

/// How commits wait for standbys.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Mode {
    /// They do not.
    Async,
    /// For any one.
    Quorum,
}

/// What happens to the primary or its host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Fault {
    /// `kill -9` of the postmaster.
    PostmasterKilled,
    /// Every process of the host is killed at once; it is back after [`Fault::lasts`].
    HostLost,
    /// Every process of the host stands still for as long.
    HostFrozen,
    /// No packet from or to the host arrives for as long.
    NetworkCut,
    /// The file system of the data directory has no block left for as long.
    DiskFull,
    /// An operator asks for another primary.
    Switchover,
}

impl Fault {
    /// In the order of tables.
    pub(crate) const ALL: [Fault; 6] = [
        Fault::PostmasterKilled,
        Fault::HostLost,
        Fault::HostFrozen,
        Fault::NetworkCut,
        Fault::DiskFull,
        Fault::Switchover,
    ];

    /// What tables call it.
    pub(crate) fn title(self) -> &'static str {
        match self {
            Fault::PostmasterKilled => "postmaster killed",
            Fault::HostLost => "host lost",
            Fault::HostFrozen => "host frozen",
            Fault::NetworkCut => "network cut",
            Fault::DiskFull => "disk full",
            Fault::Switchover => "planned switchover",
        }
    }

    /// Whether it lasts, until it is undone.
    pub(crate) fn lasts(self) -> bool {
        !matches!(self, Fault::PostmasterKilled | Fault::Switchover)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_in_files_are_one_word_each() {
        let names: Vec<String> = Architecture::ALL
            .iter()
            .map(|one| serde_json::to_value(one).expect("a name").to_string())
            .chain(Fault::ALL.iter().map(|one| serde_json::to_value(one).expect("").to_string()))
            .collect();
        let distinct: std::collections::BTreeSet<&String> = names.iter().collect();
        assert_eq!(distinct.len(), Architecture::ALL.len() + Fault::ALL.len());
        assert!(names.iter().all(|name| !name.contains(' ')), "{names:?}");
        let back: Architecture = serde_json::from_str("\"patroni-tight\"").expect("it is one");
        assert_eq!(back, Architecture::PatroniTight);
    }
}
