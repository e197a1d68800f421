//! The well-formed messages that the mutations begin with.

use std::net::Ipv4Addr;

use calidris_bgp::family::{AfiSafi, Ipv4Prefix, Ipv4Unicast, Ipv6Prefix, Ipv6Unicast};
use calidris_bgp::wire::attr::{
    Aggregator, AsPath, Attributes, Community, ExtendedCommunity, Ipv6ExtendedCommunity, LargeCommunity,
    NextHop, SegmentKind, UnknownAttribute,
};
use calidris_bgp::wire::capability::Capability;
use calidris_bgp::wire::context::{EncodeContext, FamilyContext};
use calidris_bgp::wire::frame::{MessageLimit, encode_keepalive};
use calidris_bgp::wire::nlri::Nlri;
use calidris_bgp::wire::notification::{CeaseError, Notification};
use calidris_bgp::wire::open::Open;
use calidris_bgp::wire::refresh::{RefreshSubtype, RouteRefresh};
use calidris_bgp::wire::update::{UpdateTemplate, encode_end_of_rib};

/// One well-formed message of every kind.
pub(super) fn seeds() -> Vec<Vec<u8>> {
    let mut seeds = vec![vec![]; 4];
    open().encode(&mut seeds[0]).unwrap();
    encode_keepalive(&mut seeds[1]);
    Notification::cease_with_text(CeaseError::AdministrativeShutdown, "maintenance").encode(&mut seeds[2]);
    RouteRefresh {
        family: AfiSafi::IPV6_UNICAST,
        subtype: RefreshSubtype::BeginOfRefresh,
    }
    .encode(&mut seeds[3]);
    let hard_reset = Notification::cease_with_text(CeaseError::AdministrativeReset, "bye").into_hard_reset();
    seeds.push(encoded(|out| hard_reset.encode(out)));
    let mut long_open = open();
    for octet in 0..20 {
        long_open.capabilities.push(Capability::Unknown {
            code: 200,
            value: vec![octet; 20],
        });
    }
    seeds.push(encoded(|out| long_open.encode(out).unwrap()));
    for family in [AfiSafi::IPV4_UNICAST, AfiSafi::IPV6_UNICAST] {
        seeds.push(encoded(|out| encode_end_of_rib(family, out)));
    }
    for four_octet_as in [true, false] {
        for add_path in [true, false] {
            let family = FamilyContext {
                negotiated: true,
                add_path,
                extended_next_hop: true,
            };
            let context = EncodeContext {
                four_octet_as,
                message_limit: MessageLimit::Standard,
                ipv4_unicast: family,
                ipv6_unicast: family,
            };
            seeds.extend(update_seeds(&context));
        }
    }
    seeds
}

fn encoded(encode: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut out = Vec::new();
    encode(&mut out);
    out
}

/// Those that the codec's own tests read.
const CAPABILITIES: &[u8] = &include!("../../src/wire/open/all_capabilities.in");

fn open() -> Open {
    let length = u8::try_from(CAPABILITIES.len()).unwrap();
    // Version, AS, hold time and identifier; then one parameter with all capabilities.
    let fixed = [4, 0xfd, 0xe9, 0, 90, 192, 0, 2, 1, length + 2, 2, length];
    Open::decode(&[&fixed, CAPABILITIES].concat()).unwrap()
}

fn update_seeds(context: &EncodeContext) -> Vec<Vec<u8>> {
    let short = Attributes {
        as_path: AsPath::from_sequence(&[65001, 65002]),
        next_hop: Some(NextHop::V4([192, 0, 2, 1].into())),
        ..Attributes::default()
    };
    let long = long_attributes();
    let confederation = Attributes {
        as_path: AsPath::from_segments([
            (SegmentKind::ConfedSequence, [64512].as_slice()),
            (SegmentKind::Sequence, &[70000, 2]),
            (SegmentKind::Set, &[3, 4]),
        ]),
        ..short.clone()
    };
    let ipv6_next_hop = Attributes {
        next_hop: Some(NextHop::V6("fe80::1".parse().unwrap())),
        ..short.clone()
    };
    let ipv4: Vec<Nlri<Ipv4Unicast>> = ["0.0.0.0/0", "10.0.0.0/8", "192.0.2.128/25", "192.0.2.1/32"]
        .map(|text| Nlri {
            prefix: text.parse::<Ipv4Prefix>().unwrap(),
            path_id: 7,
        })
        .to_vec();
    let ipv6: Vec<Nlri<Ipv6Unicast>> = ["::/0", "2001:db8::/32", "2001:db8::1/128"]
        .map(|text| Nlri {
            prefix: text.parse::<Ipv6Prefix>().unwrap(),
            path_id: 7,
        })
        .to_vec();
    let mut seeds = vec![
        encoded(|out| _ = UpdateTemplate::withdraw(context).encode_all(ipv4.iter().copied(), out)),
        encoded(|out| _ = UpdateTemplate::withdraw(context).encode_all(ipv6.iter().copied(), out)),
    ];
    for attributes in [&short, &long, &confederation, &ipv6_next_hop] {
        let template = UpdateTemplate::announce(attributes, context).unwrap();
        seeds.push(encoded(|out| _ = template.encode_all(ipv4.iter().copied(), out)));
    }
    let global = Attributes {
        next_hop: Some(NextHop::V6WithLinkLocal {
            global: "2001:db8::1".parse().unwrap(),
            link_local: "fe80::1".parse().unwrap(),
        }),
        ..long
    };
    for attributes in [&ipv6_next_hop, &global] {
        let template = UpdateTemplate::announce(attributes, context).unwrap();
        seeds.push(encoded(|out| _ = template.encode_all(ipv6.iter().copied(), out)));
    }
    seeds
}

fn long_attributes() -> Attributes {
    Attributes {
        as_path: AsPath::from_segments([
            (SegmentKind::Sequence, [65001, 70000].as_slice()),
            (SegmentKind::Set, &[5]),
        ]),
        next_hop: Some(NextHop::V4([192, 0, 2, 1].into())),
        med: Some(10),
        local_pref: Some(100),
        atomic_aggregate: true,
        aggregator: Some(Aggregator {
            asn: 70000,
            address: Ipv4Addr::new(10, 0, 0, 1),
        }),
        communities: [Community::NO_EXPORT, Community::new(1, 2)].into_iter().collect(),
        extended_communities: [ExtendedCommunity([0, 2, 0, 1, 0, 0, 0, 1])]
            .into_iter()
            .collect(),
        ipv6_extended_communities: [Ipv6ExtendedCommunity([0; 20])].into_iter().collect(),
        large_communities: [LargeCommunity {
            global_administrator: 1,
            local_data_1: 2,
            local_data_2: 3,
        }]
        .into_iter()
        .collect(),
        originator_id: Some(Ipv4Addr::new(10, 0, 0, 9)),
        cluster_list: [Ipv4Addr::new(10, 0, 0, 8)].into(),
        otc: Some(65001),
        aigp: Some(77),
        unknown: [UnknownAttribute {
            type_code: 99,
            value: [1, 2, 3].into(),
        }]
        .into(),
        ..Attributes::default()
    }
}
