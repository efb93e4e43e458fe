//! Which walsenders serve the members that their peers call themselves. PostgreSQL counts a
//! confirmation by `application_name`, which anybody may choose: a pg_receivewal or a copy that
//! calls itself like a member would satisfy a quorum (I2).

use std::collections::BTreeSet;

use types::{MemberName, slot_name};

use crate::config::InstanceConfig;
use crate::error::Error;
use crate::instance::LocalInstance;
use crate::sql::{self, Row, literal};

/// A walsender, as far as its peer's identity goes.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Sender {
    pub(crate) name: String,
    pub(crate) pid: String,
    pub(crate) user: String,
}

impl Sender {
    /// From a row that holds `application_name`, `pid` and `usename` at these places.
    pub(crate) fn of(row: &Row, [name, pid, user]: [usize; 3]) -> Sender {
        let field = |index: usize| row.get(index).cloned().flatten().unwrap_or_default();
        Sender { name: field(name), pid: field(pid), user: field(user) }
    }
}

/// Whether each of all walsenders serves the member whose name it carries: its peer logged in as
/// the replication user, and streams by that member's slot, which admits one walsender at a time.
/// Without slots nobody else may carry the name. `slots` are the slots in use with the pids of
/// their users, read after the walsenders: one that streams has its slot.
pub(crate) fn known(
    config: &InstanceConfig,
    senders: &[Sender],
    slots: &BTreeSet<(String, String)>,
) -> Vec<bool> {
    let alone = |sender: &Sender| {
        // PostgreSQL compares the names without regard to case.
        senders.iter().filter(|other| other.name.eq_ignore_ascii_case(&sender.name)).count() == 1
    };
    let proved = |sender: &Sender| match config.use_slots {
        true => slots.contains(&(slot_name(&MemberName(sender.name.clone())), sender.pid.clone())),
        false => alone(sender),
    };
    let replicates = |sender: &Sender| {
        // Whoever could be named `*` would stand for everybody.
        sender.user == config.replication.username && sender.name != "*"
    };
    senders.iter().map(|sender| replicates(sender) && proved(sender)).collect()
}

/// The slots that somebody uses with that one's pid, from rows that hold both at these places.
pub(crate) fn slots_in_use(rows: &[Row], [name, pid]: [usize; 2]) -> BTreeSet<(String, String)> {
    let field = |row: &Row, index: usize| row.get(index).cloned().flatten();
    rows.iter().filter_map(|row| Some((field(row, name)?, field(row, pid)?))).collect()
}

/// Ends the walsenders that PostgreSQL counts under one of these names and whose peer is not known
/// to be that member at this moment.
pub(crate) async fn end_strangers(
    instance: &LocalInstance,
    names: &BTreeSet<MemberName>,
) -> Result<(), Error> {
    if names.is_empty() {
        return Ok(());
    }
    let statement = ending(&instance.config(), names);
    let client = instance.client().await?;
    sql::rows(&client, "end walsenders of strangers", &statement).await?;
    Ok(())
}

fn ending(config: &InstanceConfig, names: &BTreeSet<MemberName>) -> String {
    let pair =
        |name: &MemberName| format!("({}, {})", literal(name.as_str()), literal(&slot_name(name)));
    let pairs: Vec<String> = names.iter().map(pair).collect();
    let proved = if config.use_slots {
        "EXISTS (SELECT FROM pg_replication_slots r \
         WHERE r.active_pid = s.pid AND r.slot_name = m.slot)"
    } else {
        "(SELECT count(*) FROM pg_stat_replication o \
         WHERE lower(o.application_name) = lower(s.application_name)) = 1"
    };
    format!(
        "SELECT pg_terminate_backend(s.pid) \
         FROM pg_stat_replication s JOIN (VALUES {}) m (name, slot) \
         ON lower(s.application_name) = lower(m.name) \
         WHERE s.sync_priority > 0 AND NOT (coalesce(s.usename = {}, false) AND {proved})",
        pairs.join(", "),
        literal(&config.replication.username)
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::conf::tests_support::sample;

    fn sender(name: &str, pid: &str, user: &str) -> Sender {
        Sender { name: name.to_owned(), pid: pid.to_owned(), user: user.to_owned() }
    }

    #[test]
    fn a_member_streams_by_its_slot_as_the_replication_user() {
        let config = sample();
        let slots = [("node_2", "7"), ("node_3", "9"), ("node_4", "10")];
        let slots = slots.map(|(slot, pid)| (slot.to_owned(), pid.to_owned())).into();
        let senders = [
            sender("node-2", "7", "replicator"),
            sender("node-2", "8", "replicator"),
            sender("node-3", "9", "postgres"),
            sender("pg_receivewal", "10", "replicator"),
        ];
        assert_eq!(known(&config, &senders, &slots), [true, false, false, false]);
    }

    #[test]
    fn without_slots_a_name_that_two_carry_is_nobodys() {
        let config = InstanceConfig { use_slots: false, ..sample() };
        let senders = [
            sender("a", "7", "replicator"),
            sender("A", "8", "replicator"),
            sender("b", "9", "replicator"),
            sender("c", "10", "postgres"),
        ];
        assert_eq!(known(&config, &senders, &BTreeSet::new()), [false, false, true, false]);
    }
}
