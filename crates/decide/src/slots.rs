//! Replication slots: which ones a member keeps, and what is to be done about them.
//!
//! Every member keeps a physical slot for every other (as Patroni 4.1 has it) and the permanent
//! ones, and moves those that nobody uses to where the leader's are, so that a new primary has
//! them before it is one. A logical slot cannot be created on a standby where the leader's stands:
//! its state is copied from the leader into the stopped standby.

use std::collections::{BTreeMap, BTreeSet};

use config::{ClusterType, Dynamic};
use types::{
    ClusterView, LocalPostgres, Lsn, Member, MemberName, Millis, Process, Role, Running, Slot,
    SlotChange, Tags, slot_name,
};

use crate::action::Act;
use crate::brain::Brain;
use crate::reason::Reason;

/// A slot that was copied is not copied again so soon: every copy costs a restart of the standby.
const COPY_AGAIN: Millis = Millis(10_000);

/// What the slots of one member are computed from.
#[derive(Debug, Clone)]
pub struct SlotPicture<'a> {
    /// This member.
    pub me: &'a MemberName,
    /// Its tags.
    pub tags: &'a Tags,
    /// What the DCS says.
    pub view: &'a ClusterView,
    /// The settings in force.
    pub dynamic: &'a Dynamic,
    /// The slots that are there.
    pub present: &'a [Slot],
    /// Up to where this standby has replayed; `None` on a primary.
    pub replayed: Option<Lsn>,
    /// Where the leader's slots are.
    pub positions: &'a BTreeMap<String, Lsn>,
    /// What members said that they hold, where that is newer than their keys.
    pub held: &'a BTreeMap<MemberName, Lsn>,
    /// Slots that may be dropped where nobody wants them.
    pub droppable: &'a BTreeSet<String>,
}

/// What is to be done about the slots.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SlotPlan {
    /// What takes no time.
    pub changes: Vec<SlotChange>,
    /// What decodes WAL, or waits for transactions.
    pub decoding: Vec<SlotChange>,
    /// Logical slots that the leader has and this standby lacks.
    pub to_copy: BTreeSet<String>,
}

/// A slot that a member keeps.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Wanted {
    /// Database and plugin of a logical slot.
    logical: Option<(String, String)>,
    /// Where it is moved to while nobody uses it.
    to: Option<Lsn>,
    /// Whether somebody is meant to use it here; `None` if that is not known.
    expected_active: Option<bool>,
}

impl Wanted {
    fn physical(to: Option<Lsn>, expected_active: Option<bool>) -> Wanted {
        Wanted { logical: None, to, expected_active }
    }

    fn is(&self, slot: &Slot) -> bool {
        let logical = slot.logical.as_ref().map(|l| (l.database.as_str(), l.plugin.as_str()));
        self.logical.as_ref().map(|(database, plugin)| (database.as_str(), plugin.as_str()))
            == logical
    }
}

/// What is to be done about the slots of this member.
#[must_use]
pub fn slot_plan(picture: &SlotPicture<'_>) -> SlotPlan {
    let wanted = wanted(picture);
    let mut plan = SlotPlan::default();
    for slot in picture.present {
        if !wanted.get(&slot.name).is_some_and(|w| w.is(slot)) && may_drop(picture, slot, &wanted) {
            plan.changes.push(SlotChange::Drop { name: slot.name.clone() });
        }
    }
    let present: BTreeMap<&str, &Slot> =
        picture.present.iter().map(|slot| (slot.name.as_str(), slot)).collect();
    for (name, wanted) in &wanted {
        match present.get(name.as_str()) {
            Some(slot) if !wanted.is(slot) || slot.active => {}
            Some(slot) => plan.keep(picture, wanted, slot),
            None => plan.create(picture, name, wanted),
        }
    }
    plan
}

