//! Tunnels, their addresses and neighbours, and the routes through them, against a kernel in memory.

use super::*;
use crate::clock;
use crate::desired::{NeighborSubject, NeighborTarget, Transport, compute};
use crate::kernel::fake::{FakeKernel, Fault};
use crate::kernel::node_interfaces;
use crate::model::{ClusterBlock, Encapsulation, Model, NodeFacts, Pool, TunnelKind};
use crate::ours::{IPIP, VXLAN_V4, VXLAN_V6};

const IN_SYNC: InSync = InSync {
    datastore: true,
    bgp: true,
    cluster: true,
};

/// A node with a VXLAN pool of each family and an IPIP pool, and two others: one in its subnet, one not.
pub(super) fn model() -> Model {
    let mut model = Model::new("node-a".into());
    model.in_sync = IN_SYNC;
    model.settings.ipv4_address = Some("192.0.2.11/24".parse().unwrap());
    model.settings.ipv6_address = Some("2001:db8::11/64".parse().unwrap());
    for (cidr, encapsulation) in [
        ("10.65.0.0/16", Encapsulation::VxlanAlways),
        ("10.66.0.0/16", Encapsulation::IpipCrossSubnet),
        ("fd00:10:65::/64", Encapsulation::VxlanCrossSubnet),
    ] {
        let pool = Pool {
            cidr: cidr.parse().unwrap(),
            nat_outgoing: false,
            encapsulation,
            disable_bgp_export: false,
        };
        model.pools.insert(cidr.into(), pool);
    }
    for (kind, address) in [
        (TunnelKind::VxlanV4, "10.65.0.1"),
        (TunnelKind::VxlanV6, "fd00:10:65::1"),
        (TunnelKind::Ipip, "10.66.0.1"),
    ] {
        model
            .tunnel_addresses
            .insert(kind, Some(address.parse().unwrap()));
    }
    for (name, number, subnet) in [
        ("node-b", 2, ("192.0.2", "2001:db8")),
        ("node-c", 3, ("198.51.100", "2001:db8:1")),
    ] {
        let mac = [0x66, 0, 0, 0, 0, number];
        let facts = NodeFacts {
            ipv4: Some(format!("{}.1{number}/24", subnet.0).parse().unwrap()),
            ipv6: Some(format!("{}::1{number}/64", subnet.1).parse().unwrap()),
            tunnels: [
                (TunnelKind::VxlanV4, format!("10.65.{number}.1").parse().unwrap()),
                (
                    TunnelKind::VxlanV6,
                    format!("fd00:10:65::{number}:1").parse().unwrap(),
                ),
                (TunnelKind::Ipip, format!("10.66.{number}.1").parse().unwrap()),
            ]
            .into(),
            macs: [(TunnelKind::VxlanV4, mac), (TunnelKind::VxlanV6, mac)].into(),
        };
        model.cluster.nodes.insert(name.into(), facts);
        for block in [
            format!("10.65.{number}.0/26"),
            format!("10.66.{number}.0/26"),
            format!("fd00:10:65::{number}:0/122"),
        ] {
            let block_facts = ClusterBlock {
                owner: Some(name.into()),
                ..ClusterBlock::default()
            };
            model.cluster.blocks.insert(block.parse().unwrap(), block_facts);
        }
    }
    model
}

fn kernel() -> FakeKernel {
    let mut kernel = FakeKernel::default();
    for path in ["net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"] {
        kernel.sysctls.insert(path.into(), "0".into());
    }
    kernel.add_link("up0");
    kernel.addresses.insert(
        "up0".into(),
        ["192.0.2.11/24", "2001:db8::11/64"]
            .map(|address| address.parse().unwrap())
            .into(),
    );
    kernel
}

