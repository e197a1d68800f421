//! Graceful restart (RFC 4724, 8538, 9494) in both roles, on virtual time.
#![allow(clippy::expect_used, clippy::panic, reason = "tests fail by panicking")]

#[path = "graceful_restart/long_lived.rs"]
mod long_lived;
#[path = "graceful_restart/notification.rs"]
mod notification;
mod simulation;

use std::time::Duration;

use calidris_bgp::PeerConfig;
use simulation::{World, open_peer, speaker};

const MINUTE: Duration = Duration::from_secs(60);
const ROUTE: &str = "10.1.0.0/26";

/// Node 0 restarts, node 1 helps, node 2 watches from behind.
fn world() -> World {
    world_with(|_| {})
}

/// The same, with another configuration of node 0 about node 1.
fn world_with(change: impl Fn(&mut PeerConfig)) -> World {
    let mut world = World::new(Duration::from_millis(5));
    let mut helper = open_peer("b", "10.0.0.2", 65002);
    change(&mut helper);
    world.add("10.0.0.1", speaker(65001, 1, vec![helper]));
    let middle = vec![
        open_peer("a", "10.0.0.1", 65001),
        open_peer("c", "10.0.0.3", 65003),
    ];
    world.add("10.0.0.2", speaker(65002, 2, middle));
    world.add(
        "10.0.0.3",
        speaker(65003, 3, vec![open_peer("b", "10.0.0.2", 65002)]),
    );
    for node in [1, 2] {
        world.originate(node, &[]);
    }
    world.originate(0, &[ROUTE, "10.1.0.64/26"]);
    world.run_until(MINUTE, "routes everywhere", |w| {
        w.has_best(2, ROUTE) && w.has_best(2, "10.1.0.64/26")
    });
    world.run_for(3 * MINUTE);
    world
}

/// Without the agreement of RFC 8538.
fn no_notification(peer: &mut PeerConfig) {
    if let Some(restart) = &mut peer.graceful_restart {
        restart.notification = false;
    }
}

fn stale(world: &mut World) -> usize {
    world
        .peer(1, "a")
        .families
        .iter()
        .map(|family| family.stale)
        .sum()
}

#[test]
fn a_killed_speaker_that_comes_back_loses_no_route_anywhere() {
    let mut world = world();
    let told = world.peer(2, "b").counters.updates_in;
    world.kill(0);
    world.run_until(MINUTE, "peer notices", |w| !w.established(1, "a"));
    assert_eq!(stale(&mut world), 2);
    world.run_for(Duration::from_secs(20));
    world.restart(0);
    world.originate(0, &[ROUTE, "10.1.0.64/26"]);
    world.run_until(MINUTE, "fresh again", |w| w.established(1, "a") && stale(w) == 0);
    world.run_for(MINUTE);
    assert!(world.has_best(2, ROUTE));
    assert_eq!(
        world.peer(2, "b").counters.updates_in,
        told,
        "nobody behind was told anything"
    );
}

#[test]
fn a_route_not_announced_again_goes_with_end_of_rib() {
    let mut world = world();
    world.kill(0);
    world.run_for(Duration::from_secs(5));
    world.restart(0);
    world.run_until(MINUTE, "session", |w| w.established(1, "a"));
    // Longer than the wait for peers.
    world.run_for(Duration::from_secs(200));
    assert_eq!(
        stale(&mut world),
        2,
        "End-of-RIB waits for our own routes to be known"
    );
    world.originate(0, &[ROUTE]);
    world.run_until(MINUTE, "swept", |w| stale(w) == 0);
    assert!(world.has_best(1, ROUTE));
    assert!(world.route(1, "10.1.0.64/26").is_none());
}

#[test]
fn routes_of_a_speaker_that_stays_away_go_after_its_restart_time() {
    let mut world = world();
    world.kill(0);
    world.run_for(Duration::from_secs(115));
    assert!(world.has_best(2, ROUTE), "the restart time is 120 s");
    world.run_for(Duration::from_secs(10));
    assert!(world.route(2, ROUTE).is_none());
}

