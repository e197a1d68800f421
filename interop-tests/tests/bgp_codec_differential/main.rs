//! Our BGP codec against others, written by other people: what we encode they must read as we meant it, and of
//! messages with one broken attribute the one that knows RFC 7606 must think the same.
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test may panic")]

mod by_bgp_rs;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use calidris_bgp::family::{Family, FamilyPrefix, Ipv4Prefix, Ipv4Unicast, Ipv6Prefix, Ipv6Unicast, Prefix};
use calidris_bgp::wire::attr::type_code::MP_REACH_NLRI;
use calidris_bgp::wire::attr::{
    Aggregator, AsPath, AttributeAction, AttributeErrorKind as Kind, Attributes, Community,
    ExtendedCommunity, Ipv6ExtendedCommunity, LargeCommunity, NextHop, Origin, SegmentKind, UnknownAttribute,
};
use calidris_bgp::wire::context::{DecodeContext, EncodeContext, FamilyContext, PeerKind};
use calidris_bgp::wire::frame::{Frame, MessageLimit};
use calidris_bgp::wire::nlri::{FamilyNlri, Nlri};
use calidris_bgp::wire::update::{Update, UpdateTemplate};
use netgauze_bgp_pkt::BgpMessage;
use netgauze_bgp_pkt::wire::deserializer::BgpParsingContext;
use netgauze_parse_utils::WritablePdu;
use netgauze_parse_utils::reader::SliceReader;
use netgauze_parse_utils::traits::ParseFromWithOneInput;
use rustbgpd_wire::{AsPathSegment, ErrorDisposition, PathAttribute, UpdateMessage};

/// A type code that no codec knows.
const UNKNOWN: u8 = 200;

#[test]
fn rustbgpd_wire_reads_what_we_write() {
    let mut random = Random(1);
    for _ in 0..4000 {
        let sample = Sample::any(&mut random, SegmentKinds::Sequences);
        let read = read_by_rustbgpd(&sample.message(), sample.context.add_path);
        assert_eq!(read, sample.routes(), "{sample:?}");
    }
}

#[test]
fn we_read_what_netgauze_makes_of_what_we_write() {
    let mut random = Random(2);
    for _ in 0..4000 {
        let mut sample = Sample::any(&mut random, SegmentKinds::SequencesAndSets);
        sample.context.add_path = false;
        let message = rewritten_by_netgauze(&sample.message());
        assert_eq!(
            read_by_us(&message, sample.context),
            sample.routes(),
            "{sample:?}"
        );
    }
}

#[test]
fn rustbgpd_wire_judges_broken_attributes_as_we_do() {
    let mut random = Random(3);
    let mut compared: BTreeMap<(Verdict, Verdict), u64> = BTreeMap::new();
    for _ in 0..40_000 {
        let mut sample = Sample::any(&mut random, SegmentKinds::Sequences);
        sample.context.add_path = false;
        let message = with_one_broken_attribute(&sample.message(), &mut random);
        let body = &message[19..];
        let context = sample.context.decode();
        let (ours, kinds) = our_verdict(body, &context);
        let theirs = rustbgpd_verdict(body);
        *compared.entry((ours, theirs)).or_default() += 1;
        if ours != theirs && !kinds.iter().any(|kind| is_checked_later(*kind)) {
            panic!("we say {ours:?} because of {kinds:?}, rustbgpd-wire says {theirs:?}: {body:02x?}");
        }
    }
    println!("{compared:#?}");
    for verdict in [Verdict::Accept, Verdict::TreatAsWithdraw, Verdict::Reset] {
        let agreed = compared.get(&(verdict, verdict)).copied().unwrap_or_default();
        assert!(agreed > 400, "only {agreed} times both said {verdict:?}");
    }
}

/// What rustbgpd-wire leaves to its `validate` instead of judging it while reading.
fn is_checked_later(kind: Kind) -> bool {
    matches!(kind, Kind::Missing | Kind::NextHop)
}

/// What becomes of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Verdict {
    Accept,
    TreatAsWithdraw,
    Reset,
}

fn our_verdict(body: &[u8], context: &DecodeContext) -> (Verdict, Vec<Kind>) {
    match Update::decode(body, context) {
        Err(_) => (Verdict::Reset, vec![]),
        Ok(update) => {
            let kinds = update
                .errors
                .iter()
                .filter(|error| error.action == AttributeAction::TreatAsWithdraw);
            let verdict = if update.treat_as_withdraw {
                Verdict::TreatAsWithdraw
            } else {
                Verdict::Accept
            };
            (verdict, kinds.map(|error| error.kind).collect())
        }
    }
}

