//! Times as operators write them.

use jiff::civil::DateTime;
use jiff::tz::TimeZone;
use types::{NoInstant, UnixMillis};

/// `None` for now; else ISO 8601 with an offset. A time without one is this machine's.
///
/// # Errors
/// The text is no time.
pub(super) fn instant(text: &str) -> anyhow::Result<Option<String>> {
    let text = text.trim();
    if text.is_empty() || text == "now" {
        return Ok(None);
    }
    match UnixMillis::parse(text) {
        Ok(_) => return Ok(Some(text.replacen(' ', "T", 1))),
        Err(NoInstant::NoZone) => {
            let local = text.parse::<DateTime>().ok();
            let zoned = local.and_then(|local| local.to_zoned_datetime(TimeZone::system()).ok());
            if let Some(zoned) = zoned {
                return Ok(Some(zoned.strftime("%Y-%m-%dT%H:%M:%S%.f%:z").to_string()));
            }
        }
        Err(NoInstant::Unreadable) => {}
    }
    anyhow::bail!(
        "Unable to parse scheduled timestamp ({text}). It should be in an unambiguous format \
         (e.g. ISO 8601)"
    )
}

/// The next hour as an example.
pub(super) fn example() -> String {
    let next = jiff::ZonedDateTime::now().saturating_add(jiff::Span::new().hours(1));
    next.strftime("%Y-%m-%dT%H:%M").to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_get_an_offset() {
        assert_eq!(instant("now").expect("now"), None);
        assert_eq!(instant("").expect("now"), None);
        let zoned = instant("2026-11-23 22:01:02.5+01:00").expect("a time");
        assert_eq!(zoned.as_deref(), Some("2026-11-23T22:01:02.5+01:00"));
        let local = instant("2026-11-23T22:01").expect("a time").expect("later");
        assert!(local.starts_with("2026-11-23T22:01:00"), "{local}");
        assert!(UnixMillis::parse(&local).is_ok(), "{local}");
        let error = instant("tomorrow").expect_err("no time").to_string();
        assert!(error.starts_with("Unable to parse scheduled timestamp (tomorrow). "), "{error}");
    }
}
