//! The control socket's place in the file system: who listens there, or that we do.

use std::fs::{self, File, Permissions};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use tokio::net::UnixStream;
use tokio::time::{Instant, sleep};

use super::TakeoverError;

/// How long others may be at it.
const LOCK_LIMIT: Duration = Duration::from_secs(5);
const LOCK_PAUSE: Duration = Duration::from_millis(20);

/// What is behind the path.
#[derive(Debug)]
pub(crate) enum Found {
    /// A proxy that is in charge.
    Proxy(UnixStream),
    /// Nobody was, and now we listen.
    Nobody(UnixListener),
}

/// Looks for the proxy behind the control socket; without one the socket is made.
///
/// A socket that nobody listens on is replaced under a lock on its directory, so that of two
/// proxies that find it so at the same time the second one finds the first. The file is never
/// removed: it may be a successor's, and one that nobody listens on harms nobody.
///
/// # Errors
/// [`TakeoverError`], naming the path.
pub(crate) async fn find(path: &Path) -> Result<Found, TakeoverError> {
    let failed = |what| {
        let path = path.to_owned();
        move |source| TakeoverError::Path { path, what, source }
    };
    let directory = path.parent().unwrap_or(Path::new("/"));
    let opened = File::open(directory).map_err(failed("open its directory"))?;
    belongs_to_us(directory, &opened.metadata().map_err(failed("look at its directory"))?)?;
    lock(path, &opened).await?;
    match UnixStream::connect(path).await {
        Ok(stream) => {
            is_of_our_user(path, &stream)?;
            Ok(Found::Proxy(stream))
        }
        Err(error) if nobody_listens(&error) => {
            is_free(path)?;
            listen(path).map(Found::Nobody).map_err(failed("listen on it"))
        }
        Err(error) => Err(failed("connect to it")(error)),
    }
    // The lock ends with the open directory.
}

/// Whether a connection failed for want of somebody who listens.
pub(super) fn nobody_listens(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused)
}

/// Whoever may write there could put another socket into its place.
fn belongs_to_us(directory: &Path, found: &fs::Metadata) -> Result<(), TakeoverError> {
    let (user, mode) = (found.uid(), found.mode() & 0o7777);
    let ours = user == 0 || user == rustix::process::geteuid().as_raw();
    if ours && mode & 0o022 == 0 {
        return Ok(());
    }
    Err(TakeoverError::Directory { directory: directory.to_owned(), user, mode })
}

async fn lock(path: &Path, directory: &File) -> Result<(), TakeoverError> {
    let begun = Instant::now();
    loop {
        match flock(directory, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(()),
            Err(Errno::WOULDBLOCK) if begun.elapsed() < LOCK_LIMIT => sleep(LOCK_PAUSE).await,
            Err(Errno::WOULDBLOCK) => {
                return Err(TakeoverError::Locked { path: path.to_owned() });
            }
            Err(error) => {
                let (path, source) = (path.to_owned(), error.into());
                return Err(TakeoverError::Path { path, what: "lock its directory", source });
            }
        }
    }
}

fn is_of_our_user(path: &Path, stream: &UnixStream) -> Result<(), TakeoverError> {
    let ours = rustix::process::geteuid().as_raw();
    let theirs = stream.peer_cred().map_err(|source| TakeoverError::Path {
        path: path.to_owned(),
        what: "learn who listens on it",
        source,
    })?;
    if theirs.uid() == ours {
        return Ok(());
    }
    Err(TakeoverError::Stranger { path: path.to_owned(), theirs: theirs.uid(), ours })
}

/// Nothing but a socket is replaced.
fn is_free(path: &Path) -> Result<(), TakeoverError> {
    match fs::symlink_metadata(path) {
        Ok(found) if !found.file_type().is_socket() => {
            Err(TakeoverError::NoSocket { path: path.to_owned() })
        }
        Ok(_) | Err(_) => Ok(()),
    }
}

/// A new socket, which nobody else can connect to at any time.
fn listen(path: &Path) -> io::Result<UnixListener> {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{}", std::process::id()));
    let early = PathBuf::from(name);
    match fs::remove_file(&early) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    let listener = UnixListener::bind(&early)?;
    listener.set_nonblocking(true)?;
    fs::set_permissions(&early, Permissions::from_mode(0o600))?;
    fs::rename(&early, path)?;
    Ok(listener)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn whoever_comes_second_finds_the_first() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("proxy.sock");
        let (one, other) = tokio::join!(find(&path), find(&path));
        let listener = match (one.unwrap(), other.unwrap()) {
            (Found::Nobody(listener), Found::Proxy(_))
            | (Found::Proxy(_), Found::Nobody(listener)) => listener,
            both => panic!("{both:?}"),
        };
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
        // What one that was killed leaves behind is replaced.
        drop(listener);
        assert!(matches!(find(&path).await, Ok(Found::Nobody(_))));
    }

    #[tokio::test]
    async fn a_place_that_others_may_change_and_other_files_are_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("proxy.sock");
        fs::write(&path, "precious").unwrap();
        assert!(matches!(find(&path).await, Err(TakeoverError::NoSocket { .. })));
        assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
        fs::set_permissions(directory.path(), Permissions::from_mode(0o770)).unwrap();
        let error = find(&path).await.unwrap_err().to_string();
        assert!(error.contains("nobody else may write there") && error.contains("770"), "{error}");
        let nowhere = find(Path::new("/there/is/none.sock")).await.unwrap_err().to_string();
        assert!(nowhere.contains("cannot open its directory"), "{nowhere}");
    }
}
