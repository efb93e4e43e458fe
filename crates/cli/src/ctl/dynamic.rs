//! `show-config` and `edit-config`: the dynamic configuration.

use std::io::{IsTerminal, Read, Write};
use std::process::{Command, ExitCode};

use anyhow::Context;
use api::json::merge_patch;
use serde_json::{Map, Value};

use super::output::yaml;
use super::store::Store;
use super::{CtlConfig, prompt, say};

/// The largest document that is read, in bytes.
const DOCUMENT_MAX: u64 = 4 << 20;
/// Below this path the rest of a key is one name: parameters may have dots.
const PARAMETERS: &str = "postgresql.parameters.";

/// `show-config`.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct ShowConfigArgs {
    /// Name of the cluster; the configured one if none is given
    #[arg(value_name = "CLUSTER_NAME")]
    pub(crate) cluster: Option<String>,
}

/// `edit-config`.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct EditConfigArgs {
    /// Name of the cluster; the configured one if none is given
    #[arg(value_name = "CLUSTER_NAME")]
    pub(crate) cluster: Option<String>,
    /// Do not show changes
    #[arg(short, long)]
    pub(crate) quiet: bool,
    /// Set a value, a YAML one; null deletes the key
    #[arg(short, long = "set", value_name = "KEY=VALUE")]
    pub(crate) set: Vec<String>,
    /// Set a parameter of PostgreSQL: short for -s postgresql.parameters.…
    #[arg(short, long = "pg", value_name = "KEY=VALUE")]
    pub(crate) pg: Vec<String>,
    /// Merge a file into the configuration; `-` is standard input
    #[arg(long, value_name = "FILE")]
    pub(crate) apply: Option<String>,
    /// Replace the whole configuration by a file; `-` is standard input
    #[arg(long, value_name = "FILE")]
    pub(crate) replace: Option<String>,
    /// Do not ask for confirmation
    #[arg(long)]
    pub(crate) force: bool,
}

pub(super) async fn show(args: ShowConfigArgs, config: &CtlConfig) -> anyhow::Result<ExitCode> {
    let scope = config.scope_or(args.cluster.as_deref())?;
    let view = Store::open(config, scope)?.read().await?;
    if let Some(config) = &view.config {
        say(&yaml(&config.value))?;
    }
    Ok(ExitCode::SUCCESS)
}

pub(super) async fn edit(args: EditConfigArgs, config: &CtlConfig) -> anyhow::Result<ExitCode> {
    let scope = config.scope_or(args.cluster.as_deref())?;
    let store = Store::open(config, scope)?;
    let view = store.read().await?;
    let Some(present) = &view.config else {
        anyhow::bail!("The config key does not exist in the cluster {scope}");
    };
    let before = yaml(&present.value);
    let changed = match changed(&args, &present.value)? {
        Some(changed) => changed,
        None => edited(&before, scope)?,
    };
    if changed == present.value {
        if !args.quiet {
            say("Not changed\n")?;
        }
        return Ok(ExitCode::SUCCESS);
    }
    // Refused before anything changes: what no member would accept.
    if let Err(problems) = ::config::Dynamic::from_json(&changed) {
        anyhow::bail!("{}", problems.join("; "));
    }
    if !args.quiet {
        say(&difference(&before, &yaml(&changed)))?;
    }
    let from_stdin = [&args.apply, &args.replace].into_iter().any(|f| f.as_deref() == Some("-"));
    if from_stdin && !args.force {
        say("Use --force option to apply changes\n")?;
        return Ok(ExitCode::SUCCESS);
    }
    if args.force || prompt::confirm("Apply these changes?").await? {
        store.change_config(present.mod_revision, &changed).await?;
        say("Configuration changed\n")?;
    }
    Ok(ExitCode::SUCCESS)
}

/// The document after `--replace`, `--apply`, `--set` and `--pg`, in this order; `None` where none
/// of them is given.
fn changed(args: &EditConfigArgs, present: &Value) -> anyhow::Result<Option<Value>> {
    let given = args.apply.is_some()
        || args.replace.is_some()
        || !(args.set.is_empty() && args.pg.is_empty());
    if !given {
        return Ok(None);
    }
    let mut document = present.clone();
    if let Some(file) = &args.replace {
        let empty = Value::Object(Map::new());
        document = merge_patch(&empty, &read_document(file)?).unwrap_or(empty);
    }
    if let Some(file) = &args.apply {
        document = merge_patch(&document, &read_document(file)?).unwrap_or(document);
    }
    let pg = args.pg.iter().map(|pair| format!("{PARAMETERS}{}", pair.trim_start()));
    for pair in args.set.iter().cloned().chain(pg) {
        let (key, value) =
            pair.split_once('=').with_context(|| format!("Invalid parameter setting {pair}"))?;
        let value: Value = serde_saphyr::from_str(value)
            .with_context(|| format!("Invalid parameter setting {pair}"))?;
        set(&mut document, key.trim(), value);
    }
    Ok(Some(document))
}

/// Sets the value at a dotted path. A null deletes it, and with it the mappings that it leaves
/// empty.
fn set(document: &mut Value, path: &str, value: Value) {
    let parts: Vec<&str> = match path.strip_prefix(PARAMETERS) {
        Some(parameter) => vec!["postgresql", "parameters", parameter],
        None => path.split('.').collect(),
    };
    set_below(document, &parts, value);
}

