//! OPEN as octets, both ways, and everything that can be wrong with it.

use proptest::prelude::*;

use super::*;
use crate::family::AfiSafi;
use crate::wire::capability::{
    AddPath, AddPathDirection, Capability, ExtendedNextHop, GracefulRestart, GracefulRestartFamily,
    LongLivedGracefulRestart, Role,
};

const FIXED: [u8; 9] = [4, 0xfd, 0xe9, 0, 90, 192, 0, 2, 1];

/// Optional parameters as they stand in the message, with every capability known here.
const ALL_CAPABILITIES: &[u8] = &include!("all_capabilities.in");

fn all_capabilities() -> Vec<Capability> {
    let (ipv4, ipv6) = (AfiSafi::IPV4_UNICAST, AfiSafi::IPV6_UNICAST);
    vec![
        Capability::Multiprotocol(ipv6),
        Capability::RouteRefresh,
        Capability::ExtendedNextHop(vec![ExtendedNextHop {
            family: ipv4,
            next_hop_afi: 2,
        }]),
        Capability::ExtendedMessage,
        Capability::Role(Role::Customer),
        Capability::GracefulRestart(GracefulRestart {
            restart_state: true,
            notification: true,
            restart_time: 120,
            families: vec![GracefulRestartFamily {
                family: ipv4,
                forwarding_preserved: true,
            }],
        }),
        Capability::FourOctetAs(65537),
        Capability::AddPath(vec![AddPath {
            family: ipv4,
            direction: AddPathDirection::Both,
        }]),
        Capability::EnhancedRouteRefresh,
        Capability::LongLivedGracefulRestart(vec![LongLivedGracefulRestart {
            family: ipv6,
            forwarding_preserved: true,
            stale_time: 65536,
        }]),
        Capability::Fqdn {
            host: b"r1".to_vec(),
            domain: vec![],
        },
        Capability::Unknown {
            code: 200,
            value: vec![1, 2],
        },
    ]
}

fn open_with(capabilities: Vec<Capability>) -> Open {
    Open::new(
        65001,
        90,
        Ipv4Addr::new(192, 0, 2, 1),
        Capabilities::new(capabilities),
    )
}

fn body(parameters: &[u8]) -> Vec<u8> {
    [&FIXED, parameters].concat()
}

fn encoded_body(open: &Open) -> Vec<u8> {
    let mut out = Vec::new();
    open.encode(&mut out).unwrap();
    assert_eq!(usize::from(u16::from_be_bytes([out[16], out[17]])), out.len());
    out.split_off(19)
}

fn refused(body: &[u8]) -> ((u8, u8), Vec<u8>) {
    let error = Open::decode(body).unwrap_err();
    (error.code().numbers(), error.notification().data().to_vec())
}

#[test]
fn all_capabilities_are_read_and_written() {
    let length = u8::try_from(ALL_CAPABILITIES.len()).unwrap();
    let octets = body(&[&[length + 2, 2, length], ALL_CAPABILITIES].concat());
    let open = Open::decode(&octets).unwrap();
    assert_eq!(open, open_with(all_capabilities()));
    assert_eq!(encoded_body(&open), octets);
}

#[test]
fn capabilities_may_be_spread_over_parameters() {
    let octets = body(&[8, 2, 2, 2, 0, 2, 2, 70, 0]);
    let open = Open::decode(&octets).unwrap();
    assert_eq!(
        open,
        open_with(vec![Capability::RouteRefresh, Capability::EnhancedRouteRefresh])
    );
}

#[test]
fn questions_about_capabilities_are_answered() {
    let capabilities = Capabilities::new(all_capabilities());
    let (ipv4, ipv6) = (AfiSafi::IPV4_UNICAST, AfiSafi::IPV6_UNICAST);
    assert!(capabilities.multiprotocol(ipv6) && !capabilities.multiprotocol(ipv4));
    assert!(
        Capabilities::default().multiprotocol(ipv4),
        "IPv4 is spoken by those who say nothing"
    );
    assert!(capabilities.extended_next_hop(ipv4, 2) && !capabilities.extended_next_hop(ipv6, 1));
    assert!(
        capabilities
            .add_path(ipv4)
            .is_some_and(|direction| direction.sends() && direction.receives())
    );
    assert_eq!(capabilities.add_path(ipv6), None);
    assert_eq!(capabilities.role(), Ok(Some(Role::Customer)));
    assert_eq!(
        capabilities
            .long_lived_graceful_restart()
            .and_then(|entries| entries.iter().find(|entry| entry.family == ipv6))
            .map(|entry| entry.stale_time),
        Some(65536)
    );
    assert_eq!(open_with(all_capabilities()).asn(), 65537);
    let mut two_roles = capabilities;
    two_roles.push(Capability::Role(Role::Peer));
    assert!(two_roles.role().is_err());
}

#[test]
fn roles_match_in_pairs() {
    let roles = [
        Role::Provider,
        Role::RouteServer,
        Role::RouteServerClient,
        Role::Customer,
        Role::Peer,
        Role::Unassigned(9),
    ];
    let matching: Vec<_> = roles
        .iter()
        .flat_map(|a| roles.iter().map(move |b| (*a, *b)))
        .filter(|(a, b)| a.matches(*b))
        .collect();
    let expected = [
        (Role::Provider, Role::Customer),
        (Role::RouteServer, Role::RouteServerClient),
        (Role::RouteServerClient, Role::RouteServer),
        (Role::Customer, Role::Provider),
        (Role::Peer, Role::Peer),
    ];
    assert_eq!(matching, expected);
}

