//! What the brain asks its shell to do.
//!
//! # Contract with the shell
//! - Every [`Action`] ends in exactly one [`Event::Finished`](crate::Event::Finished) with its id.
//! - Actions of one [`Lane`] never overlap; actions of different lanes run at the same time. One
//!   exception: an [`Act::Stop`] that is not [`StopMode::Fast`] may be issued while another action
//!   of [`Lane::Data`] runs; the shell then gives that one up first and reports it as failed.
//! - Before the shell reports the end of an action on the DCS it delivers a view that is at least
//!   as new as the action's effect; before it reports the end of an action on PostgreSQL it
//!   delivers a [`LocalPostgres`](types::LocalPostgres) observed after that end. So the brain never
//!   acts on a picture from before its own last step.
//! - Every action is safe to repeat after a restart of the agent.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;
use types::{
    FailoverRequest, Fence, HoldRecord, Lsn, Member, MemberName, Millis, Pledge, Revision,
    SlotChange, Status, SyncNames, SyncState, Term, TermRecord, Timeline, Upstream,
};

use crate::reason::Reason;

/// Identifies one action of one brain; they only grow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct ActionId(pub u64);

/// One thing to do, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Action {
    /// Its id, named again when it has ended.
    pub id: ActionId,
    /// What to do.
    pub act: Act,
    /// Why; goes to the journal (I5).
    pub why: Reason,
}

/// Actions of one lane never overlap.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Lane {
    /// Renewal of the leader's lease.
    Lease,
    /// The member key, with the lease it hangs on.
    Member,
    /// Every other transaction on the DCS.
    Dcs,
    /// What proxies are asked to do before a planned stop, which waits for the answer for a moment
    /// alone.
    Hold,
    /// The guard.
    Guard,
    /// The data directory and the role of PostgreSQL.
    Data,
    /// Questions to other members; nothing waits for their answers.
    Compare,
    /// A knock at the leader's PostgreSQL.
    Knock,
    /// `synchronous_standby_names`.
    Sync,
    /// The write that proves a quorum.
    Confirm,
    /// CHECKPOINT.
    Checkpoint,
    /// Questions to all members when the DCS does not answer.
    Failsafe,
    /// Replication slots, and walsenders.
    Slots,
    /// Logical slots.
    Decode,
    /// The durable state alone.
    State,
    /// The end of the agent.
    Exit,
}

impl Lane {
    /// What runs there belongs to every round, whatever else goes on: it says nothing of what
    /// comes next.
    #[must_use]
    pub const fn is_routine(self) -> bool {
        match self {
            Lane::Lease
            | Lane::Member
            | Lane::Guard
            | Lane::Failsafe
            | Lane::Knock
            | Lane::Slots
            | Lane::Decode
            | Lane::State => true,
            Lane::Dcs
            | Lane::Hold
            | Lane::Data
            | Lane::Compare
            | Lane::Sync
            | Lane::Confirm
            | Lane::Checkpoint
            | Lane::Exit => false,
        }
    }
}

/// How long a fast stop may take before it is given up; an immediate one follows.
pub const STOP_FAST: Millis = Millis(60_000);

/// How to stop PostgreSQL.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum StopMode {
    /// Sessions are ended, a shutdown checkpoint is written.
    Fast,
    /// Everything is ended at once, by SIGKILL where SIGQUIT does not do; recovery at next start.
    Immediate,
}

/// As what to start PostgreSQL.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum StartAs {
    /// Writable. Only the holder of the leader key with a valid claim and an armed guard.
    Primary,
    /// In recovery, streaming from `upstream` if there is one.
    Standby(Option<Upstream>),
}

/// `synchronous_standby_names` as a rule.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum SyncRule {
    /// Nobody is waited for.
    Off,
    /// All of `number` = the whole set must confirm (mode `on`).
    First(SyncNames),
    /// Any `number` of the set must confirm (mode `quorum`).
    Any(SyncNames),
}

/// The winner's transaction: what it compares and what it writes.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Winner {
    /// The leader key as the fence named it, by its modification revision; `None` if it is gone.
    pub leader: Option<Revision>,
    /// The fence's modification revision.
    pub fence: Revision,
    /// `/sync`'s modification revision; `None` if the key was absent.
    pub sync_revision: Option<Revision>,
    /// `pgherd/term`'s modification revision; `None` if the key was absent.
    pub term_revision: Option<Revision>,
    /// Each counted pledge with its modification revision.
    pub pledges: BTreeMap<MemberName, Revision>,
    /// The new term with its reserved timeline.
    pub term: TermRecord,
    /// The new `/sync`; `None` leaves the key absent.
    pub sync: Option<SyncState>,
    /// An operator's request is fulfilled by this and cleared.
    pub clear_failover: bool,
}

