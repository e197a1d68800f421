//! The attributes of a route in words, for people and programs that do not speak BGP.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde::{Deserialize, Serialize};

use crate::wire::attr::{Attributes, NextHop, Origin, UnknownAttribute};

/// The attributes of a route for people and programs that do not speak BGP.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttributesSummary {
    /// `igp`, `egp` or `incomplete`.
    pub origin: String,
    /// The AS_PATH as text, sets in braces.
    pub as_path: String,
    /// Next hop.
    pub next_hop: Option<IpAddr>,
    /// The link-local address that came with a global next hop (RFC 2545).
    #[serde(default)]
    pub link_local_next_hop: Option<Ipv6Addr>,
    /// ATOMIC_AGGREGATE.
    #[serde(default)]
    pub atomic_aggregate: bool,
    /// AGGREGATOR: AS and address.
    #[serde(default)]
    pub aggregator: Option<String>,
    /// The metric of AIGP (RFC 7311).
    #[serde(default)]
    pub aigp: Option<u64>,
    /// Attributes that this speaker does not know and passes on: type code and value in hexadecimal digits.
    #[serde(default)]
    pub unknown: Vec<String>,
    /// MULTI_EXIT_DISC.
    pub med: Option<u32>,
    /// LOCAL_PREF.
    pub local_pref: Option<u32>,
    /// Communities as text: standard, extended, large.
    pub communities: Vec<String>,
    /// ORIGINATOR_ID (RFC 4456).
    pub originator_id: Option<Ipv4Addr>,
    /// CLUSTER_LIST (RFC 4456).
    pub cluster_list: Vec<Ipv4Addr>,
    /// ONLY_TO_CUSTOMER (RFC 9234).
    pub otc: Option<u32>,
    /// The metric a policy gave the route for forwarding tables.
    pub priority: Option<u32>,
    /// The link it leaves by, where a policy asks for that.
    #[serde(default)]
    pub interface: Option<String>,
}

impl AttributesSummary {
    /// Of an attribute set.
    pub fn of(attributes: &Attributes) -> Self {
        let standard = attributes.communities.as_slice().iter().map(ToString::to_string);
        let extended = attributes
            .extended_communities
            .as_slice()
            .iter()
            .map(ToString::to_string);
        let large = attributes
            .large_communities
            .as_slice()
            .iter()
            .map(ToString::to_string);
        let origin = match attributes.origin {
            Origin::Igp => "igp",
            Origin::Egp => "egp",
            Origin::Incomplete => "incomplete",
        };
        let ipv6 = attributes.ipv6_extended_communities.as_slice();
        let ipv6 = ipv6.iter().map(ToString::to_string);
        let next_hop = attributes.next_hop;
        let global = next_hop.map(NextHop::address);
        let aggregator = attributes.aggregator;
        Self {
            origin: origin.to_owned(),
            as_path: attributes.as_path.to_string(),
            next_hop: global,
            link_local_next_hop: next_hop
                .and_then(NextHop::link_local)
                .filter(|link_local| global != Some((*link_local).into())),
            atomic_aggregate: attributes.atomic_aggregate,
            aggregator: aggregator.map(|by| format!("AS {} {}", by.asn, by.address)),
            aigp: attributes.aigp,
            unknown: attributes.unknown.iter().map(unknown).collect(),
            med: attributes.med,
            local_pref: attributes.local_pref,
            communities: standard.chain(extended).chain(ipv6).chain(large).collect(),
            originator_id: attributes.originator_id,
            cluster_list: attributes.cluster_list.to_vec(),
            otc: attributes.otc,
            priority: attributes.local.priority,
            interface: attributes.local.interface.as_deref().map(str::to_owned),
        }
    }
}

fn unknown(attribute: &UnknownAttribute) -> String {
    let digits: String = attribute
        .value
        .iter()
        .map(|octet| format!("{octet:02x}"))
        .collect();
    format!("{} 0x{digits}", attribute.type_code)
}
