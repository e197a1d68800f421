//! Peers that a range of addresses makes, on virtual time.

use std::time::Duration;

use calidris_bgp::config::{DynamicPeers, Effect, RemoteAs, SessionImpact};
use calidris_bgp::policy::Policy;
use calidris_bgp::{PeerConfig, SpeakerConfig};

use super::simulation::{World, open_peer, speaker};

const MINUTE: Duration = Duration::from_secs(60);

fn range(name: &str, prefix: &str, max_peers: u32) -> DynamicPeers {
    let mut template = open_peer("template", "192.0.2.1", 0);
    template.open_as = Some(RemoteAs::Within(vec![65002..=65009]));
    DynamicPeers {
        name: name.to_owned(),
        range: prefix.parse().expect("prefix"),
        max_peers,
        template,
    }
}

fn server(ranges: Vec<DynamicPeers>) -> SpeakerConfig {
    SpeakerConfig {
        dynamic: ranges,
        ..speaker(65001, 1, Vec::new())
    }
}

/// Node 0 has the ranges, the others (65002, 65003, …) connect to it.
fn world(ranges: Vec<DynamicPeers>, clients: u8) -> World {
    let mut world = World::new(Duration::from_millis(5));
    world.add("10.0.0.1", server(ranges));
    world.originate(0, &["10.9.0.0/24"]);
    for n in 0..clients {
        let asn = 65002 + u32::from(n);
        let config = speaker(asn, n + 2, vec![open_peer("hub", "10.0.0.1", 65001)]);
        world.add(&format!("10.0.0.{}", n + 2), config);
        world.originate(usize::from(n) + 1, &[&format!("10.1.{n}.0/24")]);
    }
    world
}

fn names(world: &mut World) -> Vec<String> {
    let now = world.now;
    let status = world.speaker(0).status(now);
    status.peers.into_iter().map(|peer| peer.name).collect()
}

#[test]
fn whoever_connects_from_a_range_becomes_a_peer_of_its_own() {
    let mut world = world(vec![range("racks", "10.0.0.0/24", 10)], 2);
    world.run_until(MINUTE, "both", |w| {
        (1..3).all(|node| w.established(node, "hub") && w.has_best(node, "10.9.0.0/24"))
    });
    assert_eq!(names(&mut world), ["racks:10.0.0.2", "racks:10.0.0.3"]);
    let peer = world.peer(0, "racks:10.0.0.3");
    assert_eq!((peer.remote_as, peer.range.as_deref()), (65003, Some("racks")));
    world.run_until(MINUTE, "routes between them", |w| w.has_best(2, "10.1.0.0/24"));
    assert_eq!(
        world.route(2, "10.1.0.0/24").expect("route").candidates[0]
            .attributes
            .as_path,
        "65001 65002"
    );
}

#[test]
fn a_full_range_refuses_and_makes_room_for_who_comes_when_others_are_gone() {
    let mut world = world(vec![range("racks", "10.0.0.0/24", 2)], 3);
    world.run_for(MINUTE);
    assert_eq!(names(&mut world).len(), 2);
    let without = (1..4)
        .find(|node| !world.established(*node, "hub"))
        .expect("one is left over");
    let with = (1..4).find(|node| *node != without).expect("another");
    world.graceful_stop(with);
    world.nodes[with].speaker = None;
    // Graceful restart keeps its routes for two minutes; only then it has no claim to its place.
    world.run_until(5 * MINUTE, "the one that waited", |w| {
        w.established(without, "hub")
    });
    assert_eq!(names(&mut world).len(), 2);
}