/// A kernel in which much is wrong: a device with another VNI, one with another MTU, what nobody wants on both.
fn damaged(model: &Model) -> FakeKernel {
    let mut dataplane = Dataplane::new(kernel());
    settle(&mut dataplane, model);
    let mut kernel = dataplane.kernel;
    let link = kernel.links.get_mut(VXLAN_V4).unwrap();
    if let Some(Transport::Vxlan { vni, .. }) = &mut link.transport {
        *vni = 7;
    }
    kernel.links.get_mut(VXLAN_V6).unwrap().mtu = 1500;
    for name in [VXLAN_V4, VXLAN_V6] {
        let unwanted = "10.99.0.1/32".parse().unwrap();
        kernel.addresses.entry(name.into()).or_default().push(unwanted);
        let key = NeighborKey {
            interface: name.into(),
            subject: NeighborSubject::Mac([0x66, 9, 9, 9, 9, 9]),
        };
        let unwanted = ObservedNeighbor {
            target: NeighborTarget::Node("192.0.2.99".parse().unwrap()),
            is_permanent: true,
            is_marked: false,
        };
        kernel.neighbors.insert(key, unwanted);
    }
    kernel.remove_link(IPIP);
    kernel.fault = None;
    (kernel.calls, kernel.writes) = (0, 0);
    kernel
}

fn observed(dataplane: &mut Dataplane<FakeKernel>, model: &Model) -> Model {
    let mut model = model.clone();
    if let Ok((links, addresses)) = dataplane.observed() {
        model.observe(links.keys(), node_interfaces(links, addresses));
    }
    model
}

/// Turns until nothing fails, at the times that the reports name. A livelock fails.
fn settle(dataplane: &mut Dataplane<FakeKernel>, model: &Model) -> Vec<Op> {
    let mut now = clock::now();
    let mut ops = Vec::new();
    for _ in 0..10 {
        let desired = compute(&observed(dataplane, model));
        let report = dataplane.apply(&desired, model.in_sync, now);
        ops.extend(report.ops);
        match report.retry_at {
            // What the turn saw may have been old: the next one sees it new.
            None if compute(&observed(dataplane, model)) == desired => return ops,
            None => {}
            Some(at) => now = at,
        }
    }
    panic!("does not settle: {ops:#?}");
}

fn assert_as_desired(dataplane: &mut Dataplane<FakeKernel>, model: &Model, at: &str) {
    let desired = compute(&observed(dataplane, model));
    let kernel = &dataplane.kernel;
    let there: BTreeMap<NeighborKey, NeighborTarget> = kernel
        .neighbors
        .iter()
        .map(|(key, found)| (key.clone(), found.target))
        .collect();
    assert_eq!(there, desired.neighbors, "{at}");
    for (name, tunnel) in &desired.tunnels {
        let link = &kernel.links[name];
        assert_eq!(link.transport.as_ref(), Some(&tunnel.transport), "{at}");
        assert_eq!(
            (link.mtu, link.mac, link.up),
            (tunnel.mtu, tunnel.mac, true),
            "{at}"
        );
    }
    let addresses: Vec<String> = kernel
        .addresses
        .iter()
        .map(|(name, all)| format!("{name} {all:?}"))
        .collect();
    for name in ours::TUNNELS {
        let wanted = desired
            .addresses
            .iter()
            .filter(|address| address.interface == name);
        let wanted: Vec<IpNetwork> = wanted.map(|address| address.address).collect();
        assert_eq!(
            kernel.addresses.get(name).cloned().unwrap_or_default(),
            wanted,
            "{at}: {addresses:?}"
        );
    }
    assert_eq!(kernel.routes.len(), desired.routes.len(), "{at}");
    for (key, route) in &desired.routes {
        assert!(
            kernel.routes.get(key).is_some_and(|found| found.is(route)),
            "{at}: {key}"
        );
    }
}

