//! One local PostgreSQL: its processes, control file, configuration files, copies and SQL probes.
//!
//! Everything an agent does to its PostgreSQL goes through the trait [`Instance`], so that agents
//! can run on a fake. [`LocalInstance`] is the real one. This crate decides nothing: it observes,
//! and it does what it is told, each operation bounded and safe to repeat.
//!
//! It keeps I3 (a copy is replaced only by a complete one, and then set aside), I6 (passwords stand
//! in libpq's files of mode 0600 and nowhere else) and I7 (the server survives the agent).

mod archive;
mod bootstrap;
mod command;
mod conf;
mod conf_files;
mod config;
mod conninfo;
mod copy;
mod disk;
mod disk_helper;
mod error;
mod files;
mod hooks;
mod identity;
mod instance;
mod lead;
mod lifecycle;
mod lowered;
mod observe;
mod parameters;
mod pending;
mod pretend;
mod processes;
mod query;
mod receive;
mod replica;
mod running;
mod secure;
mod segments;
mod setup;
mod slots;
mod sql;
mod sync_rule;
mod trials;

use std::collections::BTreeSet;
use std::path::PathBuf;

use types::{HistoryLine, Lsn, MemberName, Millis, SlotChange, Timeline, Upstream};

pub use config::{
    Credentials, DYNAMIC_FILE, InstanceConfig, OsUser, ProgramOption, Remote, Secret,
};
pub use copy::CopyProgress;
pub use disk_helper::run_disk_helper;
pub use error::{Error, SetupError};
pub use hooks::{CustomBootstrap, CustomMethod, Hooks, ReplicaMethod, callback_command, run_hook};
pub use instance::LocalInstance;
pub use lead::PromotePlan;
pub use lifecycle::{HandOver, StartAs, Started, StopMode};
pub use observe::{Observation, now};
pub use pretend::Pretended;
pub use query::{Answer, Kind, QueryError, QueryTarget, query};
pub use running::{Described, Reach, describe};
pub use setup::{MAJOR_MAX, MAJOR_MIN, Programs, installed_major};
pub use sync_rule::SyncRule;

