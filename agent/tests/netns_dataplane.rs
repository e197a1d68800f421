//! The dataplane on the real kernel, in namespaces: what is wanted is made, what is right is not touched, what others
//! did stays.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test may fail by panicking")]

mod damage;
mod eventually;
mod namespaces;
mod proxy_neighbors;
mod rules;

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use calidris_agent::apply::{ApplyReport, Dataplane};
use calidris_agent::clock;
use calidris_agent::desired::{Desired, MAIN_TABLE, compute};
use calidris_agent::inbox::Message;
use calidris_agent::kernel::{KernelChange, KernelNews, Linux, node_interfaces};
use calidris_agent::model::{
    Encapsulation, Endpoint, EndpointId, HostPort, InSync, Learned, Model, NextHop, Pool, Protocol,
};
use calidris_agent::sources::netlink::{self, Own};
use namespaces::{Namespace, possible};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};

/// For what must arrive.
const PATIENCE: Duration = Duration::from_secs(5);

const IN_SYNC: InSync = InSync {
    datastore: true,
    bgp: true,
    cluster: true,
};

/// A node with an uplink, whose other end `up1` stands for everything outside.
fn node() -> Namespace {
    let node = Namespace::new();
    node.sh("ip link add up0 type veth peer name up1; ip link set up1 up; ip link set up0 up");
    node.sh("ip addr add 192.0.2.1/24 dev up0; ip addr add 2001:db8::1/64 dev up0 nodad");
    node
}

fn fresh() -> Dataplane<Linux> {
    Dataplane::new(Linux::open().unwrap())
}

fn now() -> Instant {
    clock::now()
}

/// Reads everything back, and turns until nothing is left to do.
fn settle(dataplane: &mut Dataplane<Linux>, model: &mut Model) {
    dataplane.note(KernelChange::Everything);
    for _ in 0..4 {
        let report = turn(dataplane, model);
        assert!(report.failures.is_empty(), "{:#?}", report.failures);
        if report.ops.is_empty() {
            return;
        }
    }
    panic!("it does not settle");
}

/// One turn: what is there goes into the model, the model says what should be, that is applied.
fn turn(dataplane: &mut Dataplane<Linux>, model: &mut Model) -> ApplyReport {
    let (links, addresses) = dataplane.observed().unwrap();
    model.observe(links.keys(), node_interfaces(links, addresses));
    dataplane.apply(&compute(model), model.in_sync, now())
}

/// Two workloads whose host ends are made here, a pool a family, a block each, routes from BGP.
fn model(node: &Namespace) -> Model {
    let mut model = Model::new("node-a".into());
    model.in_sync = IN_SYNC;
    for (name, cidr) in [("v4", "10.65.0.0/16"), ("v6", "fd00:10:65::/64")] {
        let pool = Pool {
            cidr: cidr.parse().unwrap(),
            nat_outgoing: true,
            encapsulation: Encapsulation::None,
            disable_bgp_export: false,
        };
        model.pools.insert(name.into(), pool);
    }
    model.own_blocks = ["10.65.0.0/26", "fd00:10:65::/122"]
        .map(|block| block.parse().unwrap())
        .into();
    for number in [2, 3] {
        let host_interface = format!("cali{number}");
        node.sh(&format!(
            "ip link add {host_interface} type veth peer name peer{number}; ip link set peer{number} up"
        ));
        let id = EndpointId {
            network: "n".into(),
            container_id: format!("c{number}"),
            ifname: "eth0".into(),
        };
        let addresses = [format!("10.65.0.{number}"), format!("fd00:10:65::{number}")];
        let endpoint = Endpoint {
            host_interface,
            addresses: addresses.iter().map(|address| address.parse().unwrap()).collect(),
            mac: None,
            namespace: None,
            pod: None,
            ..Endpoint::default()
        };
        model.endpoints.insert(id, endpoint);
    }
    let hop = |address: &str| NextHop {
        address: address.parse().unwrap(),
        interface: None,
    };
    model.learned.insert(
        "10.65.1.0/26".parse().unwrap(),
        Learned::via([hop("192.0.2.2")].into()).unwrap(),
    );
    model.learned.insert(
        "10.65.2.0/26".parse().unwrap(),
        Learned::via([hop("192.0.2.2"), hop("192.0.2.3")].into()).unwrap(),
    );
    model.learned.insert(
        "10.65.3.0/26".parse().unwrap(),
        Learned::via([hop("2001:db8::2")].into()).unwrap(),
    );
    model.learned.insert(
        "0.0.0.0/0".parse().unwrap(),
        Learned::via([hop("192.0.2.254")].into()).unwrap(),
    );
    model.learned.insert(
        "fd00:10:66::/64".parse().unwrap(),
        Learned::via([hop("2001:db8::2"), hop("2001:db8::3")].into()).unwrap(),
    );
    let link_local = NextHop {
        address: "fe80::2".parse().unwrap(),
        interface: Some("up0".into()),
    };
    model.learned.insert(
        "fd00:10:67::/64".parse().unwrap(),
        Learned::via([link_local].into()).unwrap(),
    );
    model
}