#[test]
fn with_any_call_failing_in_any_way_it_gets_there_and_then_writes_nothing() {
    let model = model();
    for start in [kernel(), damaged(&model)] {
        let mut undisturbed = Dataplane::new(start.clone());
        settle(&mut undisturbed, &model);
        let calls = undisturbed.kernel.calls;
        assert!(calls > 25, "{calls} calls only");
        for call in 0..calls {
            for fault in [Fault::Refused, Fault::LostBefore, Fault::LostAfter] {
                let faulty = FakeKernel {
                    fault: Some((call, fault)),
                    ..start.clone()
                };
                let mut dataplane = Dataplane::new(faulty);
                settle(&mut dataplane, &model);
                let at = format!("call {call} {fault:?}");
                assert_as_desired(&mut dataplane, &model, &at);
                let writes = dataplane.kernel.writes;
                dataplane.note(KernelChange::Everything);
                assert_eq!(settle(&mut dataplane, &model), [], "{at}");
                assert_eq!(dataplane.kernel.writes, writes, "{at}");
            }
        }
    }
}

#[test]
fn what_is_on_an_overlay_is_there_before_its_routes_and_goes_after_them() {
    let mut model = model();
    let mut dataplane = Dataplane::new(kernel());
    let rank = |op: &Op| Stage::of(op) as usize;
    let ops = settle(&mut dataplane, &model);
    assert!(ops.is_sorted_by_key(rank), "{ops:#?}");
    for pool in model.pools.values_mut() {
        pool.encapsulation = Encapsulation::None;
    }
    let ops = settle(&mut dataplane, &model);
    assert!(
        ops.iter()
            .all(|op| matches!(op, Op::Route(Change::Delete { .. }))),
        "the devices linger: {ops:#?}"
    );
    for kind in TunnelKind::ALL {
        model.tunnel_addresses.insert(kind, None);
    }
    let ops = settle(&mut dataplane, &model);
    assert!(ops.is_sorted_by_key(rank), "{ops:#?}");
    assert!(!dataplane.kernel.links.contains_key(VXLAN_V4) && dataplane.kernel.neighbors.is_empty());
}

#[test]
fn before_it_is_known_whether_a_tunnel_is_wanted_nothing_of_it_is_touched() {
    let model = model();
    let mut dataplane = Dataplane::new(kernel());
    settle(&mut dataplane, &model);
    let kernel = dataplane.kernel;
    for unknown in [
        Model::new("node-a".into()),
        Model {
            in_sync: IN_SYNC,
            ..Model::new("node-a".into())
        },
        Model {
            in_sync: InSync::default(),
            cluster: crate::model::Cluster::default(),
            ..model.clone()
        },
    ] {
        let mut restarted = Dataplane::new(kernel.clone());
        let ops = settle(&mut restarted, &unknown);
        let touched = ops.iter().filter(|op| !matches!(op, Op::Route(_) | Op::Nft(_)));
        assert_eq!(touched.count(), 0, "{ops:#?}");
        for name in TunnelKind::ALL.into_iter().flat_map(nft_tables::tunnel_sets) {
            let elements = |kernel: &FakeKernel| kernel.nft[&NftFamily::Inet].sets[&name].elements.clone();
            assert!(!elements(&kernel).is_empty(), "{name}");
            assert_eq!(elements(&restarted.kernel), elements(&kernel), "{name}");
        }
    }
}

#[test]
fn a_tunnel_is_open_to_the_other_nodes_once_they_are_known_and_to_nobody_else() {
    let mut model = model();
    let mut dataplane = Dataplane::new(kernel());
    let sets = |dataplane: &Dataplane<FakeKernel>, kind| {
        nft_tables::tunnel_sets(kind).map(|name| {
            let elements = &dataplane.kernel.nft[&NftFamily::Inet].sets[&name].elements;
            let elements: Vec<String> = elements.iter().map(ToString::to_string).collect();
            elements.join(" ")
        })
    };
    let cluster = std::mem::take(&mut model.cluster);
    model.in_sync.cluster = false;
    settle(&mut dataplane, &model);
    assert_eq!(sets(&dataplane, TunnelKind::VxlanV4), ["", ""]);

    model.cluster = cluster;
    model.in_sync.cluster = true;
    settle(&mut dataplane, &model);
    for (kind, end, peers) in [
        (TunnelKind::VxlanV4, "192.0.2.11", "192.0.2.12 198.51.100.13"),
        (TunnelKind::Ipip, "192.0.2.11", "192.0.2.12 198.51.100.13"),
        (TunnelKind::VxlanV6, "2001:db8::11", "2001:db8::12 2001:db8:1::13"),
    ] {
        assert_eq!(sets(&dataplane, kind), [end, peers], "{kind:?}");
    }

    model.cluster.nodes.remove("node-c");
    settle(&mut dataplane, &model);
    assert_eq!(sets(&dataplane, TunnelKind::Ipip), ["192.0.2.11", "192.0.2.12"]);
}

