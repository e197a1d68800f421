//! IPv4 routes with IPv6 next hops (RFC 8950), and peers named by an interface, on virtual time.

use std::net::{IpAddr, Ipv6Addr};
use std::time::Duration;

use calidris_bgp::config::RemoteAs;
use calidris_bgp::rib::Withheld;
use calidris_bgp::route::NextHop;
use calidris_bgp::session::State;
use calidris_bgp::{PeerConfig, SpeakerConfig};

use super::simulation::{LINK, World, open_peer, speaker};

const MINUTE: Duration = Duration::from_secs(60);
const ROUTE: &str = "10.1.0.0/24";

fn over_ipv6(name: &str, address: &str, asn: u32) -> PeerConfig {
    let mut peer = open_peer(name, address, asn);
    peer.extended_next_hop = true;
    peer
}

/// 65001 and 65002 over IPv6, 65003 behind 65002 over IPv4.
fn world(first: PeerConfig, second: PeerConfig) -> World {
    let mut world = World::new(Duration::from_millis(5));
    world.add("2001:db8::1", speaker(65001, 1, vec![first]));
    let mut middle = speaker(65002, 2, vec![second, open_peer("c", "10.0.0.3", 65003)]);
    middle.next_hop_ipv4 = Some([10, 0, 0, 2].into());
    world.add("2001:db8::2", middle);
    world.nodes[1].aliases.push([10, 0, 0, 2].into());
    world.add(
        "10.0.0.3",
        speaker(65003, 3, vec![open_peer("b", "10.0.0.2", 65002)]),
    );
    world.originate(0, &[ROUTE, "2001:db8:1::/48"]);
    world.originate(1, &[]);
    world.originate(2, &["10.3.0.0/24"]);
    world
}

fn next_hops(world: &mut World, node: usize, prefix: &str) -> Vec<NextHop> {
    let prefix = prefix.parse().expect("prefix");
    let best = world.speaker(node).best_routes();
    let found = best.into_iter().find(|change| change.prefix == prefix);
    found
        .and_then(|change| change.best)
        .map_or_else(Vec::new, |best| best.next_hops)
}

#[test]
fn ipv4_routes_pass_an_ipv6_session_with_our_ipv6_address_as_next_hop() {
    let mut world = world(
        over_ipv6("b", "2001:db8::2", 65002),
        over_ipv6("a", "2001:db8::1", 65001),
    );
    world.run_until(MINUTE, "through all", |w| {
        w.has_best(2, ROUTE) && w.has_best(0, "10.3.0.0/24")
    });
    assert!(world.peer(0, "b").negotiated.expect("up").extended_next_hop);
    let at_middle = next_hops(&mut world, 1, ROUTE);
    assert_eq!(
        at_middle[0].address,
        "2001:db8::1".parse::<IpAddr>().expect("address")
    );
    let behind = next_hops(&mut world, 2, ROUTE);
    assert_eq!(behind[0].address, IpAddr::from([10, 0, 0, 2]));
    let back = next_hops(&mut world, 0, "10.3.0.0/24");
    assert_eq!(back[0].address, "2001:db8::2".parse::<IpAddr>().expect("address"));
}

#[test]
fn without_agreement_no_ipv4_route_gets_an_ipv6_next_hop() {
    let mut world = world(
        over_ipv6("b", "2001:db8::2", 65002),
        open_peer("a", "2001:db8::1", 65001),
    );
    world.run_until(MINUTE, "IPv6 passes", |w| w.has_best(1, "2001:db8:1::/48"));
    world.run_for(MINUTE);
    assert!(world.route(1, ROUTE).is_none());
    let export = &world.route(0, ROUTE).expect("our own").exports[0];
    assert_eq!(export.withheld, Some(Withheld::NoNextHop));
}

