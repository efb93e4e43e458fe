//! The rules that can be taken away, one by one, to see that each is needed.

macro_rules! removals {
    ($($(#[doc = $doc:literal])+ $variant:ident = $name:literal,)+) => {
        /// A rule that is taken away.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Without {
            $($(#[doc = $doc])+ $variant,)+
        }

        impl Without {
            /// Every one.
            pub const ALL: &[Without] = &[$(Without::$variant,)+];

            /// As the command line names it.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self {
                    $(Without::$variant => $name,)+
                }
            }
        }
    };
}

removals! {
    /// The winner's transaction does not compare the leader key.
    LeaderKeyCompared = "leader-key-compared",
    /// The winner's transaction does not compare `/sync`.
    SyncCompared = "sync-compared",
    /// The winner's transaction does not compare the fence.
    FenceCompared = "fence-compared",
    /// The winner's transaction does not compare the pledges it counted.
    PledgesCompared = "pledges-compared",
    /// The winner's transaction does not compare the term record.
    TermCompared = "term-compared",
    /// The winner does not write `/sync`; it leads as if it had.
    SyncWritten = "sync-written",
    /// The winner writes itself as the leader of `/sync`, but keeps the voters.
    VotersCleared = "voters-cleared",
    /// The winner's term is the one before.
    TermRaised = "term-raised",
    /// The winner takes the number after its own timeline, whatever was reserved before.
    TimelineReserved = "timeline-reserved",
    /// A pledge is kept in memory only.
    PledgeDurable = "pledge-durable",
    /// A pledge ends the WAL receiver, but leaves the connection settings on disk.
    ConninfoCleared = "conninfo-cleared",
    /// A pledge is made while the WAL receiver runs on.
    ReceiverGone = "receiver-gone",
    /// The position of a pledge is read before the WAL receiver is gone.
    PositionReadAfter = "position-read-after",
    /// A pledge of a fence that was voided counts for the next one.
    PledgeWithdrawn = "pledge-withdrawn",
    /// A pledge is written whether its fence is open or not.
    PledgeConditional = "pledge-conditional",
    /// One pledge fewer is enough.
    QuorumPlusOne = "quorum-plus-one",
    /// Positions are compared by length alone.
    OrderByTimeline = "order-by-timeline",
    /// A pledged member follows the leader again at once.
    PledgeBinds = "pledge-binds",
    /// A new leader is followed without comparing the logs.
    LogsCompared = "logs-compared",
    /// A leader's write of `/sync` does not compare its leader key.
    SyncWriteNeedsKey = "sync-write-needs-key",
    /// A leader's write of `/sync` does not compare `/sync`.
    SyncWriteCompares = "sync-write-compares",
    /// A standby becomes a voter before it confirmed a position past the change.
    VotersConfirmed = "voters-confirmed",
    /// A rule counts as taken over while sessions still use the one before.
    RuleTakenOver = "rule-taken-over",
    /// `/sync` is not loosened before the rule changes.
    SyncLoosenedFirst = "sync-loosened-first",
    /// After an ambiguous answer the leader goes on as if it had been a failure.
    UnknownWrittenAgain = "unknown-written-again",
    /// An agent that begins takes `/sync` for settled, whatever the one before it has sent.
    FirstWriteAgain = "first-write-again",
    /// A primary takes its leader key again without comparing the term record.
    RetakeCompares = "retake-compares",
    /// A primary takes its leader key again although nothing was confirmed since it began.
    RetakeConfirmed = "retake-confirmed",
    /// A fence is opened whatever the leader key and `/sync` are by then.
    OpenConditional = "open-conditional",
    /// Nobody voids a fence whose winner does not act.
    StuckVoided = "stuck-voided",
    /// A fence is voided although it is another one by then.
    VoidConditional = "void-conditional",
}
