//! Streams: a walsender, a receiver, and the network between them.

use types::Lsn;

use crate::postgres::{Phase, RECONNECT, STREAM_TIMEOUT, Stream};
use crate::wal::{Record, index, lsn};
use crate::world::{Event, World};

/// How often keep-alives are looked at, in milliseconds.
const CHECK: u64 = 250;
/// How long a message waits for a broken link before it is tried again, in milliseconds.
const RESEND: u64 = 60;

impl World {
    /// A standby without a receiver tries to get one.
    pub(crate) fn start_connecting(&mut self, node: usize, delay: u64) {
        let Some(instance) = &mut self.hosts[node].postgres else { return };
        if !instance.connecting && instance.phase == Phase::Standby {
            instance.connecting = true;
            let number = instance.number;
            self.after(delay, Event::Connect { node, instance: number });
        }
    }

    pub(crate) fn connect(&mut self, node: usize, number: u64) {
        let Some(instance) = self.hosts[node].instance_mut(number) else { return };
        instance.connecting = false;
        if instance.phase != Phase::Standby || instance.receiver.is_some() || !instance.postmaster {
            return;
        }
        // The startup process has to have read what is here before it asks for more.
        let replayed = instance.replayed;
        let Some(data) = &self.hosts[node].disk.data else { return };
        let Some(upstream) = data.conninfo.as_ref().map(|u| u.name.clone()) else { return };
        let ready = replayed >= data.log.end();
        let up = self.node_named(&upstream).filter(|up| *up != node);
        match up {
            Some(up) if ready && self.may_stream(node, up) => self.open_stream(node, number, up),
            Some(_) | None => self.start_connecting(node, RECONNECT),
        }
    }

    fn may_stream(&self, node: usize, up: usize) -> bool {
        let host = &self.hosts[up];
        let accepts = host.postgres.as_ref().is_some_and(crate::postgres::Instance::accepts);
        let (Some(mine), Some(theirs)) = (&self.hosts[node].disk.data, &host.disk.data) else {
            return false;
        };
        // A17: the slot has to be there, and a walsender that still holds it keeps others out.
        let slot = types::slot_name(&self.hosts[node].name);
        let held = self.streams.values().any(|s| s.up == up && s.down == node && s.sender_lives);
        accepts
            && theirs.slots.contains_key(&slot)
            && !held
            && host.frozen == 0
            && host.postmaster_frozen == 0
            && self.linked(node, up)
            && self.linked(up, node)
            && mine.system_identifier == theirs.system_identifier
            && mine.log.may_stream_from(&theirs.log)
    }

    fn open_stream(&mut self, node: usize, number: u64, up: usize) {
        let id = self.number();
        let Some(data) = &self.hosts[node].disk.data else { return };
        let end = data.log.end();
        let Some(instance) = &self.hosts[up].postgres else { return };
        let rule = self.hosts[up].disk.data.as_ref().map(|d| d.rule.clone());
        let stream = Stream {
            up,
            up_instance: instance.number,
            down: node,
            down_instance: number,
            sender_lives: true,
            receiver_lives: true,
            sent: index(end),
            in_flight: false,
            caught_up: false,
            buffer: Vec::new(),
            flushing: false,
            confirmed: lsn(0),
            replayed: lsn(0),
            rule: rule.unwrap_or(decide::SyncRule::Off),
            heard_up: self.now,
            heard_down: self.now,
        };
        self.streams.insert(id, stream);
        if let Some(instance) = self.hosts[node].instance_mut(number) {
            instance.receiver = Some(id);
            instance.has_streamed = true;
        }
        let upstream = self.hosts[up].name.clone();
        self.tell(node, || format!("streams from {upstream} at {}", end.0));
        let delay = self.hop();
        self.after(delay, Event::Confirm { stream: id, flush: end, replay: end });
        self.after(CHECK, Event::StreamCheck { stream: id });
        self.pump(id);
        self.notice(node);
        self.notice(up);
    }

    /// Sends what a walsender has not sent yet.
    fn pump(&mut self, id: u64) {
        let delay = self.hop();
        let Some(stream) = self.streams.get_mut(&id) else { return };
        if stream.in_flight || !stream.sender_lives {
            return;
        }
        let Some(data) = &self.hosts[stream.up].disk.data else { return };
        let end = data.log.records.len();
        if stream.sent >= end {
            stream.caught_up = true;
            return;
        }
        let records = data.log.records[stream.sent..].to_vec();
        stream.sent = end;
        stream.in_flight = true;
        self.after(delay, Event::Arrive { stream: id, records });
    }

    /// A host's log grew: its walsenders have work.
    pub(crate) fn pump_all(&mut self, node: usize) {
        let ids: Vec<u64> =
            self.streams.iter().filter(|(_, s)| s.up == node).map(|(id, _)| *id).collect();
        for id in ids {
            self.pump(id);
        }
    }

    pub(crate) fn arrive(&mut self, id: u64, records: Vec<Record>) {
        let Some(stream) = self.streams.get(&id) else { return };
        if !stream.receiver_lives {
            return;
        }
        let (up, down) = (stream.up, stream.down);
        if !self.linked(up, down) {
            self.after(RESEND, Event::Arrive { stream: id, records });
            return;
        }
        let delay = self.flush_time(down);
        let now = self.now;
        let Some(stream) = self.streams.get_mut(&id) else { return };
        stream.heard_down = now;
        stream.in_flight = false;
        stream.buffer.extend_from_slice(&records);
        if !stream.flushing {
            stream.flushing = true;
            self.after(delay, Event::Flushed { stream: id });
        }
        self.pump(id);
    }

