//! Configurations that are written for an operator.
#![allow(clippy::unwrap_used)]

mod common;

use std::os::unix::fs::PermissionsExt;
use std::process::Command;
use std::time::Duration;

use common::{directory, pgherd, run, succeeded};

const LIMIT: Duration = Duration::from_secs(60);

fn command() -> Command {
    let mut command = Command::new(pgherd());
    command.env_clear().env("PATH", "/usr/bin:/bin");
    command.env("PATRONI_POSTGRESQL_BIN_DIR", lab::tools::postgres_bin_dir().unwrap());
    command
}

#[test]
fn a_sample_goes_to_its_file_alone() {
    let dir = directory();
    let path = dir.path().join("sample.yml");
    let mut sample = command();
    sample.env("PATRONI_SUPERUSER_PASSWORD", "s3cret").env("PATRONI_SCOPE", "batman");
    sample.args(["agent", "--generate-sample-config"]).arg(&path);
    assert_eq!(succeeded(run(sample, LIMIT)), "");
    let text = std::fs::read_to_string(&path).unwrap();
    assert!(text.contains("scope: batman\n") && text.contains("password: s3cret\n"), "{text}");
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);

    let mut printed = command();
    printed.args(["agent", "--generate-sample-config"]);
    assert!(succeeded(run(printed, LIMIT)).starts_with("scope: \"#FIXME\"\n"));
}

#[test]
fn what_cannot_be_asked_is_said_and_nothing_is_written() {
    let dir = directory();
    let path = dir.path().join("x.yml");
    for (dsn, said) in [
        ("nonsense", "Failed to parse DSN string"),
        ("host=127.0.0.1 port=1 user=a password=b", "cannot connect to PostgreSQL at 127.0.0.1:1"),
    ] {
        let mut asked = command();
        asked.args(["agent", "--generate-config", "--dsn", dsn]).arg(&path);
        let output = run(asked, LIMIT);
        assert_eq!(output.status.code(), Some(1));
        let complained = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(complained.contains(said), "{complained}");
        assert!(!path.exists());
    }
    let mut neither = command();
    neither.arg("agent").arg(&path);
    let output = run(neither, LIMIT);
    assert!(String::from_utf8_lossy(&output.stderr).contains("follows -c"), "{output:?}");
}
