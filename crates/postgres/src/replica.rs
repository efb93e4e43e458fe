//! A copy of another member: by the first of the configured methods that works.

use std::ffi::OsString;
use std::fs;
use std::path::PathBuf;

use types::{ControlState, Upstream};

use crate::bootstrap::replay_archive;
use crate::conf;
use crate::config::InstanceConfig;
use crate::copy::{self, CopyProgress, complete, set_aside, write_secrets};
use crate::error::Error;
use crate::files::{self, blocking};
use crate::hooks::{CustomMethod, ReplicaMethod, long_options, run_hook};
use crate::instance::{LocalInstance, read_control};
use crate::sql::{self, REMOTE_LIMIT, within};

/// Whom a copy is made of.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Source<'a> {
    pub(crate) upstream: &'a Upstream,
    /// It is a standby of this leader.
    pub(crate) standby_of: Option<&'a Upstream>,
}

impl Source<'_> {
    /// Whether the leader that a copy is replaced for is there. A leader that is copied itself
    /// shows that by answering until the end.
    pub(crate) async fn require_leader(&self, config: &InstanceConfig) -> Result<(), Error> {
        let Some(leader) = self.standby_of else { return Ok(()) };
        let look = async {
            let client = sql::connect_upstream(config, leader).await?;
            sql::one_row(&client, "look for the leader", "SELECT pg_is_in_recovery()").await
        };
        let row = within(REMOTE_LIMIT, "the leader's answer", look).await?;
        if row.first().is_some_and(|recovers| recovers == "f") {
            return Ok(());
        }
        let name = &leader.name;
        Err(Error::refused(format!("{name} is no primary any more: nothing is replaced for it")))
    }
}

pub(crate) async fn clone_from(
    instance: &LocalInstance,
    source: Option<Source<'_>>,
    progress: impl Fn(CopyProgress) + Send + Sync,
) -> Result<(), Error> {
    let config = instance.config();
    instance.require_stopped("replace the data directory").await?;
    let mut failed = None;
    for method in methods(&config, source.map(|source| source.upstream)) {
        let made = match (&method, source) {
            (ReplicaMethod::Basebackup, Some(source)) => {
                copy::basebackup(instance, source, &progress).await
            }
            (ReplicaMethod::Basebackup, None) => continue,
            (ReplicaMethod::Custom(method), source) => custom(instance, method, source).await,
        };
        let name = name_of(&method);
        match made {
            Ok(()) => {
                tracing::info!("replica has been created using {name}");
                instance.memory().forget_copy();
                return Ok(());
            }
            Err(error) => {
                tracing::error!(%error, "Error creating replica using method {name}");
                failed = Some(error);
            }
        }
    }
    Err(failed.unwrap_or_else(|| Error::refused("no method makes a copy without a leader")))
}

fn name_of(method: &ReplicaMethod) -> &str {
    match method {
        ReplicaMethod::Basebackup => "basebackup",
        ReplicaMethod::Custom(method) => &method.name,
    }
}

fn methods(config: &InstanceConfig, upstream: Option<&Upstream>) -> Vec<ReplicaMethod> {
    let hooks = &config.hooks;
    let remote = upstream.is_some_and(Upstream::is_remote) && !hooks.remote_methods.is_empty();
    let mut methods = if remote { &hooks.remote_methods } else { &hooks.replica_methods }.clone();
    // An archive alone is nobody to copy from.
    let led = upstream.is_some_and(|upstream| !upstream.is_archive());
    if methods.is_empty() {
        methods.push(ReplicaMethod::Basebackup);
    }
    methods.retain(|method| match method {
        ReplicaMethod::Basebackup => led,
        ReplicaMethod::Custom(method) => led || method.no_leader,
    });
    methods
}

/// A command writes the data directory itself, so the old copy is set aside before, and comes back
/// when the command fails (I3).
async fn custom(
    instance: &LocalInstance,
    method: &CustomMethod,
    source: Option<Source<'_>>,
) -> Result<(), Error> {
    let config = instance.config();
    if let Some(source) = source {
        source.require_leader(&config).await?;
    }
    let _hidden = instance.hide();
    let aside = if method.keep_data { None } else { clear_place(&config)? };
    let mut made = run_method(instance, method, source).await;
    if let (Ok(()), Some(source)) = (&made, source) {
        made = source.require_leader(&config).await;
    }
    instance.require_stopped("take over the new copy").await?;
    let (prepared, upstream) = (config, source.map(|source| source.upstream.clone()));
    let (keep, unled) = (method.keep_data, upstream.is_none());
    let made = blocking(move || {
        let made = made.and_then(|()| take_over(&prepared, upstream));
        match (&made, &aside) {
            (Ok(()), Some(kept)) => forget_older(&prepared, kept)?,
            (Err(_), _) if !keep => put_back(&prepared, aside.as_deref())?,
            (Ok(()), None) | (Err(_), _) => {}
        }
        made
    });
    made.await?;
    if unled { replay_archive(instance).await } else { Ok(()) }
}

