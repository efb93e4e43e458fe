use std::collections::{BTreeMap, BTreeSet};

use config::Dynamic;
use serde_json::{Value, json};
use types::{
    ClusterView, KeyValue, LogicalSlot, Lsn, MemberName, Revision, Slot, SlotChange, Tags,
};

use super::{SlotPicture, SlotPlan, needs_feedback, slot_plan};

/// A member's picture, to be changed before it is judged.
struct Node {
    me: MemberName,
    tags: Value,
    keys: BTreeMap<String, String>,
    config: Value,
    present: Vec<Slot>,
    replayed: Option<Lsn>,
    positions: BTreeMap<String, Lsn>,
    held: BTreeMap<MemberName, Lsn>,
    droppable: BTreeSet<String>,
}

impl Node {
    /// One of the members a (the leader), b and c, without any slots.
    fn new(me: &str) -> Node {
        let mut node = Node {
            me: me.into(),
            tags: json!({}),
            keys: BTreeMap::new(),
            config: json!({}),
            present: Vec::new(),
            replayed: (me != "a").then_some(Lsn(0x1000)),
            positions: BTreeMap::new(),
            held: BTreeMap::new(),
            droppable: BTreeSet::new(),
        };
        for name in ["a", "b", "c"] {
            node.member(name, &json!({}));
        }
        node.put("leader", "a");
        node
    }

    fn put(&mut self, key: &str, value: &str) {
        self.keys.insert(key.to_owned(), value.to_owned());
    }

    fn member(&mut self, name: &str, tags: &Value) {
        let value = json!({"state": "running", "xlog_location": 0x500, "tags": tags});
        self.put(&format!("members/{name}"), &value.to_string());
        if self.me.as_str() == name {
            self.tags.clone_from(tags);
        }
    }