fn rustbgpd_verdict(mut body: &[u8]) -> Verdict {
    let length = body.len();
    let parsed = UpdateMessage::decode(&mut body, length)
        .and_then(|message| message.parse_revised(true, true, false, &[]));
    let Ok(parsed) = parsed else {
        return Verdict::Reset;
    };
    let strongest = parsed
        .malformed
        .iter()
        .map(|malformed| match malformed.disposition {
            ErrorDisposition::AttributeDiscard => Verdict::Accept,
            ErrorDisposition::TreatAsWithdraw => Verdict::TreatAsWithdraw,
            _ => Verdict::Reset,
        });
    strongest.max().unwrap_or(Verdict::Accept)
}

/// Changes flags, length or octets of one attribute of a message and puts the lengths right again.
///
/// Three things are left alone because the two codecs read the RFCs differently: the flags of MP_REACH_NLRI (a reset there,
/// treat-as-withdraw here, RFC 7606 section 3 c) and of unknown attributes (unrecognized well-known ones pass there, RFC 4271
/// section 6.3); the Partial bit of non-transitive attributes (treat-as-withdraw there, ignored here, RFC 7606 names only
/// the other two bits); the family of MP_REACH_NLRI (a reset there, ignored here).
fn with_one_broken_attribute(message: &[u8], random: &mut Random) -> Vec<u8> {
    let body = &message[19..];
    let length = usize::from(u16::from_be_bytes([body[2], body[3]]));
    let (mut list, nlri) = (split_attributes(&body[4..4 + length]), &body[4 + length..]);
    let chosen = random.below(list.len());
    let (flags, type_code, value) = &mut list[chosen];
    let transitive = *flags & 0x40 != 0;
    match random.below(5) {
        0 if !matches!(*type_code, MP_REACH_NLRI | UNKNOWN) => {
            *flags ^= [0x80, 0x40, 0xc0, 0x20][random.below(if transitive { 4 } else { 3 })];
        }
        1 => value.truncate(random.below(value.len() + 1)),
        2 => value.extend((0..=random.below(4)).map(|_| random.octet())),
        3 if value.len() > 3 || *type_code != MP_REACH_NLRI => {
            let kept = if *type_code == MP_REACH_NLRI { 3 } else { 0 };
            let Some(last) = value.len().checked_sub(kept + 1) else {
                return message.to_vec();
            };
            let at = kept + random.below(last + 1);
            value[at] = random.octet();
        }
        _ => {
            let repeated = list[random.below(list.len())].clone();
            list.push(repeated);
        }
    }
    let attributes: Vec<u8> = list
        .into_iter()
        .flat_map(|(flags, type_code, value)| {
            let length = u16::try_from(value.len()).unwrap().to_be_bytes();
            [[flags | 0x10, type_code].as_slice(), &length, &value].concat()
        })
        .collect();
    let length = u16::try_from(attributes.len()).unwrap().to_be_bytes();
    [&message[..19], &[0, 0], &length, &attributes, nlri].concat()
}

fn split_attributes(mut list: &[u8]) -> Vec<(u8, u8, Vec<u8>)> {
    let mut attributes = Vec::new();
    while let [flags, type_code, rest @ ..] = list {
        let (length, value) = if flags & 0x10 == 0 {
            (usize::from(rest[0]), &rest[1..])
        } else {
            (usize::from(u16::from_be_bytes([rest[0], rest[1]])), &rest[2..])
        };
        attributes.push((*flags, *type_code, value[..length].to_vec()));
        list = &value[length..];
    }
    attributes
}

/// The routes of one message in a form all codecs can be brought to.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Routes {
    attributes: Attributes,
    announced: Vec<(Prefix, u32)>,
}

