//! `query`: SQL on a member, and what came back.

use std::io::Read;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use api::cluster::{MemberInfo, members};
use api::json::spaced;
use postgres::{Answer, Credentials, Kind, QueryError, QueryTarget, Secret};
use serde_json::{Map, Value};
use types::{ClusterView, Millis};

use super::list::WatchArgs;
use super::output::yaml;
use super::select::Role;
use super::store::Store;
use super::table::{Format, Table};
use super::{CtlConfig, libpq, prompt, say, timestamp};

/// A member that has not let us in by then is given up.
const CONNECT_LIMIT: Millis = Millis::from_secs(5);

/// The largest file of statements.
const FILE_MAX: u64 = 16 << 20;

/// `query`.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct QueryArgs {
    /// Name of the cluster; the configured one if none is given
    #[arg(value_name = "CLUSTER_NAME")]
    pub(crate) cluster: Option<String>,
    /// Output format
    #[arg(long, value_enum, default_value = "tsv")]
    pub(crate) format: Format,
    /// Execute the SQL commands from this file; `-` for standard input
    #[arg(short, long, value_parser = readable)]
    pub(crate) file: Option<PathBuf>,
    /// Ask for the password
    #[arg(long)]
    pub(crate) password: bool,
    /// Database user name
    #[arg(short = 'U', long)]
    pub(crate) username: Option<String>,
    /// When to repeat
    #[command(flatten)]
    pub(crate) watch: WatchArgs,
    /// On a member with this role; the leader by default
    #[arg(short, long, value_enum)]
    pub(crate) role: Option<Role>,
    /// On this member
    #[arg(short, long)]
    pub(crate) member: Option<String>,
    /// What stands between columns (tsv)
    #[arg(long, default_value = "\t")]
    pub(crate) delimiter: String,
    /// The SQL commands to execute
    #[arg(short, long)]
    pub(crate) command: Option<String>,
    /// Database to connect to
    #[arg(short, long)]
    pub(crate) dbname: Option<String>,
    /// Configuration file; `-c` is the command's here
    // The same as everywhere, which has it read there, without the letter.
    #[arg(id = "config_file", long = "config-file", value_name = "FILE")]
    pub(crate) config_file: Option<PathBuf>,
}

fn readable(text: &str) -> Result<PathBuf, String> {
    if text != "-" {
        std::fs::File::open(text).map_err(|error| error.to_string())?;
    }
    Ok(PathBuf::from(text))
}

/// What is printed: an answer, or one line that says why there is none.
enum Shown {
    Answer(Answer),
    Failed(String),
}

pub(super) async fn query(args: QueryArgs, config: &CtlConfig) -> anyhow::Result<ExitCode> {
    let sql = statements(&args)?;
    let password =
        if args.password { Some(Secret::new(prompt::hidden("Password").await?)) } else { None };
    let scope = config.scope_or(args.cluster.as_deref())?;
    let view = Store::open(config, scope)?.read().await?;
    loop {
        let shown = match ask(&args, &view, password.clone(), &sql).await? {
            Ok(answer) => Shown::Answer(answer),
            Err(why) => Shown::Failed(why),
        };
        say(&text(shown, args.format, &args.delimiter))?;
        let Some(interval) = args.watch.interval() else {
            return Ok(ExitCode::SUCCESS);
        };
        tokio::time::sleep(interval).await;
    }
}

fn statements(args: &QueryArgs) -> anyhow::Result<String> {
    match (&args.file, &args.command) {
        (Some(_), Some(_)) => {
            anyhow::bail!("--file and --command are mutually exclusive options")
        }
        (None, None) => anyhow::bail!("You need to specify either --command or --file"),
        (None, Some(command)) => Ok(command.clone()),
        (Some(path), None) => {
            let from: Box<dyn Read> = if path.as_os_str() == "-" {
                Box::new(std::io::stdin().lock())
            } else {
                Box::new(std::fs::File::open(path).context("cannot read the file")?)
            };
            let mut text = String::new();
            from.take(FILE_MAX + 1).read_to_string(&mut text).context("cannot read the file")?;
            anyhow::ensure!(text.len() as u64 <= FILE_MAX, "the file is larger than 16 MiB");
            Ok(text)
        }
    }
}

