//! Our nftables tables in full: the rules never change, what changes are the elements of their sets.
//!
//! They stay when the agent ends, and with them what they close. In short:
//!
//! - What comes from an interface with our prefix that is no known workload's is dropped, and so is what is forwarded or
//!   answered by ARP to it.
//! - A workload sends with its own addresses only (and what its `allowedSourcePrefixes` adds).
//! - The host answers a workload's ARP requests for everything but the workload's own addresses: whoever looks whether
//!   somebody else has them must hear nothing.
//! - What leaves the cluster from pools with `natOutgoing` is translated. Source ports are picked at random
//!   (`fully-random`), as Calico does where it can: two processors that choose a port at the same time would otherwise
//!   choose the same one and lose a packet.
//! - What comes to a tunnel's end of ours from anybody but another node is dropped.
//! - Host ports lead to their workloads: from outside, from the node itself, from other workloads, and from the workload
//!   itself. In the last case and from 127.0.0.0/8 the source is translated, or the answer would not come back. IPv6 has no
//!   such way from ::1: the kernel routes it nowhere else.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use crate::desired::{Desired, HostPortKey, VXLAN_PORT, Workload};
use crate::kernel::{NftChain, NftElement, NftFamily, NftPart, NftRule, NftSet, NftTable, NftTables};
use crate::model::TunnelKind;
use crate::ours::LINK_PREFIX;

/// Host ends of workloads; in both tables.
const WORKLOAD_INTERFACES: &str = "workload-interfaces";
/// Host end and address: IPv4, IPv6.
const WORKLOAD_SOURCES: [&str; 2] = ["workload-sources-ipv4", "workload-sources-ipv6"];
/// Host end and address, for ARP.
const WORKLOAD_ADDRESSES: &str = "workload-addresses";

pub(super) fn tables(desired: &Desired) -> NftTables {
    BTreeMap::from([(NftFamily::Inet, inet(desired)), (NftFamily::Arp, arp(desired))])
}

fn inet(desired: &Desired) -> NftTable {
    let mut sets = BTreeMap::from([
        (WORKLOAD_INTERFACES.to_owned(), interfaces(&desired.workloads)),
        ("hairpin-ipv4".to_owned(), hairpin(desired, false)),
        ("hairpin-ipv6".to_owned(), hairpin(desired, true)),
    ]);
    for (is_ipv6, version, workload_sources) in [
        (false, "ipv4", WORKLOAD_SOURCES[0]),
        (true, "ipv6", WORKLOAD_SOURCES[1]),
    ] {
        let of_family = |ranges: &BTreeSet<_>| NftSet::of_ranges(is_ipv6, ranges.iter().copied());
        sets.extend([
            (format!("nat-sources-{version}"), of_family(&desired.nat_sources)),
            (format!("nat-exempt-{version}"), of_family(&desired.nat_exempt)),
            (
                exempt_nodes(is_ipv6),
                addresses(is_ipv6, &desired.nat_exempt_nodes),
            ),
            (workload_sources.to_owned(), sources(&desired.workloads, is_ipv6)),
            (format!("workload-prefixes-{version}"), prefixes(desired, is_ipv6)),
            (
                format!("host-ports-{version}"),
                host_ports(desired, is_ipv6, HostPortKind::AnyAddress),
            ),
            (
                format!("host-address-ports-{version}"),
                host_ports(desired, is_ipv6, HostPortKind::OneAddress),
            ),
        ]);
    }
    for kind in TunnelKind::ALL {
        let [ends, peers] = tunnel_sets(kind);
        let of_kind = desired.tunnel_peers.get(&kind);
        let end = of_kind.map(|peers| peers.own);
        let others = of_kind.into_iter().flat_map(|peers| &peers.others);
        sets.insert(ends, addresses(kind.is_ipv6(), &end));
        sets.insert(peers, addresses(kind.is_ipv6(), others));
    }
    let to_host_ports = [
        "fib daddr type local dnat ip to ip daddr . meta l4proto . th dport map @host-address-ports-ipv4",
        "fib daddr type local dnat ip6 to ip6 daddr . meta l4proto . th dport map @host-address-ports-ipv6",
        "fib daddr type local dnat ip to meta l4proto . th dport map @host-ports-ipv4",
        "fib daddr type local dnat ip6 to meta l4proto . th dport map @host-ports-ipv6",
    ];
    let from_workloads = [
        format!("iifname \"{LINK_PREFIX}*\" iifname != @workload-interfaces drop"),
        format!(
            "iifname \"{LINK_PREFIX}*\" iifname . ip saddr != @workload-sources-ipv4 iifname . ip saddr != @workload-prefixes-ipv4 drop"
        ),
        // Neighbour discovery: link-local addresses, and none at all while an address is being checked.
        format!(
            "iifname \"{LINK_PREFIX}*\" ip6 saddr != {{ ::, fe80::/10 }} iifname . ip6 saddr != @workload-sources-ipv6 iifname . ip6 saddr != @workload-prefixes-ipv6 drop"
        ),
    ];
    let to_workloads = [format!(
        "oifname \"{LINK_PREFIX}*\" oifname != @workload-interfaces drop"
    )];
    let after_routing = [
        format!("ct status dnat oifname \"{LINK_PREFIX}*\" ip saddr 127.0.0.0/8 masquerade"),
        "ct status dnat ip saddr . ip daddr @hairpin-ipv4 masquerade".to_owned(),
        "ct status dnat ip6 saddr . ip6 daddr @hairpin-ipv6 masquerade".to_owned(),
        "ip saddr @nat-sources-ipv4 ip daddr != @nat-exempt-ipv4 ip daddr != @nat-exempt-nodes-ipv4 masquerade fully-random".to_owned(),
        "ip6 saddr @nat-sources-ipv6 ip6 daddr != @nat-exempt-ipv6 ip6 daddr != @nat-exempt-nodes-ipv6 masquerade fully-random".to_owned(),
    ];
    NftTable {
        sets,
        chains: BTreeMap::from([
            // Before connection tracking: what is dropped costs no entry.
            (
                "from-workloads".to_owned(),
                chain("filter", "prerouting", -300, &from_workloads),
            ),
            (
                "to-tunnels".to_owned(),
                chain("filter", "prerouting", -300, &TunnelKind::ALL.map(to_tunnel)),
            ),
            (
                "to-workloads".to_owned(),
                chain("filter", "forward", 0, &to_workloads),
            ),
            (
                "host-ports".to_owned(),
                chain("nat", "prerouting", -100, &to_host_ports),
            ),
            (
                "host-ports-of-node".to_owned(),
                chain("nat", "output", -100, &to_host_ports),
            ),
            (
                "nat-outgoing".to_owned(),
                chain("nat", "postrouting", 100, &after_routing),
            ),
        ]),
    }
}

