//! The AS of a peer: one, "internal", "external", or a list of numbers and ranges.

use std::fmt;
use std::ops::RangeInclusive;

use serde::Deserialize;
use serde::de::{Deserializer, Error, SeqAccess, Unexpected, Visitor};

/// Which AS a peer may be in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AsNumbers {
    /// This one, not 0.
    One(u32),
    /// Ours.
    Internal,
    /// Any but ours.
    External,
    /// One of these; no range begins at 0.
    Within(Vec<RangeInclusive<u32>>),
}

impl<'de> Deserialize<'de> for AsNumbers {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(AsVisitor)
    }
}

struct AsVisitor;

impl<'de> Visitor<'de> for AsVisitor {
    type Value = AsNumbers;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an AS number from 1 to 4294967295, \"internal\", \"external\", or a list of numbers and ranges such as \"65000-65010\"")
    }

    fn visit_i64<E: Error>(self, number: i64) -> Result<AsNumbers, E> {
        match u32::try_from(number) {
            Ok(asn) if asn > 0 => Ok(AsNumbers::One(asn)),
            _ => Err(E::invalid_value(Unexpected::Signed(number), &self)),
        }
    }

    fn visit_str<E: Error>(self, word: &str) -> Result<AsNumbers, E> {
        match word {
            "internal" => Ok(AsNumbers::Internal),
            "external" => Ok(AsNumbers::External),
            _ => Err(E::invalid_value(Unexpected::Str(word), &self)),
        }
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<AsNumbers, A::Error> {
        let mut ranges = Vec::new();
        while let Some(Range(range)) = list.next_element()? {
            ranges.push(range);
        }
        if ranges.is_empty() {
            return Err(A::Error::invalid_length(0, &self));
        }
        Ok(AsNumbers::Within(ranges))
    }
}

/// One part of the list.
struct Range(RangeInclusive<u32>);

impl<'de> Deserialize<'de> for Range {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Part {
            Number(u32),
            Text(String),
        }
        let wrong = |what: &str| {
            D::Error::custom(format!(
                "{what} is not an AS number or a range such as \"65000-65010\""
            ))
        };
        match Part::deserialize(deserializer)? {
            Part::Number(0) => Err(wrong("0")),
            Part::Number(asn) => Ok(Self(asn..=asn)),
            Part::Text(text) => {
                let range = || {
                    let (first, last) = text.split_once('-')?;
                    let (first, last): (u32, u32) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
                    (0 < first && first <= last).then_some(first..=last)
                };
                range().map(Self).ok_or_else(|| wrong(&format!("{text:?}")))
            }
        }
    }
}
