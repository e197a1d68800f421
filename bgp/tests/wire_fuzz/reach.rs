//! Which decoders the mutated messages came to.

use std::collections::BTreeMap;

use calidris_bgp::family::AfiSafi;
use calidris_bgp::wire::attr::type_code;
use calidris_bgp::wire::capability::Capability;
use calidris_bgp::wire::context::DecodeContext;
use calidris_bgp::wire::frame::MessageType;
use calidris_bgp::wire::nlri::FamilyNlri;
use calidris_bgp::wire::notification::Notification;
use calidris_bgp::wire::open::Open;
use calidris_bgp::wire::update::Update;

/// A decoder, and what it made of the octets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Decoder {
    /// A message of this type.
    Message(MessageType),
    /// A header that is wrong, by the subcode of the error.
    BadHeader(u8),
    /// A well-formed capability of this code.
    Capability(u8),
    /// A capability of this code that does not have its form.
    BadCapability(u8),
    /// An OPEN with extended optional parameters (RFC 9072).
    ExtendedOpen,
    /// A NOTIFICATION with a text, as such and inside a Hard Reset; and one with a text that is none.
    Text,
    HardResetText,
    BadText,
    /// An attribute of this type in routes that were taken.
    Attribute(u8),
    /// An attribute of this type with something wrong; 0 for the prefixes of the message.
    BadAttribute(u8),
    /// Prefixes announced and withdrawn, by family, with path identifiers or without.
    Announced(AfiSafi, bool),
    Withdrawn(AfiSafi, bool),
}

/// Each of them must be come to.
const DECODERS: &[Decoder] = &{
    use Decoder::{
        Announced, Attribute, BadAttribute, BadCapability, BadHeader, BadText, Capability, ExtendedOpen,
        HardResetText, Message, Text, Withdrawn,
    };
    let (ipv4, ipv6) = (AfiSafi::IPV4_UNICAST, AfiSafi::IPV6_UNICAST);
    [
        BadHeader(1),
        BadHeader(2),
        BadHeader(3),
        Message(MessageType::Open),
        Message(MessageType::Update),
        Message(MessageType::Notification),
        Message(MessageType::Keepalive),
        Message(MessageType::RouteRefresh),
        Capability(1),
        Capability(2),
        Capability(5),
        Capability(6),
        Capability(9),
        Capability(64),
        Capability(65),
        Capability(69),
        Capability(70),
        Capability(71),
        Capability(73),
        Capability(200),
        BadCapability(1),
        BadCapability(2),
        BadCapability(5),
        BadCapability(6),
        BadCapability(9),
        BadCapability(64),
        BadCapability(65),
        BadCapability(69),
        BadCapability(70),
        BadCapability(71),
        BadCapability(73),
        ExtendedOpen,
        Text,
        HardResetText,
        BadText,
        Attribute(type_code::ORIGIN),
        Attribute(type_code::AS_PATH),
        Attribute(type_code::NEXT_HOP),
        Attribute(type_code::MULTI_EXIT_DISC),
        Attribute(type_code::LOCAL_PREF),
        Attribute(type_code::ATOMIC_AGGREGATE),
        Attribute(type_code::AGGREGATOR),
        Attribute(type_code::COMMUNITIES),
        Attribute(type_code::ORIGINATOR_ID),
        Attribute(type_code::CLUSTER_LIST),
        Attribute(type_code::MP_REACH_NLRI),
        Attribute(type_code::EXTENDED_COMMUNITIES),
        Attribute(type_code::AS4_PATH),
        Attribute(type_code::AS4_AGGREGATOR),
        Attribute(type_code::IPV6_EXTENDED_COMMUNITIES),
        Attribute(type_code::AIGP),
        Attribute(type_code::LARGE_COMMUNITIES),
        Attribute(type_code::OTC),
        Attribute(99),
        BadAttribute(0),
        BadAttribute(type_code::ORIGIN),
        BadAttribute(type_code::AS_PATH),
        BadAttribute(type_code::NEXT_HOP),
        BadAttribute(type_code::MULTI_EXIT_DISC),
        BadAttribute(type_code::LOCAL_PREF),
        BadAttribute(type_code::ATOMIC_AGGREGATE),
        BadAttribute(type_code::AGGREGATOR),
        BadAttribute(type_code::COMMUNITIES),
        BadAttribute(type_code::ORIGINATOR_ID),
        BadAttribute(type_code::CLUSTER_LIST),
        BadAttribute(type_code::MP_REACH_NLRI),
        BadAttribute(type_code::MP_UNREACH_NLRI),
        BadAttribute(type_code::EXTENDED_COMMUNITIES),
        BadAttribute(type_code::AS4_PATH),
        BadAttribute(type_code::AS4_AGGREGATOR),
        BadAttribute(type_code::IPV6_EXTENDED_COMMUNITIES),
        BadAttribute(type_code::AIGP),
        BadAttribute(type_code::LARGE_COMMUNITIES),
        BadAttribute(type_code::OTC),
        Announced(ipv4, false),
        Announced(ipv4, true),
        Announced(ipv6, false),
        Announced(ipv6, true),
        Withdrawn(ipv4, false),
        Withdrawn(ipv4, true),
        Withdrawn(ipv6, false),
        Withdrawn(ipv6, true),
    ]
};

