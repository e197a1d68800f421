//! Reading path attributes, with the consequence RFC 7606 gives to everything that can be wrong with them.
//!
//! One pass over the list; each attribute is judged by itself, then what depends on several (four-octet AS numbers,
//! mandatory ones) by [`super::super::update`]. The multiprotocol attributes are only located here.

use std::net::Ipv4Addr;

use super::as_path::{self, AsPath};
use super::error::{AttributeAction, AttributeError, AttributeErrorKind};
use super::{
    Aggregator, Attributes, Community, CommunitySet, ExtendedCommunity, Ipv6ExtendedCommunity,
    LargeCommunity, Origin, UnknownAttribute, flags, type_code,
};
use crate::wire::context::{DecodeContext, PeerKind};
use crate::wire::cursor::Cursor;
use crate::wire::open::AS_TRANS;

use AttributeAction::{Discard, Reset, TreatAsWithdraw};
use AttributeErrorKind as Kind;

/// How many faults of a message are remembered; a peer cannot make us keep more.
const MAX_FAULTS: usize = 16;

/// An error and the octets it is about, for the NOTIFICATION.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fault<'a> {
    pub(crate) error: AttributeError,
    pub(crate) octets: &'a [u8],
}

/// What was wrong in a message: the first faults, and always one of the strongest.
#[derive(Debug, Default)]
pub(crate) struct Faults<'a>(Vec<Fault<'a>>);

impl<'a> Faults<'a> {
    pub(crate) fn push(&mut self, type_code: u8, kind: Kind, action: AttributeAction, octets: &'a [u8]) {
        let strongest = self.strongest().map(|fault| fault.error.action);
        if self.0.len() >= MAX_FAULTS {
            if strongest >= Some(action) {
                return;
            }
            self.0.pop();
        }
        self.0.push(Fault {
            error: AttributeError {
                type_code,
                kind,
                action,
            },
            octets,
        });
    }

    /// The first of the faults with the strongest action.
    pub(crate) fn strongest(&self) -> Option<Fault<'a>> {
        let action = self.0.iter().map(|fault| fault.error.action).max()?;
        self.0.iter().find(|fault| fault.error.action == action).copied()
    }

    pub(crate) fn into_errors(self) -> Vec<AttributeError> {
        self.0.into_iter().map(|fault| fault.error).collect()
    }
}

/// One attribute as it stands in the message.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RawAttribute<'a> {
    pub(crate) flags: u8,
    pub(crate) type_code: u8,
    pub(crate) value: &'a [u8],
    /// Flags, type, length and value.
    pub(crate) octets: &'a [u8],
}

/// The attributes of a message.
#[derive(Debug, Default)]
pub(crate) struct AttributeList<'a> {
    /// The values; the next hop is left to the caller, which knows what it is for.
    pub(crate) attributes: Attributes,
    /// NEXT_HOP.
    pub(crate) next_hop: Option<Ipv4Addr>,
    /// MP_REACH_NLRI.
    pub(crate) mp_reach: Option<RawAttribute<'a>>,
    /// MP_UNREACH_NLRI.
    pub(crate) mp_unreach: Option<RawAttribute<'a>>,
    /// How many attributes there were.
    pub(crate) count: usize,
    seen: TypeCodes,
    as4_path: Option<AsPath>,
    as4_aggregator: Option<Aggregator>,
}

/// A set of type codes.
#[derive(Clone, Copy, Debug, Default)]
struct TypeCodes([u128; 2]);

impl TypeCodes {
    /// Adds a type code and says whether it is new.
    fn insert(&mut self, type_code: u8) -> bool {
        let [low, high] = &mut self.0;
        let word = if type_code < 128 { low } else { high };
        let bit = 1 << (type_code & 127);
        let new = *word & bit == 0;
        *word |= bit;
        new
    }

    fn contains(mut self, type_code: u8) -> bool {
        !self.insert(type_code)
    }
}

