//! Nexthop groups on the real kernel, in namespaces: IPv4 and IPv6, IPv4 behind IPv6 gateways, links without addresses; what the
//! kernel, others and a restart do to them.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test may fail by panicking")]

mod eventually;
mod namespaces;

use std::collections::BTreeMap;

use calidris_agent::apply::{ApplyReport, Dataplane};
use calidris_agent::cleanup::{self, Mode};
use calidris_agent::clock;
use calidris_agent::desired::{Desired, compute};
use calidris_agent::kernel::{KernelChange, Linux, node_interfaces};
use calidris_agent::model::{InSync, Input, Learned, Model, NextHop};
use eventually::eventually;
use namespaces::{Namespace, possible};

const IN_SYNC: InSync = InSync {
    datastore: true,
    bgp: true,
    cluster: true,
};
/// Routes of each kind.
const ROUTES: u8 = 20;

/// A node with three uplinks, `up0` to `up2`, whose other ends are `pe0` to `pe2`. The last has link-local addresses only.
fn node() -> Namespace {
    let node = Namespace::new();
    for link in 0..3 {
        node.sh(&format!(
            "ip link add up{link} type veth peer name pe{link}; ip link set pe{link} up; ip link set up{link} up"
        ));
    }
    for link in 0..2 {
        node.sh(&format!(
            "ip addr add 192.0.{link}.1/24 dev up{link}; ip addr add 2001:db8:{link}::1/64 dev up{link} nodad"
        ));
    }
    node
}

fn hop(address: &str, interface: Option<&str>) -> NextHop {
    NextHop {
        address: address.parse().unwrap(),
        interface: interface.map(str::to_owned),
    }
}

/// Routes through two gateways: IPv4, IPv6, and IPv4 through IPv6 gateways of which one is on the link without addresses.
fn model(links: &[u8]) -> Model {
    let mut model = Model::new("node-a".into());
    model.in_sync = IN_SYNC;
    let unnumbered = hop("fe80::2", Some("up2"));
    let v4 = links.iter().map(|link| hop(&format!("192.0.{link}.2"), None));
    let v6 = links.iter().map(|link| hop(&format!("2001:db8:{link}::2"), None));
    let mixed = v6.clone().chain([unnumbered]);
    let kinds: [(&str, &str, Vec<NextHop>); 3] = [
        ("10.1.", ".0/24", v4.collect()),
        ("fd00:", "::/64", v6.collect()),
        ("10.2.", ".0/24", mixed.collect()),
    ];
    let mut learned = BTreeMap::new();
    for (begin, end, hops) in kinds {
        for number in 0..ROUTES {
            let prefix = format!("{begin}{number}{end}").parse().unwrap();
            learned.insert(prefix, Learned::via(hops.iter().cloned().collect()));
        }
    }
    model.absorb(Input::Learned(learned));
    model
}

/// A turn that reads everything back.
fn turn(dataplane: &mut Dataplane<Linux>, model: &mut Model) -> ApplyReport {
    dataplane.note(KernelChange::Everything);
    let (links, addresses) = dataplane.observed().unwrap();
    model.observe(links.keys(), node_interfaces(links, addresses));
    let report = dataplane.apply(&desired(model), model.in_sync, clock::now());
    assert!(report.failures.is_empty(), "{:#?}", report.failures);
    report
}

/// Without the sysctls and tables of a node, which this is not about.
fn desired(model: &Model) -> Desired {
    Desired {
        routes: compute(model).routes,
        ..Desired::default()
    }
}

fn lines(report: &ApplyReport) -> Vec<String> {
    let lines = report.ops.iter().map(ToString::to_string);
    lines.filter(|line| !line.starts_with("nft: ")).collect()
}

fn fresh() -> Dataplane<Linux> {
    Dataplane::new(Linux::open().unwrap())
}

/// Numbers of nexthop objects that the routes of a family refer to, and how many routes do.
fn referred(node: &Namespace, family: &str) -> BTreeMap<String, usize> {
    let mut found = BTreeMap::new();
    for line in node.sh(&format!("ip {family} -o route show proto 203")).lines() {
        let id = line.split("nhid ").nth(1).and_then(|rest| rest.split(' ').next());
        *found.entry(id.unwrap_or("none").to_owned()).or_default() += 1;
    }
    found
}

/// The kernel looks at an address again when its link comes up.
fn until_usable(node: &Namespace, address: &str) {
    eventually(&format!("{address} is usable"), || {
        let shown = node.sh(&format!("ip -6 -o addr show to {address} -tentative"));
        (!shown.is_empty()).then_some(())
    });
}

#[test]
fn groups_are_made_for_both_families_and_a_second_start_writes_nothing() {
    if !possible("groups_are_made") {
        return;
    }
    let node = node();
    node.run(|| {
        let mut model = model(&[0, 1]);
        let report = turn(&mut fresh(), &mut model);
        let ours = usize::from(ROUTES) * 3;
        // Five gateways; three groups.
        assert_eq!(lines(&report).len(), ours + 5 + 3, "{:#?}", lines(&report));
        let four = referred(&node, "-4");
        assert_eq!(
            four.values().copied().collect::<Vec<_>>(),
            [usize::from(ROUTES); 2],
            "{four:?}"
        );
        let six = referred(&node, "-6");
        assert_eq!(
            six.values().copied().collect::<Vec<_>>(),
            [usize::from(ROUTES)],
            "{six:?}"
        );
        assert!(!four.contains_key("none") && !six.contains_key("none"));
        assert_eq!(lines(&turn(&mut fresh(), &mut model)), [""; 0]);
    });
}

