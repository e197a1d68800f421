//! Communities of all four sizes, as sorted sets: their order has no meaning (RFC 1997, 4360, 5701, 8092), so sets that
//! differ only in order are one value.

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A set of communities, sorted and without repetition.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct CommunitySet<T>(Box<[T]>);

impl<T> Default for CommunitySet<T> {
    fn default() -> Self {
        Self(Box::default())
    }
}

impl<T: Copy + Ord> CommunitySet<T> {
    /// Whether `community` is in the set.
    pub fn contains(&self, community: T) -> bool {
        self.0.binary_search(&community).is_ok()
    }

    /// Adds a community.
    pub fn insert(&mut self, community: T) {
        if let Err(place) = self.0.binary_search(&community) {
            let mut members = std::mem::take(&mut self.0).into_vec();
            members.insert(place, community);
            self.0 = members.into();
        }
    }

    /// Keeps the communities for which `keep` holds.
    pub fn retain(&mut self, keep: impl FnMut(&T) -> bool) {
        let mut members = std::mem::take(&mut self.0).into_vec();
        members.retain(keep);
        self.0 = members.into();
    }

    /// The communities in ascending order.
    pub fn as_slice(&self) -> &[T] {
        &self.0
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl<T: Copy + Ord> FromIterator<T> for CommunitySet<T> {
    fn from_iter<I: IntoIterator<Item = T>>(communities: I) -> Self {
        let mut members: Vec<T> = communities.into_iter().collect();
        members.sort_unstable();
        members.dedup();
        Self(members.into())
    }
}

/// A community of four octets (RFC 1997), written `65000:1`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Community(pub u32);

impl Community {
    /// Traffic may be drained: use the route last (RFC 8326).
    pub const GRACEFUL_SHUTDOWN: Self = Self(0xffff_0000);
    /// Kept by long-lived graceful restart (RFC 9494).
    pub const LLGR_STALE: Self = Self(0xffff_0006);
    /// Not to be kept by long-lived graceful restart (RFC 9494).
    pub const NO_LLGR: Self = Self(0xffff_0007);
    /// Traffic is to be dropped (RFC 7999).
    pub const BLACKHOLE: Self = Self(0xffff_029a);
    /// Not to leave the AS or confederation (RFC 1997).
    pub const NO_EXPORT: Self = Self(0xffff_ff01);
    /// Not to be advertised at all (RFC 1997).
    pub const NO_ADVERTISE: Self = Self(0xffff_ff02);
    /// Not to be advertised to external peers, not even inside the confederation (RFC 1997).
    pub const NO_EXPORT_SUBCONFED: Self = Self(0xffff_ff03);

    /// The community `high:low`.
    pub fn new(high: u16, low: u16) -> Self {
        let [a, b] = high.to_be_bytes();
        let [c, d] = low.to_be_bytes();
        Self(u32::from_be_bytes([a, b, c, d]))
    }
}

/// The communities that have names, by their registered ones in lower case (IANA "Well-Known Communities").
const WELL_KNOWN: [(&str, Community); 7] = [
    ("graceful-shutdown", Community::GRACEFUL_SHUTDOWN),
    ("llgr-stale", Community::LLGR_STALE),
    ("no-llgr", Community::NO_LLGR),
    ("blackhole", Community::BLACKHOLE),
    ("no-export", Community::NO_EXPORT),
    ("no-advertise", Community::NO_ADVERTISE),
    ("no-export-subconfed", Community::NO_EXPORT_SUBCONFED),
];

impl fmt::Display for Community {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.0 >> 16, self.0 & 0xffff)
    }
}

/// A text that is no community.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a {expected}")]
pub struct CommunityParseError {
    text: String,
    expected: &'static str,
}

impl FromStr for Community {
    type Err = CommunityParseError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parse = || {
            if let Some((_, known)) = WELL_KNOWN.iter().find(|(name, _)| *name == text) {
                return Some(*known);
            }
            let (high, low) = text.split_once(':')?;
            Some(Self::new(high.parse().ok()?, low.parse().ok()?))
        };
        let expected = "community: expected NUMBER:NUMBER, both 0 to 65535, or a name such as no-export";
        parse().ok_or_else(|| CommunityParseError {
            text: text.to_owned(),
            expected,
        })
    }
}

/// An extended community of eight octets (RFC 4360).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ExtendedCommunity(pub [u8; 8]);

impl ExtendedCommunity {
    /// Whether it is passed on to other autonomous systems (RFC 4360 section 2: the T bit is clear).
    pub fn is_transitive(self) -> bool {
        let [first, ..] = self.0;
        first & 0x40 == 0
    }
}

impl FromStr for ExtendedCommunity {
    type Err = CommunityParseError;

