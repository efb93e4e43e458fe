//! The page of all keys that operators read.

use std::fmt::Write;

use crate::keys::{DATABASE, DYNAMIC, STATIC, Support, type_name};

/// The reference of all keys, in Markdown.
#[must_use]
pub fn reference() -> String {
    let mut page = String::from("# Configuration reference\n\nGenerated from the table of keys.\n");
    let databases = "A database of `pgherd.proxy.databases`";
    for (title, table) in
        [("Static file", STATIC), (databases, DATABASE), ("Dynamic configuration", DYNAMIC)]
    {
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
