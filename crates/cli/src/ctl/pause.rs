//! `pause` and `resume`.

use std::process::ExitCode;
use std::time::Duration;

use api::Settings;
use serde_json::json;
use tokio::time::Instant;
use types::{ClusterView, Member, MemberName};

use super::store::Store;
use super::{CtlConfig, say};

/// How long one member may take to answer before the next one is asked.
const ANSWER_LIMIT: Duration = Duration::from_secs(25);

/// How often `--wait` looks.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// `pause` and `resume`.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct PauseArgs {
    /// Name of the cluster; the configured one if none is given
    #[arg(value_name = "CLUSTER_NAME")]
    pub(crate) cluster: Option<String>,
    /// Wait until all members know
    #[arg(long)]
    pub(crate) wait: bool,
}

pub(super) async fn set(
    args: PauseArgs,
    config: &CtlConfig,
    paused: bool,
) -> anyhow::Result<ExitCode> {
    let scope = config.scope_or(args.cluster.as_deref())?;
    let store = Store::open(config, scope)?;
    let view = store.read().await?;
    let word = if paused { "pause" } else { "resume" };
    if Settings::from_view(&view).paused == paused {
        anyhow::bail!("Cluster is {} paused", if paused { "already" } else { "not" });
    }
    let body = serde_json::to_vec(&json!({"pause": paused.then_some(true)}))?;
    for (name, member) in leader_first(&view) {
        let Some(address) = member.api_address() else { continue };
        let auth = config.auth();
        let body = Some(body.clone());
        let sent =
            config.rest.request("PATCH", &address, "/config", body, auth, ANSWER_LIMIT).await;
        let (status, answer) = match sent {
            Ok(answer) => answer,
            Err(error) => {
                eprintln!("Member {name} is not accessible: {error:#}");
                continue;
            }
        };
        if status != 200 {
            let text = String::from_utf8_lossy(&answer);
            say(&format!("Failed: {word} cluster management status code={status}, ({text})\n"))?;
        } else if !args.wait || recognized(&store, &view, paused).await? {
            say(&format!("Success: cluster management is {word}d\n"))?;
        }
        return Ok(ExitCode::SUCCESS);
    }
    anyhow::bail!("Can not find accessible cluster member")
}

fn leader_first(view: &ClusterView) -> Vec<(&MemberName, &Member)> {
    let mut members: Vec<_> = view.members.iter().map(|(name, m)| (name, &m.value)).collect();
    members.sort_by_key(|(name, _)| Some(*name) != view.leader_name());
    members
}

/// Waits until every member of `before` publishes that it knows, `loop_wait` + 1 s at most.
async fn recognized(store: &Store, before: &ClusterView, paused: bool) -> anyhow::Result<bool> {
    let word = if paused { "pause" } else { "resume" };
    say(&format!("'{word}' request sent, waiting until it is recognized by all nodes\n"))?;
    let loop_wait = Settings::from_view(before).loop_wait.as_duration();
    let deadline = Instant::now() + loop_wait + Duration::from_secs(1);
    loop {
        let view = store.read().await?;
        let missing = not_yet(before, &view, paused);
        if missing.is_empty() {
            return Ok(true);
        }
        if Instant::now() >= deadline {
            let names = missing.join(", ");
            let seconds = loop_wait.as_secs();
            say(&format!(
                "{names} members didn't recognized pause state after {seconds} seconds\n"
            ))?;
            return Ok(false);
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// Members of `before` that are still there and do not publish the new state.
fn not_yet(before: &ClusterView, now: &ClusterView, paused: bool) -> Vec<String> {
    let known = |name: &MemberName| before.members.contains_key(name);
    let late = now.members.iter().filter(|(name, m)| known(name) && m.value.pause != paused);
    late.map(|(name, _)| name.to_string()).collect()
}

#[cfg(test)]
mod tests {
    use super::super::test_view;
    use super::*;

    fn view(members: &[(&str, bool)]) -> ClusterView {
        let owned = |(name, pause): &(&str, bool)| {
            (format!("members/{name}"), format!("{{\"pause\":{pause}}}"))
        };
        let members: Vec<(String, String)> = members.iter().map(owned).collect();
        let mut keys = vec![("leader", "b")];
        keys.extend(members.iter().map(|(key, value)| (key.as_str(), value.as_str())));
        test_view::view(&keys)
    }

    #[test]
    fn the_leader_is_asked_first() {
        let view = view(&[("a", false), ("b", false), ("c", false)]);
        let names: Vec<&str> = leader_first(&view).iter().map(|(n, _)| n.as_str()).collect();
        assert_eq!(names, ["b", "a", "c"]);
    }

    #[test]
    fn members_that_left_or_came_are_not_waited_for() {
        let before = view(&[("a", false), ("b", false), ("c", false)]);
        let now = view(&[("a", true), ("b", false), ("d", false)]);
        assert_eq!(not_yet(&before, &now, true), ["b"]);
    }
}
