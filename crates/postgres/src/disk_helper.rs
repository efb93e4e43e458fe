//! The helper process: what is read of the data directory, and tried on its volumes, for the agent.
//!
//! A system call on a disk that hangs puts its thread into a sleep that no signal ends. So the
//! agent makes none in its observations: a child of the same binary does, asked and answering in
//! lines on its standard streams, and can be given up. It ends when its standard input does.
//!
//! It decides nothing, and changes nothing but the one file of a trial.

use std::ffi::OsString;
use std::fs::{self, OpenOptions};
use std::io::{self, BufRead as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use rustix::io::Errno;
use serde_json::{Value, json};
use types::{Lsn, Timeline, Upstream};

use crate::conf_files::state_of;
use crate::files;
use crate::instance::{began, read_control_bytes, timeline_at};
use crate::processes::{DirId, of_directory, recovery_of};

/// The file of a trial. `pg_basebackup` and `pg_checksums` leave out what begins with `pgsql_tmp`;
/// `pg_rewind` does below a subdirectory only (PostgreSQL 18, `basebackup.c`, `filemap.c`).
const TRIAL_FILE: &str = "pgsql_tmp.pgherd_probe";
/// What a trial writes: more than a file system keeps within an inode.
const TRIAL_BYTES: usize = 16 * 1024;

/// What the agent asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Request {
    /// What stands in the data directory.
    Look,
    /// Whether a small write comes to its end, on the data volume and on that of the WAL.
    Write,
    /// The timeline of the record that ends there.
    Timeline(Lsn),
    /// Where a timeline began.
    Began(Timeline),
    /// The WAL segment that recovery works on.
    Recovery,
}

impl Request {
    /// As it is sent.
    pub(crate) fn line(self) -> String {
        match self {
            Request::Look => "look".to_owned(),
            Request::Write => "write".to_owned(),
            Request::Timeline(end) => format!("timeline {}", end.0),
            Request::Began(timeline) => format!("began {}", timeline.0),
            Request::Recovery => "recovery".to_owned(),
        }
    }

    fn parse(text: &str) -> Option<Request> {
        let (word, argument) = text.split_once(' ').unwrap_or((text, ""));
        match word {
            "look" => Some(Request::Look),
            "write" => Some(Request::Write),
            "timeline" => Some(Request::Timeline(Lsn(argument.parse().ok()?))),
            "began" => Some(Request::Began(Timeline(argument.parse().ok()?))),
            "recovery" => Some(Request::Recovery),
            _ => None,
        }
    }
}

/// Runs the helper until its standard input ends. `arguments` are those after the subcommand:
/// `--data-dir DIR --config-file FILE`, both absolute. To be called before any thread is started.
pub fn run_disk_helper(mut arguments: impl Iterator<Item = OsString>) -> ExitCode {
    let mut path = |option: &str| {
        let flag = arguments.next().is_some_and(|flag| flag == option);
        arguments.next().filter(|_| flag).map(PathBuf::from)
    };
    let (Some(dir), Some(conf)) = (path("--data-dir"), path("--config-file")) else {
        eprintln!("usage: pgherd probe --data-dir DIR --config-file FILE (absolute paths)");
        return ExitCode::from(2);
    };
    // Only for those who look at a list of processes.
    rustix::thread::set_name(c"pgherd-probe").ok();
    let mut output = io::stdout().lock();
    for line in io::stdin().lock().lines() {
        let Some((id, request)) = line.as_deref().ok().and_then(|line| line.split_once(' ')) else {
            return ExitCode::FAILURE;
        };
        let Some(request) = Request::parse(request) else {
            return ExitCode::FAILURE;
        };
        let answer = format!("{id} {}\n", answer(&dir, &conf, request));
        if output.write_all(answer.as_bytes()).and_then(|()| output.flush()).is_err() {
            // The agent is gone.
            return ExitCode::SUCCESS;
        }
    }
    ExitCode::SUCCESS
}

fn answer(dir: &Path, conf: &Path, request: Request) -> String {
    match request {
        Request::Look => look(dir, conf).to_line(),
        Request::Write => try_writes(dir).to_line(),
        Request::Timeline(end) => match read_control_bytes(dir) {
            Ok((_, control)) => timeline_at(dir, &control, end).0.to_string(),
            Err(_) => String::new(),
        },
        Request::Began(timeline) => {
            began(dir, timeline).map_or_else(String::new, |at| at.0.to_string())
        }
        Request::Recovery => {
            let pids = DirId::of(dir).and_then(|id| of_directory(id).ok()).unwrap_or_default();
            pids.into_iter().find_map(recovery_of).unwrap_or_default()
        }
    }
}

