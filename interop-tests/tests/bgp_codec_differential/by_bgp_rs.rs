//! `bgp-rs` as a third reader, inside a fence.
//!
//! It is old, and wrong or worse (it panics) about much of what came after it. What lies inside the fence it reads right, and so is
//! compared:
//!
//! - OPEN with the capabilities 1, 2, 65 and 69 of families it knows, any other as octets, in the form before RFC 9072;
//! - NOTIFICATION, and ROUTE-REFRESH of families it knows;
//! - UPDATE with IPv4 and IPv6 unicast routes, and the attributes it knows.
//!
//! Outside, and why:
//!
//! - *ADD-PATH*: it guesses from the octets whether identifiers are there, and takes a default route that others follow for one.
//! - *Some AS_PATHs of four octets a number*: it tries two octets first, whatever was agreed on, and keeps that reading if it happens to end with
//!   the attribute ([`two_octets_would_do`]); `[256]` it reads as `[0]`. Confederations make it drop the attribute.
//! - *Attributes it does not know* (OTC, any unknown one) it drops; of IPv6 extended communities it reads the first.
//! - *Anything malformed*: it swallows errors, or panics. No broken message is given to it.
//! - *Other families*: several make it panic.

use std::net::{Ipv4Addr, Ipv6Addr};

use bgp_rs::{AFI, Identifier, Message, NLRIEncoding, OpenCapability, OpenParameter, Reader, SAFI, Segment};
use calidris_bgp::family::AfiSafi;
use calidris_bgp::wire::capability::{AddPath, AddPathDirection, Capabilities, Capability};
use calidris_bgp::wire::notification::{Notification, NotificationCode};
use calidris_bgp::wire::open::{AS_TRANS, Open};
use calidris_bgp::wire::refresh::{RefreshSubtype, RouteRefresh};

use super::*;

#[test]
fn bgp_rs_reads_our_updates() {
    let mut random = Random(4);
    let mut outside = 0;
    for _ in 0..4000 {
        let mut sample = any_sample(&mut random);
        let message = sample.message();
        if two_octets_would_do(&attribute(&message, Identifier::AS_PATH)) {
            outside += 1;
            continue;
        }
        let read = routes_of(read(&message));
        // What it drops.
        sample.attributes.unknown = [].into();
        sample.attributes.otc = None;
        assert_eq!(read, sample.routes(), "{sample:?}");
    }
    assert!(outside < 1000, "{outside} of 4000 are outside the fence");
}

/// To a speaker that knows two octets only: AS_TRANS in AS_PATH, the truth in AS4_PATH (RFC 6793 §4.2.2).
#[test]
fn bgp_rs_reads_what_we_write_for_old_speakers() {
    let mut random = Random(5);
    let mut with_truth = 0;
    for _ in 0..4000 {
        let sample = any_sample(&mut random);
        let context = EncodeContext {
            four_octet_as: false,
            ..sample.context.encode()
        };
        let message = sample.message_in(&context);
        let truth = attribute(&message, Identifier::AS4_PATH);
        if two_octets_would_do(&truth) {
            continue;
        }
        let update = read(&message);
        let whole = segments(&sample.attributes.as_path);
        let mut old = whole.clone();
        for asn in old.iter_mut().flat_map(|(_, asns)| asns) {
            *asn = u16::try_from(*asn).map_or(AS_TRANS.into(), u32::from);
        }
        assert_eq!(path(&update, Identifier::AS_PATH), Some(old), "{sample:?}");
        if let Some(path) = path(&update, Identifier::AS4_PATH) {
            with_truth += 1;
            assert_eq!(path, whole, "{sample:?}");
        }
    }
    assert!(with_truth > 1000, "only {with_truth} of 4000 with AS4_PATH");
}

#[test]
fn bgp_rs_reads_our_withdrawals() {
    let mut random = Random(6);
    for _ in 0..2000 {
        let sample = any_sample(&mut random);
        let mut update = read(&sample.withdrawal());
        update.normalize();
        let withdrawn: Vec<_> = update.withdrawn_routes.iter().map(prefix).collect();
        let wanted: Vec<_> = sample.prefixes.iter().map(|(prefix, _)| *prefix).collect();
        assert_eq!(withdrawn, wanted);
    }
}

#[test]
fn bgp_rs_reads_our_opens() {
    let mut random = Random(7);
    for _ in 0..4000 {
        let open = any_open(&mut random);
        let mut message = Vec::new();
        open.encode(&mut message).unwrap();
        let Message::Open(read) = heard(&message) else {
            panic!("{message:02x?}")
        };
        assert_eq!((read.version, read.peer_asn), (4, open.my_as));
        assert_eq!(read.hold_timer, open.hold_time);
        assert_eq!(Ipv4Addr::from(read.identifier), open.bgp_identifier);
        let capabilities = read.parameters.into_iter().flat_map(|parameter| match parameter {
            OpenParameter::Capabilities(capabilities) => capabilities,
            OpenParameter::Unknown { .. } => panic!("{message:02x?}"),
        });
        let capabilities: Vec<Capability> = capabilities.map(capability).collect();
        assert_eq!(Capabilities::new(capabilities), open.capabilities);
    }
}

