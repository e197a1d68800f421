//! Times as Calico writes them. The proleptic Gregorian calendar, UTC, no leap seconds (as Unix time has none).

use std::fmt;

/// Nanoseconds since 1970-01-01 00:00:00 UTC. Covers 1677 to 2262.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UnixNanos(pub i64);

const NANOS: i64 = 1_000_000_000;
const DAY: i64 = 86_400;

impl UnixNanos {
    /// `2026-11-21T01:31:08Z`: RFC 3339 in whole seconds, as in `affinity_claim_time` and `creationTimestamp`.
    pub fn rfc3339(self) -> String {
        let Civil {
            year,
            month,
            day,
            hour,
            minute,
            second,
        } = self.civil();
        format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
    }

    /// `2026-11-21 01:31:08.770532882 +0000 UTC`: Go's `time.Time.String()`, as in allocation attributes. Trailing zeros
    /// of the fraction are left out, and the dot when nothing is left.
    pub fn go_string(self) -> String {
        let Civil {
            year,
            month,
            day,
            hour,
            minute,
            second,
        } = self.civil();
        let fraction = format!(".{:09}", self.0.rem_euclid(NANOS));
        let fraction = fraction.trim_end_matches('0').trim_end_matches('.');
        format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02}{fraction} +0000 UTC")
    }

    /// Reads the RFC 3339 form with `Z` and whole seconds; anything else is `None`.
    pub fn parse_rfc3339(text: &str) -> Option<Self> {
        let bytes = text.as_bytes();
        let number = |from: usize, to: usize| -> Option<i64> {
            let digits = text.get(from..to)?;
            digits
                .bytes()
                .all(|b| b.is_ascii_digit())
                .then(|| digits.parse().ok())?
        };
        let punctuation = [
            (4, b'-'),
            (7, b'-'),
            (10, b'T'),
            (13, b':'),
            (16, b':'),
            (19, b'Z'),
        ];
        if bytes.len() != 20 || punctuation.iter().any(|&(at, b)| bytes.get(at) != Some(&b)) {
            return None;
        }
        let (month, day) = (number(5, 7)?, number(8, 10)?);
        let (hour, minute, second) = (number(11, 13)?, number(14, 16)?, number(17, 19)?);
        if !(1..=12).contains(&month) || !(1..=31).contains(&day) || hour > 23 || minute > 59 || second > 60 {
            return None;
        }
        let seconds = days_from_civil(number(0, 4)?, month, day) * DAY + hour * 3600 + minute * 60 + second;
        seconds.checked_mul(NANOS).map(Self)
    }

    /// Reads the form of [`UnixNanos::go_string`], in UTC; anything else is `None`.
    pub fn parse_go_string(text: &str) -> Option<Self> {
        let (date, rest) = text.split_once(' ')?;
        let time = rest.strip_suffix(" +0000 UTC")?;
        let (time, fraction) = time.split_once('.').unwrap_or((time, ""));
        if fraction.len() > 9 || !fraction.bytes().all(|b| b.is_ascii_digit()) {
            return None;
        }
        let nanos: i64 = format!("{fraction:0<9}").parse().ok()?;
        let whole = Self::parse_rfc3339(&format!("{date}T{time}Z"))?;
        whole.0.checked_add(nanos).map(Self)
    }

    fn civil(self) -> Civil {
        let seconds = self.0.div_euclid(NANOS);
        let (days, time) = (seconds.div_euclid(DAY), seconds.rem_euclid(DAY));
        let (year, month, day) = civil_from_days(days);
        Civil {
            year,
            month,
            day,
            hour: time / 3600,
            minute: time / 60 % 60,
            second: time % 60,
        }
    }
}

impl fmt::Display for UnixNanos {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.rfc3339())
    }
}

struct Civil {
    year: i64,
    month: i64,
    day: i64,
    hour: i64,
    minute: i64,
    second: i64,
}

/// A year counted from March has its leap day last, so that the days before a month are a linear formula:
/// 153 days in each five months from March on.
fn days_from_civil(year: i64, month: i64, day: i64) -> i64 {
    let march_year = if month > 2 { year } else { year - 1 };
    let march_month = (month + 9) % 12;
    let day_of_year = (153 * march_month + 2) / 5 + day - 1;
    let leap_days = march_year.div_euclid(4) - march_year.div_euclid(100) + march_year.div_euclid(400);
    march_year * 365 + leap_days + day_of_year - DAYS_TO_1970
}

/// Days from 0000-03-01 to 1970-01-01.
const DAYS_TO_1970: i64 = 719_468;

fn civil_from_days(days: i64) -> (i64, i64, i64) {
    let days = days + DAYS_TO_1970;
    // 146,097 days make 400 years. Within them the year is found by taking out the leap days seen so far.
    let era = days.div_euclid(146_097);
    let day_of_era = days.rem_euclid(146_097);
    let leap = day_of_era / 1460 - day_of_era / 36_524 + day_of_era / 146_096;
    let year_of_era = (day_of_era - leap) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let march_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * march_month + 2) / 5 + 1;
    let month = if march_month < 10 {
        march_month + 3
    } else {
        march_month - 9
    };
    let year = era * 400 + year_of_era + i64::from(month <= 2);
    (year, month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_print_as_calico_prints_them() {
        let claimed = UnixNanos(1_795_224_668_770_532_882);
        assert_eq!(claimed.rfc3339(), "2026-11-21T01:31:08Z");
        assert_eq!(claimed.go_string(), "2026-11-21 01:31:08.770532882 +0000 UTC");
        assert_eq!(
            UnixNanos(1_795_224_668_120_000_000).go_string(),
            "2026-11-21 01:31:08.12 +0000 UTC"
        );
        assert_eq!(UnixNanos(0).go_string(), "1970-01-01 00:00:00 +0000 UTC");
        assert_eq!(
            UnixNanos(-1).go_string(),
            "1969-12-31 23:59:59.999999999 +0000 UTC"
        );
        assert_eq!(UnixNanos(951_782_400 * NANOS).rfc3339(), "2000-02-29T00:00:00Z");
    }

    #[test]
    fn every_day_from_1678_to_2262_round_trips() {
        for day in -106_000..106_000 {
            let time = UnixNanos(day * DAY * NANOS + 45_296 * NANOS);
            assert_eq!(UnixNanos::parse_rfc3339(&time.rfc3339()), Some(time), "{time}");
            let time = UnixNanos(time.0 + 120_000_001 * (day & 7));
            assert_eq!(
                UnixNanos::parse_go_string(&time.go_string()),
                Some(time),
                "{time}"
            );
        }
    }

    #[test]
    fn other_forms_are_not_times() {
        for text in [
            "",
            "2026-11-21",
            "2026-13-21T01:31:08Z",
            "2026-11-21T01:31:08+01:00",
            "+026-11-21T01:31:08Z",
        ] {
            assert_eq!(UnixNanos::parse_rfc3339(text), None, "{text}");
        }
        for text in [
            "",
            "2026-11-21T01:31:08Z",
            "2026-11-21 01:31:08 +0100 CET",
            "2026-11-21 01:31:08.1234567890 +0000 UTC",
            "2026-11-21 01:31:08.-5 +0000 UTC",
        ] {
            assert_eq!(UnixNanos::parse_go_string(text), None, "{text}");
        }
    }
}