impl SlotPlan {
    fn create(&mut self, picture: &SlotPicture<'_>, name: &str, wanted: &Wanted) {
        let name = name.to_owned();
        match &wanted.logical {
            None => self.changes.push(SlotChange::Create { name }),
            Some((database, plugin)) if picture.replayed.is_none() => {
                let (database, plugin) = (database.clone(), plugin.clone());
                self.decoding.push(SlotChange::CreateLogical { name, database, plugin });
            }
            // What has a position is there on the leader.
            Some(_) if wanted.to.is_some() => _ = self.to_copy.insert(name),
            Some(_) => {}
        }
    }

    /// What a slot that nobody uses needs.
    fn keep(&mut self, picture: &SlotPicture<'_>, wanted: &Wanted, slot: &Slot) {
        let name = slot.name.clone();
        if slot.lost {
            self.changes.push(SlotChange::Drop { name });
            return;
        }
        // Nobody moves it past what this server has.
        let to = wanted.to.map(|to| to.min(picture.replayed.unwrap_or(to)));
        let ahead = to.filter(|to| slot.position().is_none_or(|at| *to > at));
        if let Some((database, _)) = &wanted.logical {
            if let (Some(to), Some(_)) = (ahead, picture.replayed) {
                let database = database.clone();
                self.decoding.push(SlotChange::AdvanceLogical { name, database, to });
            }
            return;
        }
        let unused = wanted.expected_active != Some(true);
        // Nobody would ever move it, and dead rows would stay for good.
        let stuck =
            slot.holds_rows && wanted.expected_active == Some(false) && has_its_leader(picture);
        let reserves_nothing = !slot.holds_rows && slot.restart.is_none();
        if unused && (stuck || reserves_nothing) {
            self.changes.push(SlotChange::Drop { name });
        } else if let Some(to) = ahead
            && unused
            && !slot.holds_rows
        {
            self.changes.push(SlotChange::Advance { name, to });
        }
    }
}

/// Whether a slot that is not wanted as it is may go.
fn may_drop(picture: &SlotPicture<'_>, slot: &Slot, wanted: &BTreeMap<String, Wanted>) -> bool {
    if slot.active {
        return false;
    }
    if slot.fails_over() {
        // PostgreSQL does not bring such a slot up to date on a former primary, as long as it is
        // there as that primary's own.
        let follows = picture.view.leader_name().is_some_and(|leader| leader != picture.me);
        let synced = slot.logical.as_ref().is_some_and(|l| l.synced);
        return !synced && follows && picture.replayed.is_some();
    }
    if wanted.contains_key(&slot.name) {
        return true;
    }
    !picture.dynamic.pause
        && picture.droppable.contains(&slot.name)
        && !picture.dynamic.ignore_slots.iter().any(|ignored| ignored.matches(slot))
}

/// Whether a leader is there, and where that is us, at work.
fn has_its_leader(picture: &SlotPicture<'_>) -> bool {
    match picture.view.leader_name() {
        Some(leader) => leader != picture.me || leads(picture),
        None => false,
    }
}

/// Whether the others stream from here, unless they say otherwise.
fn leads(picture: &SlotPicture<'_>) -> bool {
    let standby_leader =
        picture.dynamic.standby_cluster.is_some() && picture.view.leader_name() == Some(picture.me);
    picture.replayed.is_none() || standby_leader
}

/// Every slot that this member keeps.
fn wanted(picture: &SlotPicture<'_>) -> BTreeMap<String, Wanted> {
    if !picture.dynamic.postgresql.use_slots || picture.view.config.is_none() {
        return BTreeMap::new();
    }
    let own = slot_name(picture.me);
    let mut wanted = member_slots(picture);
    if let Some(status) = &picture.view.status
        && retains(picture.dynamic)
        && !picture.tags.nofailover()
    {
        for name in status.value.retain_slots.iter().filter(|name| **name != own) {
            let to = picture.positions.get(name).copied();
            wanted.entry(name.clone()).or_insert_with(|| Wanted::physical(to, None));
        }
    }
    for (name, slot) in permanent_slots(picture, &own) {
        wanted.entry(name).or_insert(slot);
    }
    wanted
}

