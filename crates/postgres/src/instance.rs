//! The one instance that an agent looks after: shared state of all operations.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use pgproto::control::ControlFile;
use rustix::process::Signal;
use tokio::sync::watch;
use tokio_postgres::Client;
use types::{Fault, Lsn, Millis, PendingChange, Timeline, Trouble};

use crate::conf::ConfState;
use crate::conf_files::{self, write_files};
use crate::config::InstanceConfig;
use crate::disk::{Helper, NoAnswer};
use crate::disk_helper::{Look, Request};
use crate::error::{Error, SetupError};
use crate::files::blocking;
use crate::observe::now;
use crate::parameters;
use crate::processes::{DirId, Watched, belongs_to, find_postmaster, of_directory};
use crate::segments::place_in_log;
use crate::setup::{self, Programs};
use crate::sql;
use crate::trials::Trials;

/// Reads of pg_control that may meet PostgreSQL writing it.
const CONTROL_READS_MAX: u32 = 5;
/// PostgreSQL keeps what it knows within one sector (`PG_CONTROL_MAX_SAFE_SIZE` in pg_control.h);
/// the rest of the file is zeros.
const CONTROL_BYTES_USED: usize = 512;
/// The limit of a question about the data directory that an observation asks.
pub(crate) const LOOK_LIMIT: Duration = Duration::from_secs(1);

/// A PostgreSQL on this machine. Clones share it.
#[derive(Clone)]
pub struct LocalInstance {
    shared: Arc<Shared>,
}

struct Shared {
    config: RwLock<Arc<InstanceConfig>>,
    programs: Programs,
    /// Held while a new configuration is taken over: the newest is the last.
    applying: tokio::sync::Mutex<()>,
    /// Held while configuration files are read, changed and written.
    conf_files: Mutex<()>,
    /// The kept superuser connection.
    client: tokio::sync::Mutex<Option<Arc<Client>>>,
    /// A session for the first write, opened while a promotion goes on.
    first_writer: Mutex<Option<Client>>,
    /// The postmaster that was seen or started last.
    postmaster: watch::Sender<Option<Arc<Watched>>>,
    memory: Mutex<Memory>,
    /// pg_rewind and the like work in the data directory.
    tool_runs: AtomicBool,
    /// A data directory is being made in its place: nothing of it is shown.
    hidden: AtomicBool,
    /// Reads what stands in the data directory.
    reader: Helper,
    trials: Trials,
}

/// What observations remember from each other.
#[derive(Default)]
pub(crate) struct Memory {
    /// Since when the postmaster has been not ready, or silent.
    pub(crate) since: Option<(bool, Millis)>,
    /// `pg_conf_load_time` and what waited for a restart then.
    pub(crate) pending: Option<(String, BTreeMap<String, PendingChange>)>,
    /// Where `synchronous_commit` is below `on`.
    pub(crate) lowered: crate::lowered::Memory,
    /// Where a timeline began.
    pub(crate) began: Option<(Timeline, Lsn)>,
    /// What was read of the data directory last.
    pub(crate) look: Option<Look>,
    /// That, and since when, it has not been read.
    pub(crate) unread: Option<Trouble>,
    /// The timeline of the standby, as it was known last.
    pub(crate) standby_timeline: Timeline,
    /// The state of logical slots of a primary, by name.
    pub(crate) fetched_slots: BTreeMap<String, Arc<[u8]>>,
}

impl Memory {
    /// Another copy stands in the data directory now.
    pub(crate) fn forget_copy(&mut self) {
        self.began = None;
        self.standby_timeline = Timeline(0);
    }
}

impl LocalInstance {
    /// Takes on an instance. Nothing on disk is changed, nothing is started or stopped.
    ///
    /// # Errors
    /// All problems with programs, users, paths and the data directory, one line each.
    pub fn new(mut config: InstanceConfig) -> Result<LocalInstance, SetupError> {
        let programs = setup::check(&config)?;
        config.parameters = parameters::accepted(&programs, &config.parameters);
        Ok(LocalInstance {
            shared: Arc::new(Shared {
                config: RwLock::new(Arc::new(config)),
                programs,
                applying: tokio::sync::Mutex::default(),
                conf_files: Mutex::new(()),
                client: tokio::sync::Mutex::new(None),
                first_writer: Mutex::new(None),
                postmaster: watch::Sender::new(None),
                memory: Mutex::default(),
                tool_runs: AtomicBool::new(false),
                hidden: AtomicBool::new(false),
                reader: Helper::default(),
                trials: Trials::default(),
            }),
        })
    }

