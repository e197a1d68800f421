//! Mutated messages of every type: nothing may panic, and whatever is accepted must read back equal after encoding.
//!
//! `CALIDRIS_FUZZ_MESSAGES` sets how many (default 200,000), `CALIDRIS_FUZZ_SEED` where the sequence begins. A failure
//! prints the message and the context, which reproduce it.
#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test may panic")]

use std::fmt::Write;
use std::net::Ipv4Addr;

use calidris_bgp::family::{AfiSafi, Family, Ipv4Prefix, Ipv4Unicast, Ipv6Prefix, Ipv6Unicast};
use calidris_bgp::wire::Message;
use calidris_bgp::wire::attr::{
    Aggregator, AsPath, Attributes, Community, ExtendedCommunity, LargeCommunity, NextHop, SegmentKind,
    UnknownAttribute,
};
use calidris_bgp::wire::capability::{
    AddPath, AddPathDirection, Capabilities, Capability, ExtendedNextHop, GracefulRestart,
    GracefulRestartFamily, LongLivedGracefulRestart, Role,
};
use calidris_bgp::wire::context::{DecodeContext, EncodeContext, FamilyContext, PeerKind};
use calidris_bgp::wire::frame::{Frame, MessageLimit, MessageType, encode_keepalive};
use calidris_bgp::wire::nlri::{FamilyNlri, Nlri, NlriField};
use calidris_bgp::wire::notification::{CeaseError, Notification};
use calidris_bgp::wire::open::Open;
use calidris_bgp::wire::refresh::{RefreshSubtype, RouteRefresh};
use calidris_bgp::wire::update::{Update, UpdateTemplate, encode_end_of_rib};

#[test]
fn mutated_messages_are_refused_or_understood() {
    let messages = from_environment("CALIDRIS_FUZZ_MESSAGES").unwrap_or(200_000);
    let seed = from_environment("CALIDRIS_FUZZ_SEED").unwrap_or(1);
    let mut random = Random(seed);
    let seeds = seeds();
    let mut outcomes = Outcomes::default();
    for _ in 0..messages {
        let message = mutated(&seeds, &mut random);
        let context = any_context(&mut random);
        let reproduced = Reproduction {
            message: &message,
            context: &context,
        };
        judge(&message, &context, &mut outcomes);
        std::mem::forget(reproduced);
    }
    println!("{outcomes:?}");
    // The mutations must reach every depth, or the test shows nothing.
    if messages >= 10_000 {
        let Outcomes {
            incomplete,
            refused,
            open,
            update,
            withdrawn,
            other,
        } = outcomes;
        for count in [incomplete, refused, open, update, withdrawn, other] {
            assert!(count > messages / 1000, "{outcomes:?}");
        }
    }
}

fn from_environment(name: &str) -> Option<u64> {
    std::env::var(name)
        .ok()
        .map(|text| text.parse().expect("a number"))
}

/// Tells on panic what was being judged.
struct Reproduction<'a> {
    message: &'a [u8],
    context: &'a DecodeContext,
}

impl Drop for Reproduction<'_> {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            return;
        }
        let mut hex = String::new();
        for octet in self.message {
            write!(hex, "{octet:02x}").unwrap();
        }
        println!("message {hex}\ncontext {:?}", self.context);
    }
}

#[derive(Clone, Copy, Debug, Default)]
struct Outcomes {
    incomplete: u64,
    refused: u64,
    open: u64,
    update: u64,
    withdrawn: u64,
    other: u64,
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

    fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.next() % u64::try_from(end.max(1)).unwrap()).unwrap()
    }

    fn octet(&mut self) -> u8 {
        self.next().to_be_bytes()[0]
    }

    fn one_in(&mut self, chances: usize) -> bool {
        self.below(chances) == 0
    }
}

fn any_context(random: &mut Random) -> DecodeContext {
    let mut family = || FamilyContext {
        negotiated: !random.one_in(8),
        add_path: random.one_in(4),
        extended_next_hop: random.one_in(2),
    };
    let (ipv4_unicast, ipv6_unicast) = (family(), family());
    let peer_kind = [PeerKind::External, PeerKind::Internal, PeerKind::Confederation][random.below(3)];
    DecodeContext {
        four_octet_as: !random.one_in(3),
        peer_kind,
        aigp: random.one_in(2),
        ipv4_unicast,
        ipv6_unicast,
    }
}

fn mutated(seeds: &[Vec<u8>], random: &mut Random) -> Vec<u8> {
    let mut message = seeds[random.below(seeds.len())].clone();
    for _ in 0..random.below(5) {
        mutate(&mut message, &seeds[random.below(seeds.len())], random);
    }
    // Mostly the header is right, so that what is inside is reached.
    if !random.one_in(16) && message.len() >= 19 {
        let length = u16::try_from(message.len()).unwrap_or(u16::MAX).to_be_bytes();
        message[..16].fill(0xff);
        message[16..18].copy_from_slice(&length);
    }
    message
}

fn mutate(message: &mut Vec<u8>, other: &[u8], random: &mut Random) {
    if message.is_empty() {
        return;
    }
    // Past the header as a rule.
    let start = if random.one_in(16) {
        0
    } else {
        19.min(message.len() - 1)
    };
    let at = start + random.below(message.len() - start);
    match random.below(8) {
        0 => message[at] ^= 1 << random.below(8),
        1 => message[at] = random.octet(),
        2 => message[at] = [0, 1, 2, 4, 14, 15, 16, 32, 33, 127, 128, 129, 255][random.below(13)],
        3 => message[at] = message[at].wrapping_add([1, 255][random.below(2)]),
        4 => message.truncate(at),
        5 => message.insert(at, random.octet()),
        6 => {
            message.remove(at);
        }
        _ => {
            let from = random.below(other.len());
            let count = random.below(40).min(other.len() - from);
            message.splice(at..at, other[from..from + count].iter().copied());
        }
    }
}