/// What an attribute's own decoder says: nothing, or what is wrong and what follows.
type Verdict = Result<(), (Kind, AttributeAction)>;

impl<'a> AttributeList<'a> {
    /// Reads a whole list.
    pub(crate) fn decode(list: &'a [u8], context: &DecodeContext, faults: &mut Faults<'a>) -> Self {
        let mut decoded = Self::default();
        let mut cursor = Cursor::new(list);
        while !cursor.is_empty() {
            let Some(attribute) = next_attribute(&mut cursor) else {
                // Where the list ends is known, so the prefixes behind it are safe, but not those in a multiprotocol attribute.
                let rest = cursor.rest();
                let type_code = rest.get(1).copied().unwrap_or_default();
                faults.push(
                    type_code,
                    Kind::Truncated,
                    if is_mp(type_code) { Reset } else { TreatAsWithdraw },
                    rest,
                );
                decoded.count = decoded.count.saturating_add(1);
                break;
            };
            decoded.count = decoded.count.saturating_add(1);
            if let Err((kind, action)) = decoded.add(attribute, context) {
                faults.push(attribute.type_code, kind, action, attribute.octets);
            }
        }
        decoded.merge_four_octet_as();
        decoded
    }

    /// Whether an attribute of this type was there, well-formed or not.
    pub(crate) fn has(&self, type_code: u8) -> bool {
        self.seen.contains(type_code)
    }

    fn add(&mut self, attribute: RawAttribute<'a>, context: &DecodeContext) -> Verdict {
        let RawAttribute {
            flags,
            type_code,
            value,
            ..
        } = attribute;
        if !self.seen.insert(type_code) {
            return Err((Kind::Repeated, if is_mp(type_code) { Reset } else { Discard }));
        }
        // Its prefixes are needed whatever else is wrong.
        match type_code {
            type_code::MP_REACH_NLRI => self.mp_reach = Some(attribute),
            type_code::MP_UNREACH_NLRI => self.mp_unreach = Some(attribute),
            _ => {}
        }
        let kind_bits = flags::OPTIONAL | flags::TRANSITIVE;
        let Some(expected) = expected_flags(type_code) else {
            return self.add_unknown(attribute);
        };
        if flags & kind_bits != expected {
            // RFC 7311 section 3.2 alone asks for less than RFC 7606 section 3 c.
            let action = if type_code == type_code::AIGP {
                Discard
            } else {
                TreatAsWithdraw
            };
            return Err((Kind::Flags, action));
        }
        if flags & flags::PARTIAL != 0 {
            self.attributes.partial.insert(type_code);
        }
        let verdict = self.add_known(type_code, value, context);
        if verdict.is_err() {
            self.attributes.partial.remove(type_code);
        }
        verdict
    }

