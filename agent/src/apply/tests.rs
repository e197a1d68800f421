//! The dataplane against a kernel in memory: it gets there from anywhere, with any call failing, and touches nothing else.

use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::clock;
use crate::desired::{Gateway, Route, RouteOrigin, RoutePath, compute};
use crate::kernel::fake::{FakeKernel, Fault, foreign};
use crate::kernel::{ForeignRoute, Maker, ObservedRoute};
use crate::model::{Encapsulation, EndpointId, Learned, Model, NextHop, Pool};
use crate::pod_link::HostEnd;

pub(super) const IN_SYNC: InSync = InSync {
    datastore: true,
    bgp: true,
    cluster: true,
};

fn prefix(text: &str) -> IpNetwork {
    text.parse().unwrap()
}

/// Two workloads, a pool and a block a family, two routes from BGP.
pub(super) fn model() -> Model {
    let mut model = Model::new("node-a".into());
    for cidr in ["10.65.0.0/16", "fd00:10:65::/64"] {
        let cidr = prefix(cidr);
        let pool = Pool {
            cidr,
            nat_outgoing: true,
            encapsulation: Encapsulation::None,
            disable_bgp_export: false,
        };
        model.pools.insert(cidr.to_string(), pool);
    }
    model.own_blocks = [prefix("10.65.0.0/26"), prefix("fd00:10:65::/122")].into();
    for number in [2, 3] {
        let id = EndpointId {
            network: "n".into(),
            container_id: format!("c{number}"),
            ifname: "eth0".into(),
        };
        let addresses = [format!("10.65.0.{number}"), format!("fd00:10:65::{number}")];
        let endpoint = Endpoint {
            host_interface: format!("cali{number}"),
            addresses: addresses.iter().map(|address| address.parse().unwrap()).collect(),
            mac: None,
            namespace: None,
            pod: None,
            ..Endpoint::default()
        };
        model.endpoints.insert(id, endpoint);
    }
    for (destination, next_hop) in [("10.65.1.0/26", "192.0.2.2"), ("fd00:10:66::/64", "2001:db8::2")] {
        let next_hop = NextHop {
            address: next_hop.parse().unwrap(),
            interface: None,
        };
        let learned = Learned::via([next_hop].into()).unwrap();
        model.learned.insert(prefix(destination), learned);
    }
    model.links = ["cali2", "cali3", "up0"].map(str::to_owned).into();
    model
}

pub(super) fn kernel() -> FakeKernel {
    let mut kernel = FakeKernel::default();
    for path in ["net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"] {
        kernel.sysctls.insert(path.into(), "0".into());
    }
    for link in ["cali2", "cali3", "up0"] {
        kernel.add_link(link);
    }
    kernel
}

fn stale(kernel: &mut FakeKernel) {
    let route = |origin, path| ObservedRoute {
        origin,
        path: Some(path),
    };
    let via = |address: &str| {
        RoutePath::via([Gateway {
            address: address.parse().unwrap(),
            interface: Some("up0".into()),
        }])
    };
    for (destination, found) in [
        (
            "10.65.0.2/32",
            route(
                RouteOrigin::Local,
                RoutePath::Link {
                    interface: "cali3".into(),
                },
            ),
        ),
        (
            "10.65.0.9/32",
            route(
                RouteOrigin::Local,
                RoutePath::Link {
                    interface: "cali3".into(),
                },
            ),
        ),
        ("10.65.1.0/26", route(RouteOrigin::Bgp, via("192.0.2.7"))),
        ("10.65.7.0/26", route(RouteOrigin::Bgp, via("192.0.2.7"))),
        ("fd00:10:66::/64", route(RouteOrigin::Local, RoutePath::Blackhole)),
        (
            "fd00:10:65::2/128",
            ObservedRoute {
                origin: RouteOrigin::Local,
                path: None,
            },
        ),
    ] {
        kernel.routes.insert(RouteKey::main(prefix(destination)), found);
    }
    kernel
        .foreign
        .insert(RouteKey::main(prefix("10.99.0.0/16")), foreign("static"));
}

