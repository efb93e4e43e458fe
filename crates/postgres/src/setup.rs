//! What is checked before an instance is taken on; nothing is changed.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::config::InstanceConfig;
use crate::error::SetupError;

/// The oldest supported major version.
pub const MAJOR_MIN: u32 = 14;
/// The newest major version that is known; newer ones are taken with a warning.
pub const MAJOR_MAX: u32 = 18;
/// The longest path of a unix socket, in bytes (`sun_path`).
const SOCKET_PATH_BYTES_MAX: usize = 107;
/// Where distributions put PostgreSQL's programs, by major version.
const USUAL_PLACES: [(&str, &str); 3] =
    [("/usr/lib/postgresql/", "/bin"), ("/usr/pgsql-", "/bin"), ("/usr/lib/postgresql", "/bin")];
/// The programs that are run, and may have another name.
const PROGRAMS: [&str; 4] = ["postgres", "initdb", "pg_basebackup", "pg_rewind"];

/// PostgreSQL's programs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Programs {
    /// Where they are.
    pub bin_dir: PathBuf,
    /// Their major version.
    pub major: u32,
    /// What those are called that have another name than PostgreSQL's.
    pub names: BTreeMap<&'static str, String>,
}

impl Programs {
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.bin_dir.join(called(&self.names, name))
    }
}

/// What a program is called.
fn called<'a>(names: &'a BTreeMap<&'static str, String>, name: &'a str) -> &'a str {
    names.get(name).map_or(name, String::as_str)
}

/// Checks programs, paths and the data directory; all problems are collected.
pub(crate) fn check(config: &InstanceConfig) -> Result<Programs, SetupError> {
    let mut problems = Vec::new();
    check_user(config, &mut problems);
    check_paths(config, &mut problems);
    let programs = find_programs(config, &mut problems);
    check_data_dir(config, programs.as_ref(), &mut problems);
    match programs {
        Some(programs) if problems.is_empty() => Ok(programs),
        Some(_) | None => Err(SetupError { problems }),
    }
}

fn check_user(config: &InstanceConfig, problems: &mut Vec<String>) {
    let root = rustix::process::geteuid().is_root();
    match &config.os_user {
        None if root => problems.push(
            "PostgreSQL does not run as root: set pgherd.os_user, or start the agent as that user"
                .to_owned(),
        ),
        Some(user) if user.uid == 0 => {
            problems.push("pgherd.os_user is root, as which PostgreSQL does not run".to_owned());
        }
        Some(user) if !root && user.uid != rustix::process::geteuid().as_raw() => {
            problems.push(format!(
                "only root can run PostgreSQL as {0}: start the agent as root or as {0}",
                user.name
            ));
        }
        Some(_) | None => {}
    }
}

fn check_paths(config: &InstanceConfig, problems: &mut Vec<String>) {
    for (name, path) in [
        ("data_dir", &config.data_dir),
        ("socket_dir", &config.socket_dir),
        ("state_dir", &config.state_dir),
        ("pgpass", &config.pgpass),
        ("config_dir", config.config_dir.as_ref().unwrap_or(&config.data_dir)),
    ] {
        if !path.is_absolute() {
            problems.push(format!("{name} {} is not an absolute path", path.display()));
        }
    }
    let socket = config.private_dir().join(format!(".s.PGSQL.{}", config.port));
    if socket.as_os_str().len() > SOCKET_PATH_BYTES_MAX {
        problems.push(format!(
            "socket_dir {} is too long: {} would exceed {SOCKET_PATH_BYTES_MAX} bytes",
            config.socket_dir.display(),
            socket.display()
        ));
    }
    for (name, value) in [("scope", &config.scope), ("database", &config.database)] {
        if value.is_empty() || value.contains(['\0', '\n']) {
            problems.push(format!("{name} is empty or holds a line break"));
        }
    }
}

fn find_programs(config: &InstanceConfig, problems: &mut Vec<String>) -> Option<Programs> {
    let bin_dir = match &config.bin_dir {
        Some(dir) => dir.clone(),
        None => match search(config) {
            Some(dir) => dir,
            None => {
                let name = called(&config.bin_name, "postgres");
                problems.push(format!("no `{name}` in PATH or the usual places: set bin_dir"));
                return None;
            }
        },
    };
    let name = |program| called(&config.bin_name, program);
    let missing: Vec<&str> =
        PROGRAMS.into_iter().map(name).filter(|name| !bin_dir.join(name).is_file()).collect();
    if !missing.is_empty() {
        problems.push(format!(
            "{} has no {}: set bin_dir to where PostgreSQL's server programs are",
            bin_dir.display(),
            missing.join(", ")
        ));
        return None;
    }
    match version(&bin_dir.join(name("postgres"))) {
        Ok(major) if major < MAJOR_MIN => {
            problems.push(format!(
                "{} is PostgreSQL {major}; the oldest supported is {MAJOR_MIN}",
                bin_dir.display()
            ));
            None
        }
        Ok(major) => {
            if major > MAJOR_MAX {
                tracing::warn!(major, newest = MAJOR_MAX, "this PostgreSQL is newer than tested");
            }
            Some(Programs { bin_dir, major, names: config.bin_name.clone() })
        }
        Err(why) => {
            problems.push(why);
            None
        }
    }
}

