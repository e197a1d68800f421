//! Real UPDATE messages of route collectors (`data/README.md`): decoded, compared with what another program printed of
//! them, encoded again in several forms and decoded once more.
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test may panic")]

use std::collections::BTreeMap;
use std::io::Read;
use std::net::IpAddr;
use std::path::Path;

use calidris_bgp::family::{Family, FamilyPrefix, Ipv4Unicast, Ipv6Unicast, Prefix};
use calidris_bgp::wire::Message;
use calidris_bgp::wire::attr::{AttributeErrorKind, Attributes, NextHop, Origin};
use calidris_bgp::wire::context::{DecodeContext, EncodeContext, FamilyContext, PeerKind};
use calidris_bgp::wire::frame::{Frame, MessageLimit};
use calidris_bgp::wire::nlri::{FamilyNlri, Nlri, NlriField};
use calidris_bgp::wire::update::{Update, UpdateTemplate};

#[test]
fn updates_of_2007_read_as_expected() {
    check("updates.20071015.1505");
}

#[test]
fn updates_of_2010_read_as_expected() {
    check("updates.20100722.2015");
}

#[test]
fn updates_of_2016_read_as_expected() {
    check("updates.20160811.1600");
}

#[test]
fn a_withdrawal_of_4096_prefixes_reads_as_expected() {
    check("updates.long_withdrawal");
}

#[test]
fn trailing_bits_of_a_prefix_are_masked_but_a_stray_octet_behind_it_is_refused() {
    let octets = read_gz("updates.nlri_mask_trailing_bits.mrt.gz");
    let record = &records(&octets)[0];
    let refused = Update::decode(&record.message[19..], &context(record)).unwrap_err();
    assert_eq!(refused.code().numbers(), (3, 10));
    let body = &record.message[19..record.message.len() - 1];
    let lines = printed(record, &Update::decode(body, &context(record)).unwrap());
    let expected = String::from_utf8(read_gz("updates.nlri_mask_trailing_bits.expected.txt.gz")).unwrap();
    assert_eq!(lines, expected.lines().map(normalized).collect::<Vec<_>>());
}

fn check(name: &str) {
    let expected = String::from_utf8(read_gz(&format!("{name}.expected.txt.gz"))).unwrap();
    let expected = count(
        expected
            .lines()
            .filter(|line| !line.contains("|STATE|"))
            .map(normalized),
    );
    let octets = read_gz(&format!("{name}.mrt.gz"));
    let mut lines = Vec::new();
    for record in records(&octets) {
        let context = context(&record);
        let frame = Frame::parse(record.message, MessageLimit::Extended)
            .unwrap()
            .unwrap();
        let Message::Update(body) = Message::decode(frame).unwrap() else {
            continue;
        };
        let update = Update::decode(body, &context).unwrap();
        // One peer of 2007 sent the next hop `::`; `normalized` expects its routes to be withdrawn.
        let errors_expected = update
            .errors
            .iter()
            .all(|error| error.kind == AttributeErrorKind::NextHop);
        assert!(errors_expected, "{:?}", update.errors);
        lines.extend(printed(&record, &update));
        survives_encoding(&update);
    }
    let read = count(lines.into_iter());
    let missing: Vec<_> = expected
        .iter()
        .filter(|entry| read.get(entry.0) != Some(entry.1))
        .take(5)
        .collect();
    let unexpected: Vec<_> = read
        .iter()
        .filter(|entry| expected.get(entry.0) != Some(entry.1))
        .take(5)
        .collect();
    assert!(
        missing.is_empty() && unexpected.is_empty(),
        "missing: {missing:#?}\nunexpected: {unexpected:#?}"
    );
}

fn read_gz(name: &str) -> Vec<u8> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/data")
        .join(name);
    let file = std::fs::File::open(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let mut octets = Vec::new();
    flate2::read::GzDecoder::new(file)
        .read_to_end(&mut octets)
        .unwrap();
    octets
}

fn count(lines: impl Iterator<Item = String>) -> BTreeMap<String, usize> {
    lines.fold(BTreeMap::new(), |mut counts, line| {
        *counts.entry(line).or_default() += 1;
        counts
    })
}