#[test]
fn a_peer_without_a_connection_is_forgotten_after_a_while_and_costs_nothing() {
    let mut world = world(vec![range("racks", "10.0.0.0/24", 10)], 1);
    world.run_until(MINUTE, "up", |w| w.established(1, "hub"));
    world.kill(1);
    world.run_for(30 * Duration::from_secs(1));
    let peer = world.peer(0, "racks:10.0.0.2");
    assert!(peer.last_error.is_some(), "its end can be looked at");
    assert!(world.has_best(0, "10.1.0.0/24"), "graceful restart goes on");
    world.run_for(5 * MINUTE);
    assert!(names(&mut world).is_empty());
    assert!(world.route(0, "10.1.0.0/24").is_none());
    assert!(world.speaker(0).in_sync());
    // The number of a peer that is gone is used again.
    for _ in 0..3 {
        world.restart(1);
        world.originate(1, &["10.1.0.0/24"]);
        world.run_until(MINUTE, "back", |w| {
            w.established(1, "hub") && w.has_best(0, "10.1.0.0/24")
        });
        world.kill(1);
        world.run_for(5 * MINUTE);
    }
    assert_eq!(world.speaker(0).table_sizes().1, 1, "our own route alone is left");
}

#[test]
fn the_longest_range_counts_and_a_configured_peer_before_all() {
    let mut config = server(vec![
        range("wide", "10.0.0.0/8", 10),
        range("narrow", "10.0.0.3/32", 10),
    ]);
    config.peers.push(open_peer("own", "10.0.0.2", 65002));
    let mut world = world(Vec::new(), 3);
    world.call(0, |speaker, now| {
        speaker.configure(config, now).expect("configuration")
    });
    world.run_until(MINUTE, "all", |w| (1..4).all(|node| w.established(node, "hub")));
    assert_eq!(names(&mut world), ["narrow:10.0.0.3", "own", "wide:10.0.0.4"]);
}

#[test]
fn an_as_outside_of_the_range_is_refused_by_name() {
    let mut racks = range("racks", "10.0.0.0/24", 10);
    racks.template.open_as = Some(RemoteAs::Within(vec![65100..=65110]));
    let mut world = world(vec![racks], 1);
    world.run_until(MINUTE, "refused", |w| w.peer(1, "hub").last_error.is_some());
    let error = world.peer(1, "hub").last_error.expect("error").text;
    assert!(error.contains("Bad Peer AS"), "{error}");
    let error = world.peer(0, "racks:10.0.0.2").last_error.expect("error").text;
    assert!(error.contains("expected an AS of 65100 to 65110"), "{error}");
}

#[test]
fn a_changed_template_applies_to_living_peers_without_a_reset() {
    let mut world = world(vec![range("racks", "10.0.0.0/24", 10)], 1);
    world.run_until(MINUTE, "up", |w| {
        w.has_best(0, "10.1.0.0/24") && w.has_best(1, "10.9.0.0/24")
    });
    let mut config = world.nodes[0].config.clone();
    config.dynamic[0].template.import = Some(Policy::reject_all());
    let planned = world.speaker(0).plan(&config).expect("configuration");
    let impact = world.call(0, |speaker, now| speaker.configure(config.clone(), now));
    assert_eq!(impact.as_ref(), Ok(&planned), "what is planned is what happens");
    assert_eq!(planned.with_effect(Effect::Import), ["racks:10.0.0.2"]);
    assert_eq!(planned.with_session(SessionImpact::Stays), ["racks:10.0.0.2"]);
    assert!(!world.has_best(0, "10.1.0.0/24"));
    assert_eq!(world.peer(0, "racks:10.0.0.2").established_count, 1);
    config.dynamic.clear();
    let impact = world.call(0, |speaker, now| speaker.configure(config, now));
    let removed = impact.expect("configuration");
    assert_eq!(removed.with_session(SessionImpact::Removed), ["racks:10.0.0.2"]);
    assert!(names(&mut world).is_empty());
}

#[test]
fn who_may_be_in_any_other_as_is_ebgp_and_the_as_is_shown() {
    let mut world = World::new(Duration::from_millis(5));
    let mut peer: PeerConfig = open_peer("other", "10.0.0.2", 0);
    peer.open_as = Some(RemoteAs::External);
    world.add("10.0.0.1", speaker(65001, 1, vec![peer]));
    world.add(
        "10.0.0.2",
        speaker(65077, 2, vec![open_peer("hub", "10.0.0.1", 65001)]),
    );
    assert_eq!(world.peer(0, "other").remote_as, 0);
    world.run_until(MINUTE, "up", |w| w.established(0, "other"));
    assert_eq!(world.peer(0, "other").remote_as, 65077);
}
