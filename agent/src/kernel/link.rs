//! Links as the kernel has them, and which of them are ours.

use std::collections::BTreeMap;

use ipnetwork::IpNetwork;

use crate::desired::Transport;
use crate::model::Interface;
use crate::ours::{ALIAS_PREFIX, HOST_MAC, LINK_PREFIX, TUNNEL_ALIAS, TUNNELS};

/// A link as the kernel has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// Index; another one means another link, even if the name is the same.
    pub index: u32,
    /// Whether it is administratively up.
    pub up: bool,
    /// Whether it passes packets as well: it has a carrier, or is of a kind that needs none (`IFF_RUNNING`).
    pub running: bool,
    /// MAC address, if it has one of six bytes.
    pub mac: Option<[u8; 6]>,
    /// MTU in bytes.
    pub mtu: u32,
    /// Alias (`ip link set … alias`).
    pub alias: Option<String>,
    /// Whether it is a veth.
    pub is_veth: bool,
    /// Index of the other end, in the namespace of the other end.
    pub peer_index: Option<u32>,
    /// What it carries packets in, if it is a tunnel of a kind that we make.
    pub transport: Option<Transport>,
}

impl Link {
    /// Whether the link of this name was made by us.
    #[must_use]
    pub fn is_ours(&self, name: &str) -> bool {
        name.starts_with(LINK_PREFIX)
            && self
                .alias
                .as_deref()
                .is_some_and(|alias| alias.starts_with(ALIAS_PREFIX))
    }

    /// Whether the link of this name is a tunnel that we keep, and may remove.
    #[must_use]
    pub fn is_our_tunnel(&self, name: &str) -> bool {
        TUNNELS.contains(&name) && self.transport.is_some() && self.alias.as_deref() == Some(TUNNEL_ALIAS)
    }

    /// Whether the link of this name is one of ours that a killed process left half made: alias and up come with one message, just
    /// after the creation.
    #[must_use]
    pub fn is_half_made(&self, name: &str) -> bool {
        name.starts_with(LINK_PREFIX)
            && self.alias.is_none()
            && !self.up
            && self.is_veth
            && self.mac == Some(HOST_MAC)
    }
}

/// The node's interfaces as the model knows them, by name: all links but those with our prefix, with their addresses.
#[must_use]
pub fn node_interfaces(
    links: &BTreeMap<String, Link>,
    addresses: &BTreeMap<String, Vec<IpNetwork>>,
) -> BTreeMap<String, Interface> {
    links
        .iter()
        .filter(|(name, _)| !name.starts_with(LINK_PREFIX))
        .map(|(name, link)| {
            let interface = Interface {
                index: link.index,
                up: link.up,
                running: link.running,
                mtu: link.mtu,
                addresses: addresses.get(name).cloned().unwrap_or_default(),
            };
            (name.clone(), interface)
        })
        .collect()
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
        assert!(link(Some("calidris:n/c1/eth0")).is_ours("cali123"));
        assert!(!link(None).is_ours("cali123"));
        assert!(!link(Some("uplink")).is_ours("cali123"));
        assert!(!link(Some("calidris:n/c1/eth0")).is_ours("eth0"));
    }

    #[test]
    fn a_half_made_link_is_a_veth_with_our_mac_that_never_went_up() {
        let half_made = link(None);
        assert!(half_made.is_half_made("cali123") && !half_made.is_half_made("veth123"));
        assert!(!link(Some("mine")).is_half_made("cali123"));
        let others = [
            Link {
                up: true,
                running: true,
                ..link(None)
            },
            Link {
                is_veth: false,
                ..link(None)
            },
            Link {
                mac: Some([2; 6]),
                ..link(None)
            },
        ];
        for other in others {
            assert!(!other.is_half_made("cali123"), "{other:?}");
        }
    }
}
