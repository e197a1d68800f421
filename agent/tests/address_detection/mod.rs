//! Each of Calico's methods finds the node's addresses among real links, and they are published.

use serde_json::Value;

use super::POOL;
use super::cluster::{Cluster, has_etcd};
use super::eventually::eventually;
use super::namespaces::possible;

const NODE: &str = "/calico/resources/v3/projectcalico.org/nodes/node1";
/// In this order: a link that is internal to a host, three that are not, and ways through the last one.
const LINKS: &str = "ip link del up0; \
    for link in docker0 up0 lan0 bond0; do ip link add $link type veth peer name $link-peer; ip link set $link-peer up; ip link set $link up; done; \
    ip addr add 172.17.0.1/16 dev docker0; ip addr add 2001:db8:17::1/64 dev docker0 nodad; \
    ip addr add 192.0.2.11/24 dev up0; ip addr add 2001:db8::11/64 dev up0 nodad; \
    ip addr add 198.51.100.11/24 dev lan0; ip addr add 2001:db8:1::11/64 dev lan0 nodad; \
    ip addr add 203.0.113.11/24 dev bond0; ip addr add 2001:db8:2::11/64 dev bond0 nodad; \
    ip route add 10.9.0.0/16 via 203.0.113.1; ip route add 2001:db8:9::/48 via 2001:db8:2::1";
const UP: [&str; 2] = ["192.0.2.11/24", "2001:db8::11/64"];
const LAN: [&str; 2] = ["198.51.100.11/24", "2001:db8:1::11/64"];
const BOND: [&str; 2] = ["203.0.113.11/24", "2001:db8:2::11/64"];

/// Waits until these are the addresses in the node's resource.
fn expect(cluster: &Cluster, method: &str, expected: [&str; 2]) {
    eventually(&format!("{method} finds {expected:?}"), || {
        let node: Value = serde_json::from_str(&cluster.value(NODE)).ok()?;
        let published = ["ipv4Address", "ipv6Address"].map(|key| node["spec"]["bgp"][key].as_str());
        (published == expected.map(Some)).then_some(())
    });
}

#[test]
fn every_method_of_address_detection_finds_its_address_among_real_links() {
    if !possible("address_detection") || !has_etcd("address_detection") {
        return;
    }
    let cluster = Cluster::new(POOL);
    cluster.node.sh(LINKS);
    let kubernetes = "CALIDRIS_NODE_INTERNAL_IPS=192.0.2.99,198.51.100.11,2001:db8:1::11";
    // Each finds others than the one before.
    let rows = [
        ("first-found", "first-found", UP),
        ("interface=none,lan.*", "interface=lan.*", LAN),
        ("skip-interface=up,lan", "skip-interface=up.*,^lan", BOND),
        ("cidr=198.51.100.0/24", "cidr=2001:db8:1::/64", LAN),
        ("can-reach=10.9.9.9", "can-reach=2001:db8:9::9", BOND),
        ("kubernetes-internal-ip", "kubernetes-internal-ip", LAN),
    ];
    for (v4, v6, expected) in rows {
        let keys = format!("ipv4_detection = \"{v4}\"\nipv6_detection = \"{v6}\"");
        let _agent = cluster.spawn_agent_as(&keys, "", kubernetes);
        expect(&cluster, v4, expected);
        if v4.starts_with("interface=") {
            cluster
                .node
                .sh("ip addr del 198.51.100.11/24 dev lan0; ip addr add 198.51.100.12/24 dev lan0");
            expect(&cluster, "the new address", ["198.51.100.12/24", LAN[1]]);
            cluster
                .node
                .sh("ip addr del 198.51.100.12/24 dev lan0; ip addr add 198.51.100.11/24 dev lan0");
        }
    }
}
