//! Which way leads to another node's block, by mode and by what both nodes have.

use super::*;
use crate::desired::cluster::routes;
use crate::desired::tunnels::tunnels;
use crate::model::{ClusterBlock, Encapsulation, Interface, NodeFacts, Pool};

/// What stands for a way: `-` none.
fn way(mode: Encapsulation, node: &NodeFacts, change: impl Fn(&mut Model)) -> String {
    let mut model = Model::new("node-a".into());
    model.settings.ipv4_address = Some("192.0.2.11/24".parse().unwrap());
    let interface = Interface {
        index: 2,
        up: true,
        running: true,
        mtu: 1500,
        addresses: vec!["192.0.2.11/24".parse().unwrap()],
    };
    model.interfaces.insert("eth0".into(), interface);
    let pool = Pool {
        cidr: "10.65.0.0/16".parse().unwrap(),
        nat_outgoing: false,
        encapsulation: mode,
        disable_bgp_export: false,
    };
    model.pools.insert("pool".into(), pool);
    for (kind, address) in [
        (TunnelKind::VxlanV4, "10.65.0.1"),
        (TunnelKind::Ipip, "10.65.0.2"),
    ] {
        model
            .tunnel_addresses
            .insert(kind, Some(address.parse().unwrap()));
    }
    model.cluster.nodes.insert("node-b".into(), node.clone());
    let block = ClusterBlock {
        owner: Some("node-b".into()),
        ..ClusterBlock::default()
    };
    model
        .cluster
        .blocks
        .insert("10.65.1.0/26".parse().unwrap(), block);
    change(&mut model);
    let routes = routes(&model, &tunnels(&model));
    routes
        .values()
        .next()
        .map_or_else(|| "-".to_owned(), |route| route.path.to_string())
}

fn node(address: &str) -> NodeFacts {
    NodeFacts {
        ipv4: Some(address.parse().unwrap()),
        tunnels: [
            (TunnelKind::VxlanV4, "10.65.1.1".parse().unwrap()),
            (TunnelKind::Ipip, "10.65.1.2".parse().unwrap()),
        ]
        .into(),
        macs: [(TunnelKind::VxlanV4, [0x66, 0, 0, 0, 0, 1])].into(),
        ..NodeFacts::default()
    }
}

#[test]
fn the_mode_and_the_subnet_decide() {
    let direct = |model: &mut Model| model.settings.direct_routes = true;
    let as_it_is = |_: &mut Model| {};
    let (near, far) = (node("192.0.2.12/24"), node("198.51.100.12/24"));
    let (vxlan, ipip_near, ipip_far, straight) = (
        "via 10.65.1.1 dev vxlan.calico onlink",
        "via 192.0.2.12 dev tunl0 onlink",
        "via 198.51.100.12 dev tunl0 onlink",
        "via 192.0.2.12 dev eth0 onlink",
    );
    for (mode, to_near, to_far) in [
        (Encapsulation::None, "-", "-"),
        (Encapsulation::VxlanAlways, vxlan, vxlan),
        (Encapsulation::VxlanCrossSubnet, straight, vxlan),
        (Encapsulation::IpipAlways, ipip_near, ipip_far),
        (Encapsulation::IpipCrossSubnet, straight, ipip_far),
    ] {
        assert_eq!(way(mode, &near, as_it_is), to_near, "{mode:?}");
        assert_eq!(way(mode, &far, as_it_is), to_far, "{mode:?}");
    }
    assert_eq!(way(Encapsulation::None, &near, direct), straight);
    assert_eq!(way(Encapsulation::None, &far, direct), "-");
}

