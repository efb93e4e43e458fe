//! WAL on its way: who streams from whom, what is flushed where, and which commits are
//! acknowledged.

use super::state::{Id, Rule, State, Violation};

impl State {
    /// A WAL receiver starts, and reports what is flushed. A slot admits one walsender (A17), so
    /// nothing of a connection before is heard any more.
    pub(super) fn connect(&mut self, me: Id) {
        let member = self.member_mut(me);
        member.receiver = member.conninfo;
        let length = member.log.length();
        if let Some(from) = member.receiver {
            let at = usize::from(me);
            let upstream = self.member_mut(from);
            upstream.heard[at] = length;
            upstream.sent[at] = length;
            self.release(from);
        }
    }

    /// The next record is received and flushed. The report of it is heard, or comes late: it says
    /// less than the next, so only the last counts.
    pub(super) fn receive(&mut self, me: Id, late: bool) {
        let Some(upstream) = self.member(me).receiver else { return };
        let log = self.member(upstream).log;
        let member = self.member_mut(me);
        member.log.copy_next(&log);
        let length = member.log.length();
        self.member_mut(upstream).sent[usize::from(me)] = length;
        if !late {
            self.hear(upstream, me);
        }
    }

    /// A report arrives at the walsender.
    pub(super) fn hear(&mut self, leader: Id, standby: Id) {
        let member = self.member_mut(leader);
        let at = usize::from(standby);
        member.heard[at] = member.sent[at];
        self.release(leader);
    }

    /// Releases what enough standbys have confirmed under a rule that some session goes by (A7),
    /// and acknowledges it. What was released stays released (A8).
    pub(super) fn release(&mut self, leader: Id) {
        let member = self.member(leader);
        if member.primary().is_none() {
            return;
        }
        let length = member.log.length();
        let confirmed = |rule: &Rule, position: u8| {
            let heard = |id: &Id| {
                member.heard.get(usize::from(*id)).is_some_and(|heard| *heard >= position)
            };
            rule.names.iter().filter(heard).count() >= usize::from(rule.number)
        };
        let released = (member.released..=length)
            .rev()
            .find(|at| {
                confirmed(&member.rule, *at)
                    || member.next_rule.is_some_and(|rule| confirmed(&rule, *at))
            })
            .unwrap_or(0)
            .max(member.released);
        self.member_mut(leader).released = released;
        self.acknowledge(leader, released.min(length));
    }

    /// Everything up to here may have been read by a client, or was confirmed to one.
    fn acknowledge(&mut self, leader: Id, length: u8) {
        let log = self.member(leader).log.truncated(length);
        if self.audit.acknowledged.holds(&log) {
            return;
        }
        if !log.holds(&self.audit.acknowledged) {
            self.audit.violation.get_or_insert(Violation::Lost);
            return;
        }
        self.audit.acknowledged = log;
        let (newest, _) = self.audit.newest;
        if !self.member(newest).log.holds(&log) {
            self.audit.violation.get_or_insert(Violation::TwoWriters);
        }
    }
}
