//! How a fresh process knows what is ours. Nothing else is ever changed or deleted.
//!
//! | kind | ours is what |
//! |---|---|
//! | routes | carries protocol [`ROUTE_PROTOCOL_LOCAL`], [`ROUTE_PROTOCOL_BGP`] or [`ROUTE_PROTOCOL_CLUSTER`], in any table |
//! | links | has a name that begins with [`LINK_PREFIX`] *and* an alias that begins with [`ALIAS_PREFIX`] |
//! | tunnels | has one of the [`TUNNELS`]' names and is of the kind; removed only with the alias [`TUNNEL_ALIAS`] |
//! | addresses | is a global one on a tunnel of ours that we keep up |
//! | neighbours | is a permanent one on a tunnel of ours that we keep up |
//! | nftables | is the table `inet calidris` or `arp calidris` ([`NFT_TABLE`]) |
//! | sysctls | is listed in `desired/sysctl.rs`; they are set, never reset |
//!
//! A foreign route with the key of one of ours (destination, metric, table) is in the way: ours is then not made
//! and that is reported. The kernel refuses the creation (`NLM_F_EXCL`), so there is no race. What `ip route append`
//! adds *behind* one of ours is not noticed until ours is replaced.

use crate::kernel::Link;
use crate::model::EndpointId;

/// Route protocol of routes that follow from the datastore: workloads and blackholes. Not used by any other program
/// known to us (`/etc/iproute2/rt_protos`, FRR and Calico's 80 were looked at).
pub const ROUTE_PROTOCOL_LOCAL: u8 = 202;

/// Route protocol of routes learned by BGP.
pub const ROUTE_PROTOCOL_BGP: u8 = 203;

/// Route protocol of routes to other nodes' blocks that follow from the datastore.
pub const ROUTE_PROTOCOL_CLUSTER: u8 = 204;

/// All route protocols of ours.
pub const ROUTE_PROTOCOLS: [u8; 3] = [ROUTE_PROTOCOL_LOCAL, ROUTE_PROTOCOL_BGP, ROUTE_PROTOCOL_CLUSTER];

/// Name of the VXLAN device for IPv4, as Calico's: a node that Calico ran on keeps its device.
pub const VXLAN_V4: &str = "vxlan.calico";

/// Name of the VXLAN device for IPv6, as Calico's.
pub const VXLAN_V6: &str = "vxlan-v6.calico";

/// Name of the IPIP device: the one that the kernel makes with the module.
pub const IPIP: &str = "tunl0";

/// Names of all tunnels.
pub const TUNNELS: [&str; 3] = [VXLAN_V4, VXLAN_V6, IPIP];

/// The alias that marks a tunnel that we made or took over: only such a one is removed when it is no longer wanted.
pub const TUNNEL_ALIAS: &str = "calidris:tunnel";

/// What the names of host ends begin with, as Calico's do.
pub const LINK_PREFIX: &str = "cali";

/// What the alias (`ip link set … alias`) of a host end begins with. The endpoint's identity follows.
pub const ALIAS_PREFIX: &str = "calidris:";

/// Name of our nftables tables, families `inet` and `arp`.
pub const NFT_TABLE: &str = "calidris";

/// MAC address of every host end: pods ask for 169.254.1.1 and all get the same answer (Calico's choice).
pub const HOST_MAC: [u8; 6] = [0xee; 6];

/// Longest alias the kernel keeps (`IFALIASZ` less the final zero).
const ALIAS_MAX: usize = 255;

/// The alias that marks the host end of `id`. Cut at the kernel's limit of 255 bytes: the mark is at the front.
#[must_use]
pub fn alias(id: &EndpointId) -> String {
    let mut alias = format!("{ALIAS_PREFIX}{}/{}/{}", id.network, id.container_id, id.ifname);
    while alias.len() > ALIAS_MAX {
        alias.pop();
    }
    alias
}

/// Whether the link was made by us.
#[must_use]
pub fn is_our_link(name: &str, link: &Link) -> bool {
    name.starts_with(LINK_PREFIX)
        && link
            .alias
            .as_deref()
            .is_some_and(|alias| alias.starts_with(ALIAS_PREFIX))
}

/// Whether the link is a tunnel that we keep, and may remove.
#[must_use]
pub fn is_our_tunnel(name: &str, link: &Link) -> bool {
    TUNNELS.contains(&name) && link.transport.is_some() && link.alias.as_deref() == Some(TUNNEL_ALIAS)
}

/// Whether the link is one of ours that a killed process left half made: the alias is set just after the creation,
/// before the link goes up.
#[must_use]
pub fn is_half_made(name: &str, link: &Link) -> bool {
    name.starts_with(LINK_PREFIX)
        && link.alias.is_none()
        && !link.up
        && link.is_veth
        && link.mac == Some(HOST_MAC)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(alias: Option<&str>) -> Link {
        Link {
            index: 7,
            up: false,
            running: false,
            mac: Some(HOST_MAC),
            mtu: 1500,
            alias: alias.map(str::to_owned),
            is_veth: true,
            peer_index: Some(2),
            transport: None,
        }
    }

    #[test]
    fn a_link_is_ours_by_prefix_and_alias_together() {
        let id = EndpointId {
            network: "n".into(),
            container_id: "c1".into(),
            ifname: "eth0".into(),
        };
        assert_eq!(alias(&id), "calidris:n/c1/eth0");
        assert!(is_our_link("cali123", &link(Some(&alias(&id)))));
        assert!(!is_our_link("cali123", &link(None)));
        assert!(!is_our_link("cali123", &link(Some("uplink"))));
        assert!(!is_our_link("eth0", &link(Some("calidris:n/c1/eth0"))));
    }

    #[test]
    fn a_half_made_link_is_a_veth_with_our_mac_that_never_went_up() {
        assert!(is_half_made("cali123", &link(None)));
        assert!(!is_half_made(
            "cali123",
            &Link {
                up: true,
                running: true,
                ..link(None)
            }
        ));
        assert!(!is_half_made(
            "cali123",
            &Link {
                is_veth: false,
                ..link(None)
            }
        ));
        assert!(!is_half_made(
            "cali123",
            &Link {
                mac: Some([2; 6]),
                ..link(None)
            }
        ));
        assert!(!is_half_made("cali123", &link(Some("mine"))));
        assert!(!is_half_made("veth123", &link(None)));
    }

    #[test]
    fn a_long_alias_is_cut_to_what_the_kernel_keeps() {
        let id = EndpointId {
            network: "n".into(),
            container_id: "é".repeat(300),
            ifname: "eth0".into(),
        };
        let alias = alias(&id);
        assert!(alias.len() <= ALIAS_MAX && alias.starts_with("calidris:n/é"));
    }
}
