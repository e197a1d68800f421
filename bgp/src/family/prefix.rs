//! IPv4 and IPv6 prefixes, small enough to be keys of million-entry tables, and their NLRI encoding (RFC 4271
//! section 4.3: one octet of length in bits, then as many octets as hold that many bits).
//!
//! Invariant: bits beyond the length are zero. Every constructor clears them or refuses.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use ipnetwork::{IpNetwork, Ipv4Network, Ipv6Network};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// The prefix of one [`Family`](super::Family): what tables are keyed by and what NLRI fields carry.
pub trait FamilyPrefix:
    Copy + Default + fmt::Debug + fmt::Display + Ord + Hash + Into<Prefix> + Send + Sync + 'static
{
    /// Longest prefix length of the family in bits.
    const MAX_LENGTH: u8;

    /// The prefix length in bits.
    fn length(self) -> u8;

    /// The prefix of this family inside `prefix`, if it is one.
    fn from_prefix(prefix: Prefix) -> Option<Self>;

    /// Builds a prefix of `length` bits from the octets of an NLRI entry, of which missing ones count as zero.
    /// Bits beyond the length are cleared (RFC 4271 section 4.3: their value is irrelevant).
    /// `None` when the length exceeds [`Self::MAX_LENGTH`] or there are more octets than the length needs.
    fn from_nlri(length: u8, octets: &[u8]) -> Option<Self>;

    /// Appends length and octets as an NLRI entry.
    fn write_nlri(self, out: &mut Vec<u8>);

    /// How many octets [`Self::write_nlri`] appends.
    fn nlri_len(self) -> usize {
        1 + usize::from(self.length().div_ceil(8))
    }
}

/// An IPv4 prefix; 8 bytes.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ipv4Prefix {
    bits: u32,
    length: u8,
}

impl Ipv4Prefix {
    /// The prefix of `length` bits that contains `address`; `None` when `length` exceeds 32.
    pub fn new(address: Ipv4Addr, length: u8) -> Option<Self> {
        let mask = mask32(length)?;
        Some(Self {
            bits: u32::from(address) & mask,
            length,
        })
    }

    /// The prefix that holds `address` alone, a /32.
    pub fn host(address: Ipv4Addr) -> Self {
        Self {
            bits: address.into(),
            length: 32,
        }
    }

    /// The first address of the prefix.
    pub fn address(self) -> Ipv4Addr {
        self.bits.into()
    }

    /// Whether `address` lies in the prefix.
    pub fn contains(self, address: Ipv4Addr) -> bool {
        mask32(self.length).is_some_and(|mask| u32::from(address) & mask == self.bits)
    }

    /// Whether `other` is this prefix or lies inside it.
    pub fn covers(self, other: Self) -> bool {
        self.length <= other.length && self.contains(other.address())
    }
}

impl FamilyPrefix for Ipv4Prefix {
    const MAX_LENGTH: u8 = 32;

    fn length(self) -> u8 {
        self.length
    }

    fn from_prefix(prefix: Prefix) -> Option<Self> {
        match prefix {
            Prefix::V4(prefix) => Some(prefix),
            Prefix::V6(_) => None,
        }
    }

    fn from_nlri(length: u8, octets: &[u8]) -> Option<Self> {
        let octets: [u8; 4] = padded(length, octets)?;
        Self::new(octets.into(), length)
    }

    fn write_nlri(self, out: &mut Vec<u8>) {
        let [a, b, c, d] = self.bits.to_be_bytes();
        push_octets(&[self.length, a, b, c, d], self.nlri_len(), out);
    }
}

// One write to the hasher instead of two.
impl Hash for Ipv4Prefix {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64((u64::from(self.bits) << 8) | u64::from(self.length));
    }
}

impl fmt::Display for Ipv4Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address(), self.length)
    }
}

impl From<Ipv4Network> for Ipv4Prefix {
    /// Clears the host bits.
    fn from(network: Ipv4Network) -> Self {
        Self {
            bits: network.network().into(),
            length: network.prefix(),
        }
    }
}

impl From<Ipv4Prefix> for Ipv4Network {
    fn from(prefix: Ipv4Prefix) -> Self {
        // A length is never above 32; the fallback keeps the conversion total.
        Self::new(prefix.address(), prefix.length).unwrap_or_else(|_| prefix.address().into())
    }
}

/// An IPv6 prefix; 17 bytes, alignment 1.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ipv6Prefix {
    // Octets instead of a u128: no padding, and their order is the numeric one.
    octets: [u8; 16],
    length: u8,
}

