//! `primary_race_backoff`: a leader key may end while its holder's PostgreSQL runs on, as when its
//! agent is frozen. While WAL still comes in, nobody opens an election for so long, so that the
//! holder may come back (as Patroni 4.1 has it).

use types::{ClusterView, LocalPostgres, Lsn, Millis, Process, Role};

use crate::brain::Brain;

/// What a member knows of a primary that may have lost nothing but its key.
#[derive(Debug, Clone, Default)]
pub(crate) struct Race {
    /// Where this standby was when its position last moved, and when that was.
    moved: Option<(Lsn, Millis)>,
    /// Since when nobody leads.
    since: Option<Millis>,
    /// How long it still waits for the primary to come back.
    left: Option<Millis>,
}

impl Race {
    pub(crate) fn note_local(&mut self, now: Millis, local: &LocalPostgres) {
        if let Process::Running(running) = &local.process
            && let Role::Standby(standby) = &running.role
            && self.moved.is_none_or(|(at, _)| at < standby.received)
        {
            self.moved = Some((standby.received, now));
        }
    }

    pub(crate) fn note_view(&mut self, view: &ClusterView) {
        if view.leader.is_some() || view.fence.is_some() {
            self.left = None;
        }
        if view.leader.is_some() {
            self.since = None;
        }
    }
}

impl Brain {
    /// For how long the primary whose key is gone is still waited for; for the log.
    #[must_use]
    pub fn race_waits(&self) -> Option<Millis> {
        self.race.left
    }

    /// Whether the election is put off. Nobody is kept from one that is open, nor from what an
    /// operator asked for.
    pub(crate) fn waits_for_primary(
        &mut self,
        now: Millis,
        view: &ClusterView,
        local: &LocalPostgres,
    ) -> bool {
        self.race.left = None;
        let backoff = self.dynamic.primary_race_backoff;
        let named = self.pending_request(now, view).is_some_and(|r| r.member.is_some());
        if view.leader.is_some() || backoff == Millis::ZERO || self.dynamic.pause || named {
            return false;
        }
        let (Some((_, moved)), None) = (self.race.moved, &self.dynamic.standby_cluster) else {
            return false;
        };
        let loop_wait = self.dynamic.loop_wait;
        let since = *self.race.since.get_or_insert(now);
        let end = since.plus(backoff);
        // The key may have ended right after the last look: at least a whole round is waited.
        let first_look = since.plus(loop_wait).min(end);
        let moves = streams(local) && now < moved.plus(loop_wait) && now < end;
        if !moves && now >= first_look {
            return false;
        }
        let next = if moves { moved.plus(loop_wait).min(end) } else { first_look };
        self.wake_at(next.max(now.plus(Millis(1))));
        self.race.left = Some(Millis(end.0.saturating_sub(now.0)));
        true
    }
}

fn streams(local: &LocalPostgres) -> bool {
    match &local.process {
        Process::Running(running) => match &running.role {
            Role::Standby(standby) => standby.receiver.as_ref().is_some_and(|r| r.streaming),
            Role::Primary(_) => false,
        },
        _ => false,
    }
}
