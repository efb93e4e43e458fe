//! How long each phase of a hand-over took, as this agent saw it: for journal and metrics.
//!
//! The old leader notices that PostgreSQL ended (or begins to stop it), sees its last process end,
//! and releases the leader key. The new one sees the key gone, or a fence against it; wins, is
//! promoted, has its first write acknowledged, and publishes itself. Instants are of the boot-time
//! clock, so that those of agents of one machine can be compared.

use api::Handover;
use decide::{Act, Outcome};
use serde_json::{Value, json};
use types::{ClusterView, LocalPostgres, MemberName, Millis, Process, Role, Term};

/// What the end of an action means for a hand-over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mark {
    /// The leader key is ours.
    Won(Term),
    /// PostgreSQL is promoted.
    Promoted,
    /// A write was acknowledged under the rule in force.
    Written,
    /// The member key says `primary`.
    Published,
    /// The leader key is given away.
    Released,
}

impl Mark {
    /// That of an action, once it is done.
    pub(crate) fn of(act: &Act) -> Option<Mark> {
        match act {
            Act::TakeLeadership(winner) => Some(Mark::Won(winner.term.term)),
            Act::Promote { .. } => Some(Mark::Promoted),
            Act::ConfirmWrite => Some(Mark::Written),
            Act::TouchMember { member } if member.role == "primary" => Some(Mark::Published),
            Act::ReleaseLeader { .. } => Some(Mark::Released),
            _ => None,
        }
    }
}

/// A line for the journal.
pub(crate) struct Line {
    pub(crate) event: &'static str,
    pub(crate) detail: Value,
}

/// The instants of the hand-over under way.
#[derive(Debug, Default)]
pub(crate) struct Phases {
    /// PostgreSQL was last seen as a primary that serves.
    serving: bool,
    noticed: Option<Millis>,
    ended: Option<Millis>,
    /// The leader gave a sign of life.
    last_sign: Option<(types::Revision, Millis)>,
    vacant: Option<Millis>,
    won: Option<(Term, Millis)>,
    promoted: Option<Millis>,
    written: Option<Millis>,
    /// The last one that was completed here.
    last: Handover,
}

impl Phases {
    /// The durations of the last hand-over that this agent had a part in.
    pub(crate) fn last(&self) -> Handover {
        self.last
    }

    pub(crate) fn see(&mut self, now: Millis, view: &ClusterView, me: &MemberName) {
        let key = view.leader.as_ref().map(|l| l.mod_revision);
        let fenced = view.fence.as_ref().is_some_and(|f| f.value.leader() == key);
        let Some(leader) = view.leader_name().filter(|_| !fenced) else {
            self.vacant.get_or_insert(now);
            return;
        };
        let status = view.status.as_ref().map(|s| s.mod_revision).unwrap_or_default();
        if self.last_sign.is_none_or(|(seen, _)| seen != status) {
            self.last_sign = Some((status, now));
        }
        // Our own key may be seen before the end of the transaction that wrote it is told.
        if leader != me {
            (self.vacant, self.won) = (None, None);
        }
    }

    /// A heartbeat of the leader has come.
    pub(crate) fn hear(&mut self, now: Millis) {
        let status = self.last_sign.map_or(types::Revision(0), |(status, _)| status);
        self.last_sign = Some((status, now));
    }

    pub(crate) fn look(&mut self, now: Millis, local: &LocalPostgres) {
        match &local.process {
            Process::Running(running) => {
                self.serving = matches!(running.role, Role::Primary(_));
                if self.serving {
                    (self.noticed, self.ended) = (None, None);
                }
            }
            Process::Silent { .. } => {}
            Process::Stopped | Process::Orphaned | Process::NotReady { .. } => {
                if self.serving {
                    self.noticed.get_or_insert(now);
                }
                self.serving = false;
                if local.process == Process::Stopped && self.noticed.is_some() {
                    self.ended.get_or_insert(now);
                }
            }
        }
    }

    /// The leader begins to stop PostgreSQL.
    pub(crate) fn begin(&mut self, now: Millis, act: &Act) {
        if self.serving && matches!(act, Act::Stop { .. } | Act::StopForHandOver { .. }) {
            self.noticed.get_or_insert(now);
        }
    }

