//! Several paths to one prefix on one session (RFC 7911).
#![allow(clippy::expect_used, clippy::panic, reason = "tests fail by panicking")]

mod raw_peer;

use std::time::Duration;

use calidris_bgp::PeerConfig;
use calidris_bgp::config::{BeyondLimit, PrefixLimit};
use calidris_bgp::family::{AfiSafi, Ipv4Unicast};
use calidris_bgp::policy::{Condition, Policy, Term};
use calidris_bgp::rib::{MAX_PATHS_OF_SOURCE, Refusal};
use calidris_bgp::status::{RouteFilter, RouteStatus, Standing};
use calidris_bgp::wire::attr::{AsPath, Attributes, NextHop};
use calidris_bgp::wire::capability::{
    AddPath, AddPathDirection, Capability, GracefulRestart, GracefulRestartFamily,
};
use calidris_bgp::wire::context::EncodeContext;
use calidris_bgp::wire::nlri::Nlri;
use calidris_bgp::wire::update::{UpdateTemplate, encode_end_of_rib};
use raw_peer::{PEER_AS, RawPeer, encode_context, open, peer_config};

const PREFIX: &str = "10.1.0.0/24";

fn with_ids() -> EncodeContext {
    let mut context = encode_context();
    context.ipv4_unicast.add_path = true;
    context
}

fn capability(direction: AddPathDirection) -> Capability {
    Capability::AddPath(vec![AddPath {
        family: AfiSafi::IPV4_UNICAST,
        direction,
    }])
}

fn receiving() -> PeerConfig {
    let mut peer = peer_config();
    peer.add_path.receive = true;
    peer
}

/// A session on which the peer may send several paths.
fn session(peer: PeerConfig) -> RawPeer {
    let restart = Capability::GracefulRestart(GracefulRestart {
        restart_time: 60,
        families: vec![GracefulRestartFamily {
            family: AfiSafi::IPV4_UNICAST,
            forwarding_preserved: true,
        }],
        ..GracefulRestart::default()
    });
    let mut raw = RawPeer::new(peer);
    raw.connect(&open(vec![
        capability(AddPathDirection::Send),
        Capability::EnhancedRouteRefresh,
        restart,
    ]));
    raw
}

/// Announces paths to [`PREFIX`]: identifier and AS behind the peer's.
fn announce(paths: &[(u32, u32)]) -> Vec<u8> {
    let mut update = Vec::new();
    for (path_id, asn) in paths {
        let attributes = Attributes {
            as_path: AsPath::from_sequence(&[PEER_AS, *asn]),
            next_hop: Some(NextHop::V4([10, 0, 0, 2].into())),
            ..Attributes::default()
        };
        let nlri = Nlri {
            prefix: PREFIX.parse().expect("prefix"),
            path_id: *path_id,
        };
        UpdateTemplate::<Ipv4Unicast>::announce(&attributes, &with_ids())
            .expect("attributes")
            .encode_all([nlri], &mut update);
    }
    update
}

fn withdraw(path_ids: &[u32]) -> Vec<u8> {
    let mut update = Vec::new();
    let nlri = path_ids.iter().map(|path_id| Nlri {
        prefix: PREFIX.parse().expect("prefix"),
        path_id: *path_id,
    });
    UpdateTemplate::<Ipv4Unicast>::withdraw(&with_ids()).encode_all(nlri, &mut update);
    update
}

fn end_of_rib() -> Vec<u8> {
    let mut message = Vec::new();
    encode_end_of_rib(AfiSafi::IPV4_UNICAST, &mut message);
    message
}

fn route(raw: &RawPeer) -> Option<RouteStatus> {
    let filter = RouteFilter {
        prefix: Some(PREFIX.parse().expect("prefix")),
        ..RouteFilter::default()
    };
    raw.speaker.routes(&filter, raw.now).pop()
}

/// Identifier, AS path and staleness of each candidate, by identifier.
fn paths(raw: &RawPeer) -> Vec<(u32, String, bool)> {
    let candidates = route(raw).map_or_else(Vec::new, |route| route.candidates);
    let mut paths: Vec<_> = candidates
        .into_iter()
        .map(|candidate| (candidate.path_id, candidate.attributes.as_path, candidate.stale))
        .collect();
    paths.sort();
    paths
}

fn ids(raw: &RawPeer) -> Vec<u32> {
    paths(raw).into_iter().map(|(id, ..)| id).collect()
}