fn read_by_rustbgpd(message: &[u8], add_path: bool) -> Routes {
    use rustbgpd_wire::{Afi, Safi};
    let mut body = &message[19..];
    let length = body.len();
    let families = [(Afi::Ipv4, Safi::Unicast), (Afi::Ipv6, Safi::Unicast)];
    let families = if add_path { families.as_slice() } else { &[] };
    let parsed = UpdateMessage::decode(&mut body, length).unwrap();
    let parsed = parsed.parse_revised(true, true, add_path, families).unwrap();
    assert_eq!(parsed.malformed, []);
    assert_eq!(parsed.update.withdrawn, []);
    let mut attributes = Attributes::default();
    let mut announced: Vec<(Prefix, u32)> = Vec::new();
    for entry in &parsed.update.announced {
        announced.push((
            Prefix::new(entry.prefix.addr.into(), entry.prefix.len).unwrap(),
            entry.path_id,
        ));
    }
    for attribute in parsed.update.attributes {
        match attribute {
            PathAttribute::MpReachNlri(reach) => {
                attributes.next_hop = Some(match (reach.next_hop, reach.link_local_next_hop) {
                    (IpAddr::V6(global), Some(link_local)) => NextHop::V6WithLinkLocal { global, link_local },
                    (address, _) => address.into(),
                });
                for entry in reach.announced {
                    let prefix = match entry.prefix {
                        rustbgpd_wire::Prefix::V4(prefix) => Prefix::new(prefix.addr.into(), prefix.len),
                        rustbgpd_wire::Prefix::V6(prefix) => Prefix::new(prefix.addr.into(), prefix.len),
                    };
                    announced.push((prefix.unwrap(), entry.path_id));
                }
            }
            other => set_attribute(&mut attributes, other),
        }
    }
    Routes {
        attributes,
        announced,
    }
}

fn set_attribute(attributes: &mut Attributes, attribute: PathAttribute) {
    match attribute {
        PathAttribute::Origin(origin) => {
            attributes.origin = [Origin::Igp, Origin::Egp, Origin::Incomplete][origin as usize];
        }
        PathAttribute::AsPath(path) => {
            let segments = path.segments.iter().map(|segment| match segment {
                AsPathSegment::AsSet(asns) => (SegmentKind::Set, asns.as_slice()),
                AsPathSegment::AsSequence(asns) => (SegmentKind::Sequence, asns.as_slice()),
            });
            attributes.as_path = AsPath::from_segments(segments);
        }
        PathAttribute::NextHop(address) => attributes.next_hop = Some(NextHop::V4(address)),
        PathAttribute::Med(med) => attributes.med = Some(med),
        PathAttribute::LocalPref(local_pref) => attributes.local_pref = Some(local_pref),
        PathAttribute::AtomicAggregate => attributes.atomic_aggregate = true,
        PathAttribute::Aggregator(aggregator) => {
            attributes.aggregator = Some(Aggregator {
                asn: aggregator.asn,
                address: aggregator.router_id,
            });
        }
        PathAttribute::Communities(communities) => {
            attributes.communities = communities.into_iter().map(Community).collect();
        }
        PathAttribute::ExtendedCommunities(communities) => {
            let communities = communities
                .into_iter()
                .map(|c| ExtendedCommunity(c.as_u64().to_be_bytes()));
            attributes.extended_communities = communities.collect();
        }
        PathAttribute::Ipv6ExtendedCommunities(communities) => {
            let communities = communities
                .into_iter()
                .map(|c| Ipv6ExtendedCommunity(*c.as_bytes()));
            attributes.ipv6_extended_communities = communities.collect();
        }
        PathAttribute::LargeCommunities(communities) => {
            let communities = communities.into_iter().map(|c| LargeCommunity {
                global_administrator: c.global_admin,
                local_data_1: c.local_data1,
                local_data_2: c.local_data2,
            });
            attributes.large_communities = communities.collect();
        }
        PathAttribute::OriginatorId(originator_id) => attributes.originator_id = Some(originator_id),
        PathAttribute::ClusterList(clusters) => attributes.cluster_list = clusters.into(),
        PathAttribute::OnlyToCustomer(otc) => attributes.otc = Some(otc),
        PathAttribute::Unknown(raw) => {
            assert_eq!(raw.flags & 0xe0, 0xe0, "passed on without the Partial bit");
            let unknown = UnknownAttribute {
                type_code: raw.type_code,
                value: raw.data.as_ref().into(),
            };
            attributes.unknown = [unknown].into();
        }
        other => panic!("not sent: {other:?}"),
    }
}

/// Lets netgauze read a message and write it in its own way.
fn rewritten_by_netgauze(message: &[u8]) -> Vec<u8> {
    let mut context = BgpParsingContext::default();
    let parsed = BgpMessage::parse(&mut SliceReader::new(message), &mut context)
        .unwrap_or_else(|error| panic!("{error}: {message:02x?}"));
    let BgpMessage::Update(update) = &parsed else {
        panic!("{parsed:?}")
    };
    let unknown = update.path_attributes().iter().filter(|attribute| {
        matches!(
            attribute.value(),
            netgauze_bgp_pkt::path_attribute::PathAttributeValue::UnknownAttribute(_)
        )
    });
    assert!(
        unknown.count() <= 1,
        "a known attribute was only passed through: {update:?}"
    );
    let mut octets = Vec::new();
    parsed.write(&mut octets).unwrap();
    octets
}

