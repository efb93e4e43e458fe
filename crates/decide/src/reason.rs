//! Why something is done: data, so that journal, log, test and operator see the same.

use std::collections::BTreeSet;

use serde::Serialize;
use types::{Fault, MemberName, Millis, Position, Term, Timeline};

/// Why an action was chosen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case", tag = "reason")]
pub enum Reason {
    /// The member key has to say what is so now.
    MemberChanged,
    /// The lease that we have was asked for with another time to live.
    TtlChanged {
        /// The one in force.
        ttl: Millis,
    },
    /// The lease is renewed each `loop_wait`.
    RenewalDue,
    /// We hold the leader key but have no valid claim yet.
    NoClaimYet,
    /// Whom a leader must ask when the DCS does not answer has changed.
    FailsafeMembers,
    /// The lease cannot be renewed; with every member's word the primary goes on (`failsafe_mode`).
    DcsDoesNotAnswer,
    /// The claim moved, and the guard with it.
    ClaimExtended,
    /// No primary runs here (or the cluster is paused).
    NothingToGuard,
    /// Nobody has initialised the cluster.
    NoCluster,
    /// We won the bootstrap race.
    WonBootstrap,
    /// Our bootstrap failed, another member may try.
    BootstrapFailed,
    /// The data directory is empty and a leader is there.
    NoData {
        /// The leader.
        leader: MemberName,
    },
    /// A rewind or rebuild was begun and not finished (I3).
    Unfinished,
    /// The leader key is gone.
    NoLeader,
    /// Neither heartbeats nor WAL have come from the leader for a while.
    LeaderIsSilent {
        /// The leader.
        leader: MemberName,
    },
    /// Enough voters have lost the leader: neither heartbeats nor WAL come from it.
    LeaderLost {
        /// The leader.
        leader: MemberName,
    },
    /// A fence is open against us, and we still lead: enough voters stream that have not pledged.
    StillLeads,
    /// A fence is open against us, and too few voters are left for a commit (I1).
    Fenced {
        /// The fence's id.
        fence: String,
    },
    /// The open election names another leader or another set than the present one.
    StaleFence,
    /// The election that is open makes no progress.
    StuckFence {
        /// Who should have won.
        waiting_for: Option<MemberName>,
    },
    /// An election is open and we take part.
    ElectionOpen {
        /// The fence's id.
        fence: String,
    },
    /// A Patroni node is a member: its word is what it answers.
    DoesNotPledge,
    /// The leader key is gone, but the primary runs on rightfully and nobody has led since: the
    /// key is taken again.
    RunsOn {
        /// The new term.
        term: Term,
    },
    /// The primary here was a Patroni node's, and its leader key becomes ours.
    TakesOver {
        /// The new term.
        term: Term,
    },
    /// Enough pledges, and ours is the newest position.
    WonElection {
        /// The new term.
        term: Term,
        /// Our position.
        position: Position,
        /// Who pledged.
        pledged: BTreeSet<MemberName>,
    },
    /// We hold the leader key and PostgreSQL is in recovery.
    HoldsLeaderKey {
        /// Our term.
        term: Term,
    },
    /// Another member leads.
    LeaderIs {
        /// Who.
        leader: MemberName,
        /// In which term.
        term: Term,
    },
    /// A copy that was made anew streams from the leader, as one of its voters or without a set.
    VoterAgain,
    /// Our copy holds records that the leader's history does not.
    Diverged {
        /// Our timeline.
        timeline: Timeline,
        /// The leader's timeline.
        leader_timeline: Timeline,
    },
    /// pg_rewind failed too often.
    RewindFailed {
        /// How often.
        times: u32,
    },
    /// A standby lacks log that only a former leader had, and accepts no connections.
    NeverConsistent,
    /// We are not the leader, but PostgreSQL accepts writes here.
    PrimaryWithoutLeaderKey,
    /// The claim ends soon and was not renewed (I1).
    LeaseRunsOut {
        /// When the claim ends.
        claim_until: Millis,
    },
    /// Another member knows of a newer term than ours (I1).
    NewerTerm {
        /// Which.
        term: Term,
    },
    /// The guard cannot be armed, and a primary runs here (I1).
    NoGuard,
    /// What became of the last write of `/sync` is not known; a new revision settles it.
    SyncUnknown,
    /// PostgreSQL died; processes of it are left.
    Orphans,
    /// PostgreSQL is down here and synchronous standbys can take over.
    PostgresDown {
        /// The candidates.
        candidates: BTreeSet<MemberName>,
    },
    /// PostgreSQL is down here, the leader key is ours, and nobody can take over without loss.
    NoCandidate,
    /// PostgreSQL is down here shortly after a failover: one restart in place is tried first.
    Damped,
    /// PostgreSQL did not come up, and another member may lead.
    StartFailed,
    /// PostgreSQL did not come up within `primary_start_timeout`.
    StartTimedOut,
    /// PostgreSQL lives, but has not served or written for `retry_timeout`.
    Unwell {
        /// What is wrong.
        fault: Fault,
        /// Since when.
        since: Millis,
    },
    /// We hold the leader key but our data directory cannot lead.
    CannotLead,
    /// An operator asked for it.
    Requested {
        /// The candidate, if one was named or chosen.
        candidate: Option<MemberName>,
    },
    /// An operator asked for a restart here, or for a new copy.
    AskedByOperator,
    /// An operator's request cannot be fulfilled.
    RequestRefused {
        /// Why.
        because: String,
    },
    /// The synchronous set moves towards what streams.
    SyncSet {
        /// Who streams and may be synchronous.
        active: BTreeSet<MemberName>,
    },
    /// Synchronous mode was turned off.
    SyncOff,
    /// A new primary is published after its first acknowledged write.
    FirstWrite,
    /// pg_rewind needs a checkpoint on the new timeline.
    CheckpointAfterPromotion,
    /// Clients of the proxies end their transactions before the primary is stopped.
    ClientsFinish,
    /// Proxies hold their clients, and no planned stop is under way.
    NothingToHoldFor,
    /// A checkpoint now makes the stop shorter.
    CheckpointBeforeStop,
    /// A timeline ended.
    TimelineChanged,
    /// Somebody streams under a member's name, and PostgreSQL would count its confirmations (I2).
    Stranger {
        /// The names.
        names: BTreeSet<MemberName>,
    },
    /// Member slots are missing or lag behind.
    SlotsDiffer,
    /// The data directory belongs to another cluster.
    WrongCluster {
        /// The cluster's system identifier.
        cluster: String,
        /// Ours.
        ours: String,
    },
    /// The whole cluster follows a node outside.
    StandbyCluster,
    /// The agent was asked to end.
    ShuttingDown,
}

impl std::fmt::Display for Reason {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&serde_json::to_string(self).unwrap_or_default())
    }
}
