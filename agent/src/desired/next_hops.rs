//! Next hops of learned routes: which link each lies on, and whether that passes packets. A full table has few different sets of
//! them, so each set is looked at once and its gateways are shared.
//!
//! A next hop lies on the interface that its announcer is behind (link-local next hops, RFC 8950 and RFC 4291 §2.5.6), or on the one
//! whose subnet it is in, the longest prefix first. Where two interfaces have the same claim, or none has, the kernel is left to find it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use super::{Gateway, Gateways, RoutePath};
use crate::model::{Interface, Learned, LearnedPath, NextHop};

/// Gateways of one route, at most; the lowest addresses are taken. More than any peer count in use, and few enough for
/// one netlink attribute of 64 KiB.
const MAX_GATEWAYS: usize = 128;

/// Finds the gateways of sets of next hops.
pub(super) struct NextHops<'a> {
    interfaces: &'a BTreeMap<String, Interface>,
    found: BTreeMap<&'a BTreeSet<NextHop>, Option<Gateways>>,
}

impl<'a> NextHops<'a> {
    pub(super) fn new(interfaces: &'a BTreeMap<String, Interface>) -> Self {
        Self {
            interfaces,
            found: BTreeMap::new(),
        }
    }

    /// Where a learned route leads; `None` when all its next hops are on links that pass nothing.
    pub(super) fn path(&mut self, learned: &'a Learned) -> Option<RoutePath> {
        let next_hops = match &learned.path {
            LearnedPath::Via(next_hops) => next_hops,
            LearnedPath::Blackhole => return Some(RoutePath::Blackhole),
        };
        let interfaces = self.interfaces;
        let gateways = self
            .found
            .entry(next_hops)
            .or_insert_with(|| gateways(next_hops, interfaces));
        gateways.clone().map(|gateways| RoutePath::Via { gateways })
    }
}

fn gateways(next_hops: &BTreeSet<NextHop>, interfaces: &BTreeMap<String, Interface>) -> Option<Gateways> {
    let is_dead = |name: &String| interfaces.get(name).is_some_and(|link| !link.running);
    let gateways: BTreeSet<Gateway> = next_hops
        .iter()
        .map(|next_hop| Gateway {
            address: next_hop.address,
            interface: (next_hop.interface.clone())
                .or_else(|| interface_towards(next_hop.address, interfaces).cloned()),
        })
        .filter(|gateway| !gateway.interface.as_ref().is_some_and(is_dead))
        .take(MAX_GATEWAYS)
        .collect();
    (!gateways.is_empty()).then(|| Arc::new(gateways))
}

/// The interface in whose subnet the address is; `None` if there is none, or no single one.
fn interface_towards(address: IpAddr, interfaces: &BTreeMap<String, Interface>) -> Option<&String> {
    let mut best: Option<(u8, &String)> = None;
    let mut is_single = false;
    for (name, interface) in interfaces {
        let subnets = interface.addresses.iter();
        let around = subnets.filter(|subnet| subnet.contains(address) && subnet.ip() != address);
        let Some(prefix) = around.map(|subnet| subnet.prefix()).max() else {
            continue;
        };
        match best {
            Some((longest, _)) if prefix < longest => {}
            Some((longest, _)) if prefix == longest => is_single = false,
            _ => (best, is_single) = (Some((prefix, name)), true),
        }
    }
    best.filter(|_| is_single).map(|(_, name)| name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn interfaces(rows: &[(&str, bool, &[&str])]) -> BTreeMap<String, Interface> {
        let interface = |(name, running, addresses): &(&str, bool, &[&str])| {
            let interface = Interface {
                index: 1,
                up: true,
                running: *running,
                mtu: 1500,
                addresses: addresses.iter().map(|text| text.parse().unwrap()).collect(),
            };
            ((*name).to_owned(), interface)
        };
        rows.iter().map(interface).collect()
    }

    #[test]
    fn a_next_hop_lies_on_the_one_link_whose_subnet_is_the_narrowest() {
        let interfaces = interfaces(&[
            ("eth0", true, &["192.0.2.1/24", "2001:db8::1/64"]),
            ("eth1", true, &["192.0.2.129/25"]),
            ("eth2", true, &["198.51.100.1/24"]),
            ("eth3", true, &["198.51.100.2/24"]),
            ("eth4", true, &["203.0.113.1/32"]),
        ]);
        for (address, expected) in [
            ("192.0.2.2", Some("eth0")),
            ("192.0.2.130", Some("eth1")),
            ("2001:db8::2", Some("eth0")),
            ("198.51.100.9", None),
            ("203.0.113.1", None),
            ("203.0.113.2", None),
            ("192.0.2.129", Some("eth0")),
        ] {
            let found = interface_towards(address.parse().unwrap(), &interfaces);
            assert_eq!(found.map(String::as_str), expected, "{address}");
        }
    }

    #[test]
    fn a_next_hop_on_a_dead_link_is_left_out_also_where_only_its_subnet_says_so() {
        let hops = ["192.0.2.2", "198.51.100.2"].map(|address| NextHop {
            address: address.parse().unwrap(),
            interface: None,
        });
        let learned = Learned::via(hops.into()).unwrap();
        let path = |first: bool, second: bool| {
            let interfaces = interfaces(&[
                ("eth0", first, &["192.0.2.1/24"]),
                ("eth1", second, &["198.51.100.1/24"]),
            ]);
            let path = NextHops::new(&interfaces).path(&learned);
            path.map(|path| path.to_string())
        };
        let both = "via 192.0.2.2 dev eth0 via 198.51.100.2 dev eth1";
        assert_eq!(path(true, true).as_deref(), Some(both));
        assert_eq!(path(true, false).as_deref(), Some("via 192.0.2.2 dev eth0"));
        assert_eq!(path(false, false), None);
    }
}