/// What stands in the data directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Found {
    /// Missing or empty.
    Empty,
    /// It cannot be read, or is not a PostgreSQL data directory: why.
    Unusable(String),
    /// The bytes of a pg_control that decodes, and whether a signal file stands there.
    Present {
        /// Its bytes.
        control: Vec<u8>,
        /// standby.signal or recovery.signal is there.
        standby_signal: bool,
    },
}

/// All that an observation needs of the data directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Look {
    /// What stands there.
    pub(crate) found: Found,
    /// The directory's identity, if there is one.
    pub(crate) dir: Option<DirId>,
    /// The pid that postmaster.pid names.
    pub(crate) postmaster: Option<i32>,
    /// Whom the configuration on disk names as upstream.
    pub(crate) upstream: Option<Upstream>,
}

fn look(dir: &Path, conf: &Path) -> Look {
    let pid = fs::read_to_string(dir.join("postmaster.pid")).ok();
    Look {
        found: found(dir),
        dir: DirId::of(dir),
        // A negative number is a single-user server, which is a tool and not a postmaster.
        postmaster: pid.and_then(|text| text.lines().next()?.trim().parse().ok()),
        upstream: state_of(conf).unwrap_or_default().upstream,
    }
}

fn found(dir: &Path) -> Found {
    match files::is_empty(dir) {
        Ok(true) => return Found::Empty,
        Ok(false) => {}
        Err(e) => return Found::Unusable(format!("cannot list {}: {e}", dir.display())),
    }
    if !dir.join("PG_VERSION").is_file() {
        let shown = dir.display();
        return Found::Unusable(format!(
            "{shown} is not empty and not a PostgreSQL data directory"
        ));
    }
    let signal = |name| dir.join(name).exists();
    match read_control_bytes(dir) {
        Ok((control, _)) => Found::Present {
            control,
            standby_signal: signal("standby.signal") || signal("recovery.signal"),
        },
        Err(e) => Found::Unusable(e.to_string()),
    }
}

impl Look {
    fn to_line(&self) -> String {
        let found = match &self.found {
            Found::Empty => json!({ "is": "empty" }),
            Found::Unusable(why) => json!({ "is": "unusable", "why": why }),
            Found::Present { control, standby_signal } => {
                let hex: String = control.iter().map(|byte| format!("{byte:02x}")).collect();
                json!({ "is": "present", "control": hex, "standby_signal": standby_signal })
            }
        };
        json!({
            "found": found,
            "dir": self.dir.map(DirId::parts),
            "postmaster": self.postmaster,
            "upstream": self.upstream,
        })
        .to_string()
    }

    /// Reads an answer; `None` if it is none.
    pub(crate) fn parse(text: &str) -> Option<Look> {
        let value: Value = serde_json::from_str(text).ok()?;
        let found = &value["found"];
        let found = match found["is"].as_str()? {
            "empty" => Found::Empty,
            "unusable" => Found::Unusable(found["why"].as_str()?.to_owned()),
            "present" => Found::Present {
                control: bytes(found["control"].as_str()?)?,
                standby_signal: found["standby_signal"].as_bool()?,
            },
            _ => return None,
        };
        let dir = &value["dir"];
        let pid = value["postmaster"].as_i64();
        Some(Look {
            found,
            dir: dir[0].as_u64().zip(dir[1].as_u64()).map(DirId::from_parts),
            postmaster: pid.and_then(|pid| i32::try_from(pid).ok()),
            upstream: serde_json::from_value(value["upstream"].clone()).ok()?,
        })
    }
}

fn bytes(hex: &str) -> Option<Vec<u8>> {
    let pairs = hex.as_bytes().chunks(2);
    pairs.map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()).collect()
}

/// How a trial on the volumes ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Written {
    /// It is on disk.
    Done,
    /// There is no PostgreSQL directory to try.
    Nothing,
    /// There is no space.
    Full,
    /// What came back.
    Failed(String),
}

impl Written {
    fn to_line(&self) -> String {
        match self {
            Written::Done => "ok".to_owned(),
            Written::Nothing => "nothing".to_owned(),
            Written::Full => "full".to_owned(),
            // One line, whatever a path holds.
            Written::Failed(what) => format!("failed {}", what.replace('\n', " ")),
        }
    }

    /// Reads an answer; `None` if it is none.
    pub(crate) fn parse(text: &str) -> Option<Written> {
        match text.split_once(' ').unwrap_or((text, "")) {
            ("ok", "") => Some(Written::Done),
            ("nothing", "") => Some(Written::Nothing),
            ("full", "") => Some(Written::Full),
            ("failed", what) => Some(Written::Failed(what.to_owned())),
            _ => None,
        }
    }
}

