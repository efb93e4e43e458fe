//! Reads what a configuration is made of: a file or a directory of files, and the environment.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use config::Sources;

use crate::error::AgentError;

/// The largest configuration file that is read, in bytes.
const FILE_MAX: u64 = 4 << 20;

/// The sources of a node's or proxy's configuration. A directory stands for its `*.yml` and
/// `*.yaml` in the order of their names. A path where nothing is counts as none when the
/// environment configures something.
///
/// # Errors
/// What is there cannot be read, or nothing configures anything.
pub fn gather(path: Option<&Path>) -> Result<Sources, AgentError> {
    let sources = environment();
    let Some(path) = path else {
        return if sources.is_empty() { Err(AgentError::NoConfig) } else { Ok(sources) };
    };
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| AgentError::ReadFile { path, source }
    };
    match fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound && !sources.is_empty() => {
            let path = path.display();
            tracing::warn!(%path, "there is no such file; the environment is the configuration");
            Ok(sources)
        }
        Err(error) => Err(failed(path)(error)),
        Ok(found) if found.is_dir() => {
            let files = files_in(path).map_err(failed(path))?;
            files.iter().try_fold(sources, |sources, file| {
                let text = read(file).map_err(failed(file))?;
                Ok(sources.with_file(file.to_string_lossy(), text))
            })
        }
        Ok(_) => {
            let text = read(path).map_err(failed(path))?;
            Ok(sources.with_file(path.to_string_lossy(), text))
        }
    }
}

/// What the environment alone configures, which may be nothing.
#[must_use]
pub fn environment() -> Sources {
    let text = |(name, value): (std::ffi::OsString, std::ffi::OsString)| {
        Some((name.into_string().ok()?, value.into_string().ok()?))
    };
    Sources::environment(std::env::vars_os().filter_map(text))
}

fn files_in(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        if path.extension().is_some_and(|kind| kind == "yml" || kind == "yaml") {
            files.push(path);
        }
    }
    if files.is_empty() {
        return Err(io::Error::other("there is no *.yml or *.yaml in it"));
    }
    files.sort();
    Ok(files)
}

fn read(path: &Path) -> io::Result<String> {
    if fs::metadata(path)?.len() > FILE_MAX {
        return Err(io::Error::other("larger than 4 MiB"));
    }
    fs::read_to_string(path)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_directory_is_its_files_in_order() {
        let dir = tempfile::tempdir().unwrap();
        assert!(gather(Some(dir.path())).is_err(), "nothing in it");
        for (name, text) in
            [("20.yaml", "scope: b\n"), ("10.yml", "scope: a\nname: x\n"), ("30.txt", "scope: c\n")]
        {
            fs::write(dir.path().join(name), text).unwrap();
        }
        let json = gather(Some(dir.path())).unwrap().to_json().unwrap();
        assert_eq!((json["scope"].as_str(), json["name"].as_str()), (Some("b"), Some("x")));
        let gone = dir.path().join("none.yml");
        let error = gather(Some(&gone)).unwrap_err().to_string();
        assert_eq!(error, format!("cannot read {}", gone.display()));
    }
}