fn search(config: &InstanceConfig) -> Option<PathBuf> {
    let found =
        places(data_dir_major(&config.data_dir), called(&config.bin_name, "postgres")).next()?;
    found.parent().map(Path::to_path_buf)
}

/// The major version of an installed `postgres`; without a directory, of the one that is found.
///
/// # Errors
/// There is none, or it does not say.
pub fn installed_major(bin_dir: Option<&Path>, name: &str) -> Result<u32, String> {
    let program = match bin_dir {
        Some(dir) => dir.join(name),
        None => places(None, name).next().ok_or_else(|| {
            format!("no `{name}` in PATH or the usual places: set PATRONI_POSTGRESQL_BIN_DIR")
        })?,
    };
    version(&program)
}

/// Where a program is found, in order.
fn places(wanted: Option<u32>, name: &str) -> impl Iterator<Item = PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let majors = wanted.map_or_else(|| (MAJOR_MIN..=MAJOR_MAX).rev().collect(), |m| vec![m]);
    let usual = majors.into_iter().flat_map(|major| {
        USUAL_PLACES.map(|(before, after)| PathBuf::from(format!("{before}{major}{after}")))
    });
    let dirs: Vec<PathBuf> = std::env::split_paths(&path).chain(usual).collect();
    let name = name.to_owned();
    dirs.into_iter().map(move |dir| dir.join(&name)).filter(|program| program.is_file())
}

fn version(postgres: &Path) -> Result<u32, String> {
    let shown = postgres.display();
    let output = Command::new(postgres).arg("--version").env_clear().output();
    let output = output.map_err(|e| format!("cannot run {shown} --version: {e}"))?;
    let text = String::from_utf8_lossy(&output.stdout);
    parse_version(&text).ok_or_else(|| format!("{shown} --version says {:?}", text.trim()))
}

/// `postgres (PostgreSQL) 15.18 (Debian …)`, also `18beta1`.
fn parse_version(text: &str) -> Option<u32> {
    let number = text.split_once("(PostgreSQL)")?.1.trim_start();
    let end = number.find(|c: char| !c.is_ascii_digit());
    number[..end.unwrap_or(number.len())].parse().ok()
}

fn data_dir_major(dir: &Path) -> Option<u32> {
    let text = fs::read_to_string(dir.join("PG_VERSION")).ok()?;
    text.trim().parse().ok()
}

fn check_data_dir(
    config: &InstanceConfig,
    programs: Option<&Programs>,
    problems: &mut Vec<String>,
) {
    let dir = &config.data_dir;
    let meta = match fs::metadata(dir) {
        Ok(meta) => meta,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return,
        Err(e) => return problems.push(format!("cannot read data_dir {}: {e}", dir.display())),
    };
    if !meta.is_dir() {
        return problems.push(format!("data_dir {} is not a directory", dir.display()));
    }
    if crate::files::is_empty(dir).unwrap_or(false) {
        return;
    }
    let own = rustix::process::geteuid().as_raw();
    let owner = config.os_user.as_ref().map_or(own, |user| user.uid);
    if meta.uid() != owner {
        problems.push(format!(
            "data_dir {} belongs to uid {}, PostgreSQL would run as uid {owner}: chown it",
            dir.display(),
            meta.uid()
        ));
    }
    if meta.mode() & 0o027 != 0 {
        problems.push(format!(
            "data_dir {} has mode {:03o}; PostgreSQL wants 700 or 750: chmod it",
            dir.display(),
            meta.mode() & 0o777
        ));
    }
    if let (Some(programs), Some(major)) = (programs, data_dir_major(dir))
        && programs.major != major
    {
        problems.push(format!(
            "data_dir {} is of PostgreSQL {major}, {} of {}: set bin_dir to the former's",
            dir.display(),
            programs.bin_dir.display(),
            programs.major
        ));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read() {
        let text = "postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)\n";
        assert_eq!(parse_version(text), Some(15));
        assert_eq!(parse_version("postgres (PostgreSQL) 18beta1"), Some(18));
        assert_eq!(parse_version("postgres (PostgreSQL) 18"), Some(18));
        assert_eq!(parse_version("something else"), None);
    }

    #[test]
    fn every_problem_is_named_at_once() {
        let mut config = crate::conf::tests_support::sample();
        config.bin_dir = Some("/nonexistent/bin".into());
        config.socket_dir = format!("/{}", "x".repeat(120)).into();
        config.state_dir = "relative".into();
        let problems = check(&config).expect_err("three problems").problems;
        for word in ["/nonexistent/bin", "too long", "relative"] {
            assert!(problems.iter().any(|p| p.contains(word)), "{word}: {problems:?}");
        }
    }
}
