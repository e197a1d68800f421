//! Routes to the blocks of other nodes that follow from the datastore: by the mode of the block's pool, through a tunnel
//! or straight to a node of our own subnet.
//!
//! While a node cannot yet be reached in the mode that its pool has now, it is reached through a tunnel that both sides still
//! have, or straight where that is what the operator chose for pools without encapsulation: a change of mode takes a node's packets over when both ends are ready.

use std::collections::BTreeMap;

use ipnetwork::IpNetwork;

use crate::desired::tunnels::Tunnel;
use crate::desired::{Route, RouteKey, RouteOrigin, RoutePath, bgp, routes};
use crate::model::{Encapsulation, Model, NodeFacts, TunnelKind};

pub(super) fn routes(model: &Model, tunnels: &BTreeMap<String, Tunnel>) -> BTreeMap<RouteKey, Route> {
    let mut found = BTreeMap::new();
    for (block, state) in &model.cluster.blocks {
        let borrowed = state
            .borrowed
            .iter()
            .map(|(address, node)| (IpNetwork::from(*address), node));
        for (destination, node) in state.owner.iter().map(|owner| (*block, owner)).chain(borrowed) {
            if *node == model.node_name {
                continue;
            }
            let path = model
                .cluster
                .nodes
                .get(node)
                .and_then(|node| path(model, tunnels, destination, node));
            if let Some(path) = path {
                let key = RouteKey {
                    table: routes::table_of_remote(model, destination),
                    ..RouteKey::main(destination)
                };
                let origin = RouteOrigin::Cluster;
                found.insert(key, Route { origin, path });
            }
        }
    }
    found.extend(vteps(model, tunnels));
    found
}

/// Straight to the IPv6 VXLAN devices of others. The kernel refuses a gateway, even one that is said to be on the link, while
/// the way to its address leads through another link (`ip6_route_check_nh_onlink`), as that to its block does while
/// the mode changes. It looks at the main table only.
fn vteps(model: &Model, tunnels: &BTreeMap<String, Tunnel>) -> BTreeMap<RouteKey, Route> {
    let kind = TunnelKind::VxlanV6;
    if !tunnels.contains_key(kind.interface()) {
        return BTreeMap::new();
    }
    let vteps = model.other_nodes().filter_map(|node| node.vxlan(kind));
    vteps
        .map(|vtep| {
            let path = RoutePath::Link {
                interface: kind.interface().to_owned(),
            };
            let origin = RouteOrigin::Cluster;
            (
                RouteKey::main(IpNetwork::from(vtep.address)),
                Route { origin, path },
            )
        })
        .collect()
}

fn path(
    model: &Model,
    tunnels: &BTreeMap<String, Tunnel>,
    destination: IpNetwork,
    node: &NodeFacts,
) -> Option<RoutePath> {
    let mode = bgp::covering_pool(model, destination).map_or(Encapsulation::None, |pool| pool.encapsulation);
    let is_ipv6 = destination.is_ipv6();
    let vxlan = || {
        let kind = TunnelKind::vxlan(is_ipv6);
        let vtep = node.vxlan(kind)?;
        onlink(tunnels, kind, vtep.address)
    };
    let ipip = || {
        let _ready = node.tunnels.get(&TunnelKind::Ipip)?;
        onlink(tunnels, TunnelKind::Ipip, node.address(false)?.ip()).filter(|_| !is_ipv6)
    };
    let direct = || direct(model, is_ipv6, node);
    let unencapsulated = || model.settings.direct_routes.then(direct).flatten();
    match mode {
        Encapsulation::None => unencapsulated(),
        Encapsulation::VxlanAlways => vxlan().or_else(ipip).or_else(unencapsulated),
        Encapsulation::VxlanCrossSubnet => direct().or_else(vxlan).or_else(ipip),
        Encapsulation::IpipAlways => ipip().or_else(vxlan).or_else(unencapsulated),
        Encapsulation::IpipCrossSubnet => direct().or_else(ipip).or_else(vxlan),
    }
}

fn onlink(
    tunnels: &BTreeMap<String, Tunnel>,
    kind: TunnelKind,
    gateway: std::net::IpAddr,
) -> Option<RoutePath> {
    let interface = kind.interface();
    tunnels.contains_key(interface).then(|| RoutePath::Onlink {
        gateway,
        interface: interface.to_owned(),
    })
}

/// Straight to a node whose address lies in our subnet.
fn direct(model: &Model, is_ipv6: bool, node: &NodeFacts) -> Option<RoutePath> {
    let (own, other) = (model.own_address(is_ipv6)?, node.address(is_ipv6)?);
    let interface = model.interface_with(own.ip())?;
    (own.contains(other.ip()) && own.ip() != other.ip()).then(|| RoutePath::Onlink {
        gateway: other.ip(),
        interface: interface.to_owned(),
    })
}