    fn add_known(&mut self, type_code: u8, value: &[u8], context: &DecodeContext) -> Verdict {
        let attributes = &mut self.attributes;
        match type_code {
            type_code::ORIGIN => attributes.origin = origin(value)?,
            type_code::AS_PATH => {
                attributes.as_path = as_path(value, context).map_err(|kind| (kind, TreatAsWithdraw))?;
            }
            type_code::NEXT_HOP => self.next_hop = Some(next_hop(value)?),
            type_code::MULTI_EXIT_DISC => attributes.med = Some(u32::from_be_bytes(fixed(value)?)),
            type_code::LOCAL_PREF => {
                refuse_from(PeerKind::External, context)?;
                attributes.local_pref = Some(u32::from_be_bytes(fixed(value)?));
            }
            type_code::ATOMIC_AGGREGATE => {
                attributes.atomic_aggregate = value.is_empty();
                discard_unless(value.is_empty(), Kind::Length)?;
            }
            type_code::AGGREGATOR => attributes.aggregator = Some(aggregator(value, context.four_octet_as)?),
            type_code::COMMUNITIES => {
                attributes.communities = members(value, |octets| Community(u32::from_be_bytes(octets)))?;
            }
            type_code::ORIGINATOR_ID => {
                refuse_from(PeerKind::External, context)?;
                refuse_from(PeerKind::Confederation, context)?;
                attributes.originator_id = Some(fixed::<4>(value)?.into());
            }
            type_code::CLUSTER_LIST => {
                refuse_from(PeerKind::External, context)?;
                refuse_from(PeerKind::Confederation, context)?;
                attributes.cluster_list = chunks(value)?.map(|octets: [u8; 4]| octets.into()).collect();
            }
            type_code::EXTENDED_COMMUNITIES => {
                attributes.extended_communities = members(value, ExtendedCommunity)?;
            }
            type_code::IPV6_EXTENDED_COMMUNITIES => {
                attributes.ipv6_extended_communities = members(value, Ipv6ExtendedCommunity)?;
            }
            type_code::LARGE_COMMUNITIES => attributes.large_communities = members(value, large_community)?,
            type_code::AS4_PATH => {
                discard_unless(!context.four_octet_as, Kind::FourOctetSpeaker)?;
                let octets = checked_path(value, PathWidth::FourOctets).map_err(|kind| (kind, Discard))?;
                self.as4_path = Some(AsPath::from_checked_octets(octets).without_confederation());
            }
            type_code::AS4_AGGREGATOR => {
                discard_unless(!context.four_octet_as, Kind::FourOctetSpeaker)?;
                self.as4_aggregator = Some(four_octet_aggregator(value)?);
            }
            type_code::OTC => attributes.otc = Some(u32::from_be_bytes(fixed(value)?)),
            type_code::AIGP if context.aigp => {
                attributes.aigp = Some(aigp(value).ok_or((Kind::Tlv, Discard))?);
            }
            // The multiprotocol attributes, and AIGP where it is not enabled (RFC 7311 section 3.1).
            _ => {}
        }
        Ok(())
    }

    /// Keeps an optional transitive attribute, drops a non-transitive one (RFC 4271 section 5).
    fn add_unknown(&mut self, attribute: RawAttribute<'a>) -> Verdict {
        let RawAttribute {
            flags,
            type_code,
            value,
            ..
        } = attribute;
        if flags & flags::OPTIONAL == 0 {
            return Err((Kind::UnrecognizedWellKnown, Reset));
        }
        if flags & flags::TRANSITIVE != 0 {
            let mut unknown = std::mem::take(&mut self.attributes.unknown).into_vec();
            let place = unknown.partition_point(|other| other.type_code < type_code);
            unknown.insert(
                place,
                UnknownAttribute {
                    type_code,
                    value: value.into(),
                },
            );
            self.attributes.unknown = unknown.into();
        }
        Ok(())
    }

    /// Puts the four-octet AS numbers into the attributes of a two-octet AS speaker (RFC 6793 section 4.2.3).
    fn merge_four_octet_as(&mut self) {
        if let (Some(aggregator), Some(as4_aggregator)) = (self.attributes.aggregator, self.as4_aggregator) {
            if aggregator.asn != u32::from(AS_TRANS) {
                // Somebody aggregated since without knowing these attributes: they no longer belong to the route.
                return;
            }
            self.attributes.aggregator = Some(as4_aggregator);
        }
        if let Some(as4_path) = self.as4_path.take() {
            self.attributes.as_path = self.attributes.as_path.merged_with_as4_path(&as4_path);
        }
    }
}

/// The next attribute of a list; `None`, and nothing consumed, when it runs out of the list.
fn next_attribute<'a>(cursor: &mut Cursor<'a>) -> Option<RawAttribute<'a>> {
    let all = cursor.rest();
    let mut ahead = *cursor;
    let (flags, type_code) = (ahead.u8()?, ahead.u8()?);
    let length = if flags & flags::EXTENDED_LENGTH != 0 {
        usize::from(ahead.u16()?)
    } else {
        usize::from(ahead.u8()?)
    };
    let value = ahead.take(length)?;
    let octets = all.get(..all.len().saturating_sub(ahead.rest().len()))?;
    *cursor = ahead;
    Some(RawAttribute {
        flags,
        type_code,
        value,
        octets,
    })
}

