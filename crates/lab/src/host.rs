//! A simulated host: one agent, its guard, its PostgreSQL with every backend, and whatever the
//! agent started besides. It can be lost or frozen as a whole.

use std::collections::BTreeSet;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use rustix::process::Signal;

use crate::cgroup::Group;
use crate::process;

/// How long killed processes may take to be gone.
const KILL_LIMIT: Duration = Duration::from_secs(10);
/// Rounds of "stop all, look again" until no new process appears. Each round stops every process it
/// sees, so only one that was being forked can appear in the next.
const STOP_ROUNDS_MAX: usize = 20;

/// A fault could not be injected, or not be undone.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// A signal was refused.
    #[error("cannot send a signal to process {pid} of {host}: {source}")]
    Signal {
        /// The host.
        host: String,
        /// The process.
        pid: u32,
        /// What the kernel said.
        source: io::Error,
    },
    /// The cgroup could not be thawed.
    #[error("cannot thaw {host}: {source}")]
    Thaw {
        /// The host.
        host: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// It could only be stopped by signals, which the rest of the host would see.
    #[error("the cgroup of {host} cannot be frozen")]
    NotFrozen {
        /// The host.
        host: String,
    },
    /// Processes survived SIGKILL.
    #[error("processes of {host} are still there {limit:?} after SIGKILL: {pids:?}")]
    Immortal {
        /// The host.
        host: String,
        /// The processes.
        pids: Vec<u32>,
        /// How long they had.
        limit: Duration,
    },
    /// New processes kept appearing.
    #[error("{host} starts processes faster than they can be stopped")]
    Forks {
        /// The host.
        host: String,
    },
}

/// How a host was frozen, which says how to thaw it.
#[derive(Debug)]
#[must_use = "a frozen host has to be thawed"]
pub enum Frozen {
    /// By its cgroup.
    Group,
    /// By SIGSTOP to each of these.
    Signals(BTreeSet<u32>),
}

/// One simulated host.
#[derive(Debug, Clone)]
pub struct Host {
    /// The member's name.
    pub name: String,
    /// PostgreSQL's data directory: every process that works there belongs to the host.
    pub data_dir: PathBuf,
    /// The agent's state directory, by which its guard is found.
    pub state_dir: PathBuf,
    /// The host's cgroup, where there can be one.
    pub group: Option<Group>,
}

impl Host {
    /// Every process of the host. `agent` is the agent's process, if it runs.
    #[must_use]
    pub fn pids(&self, agent: Option<u32>) -> BTreeSet<u32> {
        let mut pids: BTreeSet<u32> = agent.map(process::descendants).unwrap_or_default();
        pids.extend(process::guard_of(&self.state_dir));
        pids.extend(process::working_in(&self.data_dir));
        pids.extend(self.group.iter().flat_map(Group::pids));
        pids.retain(|pid| process::is_alive(*pid) && *pid != std::process::id());
        pids
    }

    /// Kills every process of the host at one instant, and returns when none is left.
    ///
    /// # Errors
    /// A signal was refused, or a process survived.
    pub async fn kill_all_at_once(&self, agent: Option<u32>) -> Result<(), HostError> {
        let pids = self.pids(agent);
        let killed_as_group = self.gather(&pids).is_some_and(|group| group.kill().is_ok());
        // Without a group: nobody is killed before everybody stands still, so that no process of
        // the host sees another one die.
        let pids = if killed_as_group { pids } else { self.stop_all(agent)? };
        for pid in &pids {
            self.signal(*pid, Signal::KILL)?;
        }
        let left = process::wait_gone(pids, KILL_LIMIT).await;
        if left.is_empty() {
            return Ok(());
        }
        Err(HostError::Immortal { host: self.name.clone(), pids: left, limit: KILL_LIMIT })
    }

    /// Freezes every process of the host: by its cgroup, else by SIGSTOP to each.
    ///
    /// # Errors
    /// A signal was refused, or processes appear faster than they can be stopped.
    pub async fn freeze(&self, agent: Option<u32>) -> Result<Frozen, HostError> {
        let pids = self.pids(agent);
        if let Some(group) = self.gather(&pids) {
            match group.freeze().await {
                Ok(()) => return Ok(Frozen::Group),
                Err(error) => {
                    tracing::debug!(host = %self.name, %error, "no cgroup freezer, using SIGSTOP");
                    group.thaw().map_err(|source| self.cannot_thaw(source))?;
                }
            }
        }
        self.stop_all(agent).map(Frozen::Signals)
    }

    /// Lets a frozen host go on.
    ///
    /// # Errors
    /// The kernel refused.
    pub fn thaw(&self, frozen: &Frozen) -> Result<(), HostError> {
        match frozen {
            Frozen::Group => match &self.group {
                Some(group) => group.thaw().map_err(|source| self.cannot_thaw(source)),
                None => Ok(()),
            },
            Frozen::Signals(pids) => {
                pids.iter().try_for_each(|pid| self.signal(*pid, Signal::CONT))
            }
        }
    }

