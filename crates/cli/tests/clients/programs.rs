//! Clients that are programs of their own.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::common::{run, succeeded};
use crate::lab_of_clients::{Lab, Place, tests, tools};

/// How long one may take for all its steps.
const LIMIT: Duration = Duration::from_secs(180);
/// The distribution's JDBC driver.
const JDBC: &str = "/usr/share/java/postgresql.jar";

/// What a program printed, both streams.
pub fn said(mut command: Command, place: &Place) -> String {
    place.tell(&mut command);
    let output = run(command, LIMIT);
    let text = [output.stdout, output.stderr].concat();
    String::from_utf8_lossy(&text).into_owned()
}

/// A file that must be there.
fn there(path: PathBuf) -> PathBuf {
    assert!(path.exists(), "{} is missing: run tools/install-test.sh", path.display());
    path
}

pub fn psycopg(_lab: &Lab, place: &Place, steps: &[&str]) -> String {
    python("psycopg_steps.py", place, steps)
}

pub fn asyncpg(_lab: &Lab, place: &Place, steps: &[&str]) -> String {
    python("asyncpg_steps.py", place, steps)
}

fn python(program: &str, place: &Place, steps: &[&str]) -> String {
    let mut command = Command::new(there(tools().join("clients-python/bin/python")));
    command.arg("-B").arg(tests().join(program)).args(steps);
    said(command, place)
}

pub fn node_postgres(_lab: &Lab, place: &Place, steps: &[&str]) -> String {
    let mut command = Command::new("node");
    command.arg(tests().join("node_postgres_steps.js"));
    command.arg(there(tools().join("clients-node"))).args(steps);
    said(command, place)
}

pub fn jdbc(lab: &Lab, place: &Place, steps: &[&str]) -> String {
    let driver = there(Path::new(JDBC).to_owned());
    let classes = lab.directory.path().join("classes");
    if !classes.exists() {
        let mut compile = Command::new("javac");
        compile.args(["-encoding", "UTF-8", "-cp"]).arg(&driver).arg("-d").arg(&classes);
        compile.arg(tests().join("JdbcSteps.java"));
        succeeded(run(compile, LIMIT));
    }
    let mut command = Command::new("java");
    command.args(["-XX:TieredStopAtLevel=1", "-Dfile.encoding=UTF-8", "-cp"]);
    command.arg(format!("{}:{}", driver.display(), classes.display()));
    command.arg("JdbcSteps").args(steps);
    said(command, place)
}
