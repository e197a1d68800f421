//! Which AS a peer may be in.

use std::fmt;
use std::ops::RangeInclusive;

/// The AS a peer is expected to name in its OPEN.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RemoteAs {
    /// This one.
    Is(u32),
    /// Any but ours.
    External,
    /// One of these, ours among them if it is there.
    Within(Vec<RangeInclusive<u32>>),
}

impl RemoteAs {
    /// Whether `asn` is acceptable to a speaker that is `local_as` to the peer.
    pub fn allows(&self, asn: u32, local_as: u32) -> bool {
        match self {
            Self::Is(expected) => asn == *expected,
            Self::External => asn != 0 && asn != local_as,
            Self::Within(ranges) => asn != 0 && ranges.iter().any(|range| range.contains(&asn)),
        }
    }
}

impl fmt::Display for RemoteAs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Is(asn) => write!(f, "AS {asn}"),
            Self::External => f.write_str("any AS but ours"),
            Self::Within(ranges) => {
                f.write_str("an AS of")?;
                for (i, range) in ranges.iter().enumerate() {
                    f.write_str(if i == 0 { " " } else { ", " })?;
                    match (range.start(), range.end()) {
                        (first, last) if first == last => write!(f, "{first}")?,
                        (first, last) => write!(f, "{first} to {last}")?,
                    }
                }
                Ok(())
            }
        }
    }
}