    /// From the form it is displayed in; an administrator up to 65535 takes two octets.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let octets = |kind: u8, low: u8, front: &[u8], back: &[u8]| {
            let all: Vec<u8> = [&[kind, low], front, back].concat();
            all.try_into().ok().map(Self)
        };
        let parse = || {
            if let Some(digits) = text.strip_prefix("0x") {
                let value = u64::from_str_radix(digits, 16).ok()?;
                return (digits.len() == 16).then(|| Self(value.to_be_bytes()));
            }
            let (name, rest) = text.split_once(':')?;
            let low = match name {
                "rt" => 2,
                "soo" => 3,
                _ => return None,
            };
            let (administrator, number) = rest.rsplit_once(':')?;
            if let Ok(address) = administrator.parse::<Ipv4Addr>() {
                return octets(
                    1,
                    low,
                    &address.octets(),
                    &number.parse::<u16>().ok()?.to_be_bytes(),
                );
            }
            match administrator.parse::<u32>().ok()?.to_be_bytes() {
                [0, 0, a, b] => octets(0, low, &[a, b], &number.parse::<u32>().ok()?.to_be_bytes()),
                four => octets(2, low, &four, &number.parse::<u16>().ok()?.to_be_bytes()),
            }
        };
        let expected = "extended community: expected rt:ADMINISTRATOR:NUMBER, soo:ADMINISTRATOR:NUMBER, or 0x and sixteen digits";
        parse().ok_or_else(|| CommunityParseError {
            text: text.to_owned(),
            expected,
        })
    }
}

impl fmt::Display for ExtendedCommunity {
    /// Route targets and origins as `rt:…` and `soo:…`, others as sixteen hexadecimal digits.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [high, low, a, b, c, d, e, g] = self.0;
        let name = match low {
            2 => "rt",
            3 => "soo",
            _ => return write!(f, "{:#018x}", u64::from_be_bytes(self.0)),
        };
        let (two, four) = (u16::from_be_bytes([a, b]), u32::from_be_bytes([c, d, e, g]));
        match high {
            0 => write!(f, "{name}:{two}:{four}"),
            1 => write!(
                f,
                "{name}:{}:{}",
                Ipv4Addr::from([a, b, c, d]),
                u16::from_be_bytes([e, g])
            ),
            2 => write!(
                f,
                "{name}:{}:{}",
                u32::from_be_bytes([a, b, c, d]),
                u16::from_be_bytes([e, g])
            ),
            _ => write!(f, "{:#018x}", u64::from_be_bytes(self.0)),
        }
    }
}

/// An extended community of twenty octets that holds an IPv6 address (RFC 5701).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ipv6ExtendedCommunity(pub [u8; 20]);

impl Ipv6ExtendedCommunity {
    /// Whether it is passed on to other autonomous systems (RFC 5701 section 2, as RFC 4360 section 2: the T bit is clear).
    pub fn is_transitive(self) -> bool {
        let [first, ..] = self.0;
        first & 0x40 == 0
    }
}

impl fmt::Display for Ipv6ExtendedCommunity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [high, low, address @ .., a, b] = self.0;
        let value = u16::from_be_bytes([a, b]);
        let address = Ipv6Addr::from(address);
        match (high, low) {
            (0, 2) => write!(f, "rt:[{address}]:{value}"),
            (0, 3) => write!(f, "soo:[{address}]:{value}"),
            _ => write!(f, "{high:#04x}{low:02x}:[{address}]:{value}"),
        }
    }
}

/// A large community of three four-octet numbers (RFC 8092), written `65000:1:2`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LargeCommunity {
    /// The AS that defines the rest.
    pub global_administrator: u32,
    /// The first part of its meaning.
    pub local_data_1: u32,
    /// The second part of its meaning.
    pub local_data_2: u32,
}

impl fmt::Display for LargeCommunity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{}:{}:{}",
            self.global_administrator, self.local_data_1, self.local_data_2
        )
    }
}

impl FromStr for LargeCommunity {
    type Err = CommunityParseError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parse = || {
            let mut numbers = text.split(':').map(|number| number.parse().ok());
            let (global_administrator, local_data_1, local_data_2) =
                (numbers.next()??, numbers.next()??, numbers.next()??);
            numbers.next().is_none().then_some(Self {
                global_administrator,
                local_data_1,
                local_data_2,
            })
        };
        let expected = "large community: expected NUMBER:NUMBER:NUMBER, each 0 to 4294967295";
        parse().ok_or_else(|| CommunityParseError {
            text: text.to_owned(),
            expected,
        })
    }
}

/// Serde as the text form.
macro_rules! serialized_as_text {
    ($($community:ty),*) => {$(
        impl Serialize for $community {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }
    )*};
}

serialized_as_text!(
    Community,
    ExtendedCommunity,
    Ipv6ExtendedCommunity,
    LargeCommunity
);

/// Serde from the text form.
macro_rules! deserialized_from_text {
    ($($community:ty),*) => {$(
        impl<'de> Deserialize<'de> for $community {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
            }
        }
    )*};
}

deserialized_from_text!(Community, ExtendedCommunity, LargeCommunity);

#[cfg(test)]
mod tests;
