//! A PostgreSQL that is not there: it answers as an idle one does, and touches no file. Real agents
//! run on it where many are to be counted on one machine.

use std::collections::BTreeSet;
use std::sync::{Mutex, MutexGuard, PoisonError};

use types::{
    Control, ControlState, DataDir, Health, HistoryLine, Lsn, Millis, Primary, Process, Receiver,
    Role, Running, Server, Slot, SlotChange, Standby, SyncNames, Timeline, Upstream,
};

use crate::{
    CopyProgress, Error, HandOver, Instance, InstanceConfig, Observation, PromotePlan, SetupError,
    StartAs, Started, StopMode, SyncRule,
};

/// `server_version_num` of what is not there.
const VERSION: u32 = 150_000;
/// Where its log ends, for ever.
const END: Lsn = Lsn(0x500_0000);

/// The pretended one.
#[derive(Debug)]
pub struct Pretended {
    /// The same for every member of a cluster.
    identifier: String,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    copy: Option<Copy>,
    runs: Option<As>,
    sync: SyncRule,
    /// Physical ones; nobody uses them.
    slots: BTreeSet<String>,
}

/// What is in the data directory.
#[derive(Debug, Clone, Copy)]
struct Copy {
    timeline: Timeline,
    promoted_at: Lsn,
}

#[derive(Debug, Clone)]
enum As {
    Primary,
    Standby { upstream: Option<Upstream> },
}

/// How the names of clusters begin that it may be of: a member without data must not stand in the
/// election of a cluster that has some.
const SCOPES: &str = "pretended-";

impl Pretended {
    /// One with an empty data directory.
    ///
    /// # Errors
    /// The cluster could be a real one.
    pub fn new(config: &InstanceConfig) -> Result<Pretended, SetupError> {
        Pretended::of(&config.scope)
    }

    fn of(scope: &str) -> Result<Pretended, SetupError> {
        if !scope.starts_with(SCOPES) {
            let problem = format!(
                "--pretend: the cluster {scope:?} could have data; the scope has to begin with \
                 {SCOPES}"
            );
            return Err(SetupError { problems: vec![problem] });
        }
        // Any number will do that differs from cluster to cluster.
        let number = scope
            .bytes()
            .fold(1_u64, |number, byte| number.wrapping_mul(31).wrapping_add(u64::from(byte)));
        Ok(Pretended { identifier: number.to_string(), state: Mutex::default() })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn copied(&self) {
        let copy = Copy { timeline: Timeline(1), promoted_at: Lsn(0) };
        self.state().copy = Some(copy);
    }
}

impl State {
    fn names(&self) -> SyncNames {
        match &self.sync {
            SyncRule::Off => SyncNames::default(),
            SyncRule::First(names) | SyncRule::Any(names) => names.clone(),
        }
    }

    fn role(&self, copy: Copy, runs: &As) -> Role {
        match runs {
            As::Primary => Role::Primary(Primary {
                timeline: copy.timeline,
                flush: END,
                promoted_at: copy.promoted_at,
                checkpoint_done: true,
                sync: self.names(),
                replicas: Vec::new(),
            }),
            As::Standby { upstream } => {
                let receiver = Receiver { streaming: true, silent_for: Some(Millis::ZERO) };
                Role::Standby(Standby {
                    timeline: copy.timeline,
                    received: END,
                    replayed: END,
                    receiver: upstream.is_some().then_some(receiver),
                    upstream: upstream.clone(),
                    ..Standby::default()
                })
            }
        }
    }

    fn control(&self, copy: Copy, identifier: &str) -> Control {
        let state = match self.runs {
            None => ControlState::ShutDown,
            Some(As::Primary) => ControlState::InProduction,
            Some(As::Standby { .. }) => ControlState::InArchiveRecovery,
        };
        Control {
            system_identifier: identifier.to_owned(),
            state,
            timeline: copy.timeline,
            checkpoint: END,
            end: END,
            end_timeline: copy.timeline,
            can_rewind: true,
            standby_signal: matches!(self.runs, Some(As::Standby { .. })),
            unfinished_rewind: false,
        }
    }
}

impl Instance for Pretended {
    async fn observe(&self) -> Observation {
        let state = self.state();
        let Some(copy) = state.copy else {
            let (data_dir, process) = (DataDir::Empty, Process::Stopped);
            return Observation { data_dir, process, health: Health::default() };
        };
        let process = state.runs.as_ref().map_or(Process::Stopped, |runs| {
            let started = "2000-01-01 00:00:00+00".to_owned();
            let slot =
                |name: &String| Slot { name: name.clone(), restart: Some(END), ..Slot::default() };
            let slots = state.slots.iter().map(slot).collect();
            let server = Server { version: VERSION, started, slots, ..Server::default() };
            Process::Running(Running { server, role: state.role(copy, runs) })
        });
        let data_dir = DataDir::Present(state.control(copy, &self.identifier));
        Observation { data_dir, process, health: Health::default() }
    }

    async fn apply(&self, _config: InstanceConfig) -> Result<bool, Error> {
        Ok(false)
    }

    async fn bootstrap(&self, _unfinished: bool) -> Result<(), Error> {
        self.copied();
        Ok(())
    }

    async fn clone_from<F>(
        &self,
        _upstream: Option<&Upstream>,
        _standby_of: Option<&Upstream>,
        _progress: F,
    ) -> Result<(), Error>
    where
        F: Fn(CopyProgress) + Send + Sync,
    {
        self.copied();
        Ok(())
    }

    async fn rewind_from(&self, _upstream: &Upstream) -> Result<(), Error> {
        Ok(())
    }

