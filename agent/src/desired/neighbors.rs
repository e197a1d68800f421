//! Neighbours on the VXLAN devices: for each other node the MAC address behind its tunnel address, and the node behind
//! that MAC address. Both for good: nothing is ever asked or learnt on the overlay.
//!
//! And the workloads', on their host ends, once the kernel has learnt the MAC address that the endpoint says: an entry for
//! good is never asked for again, and does not count against the kernel's bound for learnt ones (`gc_thresh3`, 1024).
//! Felix makes them at once, for IPv4; a pod whose MAC address another plugin of the list changes is then never reached.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

use crate::desired::tunnels::Tunnel;
use crate::model::{Endpoint, Model, TunnelKind};

/// What makes a neighbour one neighbour in the kernel.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct NeighborKey {
    /// Name of the device.
    pub interface: String,
    /// What is looked up.
    pub subject: NeighborSubject,
}

/// What is looked up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum NeighborSubject {
    /// The MAC address of this address (ARP, neighbour discovery).
    Address(IpAddr),
    /// The node with this MAC address (forwarding database of the device itself, `NTF_SELF`).
    Mac([u8; 6]),
}

/// What is found: the one that the subject is not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NeighborTarget {
    /// The MAC address of an address.
    Mac([u8; 6]),
    /// The address of a node.
    Node(IpAddr),
}

pub(super) fn neighbors(
    model: &Model,
    tunnels: &BTreeMap<String, Tunnel>,
) -> BTreeMap<NeighborKey, NeighborTarget> {
    let mut neighbors = BTreeMap::new();
    for kind in [TunnelKind::VxlanV4, TunnelKind::VxlanV6] {
        if !tunnels.contains_key(kind.interface()) {
            continue;
        }
        for node in model.other_nodes().filter_map(|node| node.vxlan(kind)) {
            let key = |subject| NeighborKey {
                interface: kind.interface().to_owned(),
                subject,
            };
            neighbors.insert(
                key(NeighborSubject::Address(node.address)),
                NeighborTarget::Mac(node.mac),
            );
            neighbors.insert(
                key(NeighborSubject::Mac(node.mac)),
                NeighborTarget::Node(node.host),
            );
        }
    }
    neighbors.extend(of_workloads(model, model.endpoints.values()));
    neighbors
}

/// Those of the workloads whose MAC address is known, on their links.
pub(super) fn of_workloads<'a>(
    model: &Model,
    endpoints: impl Iterator<Item = &'a Endpoint>,
) -> impl Iterator<Item = (NeighborKey, NeighborTarget)> {
    endpoints
        .filter(|endpoint| model.links.contains(&endpoint.host_interface))
        .filter_map(|endpoint| Some((endpoint, NeighborTarget::Mac(endpoint.mac?))))
        .flat_map(|(endpoint, mac)| {
            endpoint.addresses.iter().map(move |address| {
                let key = NeighborKey {
                    interface: endpoint.host_interface.clone(),
                    subject: NeighborSubject::Address(*address),
                };
                (key, mac)
            })
        })
}

impl fmt::Display for NeighborKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.subject {
            NeighborSubject::Address(address) => write!(f, "{address} dev {}", self.interface),
            NeighborSubject::Mac(mac) => write!(f, "{} dev {}", mac_text(mac), self.interface),
        }
    }
}

impl fmt::Display for NeighborTarget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Mac(mac) => write!(f, "lladdr {}", mac_text(*mac)),
            Self::Node(address) => write!(f, "dst {address}"),
        }
    }
}

fn mac_text(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}
