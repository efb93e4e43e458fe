//! The agent's durable state: term, pledge, what is in progress. It stands in the state directory,
//! never in the data directory, which pg_rewind rewrites.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use types::{Durable, MemberName, Millis};

use crate::clock;

/// Why the state directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// It cannot be created or opened.
    #[error("cannot use the state directory {path}; check its owner and mode (0700)")]
    Open {
        /// The directory.
        path: PathBuf,
        /// What came back.
        #[source]
        source: io::Error,
    },
    /// Others could read or change it.
    #[error(
        "the state directory {path} has owner {owner} and mode {mode:o}; it must be a directory of \
         uid {own} with mode 700: chown and chmod it"
    )]
    NotOurs {
        /// The directory.
        path: PathBuf,
        /// Its owner.
        owner: u32,
        /// Its mode.
        mode: u32,
        /// Whom the agent runs as.
        own: u32,
    },
    /// Another agent holds it.
    #[error("another agent runs with the state directory {path}; stop it first")]
    Locked {
        /// The directory.
        path: PathBuf,
    },
    /// The file does not decode.
    #[error("{path} is damaged; if this member's data may be rebuilt, move it away")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        #[source]
        source: serde_json::Error,
    },
    /// It belongs to somebody else.
    #[error(
        "{path} belongs to {found}, not to {expected}; give this member its own pgherd.state_dir"
    )]
    Foreign {
        /// The file.
        path: PathBuf,
        /// What it says.
        found: String,
        /// What was expected.
        expected: String,
    },
    /// The data directory is of another cluster than what is recorded.
    #[error("the record is of the cluster {recorded}, the data directory of {found}")]
    OtherCluster {
        /// The recorded system identifier.
        recorded: String,
        /// The data directory's.
        found: String,
    },
    /// A write takes long; it goes on.
    #[error("the write to the state directory is not done yet")]
    Slow,
    /// It cannot be written.
    #[error("cannot write {path}; free space there or repair the disk")]
    Write {
        /// The file.
        path: PathBuf,
        /// What came back.
        #[source]
        source: io::Error,
    },
}

/// `state.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct StateFile {
    version: u32,
    member: MemberName,
    /// The cluster's prefix in the DCS; empty in what an earlier version wrote.
    #[serde(default)]
    cluster: String,
    /// Decimal; empty until a data directory is there.
    #[serde(default)]
    system_identifier: String,
    /// Our own initdb makes the data directory that will be found next.
    #[serde(default)]
    own_initdb: bool,
    /// The boot of the machine whose clock `durable.promise` is of.
    #[serde(default)]
    boot: String,
    /// The lease that this agent was granted; 0 for none.
    #[serde(default)]
    lease: i64,
    #[serde(flatten)]
    durable: Durable,
}

const VERSION: u32 = 1;
const FILE: &str = "state.json";
const LOCK: &str = "agent.lock";

impl StateFile {
    /// Terms and pledges are of one cluster's DCS. A member that an operator moves to another one
    /// begins there as a copy of unknown past; what was begun with the data directory stays begun.
    fn belong_to(&mut self, cluster: &str) {
        if !self.cluster.is_empty() && self.cluster != cluster {
            let in_progress = self.durable.in_progress;
            self.durable = Durable { in_progress, fresh_copy: true, ..Durable::default() };
            self.lease = 0;
        }
        cluster.clone_into(&mut self.cluster);
    }

    /// After a boot the clock begins anew, and a promise with it.
    fn wake_up(&mut self, boot: &str, now: Millis) {
        if self.boot != boot {
            if let Some(promise) = &mut self.durable.promise {
                promise.until = now.plus(promise.span);
            }
            boot.clone_into(&mut self.boot);
        }
    }

    /// Refuses a state that names another cluster.
    fn is_of(&self, dir: &Path, system_identifier: &str) -> Result<(), StateError> {
        if self.system_identifier == system_identifier {
            return Ok(());
        }
        Err(StateError::Foreign {
            path: dir.join(FILE),
            found: format!("the cluster {}", self.system_identifier),
            expected: format!("the cluster {system_identifier}"),
        })
    }
}

/// The open state directory. While it lives, no other agent can use it.
#[derive(Debug)]
pub(crate) struct StateDir {
    dir: PathBuf,
    state: StateFile,
    _lock: File,
}

