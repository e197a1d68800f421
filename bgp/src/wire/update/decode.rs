//! Reading UPDATE bodies: field boundaries, prefixes, attributes, and then what RFC 7606 makes of everything that was wrong.

use std::net::Ipv6Addr;

use smallvec::SmallVec;

use super::{Reach, Update};
use crate::family::{AfiSafi, Ipv4Unicast, Ipv6Unicast};
use crate::wire::attr::decode::{AttributeList, Faults, RawAttribute, is_host_address};
use crate::wire::attr::{AttributeAction, AttributeErrorKind as Kind, Attributes, NextHop, type_code};
use crate::wire::context::{DecodeContext, FamilyContext};
use crate::wire::cursor::Cursor;
use crate::wire::error::WireError;
use crate::wire::nlri::{FamilyNlri, NlriField};
use crate::wire::notification::{NotificationCode, UpdateError};

use AttributeAction::{Discard, Reset, TreatAsWithdraw};

/// Marks faults in the fields of the message, which have no type code.
const NO_ATTRIBUTE: u8 = 0;

/// The three fields of a body (RFC 4271 section 4.3).
struct Fields<'a> {
    withdrawn: &'a [u8],
    attributes: &'a [u8],
    nlri: &'a [u8],
}

/// MP_REACH_NLRI of a negotiated family.
struct MpReach<'a> {
    next_hop: NextHop,
    nlri: FamilyNlri<'a>,
}

impl<'a> Update<'a> {
    /// Reads the body of an UPDATE frame.
    ///
    /// # Errors
    /// UPDATE Message Error, for what RFC 7606 leaves as a reason to reset the session.
    pub fn decode(body: &'a [u8], context: &DecodeContext) -> Result<Self, WireError> {
        let mut faults = Faults::default();
        let fields = Fields::split(body).ok_or_else(|| {
            let code = NotificationCode::Update(UpdateError::MalformedAttributeList);
            WireError::new(
                code,
                "lengths of withdrawn routes and path attributes exceed the message",
            )
        })?;
        let list = AttributeList::decode(fields.attributes, context, &mut faults);
        let withdrawn = ipv4_field(fields.withdrawn, context, &mut faults);
        let announced = ipv4_field(fields.nlri, context, &mut faults);
        let mp_unreach = list
            .mp_unreach
            .and_then(|attribute| mp_unreach(attribute, context, &mut faults));
        let mp_reach = list
            .mp_reach
            .and_then(|attribute| mp_reach(attribute, context, &mut faults));
        check_mandatory(&fields, &list, &mut faults);
        // Prefixes of a family that was not negotiated count: the message was not meant to be without.
        let announces = !fields.nlri.is_empty()
            || mp_reach
                .as_ref()
                .map_or(list.mp_reach.is_some(), |reach| !reach.nlri.is_empty());
        if !announces {
            escalate_without_prefixes(&list, &mut faults);
        }
        if let Some(error) = reset_error(&faults) {
            return Err(error);
        }

        let mut update = Self {
            end_of_rib: end_of_rib(body, &fields, &list, mp_unreach, context),
            ..Self::default()
        };
        update.unreach = [withdrawn, mp_unreach]
            .into_iter()
            .flatten()
            .filter(|nlri| !nlri.is_empty())
            .collect();
        update.treat_as_withdraw = faults
            .strongest()
            .is_some_and(|fault| fault.error.action == TreatAsWithdraw);
        update.errors = faults.into_errors();
        let announced = announced.filter(|nlri| !nlri.is_empty());
        let mp_reach = mp_reach.filter(|reach| !reach.nlri.is_empty());
        if update.treat_as_withdraw {
            update.unreach.extend(announced);
            update.unreach.extend(mp_reach.map(|reach| reach.nlri));
        } else {
            update.reach = reach(list, announced, mp_reach);
        }
        Ok(update)
    }
}

impl<'a> Fields<'a> {
    fn split(body: &'a [u8]) -> Option<Self> {
        let mut cursor = Cursor::new(body);
        let length = cursor.u16()?;
        let withdrawn = cursor.take(length.into())?;
        let length = cursor.u16()?;
        let attributes = cursor.take(length.into())?;
        Some(Self {
            withdrawn,
            attributes,
            nlri: cursor.rest(),
        })
    }
}

/// The withdrawn routes or the NLRI field. `None` when the family was not negotiated.
fn ipv4_field<'a>(
    octets: &'a [u8],
    context: &DecodeContext,
    faults: &mut Faults<'a>,
) -> Option<FamilyNlri<'a>> {
    let family = context.ipv4_unicast;
    if !family.negotiated {
        if !octets.is_empty() {
            faults.push(NO_ATTRIBUTE, Kind::FamilyNotNegotiated, Discard, octets);
        }
        return None;
    }
    let field = NlriField::<Ipv4Unicast>::parse(octets, family.add_path);
    if field.is_none() {
        // No data: RFC 4271 section 6.3 asks for none, and the field may be long.
        faults.push(NO_ATTRIBUTE, Kind::NetworkField, Reset, &[]);
    }
    field.map(FamilyNlri::Ipv4)
}

