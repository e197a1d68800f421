//! What Calico's resources say about BGP sessions: BGPConfiguration, BGPPeer, BGPFilter, and the nodes and pools they speak of.
//!
//! Fields have the names and meanings of Calico's API (projectcalico.org/v3), in our spelling. What of a resource is not honoured is kept by
//! name in `unsupported`, so that it can be told.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use calidris_bgp::wire::attr::{Community, LargeCommunity};
use calidris_ipam::Selector;
use ipnetwork::IpNetwork;

/// All of it, by resource name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Peering {
    /// `default`, and `node.NAME`.
    pub configurations: BTreeMap<String, BgpConfiguration>,
    /// BGPPeers.
    pub peers: BTreeMap<String, BgpPeer>,
    /// BGPFilters.
    pub filters: BTreeMap<String, BgpFilter>,
    /// Nodes.
    pub nodes: BTreeMap<String, PeeringNode>,
    /// Pools.
    pub pools: BTreeMap<String, PeeringPool>,
}

/// The part of a Node that decides about sessions.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PeeringNode {
    /// `metadata.labels`
    pub labels: BTreeMap<String, String>,
    /// `spec.bgp.ipv4Address`
    pub ipv4: Option<Ipv4Addr>,
    /// `spec.bgp.ipv6Address`
    pub ipv6: Option<Ipv6Addr>,
    /// `spec.bgp.asNumber`; the cluster's when absent.
    pub as_number: Option<u32>,
    /// `spec.bgp.routeReflectorClusterID`: it is a route reflector.
    pub cluster_id: Option<Ipv4Addr>,
}

/// The part of an IPPool that decides what is announced.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeeringPool {
    /// Its range.
    pub cidr: IpNetwork,
    /// `spec.disableBGPExport`
    pub disable_bgp_export: bool,
}

/// A BGPConfiguration.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BgpConfiguration {
    /// `nodeToNodeMeshEnabled`; Calico's default is true.
    pub mesh: Option<bool>,
    /// `asNumber`: of nodes that do not say theirs.
    pub as_number: Option<u32>,
    /// `listenPort`
    pub listen_port: Option<u16>,
    /// `nodeMeshPassword`
    pub mesh_password: Option<SecretKey>,
    /// `nodeMeshMaxRestartTime`
    pub mesh_restart_time: Option<Duration>,
    /// `prefixAdvertisements`, with the names among `communities` replaced by what they stand for.
    pub prefix_advertisements: Vec<PrefixAdvertisement>,
    /// `localWorkloadPeeringIPV4`: what workloads on a node connect to.
    pub workload_ipv4: Option<Ipv4Addr>,
    /// `localWorkloadPeeringIPV6`
    pub workload_ipv6: Option<Ipv6Addr>,
    /// `ipv4NormalRoutePriority`
    pub ipv4_priority: Option<u32>,
    /// `ipv6NormalRoutePriority`
    pub ipv6_priority: Option<u32>,
    /// Fields that are set and not honoured.
    pub unsupported: BTreeSet<String>,
}

/// One of a configuration's `prefixAdvertisements`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PrefixAdvertisement {
    /// Routes in it…
    pub cidr: IpNetwork,
    /// …get these communities.
    pub communities: Vec<AnyCommunity>,
}

/// The part of a WorkloadEndpoint of this node that decides about sessions with it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PeeringWorkload {
    /// `metadata.labels`
    pub labels: BTreeMap<String, String>,
    /// `spec.interfaceName`
    pub interface: String,
    /// The first of `spec.ipNetworks` of each family.
    pub ipv4: Option<Ipv4Addr>,
    /// Likewise.
    pub ipv6: Option<Ipv6Addr>,
}

/// Peers that are workloads here, and the host end that leads to each.
pub type WorkloadPeers = BTreeMap<IpAddr, String>;

/// Endpoints of this node, by key.
pub type PeeringWorkloads = BTreeMap<String, PeeringWorkload>;

/// A BGPPeer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BgpPeer {
    /// Which nodes have the session.
    pub nodes: NodesOfPeer,
    /// With whom.
    pub remote: RemoteOfPeer,
    /// `nextHopMode`, or what the older `keepOriginalNextHop` says.
    pub next_hop: PeerNextHop,
    /// `password`
    pub password: Option<SecretKey>,
    /// `sourceAddress` is not `None`: the session is from the node's address.
    pub from_node_address: bool,
    /// `maxRestartTime`
    pub restart_time: Option<Duration>,
    /// `keepaliveTime`
    pub keepalive_time: Option<Duration>,
    /// `numAllowedLocalASNumbers`
    pub allow_own_as: u8,
    /// `ttlSecurity`
    pub ttl_security: Option<u8>,
    /// `reachableBy`: the gateway to the peer.
    pub reachable_by: Option<IpAddr>,
    /// `filters`, in order.
    pub filters: Vec<String>,
    /// `localASNumber`
    pub local_as: Option<u32>,
    /// `reversePeering` is not `Manual`: nodes it names as remote have the session back without a BGPPeer of their own.
    pub reverse: bool,
    /// Fields that are set and not honoured.
    pub unsupported: BTreeSet<String>,
}

/// The nodes that a BGPPeer is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NodesOfPeer {
    /// Neither `node` nor `nodeSelector`.
    All,
    /// `node`
    Named(String),
    /// `nodeSelector`
    Selected(Selector),
}