    /// The configuration in force.
    #[must_use]
    pub fn config(&self) -> Arc<InstanceConfig> {
        let guard = self.shared.config.read();
        guard.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// PostgreSQL's programs.
    #[must_use]
    pub fn programs(&self) -> &Programs {
        &self.shared.programs
    }

    /// Whoever holds it takes a configuration over; others wait in their order.
    pub(crate) async fn applying(&self) -> tokio::sync::MutexGuard<'_, ()> {
        self.shared.applying.lock().await
    }

    pub(crate) fn set_config(&self, config: InstanceConfig) {
        let guard = self.shared.config.write();
        *guard.unwrap_or_else(PoisonError::into_inner) = Arc::new(config);
    }

    pub(crate) fn memory(&self) -> MutexGuard<'_, Memory> {
        let guard = self.shared.memory.lock();
        guard.unwrap_or_else(PoisonError::into_inner)
    }

    /// The pids of all processes of the instance. Reads the data directory.
    ///
    /// # Errors
    /// `/proc` cannot be read.
    pub fn processes(&self) -> Result<Vec<i32>, Error> {
        processes_in(DirId::of(&self.config().data_dir))
    }

    /// Looks at the data directory, or says within `LOOK_LIMIT` (twice that when somebody else
    /// looks at the same time) that it does not answer.
    pub(crate) async fn look(&self) -> Result<Look, Error> {
        let began = now();
        let answer = self.ask(Request::Look).await;
        let look = answer.and_then(|line| {
            Look::parse(&line).ok_or_else(|| Error::refused("the helper's answer does not decode"))
        });
        let mut memory = self.memory();
        match &look {
            Ok(look) => {
                memory.look = Some(look.clone());
                memory.unread = None;
            }
            Err(error) => {
                let fault = match error {
                    Error::TimedOut { .. } => Fault::DiskHangs,
                    other => Fault::DiskFails(other.to_string()),
                };
                let since = memory.unread.as_ref().map_or(began, |trouble| trouble.since);
                memory.unread = Some(Trouble { since, fault });
            }
        }
        look
    }

    /// Asks the helper that reads.
    pub(crate) async fn ask(&self, request: Request) -> Result<String, Error> {
        let config = self.config();
        match self.shared.reader.ask(&config, request, LOOK_LIMIT).await {
            Ok(answer) => Ok(answer),
            Err(NoAnswer::Hangs) => {
                let what = format!("a look at {}", config.data_dir.display());
                let limit = LOOK_LIMIT.as_millis().try_into().unwrap_or(u64::MAX);
                Err(Error::timed_out(what, Millis(limit)))
            }
            Err(NoAnswer::Failed(source)) => Err(Error::file("run", &config.helper)(source)),
        }
    }

    /// Asks the helper something more after a look, unless that had no answer: each wait is one
    /// more second for an observation.
    pub(crate) async fn ask_more(&self, request: Request) -> Option<String> {
        if self.memory().unread.is_some() {
            return None;
        }
        self.ask(request).await.ok()
    }

    /// The identity of the data directory as it is now; of one that does not answer, as it was last
    /// seen.
    pub(crate) async fn dir_id(&self) -> Result<Option<DirId>, Error> {
        let looked = self.look().await;
        match (looked, self.memory().look.as_ref()) {
            (Ok(look), _) => Ok(look.dir),
            (Err(_), Some(known)) => Ok(known.dir),
            (Err(error), None) => Err(error),
        }
    }

    /// The pids of all processes of the instance.
    pub(crate) async fn pids(&self) -> Result<Vec<i32>, Error> {
        processes_in(self.dir_id().await?)
    }

    /// The postmaster, if one lives.
    pub(crate) async fn postmaster(&self) -> Result<Option<Arc<Watched>>, Error> {
        match self.known_postmaster() {
            Some(known) => Ok(Some(known)),
            None => self.postmaster_in(&self.look().await?),
        }
    }

    /// The postmaster that was seen or started last, if it lives.
    pub(crate) fn known_postmaster(&self) -> Option<Arc<Watched>> {
        self.shared.postmaster.borrow().clone().filter(|known| !known.is_dead())
    }

    /// The postmaster, if one lives, by what was seen of the data directory.
    pub(crate) fn postmaster_in(&self, look: &Look) -> Result<Option<Arc<Watched>>, Error> {
        let known = self.known_postmaster();
        let (None, Some((pid, id))) = (&known, look.postmaster.zip(look.dir)) else {
            return Ok(known);
        };
        let dir = self.config().data_dir.clone();
        let found = find_postmaster(pid, id);
        let found = found.map_err(Error::file("find the postmaster of", &dir))?;
        Ok(found.map(|watched| self.adopt(watched)))
    }

    pub(crate) fn trials(&self) -> &Trials {
        &self.shared.trials
    }

    /// Starts the trials if they do not run yet. They end with the last clone, or by `close`.
    pub(crate) fn start_trials(&self) {
        let shared = Arc::downgrade(&self.shared);
        self.shared.trials.start(move || Some(LocalInstance { shared: shared.upgrade()? }));
    }

    /// Ends trials and helpers.
    pub(crate) async fn close(&self) {
        self.shared.trials.close().await;
        self.shared.reader.close().await;
    }

    pub(crate) fn adopt(&self, watched: Watched) -> Arc<Watched> {
        let watched = Arc::new(watched);
        self.shared.postmaster.send_replace(Some(watched.clone()));
        watched
    }

    /// Resolves when the postmaster that is known has ended, at once if nobody was told of that
    /// yet; else when the next one has.
    pub(crate) async fn next_exit(&self) {
        let mut known = self.shared.postmaster.subscribe();
        loop {
            let watched = known.borrow_and_update().clone();
            if let Some(watched) = watched
                && watched.exited_once().await
            {
                return;
            }
            if known.changed().await.is_err() {
                return std::future::pending().await;
            }
        }
    }

    /// Refuses unless no process of the instance is left.
    pub(crate) async fn require_stopped(&self, what: &str) -> Result<(), Error> {
        let look = self.look().await?;
        let pids = processes_in(look.dir)?;
        if self.postmaster_in(&look)?.is_none() && pids.is_empty() {
            return Ok(());
        }
        Err(Error::refused(format!(
            "will not {what}: PostgreSQL runs in {} (pids {pids:?}); stop it first",
            self.config().data_dir.display()
        )))
    }

    /// Marks the data directory as worked on by a tool until the mark is dropped.
    pub(crate) fn tool_mark(&self) -> ToolMark<'_> {
        self.shared.tool_runs.store(true, Ordering::Relaxed);
        ToolMark(&self.shared.tool_runs)
    }

    /// Shows nothing of the data directory, and no trial in it, until both marks are dropped.
    pub(crate) fn hide(&self) -> (ToolMark<'_>, ToolMark<'_>) {
        self.shared.hidden.store(true, Ordering::Relaxed);
        (self.tool_mark(), ToolMark(&self.shared.hidden))
    }

    pub(crate) fn is_hidden(&self) -> bool {
        self.shared.hidden.load(Ordering::Relaxed)
    }

    pub(crate) fn tool_runs(&self) -> bool {
        self.shared.tool_runs.load(Ordering::Relaxed)
    }

    /// The kept superuser connection, made anew if it is gone. For short statements only.
    pub(crate) async fn client(&self) -> Result<Arc<Client>, Error> {
        let mut kept = self.shared.client.lock().await;
        if let Some(client) = kept.as_ref().filter(|c| !c.is_closed()) {
            return Ok(client.clone());
        }
        *kept = None;
        let config = self.config();
        let client = sql::connect_local(&config, "pgherd", sql::PROBE_LIMIT).await?;
        let client = Arc::new(client);
        *kept = Some(client.clone());
        Ok(client)
    }

    /// Keeps a session for the first write.
    pub(crate) fn keep_first_writer(&self, client: Client) {
        let guard = self.shared.first_writer.lock();
        *guard.unwrap_or_else(PoisonError::into_inner) = Some(client);
    }

    /// The session that was kept for the first write, if it lives.
    pub(crate) fn take_first_writer(&self) -> Option<Client> {
        let guard = self.shared.first_writer.lock();
        let kept = guard.unwrap_or_else(PoisonError::into_inner).take();
        kept.filter(|client| !client.is_closed())
    }

    /// Drops the kept connection.
    pub(crate) async fn forget_client(&self) {
        *self.shared.client.lock().await = None;
    }

    /// A new superuser connection with the short statement time-out.
    pub(crate) async fn fresh_client(&self) -> Result<Client, Error> {
        sql::connect_local(&self.config(), "pgherd", sql::PROBE_LIMIT).await
    }

    /// Reads pg_control of the data directory.
    pub(crate) async fn control(&self) -> Result<ControlFile, Error> {
        let dir = self.config().data_dir.clone();
        blocking(move || read_control(&dir)).await
    }

    /// Changes the configuration files in place, durably. Returns whether any differed.
    pub(crate) async fn write_conf(
        &self,
        change: impl FnOnce(&mut ConfState) + Send + 'static,
    ) -> Result<bool, Error> {
        let this = self.clone();
        blocking(move || {
            let guard = this.shared.conf_files.lock();
            let _guard = guard.unwrap_or_else(PoisonError::into_inner);
            let config = this.config();
            write_files(&config, &config.data_dir, change)
        })
        .await
    }

    /// What the configuration on disk says.
    pub(crate) async fn conf_state(&self) -> Result<ConfState, Error> {
        let config = self.config();
        blocking(move || conf_files::state_in(&config, &config.data_dir)).await
    }

    /// Lets one kind of server process read the configuration again, now: the postmaster passes a
    /// reload on, but does not say when it has.
    pub(crate) async fn reload_process(&self, client: &Client, kind: &str) -> Result<(), Error> {
        let statement = format!(
            "SELECT pid FROM pg_stat_get_activity(NULL) WHERE backend_type = {}",
            sql::literal(kind)
        );
        let rows = sql::rows(client, "find a server process", &statement).await?;
        let pid = rows.first().and_then(|row| row.first()?.as_deref()?.parse().ok());
        let Some((pid, id)) = pid.zip(self.dir_id().await?) else {
            let message = format!("there is no {kind} process");
            let what = "find a server process";
            return Err(Error::Sql { what, message });
        };
        let proc = Path::new("/proc");
        let watched = Watched::open(pid).map_err(Error::file("watch", proc))?;
        match watched.filter(|_| belongs_to(pid, id)) {
            Some(watched) => watched.signal(Signal::HUP).map_err(Error::file("signal in", proc)),
            None => Ok(()),
        }
    }

    /// Lets the server read its configuration again. Returns whether a server runs.
    pub(crate) async fn reload(&self) -> Result<bool, Error> {
        let Some(postmaster) = self.postmaster().await? else {
            return Ok(false);
        };
        let dir = self.config().data_dir.clone();
        let sent = postmaster.signal(Signal::HUP);
        sent.map_err(Error::file("signal the postmaster of", &dir))?;
        Ok(true)
    }
}

