//! An IP pool as the dataplane sees it.

use ipnetwork::IpNetwork;

/// The part of Calico's `IPPool` that decides how packets flow.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Pool {
    /// Range of the pool, host bits zero.
    pub cidr: IpNetwork,
    /// Whether packets from this pool to outside all pools leave with the node's address.
    pub nat_outgoing: bool,
    /// How packets to other nodes travel.
    pub encapsulation: Encapsulation,
    /// Whether blocks of this pool are kept out of BGP.
    pub disable_bgp_export: bool,
}

/// Encapsulation mode of a pool (`ipipMode`, `vxlanMode`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Encapsulation {
    /// Plain routing.
    None,
    /// IPIP to every node.
    IpipAlways,
    /// IPIP to nodes in other subnets.
    IpipCrossSubnet,
    /// VXLAN to every node.
    VxlanAlways,
    /// VXLAN to nodes in other subnets.
    VxlanCrossSubnet,
}