/// What an agent can do to a PostgreSQL. At most one operation that changes the data directory may
/// run at a time; `observe` may run beside any of them.
///
/// Cancel safety: an operation that is dropped may have taken effect in part; it is safe to repeat.
pub trait Instance: Send + Sync + 'static {
    /// Observes data directory and processes, with at most one SQL round trip (two after a reload),
    /// and says what trials have shown, which go on beside it from the first observation on. Never
    /// fails: what cannot be seen is reported as such; what a disk that hangs does not show is
    /// reported as it was, with the trouble. Bounded by about six seconds, by four without such a
    /// disk.
    fn observe(&self) -> impl Future<Output = Observation> + Send;

    /// Takes over changed settings and brings the files on disk and a running server in line with
    /// them; what needs a restart shows as `pending_restart`. Returns whether any file changed.
    fn apply(&self, config: InstanceConfig) -> impl Future<Output = Result<bool, Error>> + Send;

    /// Creates a cluster, by initdb or by the configured command: complete with roles, or not at
    /// all; what a failure leaves is renamed to `<data_dir>.failed`. `unfinished` says that what
    /// stands in the data directory was left by such a try that was cut off.
    fn bootstrap(&self, unfinished: bool) -> impl Future<Output = Result<(), Error>> + Send;

    /// Replaces the data directory by a copy of the upstream's, made a standby of it, by the first
    /// of the configured methods that works; the old one is set aside (I3): by pg_basebackup when
    /// the new one is complete. Without an upstream, by a method that needs no leader.
    /// `standby_of`: the upstream is a standby of this leader, who has to be a primary before and
    /// after.
    fn clone_from<F>(
        &self,
        upstream: Option<&Upstream>,
        standby_of: Option<&Upstream>,
        progress: F,
    ) -> impl Future<Output = Result<(), Error>> + Send
    where
        F: Fn(CopyProgress) + Send + Sync;

    /// Brings the stopped data directory back under the upstream by pg_rewind, and makes it a
    /// standby of it. A failure may leave a directory that must not be started: the caller keeps
    /// the in-progress marker, and repeats or clones.
    fn rewind_from(&self, upstream: &Upstream) -> impl Future<Output = Result<(), Error>> + Send;

    /// Starts PostgreSQL, detached from the agent (I7).
    fn start(
        &self,
        start_as: StartAs,
        limit: Millis,
    ) -> impl Future<Output = Result<Started, Error>> + Send;

    /// Stops PostgreSQL; done when no process of it is left.
    fn stop(&self, mode: StopMode, limit: Millis)
    -> impl Future<Output = Result<(), Error>> + Send;

    /// Stops a primary for a hand-over: as soon as the shutdown checkpoint is written and
    /// `received` says of its end that the candidate holds it, whatever is left is killed.
    fn stop_for_hand_over<F, W>(
        &self,
        received: F,
        limit: Millis,
    ) -> impl Future<Output = Result<HandOver, Error>> + Send
    where
        F: Fn(Lsn) -> W + Send + Sync,
        W: Future<Output = bool> + Send;

    /// Kills what a dead postmaster left, until nothing is left.
    fn end_orphans(&self) -> impl Future<Output = Result<(), Error>> + Send;

    /// Sets whom this standby streams from, durably, and tells a running server. `None` clears
    /// `primary_conninfo` and `restore_command`.
    fn follow(&self, upstream: Option<&Upstream>)
    -> impl Future<Output = Result<(), Error>> + Send;

    /// The pledge's step: clears the upstream durably, and returns when the WAL receiver is gone
    /// for good and everything received is replayed: timeline and end of what this copy holds.
    /// `rule` is written along, for a promotion to find. Of a stopped copy, what pg_control says
    /// after a clean stop; refused after any other.
    fn stop_receiving(
        &self,
        rule: &SyncRule,
        limit: Millis,
    ) -> impl Future<Output = Result<(Timeline, Lsn), Error>> + Send;

    /// Promotes this standby to the reserved timeline with the winner's synchronous set. Returns
    /// the timeline that PostgreSQL took; a promotion that was done before is a success.
    fn promote(
        &self,
        plan: PromotePlan,
        limit: Millis,
    ) -> impl Future<Output = Result<Timeline, Error>> + Send;

    /// Sets `synchronous_standby_names`, durably, and returns when all sessions have taken it over;
    /// on a stopped server when it is on disk.
    fn set_sync(
        &self,
        rule: &SyncRule,
        limit: Millis,
    ) -> impl Future<Output = Result<(), Error>> + Send;

    /// Writes, and returns when as many members of the synchronous set as it asks for have flushed
    /// the write. An error says nothing about whether it may still be confirmed later.
    fn confirm_write(&self, limit: Millis) -> impl Future<Output = Result<(), Error>> + Send;

    /// Ends the walsenders that carry one of these names, count as synchronous, and do not serve
    /// the member of that name.
    fn end_strangers(
        &self,
        names: &BTreeSet<MemberName>,
    ) -> impl Future<Output = Result<(), Error>> + Send;

    /// Writes a checkpoint. May take minutes.
    fn checkpoint(&self) -> impl Future<Output = Result<(), Error>> + Send;

    /// Changes slots, each by itself: the first error is returned after all were tried. What is
    /// done already, or is about a slot that somebody uses, is passed over.
    fn change_slots(
        &self,
        changes: &[SlotChange],
    ) -> impl Future<Output = Result<(), Error>> + Send;

    /// Reads the state of logical slots of a primary, as the rewind role; refused if one is missing
    /// there, or if `with_wal` and this server lacks WAL that one needs.
    fn fetch_slots(
        &self,
        upstream: &Upstream,
        names: &BTreeSet<String>,
        with_wal: bool,
    ) -> impl Future<Output = Result<(), Error>> + Send;

    /// Restarts a standby with the state of these slots, which was fetched before; refused before
    /// anything is stopped if it was not, or if the server is not in recovery.
    fn copy_slots(
        &self,
        names: &BTreeSet<String>,
        limit: Millis,
    ) -> impl Future<Output = Result<(), Error>> + Send;

    /// The leader's timeline and history, from the leader itself; refused if it is in recovery.
    fn leader_history(
        &self,
        upstream: &Upstream,
    ) -> impl Future<Output = Result<(Timeline, Vec<HistoryLine>), Error>> + Send;

    /// Whether the log of a stopped standby ends at or before the minimum recovery end in its
    /// control file, as that of a rewound copy does that has received nothing since: found by
    /// looking for a record there. `false` where that cannot be told, `None` where it runs.
    fn log_ends_at_control(&self) -> impl Future<Output = Option<bool>> + Send;

    /// The lines of the own history file of `timeline`, each with its reason; fails on timeline 1,
    /// which has none.
    fn own_history(
        &self,
        timeline: Timeline,
    ) -> impl Future<Output = Result<Vec<(HistoryLine, String)>, Error>> + Send;

    /// Resolves when the postmaster that was started or observed last has ended: once for each,
    /// also when it had ended before the call. If that was said before, the next one is waited for.
    ///
    /// Cancel safety: safe, nothing is consumed.
    fn postmaster_exit(&self) -> impl Future<Output = ()> + Send;

    /// Begins the trials that observations tell of as health, which write to the data volume: not
    /// before an agent has got past everything that it may be refused for.
    fn begin_trials(&self) {}

    /// Hands the segment that holds the shutdown checkpoint of a stopped primary to
    /// `archive_command`, if it archives at all: PostgreSQL itself does not, as that segment is not
    /// full.
    fn archive_shutdown_checkpoint(&self) -> impl Future<Output = Result<(), Error>> + Send;

    /// Ends what runs here beside PostgreSQL: trials and helper processes. Within a second. No
    /// observation may follow.
    fn close(&self) -> impl Future<Output = ()> + Send {
        std::future::ready(())
    }
}