/// Hears every change of links, addresses, routes and rules in the namespace of the thread.
struct Monitor(Socket);

impl Monitor {
    fn open() -> Self {
        let mut socket = Socket::new(NETLINK_ROUTE).unwrap();
        // RTMGRP_LINK, RTMGRP_IPV4_IFADDR, RTMGRP_IPV4_ROUTE, RTMGRP_IPV4_RULE, RTMGRP_IPV6_IFADDR, RTMGRP_IPV6_ROUTE,
        // RTNLGRP_IPV6_RULE
        let groups = 0x1 | 0x10 | 0x40 | 0x80 | 0x100 | 0x400 | 1 << 18;
        socket.bind(&SocketAddr::new(0, groups)).unwrap();
        socket.set_non_blocking(true).unwrap();
        Self(socket)
    }

    /// How many there were since the last time. What the kernel does by itself, as when a link becomes ready, has port 0 and
    /// does not count.
    fn heard(&self) -> usize {
        let mut count = 0;
        while let Ok((datagram, _)) = self.0.recv_from_full() {
            let port = datagram.get(12..16);
            count += usize::from(port.is_some_and(|port| port != [0; 4]));
        }
        count
    }
}

#[test]
fn everything_wanted_is_made_and_a_second_start_writes_nothing() {
    if !possible("a_second_start_writes_nothing") {
        return;
    }
    let node = node();
    let mut model = model(&node);
    node.run(|| {
        let report = turn(&mut fresh(), &mut model);
        assert!(report.failures.is_empty(), "{:#?}", report.failures);
        assert!(!report.ops.is_empty());
        let v4 = node.sh("ip route");
        for line in [
            "10.65.0.2 dev cali2 proto 202 scope link metric 1024",
            "blackhole 10.65.0.0/26 proto 202 metric 1024",
            "10.65.1.0/26 via 192.0.2.2 dev up0 proto 203 metric 1024",
            "nexthop via 192.0.2.3 dev up0",
            "10.65.3.0/26 via inet6 2001:db8::2 dev up0 proto 203 metric 1024",
            "default via 192.0.2.254 dev up0 proto 203 metric 1024",
        ] {
            assert!(v4.contains(line), "no \"{line}\" in\n{v4}");
        }
        let v6 = node.sh("ip -6 route");
        for line in [
            "fd00:10:65::2 dev cali2 proto 202 metric 1024",
            "blackhole fd00:10:65::/122 dev lo proto 202 metric 1024",
            "nexthop via 2001:db8::3 dev up0",
            "fd00:10:67::/64 via fe80::2 dev up0 proto 203 metric 1024",
        ] {
            assert!(v6.contains(line), "no \"{line}\" in\n{v6}");
        }
        assert_eq!(node.sh("cat /proc/sys/net/ipv4/conf/cali3/proxy_arp").trim(), "1");
        assert_eq!(node.sh("cat /proc/sys/net/ipv6/conf/all/forwarding").trim(), "1");
        let link = node.sh("ip -o link show cali3");
        assert!(link.contains("ee:ee:ee:ee:ee:ee"), "{link}");

        let monitor = Monitor::open();
        let ruleset = node.sh("nft -a list ruleset");
        let mut second = fresh();
        let report = turn(&mut second, &mut model);
        assert!(report.failures.is_empty(), "{:#?}", report.failures);
        assert_eq!(report.ops, [], "a second start writes");
        second.note(KernelChange::Everything);
        assert_eq!(turn(&mut second, &mut model).ops, [], "a full read-back writes");
        assert_eq!(second.writes(), 0);
        assert_eq!(monitor.heard(), 0, "the kernel heard of changes");
        assert_eq!(
            node.sh("nft -a list ruleset"),
            ruleset,
            "handles differ: the table was written"
        );
        // The monitor does hear: or it would prove nothing.
        node.sh("ip route add 198.51.100.0/24 via 192.0.2.9");
        assert_eq!(monitor.heard(), 1);
    });
}

