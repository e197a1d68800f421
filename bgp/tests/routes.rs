//! Routes between speakers on virtual time: who learns what, with which attributes, and when it goes.
#![allow(clippy::expect_used, clippy::panic, reason = "tests fail by panicking")]

mod simulation;

use std::collections::BTreeMap;
use std::time::Duration;

use calidris_bgp::PeerConfig;
use calidris_bgp::config::{Effect, NextHopMode, SessionImpact};
use calidris_bgp::policy::{Change, Condition, Policy, PrefixRange, SourceKind, Term, Verdict};
use calidris_bgp::rib::{Refusal, Step};
use calidris_bgp::route::Origination;
use calidris_bgp::status::{CandidateStatus, Standing};
use calidris_bgp::wire::attr::Community;
use simulation::{World, open_peer, speaker};

const MINUTE: Duration = Duration::from_secs(60);
const TICK: Duration = Duration::from_millis(5);

fn best(world: &mut World, node: usize, prefix: &str) -> CandidateStatus {
    let route = world
        .route(node, prefix)
        .unwrap_or_else(|| panic!("no route to {prefix}"));
    route
        .candidates
        .into_iter()
        .find(|c| c.standing == Standing::Best)
        .expect("best")
}

/// Speakers in a row, each in an AS of its own.
fn chain(count: u8) -> World {
    let mut world = World::new(TICK);
    for i in 1..=count {
        let neighbours = [i.wrapping_sub(1), i + 1]
            .into_iter()
            .filter(|n| (1..=count).contains(n));
        let peers =
            neighbours.map(|n| open_peer(&format!("n{n}"), &format!("10.0.0.{n}"), 65000 + u32::from(n)));
        world.add(
            &format!("10.0.0.{i}"),
            speaker(65000 + u32::from(i), i, peers.collect()),
        );
    }
    world
}

/// Speakers of one AS around node 0, which reflects when `client` says so.
fn star(clients: u8, client: impl Fn(u8) -> bool) -> World {
    let mut world = World::new(TICK);
    let peers = (2..=clients + 1).map(|i| {
        let mut peer = PeerConfig::new(format!("n{i}"), [10, 0, 0, i].into(), 65001);
        peer.route_reflector_client = client(i);
        peer
    });
    world.add("10.0.0.1", speaker(65001, 1, peers.collect()));
    for i in 2..=clients + 1 {
        let peer = PeerConfig::new("centre", [10, 0, 0, 1].into(), 65001);
        world.add(&format!("10.0.0.{i}"), speaker(65001, i, vec![peer]));
    }
    world
}

#[test]
fn ebgp_puts_its_as_in_front_and_itself_as_next_hop_at_every_hop() {
    let mut world = chain(4);
    world.originate(0, &["10.1.0.0/26", "fd00:1::/64"]);
    world.run_until(MINUTE, "route at the far end", |w| w.has_best(3, "10.1.0.0/26"));
    let far = best(&mut world, 3, "10.1.0.0/26");
    assert_eq!(far.attributes.as_path, "65003 65002 65001");
    assert_eq!(far.attributes.next_hop, Some([10, 0, 0, 3].into()));
    assert_eq!(far.attributes.local_pref, None);
    world.run_for(MINUTE);
    let announced = |world: &mut World, node, peer| -> usize {
        world
            .peer(node, peer)
            .families
            .iter()
            .map(|family| family.announced)
            .sum()
    };
    assert_eq!(
        announced(&mut world, 1, "n1"),
        0,
        "a route does not go back to where it is from"
    );
    assert_eq!(announced(&mut world, 1, "n3"), 1);
    // The sessions run over IPv4 and nobody said what our IPv6 address is: nothing that could be announced.
    assert!(world.route(3, "fd00:1::/64").is_none());
}