impl StateDir {
    /// Opens (or creates) the directory for `member` of the cluster with this prefix in the DCS.
    pub(crate) fn open(
        dir: &Path,
        member: &MemberName,
        cluster: &str,
    ) -> Result<StateDir, StateError> {
        let failed = |source| StateError::Open { path: dir.to_owned(), source };
        fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(failed)?;
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(dir.join(LOCK))
            .map_err(failed)?;
        lock_for(&lock, dir)?;
        let state = read(&dir.join(FILE), member)?;
        let mut opened = StateDir { dir: dir.to_owned(), state, _lock: lock };
        opened.change(|state| {
            state.belong_to(cluster);
            state.wake_up(&boot_id(), clock::now());
        })?;
        Ok(opened)
    }

    /// Whether [`StateDir::open`] and [`StateDir::bind`] would succeed, and what is recorded
    /// (`None` when there is no directory yet). Changes nothing.
    pub(crate) fn check(
        dir: &Path,
        (member, cluster): (&MemberName, &str),
        system_identifier: Option<&str>,
    ) -> Result<Option<Durable>, StateError> {
        let failed = |source| StateError::Open { path: dir.to_owned(), source };
        let meta = match fs::metadata(dir) {
            Ok(meta) => meta,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(failed(source)),
        };
        let own = rustix::process::geteuid().as_raw();
        if !meta.is_dir() || meta.uid() != own || meta.mode() & 0o077 != 0 {
            return Err(StateError::NotOurs {
                path: dir.to_owned(),
                owner: meta.uid(),
                mode: meta.mode() & 0o7777,
                own,
            });
        }
        match OpenOptions::new().write(true).open(dir.join(LOCK)) {
            Ok(lock) => lock_for(&lock, dir)?,
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(source) => return Err(failed(source)),
        }
        let mut state = read(&dir.join(FILE), member)?;
        state.belong_to(cluster);
        match system_identifier {
            Some(found) if !state.system_identifier.is_empty() => state.is_of(dir, found)?,
            Some(_) | None => {}
        }
        Ok(Some(state.durable))
    }

    /// What is recorded.
    pub(crate) fn durable(&self) -> &Durable {
        &self.state.durable
    }

    /// The directory.
    pub(crate) fn path(&self) -> &Path {
        &self.dir
    }

    /// The cluster that it belongs to; empty until a data directory was there.
    pub(crate) fn system_identifier(&self) -> &str {
        &self.state.system_identifier
    }

    /// From now on a data directory that is found for the first time is our own initdb's.
    pub(crate) fn expect_own(&mut self) -> Result<(), StateError> {
        self.change(|state| state.own_initdb = true)
    }

    /// The lease that this agent was granted before; only that one may be gone on with.
    pub(crate) fn lease(&self) -> i64 {
        self.state.lease
    }

    /// Records the lease that our keys hang on.
    pub(crate) fn record_lease(&mut self, lease: i64) -> Result<(), StateError> {
        self.change(|state| state.lease = lease)
    }

    /// Says to which cluster the recorded state belongs. A state that names another cluster than
    /// the data directory is not of this copy: whatever it promises or claims is refused.
    pub(crate) fn bind(&mut self, system_identifier: &str) -> Result<(), StateError> {
        if !self.state.system_identifier.is_empty() {
            return self.state.is_of(&self.dir, system_identifier);
        }
        self.change(|state| {
            system_identifier.clone_into(&mut state.system_identifier);
            // A copy whose past is not recorded may be anything: an old backup, another member's.
            state.durable.fresh_copy |= !state.own_initdb;
        })
    }

    /// Changes the recorded state; when this returns, it is on disk.
    pub(crate) fn update(&mut self, change: impl FnOnce(&mut Durable)) -> Result<(), StateError> {
        self.change(|state| change(&mut state.durable))
    }

    /// What is not on disk does not count: after a failure the state is as it was.
    fn change(&mut self, change: impl FnOnce(&mut StateFile)) -> Result<(), StateError> {
        let mut state = self.state.clone();
        change(&mut state);
        if state == self.state {
            return Ok(());
        }
        let path = self.dir.join(FILE);
        let failed = |source| StateError::Write { path: path.clone(), source };
        let text = serde_json::to_vec_pretty(&state).map_err(|e| failed(io::Error::other(e)))?;
        write_atomically(&path, &text).map_err(failed)?;
        self.state = state;
        Ok(())
    }
}

/// What distinguishes one boot of the machine from another; empty where the kernel does not say.
fn boot_id() -> String {
    let text = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    text.trim().to_owned()
}

/// Takes the lock that only one agent can hold, as long as the file is open.
fn lock_for(lock: &File, dir: &Path) -> Result<(), StateError> {
    rustix::fs::flock(lock, rustix::fs::FlockOperation::NonBlockingLockExclusive)
        .map_err(|_| StateError::Locked { path: dir.to_owned() })
}

