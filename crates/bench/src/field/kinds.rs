//! What is measured, of whom, how these are set, and what happens to them.

use serde::{Deserialize, Serialize};

/// A question.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Experiment {
    /// How long until the next write, and what was lost?
    Failover,
    /// How much of an hour with faults is served?
    Availability,
    /// How long do statements take?
    ResponseTime,
    /// What does it cost to keep a cluster writable?
    Cost,
    /// What do modes of replication cost, and what do they keep?
    Data,
}

impl Experiment {
    /// In the order in which they are done.
    pub(crate) const ALL: [Experiment; 5] = [
        Experiment::Failover,
        Experiment::Availability,
        Experiment::ResponseTime,
        Experiment::Cost,
        Experiment::Data,
    ];
}

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
                "the operator's script begins a while after the fault: an assumption, see above; \
                 clients of replicas name every server, as repmgr's"
            }
            Architecture::Repmgr => {
                "reconnect_attempts 6, reconnect_interval 10, monitor_interval_secs 2 (defaults); \
                 clients name every server, target_session_attrs=read-write and \
                 load_balance_hosts=random; a former primary is rejoined by the operator's script"
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

    /// The one of them that its own manual recommends.
    pub(crate) fn usual_mode(self) -> Mode {
        if self.is_ours() { Mode::Quorum } else { Mode::Async }
    }

    /// How many servers, where it is not about their number.
    fn servers(self) -> usize {
        if self == Architecture::Single { 1 } else { 3 }
    }

    /// Whether it is set as its manual has it.
    pub(crate) fn is_default(self) -> bool {
        self != Architecture::PatroniTight
    }

    /// Whether an operator has to see to it that somebody takes writes.
    pub(crate) fn needs_operator(self) -> bool {
        matches!(self, Architecture::Single | Architecture::Manual)
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
    /// For one that was chosen before, as long as there is one.
    On,
    /// For any one, as long as there is one.
    Quorum,
    /// For one that was chosen before, or for ever.
    Strict,
}

impl Mode {
    /// From the weakest to the strongest.
    pub(crate) const ALL: [Mode; 4] = [Mode::Async, Mode::On, Mode::Quorum, Mode::Strict];

    /// What tables call it.
    pub(crate) fn title(self) -> &'static str {
        match self {
            Mode::Async => "asynchronous",
            Mode::On => "synchronous (on)",
            Mode::Quorum => "synchronous (quorum)",
            Mode::Strict => "synchronous (strict)",
        }
    }

    /// How many of so many standbys acknowledge commits when all is well.
    pub(crate) fn acknowledging(self, standbys: usize) -> usize {
        match self {
            Mode::Async => 0,
            Mode::On | Mode::Strict => standbys.min(1),
            Mode::Quorum => standbys,
        }
    }
}

/// How many clients a site is made for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Crowd {
    /// A hundred.
    Small,
    /// A thousand, each of whom has a connection to a server.
    Large,
    /// A thousand who share the connections of the proxy, which is ours, by transactions.
    Pooled,
}

/// A site as it is to be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Shape {
    pub(crate) architecture: Architecture,
    pub(crate) mode: Mode,
    pub(crate) servers: usize,
    /// The last server is far away: it never becomes primary, and no commit waits for it.
    pub(crate) remote: bool,
    pub(crate) crowd: Crowd,
}

impl Shape {
    /// The usual one.
    pub(crate) fn new(architecture: Architecture, mode: Mode) -> Shape {
        let servers = architecture.servers();
        Shape { architecture, mode, servers, remote: false, crowd: Crowd::Small }
    }

    /// What tables call it.
    pub(crate) fn title(&self) -> String {
        let far = if self.remote { ", one standby far away" } else { "" };
        format!("{}, {}{far}", self.architecture.title(), self.mode.title())
    }

    /// `max_connections` of its servers.
    pub(crate) fn connections(&self) -> u32 {
        match self.crowd {
            Crowd::Small | Crowd::Pooled => 200,
            Crowd::Large => 1100,
        }
    }

    /// How many standbys acknowledge commits when all is well.
    pub(crate) fn acknowledging(&self) -> usize {
        let near = self.servers - 1 - usize::from(self.remote);
        self.mode.acknowledging(near)
    }
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

    #[test]
    fn nobody_waits_for_a_server_far_away() {
        let shape = Shape::new(Architecture::PgherdFenced, Mode::Quorum);
        assert_eq!((shape.servers, shape.acknowledging()), (3, 2));
        assert_eq!(Shape { remote: true, ..shape }.acknowledging(), 1);
        assert_eq!(Shape { mode: Mode::Strict, ..shape }.acknowledging(), 1);
        assert_eq!(Shape::new(Architecture::Single, Mode::Async).acknowledging(), 0);
    }
}
