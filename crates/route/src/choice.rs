//! What a view says about routes, without regard to clients.

use types::{ClusterView, Lsn, Member, MemberName, Term};

use crate::event::Target;

/// Why there is no read-write route. It becomes the hint that a refused client reads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Awaited {
    /// Nothing is known of the cluster yet.
    View,
    /// There is no leader key: an election is due.
    Leader,
    /// The leader's member key is missing.
    Member {
        /// The leader.
        leader: MemberName,
    },
    /// The leader is not a primary (yet).
    Primary {
        /// The leader.
        leader: MemberName,
        /// What its member key says.
        role: String,
    },
    /// The leader's member key speaks of another term than the leader key.
    Term {
        /// The leader.
        leader: MemberName,
        /// The leader key's term.
        term: Term,
    },
    /// The leader's term is older than one seen before; such a primary is never used.
    OldTerm {
        /// The leader.
        leader: MemberName,
        /// The leader key's term.
        term: Term,
        /// The newest term seen.
        newest: Term,
    },
    /// The leader holds its clients: its primary is about to be stopped, or comes back.
    Held {
        /// The leader.
        leader: MemberName,
        /// What for.
        why: String,
    },
    /// The leader's member key has no usable address.
    Address {
        /// The leader.
        leader: MemberName,
    },
}

impl std::fmt::Display for Awaited {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Awaited::View => write!(
                f,
                "nothing is known of the cluster yet: the proxy has reached neither the DCS nor a \
                 member that follows it"
            ),
            Awaited::Leader => write!(f, "no member holds the leader key; an election is awaited"),
            Awaited::Member { leader } => {
                write!(f, "{leader} holds the leader key, its member key is awaited")
            }
            Awaited::Primary { leader, role } => {
                let role = if role.is_empty() { "nothing yet" } else { role };
                write!(f, "{leader} leads and is awaited as primary; its role is {role}")
            }
            Awaited::Term { leader, term } => {
                write!(f, "{leader} leads in term {term}, which its member key does not say yet")
            }
            Awaited::OldTerm { leader, term, newest } => write!(
                f,
                "{leader} leads in term {term}, but term {newest} was seen; \
                 if the DCS was restored from a backup, restart the proxy"
            ),
            Awaited::Held { leader, why } => {
                let why = if why.is_empty() { "planned stop" } else { why };
                write!(f, "{leader} holds its clients for a {why}, the primary after it is awaited")
            }
            Awaited::Address { leader } => {
                write!(f, "{leader} leads, but its conn_url cannot be read")
            }
        }
    }
}

/// Whether the member says that it is the primary. `master` is what old Patroni versions say.
pub(crate) fn is_primary(member: &Member) -> bool {
    member.role == "primary" || member.role == "master"
}

/// The read-write route, if it is open. `newest` is the newest term ever seen.
pub(crate) fn primary_route(view: &ClusterView, newest: Term) -> Result<Target, Awaited> {
    let (Some(leader), Some(term)) = (view.leader_name().cloned(), view.leader_term()) else {
        return Err(Awaited::Leader);
    };
    // Term 0 is a Patroni leader: its term is unknown, and its role alone has to do.
    let is_patroni = term == Term(0);
    if !is_patroni && term < newest {
        return Err(Awaited::OldTerm { leader, term, newest });
    }
    let Some(member) = view.member(&leader) else {
        return Err(Awaited::Member { leader });
    };
    if !is_primary(member) {
        return Err(Awaited::Primary { leader, role: member.role.clone() });
    }
    if !is_patroni && member.term != Some(term) {
        return Err(Awaited::Term { leader, term });
    }
    let Some((host, port)) = member.postgres_address() else {
        return Err(Awaited::Address { leader });
    };
    Ok(Target { member: leader, host, port, term: Some(term) })
}

/// A member that serves reads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Replica {
    pub(crate) target: Target,
    /// It is of the proxy's own site, or the proxy has none.
    pub(crate) near: bool,
    /// It is known to be on the primary's timeline, so that their positions compare.
    pub(crate) on_timeline: bool,
}

/// The members that serve reads: streaming replicas that are not too far behind.
pub(crate) fn replicas(
    view: &ClusterView,
    lag_bytes_max: Option<u64>,
    site: Option<&str>,
) -> Vec<Replica> {
    let end = leader_position(view);
    let leader = view.leader_name().and_then(|name| view.member(name));
    let timeline = leader.and_then(|leader| leader.timeline);
    let members = view.members.iter().filter(|(name, _)| view.leader_name() != Some(name));
    let serving = members.filter(|(_, member)| serves_reads(&member.value, end, lag_bytes_max));
    let replicas = serving.filter_map(|(name, member)| {
        let (host, port) = member.value.postgres_address()?;
        Some(Replica {
            target: Target { member: name.clone(), host, port, term: None },
            near: is_near(&member.value, site),
            on_timeline: timeline.is_some() && member.value.timeline == timeline,
        })
    });
    replicas.collect()
}

/// Whether the member is of this site; a proxy without one is near to all.
pub(crate) fn is_near(member: &Member, site: Option<&str>) -> bool {
    site.is_none_or(|site| member.tags.is_at(site))
}

fn serves_reads(member: &Member, end: Lsn, lag_bytes_max: Option<u64>) -> bool {
    let streams = member.replication_state.as_deref() == Some("streaming");
    if member.role != "replica" || member.state != "running" || !streams {
        return false;
    }
    if member.tags.noloadbalance() {
        return false;
    }
    let Some(most) = lag_bytes_max else {
        return true;
    };
    // A replica whose position is unknown counts as too far behind (I4).
    let replayed = member.replay_lsn.or(member.xlog_location);
    replayed.is_some_and(|replayed| end.bytes_since(replayed) <= most)
}

fn leader_position(view: &ClusterView) -> Lsn {
    let published = view.status.as_ref().map_or(Lsn(0), |status| status.value.optime);
    let leader = view.leader_name().and_then(|name| view.member(name));
    published.max(leader.and_then(|leader| leader.xlog_location).unwrap_or_default())
}
