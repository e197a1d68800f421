//! Connections that the kernel tracks, and forgetting some of them (ctnetlink; linux/netfilter/nfnetlink_conntrack.h).
//!
//! An entry outlives the pod that it was made for. When the pod's address goes to another one, or a port of the node leads
//! elsewhere, packets of old flows would go on by the old entry: UDP, above all, may never pause long enough for it to
//! expire.
//!
//! The whole table is read and judged here: kernels before 6.10 cannot be asked for a part of it to be deleted.

use std::collections::BTreeSet;
use std::net::IpAddr;

use netlink_packet_core::{NLM_F_DUMP, NLM_F_REQUEST, NlasIterator};
use netlink_sys::protocols::NETLINK_NETFILTER;

use super::KernelError;
use super::message::address;
use super::netlink::NetlinkSocket;
use super::wire;

// linux/netfilter/nfnetlink.h: the subsystem stands in the upper byte of the message type.
const NFNL_SUBSYS_CTNETLINK: u16 = 1;
const IPCTNL_MSG_CT_GET: u16 = NFNL_SUBSYS_CTNETLINK << 8 | 1;
const IPCTNL_MSG_CT_DELETE: u16 = NFNL_SUBSYS_CTNETLINK << 8 | 2;
const CTA_TUPLE_ORIG: u16 = 1;
const CTA_TUPLE_REPLY: u16 = 2;
const CTA_ID: u16 = 12;
const CTA_ZONE: u16 = 18;
const CTA_TUPLE_IP: u16 = 1;
const CTA_TUPLE_PROTO: u16 = 2;
const CTA_PROTO_NUM: u16 = 1;
const CTA_PROTO_DST_PORT: u16 = 3;
/// `struct nfgenmsg`: family, version, resource.
const GENERIC_HEADER_BYTES: usize = 4;
/// `NLA_TYPE_MASK`: without the flags for nested attributes and byte order.
const TYPE_MASK: u16 = 0x3fff;

/// Which connections to forget.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ConnectionFilter {
    /// Those from or to one of these addresses, before or after translation.
    pub addresses: BTreeSet<IpAddr>,
    /// Those of UDP that were sent to one of these ports.
    pub udp_ports: BTreeSet<u16>,
}

impl ConnectionFilter {
    /// Whether it stands for no connection.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.addresses.is_empty() && self.udp_ports.is_empty()
    }

    /// Adds what the other one stands for.
    pub fn extend(&mut self, other: Self) {
        self.addresses.extend(other.addresses);
        self.udp_ports.extend(other.udp_ports);
    }
}

