//! Any attributes and any prefixes, encoded for any kind of peer, read back as they were.
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test may panic")]

use std::net::{Ipv4Addr, Ipv6Addr};

use calidris_bgp::family::{Family, Ipv4Prefix, Ipv4Unicast, Ipv6Prefix, Ipv6Unicast};
use calidris_bgp::wire::attr::{
    Aggregator, AsPath, Attributes, Community, CommunitySet, ExtendedCommunity, Ipv6ExtendedCommunity,
    LargeCommunity, LocalFacts, NextHop, Origin, PartialBits, SegmentKind, UnknownAttribute, type_code,
};
use calidris_bgp::wire::context::{DecodeContext, EncodeContext, FamilyContext, PeerKind};
use calidris_bgp::wire::frame::{Frame, MessageLimit};
use calidris_bgp::wire::nlri::{FamilyNlri, Nlri, NlriField};
use calidris_bgp::wire::update::{Update, UpdateTemplate};
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;

fn as_path(kinds: &'static [SegmentKind]) -> impl Strategy<Value = AsPath> {
    let segment = (prop::sample::select(kinds), vec(1..=u32::MAX, 1..20));
    vec(segment, 0..4).prop_map(|segments| {
        AsPath::from_segments(segments.iter().map(|(kind, asns)| (*kind, asns.as_slice())))
    })
}

fn any_as_path(four_octet_as: bool) -> BoxedStrategy<AsPath> {
    use SegmentKind::{ConfedSequence, ConfedSet, Sequence, Set};
    if four_octet_as {
        as_path(&[Sequence, Set, ConfedSequence, ConfedSet]).boxed()
    } else {
        // Confederation segments with large numbers cannot be told to a two-octet speaker (RFC 6793 section 3).
        as_path(&[Sequence, Set]).boxed()
    }
}

fn any_next_hop(ipv6: bool) -> BoxedStrategy<NextHop> {
    let v6 = (1..=u16::MAX).prop_map(|host| Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, host));
    let link_local = (1..=u16::MAX).prop_map(|host| Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, host));
    if ipv6 {
        prop_oneof![
            v6.clone().prop_map(NextHop::V6),
            link_local.clone().prop_map(NextHop::V6),
            (v6, link_local).prop_map(|(global, link_local)| NextHop::V6WithLinkLocal { global, link_local }),
        ]
        .boxed()
    } else {
        (0x0100_0000..0xe000_0000u32)
            .prop_map(|address| NextHop::V4(address.into()))
            .boxed()
    }
}

fn community_sets() -> impl Strategy<
    Value = (
        CommunitySet<Community>,
        CommunitySet<ExtendedCommunity>,
        CommunitySet<Ipv6ExtendedCommunity>,
        CommunitySet<LargeCommunity>,
    ),
> {
    let large =
        any::<[u32; 3]>().prop_map(
            |[global_administrator, local_data_1, local_data_2]| LargeCommunity {
                global_administrator,
                local_data_1,
                local_data_2,
            },
        );
    (
        vec(any::<u32>().prop_map(Community), 0..80).prop_map(CommunitySet::from_iter),
        vec(any::<[u8; 8]>().prop_map(ExtendedCommunity), 0..4).prop_map(CommunitySet::from_iter),
        vec(any::<[u8; 20]>().prop_map(Ipv6ExtendedCommunity), 0..3).prop_map(CommunitySet::from_iter),
        vec(large, 0..40).prop_map(CommunitySet::from_iter),
    )
}