async fn run_method(
    instance: &LocalInstance,
    method: &CustomMethod,
    source: Option<Source<'_>>,
) -> Result<(), Error> {
    let config = instance.config();
    if let Some(source) = source {
        write_secrets(instance, source.upstream, &config.replication).await?;
    }
    let streams = source.filter(|source| !source.upstream.is_archive());
    let replaced = copy::replaces(instance).await?;
    let connection =
        streams.map_or_else(String::new, |source| conf::copy_conninfo(&config, &source, replaced));
    let data_dir = config.data_dir.to_string_lossy();
    let ours = [
        ("scope", config.scope.as_str()),
        ("role", "replica"),
        ("datadir", &data_dir),
        ("connstring", &connection),
    ];
    let theirs = method.arguments.iter().map(|(name, value)| (name.as_str(), value.as_str()));
    let ours = ours.into_iter().filter(|_| !method.no_params);
    let arguments = long_options(theirs.chain(ours));
    let variables = [
        ("PGPASSFILE", OsString::from(&config.pgpass)),
        ("PGSERVICEFILE", config.service_file().into()),
    ];
    let what = format!("the replica method {}", method.name);
    run_hook(config.os_user.as_ref(), &what, &method.command, &arguments, &variables).await
}

/// Makes what the command wrote a standby.
fn take_over(config: &InstanceConfig, upstream: Option<Upstream>) -> Result<(), Error> {
    let dir = &config.data_dir;
    let control = read_control(dir)?;
    let running = control.state == ControlState::InProduction;
    if running && !dir.join("backup_label").is_file() {
        tracing::warn!("the new copy has no backup_label: it is taken for one of a crashed server");
    }
    complete(config, dir, upstream)
}

/// Sets the old copy aside. Returns where it is.
fn clear_place(config: &InstanceConfig) -> Result<Option<PathBuf>, Error> {
    let dir = &config.data_dir;
    if files::is_empty(dir).map_err(Error::file("read", dir))? {
        // A command may insist on making the directory itself; a mount point stays.
        fs::remove_dir(dir).ok();
        return Ok(None);
    }
    let number = set_aside(config)?.last().map_or(0, |(number, _)| *number) + 1;
    let aside = config.beside(&format!(".old-{number}"));
    let renamed = fs::rename(dir, &aside).and_then(|()| files::sync_parent(dir));
    renamed.map_err(Error::file("rename", dir))?;
    Ok(Some(aside))
}

/// One copy is kept beside the new one.
fn forget_older(config: &InstanceConfig, kept: &std::path::Path) -> Result<(), Error> {
    for (_, path) in set_aside(config)? {
        if path != kept {
            files::remove_tree(&path)?;
        }
    }
    Ok(())
}

/// What a failed command wrote goes, and the old copy comes back.
fn put_back(config: &InstanceConfig, aside: Option<&std::path::Path>) -> Result<(), Error> {
    let dir = &config.data_dir;
    files::remove_tree(dir)?;
    let Some(aside) = aside else {
        return Ok(());
    };
    let renamed = fs::rename(aside, dir).and_then(|()| files::sync_parent(dir));
    renamed.map_err(Error::file("rename", dir))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_old_copy_comes_back_when_a_method_fails() {
        let base = tempfile::tempdir().unwrap();
        let mut config = conf::tests_support::sample();
        config.data_dir = base.path().join("data");
        fs::create_dir(&config.data_dir).unwrap();
        assert_eq!(clear_place(&config).unwrap(), None);
        assert!(!config.data_dir.exists());
        fs::create_dir(&config.data_dir).unwrap();
        fs::write(config.data_dir.join("x"), "old").unwrap();
        let aside = clear_place(&config).unwrap().expect("it was not empty");
        fs::create_dir(&config.data_dir).unwrap();
        fs::write(config.data_dir.join("x"), "half").unwrap();
        put_back(&config, Some(&aside)).unwrap();
        assert_eq!(fs::read_to_string(config.data_dir.join("x")).unwrap(), "old");
        assert!(!aside.exists());
    }

    #[test]
    fn without_a_leader_only_methods_that_need_none_are_tried() {
        let mut config = conf::tests_support::sample();
        let led = Upstream::remote("there", 5432);
        assert_eq!(methods(&config, Some(&led)), [ReplicaMethod::Basebackup]);
        assert_eq!(methods(&config, None), []);
        assert_eq!(methods(&config, Some(&Upstream::archive())), []);
        let method = |name: &str, no_leader| {
            ReplicaMethod::Custom(CustomMethod {
                name: name.to_owned(),
                command: vec![name.to_owned()],
                keep_data: false,
                no_leader,
                no_params: false,
                arguments: Vec::new(),
            })
        };
        config.hooks.replica_methods = vec![method("a", true), method("b", false)];
        assert_eq!(methods(&config, Some(&led)).len(), 2);
        assert_eq!(methods(&config, None), [method("a", true)]);
        config.hooks.remote_methods = vec![method("c", false)];
        assert_eq!(methods(&config, Some(&led)), [method("c", false)]);
    }
}
