//! `restart --by-switchover`: a synchronous standby leads while the primary is restarted as its
//! standby, and gives the leadership back.
//!
//! Each step is one that an operator could ask for by itself, and ends with a healthy cluster: if
//! the command dies, whoever leads then goes on leading.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use types::{ClusterView, FailoverRequest, MemberName};

use super::restart::{RESTART_LIMIT, RestartArgs};
use super::restart_plan::{Detour, is_ready, streams};
use super::select::Role;
use super::store::Store;
use super::{CtlConfig, ask, prompt, say, switchover};

/// How long a member may take to be a synchronous standby again.
const READY_LIMIT: Duration = Duration::from_secs(300);
/// How often that is looked at.
const POLL: Duration = Duration::from_millis(200);

pub(super) async fn restart(
    args: &RestartArgs,
    store: &Store,
    config: &CtlConfig,
) -> anyhow::Result<ExitCode> {
    let view = store.read().await?;
    args.selection.show(&view)?;
    let way = Detour::of(&view).map_err(anyhow::Error::msg).context("not by switchover")?;
    let named = &args.selection.members;
    let leads = matches!(args.selection.role, None | Some(Role::Leader | Role::Primary));
    anyhow::ensure!(
        leads && (named.is_empty() || *named == [way.leader.0.clone()]),
        "only the leader, {}, is restarted by a switchover",
        way.leader
    );
    confirm(args, &way).await?;
    let trip = Trip { store, config, steps: way.standbys.len() + 3 };
    trip.go(&way).await?;
    Ok(ExitCode::SUCCESS)
}

async fn confirm(args: &RestartArgs, way: &Detour) -> anyhow::Result<()> {
    if args.selection.force {
        return Ok(());
    }
    let Detour { leader, candidate, .. } = way;
    let question =
        format!("Are you sure you want to restart {leader} while {candidate} leads, and go back?");
    anyhow::ensure!(prompt::confirm(&question).await?, "Aborted restart");
    Ok(())
}

struct Trip<'a> {
    store: &'a Store,
    config: &'a CtlConfig,
    steps: usize,
}

impl Trip<'_> {
    async fn go(&self, way: &Detour) -> anyhow::Result<()> {
        let Detour { leader, candidate, standbys } = way;
        for (index, standby) in standbys.iter().enumerate() {
            self.step(index + 1, &format!("restart of the standby {standby}"))?;
            let restarted = self.restart(standby, leader).await;
            restarted.with_context(|| format!("nothing was asked of {leader} yet"))?;
        }
        let there = standbys.len() + 1;
        self.step(there, &format!("switchover from {leader} to {candidate}"))?;
        let switched = self.switch(leader, candidate).await;
        switched.context("pgherd list shows who leads; nothing else was begun")?;
        self.step(there + 1, &format!("{leader} comes back as a standby with what is configured"))?;
        let back = self.until(candidate, leader, is_ready).await;
        back.with_context(|| format!("{candidate} leads on; look at the log of {leader}"))?;
        self.step(there + 2, &format!("switchover back to {leader}"))?;
        let back = self.switch(candidate, leader).await;
        back.with_context(|| format!("{leader} was restarted, and may lead when asked again"))?;
        say(&format!("Success: restart on member {leader}, by way of {candidate}\n"))?;
        Ok(())
    }

    fn step(&self, number: usize, what: &str) -> std::io::Result<()> {
        say(&format!("{number}/{}: {what}\n", self.steps))
    }

    async fn restart(&self, standby: &MemberName, leader: &MemberName) -> anyhow::Result<()> {
        let view = self.store.read().await?;
        let path = ("POST", "/restart");
        let body = serde_json::json!({});
        let asked = ask::member(&view, standby, self.config, path, Some(&body), RESTART_LIMIT);
        let (status, text) = asked.await?;
        anyhow::ensure!(status == 200, "restart on member {standby}: {status}, {text}");
        self.until(leader, standby, streams).await
    }

    async fn switch(&self, from: &MemberName, to: &MemberName) -> anyhow::Result<()> {
        self.until(from, to, is_ready).await?;
        let request = FailoverRequest {
            leader: Some(from.clone()),
            member: Some(to.clone()),
            scheduled_at: None,
        };
        switchover::hand_over(&request, &*self.store.read().await?, self.config).await
    }

    /// Waits until this standby of `leader` is well, and waits for no restart itself.
    async fn until(
        &self,
        leader: &MemberName,
        name: &MemberName,
        well: fn(&ClusterView, &MemberName) -> bool,
    ) -> anyhow::Result<()> {
        let until = tokio::time::Instant::now() + READY_LIMIT;
        loop {
            let view = self.store.read().await?;
            let leads = view.leader_name();
            anyhow::ensure!(
                leads.is_none_or(|leads| leads == leader),
                "{} leads, who should not; nothing further was done",
                leads.map_or("nobody", MemberName::as_str)
            );
            if leads.is_some() && well(&view, name) && !waits_for_restart(&view, name) {
                return Ok(());
            }
            anyhow::ensure!(
                tokio::time::Instant::now() < until,
                "{name} is no standby to be counted on, with what is configured, after {} s",
                READY_LIMIT.as_secs()
            );
            tokio::time::sleep(POLL).await;
        }
    }
}

fn waits_for_restart(view: &ClusterView, name: &MemberName) -> bool {
    view.member(name).is_some_and(|member| member.pending_restart)
}
