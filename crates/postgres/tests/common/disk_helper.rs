//! The helper process as a program of its own: what `pgherd probe` runs.

use std::process::ExitCode;

fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1);
    if arguments.next().is_some_and(|first| first == "probe") {
        return postgres::run_disk_helper(arguments);
    }
    ExitCode::FAILURE
}
