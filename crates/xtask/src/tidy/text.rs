//! Sizes and leftovers in the text of a file.
//!
//! The counting of functions leans on rustfmt: the line of `fn` and the closing brace stand at the
//! same indentation, so no parser is needed, and braces in strings do not matter.

use std::path::Path;

/// Lines of a source file, tests apart.
const FILE_LINES_MAX: usize = 700;
/// Lines of a function, from `fn` to its closing brace.
const FUNCTION_LINES_MAX: usize = 70;
/// Characters of a line.
const LINE_COLUMNS_MAX: usize = 100;

/// Text that never belongs into the project. Each is split here, so that this file is clean.
const LEFTOVERS: [(&str, &str); 2] = [
    (concat!("/wo", "rk/"), "an absolute path of somebody's machine"),
    (concat!("/home", "/runner/"), "an absolute path of somebody's machine"),
];

/// Text that never belongs into Rust code.
const RUST_LEFTOVERS: [(&str, &str); 2] = [
    (concat!("to", "do!("), "unfinished code"),
    (concat!("unimple", "mented!("), "unfinished code"),
];

/// Findings in one file; `path` is relative to the root.
pub(super) fn check(path: &Path, content: &str) -> Vec<String> {
    let shown = path.display();
    let mut findings = Vec::new();
    for (number, line) in numbered(content) {
        for (leftover, what) in LEFTOVERS {
            if line.contains(leftover) {
                findings.push(format!("{shown}:{number}: {what}: `{leftover}`"));
            }
        }
    }
    if path.extension().is_some_and(|extension| extension == "rs") {
        findings.extend(check_rust(path, content));
    }
    findings
}

fn check_rust(path: &Path, content: &str) -> Vec<String> {
    let shown = path.display();
    let mut findings = Vec::new();
    for (number, line) in numbered(content) {
        let columns = line.chars().count();
        // A raw string holds test data, which cannot be broken.
        if columns > LINE_COLUMNS_MAX && !line.contains("r#\"") {
            findings
                .push(format!("{shown}:{number}: {columns} columns, at most {LINE_COLUMNS_MAX}"));
        }
        for (leftover, what) in RUST_LEFTOVERS {
            if line.contains(leftover) {
                findings.push(format!("{shown}:{number}: {what}: `{leftover}`"));
            }
        }
    }
    if is_test_file(path) {
        return findings;
    }
    let code = without_tests(content);
    if code.len() > FILE_LINES_MAX {
        findings.push(format!("{shown}: {} lines, at most {FILE_LINES_MAX}: split it", code.len()));
    }
    for (number, lines) in functions(&code) {
        if lines > FUNCTION_LINES_MAX {
            findings.push(format!(
                "{shown}:{number}: a function of {lines} lines, at most {FUNCTION_LINES_MAX}"
            ));
        }
    }
    findings
}

fn numbered(content: &str) -> impl Iterator<Item = (usize, &str)> {
    content.lines().enumerate().map(|(index, line)| (index + 1, line))
}

/// `tests.rs`, `…_tests.rs`, or anything below a directory `tests`.
fn is_test_file(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    name == "tests.rs"
        || name.ends_with("_tests.rs")
        || path.components().any(|part| part.as_os_str() == "tests")
}

/// The lines before the test module at the end of the file.
fn without_tests(content: &str) -> Vec<&str> {
    let lines: Vec<&str> = content.lines().collect();
    let begins = lines
        .windows(2)
        .position(|pair| pair[0] == "#[cfg(test)]" && pair[1].starts_with("mod tests {"));
    lines[..begins.unwrap_or(lines.len())].to_vec()
}

/// The first line's number (from 1) and the number of lines of each function that has a body.
fn functions(lines: &[&str]) -> Vec<(usize, usize)> {
    let mut found = Vec::new();
    for (start, line) in lines.iter().enumerate() {
        if !begins_function(line) || line.ends_with('}') || line.ends_with(';') {
            continue;
        }
        let indentation = &line[..line.len() - line.trim_start().len()];
        let end = lines[start..].iter().position(|line| {
            line.strip_prefix(indentation)
                .is_some_and(|rest| rest == "}" || (rest.starts_with(')') && rest.ends_with(';')))
        });
        if let Some(length) = end {
            found.push((start + 1, length + 1));
        }
    }
    found
}

fn begins_function(line: &str) -> bool {
    let mut rest = line.trim_start();
    let words = ["pub ", "pub(crate) ", "pub(super) ", "const ", "async ", "unsafe ", "extern "];
    while let Some(shorter) =
        words.iter().find_map(|word| rest.strip_prefix(word)).or(rest.strip_prefix("\"C\" "))
    {
        rest = shorter;
    }
    rest.starts_with("fn ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn findings(path: &str, content: &str) -> Vec<String> {
        check(Path::new(path), content)
    }

    fn function_of(lines: usize) -> String {
        format!("    pub(crate) async fn f(\n{}    }}\n", "        x;\n".repeat(lines - 2))
    }

    #[test]
    fn long_functions_are_found_by_indentation() {
        assert_eq!(findings("a.rs", &function_of(70)), Vec::<String>::new());
        let found = findings("a.rs", &format!("fn short() {{}}\n{}", function_of(71)));
        assert_eq!(found, ["a.rs:2: a function of 71 lines, at most 70"]);
        assert!(findings("src/tests.rs", &function_of(71)).is_empty());
        assert!(findings("src/brain_tests.rs", &function_of(71)).is_empty());
    }

    #[test]
    fn a_declaration_without_a_body_is_no_function() {
        let trait_text = format!("    fn f(\n        x: u8,\n    ) -> u8;\n{}", function_of(3));
        assert_eq!(functions(&trait_text.lines().collect::<Vec<_>>()), [(1, 3), (4, 3)]);
    }

    #[test]
    fn long_files_are_found_tests_apart() {
        let code = "// x\n".repeat(700);
        assert!(findings("a.rs", &code).is_empty());
        let with_tests = format!("{code}#[cfg(test)]\nmod tests {{\n{code}}}\n");
        assert!(findings("a.rs", &with_tests).is_empty());
        assert_eq!(findings("a.rs", &format!("{code}// x\n")).len(), 1);
        assert!(findings("tests/a.rs", &format!("{code}// x\n")).is_empty());
    }

    #[test]
    fn long_lines_and_leftovers_are_found() {
        assert_eq!(findings("a.rs", &"x".repeat(101)).len(), 1);
        assert!(findings("a.rs", &format!("r#\"{}", "x".repeat(101))).is_empty());
        assert!(findings("a.md", &"x".repeat(101)).is_empty());
        assert_eq!(findings("a.rs", &["to", "do!()"].concat()).len(), 1);
        assert_eq!(findings("a.md", &["see /wo", "rk/x"].concat()).len(), 1);
    }
}
