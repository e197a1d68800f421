//! Next hops: routes whose next hop cannot be reached are not used, the nearer one wins, and one route may lie behind another.
#![allow(clippy::expect_used, clippy::panic, reason = "tests fail by panicking")]

mod simulation;

use std::collections::BTreeMap;
use std::time::Duration;

use calidris_bgp::family::Prefix;
use calidris_bgp::policy::{Condition, Policy, Term};
use calidris_bgp::rib::{Step, Underlay, UnderlayRoute};
use calidris_bgp::route::Origination;
use calidris_bgp::status::Standing;
use simulation::{World, open_peer, speaker};

const SOON: Duration = Duration::from_secs(30);
const ROUTE: &str = "10.9.0.0/16";

fn prefix(text: &str) -> Prefix {
    text.parse().expect("prefix")
}

/// Node 0, the one looked at, with two peers in its own AS: nodes 1 and 2.
fn world() -> World {
    let mut world = World::new(Duration::from_millis(5));
    let peers = vec![
        open_peer("one", "10.0.0.1", 65001),
        open_peer("two", "10.0.0.2", 65001),
    ];
    world.add("10.0.0.10", speaker(65001, 10, peers));
    for (address, id) in [("10.0.0.1", 1), ("10.0.0.2", 2)] {
        let mut peer = open_peer("zero", "10.0.0.10", 65001);
        peer.import = Some(Policy::reject_all());
        world.add(address, speaker(65001, id, vec![peer]));
    }
    world.originate(0, &[]);
    world
}

/// Makes `node` announce prefixes, each with its next hop.
fn announce(world: &mut World, node: usize, routes: &[(&str, Option<&str>)]) {
    let origination = |next_hop: &Option<&str>| Origination {
        next_hop: next_hop.map(|text| text.parse().expect("address")),
        ..Origination::default()
    };
    let routes: BTreeMap<Prefix, Origination> = routes
        .iter()
        .map(|(text, next_hop)| (prefix(text), origination(next_hop)))
        .collect();
    world.call(node, |speaker, now| speaker.originate(routes, now));
}

/// Tells node 0 which prefixes it reaches, at which cost, and over which neighbour if they are not on a link.
fn underlay(world: &mut World, routes: &[(&str, u32, Option<&str>)]) {
    let route = |metric: u32, via: Option<&str>| UnderlayRoute {
        metric,
        via: via
            .map(|text| calidris_bgp::route::NextHop {
                address: text.parse().expect("address"),
                scope_id: None,
            })
            .into_iter()
            .collect(),
        ..UnderlayRoute::default()
    };
    let underlay: Underlay = routes
        .iter()
        .map(|(text, metric, via)| (prefix(text), route(*metric, *via)))
        .collect();
    world.call(0, |speaker, _| speaker.handle_underlay(Some(underlay)));
}

/// Where node 0 would send packets for each prefix that changed since the last call.
fn changes(world: &mut World) -> BTreeMap<String, Vec<String>> {
    let changes = world.speaker(0).take_changes(1000);
    let next_hops = |best: calidris_bgp::route::BestRoute| {
        let hops = best.next_hops.iter();
        hops.map(|hop| hop.address.to_string()).collect()
    };
    changes
        .into_iter()
        .map(|change| {
            (
                change.prefix.to_string(),
                change.best.map(next_hops).unwrap_or_default(),
            )
        })
        .collect()
}

fn expect(routes: &[(&str, &[&str])]) -> BTreeMap<String, Vec<String>> {
    let owned = |hops: &[&str]| hops.iter().map(|hop| (*hop).to_owned()).collect();
    routes
        .iter()
        .map(|(prefix, hops)| ((*prefix).to_owned(), owned(hops)))
        .collect()
}

#[test]
fn a_route_is_used_only_while_its_next_hop_can_be_reached() {
    let mut world = world();
    underlay(&mut world, &[("10.0.0.0/24", 0, None)]);
    announce(
        &mut world,
        1,
        &[(ROUTE, Some("192.0.2.7")), ("10.8.0.0/16", None)],
    );
    world.run_until(SOON, "both routes", |world| {
        world.route(0, ROUTE).is_some() && world.has_best(0, "10.8.0.0/16")
    });
    let route = world.route(0, ROUTE).expect("route");
    assert_eq!(route.candidates[0].standing, Standing::Unreachable);
    assert_eq!(changes(&mut world), expect(&[("10.8.0.0/16", &["10.0.0.1"])]));
    underlay(
        &mut world,
        &[("10.0.0.0/24", 0, None), ("192.0.2.0/24", 5, Some("10.0.0.77"))],
    );
    assert_eq!(changes(&mut world), expect(&[(ROUTE, &["10.0.0.77"])]));
    let candidate = world.route(0, ROUTE).expect("route").candidates.remove(0);
    assert_eq!(
        (candidate.standing, candidate.next_hop_cost),
        (Standing::Best, Some(5))
    );
    // Another way there is told, though the choice is the same.
    underlay(
        &mut world,
        &[("10.0.0.0/24", 0, None), ("192.0.2.0/24", 5, Some("10.0.0.78"))],
    );
    assert_eq!(changes(&mut world), expect(&[(ROUTE, &["10.0.0.78"])]));
    underlay(&mut world, &[("10.0.0.0/24", 0, None)]);
    assert_eq!(changes(&mut world), expect(&[(ROUTE, &[])]));
    // Nobody says any more what lies below.
    world.call(0, |speaker, _| speaker.handle_underlay(None));
    assert_eq!(changes(&mut world)[ROUTE], vec!["192.0.2.7"]);
}

