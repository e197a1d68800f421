//! RFC 7606 as tables: attribute × error → action, and what becomes of the prefixes.

use super::tests::{TEN, as_path, attribute, body, decode_context, mp_reach, next_hop, origin, prefixes};
use super::*;
use crate::wire::attr::{AttributeAction, AttributeErrorKind as Kind};
use crate::wire::context::{DecodeContext, PeerKind};

use AttributeAction::{Discard, Reset, TreatAsWithdraw};
use PeerKind::{Confederation, External, Internal};

/// A table row: what is sent instead of or beside the good attributes, by whom, what is wrong and what follows.
struct Row {
    flags: u8,
    type_code: u8,
    value: &'static [u8],
    peer_kind: PeerKind,
    kind: Kind,
    action: AttributeAction,
}

const fn row(
    (flags, type_code): (u8, u8),
    value: &'static [u8],
    peer_kind: PeerKind,
    kind: Kind,
    action: AttributeAction,
) -> Row {
    Row {
        flags,
        type_code,
        value,
        peer_kind,
        kind,
        action,
    }
}

/// Attributes of one address length too short, too long or empty, and what follows.
const VALUES: &[Row] = &[
    // 7.1 ORIGIN
    row((0x40, 1), &[], External, Kind::Length, TreatAsWithdraw),
    row((0x40, 1), &[0, 0], External, Kind::Length, TreatAsWithdraw),
    row((0x40, 1), &[3], External, Kind::Origin, TreatAsWithdraw),
    row((0x40, 1), &[255], Internal, Kind::Origin, TreatAsWithdraw),
    // 7.2 AS_PATH
    row((0x40, 2), &[2], External, Kind::PathSegment, TreatAsWithdraw),
    row((0x40, 2), &[2, 0], External, Kind::PathSegment, TreatAsWithdraw),
    row(
        (0x40, 2),
        &[2, 1, 0, 0, 1],
        External,
        Kind::PathSegment,
        TreatAsWithdraw,
    ),
    row(
        (0x40, 2),
        &[2, 2, 0, 0, 0, 1],
        External,
        Kind::PathSegment,
        TreatAsWithdraw,
    ),
    row(
        (0x40, 2),
        &[2, 1, 0, 0, 0, 1, 2],
        External,
        Kind::PathSegment,
        TreatAsWithdraw,
    ),
    row(
        (0x40, 2),
        &[0, 1, 0, 0, 0, 1],
        External,
        Kind::PathSegment,
        TreatAsWithdraw,
    ),
    row(
        (0x40, 2),
        &[5, 1, 0, 0, 0, 1],
        Internal,
        Kind::PathSegment,
        TreatAsWithdraw,
    ),
    // RFC 7607
    row(
        (0x40, 2),
        &[2, 1, 0, 0, 0, 0],
        External,
        Kind::AsZero,
        TreatAsWithdraw,
    ),
    // RFC 5065 section 5
    row(
        (0x40, 2),
        &[3, 1, 0, 0, 0, 1],
        External,
        Kind::ConfederationSegment,
        TreatAsWithdraw,
    ),
    row(
        (0x40, 2),
        &[2, 1, 0, 0, 0, 1, 4, 1, 0, 0, 0, 1],
        External,
        Kind::ConfederationSegment,
        TreatAsWithdraw,
    ),
    row(
        (0x40, 2),
        &[2, 1, 0, 0, 0, 1],
        Confederation,
        Kind::ConfederationSegmentMissing,
        TreatAsWithdraw,
    ),
    row(
        (0x40, 2),
        &[],
        Confederation,
        Kind::ConfederationSegmentMissing,
        TreatAsWithdraw,
    ),
    // 7.3 NEXT_HOP
    row((0x40, 3), &[], External, Kind::Length, TreatAsWithdraw),
    row((0x40, 3), &[192, 0, 2], External, Kind::Length, TreatAsWithdraw),
    row(
        (0x40, 3),
        &[192, 0, 2, 1, 0],
        External,
        Kind::Length,
        TreatAsWithdraw,
    ),
    row((0x40, 3), &[0, 0, 0, 0], External, Kind::NextHop, TreatAsWithdraw),
    row(
        (0x40, 3),
        &[224, 0, 0, 1],
        External,
        Kind::NextHop,
        TreatAsWithdraw,
    ),
    row(
        (0x40, 3),
        &[255, 255, 255, 255],
        External,
        Kind::NextHop,
        TreatAsWithdraw,
    ),
    // 7.4 MULTI_EXIT_DISC
    row((0x80, 4), &[], External, Kind::Length, TreatAsWithdraw),
    row((0x80, 4), &[0, 0, 1], External, Kind::Length, TreatAsWithdraw),
    row(
        (0x80, 4),
        &[0, 0, 0, 0, 1],
        External,
        Kind::Length,
        TreatAsWithdraw,
    ),
    // 7.5 LOCAL_PREF
    row((0x40, 5), &[0, 0, 0, 100], External, Kind::ExternalPeer, Discard),
    row((0x40, 5), &[1], External, Kind::ExternalPeer, Discard),
    row((0x40, 5), &[1], Internal, Kind::Length, TreatAsWithdraw),
    row((0x40, 5), &[], Internal, Kind::Length, TreatAsWithdraw),
    // 7.6 ATOMIC_AGGREGATE
    row((0x40, 6), &[0], External, Kind::Length, Discard),
    // 7.7 AGGREGATOR
    row((0xc0, 7), &[], External, Kind::Length, Discard),
    row((0xc0, 7), &[0, 1, 10, 0, 0, 1], External, Kind::Length, Discard),
    row(
        (0xc0, 7),
        &[0, 0, 0, 1, 10, 0, 0, 1, 0],
        External,
        Kind::Length,
        Discard,
    ),
    row(
        (0xc0, 7),
        &[0, 0, 0, 0, 10, 0, 0, 1],
        External,
        Kind::AsZero,
        Discard,
    ),
    row((0xe0, 7), &[], External, Kind::Length, Discard),
    // 7.8 COMMUNITIES
    row((0xc0, 8), &[], External, Kind::Length, TreatAsWithdraw),
    row(
        (0xc0, 8),
        &[0, 1, 0, 1, 0],
        External,
        Kind::Length,
        TreatAsWithdraw,
    ),
    // 7.9 ORIGINATOR_ID
    row((0x80, 9), &[10, 0, 0, 1], External, Kind::ExternalPeer, Discard),
    row((0x80, 9), &[10], External, Kind::ExternalPeer, Discard),
    row((0x80, 9), &[10], Internal, Kind::Length, TreatAsWithdraw),
    row((0x80, 9), &[], Internal, Kind::Length, TreatAsWithdraw),
    // 7.10 CLUSTER_LIST
    row((0x80, 10), &[10, 0, 0, 1], External, Kind::ExternalPeer, Discard),
    row((0x80, 10), &[], Internal, Kind::Length, TreatAsWithdraw),
    row(
        (0x80, 10),
        &[10, 0, 0, 1, 0],
        Internal,
        Kind::Length,
        TreatAsWithdraw,
    ),
    // 7.14 Extended communities, RFC 5701 their IPv6 form, RFC 8092 large ones
    row((0xc0, 16), &[], External, Kind::Length, TreatAsWithdraw),
    row(
        (0xc0, 16),
        &[0, 2, 0, 1, 0, 0, 0],
        External,
        Kind::Length,
        TreatAsWithdraw,
    ),
    row((0xc0, 25), &[0; 19], External, Kind::Length, TreatAsWithdraw),
    row((0xc0, 25), &[], External, Kind::Length, TreatAsWithdraw),
    row((0xc0, 32), &[0; 13], External, Kind::Length, TreatAsWithdraw),
    row((0xc0, 32), &[], External, Kind::Length, TreatAsWithdraw),
    // RFC 6793 section 6: a four-octet AS speaker does not send these
    row(
        (0xc0, 17),
        &[2, 1, 0, 0, 0, 1],
        External,
        Kind::FourOctetSpeaker,
        Discard,
    ),
    row(
        (0xc0, 18),
        &[0, 0, 0, 1, 10, 0, 0, 1],
        External,
        Kind::FourOctetSpeaker,
        Discard,
    ),
    // RFC 7311
    row((0x80, 26), &[1, 0, 3], External, Kind::Tlv, Discard),
    row((0x80, 26), &[1, 0, 2], External, Kind::Tlv, Discard),
    row((0x80, 26), &[1, 0, 11, 0], External, Kind::Tlv, Discard),
    row((0x80, 26), &[2, 0, 3], External, Kind::Tlv, Discard),
    row(
        (0xc0, 26),
        &[1, 0, 11, 0, 0, 0, 0, 0, 0, 0, 1],
        External,
        Kind::Flags,
        Discard,
    ),
    // RFC 9234 section 5
    row((0xc0, 35), &[], External, Kind::Length, TreatAsWithdraw),
    row(
        (0xc0, 35),
        &[0, 0, 0, 1, 0],
        External,
        Kind::Length,
        TreatAsWithdraw,
    ),
    // 3 c: the Optional and Transitive bits
    row((0x00, 1), &[0], External, Kind::Flags, TreatAsWithdraw),
    row((0xc0, 1), &[0], External, Kind::Flags, TreatAsWithdraw),
    row((0x80, 2), &[], External, Kind::Flags, TreatAsWithdraw),
    row((0xc0, 3), &[192, 0, 2, 1], External, Kind::Flags, TreatAsWithdraw),
    row((0x40, 4), &[0, 0, 0, 1], External, Kind::Flags, TreatAsWithdraw),
    row((0xc0, 4), &[0, 0, 0, 1], External, Kind::Flags, TreatAsWithdraw),
    row((0xc0, 5), &[0, 0, 0, 1], Internal, Kind::Flags, TreatAsWithdraw),
    row((0xc0, 6), &[], External, Kind::Flags, TreatAsWithdraw),
    row(
        (0x80, 7),
        &[0, 0, 0, 1, 10, 0, 0, 1],
        External,
        Kind::Flags,
        TreatAsWithdraw,
    ),
    row((0x40, 8), &[0, 1, 0, 1], External, Kind::Flags, TreatAsWithdraw),
    row((0x80, 8), &[0, 1, 0, 1], External, Kind::Flags, TreatAsWithdraw),
    row((0xc0, 9), &[10, 0, 0, 1], Internal, Kind::Flags, TreatAsWithdraw),
    row((0x40, 10), &[10, 0, 0, 1], Internal, Kind::Flags, TreatAsWithdraw),
    row(
        (0x80, 16),
        &[0, 2, 0, 1, 0, 0, 0, 2],
        External,
        Kind::Flags,
        TreatAsWithdraw,
    ),
    row((0x80, 32), &[0; 12], External, Kind::Flags, TreatAsWithdraw),
    row((0x80, 35), &[0, 0, 0, 1], External, Kind::Flags, TreatAsWithdraw),
    // RFC 4271 section 6.3, which RFC 7606 leaves as it is
    row((0x40, 99), &[1], External, Kind::UnrecognizedWellKnown, Reset),
    row((0x00, 99), &[1], External, Kind::UnrecognizedWellKnown, Reset),
    // 7.11, 7.12: prefixes that cannot be found
    row((0x80, 14), &[0, 2, 1, 0], External, Kind::MpField, Reset),
    row(
        (0x80, 14),
        &[0, 2, 1, 3, 1, 1, 1, 0],
        External,
        Kind::MpField,
        Reset,
    ),
    row((0x80, 14), &[0, 2, 1, 200, 0], External, Kind::MpField, Reset),
    row(
        (0x80, 14),
        &[0, 1, 1, 4, 192, 0, 2, 1, 0, 33, 0, 0, 0, 0, 0],
        External,
        Kind::MpField,
        Reset,
    ),
    row(
        (0x80, 14),
        &[0, 1, 1, 4, 192, 0, 2, 1, 0, 24, 0, 0],
        External,
        Kind::MpField,
        Reset,
    ),
    row((0x80, 15), &[0, 2], External, Kind::MpField, Reset),
    row((0x80, 15), &[0, 2, 1, 129], External, Kind::MpField, Reset),
    row((0x80, 15), &[0, 2, 1, 64, 0], External, Kind::MpField, Reset),
    // An MP_REACH_NLRI whose prefixes are fine
    row(
        (0x80, 14),
        &[0, 1, 1, 4, 0, 0, 0, 0, 0, 8, 11],
        External,
        Kind::NextHop,
        TreatAsWithdraw,
    ),
    row(
        (0xc0, 14),
        &[0, 1, 1, 4, 192, 0, 2, 1, 0, 8, 11],
        External,
        Kind::Flags,
        TreatAsWithdraw,
    ),
    row(
        (0xc0, 15),
        &[0, 1, 1, 8, 11],
        External,
        Kind::Flags,
        TreatAsWithdraw,
    ),
    // A family that was not negotiated
    row(
        (0x80, 14),
        &[0, 1, 133, 0, 0, 3, 1, 8, 10],
        External,
        Kind::FamilyNotNegotiated,
        Discard,
    ),
    row(
        (0x80, 15),
        &[64, 4, 71, 1, 2, 3],
        External,
        Kind::FamilyNotNegotiated,
        Discard,
    ),
];

