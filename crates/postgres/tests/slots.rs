//! Replication slots on a real PostgreSQL: a logical one survives a failover.
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::BTreeSet;

use common::{
    LIMIT, Node, bin_dirs, new_primary, new_standby, own_slot, running, standby, streaming, until,
};
use postgres::{Instance, PromotePlan, SyncRule};
use types::{Lsn, Slot, SlotChange, Timeline};

/// What logical slots on a standby need.
const SETTINGS: [(&str, &str); 2] = [("wal_level", "logical"), ("hot_standby_feedback", "on")];

#[tokio::test]
async fn a_logical_slot_is_copied_moved_and_used_after_a_failover() {
    for bin_dir in bin_dirs() {
        let a = Node::with("node-a", &bin_dir, &SETTINGS);
        let b = Node::with("node-b", &bin_dir, &SETTINGS);
        new_primary(&a).await;
        new_standby(&b, &a).await;
        let streams = async || standby(&b).await.receiver.is_some_and(|r| r.streaming);
        streaming(&b).await;
        let database = a.value("select current_database()").await;
        let name = "l".to_owned();
        let create = SlotChange::CreateLogical {
            name: name.clone(),
            database: database.clone(),
            plugin: "test_decoding".to_owned(),
        };
        // Twice: what is done already is no error.
        a.instance.change_slots(&[create.clone(), create]).await.unwrap();
        let names = BTreeSet::from([name.clone()]);
        let absent = BTreeSet::from(["absent".to_owned()]);
        assert!(b.instance.fetch_slots(&a.upstream(), &absent, false).await.is_err());
        let refused = b.instance.copy_slots(&names, LIMIT).await;
        assert!(refused.is_err(), "nothing was fetched: {refused:?}");
        b.instance.fetch_slots(&a.upstream(), &names, true).await.unwrap();
        a.instance.fetch_slots(&a.upstream(), &names, false).await.unwrap();
        let refused = a.instance.copy_slots(&names, LIMIT).await;
        assert!(refused.is_err(), "a primary is not restarted: {refused:?}");
        b.instance.copy_slots(&names, LIMIT).await.unwrap();
        until("the stream", streams).await;
        let (there, here) = (slot(&a, "l").await, slot(&b, "l").await);
        assert_eq!(here.logical, there.logical);
        assert!(!here.lost && here.restart.is_some());

        a.sql("create table t (x int)").await;
        a.sql("insert into t values (1)").await;
        a.sql("select pg_logical_slot_get_changes('l', null, null)").await;
        a.sql("insert into t values (2)").await;
        let to = slot(&a, "l").await.position().unwrap();
        until("the replay", async || standby(&b).await.replayed >= to).await;
        let moved = SlotChange::AdvanceLogical { name: name.clone(), database, to };
        let back = SlotChange::Advance { name: "node_a".to_owned(), to: Lsn(1) };
        b.instance.change_slots(&[moved.clone(), moved, own_slot(&a), back]).await.unwrap();
        assert_eq!(slot(&b, "l").await.position(), Some(to));

        b.instance.stop_receiving(&SyncRule::Off, LIMIT).await.unwrap();
        let plan = PromotePlan { timeline: Timeline(2), sync: SyncRule::Off };
        b.instance.promote(plan, LIMIT).await.unwrap();
        let changes = "select data from pg_logical_slot_get_changes('l', null, null) \
            where data like 'table%'";
        assert_eq!(b.sql(changes).await, ["table public.t: INSERT: x[integer]:2"]);
        let gone = [SlotChange::Drop { name: name.clone() }, SlotChange::Drop { name }];
        b.instance.change_slots(&gone).await.unwrap();
        assert!(running(&b).await.server.slots.iter().all(|slot| slot.logical.is_none()));
    }
}

async fn slot(node: &Node, name: &str) -> Slot {
    let slots = running(node).await.server.slots;
    slots.into_iter().find(|slot| slot.name == name).unwrap_or_else(|| panic!("no slot {name}"))
}
