//! What one state of the model consists of: the store, the members, and requests under way.
//!
//! Everything is small numbers, so that millions of states fit. Members are numbers from 0; terms,
//! timelines and lengths of logs are what they are called; a revision is any number that makes it
//! differ from others (see `canonical`), 0 stands for an absent key.

use super::log::Log;

/// The most members that a model has.
pub(super) const MEMBERS_MAX: usize = 4;

/// A member.
pub(super) type Id = u8;
/// A revision of the store. Only equality means anything.
pub(super) type Rev = u8;

/// A set of members.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub(super) struct Members(pub(super) u8);

impl Members {
    /// The bit of the name that nobody has, for which commits wait in strict mode.
    pub(super) const NOBODY: Id = 7;

    pub(super) fn all(count: u8) -> Members {
        (0..count).collect()
    }

    pub(super) fn has(self, member: Id) -> bool {
        self.0 & (1 << member) != 0
    }

    pub(super) fn without(self, member: Id) -> Members {
        Members(self.0 & !(1 << member))
    }

    pub(super) fn count(self) -> usize {
        self.iter().count()
    }

    pub(super) fn iter(self) -> impl Iterator<Item = Id> {
        (0..8).filter(move |member| self.has(*member))
    }
}

impl FromIterator<Id> for Members {
    fn from_iter<T: IntoIterator<Item = Id>>(members: T) -> Members {
        Members(members.into_iter().fold(0, |set, member| set | (1 << member)))
    }
}

/// What a pledge says: timeline and length of a log, and the newest term known then.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub(super) struct Place {
    pub(super) timeline: u8,
    pub(super) length: u8,
    pub(super) term: u8,
}

/// `leader`.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct LeaderKey {
    pub(super) holder: Id,
    pub(super) rev: Rev,
}

/// The value of `/sync`; always active.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Set {
    pub(super) leader: Id,
    pub(super) quorum: u8,
    pub(super) voters: Members,
}

/// `pgherd/term`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct TermKey {
    pub(super) term: u8,
    pub(super) leader: Id,
    pub(super) timeline: u8,
    pub(super) position: Option<Place>,
    pub(super) rev: Rev,
}

/// `pgherd/fence`. An id of 0 is one that no record holds any more.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct FenceKey {
    pub(super) id: u8,
    pub(super) leader_rev: Rev,
    pub(super) sync_rev: Rev,
    pub(super) candidate: Id,
    pub(super) rev: Rev,
}

/// A pledge, durable or published.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Pledged {
    pub(super) fence: u8,
    pub(super) place: Place,
}

/// The store.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(super) struct Store {
    pub(super) leader: Option<LeaderKey>,
    pub(super) sync: Set,
    pub(super) sync_rev: Rev,
    pub(super) term: TermKey,
    pub(super) fence: Option<FenceKey>,
    /// With the revision of each.
    pub(super) pledges: [Option<(Pledged, Rev)>; MEMBERS_MAX],
}

impl Store {
    /// The term of whoever holds the leader key: known if both were written together.
    pub(super) fn leader_term(&self) -> Option<(Id, u8)> {
        let key = self.leader?;
        Some((key.holder, if self.term.rev == key.rev { self.term.term } else { 0 }))
    }
}

/// A transaction on its way to the store: its conditions and what it writes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Request {
    Open {
        fence: FenceKey,
    },
    Pledge {
        by: Id,
        pledge: Pledged,
        fence: Rev,
    },
    Void {
        fence: Rev,
    },
    Take {
        by: Id,
        take: Take,
    },
    /// `awaited` while the leader's agent waits for the answer to this very request.
    WriteSync {
        by: Id,
        key: Rev,
        expected: Rev,
        sync: Set,
        awaited: bool,
    },
    Release {
        by: Id,
        key: Rev,
    },
    Retake {
        by: Id,
        fence: Rev,
        expected: Rev,
        term_rev: Rev,
        term: TermKey,
        sync: Set,
    },
}

/// The winner's transaction.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Take {
    pub(super) leader: Rev,
    pub(super) fence: Rev,
    pub(super) expected: Rev,
    pub(super) term_rev: Rev,
    pub(super) pledges: [Rev; MEMBERS_MAX],
    pub(super) term: TermKey,
    pub(super) sync: Set,
}

/// `synchronous_standby_names`: `number` of `names` must confirm.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub(super) struct Rule {
    pub(super) number: u8,
    pub(super) names: Members,
}

/// PostgreSQL.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Postgres {
    /// Not running. What was a primary has no standby.signal and can be restarted in place.
    Down {
        primary: Option<Primary>,
    },
    Standby,
    Primary(Primary),
}

/// A primary's identity.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Primary {
    pub(super) term: u8,
    pub(super) timeline: u8,
    /// How long the log was when it became writable; what is acknowledged beyond proves that
    /// everything before is with a quorum.
    pub(super) begun: u8,
}