fn member_slots(picture: &SlotPicture<'_>) -> BTreeMap<String, Wanted> {
    let others = picture.view.members.iter().filter(|(name, _)| *name != picture.me);
    let mut wanted = BTreeMap::new();
    for (name, member) in others {
        let tags = &member.value.tags;
        let active = streams_from_us(picture, name, &member.value);
        let from_us = tags.replicatefrom().as_ref() == Some(picture.me);
        let kept =
            if retains(picture.dynamic) { !picture.tags.nofailover() || from_us } else { active };
        if tags.nostream() || !kept {
            continue;
        }
        let slot = slot_name(name);
        let known = picture.positions.get(&slot).copied();
        // A cascade's slot is used on another member than the leader.
        let own = tags.replicatefrom().and_then(|_| position_of(picture, name));
        wanted.insert(slot, Wanted::physical(known.max(own), Some(active)));
    }
    wanted
}

/// Whether slots outlive their members.
fn retains(dynamic: &Dynamic) -> bool {
    dynamic.member_slots_ttl > Millis::ZERO
}

/// Whether a member is meant to stream from this one.
fn streams_from_us(picture: &SlotPicture<'_>, name: &MemberName, member: &Member) -> bool {
    let from = member.tags.replicatefrom();
    if leads(picture) {
        return from.is_none_or(|from| from == *picture.me || picture.view.member(&from).is_none());
    }
    from.as_ref() == Some(picture.me) && picture.view.leader_name() != Some(name)
}

/// What a member holds, as it said.
fn position_of(picture: &SlotPicture<'_>, name: &MemberName) -> Option<Lsn> {
    let key = picture.view.member(name).and_then(|member| member.xlog_location);
    key.max(picture.held.get(name).copied())
}

fn permanent_slots(picture: &SlotPicture<'_>, own: &str) -> BTreeMap<String, Wanted> {
    let mut wanted = BTreeMap::new();
    if picture.tags.nofailover() {
        return wanted;
    }
    // Without a stream nothing tells the primary which rows a logical slot still needs.
    let standby_cluster = picture.dynamic.standby_cluster.is_some();
    let decodes = !standby_cluster && has_stream(picture.view, picture.tags);
    let other = if standby_cluster { ClusterType::Primary } else { ClusterType::Standby };
    for (name, slot) in picture.dynamic.slots.iter().filter(|(_, s)| s.only_in != Some(other)) {
        let position = picture.positions.get(name).copied();
        if let Some(logical) = &slot.logical {
            if decodes {
                let logical = Some(logical.clone());
                let slot = Wanted { logical, to: position, expected_active: None };
                wanted.insert(name.clone(), slot);
            }
        } else if name != own {
            let cascade = picture.view.members.iter().find(|(member, value)| {
                slot_name(member) == *name && value.value.tags.replicatefrom().is_some()
            });
            let to = position.max(cascade.and_then(|(member, _)| position_of(picture, member)));
            let active = cascade.is_none() && leads(picture);
            wanted.insert(name.clone(), Wanted::physical(to, Some(active)));
        }
    }
    wanted
}

/// Whether a member with these tags streams, by itself and all the way up.
fn has_stream(view: &ClusterView, tags: &Tags) -> bool {
    let mut tags = tags;
    // Tags may name each other in a circle.
    for _ in 0..=view.members.len() {
        if tags.nostream() {
            return false;
        }
        match tags.replicatefrom().and_then(|from| view.member(&from)) {
            Some(member) => tags = &member.tags,
            None => return true,
        }
    }
    false
}

/// Whether `hot_standby_feedback` must be on: this member has logical slots, or another that
/// streams from it has.
fn needs_feedback(picture: &SlotPicture<'_>) -> bool {
    let logical = picture.dynamic.slots.values().any(|slot| slot.logical.is_some())
        && picture.dynamic.standby_cluster.is_none();
    if !logical || !picture.dynamic.postgresql.use_slots || !has_stream(picture.view, picture.tags)
    {
        return false;
    }
    let leader = picture.view.leader_name();
    let mut seen = BTreeSet::from([picture.me]);
    let mut below = vec![(picture.me, picture.tags)];
    while let Some((name, tags)) = below.pop() {
        if !tags.nofailover() {
            return true;
        }
        for (other, member) in &picture.view.members {
            let tags = &member.value.tags;
            let from_it = tags.replicatefrom().as_ref() == Some(name) && !tags.nostream();
            if from_it && leader != Some(other) && seen.insert(other) {
                below.push((other, tags));
            }
        }
    }
    false
}