/// The prefixes of MP_UNREACH_NLRI. `None` when the family was not negotiated or nothing can be read.
fn mp_unreach<'a>(
    attribute: RawAttribute<'a>,
    context: &DecodeContext,
    faults: &mut Faults<'a>,
) -> Option<FamilyNlri<'a>> {
    let mut cursor = Cursor::new(attribute.value);
    let (Some(afi), Some(safi)) = (cursor.u16(), cursor.u8()) else {
        faults.push(attribute.type_code, Kind::MpField, Reset, attribute.octets);
        return None;
    };
    let family = AfiSafi { afi, safi };
    let family_context = negotiated(family, attribute, context, faults)?;
    mp_field(family, family_context, cursor.rest(), attribute, faults)
}

/// MP_REACH_NLRI. `None` when the family was not negotiated or the prefixes cannot be read; an unusable next hop does not
/// keep them from being returned.
fn mp_reach<'a>(
    attribute: RawAttribute<'a>,
    context: &DecodeContext,
    faults: &mut Faults<'a>,
) -> Option<MpReach<'a>> {
    let mut cursor = Cursor::new(attribute.value);
    let Some((family, next_hop)) = mp_reach_head(&mut cursor) else {
        faults.push(attribute.type_code, Kind::MpField, Reset, attribute.octets);
        return None;
    };
    let family_context = negotiated(family, attribute, context, faults)?;
    let nlri = mp_field(family, family_context, cursor.rest(), attribute, faults)?;
    let Some(next_hop) = mp_next_hop(family, next_hop, family_context) else {
        // A length that cannot be is not only the next hop's matter: where the prefixes begin is in doubt too (RFC 7606 section 7.11).
        faults.push(attribute.type_code, Kind::MpField, Reset, attribute.octets);
        return None;
    };
    if !is_usable(next_hop) {
        faults.push(
            attribute.type_code,
            Kind::NextHop,
            TreatAsWithdraw,
            attribute.octets,
        );
    }
    Some(MpReach { next_hop, nlri })
}

/// Family and octets of the next hop; what remains are the prefixes.
fn mp_reach_head<'a>(cursor: &mut Cursor<'a>) -> Option<(AfiSafi, &'a [u8])> {
    let family = AfiSafi {
        afi: cursor.u16()?,
        safi: cursor.u8()?,
    };
    let length = cursor.u8()?;
    let next_hop = cursor.take(length.into())?;
    // To be ignored (RFC 4760 section 3).
    cursor.u8()?;
    Some((family, next_hop))
}

fn negotiated<'a>(
    family: AfiSafi,
    attribute: RawAttribute<'a>,
    context: &DecodeContext,
    faults: &mut Faults<'a>,
) -> Option<FamilyContext> {
    let family_context = context.family(family);
    if !family_context.negotiated {
        faults.push(
            attribute.type_code,
            Kind::FamilyNotNegotiated,
            Discard,
            attribute.octets,
        );
        return None;
    }
    Some(family_context)
}

fn mp_field<'a>(
    family: AfiSafi,
    family_context: FamilyContext,
    octets: &'a [u8],
    attribute: RawAttribute<'a>,
    faults: &mut Faults<'a>,
) -> Option<FamilyNlri<'a>> {
    let add_path = family_context.add_path;
    let field = match family {
        AfiSafi::IPV4_UNICAST => NlriField::<Ipv4Unicast>::parse(octets, add_path).map(FamilyNlri::Ipv4),
        AfiSafi::IPV6_UNICAST => NlriField::<Ipv6Unicast>::parse(octets, add_path).map(FamilyNlri::Ipv6),
        _ => None,
    };
    if field.is_none() {
        faults.push(attribute.type_code, Kind::MpField, Reset, attribute.octets);
    }
    field
}

/// The next hop of MP_REACH_NLRI. `None` when it has a length the family does not allow (RFC 2545 section 3, RFC 8950 section 3).
fn mp_next_hop(family: AfiSafi, octets: &[u8], family_context: FamilyContext) -> Option<NextHop> {
    let ipv6 = family == AfiSafi::IPV6_UNICAST || family_context.extended_next_hop;
    let mut cursor = Cursor::new(octets);
    match octets.len() {
        4 if family == AfiSafi::IPV4_UNICAST => Some(NextHop::V4(cursor.array::<4>()?.into())),
        16 if ipv6 => Some(NextHop::V6(cursor.array::<16>()?.into())),
        32 if ipv6 => {
            let global = Ipv6Addr::from(cursor.array::<16>()?);
            let link_local = Ipv6Addr::from(cursor.array::<16>()?);
            Some(two_next_hops(global, link_local))
        }
        _ => None,
    }
}