/// How a primary that ran on takes the leader key again, which is gone or was left under its name
/// by a Patroni node: what is compared and what is written, all in one.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Retake {
    /// The leader key's modification revision; `None` if it must be gone.
    pub leader: Option<Revision>,
    /// The fence's modification revision; `None` if none was open.
    pub fence: Option<Revision>,
    /// `/sync`'s modification revision; `None` if the key was absent.
    pub sync_revision: Option<Revision>,
    /// `pgherd/term`'s modification revision; `None` if the key was absent.
    pub term_revision: Option<Revision>,
    /// The next term, on the same timeline.
    pub term: TermRecord,
    /// `/sync` as it was, under a new revision.
    pub sync: Option<SyncState>,
}

/// What hangs on the lease of a leader besides its member key; both are written anew.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Leading {
    /// The leader key's modification revision.
    pub leader_key: Revision,
    /// The term, which stays.
    pub term: TermRecord,
}

/// What to do. The order of effects inside one action is part of its documentation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case", tag = "action")]
pub enum Act {
    /// Keep the lease alive, and make the member key say this under it: it is written unless it
    /// is seen to say so already.
    TouchMember {
        /// The value.
        member: Box<Member>,
    },
    /// Keep the lease alive and see the leader key unchanged under it, in two answers; the requests
    /// go out after this action was issued, so a claim may be counted from then.
    Renew {
        /// The leader key's modification revision.
        leader_key: Revision,
        /// Written by the same transaction.
        status: Option<Status>,
    },
    /// Get a lease of this time to live, and write the member key, and a leader's key with its
    /// term, under it in one transaction: on condition that the leader key is unchanged and no
    /// fence is open. The lease before is left to end by itself. Not done, the new one is revoked.
    MoveLease {
        /// How long it shall live without being kept alive.
        ttl: Millis,
        /// The member key's value.
        member: Box<Member>,
        /// For the leader.
        leading: Option<Leading>,
    },
    /// Create `initialize` with an empty value under our lease: the bootstrap race.
    TakeInitialize,
    /// Delete `initialize` if it is still ours and empty.
    CancelInitialize,
    /// After initdb, one transaction: `initialize` = system identifier, `config`, `leader`,
    /// `pgherd/term`, and `/sync` if synchronous mode is on.
    FinishBootstrap {
        /// Decimal system identifier.
        system_identifier: String,
        /// Term 1 on timeline 1.
        term: TermRecord,
        /// The first `/sync`.
        sync: Option<SyncState>,
    },
    /// Open an election, on condition that the leader key is as the fence names it, and that there
    /// is no fence and `/sync` is unchanged.
    OpenFence {
        /// The record.
        fence: Fence,
        /// `/sync`'s modification revision; `None` if the key is absent.
        sync_revision: Option<Revision>,
    },
    /// Write our pledge, on condition that the fence is unchanged.
    WritePledge {
        /// The value.
        pledge: Pledge,
        /// The fence's modification revision.
        fence: Revision,
    },
    /// Delete the fence and every pledge, on condition that the fence is unchanged.
    VoidFence {
        /// The fence's modification revision.
        fence: Revision,
    },
    /// The winner's transaction.
    TakeLeadership(Winner),
    /// Take the leader key under our lease again, with the next term; the fence and every pledge
    /// go.
    RetakeLeadership(Retake),
    /// Write `/failsafe`, on condition of our leader key and the expected revision.
    WriteFailsafe {
        /// The leader key's modification revision.
        leader_key: Revision,
        /// The modification revision last read; `None` if the key was absent.
        expected: Option<Revision>,
        /// Members and their REST addresses.
        members: BTreeMap<MemberName, String>,
    },
    /// Ask each of these members, all at once, whether we may go on as the leader. Done only if
    /// every one has agreed; the questions go out after this was issued, so a claim may be counted
    /// from then. What they hold is told as [`Event::Held`](crate::Event::Held) before the end.
    AskFailsafe {
        /// The other members of `/failsafe` with their REST addresses.
        members: BTreeMap<MemberName, String>,
        /// Our term.
        term: Term,
        /// How long they shall wait for us.
        ttl: Millis,
        /// How long the answers may take.
        limit: Millis,
        /// Where our slots are.
        slots: BTreeMap<String, Lsn>,
    },
    /// Delete the leader key if it is ours, and a hold with it, writing `status` in the same
    /// transaction.
    ReleaseLeader {
        /// The leader key's modification revision.
        leader_key: Revision,
        /// The last status.
        status: Option<Status>,
    },
    /// Write `pgherd/hold` under our lease, on condition of our leader key: proxies begin no
    /// transaction here any more.
    WriteHold {
        /// The leader key's modification revision.
        leader_key: Revision,
        /// The value.
        hold: HoldRecord,
    },
    /// Delete `pgherd/hold`, on condition of our leader key: no planned stop is under way.
    RemoveHold {
        /// The leader key's modification revision.
        leader_key: Revision,
    },
    /// Write `/sync`, on condition of our leader key and the expected revision; `None` deletes it.
    WriteSync {
        /// The leader key's modification revision.
        leader_key: Revision,
        /// The modification revision last read; `None` if the key was absent.
        expected: Option<Revision>,
        /// The value.
        sync: Option<SyncState>,
    },
    /// Merge the local history files into `history`, on condition of our leader key.
    PublishHistory {
        /// The leader key's modification revision.
        leader_key: Revision,
        /// The present timeline.
        timeline: Timeline,
    },
    /// Write `{}` to `failover`, on condition of its revision.
    ClearFailover {
        /// The modification revision last read.
        expected: Revision,
        /// What is cleared.
        request: FailoverRequest,
    },
    /// Tell the guard to kill PostgreSQL at this instant.
    ArmGuard {
        /// Boot-time clock.
        kill_at: Millis,
    },
    /// Tell the guard that there is nothing to kill.
    StandDownGuard,
    /// Create a new cluster, by initdb or the configured method: complete or not at all. Persists
    /// `in_progress` before, and clears it after a success.
    Initdb,
    /// Make a copy by a method that needs no leader, into an empty data directory. Persists
    /// `in_progress` before, and `fresh_copy` and no term at the end.
    Restore,
    /// Copy from `source` beside the data directory and rename into place when complete (I3).
    /// Persists `in_progress` first, and `fresh_copy` and `term` at the end.
    Clone {
        /// Whom to copy from.
        source: Upstream,
        /// The leader's term.
        term: Term,
        /// An old copy stands in the way and is set aside.
        replace: bool,
        /// The source is a standby of this leader, who has to be a primary when the copy begins and
        /// when it takes the old one's place (I3). Only where one is replaced.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        standby_of: Option<Upstream>,
    },
    /// pg_rewind from `source`. Persists `in_progress` before and clears it after.
    Rewind {
        /// Whom to rewind against: the leader.
        source: Upstream,
        /// The leader's term.
        term: Term,
    },
    /// Learn timeline and history of `leader`; the result is in the next observation.
    Compare {
        /// The leader.
        leader: Upstream,
        /// Its term.
        term: Term,
    },
    /// Knock at the leader's PostgreSQL: done if it answers anything at all within `limit`.
    Knock {
        /// The leader.
        leader: Upstream,
        /// How long it has for its answer.
        limit: Millis,
    },
    /// Ask each member which term it knows of, each within `limit`; the newest is told as
    /// [`Event::TermSeen`](crate::Event::TermSeen) before the end.
    AskTerms {
        /// Whom, with the `api_url` of each.
        members: BTreeMap<MemberName, String>,
        /// How long one may take.
        limit: Millis,
    },
    /// Ask each of these members, which do not pledge, what its PostgreSQL is and holds; told as
    /// [`Event::Positions`](crate::Event::Positions) before the end.
    AskPositions {
        /// Whom, with the `api_url` of each.
        members: BTreeMap<MemberName, String>,
        /// How long one may take.
        limit: Millis,
    },
    /// Start PostgreSQL. For a term that is not `None`, persist it (and drop the pledge) first.
    Start {
        /// As what.
        start_as: StartAs,
        /// The term it belongs to.
        term: Option<Term>,
    },
    /// Stop PostgreSQL; ends when no process of the instance is left.
    Stop {
        /// How.
        mode: StopMode,
    },
    /// Stop for a successor: fast, and done as soon as pg_control says `shut down` and the
    /// candidate has the shutdown checkpoint; what is left then is killed.
    StopForHandOver {
        /// Who shall have everything; `None` if there is nobody.
        candidate: Option<MemberName>,
        /// It is given up after this.
        limit: Millis,
    },
    /// PostgreSQL was a primary and stopped in order: hand the segment with its shutdown checkpoint
    /// to `archive_command`, where one is in use.
    ArchiveShutdownCheckpoint,
    /// The postmaster is gone: kill every process that is left of the instance.
    EndOrphans,
    /// Stream from `upstream` (or from nobody). Persists the term and drops the pledge first.
    Follow {
        /// Whom; `None` clears the connection settings.
        upstream: Option<Upstream>,
        /// The leader's term.
        term: Term,
    },
    /// The first half of a pledge: clear the connection settings on disk, see the receiver gone and
    /// replay at the end of what was received, then persist the position under this fence.
    /// Writes the rule along that would be in force from the first commit of a promotion, so that
    /// a winner finds it there.
    StopReceiving {
        /// The fence's `id`.
        fence: String,
        /// The newest term so far: the pledge binds against its leader and all before.
        term: Term,
        /// Without effect on a standby.
        sync: SyncRule,
    },
    /// Persist the term, set the rule, put history files for reserved numbers into place, promote.
    Promote {
        /// The term won.
        term: Term,
        /// The reserved timeline number.
        timeline: Timeline,
        /// The rule that is in force from the first commit on.
        sync: SyncRule,
    },
    /// Set `synchronous_standby_names` and see it taken over by all sessions.
    SetSync {
        /// The rule.
        sync: SyncRule,
    },
    /// One write, acknowledged under the rule in force.
    ConfirmWrite,
    /// CHECKPOINT.
    Checkpoint,
    /// End the walsenders that count as synchronous under one of these names while their peer is
    /// not known to be that member; whether that is so is seen again in the same moment.
    EndStrangers {
        /// The names, as the walsenders carry them.
        names: BTreeSet<MemberName>,
    },
    /// Drop, create and advance slots, in this order. What is done already is no error.
    SyncSlots {
        /// None of them takes long.
        changes: Vec<SlotChange>,
    },
    /// Create logical slots and advance them, which decodes WAL and may take its time.
    DecodeSlots {
        /// Of logical slots.
        changes: Vec<SlotChange>,
    },
    /// Read the state of these logical slots of the leader and keep it. Done if all were there.
    FetchSlots {
        /// The leader.
        source: Upstream,
        /// Which.
        names: BTreeSet<String>,
        /// Not done either where this server lacks WAL that one of them needs.
        with_wal: bool,
    },
    /// Stop a standby, put the state that was fetched into place, start it as it was. Not begun
    /// where nothing was fetched, or on a server that is not in recovery.
    CopySlots {
        /// Which.
        names: BTreeSet<String>,
    },
    /// Persist that this copy counts as a voter's again (`fresh_copy` = false).
    ForgetFreshCopy,
    /// The agent's work is done: end the process.
    Exit {
        /// Process exit status.
        code: u8,
    },
}

