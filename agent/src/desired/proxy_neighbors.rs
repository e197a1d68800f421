//! Proxy neighbours: the node answers on an uplink for the addresses of workloads that lie in that uplink's subnet, if the operator
//! wants that (`dataplane.proxy_neighbors`). Hosts of the subnet take such an address to be on their link, and ask nobody else (RFC 1027,
//! RFC 4389). Calico has nothing of the kind.

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;

use crate::desired::{next_hops, routes};
use crate::model::{Endpoint, Model};

/// The interface that every node has for itself.
const LOOPBACK: &str = "lo";

/// An address that the node answers for on a link.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct ProxyNeighbor {
    /// The address.
    pub address: IpAddr,
    /// Name of the link.
    pub interface: String,
}

/// Those of workloads: of the addresses that routes here lead to, those on a link that is up. The narrowest subnet counts, and no
/// link where two have the same.
pub(super) fn of_workloads<'a>(
    model: &Model,
    endpoints: impl Iterator<Item = &'a Endpoint>,
) -> BTreeSet<ProxyNeighbor> {
    if !model.settings.proxy_neighbors {
        return BTreeSet::new();
    }
    let is_up = |name: &String| model.interfaces.get(name).is_some_and(|link| link.up);
    endpoints
        .filter(|endpoint| model.links.contains(&endpoint.host_interface))
        .filter(|endpoint| routes::priority(model, endpoint).is_some())
        .flat_map(|endpoint| &endpoint.addresses)
        .filter_map(|address| {
            let interface = next_hops::link_around(*address, &model.interfaces)?;
            let address = *address;
            (interface != LOOPBACK && is_up(&interface)).then_some(ProxyNeighbor { address, interface })
        })
        .collect()
}

impl fmt::Display for ProxyNeighbor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} dev {}", self.address, self.interface)
    }
}