fn judge(message: &[u8], context: &DecodeContext, outcomes: &mut Outcomes) {
    let frame = match Frame::parse(message, MessageLimit::Extended) {
        Ok(Some(frame)) => frame,
        Ok(None) => {
            outcomes.incomplete += 1;
            return;
        }
        Err(error) => {
            assert!((1..=3).contains(&error.code().numbers().1));
            outcomes.refused += 1;
            return;
        }
    };
    match Message::decode(frame) {
        Err(error) => {
            assert!(!error.to_string().is_empty());
            outcomes.refused += 1;
        }
        Ok(Message::Open(open)) => {
            outcomes.open += 1;
            judge_open(&open);
        }
        Ok(Message::Update(body)) => match Update::decode(body, context) {
            Ok(update) => {
                outcomes.update += 1;
                outcomes.withdrawn += u64::from(update.treat_as_withdraw);
                judge_update(&update, context);
            }
            Err(error) => {
                assert_eq!(error.code().numbers().0, 3);
                outcomes.refused += 1;
            }
        },
        Ok(Message::Notification(notification)) => {
            outcomes.other += 1;
            assert!(!notification.to_string().is_empty());
            if frame.total_len() <= 4096 {
                let mut out = Vec::new();
                notification.encode(&mut out);
                assert_eq!(out[19..], *frame.body);
            }
        }
        Ok(Message::RouteRefresh(refresh)) => {
            outcomes.other += 1;
            let mut out = Vec::new();
            refresh.encode(&mut out);
            assert_eq!(RouteRefresh::decode(&out[19..]), Ok(refresh));
        }
        Ok(Message::Keepalive) => outcomes.other += 1,
    }
}

fn judge_open(open: &Open) {
    let _ = open.capabilities.role();
    for family in [AfiSafi::IPV4_UNICAST, AfiSafi::IPV6_UNICAST] {
        let _ = open.capabilities.add_path(family);
    }
    let _ = open.capabilities.long_lived_graceful_restart();
    let mut out = Vec::new();
    // Many capabilities in many parameters may not fit into one message when packed into one.
    if open.encode(&mut out).is_ok() {
        let frame = Frame::parse(&out, MessageLimit::Standard).unwrap().unwrap();
        assert_eq!(frame.message_type, MessageType::Open);
        assert_eq!(Open::decode(frame.body).as_ref(), Ok(open));
    }
}

fn judge_update(update: &Update<'_>, context: &DecodeContext) {
    assert!(!update.treat_as_withdraw || update.reach.is_empty());
    assert!(update.errors.len() <= 16);
    for nlri in &update.unreach {
        match nlri {
            FamilyNlri::Ipv4(field) => withdraws::<Ipv4Unicast>(*field, context),
            FamilyNlri::Ipv6(field) => withdraws::<Ipv6Unicast>(*field, context),
        }
    }
    for reach in &update.reach {
        let path = &reach.attributes.as_path;
        assert!(path.path_length() <= path.asns().count());
        assert!(path.neighbor_as() != Some(0) && !path.contains(0));
        match reach.nlri {
            FamilyNlri::Ipv4(field) => announces::<Ipv4Unicast>(&reach.attributes, field, context),
            FamilyNlri::Ipv6(field) => announces::<Ipv6Unicast>(&reach.attributes, field, context),
        }
    }
}

fn encode_context(context: &DecodeContext) -> EncodeContext {
    EncodeContext {
        four_octet_as: true,
        message_limit: MessageLimit::Extended,
        ipv4_unicast: FamilyContext {
            extended_next_hop: true,
            ..context.ipv4_unicast
        },
        ipv6_unicast: context.ipv6_unicast,
    }
}

fn withdraws<F: Family>(field: NlriField<'_, F>, context: &DecodeContext) {
    let mut out = Vec::new();
    UpdateTemplate::withdraw(&encode_context(context)).encode_all(field, &mut out);
    let frame = Frame::parse(&out, MessageLimit::Extended).unwrap().unwrap();
    let update = Update::decode(
        frame.body,
        &DecodeContext {
            four_octet_as: true,
            ..*context
        },
    )
    .unwrap();
    assert_eq!(update.unreach.len(), 1);
}

fn announces<F: Family>(attributes: &Attributes, field: NlriField<'_, F>, context: &DecodeContext) {
    let encode = encode_context(context);
    // Attributes close to the limit of a message may not fit with one more octet of length.
    let Ok(template) = UpdateTemplate::<F>::announce(attributes, &encode) else {
        return;
    };
    let mut out = Vec::new();
    template.encode_all(field, &mut out);
    let frame = Frame::parse(&out, MessageLimit::Extended).unwrap().unwrap();
    let decode = DecodeContext {
        four_octet_as: true,
        ipv4_unicast: encode.ipv4_unicast,
        ..*context
    };
    let update = Update::decode(frame.body, &decode).unwrap();
    assert_eq!(update.errors, []);
    assert_eq!(&update.reach[0].attributes, attributes);
}

/// One well-formed message of every kind.
fn seeds() -> Vec<Vec<u8>> {
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

fn open() -> Open {
    let (ipv4, ipv6) = (AfiSafi::IPV4_UNICAST, AfiSafi::IPV6_UNICAST);
    let capabilities = vec![
        Capability::Multiprotocol(ipv4),
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
            host: b"router".to_vec(),
            domain: b"example".to_vec(),
        },
    ];
    Open::new(
        65537,
        90,
        Ipv4Addr::new(192, 0, 2, 1),
        Capabilities::new(capabilities),
    )
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