#[test]
fn what_somebody_deletes_or_changes_is_repaired() {
    if !possible("what_somebody_deletes_is_repaired") {
        return;
    }
    let node = node();
    let mut model = model(&node);
    node.run(|| {
        let mut dataplane = fresh();
        turn(&mut dataplane, &mut model);
        let damages = [
            (
                KernelChange::Routes,
                "ip route del 10.65.0.2",
                "route: create 10.65.0.2/32",
            ),
            (
                KernelChange::Routes,
                "ip route del 10.65.2.0/26",
                "route: create 10.65.2.0/26",
            ),
            (
                KernelChange::Routes,
                "ip -6 route del blackhole fd00:10:65::/122",
                "route: create fd00:10:65::/122",
            ),
            (
                KernelChange::Routes,
                "ip route replace unreachable 10.65.1.0/26 metric 1024 proto 203",
                "route: replace 10.65.1.0/26 metric 1024 of a kind not ours",
            ),
            (
                KernelChange::Links,
                "ip link set cali2 down",
                "link: replace cali2 down",
            ),
            (
                KernelChange::Links,
                "ip link set cali2 address 02:00:00:00:00:01",
                "link: replace cali2 up",
            ),
            (
                KernelChange::Everything,
                "echo 0 > /proc/sys/net/ipv4/ip_forward",
                "sysctl: replace net/ipv4/ip_forward 0 with 1",
            ),
            (
                KernelChange::Everything,
                "echo 100 > /proc/sys/net/ipv4/neigh/cali3/proxy_delay",
                "proxy_delay 100 with 0",
            ),
            (
                KernelChange::Everything,
                "nft delete table inet calidris",
                "nft: create table inet calidris",
            ),
            (
                KernelChange::Everything,
                "nft add element inet calidris nat-exempt-ipv4 '{ 192.0.2.0/24 }'",
                "nft: replace",
            ),
            (
                KernelChange::Everything,
                "nft flush chain inet calidris nat-outgoing",
                "nft: replace",
            ),
            (
                KernelChange::Everything,
                "nft insert rule inet calidris nat-outgoing counter drop",
                "nft: replace",
            ),
            (
                KernelChange::Everything,
                "nft add chain inet calidris other",
                "nft: replace",
            ),
        ];
        for (change, command, expected) in damages {
            assert_eq!(turn(&mut dataplane, &mut model).ops, [], "before {command}");
            node.sh(command);
            dataplane.note(change);
            let report = turn(&mut dataplane, &mut model);
            let ops: Vec<String> = report.ops.iter().map(ToString::to_string).collect();
            assert!(report.failures.is_empty(), "{command}: {:#?}", report.failures);
            assert!(
                ops.iter().any(|op| op.contains(expected)),
                "after {command}: {ops:#?}"
            );
            assert_eq!(
                turn(&mut fresh(), &mut model).ops,
                [],
                "{command} was not repaired wholly"
            );
        }
    });
}

