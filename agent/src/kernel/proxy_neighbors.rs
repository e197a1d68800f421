//! Proxy neighbours: the requests, and what the kernel's answers say.
//!
//! Layouts: `struct ndmsg`, `NTF_PROXY`, `NDA_…` (linux/neighbour.h). Since Linux 5.0 an entry says who made it (`NDA_PROTOCOL`). The kernel
//! knows no exclusive creation of them: what is made where there is one already takes it over, mark and all. So they are read first.

use std::collections::BTreeMap;

use netlink_packet_core::{NLM_F_CREATE, NlasIterator};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage,
};
use netlink_packet_route::route::RouteProtocol;

use super::linux::index_of;
use super::message::{address, family};
use super::netlink::{NetlinkSocket, Request};
use super::{KernelError, Maker, ProxyNeighborChange};
use crate::delta::Change;
use crate::desired::ProxyNeighbor;
use crate::ours::ROUTE_PROTOCOL_LOCAL;

const NDA_DST: u16 = 1;
const NDA_PROTOCOL: u16 = 12;
const NTF_PROXY: u8 = 8;
const HEADER_BYTES: usize = 12;

/// Those of the namespace. `name_of` names links by their indexes.
pub(super) fn list(
    socket: &mut NetlinkSocket,
    mut name_of: impl FnMut(u32) -> String,
) -> Result<BTreeMap<ProxyNeighbor, Maker>, KernelError> {
    // Of all families at once.
    let mut message = NeighbourMessage::default();
    message.header.flags = NeighbourFlags::Proxy;
    let message = RouteNetlinkMessage::GetNeighbour(message);
    let mut found = BTreeMap::new();
    socket.dump(&message, "list the proxy neighbours", |payload| {
        match payload {
            None => found.clear(),
            Some(payload) => found.extend(parse(payload, &mut name_of)?),
        }
        Ok(())
    })?;
    Ok(found)
}

pub(super) fn change(
    socket: &mut NetlinkSocket,
    changes: &[ProxyNeighborChange],
) -> Vec<Result<(), KernelError>> {
    let indexes: Vec<Result<u32, KernelError>> = changes
        .iter()
        .map(|change| index_of(socket, &change.key().interface))
        .collect();
    let known = changes.iter().zip(&indexes);
    let sent: Vec<(&ProxyNeighborChange, u32)> = known
        .filter_map(|(change, index)| Some((change, *index.as_ref().ok()?)))
        .collect();
    let requests: Vec<Request> = sent
        .iter()
        .map(|(change, index)| request(change, *index))
        .collect();
    let action = |position: usize| match sent.get(position) {
        Some((Change::Delete { key, .. }, _)) => format!("delete proxy neighbour {key}"),
        Some((change, _)) => format!("create proxy neighbour {}", change.key()),
        None => String::new(),
    };
    let mut answers = socket.batch(&requests, action).into_iter();
    let unanswered = || KernelError::Malformed {
        action: "change proxy neighbours".to_owned(),
        reason: "no answer".to_owned(),
    };
    let result = |index: Result<u32, KernelError>| {
        index.and_then(|_| answers.next().unwrap_or_else(|| Err(unanswered())))
    };
    indexes.into_iter().map(result).collect()
}

fn request(change: &ProxyNeighborChange, index: u32) -> Request {
    let proxied = change.key().address;
    let mut message = NeighbourMessage::default();
    message.header.family = family(proxied.is_ipv6());
    message.header.ifindex = index;
    message.header.flags = NeighbourFlags::Proxy;
    let destination = NeighbourAttribute::Destination(NeighbourAddress::from(proxied));
    message.attributes.push(destination);
    if matches!(change, Change::Delete { .. }) {
        return Request {
            message: RouteNetlinkMessage::DelNeighbour(message),
            flags: 0,
        };
    }
    let mark = NeighbourAttribute::Protocol(RouteProtocol::from(ROUTE_PROTOCOL_LOCAL));
    message.attributes.push(mark);
    Request {
        message: RouteNetlinkMessage::NewNeighbour(message),
        flags: NLM_F_CREATE,
    }
}

/// Reads a proxy neighbour; `None` for other messages.
fn parse(
    payload: &[u8],
    name_of: &mut impl FnMut(u32) -> String,
) -> Result<Option<(ProxyNeighbor, Maker)>, String> {
    let header: &[u8; HEADER_BYTES] = payload.first_chunk().ok_or("neighbour header cut short")?;
    let [_, _, _, _, i0, i1, i2, i3, _, _, flags, _] = *header;
    let (mut proxied, mut maker) = (None, Maker::Another);
    for attribute in NlasIterator::new(payload.get(HEADER_BYTES..).unwrap_or_default()) {
        let attribute = attribute.map_err(|error| error.to_string())?;
        match attribute.kind() {
            NDA_DST => proxied = Some(address(attribute.value())?),
            NDA_PROTOCOL if attribute.value() == [ROUTE_PROTOCOL_LOCAL] => maker = Maker::Us,
            _ => {}
        }
    }
    Ok(proxied.filter(|_| flags & NTF_PROXY != 0).map(|address| {
        let interface = name_of(u32::from_ne_bytes([i0, i1, i2, i3]));
        (ProxyNeighbor { address, interface }, maker)
    }))
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use netlink_packet_core::Emitable as _;
    use proptest::prelude::*;

    use super::*;

    /// The request that makes it, without the header of netlink.
    fn bytes_of(address: IpAddr, index: u32) -> Vec<u8> {
        let key = ProxyNeighbor {
            address,
            interface: format!("if{index}"),
        };
        let RouteNetlinkMessage::NewNeighbour(message) =
            request(&Change::Create { key, value: () }, index).message
        else {
            panic!("it makes something else");
        };
        let mut bytes = vec![0; message.buffer_len()];
        message.emit(&mut bytes);
        bytes
    }

    fn any_address() -> impl Strategy<Value = IpAddr> {
        prop_oneof![
            any::<u32>().prop_map(|bits| IpAddr::V4(bits.into())),
            any::<u128>().prop_map(|bits| IpAddr::V6(bits.into())),
        ]
    }

    proptest! {
        #[test]
        fn one_is_read_as_it_was_written(address in any_address(), index in any::<u32>()) {
            let parsed = parse(&bytes_of(address, index), &mut |index| format!("if{index}")).unwrap();
            let interface = format!("if{index}");
            prop_assert_eq!(parsed, Some((ProxyNeighbor { address, interface }, Maker::Us)));
        }

        #[test]
        fn no_bytes_make_reading_panic(
            address in any_address(),
            garbage in proptest::collection::vec(any::<u8>(), 0..60),
            (position, value, cut) in (0_usize..50, any::<u8>(), 0_usize..60),
        ) {
            let mut name_of = |_: u32| String::new();
            let _ = parse(&garbage, &mut name_of);
            let mut bytes = bytes_of(address, 7);
            if let Some(byte) = bytes.get_mut(position) {
                *byte = value;
            }
            bytes.truncate(cut);
            let _ = parse(&bytes, &mut name_of);
        }
    }

    #[test]
    fn without_our_mark_it_is_anothers() {
        let mut bytes = bytes_of("192.0.2.7".parse().unwrap(), 7);
        let mark = bytes.len() - 4;
        bytes[mark] = 4;
        let (_, maker) = parse(&bytes, &mut |_| String::new()).unwrap().unwrap();
        assert_eq!(maker, Maker::Another);
    }
}