impl Ipv6Prefix {
    /// The prefix of `length` bits that contains `address`; `None` when `length` exceeds 128.
    pub fn new(address: Ipv6Addr, length: u8) -> Option<Self> {
        let mask = mask128(length)?;
        Some(Self {
            octets: (u128::from(address) & mask).to_be_bytes(),
            length,
        })
    }

    /// The prefix that holds `address` alone, a /128.
    pub fn host(address: Ipv6Addr) -> Self {
        Self {
            octets: address.octets(),
            length: 128,
        }
    }

    /// The first address of the prefix.
    pub fn address(self) -> Ipv6Addr {
        self.octets.into()
    }

    /// Whether `address` lies in the prefix.
    pub fn contains(self, address: Ipv6Addr) -> bool {
        mask128(self.length).is_some_and(|mask| u128::from(address) & mask == u128::from(self.address()))
    }

    /// Whether `other` is this prefix or lies inside it.
    pub fn covers(self, other: Self) -> bool {
        self.length <= other.length && self.contains(other.address())
    }
}

impl FamilyPrefix for Ipv6Prefix {
    const MAX_LENGTH: u8 = 128;

    fn length(self) -> u8 {
        self.length
    }

    fn from_prefix(prefix: Prefix) -> Option<Self> {
        match prefix {
            Prefix::V4(_) => None,
            Prefix::V6(prefix) => Some(prefix),
        }
    }

    fn from_nlri(length: u8, octets: &[u8]) -> Option<Self> {
        let octets: [u8; 16] = padded(length, octets)?;
        Self::new(octets.into(), length)
    }

    fn write_nlri(self, out: &mut Vec<u8>) {
        out.push(self.length);
        push_octets(&self.octets, self.nlri_len() - 1, out);
    }
}

// One write to the hasher for most prefixes of a table, whose last 64 bits are zero, would be faster still, but
// two writes of fixed width are already cheaper than hashing 17 octets as a slice.
impl Hash for Ipv6Prefix {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u128(u128::from_be_bytes(self.octets));
        state.write_u8(self.length);
    }
}

impl fmt::Display for Ipv6Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address(), self.length)
    }
}

impl From<Ipv6Network> for Ipv6Prefix {
    /// Clears the host bits.
    fn from(network: Ipv6Network) -> Self {
        Self {
            octets: network.network().octets(),
            length: network.prefix(),
        }
    }
}

impl From<Ipv6Prefix> for Ipv6Network {
    fn from(prefix: Ipv6Prefix) -> Self {
        // A length is never above 128; the fallback keeps the conversion total.
        Self::new(prefix.address(), prefix.length).unwrap_or_else(|_| prefix.address().into())
    }
}

/// A prefix of either family, for the edges (configuration, status, the kernel). Every IPv4 prefix sorts before every IPv6 one.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Prefix {
    /// An IPv4 prefix.
    V4(Ipv4Prefix),
    /// An IPv6 prefix.
    V6(Ipv6Prefix),
}

impl Prefix {
    /// The prefix of `length` bits that contains `address`; `None` when `length` exceeds the family's maximum.
    pub fn new(address: IpAddr, length: u8) -> Option<Self> {
        match address {
            IpAddr::V4(address) => Ipv4Prefix::new(address, length).map(Self::V4),
            IpAddr::V6(address) => Ipv6Prefix::new(address, length).map(Self::V6),
        }
    }

    /// The prefix that holds `address` alone.
    pub fn host(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(address) => Self::V4(Ipv4Prefix::host(address)),
            IpAddr::V6(address) => Self::V6(Ipv6Prefix::host(address)),
        }
    }

    /// The first address of the prefix.
    pub fn address(self) -> IpAddr {
        match self {
            Self::V4(prefix) => prefix.address().into(),
            Self::V6(prefix) => prefix.address().into(),
        }
    }

    /// The prefix length in bits.
    pub fn length(self) -> u8 {
        match self {
            Self::V4(prefix) => prefix.length,
            Self::V6(prefix) => prefix.length,
        }
    }

    /// Whether `other` is of the same family and is this prefix or lies inside it.
    pub fn covers(self, other: Self) -> bool {
        match (self, other) {
            (Self::V4(outer), Self::V4(inner)) => outer.covers(inner),
            (Self::V6(outer), Self::V6(inner)) => outer.covers(inner),
            _ => false,
        }
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::V4(prefix) => prefix.fmt(f),
            Self::V6(prefix) => prefix.fmt(f),
        }
    }
}

