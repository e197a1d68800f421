//! Path attributes as values (RFC 4271 section 5 and the RFCs named at each field).
//!
//! Invariants: equal sets of attributes are equal values (community sets are sorted, unknown attributes ordered by
//! type), so [`Attributes`] can be interned by `Eq` and `Hash`; everything variable is one exact allocation.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde::Serialize;

pub use as_path::{AsPath, Segment, SegmentKind};
pub use community::{Community, CommunitySet, ExtendedCommunity, Ipv6ExtendedCommunity, LargeCommunity};
pub use error::{AttributeAction, AttributeError, AttributeErrorKind};

mod as_path;
mod community;
pub(crate) mod decode;
pub(crate) mod encode;
mod error;

/// The path attributes a set of routes shares.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize)]
pub struct Attributes {
    /// ORIGIN (RFC 4271 section 5.1.1).
    pub origin: Origin,
    /// AS_PATH, already merged with AS4_PATH (RFC 4271 section 5.1.2, RFC 5065, RFC 6793).
    pub as_path: AsPath,
    /// Next hop of NEXT_HOP or MP_REACH_NLRI. Received attributes always have one; `None` is "this speaker", for
    /// routes of our own before export.
    pub next_hop: Option<NextHop>,
    /// MULTI_EXIT_DISC (RFC 4271 section 5.1.4).
    pub med: Option<u32>,
    /// LOCAL_PREF (RFC 4271 section 5.1.5).
    pub local_pref: Option<u32>,
    /// ATOMIC_AGGREGATE (RFC 4271 section 5.1.6).
    pub atomic_aggregate: bool,
    /// AGGREGATOR, already merged with AS4_AGGREGATOR (RFC 4271 section 5.1.7).
    pub aggregator: Option<Aggregator>,
    /// COMMUNITIES (RFC 1997).
    pub communities: CommunitySet<Community>,
    /// EXTENDED COMMUNITIES (RFC 4360).
    pub extended_communities: CommunitySet<ExtendedCommunity>,
    /// IPv6 Address Specific Extended Communities (RFC 5701).
    pub ipv6_extended_communities: CommunitySet<Ipv6ExtendedCommunity>,
    /// LARGE_COMMUNITY (RFC 8092).
    pub large_communities: CommunitySet<LargeCommunity>,
    /// ORIGINATOR_ID (RFC 4456 section 8).
    pub originator_id: Option<Ipv4Addr>,
    /// CLUSTER_LIST, the latest cluster first (RFC 4456 section 8).
    pub cluster_list: Box<[Ipv4Addr]>,
    /// ONLY_TO_CUSTOMER (RFC 9234 section 5).
    pub otc: Option<u32>,
    /// The metric of AIGP (RFC 7311).
    pub aigp: Option<u64>,
    /// Which known optional transitive attributes carry the Partial bit: it is never taken off again (RFC 4271 section 5).
    pub partial: PartialBits,
    /// Unrecognized optional transitive attributes, by type code.
    pub unknown: Box<[UnknownAttribute]>,
    /// What is no path attribute, but belongs to the route in this speaker.
    pub local: LocalFacts,
}

/// What only this speaker knows of a route. It is never read from or written to a message.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize)]
pub struct LocalFacts {
    /// The metric it is to have in a forwarding table.
    pub priority: Option<u32>,
    /// The link it leaves by.
    pub interface: Option<Box<str>>,
}

/// ORIGIN, preferred first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
#[repr(u8)]
pub enum Origin {
    /// 0: interior to the originating AS.
    #[default]
    Igp = 0,
    /// 1: learned by EGP (RFC 904).
    Egp = 1,
    /// 2: by other means.
    Incomplete = 2,
}

/// Where packets go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum NextHop {
    /// An IPv4 address.
    V4(Ipv4Addr),
    /// An IPv6 address, possibly a link-local one alone.
    V6(Ipv6Addr),
    /// A global IPv6 address and the link-local address of the same router (RFC 2545 section 3).
    V6WithLinkLocal {
        /// The global address.
        global: Ipv6Addr,
        /// The link-local address.
        link_local: Ipv6Addr,
    },
}

impl NextHop {
    /// The IPv4 or the global IPv6 address, or the link-local one if there is no other.
    pub fn address(self) -> IpAddr {
        match self {
            Self::V4(address) => address.into(),
            Self::V6(address) | Self::V6WithLinkLocal { global: address, .. } => address.into(),
        }
    }

    /// The link-local IPv6 address, if there is one.
    pub fn link_local(self) -> Option<Ipv6Addr> {
        match self {
            Self::V6WithLinkLocal { link_local, .. } => Some(link_local),
            Self::V6(address) if address.is_unicast_link_local() => Some(address),
            _ => None,
        }
    }
}

