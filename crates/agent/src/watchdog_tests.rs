//! A FIFO stands in for the device: what is written to it can be read.

use std::fs::{File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use config::WatchdogDriver;
use rustix::fs::{CWD, FileType, Mode, OFlags, mknodat};

use super::*;

const TIMING: Timing =
    Timing { ttl: Millis(30_000), loop_wait: Millis(10_000), stop_margin: Millis(1_000) };

fn settings(mode: WatchdogMode, device: &Path, driver: WatchdogDriver) -> config::Watchdog {
    config::Watchdog { mode, device: device.to_owned(), safety_margin: 5, driver, played: false }
}

fn testing(mode: WatchdogMode, device: &Path) -> Watchdog {
    Watchdog::new(settings(mode, device, WatchdogDriver::Testing), TIMING)
}

/// A far claim: no feeding but at the arming falls into a test.
fn far() -> Millis {
    clock::now().plus(Millis(29_000))
}

struct Fifo {
    reader: File,
    directory: tempfile::TempDir,
}

impl Fifo {
    fn new() -> Fifo {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("watchdog");
        mknodat(CWD, &path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).expect("a FIFO");
        Fifo { reader: open(&path, false), directory }
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("watchdog")
    }

    /// What was written since the last call.
    /// What was written, without the line that names the timeout.
    fn take(&mut self) -> String {
        let (timeouts, rest) = self.take_all();
        let named = timeouts.iter().all(|secs| ["25", "2"].contains(&secs.as_str()));
        assert!(named, "{timeouts:?}");
        rest
    }

    /// The timeouts that were written, and everything else.
    fn take_all(&mut self) -> (Vec<String>, String) {
        let mut taken = Vec::new();
        match self.reader.read_to_end(&mut taken) {
            Ok(_) => {}
            Err(error) => assert_eq!(error.kind(), io::ErrorKind::WouldBlock),
        }
        let text = String::from_utf8(taken).expect("letters");
        let (mut timeouts, mut rest) = (Vec::new(), String::new());
        for (index, part) in text.split("Ctimeout=").enumerate() {
            match part.split_once('\n') {
                Some((secs, after)) if index > 0 => {
                    timeouts.push(secs.to_owned());
                    rest.push_str(after);
                }
                Some(_) | None => rest.push_str(part),
            }
        }
        (timeouts, rest)
    }

    /// Whether the last writer has closed it.
    fn is_closed(&mut self) -> bool {
        self.reader.read(&mut [0]).is_ok_and(|read| read == 0)
    }

    /// Writes until nothing more goes in.
    fn fill(&self) {
        let mut writer = open(&self.path(), true);
        while writer.write(&[b'x'; 4096]).is_ok() {}
        while writer.write(b"x").is_ok() {}
    }
}

fn open(path: &Path, write: bool) -> File {
    let flags = i32::try_from(OFlags::NONBLOCK.bits()).expect("small");
    OpenOptions::new().read(!write).write(write).custom_flags(flags).open(path).expect("opens")
}

#[tokio::test]
async fn it_is_fed_at_each_arming_and_disarmed_at_the_end() {
    let mut fifo = Fifo::new();
    let watchdog = testing(WatchdogMode::Automatic, &fifo.path());
    watchdog.announce().await;
    assert_eq!(fifo.take(), "", "looking at it must not start its clock");
    assert!(watchdog.arm(far()).await.expect("fed"), "opened");
    assert_eq!(fifo.take(), "1");
    assert!(!watchdog.arm(far()).await.expect("fed"), "open already");
    assert_eq!(fifo.take(), "1");
    watchdog.stand_down().await.expect("disarmed");
    assert_eq!(fifo.take(), "V");
    assert!(fifo.is_closed());
    watchdog.stand_down().await.expect("nothing to do");
    assert_eq!(fifo.take(), "");
}

#[tokio::test]
async fn it_is_fed_between_renewals_until_the_claim_is_too_short_for_its_timeout() {
    let mut fifo = Fifo::new();
    let watchdog = testing(WatchdogMode::Required, &fifo.path());
    let ttl = Millis(7_500);
    watchdog.set_timing(Timing { ttl, loop_wait: Millis(1_000), stop_margin: Millis(500) });
    // The lease ends 3.2 s from now. The timeout is 2 s, so its last feeding is before 1.2 s.
    let now = clock::now();
    watchdog.arm(now.plus(Millis(2_700))).await.expect("fed");
    let mut fed = String::new();
    while clock::now() < now.plus(Millis(1_300)) {
        tokio::time::sleep(Duration::from_millis(20)).await;
        fed += &fifo.take();
    }
    assert!(fed.len() >= 2 && fed.bytes().all(|b| b == b'1'), "{fed}");
    // Longer than the pause between two feedings.
    tokio::time::sleep(Duration::from_millis(900)).await;
    assert_eq!(fifo.take(), "", "fed although it would fire after the lease's end");
    watchdog.stand_down().await.expect("disarmed");
    assert_eq!(fifo.take(), "V");
}

#[tokio::test]
async fn without_a_device_only_a_member_that_requires_one_is_in_trouble() {
    let directory = tempfile::tempdir().expect("a directory");
    let missing = directory.path().join("watchdog");
    for driver in [WatchdogDriver::Default, WatchdogDriver::Testing] {
        let of = |mode| Watchdog::new(settings(mode, &missing, driver), TIMING);
        for mode in [WatchdogMode::Off, WatchdogMode::Automatic] {
            let watchdog = of(mode);
            assert!(!watchdog.arm(far()).await.expect("goes on without"));
            assert_eq!(watchdog.trouble().await, None);
            watchdog.stand_down().await.expect("nothing to do");
        }
        let required = of(WatchdogMode::Required);
        let trouble = required.trouble().await.expect("trouble before the first arming");
        assert_eq!(trouble.fault, Fault::NoWatchdog);
        let error = required.arm(far()).await.expect_err("refused");
        assert!(error.to_string().contains("watchdog: No such file"), "{error}");
        assert_eq!(required.trouble().await, Some(trouble), "the same trouble");
    }
}

#[tokio::test]
async fn trouble_ends_when_the_device_is_there() {
    let fifo = Fifo::new();
    let link = fifo.directory.path().join("link");
    let watchdog = testing(WatchdogMode::Required, &link);
    assert!(watchdog.trouble().await.is_some());
    std::os::unix::fs::symlink(fifo.path(), &link).expect("a link");
    assert_eq!(watchdog.trouble().await, None);
    watchdog.arm(far()).await.expect("fed");
}

#[tokio::test]
async fn a_file_is_no_watchdog_unless_it_is_a_test() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("file");
    std::fs::write(&path, "").expect("a file");
    let content = || std::fs::read_to_string(&path).expect("readable");
    let of = |mode| Watchdog::new(settings(mode, &path, WatchdogDriver::Default), TIMING);
    assert!(!of(WatchdogMode::Automatic).arm(far()).await.expect("goes on without"));
    let required = of(WatchdogMode::Required);
    assert!(required.trouble().await.is_some());
    let error = required.arm(far()).await.expect_err("refused");
    assert!(error.to_string().ends_with("not a watchdog device"), "{error}");
    assert_eq!(content(), "");
    // It can be written to, as a device can that another program holds open.
    let null = settings(WatchdogMode::Required, "/dev/null".as_ref(), WatchdogDriver::Default);
    let null = Watchdog::new(null, TIMING);
    assert_eq!(null.trouble().await, None);
    null.arm(far()).await.expect_err("refused");
    assert!(null.trouble().await.is_some(), "what failed in use is not trusted for its looks");
    testing(WatchdogMode::Required, &path).arm(far()).await.expect("fed");
    assert_eq!(content(), "Ctimeout=25\n1");
}