fn processes_in(dir: Option<DirId>) -> Result<Vec<i32>, Error> {
    let found = dir.map_or(Ok(Vec::new()), of_directory);
    found.map_err(Error::file("read", Path::new("/proc")))
}

/// See `LocalInstance::tool_mark`.
pub(crate) struct ToolMark<'a>(&'a AtomicBool);

impl Drop for ToolMark<'_> {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Relaxed);
    }
}

/// Reads `global/pg_control`; PostgreSQL may be writing it, so a wrong checksum is read again.
pub(crate) fn read_control(dir: &Path) -> Result<ControlFile, Error> {
    read_control_bytes(dir).map(|(_, control)| control)
}

/// The same with the part of its bytes that is in use.
pub(crate) fn read_control_bytes(dir: &Path) -> Result<(Vec<u8>, ControlFile), Error> {
    let path = dir.join("global/pg_control");
    let mut reads = 0;
    loop {
        let mut bytes = std::fs::read(&path).map_err(Error::file("read", &path))?;
        bytes.truncate(CONTROL_BYTES_USED);
        reads += 1;
        match ControlFile::parse(&bytes) {
            Ok(control) => return Ok((bytes, control)),
            Err(_) if reads < CONTROL_READS_MAX => {
                std::thread::sleep(Duration::from_millis(2));
            }
            Err(source) => return Err(Error::Control { path, source }),
        }
    }
}

