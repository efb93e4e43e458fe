//! The log: lines in the form that the section `log` asks for (as Patroni 4.1 has it), to standard
//! error or to `patroni.log`.

use std::fmt::{self, Write as _};
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use anyhow::Context;
use config::{Log, LogLevel, LogPiece, LogShape};
use jiff::ZonedDateTime;
use serde_json::{Map, Value};
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::{EnvFilter, fmt as subscriber};

const FILE_NAME: &str = "patroni.log";

/// Sets the process's log up. `RUST_LOG` beats the level of the section.
///
/// # Errors
/// The file cannot be opened.
pub(crate) fn start(log: Log) -> anyhow::Result<()> {
    let level = match log.level {
        LogLevel::Debug => "debug",
        LogLevel::Info => "info",
        LogLevel::Warning => "warn",
        LogLevel::Error | LogLevel::Critical => "error",
    };
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(level));
    let sink: Box<dyn Write + Send> = match &log.dir {
        None => Box::new(io::stderr()),
        Some(dir) => Box::new(LogFile::open(dir, &log)?),
    };
    let lines = Lines { log };
    let builder = subscriber().with_env_filter(filter).with_ansi(false).event_format(lines);
    builder.with_writer(Mutex::new(sink)).init();
    Ok(())
}

/// Writes one event as one line.
struct Lines {
    log: Log,
}

impl<S, N> FormatEvent<S, N> for Lines
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        _context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let line = Line { log: &self.log, event, now: ZonedDateTime::now() };
        writeln!(writer, "{}", line.written())
    }
}

struct Line<'a> {
    log: &'a Log,
    event: &'a Event<'a>,
    now: ZonedDateTime,
}

impl Line<'_> {
    fn written(&self) -> String {
        match &self.log.shape {
            LogShape::Plain(pieces) => {
                let mut text = String::new();
                for piece in pieces {
                    match piece {
                        LogPiece::Text(part) => text.push_str(part),
                        LogPiece::Field { name, width } => {
                            text.push_str(&padded(&self.field(name), *width));
                        }
                    }
                }
                text
            }
            LogShape::Json { fields, constants } => {
                let field = |(name, called): &(String, String)| {
                    (called.clone(), Value::String(self.field(name)))
                };
                let constant =
                    |(name, value): &(String, String)| (name.clone(), Value::String(value.clone()));
                let object: Map<String, Value> =
                    fields.iter().map(field).chain(constants.iter().map(constant)).collect();
                Value::Object(object).to_string()
            }
        }
    }

    /// A field by the name that Python's logging gives it; empty where we have no such thing.
    fn field(&self, name: &str) -> String {
        let metadata = self.event.metadata();
        let path = metadata.file().unwrap_or_default();
        let file = Path::new(path);
        let of_file = |part: Option<&std::ffi::OsStr>| {
            part.map(|part| part.to_string_lossy().into_owned()).unwrap_or_default()
        };
        match name {
            "asctime" => self.time(),
            "levelname" => level_of(metadata).name().to_owned(),
            "message" => message_of(self.event),
            "name" => metadata.target().to_owned(),
            "pathname" => path.to_owned(),
            "filename" => of_file(file.file_name()),
            "module" => of_file(file.file_stem()),
            "funcName" => metadata.module_path().unwrap_or_default().to_owned(),
            "lineno" => metadata.line().unwrap_or_default().to_string(),
            "process" => std::process::id().to_string(),
            "processName" | "threadName" => "MainProcess".to_owned(),
            "created" => self.now.timestamp().as_second().to_string(),
            "msecs" => self.now.millisecond().to_string(),
            _ => String::new(),
        }
    }

    fn time(&self) -> String {
        match &self.log.dateformat {
            Some(format) => self.now.strftime(format).to_string(),
            None => {
                let millis = self.now.millisecond();
                format!("{},{millis:03}", self.now.strftime("%Y-%m-%d %H:%M:%S"))
            }
        }
    }
}

fn padded(text: &str, width: i32) -> String {
    let least = width.unsigned_abs() as usize;
    if width < 0 { format!("{text:<least$}") } else { format!("{text:>least$}") }
}

