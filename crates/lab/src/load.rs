//! Processes that do nothing but take processor time.

use std::io;
use std::process::{Child, Command, Stdio};

/// Counts for ever, until its parent is gone: one that was killed cannot end it.
const BUSY: &str = "while kill -0 $PPID; do n=0; while [ $n -lt 50000 ]; do n=$((n + 1)); done; \
                    done 2>/dev/null";

/// Busy processes of ordinary priority. They end when this is dropped.
#[derive(Debug)]
pub struct Load {
    busy: Vec<Child>,
}

impl Load {
    /// Starts `times` busy processes for each processor.
    ///
    /// # Errors
    /// One could not be started; those before it are ended.
    pub fn start(times: usize) -> io::Result<Load> {
        let processors = std::thread::available_parallelism()?.get();
        let mut load = Load { busy: Vec::new() };
        for _ in 0..processors.saturating_mul(times) {
            let mut command = Command::new("/bin/sh");
            command.args(["-c", BUSY]).stdin(Stdio::null()).stdout(Stdio::null());
            load.busy.push(command.spawn()?);
        }
        Ok(load)
    }

    /// Their processes.
    #[must_use]
    pub fn pids(&self) -> Vec<u32> {
        self.busy.iter().map(Child::id).collect()
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        for child in &mut self.busy {
            // An error says that it ended already, which is what we want.
            drop(child.kill());
            drop(child.wait());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process;

    #[test]
    fn it_is_there_until_it_is_dropped() {
        let load = Load::start(1).expect("a shell is there");
        let pids = load.pids();
        assert!(!pids.is_empty());
        assert!(pids.iter().all(|pid| process::is_alive(*pid)));
        drop(load);
        assert!(!pids.iter().any(|pid| process::is_alive(*pid)));
    }
}