#[test]
fn a_capability_of_wrong_form_is_kept_as_unknown() {
    // Code and value.
    let rows: [(u8, &[u8]); 9] = [
        (1, &[0, 1, 0]),
        (2, &[1]),
        (5, &[0, 1, 1, 1, 0, 2]),
        (64, &[0x80]),
        (64, &[0, 120, 0, 1, 1]),
        (65, &[0, 1]),
        (69, &[0, 1, 1, 4]),
        (71, &[0, 1, 1, 0, 0, 0]),
        (73, &[5, b'x']),
    ];
    for (code, value) in rows {
        let length = u8::try_from(value.len()).unwrap();
        let octets = body(&[&[length + 4, 2, length + 2, code, length], value].concat());
        let open = Open::decode(&octets).unwrap();
        assert_eq!(
            open,
            open_with(vec![Capability::Unknown {
                code,
                value: value.to_vec()
            }])
        );
        assert_eq!(encoded_body(&open), octets);
    }
}

#[test]
fn errors_of_an_open_have_their_subcodes() {
    assert_eq!(refused(&[3, 0, 1, 0, 90, 1, 1, 1, 1, 0]), ((2, 1), vec![0, 4]));
    assert_eq!(refused(&[4, 0, 0, 0, 90, 1, 1, 1, 1, 0]).0, (2, 2));
    assert_eq!(
        refused(&body(&[8, 2, 6, 65, 4, 0, 0, 0, 0])).0,
        (2, 2),
        "AS 0 in the capability"
    );
    assert_eq!(refused(&[4, 0, 1, 0, 90, 0, 0, 0, 0, 0]).0, (2, 3));
    assert_eq!(refused(&body(&[2, 1, 0])).0, (2, 4), "authentication parameter");
    assert_eq!(refused(&body(&[2, 3, 0])).0, (2, 4));
    for hold_time in [1, 2] {
        assert_eq!(refused(&[4, 0, 1, 0, hold_time, 1, 1, 1, 1, 0]).0, (2, 6));
    }
    // Lengths that do not fit: nothing at all, parameters, a parameter, a capability.
    let broken: [&[u8]; 6] = [&[], &[1], &[0, 0], &[1, 2], &[2, 2, 1], &[4, 2, 2, 65, 4]];
    for parameters in broken {
        assert_eq!(refused(&body(parameters)).0, (2, 0), "{parameters:?}");
    }
}

#[test]
fn every_truncation_of_an_open_is_refused() {
    let length = u8::try_from(ALL_CAPABILITIES.len()).unwrap();
    let octets = body(&[&[length + 2, 2, length], ALL_CAPABILITIES].concat());
    for end in 0..octets.len() {
        assert!(
            Open::decode(&octets[..end]).is_err(),
            "{end} octets were accepted"
        );
    }
}

#[test]
fn extended_optional_parameters_are_read_whatever_their_short_length_says() {
    for short_length in [255, 1, 7] {
        let octets = body(&[short_length, 255, 0, 5, 2, 0, 2, 2, 0]);
        assert_eq!(
            Open::decode(&octets),
            Ok(open_with(vec![Capability::RouteRefresh]))
        );
    }
    assert_eq!(refused(&body(&[255, 255, 0, 6, 2, 0, 2, 2, 0])).0, (2, 0));
}

#[test]
fn many_capabilities_are_written_in_the_extended_form() {
    let unknown = |length| Capability::Unknown {
        code: 200,
        value: vec![7; length],
    };
    // 252 octets of capabilities are the most the short form holds, since 255 as parameter length means "extended".
    for (lengths, extended) in [
        (vec![250], false),
        (vec![251], true),
        (vec![250, 0], true),
        (vec![255; 15], true),
    ] {
        let open = open_with(lengths.iter().map(|length| unknown(*length)).collect());
        let octets = encoded_body(&open);
        assert_eq!(octets[9..11] == [255, 255], extended, "{lengths:?}");
        assert_eq!(Open::decode(&octets), Ok(open));
    }
}

#[test]
fn capabilities_that_do_not_fit_are_an_error_and_nothing_is_written() {
    let unknown = |length| Capability::Unknown {
        code: 200,
        value: vec![7; length],
    };
    let mut out = Vec::new();
    let too_long = open_with(vec![unknown(256)]).encode(&mut out);
    assert_eq!(too_long, Err(OpenEncodeError::CapabilityTooLong { code: 200 }));
    let too_many = open_with(vec![unknown(255); 16]).encode(&mut out);
    assert_eq!(too_many, Err(OpenEncodeError::TooLong { octets: 16 * 257 }));
    assert!(out.is_empty());
    // The largest that fits makes a message of exactly 4096 octets.
    let largest: Vec<_> = [255; 15]
        .into_iter()
        .chain([4096 - 29 - 6 - 15 * 257 - 2])
        .map(unknown)
        .collect();
    open_with(largest).encode(&mut out).unwrap();
    assert_eq!(out.len(), 4096);
}

#[test]
fn an_as_number_of_four_octets_is_as_trans_in_the_two_octet_field() {
    let open = Open::new(
        4_200_000_000,
        0,
        Ipv4Addr::new(1, 1, 1, 1),
        Capabilities::default(),
    );
    assert_eq!(open.my_as, AS_TRANS);
}

proptest! {
    #[test]
    fn what_is_decoded_encodes_to_an_equal_open(parameters in prop::collection::vec(any::<u8>(), 0..64)) {
        let length = u8::try_from(parameters.len()).unwrap();
        let octets = body(&[&[length + 2, 2, length], parameters.as_slice()].concat());
        if let Ok(open) = Open::decode(&octets) {
            prop_assert_eq!(Open::decode(&encoded_body(&open)), Ok(open));
        }
    }
}