    /// An action that has such a mark has ended.
    pub(crate) fn end(&mut self, now: Millis, mark: Mark, outcome: Outcome) -> Option<Line> {
        if outcome != Outcome::Done {
            return None;
        }
        match mark {
            Mark::Won(term) => {
                self.won = Some((term, now));
                (self.promoted, self.written) = (None, None);
            }
            Mark::Promoted => self.promoted = Some(now),
            Mark::Written if self.promoted.is_some() => {
                self.written.get_or_insert(now);
            }
            Mark::Published => return self.published(now),
            Mark::Released => return self.released(now),
            Mark::Written => {}
        }
        None
    }

    fn published(&mut self, now: Millis) -> Option<Line> {
        let written = self.written.take()?;
        let (term, won) = self.won.take()?;
        let promoted = self.promoted.take()?;
        let vacant = self.vacant.take();
        let last_sign = self.last_sign.map(|(_, at)| at);
        self.last.detect = vacant.zip(last_sign).map(|(at, sign)| at.since(sign));
        self.last.elect = vacant.map(|at| won.since(at));
        self.last.promote = Some(promoted.since(won));
        self.last.first_write = Some(written.since(promoted));
        self.last.publish = Some(now.since(written));
        let detail = json!({
            "term": term, "last_sign": last_sign, "vacant": vacant, "won": won,
            "promoted": promoted, "written": written, "published": now,
        });
        Some(Line { event: "handover", detail })
    }

    fn released(&mut self, now: Millis) -> Option<Line> {
        let (noticed, ended) = (self.noticed.take(), self.ended.take());
        self.last.end = noticed.zip(ended).map(|(noticed, ended)| ended.since(noticed));
        let detail = json!({ "noticed": noticed, "ended": ended, "released": now });
        Some(Line { event: "primary_lost", detail })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use types::{DataDir, Durable, Health, Primary, Running, Server};

    fn local(process: Process) -> LocalPostgres {
        LocalPostgres {
            at: Millis::ZERO,
            data_dir: DataDir::Empty,
            process,
            health: Health::default(),
            durable: Durable::default(),
            compared: None,
        }
    }

    #[test]
    fn a_new_leader_tells_each_phase_once() {
        let mut phases = Phases::default();
        phases.see(Millis(100), &ClusterView::default(), &"b".into());
        phases.see(Millis(150), &ClusterView::default(), &"b".into());
        assert!(phases.end(Millis(200), Mark::Won(Term(3)), Outcome::Done).is_none());
        assert!(phases.end(Millis(290), Mark::Promoted, Outcome::Done).is_none());
        assert!(phases.end(Millis(300), Mark::Written, Outcome::Failed).is_none());
        assert!(phases.end(Millis(310), Mark::Published, Outcome::Done).is_none());
        assert!(phases.end(Millis(320), Mark::Written, Outcome::Done).is_none());
        let line = phases.end(Millis(330), Mark::Published, Outcome::Done).expect("it is done");
        assert_eq!(line.event, "handover");
        let last = phases.last();
        assert_eq!(last.elect, Some(Millis(100)));
        assert_eq!(last.promote, Some(Millis(90)));
        assert_eq!(last.first_write, Some(Millis(30)));
        assert_eq!(last.publish, Some(Millis(10)));
        assert!(phases.end(Millis(400), Mark::Published, Outcome::Done).is_none());
    }

    #[test]
    fn an_old_leader_tells_when_it_noticed_and_when_the_last_process_was_gone() {
        let mut phases = Phases::default();
        let primary =
            Running { server: Server::default(), role: Role::Primary(Primary::default()) };
        phases.look(Millis(10), &local(Process::Running(primary)));
        phases.look(Millis(20), &local(Process::Orphaned));
        phases.look(Millis(30), &local(Process::Orphaned));
        phases.look(Millis(50), &local(Process::Stopped));
        let line = phases.end(Millis(60), Mark::Released, Outcome::Done).expect("it is done");
        assert_eq!(line.detail, json!({"noticed": 20, "ended": 50, "released": 60}));
        assert_eq!(phases.last().end, Some(Millis(30)));
    }
}
