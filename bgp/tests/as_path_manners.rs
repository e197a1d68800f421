//! What becomes of AS_PATH and of communities that ask for something, on the way in and out.
#![allow(clippy::expect_used, clippy::panic, reason = "tests fail by panicking")]

mod raw_peer;
mod simulation;

use std::collections::BTreeMap;
use std::time::Duration;

use calidris_bgp::config::{ConfigError, ConnectMode, LocalAs, OwnAs, PrivateAs};
use calidris_bgp::family::{AfiSafi, Ipv4Unicast};
use calidris_bgp::policy::{Change, Policy, Term};
use calidris_bgp::rib::Refusal;
use calidris_bgp::route::Origination;
use calidris_bgp::status::{CandidateStatus, RouteFilter, Standing};
use calidris_bgp::wire::attr::{
    AsPath, Attributes, Community, ExtendedCommunity, Ipv6ExtendedCommunity, NextHop,
};
use calidris_bgp::wire::capability::{Capabilities, Capability};
use calidris_bgp::wire::context::{DecodeContext, PeerKind};
use calidris_bgp::wire::frame::{Frame, MessageLimit, MessageType, encode_keepalive};
use calidris_bgp::wire::nlri::Nlri;
use calidris_bgp::wire::open::Open;
use calidris_bgp::wire::update::{Update, UpdateTemplate};
use calidris_bgp::{Speaker, SpeakerConfig, Time};
use raw_peer::{RawPeer, encode_context, open, peer_config};
use simulation::{World, open_peer, speaker};

const MINUTE: Duration = Duration::from_secs(60);
const ROUTE: &str = "10.1.0.0/26";

/// Three speakers in a row with these ASes; the middle one's peers are `one` and `far`.
fn row(ases: [u32; 3]) -> World {
    let mut world = World::new(Duration::from_millis(5));
    world.add(
        "10.0.0.1",
        speaker(ases[0], 1, vec![open_peer("mid", "10.0.0.2", ases[1])]),
    );
    let mid = vec![
        open_peer("one", "10.0.0.1", ases[0]),
        open_peer("far", "10.0.0.3", ases[2]),
    ];
    world.add("10.0.0.2", speaker(ases[1], 2, mid));
    world.add(
        "10.0.0.3",
        speaker(ases[2], 3, vec![open_peer("mid", "10.0.0.2", ases[1])]),
    );
    world.originate(0, &[ROUTE]);
    world
}

/// Changes how the middle one treats `peer`.
fn treat(world: &mut World, peer: usize, change: impl FnOnce(&mut calidris_bgp::PeerConfig)) {
    let mut config = world.nodes[1].config.clone();
    change(&mut config.peers[peer]);
    world.nodes[1].config = config.clone();
    world
        .call(1, |speaker, now| speaker.configure(config, now))
        .expect("configure");
}

fn only(world: &mut World, node: usize) -> CandidateStatus {
    let mut candidates = world.route(node, ROUTE).expect("route").candidates;
    assert_eq!(candidates.len(), 1);
    candidates.remove(0)
}

#[test]
fn another_local_as_is_seen_by_its_peer_only() {
    for (shown, path) in [
        (OwnAs::Shown, "64999 65002 65001"),
        (OwnAs::Hidden, "64999 65001"),
    ] {
        let mut world = row([65001, 65002, 65003]);
        let mut far = world.nodes[2].config.clone();
        far.peers[0].remote_as = 64999;
        world
            .call(2, |speaker, now| speaker.configure(far, now))
            .expect("configure");
        treat(&mut world, 1, |peer| {
            peer.local_as = Some(LocalAs {
                asn: 64999,
                shown,
                received: OwnAs::Shown,
            });
        });
        world.run_until(2 * MINUTE, "route", |w| w.has_best(2, ROUTE));
        assert_eq!(only(&mut world, 2).attributes.as_path, path);
        assert!(world.established(1, "one"), "the other session is as before");
    }
    let mut world = row([65001, 65002, 65003]);
    let mut config = world.nodes[1].config.clone();
    config.peers[1].local_as = Some(LocalAs {
        asn: 0,
        shown: OwnAs::Shown,
        received: OwnAs::Shown,
    });
    let refused = world.call(1, |speaker, now| speaker.configure(config, now));
    assert!(matches!(refused, Err(ConfigError::PeerLocalAsZero { .. })));
}

