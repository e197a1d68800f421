//! Writing path attributes in ascending order of type code (RFC 4271 section 5), for four-octet and two-octet AS speakers
//! (RFC 6793 section 4.2.2).

use std::net::Ipv4Addr;

use super::as_path::AsPath;
use super::{Aggregator, Attributes, flags, type_code};
use crate::wire::context::EncodeContext;
use crate::wire::open::AS_TRANS;

const WELL_KNOWN: u8 = flags::TRANSITIVE;
const OPTIONAL_TRANSITIVE: u8 = flags::OPTIONAL | flags::TRANSITIVE;
const OPTIONAL: u8 = flags::OPTIONAL;

/// Appends all attributes but MP_REACH_NLRI; `next_hop` is that of NEXT_HOP, which messages with MP_REACH_NLRI alone do not have.
pub(crate) fn encode_attributes(
    attributes: &Attributes,
    next_hop: Option<Ipv4Addr>,
    context: &EncodeContext,
    out: &mut Vec<u8>,
) {
    push_attribute(WELL_KNOWN, type_code::ORIGIN, &[attributes.origin as u8], out);
    let old_speaker = !context.four_octet_as;
    if old_speaker {
        push_attribute(
            WELL_KNOWN,
            type_code::AS_PATH,
            &two_octet_path(&attributes.as_path),
            out,
        );
    } else {
        push_attribute(WELL_KNOWN, type_code::AS_PATH, attributes.as_path.octets(), out);
    }
    if let Some(next_hop) = next_hop {
        push_attribute(WELL_KNOWN, type_code::NEXT_HOP, &next_hop.octets(), out);
    }
    if let Some(med) = attributes.med {
        push_attribute(OPTIONAL, type_code::MULTI_EXIT_DISC, &med.to_be_bytes(), out);
    }
    if let Some(local_pref) = attributes.local_pref {
        push_attribute(WELL_KNOWN, type_code::LOCAL_PREF, &local_pref.to_be_bytes(), out);
    }
    if attributes.atomic_aggregate {
        push_attribute(WELL_KNOWN, type_code::ATOMIC_AGGREGATE, &[], out);
    }
    if let Some(aggregator) = attributes.aggregator {
        push_aggregator(attributes, aggregator, context, out);
    }
    push_members(
        attributes,
        type_code::COMMUNITIES,
        attributes.communities.as_slice(),
        |c| c.0.to_be_bytes(),
        out,
    );
    if let Some(originator_id) = attributes.originator_id {
        push_attribute(OPTIONAL, type_code::ORIGINATOR_ID, &originator_id.octets(), out);
    }
    if !attributes.cluster_list.is_empty() {
        let clusters: Vec<u8> = attributes
            .cluster_list
            .iter()
            .flat_map(Ipv4Addr::octets)
            .collect();
        push_attribute(OPTIONAL, type_code::CLUSTER_LIST, &clusters, out);
    }
    let extended = attributes.extended_communities.as_slice();
    push_members(
        attributes,
        type_code::EXTENDED_COMMUNITIES,
        extended,
        |c| c.0,
        out,
    );
    if old_speaker {
        push_four_octet_copies(attributes, out);
    }
    encode_rest(attributes, out);
}

/// The attributes with type codes above AS4_AGGREGATOR, unknown ones sorted in among them and before them.
fn encode_rest(attributes: &Attributes, out: &mut Vec<u8>) {
    let ipv6 = attributes.ipv6_extended_communities.as_slice();
    push_members(
        attributes,
        type_code::IPV6_EXTENDED_COMMUNITIES,
        ipv6,
        |c| c.0,
        out,
    );
    if let Some(metric) = attributes.aigp {
        let mut tlv = vec![1, 0, 11];
        tlv.extend_from_slice(&metric.to_be_bytes());
        push_attribute(OPTIONAL, type_code::AIGP, &tlv, out);
    }
    let large: Vec<u8> = attributes
        .large_communities
        .as_slice()
        .iter()
        .flat_map(|c| [c.global_administrator, c.local_data_1, c.local_data_2])
        .flat_map(u32::to_be_bytes)
        .collect();
    if !large.is_empty() {
        let flags = transitive_flags(attributes, type_code::LARGE_COMMUNITIES);
        push_attribute(flags, type_code::LARGE_COMMUNITIES, &large, out);
    }
    if let Some(otc) = attributes.otc {
        push_attribute(
            transitive_flags(attributes, type_code::OTC),
            type_code::OTC,
            &otc.to_be_bytes(),
            out,
        );
    }
    for unknown in &attributes.unknown {
        // Whoever passes on what it does not know sets the Partial bit (RFC 4271 section 5).
        push_attribute(
            OPTIONAL_TRANSITIVE | flags::PARTIAL,
            unknown.type_code,
            &unknown.value,
            out,
        );
    }
}