/// What the brain remembers of slots.
#[derive(Debug, Clone, Default)]
pub(crate) struct SlotMemory {
    /// When slots were last changed, or logical ones moved.
    pub(crate) changed_at: Millis,
    pub(crate) decoded_at: Millis,
    /// The server, and whether it was a primary, whose slots were taken stock of.
    seen_of: Option<(String, bool)>,
    /// Slots that were there then, or were once wanted. What a user creates later is left alone
    /// until the next start or change of role.
    droppable: BTreeSet<String>,
    /// Slots whose state was fetched from the leader and not put into place yet.
    fetched: BTreeSet<String>,
    /// When each was last copied.
    copied: BTreeMap<String, Millis>,
}

impl Brain {
    /// Cares for the slots of a server that runs. A standby that streams from this leader may be
    /// restarted for logical slots.
    pub(crate) fn care_for_slots(
        &mut self,
        now: Millis,
        view: &ClusterView,
        local: &LocalPostgres,
    ) {
        let Process::Running(running) = &local.process else {
            return;
        };
        if view.config.is_none() {
            return;
        }
        self.take_stock(view, running);
        let plan = self.plan_slots(view, running);
        let moved = |change: &SlotChange| matches!(change, SlotChange::Advance { .. });
        let due = now >= self.slots.changed_at.plus(self.dynamic.loop_wait);
        if plan.changes.iter().any(|change| due || !moved(change)) {
            let act = Act::SyncSlots { changes: plan.changes };
            self.issue(now, act, Reason::SlotsDiffer);
        }
        let due = now >= self.slots.decoded_at.plus(self.dynamic.loop_wait);
        if due && !plan.decoding.is_empty() {
            let act = Act::DecodeSlots { changes: plan.decoding };
            self.issue(now, act, Reason::SlotsDiffer);
        }
    }

    /// Notes which slots were there at the start of this server in this role.
    fn take_stock(&mut self, view: &ClusterView, running: &Running) {
        let server = (running.server.started.clone(), matches!(running.role, Role::Primary(_)));
        if self.slots.seen_of.as_ref() != Some(&server) {
            let present = running.server.slots.iter().map(|slot| slot.name.clone());
            self.slots.droppable.extend(present);
            self.slots.seen_of = Some(server);
        }
        let none = BTreeMap::new();
        let names = wanted(&self.slot_picture(view, running, &none)).into_keys();
        self.slots.droppable.extend(names);
    }

    fn plan_slots(&self, view: &ClusterView, running: &Running) -> SlotPlan {
        let status = view.status.as_ref().map(|s| s.value.slots.clone()).unwrap_or_default();
        let told = self.failsafe.slots_told(view);
        let positions = told.cloned().unwrap_or(status);
        slot_plan(&self.slot_picture(view, running, &positions))
    }

