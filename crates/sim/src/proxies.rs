//! Proxies that follow the leader's hold: at once, late, never, or until they die. What they do
//! decides nothing; hand-overs wait for them, and must not wait for ever.

use types::ProxyRecord;

use crate::rng::Rng;
use crate::world::{Event, World};

/// The time to live of a proxy's lease, in milliseconds.
const TTL: u64 = 10_000;
/// How often it is kept alive, in milliseconds.
const BEAT: u64 = 2_000;

/// How a proxy answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Manner {
    AtOnce,
    Late,
    Never,
}

/// One proxy. Chance has a source of its own here, so that a run without proxies is what it was.
#[derive(Debug, Clone)]
pub(crate) struct Proxy {
    rng: Rng,
    manner: Manner,
    /// It registers at this instant, and is gone at that one, with its key left to its lease.
    begins: u64,
    dies: u64,
    lease: i64,
    record: ProxyRecord,
    /// A look at the store is on its way.
    looking: bool,
    /// The hold that it is about to answer.
    answering: Option<u64>,
}

impl Proxy {
    pub(crate) fn new(seed: u64, index: u64) -> Proxy {
        let mut rng = Rng::new(seed.wrapping_mul(97).wrapping_add(index));
        let manner = [Manner::AtOnce, Manner::AtOnce, Manner::Late, Manner::Never][rng.index(4)];
        let dies = if rng.chance(400) { rng.range(20_000, 110_000) } else { u64::MAX };
        Proxy {
            manner,
            begins: rng.range(1, 20_000),
            dies,
            lease: 0,
            record: ProxyRecord { address: format!("p{index}:5000"), ..ProxyRecord::default() },
            looking: false,
            answering: None,
            rng,
        }
    }

    pub(crate) fn begins(&self) -> u64 {
        self.begins
    }
}

impl World {
    /// Keeps the lease alive, and writes the key anew where it is gone.
    pub(crate) fn proxy_beats(&mut self, index: usize) {
        if self.now >= self.proxies[index].dies {
            return;
        }
        if self.store_down == 0 {
            let lease = self.proxies[index].lease;
            let registered = self.store.see().proxies.contains_key(&id_of(index));
            if !self.store.keep_alive(self.now, lease) {
                self.proxies[index].lease = self.store.grant(self.now, TTL);
                self.write_proxy(index);
            } else if !registered {
                self.write_proxy(index);
            }
            self.schedule_lease_check();
        }
        self.proxy_looks(index);
        self.after(BEAT, Event::ProxyBeat { index });
    }

    /// The store changed: proxies hear of it.
    pub(crate) fn tell_proxies(&mut self) {
        for index in 0..self.proxies.len() {
            let proxy = &mut self.proxies[index];
            if proxy.lease != 0 && !proxy.looking {
                proxy.looking = true;
                let delay = proxy.rng.range(1, 15);
                self.after(delay, Event::ProxyLooks { index });
            }
        }
    }

    pub(crate) fn proxy_looks(&mut self, index: usize) {
        let hold = self.store.see().active_hold().map(|hold| hold.value.id);
        let reachable = self.store_down == 0;
        let proxy = &mut self.proxies[index];
        proxy.looking = false;
        if self.now >= proxy.dies || !reachable || proxy.record.hold == hold {
            return;
        }
        let Some(id) = hold else {
            (proxy.record.hold, proxy.record.busy) = (None, 0);
            proxy.answering = None;
            self.write_proxy(index);
            return;
        };
        let delay = match proxy.manner {
            Manner::AtOnce => proxy.rng.range(1, 60),
            Manner::Late => proxy.rng.range(100, 2_000),
            Manner::Never => return,
        };
        if proxy.answering != Some(id) {
            proxy.answering = Some(id);
            self.after(delay, Event::ProxyAnswers { index, id });
        }
    }

    /// It holds; some of its clients are in a transaction, which ends soon, or not before any grace
    /// is over.
    pub(crate) fn proxy_answers(&mut self, index: usize, id: u64) {
        let reachable = self.store_down == 0;
        let proxy = &mut self.proxies[index];
        if self.now >= proxy.dies || proxy.answering != Some(id) || !reachable {
            proxy.answering = None;
            return;
        }
        proxy.record.hold = Some(id);
        proxy.record.busy = proxy.rng.range(0, 2);
        let quiet = [50, 500, 2_500, 8_000][proxy.rng.index(4)];
        if proxy.record.busy > 0 {
            self.after(quiet, Event::ProxyQuiet { index, id });
        }
        self.checks.holds_answered += 1;
        self.tell_all(|| format!("proxy {index} holds {id}"));
        self.write_proxy(index);
    }

    pub(crate) fn proxy_quiet(&mut self, index: usize, id: u64) {
        let reachable = self.store_down == 0;
        let proxy = &mut self.proxies[index];
        if self.now < proxy.dies && proxy.record.hold == Some(id) && reachable {
            proxy.record.busy = 0;
            self.write_proxy(index);
        }
    }

    fn write_proxy(&mut self, index: usize) {
        let proxy = &self.proxies[index];
        let (lease, record) = (proxy.lease, proxy.record.clone());
        if self.store.write_proxy(id_of(index), lease, record) {
            self.publish();
        }
    }
}

fn id_of(index: usize) -> String {
    format!("p{index}")
}