/// The answer, or why there is none in the words of the output.
async fn ask(
    args: &QueryArgs,
    view: &ClusterView,
    password: Option<Secret>,
    sql: &str,
) -> anyhow::Result<Result<Answer, String>> {
    anyhow::ensure!(
        args.role.is_none() || args.member.is_none(),
        "--role and --member are mutually exclusive options"
    );
    let wanted = |info: &&MemberInfo<'_>| match &args.member {
        Some(name) => info.name.as_str() == name,
        None => args.role.unwrap_or(Role::Leader).fits(info),
    };
    let infos = members(view);
    let Some((host, port)) = infos.iter().find(wanted).and_then(|info| info.address.clone()) else {
        return Ok(Err(nobody(args)));
    };
    let target = target(args, host, port, password)?;
    let in_recovery = match args.role {
        None | Some(Role::Any | Role::Leader) => None,
        Some(Role::Primary) => Some(false),
        Some(Role::Replica | Role::Standby | Role::StandbyLeader) => Some(true),
    };
    let asked = postgres::query(&target, CONNECT_LIMIT, in_recovery, sql).await;
    Ok(asked.map_err(|error| match error {
        QueryError::OtherRole => nobody(args),
        QueryError::Sql { sqlstate: Some(code), .. } => format!("ERROR, SQLSTATE: {code}"),
        other => format!("ERROR, SQLSTATE: {other}").replace('\n', " "),
    }))
}

fn nobody(args: &QueryArgs) -> String {
    match (&args.member, args.role) {
        (Some(member), _) => format!("No connection to member {member} is available"),
        (None, Some(role)) => format!("No connection to role {} is available", role.as_str()),
        (None, None) => "No connection is available".to_owned(),
    }
}

fn target(
    args: &QueryArgs,
    host: String,
    port: u16,
    password: Option<Secret>,
) -> anyhow::Result<QueryTarget> {
    let username = libpq::user(args.username.as_deref())?;
    let database = args.dbname.clone().or_else(|| libpq::variable("PGDATABASE"));
    let database = database.unwrap_or_else(|| username.clone());
    let known = || libpq::password(&host, port, &database, &username).map(Secret::new);
    let role = Credentials {
        password: password.or_else(known),
        connection: libpq::connection().collect(),
        sslpassword: None,
        username,
    };
    let application = libpq::variable("PGAPPNAME").unwrap_or_else(|| "Patroni ctl".to_owned());
    Ok(QueryTarget { host, port, role, database, application })
}

fn text(shown: Shown, format: Format, delimiter: &str) -> String {
    let (columns, rows) = match shown {
        Shown::Answer(Answer { columns: Some(columns), rows }) => {
            let rows = rows.into_iter().map(|row| {
                let cells = row.into_iter().zip(&columns).map(|(cell, column)| (cell, column.1));
                cells.map(|(cell, kind)| value(cell, kind)).collect()
            });
            let rows: Vec<Vec<Value>> = rows.collect();
            (Some(columns.into_iter().map(|(name, _)| name).collect::<Vec<_>>()), rows)
        }
        // Nothing comes back of it, and nothing went wrong.
        Shown::Answer(Answer { columns: None, .. }) => return String::new(),
        Shown::Failed(why) => (None, vec![vec![Value::from(timestamp(0)), Value::from(why)]]),
    };
    let objects = || {
        let names = columns.as_deref().unwrap_or_default();
        let object = |row: &Vec<Value>| {
            Value::Object(names.iter().cloned().zip(row.iter().cloned()).collect::<Map<_, _>>())
        };
        Value::Array(rows.iter().map(object).collect())
    };
    let plain_rows = || rows.iter().map(|row| row.iter().map(plain).collect::<Vec<_>>());
    match format {
        Format::Json => spaced(&objects()) + "\n",
        Format::Yaml => yaml(&objects()),
        Format::Tsv => {
            let lines = columns.iter().cloned().chain(plain_rows());
            lines.map(|cells| cells.join(delimiter) + "\n").collect()
        }
        Format::Pretty => {
            let numbered = || (1..=2).map(|number| format!("Field {number}")).collect();
            let columns = columns.clone().unwrap_or_else(numbered);
            let columns = columns.into_iter().map(|name| (name, false)).collect();
            Table { title: String::new(), columns, rows: plain_rows().collect() }.render()
        }
    }
}