/// The timeline of the record that ends at `end`, for a copy whose last checkpoint is on `least`.
///
/// PostgreSQL does not tell which timeline a standby replays. A WAL segment's name does: a newer
/// timeline counts if there is a segment of it that holds `end`, and `end` lies past the point at
/// which that timeline began.
pub(crate) fn timeline_at(dir: &Path, control: &ControlFile, end: Lsn) -> Timeline {
    let least = control.timeline.max(control.min_recovery_timeline);
    let last = Lsn(end.0.saturating_sub(1));
    let Some(suffix) = place_in_log(last, control.wal_segment_size.into()) else {
        return least;
    };
    let Ok(entries) = std::fs::read_dir(dir.join("pg_wal")) else {
        return least;
    };
    let mut newest = least;
    for entry in entries.flatten() {
        let name = entry.file_name();
        let timeline = name.to_str().and_then(|n| n.strip_suffix(&suffix));
        let timeline = timeline.and_then(|t| u32::from_str_radix(t, 16).ok());
        let Some(timeline) = timeline.map(Timeline).filter(|t| *t > newest) else {
            continue;
        };
        if began(dir, timeline).is_some_and(|switch| end > switch) {
            newest = timeline;
        }
    }
    newest
}

/// Where a timeline began, from its history file.
pub(crate) fn began(dir: &Path, timeline: Timeline) -> Option<Lsn> {
    let text = std::fs::read_to_string(history_path(dir, timeline)).ok()?;
    Some(types::parse_history_file(&text).last()?.switch)
}

/// The path of a timeline's history file.
pub(crate) fn history_path(dir: &Path, timeline: Timeline) -> PathBuf {
    dir.join(format!("pg_wal/{:08X}.history", timeline.0))
}
