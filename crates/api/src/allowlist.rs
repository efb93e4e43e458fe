//! `restapi.allowlist`: from where things may be changed. Addresses and networks are compared; the
//! names of hosts, the members' too, are looked up when a request calls for it, with a limit, and
//! what came back is kept for a while.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use config::{Allowed, Network};
use tokio::sync::watch;
use tokio::time::Instant;
use types::ClusterView;

/// A name that has not been looked up by then lets nobody in.
const LOOKUP_MAX: Duration = Duration::from_secs(2);

/// What a name stands for is looked up anew after this. A lookup that failed is one, too.
const KEPT: Duration = Duration::from_secs(30);

/// So many names are known at a time; no further one is looked up.
const NAMES_MAX: usize = 256;

/// Who may use the endpoints that change something, by where they come from.
#[derive(Debug, Clone, Default)]
pub struct Allowlist {
    networks: Vec<Network>,
    hosts: Vec<String>,
    members: bool,
    names: Names,
}

impl Allowlist {
    /// `members`: whoever comes from a member's host may, too.
    #[must_use]
    pub fn new(allowed: &[Allowed], members: bool) -> Allowlist {
        let mut list = Allowlist { members, ..Allowlist::default() };
        for entry in allowed {
            match entry {
                Allowed::Network(network) => list.networks.push(*network),
                Allowed::Host(host) => list.hosts.push(host.clone()),
            }
        }
        list
    }

    /// Whether a request from this address may go on to be asked for its password. `among_members`:
    /// it is what members ask each other for, so that a list of members alone keeps nobody out.
    pub(crate) async fn admits(
        &self,
        address: IpAddr,
        view: Option<&ClusterView>,
        among_members: bool,
    ) -> bool {
        let listed = !self.networks.is_empty() || !self.hosts.is_empty();
        if !listed && (!self.members || among_members) {
            return true;
        }
        if self.networks.iter().any(|network| network.contains(address)) {
            return true;
        }
        let mut hosts = self.hosts.clone();
        if self.members {
            let members = view.into_iter().flat_map(|view| view.members.values());
            hosts.extend(members.filter_map(|m| m.value.api_address()).map(|a| a.host));
        }
        self.names.any_is(hosts, address).await
    }
}

/// What was found at a name: `None` until the lookup is over.
type Found = watch::Receiver<Option<Vec<IpAddr>>>;

/// Names of hosts and the addresses they stand for.
#[derive(Debug, Clone, Default)]
struct Names(Arc<Mutex<BTreeMap<String, (Instant, Found)>>>);

impl Names {
    /// Whether one of the hosts has this address.
    async fn any_is(&self, hosts: Vec<String>, address: IpAddr) -> bool {
        let address = address.to_canonical();
        let mut asked = Vec::new();
        for host in hosts {
            match Network::parse(&host) {
                Some(network) if network.contains(address) => return true,
                Some(_) => {}
                // All are begun before the first is waited for.
                None => asked.extend(self.ask(host)),
            }
        }
        let late = Instant::now() + LOOKUP_MAX;
        for mut found in asked {
            let found = tokio::time::timeout_at(late, found.wait_for(Option::is_some)).await;
            let Ok(Ok(addresses)) = found else { continue };
            if addresses.iter().flatten().any(|known| known.to_canonical() == address) {
                return true;
            }
        }
        false
    }

    /// What is known of a host, or will be. There is one lookup of a name at a time: a resolver
    /// that hangs holds up one thread for each, however many requests come.
    fn ask(&self, host: String) -> Option<Found> {
        let mut names = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        let kept = |begun: &Instant, found: &Found| {
            now.duration_since(*begun) < KEPT || found.borrow().is_none()
        };
        if let Some((begun, found)) = names.get(&host)
            && kept(begun, found)
        {
            return Some(found.clone());
        }
        names.retain(|_, (begun, found)| kept(begun, found));
        if names.len() >= NAMES_MAX {
            tracing::warn!(host, "not looked up: too many names of hosts");
            return None;
        }
        let (said, found) = watch::channel(None);
        names.insert(host.clone(), (now, found.clone()));
        tokio::spawn(async move {
            let addresses = look_up(&host).await;
            said.send_replace(Some(addresses));
        });
        Some(found)
    }
}

async fn look_up(host: &str) -> Vec<IpAddr> {
    match tokio::net::lookup_host((host, 0)).await {
        Ok(found) => found.map(|address| address.ip()).collect(),
        Err(error) => {
            tracing::error!("Failed to resolve {host}: {error}");
            Vec::new()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::samples;

    fn list(entries: &[&str], members: bool) -> Allowlist {
        let entry = |text: &&str| match Network::parse(text) {
            Some(network) => Allowed::Network(network),
            None => Allowed::Host((*text).to_owned()),
        };
        Allowlist::new(&entries.iter().map(entry).collect::<Vec<_>>(), members)
    }

    #[tokio::test]
    async fn who_may_change_things() {
        let view = samples::view();
        let (listed, member, local) = ("192.0.2.9", "10.0.0.2", "127.0.0.1");
        let both = &["192.0.2.0/24", "localhost"][..];
        for (entries, members, address, among_members, admitted) in [
            (&[][..], false, listed, false, true),
            (both, false, listed, false, true),
            (both, false, member, false, false),
            (both, false, local, false, true),
            (both, true, member, false, true),
            (both, true, member, true, true),
            (both, false, member, true, false),
            (&[], true, member, false, true),
            (&[], true, listed, false, false),
            // Asked while the DCS is away, when a view may not be there.
            (&[], true, listed, true, true),
        ] {
            let list = list(entries, members);
            let address = address.parse().expect("an address");
            let got = list.admits(address, Some(&view), among_members).await;
            assert_eq!(got, admitted, "{entries:?} {members} {address} {among_members}");
        }
    }

    #[tokio::test]
    async fn a_name_is_looked_up_once_and_only_so_many_are() {
        let names = Names::default();
        let first = names.ask("localhost".into()).expect("asked");
        let again = names.ask("localhost".into()).expect("known");
        assert!(first.same_channel(&again));
        for number in 1..NAMES_MAX {
            let nothing = watch::channel(Some(Vec::new())).1;
            names.0.lock().unwrap().insert(number.to_string(), (Instant::now(), nothing));
        }
        assert!(names.ask("one-more".into()).is_none());
        let unknown = "192.0.2.1".parse().expect("an address");
        assert!(!names.any_is(vec!["1".into(), "one-more".into()], unknown).await);
    }
}
