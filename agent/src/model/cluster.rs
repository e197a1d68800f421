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

impl Cluster {
    /// The blocks that hold an address: one, unless pools overlap or a pool's block size has been changed.
    pub fn blocks_with(&self, address: IpAddr) -> impl Iterator<Item = (IpNetwork, &ClusterBlock)> {
        let longest = if address.is_ipv4() { 32 } else { 128 };
        (0..=longest).filter_map(move |prefix| {
            let network = IpNetwork::new(address, prefix).ok()?.network();
            let block = IpNetwork::new(network, prefix).ok()?;
            Some((block, self.blocks.get(&block)?))
        })
    }
}

/// Whose the addresses of a block are.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ClusterBlock {
    /// The node that has the block; `None`: no node has.
    pub owner: Option<String>,
    /// Addresses in use on another node than the owner.
    pub borrowed: BTreeMap<IpAddr, String>,
}
