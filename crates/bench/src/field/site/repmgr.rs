//! repmgr: a daemon on each host that promotes and follows, and an operator who takes a former
//! primary back.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, ensure};
use lab::process;
use lab::service::{Service, Spec};
use rustix::process::Signal;
use tokio::time::Instant;

use super::by_hand::Script;
use super::node::{Node, write};

/// How long a command of repmgr may take.
const COMMAND_LIMIT: Duration = Duration::from_secs(120);
/// As systemd's unit has it, near enough.
const RESTART_AFTER: Duration = Duration::from_secs(3);
/// How long daemons may take until all of them watch.
const WATCH_LIMIT: Duration = Duration::from_secs(60);
/// How often they are looked at.
const POLL: Duration = Duration::from_millis(500);

/// The daemons.
pub(super) struct Repmgr {
    daemons: Vec<Service>,
    program: PathBuf,
}

impl Repmgr {
    /// Sets everything up, and starts the daemons.
    pub(super) async fn start(script: &Script<'_>, directory: &Path) -> anyhow::Result<Repmgr> {
        // Not Debian's wrapper of the same name, which looks for a cluster of its own.
        let program = script.hands.bin_dir.join("repmgr");
        ensure!(program.is_file(), "{} is not there: install repmgr", program.display());
        let mut repmgr = Repmgr { daemons: Vec::new(), program };
        let (first, rest) = script.nodes.split_first().context("there are servers")?;
        for node in script.nodes {
            let text = repmgr.configuration(script, node);
            write(&configuration_file(node), &text, script.hands.owner)?;
        }
        script.set_up_first().await?;
        repmgr.run(script, first, &["primary", "register"]).await?;
        for node in rest {
            let (host, port) = (first.address().to_string(), first.port.to_string());
            let from = ["-h", &host, "-p", &port, "-U", "postgres", "-d", "postgres"];
            let clone = [&from[..], &["standby", "clone", "--fast-checkpoint"]].concat();
            repmgr.run(script, node, &clone).await?;
            script.hands.start(script.ground, node).await?;
            repmgr.run(script, node, &["standby", "register"]).await?;
        }
        for node in script.nodes {
            let daemon = repmgr.daemon(script, node, directory)?;
            repmgr.daemons.push(script.ground.start(node.host, daemon));
        }
        Ok(repmgr)
    }

    fn configuration(&self, script: &Script<'_>, node: &Node) -> String {
        let file = configuration_file(node);
        let (file, program) = (file.display(), self.program.display());
        let (data_dir, bin_dir) = (node.data_dir(), &script.hands.bin_dir);
        let start = script.hands.start_command(node).join(" ");
        format!(
            "node_id={}\nnode_name='{}'\n\
             conninfo='host={} port={} user=postgres dbname=postgres connect_timeout=2'\n\
             data_directory='{}'\npg_bindir='{}'\nreplication_user='postgres'\n\
             failover='automatic'\nmonitor_interval_secs=2\nreconnect_attempts=6\n\
             reconnect_interval=10\n\
             promote_command='{program} standby promote -f {file}'\n\
             follow_command='{program} standby follow -f {file} --upstream-node-id=%n'\n\
             service_start_command='{start}'\n",
            node.host + 1,
            node.name,
            node.address(),
            node.port,
            data_dir.display(),
            bin_dir.display()
        )
    }

    fn daemon(&self, script: &Script<'_>, node: &Node, directory: &Path) -> anyhow::Result<Spec> {
        let (uid, gid) = script.hands.owner.context("the hosts of the laboratory need root")?;
        let program = self.program.with_file_name("repmgrd");
        let arguments = [format!("--reuid={uid}"), format!("--regid={gid}")].map(OsString::from);
        let rest = ["--clear-groups", "--"].map(OsString::from);
        let file = configuration_file(node);
        // Its file would be the same on every host: only their networks are apart.
        let apart = ["--daemonize=false", "--no-pid-file"].map(OsString::from);
        let own = [program.into(), "-f".into(), file.into()].into_iter().chain(apart);
        Ok(Spec {
            name: format!("repmgrd-{}", node.name),
            program: "setpriv".into(),
            arguments: arguments.into_iter().chain(rest).chain(own).collect(),
            log: directory.join(format!("repmgrd-{}.log", node.name)),
            restart_after: RESTART_AFTER,
            group: None,
        })
    }

