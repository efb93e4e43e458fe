//! The cluster as its members' REST API shows it, and whether that is healthy.

use std::net::SocketAddr;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::task::JoinSet;

use crate::http;

/// How long a member may take to answer.
const LIMIT: Duration = Duration::from_secs(1);

/// A member as `/cluster` shows it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// Its name.
    pub name: String,
    /// `leader`, `sync_standby`, `quorum_standby`, `replica`.
    #[serde(default)]
    pub role: String,
    /// `running`, `streaming`, `stopped`, ….
    #[serde(default)]
    pub state: String,
    /// Its timeline.
    #[serde(default)]
    pub timeline: Option<u64>,
    /// Bytes behind, or `"unknown"`; the leader has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lag: Option<Value>,
    /// Seconds behind.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replay_lag_seconds: Option<f64>,
}

impl Row {
    /// Whether it is the leader.
    #[must_use]
    pub fn leads(&self) -> bool {
        self.role == "leader"
    }

    /// Whether commits may wait for it.
    #[must_use]
    pub fn is_synchronous(&self) -> bool {
        matches!(self.role.as_str(), "sync_standby" | "quorum_standby")
    }
}

/// The cluster as one member sees it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct View {
    /// The members, by name.
    pub members: Vec<Row>,
    /// The leader's term.
    #[serde(default)]
    pub term: Option<u64>,
}

impl View {
    /// The name of the leader.
    #[must_use]
    pub fn leader(&self) -> Option<&str> {
        self.members.iter().find(|row| row.leads()).map(|row| row.name.as_str())
    }
}

/// A member that ought to be there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// Its name.
    pub name: String,
    /// Whether it is one for disaster recovery: never a synchronous standby.
    pub dr: bool,
}

/// How many of the standbys have to be synchronous.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Synchronous {
    /// Every one that may be.
    All,
    /// One at least: the cluster waits for no more.
    One,
}

/// What each member's REST API answers, in the order of their addresses.
pub async fn ask_all(members: &[SocketAddr]) -> Vec<Option<View>> {
    let mut asking = JoinSet::new();
    for (index, address) in members.iter().copied().enumerate() {
        asking.spawn(async move { (index, ask(address).await) });
    }
    let mut views = vec![None; members.len()];
    while let Some(answer) = asking.join_next().await {
        if let Ok((index, view)) = answer {
            views[index] = view;
        }
    }
    views
}

async fn ask(address: SocketAddr) -> Option<View> {
    match http::get(address, "/cluster", LIMIT).await {
        Ok((200, body)) => serde_json::from_slice(&body).ok(),
        Ok(_) | Err(_) => None,
    }
}

/// The view to believe: that of the highest term. A member that was cut off shows an older one.
#[must_use]
pub fn newest(views: &[Option<View>]) -> Option<&View> {
    // Of equal ones the first, so that a table does not change sides for nothing.
    views.iter().flatten().rev().max_by_key(|view| (view.term, view.leader().is_some()))
}

/// What still keeps the cluster from being healthy, in the words of a progress line; `None` when
/// nothing does. The write through the proxy is tried apart.
#[must_use]
pub fn waiting_for(
    views: &[Option<View>],
    nodes: &[Wanted],
    synchronous: Synchronous,
) -> Option<String> {
    let silent: Vec<&str> = nodes
        .iter()
        .zip(views)
        .filter(|(_, view)| view.is_none())
        .map(|(node, _)| node.name.as_str())
        .collect();
    if !silent.is_empty() {
        return Some(format!("the agent of {} to answer", silent.join(", ")));
    }
    let Some(view) = newest(views) else { return Some("the agents to answer".to_owned()) };
    let Some(leader) = view.leader() else { return Some(without_leader(view)) };
    if views.iter().flatten().any(|other| other.leader() != Some(leader)) {
        return Some(format!("every member to see {leader} as leader"));
    }
    let unwell: Vec<String> =
        nodes.iter().filter_map(|node| unwell(view.members.as_slice(), node)).collect();
    if !unwell.is_empty() {
        return Some(unwell.join(", "));
    }
    let is_synchronous = |node: &&Wanted| {
        view.members.iter().any(|row| row.name == node.name && row.is_synchronous())
    };
    let mut standbys = nodes.iter().filter(|node| !node.dr && node.name != leader);
    let missing = match synchronous {
        Synchronous::All => standbys.find(|node| !is_synchronous(node)),
        Synchronous::One if standbys.clone().any(|node| is_synchronous(&node)) => None,
        Synchronous::One => standbys.next(),
    };
    missing.map(|node| format!("{} to become a synchronous standby", node.name))
}

