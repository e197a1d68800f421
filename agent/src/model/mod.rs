//! What the agent knows. Functions of current state only: no history, no I/O, no locks.
//!
//! One thread owns the [`Model`]; everything in it came in as an [`Input`].

mod absorb;
mod cluster;
pub mod detection;
mod endpoint;
mod endpoints;
mod input;
mod interface;
mod migration;
mod node;
pub mod peering;
mod pool;
mod settings;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnetwork::IpNetwork;

pub use absorb::{Affected, Unechoed};
pub use cluster::{Cluster, ClusterBlock};
pub use endpoint::{Endpoint, EndpointId, HostPort, Protocol};
pub use endpoints::Endpoints;
pub use input::{DatastoreSnapshot, Input};
pub use interface::Interface;
pub use migration::{MigrationPhase, MigrationRole, Migrations};
pub use node::{NodeFacts, TunnelKind, Vtep};
pub use pool::{Encapsulation, Pool};
pub use settings::{NatExclusions, Settings};

/// Everything the agent knows about this node and its cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Model {
    /// This node's name in the datastore.
    pub node_name: String,
    /// IP pools by resource name.
    pub pools: BTreeMap<String, Pool>,
    /// Blocks whose affinity to this node is *confirmed*. Pending ones are absent: they must not be routed or
    /// announced (Calico's affinity protocol).
    pub own_blocks: BTreeSet<IpNetwork>,
    /// Workloads on this node.
    pub endpoints: Endpoints,
    /// Workloads that are migrating to this node.
    pub migrations: Migrations,
    /// Best routes that BGP selected, to be installed.
    pub learned: BTreeMap<IpNetwork, Learned>,
    /// BGP peers that are to be reached through a gateway, and the gateway.
    pub peer_gateways: BTreeMap<IpAddr, IpAddr>,
    /// Addresses that workloads open BGP sessions to, by the host end that is to have them.
    pub workload_peering: BTreeMap<String, BTreeSet<IpAddr>>,
    /// Names of the links the kernel has on this node.
    pub links: BTreeSet<String>,
    /// What the operator decided.
    pub settings: Settings,
    /// The node's interfaces by name, without those of workloads.
    pub interfaces: BTreeMap<String, Interface>,
    /// What helps to find the node's own address.
    pub hints: detection::Hints,
    /// The node's own addresses as last found: IPv4, IPv6. They stay when a link goes down.
    pub detected: [Option<IpNetwork>; 2],
    /// The other nodes and their blocks. Empty while they are not needed.
    pub cluster: Cluster,
    /// Whether these are all of them.
    pub is_cluster_known: bool,
    /// Addresses of this node's tunnels. A kind that is missing is not decided yet; `None`: there is to be no such tunnel.
    pub tunnel_addresses: BTreeMap<TunnelKind, Option<IpAddr>>,
    /// Which sources have delivered a first complete picture.
    pub in_sync: InSync,
    /// What this agent wrote and the datastore has not repeated yet.
    pub unechoed: Unechoed,
    /// Whether workloads may send from source ranges that their pods' annotations name.
    pub source_spoofing: SourceSpoofing,
}

/// Whether workloads may send from source ranges that their pods' annotations name (Felix's `WorkloadSourceSpoofing`).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SourceSpoofing {
    /// They send with their own addresses only, whatever the annotation says.
    #[default]
    Disabled,
    /// `cni.projectcalico.org/allowedSourcePrefixes` is honoured: whoever may make pods may send from anywhere.
    Any,
}

/// A route that BGP selected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Learned {
    /// Where packets go.
    pub path: LearnedPath,
    /// Its metric in the kernel, if a policy set one; not 0.
    pub priority: Option<u32>,
}

impl Learned {
    /// Through these neighbours, with the usual metric; `None` when there is none.
    #[must_use]
    pub fn via(next_hops: BTreeSet<NextHop>) -> Option<Self> {
        (!next_hops.is_empty()).then_some(Self {
            path: LearnedPath::Via(next_hops),
            priority: None,
        })
    }
}

/// Where packets of a learned route go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LearnedPath {
    /// To these neighbours, at least one.
    Via(BTreeSet<NextHop>),
    /// Nowhere: they are dropped, as the peer asked (RFC 7999).
    Blackhole,
}