fn any_attributes(four_octet_as: bool, ipv6: bool) -> impl Strategy<Value = Attributes> {
    let origin = prop::sample::select(vec![Origin::Igp, Origin::Egp, Origin::Incomplete]);
    let aggregator = (1..=u32::MAX, any::<u32>());
    let unknown = prop::collection::btree_map(100..=200u8, vec(any::<u8>(), 0..300), 0..3);
    let path = (
        origin,
        any_as_path(four_octet_as),
        any_next_hop(ipv6),
        option::of(aggregator),
        any::<bool>(),
    );
    let numbers = (
        option::of(any::<u32>()),
        option::of(any::<u32>()),
        option::of(any::<u32>()),
        option::of(any::<u64>()),
    );
    let reflection = (option::of(any::<u32>()), vec(any::<u32>(), 0..5));
    let rest = (community_sets(), unknown, any::<u8>());
    (path, numbers, reflection, rest).prop_map(
        |(path, numbers, reflection, (communities, unknown, partial))| {
            let (origin, as_path, next_hop, aggregator, atomic_aggregate) = path;
            let (med, local_pref, otc, aigp) = numbers;
            let (communities, extended_communities, ipv6_extended_communities, large_communities) =
                communities;
            let mut attributes = Attributes {
                origin,
                as_path,
                next_hop: Some(next_hop),
                med,
                local_pref,
                atomic_aggregate,
                aggregator: aggregator.map(|(asn, address)| Aggregator {
                    asn,
                    address: address.into(),
                }),
                communities,
                extended_communities,
                ipv6_extended_communities,
                large_communities,
                originator_id: reflection.0.map(Ipv4Addr::from),
                cluster_list: reflection.1.into_iter().map(Ipv4Addr::from).collect(),
                otc,
                aigp,
                partial: PartialBits::default(),
                local: LocalFacts::default(),
                unknown: unknown
                    .into_iter()
                    .map(|(type_code, value)| UnknownAttribute {
                        type_code,
                        value: value.into(),
                    })
                    .collect(),
            };
            set_partial_bits(&mut attributes, partial);
            attributes
        },
    )
}

/// Gives the attributes that are there and whose bit is set in `choice` the Partial bit.
fn set_partial_bits(attributes: &mut Attributes, choice: u8) {
    let present = [
        (type_code::AGGREGATOR, attributes.aggregator.is_some()),
        (type_code::COMMUNITIES, !attributes.communities.is_empty()),
        (
            type_code::EXTENDED_COMMUNITIES,
            !attributes.extended_communities.is_empty(),
        ),
        (
            type_code::IPV6_EXTENDED_COMMUNITIES,
            !attributes.ipv6_extended_communities.is_empty(),
        ),
        (
            type_code::LARGE_COMMUNITIES,
            !attributes.large_communities.is_empty(),
        ),
        (type_code::OTC, attributes.otc.is_some()),
    ];
    for (index, (type_code, present)) in present.into_iter().enumerate() {
        if present && choice & (1 << index) != 0 {
            attributes.partial.insert(type_code);
        }
    }
}

/// How a session is set up.
#[derive(Clone, Copy, Debug)]
struct Setup {
    four_octet_as: bool,
    extended_message: bool,
    add_path: bool,
}

fn any_setup() -> impl Strategy<Value = Setup> {
    any::<[bool; 3]>().prop_map(|[four_octet_as, extended_message, add_path]| Setup {
        four_octet_as,
        extended_message,
        add_path,
    })
}

impl Setup {
    fn family(self) -> FamilyContext {
        FamilyContext {
            negotiated: true,
            add_path: self.add_path,
            extended_next_hop: true,
        }
    }

    fn limit(self) -> MessageLimit {
        if self.extended_message {
            MessageLimit::Extended
        } else {
            MessageLimit::Standard
        }
    }

    fn encode(self) -> EncodeContext {
        EncodeContext {
            four_octet_as: self.four_octet_as,
            message_limit: self.limit(),
            ipv4_unicast: self.family(),
            ipv6_unicast: self.family(),
        }
    }

    fn decode(self) -> DecodeContext {
        DecodeContext {
            four_octet_as: self.four_octet_as,
            peer_kind: PeerKind::Internal,
            aigp: true,
            ipv4_unicast: self.family(),
            ipv6_unicast: self.family(),
        }
    }
}

fn ipv4_nlri() -> impl Strategy<Value = Vec<Nlri<Ipv4Unicast>>> {
    let prefix =
        (any::<u32>(), 0..=32u8).prop_map(|(bits, length)| Ipv4Prefix::new(bits.into(), length).unwrap());
    vec(
        (prefix, any::<u32>()).prop_map(|(prefix, path_id)| Nlri { prefix, path_id }),
        1..2000,
    )
}