/// Forgets connections and says how many. A kernel that tracks none has none to forget.
pub(super) fn forget(filter: &ConnectionFilter) -> Result<usize, KernelError> {
    let mut socket = NetlinkSocket::open_for(NETLINK_NETFILTER)?;
    let mut found: Vec<Vec<u8>> = Vec::new();
    let mut request = Vec::new();
    wire::message(
        IPCTNL_MSG_CT_GET,
        NLM_F_REQUEST | NLM_F_DUMP,
        &mut request,
        |request| request.extend_from_slice(&[0; GENERIC_HEADER_BYTES]),
    );
    let listed = socket.dump_bytes(&request, "list the tracked connections", |payload| {
        match payload {
            None => found.clear(),
            Some(payload) => found.extend(deletion(payload, filter)?),
        }
        Ok(())
    });
    match listed {
        Err(error)
            if matches!(
                error.errno(),
                Some(libc::EINVAL | libc::EOPNOTSUPP | libc::ENOENT)
            ) =>
        {
            return Ok(0);
        }
        result => result?,
    }
    let mut forgotten = 0;
    let results = socket.batch_bytes(
        found.len(),
        |position, datagram| datagram.extend_from_slice(&found[position]),
        |_| "forget a tracked connection".to_owned(),
    );
    for result in results {
        match result {
            Ok(()) => forgotten += 1,
            // Expired meanwhile.
            Err(error) if error.errno() == Some(libc::ENOENT) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(forgotten)
}

/// The request that deletes a connection, if it is one of those to forget.
fn deletion(payload: &[u8], filter: &ConnectionFilter) -> Result<Option<Vec<u8>>, String> {
    let header: &[u8; GENERIC_HEADER_BYTES] = payload.first_chunk().ok_or("connection header cut short")?;
    let mut body = vec![header[0], 0, 0, 0];
    let mut is_meant = false;
    for attribute in NlasIterator::new(payload.get(GENERIC_HEADER_BYTES..).unwrap_or_default()) {
        let attribute = attribute.map_err(|error| error.to_string())?;
        let kind = attribute.kind() & TYPE_MASK;
        match kind {
            CTA_TUPLE_ORIG => {
                let tuple = Tuple::parse(attribute.value())?;
                is_meant |= tuple.concerns(&filter.addresses)
                    || (tuple.protocol == Some(17)
                        && tuple.port.is_some_and(|port| filter.udp_ports.contains(&port)));
            }
            CTA_TUPLE_REPLY => is_meant |= Tuple::parse(attribute.value())?.concerns(&filter.addresses),
            CTA_ID | CTA_ZONE => {}
            _ => continue,
        }
        // The original tuple finds the entry, its number makes sure that it is still the same one.
        match kind {
            CTA_TUPLE_REPLY => {}
            CTA_TUPLE_ORIG => wire::attribute(kind | wire::NESTED, attribute.value(), &mut body),
            _ => wire::attribute(kind, attribute.value(), &mut body),
        }
    }
    Ok(is_meant.then(|| {
        let mut request = Vec::new();
        wire::message(IPCTNL_MSG_CT_DELETE, NLM_F_REQUEST, &mut request, |request| {
            request.extend_from_slice(&body);
        });
        request
    }))
}

#[derive(Default)]
struct Tuple {
    addresses: Vec<IpAddr>,
    protocol: Option<u8>,
    port: Option<u16>,
}

impl Tuple {
    fn parse(bytes: &[u8]) -> Result<Self, String> {
        let mut tuple = Self::default();
        for part in NlasIterator::new(bytes) {
            let part = part.map_err(|error| error.to_string())?;
            for attribute in NlasIterator::new(part.value()) {
                let attribute = attribute.map_err(|error| error.to_string())?;
                match (part.kind() & TYPE_MASK, attribute.kind() & TYPE_MASK) {
                    (CTA_TUPLE_IP, _) => tuple.addresses.push(address(attribute.value())?),
                    (CTA_TUPLE_PROTO, CTA_PROTO_NUM) => {
                        tuple.protocol = attribute.value().first().copied();
                    }
                    (CTA_TUPLE_PROTO, CTA_PROTO_DST_PORT) => {
                        tuple.port = attribute.value().try_into().ok().map(u16::from_be_bytes);
                    }
                    _ => {}
                }
            }
        }
        Ok(tuple)
    }

    fn concerns(&self, addresses: &BTreeSet<IpAddr>) -> bool {
        self.addresses.iter().any(|address| addresses.contains(address))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nested(kind: u16, parts: &[(u16, &[u8])]) -> Vec<u8> {
        let mut bytes = Vec::new();
        wire::nested(kind, &mut bytes, |bytes| {
            for (kind, value) in parts {
                wire::attribute(*kind, value, bytes);
            }
        });
        bytes
    }

    /// A connection of UDP: from, to, port.
    fn connection(from: [u8; 4], to: [u8; 4], port: u16) -> Vec<u8> {
        let tuple = |a: [u8; 4], b: [u8; 4], port: u16| {
            let ip = nested(CTA_TUPLE_IP, &[(1 | 0x4000, &a), (2 | 0x4000, &b)]);
            let proto = nested(
                CTA_TUPLE_PROTO,
                &[(CTA_PROTO_NUM, &[17]), (CTA_PROTO_DST_PORT, &port.to_be_bytes())],
            );
            [ip, proto].concat()
        };
        let mut payload = vec![2, 0, 0, 0];
        wire::attribute(
            CTA_TUPLE_ORIG | wire::NESTED,
            &tuple(from, to, port),
            &mut payload,
        );
        wire::attribute(
            CTA_TUPLE_REPLY | wire::NESTED,
            &tuple(to, from, 4711),
            &mut payload,
        );
        wire::attribute(CTA_ID, &[1, 2, 3, 4], &mut payload);
        payload
    }

    #[test]
    fn connections_are_found_by_address_and_by_port_of_udp() {
        let payload = connection([10, 65, 0, 2], [192, 0, 2, 1], 53);
        let found = |addresses: &[&str], udp_ports: &[u16]| {
            let filter = ConnectionFilter {
                addresses: addresses.iter().map(|address| address.parse().unwrap()).collect(),
                udp_ports: udp_ports.iter().copied().collect(),
            };
            deletion(&payload, &filter).unwrap().is_some()
        };
        assert!(found(&["10.65.0.2"], &[]) && found(&["192.0.2.1"], &[]) && found(&[], &[53]));
        assert!(!found(&["10.65.0.3"], &[54]) && !found(&[], &[4711]) && !found(&[], &[]));
    }

    #[test]
    fn what_is_cut_short_is_an_error_not_a_panic() {
        let payload = connection([10, 65, 0, 2], [192, 0, 2, 1], 53);
        let filter = ConnectionFilter {
            udp_ports: [53].into(),
            ..ConnectionFilter::default()
        };
        for length in 0..payload.len() {
            let _ = deletion(&payload[..length], &filter);
        }
        assert!(deletion(&payload[..3], &filter).is_err());
    }
}