/// Whether the kernel is as desired and has nothing of ours besides.
pub(super) fn is_as_desired(kernel: &FakeKernel, desired: &Desired) -> bool {
    let routes = &kernel.routes;
    let proxies = &kernel.proxy_neighbors;
    let is_wanted = |proxy| desired.proxy_neighbors.contains(proxy);
    let ours = proxies.iter().filter(|(_, maker)| **maker == Maker::Us);
    kernel.rules == desired.rules
        && desired
            .proxy_neighbors
            .iter()
            .all(|proxy| proxies.contains_key(proxy))
        && ours.map(|(proxy, _)| proxy).all(is_wanted)
        && routes.len() == desired.routes.len()
        && desired.routes.iter().all(|(key, route)| {
            routes
                .get(key)
                .is_some_and(|found| kernel.resolved(found).is(route))
        })
        && desired
            .sysctls
            .iter()
            .all(|(path, value)| kernel.sysctls.get(path) == Some(value))
        && desired.links.iter().all(|(name, link)| {
            kernel
                .links
                .get(name)
                .is_some_and(|found| found.up && found.mac == Some(link.mac))
        })
        && !kernel.nft.is_empty()
}

/// Applies until nothing fails, at the times that the reports name. A livelock fails.
pub(super) fn settle(dataplane: &mut Dataplane<FakeKernel>, desired: &Desired) -> Vec<Op> {
    let mut now = clock::now();
    let mut ops = Vec::new();
    for _ in 0..10 {
        let report = dataplane.apply(desired, IN_SYNC, now);
        ops.extend(report.ops);
        match report.retry_at {
            None => {
                assert!(report.failures.is_empty(), "{:?} and no retry", report.failures);
                return ops;
            }
            Some(at) => now = at,
        }
    }
    panic!("does not settle: {:#?}", dataplane.apply(desired, IN_SYNC, now));
}

#[test]
fn with_any_call_failing_in_any_way_it_gets_there_and_then_writes_nothing() {
    let desired = compute(&model());
    let mut start = kernel();
    stale(&mut start);
    let mut undisturbed = Dataplane::new(start.clone());
    settle(&mut undisturbed, &desired);
    let calls = undisturbed.kernel.calls;
    assert!(calls > 30, "{calls} calls only");
    for call in 0..calls {
        for fault in [Fault::Refused, Fault::LostBefore, Fault::LostAfter] {
            let faulty = FakeKernel {
                fault: Some((call, fault)),
                ..start.clone()
            };
            let mut dataplane = Dataplane::new(faulty);
            settle(&mut dataplane, &desired);
            let at = format!("call {call} {fault:?}");
            assert!(
                is_as_desired(&dataplane.kernel, &desired),
                "{at}: {:#?}",
                dataplane.kernel.routes
            );
            assert_eq!(dataplane.kernel.foreign, start.foreign, "{at}");
            // What the kernel did although the answer was lost is seen, and not done again.
            let writes = dataplane.kernel.writes;
            assert_eq!(writes, undisturbed.kernel.writes, "{at}");
            dataplane.note(KernelChange::Everything);
            assert_eq!(settle(&mut dataplane, &desired), [], "{at}");
            assert_eq!(dataplane.kernel.writes, writes, "{at}");
        }
    }
}

#[test]
fn a_second_start_writes_nothing_and_asks_nothing_more_until_told() {
    let desired = compute(&model());
    let mut first = Dataplane::new(kernel());
    let ops = settle(&mut first, &desired);
    assert_eq!(first.writes(), u64::try_from(ops.len()).unwrap());
    let mut second = Dataplane::new(first.kernel);
    assert_eq!(settle(&mut second, &desired), []);
    assert_eq!(second.writes(), 0);
    let calls = second.kernel.calls;
    assert_eq!(settle(&mut second, &desired), []);
    assert_eq!(second.kernel.calls, calls);
}

#[test]
fn operations_come_in_one_constant_order() {
    let mut start = kernel();
    stale(&mut start);
    let ops = settle(&mut Dataplane::new(start), &compute(&model()));
    let rank = |op: &Op| match op {
        Op::Link(_) => 0,
        Op::Tunnel(_) => 1,
        Op::Sysctl(_) => 2,
        Op::Address(_) => 3,
        Op::Neighbor(_) => 4,
        Op::Rule(Change::Create { .. } | Change::Replace { .. }) => 5,
        Op::ProxyNeighbor(Change::Delete { .. }) => 6,
        Op::Nexthop(Change::Create { .. } | Change::Replace { .. }) => 7,
        Op::Route(Change::Create { .. } | Change::Replace { .. }) => 8,
        Op::Route(Change::Delete { .. }) => 9,
        Op::ProxyNeighbor(Change::Create { .. } | Change::Replace { .. }) => 10,
        Op::Nexthop(Change::Delete { .. }) => 11,
        Op::Rule(Change::Delete { .. }) => 12,
        Op::Nft(_) => 13,
    };
    assert!(ops.is_sorted_by_key(rank), "{ops:#?}");
}

