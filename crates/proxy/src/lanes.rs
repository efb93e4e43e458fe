//! Which worker serves a client: the one that has the fewest. The kernel wakes all of them for a
//! connection, and often the same one is first; eight clients of one worker share half of what two
//! workers can do.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use route::Port;
use tokio::sync::mpsc;

use crate::front::Newcomer;

/// Clients on their way from one worker to another; the next ones stay with who accepted them.
const UNDER_WAY_MAX: usize = 64;

/// A client on its way to its worker.
pub(crate) struct Accepted {
    pub(crate) newcomer: Newcomer,
    pub(crate) port: Port,
    pub(crate) socket: std::net::TcpStream,
    pub(crate) address: SocketAddr,
    pub(crate) seat: Seat,
}

/// The ways to all workers.
pub(crate) struct Lanes(Vec<Lane>);

struct Lane {
    clients: AtomicUsize,
    way: mpsc::Sender<Accepted>,
}

/// A client's place at a worker, until this is dropped.
pub(crate) struct Seat {
    lanes: Arc<Lanes>,
    worker: usize,
}

impl Lanes {
    /// Those of so many workers, and where each gets its clients from others.
    pub(crate) fn new(workers: usize) -> (Arc<Lanes>, Vec<mpsc::Receiver<Accepted>>) {
        let channels = (0..workers).map(|_| mpsc::channel(UNDER_WAY_MAX));
        let (ways, ends): (Vec<_>, Vec<_>) = channels.unzip();
        let lane = |way| Lane { clients: AtomicUsize::new(0), way };
        (Arc::new(Lanes(ways.into_iter().map(lane).collect())), ends)
    }

    /// A place at the worker that has the fewest clients: at this one, unless another has fewer.
    pub(crate) fn seat(self: &Arc<Lanes>, own: usize) -> Seat {
        let count = |worker: usize| self.0[worker].clients.load(Ordering::Relaxed);
        let others = (0..self.0.len()).filter(|worker| *worker != own);
        let fewest = others.min_by_key(|worker| count(*worker));
        let worker = fewest.filter(|worker| count(*worker) < count(own)).unwrap_or(own);
        self.seat_at(worker)
    }

    /// A place at this worker.
    pub(crate) fn seat_at(self: &Arc<Lanes>, worker: usize) -> Seat {
        self.0[worker].clients.fetch_add(1, Ordering::Relaxed);
        Seat { lanes: self.clone(), worker }
    }

    /// Sends a client to the worker of its seat, or gives it back: that one has ended, or too many
    /// are on their way to it.
    pub(crate) fn send(&self, accepted: Accepted) -> Result<(), Accepted> {
        let way = &self.0[accepted.seat.worker].way;
        way.try_send(accepted).map_err(mpsc::error::TrySendError::into_inner)
    }
}

impl Seat {
    pub(crate) fn worker(&self) -> usize {
        self.worker
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.lanes.0[self.worker].clients.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_are_shared_out_whoever_accepts_them() {
        let (lanes, _ends) = Lanes::new(3);
        let seats: Vec<Seat> = (0..9).map(|_| lanes.seat(1)).collect();
        let of = |worker| seats.iter().filter(|seat| seat.worker() == worker).count();
        assert_eq!([of(0), of(1), of(2)], [3, 3, 3]);
        assert_eq!(seats[0].worker(), 1, "nobody has fewer than who accepted it");
    }

    #[test]
    fn who_has_gone_makes_room() {
        let (lanes, _ends) = Lanes::new(2);
        let mut seats: Vec<Seat> = (0..4).map(|_| lanes.seat(0)).collect();
        seats.retain(|seat| seat.worker() == 0);
        assert_eq!(seats.len(), 2);
        assert_eq!(lanes.seat(0).worker(), 1);
        drop(seats);
        assert_eq!(lanes.seat(0).worker(), 0);
    }
}
