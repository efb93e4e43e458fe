//! Which members a command is about, and whether the operator means them.

use api::cluster::{ClusterRole, MemberInfo, members};
use types::{ClusterView, MemberName};

use super::table::{Format, Layout, members_text};
use super::{prompt, say};

/// `--role`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Role {
    /// Whoever leads.
    Leader,
    /// The leader of a cluster that is no standby of another.
    Primary,
    /// The leader of a standby cluster.
    StandbyLeader,
    /// Everybody else.
    Replica,
    /// The same.
    Standby,
    /// Everybody.
    Any,
}

impl Role {
    /// Whether a member has this role.
    pub(super) fn fits(self, member: &MemberInfo<'_>) -> bool {
        let leads = matches!(member.role, ClusterRole::Leader | ClusterRole::StandbyLeader);
        match self {
            Role::Leader => leads,
            Role::Primary => member.role == ClusterRole::Leader,
            Role::StandbyLeader => member.role == ClusterRole::StandbyLeader,
            Role::Replica | Role::Standby => !leads,
            Role::Any => true,
        }
    }

    /// The word on the command line.
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Role::Leader => "leader",
            Role::Primary => "primary",
            Role::StandbyLeader => "standby-leader",
            Role::Replica => "replica",
            Role::Standby => "standby",
            Role::Any => "any",
        }
    }
}

/// What the command line says of the members.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Selection {
    /// Name of the cluster
    #[arg(value_name = "CLUSTER_NAME")]
    pub(crate) cluster: String,
    /// Names of members; all by default
    #[arg(value_name = "MEMBER_NAMES")]
    pub(crate) members: Vec<String>,
    /// Only members with this role
    #[arg(short, long, value_enum)]
    pub(crate) role: Option<Role>,
    /// Do not ask for confirmation
    #[arg(long)]
    pub(crate) force: bool,
}

impl Selection {
    /// Shows the members, selects, and asks.
    ///
    /// # Errors
    /// Nobody is selected, or the operator does not mean it.
    pub(super) async fn of(
        &self,
        view: &ClusterView,
        action: &str,
    ) -> anyhow::Result<Vec<MemberName>> {
        let names = self.shown(view)?;
        self.confirm(&names, action).await?;
        Ok(names)
    }

    /// Shows the members and selects.
    ///
    /// # Errors
    /// Nobody is selected.
    pub(super) fn shown(&self, view: &ClusterView) -> anyhow::Result<Vec<MemberName>> {
        self.show(view)?;
        self.named(view)
    }

    /// Shows the members.
    ///
    /// # Errors
    /// None is named, and nobody has the role.
    pub(super) fn show(&self, view: &ClusterView) -> anyhow::Result<()> {
        let fits = |member: &MemberInfo<'_>| self.role().fits(member);
        let any = !self.members.is_empty() || members(view).iter().any(fits);
        anyhow::ensure!(any, "{} cluster doesn't have any members", self.cluster);
        let layout = Layout { format: Format::Pretty, extended: false, tree: false };
        say(&members_text(view, &self.cluster, layout))?;
        Ok(())
    }

    fn role(&self) -> Role {
        self.role.unwrap_or(Role::Any)
    }

    /// Asks whether the operator means these.
    ///
    /// # Errors
    /// No.
    pub(super) async fn confirm(&self, names: &[MemberName], action: &str) -> anyhow::Result<()> {
        if !self.force {
            let question = format!("Are you sure you want to {action} members {}?", list(names));
            anyhow::ensure!(prompt::confirm(&question).await?, "Aborted {action}");
        }
        Ok(())
    }

    fn named(&self, view: &ClusterView) -> anyhow::Result<Vec<MemberName>> {
        let infos = members(view);
        let role = self.role();
        let wanted = |member: &&MemberInfo<'_>| {
            let named = self.members.is_empty()
                || self.members.iter().any(|name| member.name.as_str() == name);
            named && role.fits(member)
        };
        let found: Vec<MemberName> =
            infos.iter().filter(wanted).map(|member| member.name.clone()).collect();
        anyhow::ensure!(!found.is_empty(), "No {} among provided members", role.as_str());
        Ok(found)
    }
}

/// Names as questions list them.
pub(super) fn list(names: &[MemberName]) -> String {
    let names: Vec<&str> = names.iter().map(MemberName::as_str).collect();
    names.join(", ")
}