impl LocalInstance {
    /// The copies of the data directory that were set aside by `clone_from`.
    #[must_use]
    pub fn set_aside(&self) -> Vec<PathBuf> {
        let found = copy::set_aside(&self.config()).unwrap_or_default();
        found.into_iter().map(|(_, path)| path).collect()
    }
}

impl Instance for LocalInstance {
    async fn observe(&self) -> Observation {
        observe::observe(self).await
    }

    async fn apply(&self, config: InstanceConfig) -> Result<bool, Error> {
        let _one = self.applying().await;
        let (programs, wanted) = (self.programs().clone(), config.parameters.clone());
        let accepted = move || parameters::accepted(&programs, &wanted);
        let config = InstanceConfig { parameters: files::blocking(accepted).await, ..config };
        let old = self.config();
        self.set_config(config);
        self.memory().pending = None;
        let dir = self.config().data_dir.clone();
        if !files::blocking(move || dir.join("PG_VERSION").is_file()).await {
            return Ok(false);
        }
        if self.postmaster().await?.is_some()
            && let Err(error) = pending::tell_changes(self, &old, &self.config()).await
        {
            tracing::info!(%error, "what changes is not known");
        }
        if !self.write_conf(|_| {}).await? {
            tracing::info!("No PostgreSQL configuration items changed, nothing to reload.");
            return Ok(false);
        }
        tracing::info!("Reloading PostgreSQL configuration.");
        self.reload().await?;
        Ok(true)
    }

    async fn bootstrap(&self, unfinished: bool) -> Result<(), Error> {
        bootstrap::bootstrap(self, unfinished).await
    }

