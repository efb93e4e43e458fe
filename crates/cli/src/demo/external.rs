//! etcd over its JSON gateway: whether it has a leader, and a cluster's keys in an etcd that is not
//! the demo's own.

use std::time::Duration;

use anyhow::{Context, bail};
use api::base64;
use serde_json::{Value, json};

use super::layout::{Layout, NAMESPACE};

/// How long one question may take.
const LIMIT: Duration = Duration::from_secs(3);

async fn post(endpoint: &str, path: &str, body: &Value) -> anyhow::Result<Value> {
    let (host, port) = endpoint.rsplit_once(':').context("an endpoint is host:port")?;
    let port = port.parse().context("an endpoint ends in a port")?;
    let body = Some(serde_json::to_vec(body)?);
    let (status, answer) =
        api::client::request("POST", host, port, path, body, None, LIMIT).await?;
    if status != 200 {
        let text = String::from_utf8_lossy(&answer);
        bail!("etcd at {endpoint} answers {path} with {status}: {}", text.trim());
    }
    serde_json::from_slice(&answer).with_context(|| format!("etcd at {endpoint} sent no JSON"))
}

/// What a member of etcd says about itself.
pub(super) struct Status {
    /// Whether it knows a leader.
    pub has_leader: bool,
    /// Whether it is the leader.
    pub is_leader: bool,
}

/// Asks one member of etcd.
///
/// # Errors
/// It does not answer.
pub(super) async fn status(endpoint: &str) -> anyhow::Result<Status> {
    let answer = post(endpoint, "/v3/maintenance/status", &json!({})).await?;
    // 64-bit numbers are texts in this gateway, and zero is left out.
    let leader = answer["leader"].as_str().filter(|leader| *leader != "0");
    let own = answer["header"]["member_id"].as_str();
    Ok(Status { has_leader: leader.is_some(), is_leader: leader.is_some() && leader == own })
}

/// The request that names every key of the cluster `scope`.
fn keys_of(scope: &str) -> Value {
    let prefix = types::keys::prefix(NAMESPACE, scope).into_bytes();
    let mut end = prefix.clone();
    // The prefix ends in `/`; the first key after all of its keys has the next byte there.
    if let Some(last) = end.last_mut() {
        *last += 1;
    }
    json!({"key": base64(&prefix), "range_end": base64(&end)})
}

/// Calls `path` at the first endpoint that answers.
async fn any(layout: &Layout, path: &str, body: &Value) -> anyhow::Result<Value> {
    let mut last = None;
    for endpoint in &layout.endpoints {
        match post(endpoint, path, body).await {
            Ok(answer) => return Ok(answer),
            Err(error) => last = Some(error),
        }
    }
    match last {
        Some(error) => Err(error.context("no etcd endpoint of --dcs answers")),
        None => bail!("--dcs names no endpoint"),
    }
}

/// Refuses an etcd that already holds a cluster of this name, unless it is this directory's.
///
/// # Errors
/// It does, or does not answer.
pub(super) async fn check_unused(layout: &Layout) -> anyhow::Result<()> {
    if !layout.etcd.is_empty() {
        return Ok(());
    }
    let answer = any(layout, "/v3/kv/range", &keys_of(&layout.kept.scope)).await?;
    let used = answer["kvs"].as_array().is_some_and(|keys| !keys.is_empty());
    if used && !layout.reused {
        bail!(
            "this etcd already holds a cluster {:?}: give its --dir, or delete the keys below {}",
            layout.kept.scope,
            types::keys::prefix(NAMESPACE, &layout.kept.scope)
        );
    }
    Ok(())
}

/// Deletes the keys of a cluster whose directory is removed.
///
/// # Errors
/// No endpoint answers.
pub(super) async fn forget(layout: &Layout) -> anyhow::Result<()> {
    if layout.etcd.is_empty() && layout.temporary {
        any(layout, "/v3/kv/deleterange", &keys_of(&layout.kept.scope)).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_range_covers_this_cluster_only() {
        let range = keys_of("demo");
        assert_eq!(range["key"], base64(b"/service/demo/"));
        assert_eq!(range["range_end"], base64(b"/service/demo0"));
    }
}
