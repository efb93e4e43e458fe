//! The key layout: Patroni's names and ours, below `/<namespace>/<scope>/`.

use crate::names::MemberName;

/// `leader`.
pub const LEADER: &str = "leader";
/// Prefix of the member keys.
pub const MEMBERS: &str = "members/";
/// `initialize`.
pub const INITIALIZE: &str = "initialize";
/// `config`.
pub const CONFIG: &str = "config";
/// `status`.
pub const STATUS: &str = "status";
/// `history`.
pub const HISTORY: &str = "history";
/// `failover`.
pub const FAILOVER: &str = "failover";
/// `sync`.
pub const SYNC: &str = "sync";
/// `failsafe`.
pub const FAILSAFE: &str = "failsafe";
/// The term of the current leader key (ours).
pub const TERM: &str = "pgherd/term";
/// The open election (ours).
pub const FENCE: &str = "pgherd/fence";
/// Prefix of the pledges (ours).
pub const PLEDGES: &str = "pgherd/pledges/";
/// The leader's request to the proxies to hold their clients, under the leader's lease (ours).
pub const HOLD: &str = "pgherd/hold";
/// Prefix of the proxies' keys, each under its proxy's lease (ours).
pub const PROXIES: &str = "pgherd/proxies/";

/// The key of a member, below the prefix.
#[must_use]
pub fn member(name: &MemberName) -> String {
    format!("{MEMBERS}{name}")
}

/// The key of a member's pledge, below the prefix.
#[must_use]
pub fn pledge(name: &MemberName) -> String {
    format!("{PLEDGES}{name}")
}

/// The key of a proxy, below the prefix.
#[must_use]
pub fn proxy(id: &str) -> String {
    format!("{PROXIES}{id}")
}

/// `/<namespace>/<scope>/`, runs of `/` squeezed to one.
#[must_use]
pub fn prefix(namespace: &str, scope: &str) -> String {
    let mut path = String::new();
    for part in namespace.split('/').chain(scope.split('/')).filter(|p| !p.is_empty()) {
        path.push('/');
        path.push_str(part);
    }
    path.push('/');
    path
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_prefix_squeezes_slashes() {
        assert_eq!(prefix("/service/", "demo"), "/service/demo/");
        assert_eq!(prefix("service", "demo"), "/service/demo/");
    }
}
