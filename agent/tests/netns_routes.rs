//! Routes on the real kernel, in namespaces: replacing, batches with failures in them, dumps while the tables change.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test may fail by panicking")]

mod namespaces;

use std::time::{Duration, Instant};

use calidris_agent::apply::{Dataplane, Op};
use calidris_agent::clock;
use calidris_agent::delta::Change;
use calidris_agent::desired::{Desired, Gateway, Route, RouteKey, RouteOrigin, RoutePath};
use calidris_agent::kernel::{Kernel, KernelChange, Linux};
use calidris_agent::model::InSync;
use namespaces::{Namespace, possible};

const IN_SYNC: InSync = InSync {
    datastore: true,
    bgp: true,
    cluster: true,
};

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

/// The kernel has its own ideas of what replaces what, IPv6 above all: next hops of a multipath route are routes there.
#[test]
fn every_kind_of_route_is_replaced_by_every_other_in_both_families() {
    if !possible("every_kind_of_route_is_replaced") {
        return;
    }
    let node = node();
    node.sh("ip link add cali2 type veth peer name cali3; ip link set cali2 up; ip link set cali3 up");
    node.run(|| {
        let mut dataplane = fresh();
        for (destination, net) in [("10.65.0.0/26", "192.0.2."), ("fd00:10:65::/122", "2001:db8::")] {
            let key = RouteKey::main(destination.parse().unwrap());
            let link = |name: &str| RoutePath::Link {
                interface: name.into(),
            };
            let via = |hosts: &[u8]| {
                let gateway = |host: &u8| Gateway {
                    address: format!("{net}{host}").parse().unwrap(),
                    interface: None,
                };
                RoutePath::via(hosts.iter().map(gateway))
            };
            let paths = [
                RoutePath::Blackhole,
                link("cali2"),
                link("cali3"),
                via(&[2]),
                via(&[3]),
                via(&[2, 3]),
                via(&[3, 4]),
                via(&[2, 3, 4]),
            ];
            let desired = |path: &RoutePath| {
                let origin = if matches!(path, RoutePath::Via { .. }) {
                    RouteOrigin::Bgp
                } else {
                    RouteOrigin::Local
                };
                let routes = [(
                    key.clone(),
                    Route {
                        origin,
                        path: path.clone(),
                    },
                )]
                .into();
                Desired {
                    routes,
                    ..Desired::default()
                }
            };
            for from in &paths {
                for to in &paths {
                    let case = format!("{destination}: {from} to {to}");
                    for (wanted, stage) in [(from, "before"), (to, "after")] {
                        let report = dataplane.apply(&desired(wanted), IN_SYNC, now());
                        assert!(
                            report.failures.is_empty(),
                            "{stage} {case}: {:#?}",
                            report.failures
                        );
                        dataplane.note(KernelChange::Routes);
                        let again = dataplane.apply(&desired(wanted), IN_SYNC, now());
                        assert_eq!(
                            again.ops,
                            [],
                            "{stage} {case}: {}",
                            node.sh("ip route; ip -6 route")
                        );
                    }
                    let report = dataplane.apply(&Desired::default(), IN_SYNC, now());
                    assert!(report.failures.is_empty(), "{case}: {:#?}", report.failures);
                    let left = node.sh("ip route show proto 202; ip route show proto 203; ip -6 route show proto 202; ip -6 route show proto 203");
                    assert_eq!(left, "", "deleting after {case}");
                }
            }
        }
    });
}

