//! The part of the configuration that decides what is wanted of the kernel.

use ipnetwork::{Ipv4Network, Ipv6Network};

use super::detection::{Method, Pattern};

/// Names of uplinks, as Felix knows them (`MTUIfacePattern`).
const UPLINKS: &str = "^((en|wl|ww|sl|ib)[Pcopsvx].*|(eth|wlan|wwan).*)";

/// What the operator decided.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// The node's IPv4 address, if it is not to be found.
    pub ipv4_address: Option<Ipv4Network>,
    /// The node's IPv6 address, if it is not to be found.
    pub ipv6_address: Option<Ipv6Network>,
    /// How to find the IPv4 address.
    pub ipv4_detection: Option<Method>,
    /// How to find the IPv6 address.
    pub ipv6_detection: Option<Method>,
    /// Whether blocks in pools without encapsulation, of nodes in our own subnet, get their routes from the datastore.
    pub direct_routes: bool,
    /// MTU of pods' interfaces in bytes, if it is not to be found.
    pub pod_mtu: Option<u32>,
    /// Which interfaces are uplinks.
    pub uplinks: Pattern,
    /// Routing table of routes through other nodes and of learned ones; 254 for main.
    pub remote_route_table: u32,
    /// Priority of the first of the two rules that lead to that table, unless it is main.
    pub rule_priority: u32,
    /// Whether the node answers on its uplinks for addresses of workloads that lie in their subnets.
    pub proxy_neighbors: bool,
    /// Where pods' packets go untranslated.
    pub nat_exclusions: NatExclusions,
}

/// Destinations for which packets from pools with `natOutgoing` are not translated (Felix's `NATOutgoingExclusions`, in its
/// words).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Deserialize)]
pub enum NatExclusions {
    /// All pools.
    #[default]
    #[serde(rename = "IPPoolsOnly")]
    IpPools,
    /// All pools, and the nodes' own addresses: for clusters whose nodes have routes to the pods.
    #[serde(rename = "IPPoolsAndHostIPs")]
    IpPoolsAndHostIps,
}

impl Default for Settings {
    #[expect(
        clippy::expect_used,
        reason = "a constant, which every test that makes a model tries"
    )]
    fn default() -> Self {
        Self {
            ipv4_address: None,
            ipv6_address: None,
            ipv4_detection: None,
            ipv6_detection: None,
            direct_routes: false,
            pod_mtu: None,
            uplinks: Pattern::parse(UPLINKS).expect("the constant is a regular expression"),
            remote_route_table: 254,
            rule_priority: 32000,
            proxy_neighbors: false,
            nat_exclusions: NatExclusions::default(),
        }
    }
}