#[test]
fn links_of_others_with_a_tunnels_name_stay() {
    let model = model();
    let mut start = kernel();
    start.add_link(VXLAN_V4);
    let mut dataplane = Dataplane::new(start.clone());
    let desired = compute(&observed(&mut dataplane, &model));
    let report = dataplane.apply(&desired, IN_SYNC, clock::now());
    assert!(report.has_tunnel_failure());
    let failures: Vec<String> = report.failures.iter().map(ToString::to_string).collect();
    assert!(
        failures
            .iter()
            .any(|failure| failure.contains("tunnel vxlan.calico")),
        "{failures:#?}"
    );
    assert_eq!(dataplane.kernel.links[VXLAN_V4], start.links[VXLAN_V4]);
    // One that nobody marked as ours is not removed either.
    let mut none_wanted = model;
    none_wanted.pools.clear();
    for kind in TunnelKind::ALL {
        none_wanted.tunnel_addresses.insert(kind, None);
    }
    let mut foreign = damaged(&self::model());
    foreign.links.get_mut(VXLAN_V4).unwrap().alias = None;
    let mut dataplane = Dataplane::new(foreign);
    settle(&mut dataplane, &none_wanted);
    assert!(dataplane.kernel.links.contains_key(VXLAN_V4));
    assert!(!dataplane.kernel.links.contains_key(VXLAN_V6));
}

#[test]
fn a_gateway_is_there_before_routes_of_other_links_to_its_block_are_replaced() {
    let mut model = model();
    model.settings.direct_routes = true;
    for pool in model.pools.values_mut() {
        pool.encapsulation = Encapsulation::None;
    }
    let tunnels = std::mem::take(&mut model.tunnel_addresses);
    model.cluster.nodes.remove("node-c");
    let mut dataplane = Dataplane::new(kernel());
    settle(&mut dataplane, &model);
    for pool in model.pools.values_mut() {
        pool.encapsulation = Encapsulation::VxlanAlways;
    }
    model.tunnel_addresses = tunnels;
    let desired = compute(&observed(&mut dataplane, &model));
    let report = dataplane.apply(&desired, IN_SYNC, clock::now());
    assert!(report.failures.is_empty(), "{:#?}", report.failures);
    assert_as_desired(&mut dataplane, &model, "after the change");
}

#[test]
fn the_uplinks_mtu_reaches_the_tunnels() {
    let model = model();
    let mut dataplane = Dataplane::new(kernel());
    settle(&mut dataplane, &model);
    assert_eq!(dataplane.kernel.links[VXLAN_V4].mtu, 1450);
    assert_eq!(dataplane.kernel.links[VXLAN_V6].mtu, 1430);
    assert_eq!(dataplane.kernel.links[IPIP].mtu, 1480);
    dataplane.kernel.links.get_mut("up0").unwrap().mtu = 9000;
    dataplane.note(KernelChange::Links);
    let ops = settle(&mut dataplane, &model);
    assert_eq!(ops.len(), 3, "{ops:#?}");
    assert_eq!(dataplane.kernel.links[VXLAN_V4].mtu, 8950);
    let is_through_tunnel = |path: &Option<RoutePath>| matches!(path, Some(RoutePath::Onlink { .. }));
    assert_eq!(
        dataplane
            .kernel
            .routes
            .values()
            .filter(|route| is_through_tunnel(&route.path))
            .count(),
        6
    );
}
