//! MTU: what the uplinks take, less what a tunnel puts around each packet (Felix's figures).

use crate::model::{Encapsulation, Model, Pool, TunnelKind};

/// MTU in bytes when no uplink is known: Ethernet's.
pub const DEFAULT_MTU: u32 = 1500;
/// The least that an IPv6 link must have (RFC 8200 §5); below it the kernel takes IPv6 off the link.
const LEAST_MTU: u32 = 1280;

/// MTU of the pods' interfaces: the configured one, or what fits through every tunnel that a pool uses.
pub(super) fn of_pods(model: &Model) -> u32 {
    model.settings.pod_mtu.unwrap_or_else(|| {
        let overhead = model.pools.values().filter_map(tunnel_of).map(overhead).max();
        of_uplinks(model)
            .saturating_sub(overhead.unwrap_or(0))
            .max(LEAST_MTU)
    })
}

/// MTU of a tunnel device.
pub(super) fn of_tunnel(model: &Model, kind: TunnelKind) -> u32 {
    of_uplinks(model).saturating_sub(overhead(kind)).max(LEAST_MTU)
}

/// The least of the uplinks that are up: those whose names match, or else the interface with the node's own address.
fn of_uplinks(model: &Model) -> u32 {
    let matching = model
        .interfaces
        .iter()
        .filter(|(name, interface)| interface.up && model.settings.uplinks.matches(name))
        .map(|(_, interface)| interface.mtu);
    let own = [false, true]
        .into_iter()
        .filter_map(|is_ipv6| model.interface_with(model.own_address(is_ipv6)?.ip()))
        .filter_map(|name| model.interfaces.get(name))
        .map(|interface| interface.mtu);
    matching.min().or_else(|| own.min()).unwrap_or(DEFAULT_MTU)
}

/// The tunnel that a pool's packets may go through.
pub(super) fn tunnel_of(pool: &Pool) -> Option<TunnelKind> {
    match pool.encapsulation {
        Encapsulation::None => None,
        // There is no IPIP for IPv6; Calico refuses such pools.
        Encapsulation::IpipAlways | Encapsulation::IpipCrossSubnet => {
            pool.cidr.is_ipv4().then_some(TunnelKind::Ipip)
        }
        Encapsulation::VxlanAlways | Encapsulation::VxlanCrossSubnet => {
            Some(TunnelKind::vxlan(pool.cidr.is_ipv6()))
        }
    }
}

/// Bytes that a tunnel puts around a packet: an IP header (IPIP); IP, UDP, VXLAN and Ethernet headers (VXLAN).
fn overhead(kind: TunnelKind) -> u32 {
    match kind {
        TunnelKind::Ipip => 20,
        TunnelKind::VxlanV4 => 50,
        TunnelKind::VxlanV6 => 70,
    }
}
