//! Long-lived graceful restart (RFC 9494).

use std::time::Duration;

use calidris_bgp::config::{LongLivedConfig, StaleExport};
use calidris_bgp::rib::{Step, Withheld};
use calidris_bgp::route::Origination;
use calidris_bgp::status::{RouteStatus, Standing};
use calidris_bgp::wire::attr::Community;
use calidris_bgp::{PeerConfig, Speaker};

use super::simulation::{World, open_peer, speaker};
use super::{MINUTE, ROUTE};

const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3600);
const NO_LLGR: &str = "10.1.0.64/26";
const STALE: &str = "65535:6";

/// A peer that is asked to keep our routes for an hour, and whose routes we keep for at most `keep`.
fn long_lived(name: &str, address: &str, asn: u32, keep: Duration) -> PeerConfig {
    let mut peer = open_peer(name, address, asn);
    if let Some(restart) = &mut peer.graceful_restart {
        restart.long_lived = LongLivedConfig {
            stale_time: 3600,
            keep,
            export: StaleExport::Withhold,
        };
    }
    peer
}

/// Node 0 (65001) goes away; node 1 (65002) keeps its routes; behind it 2 (65003) knows of RFC 9494, 3 (65004) does not, and 4 (65002) is internal
/// and does not either.
fn world(change: impl Fn(&mut PeerConfig)) -> World {
    let mut world = World::new(Duration::from_millis(5));
    let mut from = long_lived("b", "10.0.0.2", 65002, HOUR);
    change(&mut from);
    world.add("10.0.0.1", speaker(65001, 1, vec![from]));
    let mut internal = open_peer("i", "10.0.0.5", 65002);
    if let Some(restart) = &mut internal.graceful_restart {
        restart.long_lived.export = StaleExport::Depreference;
    }
    let middle = vec![
        long_lived("a", "10.0.0.1", 65001, HOUR),
        open_peer("c", "10.0.0.3", 65003),
        open_peer("d", "10.0.0.4", 65004),
        internal,
    ];
    world.add("10.0.0.2", speaker(65002, 2, middle));
    world.add(
        "10.0.0.3",
        speaker(65003, 3, vec![open_peer("b", "10.0.0.2", 65002)]),
    );
    for (address, asn, id) in [("10.0.0.4", 65004, 4), ("10.0.0.5", 65002, 5)] {
        let mut old = open_peer("b", "10.0.0.2", 65002);
        old.graceful_restart = None;
        world.add(address, speaker(asn, id, vec![old]));
    }
    for node in 1..5 {
        world.originate(node, &[]);
    }
    announce(&mut world);
    world.run_until(MINUTE, "routes everywhere", |w| {
        (1..5).all(|node| w.has_best(node, ROUTE) && w.has_best(node, NO_LLGR))
    });
    world.run_for(3 * MINUTE);
    world
}

/// Node 0 announces a route to keep and one not to keep.
fn announce(world: &mut World) {
    let kept = (ROUTE.parse().expect("prefix"), Origination::default());
    let other = Origination {
        communities: vec![Community::NO_LLGR],
        ..Origination::default()
    };
    let routes = [kept, (NO_LLGR.parse().expect("prefix"), other)];
    world.call(0, |speaker, now| speaker.originate(routes.into(), now));
}

fn is_long_lived(route: &RouteStatus) -> bool {
    let communities = &route.candidates[0].attributes.communities;
    communities.iter().any(|community| community == STALE)
}

fn withheld(world: &mut World, to: &str) -> Option<Withheld> {
    let route = world.route(1, ROUTE).expect("kept");
    let export = route.exports.into_iter().find(|export| export.to == to);
    export.and_then(|export| export.withheld)
}

#[test]
fn the_capability_names_families_and_times() {
    let mut world = world(|_| {});
    let at_helper = world.peer(1, "a").negotiated.expect("Established");
    let times = at_helper.long_lived_seconds.expect("announced");
    assert_eq!(times.values().copied().collect::<Vec<_>>(), [3600, 3600]);
    let aware = world.peer(1, "c").negotiated.expect("Established");
    assert_eq!(aware.long_lived_seconds.map(|times| times.len()), Some(0));
    let old = world.peer(1, "d").negotiated.expect("Established");
    assert_eq!(old.long_lived_seconds, None);
}

#[test]
fn stale_routes_outlive_the_restart_time_and_end_with_their_own() {
    let mut world = world(|_| {});
    world.kill(0);
    world.run_for(110 * SECOND);
    let route = world.route(1, ROUTE).expect("kept");
    assert!(!is_long_lived(&route), "an ordinary restart for 120 s");
    world.run_for(20 * SECOND);
    assert!(is_long_lived(&world.route(1, ROUTE).expect("kept")));
    assert!(world.route(1, NO_LLGR).is_none(), "NO_LLGR is not kept");
    world.run_for(HOUR - 20 * SECOND);
    assert!(world.has_best(1, ROUTE));
    world.run_for(20 * SECOND);
    for node in 1..5 {
        assert!(world.route(node, ROUTE).is_none(), "node {node}");
    }
}

