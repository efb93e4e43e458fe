//! A watchdog device: the machine is reset when it was not fed for its timeout (Linux's
//! `Documentation/watchdog/watchdog-api.rst`). Opening it starts the clock; only the letter `V`
//! before closing stops it.
//!
//! Nothing here decides when to feed, and every call may hang with the device.

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::mem::MaybeUninit;
use std::os::unix::fs::{FileTypeExt as _, OpenOptionsExt as _};
use std::path::Path;

use rustix::fs::OFlags;
use rustix::io::Errno;
use rustix::ioctl::{self, Getter, Opcode, Updater, opcode};

/// What stands at the device's path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Driver {
    /// A watchdog of the kernel.
    Linux,
    /// Anything that can be written to, played by a test: its timeout is written to it as
    /// `Ctimeout=SECONDS` and a line feed (as Patroni 4.1 has it).
    Testing,
}

/// An open device; dropping it does not stop its clock.
#[derive(Debug)]
pub struct Watchdog {
    file: File,
    driver: Driver,
    timeout_secs: u32,
    can_be_disarmed: bool,
}

impl Watchdog {
    /// Whether the device could be opened, without opening it (which would start its clock).
    ///
    /// # Errors
    /// Why it could not.
    pub fn check(path: &Path, driver: Driver) -> io::Result<()> {
        let kind = std::fs::metadata(path)?.file_type();
        if driver == Driver::Linux && !kind.is_char_device() {
            return Err(not_a_watchdog());
        }
        Ok(rustix::fs::access(path, rustix::fs::Access::WRITE_OK)?)
    }

    /// Opens the device and has it reset the machine after `timeout_secs`, or what it makes of it.
    ///
    /// # Errors
    /// If it cannot be opened, or is no watchdog.
    pub fn open(path: &Path, driver: Driver, timeout_secs: u32) -> io::Result<Watchdog> {
        Watchdog::check(path, driver)?;
        let flags = i32::try_from((OFlags::NONBLOCK | OFlags::NOCTTY).bits()).unwrap_or(0);
        let file = OpenOptions::new().write(true).custom_flags(flags).open(path)?;
        let mut watchdog = Watchdog { file, driver, timeout_secs, can_be_disarmed: true };
        // The clock runs: whatever fails now must stop it again.
        if let Err(error) = watchdog.set_up(timeout_secs) {
            watchdog.disarm().ok();
            return Err(error);
        }
        Ok(watchdog)
    }

    fn set_up(&mut self, timeout_secs: u32) -> io::Result<()> {
        if self.driver == Driver::Linux {
            self.can_be_disarmed = self.options()? & WDIOF_MAGICCLOSE != 0;
        }
        self.set_timeout(timeout_secs)
    }

    /// Sets the timeout. A device with a fixed one keeps it; [`Watchdog::timeout_secs`] says which
    /// is in force.
    ///
    /// # Errors
    /// If the device says neither.
    pub fn set_timeout(&mut self, timeout_secs: u32) -> io::Result<()> {
        self.timeout_secs = match self.driver {
            Driver::Testing => {
                self.file.write_all(format!("Ctimeout={timeout_secs}\n").as_bytes())?;
                timeout_secs
            }
            Driver::Linux => self.exchange_timeout(timeout_secs)?,
        };
        Ok(())
    }

    /// How long after it was fed last it resets the machine.
    #[must_use]
    pub fn timeout_secs(&self) -> u32 {
        self.timeout_secs
    }

    /// Whether the letter `V` stops its clock; a driver may be built or loaded without that.
    #[must_use]
    pub fn can_be_disarmed(&self) -> bool {
        self.can_be_disarmed
    }

    /// Starts its time anew.
    ///
    /// # Errors
    /// If it takes nothing; then its time runs on.
    pub fn feed(&mut self) -> io::Result<()> {
        self.write(b"1")
    }

    /// Stops its clock. It is to be closed then.
    ///
    /// # Errors
    /// If it takes nothing; then its time runs on.
    pub fn disarm(&mut self) -> io::Result<()> {
        self.write(b"V")
    }

    fn write(&mut self, byte: &[u8; 1]) -> io::Result<()> {
        match self.file.write(byte)? {
            1 => Ok(()),
            _ => Err(io::ErrorKind::WriteZero.into()),
        }
    }

    #[allow(unsafe_code)] // an ioctl has no safe form
    fn options(&self) -> io::Result<u32> {
        const GET_SUPPORT: Opcode = opcode::read::<Info>(b'W', 0);
        // SAFETY: WDIOC_GETSUPPORT writes one `struct watchdog_info`, as `Info` is; a file that is
        // no watchdog refuses it.
        let info = unsafe { ioctl::ioctl(&self.file, Getter::<GET_SUPPORT, Info>::new()) };
        info.map(|info| info.options).map_err(named)
    }

    #[allow(unsafe_code)] // an ioctl has no safe form
    fn exchange_timeout(&self, timeout_secs: u32) -> io::Result<u32> {
        const SET_TIMEOUT: Opcode = opcode::read_write::<i32>(b'W', 6);
        const GET_TIMEOUT: Opcode = opcode::read::<i32>(b'W', 7);
        let mut seconds = i32::try_from(timeout_secs).unwrap_or(i32::MAX);
        // SAFETY: WDIOC_SETTIMEOUT reads and writes one int.
        let set =
            unsafe { ioctl::ioctl(&self.file, Updater::<SET_TIMEOUT, i32>::new(&mut seconds)) };
        match set {
            // Some drivers have one fixed timeout.
            Ok(()) | Err(Errno::OPNOTSUPP | Errno::NOTTY) => {}
            Err(error) => return Err(named(error)),
        }
        // SAFETY: WDIOC_GETTIMEOUT writes one int.
        let seconds = unsafe { ioctl::ioctl(&self.file, Getter::<GET_TIMEOUT, i32>::new()) };
        u32::try_from(seconds.map_err(named)?).map_err(io::Error::other)
    }
}

/// `WDIOF_MAGICCLOSE`.
const WDIOF_MAGICCLOSE: u32 = 0x0100;

/// `struct watchdog_info` of `linux/watchdog.h`.
#[repr(C)]
struct Info {
    options: u32,
    firmware_version: u32,
    identity: MaybeUninit<[u8; 32]>,
}

fn named(error: Errno) -> io::Error {
    if error == Errno::NOTTY { not_a_watchdog() } else { error.into() }
}

fn not_a_watchdog() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, "not a watchdog device")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_device_is_one() {
        let null = Path::new("/dev/null");
        assert!(Watchdog::check(null, Driver::Linux).is_ok(), "only opening can tell");
        let refused = Watchdog::open(null, Driver::Linux, 5).expect_err("no watchdog");
        assert_eq!(refused.to_string(), "not a watchdog device");
        let file = std::env::current_exe().expect("has a path");
        assert_eq!(
            Watchdog::check(&file, Driver::Linux).expect_err("a file").to_string(),
            "not a watchdog device"
        );
        assert!(Watchdog::check(Path::new("/dev/null/x"), Driver::Testing).is_err());
        let mut stand_in = Watchdog::open(null, Driver::Testing, 5).expect("can be written to");
        stand_in.feed().expect("takes everything");
        assert_eq!(stand_in.timeout_secs(), 5);
    }
}
