//! A file system of its own for one data directory: a sparse image on a loop mount, which can be
//! frozen (every write hangs) and filled to the last block.
//!
//! Mounting needs root, `mkfs.ext4`, `mount` and loop devices; [`possible`] says what is missing. A
//! mount outlives the process that made it, so whoever ends calls [`thaw_below`] before it kills
//! what works on the volumes (a writer on a frozen file system cannot be killed), and
//! [`release_below`] after it.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::fs::FallocateFlags;
use rustix::io::Errno;

use crate::tools;

/// Size of an image. It is sparse: what is never written takes no space, and neither does
/// [`Volume::fill`], which reserves blocks without writing them. A busy server's WAL, of a
/// `max_wal_size` of 1 GiB, fits beside its data.
const IMAGE_BYTES: u64 = 2 << 30;
/// Size of the image that only proves that mounting works.
const TRIAL_BYTES: u64 = 8 << 20;
/// First and last step by which a volume is filled: the last is one block.
const FILL_STEP_MAX: u64 = 64 << 20;
const FILL_STEP_MIN: u64 = 1 << 10;
/// The file that fills a volume.
const FILLER: &str = "filler";

/// Something could not be done to a volume.
#[derive(Debug, thiserror::Error)]
pub enum VolumeError {
    /// A program is not there.
    #[error("{0} is not installed")]
    Missing(&'static str),
    /// A program failed.
    #[error("{program} failed: {said}")]
    Program {
        /// The program.
        program: &'static str,
        /// What it said.
        said: String,
    },
    /// A file could not be made or changed.
    #[error("cannot {what} {path}: {source}")]
    File {
        /// What was tried.
        what: &'static str,
        /// With which file.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
}

/// A mounted volume.
#[derive(Debug, Clone)]
pub struct Volume {
    mount_point: PathBuf,
}

impl Volume {
    /// The volume that is mounted there.
    #[must_use]
    pub fn at(mount_point: &Path) -> Volume {
        Volume { mount_point: mount_point.to_owned() }
    }

    /// Mounts the file system in `image` at `mount_point`. Both are made if they are not there;
    /// `owner` is then the user and group that may write at the mount point.
    ///
    /// # Errors
    /// A program is missing or failed, or a file could not be made.
    pub fn mount(
        image: &Path,
        mount_point: &Path,
        owner: Option<(u32, u32)>,
    ) -> Result<Volume, VolumeError> {
        mount(image, mount_point, owner, IMAGE_BYTES)
    }

    /// From now on every write hangs, and whoever writes can not even be killed.
    ///
    /// # Errors
    /// The kernel refused.
    pub fn freeze(&self) -> Result<(), VolumeError> {
        run("fsfreeze", &[Path::new("--freeze"), &self.mount_point])
    }

    /// Lets the writes go on.
    ///
    /// # Errors
    /// The kernel refused, for instance because the volume is not frozen.
    pub fn thaw(&self) -> Result<(), VolumeError> {
        run("fsfreeze", &[Path::new("--unfreeze"), &self.mount_point])
    }

    /// Takes every free block.
    ///
    /// # Errors
    /// The kernel refused for another reason than that there is none left.
    pub fn fill(&self) -> Result<(), VolumeError> {
        let path = self.mount_point.join(FILLER);
        let fail = |source| VolumeError::File { what: "fill", path: path.clone(), source };
        let file = File::create(&path).map_err(fail)?;
        let (mut size, mut step) = (0, FILL_STEP_MAX);
        while step >= FILL_STEP_MIN {
            match rustix::fs::fallocate(&file, FallocateFlags::empty(), size, step) {
                Ok(()) => size += step,
                Err(Errno::NOSPC) => step /= 2,
                Err(Errno::INTR) => {}
                Err(errno) => return Err(fail(errno.into())),
            }
        }
        file.sync_all().map_err(fail)
    }

    /// Gives back what [`Volume::fill`] took.
    ///
    /// # Errors
    /// The file cannot be removed.
    pub fn empty(&self) -> Result<(), VolumeError> {
        let path = self.mount_point.join(FILLER);
        match fs::remove_file(&path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                Err(VolumeError::File { what: "remove", path, source })
            }
            Ok(()) | Err(_) => Ok(()),
        }
    }
}

/// Whether volumes can be had here: one is made in `directory`, mounted, frozen, and undone.
///
/// # Errors
/// What is missing.
pub fn possible(directory: &Path) -> Result<(), VolumeError> {
    let trial = directory.join(format!("lab-volume-{}", std::process::id()));
    let point = trial.join("point");
    let tried = mount(&trial.join("image"), &point, None, TRIAL_BYTES).and_then(|volume| {
        volume.freeze()?;
        volume.thaw()
    });
    let released = release_below(&trial);
    match fs::remove_dir_all(&trial) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            tried?;
            return Err(VolumeError::File { what: "remove", path: trial, source });
        }
        Ok(()) | Err(_) => {}
    }
    tried.and(released)
}

/// Thaws every volume that is mounted below `directory`; that one is not frozen is no error.
pub fn thaw_below(directory: &Path) {
    for mount_point in mounts_below(directory) {
        if let Err(error) = Volume::at(&mount_point).thaw() {
            tracing::debug!(%error, "not thawed");
        }
    }
}

/// Thaws and unmounts every volume that is mounted below `directory`. The loop devices go with
/// their mounts.
///
/// # Errors
/// One is still in use, and could only be detached from its place.
pub fn release_below(directory: &Path) -> Result<(), VolumeError> {
    thaw_below(directory);
    let mut result = Ok(());
    // The latest first: a mount may stand on another.
    for mount_point in mounts_below(directory).iter().rev() {
        if let Err(error) = run("umount", &[mount_point]) {
            // Better a name that is free and a device that goes with its last user than neither.
            if let Err(error) = run("umount", &[Path::new("--lazy"), mount_point]) {
                tracing::warn!(%error, "a volume stays mounted");
            }
            result = Err(error);
        }
    }
    result
}