fn read(path: &Path, member: &MemberName) -> Result<StateFile, StateError> {
    let text = match fs::read(path) {
        Ok(text) => text,
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            return Ok(StateFile {
                version: VERSION,
                member: member.clone(),
                cluster: String::new(),
                system_identifier: String::new(),
                own_initdb: false,
                boot: String::new(),
                lease: 0,
                durable: Durable::default(),
            });
        }
        Err(source) => return Err(StateError::Open { path: path.to_owned(), source }),
    };
    let state: StateFile = serde_json::from_slice(&text)
        .map_err(|source| StateError::Damaged { path: path.to_owned(), source })?;
    if state.member != *member || state.version != VERSION {
        return Err(StateError::Foreign {
            path: path.to_owned(),
            found: format!("{} (version {})", state.member, state.version),
            expected: format!("{member} (version {VERSION})"),
        });
    }
    Ok(state)
}

/// Writes beside the file, syncs, renames, and syncs the directory.
pub(crate) fn write_atomically(path: &Path, text: &[u8]) -> io::Result<()> {
    let new = path.with_extension("new");
    let mut file =
        OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(&new)?;
    file.write_all(text)?;
    file.sync_all()?;
    fs::rename(&new, path)?;
    match path.parent() {
        Some(dir) => File::open(dir)?.sync_all(),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use types::Term;

    #[test]
    fn state_survives_and_belongs_to_one_member_and_one_cluster() {
        let dir = tempfile::tempdir().expect("temp dir");
        let path = dir.path().join("s");
        let a = MemberName::from("a");
        let mut state = StateDir::open(&path, &a, "/s/c/").expect("fresh");
        state.update(|d| d.term = Term(3)).expect("written");
        state.bind("7000000000000000001").expect("first");
        assert!(state.durable().fresh_copy, "nothing is known of this copy's past");
        assert!(matches!(StateDir::open(&path, &a, "/s/c/"), Err(StateError::Locked { .. })));
        drop(state);
        let mut state = StateDir::open(&path, &a, "/s/c/").expect("again");
        assert_eq!(state.durable().term, Term(3));
        assert!(matches!(state.bind("7000000000000000002"), Err(StateError::Foreign { .. })));
        drop(state);
        let other = StateDir::open(&path, &"b".into(), "/s/c/");
        assert!(matches!(other, Err(StateError::Foreign { .. })));
    }

    #[test]
    fn a_member_that_moves_to_another_cluster_leaves_terms_and_pledges_behind() {
        let dir = tempfile::tempdir().expect("temp dir");
        let (path, a) = (dir.path().join("s"), MemberName::from("a"));
        let mut state = StateDir::open(&path, &a, "/s/old/").expect("fresh");
        let begun = Some(types::InProgress::Rewind);
        state.update(|d| (d.term, d.in_progress) = (Term(3), begun)).expect("written");
        drop(state);
        let state = StateDir::open(&path, &a, "/s/new/").expect("moved");
        let durable = state.durable();
        assert_eq!((durable.term, durable.in_progress), (Term(0), begun));
        assert!(durable.fresh_copy, "nothing is known of its past there");
    }

    #[test]
    fn a_promise_is_kept_over_a_restart_and_begins_anew_with_a_boot() {
        let dir = tempfile::tempdir().expect("temp dir");
        let (path, a) = (dir.path().join("s"), MemberName::from("a"));
        let until = clock::now().plus(Millis(7_000));
        let promise = Some(types::DurablePromise { until, span: Millis(20_000) });
        let mut state = StateDir::open(&path, &a, "/s/c/").expect("fresh");
        state.update(|d| d.promise = promise).expect("written");
        drop(state);
        let mut state = StateDir::open(&path, &a, "/s/c/").expect("again");
        assert_eq!(state.durable().promise, promise);
        state.change(|state| state.boot = "another".to_owned()).expect("written");
        drop(state);
        let state = StateDir::open(&path, &a, "/s/c/").expect("after a boot");
        let kept = state.durable().promise.expect("it still binds");
        assert!(kept.until >= until.plus(Millis(13_000)), "for its whole span");
    }

    #[test]
    fn a_damaged_file_is_refused() {
        let dir = tempfile::tempdir().expect("temp dir");
        fs::write(dir.path().join(FILE), "{").expect("written");
        let opened = StateDir::open(dir.path(), &"a".into(), "/s/c/");
        assert!(matches!(opened, Err(StateError::Damaged { .. })));
    }
}
