//! UPDATE bodies as octets, read and written; what is wrong with them is in `rfc7606_tests`.

use super::*;
use crate::family::{Family, FamilyPrefix, Ipv4Unicast, Ipv6Unicast, Prefix};
use crate::wire::attr::{
    Aggregator, AsPath, Community, CommunitySet, ExtendedCommunity, LargeCommunity, NextHop, Origin,
    SegmentKind, UnknownAttribute,
};
use crate::wire::context::{DecodeContext, EncodeContext, FamilyContext, PeerKind};
use crate::wire::frame::{Frame, MessageLimit, MessageType};
use crate::wire::nlri::{Nlri, NlriField};

pub(super) const NEGOTIATED: FamilyContext = FamilyContext {
    negotiated: true,
    add_path: false,
    extended_next_hop: false,
};

pub(super) fn decode_context(peer_kind: PeerKind) -> DecodeContext {
    DecodeContext {
        four_octet_as: true,
        peer_kind,
        aigp: true,
        ipv4_unicast: NEGOTIATED,
        ipv6_unicast: NEGOTIATED,
    }
}

fn encode_context() -> EncodeContext {
    EncodeContext {
        four_octet_as: true,
        message_limit: MessageLimit::Standard,
        ipv4_unicast: NEGOTIATED,
        ipv6_unicast: NEGOTIATED,
    }
}

pub(super) fn attribute(flags: u8, type_code: u8, value: &[u8]) -> Vec<u8> {
    match u8::try_from(value.len()) {
        Ok(length) => [&[flags, type_code, length], value].concat(),
        Err(_) => {
            let length = u16::try_from(value.len()).unwrap().to_be_bytes();
            [&[flags | 0x10, type_code], &length, value].concat()
        }
    }
}

pub(super) fn body(withdrawn: &[u8], attributes: &[Vec<u8>], nlri: &[u8]) -> Vec<u8> {
    let attributes = attributes.concat();
    let length = |octets: &[u8]| u16::try_from(octets.len()).unwrap().to_be_bytes();
    [
        &length(withdrawn),
        withdrawn,
        &length(&attributes),
        &attributes,
        nlri,
    ]
    .concat()
}

pub(super) fn origin() -> Vec<u8> {
    attribute(0x40, 1, &[0])
}

pub(super) fn as_path() -> Vec<u8> {
    attribute(0x40, 2, &[2, 1, 0, 0, 0xfd, 0xe9])
}

pub(super) fn next_hop() -> Vec<u8> {
    attribute(0x40, 3, &[192, 0, 2, 1])
}

