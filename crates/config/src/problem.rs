//! What is wrong with a configuration: one line each, with file, line and key where they are known.

use crate::tree::Place;

/// One thing that is wrong, or only odd, in a configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The file as the caller named it, or an environment variable; empty for the dynamic
    /// configuration.
    pub file: String,
    /// Which source it is in, and the line there, from 1; 0 when there is none.
    pub(crate) at: Place,
    /// The key, dotted; empty for the document as a whole.
    pub key: String,
    /// What is wrong and what would be right.
    pub text: String,
}

/// A problem that does not keep the configuration from being used.
pub type Warning = Problem;

impl Problem {
    pub(crate) fn new(at: Place, key: impl Into<String>, text: impl Into<String>) -> Problem {
        Problem { file: String::new(), at, key: key.into(), text: text.into() }
    }

    /// Of something that stands in no text.
    pub(crate) fn unplaced(key: impl Into<String>, text: impl Into<String>) -> Problem {
        Problem::new(Place::default(), key, text)
    }
}

impl std::fmt::Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if !self.file.is_empty() {
            write!(f, "{}:", self.file)?;
            if self.at.line > 0 {
                write!(f, "{}:", self.at.line)?;
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