/// The good attributes with the row's in place of the one of its type, or behind them.
fn list_with(bad: &Row) -> Vec<Vec<u8>> {
    let path = match bad.peer_kind {
        Confederation => attribute(0x40, 2, &[3, 1, 0, 0, 0, 1]),
        External | Internal => as_path(),
    };
    let mut list = vec![origin(), path, next_hop()];
    list.retain(|good| good[1] != bad.type_code);
    list.push(attribute(bad.flags, bad.type_code, bad.value));
    list
}

#[test]
fn every_bad_value_has_its_consequence() {
    for bad in VALUES {
        let what = format!(
            "attribute {} flags {:#x} value {:?}",
            bad.type_code, bad.flags, bad.value
        );
        let octets = body(&[], &list_with(bad), &TEN);
        let result = Update::decode(&octets, &decode_context(bad.peer_kind));
        if bad.action == Reset {
            let error = result.expect_err(&what);
            assert_eq!(
                error.code().numbers(),
                (3, bad.kind.subcode().subcode()),
                "{what}"
            );
            assert_eq!(
                error.notification().data(),
                attribute(bad.flags, bad.type_code, bad.value),
                "{what}"
            );
            continue;
        }
        let update = result.expect(&what);
        let errors: Vec<_> = update
            .errors
            .iter()
            .map(|error| (error.type_code, error.kind, error.action))
            .collect();
        assert_eq!(errors, [(bad.type_code, bad.kind, bad.action)], "{what}");
        assert_eq!(update.treat_as_withdraw, bad.action == TreatAsWithdraw, "{what}");
        if bad.action == TreatAsWithdraw {
            assert!(update.reach.is_empty(), "{what}");
            assert!(
                update
                    .unreach
                    .iter()
                    .any(|nlri| prefixes(nlri) == ["10.0.0.0/8 0"]),
                "{what}"
            );
        } else {
            assert_eq!(prefixes(&update.reach[0].nlri), ["10.0.0.0/8 0"], "{what}");
        }
    }
}