pub(super) fn mp_reach() -> Vec<u8> {
    let next_hop = [0x20, 1, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
    attribute(
        0x80,
        14,
        &[&[0, 2, 1, 16], next_hop.as_slice(), &[0, 32, 0x20, 1, 0x0d, 0xb8]].concat(),
    )
}

/// 10.0.0.0/8.
pub(super) const TEN: [u8; 2] = [8, 10];

pub(super) fn prefixes(nlri: &FamilyNlri<'_>) -> Vec<String> {
    fn texts<F: Family>(field: NlriField<'_, F>) -> Vec<String> {
        field
            .into_iter()
            .map(|nlri| format!("{} {}", nlri.prefix, nlri.path_id))
            .collect()
    }
    match nlri {
        FamilyNlri::Ipv4(field) => texts(*field),
        FamilyNlri::Ipv6(field) => texts(*field),
    }
}

fn attributes() -> Attributes {
    Attributes {
        as_path: AsPath::from_sequence(&[65001]),
        next_hop: Some(NextHop::V4([192, 0, 2, 1].into())),
        ..Attributes::default()
    }
}

fn nlri<F: Family>(text: &str) -> Nlri<F> {
    Nlri::new(F::Prefix::from_prefix(text.parse::<Prefix>().unwrap()).unwrap())
}

/// Splits what an encoder wrote into bodies, checking every frame.
fn bodies(mut octets: &[u8], limit: MessageLimit) -> Vec<&[u8]> {
    let mut bodies = Vec::new();
    while !octets.is_empty() {
        let frame = Frame::parse(octets, limit).unwrap().unwrap();
        assert_eq!(frame.message_type, MessageType::Update);
        bodies.push(frame.body);
        octets = &octets[frame.total_len()..];
    }
    bodies
}

#[test]
fn withdrawn_and_announced_prefixes_are_read() {
    let octets = body(
        &[16, 172, 16, 0],
        &[origin(), as_path(), next_hop()],
        &[8, 10, 24, 192, 0, 2],
    );
    let update = Update::decode(&octets, &decode_context(PeerKind::External)).unwrap();
    assert_eq!(
        update.unreach.iter().map(prefixes).collect::<Vec<_>>(),
        [["172.16.0.0/16 0", "0.0.0.0/0 0"]]
    );
    assert_eq!(
        prefixes(&update.reach[0].nlri),
        ["10.0.0.0/8 0", "192.0.2.0/24 0"]
    );
    assert_eq!(update.reach[0].attributes, attributes());
    assert_eq!(
        (update.errors, update.treat_as_withdraw, update.end_of_rib),
        (vec![], false, None)
    );
}

#[test]
fn every_attribute_is_read_and_written_in_ascending_order() {
    let list = [
        attribute(0x40, 1, &[2]),
        attribute(0x40, 2, &[2, 2, 0, 1, 0, 1, 0, 0, 0, 2, 1, 1, 0, 0, 0, 3]),
        next_hop(),
        attribute(0x80, 4, &[0, 0, 0, 10]),
        attribute(0x40, 5, &[0, 0, 0, 100]),
        attribute(0x40, 6, &[]),
        attribute(0xc0, 7, &[0, 1, 0, 1, 10, 0, 0, 1]),
        attribute(0xc0, 8, &[0, 1, 0, 2, 0xff, 0xff, 0xff, 1]),
        attribute(0x80, 9, &[10, 0, 0, 9]),
        attribute(0x80, 10, &[10, 0, 0, 8, 10, 0, 0, 7]),
        attribute(0xc0, 16, &[0, 2, 0, 1, 0, 0, 0, 2]),
        attribute(0xc0, 25, &[0; 20]),
        attribute(0x80, 26, &[1, 0, 11, 0, 0, 0, 0, 0, 0, 0, 5]),
        attribute(0xe0, 32, &[0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 3]),
        attribute(0xc0, 35, &[0, 0, 0, 7]),
        attribute(0xe0, 99, &[1, 2, 3]),
    ];
    let octets = body(&[], &list, &TEN);
    let update = Update::decode(&octets, &decode_context(PeerKind::Internal)).unwrap();
    assert_eq!(update.errors, []);
    let read = &update.reach[0].attributes;
    let expected_path = AsPath::from_segments([
        (SegmentKind::Sequence, [65537, 2].as_slice()),
        (SegmentKind::Set, &[3]),
    ]);
    assert_eq!((read.origin, &read.as_path), (Origin::Incomplete, &expected_path));
    assert_eq!(
        (read.med, read.local_pref, read.atomic_aggregate),
        (Some(10), Some(100), true)
    );
    assert_eq!(
        read.aggregator,
        Some(Aggregator {
            asn: 65537,
            address: [10, 0, 0, 1].into()
        })
    );
    assert_eq!(
        read.communities,
        CommunitySet::from_iter([Community::NO_EXPORT, Community::new(1, 2)])
    );
    assert_eq!(
        (read.originator_id, read.cluster_list.len()),
        (Some([10, 0, 0, 9].into()), 2)
    );
    assert_eq!(
        read.extended_communities.as_slice(),
        [ExtendedCommunity([0, 2, 0, 1, 0, 0, 0, 2])]
    );
    let large = LargeCommunity {
        global_administrator: 1,
        local_data_1: 2,
        local_data_2: 3,
    };
    assert_eq!(read.large_communities.as_slice(), [large]);
    assert_eq!((read.aigp, read.otc), (Some(5), Some(7)));
    assert_eq!(
        *read.unknown,
        [UnknownAttribute {
            type_code: 99,
            value: [1, 2, 3].into()
        }]
    );
    assert!(read.partial.contains(32) && !read.partial.contains(8));

    let mut out = Vec::new();
    let template = UpdateTemplate::<Ipv4Unicast>::announce(read, &encode_context()).unwrap();
    template.encode_all([nlri("10.0.0.0/8")], &mut out);
    assert_eq!(bodies(&out, MessageLimit::Standard), [octets.as_slice()]);
}

#[test]
fn equal_sets_in_another_order_are_equal_attributes() {
    let read = |communities: &[u8], unknown: [Vec<u8>; 2]| {
        let [first, second] = unknown;
        let list = [
            first,
            origin(),
            as_path(),
            next_hop(),
            attribute(0xc0, 8, communities),
            second,
        ];
        let octets = body(&[], &list, &TEN);
        Update::decode(&octets, &decode_context(PeerKind::External))
            .unwrap()
            .reach[0]
            .attributes
            .clone()
    };
    let (a, b) = (attribute(0xc0, 98, &[1]), attribute(0xe0, 99, &[2]));
    let one = read(&[0, 1, 0, 1, 0, 2, 0, 2], [a.clone(), b.clone()]);
    let other = read(&[0, 2, 0, 2, 0, 1, 0, 1, 0, 2, 0, 2], [b, a]);
    assert_eq!(one, other);
}

#[test]
fn unknown_attributes_pass_with_the_partial_bit_only_if_transitive() {
    let list = [
        origin(),
        as_path(),
        next_hop(),
        attribute(0x80, 98, &[1]),
        attribute(0xc0, 99, &[2]),
    ];
    let octets = body(&[], &list, &TEN);
    let update = Update::decode(&octets, &decode_context(PeerKind::External)).unwrap();
    assert_eq!(update.errors, []);
    let mut out = Vec::new();
    let template =
        UpdateTemplate::<Ipv4Unicast>::announce(&update.reach[0].attributes, &encode_context()).unwrap();
    template.encode_all([nlri("10.0.0.0/8")], &mut out);
    let expected = body(
        &[],
        &[origin(), as_path(), next_hop(), attribute(0xe0, 99, &[2])],
        &TEN,
    );
    assert_eq!(bodies(&out, MessageLimit::Standard), [expected]);
}

#[test]
fn ipv6_prefixes_are_read_from_the_multiprotocol_attributes_and_written_to_them() {
    let withdrawn = attribute(0x80, 15, &[0, 2, 1, 16, 0xfd, 0]);
    let octets = body(&[], &[mp_reach(), withdrawn, origin(), as_path()], &[]);
    let update = Update::decode(&octets, &decode_context(PeerKind::External)).unwrap();
    assert_eq!(prefixes(&update.unreach[0]), ["fd00::/16 0"]);
    let [reach] = update.reach.as_slice() else {
        panic!("{update:?}")
    };
    assert_eq!(prefixes(&reach.nlri), ["2001:db8::/32 0"]);
    assert_eq!(
        reach.attributes.next_hop,
        Some(NextHop::V6("2001:db8::1".parse().unwrap()))
    );

    let mut out = Vec::new();
    let template = UpdateTemplate::<Ipv6Unicast>::announce(&reach.attributes, &encode_context()).unwrap();
    template.encode_all([nlri("2001:db8::/32")], &mut out);
    UpdateTemplate::<Ipv6Unicast>::withdraw(&encode_context()).encode_all([nlri("fd00::/16")], &mut out);
    let [announced, withdrawn] = bodies(&out, MessageLimit::Standard)[..] else {
        panic!("{out:?}")
    };
    // Both lengths of the attribute take two octets; otherwise it is as it came.
    let mut long_mp_reach = mp_reach();
    long_mp_reach.splice(0..3, [0x90, 14, 0, 26]);
    assert_eq!(announced, body(&[], &[long_mp_reach, origin(), as_path()], &[]));
    assert_eq!(
        withdrawn,
        body(&[], &[vec![0x90, 15, 0, 6, 0, 2, 1, 16, 0xfd, 0]], &[])
    );
}

#[test]
fn a_message_with_both_kinds_of_prefixes_has_two_attribute_sets() {
    let octets = body(&[], &[mp_reach(), origin(), as_path(), next_hop()], &TEN);
    let update = Update::decode(&octets, &decode_context(PeerKind::External)).unwrap();
    let next_hops: Vec<_> = update
        .reach
        .iter()
        .map(|reach| reach.attributes.next_hop.unwrap().to_string())
        .collect();
    assert_eq!(next_hops, ["192.0.2.1", "2001:db8::1"]);
}

#[test]
fn next_hops_of_multiprotocol_routes_have_the_forms_in_use() {
    let global = "2001:db8::1".parse::<std::net::Ipv6Addr>().unwrap();
    let link_local = "fe80::1".parse::<std::net::Ipv6Addr>().unwrap();
    let none = std::net::Ipv6Addr::UNSPECIFIED;
    let both =
        |first: std::net::Ipv6Addr, second: std::net::Ipv6Addr| [first.octets(), second.octets()].concat();
    let rows = [
        (global.octets().to_vec(), NextHop::V6(global)),
        (link_local.octets().to_vec(), NextHop::V6(link_local)),
        (
            both(global, link_local),
            NextHop::V6WithLinkLocal { global, link_local },
        ),
        (both(none, link_local), NextHop::V6(link_local)),
        (both(link_local, link_local), NextHop::V6(link_local)),
        (both(global, none), NextHop::V6(global)),
    ];
    for (octets, expected) in rows {
        let length = u8::try_from(octets.len()).unwrap();
        let value = [&[0, 2, 1, length], octets.as_slice(), &[0, 0]].concat();
        let octets = body(&[], &[attribute(0x80, 14, &value), origin(), as_path()], &[]);
        let update = Update::decode(&octets, &decode_context(PeerKind::External)).unwrap();
        assert_eq!(update.reach[0].attributes.next_hop, Some(expected));
    }
}

#[test]
fn ipv4_over_ipv6_next_hops_needs_negotiation_in_both_directions() {
    let mut attributes = attributes();
    attributes.next_hop = Some(NextHop::V6("fe80::1".parse().unwrap()));
    let refused = UpdateTemplate::<Ipv4Unicast>::announce(&attributes, &encode_context());
    assert!(matches!(refused, Err(UpdateEncodeError::NextHopFamily { .. })));
    let mut encode = encode_context();
    encode.ipv4_unicast.extended_next_hop = true;
    let mut out = Vec::new();
    let template = UpdateTemplate::<Ipv4Unicast>::announce(&attributes, &encode).unwrap();
    template.encode_all([nlri("10.0.0.0/8")], &mut out);
    let octets = bodies(&out, MessageLimit::Standard)[0];

    let mut decode = decode_context(PeerKind::External);
    assert_eq!(
        Update::decode(octets, &decode).unwrap_err().code().numbers(),
        (3, 9)
    );
    decode.ipv4_unicast.extended_next_hop = true;
    let update = Update::decode(octets, &decode).unwrap();
    assert_eq!(update.reach[0].attributes, attributes);
    assert_eq!(prefixes(&update.reach[0].nlri), ["10.0.0.0/8 0"]);
}

#[test]
fn ipv6_with_an_ipv4_next_hop_cannot_be_told() {
    let refused = UpdateTemplate::<Ipv6Unicast>::announce(&attributes(), &encode_context());
    assert!(matches!(refused, Err(UpdateEncodeError::NextHopFamily { .. })));
    let none = Attributes {
        next_hop: None,
        ..attributes()
    };
    let refused = UpdateTemplate::<Ipv4Unicast>::announce(&none, &encode_context());
    assert_eq!(refused.unwrap_err(), UpdateEncodeError::NoNextHop);
}

#[test]
fn path_identifiers_are_read_and_written_where_negotiated() {
    let mut encode = encode_context();
    encode.ipv4_unicast.add_path = true;
    encode.ipv6_unicast.add_path = true;
    let mut decode = decode_context(PeerKind::External);
    decode.ipv4_unicast.add_path = true;
    decode.ipv6_unicast.add_path = true;
    let mut out = Vec::new();
    let paths = [1, 0xffff_ffff].map(|path_id| Nlri {
        path_id,
        ..nlri::<Ipv4Unicast>("10.0.0.0/8")
    });
    UpdateTemplate::announce(&attributes(), &encode)
        .unwrap()
        .encode_all(paths, &mut out);
    UpdateTemplate::withdraw(&encode).encode_all(paths, &mut out);
    let paths = [7].map(|path_id| Nlri {
        path_id,
        ..nlri::<Ipv6Unicast>("::/0")
    });
    UpdateTemplate::withdraw(&encode).encode_all(paths, &mut out);
    let decoded: Vec<_> = bodies(&out, MessageLimit::Standard)
        .into_iter()
        .map(|body| Update::decode(body, &decode).unwrap())
        .collect();
    assert_eq!(
        prefixes(&decoded[0].reach[0].nlri),
        ["10.0.0.0/8 1", "10.0.0.0/8 4294967295"]
    );
    assert_eq!(
        prefixes(&decoded[1].unreach[0]),
        ["10.0.0.0/8 1", "10.0.0.0/8 4294967295"]
    );
    assert_eq!(prefixes(&decoded[2].unreach[0]), ["::/0 7"]);
}

#[test]
fn end_of_rib_is_recognised_for_negotiated_families_only() {
    for family in [
        AfiSafi::IPV4_UNICAST,
        AfiSafi::IPV6_UNICAST,
        AfiSafi { afi: 25, safi: 70 },
    ] {
        let mut out = Vec::new();
        encode_end_of_rib(family, &mut out);
        let body = bodies(&out, MessageLimit::Standard)[0];
        let update = Update::decode(body, &decode_context(PeerKind::External)).unwrap();
        let known = family.afi != 25;
        assert_eq!(update.end_of_rib, known.then_some(family));
        assert!(update.reach.is_empty() && update.unreach.is_empty());
        let nothing_negotiated = Update::decode(body, &DecodeContext::default()).unwrap();
        assert_eq!(nothing_negotiated.end_of_rib, None);
    }
    for not in [
        body(&[0], &[], &[]),
        body(&[], &[attribute(0x80, 15, &[0, 2, 1, 0])], &[]),
        body(&[0], &[attribute(0x80, 15, &[0, 2, 1])], &[]),
        body(&[], &[attribute(0x80, 15, &[0, 2, 1]), origin()], &[]),
    ] {
        let update = Update::decode(&not, &decode_context(PeerKind::External)).unwrap();
        assert_eq!(update.end_of_rib, None, "{not:?}");
    }
}

#[test]
fn routes_of_families_that_were_not_negotiated_are_ignored() {
    let flowspec = attribute(0x80, 14, &[0, 1, 133, 0, 0, 3, 1, 8, 10]);
    let octets = body(&TEN, &[flowspec, origin(), as_path(), next_hop()], &TEN);
    let update = Update::decode(&octets, &decode_context(PeerKind::External)).unwrap();
    assert_eq!(
        (update.reach.len(), update.unreach.len(), update.errors.len()),
        (1, 1, 1)
    );
    let context = DecodeContext {
        ipv4_unicast: FamilyContext::default(),
        ..decode_context(PeerKind::External)
    };
    let update = Update::decode(&octets, &context).unwrap();
    assert_eq!(
        (update.reach.len(), update.unreach.len(), update.errors.len()),
        (0, 0, 3)
    );
    assert!(!update.treat_as_withdraw);
}

#[test]
fn prefixes_are_packed_up_to_the_limit() {
    for (limit, octets) in [(MessageLimit::Standard, 4096), (MessageLimit::Extended, 65535)] {
        let context = EncodeContext {
            message_limit: limit,
            ..encode_context()
        };
        let all: Vec<Nlri<Ipv4Unicast>> = (0..40_000u32)
            .map(|index| Nlri::new(crate::family::Ipv4Prefix::new((0x0a00_0000 | index).into(), 32).unwrap()))
            .collect();
        let mut out = Vec::new();
        let template = UpdateTemplate::announce(&attributes(), &context).unwrap();
        let messages = template.encode_all(all.iter().copied(), &mut out);
        let bodies = bodies(&out, limit);
        assert_eq!(bodies.len(), messages);
        let per_message = (octets - 19 - 4 - origin().len() - as_path().len() - next_hop().len()) / 5;
        assert_eq!(messages, all.len().div_ceil(per_message));
        let mut read = Vec::new();
        for body in bodies {
            let update = Update::decode(body, &decode_context(PeerKind::External)).unwrap();
            let FamilyNlri::Ipv4(field) = update.reach[0].nlri else {
                panic!("{update:?}")
            };
            read.extend(field);
        }
        assert_eq!(read, all);
    }
}

#[test]
fn a_prefix_that_does_not_fit_opens_the_next_message() {
    let mut prefixes = vec![nlri::<Ipv6Unicast>("2001:db8::1/128"); 300]
        .into_iter()
        .peekable();
    let template = UpdateTemplate::withdraw(&encode_context());
    let mut out = Vec::new();
    let first = template.encode_message(&mut prefixes, &mut out);
    let rest = template.encode_message(&mut prefixes, &mut out);
    assert_eq!(
        (first, rest, template.encode_message(&mut prefixes, &mut out)),
        (239, 61, 0)
    );
}

#[test]
fn a_message_is_filled_to_its_last_octet() {
    let mut prefixes = vec![nlri::<Ipv4Unicast>("0.0.0.0/0"); 5000]
        .into_iter()
        .peekable();
    let mut out = Vec::new();
    let count = UpdateTemplate::withdraw(&encode_context()).encode_message(&mut prefixes, &mut out);
    assert_eq!((count, out.len()), (4096 - 23, 4096));
}

#[test]
fn attributes_that_leave_no_room_are_an_error() {
    let communities = |count: u32| Attributes {
        communities: (0..count).map(Community).collect(),
        ..attributes()
    };
    let announce = |count| UpdateTemplate::<Ipv4Unicast>::announce(&communities(count), &encode_context());
    assert!(announce(1000).is_ok());
    assert!(matches!(
        announce(1013),
        Err(UpdateEncodeError::TooLong { limit: 4096, .. })
    ));
    assert!(matches!(announce(20_000), Err(UpdateEncodeError::TooLong { .. })));
}

#[test]
fn two_octet_speakers_get_as4_attributes_and_their_contents_come_back() {
    let encode = EncodeContext {
        four_octet_as: false,
        ..encode_context()
    };
    let decode = DecodeContext {
        four_octet_as: false,
        ..decode_context(PeerKind::External)
    };
    let sent = Attributes {
        as_path: AsPath::from_sequence(&[65001, 65537, 70000]),
        aggregator: Some(Aggregator {
            asn: 70000,
            address: [10, 0, 0, 1].into(),
        }),
        ..attributes()
    };
    let mut out = Vec::new();
    UpdateTemplate::announce(&sent, &encode)
        .unwrap()
        .encode_all([nlri::<Ipv4Unicast>("10.0.0.0/8")], &mut out);
    let octets = bodies(&out, MessageLimit::Standard)[0];
    let expected = [
        origin(),
        attribute(0x40, 2, &[2, 3, 0xfd, 0xe9, 0x5b, 0xa0, 0x5b, 0xa0]),
        next_hop(),
        attribute(0xc0, 7, &[0x5b, 0xa0, 10, 0, 0, 1]),
        attribute(0xc0, 17, &[2, 3, 0, 0, 0xfd, 0xe9, 0, 1, 0, 1, 0, 1, 0x11, 0x70]),
        attribute(0xc0, 18, &[0, 1, 0x11, 0x70, 10, 0, 0, 1]),
    ];
    assert_eq!(octets, body(&[], &expected, &TEN));
    assert_eq!(Update::decode(octets, &decode).unwrap().reach[0].attributes, sent);

    let small = Attributes {
        as_path: AsPath::from_sequence(&[65001]),
        ..attributes()
    };
    out.clear();
    UpdateTemplate::announce(&small, &encode)
        .unwrap()
        .encode_all([nlri::<Ipv4Unicast>("10.0.0.0/8")], &mut out);
    let short_path = attribute(0x40, 2, &[2, 1, 0xfd, 0xe9]);
    assert_eq!(
        bodies(&out, MessageLimit::Standard),
        [body(&[], &[origin(), short_path, next_hop()], &TEN)]
    );
}

#[test]
fn as4_path_is_without_confederation_segments() {
    let encode = EncodeContext {
        four_octet_as: false,
        ..encode_context()
    };
    let segments = [
        (SegmentKind::ConfedSequence, [64512].as_slice()),
        (SegmentKind::Sequence, &[65537]),
    ];
    let sent = Attributes {
        as_path: AsPath::from_segments(segments),
        ..attributes()
    };
    let mut out = Vec::new();
    UpdateTemplate::announce(&sent, &encode)
        .unwrap()
        .encode_all([nlri::<Ipv4Unicast>("10.0.0.0/8")], &mut out);
    let expected = [
        origin(),
        attribute(0x40, 2, &[3, 1, 0xfc, 0, 2, 1, 0x5b, 0xa0]),
        next_hop(),
        attribute(0xc0, 17, &[2, 1, 0, 1, 0, 1]),
    ];
    assert_eq!(bodies(&out, MessageLimit::Standard), [body(&[], &expected, &TEN)]);
}

#[test]
fn of_two_aigp_metrics_the_first_counts_and_without_aigp_enabled_none() {
    let metrics = [
        1, 0, 11, 0, 0, 0, 0, 0, 0, 0, 5, 9, 0, 3, 1, 0, 11, 0, 0, 0, 0, 0, 0, 0, 6,
    ];
    let octets = body(
        &[],
        &[origin(), as_path(), next_hop(), attribute(0x80, 26, &metrics)],
        &TEN,
    );
    for (aigp, metric) in [(true, Some(5)), (false, None)] {
        let context = DecodeContext {
            aigp,
            ..decode_context(PeerKind::External)
        };
        let update = Update::decode(&octets, &context).unwrap();
        assert_eq!(
            (update.reach[0].attributes.aigp, update.errors.len()),
            (metric, 0)
        );
    }
}

#[test]
fn an_aggregator_that_knew_nothing_of_as4_attributes_makes_them_void() {
    let decode = DecodeContext {
        four_octet_as: false,
        ..decode_context(PeerKind::External)
    };
    let list = |aggregator: &[u8]| {
        let path = attribute(0x40, 2, &[2, 2, 0, 1, 0x5b, 0xa0]);
        let as4_path = attribute(0xc0, 17, &[2, 1, 0, 1, 0, 1]);
        let as4_aggregator = attribute(0xc0, 18, &[0, 1, 0, 1, 10, 0, 0, 1]);
        let list = [
            origin(),
            path,
            next_hop(),
            attribute(0xc0, 7, aggregator),
            as4_path,
            as4_aggregator,
        ];
        let octets = body(&[], &list, &TEN);
        Update::decode(&octets, &decode).unwrap().reach[0]
            .attributes
            .clone()
    };
    let merged = list(&[0x5b, 0xa0, 10, 0, 0, 1]);
    assert_eq!(
        (
            merged.as_path.to_string().as_str(),
            merged.aggregator.unwrap().asn
        ),
        ("1 65537", 65537)
    );
    let void = list(&[0, 9, 10, 0, 0, 1]);
    assert_eq!(
        (void.as_path.to_string().as_str(), void.aggregator.unwrap().asn),
        ("1 23456", 9)
    );
}
