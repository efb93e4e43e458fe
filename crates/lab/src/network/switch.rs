//! The switch: a thread that carries packets from host to host, as the rules of the moment say.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};

use super::rules::{self, Flow, Rule, Verdict};

/// The largest packet: every device's MTU is smaller.
const PACKET_BYTES: usize = 2048;
/// Packets taken from one host before the next one has its turn.
const TURN: usize = 64;
/// Delayed packets under way; further ones are lost, as in a real queue.
const QUEUE_MAX: usize = 16 * 1024;
/// The seed of the dice. Which packet meets which number depends on their timing anyway.
const SEED: u64 = 0x9e37_79b9_7f4a_7c15;

/// The rules of the moment.
#[derive(Clone, Default)]
pub(super) struct Shared(Arc<Mutex<Vec<Rule>>>);

impl Shared {
    pub(super) fn lock(&self) -> MutexGuard<'_, Vec<Rule>> {
        // A panic in between leaves whole rules.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The running switch. The thread ends when it is dropped.
pub(super) struct Switch {
    pub(super) rules: Shared,
    stop: Arc<OwnedFd>,
    thread: Option<JoinHandle<()>>,
}

impl Switch {
    /// Starts it between these hosts, each an address and its device.
    pub(super) fn start(hosts: Vec<(Ipv4Addr, File)>) -> std::io::Result<Switch> {
        let rules = Shared::default();
        let stop = Arc::new(eventfd(0, EventfdFlags::CLOEXEC)?);
        let (addresses, devices) = hosts.into_iter().unzip();
        let carrier = Carrier {
            addresses,
            devices,
            rules: rules.clone(),
            late: BinaryHeap::new(),
            dice: SEED,
            count: 0,
        };
        let told = Arc::clone(&stop);
        let thread = std::thread::Builder::new()
            .name("lab-switch".to_owned())
            .spawn(move || carrier.run(&told))?;
        Ok(Switch { rules, stop, thread: Some(thread) })
    }
}

impl Drop for Switch {
    fn drop(&mut self) {
        // An eventfd that is not full takes eight bytes.
        rustix::io::write(&self.stop, &1_u64.to_ne_bytes()).ok();
        if let Some(thread) = self.thread.take() {
            // A panic has been reported already, and there is nothing to undo.
            drop(thread.join());
        }
    }
}

/// A packet that arrives later: when, in which order, to whom, what.
type Late = Reverse<(Instant, u64, usize, Vec<u8>)>;

struct Carrier {
    addresses: Vec<Ipv4Addr>,
    devices: Vec<File>,
    rules: Shared,
    late: BinaryHeap<Late>,
    dice: u64,
    count: u64,
}

impl Carrier {
    fn run(mut self, stop: &OwnedFd) {
        let mut buffer = [0; PACKET_BYTES];
        loop {
            let ready = match self.wait(stop) {
                Ok(Some(ready)) => ready,
                Ok(None) => return,
                Err(error) => {
                    tracing::error!(%error, "the switch cannot wait for packets, and ends");
                    return;
                }
            };
            for host in ready {
                self.take_from(host, &mut buffer);
            }
            self.deliver_late();
        }
    }

    /// Waits for packets, or until one is due; `None` when it is to end.
    fn wait(&self, stop: &OwnedFd) -> std::io::Result<Option<Vec<usize>>> {
        let limit = self.late.peek().map(|Reverse((due, ..))| {
            let left = due.saturating_duration_since(Instant::now());
            Timespec::try_from(left).unwrap_or_default()
        });
        let mut waits = vec![PollFd::new(stop, PollFlags::IN)];
        waits.extend(self.devices.iter().map(|device| PollFd::new(device, PollFlags::IN)));
        match poll(&mut waits, limit.as_ref()) {
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => return Ok(Some(Vec::new())),
            Err(errno) => return Err(errno.into()),
        }
        if !waits[0].revents().is_empty() {
            return Ok(None);
        }
        let devices = waits[1..].iter().enumerate();
        let ready = devices.filter(|(_, wait)| wait.revents().contains(PollFlags::IN));
        Ok(Some(ready.map(|(host, _)| host).collect()))
    }

