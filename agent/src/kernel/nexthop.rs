//! Nexthop objects: where packets go as an object of its own, which routes refer to by number, so that a change of it is one write
//! however many routes there are.
//!
//! Layouts: `struct nhmsg`, `struct nexthop_grp`, `NHA_…` (linux/nexthop.h). The kernel refuses a gateway that is not on its link or
//! whose link is down. A link that goes down takes its gateways out of their groups, a group that becomes empty goes with its
//! routes, and nobody is told of either: the news of the link is all there is.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;

use netlink_packet_core::{NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REPLACE, NLM_F_REQUEST, NlasIterator};

use super::message::{address, number};
use super::netlink::NetlinkSocket;
use super::wire::{attribute, message};
use super::{KernelError, NexthopChange};
use crate::delta::Change;
use crate::ours::{NEXTHOP_IDS, ROUTE_PROTOCOL_BGP};

const RTM_NEWNEXTHOP: u16 = 104;
const RTM_DELNEXTHOP: u16 = 105;
const RTM_GETNEXTHOP: u16 = 106;
const NHA_ID: u16 = 1;
const NHA_GROUP: u16 = 2;
const NHA_GROUP_TYPE: u16 = 3;
const NHA_BLACKHOLE: u16 = 4;
const NHA_OIF: u16 = 5;
const NHA_GATEWAY: u16 = 6;
const NHA_ENCAP_TYPE: u16 = 7;
const NHA_FDB: u16 = 11;
const RTNH_F_ONLINK: u32 = 4;
const HEADER_BYTES: usize = 8;
/// `struct nexthop_grp`: number, weight less one, reserved.
const MEMBER_BYTES: usize = 8;

/// A nexthop object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Nexthop {
    /// A gateway on a link.
    Gateway {
        /// Its address.
        address: IpAddr,
        /// The link's name.
        interface: String,
    },
    /// Gateways that share the packets evenly, by their numbers.
    Group(BTreeSet<u32>),
    /// Of a kind that we never make.
    Other,
}

/// The nexthop objects that are there, as far as they matter.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SeenNexthops {
    /// Those of ours.
    pub ours: BTreeMap<u32, Nexthop>,
    /// Numbers of ours that somebody else has.
    pub taken: BTreeSet<u32>,
}

impl fmt::Display for Nexthop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Gateway { address, interface } => write!(f, "via {address} dev {interface}"),
            Self::Group(members) => {
                let members: Vec<String> = members.iter().map(u32::to_string).collect();
                write!(f, "group {}", members.join("/"))
            }
            Self::Other => f.write_str("of a kind not ours"),
        }
    }
}

/// All that are there. `name_of` names links by their indexes.
pub(super) fn list(
    socket: &mut NetlinkSocket,
    mut name_of: impl FnMut(u32) -> String,
) -> Result<SeenNexthops, KernelError> {
    let mut request = Vec::new();
    message(
        RTM_GETNEXTHOP,
        NLM_F_REQUEST | NLM_F_DUMP,
        &mut request,
        |request| request.extend_from_slice(&[0; HEADER_BYTES]),
    );
    let mut seen = SeenNexthops::default();
    socket.dump_bytes(&request, "list the nexthop objects", |payload| {
        let Some(payload) = payload else {
            seen = SeenNexthops::default();
            return Ok(());
        };
        let found = parse(payload, &mut name_of)?;
        if !NEXTHOP_IDS.contains(&found.id) {
            return Ok(());
        }
        if found.protocol == ROUTE_PROTOCOL_BGP {
            seen.ours.insert(found.id, found.nexthop);
        } else {
            seen.taken.insert(found.id);
        }
        Ok(())
    })?;
    Ok(seen)
}

