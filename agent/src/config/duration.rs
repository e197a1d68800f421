//! Durations with a unit: `500ms`, `3s`, `2m`, `1h`. A bare number is refused, since nobody would know its unit.

use std::fmt;
use std::time::Duration;

use serde::de::{Deserializer, Error, Visitor};

/// Reads a duration, for `#[serde(deserialize_with = …)]`.
///
/// # Errors
/// Anything but a whole number followed by `ms`, `s`, `m` or `h`.
pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    deserializer.deserialize_str(DurationVisitor)
}

/// Reads a duration that may be absent; together with `#[serde(default)]`.
///
/// # Errors
/// As [`deserialize`].
pub(super) fn deserialize_optional<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<Duration>, D::Error> {
    deserialize(deserializer).map(Some)
}

struct DurationVisitor;

impl Visitor<'_> for DurationVisitor {
    type Value = Duration;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a duration with a unit, such as \"500ms\", \"3s\", \"2m\" or \"1h\"")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Duration, E> {
        parse(text).ok_or_else(|| E::invalid_value(serde::de::Unexpected::Str(text), &self))
    }
}

/// Reads a duration; `None` for anything else.
pub(crate) fn parse(text: &str) -> Option<Duration> {
    let unit_at = text.find(|letter: char| !letter.is_ascii_digit())?;
    let (number, unit) = text.split_at(unit_at);
    let number: u64 = number.parse().ok()?;
    match unit {
        "ms" => Some(Duration::from_millis(number)),
        "s" => Some(Duration::from_secs(number)),
        "m" => number.checked_mul(60).map(Duration::from_secs),
        "h" => number.checked_mul(3600).map(Duration::from_secs),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_a_unit() {
        assert_eq!(parse("500ms"), Some(Duration::from_millis(500)));
        assert_eq!(parse("0s"), Some(Duration::ZERO));
        assert_eq!(parse("2m"), Some(Duration::from_secs(120)));
        assert_eq!(parse("1h"), Some(Duration::from_secs(3600)));
        for wrong in [
            "",
            "3",
            "s",
            "3 s",
            "-3s",
            "1.5s",
            "3d",
            "18446744073709551615h",
            "99999999999999999999s",
        ] {
            assert_eq!(parse(wrong), None, "{wrong:?}");
        }
    }
}