/// Appends one attribute; the length takes two octets only where it must.
fn push_attribute(attribute_flags: u8, type_code: u8, value: &[u8], out: &mut Vec<u8>) {
    match u8::try_from(value.len()) {
        Ok(length) => out.extend_from_slice(&[attribute_flags, type_code, length]),
        Err(_) => {
            out.extend_from_slice(&[attribute_flags | flags::EXTENDED_LENGTH, type_code]);
            // A longer value than 65535 octets makes a message that is refused for its length.
            out.extend_from_slice(&u16::try_from(value.len()).unwrap_or(u16::MAX).to_be_bytes());
        }
    }
    out.extend_from_slice(value);
}

/// Appends an attribute that is a list of equally long members, unless there are none.
fn push_members<T: Copy, const N: usize>(
    attributes: &Attributes,
    type_code: u8,
    members: &[T],
    octets: impl Fn(T) -> [u8; N],
    out: &mut Vec<u8>,
) {
    if !members.is_empty() {
        let value: Vec<u8> = members.iter().flat_map(|member| octets(*member)).collect();
        push_attribute(transitive_flags(attributes, type_code), type_code, &value, out);
    }
}

fn transitive_flags(attributes: &Attributes, type_code: u8) -> u8 {
    OPTIONAL_TRANSITIVE
        | if attributes.partial.contains(type_code) {
            flags::PARTIAL
        } else {
            0
        }
}

fn push_aggregator(
    attributes: &Attributes,
    aggregator: Aggregator,
    context: &EncodeContext,
    out: &mut Vec<u8>,
) {
    let mut value = Vec::with_capacity(8);
    if context.four_octet_as {
        value.extend_from_slice(&aggregator.asn.to_be_bytes());
    } else {
        value.extend_from_slice(&two_octet_asn(aggregator.asn));
    }
    value.extend_from_slice(&aggregator.address.octets());
    let flags = transitive_flags(attributes, type_code::AGGREGATOR);
    push_attribute(flags, type_code::AGGREGATOR, &value, out);
}

/// Appends AS4_PATH and AS4_AGGREGATOR where the two-octet attributes lost something (RFC 6793 section 4.2.2).
fn push_four_octet_copies(attributes: &Attributes, out: &mut Vec<u8>) {
    // Confederation segments must not be in AS4_PATH.
    let path = attributes.as_path.without_confederation();
    if path.asns().any(needs_four_octets) {
        push_attribute(OPTIONAL_TRANSITIVE, type_code::AS4_PATH, path.octets(), out);
    }
    if let Some(aggregator) = attributes
        .aggregator
        .filter(|aggregator| needs_four_octets(aggregator.asn))
    {
        let mut value = aggregator.asn.to_be_bytes().to_vec();
        value.extend_from_slice(&aggregator.address.octets());
        push_attribute(OPTIONAL_TRANSITIVE, type_code::AS4_AGGREGATOR, &value, out);
    }
}

fn needs_four_octets(asn: u32) -> bool {
    u16::try_from(asn).is_err()
}

fn two_octet_asn(asn: u32) -> [u8; 2] {
    u16::try_from(asn).unwrap_or(AS_TRANS).to_be_bytes()
}

/// The path with two-octet AS numbers, those that do not fit replaced by `AS_TRANS`.
fn two_octet_path(path: &AsPath) -> Vec<u8> {
    let mut octets = Vec::new();
    for segment in path.segments() {
        octets.extend_from_slice(&[
            segment.kind as u8,
            u8::try_from(segment.count()).unwrap_or(u8::MAX),
        ]);
        octets.extend(segment.asns().flat_map(two_octet_asn));
    }
    octets
}
