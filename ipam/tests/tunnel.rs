//! The addresses of tunnel devices: Calico's handles and notes, from pools that use such tunnels.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod support;

use std::collections::BTreeMap;
use std::net::IpAddr;

use calidris_ipam::{AllocationBlock, AssignError, Ipam, MemoryStore, Tunnel, keys};
use serde_json::{Value, json};
use support::{at, invariants, now_or_never};

#[test]
fn an_address_is_given_once_with_what_calico_notes_and_found_again() {
    let ipam = cluster(&[("v", json!({"cidr": "10.1.0.0/24", "vxlanMode": "Always"}))]);
    let first = now_or_never(ipam.tunnel_address(Tunnel::Vxlan, "node-a", at(1))).unwrap();
    let before = ipam.store().dump();
    let again = now_or_never(ipam.tunnel_address(Tunnel::Vxlan, "node-a", at(99))).unwrap();
    assert_eq!(first, again);
    assert_eq!(
        before,
        ipam.store().dump(),
        "nothing is written for what is there"
    );
    let allocations = now_or_never(ipam.addresses_of_handle("vxlan-tunnel-addr-node-a")).unwrap();
    let notes: BTreeMap<&str, &str> = allocations[0]
        .attribute
        .secondary
        .iter()
        .map(|(key, value)| (key.as_str(), value.as_str()))
        .collect();
    let expected = BTreeMap::from([("node", "node-a"), ("type", "vxlanTunnelAddress")]);
    assert_eq!(notes, expected);
    assert_eq!(invariants::violations(&before), Vec::<String>::new());
}

#[test]
fn only_a_pool_that_uses_such_tunnels_and_selects_the_node_gives_one() {
    let ipam = cluster(&[
        ("plain", json!({"cidr": "10.0.0.0/24"})),
        ("ipip", json!({"cidr": "10.1.0.0/24", "ipipMode": "CrossSubnet"})),
        (
            "pods",
            json!({"cidr": "10.2.0.0/24", "vxlanMode": "Always", "allowedUses": ["Workload"]}),
        ),
        (
            "elsewhere",
            json!({"cidr": "10.3.0.0/24", "vxlanMode": "Always", "nodeSelector": "rack == 'b'"}),
        ),
        ("v6", json!({"cidr": "fd00::/64", "vxlanMode": "CrossSubnet"})),
    ]);
    let ipip = now_or_never(ipam.tunnel_address(Tunnel::Ipip, "node-a", at(1))).unwrap();
    assert_eq!(ipip.address.to_string().split('.').nth(1), Some("1"));
    let v6 = now_or_never(ipam.tunnel_address(Tunnel::VxlanV6, "node-a", at(1))).unwrap();
    assert!(v6.address.is_ipv6());
    let refused = now_or_never(ipam.tunnel_address(Tunnel::Vxlan, "node-a", at(1))).unwrap_err();
    let AssignError::Refused(refusal) = &refused else {
        unreachable!("{refused}")
    };
    let why = refusal.to_string();
    for part in [
        "pool plain: it does not use VXLAN tunnels",
        "pool ipip: it does not use VXLAN tunnels",
        "pool pods: allowedUses",
        "pool elsewhere: nodeSelector",
    ] {
        assert!(why.contains(part), "{part}: {why}");
    }
}

#[test]
fn an_address_whose_pool_is_disabled_is_replaced() {
    let old = json!({"cidr": "10.1.0.0/24", "vxlanMode": "Always"});
    let ipam = cluster(&[("old", old)]);
    let first = now_or_never(ipam.tunnel_address(Tunnel::Vxlan, "node-a", at(1))).unwrap();
    let mut kvs = ipam.store().dump();
    let disabled = json!({"cidr": "10.1.0.0/24", "vxlanMode": "Always", "disabled": true});
    kvs.extend([
        pool("old", &disabled),
        pool("new", &json!({"cidr": "10.9.0.0/24", "vxlanMode": "Always"})),
    ]);
    let ipam = Ipam::new(MemoryStore::with(kvs));
    let second = now_or_never(ipam.tunnel_address(Tunnel::Vxlan, "node-a", at(2))).unwrap();
    assert_ne!(first.address, second.address);
    assert_eq!(allocated(&ipam), [second.address]);
    now_or_never(ipam.release_tunnel_address(Tunnel::Vxlan, "node-a", at(3))).unwrap();
    assert_eq!(allocated(&ipam), [] as [IpAddr; 0]);
}

#[test]
fn an_address_stays_when_no_pool_uses_the_tunnel_until_it_is_given_back() {
    let ipam = cluster(&[("pool", json!({"cidr": "10.1.0.0/24", "vxlanMode": "Always"}))]);
    let first = now_or_never(ipam.tunnel_address(Tunnel::Vxlan, "node-a", at(1))).unwrap();
    let mut kvs = ipam.store().dump();
    kvs.extend([pool(
        "pool",
        &json!({"cidr": "10.1.0.0/24", "vxlanMode": "Never"}),
    )]);
    let ipam = Ipam::new(MemoryStore::with(kvs));
    let second = now_or_never(ipam.tunnel_address(Tunnel::Vxlan, "node-a", at(2))).unwrap();
    assert_eq!(second.address, first.address);
    now_or_never(ipam.release_tunnel_address(Tunnel::Vxlan, "node-a", at(3))).unwrap();
    assert_eq!(allocated(&ipam), [] as [IpAddr; 0]);
}

fn allocated(ipam: &Ipam<MemoryStore>) -> Vec<IpAddr> {
    let stored = ipam.store().dump();
    let blocks = stored
        .iter()
        .filter(|(key, _)| keys::parse_block(key).is_some())
        .map(|(key, value)| AllocationBlock::parse(key, value).unwrap());
    blocks
        .flat_map(|block| block.allocations().map(|a| a.address).collect::<Vec<_>>())
        .collect()
}

fn cluster(pools: &[(&str, Value)]) -> Ipam<MemoryStore> {
    let node = json!({"kind": "Node", "apiVersion": "projectcalico.org/v3",
        "metadata": {"name": "node-a", "labels": {"rack": "a"}}, "spec": {}});
    let mut kvs: Vec<(String, Vec<u8>)> = pools.iter().map(|(name, spec)| pool(name, spec)).collect();
    kvs.push((keys::resource("nodes", "node-a"), node.to_string().into_bytes()));
    Ipam::new(MemoryStore::with(kvs))
}

fn pool(name: &str, spec: &Value) -> (String, Vec<u8>) {
    let pool = json!({"kind": "IPPool", "apiVersion": "projectcalico.org/v3",
        "metadata": {"name": name}, "spec": spec});
    (format!("{}{name}", keys::IP_POOLS), pool.to_string().into_bytes())
}
