//! The cluster's keys at one revision, kept current by listings and watch events. Pure.

use std::collections::BTreeMap;

use etcd_proto::mvccpb::Event;
use etcd_proto::mvccpb::event::EventType;
use types::{ClusterView, KeyValue, Revision};

use crate::client::Header;
use crate::txn::key_value;

/// The keys below one prefix. They are exact at `revision`.
#[derive(Debug, Default)]
pub(crate) struct KeyMap {
    cluster_id: u64,
    revision: Revision,
    keys: BTreeMap<String, KeyValue>,
}

/// What a listing did to the map.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Loaded {
    /// It is newer than the map (or as new), and is the map now.
    Taken,
    /// The map was newer already and stays.
    Stale,
    /// It comes from another store, or from one that was set back, and is the map now.
    Replaced,
}

impl KeyMap {
    pub(crate) fn revision(&self) -> Revision {
        self.revision
    }

    pub(crate) fn cluster_id(&self) -> u64 {
        self.cluster_id
    }

    pub(crate) fn view(&self) -> ClusterView {
        let view = ClusterView::from_keys(self.revision, self.keys.values());
        ClusterView { store: self.cluster_id, ..view }
    }

    /// Takes over a linearizable listing. `floor` is the map's revision from before the listing was
    /// asked for: a listing that is older than that cannot come from the same history, so the store
    /// was set back (restored from a backup under its old name).
    pub(crate) fn load(&mut self, keys: Vec<KeyValue>, header: Header, floor: Revision) -> Loaded {
        let known = self.cluster_id != 0;
        let replaced = known && (header.cluster_id != self.cluster_id || header.revision < floor);
        if known && !replaced && header.revision < self.revision {
            return Loaded::Stale;
        }
        self.cluster_id = header.cluster_id;
        self.revision = header.revision;
        self.keys = keys.into_iter().map(|kv| (kv.key.clone(), kv)).collect();
        if replaced { Loaded::Replaced } else { Loaded::Taken }
    }

    /// Applies events of whole revisions; returns whether anything was new. Events up to the map's
    /// revision are in it already: a read may have been faster than the watch.
    pub(crate) fn apply(&mut self, prefix: &str, events: Vec<Event>) -> bool {
        let base = self.revision;
        for event in events {
            let deleted = event.r#type == i32::from(EventType::Delete);
            let Some(kv) = event.kv else { continue };
            let revision = Revision(kv.mod_revision);
            if revision <= base {
                continue;
            }
            self.revision = self.revision.max(revision);
            let Some(kv) = key_value(kv, prefix) else {
                continue;
            };
            if deleted {
                self.keys.remove(&kv.key);
            } else {
                self.keys.insert(kv.key.clone(), kv);
            }
        }
        self.revision > base
    }
}

#[cfg(test)]
mod tests {
    use etcd_proto::mvccpb;

    use super::*;

    fn header(cluster_id: u64, revision: i64) -> Header {
        Header { cluster_id, revision: Revision(revision), ..Header::default() }
    }

    fn event(kind: EventType, key: &str, revision: i64) -> Event {
        Event {
            r#type: kind.into(),
            kv: Some(mvccpb::KeyValue {
                key: format!("/p/{key}").into_bytes(),
                mod_revision: revision,
                ..mvccpb::KeyValue::default()
            }),
            prev_kv: None,
        }
    }

    fn listed(key: &str, revision: i64) -> KeyValue {
        KeyValue {
            key: key.to_owned(),
            value: Vec::new(),
            create_revision: Revision(revision),
            mod_revision: Revision(revision),
            lease: 0,
        }
    }

    fn names(map: &KeyMap) -> Vec<&str> {
        map.keys.keys().map(String::as_str).collect()
    }

    #[test]
    fn events_that_a_listing_holds_already_are_skipped() {
        let mut map = KeyMap::default();
        let floor = Revision(0);
        assert_eq!(map.load(vec![listed("a", 5)], header(1, 7), floor), Loaded::Taken);
        // The put of b at 6 was undone at 7; the listing at 7 knows.
        assert!(!map.apply("/p/", vec![event(EventType::Put, "b", 6)]));
        assert!(!map.apply("/p/", vec![event(EventType::Delete, "b", 7)]));
        assert_eq!(names(&map), ["a"]);
        let one_txn = vec![event(EventType::Put, "c", 8), event(EventType::Delete, "a", 8)];
        assert!(map.apply("/p/", one_txn));
        assert_eq!((names(&map), map.revision()), (vec!["c"], Revision(8)));
    }

    #[test]
    fn the_map_goes_back_only_for_another_store_or_one_set_back() {
        let mut map = KeyMap::default();
        map.load(vec![listed("a", 5)], header(1, 7), Revision(0));
        let floor = map.revision();
        assert!(map.apply("/p/", vec![event(EventType::Put, "b", 9)]));
        // Asked for before the event came: merely late.
        assert_eq!(map.load(vec![], header(1, 8), floor), Loaded::Stale);
        assert_eq!(names(&map), ["a", "b"]);
        // Asked for after it: the store lost it.
        assert_eq!(map.load(vec![], header(1, 8), Revision(9)), Loaded::Replaced);
        assert_eq!(map.load(vec![listed("x", 2)], header(2, 2), Revision(8)), Loaded::Replaced);
        assert_eq!((names(&map), map.cluster_id()), (vec!["x"], 2));
    }
}