fn arp(desired: &Desired) -> NftTable {
    let to_workloads = [
        format!("oifname \"{LINK_PREFIX}*\" oifname != @workload-interfaces drop"),
        "arp operation reply oifname . arp saddr ip @workload-addresses drop".to_owned(),
    ];
    NftTable {
        sets: BTreeMap::from([
            (WORKLOAD_INTERFACES.to_owned(), interfaces(&desired.workloads)),
            (WORKLOAD_ADDRESSES.to_owned(), sources(&desired.workloads, false)),
        ]),
        chains: BTreeMap::from([(
            "to-workloads".to_owned(),
            chain("filter", "output", 0, &to_workloads),
        )]),
    }
}

fn chain<Text: AsRef<str>>(kind: &str, hook: &str, priority: i64, rules: &[Text]) -> NftChain {
    NftChain {
        kind: kind.to_owned(),
        hook: hook.to_owned(),
        priority,
        policy: "accept".to_owned(),
        rules: rules.iter().map(|rule| NftRule::new(rule.as_ref())).collect(),
    }
}

/// The elements that follow from workloads which have nothing but their addresses, by family and set.
pub(super) fn workload_elements(
    workloads: &BTreeMap<String, Workload>,
) -> [((NftFamily, &'static str), BTreeSet<NftElement>); 5] {
    let interfaces = interfaces(workloads).elements;
    let [ipv4, ipv6] = [false, true].map(|is_ipv6| sources(workloads, is_ipv6).elements);
    [
        ((NftFamily::Inet, WORKLOAD_INTERFACES), interfaces.clone()),
        ((NftFamily::Inet, WORKLOAD_SOURCES[0]), ipv4.clone()),
        ((NftFamily::Inet, WORKLOAD_SOURCES[1]), ipv6),
        ((NftFamily::Arp, WORKLOAD_INTERFACES), interfaces),
        ((NftFamily::Arp, WORKLOAD_ADDRESSES), ipv4),
    ]
}

/// Names of the sets with this node's end of the tunnels of a kind, and with the nodes that may send to it.
pub(super) fn tunnel_sets(kind: TunnelKind) -> [String; 2] {
    let name = match kind {
        TunnelKind::Ipip => "ipip",
        TunnelKind::VxlanV4 => "vxlan-ipv4",
        TunnelKind::VxlanV6 => "vxlan-ipv6",
    };
    [format!("{name}-ends"), format!("{name}-peers")]
}

/// Name of the set with the nodes to which nothing is translated.
pub(super) fn exempt_nodes(is_ipv6: bool) -> String {
    format!("nat-exempt-nodes-{}", if is_ipv6 { "ipv6" } else { "ipv4" })
}

fn to_tunnel(kind: TunnelKind) -> String {
    let [ends, peers] = tunnel_sets(kind);
    let ip = if kind.is_ipv6() { "ip6" } else { "ip" };
    let carrier = match kind {
        TunnelKind::Ipip => "meta l4proto 4".to_owned(),
        TunnelKind::VxlanV4 | TunnelKind::VxlanV6 => format!("udp dport {VXLAN_PORT}"),
    };
    format!("{ip} daddr @{ends} {carrier} {ip} saddr != @{peers} drop")
}

fn addresses<'a>(is_ipv6: bool, addresses: impl IntoIterator<Item = &'a IpAddr>) -> NftSet {
    let of_family = addresses
        .into_iter()
        .filter(|address| address.is_ipv6() == is_ipv6);
    NftSet {
        elements: of_family
            .map(|address| NftElement::key(&[NftPart::Address(*address)]))
            .collect(),
        ..NftSet::new(address_type(is_ipv6))
    }
}

fn interfaces(workloads: &BTreeMap<String, Workload>) -> NftSet {
    let names = workloads.keys();
    NftSet {
        elements: names
            .map(|name| NftElement::key([NftPart::Interface(name.clone())]))
            .collect(),
        ..NftSet::new("ifname")
    }
}

fn sources(workloads: &BTreeMap<String, Workload>, is_ipv6: bool) -> NftSet {
    let elements = workloads.iter().flat_map(|(name, workload)| {
        let addresses = workload
            .addresses
            .iter()
            .filter(move |address| address.is_ipv6() == is_ipv6);
        addresses.map(move |address| {
            NftElement::key([NftPart::Interface(name.clone()), NftPart::Address(*address)])
        })
    });
    NftSet {
        elements: elements.collect(),
        ..NftSet::new(&format!("ifname . {}", address_type(is_ipv6)))
    }
}

fn prefixes(desired: &Desired, is_ipv6: bool) -> NftSet {
    let elements = desired.workloads.iter().flat_map(|(name, workload)| {
        let prefixes = workload
            .allowed_sources
            .iter()
            .filter(move |prefix| prefix.is_ipv6() == is_ipv6);
        prefixes
            .map(move |prefix| NftElement::key([NftPart::Interface(name.clone()), NftPart::range(*prefix)]))
    });
    NftSet {
        is_interval: true,
        elements: elements.collect(),
        ..NftSet::new(&format!("ifname . {}", address_type(is_ipv6)))
    }
}

/// Whether a host port is one on every address of the node or on one of them.
#[derive(Clone, Copy, PartialEq, Eq)]
enum HostPortKind {
    AnyAddress,
    OneAddress,
}

fn host_ports(desired: &Desired, is_ipv6: bool, kind: HostPortKind) -> NftSet {
    let of_node = match kind {
        HostPortKind::AnyAddress => String::new(),
        HostPortKind::OneAddress => format!("{} . ", address_type(is_ipv6)),
    };
    let elements = desired
        .host_ports
        .iter()
        .filter(|(key, target)| {
            let is_of_kind = key.address.is_some() == (kind == HostPortKind::OneAddress);
            is_of_kind && target.address.is_ipv6() == is_ipv6
        })
        .map(|(key, target)| {
            let HostPortKey {
                address,
                protocol,
                port,
                ..
            } = *key;
            let address = address.map(NftPart::Address);
            let port = [NftPart::Protocol(protocol.number()), NftPart::Port(port)];
            let key: Vec<NftPart> = address.into_iter().chain(port).collect();
            NftElement::mapping(
                key,
                [NftPart::Address(target.address), NftPart::Port(target.port)],
            )
        });
    NftSet {
        maps_to: Some(format!("{} . inet_service", address_type(is_ipv6))),
        elements: elements.collect(),
        ..NftSet::new(&format!("{of_node}inet_proto . inet_service"))
    }
}

fn hairpin(desired: &Desired, is_ipv6: bool) -> NftSet {
    let targets = desired.host_ports.values().map(|target| target.address);
    let elements = targets
        .filter(|address: &IpAddr| address.is_ipv6() == is_ipv6)
        .map(|address| NftElement::key([NftPart::Address(address), NftPart::Address(address)]));
    let address = address_type(is_ipv6);
    NftSet {
        elements: elements.collect(),
        ..NftSet::new(&format!("{address} . {address}"))
    }
}

fn address_type(is_ipv6: bool) -> &'static str {
    if is_ipv6 { "ipv6_addr" } else { "ipv4_addr" }
}