/// A BGP message out of an MRT record (RFC 6396 section 4.4).
struct Record<'a> {
    timestamp: u32,
    four_octet_as: bool,
    peer_as: u32,
    peer: IpAddr,
    message: &'a [u8],
}

fn records(mut octets: &[u8]) -> Vec<Record<'_>> {
    const BGP4MP: u16 = 16;
    const MESSAGE: u16 = 1;
    const MESSAGE_AS4: u16 = 4;
    let mut records = Vec::new();
    while !octets.is_empty() {
        let timestamp = u32::from_be_bytes(octets[..4].try_into().unwrap());
        let record_type = u16::from_be_bytes(octets[4..6].try_into().unwrap());
        let subtype = u16::from_be_bytes(octets[6..8].try_into().unwrap());
        let length = u32::from_be_bytes(octets[8..12].try_into().unwrap()) as usize;
        let content = &octets[12..12 + length];
        octets = &octets[12 + length..];
        if record_type != BGP4MP || !matches!(subtype, MESSAGE | MESSAGE_AS4) {
            continue;
        }
        let four_octet_as = subtype == MESSAGE_AS4;
        let (peer_as, content) = if four_octet_as {
            (
                u32::from_be_bytes(content[..4].try_into().unwrap()),
                &content[8..],
            )
        } else {
            (
                u16::from_be_bytes(content[..2].try_into().unwrap()).into(),
                &content[4..],
            )
        };
        let (peer, message): (IpAddr, _) = match &content[2..4] {
            [0, 1] => (
                <[u8; 4]>::try_from(&content[4..8]).unwrap().into(),
                &content[12..],
            ),
            _ => (
                <[u8; 16]>::try_from(&content[4..20]).unwrap().into(),
                &content[36..],
            ),
        };
        records.push(Record {
            timestamp,
            four_octet_as,
            peer_as,
            peer,
            message,
        });
    }
    records
}

const NEGOTIATED: FamilyContext = FamilyContext {
    negotiated: true,
    add_path: false,
    extended_next_hop: false,
};

fn context(record: &Record<'_>) -> DecodeContext {
    DecodeContext {
        four_octet_as: record.four_octet_as,
        // LOCAL_PREF of the collector's peers is printed, so it has to be kept.
        peer_kind: PeerKind::Internal,
        aigp: true,
        ipv4_unicast: NEGOTIATED,
        ipv6_unicast: NEGOTIATED,
    }
}

/// The lines `bgpdump -m` prints of the message.
fn printed(record: &Record<'_>, update: &Update<'_>) -> Vec<String> {
    let head = |kind| {
        format!(
            "BGP4MP|{}|{kind}|{}|{}",
            record.timestamp, record.peer, record.peer_as
        )
    };
    let mut lines = Vec::new();
    for nlri in &update.unreach {
        lines.extend(
            prefixes(nlri)
                .iter()
                .map(|prefix| format!("{}|{prefix}", head("W"))),
        );
    }
    for reach in &update.reach {
        let attributes = printed_attributes(&reach.attributes);
        lines.extend(
            prefixes(&reach.nlri)
                .iter()
                .map(|prefix| format!("{}|{prefix}|{attributes}", head("A"))),
        );
    }
    lines
}

fn prefixes(nlri: &FamilyNlri<'_>) -> Vec<String> {
    match nlri {
        FamilyNlri::Ipv4(field) => field.iter().map(|nlri| nlri.prefix.to_string()).collect(),
        FamilyNlri::Ipv6(field) => field.iter().map(|nlri| nlri.prefix.to_string()).collect(),
    }
}

fn printed_attributes(attributes: &Attributes) -> String {
    let origin = match attributes.origin {
        Origin::Igp => "IGP",
        Origin::Egp => "EGP",
        Origin::Incomplete => "INCOMPLETE",
    };
    let mut communities: Vec<_> = attributes
        .communities
        .as_slice()
        .iter()
        .map(ToString::to_string)
        .collect();
    communities.sort();
    let aggregator = attributes
        .aggregator
        .map(|aggregator| format!("{} {}", aggregator.asn, aggregator.address));
    format!(
        "{}|{origin}|{}|{}|{}|{}|{}|{}|",
        attributes.as_path,
        attributes.next_hop.map(NextHop::address).unwrap(),
        attributes.local_pref.unwrap_or_default(),
        attributes.med.unwrap_or_default(),
        communities.join(" "),
        if attributes.atomic_aggregate { "AG" } else { "NAG" },
        aggregator.unwrap_or_default(),
    )
}

