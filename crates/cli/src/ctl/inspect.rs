//! `history`, `dsn` and `version`: what a cluster says of itself.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use api::cluster::{MemberInfo, members};
use serde_json::{Value, json};

use super::output::Output;
use super::select::Role;
use super::store::Store;
use super::table::Format;
use super::{CtlConfig, called_as_patronictl, say};

/// How long one member may take to answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);

/// `history`.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct HistoryArgs {
    /// Name of the cluster; the configured one if none is given
    #[arg(value_name = "CLUSTER_NAME")]
    pub(crate) cluster: Option<String>,
    /// Output format
    #[arg(short, long, value_enum, default_value = "pretty")]
    pub(crate) format: Format,
}

/// `dsn`.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct DsnArgs {
    /// Name of the cluster; the configured one if none is given
    #[arg(value_name = "CLUSTER_NAME")]
    pub(crate) cluster: Option<String>,
    /// A member with this role; the leader by default
    #[arg(short, long, value_enum)]
    pub(crate) role: Option<Role>,
    /// This member
    #[arg(short, long)]
    pub(crate) member: Option<String>,
}

/// `version`.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct VersionArgs {
    /// Name of the cluster
    #[arg(value_name = "CLUSTER_NAME")]
    pub(crate) cluster: Option<String>,
    /// Names of members; all by default
    #[arg(value_name = "MEMBER_NAMES")]
    pub(crate) members: Vec<String>,
}

pub(super) async fn history(args: HistoryArgs, config: &CtlConfig) -> anyhow::Result<ExitCode> {
    let scope = config.scope_or(args.cluster.as_deref())?;
    let view = Store::open(config, scope)?.read().await?;
    let entries = view.history.as_ref().map(|history| history.value.as_slice()).unwrap_or_default();
    let rows = entries.iter().map(|entry| {
        vec![
            json!(entry.timeline.0),
            json!(entry.switch.0),
            json!(entry.reason),
            json!(entry.timestamp),
            json!(entry.new_leader),
        ]
    });
    let columns = [
        ("TL", true),
        ("LSN", true),
        ("Reason", false),
        ("Timestamp", false),
        ("New Leader", false),
    ];
    say(&Output { columns: columns.into(), rows: rows.collect() }.text(args.format))?;
    Ok(ExitCode::SUCCESS)
}

pub(super) async fn dsn(args: DsnArgs, config: &CtlConfig) -> anyhow::Result<ExitCode> {
    anyhow::ensure!(
        args.role.is_none() || args.member.is_none(),
        "--role and --member are mutually exclusive options"
    );
    let scope = config.scope_or(args.cluster.as_deref())?;
    let view = Store::open(config, scope)?.read().await?;
    let role = args.role.unwrap_or(Role::Leader);
    let wanted = |member: &MemberInfo<'_>| match &args.member {
        Some(name) => member.name.as_str() == name,
        None => role.fits(member),
    };
    let infos = members(&view);
    let address = infos.iter().filter(|m| wanted(m)).find_map(|m| m.address.as_ref());
    let (host, port) = address.context("Can not find a suitable member")?;
    say(&format!("host={host} port={port}\n"))?;
    Ok(ExitCode::SUCCESS)
}

pub(super) async fn version(args: VersionArgs, config: &CtlConfig) -> anyhow::Result<ExitCode> {
    say(&own_version())?;
    let Some(scope) = args.cluster.as_deref() else {
        return Ok(ExitCode::SUCCESS);
    };
    let view = Store::open(config, scope)?.read().await?;
    say("\n")?;
    for (name, member) in &view.members {
        if !args.members.is_empty() && !args.members.iter().any(|m| m == name.as_str()) {
            continue;
        }
        let Some(address) = member.value.api_address() else { continue };
        let asked =
            config.rest.request("GET", &address, "/patroni", None, None, ANSWER_LIMIT).await;
        let said = asked.map_err(anyhow::Error::from).and_then(|(_, body)| versions_in(&body));
        match said {
            Ok(said) => say(&format!("{name}: {said}\n"))?,
            Err(error) => say(&format!("{name}: failed to get version: {error:#}\n"))?,
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn own_version() -> String {
    if called_as_patronictl() {
        return format!("patronictl version {}\n", api::PATRONI_VERSION);
    }
    format!("pgherd version {} (as Patroni {})\n", api::PGHERD_VERSION, api::PATRONI_VERSION)
}

/// `Patroni 4.1.4 PostgreSQL 15.18` out of a member's status.
fn versions_in(body: &[u8]) -> anyhow::Result<String> {
    let status: Value = serde_json::from_slice(body).context("the answer is not JSON")?;
    let patroni = status.pointer("/patroni/version").and_then(Value::as_str);
    let patroni = patroni.context("the answer names no version")?;
    let server = status["server_version"].as_u64().map(server_version);
    let server = server.map(|version| format!(" PostgreSQL {version}")).unwrap_or_default();
    Ok(format!("Patroni {patroni}{server}"))
}

/// 150018 is 15.18, 90624 is 9.6.24.
fn server_version(number: u64) -> String {
    if number >= 100_000 {
        return format!("{}.{}", number / 10_000, number % 10_000);
    }
    format!("{}.{}.{}", number / 10_000, number / 100 % 100, number % 100)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions() {
        assert_eq!(server_version(150_018), "15.18");
        assert_eq!(server_version(90_624), "9.6.24");
        let body = br#"{"patroni": {"version": "4.1.4"}, "server_version": 180006}"#;
        assert_eq!(versions_in(body).expect("valid"), "Patroni 4.1.4 PostgreSQL 18.6");
        let stopped = br#"{"patroni": {"version": "4.1.4"}}"#;
        assert_eq!(versions_in(stopped).expect("valid"), "Patroni 4.1.4");
        assert!(versions_in(b"no").is_err());
    }
}