#[test]
fn ipv6_routes_pass_over_ipv6_and_with_a_configured_next_hop_over_ipv4() {
    for (a, b, own) in [
        ("fd00::1", "fd00::2", None),
        ("10.0.0.1", "10.0.0.2", Some("fd00::1")),
    ] {
        let mut world = World::new(TICK);
        let mut config = speaker(65001, 1, vec![open_peer("b", b, 65002)]);
        config.next_hop_ipv6 = own.map(|address| address.parse().expect("address"));
        world.add(a, config);
        world.add(b, speaker(65002, 2, vec![open_peer("a", a, 65001)]));
        world.originate(0, &["fd01::/64"]);
        world.run_until(MINUTE, "route", |w| w.has_best(1, "fd01::/64"));
        let route = best(&mut world, 1, "fd01::/64");
        assert_eq!(
            route.attributes.next_hop,
            Some("fd00::1".parse().expect("address"))
        );
    }
}

#[test]
fn a_route_goes_everywhere_when_its_session_ends_and_comes_back_with_it() {
    let mut world = chain(4);
    world.originate(0, &["10.1.0.0/26"]);
    world.run_until(MINUTE, "route at the far end", |w| w.has_best(3, "10.1.0.0/26"));
    world.cut(0, 1);
    // Longer than the hold time and the restart time: node 1 gives up, and keeps the routes for a while (RFC 8538).
    world.run_until(6 * MINUTE, "route gone", |w| w.route(3, "10.1.0.0/26").is_none());
    world.mend(0, 1);
    world.run_until(5 * MINUTE, "route back", |w| w.has_best(3, "10.1.0.0/26"));
}

#[test]
fn a_withdrawn_route_goes_and_an_unchanged_one_is_not_sent_again() {
    let mut world = chain(2);
    world.originate(0, &["10.1.0.0/26", "10.1.0.64/26"]);
    world.run_until(MINUTE, "routes", |w| w.has_best(1, "10.1.0.64/26"));
    world.run_for(MINUTE);
    let sent = world.peer(0, "n2").counters.updates_out;
    world.originate(0, &["10.1.0.0/26", "10.1.0.64/26"]);
    world.run_for(TICK * 10);
    assert_eq!(
        world.peer(0, "n2").counters.updates_out,
        sent,
        "the same wish changes nothing"
    );
    world.originate(0, &["10.1.0.64/26"]);
    world.run_until(MINUTE, "one gone", |w| w.route(1, "10.1.0.0/26").is_none());
    assert!(world.has_best(1, "10.1.0.64/26"));
    assert_eq!(world.peer(0, "n2").counters.updates_out, sent + 1);
}

#[test]
fn ibgp_routes_are_not_passed_on_to_ibgp_except_by_a_reflector() {
    let mut world = star(2, |_| false);
    world.originate(1, &["10.1.0.0/26"]);
    world.run_until(MINUTE, "route in the middle", |w| w.has_best(0, "10.1.0.0/26"));
    world.run_for(MINUTE);
    assert!(world.route(2, "10.1.0.0/26").is_none());

    // Client to non-client, non-client to client, client to client (RFC 4456 §6).
    for clients in [[true, false], [false, true], [true, true]] {
        let mut world = star(2, |i| clients[usize::from(i) - 2]);
        world.originate(1, &["10.1.0.0/26"]);
        world.run_until(MINUTE, "reflected", |w| w.has_best(2, "10.1.0.0/26"));
        let route = best(&mut world, 2, "10.1.0.0/26");
        assert_eq!(route.attributes.originator_id, Some([10, 255, 0, 2].into()));
        assert_eq!(
            route.attributes.cluster_list,
            [std::net::Ipv4Addr::from([10, 255, 0, 1])]
        );
        assert_eq!(
            route.attributes.next_hop,
            Some([10, 0, 0, 2].into()),
            "the next hop stays"
        );
        assert_eq!(route.attributes.local_pref, Some(100));
    }
}

