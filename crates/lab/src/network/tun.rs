//! TUN devices: what a host's kernel sends there is read here as packets, and what is written here
//! it receives (Linux's `Documentation/networking/tuntap.rst`). A device goes with its descriptor.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;

use rustix::fs::OFlags;
use rustix::ioctl::{self, Opcode, Setter, opcode};

/// Attaches the descriptor to a device of the current network namespace.
const TUNSETIFF: Opcode = opcode::write::<std::ffi::c_int>(b'T', 202);
/// Packets of the network layer, without a link layer.
const IFF_TUN: u16 = 0x0001;
/// No header of the driver's own before each packet.
const IFF_NO_PI: u16 = 0x1000;
/// `IFNAMSIZ`, the final zero among them.
const NAME_BYTES: usize = 16;

/// `struct ifreq` as this call reads it: a name, flags, and the rest of the union.
#[repr(C, align(8))]
struct Request {
    name: [u8; NAME_BYTES],
    flags: u16,
    rest: [u8; 22],
}

/// Makes a device in the network namespace of the calling thread; reads and writes never wait.
///
/// # Errors
/// There is no `/dev/net/tun`, or the kernel refused.
pub(super) fn open(name: &str) -> io::Result<File> {
    let flags = i32::try_from(OFlags::NONBLOCK.bits()).unwrap_or(0);
    let mut options = OpenOptions::new();
    let file = options.read(true).write(true).custom_flags(flags).open("/dev/net/tun")?;
    let mut request = Request { name: [0; NAME_BYTES], flags: IFF_TUN | IFF_NO_PI, rest: [0; 22] };
    // One byte less: the kernel's name ends in a zero.
    for (place, byte) in request.name[..NAME_BYTES - 1].iter_mut().zip(name.bytes()) {
        *place = byte;
    }
    // SAFETY: TUNSETIFF reads a `struct ifreq`, which has this layout and this size on Linux, and
    // writes nothing else.
    #[allow(unsafe_code)] // rustix has no call for it
    unsafe {
        ioctl::ioctl(&file, Setter::<TUNSETIFF, Request>::new(request))?;
    }
    Ok(file)
}

// What the kernel copies in, on every 64-bit Linux.
const _: () = assert!(size_of::<Request>() == 40);
