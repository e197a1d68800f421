//! What should be, computed from the model: pure. One file a kind, paired with the file of the same name in `apply/`.

mod addresses;
mod bgp;
mod cluster;
mod links;
mod mtu;
mod neighbors;
mod next_hops;
mod nft;
mod node;
mod part;
pub mod peering;
mod proxy_neighbors;
mod routes;
mod rules;
pub(crate) mod sysctl;
mod tunnels;
mod workloads;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use ipnetwork::IpNetwork;

use crate::model::{Model, TunnelKind};

pub use addresses::LinkAddress;
pub use bgp::Announcement;
pub use mtu::DEFAULT_MTU;
pub use neighbors::{NeighborKey, NeighborSubject, NeighborTarget};
pub use node::Published;
pub use part::{Part, Scope, part};
pub use proxy_neighbors::ProxyNeighbor;
pub use routes::default_prefix;
pub use rules::{Rule, RuleAction, are_safe};
pub use tunnels::{Transport, Tunnel, TunnelPeers, TunnelPools, VXLAN_PORT, VXLAN_VNI, vxlan_mac};
pub use workloads::{HostPortKey, HostPortTarget, Workload};

/// Metric of routes of ours, in both families: Felix's normal priority, which leaves room for preferred routes and lets
/// routes that an operator made by hand win.
pub const ROUTE_PRIORITY: u32 = 1024;

/// Metric of routes to a workload that has migrated here, for a while (Felix's elevated priority).
pub const MIGRATION_PRIORITY: u32 = 512;

/// Routing table `main`.
pub const MAIN_TABLE: u32 = 254;

/// What the kernel and the BGP speaker should have.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Desired {
    /// Host ends of the workloads.
    pub links: BTreeMap<String, HostLink>,
    /// Routes of ours.
    pub routes: BTreeMap<RouteKey, Route>,
    /// Rules that lead to tables of routes.
    pub rules: BTreeSet<Rule>,
    /// Kernel parameters: path below `/proc/sys` to value.
    pub sysctls: BTreeMap<String, String>,
    /// Source ranges to be translated when the destination is outside `nat_exempt`. No range lies in another.
    pub nat_sources: BTreeSet<IpNetwork>,
    /// Destinations inside the cluster: all pools. No range lies in another.
    pub nat_exempt: BTreeSet<IpNetwork>,
    /// Nodes, to which nothing is translated either, if the operator wants it so.
    pub nat_exempt_nodes: BTreeSet<IpAddr>,
    /// What workloads may send, by host interface. Interfaces with our prefix that are not here are closed.
    pub workloads: BTreeMap<String, Workload>,
    /// Ports of the node that lead to workloads.
    pub host_ports: BTreeMap<HostPortKey, HostPortTarget>,
    /// Prefixes to announce by BGP.
    pub announcements: BTreeMap<IpNetwork, Announcement>,
    /// Tunnel devices by name.
    pub tunnels: BTreeMap<String, Tunnel>,
    /// Who may send to the tunnels' ends on this node. Kinds without a device are absent.
    pub tunnel_peers: BTreeMap<TunnelKind, TunnelPeers>,
    /// Addresses of tunnel devices, and of host ends.
    pub addresses: BTreeSet<LinkAddress>,
    /// Neighbours on the tunnel devices, which are permanent; and of the workloads, which become so once the kernel has learnt them.
    pub neighbors: BTreeMap<NeighborKey, NeighborTarget>,
    /// Addresses that the node answers for on its uplinks.
    pub proxy_neighbors: BTreeSet<ProxyNeighbor>,
    /// Tunnel devices of which it is not known yet whether they are wanted: they stay as they are.
    pub undecided_tunnels: BTreeSet<String>,
    /// What this node says of itself, once the tunnels are as they should be.
    pub published: Published,
    /// Pools, by range, whose packets go through a tunnel of each kind: its address is to come from one of them.
    pub tunnel_pools: TunnelPools,
    /// MTU of pods' interfaces in bytes.
    pub pod_mtu: u32,
}

/// Computes everything from the model.
#[must_use]
pub fn compute(model: &Model) -> Desired {
    let (nat_sources, nat_exempt) = nft::nat(model);
    let tunnels = tunnels::tunnels(model);
    let routes = routes::routes(model, &tunnels);
    let proxy_neighbors = proxy_neighbors::of_workloads(model, model.endpoints.values());
    Desired {
        links: links::links(model, model.endpoints.values()),
        rules: rules::rules(model, &routes),
        routes,
        sysctls: sysctl::sysctls(model, &tunnels, &proxy_neighbors),
        proxy_neighbors,
        nat_sources,
        nat_exempt,
        nat_exempt_nodes: nft::exempt_nodes(model),
        workloads: workloads::workloads(model, model.endpoints.values()),
        host_ports: workloads::host_ports(model),
        announcements: announcements(model),
        tunnel_peers: tunnels::peers(model, &tunnels),
        addresses: addresses::addresses(model, &tunnels),
        neighbors: neighbors::neighbors(model, &tunnels),
        undecided_tunnels: tunnels::undecided(model, &tunnels),
        published: node::published(model, &tunnels),
        tunnel_pools: tunnels::pools(model),
        pod_mtu: mtu::of_pods(model),
        tunnels,
    }
}

