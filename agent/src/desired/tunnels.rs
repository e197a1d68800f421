//! Tunnel devices, with the fixed parameters that Calico's nodes expect of each other.
//!
//! A device is wanted while it has an address: the task that allocates addresses keeps one for as long as a pool uses
//! the mode, and a while longer, so that nodes that have not heard of a change yet are still understood.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;

use ipnetwork::IpNetwork;
use sha1::{Digest as _, Sha1};

use crate::desired::mtu;
use crate::model::{Model, TunnelKind};

/// VXLAN network identifier of the cluster (Felix's `VXLANVNI`).
pub const VXLAN_VNI: u32 = 4096;
/// UDP port of VXLAN (RFC 7348, and Felix's `VXLANPort`).
pub const VXLAN_PORT: u16 = 4789;

/// A tunnel device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tunnel {
    /// What it carries packets in. A device with another one is made anew.
    pub transport: Transport,
    /// MTU in bytes.
    pub mtu: u32,
    /// Its MAC address; `None` for a device without.
    pub mac: Option<[u8; 6]>,
}

/// The pools, by range, whose packets go through a tunnel of each kind.
pub type TunnelPools = BTreeMap<TunnelKind, BTreeSet<IpNetwork>>;

/// What a tunnel carries packets in: what cannot be changed on a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Transport {
    /// VXLAN (RFC 7348) without learning.
    Vxlan {
        /// Network identifier.
        vni: u32,
        /// UDP port that it listens on and sends to.
        port: u16,
        /// Source address.
        local: IpAddr,
        /// The link that it sends through; `None`: as the routing tables say.
        parent: Option<String>,
    },
    /// IP in IP (RFC 2003), to whatever the route says.
    Ipip,
}

/// Who may send to a tunnel's end: anybody else could put packets with any source into the cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TunnelPeers {
    /// The end on this node.
    pub own: IpAddr,
    /// The other nodes.
    pub others: BTreeSet<IpAddr>,
}

pub(super) fn tunnels(model: &Model) -> BTreeMap<String, Tunnel> {
    let wanted = model
        .tunnel_addresses
        .iter()
        .filter(|(_, address)| address.is_some());
    wanted
        .filter_map(|(kind, _)| Some((kind.interface().to_owned(), tunnel(model, *kind)?)))
        .collect()
}

/// `None` while the node's own address is not known.
fn tunnel(model: &Model, kind: TunnelKind) -> Option<Tunnel> {
    let own = model.own_address(kind.is_ipv6())?;
    let mtu = mtu::of_tunnel(model, kind);
    Some(match kind {
        TunnelKind::Ipip => Tunnel {
            transport: Transport::Ipip,
            mtu,
            mac: None,
        },
        TunnelKind::VxlanV4 | TunnelKind::VxlanV6 => Tunnel {
            transport: Transport::Vxlan {
                vni: VXLAN_VNI,
                port: VXLAN_PORT,
                local: own.ip(),
                parent: model.interface_with(own.ip()).map(str::to_owned),
            },
            mtu,
            mac: Some(vxlan_mac(&model.node_name, kind)),
        },
    })
}

/// All other nodes, whether they have such a tunnel now or not: one whose mode changes may send before we hear of it.
pub(super) fn peers(model: &Model, tunnels: &BTreeMap<String, Tunnel>) -> BTreeMap<TunnelKind, TunnelPeers> {
    TunnelKind::ALL
        .into_iter()
        .filter(|kind| tunnels.contains_key(kind.interface()))
        .filter_map(|kind| {
            let addresses = model
                .other_nodes()
                .filter_map(|node| node.address(kind.is_ipv6()));
            let peers = TunnelPeers {
                own: model.own_address(kind.is_ipv6())?.ip(),
                others: addresses.map(|address| address.ip()).collect(),
            };
            Some((kind, peers))
        })
        .collect()
}

/// Devices that must stay as they are: nothing is known of their kind yet, or of the node's own address.
pub(super) fn undecided(model: &Model, tunnels: &BTreeMap<String, Tunnel>) -> BTreeSet<String> {
    TunnelKind::ALL
        .into_iter()
        .filter(|kind| model.tunnel_addresses.get(kind) != Some(&None))
        .map(|kind| kind.interface().to_owned())
        .filter(|name| !tunnels.contains_key(name))
        .collect()
}

/// The pools whose packets go through a tunnel of each kind. Only kinds that some pool uses.
pub(super) fn pools(model: &Model) -> TunnelPools {
    let mut pools: BTreeMap<TunnelKind, BTreeSet<IpNetwork>> = BTreeMap::new();
    for pool in model.pools.values() {
        if let Some(kind) = mtu::tunnel_of(pool) {
            pools.entry(kind).or_default().insert(pool.cidr);
        }
    }
    pools
}

/// MAC address of a node's VXLAN device as Felix makes it (`vxlan_mgr.go`): 0x66, which is unicast and locally
/// administered, then the first five bytes of the SHA-1 of the node's name, for IPv6 with `-v6` behind it.
pub fn vxlan_mac(node_name: &str, kind: TunnelKind) -> [u8; 6] {
    let suffix = if kind.is_ipv6() { "-v6" } else { "" };
    let digest = Sha1::digest(format!("{node_name}{suffix}"));
    let mut mac = [0x66; 6];
    for (byte, hashed) in mac.iter_mut().skip(1).zip(digest) {
        *byte = hashed;
    }
    mac
}

impl fmt::Display for Tunnel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "up {} mtu {}", self.transport, self.mtu)?;
        if let Some([a, b, c, d, e, g]) = self.mac {
            write!(f, " address {a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ipip => f.write_str("ipip"),
            Self::Vxlan {
                vni,
                port,
                local,
                parent,
            } => {
                write!(f, "vxlan id {vni} dstport {port} local {local}")?;
                match parent {
                    Some(parent) => write!(f, " dev {parent}"),
                    None => Ok(()),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mac_addresses_are_felixs() {
        // sha1sum of "node-a" and of "node-a-v6", first five bytes.
        let text = |kind| {
            vxlan_mac("node-a", kind)
                .map(|byte| format!("{byte:02x}"))
                .join(":")
        };
        assert_eq!(text(TunnelKind::VxlanV4), "66:07:02:c1:cc:60");
        assert_eq!(text(TunnelKind::VxlanV6), "66:d4:d5:51:3d:42");
    }
}
