//! The demo's file is right, and what is wrong is named.

use super::*;

fn demo() -> Topology {
    Topology::parse(DEMO).unwrap()
}

fn error_of(changed: &str, with: &str) -> String {
    assert!(
        DEMO.contains(changed),
        "{changed:?} is not in the demo's topology"
    );
    format!(
        "{:#}",
        Topology::parse(&DEMO.replacen(changed, with, 1)).unwrap_err()
    )
}

#[test]
fn routers_get_their_nodes_and_each_other_as_neighbors() {
    let topology = demo();
    let bird = topology.router_config("router1").unwrap();
    let names: Vec<_> = bird
        .neighbors
        .iter()
        .map(|n| (n.name.as_str(), n.as_number))
        .collect();
    assert_eq!(names, [("node1", 65001), ("node2", 65001), ("router2", 65002)]);
    assert_eq!(bird.router_id, Ipv4Addr::new(172, 20, 0, 1));
    assert_eq!(bird.announce.len(), 2);
    let frr = topology.router_config("router2").unwrap();
    let addresses: Vec<_> = frr.neighbors.iter().map(|n| n.address.to_string()).collect();
    assert_eq!(addresses, ["198.51.100.13", "172.20.0.1"]);
}

#[test]
fn fewer_nodes_are_the_first_ones() {
    let mut topology = demo();
    topology.scale(1).unwrap();
    assert_eq!(topology.nodes.len(), 1);
    assert!(topology.scale(0).is_err());
}

#[test]
fn more_nodes_are_copies_with_addresses_and_as_numbers_of_their_own() {
    let mut topology = demo();
    topology.scale(7).unwrap();
    let nodes: Vec<_> = topology
        .nodes
        .iter()
        .skip(3)
        .map(|n| (n.name.as_str(), n.address.to_string(), n.as_number))
        .collect();
    let expected = [
        ("node4", "192.0.2.13", 65001),
        ("node5", "192.0.2.14", 65001),
        ("node6", "198.51.100.14", 64514),
        ("node7", "192.0.2.15", 65001),
    ];
    assert_eq!(
        nodes,
        expected.map(|(name, address, number)| (name, address.to_owned(), number))
    );
}

#[test]
fn management_addresses_begin_with_etcd() {
    let topology = demo();
    assert_eq!(topology.etcd_address().unwrap().to_string(), "172.31.0.1");
    assert_eq!(
        topology.node_management_address(0).unwrap().to_string(),
        "172.31.0.2"
    );
}

#[test]
fn mistakes_are_refused_with_what_and_where() {
    let cases = [
        ("pods_per_node = 2", "pods_per_nod = 2", "pods_per_nod"),
        ("kind = \"bird\"", "kind = \"quagga\"", "quagga"),
        ("hold_time = 9", "hold_time = 2", "hold_time 2"),
        (
            "address = \"192.0.2.11\"",
            "address = \"192.0.3.11\"",
            "node node1: 192.0.3.11 is not in subnet rack1",
        ),
        (
            "address = \"192.0.2.12\"",
            "address = \"192.0.2.11\"",
            "192.0.2.11 is used 2 times",
        ),
        ("name = \"node2\"", "name = \"node1\"", "\"node1\" is used twice"),
        ("name = \"node2\"", "name = \"Node2\"", "\"Node2\": expected"),
        (
            "router = \"router2\"",
            "router = \"router9\"",
            "no router \"router9\"",
        ),
        (
            "peers = [\"router2\"]",
            "peers = [\"router1\"]",
            "peers with itself",
        ),
        (
            "announce = [\"rack2\"]",
            "announce = [\"rack1\"]",
            "announces \"rack1\"",
        ),
        ("block_size = 26", "block_size = 12", "block_size 12"),
        ("cidr = \"192.0.2.0/24\"", "cidr = \"192.0.2.1/24\"", "bits set"),
    ];
    for (changed, with, expected) in cases {
        let error = error_of(changed, with);
        assert!(
            error.contains(expected),
            "{with}: expected {expected:?} in {error:?}"
        );
    }
}