#[test]
fn reflectors_in_a_ring_do_not_loop() {
    let mut world = World::new(TICK);
    for i in 1..=3u8 {
        let peers = (1..=3u8).filter(|n| *n != i).map(|n| {
            let mut peer = PeerConfig::new(format!("n{n}"), [10, 0, 0, n].into(), 65001);
            peer.route_reflector_client = true;
            peer
        });
        world.add(&format!("10.0.0.{i}"), speaker(65001, i, peers.collect()));
    }
    world.originate(0, &["10.1.0.0/26"]);
    world.run_until(MINUTE, "everywhere", |w| {
        w.has_best(1, "10.1.0.0/26") && w.has_best(2, "10.1.0.0/26")
    });
    world.run_for(MINUTE);
    let route = world.route(0, "10.1.0.0/26").expect("our own");
    for candidate in route.candidates.iter().filter(|c| c.from.is_some()) {
        let Standing::Refused { reason, .. } = candidate.standing else {
            panic!("{candidate:?}")
        };
        assert!(
            matches!(reason, Refusal::OwnOriginatorId | Refusal::OwnClusterId),
            "{reason:?}"
        );
    }
    world.originate(0, &[]);
    world.run_until(MINUTE, "gone everywhere", |w| {
        (0..3).all(|node| w.route(node, "10.1.0.0/26").is_none())
    });
}

#[test]
fn a_path_through_our_own_as_is_refused_unless_allowed() {
    // 65001 - 65002 - 65001: the far end sees its own AS.
    for (allowed, accepted) in [(0, false), (1, true)] {
        let mut world = World::new(TICK);
        let mut far_peer = open_peer("mid", "10.0.0.2", 65002);
        far_peer.allow_own_as = allowed;
        world.add(
            "10.0.0.1",
            speaker(65001, 1, vec![open_peer("mid", "10.0.0.2", 65002)]),
        );
        let mid = vec![
            open_peer("one", "10.0.0.1", 65001),
            open_peer("far", "10.0.0.3", 65001),
        ];
        world.add("10.0.0.2", speaker(65002, 2, mid));
        world.add("10.0.0.3", speaker(65001, 3, vec![far_peer]));
        world.originate(0, &["10.1.0.0/26"]);
        world.run_until(MINUTE, "route arrives", |w| w.route(2, "10.1.0.0/26").is_some());
        let candidate = world.route(2, "10.1.0.0/26").expect("route").candidates.remove(0);
        assert_eq!(candidate.standing == Standing::Best, accepted, "{candidate:?}");
    }
}

#[test]
fn without_policy_ebgp_passes_nothing_in_either_direction() {
    for (import, export) in [(false, false), (true, false), (false, true), (true, true)] {
        let mut world = World::new(TICK);
        let policy = |on: bool| on.then(Policy::accept_all);
        let mut to_b = PeerConfig::new("b", [10, 0, 0, 2].into(), 65002);
        to_b.export = policy(export);
        let mut to_a = PeerConfig::new("a", [10, 0, 0, 1].into(), 65001);
        to_a.import = policy(import);
        world.add("10.0.0.1", speaker(65001, 1, vec![to_b]));
        world.add("10.0.0.2", speaker(65002, 2, vec![to_a]));
        world.originate(0, &["10.1.0.0/26"]);
        world.run_until(MINUTE, "up", |w| w.established(0, "b") && w.established(1, "a"));
        world.run_for(MINUTE);
        assert_eq!(world.has_best(1, "10.1.0.0/26"), import && export);
        if export && !import {
            let candidate = world.route(1, "10.1.0.0/26").expect("kept").candidates.remove(0);
            assert_eq!(
                candidate.standing,
                Standing::Refused {
                    reason: Refusal::NoPolicy,
                    term: None
                }
            );
        }
    }
}

#[test]
fn well_known_communities_are_honoured() {
    for (community, to_ebgp, to_ibgp) in [
        (Community::NO_EXPORT, false, true),
        (Community::NO_EXPORT_SUBCONFED, false, true),
        (Community::NO_ADVERTISE, false, false),
        (Community::new(65001, 1), true, true),
    ] {
        let mut world = World::new(TICK);
        let peers = vec![
            open_peer("ebgp", "10.0.0.2", 65002),
            open_peer("ibgp", "10.0.0.3", 65001),
        ];
        world.add("10.0.0.1", speaker(65001, 1, peers));
        world.add(
            "10.0.0.2",
            speaker(65002, 2, vec![open_peer("a", "10.0.0.1", 65001)]),
        );
        world.add(
            "10.0.0.3",
            speaker(65001, 3, vec![open_peer("a", "10.0.0.1", 65001)]),
        );
        let origination = Origination {
            communities: vec![community],
            ..Origination::default()
        };
        let routes = BTreeMap::from([("10.1.0.0/26".parse().expect("prefix"), origination)]);
        world.call(0, |speaker, now| speaker.originate(routes, now));
        world.run_for(MINUTE);
        assert_eq!(world.has_best(1, "10.1.0.0/26"), to_ebgp, "{community} to EBGP");
        assert_eq!(world.has_best(2, "10.1.0.0/26"), to_ibgp, "{community} to IBGP");
    }
}

