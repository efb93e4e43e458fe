//! Walsenders that call themselves like a member and are none. PostgreSQL counts confirmations by
//! name, so a stranger's would count as a member's (I2).

use std::collections::BTreeSet;

use types::{MemberName, Millis, Primary, Replica};

use crate::action::Act;
use crate::brain::Brain;
use crate::reason::Reason;

impl Brain {
    /// Ends the walsenders of strangers that PostgreSQL counts, once for each `loop_wait`: whoever
    /// connects again at once is not worth more. Nothing of ours counts them meanwhile.
    pub(crate) fn end_strangers(&mut self, now: Millis, primary: &Primary) {
        let names = strangers(primary);
        if names.is_empty() {
            return;
        }
        if let Some(due) = self.leader.strangers_ended.map(|at| at.plus(self.dynamic.loop_wait))
            && now < due
        {
            self.wake_at(due);
            return;
        }
        let act = Act::EndStrangers { names: names.clone() };
        if self.issue_if_free(now, act, Reason::Stranger { names }) {
            self.leader.strangers_ended = Some(now);
        }
    }
}

/// The standbys that stream and are known to be the members that they name.
pub(crate) fn streaming_members(primary: &Primary) -> impl Iterator<Item = &Replica> {
    primary.replicas.iter().filter(|replica| replica.streaming && replica.known)
}

/// The names under which somebody who is not known to be that member counts. Under `*` PostgreSQL
/// counts everybody, also who pretends nothing; that rule goes by itself.
fn strangers(primary: &Primary) -> BTreeSet<MemberName> {
    let is_waited_for = |replica: &Replica| {
        // PostgreSQL compares the names without regard to case.
        primary.sync.names.iter().any(|name| name.0.eq_ignore_ascii_case(&replica.name))
    };
    let counted = primary.replicas.iter().filter(|replica| replica.listed && !replica.known);
    counted.filter(|r| is_waited_for(r)).map(|r| MemberName::from(r.name.as_str())).collect()
}