    pub(crate) fn flushed(&mut self, id: u64) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        let ailments = self.hosts[stream.down].ailments;
        if ailments.disk_hangs.lasts() || ailments.disk_full.lasts() {
            self.after(50, Event::Flushed { stream: id });
            return;
        }
        stream.flushing = false;
        if stream.receiver_lives {
            let node = stream.down;
            self.flush_buffer(id);
            self.report(id);
            self.start_replay(node);
            self.pump_all(node);
        }
    }

    /// What a receiver got becomes part of the log.
    fn flush_buffer(&mut self, id: u64) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        let buffer = std::mem::take(&mut stream.buffer);
        let (up, down) = (stream.up, stream.down);
        if buffer.is_empty() {
            return;
        }
        let history = self.hosts[up].disk.data.as_ref().map(|d| d.log.history.clone());
        if let Some(data) = &mut self.hosts[down].disk.data {
            data.log.extend(&buffer, &history.unwrap_or_default());
        }
    }

    /// A receiver tells its walsender how far it is.
    fn report(&mut self, id: u64) {
        let delay = self.hop();
        let Some(stream) = self.streams.get(&id) else { return };
        let host = &self.hosts[stream.down];
        let (Some(data), Some(instance)) = (&host.disk.data, &host.postgres) else { return };
        let (flush, replay) = (data.log.end(), instance.replayed);
        self.after(delay, Event::Confirm { stream: id, flush, replay });
    }

    pub(crate) fn confirmed(&mut self, id: u64, flush: Lsn, replay: Lsn) {
        let Some(stream) = self.streams.get(&id) else { return };
        if !stream.sender_lives {
            return;
        }
        if !self.linked(stream.down, stream.up) {
            self.after(RESEND, Event::Confirm { stream: id, flush, replay });
            return;
        }
        let now = self.now;
        let Some(stream) = self.streams.get_mut(&id) else { return };
        let first = stream.confirmed == lsn(0);
        stream.heard_up = now;
        stream.confirmed = stream.confirmed.max(flush);
        stream.replayed = stream.replayed.max(replay);
        let up = stream.up;
        self.release_waiting(id);
        if first {
            self.notice(up);
        }
    }

    pub(crate) fn check_stream(&mut self, id: u64) {
        let Some(stream) = self.streams.get(&id) else { return };
        let (up, down) = (stream.up, stream.down);
        let down_link = self.linked(up, down);
        let up_link = self.linked(down, up);
        let up_stands = self.hosts[up].frozen > 0;
        let down_stands = self.hosts[down].frozen > 0;
        let now = self.now;
        let Some(stream) = self.streams.get_mut(&id) else { return };
        if stream.sender_lives && !up_stands && down_link && !down_stands {
            stream.heard_down = now;
        }
        if stream.receiver_lives && !down_stands && up_link && !up_stands {
            stream.heard_up = now;
        }
        let sender_late = now - stream.heard_up > STREAM_TIMEOUT && !up_stands;
        let receiver_late = now - stream.heard_down > STREAM_TIMEOUT && !down_stands;
        // A closed socket is seen at once where messages pass.
        let receiver_gone = !stream.receiver_lives && up_link && !up_stands;
        let sender_gone = !stream.sender_lives && down_link && !down_stands && !stream.in_flight;
        let (sender, receiver) = (stream.sender_lives, stream.receiver_lives);
        if sender && (sender_late || receiver_gone) {
            self.sender_ends(id);
        }
        if receiver && (receiver_late || sender_gone) {
            self.receiver_ends(id, true);
            self.start_connecting(down, RECONNECT);
        }
        self.forget_if_over(id);
        if self.streams.contains_key(&id) {
            self.after(CHECK, Event::StreamCheck { stream: id });
        }
    }

    fn sender_ends(&mut self, id: u64) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        stream.sender_lives = false;
        let up = stream.up;
        self.notice(up);
    }

    /// A receiver is gone; in an orderly way it flushes first (A3).
    fn receiver_ends(&mut self, id: u64, orderly: bool) {
        if orderly {
            self.flush_buffer(id);
        }
        let Some(stream) = self.streams.get_mut(&id) else { return };
        stream.receiver_lives = false;
        stream.buffer.clear();
        let (down, number) = (stream.down, stream.down_instance);
        if let Some(instance) = self.hosts[down].instance_mut(number) {
            instance.receiver = None;
        }
        self.start_replay(down);
        self.notice(down);
    }

    fn forget_if_over(&mut self, id: u64) {
        let over = self.streams.get(&id).is_some_and(|s| !s.sender_lives && !s.receiver_lives);
        if over {
            self.streams.remove(&id);
        }
    }

    /// Ends a host's receiver in an orderly way.
    pub(crate) fn end_receiver_of(&mut self, node: usize) {
        if let Some(id) = self.hosts[node].postgres.as_ref().and_then(|i| i.receiver) {
            self.receiver_ends(id, true);
            self.forget_if_over(id);
        }
    }

    /// A host's receiver is killed.
    pub(crate) fn lose_receiver_of(&mut self, node: usize, kept: bool) {
        if let Some(id) = self.hosts[node].postgres.as_ref().and_then(|i| i.receiver) {
            self.receiver_ends(id, kept);
            self.forget_if_over(id);
        }
    }

    /// A host's walsenders are gone.
    pub(crate) fn drop_senders(&mut self, node: usize) {
        let ids: Vec<u64> = self
            .streams
            .iter()
            .filter(|(_, s)| s.up == node && s.sender_lives)
            .map(|(id, _)| *id)
            .collect();
        for id in ids {
            if let Some(stream) = self.streams.get_mut(&id) {
                stream.sender_lives = false;
            }
            self.forget_if_over(id);
        }
    }
}
