//! The node's own interfaces, without those of workloads.

use ipnetwork::IpNetwork;

/// What is observed of an interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interface {
    /// Index; the order in which the interfaces came to be.
    pub index: u32,
    /// Whether it is administratively up.
    pub up: bool,
    /// Whether it passes packets: it is up, and so is what lies below it.
    pub running: bool,
    /// MTU in bytes.
    pub mtu: u32,
    /// Addresses that others can reach, in the kernel's order, with the prefix length of their subnet.
    pub addresses: Vec<IpNetwork>,
}
