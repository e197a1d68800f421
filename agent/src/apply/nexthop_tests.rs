//! Nexthop groups on the kernel in memory: few writes for many routes, from anywhere, with any call failing.

use proptest::collection::{btree_map, vec};
use proptest::prelude::*;

use super::tests::{IN_SYNC, is_as_desired, settle};
use super::*;
use crate::desired::{Gateway, Route, RouteOrigin};
use crate::kernel::fake::{FakeKernel, Fault};
use crate::kernel::{Nexthop, ObservedRoute, SeenNexthops};
use crate::ours::NEXTHOP_IDS;

const FIRST: u32 = *NEXTHOP_IDS.start();
/// What the numbers come to on a kernel that has none: the group of `up0` and `up1`, and the gateways behind them.
const GROUP: u32 = FIRST;
const GATEWAY_0: u32 = FIRST + 1;
const GATEWAY_1: u32 = FIRST + 2;
/// Many routes.
const MANY: u8 = 50;

fn kernel() -> FakeKernel {
    let mut kernel = FakeKernel::default();
    for name in ["up0", "up1", "up2"] {
        kernel.add_link(name);
    }
    kernel
}

/// The gateway behind `up0`, `up1` or `up2`.
fn gateway(link: u8) -> Gateway {
    Gateway {
        address: format!("192.0.{link}.2").parse().unwrap(),
        interface: Some(format!("up{link}")),
    }
}

fn route(links: &[u8]) -> Route {
    Route {
        origin: RouteOrigin::Bgp,
        path: RoutePath::via(links.iter().map(|link| gateway(*link))),
    }
}

fn key(number: u8) -> RouteKey {
    RouteKey::main(format!("10.{number}.0.0/16").parse().unwrap())
}

/// Many routes over these links, but for some over others.
fn desired(links: &[u8], others: &[(u8, &[u8])]) -> Desired {
    let mut routes: BTreeMap<RouteKey, Route> = (0..MANY).map(|number| (key(number), route(links))).collect();
    routes.extend(others.iter().map(|(number, links)| (key(*number), route(links))));
    Desired {
        routes,
        ..Desired::default()
    }
}

/// What was done about routes and nexthop objects.
fn lines(ops: &[Op]) -> Vec<String> {
    ops.iter()
        .filter(|op| matches!(op, Op::Nexthop(_) | Op::Route(_)))
        .map(ToString::to_string)
        .collect()
}

/// A dataplane on a kernel with many routes over `up0` and `up1`.
fn settled() -> Dataplane<FakeKernel> {
    let mut dataplane = Dataplane::new(kernel());
    settle(&mut dataplane, &desired(&[0, 1], &[]));
    dataplane
}

#[test]
fn routes_of_one_set_of_gateways_refer_to_one_group_and_a_second_start_writes_nothing() {
    let desired = desired(&[0, 1], &[(7, &[0]), (8, &[1, 2])]);
    let mut dataplane = Dataplane::new(kernel());
    let ops = lines(&settle(&mut dataplane, &desired));
    assert_eq!(
        ops[..5],
        [
            format!("nexthop: create {GATEWAY_0} via 192.0.0.2 dev up0"),
            format!("nexthop: create {GATEWAY_1} via 192.0.1.2 dev up1"),
            format!("nexthop: create {} via 192.0.2.2 dev up2", FIRST + 4),
            format!("nexthop: create {GROUP} group {GATEWAY_0}/{GATEWAY_1}"),
            format!("nexthop: create {} group {GATEWAY_1}/{}", FIRST + 3, FIRST + 4),
        ]
    );
    assert!(ops.contains(&format!(
        "route: create 10.0.0.0/16 metric 1024 nhid {GROUP} (bgp)"
    )));
    assert!(ops.contains(&format!(
        "route: create 10.8.0.0/16 metric 1024 nhid {} (bgp)",
        FIRST + 3
    )));
    assert!(ops.contains(&"route: create 10.7.0.0/16 metric 1024 via 192.0.0.2 dev up0 (bgp)".to_owned()));
    assert_eq!(ops.len(), 5 + usize::from(MANY));
    let mut second = Dataplane::new(dataplane.kernel.clone());
    assert_eq!(lines(&settle(&mut second, &desired)), [""; 0]);
}

