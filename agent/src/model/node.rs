//! What a node says of itself in its Node resource, and what follows from it for packets to that node.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnetwork::{IpNetwork, Ipv4Network, Ipv6Network};

use crate::ours;

/// Kinds of tunnel. One device of each kind on a node, at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum TunnelKind {
    /// IPv4 in IPv4.
    Ipip,
    /// VXLAN between IPv4 addresses, for IPv4 pools.
    VxlanV4,
    /// VXLAN between IPv6 addresses, for IPv6 pools.
    VxlanV6,
}

/// The part of Calico's `Node` that decides how packets reach it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NodeFacts {
    /// Its IPv4 address with the prefix length of its subnet (`spec.bgp.ipv4Address`).
    pub ipv4: Option<Ipv4Network>,
    /// Its IPv6 address with the prefix length of its subnet (`spec.bgp.ipv6Address`).
    pub ipv6: Option<Ipv6Network>,
    /// Addresses of its tunnels (`spec.bgp.ipv4IPIPTunnelAddr`, `spec.ipv4VXLANTunnelAddr`, `spec.ipv6VXLANTunnelAddr`).
    pub tunnels: BTreeMap<TunnelKind, IpAddr>,
    /// MAC addresses of its VXLAN devices (`spec.vxlanTunnelMACAddr`, `spec.vxlanTunnelMACAddrV6`).
    pub macs: BTreeMap<TunnelKind, [u8; 6]>,
}

/// Where a node's VXLAN device is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Vtep {
    /// Address of the device.
    pub address: IpAddr,
    /// MAC address of the device.
    pub mac: [u8; 6],
    /// Address of the node.
    pub host: IpAddr,
}

impl TunnelKind {
    /// All kinds.
    pub const ALL: [Self; 3] = [Self::Ipip, Self::VxlanV4, Self::VxlanV6];

    /// Name of the device.
    #[must_use]
    pub fn interface(self) -> &'static str {
        match self {
            Self::Ipip => ours::IPIP,
            Self::VxlanV4 => ours::VXLAN_V4,
            Self::VxlanV6 => ours::VXLAN_V6,
        }
    }

    /// Whether it is for IPv6.
    #[must_use]
    pub fn is_ipv6(self) -> bool {
        self == Self::VxlanV6
    }

    /// The VXLAN device of a family.
    #[must_use]
    pub fn vxlan(is_ipv6: bool) -> Self {
        if is_ipv6 { Self::VxlanV6 } else { Self::VxlanV4 }
    }
}

impl NodeFacts {
    /// Its address of a family, with the prefix length of its subnet.
    #[must_use]
    pub fn address(&self, is_ipv6: bool) -> Option<IpNetwork> {
        if is_ipv6 {
            self.ipv6.map(IpNetwork::V6)
        } else {
            self.ipv4.map(IpNetwork::V4)
        }
    }

    /// Its VXLAN device, if it says everything about it.
    #[must_use]
    pub fn vxlan(&self, kind: TunnelKind) -> Option<Vtep> {
        Some(Vtep {
            address: *self.tunnels.get(&kind)?,
            mac: *self.macs.get(&kind)?,
            host: self.address(kind.is_ipv6())?.ip(),
        })
    }
}