/// Tries the data volume, and that of the WAL if it is another one.
fn try_writes(dir: &Path) -> Written {
    let (global, wal) = (dir.join("global"), dir.join("pg_wal"));
    if !dir.join("PG_VERSION").is_file() || !global.is_dir() {
        return Written::Nothing;
    }
    let device = |path: &Path| fs::metadata(path).map(|meta| meta.dev());
    let mut places = vec![global];
    match (device(dir), device(&wal)) {
        (Ok(data), Ok(log)) if data != log => places.push(wal.clone()),
        (Ok(_), Ok(_)) => {}
        (Err(e), _) => return Written::Failed(format!("cannot look at {}: {e}", dir.display())),
        (_, Err(e)) => return Written::Failed(format!("cannot look at {}: {e}", wal.display())),
    }
    for place in places {
        let path = place.join(TRIAL_FILE);
        match write_once(&path) {
            Ok(()) => {}
            Err(e) if is_full(&e) => return Written::Full,
            Err(e) => return Written::Failed(format!("cannot write {}: {e}", path.display())),
        }
    }
    if has_room_for_wal(dir, &wal) { Written::Done } else { Written::Full }
}

/// The file is made anew each time: what is overwritten in place would need no space.
fn write_once(path: &Path) -> io::Result<()> {
    let mut options = OpenOptions::new();
    let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(path)?;
    let written = file.write_all(&[0x5a; TRIAL_BYTES]).and_then(|()| file.sync_all());
    drop(file);
    written.and(fs::remove_file(path))
}

fn is_full(error: &io::Error) -> bool {
    let code = error.raw_os_error();
    [Errno::NOSPC, Errno::DQUOT].iter().any(|full| code == Some(full.raw_os_error()))
}

/// Whether the next WAL segment can be made. PostgreSQL panics when it cannot, and gives back what
/// it had of it, so that a small write succeeds on a disk that is full for PostgreSQL.
fn has_room_for_wal(dir: &Path, wal: &Path) -> bool {
    let (Ok((_, control)), Ok(volume)) = (read_control_bytes(dir), rustix::fs::statvfs(wal)) else {
        return true;
    };
    let available = volume.f_bavail.saturating_mul(volume.f_frsize);
    // Some file systems keep no account at all.
    volume.f_blocks == 0 || available >= u64::from(control.wal_segment_size)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn requests_and_answers_survive_the_wire() {
        let requests = [
            Request::Look,
            Request::Write,
            Request::Timeline(Lsn(u64::MAX)),
            Request::Began(Timeline(7)),
            Request::Recovery,
        ];
        for request in requests {
            assert_eq!(Request::parse(&request.line()), Some(request));
        }
        assert_eq!(Request::parse("look away"), Some(Request::Look));
        for text in ["", "timeline", "timeline x", "began -1", "delete"] {
            assert_eq!(Request::parse(text), None, "{text}");
        }
        let upstream = Upstream { name: "a b".into(), host: "h\"".to_owned(), port: 5 };
        let present = Found::Present { control: vec![0, 255, 16], standby_signal: true };
        let looks = [
            (present, Some(DirId::from_parts((u64::MAX, 2))), Some(77), Some(upstream)),
            (Found::Unusable("a\nb".to_owned()), None, None, None),
            (Found::Empty, None, None, None),
        ];
        for (found, dir, postmaster, upstream) in looks {
            let look = Look { found, dir, postmaster, upstream };
            assert!(!look.to_line().contains('\n'));
            assert_eq!(Look::parse(&look.to_line()), Some(look));
        }
        for written in
            [Written::Done, Written::Nothing, Written::Full, Written::Failed("a b".into())]
        {
            assert_eq!(Written::parse(&written.to_line()), Some(written));
        }
    }

    #[test]
    fn nothing_is_created_where_no_postgresql_is() {
        let base = tempfile::tempdir().unwrap();
        let dir = base.path().join("data");
        assert_eq!(try_writes(&dir), Written::Nothing);
        assert!(!dir.exists());
        fs::create_dir_all(dir.join("global")).unwrap();
        assert_eq!(try_writes(&dir), Written::Nothing);
        assert_eq!(look(&dir, &dir.join("postgresql.conf")).postmaster, None);
        assert!(matches!(look(&dir, &dir.join("postgresql.conf")).found, Found::Unusable(_)));
        fs::write(dir.join("PG_VERSION"), "18\n").unwrap();
        assert!(matches!(try_writes(&dir), Written::Failed(_)), "there is no pg_wal");
        fs::create_dir(dir.join("pg_wal")).unwrap();
        assert_eq!(try_writes(&dir), Written::Done);
        assert_eq!(fs::read_dir(dir.join("global")).unwrap().count(), 0, "the file is gone again");
    }

    #[test]
    fn the_pid_file_names_a_process_or_nobody() {
        let dir = tempfile::tempdir().unwrap();
        for (text, pid) in [("5\n/data\n", Some(5)), ("-5\n", Some(-5)), ("x", None), ("", None)] {
            fs::write(dir.path().join("postmaster.pid"), text).unwrap();
            assert_eq!(look(dir.path(), &dir.path().join("postgresql.conf")).postmaster, pid);
        }
    }
}
