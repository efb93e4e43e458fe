//! `log`: how the agent's log looks and where it goes (as Patroni 4.1 has it).

use std::path::PathBuf;

use crate::tree::{Kind, Node};
use crate::values;

const FORMAT_DEFAULT: &str = "%(asctime)s %(levelname)s: %(message)s";
const FILE_SIZE_DEFAULT: u64 = 25_000_000;
const FILE_NUM_DEFAULT: usize = 4;

/// How severe a line is, by its name in the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum LogLevel {
    /// For whoever looks for a fault in the agent.
    Debug,
    /// What happens.
    Info,
    /// What an operator should look at.
    Warning,
    /// What failed.
    Error,
    /// Why the agent ends.
    Critical,
}

impl LogLevel {
    fn named(text: &str) -> Option<LogLevel> {
        match text.to_ascii_uppercase().as_str() {
            "DEBUG" | "NOTSET" => Some(LogLevel::Debug),
            "INFO" => Some(LogLevel::Info),
            "WARNING" | "WARN" => Some(LogLevel::Warning),
            "ERROR" => Some(LogLevel::Error),
            "CRITICAL" | "FATAL" => Some(LogLevel::Critical),
            _ => None,
        }
    }

    /// Its name in a line.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            LogLevel::Debug => "DEBUG",
            LogLevel::Info => "INFO",
            LogLevel::Warning => "WARNING",
            LogLevel::Error => "ERROR",
            LogLevel::Critical => "CRITICAL",
        }
    }
}

/// A piece of a line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LogPiece {
    /// Text as it stands.
    Text(String),
    /// `%(name)s`, padded to `width` characters: on the right where that is negative.
    Field {
        /// Its name, such as `levelname`.
        name: String,
        /// Least number of characters.
        width: i32,
    },
}

/// What lines look like.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LogShape {
    /// A line of text.
    Plain(Vec<LogPiece>),
    /// A JSON object of fields, each under a name of its own, and of constants.
    Json {
        /// A field, and what it is called.
        fields: Vec<(String, String)>,
        /// Constants.
        constants: Vec<(String, String)>,
    },
}

/// `log`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Log {
    /// Least severe level that is written.
    pub level: LogLevel,
    /// What a line looks like.
    pub shape: LogShape,
    /// strftime's format of `asctime`; `None` for the default, which has milliseconds.
    pub dateformat: Option<String>,
    /// The directory of `patroni.log`; `None` for standard error.
    pub dir: Option<PathBuf>,
    /// The file's mode; `None` leaves it to umask.
    pub mode: Option<u32>,
    /// A file of so many bytes is set aside; 0: never.
    pub file_size: u64,
    /// How many files that were set aside are kept.
    pub file_num: usize,
}

impl Default for Log {
    fn default() -> Log {
        Log {
            level: LogLevel::Info,
            shape: LogShape::Plain(pieces(FORMAT_DEFAULT)),
            dateformat: None,
            dir: None,
            mode: None,
            file_size: FILE_SIZE_DEFAULT,
            file_num: FILE_NUM_DEFAULT,
        }
    }
}

