//! `--generate-config` and `--generate-sample-config`: a configuration file to go on with
//! (as Patroni 4.1 has it).

use std::fs::{OpenOptions, Permissions};
use std::io::{BufRead, BufReader, Write};
use std::net::{IpAddr, ToSocketAddrs};
use std::os::fd::AsFd;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use config::{Host, Running, Secret, Template};
use postgres::Reach;

use crate::hidden::Hidden;

/// The file holds passwords.
const MODE: u32 = 0o600;
/// The longest password that is read, in bytes.
const PASSWORD_MAX: u64 = 4096;
const PROMPT: &str = "Please enter the user password:";
/// Where the name of who runs this is looked for.
const USER_VARIABLES: [&str; 4] = ["LOGNAME", "USER", "LNAME", "USERNAME"];

/// What is written instead of running an agent.
#[derive(Debug, Default, clap::Args)]
pub(crate) struct GenerateArgs {
    /// Write a sample configuration, and end
    #[arg(long, conflicts_with_all = ["validate_config", "generate_config"])]
    pub(crate) generate_sample_config: bool,
    /// Write the configuration of a running PostgreSQL, and end
    #[arg(long, conflicts_with = "validate_config")]
    pub(crate) generate_config: bool,
    /// How that PostgreSQL is reached as a superuser; else libpq's variables say
    #[arg(long)]
    pub(crate) dsn: Option<String>,
}

impl GenerateArgs {
    /// Whether anything is written.
    pub(crate) fn wanted(&self) -> bool {
        self.generate_sample_config || self.generate_config
    }
}

/// Writes to the file, or to standard output where none is named.
pub(crate) fn run(args: &GenerateArgs, output: Option<&Path>) -> anyhow::Result<ExitCode> {
    let template = Template::new(&agent::environment(), &host())?;
    let text = if args.generate_sample_config {
        let (dir, name) = template.postgres_program();
        let found = postgres::installed_major(dir.map(Path::new), name.unwrap_or("postgres"));
        let major = found.map_err(anyhow::Error::msg)?;
        template.sample(major)
    } else {
        template.of(&ask(args.dsn.as_deref())?)
    };
    match output {
        Some(path) => {
            write(path, &text).with_context(|| format!("cannot write {}", path.display()))?
        }
        None => std::io::stdout().lock().write_all(text.as_bytes())?,
    }
    Ok(ExitCode::SUCCESS)
}

fn ask(dsn: Option<&str>) -> anyhow::Result<Running> {
    let variable = |name: &str| std::env::var(name).ok();
    let reach = Reach::new(dsn, variable).context("Failed to parse DSN string")?;
    let set = |name: &str| variable(name).filter(|value| !value.is_empty());
    let own = || USER_VARIABLES.iter().find_map(|name| set(name));
    let username = reach.get("user").map(str::to_owned);
    let username = username.or_else(|| set("PATRONI_SUPERUSER_USERNAME")).or_else(own);
    let username = username.context("nobody says who the superuser is: set PGUSER")?;
    let password = reach.get("password").map(str::to_owned);
    let password = match password.or_else(|| set("PATRONI_SUPERUSER_PASSWORD")) {
        Some(password) => password,
        None => prompt().context("cannot read the password")?,
    };
    let secret = postgres::Secret::new(password.as_str());
    let runtime = crate::serve::runtime()?;
    let found = runtime.block_on(postgres::describe(&reach, &username, &secret))?;
    let connection = reach.connection();
    let connection = connection.into_iter().map(|(name, value)| (name.to_owned(), value));
    let sslpassword =
        reach.get("sslpassword").map(|value| ("sslpassword".to_owned(), value.to_owned()));
    Ok(Running {
        major: found.major,
        port: reach.get("port").map(str::to_owned),
        username,
        password: Secret::new(password),
        connection: connection.chain(sslpassword).collect(),
        settings: found.settings,
        bin_dir: found.bin_dir.to_string_lossy().into_owned(),
        hba: found.hba,
        ident: found.ident,
    })
}

/// This host, and the first of its name's addresses, IPv4 before IPv6.
fn host() -> Host {
    let name = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let mut found: Vec<IpAddr> = (name.as_str(), 0)
        .to_socket_addrs()
        .map(|found| found.map(|address| address.ip()).collect())
        .unwrap_or_default();
    found.sort_by_key(IpAddr::is_ipv6);
    let address = found.first().map(ToString::to_string);
    Host { name: address.is_some().then_some(name), address }
}

/// Only its owner may read what is written, also where the file was there already.
fn write(path: &Path, text: &str) -> std::io::Result<()> {
    if let Some(parent) = path.parent().filter(|parent| *parent != PathBuf::new()) {
        std::fs::create_dir_all(parent)?;
    }
    let mut options = OpenOptions::new();
    let mut file = options.write(true).create(true).truncate(true).mode(MODE).open(path)?;
    if file.metadata()?.is_file() {
        file.set_permissions(Permissions::from_mode(MODE))?;
    }
    file.write_all(text.as_bytes())
}

/// On the terminal, which does not show the answer; else on standard error and input.
fn prompt() -> std::io::Result<String> {
    let Ok(mut terminal) = OpenOptions::new().read(true).write(true).open("/dev/tty") else {
        eprint!("{PROMPT} ");
        return line(std::io::stdin().lock());
    };
    terminal.write_all(format!("{PROMPT} ").as_bytes())?;
    let hidden = Hidden::begin(terminal.as_fd());
    let answer = line(BufReader::new(&terminal));
    drop(hidden);
    answer.and_then(|answer| terminal.write_all(b"\n").map(|()| answer))
}

fn line(from: impl BufRead) -> std::io::Result<String> {
    let mut text = String::new();
    from.take(PASSWORD_MAX).read_line(&mut text)?;
    Ok(text.trim_end_matches(['\r', '\n']).to_owned())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn what_is_written_is_for_its_owner_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("new/x.yml");
        for text in ["a: 1\n", "b\n"] {
            write(&path, text).unwrap();
            assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
            let mode = std::fs::metadata(&path).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, MODE);
            std::fs::set_permissions(&path, Permissions::from_mode(0o644)).unwrap();
        }
    }

    #[test]
    fn an_answer_is_one_line() {
        assert_eq!(line("pass word\r\nmore".as_bytes()).unwrap(), "pass word");
        assert_eq!(line("".as_bytes()).unwrap(), "");
    }
}