    async fn clone_from<F>(
        &self,
        upstream: Option<&Upstream>,
        standby_of: Option<&Upstream>,
        progress: F,
    ) -> Result<(), Error>
    where
        F: Fn(CopyProgress) + Send + Sync,
    {
        let source = upstream.map(|upstream| replica::Source { upstream, standby_of });
        replica::clone_from(self, source, progress).await
    }

    async fn rewind_from(&self, upstream: &Upstream) -> Result<(), Error> {
        copy::rewind_from(self, upstream).await
    }

    async fn start(&self, start_as: StartAs, limit: Millis) -> Result<Started, Error> {
        lifecycle::start(self, start_as, limit).await
    }

    async fn stop(&self, mode: StopMode, limit: Millis) -> Result<(), Error> {
        lifecycle::stop(self, mode, limit).await
    }

    async fn stop_for_hand_over<F, W>(&self, received: F, limit: Millis) -> Result<HandOver, Error>
    where
        F: Fn(Lsn) -> W + Send + Sync,
        W: Future<Output = bool> + Send,
    {
        lifecycle::stop_for_hand_over(self, received, limit).await
    }

    async fn end_orphans(&self) -> Result<(), Error> {
        lifecycle::end_orphans(self).await
    }

    async fn follow(&self, upstream: Option<&Upstream>) -> Result<(), Error> {
        receive::follow(self, upstream.cloned()).await
    }

    async fn stop_receiving(
        &self,
        rule: &SyncRule,
        limit: Millis,
    ) -> Result<(Timeline, Lsn), Error> {
        receive::stop_receiving(self, rule.clone(), limit).await
    }

    async fn promote(&self, plan: PromotePlan, limit: Millis) -> Result<Timeline, Error> {
        lead::promote(self, plan, limit).await
    }

    async fn set_sync(&self, rule: &SyncRule, limit: Millis) -> Result<(), Error> {
        lead::set_sync(self, rule, limit).await
    }

    async fn confirm_write(&self, limit: Millis) -> Result<(), Error> {
        lead::confirm_write(self, limit).await
    }

    async fn end_strangers(&self, names: &BTreeSet<MemberName>) -> Result<(), Error> {
        identity::end_strangers(self, names).await
    }

    async fn checkpoint(&self) -> Result<(), Error> {
        lead::checkpoint(self).await
    }

    async fn change_slots(&self, changes: &[SlotChange]) -> Result<(), Error> {
        slots::change(self, changes).await
    }

    async fn fetch_slots(
        &self,
        upstream: &Upstream,
        names: &BTreeSet<String>,
        with_wal: bool,
    ) -> Result<(), Error> {
        slots::fetch(self, upstream, names, with_wal).await
    }

    async fn copy_slots(&self, names: &BTreeSet<String>, limit: Millis) -> Result<(), Error> {
        slots::copy(self, names, limit).await
    }

    async fn leader_history(
        &self,
        upstream: &Upstream,
    ) -> Result<(Timeline, Vec<HistoryLine>), Error> {
        receive::leader_history(self, upstream).await
    }

    async fn log_ends_at_control(&self) -> Option<bool> {
        self.require_stopped("look at the end of the log").await.ok()?;
        Some(copy::log_ends_at_control(self).await.unwrap_or(false))
    }

    async fn archive_shutdown_checkpoint(&self) -> Result<(), Error> {
        self.require_stopped("archive the shutdown checkpoint").await?;
        archive::shutdown_checkpoint(self).await
    }

    async fn own_history(&self, timeline: Timeline) -> Result<Vec<(HistoryLine, String)>, Error> {
        lead::own_history(self, timeline).await
    }

    async fn postmaster_exit(&self) {
        self.next_exit().await;
    }

    fn begin_trials(&self) {
        self.start_trials();
    }

    async fn close(&self) {
        LocalInstance::close(self).await;
    }
}
