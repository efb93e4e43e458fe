//! `POST /restart`, `POST /reinitialize`, and the time of what is scheduled: what is refused
//! (as Patroni 4.1 has it).

use serde_json::{Map, Value};
use types::{NoInstant, RESTART_ROLES, RestartRequest, UnixMillis, version_problem};

use crate::snapshot::{Snapshot, truthy};

/// An answer that refuses: HTTP status and text.
type Refused = (u16, String);

/// Reads and checks the body of `POST /restart`, in the order of its fields.
///
/// # Errors
/// The HTTP status and the text of the answer.
pub(crate) fn restart_request(
    snapshot: &Snapshot,
    body: &Map<String, Value>,
    now: UnixMillis,
) -> Result<RestartRequest, Refused> {
    let refuse = |status: u16, text: &str| Err((status, text.to_owned()));
    if snapshot.settings.paused && body.contains_key("schedule") {
        return refuse(500, "Can't schedule restart in the paused state");
    }
    let mut request = RestartRequest::default();
    for (key, value) in body {
        match key.as_str() {
            "schedule" => request.schedule = Some(schedule(value, "restart", now)?),
            "role" => match value.as_str().filter(|role| RESTART_ROLES.contains(role)) {
                Some(role) => request.role = Some(role.to_owned()),
                None => {
                    let roles = "primary, standby_leader, or replica";
                    return refuse(400, &format!("PostgreSQL role should be either {roles}"));
                }
            },
            "postgres_version" => {
                let text = plain(value);
                if let Some(what) = version_problem(&text) {
                    return refuse(400, &what);
                }
                request.postgres_version = Some(text);
            }
            "timeout" => match seconds(&plain(value)) {
                Some(seconds) => request.timeout = Some(seconds),
                None => return refuse(400, "Timeout should be a positive number of seconds"),
            },
            // Its presence is what counts.
            "restart_pending" => request.restart_pending = true,
            other => {
                let what = format!("Unknown filter for the scheduled restart: {other}");
                return refuse(400, &what);
            }
        }
    }
    Ok(request)
}

/// Whether `POST /reinitialize` asks to give up what is under way, and to copy the leader alone.
pub(crate) fn reinitialize_words(body: &Map<String, Value>) -> (bool, bool) {
    let said = |key: &str| body.get(key).is_some_and(truthy);
    (said("force"), said("from_leader"))
}

/// The time of something scheduled, as it is published. `action` is the word in the answer.
///
/// # Errors
/// The HTTP status and the text of the answer.
pub(crate) fn schedule(value: &Value, action: &str, now: UnixMillis) -> Result<String, Refused> {
    let text = plain(value);
    match UnixMillis::parse(&text) {
        Ok(at) if at < now => Err((422, format!("Cannot schedule {action} in the past"))),
        Ok(_) => Ok(text.trim().replacen(' ', "T", 1)),
        Err(NoInstant::NoZone) => {
            let what = format!("Timezone information is mandatory for the scheduled {action}");
            Err((400, what))
        }
        Err(NoInstant::Unreadable) => {
            let what = "Unable to parse scheduled timestamp. It should be in an unambiguous \
                        format, e.g. ISO 8601";
            Err((422, what.to_owned()))
        }
    }
}

fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// `30`, `30s`, `2min`, `1 h`.
fn seconds(text: &str) -> Option<u64> {
    let text = text.trim();
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().ok()?;
    let factor = match unit.trim() {
        "" | "s" => 1,
        "min" => 60,
        "h" => 3600,
        "d" => 86_400,
        _ => return None,
    };
    number.checked_mul(factor).filter(|seconds| *seconds > 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::samples;
    use serde_json::json;

    const NOW: UnixMillis = UnixMillis(1_795_471_262_000);

    fn request(body: Value) -> Result<RestartRequest, Refused> {
        let Value::Object(body) = body else { panic!("no object") };
        restart_request(&samples::leader(), &body, NOW)
    }

    #[test]
    fn restarts_are_refused_in_patronis_words() {
        for (body, status, text) in [
            (json!({"x": 1}), 400, "Unknown filter for the scheduled restart: x"),
            (
                json!({"role": "leader"}),
                400,
                "PostgreSQL role should be either primary, standby_leader, or replica",
            ),
            (
                json!({"postgres_version": "15"}),
                400,
                "Invalid PostgreSQL version format: X.Y or X.Y.Z is accepted: 15",
            ),
            (json!({"postgres_version": "a.b"}), 400, "Invalid PostgreSQL version: a.b"),
            (json!({"timeout": 0}), 400, "Timeout should be a positive number of seconds"),
            (json!({"timeout": "x"}), 400, "Timeout should be a positive number of seconds"),
            (
                json!({"schedule": "2026-11-23T22:01:01Z"}),
                422,
                "Cannot schedule restart in the past",
            ),
            (
                json!({"schedule": "2026-11-23T22:01:03"}),
                400,
                "Timezone information is mandatory for the scheduled restart",
            ),
            (
                json!({"schedule": "soon"}),
                422,
                "Unable to parse scheduled timestamp. It should be in an unambiguous format, e.g. \
                 ISO 8601",
            ),
        ] {
            assert_eq!(request(body.clone()), Err((status, text.to_owned())), "{body}");
        }
    }

    #[test]
    fn restarts_with_conditions_are_read() {
        let body = json!({"schedule": "2026-11-23 23:01:03+01:00", "role": "replica",
            "postgres_version": "15.2", "timeout": "2min", "restart_pending": "True"});
        let expected = RestartRequest {
            schedule: Some("2026-11-23T23:01:03+01:00".into()),
            role: Some("replica".into()),
            postgres_version: Some("15.2".into()),
            timeout: Some(120),
            restart_pending: true,
            postmaster_start_time: None,
        };
        assert_eq!(request(body), Ok(expected));
        assert_eq!(request(json!({})), Ok(RestartRequest::default()));
    }

    #[test]
    fn in_maintenance_mode_nothing_is_scheduled() {
        let mut paused = samples::leader();
        paused.settings.paused = true;
        let schedule = json!({"schedule": "2026-11-23T23:01:03Z"});
        let Value::Object(body) = schedule else { panic!("no object") };
        let refused = restart_request(&paused, &body, NOW).expect_err("paused");
        assert_eq!(refused, (500, "Can't schedule restart in the paused state".to_owned()));
        assert!(restart_request(&paused, &Map::new(), NOW).is_ok());
    }
}