#[test]
fn to_be_in_the_peers_own_as_makes_an_internal_session() {
    for shown in [OwnAs::Shown, OwnAs::Hidden] {
        let mut world = row([65001, 65002, 65003]);
        let mut far = world.nodes[2].config.clone();
        far.peers[0].remote_as = 65003;
        world
            .call(2, |speaker, now| speaker.configure(far, now))
            .expect("configure");
        treat(&mut world, 1, |peer| {
            peer.local_as = Some(LocalAs {
                asn: 65003,
                shown,
                received: shown,
            });
        });
        world.originate(2, &["10.3.0.0/26"]);
        world.run_until(2 * MINUTE, "routes", |w| {
            w.has_best(2, ROUTE) && w.has_best(1, "10.3.0.0/26") && w.has_best(0, "10.3.0.0/26")
        });
        // RFC 7705 §4.2: as if it were so by nature. Nobody adds to the path, and LOCAL_PREF is said.
        let attributes = only(&mut world, 2).attributes;
        assert_eq!(
            (attributes.as_path.as_str(), attributes.local_pref),
            ("65001", Some(100))
        );
        let at_mid = world.route(1, "10.3.0.0/26").expect("route").candidates.remove(0);
        assert_eq!(at_mid.attributes.as_path, "");
        assert_eq!(at_mid.source, calidris_bgp::policy::SourceKind::Ibgp);
        let at_one = world.route(0, "10.3.0.0/26").expect("route").candidates.remove(0);
        assert_eq!(at_one.attributes.as_path, "65002");
    }
}

/// A policy that gives every route a priority.
fn with_priority(priority: u32) -> Option<Policy> {
    let term = Term::accept("priority", Vec::new()).set(Change::Priority(priority));
    Some(Policy::reject_all().with(term))
}

#[test]
fn priorities_travel_in_local_pref_between_those_who_agree() {
    let mut world = row([65001, 65002, 65002]);
    let at_far = |world: &mut World| {
        world.run_for(MINUTE);
        let attributes = only(world, 2).attributes;
        (attributes.local_pref, attributes.priority)
    };
    // Nobody agrees: a priority stays where it was set.
    treat(&mut world, 0, |peer| peer.import = with_priority(512));
    assert_eq!(at_far(&mut world), (Some(100), None));
    // Both sides of the internal session agree, and the one that imports from outside.
    for peer in [0, 1] {
        treat(&mut world, peer, |peer| peer.priority_in_local_pref = true);
    }
    assert_eq!(at_far(&mut world), (Some(2_147_483_135), None));
    let mut far = world.nodes[2].config.clone();
    far.peers[0].priority_in_local_pref = true;
    world
        .call(2, |speaker, now| speaker.configure(far, now))
        .expect("configure");
    assert_eq!(at_far(&mut world), (Some(2_147_483_135), Some(512)));
    // Whoever takes the route on may set another one.
    treat(&mut world, 1, |peer| peer.export = with_priority(2048));
    assert_eq!(at_far(&mut world), (Some(2_147_481_599), Some(2048)));
    // What is about to go down is used last whatever its priority.
    treat(&mut world, 0, |peer| peer.graceful_shutdown = true);
    treat(&mut world, 1, |peer| peer.export = None);
    assert_eq!(at_far(&mut world).0, Some(0));
    // Our own routes say theirs.
    let own = Origination {
        priority: Some(1024),
        ..Origination::default()
    };
    let routes = [("10.2.0.0/26".parse().expect("prefix"), own)].into();
    world.call(1, |speaker, now| speaker.originate(routes, now));
    world.run_until(MINUTE, "route", |w| w.has_best(2, "10.2.0.0/26"));
    let own = world.route(2, "10.2.0.0/26").expect("route").candidates.remove(0);
    assert_eq!(own.attributes.local_pref, Some(2_147_482_623));
    assert_eq!(world.peer(1, "far").established_count, 1, "without a reset");
}

