//! The reference of keys, printed from their table.

use std::fmt::Write as _;

use crate::keys::{CLUSTER, DATABASE, DYNAMIC, STATIC, Support, type_name};

/// The reference of all keys, in Markdown.
#[must_use]
pub fn reference() -> String {
    let mut page = String::from("# Configuration reference\n\nGenerated from the table of keys.\n");
    let clusters = "A cluster of `pgherd.proxy.clusters`, besides scope, namespace and etcd3";
    let databases = "A database of `pgherd.proxy.databases`";
    for (title, table) in [
        ("Static file", STATIC),
        (clusters, CLUSTER),
        (databases, DATABASE),
        ("Dynamic configuration", DYNAMIC),
    ] {
        page.push_str(&format!("\n## {title}\n\n| key | type | default | |\n|---|---|---|---|\n"));
        for key in table {
            let (kind, support) = (type_name(key.holds), support_name(key.support));
            writeln!(
                page,
                "| `{}` | {kind} | {} | {support}{} |",
                key.path, key.default, key.about
            )
            .expect("writing to a String does not fail");
        }
    }
    page
}

fn support_name(support: Support) -> &'static str {
    match support {
        Support::Used | Support::Quiet => "",
        Support::Refused(_) => "Refused: ",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_table_is_in_it() {
        assert!(reference().contains("| `pgherd.state_dir` | a text |"));
        assert!(reference().contains("| `members` | a list, or a text with commas |"));
    }
}
