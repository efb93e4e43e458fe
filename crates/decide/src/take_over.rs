//! A member that takes a Patroni node's place under its running PostgreSQL: the leader key is there
//! with our name, but it is not ours to renew.

use types::{ClusterView, LocalPostgres, Millis, Position, Term, TermRecord};

use crate::action::{Act, Retake};
use crate::brain::{Brain, Leadership, control_of};
use crate::failsafe::running_primary;
use crate::reason::Reason;

impl Brain {
    /// Takes over the leader key that the node before us held, with a first term. True while that
    /// is to be done: under its key nothing else is.
    pub(crate) fn take_over(
        &mut self,
        now: Millis,
        view: &ClusterView,
        local: &LocalPostgres,
        leadership: &Leadership,
    ) -> bool {
        let may = match leadership {
            Leadership::Mine { term, .. } => *term == Term(0),
            // In pause nobody is elected, and the key may have run out while the programs changed.
            Leadership::Vacant => self.dynamic.pause,
            Leadership::Other { .. } => false,
        };
        if !may || self.shutting_down {
            return false;
        }
        let Some(retake) = self.taking_over(view, local) else {
            return false;
        };
        // The member key comes first: it brings the lease that the leader key will hang on.
        if view.member(&self.node.name).is_some_and(|member| member.pgherd.is_some()) {
            let why = Reason::TakesOver { term: retake.term.term };
            self.issue(now, Act::RetakeLeadership(retake), why);
        }
        true
    }

    /// The conditions: PostgreSQL ran here as the primary all the time, and nobody has led since.
    /// Under a key with our name nobody can have been promoted; without one, in pause, no member
    /// may say that it is a primary, and no term or history may be newer than our timeline (I1,
    /// I2).
    fn taking_over(&self, view: &ClusterView, local: &LocalPostgres) -> Option<Retake> {
        let (_, primary) = running_primary(local)?;
        let timeline = primary.timeline;
        let ours = control_of(local).map(|control| control.system_identifier.as_str());
        let same_cluster = ours.is_some() && ours == view.system_identifier();
        let durable = &local.durable;
        let whole = durable.in_progress.is_none() && durable.pledge.is_none();
        let set = view.active_sync().and_then(|sync| sync.value.leader.as_ref());
        let ours_to_count = set.is_none_or(|leader| *leader == self.node.name);
        let record = view.term.as_ref();
        // A primary of one of our own terms is judged by what its agent knows of it.
        let patronis = record.is_none_or(|record| record.value.timeline < timeline);
        if view.leader.is_none() && !patronis {
            return None;
        }
        let history = view.history.as_ref().and_then(|history| history.value.last());
        let newest = record.is_none_or(|record| record.value.timeline <= timeline)
            && history.is_none_or(|entry| entry.timeline < timeline);
        let alone = view.members.iter().all(|(name, member)| {
            *name == self.node.name || !matches!(member.value.role.as_str(), "primary" | "master")
        });
        let last = record.map_or(Term(0), |record| record.value.term);
        (same_cluster && whole && ours_to_count && newest && alone).then(|| Retake {
            leader: view.leader.as_ref().map(|leader| leader.mod_revision),
            fence: view.fence.as_ref().map(|fence| fence.mod_revision),
            sync_revision: view.sync.as_ref().map(|sync| sync.mod_revision),
            term_revision: record.map(|record| record.mod_revision),
            sync: view.sync.as_ref().map(|sync| sync.value.clone()),
            term: TermRecord {
                term: last.next(),
                leader: self.node.name.clone(),
                timeline,
                position: Some(Position { timeline, lsn: primary.flush, term: last }),
            },
        })
    }
}