    async fn start(&self, start_as: StartAs, _limit: Millis) -> Result<Started, Error> {
        self.state().runs = Some(match start_as {
            StartAs::Primary => As::Primary,
            StartAs::Standby { upstream } => As::Standby { upstream },
        });
        Ok(Started::Ready)
    }

    async fn stop(&self, _mode: StopMode, _limit: Millis) -> Result<(), Error> {
        self.state().runs = None;
        Ok(())
    }

    async fn stop_for_hand_over<F, W>(&self, received: F, _limit: Millis) -> Result<HandOver, Error>
    where
        F: Fn(Lsn) -> W + Send + Sync,
        W: Future<Output = bool> + Send,
    {
        let timeline = {
            let mut state = self.state();
            state.runs = None;
            state.copy.map_or(Timeline(1), |copy| copy.timeline)
        };
        Ok(HandOver { timeline, end: END, received: received(END).await })
    }

    async fn end_orphans(&self) -> Result<(), Error> {
        Ok(())
    }

    async fn follow(&self, upstream: Option<&Upstream>) -> Result<(), Error> {
        if let Some(As::Standby { upstream: followed }) = &mut self.state().runs {
            *followed = upstream.cloned();
        }
        Ok(())
    }

    async fn stop_receiving(
        &self,
        _rule: &SyncRule,
        _limit: Millis,
    ) -> Result<(Timeline, Lsn), Error> {
        self.follow(None).await?;
        Ok((self.state().copy.map_or(Timeline(1), |copy| copy.timeline), END))
    }

    async fn promote(&self, plan: PromotePlan, _limit: Millis) -> Result<Timeline, Error> {
        let mut state = self.state();
        state.copy = Some(Copy { timeline: plan.timeline, promoted_at: END });
        state.runs = Some(As::Primary);
        state.sync = plan.sync;
        Ok(plan.timeline)
    }

    async fn set_sync(&self, rule: &SyncRule, _limit: Millis) -> Result<(), Error> {
        self.state().sync = rule.clone();
        Ok(())
    }

    async fn confirm_write(&self, _limit: Millis) -> Result<(), Error> {
        Ok(())
    }

    async fn end_strangers(&self, _names: &BTreeSet<types::MemberName>) -> Result<(), Error> {
        Ok(())
    }

    async fn checkpoint(&self) -> Result<(), Error> {
        Ok(())
    }

    async fn change_slots(&self, changes: &[SlotChange]) -> Result<(), Error> {
        let slots = &mut self.state().slots;
        for change in changes {
            match change {
                SlotChange::Create { name } => drop(slots.insert(name.clone())),
                SlotChange::Drop { name } => drop(slots.remove(name)),
                SlotChange::Advance { .. }
                | SlotChange::CreateLogical { .. }
                | SlotChange::AdvanceLogical { .. } => {}
            }
        }
        Ok(())
    }

    async fn fetch_slots(
        &self,
        _upstream: &Upstream,
        _names: &BTreeSet<String>,
        _with_wal: bool,
    ) -> Result<(), Error> {
        Ok(())
    }

    async fn copy_slots(&self, _names: &BTreeSet<String>, _limit: Millis) -> Result<(), Error> {
        Ok(())
    }

    async fn leader_history(
        &self,
        _upstream: &Upstream,
    ) -> Result<(Timeline, Vec<HistoryLine>), Error> {
        Ok((self.state().copy.map_or(Timeline(1), |copy| copy.timeline), Vec::new()))
    }

    async fn log_ends_at_control(&self) -> Option<bool> {
        Some(true)
    }

    async fn own_history(&self, _timeline: Timeline) -> Result<Vec<(HistoryLine, String)>, Error> {
        Ok(Vec::new())
    }

    async fn postmaster_exit(&self) {
        // It ends only when it is stopped, which the agent knows of.
        std::future::pending().await
    }

    async fn archive_shutdown_checkpoint(&self) -> Result<(), Error> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pretended() -> Pretended {
        Pretended::of("pretended-1").unwrap()
    }

    #[test]
    fn it_takes_no_part_in_a_cluster_that_could_be_real() {
        for scope in ["main", "", "my-pretended-1"] {
            let error = Pretended::of(scope).unwrap_err();
            assert!(error.problems[0].contains("has to begin with pretended-"), "{error}");
        }
    }

    fn is_primary(observation: &Observation) -> bool {
        matches!(&observation.process, Process::Running(Running { role: Role::Primary(_), .. }))
    }

    #[tokio::test]
    async fn it_is_what_it_was_told_to_be() {
        let one = pretended();
        assert_eq!(one.observe().await.data_dir, DataDir::Empty);
        one.bootstrap(false).await.unwrap();
        assert_eq!(one.observe().await.process, Process::Stopped);
        one.start(StartAs::Primary, Millis(1)).await.unwrap();
        assert!(is_primary(&one.observe().await));
        one.stop(StopMode::Fast, Millis(1)).await.unwrap();
        one.start(StartAs::Standby { upstream: None }, Millis(1)).await.unwrap();
        assert!(!is_primary(&one.observe().await));
        let slot = |name: &str| SlotChange::Create { name: name.to_owned() };
        let unwanted = SlotChange::Drop { name: "b".to_owned() };
        one.change_slots(&[slot("a"), slot("b"), unwanted]).await.unwrap();
        assert_eq!(one.state().slots, ["a".to_owned()].into());
        let plan = PromotePlan { timeline: Timeline(4), sync: SyncRule::Off };
        assert_eq!(one.promote(plan, Millis(1)).await.unwrap(), Timeline(4));
        assert!(is_primary(&one.observe().await));
    }
}