#[test]
fn gates_hold_back_changes_and_deletions_of_their_own_routes_only() {
    let desired = compute(&model());
    let mut start = kernel();
    stale(&mut start);
    let rows = [
        (
            InSync {
                datastore: false,
                bgp: false,
                cluster: false,
            },
            0,
            0,
        ),
        // 10.65.1.0/26 and 10.65.7.0/26; the IPv6 route would take a local blackhole's place.
        (
            InSync {
                datastore: false,
                bgp: true,
                cluster: false,
            },
            1,
            1,
        ),
        // 10.65.0.2 and fd00:10:65::2; 10.65.0.9.
        (
            InSync {
                datastore: true,
                bgp: false,
                cluster: true,
            },
            2,
            1,
        ),
        (IN_SYNC, 4, 2),
    ];
    for (in_sync, replaced, deleted) in rows {
        let mut dataplane = Dataplane::new(start.clone());
        let (planned, unread) = dataplane.plan(&desired, in_sync);
        let report = dataplane.apply(&desired, in_sync, clock::now());
        assert_eq!((&planned, unread), (&report.ops, Vec::new()), "{in_sync:?}");
        let count = |wanted: fn(&RouteChange) -> bool| {
            report
                .ops
                .iter()
                .filter(|op| matches!(op, Op::Route(change) if wanted(change)))
                .count()
        };
        assert_eq!(
            count(|change| matches!(change, Change::Replace { .. })),
            replaced,
            "{in_sync:?}"
        );
        assert_eq!(
            count(|change| matches!(change, Change::Delete { .. })),
            deleted,
            "{in_sync:?}"
        );
        assert_eq!(!dataplane.kernel.nft.is_empty(), in_sync.datastore, "{in_sync:?}");
    }
}

#[test]
fn a_plan_writes_nothing() {
    let mut start = kernel();
    stale(&mut start);
    let mut dataplane = Dataplane::new(start);
    let (ops, _) = dataplane.plan(&compute(&model()), IN_SYNC);
    assert!(!ops.is_empty());
    assert_eq!(dataplane.kernel.writes, 0);
}

#[test]
fn a_foreign_route_in_the_way_stays_is_named_and_gives_way_when_gone() {
    let desired = compute(&model());
    let key = RouteKey::main(prefix("10.65.0.2/32"));
    let mut start = kernel();
    start
        .foreign
        .insert(key, foreign("10.65.0.2 via 192.0.2.7 proto static"));
    let mut dataplane = Dataplane::new(start);
    let mut now = clock::now();
    let mut previous = Duration::ZERO;
    for attempt in 1..=12 {
        let report = dataplane.apply(&desired, IN_SYNC, now);
        let [failure] = report.failures.as_slice() else {
            panic!("{:#?}", report.failures);
        };
        assert!(
            failure
                .to_string()
                .contains("10.65.0.2 via 192.0.2.7 proto static"),
            "{failure}"
        );
        assert_eq!(failure.attempts, attempt);
        let model = model();
        let workload = model.endpoints.values().next().unwrap();
        assert_eq!(report.failure_of(workload), Some(failure));
        let at = report.retry_at.unwrap();
        assert!(
            at - now >= previous && at - now <= Duration::from_secs(30),
            "{:?}",
            at - now
        );
        previous = at - now;
        // In between nothing is tried.
        let calls = dataplane.kernel.calls;
        dataplane.apply(&desired, IN_SYNC, at - Duration::from_millis(1));
        assert!(dataplane.kernel.calls <= calls + 3, "only a read-back");
        now = at;
    }
    dataplane.kernel.foreign.clear();
    assert!(dataplane.apply(&desired, IN_SYNC, now).failures.is_empty());
    assert!(is_as_desired(&dataplane.kernel, &desired));
}