#[test]
fn the_nearer_next_hop_wins_and_only_its_routes_are_decided_again() {
    let mut world = world();
    let near = |one: u32, two: u32| [("10.0.0.1/32", one, None), ("10.0.0.2/32", two, None)];
    underlay(&mut world, &near(20, 10));
    announce(&mut world, 1, &[(ROUTE, None), ("10.8.0.0/16", None)]);
    announce(&mut world, 2, &[(ROUTE, None)]);
    world.run_until(SOON, "all routes", |world| {
        world
            .route(0, ROUTE)
            .is_some_and(|route| route.candidates.len() == 2)
            && world.has_best(0, "10.8.0.0/16")
    });
    let route = world.route(0, ROUTE).expect("route");
    assert_eq!(route.decided_by, Some(Step::NextHopCost));
    assert_eq!(route.candidates[0].from.as_deref(), Some("two"));
    assert_eq!(changes(&mut world)[ROUTE], vec!["10.0.0.2"]);
    underlay(&mut world, &near(20, 30));
    assert_eq!(changes(&mut world), expect(&[(ROUTE, &["10.0.0.1"])]));
    underlay(&mut world, &near(20, 30));
    assert_eq!(changes(&mut world), expect(&[]));
}

#[test]
fn a_next_hop_behind_another_learnt_route_leads_to_the_neighbour() {
    let mut world = world();
    underlay(&mut world, &[("10.0.0.0/24", 0, None)]);
    announce(&mut world, 1, &[(ROUTE, Some("192.0.2.7"))]);
    announce(
        &mut world,
        2,
        &[("192.0.2.0/24", Some("198.51.100.1")), ("198.51.100.0/24", None)],
    );
    world.run_until(SOON, "the route behind the routes", |world| {
        world.has_best(0, ROUTE)
    });
    let all = changes(&mut world);
    assert_eq!(all[ROUTE], vec!["10.0.0.2"]);
    assert_eq!(all["192.0.2.0/24"], vec!["10.0.0.2"]);
    // What lies in between goes: all that lies behind it goes with it.
    announce(&mut world, 2, &[("192.0.2.0/24", Some("198.51.100.1"))]);
    world.run_until(SOON, "nothing to be reachable", |world| !world.has_best(0, ROUTE));
    let all = changes(&mut world);
    assert_eq!(all[ROUTE], Vec::<String>::new());
    assert_eq!(all["192.0.2.0/24"], Vec::<String>::new());
}

#[test]
fn no_route_holds_itself_up() {
    let mut world = world();
    underlay(&mut world, &[("10.0.0.0/24", 0, None)]);
    // Its own next hop lies in it; two that lie in each other; and one that would hide the way it needs.
    announce(
        &mut world,
        1,
        &[
            ("192.0.2.0/24", Some("192.0.2.7")),
            ("10.1.0.0/16", Some("10.2.0.1")),
            ("10.2.0.0/16", Some("10.1.0.1")),
            ("10.3.0.0/16", None),
            ("10.3.3.0/24", Some("10.3.3.3")),
        ],
    );
    world.run_until(SOON, "all routes", |world| {
        world.route(0, "10.3.3.0/24").is_some()
    });
    world.run_for(Duration::from_secs(1));
    for loops in ["192.0.2.0/24", "10.1.0.0/16", "10.2.0.0/16"] {
        assert!(!world.has_best(0, loops), "{loops}");
    }
    assert_eq!(
        changes(&mut world),
        expect(&[("10.3.0.0/16", &["10.0.0.1"]), ("10.3.3.0/24", &["10.0.0.1"])])
    );
}

/// Tells node 0 by which links it reaches prefixes.
fn links(world: &mut World, routes: &[(&str, &[&str])]) {
    let underlay: Underlay = routes
        .iter()
        .map(|(text, links)| {
            let route = UnderlayRoute {
                links: links.iter().map(|link| (*link).to_owned()).collect(),
                ..UnderlayRoute::default()
            };
            (prefix(text), route)
        })
        .collect();
    world.call(0, |speaker, _| speaker.handle_underlay(Some(underlay)));
}

/// A policy that lets pass what leaves by these links.
fn only_by(patterns: &[&str]) -> Option<Policy> {
    let patterns = patterns.iter().map(|pattern| (*pattern).to_owned()).collect();
    let term = Term::accept("by-link", vec![Condition::Interface(patterns)]);
    Some(Policy::reject_all().with(term))
}

