//! Kernel parameters: forwarding, and per host end what Calico's CNI plugin and Felix set
//! (`dataplane_linux.go`, `endpoint_mgr.go`: configureProcSysForInterface).
//!
//! IPv6 parameters are wanted only where IPv6 is used: a kernel without IPv6 does not have the files.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use crate::desired::ProxyNeighbor;
use crate::desired::tunnels::Tunnel;
use crate::model::{Endpoint, Model};

/// Wanted where a pool or a workload has IPv6.
pub(super) const FORWARDING_IPV6: &str = "net/ipv6/conf/all/forwarding";

pub(super) fn sysctls(
    model: &Model,
    tunnels: &BTreeMap<String, Tunnel>,
    proxy_neighbors: &BTreeSet<ProxyNeighbor>,
) -> BTreeMap<String, String> {
    let mut sysctls = BTreeMap::from([("net/ipv4/ip_forward".to_owned(), "1".to_owned())]);
    let addresses = || model.endpoints.values().flat_map(|endpoint| &endpoint.addresses);
    if model.pools.values().any(|pool| pool.cidr.is_ipv6()) || addresses().any(IpAddr::is_ipv6) {
        sysctls.insert(FORWARDING_IPV6.to_owned(), "1".to_owned());
    }
    for interface in tunnels.keys() {
        // While a pool changes its mode, packets may come through a tunnel and the answers go another way.
        sysctls.insert(format!("net/ipv4/conf/{interface}/rp_filter"), "2".to_owned());
    }
    sysctls.extend(of_proxy_neighbors(proxy_neighbors));
    sysctls.extend(of_workloads(model, model.endpoints.values()));
    sysctls
}

/// IPv6 wants to be told that a link has proxy neighbours.
pub(super) fn of_proxy_neighbors(
    proxy_neighbors: &BTreeSet<ProxyNeighbor>,
) -> impl Iterator<Item = (String, String)> {
    let of_ipv6 = proxy_neighbors.iter().filter(|proxy| proxy.address.is_ipv6());
    of_ipv6.map(|proxy| (proxy_ndp(&proxy.interface), "1".to_owned()))
}

/// The parameter of a link that lets it answer for IPv6 addresses of others.
pub(crate) fn proxy_ndp(interface: &str) -> String {
    format!("net/ipv6/conf/{interface}/proxy_ndp")
}

/// Those of the workloads' host ends, as far as these are there.
pub(super) fn of_workloads<'a>(
    model: &Model,
    endpoints: impl Iterator<Item = &'a Endpoint>,
) -> BTreeMap<String, String> {
    let mut sysctls = BTreeMap::new();
    for endpoint in endpoints {
        if !model.links.contains(&endpoint.host_interface) {
            continue;
        }
        let interface = &endpoint.host_interface;
        sysctls.extend(of_host_interface_ipv4(interface));
        if !super::workloads::allowed_sources(model, endpoint).is_empty() {
            // There is no route back to what it may send from besides: nftables alone judges then.
            sysctls.insert(format!("net/ipv4/conf/{interface}/rp_filter"), "0".to_owned());
        }
        if endpoint.addresses.iter().any(IpAddr::is_ipv6) {
            sysctls.extend(of_host_interface_ipv6(interface));
        }
    }
    sysctls
}

/// The IPv4 parameters of a host end: folder (`conf`, `neigh`), name, value.
pub(crate) const HOST_INTERFACE_IPV4: [(&str, &str, u32); 5] = [
    // Answer ARP for 169.254.1.1 and everything else, at once: the pod's first packet must not wait.
    ("conf", "proxy_arp", 1),
    ("neigh", "proxy_delay", 0),
    ("conf", "forwarding", 1),
    // Host ports redirected to 127.0.0.1 must reach it.
    ("conf", "route_localnet", 1),
    // A pod may send with its own addresses only.
    ("conf", "rp_filter", 1),
];

/// [`HOST_INTERFACE_IPV4`] of an interface, by path.
pub(crate) fn of_host_interface_ipv4(interface: &str) -> impl Iterator<Item = (String, String)> {
    HOST_INTERFACE_IPV4.iter().map(move |(folder, name, value)| {
        (format!("net/ipv4/{folder}/{interface}/{name}"), value.to_string())
    })
}

/// The IPv6 parameters of a host end.
pub(crate) fn of_host_interface_ipv6(interface: &str) -> Vec<(String, String)> {
    [
        ("disable_ipv6", "0"),
        // Its only address is the same on every host end: duplicate address detection would be wrong, and slow.
        ("accept_dad", "0"),
        ("proxy_ndp", "1"),
        ("forwarding", "1"),
        // A pod must not be able to give the host a route.
        ("accept_ra", "0"),
    ]
    .map(|(name, value)| (format!("net/ipv6/conf/{interface}/{name}"), value.to_owned()))
    .to_vec()
}
