//! What operators ask of one member.

use serde::{Deserialize, Serialize};

/// A restart of PostgreSQL, with its conditions. It is `scheduled_restart` in the member key as it
/// stands here (as Patroni 4.1 has it).
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct RestartRequest {
    /// ISO 8601 with an offset; at once if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub schedule: Option<String>,
    /// Only if PostgreSQL has this role then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub role: Option<String>,
    /// Only if the server that runs is older.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub postgres_version: Option<String>,
    /// Seconds that PostgreSQL may take to come up; after them a leader fails over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout: Option<u64>,
    /// Only if a parameter waits for a restart.
    #[serde(default, skip_serializing_if = "is_false")]
    pub restart_pending: bool,
    /// The start of the server that ran when this was scheduled: a restart of another reason takes
    /// the place of the scheduled one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub postmaster_start_time: Option<String>,
}

#[allow(clippy::trivially_copy_pass_by_ref)] // serde's skip_serializing_if hands a reference
fn is_false(value: &bool) -> bool {
    !*value
}

/// The roles that a restart may be restricted to.
pub const RESTART_ROLES: [&str; 3] = ["primary", "standby_leader", "replica"];

impl RestartRequest {
    /// Whether the conditions are met by a server of this role and `server_version_num`, with or
    /// without a parameter that waits.
    #[must_use]
    pub fn fits(&self, role: &str, version: Option<u32>, pending: bool) -> bool {
        let older = |wanted: &String| match (version_number(wanted), version) {
            (Some(wanted), Some(running)) => running < wanted,
            // What runs is not known, or nothing does.
            (Some(_), None) | (None, _) => false,
        };
        self.role.as_ref().is_none_or(|wanted| wanted == role)
            && self.postgres_version.as_ref().is_none_or(older)
            && (pending || !self.restart_pending)
    }
}

/// `server_version_num` of `15.2` or `9.6.3`; `None` for any other form.
#[must_use]
pub fn version_number(text: &str) -> Option<u32> {
    let numbers: Option<Vec<u32>> = text.trim().split('.').map(|part| part.parse().ok()).collect();
    let (major, minor, patch) = match numbers?.as_slice() {
        [major, patch] if *major >= 10 => (*major, 0, *patch),
        [major, minor, patch] => (*major, *minor, *patch),
        _ => return None,
    };
    let fits = major <= 999 && minor <= 99 && patch <= 99;
    fits.then_some((major * 100 + minor) * 100 + patch)
}

/// What is wrong with a version that [`version_number`] does not know, in Patroni's words.
#[must_use]
pub fn version_problem(text: &str) -> Option<String> {
    if version_number(text).is_some() {
        return None;
    }
    let numbers = text.trim().split('.').all(|part| part.parse::<u32>().is_ok());
    Some(if numbers {
        format!("Invalid PostgreSQL version format: X.Y or X.Y.Z is accepted: {text}")
    } else {
        format!("Invalid PostgreSQL version: {text}")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_become_numbers() {
        for (text, number) in [
            ("15.2", Some(150_002)),
            ("9.6.3", Some(90_603)),
            ("10.0.1", Some(100_001)),
            ("9.6", None),
            ("15", None),
            ("15.2.3.4", None),
            ("15.x", None),
            ("15.123456", None),
        ] {
            assert_eq!(version_number(text), number, "{text}");
            assert_eq!(version_problem(text).is_none(), number.is_some(), "{text}");
        }
    }

    #[test]
    fn every_condition_has_to_be_met() {
        let any = RestartRequest::default();
        assert!(any.fits("replica", None, false));
        let replica = RestartRequest { role: Some("replica".into()), ..any.clone() };
        assert!(replica.fits("replica", None, false) && !replica.fits("primary", None, false));
        let older = RestartRequest { postgres_version: Some("15.3".into()), ..any.clone() };
        assert!(older.fits("primary", Some(150_002), false));
        assert!(!older.fits("primary", Some(150_003), false));
        assert!(!older.fits("primary", None, false));
        let pending = RestartRequest { restart_pending: true, ..any };
        assert!(pending.fits("primary", None, true) && !pending.fits("primary", None, false));
    }

    #[test]
    fn it_is_written_as_patroni_writes_it() {
        let request = RestartRequest {
            schedule: Some("2026-11-23T22:01:02+00:00".into()),
            restart_pending: true,
            postmaster_start_time: Some("x".into()),
            ..RestartRequest::default()
        };
        let text = serde_json::to_string(&request).expect("plain data");
        let expected = r#"{"schedule":"2026-11-23T22:01:02+00:00","restart_pending":true,"#;
        assert_eq!(text, format!(r#"{expected}"postmaster_start_time":"x"}}"#));
    }
}