/// A printed line with its addresses in their canonical form, its communities as numbers in a fixed order and without repetition.
fn normalized(line: &str) -> String {
    let mut fields: Vec<String> = line.split('|').map(str::to_owned).collect();
    for field in &mut fields {
        if let Ok(address) = field.parse::<IpAddr>() {
            *field = address.to_string();
        } else if let Ok(prefix) = field.parse::<Prefix>() {
            *field = prefix.to_string();
        }
    }
    if fields.get(8).is_some_and(|next_hop| next_hop == "::") {
        fields.truncate(6);
        "W".clone_into(&mut fields[2]);
    }
    if let Some(communities) = fields.get_mut(11) {
        let mut sorted: Vec<_> = communities.split_whitespace().collect();
        for community in &mut sorted {
            if *community == "no-export" {
                *community = "65535:65281";
            }
        }
        sorted.sort_unstable();
        sorted.dedup();
        *communities = sorted.join(" ");
    }
    fields.join("|")
}

/// Encodes what was read for four-octet and two-octet AS speakers and reads it again.
fn survives_encoding(update: &Update<'_>) {
    for four_octet_as in [true, false] {
        for nlri in &update.unreach {
            match nlri {
                FamilyNlri::Ipv4(field) => survives::<Ipv4Unicast>(None, *field, four_octet_as),
                FamilyNlri::Ipv6(field) => survives::<Ipv6Unicast>(None, *field, four_octet_as),
            }
        }
        for reach in &update.reach {
            let attributes = Some(&reach.attributes);
            match reach.nlri {
                FamilyNlri::Ipv4(field) => survives::<Ipv4Unicast>(attributes, field, four_octet_as),
                FamilyNlri::Ipv6(field) => survives::<Ipv6Unicast>(attributes, field, four_octet_as),
            }
        }
    }
}

fn survives<F: Family>(attributes: Option<&Attributes>, field: NlriField<'_, F>, four_octet_as: bool) {
    let encode = EncodeContext {
        four_octet_as,
        message_limit: MessageLimit::Standard,
        ipv4_unicast: NEGOTIATED,
        ipv6_unicast: NEGOTIATED,
    };
    let decode = DecodeContext {
        four_octet_as,
        peer_kind: PeerKind::Internal,
        aigp: true,
        ipv4_unicast: NEGOTIATED,
        ipv6_unicast: NEGOTIATED,
    };
    let template = match attributes {
        Some(attributes) => UpdateTemplate::<F>::announce(attributes, &encode).unwrap(),
        None => UpdateTemplate::<F>::withdraw(&encode),
    };
    let mut octets = Vec::new();
    template.encode_all(field, &mut octets);
    let mut read: Vec<Nlri<F>> = Vec::new();
    let mut rest = octets.as_slice();
    while let Some(frame) = Frame::parse(rest, MessageLimit::Standard).unwrap() {
        rest = &rest[frame.total_len()..];
        let update = Update::decode(frame.body, &decode).unwrap();
        assert_eq!(update.errors, []);
        for reach in &update.reach {
            assert_eq!(Some(&reach.attributes), attributes);
        }
        let fields = update
            .unreach
            .iter()
            .chain(update.reach.iter().map(|reach| &reach.nlri));
        read.extend(fields.flat_map(of_family::<F>));
    }
    assert_eq!(read, field.iter().collect::<Vec<_>>());
}

fn of_family<F: Family>(nlri: &FamilyNlri<'_>) -> Vec<Nlri<F>> {
    let wanted = |prefix: Prefix, path_id| Nlri {
        prefix: F::Prefix::from_prefix(prefix).unwrap(),
        path_id,
    };
    match nlri {
        FamilyNlri::Ipv4(field) => field
            .iter()
            .map(|nlri| wanted(nlri.prefix.into(), nlri.path_id))
            .collect(),
        FamilyNlri::Ipv6(field) => field
            .iter()
            .map(|nlri| wanted(nlri.prefix.into(), nlri.path_id))
            .collect(),
    }
}
