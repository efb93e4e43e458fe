//! A cluster as a test writes it down.

use types::{ClusterView, KeyValue, Revision};

/// The view of these keys, named below the cluster's prefix.
pub(super) fn view(keys: &[(&str, &str)]) -> ClusterView {
    let keys: Vec<KeyValue> = keys
        .iter()
        .map(|(key, value)| KeyValue {
            key: (*key).to_owned(),
            value: value.as_bytes().to_vec(),
            create_revision: Revision(1),
            mod_revision: Revision(1),
            lease: 0,
        })
        .collect();
    ClusterView::from_keys(Revision(1), &keys)
}
