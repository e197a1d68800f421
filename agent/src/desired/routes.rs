//! Routes: workloads, blackholes of own blocks, blocks of other nodes, and what BGP learned.
//!
//! Where two want the same destination, one wins: workload, then blackhole, then what the datastore says of another node's
//! block, then the gateway to a BGP peer, then what BGP learned. (Felix has the same order; its blackholes come last, but never meet the others.) A priority that a policy
//! gives to a learned route is its metric, and counts against routes of others only.
//!
//! Routes through other nodes and learned ones may have a table of their own (`rules.rs`). Black holes stay in the main one, so that they
//! come before whatever leads there.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnetwork::IpNetwork;

use crate::desired::next_hops::NextHops;
use crate::desired::tunnels::Tunnel;
use crate::desired::{
    Gateway, MAIN_TABLE, MIGRATION_PRIORITY, ROUTE_PRIORITY, Route, RouteKey, RouteOrigin, RoutePath, cluster,
};
use crate::model::{Endpoint, MigrationPhase, Model, TunnelKind};

pub(super) fn routes(model: &Model, tunnels: &BTreeMap<String, Tunnel>) -> BTreeMap<RouteKey, Route> {
    let mut routes = cluster::routes(model, tunnels);
    for block in model.own_blocks.iter().filter(|block| !is_host(**block)) {
        routes.insert(
            RouteKey::main(*block),
            Route {
                origin: RouteOrigin::Local,
                path: RoutePath::Blackhole,
            },
        );
    }
    routes.extend(of_workloads(model, model.endpoints.values()));
    for (peer, gateway) in &model.peer_gateways {
        let gateway = Gateway {
            address: *gateway,
            interface: None,
        };
        let route = Route {
            origin: RouteOrigin::Bgp,
            path: RoutePath::via([gateway]),
        };
        routes
            .entry(RouteKey::main(IpNetwork::from(*peer)))
            .or_insert(route);
    }
    let mut next_hops = NextHops::new(&model.interfaces);
    // Whatever the metric of a learned one, it does not take packets from what else leads there.
    let taken: BTreeSet<IpNetwork> = routes.keys().map(|key| key.destination).collect();
    for (destination, learned) in &model.learned {
        if !taken.contains(destination)
            && may_be_learned(*destination, &model.own_blocks)
            && let Some(path) = next_hops.path(learned)
        {
            let key = RouteKey {
                table: match path {
                    RoutePath::Blackhole => MAIN_TABLE,
                    _ => table_of_remote(model, *destination),
                },
                destination: *destination,
                priority: learned.priority.unwrap_or(ROUTE_PRIORITY),
            };
            let origin = RouteOrigin::Bgp;
            routes.insert(key, Route { origin, path });
        }
    }
    routes
}

/// The table of a route that leads away from this node. What lies in a block of our own, whose blackhole is in the main table, is
/// there too: the longest prefix counts within a table only.
pub(super) fn table_of_remote(model: &Model, destination: IpNetwork) -> u32 {
    let table = model.settings.remote_route_table;
    if table == MAIN_TABLE || is_within(&model.own_blocks, destination) {
        MAIN_TABLE
    } else {
        table
    }
}

/// Those to workloads. To one that is to migrate here, packets go to the node that it runs on.
pub(super) fn of_workloads<'a>(
    model: &Model,
    endpoints: impl Iterator<Item = &'a Endpoint>,
) -> impl Iterator<Item = (RouteKey, Route)> {
    endpoints
        // The kernel refuses a route to a link that is not there.
        .filter(|endpoint| model.links.contains(&endpoint.host_interface))
        .filter_map(|endpoint| Some((endpoint, priority(model, endpoint)?)))
        .flat_map(|(endpoint, priority)| {
            endpoint.addresses.iter().map(move |address| {
                let path = RoutePath::Link {
                    interface: endpoint.host_interface.clone(),
                };
                let key = RouteKey {
                    priority,
                    ..RouteKey::main(IpNetwork::from(*address))
                };
                let origin = RouteOrigin::Local;
                (key, Route { origin, path })
            })
        })
}

/// Metric of the routes to a workload; `None`: there are to be none.
pub(super) fn priority(model: &Model, endpoint: &Endpoint) -> Option<u32> {
    match model.migrations.phase(&endpoint.host_interface) {
        None => Some(ROUTE_PRIORITY),
        Some(MigrationPhase::Awaited) => None,
        Some(MigrationPhase::Live | MigrationPhase::Settling) => Some(MIGRATION_PRIORITY),
    }
}

/// Whether somebody else than a workload may have a route to this one address, so that it comes back when the workload goes.
pub(super) fn may_lead_elsewhere(model: &Model, address: IpAddr) -> bool {
    let host = IpNetwork::from(address);
    model.learned.contains_key(&host)
        || model.own_blocks.contains(&host)
        || (model.cluster.blocks_with(address))
            .any(|(block, state)| block == host || state.borrowed.contains_key(&address))
        || model
            .other_nodes()
            .filter_map(|node| node.vxlan(TunnelKind::VxlanV6))
            .any(|vtep| vtep.address == address)
}

/// Whether a prefix covers one address only.
pub(super) fn is_host(prefix: IpNetwork) -> bool {
    match prefix {
        IpNetwork::V4(v4) => v4.prefix() == 32,
        IpNetwork::V6(v6) => v6.prefix() == 128,
    }
}

/// Whether a route that a peer announced may be installed. Own blocks are ours: neither they nor parts of them are
/// taken from a peer, with one exception: single addresses, which other nodes borrow from our blocks and announce.
fn may_be_learned(destination: IpNetwork, own_blocks: &BTreeSet<IpNetwork>) -> bool {
    !is_within(own_blocks, destination) || (is_host(destination) && !own_blocks.contains(&destination))
}

fn is_within(blocks: &BTreeSet<IpNetwork>, prefix: IpNetwork) -> bool {
    blocks.iter().any(|block| contains(*block, prefix))
}

/// Whether `inner` is `outer` or lies in it.
pub(super) fn contains(outer: IpNetwork, inner: IpNetwork) -> bool {
    outer.prefix() <= inner.prefix() && outer.contains(inner.network())
}

/// The default route's prefix of a family.
#[must_use]
pub fn default_prefix(is_ipv6: bool) -> IpNetwork {
    let any = if is_ipv6 {
        IpAddr::V6(Ipv6Addr::UNSPECIFIED)
    } else {
        IpAddr::V4(Ipv4Addr::UNSPECIFIED)
    };
    IpNetwork::new(any, 0).unwrap_or_else(|_| IpNetwork::from(any))
}
