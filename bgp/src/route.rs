//! Routes at the edge of the speaker: what it is asked to announce, and what it found to be best.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::attributes_summary::AttributesSummary;
use crate::family::Prefix;
use crate::policy::SourceKind;
use crate::wire::attr::{Community, LargeCommunity};

/// How a prefix of our own is announced.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Origination {
    /// The next hop; ourselves when `None` (RFC 4271 §5.1.3).
    pub next_hop: Option<IpAddr>,
    /// LOCAL_PREF towards IBGP peers; the default one when `None`.
    pub local_pref: Option<u32>,
    /// MULTI_EXIT_DISC.
    pub med: Option<u32>,
    /// Its metric in a forwarding table, for policies that ask.
    pub priority: Option<u32>,
    /// The link it leaves by, for policies that ask.
    pub interface: Option<String>,
    /// Communities (RFC 1997).
    pub communities: Vec<Community>,
    /// Large communities (RFC 8092).
    pub large_communities: Vec<LargeCommunity>,
}

/// A prefix whose best route is another one now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RouteChange {
    /// The prefix.
    pub prefix: Prefix,
    /// The best route learnt from peers; `None` when there is none, or when we originate the prefix ourselves.
    pub best: Option<BestRoute>,
}

/// A best route, ready to be put into a forwarding table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct BestRoute {
    /// Where packets go: one, or several of equal worth, without duplicates, in ascending order.
    pub next_hops: Vec<NextHop>,
    /// Name of the peer the best of them is from.
    pub from: String,
    /// How it came here.
    pub source: SourceKind,
    /// Its attributes after import policy.
    pub attributes: AttributesSummary,
    /// Packets are to be dropped: it carries BLACKHOLE, which is agreed on with the peer it is from (RFC 7999 §3.1).
    pub blackhole: bool,
}

/// A neighbour to send packets to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct NextHop {
    /// Its address.
    pub address: IpAddr,
    /// The kernel's number of the interface it is on, for link-local addresses.
    pub scope_id: Option<u32>,
}