#[test]
fn policies_know_the_link_towards_the_next_hop_and_follow_it() {
    let mut world = world();
    let mut config = world.nodes[0].config.clone();
    config.peers[0].import = only_by(&["eth*"]);
    config.peers[1].export = only_by(&["*1"]);
    config.peers[1].route_reflector_client = true;
    world
        .call(0, |speaker, now| speaker.configure(config, now))
        .expect("configure");
    let near = ("10.0.0.0/24", &["lan0"][..]);
    links(&mut world, &[near, ("192.0.2.0/24", &["wlan0"])]);
    announce(&mut world, 1, &[(ROUTE, Some("192.0.2.7"))]);
    world.run_until(SOON, "the route", |world| world.route(0, ROUTE).is_some());
    let standing = |world: &mut World| {
        let route = world.route(0, ROUTE).expect("route");
        (route.candidates[0].standing.clone(), route.announced_to)
    };
    assert!(
        matches!(standing(&mut world).0, Standing::Refused { .. }),
        "another link"
    );
    // Of several the first by name counts.
    for (link, passes, told) in [
        (&["wlan1", "eth0"][..], true, false),
        (&["eth1"], true, true),
        (&["wlan1"], false, false),
        (&["eth0", "eth1"], true, false),
    ] {
        links(&mut world, &[near, ("192.0.2.0/24", link)]);
        world.run_for(SOON);
        let (standing, announced_to) = standing(&mut world);
        assert_eq!(standing == Standing::Best, passes, "{link:?}: {standing:?}");
        let expected: &[&str] = if told { &["two"] } else { &[] };
        assert_eq!(announced_to, expected, "{link:?}");
    }
    let candidate = world.route(0, ROUTE).expect("route").candidates.remove(0);
    assert_eq!(candidate.attributes.interface.as_deref(), Some("eth0"));
    assert_eq!(candidate.received, None, "nothing that was said is another");
    // When nobody asks any more, nothing of it stays.
    let mut config = world.nodes[0].config.clone();
    config.peers[1].route_reflector_client = true;
    world
        .call(0, |speaker, now| speaker.configure(config, now))
        .expect("configure");
    let route = world.route(0, ROUTE).expect("route");
    assert_eq!(route.candidates[0].attributes.interface, None);
    assert_eq!(world.peer(0, "one").established_count, 1, "without a reset");
}

#[test]
fn the_link_of_a_route_behind_another_one_is_that_of_the_other() {
    let mut world = world();
    let mut config = world.nodes[0].config.clone();
    config.peers[1].import = only_by(&["eth0"]);
    world
        .call(0, |speaker, now| speaker.configure(config, now))
        .expect("configure");
    links(&mut world, &[("10.0.0.0/24", &["eth0"])]);
    announce(&mut world, 2, &[(ROUTE, Some("192.0.2.7"))]);
    announce(&mut world, 1, &[("192.0.2.0/24", None)]);
    world.run_until(SOON, "the route", |world| world.has_best(0, ROUTE));
    links(&mut world, &[("10.0.0.0/24", &["eth1"])]);
    let standing = world
        .route(0, ROUTE)
        .expect("route")
        .candidates
        .remove(0)
        .standing;
    assert!(matches!(standing, Standing::Refused { .. }), "{standing:?}");
}

#[test]
fn without_an_underlay_the_subnets_of_links_name_them_and_change_nothing_else() {
    let mut world = world();
    let mut config = world.nodes[0].config.clone();
    config.peers[0].import = only_by(&["eth*"]);
    world
        .call(0, |speaker, now| speaker.configure(config, now))
        .expect("configure");
    let subnets = |world: &mut World, on_links: &[(&str, &str)]| {
        let on_links = on_links
            .iter()
            .map(|(subnet, link)| (prefix(subnet), (*link).to_owned()))
            .collect();
        world.call(0, |speaker, _| speaker.handle_links(on_links));
    };
    announce(&mut world, 1, &[(ROUTE, Some("192.0.2.7"))]);
    world.run_until(SOON, "the route", |world| world.route(0, ROUTE).is_some());
    for (on_links, passes) in [
        (&[("10.0.0.0/24", "eth0")][..], false),
        (&[("192.0.2.0/24", "eth0")], true),
        (&[("192.0.2.0/24", "eth0"), ("192.0.2.0/28", "lan0")], false),
        (&[("192.0.2.0/28", "eth1"), ("192.0.2.0/24", "lan0")], true),
        (&[], false),
    ] {
        subnets(&mut world, on_links);
        assert_eq!(world.has_best(0, ROUTE), passes, "{on_links:?}");
    }
    // An underlay knows better.
    subnets(&mut world, &[("192.0.2.0/24", "lan0")]);
    links(
        &mut world,
        &[("10.0.0.0/24", &["lan0"]), ("192.0.2.0/24", &["eth0"])],
    );
    assert!(world.has_best(0, ROUTE));
    world.call(0, |speaker, _| speaker.handle_underlay(None));
    assert!(!world.has_best(0, ROUTE));
}