impl From<Ipv4Prefix> for Prefix {
    fn from(prefix: Ipv4Prefix) -> Self {
        Self::V4(prefix)
    }
}

impl From<Ipv6Prefix> for Prefix {
    fn from(prefix: Ipv6Prefix) -> Self {
        Self::V6(prefix)
    }
}

impl From<IpNetwork> for Prefix {
    /// Clears the host bits.
    fn from(network: IpNetwork) -> Self {
        match network {
            IpNetwork::V4(network) => Self::V4(network.into()),
            IpNetwork::V6(network) => Self::V6(network.into()),
        }
    }
}

impl From<Prefix> for IpNetwork {
    fn from(prefix: Prefix) -> Self {
        match prefix {
            Prefix::V4(prefix) => Self::V4(prefix.into()),
            Prefix::V6(prefix) => Self::V6(prefix.into()),
        }
    }
}

/// Why a text is no prefix. A bare address is one: the prefix of that address alone.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PrefixParseError {
    /// The part before the slash is no address of the expected family.
    #[error("{0:?} is not a prefix: expected ADDRESS or ADDRESS/LENGTH")]
    Address(String),
    /// The part after the slash is no length of the family.
    #[error("{text:?} has a bad prefix length: expected 0 to {max}")]
    Length {
        /// The whole text.
        text: String,
        /// The family's longest length.
        max: u8,
    },
    /// Bits beyond the length are set, so what was meant is unclear.
    #[error("{text:?} has host bits set: did you mean {meant}?")]
    HostBits {
        /// The whole text.
        text: String,
        /// The prefix with these bits cleared.
        meant: String,
    },
}

impl FromStr for Prefix {
    type Err = PrefixParseError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (address, length) = match text.split_once('/') {
            Some((address, length)) => (address, Some(length)),
            None => (text, None),
        };
        let address: IpAddr = address
            .parse()
            .map_err(|_| PrefixParseError::Address(text.to_owned()))?;
        let Some(length) = length else {
            return Ok(Self::host(address));
        };
        let max = if address.is_ipv4() { 32 } else { 128 };
        // `+8` and `08` parse as numbers but are no prefix lengths.
        let plain =
            length.bytes().all(|digit| digit.is_ascii_digit()) && (length == "0" || !length.starts_with('0'));
        let prefix = length
            .parse()
            .ok()
            .filter(|_| plain)
            .and_then(|length| Self::new(address, length));
        let prefix = prefix.ok_or_else(|| PrefixParseError::Length {
            text: text.to_owned(),
            max,
        })?;
        if prefix.address() != address {
            return Err(PrefixParseError::HostBits {
                text: text.to_owned(),
                meant: prefix.to_string(),
            });
        }
        Ok(prefix)
    }
}

impl FromStr for Ipv4Prefix {
    type Err = PrefixParseError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::from_prefix(text.parse()?).ok_or_else(|| PrefixParseError::Address(text.to_owned()))
    }
}

impl FromStr for Ipv6Prefix {
    type Err = PrefixParseError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Self::from_prefix(text.parse()?).ok_or_else(|| PrefixParseError::Address(text.to_owned()))
    }
}

/// Text forms shared by the three prefix types: `Debug` prints like `Display`, serde as a string.
macro_rules! textual {
    ($($prefix:ty),*) => {$(
        impl fmt::Debug for $prefix {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl Serialize for $prefix {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $prefix {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
            }
        }
    )*};
}

textual!(Ipv4Prefix, Ipv6Prefix, Prefix);

/// The network mask of `length` bits; `None` above 32.
fn mask32(length: u8) -> Option<u32> {
    match length {
        0 => Some(0),
        1..=32 => Some(u32::MAX << (32 - length)),
        _ => None,
    }
}

/// The network mask of `length` bits; `None` above 128.
fn mask128(length: u8) -> Option<u128> {
    match length {
        0 => Some(0),
        1..=128 => Some(u128::MAX << (128 - length)),
        _ => None,
    }
}

/// Appends the first `count` octets.
fn push_octets(octets: &[u8], count: usize, out: &mut Vec<u8>) {
    out.extend_from_slice(octets.get(..count).unwrap_or(octets));
}

/// NLRI octets with zeros appended; `None` when there are more than `length` bits need.
fn padded<const N: usize>(length: u8, octets: &[u8]) -> Option<[u8; N]> {
    if octets.len() > usize::from(length.div_ceil(8)) {
        return None;
    }
    let mut out = [0; N];
    out.get_mut(..octets.len())?.copy_from_slice(octets);
    Some(out)
}