#[test]
fn what_the_kernel_takes_with_a_link_is_not_written_and_what_comes_back_is_two_writes_a_group() {
    if !possible("what_the_kernel_takes") {
        return;
    }
    let node = node();
    node.run(|| {
        let mut model = model(&[0, 1]);
        let mut dataplane = fresh();
        turn(&mut dataplane, &mut model);
        for how in ["pe1", "up1"] {
            node.sh(&format!("ip link set {how} down"));
            assert_eq!(lines(&turn(&mut dataplane, &mut model)), [""; 0], "{how} down");
            node.sh(&format!(
                "ip link set {how} up; ip -6 addr replace 2001:db8:1::1/64 dev up1 nodad"
            ));
            until_usable(&node, "2001:db8:1::1");
            let writes = lines(&turn(&mut dataplane, &mut model));
            // A gateway of each family; three groups.
            assert_eq!(writes.len(), 2 + 3, "{how} up: {writes:#?}");
        }
        // Every way at once: the kernel has taken routes and all.
        node.sh("ip link set pe0 down; ip link set pe1 down; ip link set pe2 down");
        assert_eq!(lines(&turn(&mut dataplane, &mut model)), [""; 0]);
        node.sh("ip link set pe0 up; ip link set pe1 up; ip link set pe2 up");
        until_usable(&node, "2001:db8:0::1");
        until_usable(&node, "2001:db8:1::1");
        let writes = lines(&turn(&mut dataplane, &mut model));
        assert_eq!(writes.len(), usize::from(ROUTES) * 3 + 5 + 3, "{writes:#?}");
    });
}

#[test]
fn a_gateway_that_bgp_takes_back_or_adds_is_one_write_a_group() {
    if !possible("a_gateway_that_bgp_takes_back") {
        return;
    }
    let node = node();
    node.run(|| {
        let mut dataplane = fresh();
        turn(&mut dataplane, &mut model(&[0, 1]));
        let writes = lines(&turn(&mut dataplane, &mut model(&[0])));
        assert_eq!(writes.len(), 3 + 2, "{writes:#?}");
        assert_eq!(lines(&turn(&mut fresh(), &mut model(&[0]))), [""; 0]);
        let writes = lines(&turn(&mut dataplane, &mut model(&[0, 1])));
        assert_eq!(writes.len(), 2 + 3, "{writes:#?}");
    });
}

#[test]
fn what_others_do_is_repaired_and_what_they_have_stays() {
    if !possible("what_others_do_to_groups") {
        return;
    }
    let node = node();
    node.run(|| {
        // A multipath route, as an earlier agent made it, and a number of ours that somebody has.
        node.sh("ip route add 10.1.3.0/24 proto 203 metric 1024 nexthop via 192.0.0.2 nexthop via 192.0.1.2");
        node.sh("ip -6 route add fd00:3::/64 proto 203 metric 1024 nexthop via 2001:db8:0::2 nexthop via 2001:db8:1::2");
        node.sh("ip nexthop add id 3390898176 via 192.0.0.77 dev up0; ip nexthop add id 7 via 192.0.0.78 dev up0");
        node.sh("ip route add 10.3.0.0/24 nhid 3390898176");
        let foreign = || -> Vec<String> {
            let text = node.sh("ip nexthop show; ip -o route show");
            let lines = text.lines().filter(|line| !line.contains("proto 203"));
            lines.map(str::to_owned).collect()
        };
        let before = foreign();
        let mut model = model(&[0, 1]);
        let mut dataplane = fresh();
        turn(&mut dataplane, &mut model);
        let settled = || {
            assert_eq!(lines(&turn(&mut fresh(), &mut model.clone())), [""; 0]);
            assert!(!referred(&node, "-4").contains_key("none"), "{:?}", referred(&node, "-4"));
            assert!(!referred(&node, "-6").contains_key("none"), "{:?}", referred(&node, "-6"));
            assert_eq!(foreign(), before);
        };
        settled();
        let ours = || -> Vec<String> {
            let text = node.sh("ip nexthop show proto 203");
            text.lines().filter_map(|line| line.split(' ').nth(1)).map(str::to_owned).collect()
        };
        for damage in [
            // A gateway goes; a group with all its routes goes; one leads elsewhere; a stray one is there; a route leaves.
            format!("ip nexthop del id {}", ours()[0]),
            format!("ip nexthop del id {}", ours().last().unwrap()),
            "ip nexthop flush proto 203".to_owned(),
            "ip nexthop add id 3390898300 via 192.0.0.99 dev up0 proto 203".to_owned(),
            "ip route replace 10.1.3.0/24 proto 203 metric 1024 via 192.0.0.2".to_owned(),
            "ip route replace 10.1.3.0/24 proto 203 metric 1024 nhid 7".to_owned(),
        ] {
            node.sh(&damage);
            assert_ne!(lines(&turn(&mut dataplane, &mut model.clone())), [""; 0], "{damage}");
            settled();
        }
        let mut kernel = Linux::open().unwrap();
        let report = cleanup::clean(&mut kernel, Mode::Remove).unwrap();
        assert!(report.failed.is_empty(), "{:#?}", report.failed);
        assert_eq!(ours(), [""; 0]);
        assert_eq!(foreign(), before);
    });
}
