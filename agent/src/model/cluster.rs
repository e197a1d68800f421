//! The other nodes and their blocks, as far as this node has to route to them by itself.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnetwork::IpNetwork;

use super::NodeFacts;

/// Nodes and blocks of the cluster.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Cluster {
    /// Nodes by name, this one too.
    pub nodes: BTreeMap<String, NodeFacts>,
    /// Blocks by range, this node's too.
    pub blocks: BTreeMap<IpNetwork, ClusterBlock>,
}

/// Whose the addresses of a block are.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ClusterBlock {
    /// The node that has the block; `None`: no node has.
    pub owner: Option<String>,
    /// Addresses in use on another node than the owner.
    pub borrowed: BTreeMap<IpAddr, String>,
}
