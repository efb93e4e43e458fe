//! The lines of `list` on what weakens a cluster.

use types::{ClusterView, MemberName};

/// The members that anybody may ask for a change, as a line below the table; nothing if there are
/// none.
#[must_use]
pub(crate) fn open_rest_text(view: &ClusterView) -> String {
    let open = view.members.iter().filter(|(_, member)| member.value.open_rest);
    let names: Vec<&str> = open.map(|(name, _)| MemberName::as_str(name)).collect();
    if names.is_empty() {
        return String::new();
    }
    let names = names.join(", ");
    format!(
        " Anybody who reaches the REST interface of {names} can change this cluster: set \
         restapi.authentication\n"
    )
}

/// Where `synchronous_commit` is set below `on` (I1), as the leader publishes it: a line below the
/// table; nothing if there is nothing to say.
#[must_use]
pub(crate) fn lowered_text(view: &ClusterView) -> String {
    let leader = view.leader_name().and_then(|name| view.member(name));
    let places = leader.map(|member| member.lowered.join(", ")).unwrap_or_default();
    if places.is_empty() {
        return String::new();
    }
    format!(
        " synchronous_commit is lowered for {places}: their commits may be lost in a failover\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use types::{KeyValue, Revision};

    fn line(leader: &str, lowered: &str) -> String {
        let keys = [("leader", leader.to_owned()), ("members/a", format!("{{{lowered}}}"))];
        let keys = keys.map(|(key, value)| KeyValue {
            key: key.to_owned(),
            value: value.into_bytes(),
            create_revision: Revision(1),
            mod_revision: Revision(1),
            lease: 0,
        });
        lowered_text(&ClusterView::from_keys(Revision(1), &keys))
    }

    #[test]
    fn who_is_open_is_told() {
        let keys = [("a", r#"{"open_rest":true}"#), ("b", "{}")].map(|(name, value)| KeyValue {
            key: format!("members/{name}"),
            value: value.as_bytes().to_vec(),
            create_revision: Revision(1),
            mod_revision: Revision(1),
            lease: 0,
        });
        let told = open_rest_text(&ClusterView::from_keys(Revision(1), &keys));
        assert!(told.starts_with(" Anybody who reaches the REST interface of a can"), "{told}");
        assert_eq!(open_rest_text(&ClusterView::from_keys(Revision(1), &keys[1..])), "");
    }

    #[test]
    fn only_what_the_leader_says_is_told() {
        let lowered = r#""lowered":["role app","database reports"]"#;
        let told = " synchronous_commit is lowered for role app, database reports: their commits \
                    may be lost in a failover\n";
        assert_eq!(line("a", lowered), told);
        assert_eq!(line("b", lowered), "");
        assert_eq!(line("a", ""), "");
    }
}