    fn judge<T>(&self, judge: impl FnOnce(&SlotPicture<'_>) -> T) -> T {
        let mut keys = self.keys.clone();
        keys.insert("config".to_owned(), self.config.to_string());
        let keys: Vec<KeyValue> = keys
            .into_iter()
            .map(|(key, value)| KeyValue {
                key,
                value: value.into_bytes(),
                create_revision: Revision(1),
                mod_revision: Revision(1),
                lease: 1,
            })
            .collect();
        let view = ClusterView::from_keys(Revision(1), &keys);
        let (dynamic, _) = Dynamic::from_json(&self.config).expect("a good document");
        let tags: Tags = serde_json::from_value(self.tags.clone()).expect("good tags");
        judge(&SlotPicture {
            me: &self.me,
            tags: &tags,
            view: &view,
            dynamic: &dynamic,
            present: &self.present,
            replayed: self.replayed,
            positions: &self.positions,
            held: &self.held,
            droppable: &self.droppable,
        })
    }

    fn plan(&self) -> SlotPlan {
        self.judge(slot_plan)
    }

    /// What is done at once, as words.
    fn changes(&self) -> Vec<String> {
        self.plan().changes.iter().map(said).collect()
    }
}

fn said(change: &SlotChange) -> String {
    match change {
        SlotChange::Drop { name } => format!("drop {name}"),
        SlotChange::Create { name } | SlotChange::CreateLogical { name, .. } => {
            format!("create {name}")
        }
        SlotChange::Advance { name, to } | SlotChange::AdvanceLogical { name, to, .. } => {
            format!("{name} to {to}")
        }
    }
}

fn physical(name: &str, restart: u64) -> Slot {
    Slot { name: name.to_owned(), restart: Some(Lsn(restart)), ..Slot::default() }
}

fn logical(name: &str, confirmed: u64) -> Slot {
    let logical = LogicalSlot {
        database: "db".to_owned(),
        plugin: "pgoutput".to_owned(),
        confirmed: Some(Lsn(confirmed)),
        ..LogicalSlot::default()
    };
    Slot { logical: Some(logical), ..physical(name, confirmed) }
}

fn permanent() -> Value {
    json!({"p": null, "l": {"type": "logical", "database": "db", "plugin": "pgoutput"}})
}

#[test]
fn every_member_has_a_slot_for_every_other_and_for_who_is_kept() {
    let mut a = Node::new("a");
    a.put("status", r#"{"optime":1,"retain_slots":["a","gone"]}"#);
    assert_eq!(a.changes(), ["create b", "create c", "create gone"]);
    let mut b = Node::new("b");
    b.member("c", &json!({"nostream": true}));
    assert_eq!(b.changes(), ["create a"]);
    b.config = json!({"postgresql": {"use_slots": false}});
    assert!(b.changes().is_empty());
}

#[test]
fn without_retention_slots_are_where_members_stream_from() {
    let mut a = Node::new("a");
    a.config = json!({"member_slots_ttl": 0});
    a.member("c", &json!({"replicatefrom": "b"}));
    assert_eq!(a.changes(), ["create b"]);
    let mut b = Node::new("b");
    b.config.clone_from(&a.config);
    b.member("c", &json!({"replicatefrom": "b"}));
    assert_eq!(b.changes(), ["create c"]);
    // Its source is no member: it streams from the leader.
    a.member("c", &json!({"replicatefrom": "z"}));
    assert_eq!(a.changes(), ["create b", "create c"]);
}

#[test]
fn a_member_that_never_leads_keeps_slots_for_its_cascade_alone() {
    let mut b = Node::new("b");
    b.config = json!({"slots": permanent()});
    b.put("status", r#"{"optime":1,"retain_slots":["gone"]}"#);
    b.positions.insert("l".to_owned(), Lsn(0x200));
    b.member("b", &json!({"nofailover": true}));
    assert_eq!(b.plan(), SlotPlan::default());
    b.member("c", &json!({"replicatefrom": "b"}));
    assert_eq!(b.changes(), ["create c"]);
}

#[test]
fn unused_slots_follow_the_leaders_and_never_go_back_or_past_what_is_replayed() {
    let mut b = Node::new("b");
    b.present = vec![physical("a", 0x300), physical("c", 0x300)];
    b.positions = [("a", 0x2000), ("c", 0x200)].map(|(n, l)| (n.to_owned(), Lsn(l))).into();
    assert_eq!(b.changes(), ["a to 0/1000"]);
    b.present[0].active = true;
    assert!(b.changes().is_empty());
    // A cascade's slot on the leader moves by what the cascade itself says.
    let mut a = Node::new("a");
    a.present = vec![physical("b", 0x300), physical("c", 0x300)];
    a.positions = [("b", 0x400), ("c", 0x300)].map(|(n, l)| (n.to_owned(), Lsn(l))).into();
    a.member("c", &json!({"replicatefrom": "b"}));
    assert_eq!(a.changes(), ["c to 0/500"]);
    a.held.insert("c".into(), Lsn(0x600));
    assert_eq!(a.changes(), ["c to 0/600"]);
}

#[test]
fn what_nobody_wants_is_dropped_unless_it_is_used_ignored_or_new() {
    let mut a = Node::new("a");
    a.present = vec![physical("b", 1), physical("c", 1), physical("x", 1), logical("y", 1)];
    assert!(a.changes().is_empty(), "what a user has just created stays");
    a.droppable = ["x", "y"].map(str::to_owned).into();
    assert_eq!(a.changes(), ["drop x", "drop y"]);
    a.config = json!({"ignore_slots": [{"database": "db"}]});
    assert_eq!(a.changes(), ["drop x"]);
    a.config = json!({"pause": true});
    assert!(a.changes().is_empty());
    a.config = json!({});
    a.present[2].active = true;
    assert_eq!(a.changes(), ["drop y"]);
    a.present[3].logical.as_mut().expect("logical").failover = true;
    assert!(a.changes().is_empty(), "PostgreSQL looks after it");
}

#[test]
fn a_former_primarys_own_failover_slot_makes_way_for_the_leaders() {
    let mut b = Node::new("b");
    b.present = vec![physical("a", 1), physical("c", 1), logical("f", 1)];
    b.present[2].logical.as_mut().expect("logical").failover = true;
    assert_eq!(b.changes(), ["drop f"]);
    b.present[2].logical.as_mut().expect("logical").synced = true;
    assert!(b.changes().is_empty());
    b.present[2].logical.as_mut().expect("logical").synced = false;
    b.keys.remove("leader");
    assert!(b.changes().is_empty());
}

#[test]
fn slots_that_cannot_move_are_made_anew() {
    let mut b = Node::new("b");
    b.present = vec![physical("a", 1), physical("c", 1)];
    b.present[0].holds_rows = true;
    b.present[1].restart = None;
    assert_eq!(b.changes(), ["drop a", "drop c"]);
    // Without a leader nobody knows who will stream from here.
    b.keys.remove("leader");
    assert_eq!(b.changes(), ["drop c"]);
    b.present[0] = Slot { lost: true, ..physical("a", 1) };
    assert_eq!(b.changes(), ["drop a", "drop c"]);
    // On the leader a member's slot waits for the member.
    let mut a = Node::new("a");
    a.present = vec![physical("b", 1), physical("c", 1)];
    a.present[0].holds_rows = true;
    a.present[1].restart = None;
    assert!(a.changes().is_empty());
}

#[test]
fn permanent_slots_are_created_copied_and_moved() {
    let mut a = Node::new("a");
    a.config = json!({"slots": {"p": null, "b": null, "a": null, "l": permanent()["l"]}});
    assert_eq!(a.changes(), ["create b", "create c", "create p"]);
    let decoding: Vec<String> = a.plan().decoding.iter().map(said).collect();
    assert_eq!(decoding, ["create l"]);

    let mut b = Node::new("b");
    b.config.clone_from(&a.config);
    assert_eq!(b.plan().to_copy, BTreeSet::new(), "the leader has it not yet");
    b.positions.insert("l".to_owned(), Lsn(0x200));
    assert_eq!(b.plan().to_copy, BTreeSet::from(["l".to_owned()]));
    b.present = vec![logical("l", 0x100)];
    let plan = b.plan();
    let decoding: Vec<String> = plan.decoding.iter().map(said).collect();
    assert_eq!((decoding, plan.to_copy.len()), (vec!["l to 0/200".to_owned()], 0));
    // Another plugin: made anew.
    b.present[0].logical.as_mut().expect("logical").plugin = "test_decoding".to_owned();
    assert!(b.changes().contains(&"drop l".to_owned()));
}

#[test]
fn whoever_does_not_stream_has_no_logical_slots() {
    let mut b = Node::new("b");
    b.config = json!({"slots": permanent()});
    b.positions.insert("l".to_owned(), Lsn(0x200));
    b.member("c", &json!({"nostream": true}));
    b.member("b", &json!({"replicatefrom": "c"}));
    assert_eq!(b.plan().to_copy, BTreeSet::new());
    assert!(b.changes().contains(&"create p".to_owned()));
    assert!(!b.judge(needs_feedback));
    // Two that name each other stream from nobody.
    b.member("c", &json!({"replicatefrom": "b"}));
    assert_eq!(b.plan().to_copy, BTreeSet::new());
}

#[test]
fn feedback_is_needed_where_logical_slots_are_or_stream_through() {
    let mut b = Node::new("b");
    assert!(!b.judge(needs_feedback));
    b.config = json!({"slots": permanent()});
    assert!(b.judge(needs_feedback));
    b.member("b", &json!({"nofailover": true}));
    assert!(!b.judge(needs_feedback));
    b.member("c", &json!({"replicatefrom": "b"}));
    assert!(b.judge(needs_feedback));
    b.member("c", &json!({"replicatefrom": "b", "nofailover": true}));
    assert!(!b.judge(needs_feedback));
}

#[test]
fn in_a_standby_cluster_slots_are_physical_and_used_on_its_leader() {
    let mut a = Node::new("a");
    a.replayed = Some(Lsn(0x1000));
    a.config = json!({"standby_cluster": {"host": "outside"}, "slots": {
        "l": permanent()["l"],
        "p": null,
        "here": {"type": "physical", "cluster_type": "standby"},
        "there": {"type": "physical", "cluster_type": "primary"},
    }});
    assert_eq!(a.changes(), ["create b", "create c", "create here", "create p"]);
    a.positions.insert("l".to_owned(), Lsn(0x200));
    assert_eq!(a.plan().to_copy, BTreeSet::new());
    assert!(!a.judge(needs_feedback));
    a.present = ["b", "c", "here", "p"].map(|name| physical(name, 1)).to_vec();
    a.present[0].holds_rows = true;
    assert!(a.changes().is_empty(), "a member's slot waits for the member");
}
