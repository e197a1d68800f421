//! Address families and prefixes: everything above the wire is generic over [`Family`], so IPv4 and IPv6 share one code path.
//!
//! Invariants: a prefix is canonical (no bit beyond its length is set), so equal networks are equal values; prefixes
//! order by address, then length. AFI and SAFI numbers are those of RFC 4760 and the IANA registries.

use std::fmt;
use std::hash::Hash;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

pub use prefix::{FamilyPrefix, Ipv4Prefix, Ipv6Prefix, Prefix, PrefixParseError};

mod prefix;
#[cfg(test)]
mod tests;

/// Address family number of IPv4 (IANA "Address Family Numbers").
pub const AFI_IPV4: u16 = 1;
/// Address family number of IPv6.
pub const AFI_IPV6: u16 = 2;
/// Subsequent address family identifier of unicast forwarding (RFC 4760 section 6).
pub const SAFI_UNICAST: u8 = 1;

/// A pair of address family and subsequent address family, any that a peer may name (RFC 4760).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AfiSafi {
    /// Address family identifier.
    pub afi: u16,
    /// Subsequent address family identifier.
    pub safi: u8,
}

impl AfiSafi {
    /// IPv4 unicast, 1/1.
    pub const IPV4_UNICAST: Self = Self {
        afi: AFI_IPV4,
        safi: SAFI_UNICAST,
    };
    /// IPv6 unicast, 2/1.
    pub const IPV6_UNICAST: Self = Self {
        afi: AFI_IPV6,
        safi: SAFI_UNICAST,
    };
}

impl fmt::Display for AfiSafi {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::IPV4_UNICAST => f.write_str("ipv4-unicast"),
            Self::IPV6_UNICAST => f.write_str("ipv6-unicast"),
            Self { afi, safi } => write!(f, "afi-{afi}-safi-{safi}"),
        }
    }
}

/// The text is not the name of a family.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown address family {0:?}: expected ipv4-unicast, ipv6-unicast or afi-N-safi-N")]
pub struct AfiSafiParseError(String);

impl FromStr for AfiSafi {
    type Err = AfiSafiParseError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let numbered = || {
            let (afi, safi) = text.strip_prefix("afi-")?.split_once("-safi-")?;
            Some(Self {
                afi: afi.parse().ok()?,
                safi: safi.parse().ok()?,
            })
        };
        match text {
            "ipv4-unicast" => Ok(Self::IPV4_UNICAST),
            "ipv6-unicast" => Ok(Self::IPV6_UNICAST),
            _ => numbered().ok_or_else(|| AfiSafiParseError(text.to_owned())),
        }
    }
}

impl Serialize for AfiSafi {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for AfiSafi {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(serde::de::Error::custom)
    }
}

/// An address family this speaker carries routes of. Types are generic over it; it has no values at run time.
pub trait Family: Copy + Default + fmt::Debug + Ord + Hash + Send + Sync + 'static {
    /// The family's number on the wire.
    const AFI_SAFI: AfiSafi;
    /// What one route of the family leads to.
    type Prefix: FamilyPrefix;
}

/// IPv4 unicast (AFI 1, SAFI 1).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ipv4Unicast;

impl Family for Ipv4Unicast {
    const AFI_SAFI: AfiSafi = AfiSafi::IPV4_UNICAST;
    type Prefix = Ipv4Prefix;
}

/// IPv6 unicast (AFI 2, SAFI 1).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ipv6Unicast;

impl Family for Ipv6Unicast {
    const AFI_SAFI: AfiSafi = AfiSafi::IPV6_UNICAST;
    type Prefix = Ipv6Prefix;
}