#[test]
fn a_malformed_message_without_announced_prefixes_resets_the_session() {
    // Section 5.2: nothing is left that could be treated as withdrawn.
    for bad in VALUES
        .iter()
        .filter(|row| row.action != Reset && !matches!(row.type_code, 14 | 15))
    {
        let octets = body(&[8, 11], &list_with(bad), &[]);
        let result = Update::decode(&octets, &decode_context(bad.peer_kind));
        match bad.action {
            Discard => assert_eq!(result.map(|update| update.reach.len()), Ok(0)),
            _ => assert_eq!(
                result.unwrap_err().code().numbers(),
                (3, bad.kind.subcode().subcode())
            ),
        }
    }
}

#[test]
fn a_discarded_attribute_leaves_no_trace() {
    for bad in VALUES.iter().filter(|row| row.action == Discard) {
        let good = body(&[], &list_with(&Row { type_code: 0, ..*bad })[..3], &TEN);
        let bad_body = body(&[], &list_with(bad), &TEN);
        let context = decode_context(bad.peer_kind);
        let read = |octets| {
            Update::decode(octets, &context).unwrap().reach[0]
                .attributes
                .clone()
        };
        assert_eq!(
            read(&bad_body),
            read(&good),
            "attribute {} value {:?}",
            bad.type_code,
            bad.value
        );
    }
}

