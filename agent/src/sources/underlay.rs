//! How this node reaches other addresses without BGP: what others put into its main routing table, over links that pass packets. BGP
//! resolves its next hops through it, so that a dead link takes its routes along at once and the nearer of two next hops is known.
//!
//! The table is read again when the kernel tells of a route or an address that is not ours; a link that gets or loses its carrier changes
//! what the routes read last are worth, without another look at them. A default route counts. Policy routing, other tables and
//! types of service do not.

use std::collections::BTreeMap;
use std::net::IpAddr;

use calidris_bgp::family::Prefix;
use calidris_bgp::rib::{Underlay, UnderlayRoute};
use calidris_bgp::route::NextHop;
use calidris_bgp_driver::{BgpHandle, Stopped};
use ipnetwork::IpNetwork;
use netlink_packet_route::AddressFamily;
use tokio::sync::watch;
use tracing::{debug, warn};

use crate::desired::{MAIN_TABLE, RouteKey, RoutePath};
use crate::kernel::KernelError;
use crate::kernel::linux::dump_routes;
use crate::kernel::message::{self, SeenRoute};
use crate::kernel::netlink::NetlinkSocket;
use crate::model::Interface;
use crate::model::peering::WorkloadPeers;

/// The node's interfaces by name, without those of workloads.
type Interfaces = BTreeMap<String, Interface>;

/// Where what concerns the underlay is told.
#[derive(Debug, Clone)]
pub struct Watched {
    /// The node's interfaces.
    pub interfaces: watch::Receiver<Interfaces>,
    /// Counts changes of routes and addresses that are not ours.
    pub foreign_changes: watch::Receiver<u64>,
    /// Workloads that are BGP peers: the one thing behind routes of ours that BGP has to know.
    pub workload_peers: watch::Receiver<WorkloadPeers>,
}

/// Tells the speaker what it is now, then whenever it changes, until the speaker or the node's thread is gone.
pub async fn run(speaker: BgpHandle, mut watched: Watched) {
    let mut routes = Vec::new();
    let mut told = None;
    let mut is_to_read = true;
    loop {
        watched.foreign_changes.mark_unchanged();
        if is_to_read {
            match tokio::task::spawn_blocking(read).await {
                Ok(Ok(read)) => routes = read,
                Ok(Err(error)) => {
                    warn!(%error, "cannot read the routes of others; BGP goes on with those it knows");
                }
                Err(error) => warn!(%error, "reading the routes of others has failed"),
            }
        }
        let mut underlay = underlay(&routes, &watched.interfaces.borrow_and_update());
        underlay.extend(watched.workload_peers.borrow_and_update().iter().map(on_link));
        if told.as_ref() != Some(&underlay) {
            debug!(prefixes = underlay.len(), "the underlay of BGP changed");
            if let Err(Stopped) = speaker.set_underlay(Some(underlay.clone())).await {
                return;
            }
            told = Some(underlay);
        }
        let changed = tokio::select! {
            changed = watched.foreign_changes.changed() => changed.map(|()| true),
            changed = watched.interfaces.changed() => changed.map(|()| false),
            changed = watched.workload_peers.changed() => changed.map(|()| false),
        };
        match changed {
            Ok(is_foreign) => is_to_read = is_foreign,
            Err(_gone) => return,
        }
    }
}

/// The way to a workload.
fn on_link((address, host_end): (&IpAddr, &String)) -> (Prefix, UnderlayRoute) {
    let route = UnderlayRoute {
        links: vec![host_end.clone()],
        ..UnderlayRoute::default()
    };
    (Prefix::host(*address), route)
}

/// Whether a route may be part of it: one of the main table that is not ours. Link-local and multicast destinations, which every link
/// has, say nothing.
pub(super) fn concerns(key: &RouteKey, protocol: u8) -> bool {
    let is_everywhere = match key.destination {
        IpNetwork::V4(v4) => v4.ip().is_multicast(),
        IpNetwork::V6(v6) => v6.ip().is_multicast() || v6.ip().is_unicast_link_local(),
    };
    key.table == MAIN_TABLE && message::origin(protocol).is_none() && !is_everywhere
}

fn read() -> Result<Vec<SeenRoute>, KernelError> {
    let mut socket = NetlinkSocket::open()?;
    let mut routes = Vec::new();
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        let keep = |route: &SeenRoute| concerns(&route.key, route.protocol);
        routes.extend(dump_routes(&mut socket, family, None, keep)?);
    }
    Ok(routes)
}

/// Of several routes to one prefix the usable one with the lowest metric counts, as in the kernel.
fn underlay(routes: &[SeenRoute], interfaces: &Interfaces) -> Underlay {
    let mut underlay = Underlay::new();
    for route in routes {
        let metric = route.key.priority;
        let Some((via, links)) = route.path.as_ref().and_then(|path| way(path, interfaces)) else {
            continue;
        };
        let prefix = Prefix::from(route.key.destination);
        if underlay.get(&prefix).is_none_or(|known| metric < known.metric) {
            underlay.insert(prefix, UnderlayRoute { metric, via, links });
        }
    }
    underlay
}