/// Carries the changes out in order. `index_of` finds a link.
pub(super) fn carry_out(
    socket: &mut NetlinkSocket,
    changes: &[NexthopChange],
    index_of: impl Fn(&NetlinkSocket, &str) -> Result<u32, KernelError>,
) -> Vec<Result<(), KernelError>> {
    let mut results: Vec<Result<(), KernelError>> = Vec::with_capacity(changes.len());
    let mut requests = Vec::new();
    for change in changes {
        let index = match change {
            Change::Create {
                value: Nexthop::Gateway { interface, .. },
                ..
            } => index_of(socket, interface).map(Some),
            _ => Ok(None),
        };
        results.push(index.map(|index| requests.push((change, index))));
    }
    let write = |position: usize, datagram: &mut Vec<u8>| {
        if let Some((change, index)) = requests.get(position) {
            request(change, *index, datagram);
        }
    };
    let action = |position: usize| {
        requests
            .get(position)
            .map(|(change, _)| format!("change a nexthop object: {change}"))
            .unwrap_or_default()
    };
    let mut answers = socket.batch_bytes(requests.len(), write, action).into_iter();
    for result in results.iter_mut().filter(|result| result.is_ok()) {
        *result = answers.next().unwrap_or_else(|| {
            Err(KernelError::Malformed {
                action: "change nexthop objects".to_owned(),
                reason: "no answer".to_owned(),
            })
        });
    }
    results
}

/// Appends the request for a change. A replacement never makes what is not there.
fn request(change: &NexthopChange, index: Option<u32>, datagram: &mut Vec<u8>) {
    let (kind, flags, nexthop) = match change {
        Change::Create { value, .. } => (RTM_NEWNEXTHOP, NLM_F_CREATE | NLM_F_EXCL, Some(value)),
        Change::Replace { to, .. } => (RTM_NEWNEXTHOP, NLM_F_REPLACE, Some(to)),
        Change::Delete { .. } => (RTM_DELNEXTHOP, 0, None),
    };
    let family = match nexthop {
        Some(Nexthop::Gateway { address, .. }) if address.is_ipv6() => libc::AF_INET6,
        Some(Nexthop::Gateway { .. }) => libc::AF_INET,
        _ => libc::AF_UNSPEC,
    };
    // The kernel wants a request for deletion to name nobody.
    let protocol = nexthop.map_or(0, |_| ROUTE_PROTOCOL_BGP);
    message(kind, flags | NLM_F_REQUEST, datagram, |datagram| {
        datagram.extend_from_slice(&[
            u8::try_from(family).unwrap_or_default(),
            0,
            protocol,
            0,
            0,
            0,
            0,
            0,
        ]);
        attribute(NHA_ID, &change.key().to_ne_bytes(), datagram);
        match nexthop {
            Some(Nexthop::Gateway { address, .. }) => {
                match address {
                    IpAddr::V4(v4) => attribute(NHA_GATEWAY, &v4.octets(), datagram),
                    IpAddr::V6(v6) => attribute(NHA_GATEWAY, &v6.octets(), datagram),
                }
                attribute(NHA_OIF, &index.unwrap_or_default().to_ne_bytes(), datagram);
            }
            Some(Nexthop::Group(members)) => {
                let mut bytes = Vec::with_capacity(members.len() * MEMBER_BYTES);
                for member in members {
                    bytes.extend_from_slice(&member.to_ne_bytes());
                    bytes.extend_from_slice(&[0; MEMBER_BYTES - 4]);
                }
                attribute(NHA_GROUP, &bytes, datagram);
            }
            Some(Nexthop::Other) | None => {}
        }
    });
}

/// A nexthop object as a message from the kernel has it.
pub(crate) struct Parsed {
    /// Its number.
    pub(crate) id: u32,
    /// Who made it.
    pub(crate) protocol: u8,
    nexthop: Nexthop,
}

/// Reads a nexthop object.
pub(crate) fn parse(payload: &[u8], name_of: &mut impl FnMut(u32) -> String) -> Result<Parsed, String> {
    let header: &[u8; HEADER_BYTES] = payload.first_chunk().ok_or("nexthop header cut short")?;
    let [_, _, protocol, _, f0, f1, f2, f3] = *header;
    let is_onlink = u32::from_ne_bytes([f0, f1, f2, f3]) & RTNH_F_ONLINK != 0;
    let (mut id, mut gateway, mut interface, mut members) = (None, None, None, None);
    let mut is_strange = is_onlink;
    for attribute in NlasIterator::new(payload.get(HEADER_BYTES..).unwrap_or_default()) {
        let attribute = attribute.map_err(|error| error.to_string())?;
        match attribute.kind() {
            NHA_ID => id = Some(number(&attribute)?),
            NHA_OIF => interface = Some(number(&attribute)?),
            NHA_GATEWAY => gateway = Some(address(attribute.value())?),
            NHA_GROUP => members = even_members(attribute.value()),
            NHA_GROUP_TYPE => is_strange |= attribute.value() != [0; 2],
            NHA_BLACKHOLE | NHA_ENCAP_TYPE | NHA_FDB => is_strange = true,
            _ => {}
        }
    }
    let nexthop = match (gateway, interface, members) {
        _ if is_strange => Nexthop::Other,
        (Some(address), Some(index), None) => Nexthop::Gateway {
            address,
            interface: name_of(index),
        },
        (None, None, Some(members)) => Nexthop::Group(members),
        _ => Nexthop::Other,
    };
    Ok(Parsed {
        id: id.ok_or("a nexthop object without a number")?,
        protocol,
        nexthop,
    })
}