impl From<IpAddr> for NextHop {
    fn from(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(address) => Self::V4(address),
            IpAddr::V6(address) => Self::V6(address),
        }
    }
}

impl fmt::Display for NextHop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::V4(address) => address.fmt(f),
            Self::V6(address) => address.fmt(f),
            Self::V6WithLinkLocal { global, link_local } => write!(f, "{global} {link_local}"),
        }
    }
}

impl Serialize for NextHop {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// Who formed an aggregate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Aggregator {
    /// Its AS number.
    pub asn: u32,
    /// Its address.
    pub address: Ipv4Addr,
}

/// A set of known optional transitive attributes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize)]
#[serde(transparent)]
pub struct PartialBits(u8);

impl Attributes {
    /// Whether messages say the same of both.
    pub fn is_said_like(&self, other: &Self) -> bool {
        let said = |attributes: &Self| Self {
            local: LocalFacts::default(),
            ..attributes.clone()
        };
        said(self) == said(other)
    }
}

impl PartialBits {
    /// Whether the attribute of this type has the Partial bit.
    pub fn contains(self, type_code: u8) -> bool {
        self.0 & Self::bit(type_code) != 0
    }

    /// Gives the attribute of this type the Partial bit; nothing happens for one that cannot have it.
    pub fn insert(&mut self, type_code: u8) {
        self.0 |= Self::bit(type_code);
    }

    /// Takes the Partial bit away from an attribute that is not there.
    pub fn remove(&mut self, type_code: u8) {
        self.0 &= !Self::bit(type_code);
    }

    fn bit(type_code: u8) -> u8 {
        match type_code {
            type_code::AGGREGATOR => 1,
            type_code::COMMUNITIES => 2,
            type_code::EXTENDED_COMMUNITIES => 4,
            type_code::IPV6_EXTENDED_COMMUNITIES => 8,
            type_code::LARGE_COMMUNITIES => 16,
            type_code::OTC => 32,
            _ => 0,
        }
    }
}

/// An attribute this speaker does not know but has to pass on (RFC 4271 section 5).
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct UnknownAttribute {
    /// The type code.
    pub type_code: u8,
    /// The value.
    pub value: Box<[u8]>,
}

/// Attribute type codes (IANA "BGP Path Attributes").
pub mod type_code {
    /// ORIGIN.
    pub const ORIGIN: u8 = 1;
    /// AS_PATH.
    pub const AS_PATH: u8 = 2;
    /// NEXT_HOP.
    pub const NEXT_HOP: u8 = 3;
    /// MULTI_EXIT_DISC.
    pub const MULTI_EXIT_DISC: u8 = 4;
    /// LOCAL_PREF.
    pub const LOCAL_PREF: u8 = 5;
    /// ATOMIC_AGGREGATE.
    pub const ATOMIC_AGGREGATE: u8 = 6;
    /// AGGREGATOR.
    pub const AGGREGATOR: u8 = 7;
    /// COMMUNITIES.
    pub const COMMUNITIES: u8 = 8;
    /// ORIGINATOR_ID.
    pub const ORIGINATOR_ID: u8 = 9;
    /// CLUSTER_LIST.
    pub const CLUSTER_LIST: u8 = 10;
    /// MP_REACH_NLRI.
    pub const MP_REACH_NLRI: u8 = 14;
    /// MP_UNREACH_NLRI.
    pub const MP_UNREACH_NLRI: u8 = 15;
    /// EXTENDED COMMUNITIES.
    pub const EXTENDED_COMMUNITIES: u8 = 16;
    /// AS4_PATH.
    pub const AS4_PATH: u8 = 17;
    /// AS4_AGGREGATOR.
    pub const AS4_AGGREGATOR: u8 = 18;
    /// IPv6 Address Specific Extended Community.
    pub const IPV6_EXTENDED_COMMUNITIES: u8 = 25;
    /// AIGP.
    pub const AIGP: u8 = 26;
    /// LARGE_COMMUNITY.
    pub const LARGE_COMMUNITIES: u8 = 32;
    /// Only to Customer.
    pub const OTC: u8 = 35;
}

/// The flags octet of an attribute (RFC 4271 section 4.3).
pub(crate) mod flags {
    /// Not well-known.
    pub(crate) const OPTIONAL: u8 = 0x80;
    /// Passed on to other peers.
    pub(crate) const TRANSITIVE: u8 = 0x40;
    /// Passed through a speaker that did not know it.
    pub(crate) const PARTIAL: u8 = 0x20;
    /// The length takes two octets.
    pub(crate) const EXTENDED_LENGTH: u8 = 0x10;
}
