//! Neighbours: the requests, and what the kernel's answers and notifications say.
//!
//! Sources: linux/neighbour.h; `NTF_SELF` makes an entry of the VXLAN device's own forwarding database (bridge(8), "fdb …
//! self").

use std::collections::BTreeMap;

use netlink_packet_core::{NLM_F_CREATE, NLM_F_REPLACE, NlasIterator};
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::route::RouteProtocol;
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use rustix::net::netdevice;

use super::linux::{index_of, name_socket};
use super::message::{address, dump_neighbours, family};
use super::netlink::{NetlinkSocket, Request};
use super::{KernelError, NeighborChange, ObservedNeighbor};
use crate::delta::Change;
use crate::desired::{NeighborKey, NeighborSubject, NeighborTarget};
use crate::ours::ROUTE_PROTOCOL_LOCAL;

const NDA_DST: u16 = 1;
const NDA_LLADDR: u16 = 2;
const NDA_PROTOCOL: u16 = 12;
const NUD_PERMANENT: u16 = 0x80;
const HEADER_BYTES: usize = 12;

/// A neighbour as a message from the kernel has it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Seen {
    /// Index of its link.
    pub(crate) index: u32,
    /// What is looked up.
    pub(crate) subject: NeighborSubject,
    /// What is found; `None`: it is not known (now).
    pub(crate) found: Option<ObservedNeighbor>,
}

/// Reads a neighbour (`struct ndmsg`); `None` for kinds that we never make.
pub(crate) fn parse(payload: &[u8]) -> Result<Option<Seen>, String> {
    let header: &[u8; HEADER_BYTES] = payload.first_chunk().ok_or("neighbour header cut short")?;
    let [family, _, _, _, i0, i1, i2, i3, s0, s1, ..] = *header;
    let (mut destination, mut mac, mut protocol) = (None, None, None);
    for attribute in NlasIterator::new(payload.get(HEADER_BYTES..).unwrap_or_default()) {
        let attribute = attribute.map_err(|error| error.to_string())?;
        match attribute.kind() {
            NDA_DST => destination = Some(address(attribute.value())?),
            NDA_LLADDR => mac = <[u8; 6]>::try_from(attribute.value()).ok(),
            NDA_PROTOCOL => protocol = attribute.value().first().copied(),
            _ => {}
        }
    }
    let is_of_device = i32::from(family) == libc::AF_BRIDGE;
    let (subject, target) = match (destination, mac) {
        (Some(node), Some(mac)) if is_of_device => {
            (NeighborSubject::Mac(mac), Some(NeighborTarget::Node(node)))
        }
        (Some(address), mac) if !is_of_device => {
            (NeighborSubject::Address(address), mac.map(NeighborTarget::Mac))
        }
        _ => return Ok(None),
    };
    Ok(Some(Seen {
        index: u32::from_ne_bytes([i0, i1, i2, i3]),
        subject,
        found: target.map(|target| ObservedNeighbor {
            target,
            is_permanent: u16::from_ne_bytes([s0, s1]) & NUD_PERMANENT != 0,
            is_marked: protocol == Some(ROUTE_PROTOCOL_LOCAL),
        }),
    }))
}

/// The neighbours of the namespace of which it is known what is found.
pub(super) fn list(
    socket: &mut NetlinkSocket,
) -> Result<BTreeMap<NeighborKey, ObservedNeighbor>, KernelError> {
    let names_from = name_socket()?;
    let mut names = BTreeMap::new();
    let mut name_of = |index| {
        let name = || netdevice::index_to_name(&names_from, index).ok();
        names.entry(index).or_insert_with(name).clone()
    };
    let mut neighbors = BTreeMap::new();
    for family in [AddressFamily::Unspec, AddressFamily::Bridge] {
        let mut part = BTreeMap::new();
        socket.dump(&dump_neighbours(family), "list the neighbours", |payload| {
            let Some(payload) = payload else {
                part.clear();
                return Ok(());
            };
            // A link that has gone meanwhile took its neighbours with it.
            if let Some(Seen {
                index,
                subject,
                found: Some(found),
            }) = parse(payload)?
                && let Some(interface) = name_of(index)
            {
                part.insert(NeighborKey { interface, subject }, found);
            }
            Ok(())
        })?;
        neighbors.extend(part);
    }
    Ok(neighbors)
}

pub(super) fn change(socket: &mut NetlinkSocket, changes: &[NeighborChange]) -> Vec<Result<(), KernelError>> {
    let mut indexes: BTreeMap<&str, Option<u32>> = BTreeMap::new();
    let (mut requests, mut texts, mut is_sent) = (Vec::new(), Vec::new(), Vec::new());
    for change in changes {
        let interface = change.key().interface.as_str();
        let index = *indexes
            .entry(interface)
            .or_insert_with(|| index_of(socket, interface).ok());
        is_sent.push(index.is_some());
        if let Some(index) = index {
            requests.push(request(index, change));
            texts.push(format!("{change}"));
        }
    }
    let mut answers = socket
        .batch(&requests, |position| {
            texts.get(position).cloned().unwrap_or_default()
        })
        .into_iter();
    let missing = |change: &NeighborChange| KernelError::NoSuchLink {
        name: change.key().interface.clone(),
    };
    changes
        .iter()
        .zip(is_sent)
        .map(|(change, is_sent)| {
            let answer = if is_sent { answers.next() } else { None };
            answer.unwrap_or_else(|| Err(missing(change)))
        })
        .collect()
}

fn request(index: u32, change: &NeighborChange) -> Request {
    let mut message = NeighbourMessage::default();
    message.header.ifindex = index;
    message.header.state = NeighbourState::Permanent;
    let subject = change.key().subject;
    match subject {
        NeighborSubject::Address(address) => {
            message.header.family = family(address.is_ipv6());
            message
                .attributes
                .push(NeighbourAttribute::Destination(NeighbourAddress::from(address)));
        }
        NeighborSubject::Mac(mac) => {
            message.header.family = AddressFamily::Bridge;
            message.header.flags = NeighbourFlags::Own;
            message
                .attributes
                .push(NeighbourAttribute::LinkLayerAddress(mac.to_vec()));
        }
    }
    let target = match change {
        Change::Create { value, .. } | Change::Replace { to: value, .. } => *value,
        Change::Delete { .. } => {
            return Request {
                message: RouteNetlinkMessage::DelNeighbour(message),
                flags: 0,
            };
        }
    };
    match target {
        NeighborTarget::Mac(mac) => {
            let mark = NeighbourAttribute::Protocol(RouteProtocol::from(ROUTE_PROTOCOL_LOCAL));
            message
                .attributes
                .extend([NeighbourAttribute::LinkLayerAddress(mac.to_vec()), mark]);
        }
        NeighborTarget::Node(address) => message
            .attributes
            .push(NeighbourAttribute::Destination(NeighbourAddress::from(address))),
    }
    Request {
        message: RouteNetlinkMessage::NewNeighbour(message),
        flags: NLM_F_CREATE | NLM_F_REPLACE,
    }
}