fn read_by_us(message: &[u8], context: Context) -> Routes {
    let frame = Frame::parse(message, MessageLimit::Standard).unwrap().unwrap();
    let update = Update::decode(frame.body, &context.decode()).unwrap();
    assert_eq!(update.errors, []);
    let [reach] = update.reach.as_slice() else {
        panic!("{update:?}")
    };
    let announced = match reach.nlri {
        FamilyNlri::Ipv4(field) => field
            .iter()
            .map(|nlri| (nlri.prefix.into(), nlri.path_id))
            .collect(),
        FamilyNlri::Ipv6(field) => field
            .iter()
            .map(|nlri| (nlri.prefix.into(), nlri.path_id))
            .collect(),
    };
    Routes {
        attributes: reach.attributes.clone(),
        announced,
    }
}

/// How a session is set up; four-octet AS numbers always.
#[derive(Clone, Copy, Debug)]
struct Context {
    add_path: bool,
}

impl Context {
    fn family(self) -> FamilyContext {
        FamilyContext {
            negotiated: true,
            add_path: self.add_path,
            extended_next_hop: false,
        }
    }

    fn encode(self) -> EncodeContext {
        EncodeContext {
            four_octet_as: true,
            message_limit: MessageLimit::Standard,
            ipv4_unicast: self.family(),
            ipv6_unicast: self.family(),
        }
    }

    fn decode(self) -> DecodeContext {
        DecodeContext {
            four_octet_as: true,
            peer_kind: PeerKind::Internal,
            aigp: true,
            ipv4_unicast: self.family(),
            ipv6_unicast: self.family(),
        }
    }
}

/// Which kinds of path segments a codec handles as we do.
#[derive(Clone, Copy, Debug)]
enum SegmentKinds {
    /// `rustbgpd-wire` treats sets as withdraw (RFC 9774) and does not know confederations.
    Sequences,
    /// `netgauze-bgp-pkt` does not know confederations.
    SequencesAndSets,
}

/// Some routes to announce.
#[derive(Clone, Debug)]
struct Sample {
    context: Context,
    attributes: Attributes,
    prefixes: Vec<(Prefix, u32)>,
}

impl Sample {
    fn any(random: &mut Random, kinds: SegmentKinds) -> Self {
        let ipv6 = random.one_in(2);
        let prefixes = (0..=random.below(5))
            .map(|_| (any_prefix(ipv6, random), random.number()))
            .collect();
        let context = Context {
            add_path: random.one_in(3),
        };
        Self {
            context,
            attributes: any_attributes(ipv6, kinds, random),
            prefixes,
        }
    }

    fn message(&self) -> Vec<u8> {
        self.message_in(&self.context.encode())
    }

    fn message_in(&self, context: &EncodeContext) -> Vec<u8> {
        if matches!(self.attributes.next_hop, Some(NextHop::V4(_))) {
            let template = UpdateTemplate::<Ipv4Unicast>::announce(&self.attributes, context);
            self.encode(&template.unwrap())
        } else {
            let template = UpdateTemplate::<Ipv6Unicast>::announce(&self.attributes, context);
            self.encode(&template.unwrap())
        }
    }

    fn withdrawal(&self) -> Vec<u8> {
        if matches!(self.attributes.next_hop, Some(NextHop::V4(_))) {
            self.encode(&UpdateTemplate::<Ipv4Unicast>::withdraw(&self.context.encode()))
        } else {
            self.encode(&UpdateTemplate::<Ipv6Unicast>::withdraw(&self.context.encode()))
        }
    }

    fn encode<F: Family>(&self, template: &UpdateTemplate<F>) -> Vec<u8> {
        let nlri = self.prefixes.iter().map(|(prefix, path_id)| Nlri {
            prefix: F::Prefix::from_prefix(*prefix).unwrap(),
            path_id: *path_id,
        });
        let mut out = Vec::new();
        assert_eq!(template.encode_all(nlri, &mut out), 1);
        out
    }

