//! Roles and ONLY_TO_CUSTOMER (RFC 9234).
#![allow(clippy::expect_used, clippy::panic, reason = "tests fail by panicking")]

mod simulation;

use std::time::Duration;

use calidris_bgp::PeerConfig;
use calidris_bgp::config::{ConfigError, Role, RoleConfig};
use calidris_bgp::rib::Refusal;
use calidris_bgp::speaker::LogEvent;
use calidris_bgp::status::Standing;
use simulation::{World, open_peer, speaker};

const MINUTE: Duration = Duration::from_secs(60);

fn role(ours: Role) -> Option<RoleConfig> {
    Some(RoleConfig { ours, strict: false })
}

fn with_role(name: &str, node: u8, role: Option<RoleConfig>) -> PeerConfig {
    let mut peer = open_peer(name, &format!("10.0.0.{node}"), 65000 + u32::from(node));
    peer.role = role;
    peer
}

fn pair(ours: Option<RoleConfig>, theirs: Option<RoleConfig>) -> World {
    let mut world = World::new(Duration::from_millis(5));
    world.add("10.0.0.1", speaker(65001, 1, vec![with_role("b", 2, ours)]));
    world.add("10.0.0.2", speaker(65002, 2, vec![with_role("a", 1, theirs)]));
    world
}

#[test]
fn roles_must_fit_each_other() {
    use Role::{Customer, Peer, Provider, RouteServer, RouteServerClient};
    for (ours, theirs, fits) in [
        (Provider, Customer, true),
        (RouteServer, RouteServerClient, true),
        (Peer, Peer, true),
        (Provider, Provider, false),
        (Peer, Customer, false),
        (RouteServer, Customer, false),
    ] {
        let mut world = pair(role(ours), role(theirs));
        world.run_for(MINUTE);
        assert_eq!(world.established(0, "b"), fits, "{ours:?} and {theirs:?}");
        if !fits {
            let told = world.nodes.iter().flat_map(|node| &node.log).any(|event| {
                matches!(event, LogEvent::Down { closed, .. } if closed.reason.to_string().contains("Role Mismatch"))
            });
            assert!(told, "{ours:?} and {theirs:?}");
        }
    }
    for (strict, up) in [(false, true), (true, false)] {
        let mut world = pair(Some(RoleConfig { ours: Peer, strict }), None);
        world.run_for(MINUTE);
        assert_eq!(
            world.established(0, "b"),
            up,
            "a peer without a role, strict: {strict}"
        );
    }
    let config = speaker(65001, 1, vec![with_role("b", 2, role(Role::Unassigned(9)))]);
    assert!(matches!(config.check(), Err(ConfigError::Role { value: 9, .. })));
}

/// Three in a row; the middle one has `roles` towards the first and the last, which have `far` towards it.
fn row(roles: [Option<RoleConfig>; 2], far: [Option<RoleConfig>; 2]) -> World {
    let mut world = World::new(Duration::from_millis(5));
    world.add("10.0.0.1", speaker(65001, 1, vec![with_role("mid", 2, far[0])]));
    let mid = vec![with_role("one", 1, roles[0]), with_role("three", 3, roles[1])];
    world.add("10.0.0.2", speaker(65002, 2, mid));
    world.add("10.0.0.3", speaker(65003, 3, vec![with_role("mid", 2, far[1])]));
    world.originate(0, &["10.1.0.0/24"]);
    world.originate(1, &["10.2.0.0/24"]);
    world.run_for(MINUTE);
    world
}

fn otc(world: &mut World, node: usize, prefix: &str) -> Option<u32> {
    world
        .route(node, prefix)
        .expect("route")
        .candidates
        .remove(0)
        .attributes
        .otc
}

#[test]
fn what_comes_from_above_goes_down_only() {
    use Role::{Customer, Peer, Provider};
    // A provider that knows no roles: the mark is ours.
    for (below, arrives) in [(Customer, false), (Peer, false), (Provider, true)] {
        let mut world = row([role(Customer), role(below)], [None, None]);
        assert_eq!(
            otc(&mut world, 1, "10.1.0.0/24"),
            Some(65001),
            "marked on the way in"
        );
        assert_eq!(
            world.has_best(2, "10.1.0.0/24"),
            arrives,
            "to whom we are {below:?}"
        );
        assert!(world.has_best(2, "10.2.0.0/24"), "what is ours goes everywhere");
        let marked = (below != Customer).then_some(65002);
        assert_eq!(otc(&mut world, 2, "10.2.0.0/24"), marked, "marked on the way out");
    }
    // From a customer to everybody.
    let mut world = row([role(Provider), role(Customer)], [None, None]);
    assert!(world.has_best(2, "10.1.0.0/24"));
}

#[test]
fn a_leaked_route_is_refused() {
    use Role::{Customer, Peer, Provider};
    // The middle one knows no role towards the last, which therefore is told what came from above.
    for theirs in [Provider, Peer] {
        let mut world = row([role(Customer), None], [None, role(theirs)]);
        let leaked = world.route(2, "10.1.0.0/24").expect("kept").candidates.remove(0);
        let refused = Standing::Refused {
            reason: Refusal::RouteLeak,
            term: None,
        };
        assert_eq!(leaked.standing, refused, "{theirs:?}");
        assert!(world.has_best(2, "10.2.0.0/24"));
    }
}