#[test]
fn a_gateway_that_goes_or_comes_is_one_write_however_many_routes_there_are() {
    let mut dataplane = settled();
    let [gone, back] = [desired(&[0], &[]), desired(&[0, 1], &[])];
    assert_eq!(
        lines(&settle(&mut dataplane, &gone)),
        [
            format!("nexthop: replace {GROUP} group {GATEWAY_0}/{GATEWAY_1} with group {GATEWAY_0}"),
            format!("nexthop: delete {GATEWAY_1} via 192.0.1.2 dev up1"),
        ]
    );
    assert!(is_as_desired(&dataplane.kernel, &gone));
    // A fresh process finds a group of one, and leaves it.
    let mut second = Dataplane::new(dataplane.kernel.clone());
    assert_eq!(lines(&settle(&mut second, &gone)), [""; 0]);
    assert_eq!(
        lines(&settle(&mut dataplane, &back)),
        [
            format!("nexthop: create {GATEWAY_1} via 192.0.1.2 dev up1"),
            format!("nexthop: replace {GROUP} group {GATEWAY_0} with group {GATEWAY_0}/{GATEWAY_1}"),
        ]
    );
    // Another in its place.
    let ops = lines(&settle(&mut dataplane, &desired(&[0, 2], &[])));
    assert_eq!(ops.len(), 3, "{ops:#?}");
    assert!(ops.iter().all(|op| op.starts_with("nexthop: ")), "{ops:#?}");
}

#[test]
fn a_link_that_dies_takes_its_gateway_from_the_group_and_nothing_is_left_to_write() {
    let mut dataplane = settled();
    let kernel = &mut dataplane.kernel;
    kernel.links.get_mut("up1").unwrap().running = false;
    kernel.remove_nexthops_through("up1");
    dataplane.note(KernelChange::Links);
    assert_eq!(lines(&settle(&mut dataplane, &desired(&[0], &[]))), [""; 0]);
    dataplane.kernel.links.get_mut("up1").unwrap().running = true;
    dataplane.note(KernelChange::Links);
    let ops = lines(&settle(&mut dataplane, &desired(&[0, 1], &[])));
    assert_eq!(ops.len(), 2, "{ops:#?}");
}

#[test]
fn a_link_that_flaps_faster_than_anybody_looks_is_mended() {
    let mut dataplane = settled();
    dataplane.kernel.remove_nexthops_through("up1");
    dataplane.note(KernelChange::Routes);
    let ops = lines(&settle(&mut dataplane, &desired(&[0, 1], &[])));
    assert_eq!(ops.len(), 2, "{ops:#?}");
    // All gateways at once: the kernel has removed the routes too.
    for name in ["up0", "up1"] {
        dataplane.kernel.remove_nexthops_through(name);
    }
    assert!(dataplane.kernel.routes.is_empty());
    dataplane.note(KernelChange::Routes);
    let ops = lines(&settle(&mut dataplane, &desired(&[0, 1], &[])));
    assert_eq!(ops.len(), 3 + usize::from(MANY));
}

#[test]
fn a_route_that_wants_something_else_leaves_its_group_alone() {
    let mut dataplane = settled();
    let one = desired(&[0, 1], &[(7, &[1])]);
    assert_eq!(
        lines(&settle(&mut dataplane, &one)),
        [format!(
            "route: replace 10.7.0.0/16 metric 1024 nhid {GROUP} (bgp) with via 192.0.1.2 dev up1 (bgp)"
        )]
    );
    // Nor does what learns of a change later than the others hold them up.
    let ops = lines(&settle(
        &mut dataplane,
        &desired(&[0, 2], &[(7, &[1]), (8, &[0, 1])]),
    ));
    let routes: Vec<&String> = ops.iter().filter(|op| op.starts_with("route: ")).collect();
    assert_eq!(routes.len(), 1, "{ops:#?}");
    assert!(routes[0].contains("10.8.0.0/16"), "{ops:#?}");
}

#[test]
fn what_nobody_needs_any_more_goes_after_the_routes() {
    let mut dataplane = settled();
    let ops = lines(&settle(&mut dataplane, &Desired::default()));
    let (routes, rest) = ops.split_at(usize::from(MANY));
    assert!(
        routes.iter().all(|op| op.starts_with("route: delete")),
        "{ops:#?}"
    );
    assert_eq!(
        rest,
        [
            format!("nexthop: delete {GROUP} group {GATEWAY_0}/{GATEWAY_1}"),
            format!("nexthop: delete {GATEWAY_1} via 192.0.1.2 dev up1"),
            format!("nexthop: delete {GATEWAY_0} via 192.0.0.2 dev up0"),
        ]
    );
    assert_eq!(dataplane.kernel.nexthops, SeenNexthops::default());
}