impl Log {
    /// Reads the section. The second value names a key and what is wrong with it, for each one that
    /// has its default instead.
    pub(crate) fn read(tree: &Node) -> (Log, Vec<(&'static str, String)>) {
        let mut log = Log::default();
        let mut wrong = Vec::new();
        let text = |key: &str| tree.at(key).and_then(values::text).filter(|t| !t.is_empty());
        if let Some(level) = text("log.level") {
            match LogLevel::named(&level) {
                Some(level) => log.level = level,
                None => wrong.push(("log.level", format!("{level:?} is no level; INFO is used"))),
            }
        }
        let format = tree.at("log.format");
        if text("log.type").is_some_and(|kind| kind.eq_ignore_ascii_case("json")) {
            let constants = tree.at("log.static_fields").map(constants).unwrap_or_default();
            log.shape = LogShape::Json { fields: json_fields(format), constants };
        } else if let Some(format) = format.and_then(values::text) {
            log.shape = LogShape::Plain(pieces(&format));
        }
        log.dateformat = text("log.dateformat");
        log.dir = text("log.dir").map(PathBuf::from);
        let number = |key: &str| tree.at(key).and_then(values::integer);
        log.mode = number("log.mode").and_then(|mode| u32::try_from(mode).ok());
        if let Some(size) = number("log.file_size").and_then(|size| u64::try_from(size).ok()) {
            log.file_size = size;
        }
        if let Some(count) = number("log.file_num").and_then(|count| usize::try_from(count).ok()) {
            log.file_num = count;
        }
        (log, wrong)
    }
}

/// Splits a format of the `%(name)s` kind. What is no such field stays text.
fn pieces(format: &str) -> Vec<LogPiece> {
    let mut found = Vec::new();
    let mut text = String::new();
    let mut rest = format;
    while let Some(at) = rest.find('%') {
        text.push_str(&rest[..at]);
        let after = &rest[at + 1..];
        if let Some(after) = after.strip_prefix('%') {
            text.push('%');
            rest = after;
        } else if let Some((field, after)) = field(after) {
            if !text.is_empty() {
                found.push(LogPiece::Text(std::mem::take(&mut text)));
            }
            found.push(field);
            rest = after;
        } else {
            text.push('%');
            rest = after;
        }
    }
    text.push_str(rest);
    if !text.is_empty() {
        found.push(LogPiece::Text(text));
    }
    found
}

/// `(name)-8s` and what follows it.
fn field(text: &str) -> Option<(LogPiece, &str)> {
    let (name, rest) = text.strip_prefix('(')?.split_once(')')?;
    let end = rest.find(|c: char| c.is_ascii_alphabetic())?;
    let (flags, conversion) = (&rest[..end], rest[end..].chars().next()?);
    let width = if flags.is_empty() { 0 } else { flags.split('.').next()?.parse().ok()? };
    matches!(conversion, 's' | 'd' | 'f')
        .then(|| (LogPiece::Field { name: name.to_owned(), width }, &rest[end + 1..]))
}

/// The fields of a JSON line: a list of names or of `{field: name}`, or those of a text format.
fn json_fields(format: Option<&Node>) -> Vec<(String, String)> {
    if let Some(Kind::Seq(list)) = format.map(|node| &node.kind) {
        let of = |node: &Node| match values::text(node) {
            Some(name) => vec![(name.clone(), name)],
            None => constants(node),
        };
        return list.iter().flat_map(of).collect();
    }
    let text = format.and_then(values::text).unwrap_or_else(|| FORMAT_DEFAULT.to_owned());
    let name_of = |piece| match piece {
        LogPiece::Field { name, .. } => Some((name.clone(), name)),
        LogPiece::Text(_) => None,
    };
    pieces(&text).into_iter().filter_map(name_of).collect()
}

fn constants(node: &Node) -> Vec<(String, String)> {
    let Kind::Map(entries) = &node.kind else {
        return Vec::new();
    };
    entries.iter().filter_map(|e| Some((e.key.clone(), values::text(&e.node)?))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn field(name: &str, width: i32) -> LogPiece {
        LogPiece::Field { name: name.to_owned(), width }
    }

    #[test]
    fn formats_are_split() {
        let text = |text: &str| LogPiece::Text(text.to_owned());
        assert_eq!(
            pieces("%(asctime)s %(levelname)-8s [%(lineno)4d] 100%% %(x: %q"),
            [
                field("asctime", 0),
                text(" "),
                field("levelname", -8),
                text(" ["),
                field("lineno", 4),
                text("] 100% %(x: %q"),
            ]
        );
    }

    #[test]
    fn the_section_is_read_as_patroni_does() {
        let tree = Node::from_yaml(
            "log: {type: json, level: warning, format: [message, {asctime: at}], dir: /x, \
             static_fields: {app: herd}, mode: 0640, file_size: 0}",
            0,
        )
        .expect("YAML");
        let (log, wrong) = Log::read(&tree);
        assert_eq!(wrong, []);
        let pair = |a: &str, b: &str| (a.to_owned(), b.to_owned());
        assert_eq!(
            log.shape,
            LogShape::Json {
                fields: vec![pair("message", "message"), pair("asctime", "at")],
                constants: vec![pair("app", "herd")],
            }
        );
        assert_eq!((log.level, log.file_size, log.file_num), (LogLevel::Warning, 0, 4));
        assert_eq!((log.dir, log.mode), (Some(PathBuf::from("/x")), Some(0o640)));

        let tree = Node::from_yaml("log: {level: loud}", 0).expect("YAML");
        let (log, wrong) = Log::read(&tree);
        assert_eq!((log, wrong.len()), (Log::default(), 1));
    }
}
