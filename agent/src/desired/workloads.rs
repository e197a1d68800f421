//! What workloads may send, and which ports of the node lead to them.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;

use ipnetwork::IpNetwork;

use crate::model::{Endpoint, Learned, LearnedPath, Model, Protocol, SourceSpoofing};

/// What the workload behind an interface may send from.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Workload {
    /// Its own addresses.
    pub addresses: BTreeSet<IpAddr>,
    /// Further source ranges it was allowed. No range lies in another.
    pub allowed_sources: BTreeSet<IpNetwork>,
}

/// A port of the node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct HostPortKey {
    /// Whether it is one of IPv6.
    pub is_ipv6: bool,
    /// The node's address; `None` for all of them.
    pub address: Option<IpAddr>,
    /// The protocol.
    pub protocol: Protocol,
    /// The port.
    pub port: u16,
}

/// Where a port of the node leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct HostPortTarget {
    /// The workload's address.
    pub address: IpAddr,
    /// The port there.
    pub port: u16,
}

pub(super) fn workloads<'a>(
    model: &Model,
    endpoints: impl Iterator<Item = &'a Endpoint>,
) -> BTreeMap<String, Workload> {
    let endpoints = endpoints.map(|endpoint| {
        let mut sources = allowed_sources(model, endpoint);
        sources.extend(routed_to(model, endpoint));
        let workload = Workload {
            addresses: endpoint.addresses.clone(),
            allowed_sources: super::nft::without_nested(&sources),
        };
        (endpoint.host_interface.clone(), workload)
    });
    endpoints.collect()
}

/// Source ranges that the workload may use besides its addresses, as far as the operator lets it.
pub(super) fn allowed_sources(model: &Model, endpoint: &Endpoint) -> BTreeSet<IpNetwork> {
    match model.source_spoofing {
        SourceSpoofing::Disabled => BTreeSet::new(),
        SourceSpoofing::Any => super::nft::without_nested(&endpoint.allowed_sources),
    }
}

/// What lies behind a workload that is a BGP peer: what it announced and we route to it comes from it too.
fn routed_to<'a>(model: &'a Model, endpoint: &'a Endpoint) -> impl Iterator<Item = IpNetwork> + 'a {
    let is_peer = model.workload_peering.contains_key(&endpoint.host_interface);
    let is_next_hop = |learned: &Learned| match &learned.path {
        LearnedPath::Via(next_hops) => next_hops
            .iter()
            .any(|next_hop| endpoint.addresses.contains(&next_hop.address)),
        LearnedPath::Blackhole => false,
    };
    let learned = model.learned.iter().filter(move |_| is_peer);
    learned
        .filter(move |(_, learned)| is_next_hop(learned))
        .map(|(destination, _)| *destination)
}

/// Where two workloads ask for the same port, the one with the lower identity has it.
pub(super) fn host_ports(model: &Model) -> BTreeMap<HostPortKey, HostPortTarget> {
    let mut ports = BTreeMap::new();
    for endpoint in model.endpoints.values() {
        for mapping in &endpoint.host_ports {
            for is_ipv6 in [false, true] {
                let of_family = |address: &&IpAddr| address.is_ipv6() == is_ipv6;
                let Some(address) = endpoint.addresses.iter().find(of_family) else {
                    continue;
                };
                if mapping.host_address.is_some_and(|host| host.is_ipv6() != is_ipv6) {
                    continue;
                }
                let key = HostPortKey {
                    is_ipv6,
                    address: mapping.host_address,
                    protocol: mapping.protocol,
                    port: mapping.host_port,
                };
                ports.entry(key).or_insert(HostPortTarget {
                    address: *address,
                    port: mapping.port,
                });
            }
        }
    }
    ports
}

impl fmt::Display for HostPortKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.address {
            Some(address) => write!(f, "{} {address} port {}", self.protocol, self.port),
            None => write!(f, "{} port {}", self.protocol, self.port),
        }
    }
}