#[test]
fn a_foreign_route_that_leads_the_same_way_is_enough_and_ours_is_made_when_it_goes() {
    let mut model = model();
    let desired = compute(&model);
    let [pod, block] = ["fd00:10:65::2/128", "fd00:10:65::/122"].map(|text| RouteKey::main(prefix(text)));
    let mut start = kernel();
    for key in [&pod, &block] {
        let path = Some(desired.routes[key].path.clone());
        let described = "proto boot".to_owned();
        start
            .foreign
            .insert(key.clone(), ForeignRoute { path, described });
    }
    let theirs = start.foreign.clone();
    let mut dataplane = Dataplane::new(start);
    let ops = settle(&mut dataplane, &desired);
    let is_about = |op: &Op, key: &RouteKey| op.subject() == Subject::Route(key.clone());
    assert!(
        !ops.iter().any(|op| is_about(op, &pod) || is_about(op, &block)),
        "{ops:#?}"
    );
    assert!(dataplane.is_settled(IN_SYNC));
    let mut second = Dataplane::new(dataplane.kernel);
    assert_eq!(second.plan(&desired, IN_SYNC), (vec![], vec![]));
    assert_eq!(settle(&mut second, &desired), []);
    assert_eq!(second.kernel.foreign, theirs);

    // Somebody deletes one.
    second.kernel.foreign.remove(&block);
    second.note(KernelChange::Routes);
    let made = settle(&mut second, &desired);
    assert!(made.len() == 1 && is_about(&made[0], &block), "{made:#?}");
    // The other goes with its link, and the pod is started again.
    second.kernel.remove_link("cali2");
    second.kernel.add_link("cali2");
    second.note(KernelChange::Links);
    let links = second.links().unwrap();
    model.links = links.keys().cloned().collect();
    let made = settle(&mut second, &compute(&model));
    assert!(made.iter().any(|op| is_about(op, &pod)), "{made:#?}");
}

#[test]
fn a_foreign_route_that_leads_the_same_way_and_appears_in_the_last_moment_is_enough_too() {
    let desired = compute(&model());
    let key = RouteKey::main(prefix("fd00:10:65::2/128"));
    let mut dataplane = Dataplane::new(kernel());
    settle(&mut dataplane, &desired);
    // Ours is gone, theirs is there, and nobody has told of it.
    dataplane.kernel.routes.remove(&key);
    let path = Some(desired.routes[&key].path.clone());
    let described = "proto boot".to_owned();
    dataplane
        .kernel
        .foreign
        .insert(key.clone(), ForeignRoute { path, described });
    dataplane
        .routes
        .links_changed(&links::LinksChanged::of(["cali2".to_owned()].into()));
    let report = dataplane.apply(&desired, IN_SYNC, clock::now());
    assert!(report.failures.is_empty(), "{:#?}", report.failures);
    assert_eq!(dataplane.kernel.foreign.len(), 1);
}

#[test]
fn what_changed_behind_its_back_without_a_word_is_found_out() {
    let model = model();
    let mut dataplane = Dataplane::new(kernel());
    settle(&mut dataplane, &compute(&model));
    // Gone before it is deleted; there before it is created.
    let [gone, there] = ["10.65.1.0/26", "10.65.9.0/26"].map(|text| RouteKey::main(prefix(text)));
    dataplane.kernel.routes.remove(&gone);
    let path = RoutePath::Blackhole;
    dataplane.kernel.routes.insert(
        there.clone(),
        ObservedRoute {
            origin: RouteOrigin::Bgp,
            path: Some(path),
        },
    );
    let mut later = model;
    let learned = later.learned.remove(&gone.destination).unwrap();
    later.learned.insert(there.destination, learned);
    let desired = compute(&later);
    let report = dataplane.apply(&desired, IN_SYNC, clock::now());
    assert!(report.failures.is_empty(), "{:#?}", report.failures);
    assert!(is_as_desired(&dataplane.kernel, &desired));
}