/// Speakers without a global address repeat the link-local one or leave the first empty; others leave the second empty.
fn two_next_hops(global: Ipv6Addr, link_local: Ipv6Addr) -> NextHop {
    if !link_local.is_unicast_link_local() {
        NextHop::V6(global)
    } else if global.is_unspecified() || global.is_unicast_link_local() {
        NextHop::V6(link_local)
    } else {
        NextHop::V6WithLinkLocal { global, link_local }
    }
}

fn is_usable(next_hop: NextHop) -> bool {
    match next_hop {
        NextHop::V4(address) => is_host_address(address),
        NextHop::V6(address) | NextHop::V6WithLinkLocal { global: address, .. } => {
            !address.is_unspecified() && !address.is_multicast()
        }
    }
}

/// What an announcement cannot be without (RFC 4271 section 5, RFC 7606 section 3 d).
fn check_mandatory<'a>(fields: &Fields<'a>, list: &AttributeList<'a>, faults: &mut Faults<'a>) {
    let announced = !fields.nlri.is_empty();
    if !announced && list.mp_reach.is_none() {
        return;
    }
    let mandatory: [(u8, &[u8], bool); 3] = [
        (type_code::ORIGIN, &[type_code::ORIGIN], true),
        (type_code::AS_PATH, &[type_code::AS_PATH], true),
        (type_code::NEXT_HOP, &[type_code::NEXT_HOP], announced),
    ];
    for (type_code, data, needed) in mandatory {
        if needed && !list.has(type_code) {
            faults.push(type_code, Kind::Missing, TreatAsWithdraw, data);
        }
    }
}

/// A malformed message that announces nothing leaves nothing to withdraw: prefixes may have been meant and lost, so
/// the session is reset (RFC 7606 section 5.2).
fn escalate_without_prefixes<'a>(list: &AttributeList<'a>, faults: &mut Faults<'a>) {
    let only_mp_unreach = list.count == usize::from(list.mp_unreach.is_some());
    if only_mp_unreach {
        return;
    }
    if let Some(fault) = faults
        .strongest()
        .filter(|fault| fault.error.action == TreatAsWithdraw)
    {
        faults.push(fault.error.type_code, fault.error.kind, Reset, fault.octets);
    }
}

/// The error of the strongest fault if it resets the session.
fn reset_error(faults: &Faults<'_>) -> Option<WireError> {
    let fault = faults.strongest().filter(|fault| fault.error.action == Reset)?;
    let code = NotificationCode::Update(fault.error.kind.subcode());
    Some(WireError::with_data(code, fault.octets, fault.error.to_string()))
}

/// End-of-RIB: an empty message, or nothing but an empty MP_UNREACH_NLRI (RFC 4724 section 2).
fn end_of_rib(
    body: &[u8],
    fields: &Fields<'_>,
    list: &AttributeList<'_>,
    mp_unreach: Option<FamilyNlri<'_>>,
    context: &DecodeContext,
) -> Option<AfiSafi> {
    if body.iter().all(|octet| *octet == 0) && fields.nlri.is_empty() && list.count == 0 {
        return context.ipv4_unicast.negotiated.then_some(AfiSafi::IPV4_UNICAST);
    }
    let alone = list.count == 1 && fields.withdrawn.is_empty() && fields.nlri.is_empty();
    mp_unreach
        .filter(|nlri| alone && nlri.is_empty())
        .map(|nlri| nlri.family())
}

/// Joins prefixes with attributes. The next hop differs between the NLRI field and MP_REACH_NLRI.
fn reach<'a>(
    list: AttributeList<'a>,
    announced: Option<FamilyNlri<'a>>,
    mp_reach: Option<MpReach<'a>>,
) -> SmallVec<[Reach<'a>; 1]> {
    let AttributeList {
        attributes, next_hop, ..
    } = list;
    let with = |attributes: Attributes, next_hop: Option<NextHop>, nlri: FamilyNlri<'a>| Reach {
        attributes: Attributes {
            next_hop,
            ..attributes
        },
        nlri,
    };
    let next_hop = next_hop.map(NextHop::V4);
    match (announced, mp_reach) {
        (Some(nlri), Some(mp)) => SmallVec::from_iter([
            with(attributes.clone(), next_hop, nlri),
            with(attributes, Some(mp.next_hop), mp.nlri),
        ]),
        (Some(nlri), None) => SmallVec::from_iter([with(attributes, next_hop, nlri)]),
        (None, Some(mp)) => SmallVec::from_iter([with(attributes, Some(mp.next_hop), mp.nlri)]),
        (None, None) => SmallVec::new(),
    }
}
