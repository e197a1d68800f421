//! What this node publishes of itself for the others: its tunnels for as long as the devices stand, also when no pool uses
//! them any more. Another node that cannot use the new way yet goes on using the old one.

use std::collections::{BTreeMap, BTreeSet};

use ipnetwork::IpNetwork;

use crate::desired::tunnels::Tunnel;
use crate::model::{Model, NodeFacts, TunnelKind};

/// What a node says of itself.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Published {
    /// Its addresses and tunnels.
    pub facts: NodeFacts,
    /// Kinds of tunnels of which it is known whether there is one. Of the others nothing is said.
    pub decided: BTreeSet<TunnelKind>,
}

pub(super) fn published(model: &Model, devices: &BTreeMap<String, Tunnel>) -> Published {
    let has_device = |kind: &TunnelKind| devices.contains_key(kind.interface());
    let tunnels: BTreeMap<_, _> = model
        .tunnel_addresses
        .iter()
        .filter(|(kind, _)| has_device(kind))
        .filter_map(|(kind, address)| Some((*kind, (*address)?)))
        .collect();
    let macs = tunnels
        .keys()
        .filter_map(|kind| Some((*kind, devices.get(kind.interface())?.mac?)))
        .collect();
    let decided = model
        .tunnel_addresses
        .iter()
        .filter(|(kind, address)| address.is_none() || has_device(kind))
        .map(|(kind, _)| *kind)
        .collect();
    let facts = NodeFacts {
        ipv4: model.own_address(false).and_then(|address| match address {
            IpNetwork::V4(v4) => Some(v4),
            IpNetwork::V6(_) => None,
        }),
        ipv6: model.own_address(true).and_then(|address| match address {
            IpNetwork::V4(_) => None,
            IpNetwork::V6(v6) => Some(v6),
        }),
        tunnels,
        macs,
    };
    Published { facts, decided }
}
