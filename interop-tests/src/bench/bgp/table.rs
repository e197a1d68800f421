//! The table that is fed: UPDATEs encoded beforehand.
//!
//! Prefixes are consecutive /24 from 1.0.0.0 on (there are 14.5 million below 224.0.0.0), in the order of a table that a peer
//! sends: those that share path attributes stand together. Attribute sets differ in AS path (2 to 6 hops), communities and
//! origin, so that a subject that shares equal sets finds just as many as there are.

use std::net::Ipv4Addr;

use calidris_bgp::family::{Ipv4Prefix, Ipv4Unicast};
use calidris_bgp::wire::attr::{AsPath, Attributes, Community, NextHop};
use calidris_bgp::wire::context::{EncodeContext, FamilyContext};
use calidris_bgp::wire::frame::MessageLimit;
use calidris_bgp::wire::nlri::Nlri;
use calidris_bgp::wire::update::UpdateTemplate;

use super::traffic::{FEEDER, FEEDER_AS};

/// A table of IPv4 routes as a stream of UPDATE messages.
#[derive(Debug)]
pub(super) struct Table {
    /// How many prefixes there are.
    pub(super) prefixes: usize,
    /// The messages, one behind the other.
    pub(super) messages: Vec<u8>,
}

impl Table {
    /// `prefixes` routes of which each `per_path` share their attributes.
    pub(super) fn new(prefixes: usize, per_path: usize) -> Self {
        let context = EncodeContext {
            four_octet_as: true,
            message_limit: MessageLimit::Standard,
            ipv4_unicast: FamilyContext {
                negotiated: true,
                ..FamilyContext::default()
            },
            ipv6_unicast: FamilyContext::default(),
        };
        let per_path = per_path.max(1);
        let mut messages = Vec::new();
        for (number, first) in (0..prefixes).step_by(per_path).enumerate() {
            let shared = first..prefixes.min(first + per_path);
            // A set with a next hop always fits.
            if let Ok(template) = UpdateTemplate::<Ipv4Unicast>::announce(&attributes(number), &context) {
                template.encode_all(shared.filter_map(prefix).map(Nlri::new), &mut messages);
            }
        }
        Self { prefixes, messages }
    }
}

/// The `index`th /24; `None` beyond the last.
fn prefix(index: usize) -> Option<Ipv4Prefix> {
    let network = u32::try_from(index).ok()?.checked_add(0x0001_0000)?;
    (network < 0x00e0_0000).then(|| Ipv4Prefix::new(Ipv4Addr::from(network << 8), 24))?
}

fn attributes(number: usize) -> Attributes {
    let seed = u32::try_from(number).unwrap_or(u32::MAX);
    let hops = 1 + seed % 5;
    let mut path = vec![FEEDER_AS];
    // 4-octet numbers that spell the set's own number: no two sets have the same path.
    path.extend((0..hops).map(|hop| 100_000 + (seed.wrapping_mul(hop + 1) % 50_000)));
    path.push(4_200_000_000 + seed % 90_000_000);
    Attributes {
        as_path: AsPath::from_sequence(&path),
        next_hop: Some(NextHop::V4(FEEDER)),
        med: (seed % 3 == 0).then_some(seed % 100),
        communities: (0..seed % 4)
            .map(|low| Community::new(65_010, u16::try_from(low + seed % 1000).unwrap_or(0)))
            .collect(),
        ..Attributes::default()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::super::traffic::count_prefixes;
    use super::*;

    #[test]
    fn a_table_has_the_prefixes_and_attribute_sets_that_were_asked_for() {
        let table = Table::new(1003, 10);
        let (prefixes, rest) = count_prefixes(&table.messages).unwrap();
        assert_eq!((prefixes, rest), (1003, table.messages.len()));
        let sets: BTreeSet<String> = (0..1000)
            .map(|number| format!("{:?}", attributes(number)))
            .collect();
        assert_eq!(sets.len(), 1000);
        assert_eq!(prefix(0).unwrap().to_string(), "1.0.0.0/24");
        assert!(prefix(14_000_000).is_some() && prefix(15_000_000).is_none());
    }
}
