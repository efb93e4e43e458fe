//! Files that must survive a crash, and belong to the user that PostgreSQL runs as. Blocking.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, chown, fchown};
use std::path::{Path, PathBuf};

use crate::config::OsUser;
use crate::error::Error;

/// Runs blocking work off the loop.
pub(crate) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(value) => value,
        Err(failed) => std::panic::resume_unwind(failed.into_panic()),
    }
}

/// Replaces a file atomically and durably; does nothing if it already has these contents.
/// Returns whether anything was written.
pub(crate) fn write_durably(
    path: &Path,
    contents: &str,
    mode: u32,
    owner: Option<&OsUser>,
) -> Result<bool, Error> {
    let written = replace(path, contents.as_bytes(), mode, owner, File::sync_all)?;
    if written {
        sync_parent(path).map_err(Error::file("write", path))?;
    }
    Ok(written)
}

/// Replaces a file atomically, but leaves it to the system when it becomes durable.
pub(crate) fn write_lazily(
    path: &Path,
    contents: &[u8],
    mode: u32,
    owner: Option<&OsUser>,
) -> Result<(), Error> {
    replace(path, contents, mode, owner, |_| Ok(())).map(|_| ())
}

/// Replaces a file by a new one, after `finish`, unless it has these contents. Nothing is left
/// beside it, whatever an earlier attempt left: in a data directory every copy of it would have to
/// read that, too.
fn replace(
    path: &Path,
    contents: &[u8],
    mode: u32,
    owner: Option<&OsUser>,
    finish: impl FnOnce(&File) -> io::Result<()>,
) -> Result<bool, Error> {
    let temporary = beside(path);
    // Looked for first: on a file system that is frozen a removal hangs even if there is nothing.
    if temporary.symlink_metadata().is_ok() {
        remove_if_present(&temporary)?;
    }
    if fs::read(path).is_ok_and(|present| present == contents) {
        return Ok(false);
    }
    let written = create_with(&temporary, contents, mode, owner)
        .and_then(|new| finish(&new))
        .and_then(|()| fs::rename(&temporary, path));
    if let Err(error) = written {
        // Why it was not written is what is told; what cannot be removed the next attempt meets.
        drop(remove_if_present(&temporary));
        return Err(Error::file("write", path)(error));
    }
    Ok(true)
}

fn beside(path: &Path) -> PathBuf {
    let mut name = path.to_owned().into_os_string();
    name.push(".pgherd-tmp");
    PathBuf::from(name)
}

fn create_with(
    path: &Path,
    contents: &[u8],
    mode: u32,
    owner: Option<&OsUser>,
) -> io::Result<File> {
    let mut options = OpenOptions::new();
    let mut file = options.write(true).create_new(true).mode(mode).open(path)?;
    // Before it has contents: who is killed in between leaves nothing that its owner cannot read.
    if let Some(user) = owner {
        fchown(&file, Some(user.uid), Some(user.gid))?;
    }
    // The mode at creation is narrowed by the umask.
    file.set_permissions(fs::Permissions::from_mode(mode))?;
    file.write_all(contents)?;
    Ok(file)
}

/// Makes a rename in the path's directory durable.
pub(crate) fn sync_parent(path: &Path) -> io::Result<()> {
    let parent = path.parent().unwrap_or(Path::new("/"));
    File::open(parent)?.sync_all()
}

/// Removes a file; an absent one is fine. Returns whether it was there.
pub(crate) fn remove_if_present(path: &Path) -> Result<bool, Error> {
    match fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(e) => Err(Error::file("remove", path)(e)),
    }
}

/// Removes a directory and all in it; an absent one is fine.
pub(crate) fn remove_tree(path: &Path) -> Result<(), Error> {
    match fs::remove_dir_all(path) {
        Ok(()) => Ok(()),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(Error::file("remove", path)(e)),
    }
}

/// Creates a directory with its parents if it is missing; what is created gets mode and owner.
pub(crate) fn make_dir(path: &Path, mode: u32, owner: Option<&OsUser>) -> Result<(), Error> {
    if path.is_dir() {
        return Ok(());
    }
    let create = || -> io::Result<()> {
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)?;
        }
        fs::create_dir(path)?;
        fs::set_permissions(path, fs::Permissions::from_mode(mode))?;
        owner.map_or(Ok(()), |u| chown(path, Some(u.uid), Some(u.gid)))
    };
    create().map_err(Error::file("create directory", path))
}

/// Whether a directory is missing or has no entries.
pub(crate) fn is_empty(path: &Path) -> io::Result<bool> {
    match fs::read_dir(path) {
        Ok(mut entries) => Ok(entries.next().is_none()),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(true),
        Err(e) => Err(e),
    }
}

/// The mode of files in a data directory: 0640 if its group may read it, else 0600.
pub(crate) fn mode_in(dir: &Path) -> u32 {
    match fs::metadata(dir) {
        Ok(meta) if meta.mode() & 0o040 != 0 => 0o640,
        Ok(_) | Err(_) => 0o600,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_file_is_written_once_and_with_its_mode() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.conf");
        assert!(write_durably(&path, "a\n", 0o600, None).unwrap());
        assert!(!write_durably(&path, "a\n", 0o600, None).unwrap());
        assert!(write_durably(&path, "b\n", 0o640, None).unwrap());
        assert_eq!(fs::read_to_string(&path).unwrap(), "b\n");
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o640);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    /// A full disk left one that belonged to root, and no standby could be copied any more.
    #[test]
    fn nothing_is_left_beside_a_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.conf");
        // A directory that is not empty cannot be replaced.
        fs::create_dir_all(path.join("entry")).unwrap();
        write_durably(&path, "a\n", 0o600, None).unwrap_err();
        write_lazily(&path, b"a\n", 0o600, None).unwrap_err();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        let path = dir.path().join("y.conf");
        fs::write(&path, "a\n").unwrap();
        // Who was killed in the middle left this.
        fs::write(beside(&path), "").unwrap();
        assert!(!write_durably(&path, "a\n", 0o600, None).unwrap());
        assert!(!beside(&path).exists());
    }
}