    /// Sends one signal to one process of the host.
    ///
    /// # Errors
    /// The kernel refused.
    pub fn signal(&self, pid: u32, signal: Signal) -> Result<(), HostError> {
        process::signal(pid, signal).map_err(|source| HostError::Signal {
            host: self.name.clone(),
            pid,
            source,
        })
    }

    fn cannot_thaw(&self, source: io::Error) -> HostError {
        HostError::Thaw { host: self.name.clone(), source }
    }

    /// The host's group with all its processes in it, if that can be had. Those that were started
    /// before their agent was moved in, or that outlived an earlier demo, are moved now.
    fn gather(&self, pids: &BTreeSet<u32>) -> Option<&Group> {
        let group = self.group.as_ref()?;
        let inside: BTreeSet<u32> = group.pids().into_iter().collect();
        let all_in =
            pids.difference(&inside).all(|pid| group.add(*pid).is_ok() || !process::is_alive(*pid));
        all_in.then_some(group)
    }

    /// Stops every process, again and again until no new one appears.
    fn stop_all(&self, agent: Option<u32>) -> Result<BTreeSet<u32>, HostError> {
        let mut stopped = BTreeSet::new();
        for _ in 0..STOP_ROUNDS_MAX {
            let pids = self.pids(agent);
            let fresh: Vec<u32> = pids.difference(&stopped).copied().collect();
            if fresh.is_empty() {
                return Ok(stopped);
            }
            for pid in fresh {
                self.signal(pid, Signal::STOP)?;
                stopped.insert(pid);
            }
        }
        Err(HostError::Forks { host: self.name.clone() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::{Child, Command};

    /// A host of sleeping processes, ended when dropped.
    struct Sleepers {
        host: Host,
        children: Vec<Child>,
    }

    impl Sleepers {
        fn new(name: &str, group: Option<Group>) -> Sleepers {
            let data_dir =
                std::env::temp_dir().join(format!("lab-host-{name}-{}", std::process::id()));
            std::fs::create_dir_all(&data_dir).expect("a temporary directory");
            let children = (0..3)
                .map(|_| {
                    let mut command = Command::new("sleep");
                    command.arg("60").current_dir(&data_dir).spawn().expect("sleep is there")
                })
                .collect();
            let state_dir = data_dir.join("state");
            let host = Host { name: name.to_owned(), data_dir, state_dir, group };
            Sleepers { host, children }
        }

        fn state(&self, index: usize) -> char {
            let pid = self.children[index].id();
            let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("it lives");
            let after = text.rfind(')').expect("a name in parentheses") + 2;
            text[after..].chars().next().expect("a state")
        }
    }

    impl Drop for Sleepers {
        fn drop(&mut self) {
            for child in &mut self.children {
                // Either may say that it is gone already, which is what we want.
                drop(child.kill());
                drop(child.wait());
            }
            if let Some(group) = &self.host.group {
                group.remove();
            }
            // A directory left behind in the temporary directory does no harm.
            drop(std::fs::remove_dir_all(&self.host.data_dir));
        }
    }

    async fn eventually(what: impl Fn() -> bool) -> bool {
        for _ in 0..500 {
            if what() {
                return true;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        false
    }

    #[tokio::test]
    async fn a_host_without_a_group_is_frozen_thawed_and_lost_by_signals() {
        let sleepers = Sleepers::new("signals", None);
        assert_eq!(sleepers.host.pids(None).len(), 3);
        let frozen = sleepers.host.freeze(None).await.expect("they are ours");
        assert!(matches!(&frozen, Frozen::Signals(pids) if pids.len() == 3));
        assert!(eventually(|| (0..3).all(|n| sleepers.state(n) == 'T')).await);
        sleepers.host.thaw(&frozen).expect("they are ours");
        assert!(eventually(|| (0..3).all(|n| sleepers.state(n) == 'S')).await);
        sleepers.host.kill_all_at_once(None).await.expect("they are ours");
        assert!(sleepers.host.pids(None).is_empty());
    }

    #[tokio::test]
    async fn a_host_with_a_group_is_frozen_thawed_and_lost_at_once() {
        let Some(group) = Group::create(&format!("lab-host-test-{}", std::process::id())) else {
            return; // Not root, or no cgroup v2 here: the test above covers what is used then.
        };
        let sleepers = Sleepers::new("group", Some(group.clone()));
        let frozen = sleepers.host.freeze(None).await.expect("they are ours");
        assert!(matches!(frozen, Frozen::Group));
        assert_eq!(group.pids().len(), 3);
        sleepers.host.thaw(&frozen).expect("the group is ours");
        sleepers.host.kill_all_at_once(None).await.expect("they are ours");
        assert!(sleepers.host.pids(None).is_empty());
    }
}
