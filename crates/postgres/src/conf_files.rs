//! The configuration files on disk: where they are, and how they are written. Blocking.

use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use types::Upstream;

use crate::conf::{self, ConfState, Place};
use crate::config::{Credentials, DYNAMIC_FILE, InstanceConfig};
use crate::error::Error;
use crate::files;

/// What a copy of a configuration file in the data directory ends with (as Patroni has it).
const BACKUP: &str = ".backup";

/// Where the configuration files of a data directory are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ConfFiles {
    dir: PathBuf,
    base_name: String,
}

impl ConfFiles {
    /// Of `data_dir`, which may be a copy that is not yet in place.
    pub(crate) fn of(config: &InstanceConfig, data_dir: &Path) -> ConfFiles {
        let dir = config.config_dir.as_deref().unwrap_or(data_dir).to_owned();
        ConfFiles { dir, base_name: config.config_base_name.clone() }
    }

    /// Where the server will find them.
    pub(crate) fn in_place(config: &InstanceConfig) -> ConfFiles {
        ConfFiles::of(config, &config.data_dir)
    }

    /// The one that we write.
    pub(crate) fn main(&self) -> PathBuf {
        self.dir.join(format!("{}.conf", self.base_name))
    }

    /// The one that stood there before, which ours includes.
    pub(crate) fn base(&self) -> PathBuf {
        self.dir.join(format!("{}.base.conf", self.base_name))
    }

    pub(crate) fn hba(&self) -> PathBuf {
        self.dir.join("pg_hba.conf")
    }

    /// Where a name leads that is given relative to them.
    pub(crate) fn path(&self, name: &str) -> String {
        self.dir.join(name).to_string_lossy().into_owned()
    }

    fn ident(&self) -> PathBuf {
        self.dir.join("pg_ident.conf")
    }

    fn all(&self) -> [PathBuf; 4] {
        [self.main(), self.base(), self.hba(), self.ident()]
    }
}

/// Whether the lines of this file are ours to write: its setting names no other one.
pub(crate) fn is_ours(config: &InstanceConfig, setting: &str, path: &Path) -> bool {
    let dir = path.parent().unwrap_or(Path::new("/"));
    config.parameters.get(setting).is_none_or(|given| dir.join(given) == path)
}

/// What the configuration on disk says.
pub(crate) fn state_in(config: &InstanceConfig, data_dir: &Path) -> Result<ConfState, Error> {
    state_of(&ConfFiles::of(config, data_dir).main())
}

/// What a main file says.
pub(crate) fn state_of(main: &Path) -> Result<ConfState, Error> {
    Ok(ConfState::read(&read_or_empty(main)?))
}

/// A file's text; only a missing file is an empty one. Taken for empty, a file that cannot be read
/// would be written back without its upstream and its synchronous set (I2).
fn read_or_empty(path: &Path) -> Result<String, Error> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(text),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(String::new()),
        Err(error) => Err(Error::file("read", path)(error)),
    }
}

/// Writes all configuration files of `dir`, which may be a copy that is not yet in place.
pub(crate) fn write_files(
    config: &InstanceConfig,
    dir: &Path,
    change: impl FnOnce(&mut ConfState),
) -> Result<bool, Error> {
    let (owner, mode) = (config.os_user.as_ref(), files::mode_in(dir));
    let present = ConfFiles::of(config, dir);
    let mut state = state_in(config, dir)?;
    change(&mut state);
    keep_original(config, dir)?;
    let auto = dir.join("postgresql.auto.conf");
    let text = fs::read_to_string(&auto).unwrap_or_default();
    let mut changed = match conf::clean_auto_conf(&text) {
        Some(clean) => files::write_durably(&auto, &clean, mode, owner)?,
        None => false,
    };
    if let Some(upstream) = &state.upstream {
        write_pgpass(config, upstream)?;
    }
    let places = ConfFiles::in_place(config);
    let mut named = Vec::new();
    for (setting, path, place, lines) in [
        ("hba_file", present.hba(), places.hba(), &config.pg_hba),
        ("ident_file", present.ident(), places.ident(), &config.pg_ident),
    ] {
        if !lines.is_empty() && is_ours(config, setting, &place) {
            let text = conf::render_lines(config, lines);
            changed |= files::write_durably(&path, &text, mode, owner)?;
        }
        // One that is not there would keep the server from starting.
        if path.exists() {
            named.push(Place { setting, path: place });
        }
    }
    if !config.dynamic.is_empty() {
        files::write_durably(&dir.join(DYNAMIC_FILE), &config.dynamic, mode, owner)?;
    }
    let text = conf::render(config, &named, &state);
    changed |= files::write_durably(&present.main(), &text, mode, owner)?;
    Ok(changed)
}