#[test]
fn malformed_as4_attributes_of_two_octet_speakers_are_discarded() {
    let rows: [(u8, &[u8], Kind); 6] = [
        (17, &[2], Kind::PathSegment),
        (17, &[2, 1, 0, 1], Kind::PathSegment),
        (17, &[9, 1, 0, 0, 0, 1], Kind::PathSegment),
        (17, &[2, 1, 0, 0, 0, 0], Kind::AsZero),
        (18, &[0, 0, 0, 1, 10, 0, 0], Kind::Length),
        (18, &[0, 0, 0, 0, 10, 0, 0, 1], Kind::AsZero),
    ];
    let context = DecodeContext {
        four_octet_as: false,
        ..decode_context(External)
    };
    for (type_code, value, kind) in rows {
        let path = attribute(0x40, 2, &[2, 1, 0x5b, 0xa0]);
        let octets = body(
            &[],
            &[origin(), path, next_hop(), attribute(0xc0, type_code, value)],
            &TEN,
        );
        let update = Update::decode(&octets, &context).unwrap();
        assert_eq!((update.errors[0].kind, update.errors[0].action), (kind, Discard));
        assert_eq!(update.reach[0].attributes.as_path.to_string(), "23456");
    }
}

#[test]
fn missing_mandatory_attributes_are_treated_as_withdraw() {
    let all = [origin(), as_path(), next_hop()];
    for missing in 1..=3u8 {
        let list: Vec<_> = all
            .iter()
            .filter(|attribute| attribute[1] != missing)
            .cloned()
            .collect();
        let update_body = body(&[], &list, &TEN);
        let update = Update::decode(&update_body, &decode_context(External)).unwrap();
        assert_eq!(
            (update.errors[0].type_code, update.errors[0].kind),
            (missing, Kind::Missing)
        );
        assert_eq!((update.unreach.len(), update.reach.len()), (1, 0));
    }
    // MP_REACH_NLRI has its own next hop, and NEXT_HOP beside it is nobody's.
    for list in [
        vec![mp_reach(), origin(), as_path()],
        vec![mp_reach(), origin(), as_path(), next_hop()],
    ] {
        let octets = body(&[], &list, &[]);
        assert_eq!(
            Update::decode(&octets, &decode_context(External)).unwrap().errors,
            []
        );
    }
    for missing in 1..=2u8 {
        let list: Vec<_> = [mp_reach(), origin(), as_path()]
            .into_iter()
            .filter(|a| a[1] != missing)
            .collect();
        let octets = body(&[], &list, &[]);
        let update = Update::decode(&octets, &decode_context(External)).unwrap();
        assert_eq!(
            update.unreach.iter().map(prefixes).collect::<Vec<_>>(),
            [["2001:db8::/32 0"]]
        );
    }
}