/// How often each decoder was come to.
#[derive(Debug, Default)]
pub(super) struct Reached(BTreeMap<Decoder, u64>);

impl Reached {
    /// Those of [`DECODERS`] that were come to fewer times than that.
    pub(super) fn fewer_than(&self, times: u64) -> Vec<Decoder> {
        let seen = |decoder| self.0.get(decoder).copied().unwrap_or_default();
        DECODERS
            .iter()
            .filter(|decoder| seen(decoder) < times)
            .copied()
            .collect()
    }

    pub(super) fn note(&mut self, decoder: Decoder) {
        *self.0.entry(decoder).or_default() += 1;
    }

    pub(super) fn note_open(&mut self, open: &Open, body: &[u8]) {
        if body.get(9..11) == Some(&[255, 255]) {
            self.note(Decoder::ExtendedOpen);
        }
        for capability in open.capabilities.iter() {
            let code = capability.code();
            let known = DECODERS.contains(&Decoder::BadCapability(code));
            self.note(match capability {
                Capability::Unknown { .. } if known => Decoder::BadCapability(code),
                _ => Decoder::Capability(code),
            });
        }
    }

    pub(super) fn note_notification(&mut self, notification: &Notification) {
        match notification.shutdown_communication() {
            Some(Ok(_)) if notification.is_hard_reset() => self.note(Decoder::HardResetText),
            Some(Ok(_)) => self.note(Decoder::Text),
            Some(Err(_)) => self.note(Decoder::BadText),
            None => {}
        }
    }

    pub(super) fn note_update(&mut self, update: &Update<'_>, body: &[u8], context: &DecodeContext) {
        for error in &update.errors {
            self.note(Decoder::BadAttribute(error.type_code));
        }
        let families = [
            (AfiSafi::IPV4_UNICAST, context.ipv4_unicast.add_path),
            (AfiSafi::IPV6_UNICAST, context.ipv6_unicast.add_path),
        ];
        let of = |nlri: &FamilyNlri<'_>| match nlri {
            FamilyNlri::Ipv4(_) => families[0],
            FamilyNlri::Ipv6(_) => families[1],
        };
        for nlri in &update.unreach {
            let (family, add_path) = of(nlri);
            self.note(Decoder::Withdrawn(family, add_path));
        }
        for reach in &update.reach {
            let (family, add_path) = of(&reach.nlri);
            self.note(Decoder::Announced(family, add_path));
        }
        if !update.reach.is_empty() {
            for type_code in types(body) {
                let bad = update.errors.iter().any(|error| error.type_code == type_code);
                let ignored = matches!(type_code, type_code::AS4_PATH | type_code::AS4_AGGREGATOR)
                    && context.four_octet_as
                    || type_code == type_code::AIGP && !context.aigp;
                if !bad && !ignored {
                    self.note(Decoder::Attribute(type_code));
                }
            }
        }
    }
}

/// The type codes of the attributes of an UPDATE that was read.
fn types(body: &[u8]) -> Vec<u8> {
    let field = |at: usize| usize::from(u16::from_be_bytes([body[at], body[at + 1]]));
    let start = 4 + field(0);
    let mut list = &body[start..start + field(start - 2)];
    let mut types = Vec::new();
    while let [flags, type_code, rest @ ..] = list {
        let (length, value) = match rest {
            [high, low, value @ ..] if flags & 0x10 != 0 => {
                (usize::from(u16::from_be_bytes([*high, *low])), value)
            }
            [length, value @ ..] => (usize::from(*length), value),
            [] => break,
        };
        types.push(*type_code);
        list = value.get(length..).unwrap_or_default();
    }
    types
}
