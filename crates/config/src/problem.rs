//! What is wrong with a configuration: one line each, with file, line and key where they are known.

/// One thing that is wrong, or only odd, in a configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The file as the caller named it; empty for the dynamic configuration.
    pub file: String,
    /// The line, from 1; 0 when there is none.
    pub line: u64,
    /// The key, dotted; empty for the document as a whole.
    pub key: String,
    /// What is wrong and what would be right.
    pub text: String,
}

/// A problem that does not keep the configuration from being used.
pub type Warning = Problem;

impl Problem {
    pub(crate) fn new(line: u64, key: impl Into<String>, text: impl Into<String>) -> Problem {
        Problem { file: String::new(), line, key: key.into(), text: text.into() }
    }
}

impl std::fmt::Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if !self.file.is_empty() {
            write!(f, "{}:", self.file)?;
            if self.line > 0 {
                write!(f, "{}:", self.line)?;
            }
            f.write_str(" ")?;
        }
        if !self.key.is_empty() {
            write!(f, "{}: ", self.key)?;
        }
        f.write_str(&self.text)
    }
}

/// Why a file cannot be used: every problem at once, one line each.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", lines(.problems))]
pub struct ConfigError {
    /// At least one.
    pub problems: Vec<Problem>,
}

fn lines(problems: &[Problem]) -> String {
    let lines: Vec<String> = problems.iter().map(Problem::to_string).collect();
    lines.join("\n")
}