    fn take_from(&mut self, from: usize, buffer: &mut [u8]) {
        for _ in 0..TURN {
            let length = match (&self.devices[from]).read(buffer) {
                Ok(length) => length,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                // Nothing more for now, or the device is down.
                Err(_) => return,
            };
            self.carry(from, &buffer[..length]);
        }
    }

    fn carry(&mut self, from: usize, packet: &[u8]) {
        let Some((address, ports)) = header(packet) else { return };
        let to = self.addresses.iter().position(|own| *own == address);
        let Some(to) = to else { return };
        let flow = Flow { from, to, ports };
        let rules = self.rules.clone();
        let verdict = rules::verdict(&rules.lock(), &flow, || self.roll());
        match verdict {
            Verdict::Vanish => {}
            Verdict::Pass { after: Duration::ZERO } => self.deliver(to, packet),
            Verdict::Pass { after } if self.late.len() < QUEUE_MAX => {
                self.count += 1;
                let due = Instant::now() + after;
                self.late.push(Reverse((due, self.count, to, packet.to_vec())));
            }
            Verdict::Pass { .. } => {}
        }
    }

    fn deliver_late(&mut self) {
        let now = Instant::now();
        while self.late.peek().is_some_and(|Reverse((due, ..))| *due <= now) {
            if let Some(Reverse((_, _, to, packet))) = self.late.pop() {
                self.deliver(to, &packet);
            }
        }
    }

    fn deliver(&self, to: usize, packet: &[u8]) {
        // A host that takes no packet loses it, as any other network does.
        drop((&self.devices[to]).write(packet));
    }

    /// A number below a hundred: SplitMix64.
    fn roll(&mut self) -> u8 {
        self.dice = self.dice.wrapping_add(SEED);
        let mut z = self.dice;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        u8::try_from((z ^ (z >> 31)) % 100).unwrap_or(0)
    }
}

/// The destination of an IPv4 packet, and the ports if it is TCP. Nothing for what is no IPv4, or
/// too short: the network does not carry it.
fn header(packet: &[u8]) -> Option<(Ipv4Addr, Option<[u16; 2]>)> {
    const TCP: u8 = 6;
    let first = *packet.first()?;
    if first >> 4 != 4 {
        return None;
    }
    let address: [u8; 4] = packet.get(16..20)?.try_into().ok()?;
    let payload = packet.get(usize::from(first & 0x0f) * 4..)?;
    let port = |at: usize| Some(u16::from_be_bytes(payload.get(at..at + 2)?.try_into().ok()?));
    let ports = (packet.get(9) == Some(&TCP)).then(|| Some([port(0)?, port(2)?])).flatten();
    Some((address.into(), ports))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An IPv4 header of 20 bytes for 10.0.0.2, with a protocol, and eight bytes behind it.
    fn packet(protocol: u8) -> Vec<u8> {
        let mut packet = vec![0; 28];
        packet[0] = 0x45;
        packet[9] = protocol;
        packet[16..20].copy_from_slice(&[10, 0, 0, 2]);
        packet[20..24].copy_from_slice(&[0x9c, 0x40, 0x09, 0x4b]);
        packet
    }

    #[test]
    fn ports_are_read_from_tcp_alone() {
        let address = Ipv4Addr::new(10, 0, 0, 2);
        assert_eq!(header(&packet(6)), Some((address, Some([40_000, 2379]))));
        assert_eq!(header(&packet(17)), Some((address, None)));
    }

    #[test]
    fn what_is_no_whole_packet_is_not_carried() {
        let whole = packet(6);
        for length in 0..20 {
            assert_eq!(header(&whole[..length]), None, "{length} bytes");
        }
        assert_eq!(header(&whole[..22]).and_then(|(_, ports)| ports), None);
        let mut other = whole;
        other[0] = 0x60;
        assert_eq!(header(&other), None);
    }
}