fn mount(
    image: &Path,
    mount_point: &Path,
    owner: Option<(u32, u32)>,
    bytes: u64,
) -> Result<Volume, VolumeError> {
    fs::create_dir_all(mount_point).map_err(|source| VolumeError::File {
        what: "make the directory",
        path: mount_point.to_owned(),
        source,
    })?;
    let fresh = !image.exists();
    if fresh {
        let sized = File::create(image).and_then(|file| file.set_len(bytes));
        sized.map_err(|source| VolumeError::File {
            what: "make",
            path: image.to_owned(),
            source,
        })?;
        // No block is kept back for root: full is to mean full.
        let options = ["-q", "-F", "-m", "0"].map(Path::new);
        run("mkfs.ext4", &[&options[..], &[image]].concat())?;
    }
    // The device is freed with the mount. Reading changes nothing, so it works while frozen.
    run("mount", &[Path::new("-o"), Path::new("loop,noatime"), image, mount_point])?;
    let volume = Volume::at(mount_point);
    if let Some((uid, gid)) = owner.filter(|_| fresh) {
        chown(mount_point, Some(uid), Some(gid)).map_err(|source| VolumeError::File {
            what: "give away",
            path: mount_point.to_owned(),
            source,
        })?;
    }
    Ok(volume)
}

/// The mount points below `directory`, in the order in which they were mounted.
fn mounts_below(directory: &Path) -> Vec<PathBuf> {
    let Ok(directory) = directory.canonicalize() else { return Vec::new() };
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    parse_mounts(&mounts).into_iter().filter(|point| point.starts_with(&directory)).collect()
}

/// The mount points in the text of `/proc/self/mountinfo`: the fifth field of each line. Blanks in
/// them stand as octal numbers there.
fn parse_mounts(mounts: &str) -> Vec<PathBuf> {
    let points = mounts.lines().filter_map(|line| line.split(' ').nth(4));
    points.map(|point| PathBuf::from(point.replace("\\040", " "))).collect()
}

fn run(program: &'static str, arguments: &[&Path]) -> Result<(), VolumeError> {
    let path = tools::for_administrators(program).ok_or(VolumeError::Missing(program))?;
    let fail = |said: String| VolumeError::Program { program, said };
    let done = Command::new(path).args(arguments).stdin(Stdio::null()).output();
    let done = done.map_err(|error| fail(error.to_string()))?;
    if done.status.success() {
        return Ok(());
    }
    Err(fail(String::from_utf8_lossy(&done.stderr).trim().to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::sync::mpsc;
    use std::time::Duration;

    /// A mounted volume, undone when dropped.
    struct Mounted {
        directory: PathBuf,
        volume: Volume,
    }

    impl Mounted {
        /// `None` where there can be no volume: an ordinary user, or a container.
        fn new(name: &str) -> Option<Mounted> {
            let directory =
                std::env::temp_dir().join(format!("lab-volume-{name}-{}", std::process::id()));
            fs::create_dir_all(&directory).expect("a temporary directory");
            if possible(&directory).is_err() {
                fs::remove_dir_all(&directory).expect("it is ours");
                return None;
            }
            let (image, point) = (directory.join("image"), directory.join("point"));
            let volume = mount(&image, &point, None, TRIAL_BYTES).expect("it is possible");
            Some(Mounted { directory, volume })
        }
    }

    impl Drop for Mounted {
        fn drop(&mut self) {
            release_below(&self.directory).expect("nobody uses it");
            assert!(mounts_below(&self.directory).is_empty());
            fs::remove_dir_all(&self.directory).expect("it is ours");
        }
    }

    #[test]
    fn a_full_volume_takes_nothing_until_it_is_emptied() {
        let Some(mounted) = Mounted::new("full") else { return };
        let path = mounted.volume.mount_point.join("data");
        let write = || fs::write(&path, vec![1; 8192]);
        write().expect("there is room");
        fs::remove_file(&path).expect("it is there");
        mounted.volume.fill().expect("it can be filled");
        let error = write().expect_err("there is no room");
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
        mounted.volume.empty().expect("it can be emptied");
        write().expect("there is room again");
    }

    #[test]
    fn a_write_to_a_frozen_volume_hangs_until_it_is_thawed() {
        let Some(mounted) = Mounted::new("frozen") else { return };
        let mut file =
            File::create(mounted.volume.mount_point.join("data")).expect("there is room");
        mounted.volume.freeze().expect("it can be frozen");
        let (tell, told) = mpsc::sync_channel(1);
        let writer = std::thread::spawn(move || {
            let written = file.write_all(b"late").and_then(|()| file.sync_all());
            tell.send(written.is_ok()).expect("the test waits for it");
        });
        assert!(told.recv_timeout(Duration::from_millis(300)).is_err(), "it was written");
        thaw_below(&mounted.directory);
        assert_eq!(told.recv_timeout(Duration::from_secs(20)), Ok(true));
        writer.join().expect("it ended");
    }

    #[test]
    fn mount_points_are_read_with_their_blanks() {
        let text = "31 23 0:28 / /sys rw - sysfs sysfs rw\n\
                    99 31 7:0 / /tmp/a\\040b/volume rw - ext4 /dev/loop0 rw\n";
        assert_eq!(parse_mounts(text), ["/sys", "/tmp/a b/volume"].map(PathBuf::from));
    }
}