#[test]
fn bgp_rs_reads_our_notifications_and_refreshes() {
    let mut random = Random(8);
    for _ in 0..2000 {
        let code = NotificationCode::from_numbers(random.octet(), random.octet());
        let data: Vec<u8> = (0..random.below(60)).map(|_| random.octet()).collect();
        let mut message = Vec::new();
        Notification::new(code, &data).encode(&mut message);
        let Message::Notification(read) = heard(&message) else {
            panic!("{message:02x?}")
        };
        assert_eq!(
            ((read.major_err_code, read.minor_err_code), read.data),
            (code.numbers(), data)
        );
    }
    for (family, afi) in FAMILIES {
        for (subtype, number) in [
            (RefreshSubtype::Request, 0),
            (RefreshSubtype::BeginOfRefresh, 1),
            (RefreshSubtype::EndOfRefresh, 2),
        ] {
            let mut message = Vec::new();
            RouteRefresh { family, subtype }.encode(&mut message);
            let Message::RouteRefresh(read) = heard(&message) else {
                panic!("{message:02x?}")
            };
            assert_eq!((read.afi, read.safi, read.subtype), (afi, SAFI::Unicast, number));
        }
    }
}

const FAMILIES: [(AfiSafi, AFI); 2] = [
    (AfiSafi::IPV4_UNICAST, AFI::IPV4),
    (AfiSafi::IPV6_UNICAST, AFI::IPV6),
];

fn any_sample(random: &mut Random) -> Sample {
    let mut sample = Sample::any(random, SegmentKinds::SequencesAndSets);
    sample.context.add_path = false;
    let first = sample
        .attributes
        .ipv6_extended_communities
        .as_slice()
        .first()
        .copied();
    sample.attributes.ipv6_extended_communities = first.into_iter().collect();
    sample
}

fn any_open(random: &mut Random) -> Open {
    let asn = random.number().max(1);
    let mut capabilities = vec![Capability::FourOctetAs(asn)];
    for (family, _) in FAMILIES {
        if random.one_in(2) {
            capabilities.push(Capability::Multiprotocol(family));
        }
    }
    if random.one_in(2) {
        capabilities.push(Capability::RouteRefresh);
    }
    let direction = [
        AddPathDirection::Receive,
        AddPathDirection::Send,
        AddPathDirection::Both,
    ][random.below(3)];
    let entries = FAMILIES.map(|(family, _)| AddPath { family, direction });
    capabilities.push(Capability::AddPath(entries[..random.below(3)].to_vec()));
    for _ in 0..random.below(3) {
        let value = (0..random.below(20)).map(|_| random.octet()).collect();
        capabilities.push(Capability::Unknown { code: 200, value });
    }
    let hold_time = u16::try_from(random.below(60_000)).unwrap().max(3);
    let identifier = Ipv4Addr::from(random.number().max(1));
    Open::new(asn, hold_time, identifier, Capabilities::new(capabilities))
}

fn heard(message: &[u8]) -> Message {
    Reader::new(message).read().unwrap().1
}

fn read(message: &[u8]) -> bgp_rs::Update {
    match heard(message) {
        Message::Update(update) => update,
        other => panic!("{other:?}"),
    }
}

/// The value of an attribute; empty when it is not there.
fn attribute(message: &[u8], identifier: Identifier) -> Vec<u8> {
    let body = &message[19..];
    let length = usize::from(u16::from_be_bytes([body[2], body[3]]));
    let list = split_attributes(&body[4..4 + length]);
    let found = list.into_iter().find(|(_, code, _)| *code == identifier as u8);
    found.map(|(_, _, value)| value).unwrap_or_default()
}

/// Whether `bgp-rs` takes a path of four octets a number for one of two, or stumbles at trying: it reads segments with two octets a number, until
/// one does not begin like a segment or the path is over, and looks whether that is the end.
fn two_octets_would_do(path: &[u8]) -> bool {
    let mut at = 0;
    while at < path.len() {
        let [kind, count, ..] = path[at..] else {
            // One octet is left: it reads beyond the end.
            return true;
        };
        if at > 0 && !(1..=2).contains(&kind) {
            return false;
        }
        at += 2 + usize::from(count) * 2;
    }
    !path.is_empty() && at == path.len()
}

type Segments = Vec<(SegmentKind, Vec<u32>)>;

fn segments(path: &AsPath) -> Segments {
    path.segments()
        .map(|segment| (segment.kind, segment.asns().collect()))
        .collect()
}

fn path(update: &bgp_rs::Update, identifier: Identifier) -> Option<Segments> {
    let path = match update.get(identifier)? {
        bgp_rs::PathAttribute::AS_PATH(path) | bgp_rs::PathAttribute::AS4_PATH(path) => path,
        other => panic!("{other:?}"),
    };
    let segments = path.segments.iter().map(|segment| match segment {
        Segment::AS_SEQUENCE(asns) => (SegmentKind::Sequence, asns.clone()),
        Segment::AS_SET(asns) => (SegmentKind::Set, asns.clone()),
    });
    Some(segments.collect())
}