/// What a leader's agent remembers, and acts on while it sees nothing newer.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Lead {
    pub(super) key: Rev,
    pub(super) sync: Set,
    pub(super) sync_rev: Rev,
    /// It waits for the answer to a write of `/sync`.
    pub(super) writing: bool,
    /// What became of its last write of `/sync` is not known.
    pub(super) unknown: bool,
    /// It sets the rule, and waits until every session has taken it over.
    pub(super) setting: bool,
    /// It gives the leader key away.
    pub(super) releasing: bool,
}

/// A member: its copy, its PostgreSQL and its agent.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(super) struct Member {
    /// Flushed, so durable.
    pub(super) log: Log,
    /// Durable.
    pub(super) pledge: Option<Pledged>,
    /// Durable: the term followed.
    pub(super) term: u8,
    /// On disk: whom to stream from.
    pub(super) conninfo: Option<Id>,
    pub(super) postgres: Postgres,
    /// The running WAL receiver.
    pub(super) receiver: Option<Id>,
    /// A pledge under way: the fence and the newest term known, and the position if it was read too
    /// early.
    pub(super) stopping: Option<(u8, u8, Option<Place>)>,
    pub(super) lead: Option<Lead>,
    /// The rule that every session has taken over.
    pub(super) rule: Rule,
    /// The rule that some sessions have taken over.
    pub(super) next_rule: Option<Rule>,
    /// Where the log ended when the agent saw the rule taken over.
    pub(super) changed_at: Option<u8>,
    /// The position up to which commits were released; it never goes back (A8).
    pub(super) released: u8,
    /// What each standby's walsender was told to be flushed.
    pub(super) heard: [u8; MEMBERS_MAX],
    /// What is on its way there.
    pub(super) sent: [u8; MEMBERS_MAX],
}

impl Member {
    pub(super) fn primary(&self) -> Option<Primary> {
        match self.postgres {
            Postgres::Primary(primary) => Some(primary),
            Postgres::Down { .. } | Postgres::Standby => None,
        }
    }

    pub(super) fn is_down(&self) -> bool {
        matches!(self.postgres, Postgres::Down { .. })
    }

    /// PostgreSQL is not running any more; what survives is on disk.
    pub(super) fn stop(&mut self) {
        let primary = match self.postgres {
            Postgres::Primary(primary) => Some(primary),
            Postgres::Down { primary } => primary,
            Postgres::Standby => None,
        };
        self.postgres = Postgres::Down { primary };
        self.receiver = None;
        self.stopping = None;
        self.forget_sessions();
        self.rule = self.next_rule.take().unwrap_or(self.rule);
        if primary.is_none() {
            self.rule = Rule::default();
        }
        if let Some(lead) = &mut self.lead {
            lead.setting = false;
        }
    }

    /// The agent is another one: what the former remembered is gone.
    pub(super) fn forget(&mut self) {
        self.lead = None;
        self.stopping = None;
        self.changed_at = None;
    }

    /// Walsenders and waiting sessions are gone.
    pub(super) fn forget_sessions(&mut self) {
        self.released = 0;
        self.heard = [0; MEMBERS_MAX];
        self.sent = [0; MEMBERS_MAX];
        self.changed_at = None;
    }
}

/// What must never have happened.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(super) enum Violation {
    /// A leader began, or acknowledged, without a commit that was acknowledged.
    Lost,
    /// A leader acknowledged what the leader of a newer term has not.
    TwoWriters,
    /// Two promotions took one timeline number.
    TimelineTwice,
}

/// What the properties look at; nothing in the model reads it.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(super) struct Audit {
    /// The log up to the last acknowledged commit.
    pub(super) acknowledged: Log,
    /// Who was promoted in the newest term that had a promotion, and that term.
    pub(super) newest: (Id, u8),
    /// A bit for each timeline number that a promotion took.
    pub(super) timelines: u16,
    pub(super) violation: Option<Violation>,
}

/// One state.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct State {
    pub(super) store: Store,
    pub(super) members: Vec<Member>,
    /// Sorted: the network keeps no order.
    pub(super) requests: Vec<Request>,
    pub(super) audit: Audit,
    /// Faults that may still happen.
    pub(super) faults: u8,
    /// Commits that clients may still send.
    pub(super) writes: u8,
    /// Fences that may still be opened.
    pub(super) fences: u8,
}

impl State {
    pub(super) fn member(&self, id: Id) -> &Member {
        &self.members[usize::from(id)]
    }

    pub(super) fn member_mut(&mut self, id: Id) -> &mut Member {
        &mut self.members[usize::from(id)]
    }

    pub(super) fn ids(&self) -> impl Iterator<Item = Id> + use<> {
        0..u8::try_from(self.members.len()).unwrap_or(0)
    }

    /// Who streams from this member.
    pub(super) fn streaming_from(&self, upstream: Id) -> Members {
        self.ids().filter(|id| self.member(*id).receiver == Some(upstream)).collect()
    }
}