fn without_leader(view: &View) -> String {
    let states: Vec<String> = view
        .members
        .iter()
        .filter(|row| !row.state.is_empty())
        .map(|row| format!("{} {}", row.name, row.state))
        .collect();
    if states.is_empty() {
        return "a leader".to_owned();
    }
    format!("a leader ({})", states.join(", "))
}

fn unwell(rows: &[Row], node: &Wanted) -> Option<String> {
    let Some(row) = rows.iter().find(|row| row.name == node.name) else {
        return Some(format!("{} to join", node.name));
    };
    let wanted = if row.leads() { "running" } else { "streaming" };
    (row.state != wanted).then(|| format!("{} ({})", row.name, row.state))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(name: &str, dr: bool) -> Wanted {
        Wanted { name: name.to_owned(), dr }
    }

    fn view(term: u64, rows: &[(&str, &str, &str)]) -> Option<View> {
        let members = rows.iter().map(|(name, role, state)| Row {
            name: (*name).to_owned(),
            role: (*role).to_owned(),
            state: (*state).to_owned(),
            timeline: Some(1),
            lag: None,
            replay_lag_seconds: None,
        });
        Some(View { members: members.collect(), term: Some(term) })
    }

    const GOOD: [(&str, &str, &str); 3] = [
        ("dr1", "replica", "streaming"),
        ("node1", "leader", "running"),
        ("node2", "quorum_standby", "streaming"),
    ];

    fn nodes() -> Vec<Wanted> {
        vec![node("node1", false), node("node2", false), node("dr1", true)]
    }

    fn wait(views: [Option<View>; 3]) -> Option<String> {
        waiting_for(&views, &nodes(), Synchronous::All)
    }

    #[test]
    fn a_healthy_cluster_waits_for_nothing() {
        assert_eq!(wait([view(1, &GOOD), view(1, &GOOD), view(1, &GOOD)]), None);
    }

    #[test]
    fn what_is_missing_is_named() {
        let good = || view(1, &GOOD);
        let with = |row: (&'static str, &'static str, &'static str)| {
            let mut rows = GOOD.to_vec();
            rows.retain(|other| other.0 != row.0);
            rows.push(row);
            view(1, &rows)
        };
        let all = |view: Option<View>| wait([view.clone(), view.clone(), view]).expect("it waits");
        assert!(wait([good(), None, good()]).expect("it waits").contains("agent of node2"));
        assert!(all(with(("node1", "replica", "running"))).contains("a leader (dr1 streaming"));
        assert!(all(with(("node2", "quorum_standby", "starting"))).contains("node2 (starting)"));
        assert!(all(with(("node2", "replica", "streaming"))).contains("synchronous"));
        assert!(all(with(("node1", "leader", "stopped"))).contains("node1 (stopped)"));
        assert!(all(view(1, &GOOD[1..])).contains("dr1 to join"));
    }

    #[test]
    fn one_synchronous_standby_may_be_enough() {
        let nodes = [node("a", false), node("b", false), node("c", false)];
        let wait = |role| {
            let rows = [
                ("a", "leader", "running"),
                ("b", "replica", "streaming"),
                ("c", role, "streaming"),
            ];
            let view = view(1, &rows);
            waiting_for(&[view.clone(), view.clone(), view], &nodes, Synchronous::One)
        };
        assert_eq!(wait("sync_standby"), None);
        assert!(wait("replica").expect("it waits").contains("synchronous"));
    }

    #[test]
    fn members_that_see_another_leader_are_waited_for() {
        let other = [
            ("dr1", "replica", "streaming"),
            ("node1", "quorum_standby", "streaming"),
            ("node2", "leader", "running"),
        ];
        let waits = wait([view(1, &GOOD), view(2, &other), view(2, &other)]).expect("it waits");
        assert!(waits.contains("see node2 as leader"), "{waits}");
    }

    #[test]
    fn the_rest_answer_of_a_member_is_understood() {
        let text = r#"{"members":[{"name":"a","role":"leader","state":"running","timeline":2,
            "host":"127.0.0.1","port":5},{"name":"b","role":"replica","state":"streaming","lag":0,
            "replay_lag_seconds":0.5},{"name":"c","role":"replica","state":"stopped",
            "lag":"unknown"}],"scope":"demo","term":7}"#;
        let view: View = serde_json::from_str(text).expect("it is valid");
        assert_eq!((view.leader(), view.term), (Some("a"), Some(7)));
        assert_eq!(view.members[1].replay_lag_seconds, Some(0.5));
    }
}