/// The configuration file that somebody else wrote becomes the one that ours includes: that of the
/// data directory where there is none in the place of configuration files.
fn keep_original(config: &InstanceConfig, dir: &Path) -> Result<(), Error> {
    let present = ConfFiles::of(config, dir);
    let (main, base) = (present.main(), present.base());
    if base.exists() || config.custom_conf.is_some() {
        return Ok(());
    }
    if main.exists() {
        let renamed = fs::rename(&main, &base).and_then(|()| files::sync_parent(&base));
        return renamed.map_err(Error::file("rename", &main));
    }
    let text = read_or_empty(&dir.join("postgresql.conf"))?;
    files::write_durably(&base, &text, files::mode_in(dir), config.os_user.as_ref())?;
    Ok(())
}

/// Writes postgresql.conf for the private server of a bootstrap, which recovers with these
/// settings, or with what stands in postgresql.auto.conf (`keep`).
pub(crate) fn write_bootstrap_files(
    config: &InstanceConfig,
    dir: &Path,
    recovery: Option<&BTreeMap<String, String>>,
    keep: bool,
) -> Result<(), Error> {
    let (owner, mode) = (config.os_user.as_ref(), files::mode_in(dir));
    keep_original(config, dir)?;
    let auto = dir.join("postgresql.auto.conf");
    if !keep && let Some(clean) = conf::clean_auto_conf(&read_or_empty(&auto)?) {
        files::write_durably(&auto, &clean, mode, owner)?;
    }
    let text = conf::render_bootstrap(config, recovery);
    files::write_durably(&ConfFiles::of(config, dir).main(), &text, mode, owner)?;
    Ok(())
}

/// Keeps copies of the configuration files in the data directory: a copy of that has them then,
/// wherever the files themselves are, or are linked from. They are for an operator who restores,
/// so nothing waits until they are durable.
pub(crate) fn save_copies(config: &InstanceConfig) -> Result<(), Error> {
    let (owner, dir) = (config.os_user.as_ref(), &config.data_dir);
    let mode = files::mode_in(dir);
    for path in ConfFiles::in_place(config).all() {
        let Some(name) = path.file_name().filter(|_| path.is_file()) else { continue };
        let mut copy = name.to_owned();
        copy.push(BACKUP);
        let bytes = fs::read(&path).map_err(Error::file("read", &path))?;
        files::write_lazily(&dir.join(copy), &bytes, mode, owner)?;
    }
    Ok(())
}

/// Puts those that are missing back from the copies that came with a data directory.
pub(crate) fn restore_missing(config: &InstanceConfig, dir: &Path) -> Result<(), Error> {
    let (owner, mode) = (config.os_user.as_ref(), files::mode_in(dir));
    let present = ConfFiles::of(config, dir);
    for path in present.all() {
        let Some(name) = path.file_name().filter(|_| !path.exists()) else { continue };
        let mut copy = name.to_owned();
        copy.push(BACKUP);
        match fs::read_to_string(dir.join(&copy)) {
            Ok(text) => _ = files::write_durably(&path, &text, mode, owner)?,
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(Error::file("read", &dir.join(copy))(error)),
        }
    }
    Ok(())
}

