//! ROUTE-REFRESH with begin and end marked (RFC 7313).
#![allow(clippy::expect_used, clippy::panic, reason = "tests fail by panicking")]

mod raw_peer;

use std::collections::BTreeMap;
use std::time::Duration;

use calidris_bgp::family::{AfiSafi, Ipv4Unicast};
use calidris_bgp::route::Origination;
use calidris_bgp::wire::attr::{AsPath, Attributes, NextHop};
use calidris_bgp::wire::capability::{Capability, GracefulRestart, GracefulRestartFamily};
use calidris_bgp::wire::frame::MessageType;
use calidris_bgp::wire::nlri::Nlri;
use calidris_bgp::wire::refresh::{RefreshSubtype, RouteRefresh};
use calidris_bgp::wire::update::{UpdateTemplate, encode_end_of_rib};
use raw_peer::{PEER_AS, RawPeer, encode_context, open, peer_config};

fn refresh(subtype: RefreshSubtype) -> Vec<u8> {
    let mut message = Vec::new();
    RouteRefresh {
        family: AfiSafi::IPV4_UNICAST,
        subtype,
    }
    .encode(&mut message);
    message
}

fn announce(prefixes: &[&str]) -> Vec<u8> {
    let attributes = Attributes {
        as_path: AsPath::from_sequence(&[PEER_AS]),
        next_hop: Some(NextHop::V4([10, 0, 0, 2].into())),
        ..Attributes::default()
    };
    let prefixes = prefixes
        .iter()
        .map(|prefix| Nlri::new(prefix.parse().expect("prefix")));
    let mut update = Vec::new();
    UpdateTemplate::<Ipv4Unicast>::announce(&attributes, &encode_context())
        .expect("attributes")
        .encode_all(prefixes, &mut update);
    update
}

fn end_of_rib() -> Vec<u8> {
    let mut message = Vec::new();
    encode_end_of_rib(AfiSafi::IPV4_UNICAST, &mut message);
    message
}

/// Routes received, and of these stale.
fn held(raw: &RawPeer) -> (usize, usize) {
    let status = raw.speaker.status(raw.now);
    let family = &status.peers[0].families[0];
    (family.received, family.stale)
}

/// An Established session in which the peer has announced two routes.
fn with_two_routes(end: &[u8]) -> RawPeer {
    let restart = Capability::GracefulRestart(GracefulRestart {
        restart_time: 60,
        families: vec![GracefulRestartFamily {
            family: AfiSafi::IPV4_UNICAST,
            forwarding_preserved: true,
        }],
        ..GracefulRestart::default()
    });
    let mut raw = RawPeer::new(peer_config());
    raw.connect(&open(vec![Capability::EnhancedRouteRefresh, restart]));
    raw.send(&announce(&["10.1.0.0/24", "10.2.0.0/24"]));
    raw.send(end);
    raw
}

#[test]
fn a_request_is_answered_between_begin_and_end() {
    for (marks, expected) in [
        (vec![Capability::EnhancedRouteRefresh], vec![5, 2, 5]),
        (Vec::new(), vec![2]),
    ] {
        for routes in [0, 1] {
            let mut raw = RawPeer::new(peer_config());
            let prefixes =
                (0..routes).map(|_| ("10.9.0.0/24".parse().expect("prefix"), Origination::default()));
            raw.speaker
                .originate(prefixes.collect::<BTreeMap<_, _>>(), raw.now);
            raw.connect(&open(marks.clone()));
            let sent = raw.send(&refresh(RefreshSubtype::Request));
            let types: Vec<u8> = sent.iter().map(|(kind, _)| *kind as u8).collect();
            let expected: Vec<u8> = expected
                .iter()
                .copied()
                .filter(|kind| *kind == 5 || routes > 0)
                .collect();
            assert_eq!(types, expected, "{routes} routes, {marks:?}");
            if let [(MessageType::RouteRefresh, begin), .., (_, end)] = sent.as_slice() {
                assert_eq!((begin[2], end[2]), (1, 2));
            }
        }
    }
}

#[test]
fn what_is_not_sent_again_goes_with_the_end_of_a_refresh() {
    let mut raw = with_two_routes(&end_of_rib());
    raw.send(&refresh(RefreshSubtype::BeginOfRefresh));
    assert_eq!(held(&raw), (2, 2), "stale routes stay");
    raw.send(&announce(&["10.2.0.0/24"]));
    assert_eq!(held(&raw), (2, 1));
    // A beginning in the middle begins anew and removes nothing.
    raw.send(&refresh(RefreshSubtype::BeginOfRefresh));
    raw.send(&announce(&["10.2.0.0/24"]));
    assert_eq!(held(&raw), (2, 1));
    raw.send(&refresh(RefreshSubtype::EndOfRefresh));
    assert_eq!(held(&raw), (1, 0));
    // An end without a beginning ends nothing.
    raw.send(&refresh(RefreshSubtype::EndOfRefresh));
    assert_eq!(held(&raw), (1, 0));
}

#[test]
fn before_end_of_rib_no_refresh_begins() {
    let mut raw = with_two_routes(&[]);
    raw.send(&refresh(RefreshSubtype::BeginOfRefresh));
    raw.send(&refresh(RefreshSubtype::EndOfRefresh));
    assert_eq!(held(&raw), (2, 0));
}

#[test]
fn a_refresh_without_end_is_bounded_in_time() {
    let mut raw = with_two_routes(&end_of_rib());
    raw.send(&refresh(RefreshSubtype::BeginOfRefresh));
    raw.send(&announce(&["10.2.0.0/24"]));
    for _ in 0..13 {
        raw.wait(Duration::from_secs(30));
        let mut alive = Vec::new();
        calidris_bgp::wire::frame::encode_keepalive(&mut alive);
        raw.send(&alive);
    }
    assert_eq!(held(&raw), (1, 0));
}

#[test]
fn a_session_lost_in_a_refresh_keeps_what_was_not_sent_again_yet() {
    let mut raw = with_two_routes(&end_of_rib());
    raw.send(&refresh(RefreshSubtype::BeginOfRefresh));
    raw.send(&announce(&["10.2.0.0/24"]));
    raw.cut();
    assert_eq!(held(&raw), (2, 2), "graceful restart keeps both");
}
