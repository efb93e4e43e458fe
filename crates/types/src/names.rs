//! Names of members, and the names derived from them, as Patroni derives them.

use serde::{Deserialize, Serialize};

/// A member's name as it stands in the DCS and in `application_name`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct MemberName(pub String);

impl MemberName {
    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Display for MemberName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<&str> for MemberName {
    fn from(name: &str) -> MemberName {
        MemberName(name.to_owned())
    }
}

/// The replication slot of the member `name`: lower case, `-` and `.` become `_`, any other
/// character outside `[a-z0-9_]` becomes `u` and its code point with at least four decimal digits,
/// cut to 63 bytes.
#[must_use]
pub fn slot_name(name: &MemberName) -> String {
    let mut slot = String::new();
    for c in name.0.to_lowercase().chars() {
        match c {
            'a'..='z' | '0'..='9' | '_' => slot.push(c),
            '-' | '.' => slot.push('_'),
            other => slot.push_str(&format!("u{:04}", u32::from(other))),
        }
    }
    slot.truncate(63);
    slot
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slot_names_are_patronis() {
        assert_eq!(slot_name(&"node-1.x".into()), "node_1_x");
        assert_eq!(slot_name(&"Pg/A".into()), "pgu0047a");
        assert_eq!(slot_name(&MemberName("x".repeat(80))).len(), 63);
    }
}
