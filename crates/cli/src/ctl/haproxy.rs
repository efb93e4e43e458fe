//! `haproxy-config`: a configuration of HAProxy that routes by the agents' health checks.

use std::net::Ipv4Addr;
use std::process::ExitCode;

use anyhow::Context;
use types::ClusterView;

use super::store::Store;
use super::{CtlConfig, say};

/// `haproxy-config`.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct HaproxyArgs {
    /// Name of the cluster; the configured one if none is given
    #[arg(value_name = "CLUSTER_NAME")]
    pub(crate) cluster: Option<String>,
    /// Where HAProxy listens
    #[arg(long, default_value_t = Ipv4Addr::UNSPECIFIED)]
    pub(crate) bind: Ipv4Addr,
    /// The port that leads to the primary
    #[arg(long, default_value_t = 5000)]
    pub(crate) primary_port: u16,
    /// The port that leads to the replicas
    #[arg(long, default_value_t = 5001)]
    pub(crate) replica_port: u16,
}

const HEAD: &str = "\
# HAProxy for a PostgreSQL cluster: it asks each member's agent what it is. Written by
# pgherd haproxy-config; write it anew when members come or go.
global
    maxconn 1000

defaults
    mode tcp
    retries 2
    timeout connect 4s
    timeout client 30m
    timeout server 30m
    timeout check 5s
";

pub(super) async fn print(args: HaproxyArgs, config: &CtlConfig) -> anyhow::Result<ExitCode> {
    let scope = config.scope_or(args.cluster.as_deref())?;
    let view = Store::open(config, scope)?.read().await?;
    let text = file(&args, scope, &view);
    say(&text.context("the cluster has no members with both addresses")?)?;
    Ok(ExitCode::SUCCESS)
}

/// The whole file; `None` where nobody could be named in it.
fn file(args: &HaproxyArgs, scope: &str, view: &ClusterView) -> Option<String> {
    let mut servers = String::new();
    for (name, member) in &view.members {
        let addresses = (member.value.postgres_address(), member.value.api_address());
        let (Some((host, port)), Some(address)) = addresses else { continue };
        let (rest, check) = (address.host, address.port);
        // The agent may listen on another address than its PostgreSQL.
        let elsewhere = if rest == host { String::new() } else { format!(" addr {rest}") };
        servers.push_str(&format!(
            "    server {} {host}:{port} check{elsewhere} port {check}\n",
            word(name.as_str())
        ));
    }
    let part = |what: &str, port: u16, down: &str| {
        format!(
            "\nlisten {}_{what}\n    bind {}:{port}\n    option httpchk OPTIONS /{what}\n    \
             http-check expect status 200\n    default-server inter 1s fall 2 rise 1{down}\n\
             {servers}",
            word(scope),
            args.bind
        )
    };
    // Sessions of a primary that is none any more must not linger: they would read old data.
    let primary = part("primary", args.primary_port, " on-marked-down shutdown-sessions");
    let replica = part("replica", args.replica_port, "");
    (!servers.is_empty()).then(|| format!("{HEAD}{primary}{replica}"))
}

/// HAProxy's names have no blanks and few signs.
fn word(name: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | ':');
    name.chars().map(|c| if plain(c) { c } else { '_' }).collect()
}

#[cfg(test)]
mod tests {
    use super::super::test_view::view;
    use super::*;

    #[test]
    fn every_member_stands_in_both_parts() {
        let args = HaproxyArgs {
            cluster: None,
            bind: Ipv4Addr::LOCALHOST,
            primary_port: 5000,
            replica_port: 5001,
        };
        let two = view(&[
            (
                "members/a b",
                r#"{"conn_url":"postgres://10.0.0.1:5432/x","api_url":"http://10.0.0.1:8008/p"}"#,
            ),
            (
                "members/c",
                r#"{"conn_url":"postgres://10.0.0.2:5433/x","api_url":"http://10.1.0.2:8009/p"}"#,
            ),
            ("members/d", "{}"),
        ]);
        let text = file(&args, "my cluster", &two).expect("two members");
        let servers = "    server a_b 10.0.0.1:5432 check port 8008\n    \
                       server c 10.0.0.2:5433 check addr 10.1.0.2 port 8009\n";
        let expected = format!(
            "{HEAD}\nlisten my_cluster_primary\n    bind 127.0.0.1:5000\n    \
             option httpchk OPTIONS /primary\n    http-check expect status 200\n    \
             default-server inter 1s fall 2 rise 1 on-marked-down shutdown-sessions\n{servers}\n\
             listen my_cluster_replica\n    bind 127.0.0.1:5001\n    \
             option httpchk OPTIONS /replica\n    http-check expect status 200\n    \
             default-server inter 1s fall 2 rise 1\n{servers}"
        );
        assert_eq!(text, expected);
        assert_eq!(file(&args, "x", &view(&[("members/d", "{}")])), None);
    }
}