#[test]
fn routes_of_others_stay_and_one_in_the_way_is_named() {
    if !possible("routes_of_others_stay") {
        return;
    }
    let node = node();
    let mut model = model(&node);
    node.run(|| {
        node.sh("ip route add 10.65.0.2 via 192.0.2.77 metric 1024 proto static");
        node.sh("ip -6 route add fd00:10:66::/64 via 2001:db8::77 proto bird metric 1024");
        node.sh("ip route add 10.99.0.0/16 via 192.0.2.77; ip route add blackhole 10.98.0.0/16 proto bird");
        node.sh("ip route add 10.65.0.3 via 192.0.2.77 table 77; nft add table inet other");
        let foreign = || {
            let command = "(ip route show table all; ip -6 route show table all) | grep -v 'proto 20[23]' | grep -v 'cali\\|nexthop\\|fe80\\|ff00\\|anycast'; nft list tables";
            node.sh(command)
        };
        let before = foreign().replace("table inet other\n", "");
        let mut dataplane = fresh();
        let report = turn(&mut dataplane, &mut model);
        let reasons: Vec<String> = report.failures.iter().map(ToString::to_string).collect();
        assert_eq!(reasons.len(), 2, "{reasons:#?}");
        assert!(reasons[0].contains("route 10.65.0.2/32 metric 1024") && reasons[0].contains("via 192.0.2.77 dev up0 proto 4"), "{reasons:#?}");
        assert!(reasons[1].contains("fd00:10:66::/64") && reasons[1].contains("proto 12"), "{reasons:#?}");
        assert!(report.retry_at.is_some(), "{report:?}");

        // A stop of everything: nothing is wanted any more.
        let empty = Desired::default();
        let report = dataplane.apply(&empty, IN_SYNC, now());
        assert!(report.failures.is_empty(), "{:#?}", report.failures);
        assert_eq!(node.sh("ip route show table all proto 202; ip route show table all proto 203; ip -6 route show table all proto 202; ip -6 route show table all proto 203"), "");
        assert_eq!(foreign().replace("table inet other\n", "").replace("table inet calidris\n", "").replace("table arp calidris\n", ""), before);

        // Out of the way: next time it is made.
        node.sh("ip route del 10.65.0.2 metric 1024; ip -6 route del fd00:10:66::/64");
        let report = turn(&mut dataplane, &mut model);
        assert!(report.failures.is_empty(), "{:#?}", report.failures);
    });
}

/// What Calico leaves: the kernel has no room for the same IPv6 route twice.
#[test]
fn routes_of_others_that_lead_the_same_way_are_enough() {
    if !possible("routes_of_others_that_lead_the_same_way") {
        return;
    }
    let node = node();
    let mut model = model(&node);
    node.run(|| {
        node.sh("ip link set cali2 up; ip link set cali3 up");
        node.sh(
            "ip -6 route add fd00:10:65::2 dev cali2; ip -6 route add blackhole fd00:10:65::/122 proto bird",
        );
        node.sh("ip -6 route add fd00:10:65::3 dev up0");
        let theirs = || node.sh("ip -6 route | grep '^\\(blackhole \\)\\?fd00:10:65:' | grep -v 'proto 20'");
        let before = theirs();
        assert_eq!(before.lines().count(), 3, "{before}");
        let mut dataplane = fresh();
        for _ in 0..2 {
            let report = turn(&mut dataplane, &mut model);
            let [failure] = report.failures.as_slice() else {
                panic!("{:#?}", report.failures);
            };
            assert!(failure.to_string().contains("fd00:10:65::3/128"), "{failure}");
            dataplane.note(KernelChange::Everything);
        }
        node.sh("ip -6 route del fd00:10:65::3 dev up0");
        assert_eq!(turn(&mut fresh(), &mut model).ops.len(), 1);
        let mut second = fresh();
        let report = turn(&mut second, &mut model);
        assert_eq!((report.ops, report.failures), (vec![], vec![]));

        node.sh("ip -6 route del fd00:10:65::2 dev cali2");
        second.note(KernelChange::Routes);
        let report = turn(&mut second, &mut model);
        assert_eq!(report.ops.len(), 1, "{:#?}", report.ops);
        assert!(
            node.sh("ip -6 route")
                .contains("fd00:10:65::2 dev cali2 proto 202")
        );
        let ours = calidris_agent::cleanup::clean(
            &mut Linux::open().unwrap(),
            calidris_agent::cleanup::Mode::Remove,
        );
        assert!(ours.unwrap().failed.is_empty());
        assert_eq!(
            theirs().trim(),
            "blackhole fd00:10:65::/122 dev lo proto bird metric 1024 pref medium"
        );
    });
}

