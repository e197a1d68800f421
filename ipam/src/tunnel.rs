//! Kinds of tunnel devices that have an address from a pool: the handles and notes that Calico allocates it with, so that
//! either finds what the other has made (calico node/pkg/allocateip).

use std::fmt;

use crate::error::Family;
use crate::pool::{EncapsulationMode, IpPoolSpec};

/// A kind of tunnel device that has an address from a pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Tunnel {
    /// IP-in-IP, `tunl0`.
    Ipip,
    /// VXLAN over IPv4, `vxlan.calico`.
    Vxlan,
    /// VXLAN over IPv6, `vxlan-v6.calico`.
    VxlanV6,
}

impl Tunnel {
    /// The handle of the address on `node`.
    pub fn handle_id(self, node: &str) -> String {
        match self {
            Self::Ipip => format!("ipip-tunnel-addr-{node}"),
            Self::Vxlan => format!("vxlan-tunnel-addr-{node}"),
            Self::VxlanV6 => format!("vxlan-v6-tunnel-addr-{node}"),
        }
    }

    /// What is noted as `type` with the allocation.
    pub fn attribute_type(self) -> &'static str {
        match self {
            Self::Ipip => "ipipTunnelAddress",
            Self::Vxlan => "vxlanTunnelAddress",
            Self::VxlanV6 => "vxlanV6TunnelAddress",
        }
    }

    /// The family of the address.
    pub fn family(self) -> Family {
        match self {
            Self::Ipip | Self::Vxlan => Family::V4,
            Self::VxlanV6 => Family::V6,
        }
    }

    /// Whether the pool sends through this kind of tunnel.
    pub(crate) fn is_used_by(self, pool: &IpPoolSpec) -> bool {
        let mode = match self {
            Self::Ipip => pool.ipip_mode,
            Self::Vxlan | Self::VxlanV6 => pool.vxlan_mode,
        };
        mode.unwrap_or_default() != EncapsulationMode::Never
    }
}

impl fmt::Display for Tunnel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ipip => "IP-in-IP",
            Self::Vxlan => "VXLAN",
            Self::VxlanV6 => "VXLAN (IPv6)",
        })
    }
}
