//! Golden outputs of patronictl 4.1.4, and what was derived from them.

use super::*;
use types::{KeyValue, Revision};

const LIST: &str = include_str!("testdata/list.txt");

const TREE: &str = "\
+ Cluster: demo (initializing) ----+---------+----+-------------+-----+------------+-----+
| Member | Host     | Role         | State   | TL | Receive LSN | Lag | Replay LSN | Lag |
+--------+----------+--------------+---------+----+-------------+-----+------------+-----+
| b      | 10.0.0.2 | Leader       | running |    |             |     |            |     |
| + a    | 10.0.0.1 | Sync Standby | running |    |     unknown |     |    unknown |     |
|   + d  | 10.0.0.4 | Replica      | running |    |     unknown |     |    unknown |     |
| + c    | 10.0.0.3 | Replica      | running |    |     unknown |     |    unknown |     |
| + e    | 10.0.0.5 | Replica      | running |    |     unknown |     |    unknown |     |
|   + f  | 10.0.0.6 | Replica      | running |    |     unknown |     |    unknown |     |
+--------+----------+--------------+---------+----+-------------+-----+------------+-----+
 Maintenance mode: on
 Switchover scheduled at: 2026-11-24T10:00:00+00:00
                    from: b
                      to: a
";

fn view(keys: &[(&str, String)]) -> ClusterView {
    let keys: Vec<KeyValue> = keys
        .iter()
        .map(|(key, value)| KeyValue {
            key: (*key).to_owned(),
            value: value.clone().into_bytes(),
            create_revision: Revision(1),
            mod_revision: Revision(1),
            lease: 0,
        })
        .collect();
    ClusterView::from_keys(Revision(1), &keys)
}

fn replica(port: u16, optional: &str) -> String {
    format!(
        r#"{{"conn_url":"postgres://127.0.0.1:{port}/postgres","state":"running",
        "role":"replica","timeline":4,"xlog_location":67562936,"replay_lsn":67562936,
        "receive_lsn":67562936,"replication_state":"streaming"{optional}}}"#
    )
}

fn golden() -> ClusterView {
    let leader = r#"{"conn_url":"postgres://127.0.0.1:25433/postgres","state":"running",
        "role":"primary","timeline":4,"xlog_location":67562936,"tags":{"failover_priority":1}}"#;
    view(&[
        ("initialize", "7711489607175335743".into()),
        ("leader", "node-1".into()),
        ("status", r#"{"optime":67562936}"#.into()),
        ("members/node-0", replica(25432, r#","tags":{"custom":"x","clonefrom":true}"#)),
        ("members/node-1", leader.into()),
        ("members/node-2", replica(25434, r#","tags":{"failover_priority":1}"#)),
    ])
}

fn check(view: &ClusterView, format: Format, extended: bool, tree: bool) -> String {
    members_text(view, "demo", Layout { format, extended, tree })
}

#[test]
fn list_is_patronictls() {
    let text = check(&golden(), Format::Pretty, false, false);
    assert_eq!(text, LIST, "\n{text}");
}

#[test]
fn json_leaves_out_what_is_empty() {
    let text = check(&golden(), Format::Json, false, false);
    let second = concat!(
        r#"{"Cluster": "demo", "Member": "node-1", "Host": "127.0.0.1:25433", "#,
        r#""Role": "Leader", "State": "running", "TL": 4, "Tags": {"failover_priority": 1}}"#
    );
    assert!(text.contains(second), "{text}");
    let first = concat!(
        r#"[{"Cluster": "demo", "Member": "node-0", "Host": "127.0.0.1:25432", "#,
        r#""Role": "Replica", "State": "streaming", "TL": 4, "Receive LSN": "0/406EDB8", "#,
        r#""Receive Lag": 0, "Replay LSN": "0/406EDB8", "Replay Lag": 0, "#,
        r#""Tags": {"clonefrom": true, "custom": "x"}}, "#
    );
    assert!(text.starts_with(first), "{text}");
    assert!(text.ends_with("]\n"));
}

#[test]
fn tsv_has_every_column() {
    let text = check(&golden(), Format::Tsv, true, false);
    let mut lines = text.lines();
    assert_eq!(
        lines.next().unwrap_or(""),
        "Cluster\tMember\tHost\tRole\tState\tTL\tReceive LSN\tReceive Lag\tReplay LSN\t\
         Replay Lag\tPending restart\tPending restart reason\tScheduled restart\tTags"
    );
    assert_eq!(
        lines.next().unwrap_or(""),
        "demo\tnode-0\t127.0.0.1:25432\tReplica\tstreaming\t4\t0/406EDB8\t0\t0/406EDB8\t0\t\t\t\t\
         {clonefrom: true, custom: x}"
    );
}

#[test]
fn topology_is_a_tree_even_with_a_circle() {
    let member = |n: u8, from: &str| {
        let tags = match from {
            "" => String::new(),
            from => format!(r#","tags":{{"replicatefrom":"{from}"}}"#),
        };
        format!(r#"{{"conn_url":"postgres://10.0.0.{n}:5432/x","state":"running"{tags}}}"#)
    };
    let failover = r#"{"leader":"b","member":"a","scheduled_at":"2026-11-24T10:00:00+00:00"}"#;
    let mut view = view(&[
        ("initialize", String::new()),
        ("leader", "b".into()),
        ("config", r#"{"pause":true,"synchronous_mode":"on"}"#.into()),
        ("sync", r#"{"leader":"b","sync_standby":"a"}"#.into()),
        ("failover", failover.into()),
        ("members/a", member(1, "")),
        ("members/b", member(2, "c")),
        ("members/c", member(3, "gone")),
        ("members/d", member(4, "a")),
        ("members/e", member(5, "f")),
        ("members/f", member(6, "e")),
    ]);
    // The tags would widen the golden text; the tree needs them, the column does not.
    let text = check(&view, Format::Pretty, false, true);
    let cut: Vec<String> = text.lines().map(|l| without_tags(l, &text)).collect();
    assert_eq!(cut.join("\n") + "\n", TREE, "\n{text}");
    view.leader = None;
    let text = check(&view, Format::Pretty, false, true);
    assert_eq!(text.lines().filter(|l| l.contains("10.0.0.")).count(), 6, "{text}");
}

/// Cuts the last column off.
fn without_tags(line: &str, text: &str) -> String {
    let first = text.lines().nth(1).unwrap_or("");
    let inner = first.trim_end_matches('|').rfind('|').unwrap_or(0);
    if line.starts_with(['|', '+']) { line[..=inner].to_owned() } else { line.to_owned() }
}

#[test]
fn odd_clusters_are_drawn_too() {
    let empty = check(&ClusterView::default(), Format::Pretty, false, false);
    assert!(empty.starts_with("+ Cluster: demo (uninitialized) "), "{empty}");
    assert_eq!(empty.lines().count(), 4, "{empty}");
    assert_eq!(check(&ClusterView::default(), Format::Json, false, false), "[]\n");
    let old = r#"{"conn_url":"postgres://h/x","xlog_location":50000000,"state":"running"}"#;
    let view = view(&[
        ("status", "52500000".into()),
        ("members/old", old.into()),
        ("members/x", "broken".into()),
    ]);
    let text = check(&view, Format::Pretty, false, false);
    assert!(text.contains("| running |    |     unknown |     |  0/2FAF080 |   2 |"), "{text}");
    assert!(text.contains("| x      |      | Replica | unknown |"), "{text}");
}
