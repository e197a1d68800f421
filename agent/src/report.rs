//! What the agent says of itself: plain values, printed as a table for people or as JSON for programs.
//!
//! Invariants: the JSON form only grows ([`StatusReport::FORMAT`] changes otherwise); ages and counts, no internal state.

mod compose;
pub(crate) mod table;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};

pub use compose::{NodeStatus, Parts};

/// The agent at one moment.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StatusReport {
    /// [`StatusReport::FORMAT`] of whoever wrote this.
    pub format: u32,
    /// This node's name in the datastore.
    pub node: String,
    /// Version of the agent.
    pub version: String,
    /// Process ID of the agent.
    pub pid: u32,
    /// Seconds since the agent started.
    pub uptime_seconds: u64,
    /// Why pods cannot be served now; empty when they can.
    pub not_ready: Vec<String>,
    /// The datastore.
    pub datastore: DatastoreReport,
    /// Whether the datastore's content is known, so that its absence from the model means something.
    pub datastore_in_sync: bool,
    /// Whether every BGP peer sent its routes, or its time to do so is over.
    pub bgp_in_sync: bool,
    /// IP pools by name.
    pub pools: BTreeMap<String, PoolReport>,
    /// Tunnels of this node.
    #[serde(default)]
    pub tunnels: Vec<TunnelReport>,
    /// Address blocks of this node.
    pub own_blocks: Vec<BlockReport>,
    /// Containers attached on this node.
    pub endpoints: Vec<EndpointReport>,
    /// Routes that BGP found best, with their next hops.
    pub learned_routes: BTreeMap<IpNetwork, Vec<IpAddr>>,
    /// The BGP speaker, if there is one.
    pub bgp: Option<BgpReport>,
    /// What was done to the kernel.
    pub dataplane: DataplaneReport,
    /// The CNI server.
    pub cni: CniReport,
}

/// The connection to the datastore.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DatastoreReport {
    /// Its endpoints.
    pub endpoints: Vec<String>,
    /// Whether the watch is connected.
    pub connected: bool,
    /// Revision up to which everything is known; 0 before the first connection.
    pub revision: i64,
    /// Why it is not connected.
    pub error: Option<String>,
    /// How many values there are that could not be read (the log names them).
    pub malformed_values: u64,
}

/// A pool.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolReport {
    /// Its addresses.
    pub cidr: IpNetwork,
    /// Whether pods of the pool appear with the node's address outside all pools.
    pub nat_outgoing: bool,
    /// How packets to other nodes travel: `none`, `ipip-always`, ….
    pub encapsulation: String,
    /// Whether its blocks are kept out of BGP.
    pub disable_bgp_export: bool,
}

/// A tunnel device of this node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TunnelReport {
    /// Name of the device.
    pub device: String,
    /// What it carries packets in: `vxlan` or `ipip`.
    pub mode: String,
    /// `up`, `down` or `missing`, as the kernel has it.
    pub state: String,
    /// Network identifier of a VXLAN.
    pub vni: Option<u32>,
    /// UDP port of a VXLAN.
    pub port: Option<u16>,
    /// Address of the device.
    pub address: Option<IpAddr>,
    /// The node's address, from which it sends.
    pub local: Option<IpAddr>,
    /// MTU in bytes, as the kernel has it; `None` for one that is missing.
    pub mtu: Option<u32>,
    /// The other nodes that have such a tunnel, by name.
    pub remotes: BTreeMap<String, RemoteReport>,
}

/// The other end of a tunnel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RemoteReport {
    /// Address of its device.
    pub address: IpAddr,
    /// Address of the node.
    pub node: IpAddr,
}

/// A block of this node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockReport {
    /// The block.
    pub cidr: IpNetwork,
    /// Addresses of it that containers on this node have.
    pub used_here: usize,
    /// Whether BGP is asked to announce it.
    pub announced: bool,
}

/// An attached container.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndpointReport {
    /// Network name.
    pub network: String,
    /// Container ID.
    pub container_id: String,
    /// Interface name in the container.
    pub ifname: String,
    /// Interface name on the host.
    pub host_interface: String,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// Kubernetes namespace.
    pub namespace: Option<String>,
    /// Kubernetes pod.
    pub pod: Option<String>,
}

/// The BGP speaker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BgpReport {
    /// Our AS.
    pub local_as: u32,
    /// Our BGP Identifier.
    pub router_id: Ipv4Addr,
    /// Prefixes we announce as our own.
    pub originated: Vec<IpNetwork>,
    /// The peers, by name.
    pub peers: Vec<PeerReport>,
}

/// A BGP peer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerReport {
    /// Its name.
    pub name: String,
    /// Its address.
    pub address: IpAddr,
    /// Its AS.
    pub remote_as: u32,
    /// State of the session, as RFC 4271 names it.
    pub state: String,
    /// Seconds in that state.
    pub since_seconds: u64,
    /// Routes received.
    pub received: usize,
    /// Of these, accepted by the import policy.
    pub accepted: usize,
    /// Routes announced to it.
    pub announced: usize,
    /// How often the session was Established.
    pub established_count: u64,
    /// Why the last session or attempt ended.
    pub last_error: Option<String>,
}

/// What was done to the kernel since the start, and what failed last.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DataplaneReport {
    /// Turns of the loop since the start.
    pub turns: u64,
    /// Operations that changed the kernel since the start.
    pub operations: u64,
    /// Operations of the last turn that had any.
    pub last_operations: Vec<String>,
    /// What could not be done in the last turn, to be tried again.
    pub failures: Vec<String>,
}

/// The CNI server.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CniReport {
    /// Requests answered since the start.
    pub answered: u64,
    /// Of these, with an error.
    pub failed: u64,
    /// Requests being worked on or waiting.
    pub in_progress: u64,
}

impl StatusReport {
    /// Version of the form.
    pub const FORMAT: u32 = 1;
}