fn prefix(route: &NLRIEncoding) -> Prefix {
    let NLRIEncoding::IP(prefix) = route else {
        panic!("{route:?}")
    };
    Prefix::new(IpAddr::from(prefix), prefix.length).unwrap()
}

fn routes_of(update: bgp_rs::Update) -> Routes {
    use bgp_rs::PathAttribute as Read;
    let mut attributes = Attributes::default();
    let mut routes = update.announced_routes.clone();
    if let Some(segments) = path(&update, Identifier::AS_PATH) {
        let segments = segments.iter().map(|(kind, asns)| (*kind, asns.as_slice()));
        attributes.as_path = AsPath::from_segments(segments);
    }
    for attribute in update.attributes {
        match attribute {
            Read::AS_PATH(_) => {}
            Read::ORIGIN(origin) => {
                attributes.origin = match origin {
                    bgp_rs::Origin::IGP => Origin::Igp,
                    bgp_rs::Origin::EGP => Origin::Egp,
                    bgp_rs::Origin::INCOMPLETE => Origin::Incomplete,
                };
            }
            Read::NEXT_HOP(address) => attributes.next_hop = Some(address.into()),
            Read::MULTI_EXIT_DISC(med) => attributes.med = Some(med),
            Read::LOCAL_PREF(local_pref) => attributes.local_pref = Some(local_pref),
            Read::ATOMIC_AGGREGATOR => attributes.atomic_aggregate = true,
            Read::AGGREGATOR((asn, address)) => attributes.aggregator = Some(Aggregator { asn, address }),
            Read::COMMUNITY(list) => attributes.communities = list.into_iter().map(Community).collect(),
            Read::ORIGINATOR_ID(id) => attributes.originator_id = Some(id.into()),
            Read::CLUSTER_LIST(list) => {
                attributes.cluster_list = list.into_iter().map(Ipv4Addr::from).collect();
            }
            Read::EXTENDED_COMMUNITIES(list) => {
                let list = list.into_iter().map(u64::to_be_bytes).map(ExtendedCommunity);
                attributes.extended_communities = list.collect();
            }
            Read::IPV6_SPECIFIC_EXTENDED_COMMUNITY((kind, subtype, global, local)) => {
                let octets = [&[kind, subtype][..], &global.octets(), &local.to_be_bytes()].concat();
                let community = Ipv6ExtendedCommunity(octets.try_into().unwrap());
                attributes.ipv6_extended_communities = [community].into_iter().collect();
            }
            Read::LARGE_COMMUNITY(list) => {
                let list = list.into_iter().map(|(a, b, c)| LargeCommunity {
                    global_administrator: a,
                    local_data_1: b,
                    local_data_2: c,
                });
                attributes.large_communities = list.collect();
            }
            Read::MP_REACH_NLRI(reach) => {
                let address = |octets: &[u8]| Ipv6Addr::from(<[u8; 16]>::try_from(octets).unwrap());
                attributes.next_hop = Some(match reach.next_hop.split_at(16) {
                    (global, []) => NextHop::V6(address(global)),
                    (global, link_local) => NextHop::V6WithLinkLocal {
                        global: address(global),
                        link_local: address(link_local),
                    },
                });
                routes.extend(reach.announced_routes);
            }
            other => panic!("not sent: {other:?}"),
        }
    }
    Routes {
        attributes,
        announced: routes.iter().map(|route| (prefix(route), 0)).collect(),
    }
}

fn family(afi: AFI, safi: SAFI) -> AfiSafi {
    AfiSafi {
        afi: afi as u16,
        safi: safi as u8,
    }
}

fn capability(read: OpenCapability) -> Capability {
    match read {
        OpenCapability::MultiProtocol((afi, safi)) => Capability::Multiprotocol(family(afi, safi)),
        OpenCapability::RouteRefresh => Capability::RouteRefresh,
        OpenCapability::FourByteASN(asn) => Capability::FourOctetAs(asn),
        OpenCapability::AddPath(entries) => {
            let entries = entries.into_iter().map(|(afi, safi, direction)| AddPath {
                family: family(afi, safi),
                direction: match direction {
                    bgp_rs::AddPathDirection::ReceivePaths => AddPathDirection::Receive,
                    bgp_rs::AddPathDirection::SendPaths => AddPathDirection::Send,
                    bgp_rs::AddPathDirection::SendReceivePaths => AddPathDirection::Both,
                },
            });
            Capability::AddPath(entries.collect())
        }
        OpenCapability::Unknown { cap_code, value, .. } => Capability::Unknown {
            code: cap_code,
            value,
        },
        OpenCapability::OutboundRouteFiltering(_) => panic!("not sent: {read:?}"),
    }
}