fn level_of(metadata: &tracing::Metadata<'_>) -> LogLevel {
    match *metadata.level() {
        Level::ERROR if metadata.target() == agent::FATAL => LogLevel::Critical,
        Level::ERROR => LogLevel::Error,
        Level::WARN => LogLevel::Warning,
        Level::INFO => LogLevel::Info,
        Level::DEBUG | Level::TRACE => LogLevel::Debug,
    }
}

/// The message, and behind it every other field as `name=value`.
fn message_of(event: &Event<'_>) -> String {
    #[derive(Default)]
    struct Fields {
        message: String,
        others: String,
    }
    impl Visit for Fields {
        fn record_str(&mut self, field: &Field, value: &str) {
            self.record_debug(field, &format_args!("{value}"));
        }

        fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
            // Writing to a String cannot fail.
            if field.name() == "message" {
                write!(self.message, "{value:?}").unwrap_or_default();
            } else {
                write!(self.others, " {}={value:?}", field.name()).unwrap_or_default();
            }
        }
    }
    let mut fields = Fields::default();
    event.record(&mut fields);
    fields.message + &fields.others
}

/// `patroni.log`: set aside as `patroni.log.1` and so on when it is full.
struct LogFile {
    path: PathBuf,
    mode: Option<u32>,
    size_max: u64,
    kept: usize,
    file: File,
    size: u64,
}

impl LogFile {
    fn open(dir: &Path, log: &Log) -> anyhow::Result<LogFile> {
        let path = dir.join(FILE_NAME);
        let file = open(&path, log.mode)
            .with_context(|| format!("cannot write {} (log.dir)", path.display()))?;
        let size = file.metadata()?.len();
        let (mode, size_max, kept) = (log.mode, log.file_size, log.file_num);
        Ok(LogFile { path, mode, size_max, kept, file, size })
    }

    fn numbered(&self, number: usize) -> PathBuf {
        let mut name = self.path.clone().into_os_string();
        name.push(format!(".{number}"));
        name.into()
    }

    fn set_aside(&mut self) -> io::Result<()> {
        if self.kept == 0 {
            return Ok(());
        }
        for number in (1..self.kept).rev() {
            // One that is not there yet leaves a gap that fills up.
            drop(std::fs::rename(self.numbered(number), self.numbered(number + 1)));
        }
        std::fs::rename(&self.path, self.numbered(1))?;
        self.file = open(&self.path, self.mode)?;
        self.size = 0;
        Ok(())
    }
}

fn open(path: &Path, mode: Option<u32>) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.append(true).create(true);
    if let Some(mode) = mode {
        options.mode(mode);
    }
    options.open(path)
}

impl Write for LogFile {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let full = self.size_max > 0 && self.size + line.len() as u64 > self.size_max;
        if full && self.size > 0 {
            self.set_aside()?;
        }
        let written = self.file.write(line)?;
        self.size += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// Says why the process ends, as the last line of its log.
pub(crate) fn fatal(error: &anyhow::Error) {
    tracing::error!(target: agent::FATAL, "{error:#}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_file_is_set_aside() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let log = Log { file_size: 10, file_num: 2, mode: Some(0o600), ..Log::default() };
        let mut file = LogFile::open(dir.path(), &log).expect("it can be written");
        for line in ["one\n", "two\n", "three\n", "four\n", "five\n", "six\n", "seven\n"] {
            file.write_all(line.as_bytes()).expect("it is written");
        }
        let read = |name: &str| std::fs::read_to_string(dir.path().join(name));
        assert_eq!(read("patroni.log").expect("there"), "six\nseven\n");
        assert_eq!(read("patroni.log.1").expect("there"), "four\nfive\n");
        assert_eq!(read("patroni.log.2").expect("there"), "three\n");
        assert!(read("patroni.log.3").is_err(), "no more are kept than asked for");
    }

    #[test]
    fn fields_are_padded_as_printf_does() {
        assert_eq!((padded("ab", 4), padded("ab", -4)), ("  ab".to_owned(), "ab  ".to_owned()));
        assert_eq!(padded("abc", 2), "abc");
    }
}
