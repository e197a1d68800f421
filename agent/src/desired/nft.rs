//! NAT outgoing: which sources are translated, and for which destinations they are not.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnetwork::IpNetwork;

use crate::desired::routes::contains;
use crate::model::{Model, NatExclusions};

/// Sources (pools with `natOutgoing`) and exempt destinations (all pools).
pub(super) fn nat(model: &Model) -> (BTreeSet<IpNetwork>, BTreeSet<IpNetwork>) {
    let sources = model
        .pools
        .values()
        .filter(|pool| pool.nat_outgoing)
        .map(|pool| pool.cidr);
    let exempt = model.pools.values().map(|pool| pool.cidr);
    (
        without_nested(&sources.collect()),
        without_nested(&exempt.collect()),
    )
}

/// The nodes, where they are exempt. By default they are not, as in Calico: a pod that talks to another node is translated,
/// since that node may have no route back.
pub(super) fn exempt_nodes(model: &Model) -> BTreeSet<IpAddr> {
    match model.settings.nat_exclusions {
        NatExclusions::IpPools => BTreeSet::new(),
        NatExclusions::IpPoolsAndHostIps => model
            .other_nodes()
            .flat_map(|node| [node.address(false), node.address(true)])
            .flatten()
            .map(|address| address.ip())
            .collect(),
    }
}

/// Leaves out ranges that lie in another: the elements of an nftables interval set must not overlap.
pub(super) fn without_nested(ranges: &BTreeSet<IpNetwork>) -> BTreeSet<IpNetwork> {
    ranges
        .iter()
        .filter(|range| {
            !ranges
                .iter()
                .any(|outer| outer != *range && contains(*outer, **range))
        })
        .copied()
        .collect()
}