#[test]
fn in_a_batch_of_thousands_each_failure_is_that_of_its_route() {
    if !possible("in_a_batch_of_thousands") {
        return;
    }
    let node = node();
    node.run(|| {
        let is_bad = |number: u32| number % 7 == 3;
        let route = |number: u32| {
            // Not a neighbour of this node: the kernel refuses.
            let address = if is_bad(number) {
                "203.0.113.1"
            } else {
                "192.0.2.2"
            }
            .parse()
            .unwrap();
            let gateway = Gateway {
                address,
                interface: None,
            };
            let destination = std::net::Ipv4Addr::from(0x0a80_0000 + (number << 4));
            let key = RouteKey::main(ipnetwork::IpNetwork::new(destination.into(), 28).unwrap());
            (
                key,
                Route {
                    origin: RouteOrigin::Bgp,
                    path: RoutePath::via([gateway]),
                },
            )
        };
        let desired = Desired {
            routes: (0..5000).map(route).collect(),
            ..Desired::default()
        };
        let mut dataplane = fresh();
        let now = now();
        let report = dataplane.apply(&desired, IN_SYNC, now);
        let bad = (0..5000).filter(|number| is_bad(*number)).count();
        assert_eq!(report.failures.len(), bad);
        assert!(
            report.failures[0].reason.contains("Nexthop has invalid gateway"),
            "{}",
            report.failures[0]
        );
        assert_eq!(
            node.sh("ip route show proto 203 | wc -l").trim(),
            (5000 - bad).to_string()
        );
        // What failed is not tried again at once.
        let report = dataplane.apply(&desired, IN_SYNC, now);
        assert_eq!((report.ops.len(), report.failures.len()), (0, bad));
        // The neighbour appears: an uplink's change makes everything be tried again.
        node.sh("ip addr add 203.0.113.9/24 dev up0; ip link add new0 type veth peer name new1");
        dataplane.note(KernelChange::Links);
        let report = dataplane.apply(&desired, IN_SYNC, now);
        assert_eq!(
            (report.ops.len(), report.failures.len()),
            (bad, 0),
            "{:?}",
            report.failures.first()
        );
        assert!(
            report
                .ops
                .iter()
                .all(|op| matches!(op, Op::Route(Change::Create { .. })))
        );
        let report = dataplane.apply(&Desired::default(), IN_SYNC, now + Duration::from_secs(1));
        assert_eq!(
            (
                report.ops.iter().filter(|op| matches!(op, Op::Route(_))).count(),
                report.failures.len()
            ),
            (5000, 0)
        );
    });
}

#[test]
fn a_route_to_a_link_that_is_not_there_fails_alone() {
    if !possible("a_route_to_a_link_that_is_not_there") {
        return;
    }
    let node = node();
    node.run(|| {
        let route = |(host, interface): (u8, &str)| {
            let path = RoutePath::Link {
                interface: interface.into(),
            };
            let key = RouteKey::main(format!("10.65.0.{host}/32").parse().unwrap());
            let origin = RouteOrigin::Local;
            (key, Route { origin, path })
        };
        let desired = Desired {
            routes: [(1, "up0"), (2, "gone"), (3, "up0")].map(route).into(),
            ..Desired::default()
        };
        let report = fresh().apply(&desired, IN_SYNC, now());
        let failures: Vec<String> = report.failures.iter().map(ToString::to_string).collect();
        assert_eq!(failures.len(), 1, "{failures:?}");
        assert!(failures[0].contains("there is no link gone"), "{failures:?}");
        assert_eq!(node.sh("ip route show proto 202 | wc -l").trim(), "2");
    });
}

#[test]
fn a_dump_is_whole_while_the_tables_change() {
    if !possible("a_dump_is_whole") {
        return;
    }
    let node = node();
    let routes = |third: std::ops::Range<u32>| -> Desired {
        let path = RoutePath::via([Gateway {
            address: "192.0.2.2".parse().unwrap(),
            interface: None,
        }]);
        let route = |number: u32| {
            let destination = std::net::Ipv4Addr::from(0x0a00_0000 + (number << 8));
            let key = RouteKey::main(ipnetwork::IpNetwork::new(destination.into(), 24).unwrap());
            (
                key,
                Route {
                    origin: RouteOrigin::Bgp,
                    path: path.clone(),
                },
            )
        };
        Desired {
            routes: third.map(route).collect(),
            ..Desired::default()
        }
    };
    let [steady, more] = [routes(1000..3000), routes(0..4000)];
    node.run(|| fresh().apply(&steady, IN_SYNC, now()));
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        let changer = scope.spawn(|| {
            node.run(|| {
                let mut dataplane = fresh();
                while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                    dataplane.apply(&more, IN_SYNC, now());
                    dataplane.apply(&steady, IN_SYNC, now());
                }
            });
        });
        node.run(|| {
            let mut kernel = Linux::open().unwrap();
            for _ in 0..20 {
                match kernel.routes() {
                    Ok(seen) => assert!(
                        steady.routes.keys().all(|key| seen.contains_key(key)),
                        "torn: {}",
                        seen.len()
                    ),
                    // Torn every time: said, not hidden.
                    Err(error) => assert!(error.to_string().contains("changed during each"), "{error}"),
                }
            }
        });
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        changer.join().unwrap();
    });
}