    async fn run(
        &self,
        script: &Script<'_>,
        node: &Node,
        arguments: &[&str],
    ) -> anyhow::Result<String> {
        let file = configuration_file(node);
        let all = ["-f".into(), file.into()].into_iter();
        let all: Vec<OsString> = all.chain(arguments.iter().map(OsString::from)).collect();
        let (ground, owner) = (script.ground, script.hands.owner);
        Ok(ground.run(node.host, owner, &self.program, &all, COMMAND_LIMIT).await?)
    }

    pub(super) fn hold(&self, host: usize) {
        self.daemons[host].hold();
    }

    pub(super) fn release(&self, host: usize) {
        self.daemons[host].release();
    }

    /// Another primary, by the steps of `repmgr standby switchover`, which itself wants SSH between
    /// the hosts.
    pub(super) async fn switch_over(
        &self,
        script: &Script<'_>,
        from: &Node,
        to: &Node,
    ) -> anyhow::Result<()> {
        // Its daemons would begin a failover of their own: the manual has them paused.
        self.run(script, to, &["service", "pause"]).await?;
        script.hands.stop(script.ground, from).await?;
        self.run(script, to, &["standby", "promote"]).await?;
        for node in script.nodes.iter().filter(|n| n.host != from.host && n.host != to.host) {
            self.run(script, node, &["standby", "follow"]).await?;
        }
        script.checkpoint(to).await?;
        self.take_back(script, from, to).await?;
        self.run(script, to, &["service", "unpause"]).await?;
        self.see_to_daemons(script, to).await
    }

    /// A former primary becomes a standby of `primary`, and all daemons watch again.
    pub(super) async fn rejoin(
        &self,
        script: &Script<'_>,
        node: &Node,
        primary: &Node,
    ) -> anyhow::Result<()> {
        self.take_back(script, node, primary).await?;
        self.see_to_daemons(script, primary).await
    }

    async fn take_back(
        &self,
        script: &Script<'_>,
        node: &Node,
        primary: &Node,
    ) -> anyhow::Result<()> {
        if process::postmaster_of(&node.data_dir()).is_some() {
            script.hands.stop(script.ground, node).await?;
        }
        let (host, port) = (primary.address(), primary.port);
        let to = format!("host={host} port={port} user=postgres dbname=postgres");
        self.run(script, node, &["node", "rejoin", "-d", &to, "--force-rewind"]).await?;
        Ok(())
    }

    /// Starts every daemon again, and waits until `repmgr service status` has all of them running:
    /// one that lost sight of its cluster while servers were away may never take over again.
    async fn see_to_daemons(&self, script: &Script<'_>, primary: &Node) -> anyhow::Result<()> {
        for daemon in &self.daemons {
            if let Some(pid) = daemon.pid() {
                process::signal(pid, Signal::TERM)?;
                daemon.wait_ended(pid, WATCH_LIMIT).await;
            }
        }
        let until = Instant::now() + WATCH_LIMIT;
        loop {
            let status = self.run(script, primary, &["service", "status", "--csv"]).await;
            if status.as_ref().is_ok_and(|text| running(text) == self.daemons.len()) {
                return Ok(());
            }
            ensure!(Instant::now() < until, "repmgr's daemons do not all run: {status:?}");
            tokio::time::sleep(POLL).await;
        }
    }
}

/// How many daemons run, in what `repmgr service status --csv` says: the fifth column has a 1.
fn running(status: &str) -> usize {
    status.lines().filter(|line| line.split(',').nth(4) == Some("1")).count()
}

fn configuration_file(node: &Node) -> PathBuf {
    node.directory.join("repmgr.conf")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_daemons_that_run_are_counted() {
        let status = "1,node1,standby,1,1,77,0,100,0,default\n\
                      2,node2,primary,1,0,-1,0,100,-1,default\n\n";
        assert_eq!(running(status), 1);
        assert_eq!(running(""), 0);
    }
}