/// The members of a group; `None` unless all weigh the same as ours do.
fn even_members(bytes: &[u8]) -> Option<BTreeSet<u32>> {
    let (members, rest) = bytes.as_chunks::<MEMBER_BYTES>();
    let even = members.iter().map(|[i0, i1, i2, i3, weight, ..]| {
        (*weight == 0).then_some(u32::from_ne_bytes([*i0, *i1, *i2, *i3]))
    });
    even.collect::<Option<BTreeSet<u32>>>()
        .filter(|_| rest.is_empty())
}

#[cfg(test)]
mod tests {
    use proptest::collection::{btree_set, vec};
    use proptest::prelude::*;

    use super::*;

    fn name_of(index: u32) -> String {
        format!("if{index}")
    }

    fn any_nexthop() -> impl Strategy<Value = (Nexthop, u32)> {
        let address = prop_oneof![
            any::<u32>().prop_map(|bits| IpAddr::V4(bits.into())),
            any::<u128>().prop_map(|bits| IpAddr::V6(bits.into())),
        ];
        prop_oneof![
            (address, 1_u32..1000).prop_map(|(address, index)| {
                let interface = name_of(index);
                (Nexthop::Gateway { address, interface }, index)
            }),
            btree_set(any::<u32>(), 1..9).prop_map(|members| (Nexthop::Group(members), 0)),
        ]
    }

    /// The request that creates the object, without the header of netlink.
    fn bytes_of(id: u32, nexthop: &Nexthop, index: u32) -> Vec<u8> {
        let change = Change::Create {
            key: id,
            value: nexthop.clone(),
        };
        let mut bytes = Vec::new();
        request(&change, Some(index), &mut bytes);
        bytes.split_off(16)
    }

    proptest! {
        #[test]
        fn an_object_is_read_as_it_was_written(id in any::<u32>(), (nexthop, index) in any_nexthop()) {
            let parsed = parse(&bytes_of(id, &nexthop, index), &mut name_of).unwrap();
            prop_assert_eq!((parsed.id, parsed.protocol), (id, ROUTE_PROTOCOL_BGP));
            prop_assert_eq!(parsed.nexthop, nexthop);
        }

        #[test]
        fn no_bytes_make_reading_panic(
            (nexthop, index) in any_nexthop(),
            garbage in vec(any::<u8>(), 0..100),
            position in 0_usize..100,
            value in any::<u8>(),
            cut in 0_usize..120,
        ) {
            let _ = parse(&garbage, &mut name_of);
            let mut bytes = bytes_of(7, &nexthop, index);
            if let Some(byte) = bytes.get_mut(position) {
                *byte = value;
            }
            bytes.truncate(cut);
            let _ = parse(&bytes, &mut name_of);
        }
    }

    #[test]
    fn what_we_never_make_is_of_another_kind() {
        let group = Nexthop::Group([1, 2].into());
        let mut weighted = bytes_of(7, &group, 0);
        let last = weighted.len() - 4;
        weighted[last] = 1;
        let mut resilient = bytes_of(7, &group, 0);
        attribute(NHA_GROUP_TYPE, &1_u16.to_ne_bytes(), &mut resilient);
        let mut black_hole = bytes_of(7, &group, 0);
        attribute(NHA_BLACKHOLE, &[], &mut black_hole);
        for bytes in [weighted, resilient, black_hole] {
            assert_eq!(parse(&bytes, &mut name_of).unwrap().nexthop, Nexthop::Other);
        }
    }
}