#[test]
fn an_overridden_as_lets_sites_of_one_as_hear_of_each_other() {
    let mut world = row([65001, 65002, 65001]);
    world.run_until(MINUTE, "route", |w| w.route(2, ROUTE).is_some());
    let refused = Standing::Refused {
        reason: Refusal::OwnAsInPath,
        term: None,
    };
    assert_eq!(only(&mut world, 2).standing, refused);
    treat(&mut world, 1, |peer| peer.as_override = true);
    world.run_until(MINUTE, "route", |w| w.has_best(2, ROUTE));
    assert_eq!(only(&mut world, 2).attributes.as_path, "65002 65002");
    assert_eq!(world.peer(1, "far").established_count, 1, "without a reset");
}

#[test]
fn private_as_numbers_are_removed_or_replaced() {
    let mut world = row([65001, 100, 200]);
    world.run_until(MINUTE, "route", |w| w.has_best(2, ROUTE));
    assert_eq!(only(&mut world, 2).attributes.as_path, "100 65001");
    for (private, path) in [(PrivateAs::Remove, "100"), (PrivateAs::Replace, "100 100")] {
        treat(&mut world, 1, |peer| peer.remove_private_as = Some(private));
        world.run_for(MINUTE);
        assert_eq!(only(&mut world, 2).attributes.as_path, path);
    }
    // The peer's own stays: it must see the loop.
    let mut world = row([65001, 100, 65001]);
    treat(&mut world, 1, |peer| {
        peer.remove_private_as = Some(PrivateAs::Remove);
    });
    world.run_until(MINUTE, "route", |w| w.route(2, ROUTE).is_some());
    assert!(!world.has_best(2, ROUTE));
}

#[test]
fn a_route_server_need_not_put_itself_in_front() {
    let attributes = Attributes {
        as_path: AsPath::from_sequence(&[65009]),
        next_hop: Some(NextHop::V4([10, 0, 0, 9].into())),
        ..Attributes::default()
    };
    let mut update = Vec::new();
    UpdateTemplate::<Ipv4Unicast>::announce(&attributes, &encode_context())
        .expect("attributes")
        .encode_all([Nlri::new(ROUTE.parse().expect("prefix"))], &mut update);
    for enforced in [true, false] {
        let mut config = peer_config();
        config.enforce_first_as = enforced;
        let mut raw = RawPeer::new(config);
        raw.connect(&open(Vec::new()));
        raw.send(&update);
        let routes = raw.speaker.routes(&RouteFilter::default(), raw.now);
        let expected = if enforced {
            Standing::Refused {
                reason: Refusal::FirstAsIsNotThePeers,
                term: None,
            }
        } else {
            Standing::Best
        };
        assert_eq!(routes[0].candidates[0].standing, expected);
    }
}

#[test]
fn a_session_that_will_go_down_is_used_last_on_both_sides() {
    let mut world = row([65001, 65002, 65003]);
    world.originate(2, &["10.3.0.0/26"]);
    world.run_until(MINUTE, "routes", |w| {
        w.has_best(2, ROUTE) && w.has_best(1, "10.3.0.0/26")
    });
    treat(&mut world, 1, |peer| peer.graceful_shutdown = true);
    world.run_for(MINUTE);
    let told = only(&mut world, 2);
    assert_eq!(told.attributes.communities, ["65535:0"]);
    assert_eq!(told.attributes.local_pref, Some(0), "the receiver honours it");
    let taken = world.route(1, "10.3.0.0/26").expect("route").candidates.remove(0);
    assert_eq!(taken.attributes.local_pref, Some(0));
    treat(&mut world, 1, |peer| peer.graceful_shutdown = false);
    world.run_for(MINUTE);
    assert_eq!(only(&mut world, 2).attributes.local_pref, None);

    // To a peer of our own AS it is LOCAL_PREF that says so.
    let mut world = row([65001, 65002, 65002]);
    treat(&mut world, 1, |peer| peer.graceful_shutdown = true);
    world.run_until(MINUTE, "route", |w| w.has_best(2, ROUTE));
    assert_eq!(only(&mut world, 2).attributes.local_pref, Some(0));
}