fn is_mp(type_code: u8) -> bool {
    matches!(type_code, type_code::MP_REACH_NLRI | type_code::MP_UNREACH_NLRI)
}

/// Optional and Transitive bit of the known types; `None` for unknown ones.
fn expected_flags(type_code: u8) -> Option<u8> {
    Some(match type_code {
        type_code::ORIGIN
        | type_code::AS_PATH
        | type_code::NEXT_HOP
        | type_code::LOCAL_PREF
        | type_code::ATOMIC_AGGREGATE => flags::TRANSITIVE,
        type_code::MULTI_EXIT_DISC
        | type_code::ORIGINATOR_ID
        | type_code::CLUSTER_LIST
        | type_code::MP_REACH_NLRI
        | type_code::MP_UNREACH_NLRI
        | type_code::AIGP => flags::OPTIONAL,
        type_code::AGGREGATOR
        | type_code::COMMUNITIES
        | type_code::EXTENDED_COMMUNITIES
        | type_code::AS4_PATH
        | type_code::AS4_AGGREGATOR
        | type_code::IPV6_EXTENDED_COMMUNITIES
        | type_code::LARGE_COMMUNITIES
        | type_code::OTC => flags::OPTIONAL | flags::TRANSITIVE,
        _ => return None,
    })
}

fn refuse_from(peer_kind: PeerKind, context: &DecodeContext) -> Verdict {
    discard_unless(context.peer_kind != peer_kind, Kind::ExternalPeer)
}

fn discard_unless(condition: bool, kind: Kind) -> Verdict {
    if condition { Ok(()) } else { Err((kind, Discard)) }
}

fn fixed<const N: usize>(value: &[u8]) -> Result<[u8; N], (Kind, AttributeAction)> {
    value.try_into().map_err(|_| (Kind::Length, TreatAsWithdraw))
}

fn origin(value: &[u8]) -> Result<Origin, (Kind, AttributeAction)> {
    match fixed(value)? {
        [0] => Ok(Origin::Igp),
        [1] => Ok(Origin::Egp),
        [2] => Ok(Origin::Incomplete),
        _ => Err((Kind::Origin, TreatAsWithdraw)),
    }
}

fn next_hop(value: &[u8]) -> Result<Ipv4Addr, (Kind, AttributeAction)> {
    let address = Ipv4Addr::from(fixed::<4>(value)?);
    if is_host_address(address) {
        Ok(address)
    } else {
        Err((Kind::NextHop, TreatAsWithdraw))
    }
}

/// Whether an address can be that of a router: neither "this network" nor multicast nor reserved (RFC 4271 section 6.3).
/// Loopback addresses pass: whether they are reachable is not a matter of syntax.
pub(crate) fn is_host_address(address: Ipv4Addr) -> bool {
    let [first, ..] = address.octets();
    (1..224).contains(&first)
}

/// One or more members of `N` octets each.
fn chunks<const N: usize>(
    value: &[u8],
) -> Result<impl Iterator<Item = [u8; N]> + '_, (Kind, AttributeAction)> {
    let (whole, rest) = value.as_chunks::<N>();
    if whole.is_empty() || !rest.is_empty() {
        return Err((Kind::Length, TreatAsWithdraw));
    }
    Ok(whole.iter().copied())
}

fn members<const N: usize, T: Copy + Ord>(
    value: &[u8],
    member: impl Fn([u8; N]) -> T,
) -> Result<CommunitySet<T>, (Kind, AttributeAction)> {
    Ok(chunks(value)?.map(member).collect())
}

fn large_community([a, b, c, d, e, f, g, h, i, j, k, l]: [u8; 12]) -> LargeCommunity {
    LargeCommunity {
        global_administrator: u32::from_be_bytes([a, b, c, d]),
        local_data_1: u32::from_be_bytes([e, f, g, h]),
        local_data_2: u32::from_be_bytes([i, j, k, l]),
    }
}