#[test]
fn nothing_is_deleted_or_changed_before_its_source_is_in_sync() {
    if !possible("nothing_is_deleted_before_in_sync") {
        return;
    }
    let node = node();
    let mut model = model(&node);
    node.run(|| {
        turn(&mut fresh(), &mut model);
        let picture = || node.sh("ip route; ip -6 route; nft list ruleset");
        let before = picture();
        let mut restarted = fresh();
        let mut known = Model::new("node-a".into());
        assert_eq!(turn(&mut restarted, &mut known).failures, []);
        // BGP comes back one peer at a time: half a multipath route is no reason to change it.
        let half = NextHop {
            address: "192.0.2.3".parse().unwrap(),
            interface: None,
        };
        known.learned.insert(
            "10.65.2.0/26".parse().unwrap(),
            Learned::via([half].into()).unwrap(),
        );
        turn(&mut restarted, &mut known);
        assert_eq!(picture(), before);

        known = Model {
            in_sync: InSync {
                datastore: true,
                bgp: false,
                cluster: true,
            },
            learned: known.learned,
            ..model.clone()
        };
        turn(&mut restarted, &mut known);
        assert_eq!(picture(), before);

        known.in_sync.bgp = true;
        turn(&mut restarted, &mut known);
        let after = picture();
        let half = after.lines().find(|line| line.starts_with("10.65.2.0/26 "));
        assert!(
            half.is_some_and(|line| line.contains(" via 192.0.2.3 dev up0 ")),
            "{after}"
        );
        assert!(
            !after.contains("10.65.1.0/26") && after.contains("10.65.0.2 dev cali2"),
            "{after}"
        );
    });
}

/// The kernel drops what its buffer has no room for, and says so once.
#[test]
fn notifications_that_were_lost_mean_that_everything_is_read_back() {
    if !possible("notifications_that_were_lost") {
        return;
    }
    let node = node();
    let heard = node.run(|| {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            let monitor = netlink::Monitor::open().unwrap();
            node.sh("seq 0 19999 | awk '{ printf \"route add 198.18.%d.%d via 192.0.2.9 proto 202\\n\", $1 / 256, $1 % 256 }' | ip -batch -");
            let (inbox, mut heard) = tokio::sync::mpsc::channel(8);
            let (foreign_changes, _) = tokio::sync::watch::channel(0);
            let own = Own {
                port: 0,
                remote_route_table: MAIN_TABLE,
            };
            tokio::select! {
                result = monitor.run(own, inbox, foreign_changes) => panic!("the monitor ended: {result:?}"),
                first = tokio::time::timeout(PATIENCE, heard.recv()) => first.unwrap().unwrap(),
            }
        })
    });
    assert!(
        matches!(
            heard,
            Message::Kernel(KernelNews::Changed(KernelChange::Everything))
        ),
        "{heard:?}"
    );
}

#[test]
fn nat_sets_are_read_back_as_they_were_written() {
    if !possible("nat_sets_are_read_back") {
        return;
    }
    let node = node();
    node.run(|| {
        // Ranges that touch, single addresses, the ends of the address space.
        let ranges = [
            "10.64.0.0/17",
            "10.64.128.0/17",
            "10.65.0.0/32",
            "10.65.0.1/32",
            "0.0.0.0/8",
            "255.255.255.255/32",
            "128.0.0.0/2",
            "fd00::/64",
            "fd00:0:0:1::/64",
            "fd00:0:0:2::/128",
            "::/8",
            "ff00::/8",
        ];
        let ranges: BTreeSet<_> = ranges.iter().map(|range| range.parse().unwrap()).collect();
        let desired = Desired {
            nat_sources: ranges.clone(),
            nat_exempt: ranges,
            ..Desired::default()
        };
        let report = fresh().apply(&desired, IN_SYNC, now());
        assert!(report.failures.is_empty(), "{:#?}", report.failures);
        let again = fresh().apply(&desired, IN_SYNC, now());
        assert_eq!(again.ops, [], "{}", node.sh("nft list ruleset"));
    });
}