#[test]
fn links_that_go_and_come_back_get_their_routes_and_parameters_again() {
    let mut model = model();
    let mut dataplane = Dataplane::new(kernel());
    settle(&mut dataplane, &compute(&model));
    dataplane.kernel.remove_link("cali2");
    dataplane.note(KernelChange::Links);
    model.links = dataplane.links().unwrap().keys().cloned().collect();
    assert_eq!(
        settle(&mut dataplane, &compute(&model)),
        [],
        "the kernel removed them itself"
    );
    dataplane.kernel.add_link("cali2");
    dataplane.note(KernelChange::Links);
    model.links = dataplane.links().unwrap().keys().cloned().collect();
    let desired = compute(&model);
    let ops = settle(&mut dataplane, &desired);
    assert!(is_as_desired(&dataplane.kernel, &desired), "{ops:#?}");
    assert!(ops.iter().all(|op| op.to_string().contains("cali2")), "{ops:#?}");

    // Down and up again between two looks, by somebody else.
    dataplane.kernel.remove_routes_through("cali3");
    dataplane.kernel.links.get_mut("cali3").unwrap().up = false;
    dataplane.note(KernelChange::Links);
    settle(&mut dataplane, &desired);
    assert!(is_as_desired(&dataplane.kernel, &desired));
}

#[test]
fn what_failed_for_want_of_a_link_is_tried_when_the_link_is_made() {
    let mut model = model();
    let mut dataplane = Dataplane::new(kernel());
    settle(&mut dataplane, &compute(&model));
    // The pod is started again: its old link has gone, which nobody has heard of yet, and its new address is known before
    // there is a new link.
    dataplane.kernel.remove_link("cali2");
    let id = model.endpoints.keys().next().unwrap().clone();
    let mut endpoint = model.endpoints.remove(&id).unwrap();
    endpoint.addresses = ["10.65.0.4".parse().unwrap()].into();
    model.endpoints.insert(id, endpoint.clone());
    let now = clock::now();
    let report = dataplane.apply(&compute(&model), IN_SYNC, now);
    assert!(report.failure_of(&endpoint).is_some(), "{report:?}");

    dataplane.kernel.add_link("cali2");
    let made = HostEnd {
        link: dataplane.kernel.links["cali2"].clone(),
        sysctls: Vec::new(),
    };
    dataplane.note_made("cali2", made);
    let report = dataplane.apply(&compute(&model), IN_SYNC, now);
    assert_eq!(report.failure_of(&endpoint), None);
}

proptest! {
    /// From any state to any other, with one fault anywhere: the kernel's routes are the desired ones.
    #[test]
    fn any_routes_become_any_other_routes(
        wanted in proptest::collection::btree_map(0_u8..12, 0_u8..5, 0..10),
        found in proptest::collection::btree_map(0_u8..12, 0_u8..6, 0..10),
        of_others in proptest::collection::btree_set(12_u8..16, 0..4),
        call in 0_usize..30,
        fault in prop_oneof![Just(Fault::Refused), Just(Fault::LostBefore), Just(Fault::LostAfter)],
    ) {
        let key = |number: u8| RouteKey::main(prefix(&format!("10.{number}.0.0/16")));
        let mut start = kernel();
        start.fault = Some((call, fault));
        for (number, kind) in &found {
            let observed = match kind {
                5 => ObservedRoute { origin: RouteOrigin::Local, path: None },
                kind => ObservedRoute::from(&route(*kind)),
            };
            start.routes.insert(key(*number), observed);
        }
        start.foreign = of_others.iter().map(|number| (key(*number), foreign("foreign"))).collect();
        let routes = wanted.iter().map(|(number, kind)| (key(*number), route(*kind))).collect();
        let desired = Desired { routes, ..Desired::default() };
        let before = start.foreign.clone();
        let mut dataplane = Dataplane::new(start);
        settle(&mut dataplane, &desired);
        prop_assert!(is_as_desired(&dataplane.kernel, &desired), "{:#?}", dataplane.kernel);
        prop_assert_eq!(&dataplane.kernel.foreign, &before);
    }
}

fn route(kind: u8) -> Route {
    let via = |address: &str| {
        RoutePath::via([Gateway {
            address: address.parse().unwrap(),
            interface: None,
        }])
    };
    let (origin, path) = match kind {
        0 => (RouteOrigin::Local, RoutePath::Blackhole),
        1 => (
            RouteOrigin::Local,
            RoutePath::Link {
                interface: "cali2".into(),
            },
        ),
        2 => (
            RouteOrigin::Local,
            RoutePath::Link {
                interface: "cali3".into(),
            },
        ),
        3 => (RouteOrigin::Bgp, via("192.0.2.2")),
        _ => (RouteOrigin::Bgp, via("192.0.2.3")),
    };
    Route { origin, path }
}
