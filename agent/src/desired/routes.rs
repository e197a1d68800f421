//! Routes: workloads, blackholes of own blocks, blocks of other nodes, and what BGP learned.
//!
//! Where two want the same destination, one wins: workload, then blackhole, then what the datastore says of another node's
//! block, then BGP. (Felix has the same order; its blackholes come last, but never meet the others.)

use std::collections::{BTreeMap, BTreeSet};

use ipnetwork::IpNetwork;

use crate::desired::tunnels::Tunnel;
use crate::desired::{Gateway, Route, RouteKey, RouteOrigin, RoutePath, cluster};
use crate::model::{Model, NextHop};

/// Gateways of one route, at most; the lowest addresses are taken. More than any peer count in use, and few enough for
/// one netlink attribute of 64 KiB.
const MAX_GATEWAYS: usize = 128;

pub(super) fn routes(model: &Model, tunnels: &BTreeMap<String, Tunnel>) -> BTreeMap<RouteKey, Route> {
    let mut routes = BTreeMap::new();
    for (destination, next_hops) in &model.learned {
        if !next_hops.is_empty() && may_be_learned(*destination, &model.own_blocks) {
            routes.insert(RouteKey::main(*destination), learned(next_hops));
        }
    }
    routes.extend(cluster::routes(model, tunnels));
    for block in model.own_blocks.iter().filter(|block| !is_host(**block)) {
        routes.insert(
            RouteKey::main(*block),
            Route {
                origin: RouteOrigin::Local,
                path: RoutePath::Blackhole,
            },
        );
    }
    for endpoint in model.endpoints.values() {
        // The kernel refuses a route to a link that is not there.
        if !model.links.contains(&endpoint.host_interface) {
            continue;
        }
        for address in &endpoint.addresses {
            let path = RoutePath::Link {
                interface: endpoint.host_interface.clone(),
            };
            routes.insert(
                RouteKey::main(IpNetwork::from(*address)),
                Route {
                    origin: RouteOrigin::Local,
                    path,
                },
            );
        }
    }
    routes
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
    let is_own_or_part_of_own = own_blocks.iter().any(|block| contains(*block, destination));
    !is_own_or_part_of_own || (is_host(destination) && !own_blocks.contains(&destination))
}

/// Whether `inner` is `outer` or lies in it.
pub(super) fn contains(outer: IpNetwork, inner: IpNetwork) -> bool {
    outer.prefix() <= inner.prefix() && outer.contains(inner.network())
}

fn learned(next_hops: &BTreeSet<NextHop>) -> Route {
    let gateways = next_hops
        .iter()
        .take(MAX_GATEWAYS)
        .map(|next_hop| Gateway {
            address: next_hop.address,
            interface: next_hop.interface.clone(),
        })
        .collect();
    Route {
        origin: RouteOrigin::Bgp,
        path: RoutePath::Via { gateways },
    }
}