#[test]
fn of_repeated_attributes_the_first_counts() {
    let med = |value| attribute(0x80, 4, &[0, 0, 0, value]);
    let unknown = |value| attribute(0xc0, 99, &[value]);
    let list = [
        origin(),
        as_path(),
        next_hop(),
        med(1),
        med(2),
        unknown(1),
        unknown(2),
        attribute(0x40, 1, &[9]),
    ];
    let octets = body(&[], &list, &TEN);
    let update = Update::decode(&octets, &decode_context(External)).unwrap();
    let errors: Vec<_> = update
        .errors
        .iter()
        .map(|error| (error.type_code, error.kind, error.action))
        .collect();
    let expected = [4, 99, 1].map(|type_code| (type_code, Kind::Repeated, Discard));
    assert_eq!(errors, expected);
    let attributes = &update.reach[0].attributes;
    assert_eq!(
        (
            attributes.med,
            attributes.unknown.len(),
            &*attributes.unknown[0].value
        ),
        (Some(1), 1, [1].as_slice())
    );
}

#[test]
fn repeated_multiprotocol_attributes_reset_the_session() {
    let unreach = attribute(0x80, 15, &[0, 2, 1]);
    for twice in [mp_reach(), unreach] {
        let octets = body(&[], &[twice.clone(), twice, origin(), as_path()], &[]);
        let error = Update::decode(&octets, &decode_context(External)).unwrap_err();
        assert_eq!(error.code().numbers(), (3, 1));
    }
}