#[test]
fn a_reflector_withholds_what_a_client_could_not_use() {
    // 65002 reflects to a client that has not agreed: the IPv6 next hop must stay, and cannot be told.
    let mut reflected = over_ipv6("a", "2001:db8::1", 65002);
    reflected.route_reflector_client = true;
    let mut client = open_peer("c", "10.0.0.3", 65002);
    client.route_reflector_client = true;
    let mut world = World::new(Duration::from_millis(5));
    world.add(
        "2001:db8::1",
        speaker(65002, 1, vec![over_ipv6("b", "2001:db8::2", 65002)]),
    );
    world.add("2001:db8::2", speaker(65002, 2, vec![reflected, client]));
    world.nodes[1].aliases.push([10, 0, 0, 2].into());
    world.add(
        "10.0.0.3",
        speaker(65002, 3, vec![open_peer("b", "10.0.0.2", 65002)]),
    );
    world.originate(0, &[ROUTE]);
    world.originate(1, &[]);
    world.originate(2, &[]);
    world.run_until(MINUTE, "at the reflector", |w| {
        w.has_best(1, ROUTE) && w.established(1, "c")
    });
    world.run_for(MINUTE);
    assert!(world.route(2, ROUTE).is_none());
    let exports = world.route(1, ROUTE).expect("route").exports;
    let to_client = exports.iter().find(|export| export.to == "c").expect("asked");
    assert_eq!(to_client.withheld, Some(Withheld::NoNextHop));
}

fn behind(interface: &str) -> PeerConfig {
    let mut peer = PeerConfig::new(interface, IpAddr::V6(Ipv6Addr::UNSPECIFIED), 0);
    peer.interface = Some(interface.to_owned());
    peer.open_as = Some(RemoteAs::External);
    peer.extended_next_hop = true;
    peer.import = Some(calidris_bgp::policy::Policy::accept_all());
    peer.export = Some(calidris_bgp::policy::Policy::accept_all());
    peer
}

fn unnumbered(asn: u32, id: u8) -> SpeakerConfig {
    speaker(asn, id, vec![behind("swp1")])
}

fn found(world: &mut World, node: usize, address: &str) {
    let address: Ipv6Addr = address.parse().expect("address");
    world.call(node, |speaker, now| {
        speaker.handle_interface("swp1", Some(LINK), now);
        speaker.handle_neighbor("swp1", address, now);
    });
}

/// Two speakers that know of each other only the interface.
fn two_unnumbered() -> World {
    let mut world = World::new(Duration::from_millis(5));
    world.add("fe80::1", unnumbered(65001, 1));
    world.add("fe80::2", unnumbered(65002, 2));
    world.originate(0, &[ROUTE]);
    world.originate(1, &["10.2.0.0/24"]);
    world
}

#[test]
fn neighbours_behind_an_interface_find_each_other() {
    let mut world = two_unnumbered();
    world.run_for(MINUTE);
    assert_eq!(world.peer(0, "swp1").state, State::Active, "nobody there yet");
    found(&mut world, 0, "fe80::2");
    found(&mut world, 1, "fe80::1");
    world.run_until(MINUTE, "routes", |w| {
        w.has_best(1, ROUTE) && w.has_best(0, "10.2.0.0/24")
    });
    let peer = world.peer(1, "swp1");
    assert_eq!((peer.remote_as, peer.interface.as_deref()), (65001, Some("swp1")));
    assert_eq!(
        next_hops(&mut world, 1, ROUTE),
        [NextHop {
            address: "fe80::1".parse().expect("address"),
            scope_id: Some(LINK),
        }]
    );
}

#[test]
fn one_side_that_was_found_is_enough() {
    let mut world = two_unnumbered();
    // The other side knows only that the interface is there.
    world.call(1, |speaker, now| {
        speaker.handle_interface("swp1", Some(LINK), now);
    });
    found(&mut world, 0, "fe80::2");
    world.run_until(MINUTE, "up", |w| {
        w.established(0, "swp1") && w.established(1, "swp1")
    });
}

#[test]
fn another_router_on_the_link_does_not_disturb_a_session_and_a_lost_interface_ends_it() {
    let mut world = two_unnumbered();
    found(&mut world, 0, "fe80::2");
    found(&mut world, 1, "fe80::1");
    world.run_until(MINUTE, "up", |w| w.established(0, "swp1"));
    found(&mut world, 0, "fe80::99");
    world.run_for(MINUTE);
    assert_eq!(world.peer(0, "swp1").established_count, 1);
    assert!(world.established(0, "swp1"));
    world.call(0, |speaker, now| {
        speaker.handle_interface("swp1", None, now);
    });
    assert!(!world.established(0, "swp1"));
    world.run_for(MINUTE);
    found(&mut world, 0, "fe80::2");
    found(&mut world, 1, "fe80::1");
    world.run_until(2 * MINUTE, "up again", |w| {
        w.established(0, "swp1") && w.has_best(0, "10.2.0.0/24")
    });
}