#[test]
fn a_speaker_that_lost_its_forwarding_state_loses_its_stale_routes_at_once() {
    let mut world = world();
    world.kill(0);
    world.run_for(Duration::from_secs(5));
    let fresh = calidris_bgp::Speaker::new(world.nodes[0].config.clone(), false, 77, world.now)
        .expect("configuration");
    world.nodes[0].speaker = Some(fresh);
    world.run_until(MINUTE, "session", |w| w.established(1, "a"));
    assert!(world.route(1, ROUTE).is_none());
}

#[test]
fn a_notification_ends_graceful_restart() {
    let mut world = world();
    let cease = calidris_bgp::speaker::Farewell::Cease(String::new());
    world.call(0, |speaker, now| speaker.shutdown(&cease, now));
    world.run_until(MINUTE, "gone", |w| w.route(2, ROUTE).is_none());
}

#[test]
fn a_quiet_stop_for_a_restart_keeps_routes() {
    let mut world = world();
    world.graceful_stop(0);
    world.run_for(Duration::from_secs(30));
    assert!(world.has_best(2, ROUTE));
    assert_eq!(stale(&mut world), 2);
}

#[test]
fn two_restarts_without_an_announcement_between_lose_the_routes() {
    let mut world = world_with(no_notification);
    world.kill(0);
    world.run_for(Duration::from_secs(2));
    world.restart(0);
    world.run_until(MINUTE, "session", |w| w.established(1, "a"));
    assert_eq!(stale(&mut world), 2);
    world.kill(0);
    world.run_for(Duration::from_secs(2));
    assert!(
        world.route(1, ROUTE).is_none(),
        "RFC 4724 §4.2: stale routes do not survive a second restart"
    );
}

#[test]
fn a_new_connection_of_a_vanished_speaker_replaces_the_dead_session() {
    let mut world = world();
    // The machine of node 0 dies: nobody closes the connection.
    world.cut(0, 1);
    world.kill(0);
    world.run_for(Duration::from_secs(10));
    assert!(world.established(1, "a"), "nothing has been noticed yet");
    world.mend(0, 1);
    world.restart(0);
    world.originate(0, &[ROUTE, "10.1.0.64/26"]);
    world.run_until(Duration::from_secs(30), "replaced", |w| {
        assert!(w.has_best(1, ROUTE), "the routes outlive the dead session");
        w.peer(1, "a").established_count == 2 && w.established(0, "b") && stale(w) == 0
    });
    assert!(world.has_best(2, ROUTE));
}

#[test]
fn both_restart_at_the_same_time_and_do_not_wait_for_each_other() {
    let mut world = world();
    world.kill(0);
    world.kill(1);
    world.run_for(Duration::from_secs(2));
    world.restart(0);
    world.restart(1);
    world.originate(0, &[ROUTE]);
    world.originate(1, &[]);
    world.run_until(MINUTE, "in sync", |w| {
        w.speaker(0).in_sync() && w.speaker(1).in_sync()
    });
    assert!(world.has_best(1, ROUTE));
}

#[test]
fn a_peer_that_never_comes_bounds_the_wait() {
    let mut world = World::new(Duration::from_millis(5));
    let peers = vec![
        open_peer("b", "10.0.0.2", 65002),
        open_peer("nobody", "10.0.0.9", 65009),
    ];
    world.add("10.0.0.1", speaker(65001, 1, peers));
    world.add(
        "10.0.0.2",
        speaker(65002, 2, vec![open_peer("a", "10.0.0.1", 65001)]),
    );
    world.originate(0, &[]);
    world.run_for(Duration::from_secs(119));
    assert!(!world.speaker(0).in_sync());
    world.run_for(Duration::from_secs(2));
    assert!(world.speaker(0).in_sync());
}