#[test]
fn an_attribute_that_runs_out_of_the_list_spares_the_prefixes() {
    // Section 4: too long by one, no room for the length, no room for the type.
    let rests: [&[u8]; 5] = [
        &[0xc0, 8, 5, 0, 1, 0, 1],
        &[0xd0, 8, 0],
        &[0xc0, 8],
        &[0xc0],
        &[0xd0, 8, 0xff, 0xff, 1],
    ];
    for rest in rests {
        let octets = body(&[], &[origin(), as_path(), next_hop(), rest.to_vec()], &TEN);
        let update = Update::decode(&octets, &decode_context(External)).unwrap();
        assert_eq!(
            (update.errors[0].kind, update.errors[0].action),
            (Kind::Truncated, TreatAsWithdraw)
        );
        assert_eq!(prefixes(&update.unreach[0]), ["10.0.0.0/8 0"]);
    }
    for type_code in [14, 15] {
        let octets = body(
            &[],
            &[origin(), as_path(), next_hop(), vec![0x80, type_code, 9, 0]],
            &TEN,
        );
        let error = Update::decode(&octets, &decode_context(External)).unwrap_err();
        assert_eq!(error.code().numbers(), (3, 5));
    }
}

#[test]
fn field_lengths_beyond_the_message_reset_the_session() {
    let bodies: [&[u8]; 5] = [&[], &[0], &[0, 1], &[0, 0, 0, 1], &[0, 2, 8, 10, 0, 9, 0]];
    for octets in bodies {
        let error = Update::decode(octets, &decode_context(External)).unwrap_err();
        assert_eq!(error.code().numbers(), (3, 1), "{octets:?}");
    }
}

#[test]
fn prefixes_that_cannot_be_parsed_reset_the_session() {
    for bad in [&[33, 1, 2, 3, 4, 5][..], &[24, 1, 2], &[8], &[8, 10, 255]] {
        let attributes = [origin(), as_path(), next_hop()];
        for octets in [body(bad, &[], &[]), body(&[], &attributes, bad)] {
            let error = Update::decode(&octets, &decode_context(External)).unwrap_err();
            assert_eq!(error.code().numbers(), (3, 10), "{octets:?}");
        }
    }
}

#[test]
fn the_strongest_consequence_wins() {
    let local_pref = attribute(0x40, 5, &[0]);
    let med = attribute(0x80, 4, &[0]);
    let well_known = attribute(0x40, 99, &[]);
    let read = |extra: &[Vec<u8>]| {
        let list = [&[origin(), as_path(), next_hop()], extra].concat();
        let octets = body(&[], &list, &TEN);
        Update::decode(&octets, &decode_context(External)).map(|update| update.treat_as_withdraw)
    };
    assert_eq!(read(std::slice::from_ref(&local_pref)), Ok(false));
    assert_eq!(read(&[med.clone(), local_pref.clone()]), Ok(true));
    assert_eq!(read(&[local_pref.clone(), med.clone()]), Ok(true));
    assert_eq!(
        read(&[well_known, local_pref, med]).unwrap_err().code().numbers(),
        (3, 2)
    );
}

#[test]
fn a_peer_cannot_make_the_list_of_errors_long_nor_hide_a_strong_one_behind_weak_ones() {
    let mut list = vec![origin(), as_path(), next_hop()];
    list.extend(vec![attribute(0x40, 5, &[]); 1000]);
    list.push(attribute(0x80, 4, &[]));
    let octets = body(&[], &list, &TEN);
    let update = Update::decode(&octets, &decode_context(External)).unwrap();
    assert!(
        update.treat_as_withdraw && update.errors.len() <= 16,
        "{} errors",
        update.errors.len()
    );
}
