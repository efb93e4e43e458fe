//! PostgreSQL that lives and does not serve, or cannot write: what hangs, what is full, what is
//! taken. The worst case is simulated: what hangs in the kernel survives SIGKILL until the disk
//! goes on, and while it does nothing flushes; a commit whose record was flushed before may still
//! be acknowledged until its session is killed.

use decide::Act;
use types::{Fault, Health, Millis, Trouble};

use crate::faults::Kind;
use crate::world::World;

/// What ails one host, each with how often it was caused and since when (the node's clock).
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Ailments {
    pub(crate) disk_hangs: Ailment,
    pub(crate) disk_full: Ailment,
    /// Ordinary clients hold every connection of the instance that ran when it began.
    pub(crate) connections: Ailment,
    pub(crate) promotion: Ailment,
    /// Killed, but its processes wait for the disk.
    doomed: bool,
}

#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Ailment {
    count: u32,
    since: u64,
}

impl Ailments {
    pub(crate) fn is_doomed(self) -> bool {
        self.doomed
    }
}

impl Ailment {
    pub(crate) fn lasts(self) -> bool {
        self.count > 0
    }

    fn trouble(self, fault: Fault) -> Option<Trouble> {
        self.lasts().then_some(Trouble { since: Millis(self.since), fault })
    }
}

/// What an ailing disk does to an action.
pub(crate) enum Effect {
    None,
    /// It waits for the disk.
    Waits,
    Fails,
}

impl World {
    fn ailment(&mut self, node: usize, kind: Kind) -> Option<&mut Ailment> {
        let ailments = &mut self.hosts[node].ailments;
        match kind {
            Kind::DiskHangs => Some(&mut ailments.disk_hangs),
            Kind::DiskFull => Some(&mut ailments.disk_full),
            Kind::ConnectionsTaken => Some(&mut ailments.connections),
            Kind::PromotionFails => Some(&mut ailments.promotion),
            _ => None,
        }
    }

    pub(crate) fn ailment_begins(&mut self, node: usize, kind: Kind) {
        let clock = self.hosts[node].clock(self.now).0;
        if let Some(ailment) = self.ailment(node, kind) {
            if !ailment.lasts() {
                ailment.since = clock;
            }
            ailment.count += 1;
        }
        self.notice(node);
    }

    pub(crate) fn ailment_ends(&mut self, node: usize, kind: Kind) {
        if let Some(ailment) = self.ailment(node, kind) {
            ailment.count -= 1;
        }
        let ailments = &mut self.hosts[node].ailments;
        if !ailments.disk_hangs.lasts() && std::mem::take(&mut ailments.doomed) {
            self.instance_killed(node, "ends at last, its disk goes on");
        }
        self.notice(node);
    }

    /// What trial runs show.
    pub(crate) fn health_of(&self, node: usize) -> Health {
        let host = &self.hosts[node];
        let ailments = &host.ailments;
        let hangs = ailments.disk_hangs.trouble(Fault::DiskHangs);
        Health {
            write: hangs.or_else(|| ailments.disk_full.trouble(Fault::DiskFull)),
            connection: ailments
                .connections
                .trouble(Fault::NoConnectionLeft)
                .filter(|_| self.connections_taken(node)),
            ..Health::default()
        }
    }

    /// Whether no client is served: those that hold the connections are of the running instance.
    pub(crate) fn connections_taken(&self, node: usize) -> bool {
        let host = &self.hosts[node];
        let held = host.ailments.connections;
        held.lasts() && host.postgres.as_ref().is_some_and(|i| i.since <= held.since)
    }

    /// SIGKILL to every process. True if they are gone.
    pub(crate) fn kill_instance(&mut self, node: usize, how: &str) -> bool {
        if self.hosts[node].postgres.is_none() {
            return true;
        }
        if !self.hosts[node].ailments.disk_hangs.lasts() {
            self.instance_killed(node, how);
            return true;
        }
        self.hosts[node].ailments.doomed = true;
        if let Some(instance) = &mut self.hosts[node].postgres
            && instance.postmaster
        {
            // Sessions that wait for standbys do not wait for the disk: they die.
            instance.postmaster = false;
            instance.waiting.clear();
            self.tell(node, || format!("PostgreSQL is {how}, and waits for its disk"));
            self.notice(node);
        }
        false
    }

    /// What an ailing disk does to an action on the data directory.
    pub(crate) fn effect_on(&mut self, node: usize, act: &Act) -> Effect {
        let writes = matches!(
            act,
            Act::Initdb
                | Act::Clone { .. }
                | Act::Rewind { .. }
                | Act::Start { .. }
                | Act::Follow { .. }
                | Act::StopReceiving { .. }
                | Act::Promote { .. }
                | Act::SetSync { .. }
                | Act::Checkpoint
        );
        let ailments = self.hosts[node].ailments;
        let stops = matches!(act, Act::Stop { .. } | Act::StopForHandOver { .. });
        if ailments.disk_hangs.lasts() && (writes || stops) {
            let immediate = matches!(act, Act::Stop { mode: decide::StopMode::Immediate });
            // An immediate stop kills what can be killed, and then waits.
            return if immediate { Effect::None } else { Effect::Waits };
        }
        let full = ailments.disk_full.lasts();
        let promotion = full || ailments.promotion.lasts();
        if promotion && matches!(act, Act::Promote { .. }) {
            self.kill_instance(node, "killed, since it cannot be promoted");
            return Effect::Fails;
        }
        if full && writes { Effect::Fails } else { Effect::None }
    }
}