/// A field as a value of JSON.
fn value(field: Option<String>, kind: Kind) -> Value {
    let Some(text) = field else { return Value::Null };
    let parsed = || serde_json::from_str::<Value>(&text).ok();
    match kind {
        Kind::Bool => Value::Bool(text == "t"),
        // One that is not kept as it is, is better a text.
        Kind::Number => {
            let exact = |value: &Value| value.is_number() && spaced(value) == text;
            parsed().filter(exact).unwrap_or_else(|| Value::String(text.clone()))
        }
        Kind::Json => parsed().unwrap_or(Value::String(text)),
        Kind::Timestamp => Value::String(python_time(text)),
        Kind::Text => Value::String(text),
    }
}

/// A time of PostgreSQL's as Python prints it: microseconds with six digits, minutes in the offset.
fn python_time(text: String) -> String {
    let Some((day, time)) = text.split_once(' ') else { return text };
    let at = time.find(['+', '-']).unwrap_or(time.len());
    let (clock, offset) = time.split_at(at);
    let clock = match clock.split_once('.') {
        Some((whole, part)) => format!("{whole}.{part:0<6}"),
        None => clock.to_owned(),
    };
    let minutes = if offset.len() == 3 { ":00" } else { "" };
    format!("{day} {clock}{offset}{minutes}")
}

/// A value as Python prints it.
fn plain(value: &Value) -> String {
    match value {
        Value::Null => "None".to_owned(),
        Value::Bool(true) => "True".to_owned(),
        Value::Bool(false) => "False".to_owned(),
        Value::String(text) => text.clone(),
        other => spaced(other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer() -> Shown {
        let field = |text: &str| Some(text.to_owned());
        Shown::Answer(Answer {
            columns: Some(vec![
                ("a".to_owned(), Kind::Number),
                ("b".to_owned(), Kind::Bool),
                ("c".to_owned(), Kind::Text),
                ("d".to_owned(), Kind::Timestamp),
                ("e".to_owned(), Kind::Json),
            ]),
            rows: vec![
                vec![
                    field("1"),
                    field("t"),
                    field("x"),
                    field("2026-11-23 21:58:25.66+00"),
                    field("{\"k\":1}"),
                ],
                vec![field("NaN"), field("f"), None, field("infinity"), None],
            ],
        })
    }

    #[test]
    fn answers_in_each_format() {
        assert_eq!(
            text(answer(), Format::Tsv, "|"),
            "a|b|c|d|e\n1|True|x|2026-11-23 21:58:25.660000+00:00|{\"k\": 1}\n\
             NaN|False|None|infinity|None\n"
        );
        assert_eq!(
            text(answer(), Format::Json, "|"),
            "[{\"a\": 1, \"b\": true, \"c\": \"x\", \"d\": \"2026-11-23 21:58:25.660000+00:00\", \
             \"e\": {\"k\": 1}}, {\"a\": \"NaN\", \"b\": false, \"c\": null, \"d\": \"infinity\", \
             \"e\": null}]\n"
        );
        let pretty = text(answer(), Format::Pretty, "|");
        assert!(pretty.starts_with("+-----+-------+------+"), "{pretty}");
        assert!(pretty.contains("\n| NaN | False | None | infinity "), "{pretty}");
        let nothing = Shown::Answer(Answer::default());
        assert_eq!(text(nothing, Format::Tsv, "\t"), "");
    }

    #[test]
    fn failures_are_rows_without_titles() {
        let failed = || Shown::Failed("ERROR, SQLSTATE: 42703".to_owned());
        let tsv = text(failed(), Format::Tsv, "\t");
        assert!(tsv.ends_with("\tERROR, SQLSTATE: 42703\n") && tsv.lines().count() == 1, "{tsv}");
        assert_eq!(text(failed(), Format::Json, "\t"), "[{}]\n");
        assert!(text(failed(), Format::Pretty, "\t").contains("| Field 1 "));
    }
}