fn set_below(document: &mut Value, parts: &[&str], value: Value) {
    let Some((first, rest)) = parts.split_first() else { return };
    if !document.is_object() {
        *document = Value::Object(Map::new());
    }
    let Value::Object(map) = document else { return };
    if rest.is_empty() {
        if value.is_null() {
            map.shift_remove(*first);
        } else {
            map.insert((*first).to_owned(), value);
        }
        return;
    }
    let below = map.entry((*first).to_owned()).or_insert_with(|| Value::Object(Map::new()));
    set_below(below, rest, value);
    if below.as_object().is_some_and(Map::is_empty) {
        map.shift_remove(*first);
    }
}

fn read_document(file: &str) -> anyhow::Result<Value> {
    let mut text = String::new();
    let read =
        |from: &mut dyn Read, text: &mut String| from.take(DOCUMENT_MAX).read_to_string(text);
    if file == "-" {
        read(&mut std::io::stdin().lock(), &mut text).context("cannot read standard input")?;
    } else {
        let opened = std::fs::File::open(file);
        opened
            .and_then(|mut opened| read(&mut opened, &mut text))
            .with_context(|| format!("cannot read {file}"))?;
    }
    parse(&text, file)
}

fn parse(text: &str, name: &str) -> anyhow::Result<Value> {
    let value: Value =
        serde_saphyr::from_str(text).with_context(|| format!("{name} is not YAML"))?;
    anyhow::ensure!(value.is_object(), "{name}: a mapping is expected");
    Ok(value)
}

/// Lets the operator edit the document.
fn edited(before: &str, scope: &str) -> anyhow::Result<Value> {
    let mut file = tempfile::Builder::new()
        .prefix(&format!("{}-config-", scope.replace('/', "_")))
        .suffix(".yaml")
        .tempfile()
        .context("cannot make a file to edit")?;
    file.write_all(before.as_bytes())?;
    file.flush()?;
    let status = editor()?.arg(file.path()).status().context("cannot run the editor")?;
    if !status.success() {
        let code = status.code().unwrap_or(-1);
        anyhow::bail!("Editor exited with return code {code}");
    }
    let text = std::fs::read_to_string(file.path()).context("cannot read what was edited")?;
    parse(&text, "what was edited")
}

/// `$EDITOR` through a shell, since it may have arguments, else `editor` or `vi`.
fn editor() -> anyhow::Result<Command> {
    if let Some(editor) = std::env::var_os("EDITOR").filter(|editor| !editor.is_empty()) {
        let mut command = Command::new("/bin/sh");
        let mut script = editor;
        script.push(" \"$1\"");
        command.arg("-c").arg(script).arg("editor");
        return Ok(command);
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = ["editor", "vi"]
        .iter()
        .find(|name| std::env::split_paths(&path).any(|dir| dir.join(name).is_file()));
    let name =
        found.context("EDITOR environment variable is not set. editor or vi are not available")?;
    Ok(Command::new(name))
}

/// What changes, as a unified diff; in colours on a terminal.
fn difference(before: &str, after: &str) -> String {
    let lines = similar::TextDiff::from_lines(before, after);
    let diff = lines.unified_diff().header("", "").to_string();
    if !std::io::stdout().is_terminal() {
        return diff;
    }
    let coloured = |line: &str| match line.as_bytes().first() {
        Some(b'+') => format!("\x1b[32m{line}\x1b[0m\n"),
        Some(b'-') => format!("\x1b[31m{line}\x1b[0m\n"),
        Some(b'@') => format!("\x1b[36m{line}\x1b[0m\n"),
        Some(_) | None => format!("{line}\n"),
    };
    diff.lines().map(coloured).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn args(set: &[&str], pg: &[&str]) -> EditConfigArgs {
        let owned = |list: &[&str]| list.iter().map(|text| (*text).to_owned()).collect();
        EditConfigArgs {
            cluster: None,
            quiet: false,
            set: owned(set),
            pg: owned(pg),
            apply: None,
            replace: None,
            force: true,
        }
    }

    #[test]
    fn values_are_set_and_deleted_by_their_paths() {
        let present =
            json!({"ttl": 30, "postgresql": {"parameters": {"a.b": 1}, "use_slots": true}});
        let args = args(
            &["ttl=20", "pause=true", "postgresql.use_slots=null", "x.y.z=[1, b]"],
            &["a.b=null", " auto_explain.log_min_duration=1s"],
        );
        let expected = json!({
            "ttl": 20,
            "postgresql": {"parameters": {"auto_explain.log_min_duration": "1s"}},
            "pause": true,
            "x": {"y": {"z": [1, "b"]}},
        });
        assert_eq!(changed(&args, &present).expect("valid"), Some(expected));
    }

    #[test]
    fn deleting_the_last_key_deletes_the_mapping() {
        let mut document = json!({"a": {"b": {"c": 1}}, "d": 2});
        set(&mut document, "a.b.c", Value::Null);
        assert_eq!(document, json!({"d": 2}));
    }

    #[test]
    fn a_setting_without_a_value_is_refused() {
        let error = changed(&args(&["ttl"], &[]), &json!({})).expect_err("refused");
        assert_eq!(error.to_string(), "Invalid parameter setting ttl");
        assert_eq!(changed(&args(&[], &[]), &json!({})).expect("valid"), None);
    }

    #[test]
    fn the_difference_is_a_unified_diff() {
        let shown = difference("a: 1\nb: 2\n", "a: 1\nb: 3\n");
        assert_eq!(shown, "--- \n+++ \n@@ -1,2 +1,2 @@\n a: 1\n-b: 2\n+b: 3\n");
    }
}