impl Act {
    /// The lane it runs in.
    #[must_use]
    pub const fn lane(&self) -> Lane {
        match self {
            Act::TouchMember { .. } | Act::MoveLease { .. } => Lane::Member,
            Act::Renew { .. } => Lane::Lease,
            Act::TakeInitialize
            | Act::CancelInitialize
            | Act::FinishBootstrap { .. }
            | Act::OpenFence { .. }
            | Act::WritePledge { .. }
            | Act::VoidFence { .. }
            | Act::TakeLeadership(_)
            | Act::RetakeLeadership(_)
            | Act::WriteFailsafe { .. }
            | Act::ReleaseLeader { .. }
            | Act::WriteSync { .. }
            | Act::PublishHistory { .. }
            | Act::ClearFailover { .. } => Lane::Dcs,
            Act::WriteHold { .. } | Act::RemoveHold { .. } => Lane::Hold,
            Act::ArmGuard { .. } | Act::StandDownGuard => Lane::Guard,
            Act::Initdb
            | Act::Restore
            | Act::Clone { .. }
            | Act::Rewind { .. }
            | Act::Start { .. }
            | Act::Stop { .. }
            | Act::StopForHandOver { .. }
            | Act::ArchiveShutdownCheckpoint
            | Act::EndOrphans
            | Act::Follow { .. }
            | Act::StopReceiving { .. }
            | Act::Promote { .. }
            | Act::CopySlots { .. } => Lane::Data,
            Act::Compare { .. } | Act::AskTerms { .. } | Act::AskPositions { .. } => Lane::Compare,
            Act::DecodeSlots { .. } | Act::FetchSlots { .. } => Lane::Decode,
            Act::Knock { .. } => Lane::Knock,
            Act::SetSync { .. } => Lane::Sync,
            Act::ConfirmWrite => Lane::Confirm,
            Act::Checkpoint => Lane::Checkpoint,
            Act::AskFailsafe { .. } => Lane::Failsafe,
            Act::SyncSlots { .. } | Act::EndStrangers { .. } => Lane::Slots,
            Act::ForgetFreshCopy => Lane::State,
            Act::Exit { .. } => Lane::Exit,
        }
    }
}

/// How an action ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// It took effect.
    Done,
    /// It had no effect: a condition was not met, or it was given up before it began to act.
    Failed,
    /// Nobody knows; the view delivered before this says what is so now.
    Unknown,
}
