//! Addresses of links: one on each tunnel device, and on host ends what a workload opens BGP sessions to
//! (Calico's `localWorkloadPeeringIPV4` and `localWorkloadPeeringIPV6`).

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use ipnetwork::IpNetwork;

use crate::desired::tunnels::Tunnel;
use crate::model::Model;

/// An address on a link of ours. Always of one address (/32, /128).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct LinkAddress {
    /// Name of the link.
    pub interface: String,
    /// The address.
    pub address: IpNetwork,
}

pub(super) fn addresses(model: &Model, tunnels: &BTreeMap<String, Tunnel>) -> BTreeSet<LinkAddress> {
    let of_tunnels = model
        .tunnel_addresses
        .iter()
        .filter(|(kind, _)| tunnels.contains_key(kind.interface()))
        .filter_map(|(kind, address)| {
            Some(LinkAddress {
                interface: kind.interface().to_owned(),
                address: IpNetwork::from((*address)?),
            })
        });
    // The kernel refuses an address on a link that is not there.
    let there = model.workload_peering.iter();
    let there = there.filter(|(interface, _)| model.links.contains(*interface));
    let of_host_ends = there.flat_map(|(interface, addresses)| {
        addresses.iter().map(|address| LinkAddress {
            interface: interface.clone(),
            address: IpNetwork::from(*address),
        })
    });
    of_tunnels.chain(of_host_ends).collect()
}

impl fmt::Display for LinkAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} dev {}", self.address, self.interface)
    }
}
