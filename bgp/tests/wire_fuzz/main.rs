//! Mutated messages of every type: nothing may panic, and whatever is accepted must read back equal after encoding.
//!
//! That the mutations come to every decoder is part of the test: [`reach`] counts each message type, capability, attribute and form of
//! prefixes, read well and found wrong, and a list there says what must be among it.
//!
//! `CALIDRIS_FUZZ_MESSAGES` sets how many (default 100,000), `CALIDRIS_FUZZ_SEED` where the sequence begins. A failure
//! prints the message and the context, which reproduce it.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test may panic"
)]

mod allocation;
mod mutation;
mod reach;
mod seeds;

use std::fmt::Write;

use calidris_bgp::family::{AfiSafi, Family, Ipv4Unicast, Ipv6Unicast};
use calidris_bgp::wire::Message;
use calidris_bgp::wire::attr::Attributes;
use calidris_bgp::wire::context::{DecodeContext, EncodeContext, FamilyContext, PeerKind};
use calidris_bgp::wire::frame::{Frame, HEADER_LEN, MessageLimit, MessageType};
use calidris_bgp::wire::nlri::{FamilyNlri, NlriField};
use calidris_bgp::wire::open::Open;
use calidris_bgp::wire::refresh::RouteRefresh;
use calidris_bgp::wire::update::{Update, UpdateTemplate};

use mutation::mutated;
use reach::{Decoder, Reached};
use seeds::seeds;

#[test]
fn mutated_messages_are_refused_or_understood() {
    let messages = from_environment("CALIDRIS_FUZZ_MESSAGES").unwrap_or(100_000);
    let seed = from_environment("CALIDRIS_FUZZ_SEED").unwrap_or(1);
    let mut random = Random(seed);
    let seeds = seeds();
    let mut outcomes = Outcomes::default();
    let mut reached = Reached::default();
    for _ in 0..messages {
        let message = mutated(&seeds, &mut random);
        let context = any_context(&mut random);
        let reproduced = Reproduction {
            message: &message,
            context: &context,
        };
        judge_memory(&message, &context);
        judge_boundary(&message, random.below(message.len() + 1));
        judge(&message, &context, &mut outcomes, &mut reached);
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
        let missed = reached.fewer_than(messages / 10_000);
        assert!(missed.is_empty(), "hardly reached: {missed:?} of {reached:#?}");
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

/// Octets that reading a message may take, for each of its own and beside.
const MOST_FOR_EACH: usize = 16;
const MOST_BESIDE: usize = 4096;

/// Reading takes no more than a small multiple of what was read (the promise of `wire`).
fn judge_memory(message: &[u8], context: &DecodeContext) {
    let ((), most) = allocation::measured(|| {
        let Ok(Some(frame)) = Frame::parse(message, MessageLimit::Extended) else {
            return;
        };
        if let Ok(Message::Update(body)) = Message::decode(frame) {
            let _update = Update::decode(body, context);
        }
    });
    let allowed = message.len() * MOST_FOR_EACH + MOST_BESIDE;
    assert!(
        most <= allowed,
        "{most} octets for a message of {}",
        message.len()
    );
}

/// What the framer says of a part of the stream it says of more of it too: nothing yet, or what is wrong, or the message.
fn judge_boundary(stream: &[u8], cut: usize) {
    let whole = Frame::parse(stream, MessageLimit::Extended);
    match (Frame::parse(&stream[..cut], MessageLimit::Extended), whole) {
        (Ok(None), _) => {
            assert!(cut < HEADER_LEN || cut < usize::from(u16::from_be_bytes([stream[16], stream[17]])));
        }
        (part, whole) => assert_eq!(part, whole),
    }
}

fn judge(message: &[u8], context: &DecodeContext, outcomes: &mut Outcomes, reached: &mut Reached) {
    let frame = match Frame::parse(message, MessageLimit::Extended) {
        Ok(Some(frame)) => frame,
        Ok(None) => {
            outcomes.incomplete += 1;
            return;
        }
        Err(error) => {
            let (code, subcode) = error.code().numbers();
            assert!(code == 1 && (1..=3).contains(&subcode));
            reached.note(Decoder::BadHeader(subcode));
            outcomes.refused += 1;
            return;
        }
    };
    reached.note(Decoder::Message(frame.message_type));
    match Message::decode(frame) {
        Err(error) => {
            assert!(!error.to_string().is_empty());
            outcomes.refused += 1;
        }
        Ok(Message::Open(open)) => {
            outcomes.open += 1;
            reached.note_open(&open, frame.body);
            judge_open(&open);
        }
        Ok(Message::Update(body)) => match Update::decode(body, context) {
            Ok(update) => {
                outcomes.update += 1;
                outcomes.withdrawn += u64::from(update.treat_as_withdraw);
                reached.note_update(&update, body, context);
                judge_update(&update, context);
            }
            Err(error) => {
                assert_eq!(error.code().numbers().0, 3);
                outcomes.refused += 1;
            }
        },
        Ok(Message::Notification(notification)) => {
            outcomes.other += 1;
            reached.note_notification(&notification);
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