#[test]
fn until_both_are_ready_the_tunnel_they_still_have_is_used() {
    let mut far = node("198.51.100.12/24");
    let as_it_is = |_: &mut Model| {};
    far.tunnels.remove(&TunnelKind::VxlanV4);
    assert_eq!(
        way(Encapsulation::VxlanAlways, &far, as_it_is),
        "via 198.51.100.12 dev tunl0 onlink"
    );
    far.tunnels.remove(&TunnelKind::Ipip);
    let mut near = node("192.0.2.12/24");
    near.tunnels.clear();
    let direct = |model: &mut Model| model.settings.direct_routes = true;
    for mode in [Encapsulation::VxlanAlways, Encapsulation::IpipAlways] {
        assert_eq!(way(mode, &near, direct), "via 192.0.2.12 dev eth0 onlink");
        assert_eq!(way(mode, &near, as_it_is), "-");
    }
    assert_eq!(way(Encapsulation::VxlanAlways, &far, as_it_is), "-");
    let without_own = |model: &mut Model| {
        model.tunnel_addresses.remove(&TunnelKind::Ipip);
    };
    assert_eq!(
        way(Encapsulation::IpipAlways, &node("198.51.100.12/24"), without_own),
        "via 10.65.1.1 dev vxlan.calico onlink"
    );
}

#[test]
fn what_the_datastore_says_comes_before_bgp_and_after_workloads() {
    let mut model = tests::model(
        &["10.65.0.0/26"],
        &["cali1 10.65.0.2"],
        &["10.65.1.0/26 192.0.2.7"],
    );
    model.in_sync.cluster = true;
    model.settings.direct_routes = true;
    model.settings.ipv4_address = Some("192.0.2.11/24".parse().unwrap());
    let interface = Interface {
        index: 2,
        up: true,
        running: true,
        mtu: 1500,
        addresses: vec!["192.0.2.11/24".parse().unwrap()],
    };
    model.interfaces.insert("eth0".into(), interface);
    model.cluster.nodes.insert("node-b".into(), node("192.0.2.12/24"));
    let learned: Vec<IpNetwork> = model.learned.keys().copied().filter(IpNetwork::is_ipv4).collect();
    let own = model.own_blocks.iter().copied().find(IpNetwork::is_ipv4).unwrap();
    let borrowed = own.iter().last().unwrap();
    let workload = model
        .endpoints
        .values()
        .flat_map(|endpoint| &endpoint.addresses)
        .copied()
        .find(IpAddr::is_ipv4)
        .unwrap();
    for block in &learned {
        let facts = ClusterBlock {
            owner: Some("node-b".into()),
            ..ClusterBlock::default()
        };
        model.cluster.blocks.insert(*block, facts);
    }
    let facts = ClusterBlock {
        owner: Some(model.node_name.clone()),
        borrowed: [(borrowed, "node-b".to_owned()), (workload, "node-b".to_owned())].into(),
    };
    model.cluster.blocks.insert(own, facts);
    let routes = compute(&model).routes;
    let origin = |destination: IpNetwork| routes[&RouteKey::main(destination)].origin;
    assert!(!learned.is_empty());
    for block in learned {
        assert_eq!(origin(block), RouteOrigin::Cluster, "{block}");
    }
    assert_eq!(origin(own), RouteOrigin::Local);
    assert_eq!(origin(borrowed.into()), RouteOrigin::Cluster);
    assert_eq!(origin(workload.into()), RouteOrigin::Local);
}

#[test]
fn devices_are_published_while_they_stand() {
    let mut model = Model::new("node-a".into());
    for (kind, address) in [(TunnelKind::VxlanV4, Some("10.65.0.1")), (TunnelKind::Ipip, None)] {
        model
            .tunnel_addresses
            .insert(kind, address.map(|address| address.parse().unwrap()));
    }
    let Published { facts, decided } = compute(&model).published;
    assert_eq!(
        decided,
        [TunnelKind::Ipip].into(),
        "without an address of the node there is no device yet"
    );
    assert!(facts.tunnels.is_empty());
    model.settings.ipv4_address = Some("192.0.2.11/24".parse().unwrap());
    let Published { facts, decided } = compute(&model).published;
    assert_eq!(
        decided,
        [TunnelKind::Ipip, TunnelKind::VxlanV4].into(),
        "nothing is known of the third"
    );
    assert_eq!(facts.tunnels.keys().collect::<Vec<_>>(), [&TunnelKind::VxlanV4]);
    assert_eq!(
        facts.vxlan(TunnelKind::VxlanV4).unwrap().mac,
        vxlan_mac("node-a", TunnelKind::VxlanV4)
    );
}
