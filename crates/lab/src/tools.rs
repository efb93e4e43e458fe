//! Finding the programs of others: etcd and PostgreSQL.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

/// How deep below a tools directory programs are looked for.
const DEPTH_MAX: usize = 8;

/// Where the distributions put PostgreSQL.
const POSTGRES_ROOTS: [&str; 3] = ["/usr/lib/postgresql", "/usr/pgsql", "/opt/postgresql"];

/// A program is not there.
#[derive(Debug, thiserror::Error)]
#[error("{program} was not found on PATH, in {places}; install it with `make tools`")]
pub struct Missing {
    /// The program.
    pub program: String,
    /// Where else it was looked for.
    pub places: String,
}

/// Whom PostgreSQL runs as when we are root, which it refuses to run as.
pub const OS_USER: &str = "postgres";

/// There is nobody whom PostgreSQL could run as.
#[derive(Debug, thiserror::Error)]
#[error("PostgreSQL does not run as root, and there is no user {OS_USER}: `make tools`")]
pub struct NoUser;

/// User and group that PostgreSQL runs as, when we are root.
///
/// # Errors
/// There is no such user.
pub fn postgres_owner() -> Result<Option<(u32, u32)>, NoUser> {
    if !rustix::process::geteuid().is_root() {
        return Ok(None);
    }
    // A file that cannot be read names nobody.
    let users = fs::read_to_string("/etc/passwd").unwrap_or_default();
    find_user(&users, OS_USER).map(Some).ok_or(NoUser)
}

fn find_user(users: &str, name: &str) -> Option<(u32, u32)> {
    users.lines().find_map(|line| {
        let fields: Vec<&str> = line.split(':').collect();
        match fields.as_slice() {
            [user, _, uid, gid, ..] if *user == name => {
                Some((uid.parse().ok()?, gid.parse().ok()?))
            }
            _ => None,
        }
    })
}

/// Directories with unpacked packages: `PGHERD_TOOLS` and `target/tools`.
fn tool_roots() -> Vec<PathBuf> {
    let named = env::var_os("PGHERD_TOOLS").map(PathBuf::from);
    let local = env::current_dir().ok().map(|here| here.join("target/tools"));
    named.into_iter().chain(local).filter(|root| root.is_dir()).collect()
}

fn on_path(program: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH")?;
    env::split_paths(&path).map(|directory| directory.join(program)).find(|file| file.is_file())
}

/// Where a program for administrators is: they are not on everybody's `PATH`.
#[must_use]
pub fn for_administrators(program: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let sbin = ["/usr/sbin", "/sbin"].map(PathBuf::from);
    env::split_paths(&path)
        .chain(sbin)
        .map(|directory| directory.join(program))
        .find(|file| file.is_file())
}

/// The etcd server: on `PATH`, in `/usr/bin`, or below a tools directory.
///
/// # Errors
/// It is in none of these.
pub fn etcd() -> Result<PathBuf, Missing> {
    on_path("etcd")
        .or_else(|| Some(PathBuf::from("/usr/bin/etcd")).filter(|file| file.is_file()))
        .or_else(|| tool_roots().iter().find_map(|root| directories_with(root, "etcd").pop()))
        .map(|found| if found.is_dir() { found.join("etcd") } else { found })
        .ok_or_else(|| Missing {
            program: "etcd".to_owned(),
            places: "/usr/bin and target/tools".to_owned(),
        })
}

/// PostgreSQL's `bin` directory, the newest version there is: a tools directory first (it was put
/// there on purpose), then the distribution's, then `PATH`.
///
/// # Errors
/// It is in none of these.
pub fn postgres_bin_dir() -> Result<PathBuf, Missing> {
    newest(in_tools())
        .or_else(|| newest(of_distribution()))
        .or_else(|| on_path("initdb").and_then(|file| file.parent().map(Path::to_path_buf)))
        .filter(|dir| dir.join("postgres").is_file())
        .ok_or_else(|| Missing {
            program: "PostgreSQL (initdb, postgres)".to_owned(),
            places: "/usr/lib/postgresql and target/tools".to_owned(),
        })
}

/// The same of the newest version that has a library of this name, as extensions from the
/// distribution do.
#[must_use]
pub fn postgres_bin_dir_with(library: &str) -> Option<PathBuf> {
    let has = |bin_dir: &PathBuf| bin_dir.with_file_name("lib").join(library).is_file();
    newest(in_tools().chain(of_distribution()).filter(has))
}

/// PostgreSQL's `bin` directories below the tools directories.
fn in_tools() -> impl Iterator<Item = PathBuf> {
    tool_roots().into_iter().flat_map(|root| directories_with(&root, "initdb"))
}

/// Those of the distribution.
fn of_distribution() -> impl Iterator<Item = PathBuf> {
    POSTGRES_ROOTS.iter().flat_map(|root| directories_with(Path::new(root), "initdb"))
}

fn newest(candidates: impl Iterator<Item = PathBuf>) -> Option<PathBuf> {
    candidates.max_by_key(|dir| version(dir))
}

/// The major version in a path like `/usr/lib/postgresql/15/bin`; 0 if there is none.
fn version(bin_dir: &Path) -> u32 {
    let name = bin_dir.parent().and_then(Path::file_name).and_then(|name| name.to_str());
    name.and_then(|name| name.parse().ok()).unwrap_or(0)
}

/// The directories below `root` that hold a file `program`.
fn directories_with(root: &Path, program: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut level = vec![root.to_path_buf()];
    for _ in 0..DEPTH_MAX {
        let mut next = Vec::new();
        for directory in level {
            if directory.join(program).is_file() {
                found.push(directory.clone());
            }
            let entries = fs::read_dir(&directory).into_iter().flatten().flatten();
            // Not followed: a link could lead round in circles.
            next.extend(
                entries
                    .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
                    .map(|entry| entry.path()),
            );
        }
        level = next;
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_version_wins_by_number() {
        let dirs = ["/x/9/bin", "/x/15/bin", "/x/18/bin"].map(PathBuf::from);
        let newest = dirs.iter().max_by_key(|dir| version(dir));
        assert_eq!(newest, Some(&PathBuf::from("/x/18/bin")));
        assert_eq!(version(Path::new("/usr/bin")), 0);
    }

    #[test]
    fn users_are_found_by_their_whole_name() {
        let users = "root:x:0:0:::\npostgres2:x:7:8:::\npostgres:x:101:102::/:/bin/sh\n";
        assert_eq!(find_user(users, "postgres"), Some((101, 102)));
        assert_eq!(find_user(users, "nobody"), None);
    }

    #[test]
    fn programs_are_found_below_a_root() {
        let root = env::temp_dir().join(format!("lab-tools-{}", std::process::id()));
        let bin = root.join("usr/lib/postgresql/15/bin");
        fs::create_dir_all(&bin).expect("a temporary directory");
        fs::write(bin.join("initdb"), "").expect("it is ours");
        assert_eq!(directories_with(&root, "initdb"), vec![bin]);
        assert!(directories_with(&root, "etcd").is_empty());
        fs::remove_dir_all(&root).expect("it is ours");
    }
}