fn ipv6_nlri() -> impl Strategy<Value = Vec<Nlri<Ipv6Unicast>>> {
    let prefix =
        (any::<u128>(), 0..=128u8).prop_map(|(bits, length)| Ipv6Prefix::new(bits.into(), length).unwrap());
    vec(
        (prefix, any::<u32>()).prop_map(|(prefix, path_id)| Nlri { prefix, path_id }),
        1..500,
    )
}

/// The reading side, by family.
trait OfFamily: Family {
    fn field<'a>(nlri: &FamilyNlri<'a>) -> NlriField<'a, Self>;
}

impl OfFamily for Ipv4Unicast {
    fn field<'a>(nlri: &FamilyNlri<'a>) -> NlriField<'a, Self> {
        let FamilyNlri::Ipv4(field) = nlri else {
            panic!("{nlri:?} is not IPv4")
        };
        *field
    }
}

impl OfFamily for Ipv6Unicast {
    fn field<'a>(nlri: &FamilyNlri<'a>) -> NlriField<'a, Self> {
        let FamilyNlri::Ipv6(field) = nlri else {
            panic!("{nlri:?} is not IPv6")
        };
        *field
    }
}

fn check<F: OfFamily>(attributes: &Attributes, nlri: &[Nlri<F>], setup: Setup) {
    let expected: Vec<_> = nlri
        .iter()
        .map(|nlri| {
            if setup.add_path {
                *nlri
            } else {
                Nlri::new(nlri.prefix)
            }
        })
        .collect();
    let mut octets = Vec::new();
    UpdateTemplate::announce(attributes, &setup.encode())
        .unwrap()
        .encode_all(nlri.iter().copied(), &mut octets);
    let mut read = Vec::new();
    for_each_update(&octets, setup, |update| {
        let [reach] = update.reach.as_slice() else {
            panic!("{update:?}")
        };
        assert_eq!(&reach.attributes, attributes);
        read.extend(F::field(&reach.nlri));
    });
    assert_eq!(read, expected);

    octets.clear();
    read.clear();
    UpdateTemplate::withdraw(&setup.encode()).encode_all(nlri.iter().copied(), &mut octets);
    for_each_update(&octets, setup, |update| {
        let [unreach] = update.unreach.as_slice() else {
            panic!("{update:?}")
        };
        assert!(update.reach.is_empty());
        read.extend(F::field(unreach));
    });
    assert_eq!(read, expected);
}

fn for_each_update(mut octets: &[u8], setup: Setup, mut check: impl FnMut(&Update<'_>)) {
    while let Some(frame) = Frame::parse(octets, setup.limit()).unwrap() {
        octets = &octets[frame.total_len()..];
        let update = Update::decode(frame.body, &setup.decode()).unwrap();
        assert_eq!(update.errors, []);
        assert_eq!(update.end_of_rib, None);
        check(&update);
    }
    assert!(octets.is_empty(), "an incomplete message was written");
}

fn setup_and_attributes(ipv6_next_hop: bool) -> impl Strategy<Value = (Setup, Attributes)> {
    any_setup().prop_flat_map(move |setup| (Just(setup), any_attributes(setup.four_octet_as, ipv6_next_hop)))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn ipv4_routes((setup, attributes) in setup_and_attributes(false), nlri in ipv4_nlri()) {
        check(&attributes, &nlri, setup);
    }

    #[test]
    fn ipv4_routes_with_ipv6_next_hops((setup, attributes) in setup_and_attributes(true), nlri in ipv4_nlri()) {
        let mut octets = Vec::new();
        UpdateTemplate::announce(&attributes, &setup.encode()).unwrap().encode_all(nlri.iter().copied(), &mut octets);
        for_each_update(&octets, setup, |update| assert_eq!(update.reach[0].attributes, attributes));
    }

    #[test]
    fn ipv6_routes((setup, attributes) in setup_and_attributes(true), nlri in ipv6_nlri()) {
        check(&attributes, &nlri, setup);
    }
}
