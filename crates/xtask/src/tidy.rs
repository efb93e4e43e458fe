//! `cargo xtask tidy`: what rustc and clippy do not check.
//!
//! Two kinds of finding: edges between crates (from `cargo metadata`), and text (sizes, leftovers).
//! A finding names the place and what to do.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail};

mod edges;
mod text;

/// Directories that hold nothing of ours.
const SKIPPED_DIRECTORIES: [&str; 2] = ["target", ".git"];

/// Directory levels below the root that are looked at; deeper is an error, not a loop.
const DEPTH_MAX: usize = 12;

/// Runs every check and prints the findings; `true` if there are none.
///
/// # Errors
/// If `cargo metadata` or a file cannot be read.
pub(crate) fn run(root: &Path) -> anyhow::Result<bool> {
    let metadata = metadata(root)?;
    let mut findings = edges::check(&metadata)?;
    findings.extend(pure_crates(root)?);
    let mut files = Vec::new();
    list_files(root, DEPTH_MAX, &mut files)?;
    files.sort();
    for file in &files {
        let bytes = fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
        let Ok(content) = String::from_utf8(bytes) else { continue };
        let shown = file.strip_prefix(root).unwrap_or(file);
        findings.extend(text::check(shown, &content));
    }
    for finding in &findings {
        println!("tidy: {finding}");
    }
    println!("tidy: {} files, {} findings", files.len(), findings.len());
    Ok(findings.is_empty())
}

fn metadata(root: &Path) -> anyhow::Result<serde_json::Value> {
    let output = Command::new("cargo")
        .args(["metadata", "--format-version", "1", "--no-deps"])
        .current_dir(root)
        .output()
        .context("cannot run cargo metadata")?;
    if !output.status.success() {
        bail!("cargo metadata: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    serde_json::from_slice(&output.stdout).context("cargo metadata did not print JSON")
}

/// A pure crate forbids unsafe code and has the pure crates' clippy.toml: clippy takes the nearest
/// file and none above it, so each needs a copy, and the copies must not drift.
fn pure_crates(root: &Path) -> anyhow::Result<Vec<String>> {
    let mut findings = Vec::new();
    let model_path = root.join("crates/types/clippy.toml");
    let model = fs::read_to_string(&model_path)
        .with_context(|| format!("cannot read {}", model_path.display()))?;
    for name in edges::pure() {
        let directory = root.join("crates").join(name);
        if !directory.is_dir() {
            continue;
        }
        let library = directory.join("src/lib.rs");
        let code = fs::read_to_string(&library)
            .with_context(|| format!("cannot read {}", library.display()))?;
        if !code.lines().any(|line| line.trim() == "#![forbid(unsafe_code)]") {
            findings.push(format!(
                "crates/{name}/src/lib.rs: a pure crate says #![forbid(unsafe_code)]"
            ));
        }
        let bans = fs::read_to_string(directory.join("clippy.toml")).unwrap_or_default();
        if bans != model {
            findings.push(format!(
                "crates/{name}/clippy.toml: must be a copy of crates/types/clippy.toml"
            ));
        }
    }
    Ok(findings)
}

fn list_files(directory: &Path, depth: usize, files: &mut Vec<PathBuf>) -> anyhow::Result<()> {
    if depth == 0 {
        bail!("{} is too deep below the root", directory.display());
    }
    let entries = fs::read_dir(directory)
        .with_context(|| format!("cannot read directory {}", directory.display()))?;
    for entry in entries {
        let entry = entry?;
        let kind = entry.file_type()?;
        let name = entry.file_name();
        if kind.is_dir() {
            if !SKIPPED_DIRECTORIES.iter().any(|skipped| name == *skipped) {
                list_files(&entry.path(), depth - 1, files)?;
            }
        } else if kind.is_file() {
            files.push(entry.path());
        }
    }
    Ok(())
}
