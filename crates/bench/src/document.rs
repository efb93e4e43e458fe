//! Documents with tables that programs write, each between two marks.

use std::fs;
use std::path::Path;

use anyhow::{Context, ensure};

/// Replaces what is between the marks of each part: `<!-- NAME -->` and `<!-- /NAME -->`.
///
/// # Errors
/// The file cannot be read or written, or a mark is missing or there twice; then it stays as it is.
pub(crate) fn replace(file: &Path, parts: &[(String, String)]) -> anyhow::Result<()> {
    let read =
        fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
    let mut text = read;
    for (name, table) in parts {
        text = replaced(&text, name, table).with_context(|| file.display().to_string())?;
    }
    fs::write(file, text).with_context(|| format!("cannot write {}", file.display()))
}

fn replaced(document: &str, name: &str, table: &str) -> anyhow::Result<String> {
    let (begin, end) = (format!("<!-- {name} -->\n"), format!("<!-- /{name} -->\n"));
    let (before, rest) = document.split_once(&begin).with_context(|| format!("no {begin}"))?;
    let (_, after) = rest.split_once(&end).with_context(|| format!("no {end}"))?;
    ensure!(!after.contains(&begin), "twice: {begin}");
    Ok(format!("{before}{begin}{table}{end}{after}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_is_replaced_and_nothing_else() {
        let document = "a\n<!-- bench-proxy idle -->\nold\n<!-- /bench-proxy idle -->\nb\n";
        let new = replaced(document, "bench-proxy idle", "new\n").expect("the marks are there");
        assert_eq!(new, document.replace("old", "new"));
        assert!(replaced(document, "bench-proxy session", "new\n").is_err());
        assert!(replaced(&document.repeat(2), "bench-proxy idle", "new\n").is_err());
    }
}
