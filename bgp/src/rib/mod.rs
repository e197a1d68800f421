//! The routing tables of RFC 4271 §3.2, once per address family and generic over it.
//!
//! A destination (prefix) is a slot in a slab; every path to it, from whichever peer, lies in the slot. The three tables of the RFC are three
//! views of that:
//!
//! - [`adj_rib_in`]: the paths of one peer, as received, with what import policy made of them;
//! - [`loc_rib`]: the paths of one destination in order of preference, the best first, and a journal of destinations that changed;
//! - [`adj_rib_out`]: which attributes the peers of an [`update_group`] were last told for each slot.
//!
//! Attribute sets are interned ([`attrs`]) and stand in the tables as 4-octet handles, so that a path takes 28 bytes and an
//! announcement 8. A consumer that does not read costs no queue: what changed twice is in the journal once.
//!
//! Invariants: a handle in a table holds one reference to its set; a slot is reused only after every consumer has read its
//! withdrawal; a destination's accepted paths come before its refused ones.

pub mod adj_rib_in;
pub mod adj_rib_out;
pub mod attrs;
pub mod decide;
mod journal;
pub mod loc_rib;
pub mod next_hops;
pub mod update_group;

use std::net::{IpAddr, Ipv4Addr};

use serde::{Deserialize, Serialize};

use crate::policy::SourceKind;

pub use adj_rib_in::{Fate, MAX_PATHS_OF_SOURCE, PathCounts, Tables};
pub use attrs::{AttrId, AttrStore};
pub use decide::{Comparison, Step};
pub use loc_rib::{DestId, Destination, LocRib};
pub use next_hops::{Links, NextHops, Underlay, UnderlayRoute};

/// Weight of routes we originate: they win against those of peers unless a peer is given more.
pub const ORIGINATED_WEIGHT: u16 = 32_768;

/// Where a path is from: ourselves, or the peer with that index.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SourceId(u32);

impl SourceId {
    /// Ourselves.
    pub const ORIGINATED: Self = Self(0);

    /// The peer with this index, which is below `u32::MAX`.
    pub const fn peer(index: u32) -> Self {
        Self(index + 1)
    }

    /// The index of the peer; `None` for ourselves.
    pub const fn peer_index(self) -> Option<u32> {
        self.0.checked_sub(1)
    }

    /// As an index into a slice of [`Source`]s.
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

/// What the decision process has to know about where paths are from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Source {
    /// Ourselves, an EBGP peer or an IBGP peer.
    pub kind: SourceKind,
    /// Weight of its routes.
    pub weight: u16,
    /// Its BGP Identifier.
    pub router_id: Ipv4Addr,
    /// Its address.
    pub address: IpAddr,
    /// Whether it is a client of us as route reflector (RFC 4456).
    pub reflector_client: bool,
}

impl Source {
    /// Ourselves.
    pub const ORIGINATED: Self = Self {
        kind: SourceKind::Originated,
        weight: ORIGINATED_WEIGHT,
        router_id: Ipv4Addr::UNSPECIFIED,
        address: IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        reflector_client: false,
    };
}

/// One path to a destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Path {
    /// Where it is from.
    pub source: SourceId,
    /// The identifier its source gave it (RFC 7911 §3); 0 without ADD-PATH.
    pub path_id: u32,
    /// The identifier we give it: 1 or more, unique among the paths of the destination, the same while the path is there. The table sets it.
    pub local_id: u16,
    /// Its attributes as received.
    pub received: AttrId,
    /// What import made of it.
    pub import: Import,
    /// When it came, in seconds on the driver's line.
    pub learnt: u32,
    /// Kept from before the restart of the peer (RFC 4724 §4.2).
    pub stale: bool,
}

/// What import made of a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Import {
    /// It may be used, with these attributes.
    Accepted(AttrId),
    /// It may not.
    Refused(Refusal),
}

impl Path {
    /// Whether it is the path that `source` calls `path_id`.
    pub fn is_same(&self, source: SourceId, path_id: u32) -> bool {
        self.source == source && self.path_id == path_id
    }

    /// The attributes to use it with.
    pub const fn accepted(&self) -> Option<AttrId> {
        match self.import {
            Import::Accepted(attrs) => Some(attrs),
            Import::Refused(_) => None,
        }
    }
}

/// Why a path is not used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Refusal {
    /// Our own AS is in the AS_PATH (RFC 4271 §9.1.2).
    OwnAsInPath,
    /// We are its ORIGINATOR_ID (RFC 4456 §8).
    OwnOriginatorId,
    /// Our cluster is in its CLUSTER_LIST (RFC 4456 §8).
    OwnClusterId,
    /// The AS_PATH of an EBGP peer is empty or begins with another AS than the peer's (RFC 4271 §6.3).
    FirstAsIsNotThePeers,
    /// The next hop is our own address (RFC 4271 §5.1.3).
    NextHopIsUs,
    /// The next hop is no address packets could be sent to.
    NextHopInvalid,
    /// It carries ONLY_TO_CUSTOMER and is not from above: somebody leaked it (RFC 9234 §5).
    RouteLeak,
    /// An EBGP peer without import policy (RFC 8212).
    NoPolicy,
    /// The import policy: by the term of this number, or by its default.
    Policy(Option<u16>),
}

/// Why a peer is not told of a best route.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Withheld {
    /// It is the peer's own (RFC 4271 §9.1.3 leaves it to us; a peer refuses it anyway).
    FromThisPeer,
    /// The community NO_ADVERTISE (RFC 1997).
    NoAdvertise,
    /// The community NO_EXPORT or NO_EXPORT_SUBCONFED, and the peer is in another AS (RFC 1997).
    NoExport,
    /// It came from above, and the peer is no customer (RFC 9234 §5).
    OnlyToCustomer,
    /// IBGP routes are passed on to IBGP peers by route reflectors only (RFC 4271 §9.2, RFC 4456).
    IbgpToIbgp,
    /// It is long-lived stale, and the peer does not know what that is (RFC 9494 §4.3).
    LongLivedStale,
    /// An EBGP peer without export policy (RFC 8212).
    NoPolicy,
    /// The export policy: by the term of this number, or by its default.
    Policy(Option<u16>),
    /// There is no next hop of a kind that the session can carry: we have no address of the family, or the route's is of the other (RFC 8950).
    NoNextHop,
}
