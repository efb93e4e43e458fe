//! In which role this member's PostgreSQL is configured.

use config::NodeRole;
use types::{LocalPostgres, Process, Role};

/// The role that an observation shows; what does not run, or does not answer, has the one that it
/// had, and that of a replica if it never had one.
pub(crate) fn of(
    local: &LocalPostgres,
    standby_leader: bool,
    former: Option<NodeRole>,
) -> NodeRole {
    match &local.process {
        Process::Running(running) => match running.role {
            Role::Primary(_) => NodeRole::Primary,
            Role::Standby(_) if standby_leader => NodeRole::StandbyLeader,
            Role::Standby(_) => NodeRole::Replica,
        },
        Process::Stopped
        | Process::Orphaned
        | Process::NotReady { .. }
        | Process::Silent { .. } => former.unwrap_or(NodeRole::Replica),
    }
}