#[test]
fn a_changed_policy_applies_to_what_is_known_without_a_reset() {
    let mut world = chain(2);
    world.originate(0, &["10.1.0.0/26", "10.2.0.0/26"]);
    world.run_until(MINUTE, "routes", |w| w.has_best(1, "10.2.0.0/26"));
    let within = PrefixRange::or_longer("10.1.0.0/16".parse().expect("prefix"));
    let only_first = Policy::reject_all()
        .with(Term::accept("first", vec![Condition::Prefix(vec![within])]).set(Change::LocalPref(300)));
    let mut config = world.nodes[1].config.clone();
    config.peers[0].import = Some(only_first.clone());
    let impact = world
        .call(1, |speaker, now| speaker.configure(config.clone(), now))
        .expect("configure");
    assert_eq!(impact.with_session(SessionImpact::Stays).len(), 1);
    assert_eq!(impact.peers.len(), 1);
    assert_eq!(
        best(&mut world, 1, "10.1.0.0/26").attributes.local_pref,
        Some(300)
    );
    assert!(!world.has_best(1, "10.2.0.0/26"));
    let refused = world
        .route(1, "10.2.0.0/26")
        .expect("still known")
        .candidates
        .remove(0);
    assert_eq!(
        refused.standing,
        Standing::Refused {
            reason: Refusal::Policy(None),
            term: None
        }
    );

    config.peers[0].import = Some(Policy::accept_all());
    world
        .call(1, |speaker, now| speaker.configure(config, now))
        .expect("configure");
    assert!(world.has_best(1, "10.2.0.0/26"), "from the stored Adj-RIB-In");

    let mut config = world.nodes[0].config.clone();
    config.peers[0].export = Some(only_first);
    world
        .call(0, |speaker, now| speaker.configure(config, now))
        .expect("configure");
    world.run_until(MINUTE, "withdrawn", |w| w.route(1, "10.2.0.0/26").is_none());
    assert!(world.has_best(1, "10.1.0.0/26"));
    assert_eq!(
        best(&mut world, 1, "10.1.0.0/26").attributes.local_pref,
        None,
        "not told to EBGP"
    );
    assert_eq!(world.peer(0, "n2").established_count, 1);
}

#[test]
fn only_a_changed_identity_resets_a_session() {
    let mut world = chain(3);
    world.run_until(MINUTE, "up", |w| w.established(1, "n1") && w.established(1, "n3"));
    let mut config = world.nodes[1].config.clone();
    config.peers[0].hold_time = 30;
    config.peers[1].remote_as = 65099;
    let impact = world
        .call(1, |speaker, now| speaker.configure(config.clone(), now))
        .expect("configure");
    assert_eq!(impact.with_effect(Effect::NextSession), ["n1"]);
    assert_eq!(impact.with_session(SessionImpact::Reset), ["n3"]);
    assert!(world.established(1, "n1") && !world.established(1, "n3"));
    config.peers.truncate(1);
    let impact = world
        .call(1, |speaker, now| speaker.configure(config, now))
        .expect("configure");
    assert_eq!(impact.with_session(SessionImpact::Removed), ["n3"]);
    world.run_for(TICK * 4);
    let error = world.peer(2, "n2").last_error.expect("error").text;
    assert!(error.contains("Other Configuration Change"), "{error}");
}

