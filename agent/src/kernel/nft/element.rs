//! Elements of sets and maps, part by part.

use std::fmt;
use std::net::IpAddr;

use ipnetwork::IpNetwork;

/// An element of a set or map. Equal elements are equal values: a range that is one address is that address.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct NftElement {
    key: Vec<NftPart>,
    /// What the key is mapped to; empty in a set.
    value: Vec<NftPart>,
}

/// A part of an element.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum NftPart {
    /// The name of an interface.
    Interface(String),
    /// An address.
    Address(IpAddr),
    /// A range of addresses, more than one.
    Range(IpNetwork),
    /// A protocol above IP, by its number: whether `nft` knows names depends on `/etc/protocols`.
    Protocol(u8),
    /// A port.
    Port(u16),
}

impl NftElement {
    /// An element of a set.
    #[must_use]
    pub fn key(parts: impl Into<Vec<NftPart>>) -> Self {
        Self {
            key: parts.into(),
            value: Vec::new(),
        }
    }

    /// An element of a map.
    #[must_use]
    pub fn mapping(key: impl Into<Vec<NftPart>>, value: impl Into<Vec<NftPart>>) -> Self {
        Self {
            key: key.into(),
            value: value.into(),
        }
    }

    /// The parts of its key.
    #[must_use]
    pub fn key_parts(&self) -> &[NftPart] {
        &self.key
    }

    /// The parts of what it is mapped to; none in a set.
    #[must_use]
    pub fn value_parts(&self) -> &[NftPart] {
        &self.value
    }

    /// The port after the protocol with this number in the element's key.
    #[must_use]
    pub fn port_of(&self, protocol: u8) -> Option<u16> {
        match self.key.as_slice() {
            [.., NftPart::Protocol(found), NftPart::Port(port)] if *found == protocol => Some(*port),
            _ => None,
        }
    }
}

impl NftPart {
    /// A range of addresses, or the one address that it is.
    #[must_use]
    pub fn range(range: IpNetwork) -> Self {
        if range.prefix() == if range.is_ipv6() { 128 } else { 32 } {
            Self::Address(range.ip())
        } else {
            Self::Range(range)
        }
    }
}

/// In the language of `nft`: names in quotation marks, ports and protocols in decimal.
impl fmt::Display for NftElement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_parts(&self.key, f)?;
        if self.value.is_empty() {
            return Ok(());
        }
        f.write_str(" : ")?;
        write_parts(&self.value, f)
    }
}

fn write_parts(parts: &[NftPart], f: &mut fmt::Formatter<'_>) -> fmt::Result {
    for (position, part) in parts.iter().enumerate() {
        if position > 0 {
            f.write_str(" . ")?;
        }
        write!(f, "{part}")?;
    }
    Ok(())
}

impl fmt::Display for NftPart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Interface(name) => write!(f, "\"{name}\""),
            Self::Address(address) => write!(f, "{address}"),
            Self::Range(range) => write!(f, "{range}"),
            Self::Protocol(number) => write!(f, "{number}"),
            Self::Port(port) => write!(f, "{port}"),
        }
    }
}