/// Prefixes to announce by BGP.
#[must_use]
pub fn announcements(model: &Model) -> BTreeMap<IpNetwork, Announcement> {
    bgp::announcements(model)
}

/// Tunnel devices by name.
#[must_use]
pub fn tunnels(model: &Model) -> BTreeMap<String, Tunnel> {
    tunnels::tunnels(model)
}

/// What the host end of a workload should be. It is created and removed by the CNI server, and kept right by us.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HostLink {
    /// Its MAC address.
    pub mac: [u8; 6],
}

/// What makes a route one route in the kernel.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct RouteKey {
    /// Routing table, 254 for main.
    pub table: u32,
    /// Destination, host bits zero.
    pub destination: IpNetwork,
    /// Metric (`priority`), never 0: IPv6 has no 0, there it stands for 1024.
    pub priority: u32,
}

impl RouteKey {
    /// A route of ours to `destination` in the main table.
    #[must_use]
    pub fn main(destination: IpNetwork) -> Self {
        Self {
            table: MAIN_TABLE,
            destination,
            priority: ROUTE_PRIORITY,
        }
    }
}

/// A route of ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// Which source it follows from.
    pub origin: RouteOrigin,
    /// Where it leads.
    pub path: RoutePath,
}

/// Which source a route follows from. Kept in the kernel as the route's protocol, so that a fresh process knows
/// which source must be in sync before the route may be changed or deleted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum RouteOrigin {
    /// The datastore: workloads and own blocks.
    Local,
    /// Learned by BGP.
    Bgp,
    /// The datastore: blocks of other nodes.
    Cluster,
}

/// Where a route leads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RoutePath {
    /// Straight to a link, scope link: a workload.
    Link {
        /// Interface name.
        interface: String,
    },
    /// Through one or several gateways. Several on links that are known have a nexthop group in the kernel, others make a multipath
    /// route (`apply/nexthops.rs`).
    Via {
        /// The gateways, at least one.
        gateways: Gateways,
    },
    /// As a nexthop group of the kernel says: never desired, but what [`Self::Via`] becomes on the way to the kernel.
    Group {
        /// The group's number.
        id: u32,
    },
    /// Through a gateway that is taken to be on the link, whatever its address: a tunnel, or a node of our subnet.
    Onlink {
        /// The gateway.
        gateway: IpAddr,
        /// Interface name.
        interface: String,
    },
    /// Dropped silently: unused addresses of own blocks, so that they do not loop through the default route.
    Blackhole,
}

/// Gateways of a route, shared: a full table has few different sets of them.
pub type Gateways = Arc<BTreeSet<Gateway>>;

/// One gateway of a route.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Gateway {
    /// Its address. An IPv6 gateway of an IPv4 route is allowed (RFC 8950).
    pub address: IpAddr,
    /// Interface, where the address alone does not say. `None`: the kernel finds it.
    pub interface: Option<String>,
}

impl RoutePath {
    /// Through these gateways.
    pub fn via(gateways: impl IntoIterator<Item = Gateway>) -> Self {
        let gateways = Arc::new(gateways.into_iter().collect());
        Self::Via { gateways }
    }
}

impl fmt::Display for HostLink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.mac;
        write!(f, "up address {a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Display for RouteKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} metric {}", self.destination, self.priority)?;
        if self.table == MAIN_TABLE {
            Ok(())
        } else {
            write!(f, " table {}", self.table)
        }
    }
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.path, self.origin)
    }
}

impl fmt::Display for RouteOrigin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Local => "local",
            Self::Bgp => "bgp",
            Self::Cluster => "cluster",
        })
    }
}

impl fmt::Display for RoutePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Link { interface } => write!(f, "dev {interface}"),
            Self::Onlink { gateway, interface } => write!(f, "via {gateway} dev {interface} onlink"),
            Self::Blackhole => f.write_str("blackhole"),
            Self::Group { id } => write!(f, "nhid {id}"),
            Self::Via { gateways } => {
                for (position, gateway) in gateways.iter().enumerate() {
                    write!(
                        f,
                        "{}via {}",
                        if position == 0 { "" } else { " " },
                        gateway.address
                    )?;
                    if let Some(interface) = &gateway.interface {
                        write!(f, " dev {interface}")?;
                    }
                }
                Ok(())
            }
        }
    }
}

#[cfg(test)]
mod cluster_tests;
#[cfg(test)]
mod part_tests;
#[cfg(test)]
mod tests;