#[test]
fn next_hop_modes() {
    // EBGP to the middle, IBGP to the far end.
    for (mode, next_hop) in [
        (NextHopMode::Auto, [10, 0, 0, 1]),
        (NextHopMode::Keep, [10, 0, 0, 1]),
        (NextHopMode::Itself, [10, 0, 0, 2]),
    ] {
        let mut world = World::new(TICK);
        let mut to_far = open_peer("far", "10.0.0.3", 65002);
        to_far.next_hop = mode;
        world.add(
            "10.0.0.1",
            speaker(65001, 1, vec![open_peer("mid", "10.0.0.2", 65002)]),
        );
        world.add(
            "10.0.0.2",
            speaker(65002, 2, vec![open_peer("one", "10.0.0.1", 65001), to_far]),
        );
        world.add(
            "10.0.0.3",
            speaker(65002, 3, vec![open_peer("mid", "10.0.0.2", 65002)]),
        );
        world.originate(0, &["10.1.0.0/26"]);
        world.run_until(MINUTE, "route", |w| w.has_best(2, "10.1.0.0/26"));
        assert_eq!(
            best(&mut world, 2, "10.1.0.0/26").attributes.next_hop,
            Some(next_hop.into()),
            "{mode:?}"
        );
    }
}

#[test]
fn several_good_routes_are_used_together_up_to_the_limit() {
    let mut world = World::new(TICK);
    let peers = (2..=5).map(|i| open_peer(&format!("n{i}"), &format!("10.0.0.{i}"), 65000 + i));
    let mut config = speaker(65001, 1, peers.collect());
    config.decision.multipath_limit = 3;
    world.add("10.0.0.1", config);
    for i in 2..=5u8 {
        let asn = 65000 + u32::from(i);
        world.add(
            &format!("10.0.0.{i}"),
            speaker(asn, i, vec![open_peer("one", "10.0.0.1", 65001)]),
        );
        world.originate(usize::from(i) - 1, &["10.9.0.0/24"]);
    }
    world.run_until(MINUTE, "four routes", |w| {
        w.route(0, "10.9.0.0/24")
            .is_some_and(|route| route.candidates.len() == 4)
    });
    let changes = world.call(0, |speaker, _| speaker.take_changes(100));
    let best = changes
        .last()
        .and_then(|change| change.best.clone())
        .expect("best");
    assert_eq!(best.next_hops.len(), 3, "{best:?}");
    assert_eq!(
        world.route(0, "10.9.0.0/24").expect("route").decided_by,
        Some(Step::RouterId)
    );
    let more = world.call(0, |speaker, _| speaker.take_changes(100));
    assert!(more.is_empty(), "each change is handed out once");
}

#[test]
fn a_route_refresh_brings_everything_again() {
    let mut world = chain(2);
    world.originate(0, &["10.1.0.0/26"]);
    world.run_until(MINUTE, "route", |w| w.has_best(1, "10.1.0.0/26"));
    world.run_for(MINUTE);
    let (sent, received) = (
        world.peer(0, "n2").counters.updates_out,
        world.peer(1, "n1").counters.updates_in,
    );
    let family = calidris_bgp::family::AfiSafi::IPV4_UNICAST;
    world.call(1, |speaker, _| assert!(speaker.request_refresh("n1", family)));
    world.run_for(TICK * 10);
    assert_eq!(world.peer(0, "n2").counters.updates_out, sent + 1);
    assert_eq!(world.peer(1, "n1").counters.updates_in, received + 1);
}

#[test]
fn a_stuck_peer_costs_no_queue_and_hears_only_the_last_state() {
    let mut world = chain(3);
    world.run_until(MINUTE, "up", |w| w.established(1, "n1") && w.established(1, "n3"));
    world.run_for(MINUTE);
    world.stuck.insert(2);
    let all: Vec<String> = (0..200).map(|i| format!("10.1.{i}.0/24")).collect();
    let all: Vec<&str> = all.iter().map(String::as_str).collect();
    for round in 0..50 {
        world.originate(0, if round % 2 == 0 { &all } else { &all[..10] });
        world.run_for(TICK * 3);
    }
    let sent = world.peer(1, "n3").counters.updates_out;
    assert!(sent < 10, "{sent} UPDATEs made for a peer that takes none");
    let (sets, prefixes) = world.speaker(1).table_sizes();
    assert!(sets < 10 && prefixes <= 200, "{sets} sets, {prefixes} prefixes");
}

