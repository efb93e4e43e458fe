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
    use super::super::test_view::view;
    use super::*;

    fn line(leader: &str, lowered: &str) -> String {
        lowered_text(&view(&[("leader", leader), ("members/a", &format!("{{{lowered}}}"))]))
    }

    #[test]
    fn who_is_open_is_told() {
        let keys = [("members/a", r#"{"open_rest":true}"#), ("members/b", "{}")];
        let told = open_rest_text(&view(&keys));
        assert!(told.starts_with(" Anybody who reaches the REST interface of a can"), "{told}");
        assert_eq!(open_rest_text(&view(&keys[1..])), "");
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
