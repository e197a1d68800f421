//! Next hops of learned routes: which link each lies on, and whether that passes packets. A full table has few different sets of
//! them, so each set is looked at once and its gateways are shared.
//!
//! A next hop lies on the interface that its announcer is behind (link-local next hops, RFC 8950 and RFC 4291 §2.5.6), or on the one
//! whose subnet it is in, the longest prefix first. Where two interfaces have the same claim, or none has, the kernel is left to find it;
//! but one that is nowhere is left out beside others: its interface has lost the address just now, and the kernel would refuse them all.

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
    let place = |next_hop: &NextHop| match &next_hop.interface {
        Some(interface) => Place::On(interface.clone()),
        None => place(next_hop.address, interfaces),
    };
    let is_dead = |name: &String| interfaces.get(name).is_some_and(|link| !link.running);
    let mut places: Vec<(IpAddr, Place)> = next_hops
        .iter()
        .map(|next_hop| (next_hop.address, place(next_hop)))
        .filter(|(_, place)| !matches!(place, Place::On(name) if is_dead(name)))
        .collect();
    if places.iter().any(|(_, place)| matches!(place, Place::On(_))) {
        places.retain(|(_, place)| *place != Place::Nowhere);
    }
    let gateways: BTreeSet<Gateway> = places
        .into_iter()
        .take(MAX_GATEWAYS)
        .map(|(address, place)| Gateway {
            address,
            interface: match place {
                Place::On(name) => Some(name),
                Place::Nowhere | Place::Unclear => None,
            },
        })
        .collect();
    (!gateways.is_empty()).then(|| Arc::new(gateways))
}

/// The link whose subnet an address is in, the narrowest one; `None` also where two have the same.
pub(super) fn link_around(address: IpAddr, interfaces: &BTreeMap<String, Interface>) -> Option<String> {
    match place(address, interfaces) {
        Place::On(name) => Some(name),
        Place::Nowhere | Place::Unclear => None,
    }
}

/// Where a next hop lies, by the subnets of the interfaces.
#[derive(Debug, PartialEq, Eq)]
enum Place {
    On(String),
    Nowhere,
    /// Two interfaces have the same claim.
    Unclear,
}

fn place(address: IpAddr, interfaces: &BTreeMap<String, Interface>) -> Place {
    let mut narrowest = None;
    let mut found = Place::Nowhere;
    for (name, interface) in interfaces {
        let subnets = interface.addresses.iter();
        let around = subnets.filter(|subnet| subnet.contains(address) && subnet.ip() != address);
        let Some(prefix) = around.map(|subnet| subnet.prefix()).max() else {
            continue;
        };
        if narrowest == Some(prefix) {
            found = Place::Unclear;
        } else if narrowest.is_none_or(|narrowest| prefix > narrowest) {
            narrowest = Some(prefix);
            found = Place::On(name.clone());
        }
    }
    found
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
        let on = |name: &str| Place::On(name.to_owned());
        for (address, expected) in [
            ("192.0.2.2", on("eth0")),
            ("192.0.2.130", on("eth1")),
            ("2001:db8::2", on("eth0")),
            ("198.51.100.9", Place::Unclear),
            ("203.0.113.1", Place::Nowhere),
            ("203.0.113.2", Place::Nowhere),
            ("192.0.2.129", on("eth0")),
        ] {
            assert_eq!(
                place(address.parse().unwrap(), &interfaces),
                expected,
                "{address}"
            );
        }
    }

    #[test]
    fn one_that_is_nowhere_is_left_out_beside_others_and_stays_alone() {
        let interfaces = interfaces(&[("eth0", true, &["192.0.2.1/24"])]);
        let path = |addresses: &[&str]| {
            let hops = addresses.iter().map(|address| NextHop {
                address: address.parse().unwrap(),
                interface: None,
            });
            let learned = Learned::via(hops.collect()).unwrap();
            NextHops::new(&interfaces).path(&learned).unwrap().to_string()
        };
        assert_eq!(path(&["192.0.2.2", "203.0.113.2"]), "via 192.0.2.2 dev eth0");
        assert_eq!(
            path(&["203.0.113.2", "203.0.113.3"]),
            "via 203.0.113.2 via 203.0.113.3"
        );
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
