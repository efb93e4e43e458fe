//! The line of `list` on where `synchronous_commit` is set below `on` (I1).

use types::ClusterView;

/// What the leader publishes of it, as a line below the table; nothing if there is nothing to say.
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
    fn only_what_the_leader_says_is_told() {
        let lowered = r#""lowered":["role app","database reports"]"#;
        let told = " synchronous_commit is lowered for role app, database reports: their commits \
                    may be lost in a failover\n";
        assert_eq!(line("a", lowered), told);
        assert_eq!(line("b", lowered), "");
        assert_eq!(line("a", ""), "");
    }
}