#[test]
fn only_who_knows_of_stale_routes_is_told_of_them() {
    let mut world = world(|_| {});
    world.kill(0);
    world.run_for(130 * SECOND);
    assert!(is_long_lived(&world.route(2, ROUTE).expect("told")));
    assert!(
        world.route(3, ROUTE).is_none(),
        "an external peer that does not know"
    );
    assert_eq!(withheld(&mut world, "d"), Some(Withheld::LongLivedStale));
    let internal = world.route(4, ROUTE).expect("§4.6");
    let attributes = &internal.candidates[0].attributes;
    assert_eq!(attributes.local_pref, Some(0));
    assert_eq!(attributes.communities, [STALE, "65535:65281"]);
}

#[test]
fn a_stale_route_is_used_last_whatever_else_speaks_for_it() {
    let mut world = world(|_| {});
    let mut config = world.nodes[1].config.clone();
    for peer in &mut config.peers {
        peer.weight = u16::from(peer.name == "a") * 1000;
    }
    world.call(1, |speaker, now| {
        speaker.configure(config, now).expect("configuration")
    });
    world.originate(2, &[ROUTE]);
    world.run_until(MINUTE, "two candidates", |w| {
        w.route(1, ROUTE).is_some_and(|route| route.candidates.len() == 2)
    });
    let best = |world: &mut World| {
        let route = world.route(1, ROUTE).expect("route");
        (route.candidates[0].from.clone(), route.decided_by)
    };
    assert_eq!(best(&mut world), (Some("a".to_owned()), Some(Step::Weight)));
    world.kill(0);
    world.run_for(130 * SECOND);
    assert_eq!(
        best(&mut world),
        (Some("c".to_owned()), Some(Step::LongLivedStale))
    );
    let route = world.route(1, ROUTE).expect("route");
    assert_eq!(route.candidates[1].standing, Standing::Lost(Step::LongLivedStale));
}

#[test]
fn with_a_restart_time_of_zero_it_begins_at_once() {
    let mut world = world(|peer| {
        if let Some(restart) = &mut peer.graceful_restart {
            restart.restart_time = 0;
        }
    });
    world.kill(0);
    world.run_for(SECOND);
    assert!(is_long_lived(&world.route(1, ROUTE).expect("kept")));
    assert!(world.route(1, NO_LLGR).is_none());
}

#[test]
fn a_peer_that_comes_back_is_fresh_again() {
    let mut world = world(|_| {});
    world.kill(0);
    world.run_for(20 * MINUTE);
    world.restart(0);
    announce(&mut world);
    world.run_until(2 * MINUTE, "fresh", |w| {
        let route = w.route(1, ROUTE).expect("never lost");
        !is_long_lived(&route) && !route.candidates[0].stale
    });
    world.run_for(2 * HOUR);
    assert!(world.has_best(3, ROUTE), "the timer has stopped");
}

#[test]
fn the_timer_is_not_moved_by_sessions_that_end_before_their_end_of_rib() {
    let mut world = world(|_| {});
    world.kill(0);
    world.run_for(30 * MINUTE);
    world.restart(0);
    world.run_until(MINUTE, "session", |w| w.established(1, "a"));
    assert!(is_long_lived(&world.route(1, ROUTE).expect("kept")));
    world.kill(0);
    // 120 s and an hour since the first failure, less what has passed.
    world.run_for(29 * MINUTE);
    assert!(world.has_best(1, ROUTE));
    world.run_for(6 * MINUTE);
    assert!(world.route(1, ROUTE).is_none());
}

#[test]
fn who_does_not_say_that_it_forwarded_meanwhile_loses_its_stale_routes() {
    let mut world = world(|_| {});
    world.kill(0);
    world.run_for(20 * MINUTE);
    let fresh = Speaker::new(world.nodes[0].config.clone(), false, 78, world.now).expect("configuration");
    world.nodes[0].speaker = Some(fresh);
    world.run_until(2 * MINUTE, "session", |w| w.established(1, "a"));
    assert!(world.route(1, ROUTE).is_none());
}

#[test]
fn the_time_is_the_shorter_one_of_what_is_asked_and_what_is_granted() {
    let mut world = world(|_| {});
    let mut config = world.nodes[1].config.clone();
    if let Some(restart) = &mut config.peers[0].graceful_restart {
        restart.long_lived.keep = 5 * MINUTE;
    }
    world.call(1, |speaker, now| {
        speaker.configure(config, now).expect("configuration")
    });
    world.kill(0);
    world.run_for(6 * MINUTE);
    assert!(world.has_best(1, ROUTE));
    world.run_for(2 * MINUTE);
    assert!(world.route(1, ROUTE).is_none());
}

#[test]
fn import_policy_runs_over_stale_routes_and_does_not_take_the_mark_off() {
    use calidris_bgp::policy::{Change, Policy, Term};
    let mut world = world(|_| {});
    world.kill(0);
    world.run_for(130 * SECOND);
    let mut config = world.nodes[1].config.clone();
    let policy = Policy::accept_all();
    config.peers[0].import = Some(policy.with(Term {
        name: "strip".to_owned(),
        when: Vec::new(),
        set: vec![Change::RemoveCommunity(Community::LLGR_STALE)],
        then: None,
    }));
    world.call(1, |speaker, now| {
        speaker.configure(config, now).expect("configuration")
    });
    let route = world.route(1, ROUTE).expect("kept");
    assert!(is_long_lived(&route), "{route:?}");
}
