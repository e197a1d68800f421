//! What was negotiated, as far as bytes depend on it: the arguments of decoding and encoding UPDATE messages.

use super::frame::MessageLimit;
use crate::family::AfiSafi;

/// Where the peer stands, seen from us.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum PeerKind {
    /// In our own AS (IBGP).
    Internal,
    /// In a foreign AS (EBGP).
    #[default]
    External,
    /// In another member AS of our confederation (RFC 5065).
    Confederation,
}

/// What was negotiated for one family. The default is a family that was not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct FamilyContext {
    /// Both sides announced the family. Routes of others are ignored.
    pub negotiated: bool,
    /// NLRI entries carry path identifiers in the direction in question (RFC 7911).
    pub add_path: bool,
    /// IPv4 routes may have IPv6 next hops (RFC 8950).
    pub extended_next_hop: bool,
}

/// How to read the UPDATE messages of a session.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct DecodeContext {
    /// AS numbers in AS_PATH and AGGREGATOR take four octets (RFC 6793).
    pub four_octet_as: bool,
    /// Where the peer stands.
    pub peer_kind: PeerKind,
    /// AIGP is enabled on the session (RFC 7311 section 3.1); else the attribute is ignored.
    pub aigp: bool,
    /// IPv4 unicast; `add_path` means that the peer sends path identifiers.
    pub ipv4_unicast: FamilyContext,
    /// IPv6 unicast; `add_path` means that the peer sends path identifiers.
    pub ipv6_unicast: FamilyContext,
}

impl DecodeContext {
    /// What holds for `family`.
    pub fn family(&self, family: AfiSafi) -> FamilyContext {
        match family {
            AfiSafi::IPV4_UNICAST => self.ipv4_unicast,
            AfiSafi::IPV6_UNICAST => self.ipv6_unicast,
            _ => FamilyContext::default(),
        }
    }
}

/// How to write the UPDATE messages of a session or of a group of sessions that get the same octets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct EncodeContext {
    /// AS numbers in AS_PATH and AGGREGATOR take four octets; else AS4_PATH and AS4_AGGREGATOR are added where needed (RFC 6793).
    pub four_octet_as: bool,
    /// How long a message may be.
    pub message_limit: MessageLimit,
    /// IPv4 unicast; `add_path` means that we send path identifiers.
    pub ipv4_unicast: FamilyContext,
    /// IPv6 unicast; `add_path` means that we send path identifiers.
    pub ipv6_unicast: FamilyContext,
}

impl EncodeContext {
    /// What holds for `family`.
    pub fn family(&self, family: AfiSafi) -> FamilyContext {
        match family {
            AfiSafi::IPV4_UNICAST => self.ipv4_unicast,
            AfiSafi::IPV6_UNICAST => self.ipv6_unicast,
            _ => FamilyContext::default(),
        }
    }
}