#[test]
fn blackhole_stays_inside_where_it_is_agreed_on() {
    for agreed in [true, false] {
        let mut world = row([65001, 65002, 65003]);
        treat(&mut world, 0, |peer| peer.blackhole = agreed);
        let origination = Origination {
            communities: vec![Community::BLACKHOLE],
            ..Origination::default()
        };
        let routes = BTreeMap::from([(ROUTE.parse().expect("prefix"), origination)]);
        world.call(0, |speaker, now| speaker.originate(routes, now));
        world.run_for(MINUTE);
        assert!(world.has_best(1, ROUTE));
        assert_eq!(world.has_best(2, ROUTE), !agreed);
        let best = world.call(1, |speaker, _| speaker.best_routes());
        let dropped: Vec<bool> = best
            .iter()
            .filter_map(|change| Some(change.best.as_ref()?.blackhole))
            .collect();
        assert_eq!(dropped, [agreed]);
    }
}

#[test]
fn another_local_as_stands_in_front_of_what_its_peer_sends_unless_hidden() {
    for (received, path) in [
        (OwnAs::Shown, "65002 64999 65001"),
        (OwnAs::Hidden, "65002 65001"),
    ] {
        let mut world = row([65001, 65002, 65003]);
        let mut one = world.nodes[0].config.clone();
        one.peers[0].remote_as = 64999;
        world
            .call(0, |speaker, now| speaker.configure(one, now))
            .expect("configure");
        treat(&mut world, 0, |peer| {
            peer.local_as = Some(LocalAs {
                asn: 64999,
                shown: OwnAs::Shown,
                received,
            });
        });
        world.run_until(2 * MINUTE, "route", |w| w.has_best(2, ROUTE));
        assert_eq!(only(&mut world, 2).attributes.as_path, path);
        // It may change while the session stays.
        treat(&mut world, 0, |peer| {
            peer.local_as = Some(LocalAs {
                asn: 64999,
                shown: OwnAs::Shown,
                received: OwnAs::Hidden,
            });
        });
        world.run_for(MINUTE);
        assert_eq!(only(&mut world, 2).attributes.as_path, "65002 65001");
    }
}

#[test]
fn med_is_not_passed_from_one_as_to_another() {
    let with_med = |world: &mut World| {
        let origination = Origination {
            med: Some(7),
            ..Origination::default()
        };
        let routes = BTreeMap::from([(ROUTE.parse().expect("prefix"), origination)]);
        world.call(0, |speaker, now| speaker.originate(routes, now));
    };
    // Across the middle one's AS it ends; inside an AS it goes on, and there it ends at the next border.
    for (ases, far) in [
        ([65001, 65002, 65003], None),
        ([65001, 65002, 65002], Some(7)),
        ([65002, 65002, 65003], None),
    ] {
        let mut world = row(ases);
        with_med(&mut world);
        world.run_until(MINUTE, "route", |w| w.has_best(2, ROUTE));
        world.run_for(MINUTE);
        assert_eq!(only(&mut world, 1).attributes.med, Some(7), "{ases:?}");
        assert_eq!(only(&mut world, 2).attributes.med, far, "{ases:?}");
    }
}

#[test]
fn a_route_server_is_not_seen_in_what_passes_it() {
    let mut world = row([65001, 65002, 65003]);
    let origination = Origination {
        med: Some(7),
        communities: vec![Community::new(65001, 1)],
        ..Origination::default()
    };
    let routes = BTreeMap::from([(ROUTE.parse().expect("prefix"), origination)]);
    world.call(0, |speaker, now| speaker.originate(routes, now));
    world.originate(1, &["10.2.0.0/26"]);
    let mut far = world.nodes[2].config.clone();
    far.peers[0].enforce_first_as = false;
    world
        .call(2, |speaker, now| speaker.configure(far, now))
        .expect("configure");
    treat(&mut world, 1, |peer| peer.route_server_client = true);
    world.run_until(MINUTE, "route", |w| {
        w.has_best(2, ROUTE) && w.has_best(2, "10.2.0.0/26")
    });
    world.run_for(MINUTE);
    let route = only(&mut world, 2).attributes;
    assert_eq!(route.as_path, "65001");
    assert_eq!(route.next_hop, Some([10, 0, 0, 1].into()));
    assert_eq!(route.med, Some(7));
    assert_eq!(route.communities, ["65001:1"]);
    assert_eq!(route.local_pref, None);
    // What the server announces itself is its own.
    let own = world.route(2, "10.2.0.0/26").expect("route").candidates.remove(0);
    assert_eq!(own.attributes.as_path, "65002");
}

