//! The rules that a topology must keep, and what is said when it does not.

use std::collections::BTreeSet;
use std::net::IpAddr;

use anyhow::{Context, ensure};

use super::{Topology, router_id, shared_subnet};
use crate::fabric::LONGEST_INTERFACE;

/// Checks everything that later steps rely on.
pub(super) fn check(topology: &Topology) -> anyhow::Result<()> {
    ensure!(
        topology.hold_time >= 3,
        "hold_time {}: expected 3 or more",
        topology.hold_time
    );
    ensure!(!topology.nodes.is_empty(), "expected at least one [[node]]");
    check_names(topology)?;
    for subnet in topology.subnets.iter().chain([&topology.management]) {
        ensure!(
            subnet.cidr.ip() == subnet.cidr.network(),
            "subnet {}: {} has bits set beyond its prefix length",
            subnet.name,
            subnet.cidr
        );
    }
    for pool in &topology.pools {
        let longest = if pool.cidr.is_ipv4() { 32 } else { 128 };
        ensure!(
            (pool.cidr.prefix()..=longest).contains(&pool.block_size),
            "pool {}: block_size {}: expected {} to {longest}",
            pool.name,
            pool.block_size,
            pool.cidr.prefix()
        );
    }
    check_routers(topology)?;
    for node in &topology.nodes {
        let who = format!("node {}", node.name);
        check_member(topology, &who, (&node.name, &node.subnet), node.address)?;
        ensure!(
            node.address.is_ipv4(),
            "{who}: {}: expected an IPv4 address",
            node.address
        );
        topology.router_address(&node.router, &node.subnet).context(who)?;
    }
    for host in &topology.hosts {
        let who = format!("host {}", host.name);
        check_member(topology, &who, (&host.name, &host.subnet), host.address)?;
        topology.router_address(&host.router, &host.subnet).context(who)?;
    }
    topology.node_management_address(topology.nodes.len()).map(drop)
}

fn check_names(topology: &Topology) -> anyhow::Result<()> {
    let members = (topology.routers.iter().map(|router| &router.name))
        .chain(topology.nodes.iter().map(|node| &node.name))
        .chain(topology.hosts.iter().map(|host| &host.name));
    let subnets = topology
        .subnets
        .iter()
        .map(|subnet| &subnet.name)
        .chain([&topology.management.name]);
    let mut seen = BTreeSet::from(["etcd", "fabric", "pod"]);
    for name in members.chain(subnets) {
        let mut bytes = name.bytes();
        let form = bytes.next().is_some_and(|b| b.is_ascii_lowercase())
            && bytes.all(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
        ensure!(form, "name {name:?}: expected a-z, then a-z or 0-9");
        ensure!(
            seen.insert(name),
            "name {name:?} is used twice (etcd, fabric and pod are the lab's own)"
        );
    }
    Ok(())
}

fn check_routers(topology: &Topology) -> anyhow::Result<()> {
    for router in &topology.routers {
        let who = format!("router {}", router.name);
        router_id(router)?;
        for (subnet, address) in &router.addresses {
            check_member(topology, &who, (&router.name, subnet), *address)?;
        }
        for subnet in &router.announce {
            ensure!(
                router.addresses.contains_key(subnet),
                "{who}: announces {subnet:?}, has no address in it"
            );
        }
        for peer in &router.peers {
            let peer = topology.router(peer).with_context(|| format!("{who}: peers"))?;
            ensure!(peer.name != router.name, "{who}: peers with itself");
            ensure!(
                shared_subnet(router, peer).is_some(),
                "{who}: peers with {} but shares no subnet with it",
                peer.name
            );
        }
    }
    Ok(())
}

fn check_member(
    topology: &Topology,
    who: &str,
    (name, subnet): (&str, &str),
    address: IpAddr,
) -> anyhow::Result<()> {
    let cidr = topology.subnet(subnet).with_context(|| who.to_owned())?.cidr;
    ensure!(
        cidr.contains(address),
        "{who}: {address} is not in subnet {subnet} ({cidr})"
    );
    let port = format!("{name}.{subnet}");
    ensure!(
        port.len() <= LONGEST_INTERFACE,
        "{who}: its switch port {port:?} is longer than {LONGEST_INTERFACE} characters; choose shorter names"
    );
    let uses = topology.uses_of(address);
    ensure!(uses <= 1, "{who}: {address} is used {uses} times");
    Ok(())
}