#[test]
fn a_group_stays_while_a_route_could_not_leave_it() {
    let mut dataplane = settled();
    let calls = dataplane.kernel.calls;
    for i in 0..4 {
        let mut d2 = settled();
        d2.kernel.fault = Some((calls + i, Fault::Refused));
        let r = d2.apply(&Desired::default(), IN_SYNC, crate::clock::now());
        eprintln!("{i} {:?} {}", r.failures, d2.kernel.routes.len());
    }
    dataplane.kernel.fault = Some((calls, Fault::Refused));
    let report = dataplane.apply(&Desired::default(), IN_SYNC, crate::clock::now());
    assert_eq!(dataplane.kernel.routes.len(), 1, "{:?}", report.failures);
    let failing: Vec<&str> = report
        .failures
        .iter()
        .map(|failure| failure.what.as_str())
        .collect();
    assert!(
        failing.contains(&format!("nexthop {GROUP}").as_str()),
        "{failing:?}"
    );
    settle(&mut dataplane, &Desired::default());
    assert!(dataplane.kernel.routes.is_empty());
    assert_eq!(dataplane.kernel.nexthops, SeenNexthops::default());
}

#[test]
fn before_bgp_is_in_sync_groups_are_only_made() {
    let in_sync = InSync {
        bgp: false,
        ..IN_SYNC
    };
    let start = settled().kernel;
    let mut dataplane = Dataplane::new(start.clone());
    let now = crate::clock::now();
    for desired in [Desired::default(), desired(&[0], &[])] {
        assert_eq!(lines(&dataplane.apply(&desired, in_sync, now).ops), [""; 0]);
    }
    assert_eq!(dataplane.kernel.nexthops, start.nexthops);
    let made = Desired {
        routes: [(key(200), route(&[1, 2])), (key(201), route(&[0, 1]))].into(),
        ..Desired::default()
    };
    let ops = lines(&dataplane.apply(&made, in_sync, now).ops);
    assert_eq!(ops.len(), 4, "{ops:#?}");
    assert!(ops[3].ends_with(&format!("nhid {GROUP} (bgp)")), "{ops:#?}");
}

#[test]
fn numbers_that_others_have_are_passed_over_and_theirs_stay() {
    let mut start = kernel();
    start.nexthops.taken = [FIRST, FIRST + 2].into();
    let mut dataplane = Dataplane::new(start);
    settle(&mut dataplane, &desired(&[0, 1], &[]));
    let ours: Vec<u32> = dataplane.kernel.nexthops.ours.keys().copied().collect();
    assert_eq!(ours, [FIRST + 1, FIRST + 3, FIRST + 4]);
    settle(&mut dataplane, &Desired::default());
    assert_eq!(dataplane.kernel.nexthops.taken, [FIRST, FIRST + 2].into());
}

#[test]
fn a_kernel_without_nexthop_objects_gets_multipath_routes() {
    let mut dataplane = Dataplane::new(FakeKernel {
        is_without_nexthops: true,
        ..kernel()
    });
    let desired = desired(&[0, 1], &[]);
    let ops = lines(&settle(&mut dataplane, &desired));
    assert_eq!(
        ops[0],
        "route: create 10.0.0.0/16 metric 1024 via 192.0.0.2 dev up0 via 192.0.1.2 dev up1 (bgp)"
    );
    assert_eq!(ops.len(), usize::from(MANY));
    // The kernel is a newer one at the next start.
    let mut kernel = dataplane.kernel;
    kernel.is_without_nexthops = false;
    let ops = lines(&settle(&mut Dataplane::new(kernel), &desired));
    assert_eq!(ops.len(), 3 + usize::from(MANY));
}

fn any_desired() -> impl Strategy<Value = Desired> {
    let links = vec(0_u8..3, 1..4);
    btree_map(0_u8..8, links, 0..8).prop_map(|routes| Desired {
        routes: routes
            .into_iter()
            .map(|(number, links)| (key(number), route(&links)))
            .collect(),
        ..Desired::default()
    })
}