#[test]
fn a_stuck_peer_is_given_up_when_too_many_withdrawals_wait_for_it() {
    let mut world = chain(3);
    world.run_until(MINUTE, "up", |w| w.established(1, "n1") && w.established(1, "n3"));
    world.run_for(MINUTE);
    world.stuck.insert(2);
    for round in 0..28u32 {
        let prefixes: Vec<String> = (0..4096u32)
            .map(|i| {
                let number = round * 4096 + i;
                format!("10.{}.{}.{}/32", number >> 16, number >> 8 & 255, number & 255)
            })
            .collect();
        world.originate(0, &prefixes.iter().map(String::as_str).collect::<Vec<_>>());
        world.run_for(TICK * 3);
    }
    let error = world.peer(1, "n3").last_error.expect("given up").text;
    assert!(error.contains("Out of Resources"), "{error}");
    assert!(world.established(1, "n1"), "nobody else is affected");
    assert!(world.has_best(1, "10.1.191.255/32"), "the last round is there");
}

#[test]
fn nothing_is_left_when_all_routes_are_gone() {
    let mut world = chain(3);
    world.originate(0, &["10.1.0.0/26", "10.2.0.0/26"]);
    world.originate(2, &["10.3.0.0/26"]);
    world.run_until(MINUTE, "routes", |w| {
        w.has_best(1, "10.1.0.0/26") && w.has_best(1, "10.3.0.0/26")
    });
    world.originate(0, &[]);
    world.originate(2, &[]);
    world.run_until(MINUTE, "gone", |w| {
        (0..3).all(|node| w.speaker(node).table_sizes() == (0, 0))
    });
}

#[test]
fn policies_see_source_path_and_communities() {
    let mut world = World::new(TICK);
    let tag = Community::new(65001, 42);
    let export = Policy::reject_all()
        .with(
            Term::accept("own", vec![Condition::Source(vec![SourceKind::Originated])])
                .set(Change::AddCommunity(tag)),
        )
        .with(Term {
            name: "longer".into(),
            when: vec![Condition::AsPathPrefix(vec![65003])],
            set: vec![Change::Prepend { asn: 65001, times: 2 }, Change::Med(7)],
            then: Some(Verdict::Accept),
        });
    let mut to_b = open_peer("b", "10.0.0.2", 65002);
    to_b.export = Some(export);
    world.add(
        "10.0.0.1",
        speaker(65001, 1, vec![to_b, open_peer("c", "10.0.0.3", 65003)]),
    );
    world.add(
        "10.0.0.2",
        speaker(65002, 2, vec![open_peer("a", "10.0.0.1", 65001)]),
    );
    world.add(
        "10.0.0.3",
        speaker(65003, 3, vec![open_peer("a", "10.0.0.1", 65001)]),
    );
    world.originate(0, &["10.1.0.0/26"]);
    world.originate(2, &["10.3.0.0/26"]);
    world.run_until(MINUTE, "routes", |w| {
        w.has_best(1, "10.1.0.0/26") && w.has_best(1, "10.3.0.0/26")
    });
    assert_eq!(
        best(&mut world, 1, "10.1.0.0/26").attributes.communities,
        ["65001:42"]
    );
    let far = best(&mut world, 1, "10.3.0.0/26").attributes;
    assert_eq!(
        (far.as_path.as_str(), far.med),
        ("65001 65001 65001 65003", Some(7))
    );
}

#[test]
fn prefixes_announced_and_withdrawn_are_counted_on_both_sides() {
    let mut world = chain(3);
    world.run_until(MINUTE, "up", |w| w.established(1, "n1") && w.established(1, "n3"));
    world.originate(0, &["10.1.0.0/24", "10.1.1.0/24", "10.1.2.0/24"]);
    world.run_for(MINUTE);
    world.originate(0, &["10.1.0.0/24"]);
    world.run_for(MINUTE);
    let mut family = |node: usize, peer: &str| world.peer(node, peer).families[0].clone();
    for (from, to) in [((0, "n2"), (1, "n1")), ((1, "n3"), (2, "n2"))] {
        let (told, heard) = (family(from.0, from.1), family(to.0, to.1));
        assert_eq!((told.announcements_out, told.withdrawals_out), (3, 2), "{from:?}");
        assert_eq!((heard.announcements_in, heard.withdrawals_in), (3, 2), "{to:?}");
        assert_eq!((heard.received, heard.accepted, heard.best), (1, 1, 1), "{to:?}");
    }
}