/// The neighbours that packets go to, none when the destination itself is on the link, and the links; `None` when nothing gets through.
fn way(path: &RoutePath, interfaces: &Interfaces) -> Option<(Vec<NextHop>, Vec<String>)> {
    let index = |name: &str| {
        interfaces
            .get(name)
            .filter(|link| link.running)
            .map(|link| link.index)
    };
    let next_hop = |address: IpAddr, interface: &str| {
        let is_link_local = matches!(address, IpAddr::V6(v6) if v6.is_unicast_link_local());
        let index = index(interface)?;
        Some(NextHop {
            address,
            scope_id: is_link_local.then_some(index),
        })
    };
    match path {
        RoutePath::Link { interface } => index(interface).map(|_| (Vec::new(), vec![interface.clone()])),
        RoutePath::Onlink { gateway, interface } => {
            Some((vec![next_hop(*gateway, interface)?], vec![interface.clone()]))
        }
        RoutePath::Via { gateways } => {
            let usable = gateways.iter().filter_map(|gateway| {
                let interface = gateway.interface.as_deref()?;
                Some((next_hop(gateway.address, interface)?, interface.to_owned()))
            });
            Some(usable.unzip()).filter(|(usable, _): &(Vec<NextHop>, _)| !usable.is_empty())
        }
        // One of ours only, which are not among them.
        RoutePath::Blackhole | RoutePath::Group { .. } => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::desired::Gateway;

    fn interfaces(states: &[(&str, bool)]) -> Interfaces {
        let interface = |(position, (name, running)): (usize, &(&str, bool))| {
            let interface = Interface {
                index: u32::try_from(position).unwrap() + 1,
                up: true,
                running: *running,
                mtu: 1500,
                addresses: Vec::new(),
            };
            ((*name).to_owned(), interface)
        };
        states.iter().enumerate().map(interface).collect()
    }

    fn route(destination: &str, priority: u32, gateways: &[(&str, &str)]) -> SeenRoute {
        let gateway = |(address, interface): &(&str, &str)| Gateway {
            address: address.parse().unwrap(),
            interface: Some((*interface).to_owned()),
        };
        let path = match gateways {
            [("", interface)] => RoutePath::Link {
                interface: (*interface).to_owned(),
            },
            gateways => RoutePath::via(gateways.iter().map(gateway)),
        };
        SeenRoute {
            key: RouteKey {
                priority,
                ..RouteKey::main(destination.parse().unwrap())
            },
            protocol: 4,
            path: Some(path),
        }
    }

    fn lines(routes: &[SeenRoute], states: &[(&str, bool)]) -> Vec<String> {
        let hop = |hop: &NextHop| format!(" {}%{}", hop.address, hop.scope_id.unwrap_or_default());
        underlay(routes, &interfaces(states))
            .iter()
            .map(|(prefix, route)| {
                let via: String = route.via.iter().map(hop).collect();
                format!("{prefix} at {}{via} {}", route.metric, route.links.join("+"))
            })
            .collect()
    }

    #[test]
    fn routes_over_links_that_pass_packets_count_the_nearest_first() {
        let routes = [
            route("192.0.2.0/24", 0, &[("", "eth0")]),
            route("0.0.0.0/0", 200, &[("198.51.100.1", "eth1")]),
            route("0.0.0.0/0", 100, &[("192.0.2.1", "eth0")]),
            route(
                "10.0.0.0/8",
                20,
                &[("192.0.2.2", "eth0"), ("198.51.100.2", "eth1")],
            ),
            route("2001:db8::/32", 1024, &[("fe80::1", "eth1")]),
            route("203.0.113.0/24", 0, &[("", "gone0")]),
        ];
        let both = lines(&routes, &[("eth0", true), ("eth1", true)]);
        assert_eq!(
            both,
            [
                "0.0.0.0/0 at 100 192.0.2.1%0 eth0",
                "10.0.0.0/8 at 20 192.0.2.2%0 198.51.100.2%0 eth0+eth1",
                "192.0.2.0/24 at 0 eth0",
                "2001:db8::/32 at 1024 fe80::1%2 eth1",
            ]
        );
        let second = lines(&routes, &[("eth0", false), ("eth1", true)]);
        assert_eq!(
            second,
            [
                "0.0.0.0/0 at 200 198.51.100.1%0 eth1",
                "10.0.0.0/8 at 20 198.51.100.2%0 eth1",
                "2001:db8::/32 at 1024 fe80::1%2 eth1",
            ]
        );
    }

    #[test]
    fn what_is_ours_or_on_every_link_or_in_another_table_does_not_concern_it() {
        let key = |destination: &str, table| RouteKey {
            table,
            ..RouteKey::main(destination.parse().unwrap())
        };
        for (destination, table, protocol, expected) in [
            ("10.0.0.0/8", MAIN_TABLE, 4, true),
            ("10.0.0.0/8", MAIN_TABLE, crate::ours::ROUTE_PROTOCOL_BGP, false),
            ("10.0.0.0/8", 255, 2, false),
            ("fe80::/64", MAIN_TABLE, 2, false),
            ("ff00::/8", MAIN_TABLE, 2, false),
            ("::/0", MAIN_TABLE, 9, true),
        ] {
            assert_eq!(
                concerns(&key(destination, table), protocol),
                expected,
                "{destination}"
            );
        }
    }
}