#[tokio::test]
async fn a_device_that_takes_nothing_is_an_error_and_not_a_wait() {
    let mut fifo = Fifo::new();
    let watchdog = testing(WatchdogMode::Required, &fifo.path());
    watchdog.arm(far()).await.expect("fed");
    fifo.fill();
    watchdog.arm(far()).await.expect_err("full");
    assert!(watchdog.trouble().await.is_some());
    watchdog.stand_down().await.expect_err("not disarmed");
    fifo.take();
    watchdog.arm(far()).await.expect("fed");
    assert_eq!(watchdog.trouble().await, None);
    watchdog.stand_down().await.expect("disarmed");
    assert_eq!(fifo.take(), "1V");
}

#[tokio::test]
async fn a_call_that_hangs_is_given_up_and_what_it_opened_is_closed() {
    let mut fifo = Fifo::new();
    let watchdog = testing(WatchdogMode::Required, &fifo.path());
    let (release, held) = std::sync::mpsc::sync_channel::<()>(1);
    let settings = settings(WatchdogMode::Required, &fifo.path(), WatchdogDriver::Testing);
    let hung = watchdog.beside(move |slot| {
        held.recv().map_err(io::Error::other)?;
        feed(slot, &settings, TIMING)
    });
    assert_eq!(hung.await.expect_err("hangs").kind(), io::ErrorKind::TimedOut);
    let error = watchdog.arm(far()).await.expect_err("the device is busy");
    assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    release.send(()).expect("it still waits");
    // The next call waits for its turn, and finds the device closed.
    assert!(watchdog.arm(far()).await.expect("fed"), "opened");
    assert_eq!(fifo.take(), "1V1");
}

#[tokio::test]
async fn settings_are_taken_over_at_the_next_arming() {
    let (mut first, mut second) = (Fifo::new(), Fifo::new());
    let watchdog = testing(WatchdogMode::Automatic, &first.path());
    watchdog.arm(far()).await.expect("fed");
    let moved = settings(WatchdogMode::Automatic, &second.path(), WatchdogDriver::Testing);
    watchdog.configure(moved.clone());
    watchdog.arm(far()).await.expect("fed");
    assert_eq!((first.take().as_str(), second.take().as_str()), ("1V", "1"));
    watchdog.configure(config::Watchdog { mode: WatchdogMode::Off, ..moved });
    watchdog.arm(far()).await.expect("nothing to do");
    assert_eq!(second.take(), "V");
    assert!(second.is_closed());
}

#[tokio::test]
async fn a_lease_that_leaves_no_timeout_disarms_it() {
    let mut fifo = Fifo::new();
    let watchdog = testing(WatchdogMode::Required, &fifo.path());
    watchdog.arm(far()).await.expect("fed");
    watchdog.set_timing(Timing { ttl: Millis(12_000), ..TIMING });
    let error = watchdog.arm(far()).await.expect_err("7 s are shorter than loop_wait");
    assert!(error.to_string().contains("loop_wait"), "{error}");
    assert_eq!(fifo.take(), "1V");
    assert!(watchdog.trouble().await.is_some());
}
