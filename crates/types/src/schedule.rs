//! Instants of the wall clock, for what operators schedule. Nothing about leadership depends on
//! them.

use serde::{Deserialize, Serialize};

/// Milliseconds since 1970 in UTC. The pure crates are handed the present one.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct UnixMillis(pub i64);

/// Why a text is no instant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoInstant {
    /// It is no date with a time.
    Unreadable,
    /// It has no zone, so that nobody knows which instant it means.
    NoZone,
}

impl UnixMillis {
    /// Reads ISO 8601 with an offset: `2026-11-23T22:01:02.5+01:00`, `2026-11-23 22:01Z`. The date
    /// is needed, seconds are not; a fraction is cut to milliseconds.
    ///
    /// # Errors
    /// The text is no date with a time, or has no offset.
    pub fn parse(text: &str) -> Result<UnixMillis, NoInstant> {
        let text = text.trim();
        let (date, rest) = text.split_at_checked(10).ok_or(NoInstant::Unreadable)?;
        let days = days_of(date).ok_or(NoInstant::Unreadable)?;
        let rest = rest.strip_prefix(['T', 't', ' ']).ok_or(NoInstant::Unreadable)?;
        let zone_at = rest.find(|c: char| !matches!(c, '0'..='9' | ':' | '.'));
        let (time, zone) = rest.split_at(zone_at.unwrap_or(rest.len()));
        let time = time_of(time).ok_or(NoInstant::Unreadable)?;
        let offset = match zone.trim() {
            "" => return Err(NoInstant::NoZone),
            "Z" | "z" | "UTC" | "utc" => 0,
            other => offset_of(other).ok_or(NoInstant::Unreadable)?,
        };
        Ok(UnixMillis(days * 86_400_000 + time - offset))
    }

    /// The span from `earlier` to `self` in milliseconds, negative if `earlier` is later.
    #[must_use]
    pub const fn after(self, earlier: UnixMillis) -> i64 {
        self.0.saturating_sub(earlier.0)
    }
}

/// Days since 1970 of `2026-11-23`.
fn days_of(date: &str) -> Option<i64> {
    let bytes = date.as_bytes();
    if bytes.get(4) != Some(&b'-') || bytes.get(7) != Some(&b'-') {
        return None;
    }
    let (year, month, day) =
        (digits(date.get(..4)?)?, digits(date.get(5..7)?)?, digits(date.get(8..)?)?);
    let leap = (year % 4 == 0 && year % 100 != 0) || year % 400 == 0;
    let length = match month {
        2 if leap => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        1..=12 => 31,
        _ => return None,
    };
    if day == 0 || day > length {
        return None;
    }
    // The year begins in March, so that the leap day is its last.
    let shifted = if month <= 2 { year - 1 } else { year };
    let (era, of_era) = (shifted.div_euclid(400), shifted.rem_euclid(400));
    let of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    Some(era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468)
}

/// Milliseconds of `22:01`, `22:01:02`, `22:01:02.5`.
fn time_of(time: &str) -> Option<i64> {
    let mut parts = time.split(':');
    let (hours, minutes) = (two_digits(parts.next()?)?, two_digits(parts.next()?)?);
    let (seconds, fraction) = match parts.next() {
        None => (0, ""),
        Some(text) => {
            let (seconds, fraction) = text.split_once('.').unwrap_or((text, ""));
            (two_digits(seconds)?, fraction)
        }
    };
    if parts.next().is_some() || hours > 23 || minutes > 59 || seconds > 59 {
        return None;
    }
    let mut thousandths = 0;
    for (index, digit) in fraction.chars().enumerate() {
        let digit = i64::from(digit.to_digit(10)?);
        if let Some(weight) = [100, 10, 1].get(index) {
            thousandths += weight * digit;
        }
    }
    Some(((hours * 60 + minutes) * 60 + seconds) * 1000 + thousandths)
}

/// Milliseconds of `+01:00`, `-0530`, `+02`.
fn offset_of(zone: &str) -> Option<i64> {
    let (sign, rest) = match zone.split_at_checked(1)? {
        ("+", rest) => (1, rest),
        ("-", rest) => (-1, rest),
        _ => return None,
    };
    let (hours, minutes) = match rest.split_at_checked(2)? {
        (hours, "") => (two_digits(hours)?, 0),
        (hours, minutes) => {
            (two_digits(hours)?, two_digits(minutes.strip_prefix(':').unwrap_or(minutes))?)
        }
    };
    (hours <= 23 && minutes <= 59).then_some(sign * (hours * 60 + minutes) * 60_000)
}

fn two_digits(text: &str) -> Option<i64> {
    (text.len() == 2).then(|| digits(text)).flatten()
}

fn digits(text: &str) -> Option<i64> {
    let all = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    all.then(|| text.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instants_with_an_offset_are_read() {
        for (text, millis) in [
            ("1970-01-01T00:00Z", 0),
            ("2026-11-23T22:01:02.98731+00:00", 1_795_471_262_987),
            ("2026-11-23 23:01:02+01:00", 1_795_471_262_000),
            ("2026-11-23 16:31:02 -0530", 1_795_471_262_000),
            ("2024-02-29T12:00:00+02", 1_709_200_800_000),
            ("1969-12-31T23:59:59.999Z", -1),
        ] {
            assert_eq!(UnixMillis::parse(text), Ok(UnixMillis(millis)), "{text}");
        }
    }

    #[test]
    fn what_is_no_instant_is_told_from_what_has_no_zone() {
        assert_eq!(UnixMillis::parse("2026-11-23T22:01"), Err(NoInstant::NoZone));
        for text in [
            "",
            "tomorrow",
            "2026-11-23",
            "2026-13-01T00:00Z",
            "2025-02-29T00:00Z",
            "2026-11-23T24:00Z",
            "2026-11-23T22:01:02:03Z",
            "2026-11-23T22:01+1",
            "2026-11-23T22:01 CET",
            "é026-11-23T22:01Z",
        ] {
            assert_eq!(UnixMillis::parse(text), Err(NoInstant::Unreadable), "{text}");
        }
    }
}