/// With whom the nodes of a BGPPeer have sessions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RemoteOfPeer {
    /// `peerIP` and `asNumber`; no AS number: that of the cluster.
    Address {
        /// The address.
        address: IpAddr,
        /// The port, if it is said.
        port: Option<u16>,
        /// The AS.
        as_number: Option<u32>,
    },
    /// `peerSelector`: nodes of this cluster.
    Selected(Selector),
    /// `localWorkloadSelector` and `asNumber`: workloads on the node itself.
    Workloads {
        /// Which, by the labels of their endpoints.
        selector: Selector,
        /// Their AS.
        as_number: u32,
    },
}

/// `nextHopMode`
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum PeerNextHop {
    /// As BGP has it.
    #[default]
    Auto,
    /// Always this node.
    Itself,
    /// Always as received.
    Keep,
    /// `keepOriginalNextHop`: as received, towards other ASes.
    KeepOutside,
}

/// A key of a Secret.
#[derive(Debug, Clone, PartialEq, Eq, serde::Deserialize)]
pub struct SecretKey {
    /// The Secret.
    pub name: String,
    /// The key in it.
    pub key: String,
}

/// A BGPFilter: rules by direction and family.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BgpFilter {
    /// `importV4` and `importV6`.
    pub import: Vec<FilterRule>,
    /// `exportV4` and `exportV6`.
    pub export: Vec<FilterRule>,
}

/// One rule of a filter, with its place for whoever asks why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FilterRule {
    /// `importV4[0]`
    pub place: String,
    /// Whether it is for IPv6 routes; else for IPv4 ones.
    pub is_ipv6: bool,
    /// `cidr`, `matchOperator` and `prefixLength`.
    pub cidr: Option<CidrMatch>,
    /// `source: RemotePeers`: routes of peers only.
    pub from_peers: bool,
    /// `interface`; `*` stands for any text.
    pub interface: Option<String>,
    /// `peerType` is `eBGP` (true) or `iBGP` (false).
    pub ebgp: Option<bool>,
    /// `communities.values`: all of them.
    pub communities: Vec<AnyCommunity>,
    /// `asPathPrefix`
    pub as_path_prefix: Vec<u32>,
    /// `priority`
    pub priority: Option<u32>,
    /// `action` is `Accept`.
    pub accept: bool,
    /// `operations`, in order.
    pub operations: Vec<FilterOperation>,
}

/// How a route's prefix is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CidrMatch {
    /// `cidr`
    pub cidr: IpNetwork,
    /// `matchOperator` is `Equal` or `NotEqual`; else `In` or `NotIn`.
    pub exact: bool,
    /// `matchOperator` is `NotEqual` or `NotIn`.
    pub negated: bool,
    /// `prefixLength.min`
    pub min_length: Option<u8>,
    /// `prefixLength.max`
    pub max_length: Option<u8>,
}

/// A community of two or of three numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AnyCommunity {
    /// `65000:1`
    Standard(Community),
    /// `65000:1:2`
    Large(LargeCommunity),
}

/// One of a rule's `operations`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FilterOperation {
    /// `addCommunity`
    AddCommunity(AnyCommunity),
    /// `prependASPath`: the first one ends up foremost.
    PrependAsPath(Vec<u32>),
    /// `setPriority`
    SetPriority(u32),
}

impl std::str::FromStr for AnyCommunity {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.matches(':').count() == 2 {
            let large: Result<LargeCommunity, _> = text.parse();
            large.map(Self::Large).map_err(|error| error.to_string())
        } else {
            let standard: Result<Community, _> = text.parse();
            standard.map(Self::Standard).map_err(|error| error.to_string())
        }
    }
}

impl Peering {
    /// The Secrets that are named, each as often as it is.
    #[must_use]
    pub fn secrets(&self) -> Vec<&SecretKey> {
        let of_meshes = self.configurations.values().map(|found| &found.mesh_password);
        let of_peers = self.peers.values().map(|peer| &peer.password);
        of_meshes.chain(of_peers).flatten().collect()
    }

    /// Whether a BGPPeer is about workloads.
    #[must_use]
    pub fn selects_workloads(&self) -> bool {
        let is_about_workloads = |peer: &BgpPeer| matches!(peer.remote, RemoteOfPeer::Workloads { .. });
        self.peers.values().any(is_about_workloads)
    }
}

impl PeeringNode {
    /// Its address of a family.
    #[must_use]
    pub fn address(&self, is_ipv6: bool) -> Option<IpAddr> {
        of_family(self.ipv4, self.ipv6, is_ipv6)
    }
}

impl PeeringWorkload {
    /// Its address of a family.
    #[must_use]
    pub fn address(&self, is_ipv6: bool) -> Option<IpAddr> {
        of_family(self.ipv4, self.ipv6, is_ipv6)
    }
}

impl BgpConfiguration {
    /// What workloads connect to over a family.
    #[must_use]
    pub fn workload_address(&self, is_ipv6: bool) -> Option<IpAddr> {
        of_family(self.workload_ipv4, self.workload_ipv6, is_ipv6)
    }
}

fn of_family(ipv4: Option<Ipv4Addr>, ipv6: Option<Ipv6Addr>, is_ipv6: bool) -> Option<IpAddr> {
    if is_ipv6 {
        ipv6.map(IpAddr::V6)
    } else {
        ipv4.map(IpAddr::V4)
    }
}