/// Writes what PostgreSQL's programs need of secrets to connect to an upstream as this role.
pub(crate) fn write_secrets(
    config: &InstanceConfig,
    upstream: &Upstream,
    role: &Credentials,
) -> Result<(), Error> {
    write_pgpass(config, upstream)?;
    let path = config.service_file();
    match conf::service_file(role)? {
        Some(text) => _ = files::write_durably(&path, &text, 0o600, config.os_user.as_ref())?,
        None => _ = files::remove_if_present(&path)?,
    }
    Ok(())
}

/// Writes libpq's password file for one upstream.
fn write_pgpass(config: &InstanceConfig, upstream: &Upstream) -> Result<(), Error> {
    let owner = config.os_user.as_ref();
    if let Some(parent) = config.pgpass.parent() {
        files::make_dir(parent, 0o755, owner)?;
    }
    let lines = conf::pgpass(config, upstream);
    files::write_durably(&config.pgpass, &lines, 0o600, owner)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn sample(base: &Path) -> InstanceConfig {
        let mut config = conf::tests_support::sample();
        config.data_dir = base.join("data");
        config.pgpass = base.join("pgpass");
        fs::create_dir(&config.data_dir).unwrap();
        config
    }

    fn read(path: &Path) -> String {
        fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
    }

    #[test]
    fn files_may_stand_elsewhere_and_have_another_name() {
        let base = tempfile::tempdir().unwrap();
        let mut config = sample(base.path());
        let etc = base.path().join("etc");
        fs::create_dir(&etc).unwrap();
        (config.config_dir, config.config_base_name) = (Some(etc.clone()), "main".to_owned());
        fs::write(config.data_dir.join("postgresql.conf"), "jit = off\n").unwrap();
        assert!(write_files(&config, &config.data_dir, |_| {}).unwrap());
        let main = read(&etc.join("main.conf"));
        assert!(main.contains("include 'main.base.conf'\n"), "{main}");
        assert!(main.contains(&format!("hba_file = '{}'", etc.join("pg_hba.conf").display())));
        assert_eq!(read(&etc.join("main.base.conf")), "jit = off\n", "what initdb wrote");
        assert!(!config.data_dir.join("pg_hba.conf").exists());
        // What is there already is kept, and nothing else is looked for.
        assert!(!write_files(&config, &config.data_dir, |_| {}).unwrap());
    }

    #[test]
    fn a_file_that_the_parameters_name_is_ours_only_where_it_is_the_same() {
        let base = tempfile::tempdir().unwrap();
        let mut config = sample(base.path());
        let hba = config.data_dir.join("pg_hba.conf");
        config.parameters.insert("hba_file".to_owned(), "/elsewhere".to_owned());
        write_files(&config, &config.data_dir, |_| {}).unwrap();
        assert!(!hba.exists());
        config.parameters.insert("hba_file".to_owned(), hba.display().to_string());
        write_files(&config, &config.data_dir, |_| {}).unwrap();
        assert!(read(&hba).ends_with("local all all trust\n"));
        let main = read(&config.data_dir.join("postgresql.conf"));
        assert_eq!(main.matches("hba_file").count(), 1, "{main}");
    }

    #[test]
    fn copies_bring_back_what_is_missing_and_nothing_else() {
        let base = tempfile::tempdir().unwrap();
        let config = sample(base.path());
        let (dir, hba) = (&config.data_dir, config.data_dir.join("pg_hba.conf"));
        write_files(&config, dir, |_| {}).unwrap();
        save_copies(&config).unwrap();
        let original = read(&hba);
        assert_eq!(read(&dir.join("pg_hba.conf.backup")), original);
        fs::remove_file(&hba).unwrap();
        fs::write(dir.join("postgresql.conf"), "mine\n").unwrap();
        restore_missing(&config, dir).unwrap();
        assert_eq!(read(&hba), original);
        assert_eq!(read(&dir.join("postgresql.conf")), "mine\n");
    }
}