/// A workload with host ports on all addresses and on one, of both families.
fn workload_with_ports(number: u8) -> (EndpointId, Endpoint) {
    let id = EndpointId {
        network: "n".into(),
        container_id: format!("c{number}"),
        ifname: "eth0".into(),
    };
    let port = |protocol, host_address: Option<&str>, host_port| HostPort {
        protocol,
        host_address: host_address.map(|address| address.parse().unwrap()),
        host_port,
        port: 80,
    };
    let number_of_port = 8000 + u16::from(number);
    let endpoint = Endpoint {
        host_interface: format!("cali{number}"),
        addresses: [format!("10.65.0.{number}"), format!("fd00:10:65::{number}")]
            .map(|address| address.parse().unwrap())
            .into(),
        host_ports: [
            port(Protocol::Tcp, None, number_of_port),
            port(Protocol::Udp, Some("192.0.2.1"), number_of_port),
            port(Protocol::Sctp, Some("2001:db8::1"), number_of_port),
        ]
        .into(),
        ..Endpoint::default()
    };
    (id, endpoint)
}

/// What `nft` lists, without handles, elements in one order.
fn listed(node: &Namespace) -> Vec<String> {
    let text = ["inet", "arp"].map(|family| node.sh(&format!("nft -j list table {family} calidris")));
    let mut objects = Vec::new();
    for text in text {
        let document: serde_json::Value = serde_json::from_str(&text).unwrap();
        for mut object in document["nftables"].as_array().unwrap().clone() {
            for body in object.as_object_mut().unwrap().values_mut() {
                let body = body.as_object_mut().unwrap();
                body.remove("handle");
                if let Some(elements) = body.get_mut("elem").and_then(|elements| elements.as_array_mut()) {
                    elements.sort_by_key(ToString::to_string);
                }
            }
            objects.push(object.to_string());
        }
    }
    objects
}

#[test]
fn elements_written_directly_are_those_that_the_program_writes() {
    if !possible("elements_written_directly") {
        return;
    }
    let node = node();
    let desired = |numbers: &[u8]| {
        let mut model = Model::new("node-a".into());
        model.endpoints = numbers
            .iter()
            .map(|number| workload_with_ports(*number))
            .collect();
        Desired {
            workloads: compute(&model).workloads,
            host_ports: compute(&model).host_ports,
            ..Desired::default()
        }
    };
    node.run(|| {
        let nft = |report: &ApplyReport| -> Vec<String> {
            assert!(report.failures.is_empty(), "{:#?}", report.failures);
            let ops = report.ops.iter().map(ToString::to_string);
            ops.filter(|op| op.starts_with("nft: ")).collect()
        };
        let mut dataplane = fresh();
        nft(&dataplane.apply(&desired(&[]), IN_SYNC, now()));
        for numbers in [&[2_u8, 3, 4][..], &[3, 5], &[3], &[2, 3, 4, 5]] {
            let ops = nft(&dataplane.apply(&desired(numbers), IN_SYNC, now()));
            assert!(
                ops.len() == 2 && ops.iter().all(|op| op.starts_with("nft: change table")),
                "{ops:#?}"
            );
            let directly = listed(&node);
            assert!(
                directly.len() > 20 && directly.iter().any(|set| set.contains("cali3")),
                "{directly:#?}"
            );
            assert_eq!(
                fresh().apply(&desired(numbers), IN_SYNC, now()).ops,
                [],
                "read back"
            );
            node.sh("nft delete table inet calidris; nft delete table arp calidris");
            let made = nft(&fresh().apply(&desired(numbers), IN_SYNC, now()));
            assert!(
                made.iter().all(|op| op.starts_with("nft: create table")),
                "{made:#?}"
            );
            assert_eq!(directly, listed(&node), "{numbers:?}");
        }
        // Somebody takes an element away unseen: the batch is refused whole, and the tables are made anew.
        node.sh("nft delete element inet calidris workload-interfaces '{ cali3 }'");
        let before = listed(&node);
        let report = dataplane.apply(&desired(&[2]), IN_SYNC, now());
        assert_ne!(before, listed(&node));
        assert!(
            nft(&report)
                .iter()
                .any(|op| op.starts_with("nft: replace table inet")),
            "{:#?}",
            report.ops
        );
        assert_eq!(fresh().apply(&desired(&[2]), IN_SYNC, now()).ops, []);
        // More than fit into one batch are the program's.
        let many: Vec<u8> = (0..=255).collect();
        nft(&dataplane.apply(&desired(&many), IN_SYNC, now()));
        assert_eq!(fresh().apply(&desired(&many), IN_SYNC, now()).ops, []);
    });
}