    fn routes(&self) -> Routes {
        let path_id = |path_id| if self.context.add_path { path_id } else { 0 };
        let announced = self
            .prefixes
            .iter()
            .map(|(prefix, id)| (*prefix, path_id(*id)))
            .collect();
        Routes {
            attributes: self.attributes.clone(),
            announced,
        }
    }
}

fn any_prefix(ipv6: bool, random: &mut Random) -> Prefix {
    if ipv6 {
        let length = u8::try_from(random.below(129)).unwrap();
        let address = Ipv6Addr::from((u128::from(random.next()) << 64) | u128::from(random.next()));
        // Some codecs refuse multicast prefixes.
        let address = Ipv6Addr::from(u128::from(address) & !(0b11 << 126) | (1 << 125));
        Prefix::V6(Ipv6Prefix::new(address, length.max(3)).unwrap())
    } else {
        let length = u8::try_from(1 + random.below(32)).unwrap();
        Prefix::V4(Ipv4Prefix::new(Ipv4Addr::from(random.number() >> 1), length).unwrap())
    }
}

fn any_attributes(ipv6: bool, kinds: SegmentKinds, random: &mut Random) -> Attributes {
    let next_hop = match (ipv6, random.one_in(2)) {
        (false, _) => NextHop::V4(Ipv4Addr::from((random.number() >> 2) | (1 << 24))),
        (true, false) => NextHop::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1)),
        (true, true) => NextHop::V6WithLinkLocal {
            global: Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1),
            link_local: Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1),
        },
    };
    let optional = |random: &mut Random| random.one_in(2).then(|| random.number());
    let unknown = random.one_in(3).then(|| UnknownAttribute {
        type_code: UNKNOWN,
        value: (0..random.below(300)).map(|_| random.octet()).collect(),
    });
    let some = |random: &mut Random| 0..random.below(4);
    Attributes {
        origin: [Origin::Igp, Origin::Egp, Origin::Incomplete][random.below(3)],
        as_path: any_as_path(kinds, random),
        next_hop: Some(next_hop),
        med: optional(random),
        local_pref: optional(random),
        atomic_aggregate: random.one_in(2),
        aggregator: optional(random).map(|asn| Aggregator {
            asn: asn.max(1),
            address: Ipv4Addr::new(10, 0, 0, 1),
        }),
        communities: (0..random.below(90))
            .map(|_| Community(random.number()))
            .collect(),
        extended_communities: some(random)
            .map(|_| ExtendedCommunity(route_target(random.number())))
            .collect(),
        ipv6_extended_communities: some(random).map(|_| ipv6_route_target(random.octet())).collect(),
        large_communities: some(random)
            .map(|_| LargeCommunity {
                global_administrator: random.number(),
                local_data_1: 1,
                local_data_2: 2,
            })
            .collect(),
        originator_id: optional(random).map(Ipv4Addr::from),
        cluster_list: some(random).map(|_| Ipv4Addr::from(random.number())).collect(),
        otc: optional(random),
        unknown: unknown.into_iter().collect(),
        ..Attributes::default()
    }
}

fn route_target(value: u32) -> [u8; 8] {
    let [a, b, c, d] = value.to_be_bytes();
    [0, 2, 0xfd, 0xe8, a, b, c, d]
}

fn ipv6_route_target(value: u8) -> Ipv6ExtendedCommunity {
    let mut octets = [0; 20];
    (octets[1], octets[2], octets[3], octets[19]) = (2, 0x20, 1, value);
    Ipv6ExtendedCommunity(octets)
}

fn any_as_path(kinds: SegmentKinds, random: &mut Random) -> AsPath {
    let segments: Vec<(SegmentKind, Vec<u32>)> = (0..random.below(4))
        .map(|_| {
            let set = matches!(kinds, SegmentKinds::SequencesAndSets) && random.one_in(3);
            let kind = if set {
                SegmentKind::Set
            } else {
                SegmentKind::Sequence
            };
            (
                kind,
                (0..=random.below(20)).map(|_| random.number().max(1)).collect(),
            )
        })
        .collect();
    AsPath::from_segments(segments.iter().map(|(kind, asns)| (*kind, asns.as_slice())))
}

/// SplitMix64.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn number(&mut self) -> u32 {
        u32::try_from(self.next() >> 32).unwrap()
    }

    fn octet(&mut self) -> u8 {
        self.next().to_be_bytes()[0]
    }

    fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.next() % u64::try_from(end.max(1)).unwrap()).unwrap()
    }

    fn one_in(&mut self, chances: usize) -> bool {
        self.below(chances) == 0
    }
}