#[test]
fn several_paths_of_a_peer_are_kept_and_withdrawn_by_their_identifiers() {
    let mut raw = session(receiving());
    raw.send(&announce(&[(7, 1), (8, 2), (9, 3)]));
    assert_eq!(ids(&raw), [7, 8, 9]);
    raw.send(&announce(&[(8, 4)]));
    assert_eq!(
        paths(&raw)[1],
        (8, "65002 4".to_owned(), false),
        "the same identifier replaces"
    );
    raw.send(&withdraw(&[7, 100]));
    assert_eq!(ids(&raw), [8, 9]);
    let status = raw.speaker.status(raw.now);
    assert_eq!(status.peers[0].families[0].received, 2);
    let negotiated = status.peers[0].negotiated.as_ref().expect("session");
    assert_eq!(negotiated.add_path_receive, [AfiSafi::IPV4_UNICAST]);
    raw.send(&withdraw(&[8, 9]));
    assert!(route(&raw).is_none());
}

#[test]
fn identifiers_are_read_only_where_both_sides_agree() {
    for (receive, direction, agreed) in [
        (true, Some(AddPathDirection::Send), true),
        (true, Some(AddPathDirection::Both), true),
        (true, Some(AddPathDirection::Receive), false),
        (true, None, false),
        (false, Some(AddPathDirection::Both), false),
    ] {
        let mut peer = peer_config();
        peer.add_path.receive = receive;
        let mut raw = RawPeer::new(peer);
        raw.connect(&open(direction.map(capability).into_iter().collect()));
        let status = raw.speaker.status(raw.now);
        let session = status.peers[0].negotiated.as_ref().expect("session");
        let found = !session.add_path_receive.is_empty();
        assert_eq!(found, agreed, "{receive} {direction:?}");
    }
}

#[test]
fn policy_judges_each_path() {
    let mut peer = receiving();
    let refuse = Term::reject("not-2", vec![Condition::AsPathPrefix(vec![PEER_AS, 2])]);
    peer.import = Some(Policy::accept_all().with(refuse));
    let mut raw = session(peer);
    raw.send(&announce(&[(7, 1), (8, 2)]));
    let route = route(&raw).expect("route");
    assert_eq!(route.candidates[0].path_id, 7);
    assert_eq!(route.candidates[0].standing, Standing::Best);
    let expected = Standing::Refused {
        reason: Refusal::Policy(Some(0)),
        term: Some("not-2".to_owned()),
    };
    assert_eq!(route.candidates[1].standing, expected);
}

#[test]
fn each_path_counts_towards_the_limit() {
    let mut peer = receiving();
    peer.prefix_limit_in = Some(PrefixLimit {
        max: 2,
        warn_percent: 100,
        beyond: BeyondLimit::Discard,
    });
    let mut raw = session(peer);
    raw.send(&announce(&[(7, 1), (8, 2), (9, 3), (8, 4)]));
    assert_eq!(ids(&raw), [7, 8]);
    assert_eq!(raw.speaker.status(raw.now).peers[0].families[0].beyond_limit, 1);
}

#[test]
fn a_peer_has_room_for_so_many_paths_to_a_prefix() {
    let mut raw = session(receiving());
    let many: Vec<(u32, u32)> = (1..200).map(|id| (id, id)).collect();
    raw.send(&announce(&many));
    assert_eq!(ids(&raw).len(), MAX_PATHS_OF_SOURCE);
    raw.send(&withdraw(&[1]));
    raw.send(&announce(&[(150, 1)]));
    assert!(ids(&raw).contains(&150));
}

#[test]
fn a_restart_keeps_and_sweeps_single_paths() {
    let mut raw = session(receiving());
    raw.send(&announce(&[(7, 1), (8, 2), (9, 3)]));
    raw.send(&end_of_rib());
    raw.cut();
    assert!(paths(&raw).iter().all(|(.., stale)| *stale));
    raw.wait(Duration::from_secs(1));
    let restart = Capability::GracefulRestart(GracefulRestart {
        restart_time: 60,
        restart_state: true,
        families: vec![GracefulRestartFamily {
            family: AfiSafi::IPV4_UNICAST,
            forwarding_preserved: true,
        }],
        ..GracefulRestart::default()
    });
    raw.connect(&open(vec![capability(AddPathDirection::Send), restart]));
    raw.send(&announce(&[(8, 2), (10, 4)]));
    let stale: Vec<(u32, bool)> = paths(&raw)
        .into_iter()
        .map(|(id, _, stale)| (id, stale))
        .collect();
    assert_eq!(stale, [(7, true), (8, false), (9, true), (10, false)]);
    raw.send(&end_of_rib());
    assert_eq!(ids(&raw), [8, 10]);
}