#[test]
fn extended_communities_that_are_not_transitive_stay_in_the_as() {
    let transitive = ([0, 2, 0, 1, 0, 0, 0, 1], [0; 20]);
    let mut v6 = [0; 20];
    v6[0] = 0x40;
    let staying = ([0x40, 2, 0, 1, 0, 0, 0, 1], v6);
    let attributes = Attributes {
        as_path: AsPath::from_sequence(&[raw_peer::PEER_AS]),
        next_hop: Some(NextHop::V4([10, 0, 0, 2].into())),
        extended_communities: [transitive.0, staying.0]
            .map(ExtendedCommunity)
            .into_iter()
            .collect(),
        ipv6_extended_communities: [transitive.1, staying.1]
            .map(Ipv6ExtendedCommunity)
            .into_iter()
            .collect(),
        ..Attributes::default()
    };
    let mut update = Vec::new();
    UpdateTemplate::<Ipv4Unicast>::announce(&attributes, &encode_context())
        .expect("attributes")
        .encode_all([Nlri::new(ROUTE.parse().expect("prefix"))], &mut update);
    for (asn, left) in [(65001, 2), (65003, 1)] {
        let told = told_to_another(asn, &update);
        assert_eq!(told.extended_communities.as_slice().len(), left, "AS {asn}");
        assert_eq!(told.ipv6_extended_communities.as_slice().len(), left, "AS {asn}");
    }
}

/// What a peer of AS `asn` is told after the test's raw peer has said `update`.
fn told_to_another(asn: u32, update: &[u8]) -> Attributes {
    let mut config = SpeakerConfig::new(65001, [10, 255, 0, 1].into());
    let mut other = open_peer("other", "10.0.0.3", asn);
    other.connect = ConnectMode::Passive;
    config.peers = vec![peer_config(), other];
    let mut speaker = Speaker::new(config, false, 1, Time::ZERO).expect("configuration");
    let mut conns = Vec::new();
    for (octet, asn) in [(2, raw_peer::PEER_AS), (3, asn)] {
        let ends = ([10, 0, 0, 1], [10, 0, 0, octet]);
        let conn = speaker
            .handle_accepted((ends.0, 179).into(), (ends.1, 40_000).into(), Time::ZERO)
            .expect("accepted");
        let capabilities = vec![
            Capability::Multiprotocol(AfiSafi::IPV4_UNICAST),
            Capability::FourOctetAs(asn),
        ];
        let open = Open::new(
            asn,
            90,
            [10, 255, 0, octet].into(),
            Capabilities::new(capabilities),
        );
        let mut bytes = Vec::new();
        open.encode(&mut bytes).expect("OPEN");
        encode_keepalive(&mut bytes);
        speaker.handle_data(conn, &bytes, Time::ZERO);
        conns.push(conn);
    }
    speaker.handle_data(conns[0], update, Time::ZERO);
    let sent = speaker.poll_transmit(conns[1], Time::ZERO).expect("messages");
    let mut rest = sent.as_slice();
    let mut context = DecodeContext {
        four_octet_as: true,
        peer_kind: if asn == 65001 {
            PeerKind::Internal
        } else {
            PeerKind::External
        },
        ..DecodeContext::default()
    };
    context.ipv4_unicast.negotiated = true;
    while let Some(frame) = Frame::parse(rest, MessageLimit::Standard).expect("frame") {
        rest = &rest[frame.total_len()..];
        if frame.message_type == MessageType::Update {
            let mut update = Update::decode(frame.body, &context).expect("UPDATE");
            return update.reach.remove(0).attributes;
        }
    }
    panic!("no UPDATE in {sent:?}");
}
