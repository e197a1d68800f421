//! A peer's state survives being written down: what it agreed on, what it announced, how far it is.
#![allow(clippy::expect_used, clippy::panic, reason = "tests fail by panicking")]

mod simulation;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use calidris_bgp::config::{AddPathConfig, AddPathSend};
use calidris_bgp::route::Origination;
use calidris_bgp::speaker::PeerSnapshot;
use calidris_bgp::status::{AttributesSummary, RouteFilter};

use simulation::{World, open_peer, speaker};

const SOON: Duration = Duration::from_secs(60);

/// `left` (AS 65001) and `right` (AS 65002), which announces routes of both families, some with attributes of their own.
fn world(add_path: bool) -> World {
    let mut world = World::new(Duration::from_millis(1));
    let both = AddPathConfig {
        receive: add_path,
        send: add_path.then_some(AddPathSend::All),
    };
    let peer = |name: &str, address: &str, asn: u32| {
        let mut peer = open_peer(name, address, asn);
        peer.add_path = both;
        peer
    };
    let mut left = speaker(65001, 1, vec![peer("right", "10.0.0.2", 65002)]);
    let mut right = speaker(65002, 2, vec![peer("left", "10.0.0.1", 65001)]);
    left.next_hop_ipv6 = Some("2001:db8::1".parse().expect("address"));
    right.next_hop_ipv6 = Some("2001:db8::2".parse().expect("address"));
    world.add("10.0.0.1", left);
    world.add("10.0.0.2", right);
    let mut routes = BTreeMap::new();
    for number in 0..300_u32 {
        let origination = Origination {
            med: Some(number % 7),
            communities: vec!["65002:1".parse().expect("community")],
            ..Origination::default()
        };
        let prefix = format!("10.{}.{}.0/24", 100 + number / 250, number % 250);
        routes.insert(prefix.parse().expect("prefix"), origination);
    }
    routes.insert("2001:db8:7::/48".parse().expect("prefix"), Origination::default());
    world.call(1, |speaker, now| speaker.originate(routes, now));
    world.originate(0, &[]);
    world.run_until(SOON, "the table", |world| world.has_best(0, "2001:db8:7::/48"));
    world.run_for(SOON);
    world
}

#[test]
fn what_a_peer_agreed_on_and_announced_survives_being_written_down() {
    for add_path in [false, true] {
        let mut world = world(add_path);
        let snapshot = world
            .speaker(0)
            .snapshot("right")
            .expect("an Established session");
        let text = serde_json::to_string(&snapshot).expect("serialisable");
        let read: PeerSnapshot = serde_json::from_str(&text).expect("what was written");
        assert_eq!(read, snapshot);
        assert_eq!((read.terms.remote_as, read.terms.families.len()), (65002, 2));
        assert!(
            read.families
                .values()
                .all(|family| family.end_of_rib_received && family.end_of_rib_sent)
        );

        let routes = read.routes().expect("messages");
        let kept: BTreeSet<String> = routes
            .iter()
            .map(|(prefix, path_id, attributes)| {
                format!("{prefix} {path_id} {:?}", AttributesSummary::of(attributes))
            })
            .collect();
        let held = world.call(0, |speaker, now| {
            let from = Some("right".to_owned());
            speaker.routes(
                &RouteFilter {
                    from,
                    ..RouteFilter::default()
                },
                now,
            )
        });
        let held: BTreeSet<String> = held
            .iter()
            .flat_map(|route| {
                route
                    .candidates
                    .iter()
                    .map(move |candidate| (route.prefix, candidate))
            })
            .map(|(prefix, candidate)| {
                let received = candidate.received.as_ref().unwrap_or(&candidate.attributes);
                format!("{prefix} {} {received:?}", candidate.path_id)
            })
            .collect();
        assert_eq!(held.len(), 301);
        assert_eq!(kept, held);
    }
}

#[test]
fn without_a_session_there_is_nothing_to_write_down() {
    let mut world = world(false);
    assert_eq!(world.speaker(0).snapshot("nobody"), None);
    world.kill(1);
    world.run_until(SOON, "the end of the session", |world| {
        !world.established(0, "right")
    });
    assert_eq!(world.speaker(0).snapshot("right"), None);
}