    fn slot_picture<'a>(
        &'a self,
        view: &'a ClusterView,
        running: &'a Running,
        positions: &'a BTreeMap<String, Lsn>,
    ) -> SlotPicture<'a> {
        let replayed = match &running.role {
            Role::Primary(_) => None,
            Role::Standby(standby) => Some(standby.replayed),
        };
        SlotPicture {
            me: &self.node.name,
            tags: &self.node.tags,
            view,
            dynamic: &self.dynamic,
            present: &running.server.slots,
            replayed,
            positions,
            held: self.failsafe.held(),
            droppable: &self.slots.droppable,
        }
    }

    /// Whether `hot_standby_feedback` is switched on here, whatever the configuration says.
    #[must_use]
    pub fn forces_feedback(&self) -> bool {
        let Some(view) = &self.view else {
            return false;
        };
        let (none, nobody, nothing) = (BTreeMap::new(), BTreeMap::new(), BTreeSet::new());
        needs_feedback(&SlotPicture {
            me: &self.node.name,
            tags: &self.node.tags,
            view,
            dynamic: &self.dynamic,
            present: &[],
            replayed: None,
            positions: &none,
            held: &nobody,
            droppable: &nothing,
        })
    }

    /// Copies logical slots that are missing here from the leader that this standby streams from:
    /// first their state is fetched, then PostgreSQL is restarted with it. Never while anything
    /// points to an election.
    pub(crate) fn copy_slots(
        &mut self,
        now: Millis,
        view: &ClusterView,
        local: &LocalPostgres,
        leader: &types::Upstream,
    ) {
        let Process::Running(running) = &local.process else {
            return;
        };
        let calm = view.fence.is_none()
            && view.failover_request().is_none()
            && local.durable.pledge.is_none()
            && !self.is_worried();
        if !calm || self.dynamic.pause {
            return;
        }
        let mut missing = self.plan_slots(view, running).to_copy;
        missing
            .retain(|name| self.slots.copied.get(name).is_none_or(|at| now >= at.plus(COPY_AGAIN)));
        // A slot that was lost again lacked WAL of before this standby was made; the leader's must
        // have moved on.
        let with_wal = missing.iter().all(|name| self.slots.copied.contains_key(name));
        if !with_wal {
            missing.retain(|name| !self.slots.copied.contains_key(name));
        }
        if missing.is_empty() {
            return;
        }
        if self.slots.fetched.is_superset(&missing) {
            let names = std::mem::take(&mut self.slots.fetched);
            let copied = names.iter().map(|name| (name.clone(), now));
            let copied: Vec<_> = copied.collect();
            if self.issue_if_free(now, Act::CopySlots { names }, Reason::SlotsDiffer) {
                self.slots.copied.extend(copied);
            }
            return;
        }
        let act = Act::FetchSlots { source: leader.clone(), names: missing, with_wal };
        self.issue(now, act, Reason::SlotsDiffer);
    }

    /// The state of these slots lies ready.
    pub(crate) fn note_fetched(&mut self, names: &BTreeSet<String>) {
        self.slots.fetched.clone_from(names);
    }

    /// The leader's slots, for `status` and for members that cannot read it.
    pub(crate) fn slots_to_tell(&self, slots: &[Slot], flush: Lsn) -> BTreeMap<String, Lsn> {
        let told = slots.iter().filter(|slot| {
            !slot.logical.as_ref().is_some_and(|l| l.synced)
                && (retains(&self.dynamic) || self.dynamic.slots.contains_key(&slot.name))
        });
        let mut positions: BTreeMap<String, Lsn> =
            told.filter_map(|slot| Some((slot.name.clone(), slot.position()?))).collect();
        let own = slot_name(&self.node.name);
        if retains(&self.dynamic) || self.dynamic.slots.contains_key(&own) {
            positions.insert(own, flush);
        }
        positions
    }

    /// The leader's list of slots to keep: members present, and absent ones for `member_slots_ttl`.
    pub(crate) fn retained_slots(&mut self, now: Millis, view: &ClusterView) -> Vec<String> {
        let ttl = self.dynamic.member_slots_ttl;
        if !retains(&self.dynamic) {
            self.leader.slot_seen.clear();
            return Vec::new();
        }
        if let Some(status) = &view.status {
            for name in &status.value.retain_slots {
                self.leader.slot_seen.entry(name.clone()).or_insert(now);
            }
        }
        for (name, member) in &view.members {
            if !member.value.tags.nostream() {
                self.leader.slot_seen.insert(slot_name(name), now);
            }
        }
        // Permanent slots need nobody to keep them.
        let permanent = &self.dynamic.slots;
        self.leader
            .slot_seen
            .retain(|name, seen| now.since(*seen) <= ttl && !permanent.contains_key(name));
        self.leader.slot_seen.keys().cloned().collect()
    }
}

#[cfg(test)]
#[path = "slots_tests.rs"]
mod tests;