/// What somebody else, or the kernel, does to what is there.
fn damage(kernel: &mut FakeKernel, kind: u8) {
    let ours: Vec<u32> = kernel.nexthops.ours.keys().copied().collect();
    match kind {
        0..3 => kernel.remove_nexthops_through(&format!("up{kind}")),
        3 => {
            if let Some(id) = ours.last() {
                kernel.remove_nexthop(*id);
            }
        }
        4 => {
            if let Some(id) = ours.first() {
                kernel.nexthops.ours.insert(*id, Nexthop::Other);
            }
        }
        5 => {
            let stray = Nexthop::Gateway {
                address: "192.0.0.9".parse().unwrap(),
                interface: "up0".to_owned(),
            };
            kernel.nexthops.ours.insert(FIRST + 40, stray);
        }
        6 => {
            let path = Some(RoutePath::Group { id: FIRST + 77 });
            let origin = RouteOrigin::Bgp;
            kernel.routes.insert(key(3), ObservedRoute { origin, path });
        }
        _ => {
            kernel.nexthops.taken.insert(FIRST + 60);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn from_anything_to_anything_with_any_call_failing(
        before in any_desired(),
        after in any_desired(),
        damaged in vec(0_u8..8, 0..3),
        kind in 0_usize..3,
    ) {
        let mut dataplane = Dataplane::new(kernel());
        settle(&mut dataplane, &before);
        let mut start = dataplane.kernel;
        for kind in damaged {
            damage(&mut start, kind);
        }
        start.calls = 0;
        let taken = start.nexthops.taken.clone();
        let mut undisturbed = Dataplane::new(start.clone());
        settle(&mut undisturbed, &after);
        for call in 0..undisturbed.kernel.calls {
            let fault = [Fault::Refused, Fault::LostBefore, Fault::LostAfter][kind];
            let mut dataplane = Dataplane::new(FakeKernel {
                fault: Some((call, fault)),
                ..start.clone()
            });
            settle(&mut dataplane, &after);
            let at = format!("call {call} {fault:?}: {:#?}", dataplane.kernel);
            prop_assert!(is_as_desired(&dataplane.kernel, &after), "{}", at);
            prop_assert_eq!(&dataplane.kernel.nexthops.taken, &taken);
            dataplane.note(KernelChange::Everything);
            prop_assert_eq!(settle(&mut dataplane, &after), vec![], "{}", at);
            assert_no_more_than_needed(&dataplane.kernel, &after);
        }
    }
}

/// Every group has a route, every gateway a group, and every route through several gateways a group.
fn assert_no_more_than_needed(kernel: &FakeKernel, desired: &Desired) {
    let referred: BTreeSet<u32> = kernel
        .routes
        .values()
        .filter_map(|route| match route.path {
            Some(RoutePath::Group { id }) => Some(id),
            _ => None,
        })
        .collect();
    let mut members = BTreeSet::new();
    for (id, nexthop) in &kernel.nexthops.ours {
        if let Nexthop::Group(of) = nexthop {
            assert!(referred.contains(id), "group {id} has no route: {kernel:#?}");
            members.extend(of);
        }
    }
    let all: BTreeSet<u32> = kernel.nexthops.ours.keys().copied().collect();
    let needed: BTreeSet<u32> = referred.union(&members).copied().collect();
    assert_eq!(all, needed, "{kernel:#?}");
    for (key, route) in &desired.routes {
        if let RoutePath::Via { gateways } = &route.path
            && gateways.len() > 1
        {
            let path = &kernel.routes[key].path;
            assert!(matches!(path, Some(RoutePath::Group { .. })), "{key}: {path:?}");
        }
    }
}

#[test]
fn a_group_that_somebody_made_something_else_of_stays_while_a_route_could_not_leave_it() {
    let desired = desired(&[0, 1], &[]);
    let mut start = settled().kernel;
    start.nexthops.ours.insert(GROUP, Nexthop::Other);
    let mut dataplane = Dataplane::new(start);
    // The new group is refused, and with it the routes.
    let reads = 8;
    dataplane.kernel.fault = Some((dataplane.kernel.calls + reads, Fault::Refused));
    let report = dataplane.apply(&desired, IN_SYNC, crate::clock::now());
    assert!(!report.failures.is_empty());
    assert_eq!(dataplane.kernel.routes.len(), usize::from(MANY));
    settle(&mut dataplane, &desired);
    assert!(is_as_desired(&dataplane.kernel, &desired));
}