/// One next hop of a learned route.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct NextHop {
    /// Address of the gateway.
    pub address: IpAddr,
    /// Outgoing interface, where the gateway alone does not say (link-local next hops).
    pub interface: Option<String>,
}

/// The first of the two gates: nothing is deleted from the kernel before every source concerned is in sync.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct InSync {
    /// The datastore delivered a whole snapshot since the agent started.
    pub datastore: bool,
    /// Every BGP peer sent its table, or its time to do so is over.
    pub bgp: bool,
    /// Other nodes and blocks are known, as far as they are needed.
    pub cluster: bool,
}

impl Model {
    /// A model that knows nothing but the node's name.
    #[must_use]
    pub fn new(node_name: String) -> Self {
        Self {
            node_name,
            pools: BTreeMap::new(),
            own_blocks: BTreeSet::new(),
            endpoints: Endpoints::default(),
            migrations: Migrations::default(),
            learned: BTreeMap::new(),
            peer_gateways: BTreeMap::new(),
            workload_peering: BTreeMap::new(),
            links: BTreeSet::new(),
            settings: Settings::default(),
            interfaces: BTreeMap::new(),
            hints: detection::Hints::default(),
            detected: [None; 2],
            cluster: Cluster::default(),
            is_cluster_known: false,
            tunnel_addresses: BTreeMap::new(),
            in_sync: InSync::default(),
            unechoed: Unechoed::default(),
            source_spoofing: SourceSpoofing::default(),
        }
    }

    /// The node's own address of a family, with the prefix length of its subnet: the configured one, or the one found.
    #[must_use]
    pub fn own_address(&self, is_ipv6: bool) -> Option<IpNetwork> {
        let [v4, v6] = self.detected;
        let (configured, detected) = if is_ipv6 {
            (self.settings.ipv6_address.map(IpNetwork::V6), v6)
        } else {
            (self.settings.ipv4_address.map(IpNetwork::V4), v4)
        };
        configured.or(detected)
    }

    /// Name of the interface that has this address.
    #[must_use]
    pub fn interface_with(&self, address: IpAddr) -> Option<&str> {
        self.interfaces
            .iter()
            .find(|(_, interface)| interface.addresses.iter().any(|found| found.ip() == address))
            .map(|(name, _)| name.as_str())
    }

    /// Whether the other nodes and their blocks must be known: for routes that the datastore says, for a tunnel, also one that
    /// stands only for those that have not heard that no pool uses it any more, or for what is not translated.
    #[must_use]
    pub fn needs_cluster(&self) -> bool {
        self.settings.direct_routes
            || self.settings.nat_exclusions == NatExclusions::IpPoolsAndHostIps
            || self.tunnel_addresses.values().any(Option::is_some)
            || self
                .pools
                .values()
                .any(|pool| pool.encapsulation != Encapsulation::None)
    }

    /// Every node but this one.
    pub fn other_nodes(&self) -> impl Iterator<Item = &NodeFacts> {
        self.cluster
            .nodes
            .iter()
            .filter(|(name, _)| **name != self.node_name)
            .map(|(_, node)| node)
    }

    /// Takes in which links the kernel has, by name, and what they are; whether the node's interfaces are not what they were.
    pub fn observe<'a>(
        &mut self,
        links: impl Iterator<Item = &'a String> + Clone,
        interfaces: BTreeMap<String, Interface>,
    ) -> bool {
        if !links.clone().eq(&self.links) {
            self.links = links.cloned().collect();
        }
        let is_new = self.interfaces != interfaces;
        self.interfaces = interfaces;
        is_new
    }

    /// Looks for the node's own addresses again. What is not found now stays what it was.
    pub fn detect(&mut self) {
        for (is_ipv6, method) in [
            (false, &self.settings.ipv4_detection),
            (true, &self.settings.ipv6_detection),
        ] {
            let found = method
                .as_ref()
                .and_then(|method| method.choose(is_ipv6, &self.interfaces, &self.hints));
            if found.is_some() {
                let [v4, v6] = &mut self.detected;
                *(if is_ipv6 { v6 } else { v4 }) = found;
            }
        }
    }
}