fn aggregator(value: &[u8], four_octet_as: bool) -> Result<Aggregator, (Kind, AttributeAction)> {
    if four_octet_as {
        return four_octet_aggregator(value);
    }
    let [a, b, address @ ..] = <[u8; 6]>::try_from(value).map_err(|_| (Kind::Length, Discard))?;
    nonzero_aggregator(u16::from_be_bytes([a, b]).into(), address)
}

fn four_octet_aggregator(value: &[u8]) -> Result<Aggregator, (Kind, AttributeAction)> {
    let [a, b, c, d, address @ ..] = <[u8; 8]>::try_from(value).map_err(|_| (Kind::Length, Discard))?;
    nonzero_aggregator(u32::from_be_bytes([a, b, c, d]), address)
}

fn nonzero_aggregator(asn: u32, address: [u8; 4]) -> Result<Aggregator, (Kind, AttributeAction)> {
    if asn == 0 {
        return Err((Kind::AsZero, Discard));
    }
    Ok(Aggregator {
        asn,
        address: address.into(),
    })
}

/// The metric of the first AIGP TLV (RFC 7311 section 3); other TLVs are skipped.
fn aigp(value: &[u8]) -> Option<u64> {
    let mut cursor = Cursor::new(value);
    let mut metric = None;
    while !cursor.is_empty() {
        let (tlv_type, length) = (cursor.u8()?, cursor.u16()?);
        // The length counts its own three octets of head.
        let tlv_value = cursor.take(usize::from(length).checked_sub(3)?)?;
        if tlv_type == 1 && metric.is_none() {
            metric = Some(u64::from_be_bytes(tlv_value.try_into().ok()?));
        }
    }
    metric
}

/// How wide the AS numbers of a path are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum PathWidth {
    TwoOctets,
    FourOctets,
}

fn as_path(value: &[u8], context: &DecodeContext) -> Result<AsPath, Kind> {
    let width = if context.four_octet_as {
        PathWidth::FourOctets
    } else {
        PathWidth::TwoOctets
    };
    let path = AsPath::from_checked_octets(checked_path(value, width)?);
    match context.peer_kind {
        PeerKind::Internal => {}
        PeerKind::External if path.segments().any(|segment| segment.kind.is_confederation()) => {
            return Err(Kind::ConfederationSegment);
        }
        PeerKind::External => {}
        PeerKind::Confederation => {
            let first = path.segments().next().map(|segment| segment.kind);
            if first != Some(as_path::SegmentKind::ConfedSequence) {
                return Err(Kind::ConfederationSegmentMissing);
            }
        }
    }
    Ok(path)
}

/// Checks the segments of a path and returns them in the four-octet form.
fn checked_path(value: &[u8], width: PathWidth) -> Result<Vec<u8>, Kind> {
    let mut cursor = Cursor::new(value);
    let mut octets = Vec::with_capacity(match width {
        PathWidth::TwoOctets => value.len().saturating_mul(2),
        PathWidth::FourOctets => value.len(),
    });
    while !cursor.is_empty() {
        let (Some(code), Some(count @ 1..)) = (cursor.u8(), cursor.u8()) else {
            return Err(Kind::PathSegment);
        };
        if as_path::SegmentKind::from_code(code).is_none() {
            return Err(Kind::PathSegment);
        }
        octets.extend_from_slice(&[code, count]);
        for _ in 0..count {
            let asn = match width {
                PathWidth::TwoOctets => cursor.u16().map(u32::from),
                PathWidth::FourOctets => cursor.u32(),
            };
            match asn {
                None => return Err(Kind::PathSegment),
                Some(0) => return Err(Kind::AsZero),
                Some(asn) => octets.extend_from_slice(&asn.to_be_bytes()),
            }
        }
    }
    Ok(octets)
}
