//! Changes of elements as one batch of nfnetlink: what `nft -f` sends for `add element` and `delete element`, without the
//! process. Bytes only; `writer.rs` sends them.
//!
//! A batch is one datagram and one transaction: all of it or nothing. Every message in it asks for an acknowledgement.
//! Keys are as the kernel's registers hold them: each part of a concatenation begins at four bytes, addresses and ports
//! are in network byte order, names have 16 bytes. Elements of interval sets are none of these (`change.rs`).
//! See linux/netfilter/nfnetlink.h and linux/netfilter/nf_tables.h.

use std::net::IpAddr;

use netlink_packet_core::{NLM_F_ACK, NLM_F_CREATE, NLM_F_REQUEST};

use super::{ElementChange, NftChange, NftElement, NftFamily, NftPart, TableChange};
use crate::kernel::wire::{attribute, message, nested};
use crate::ours::NFT_TABLE;

/// Elements changed in one batch, at most: more are `nft`'s, whose start costs little then. So many fit in one attribute
/// (64 KiB), and their batch in the smallest send buffer.
const MAX_ELEMENTS: usize = 512;

const NFNL_MSG_BATCH_BEGIN: u16 = 0x10;
const NFNL_MSG_BATCH_END: u16 = 0x11;
const NFNL_SUBSYS_NFTABLES: u16 = 10;
const NFT_MSG_NEWSETELEM: u16 = NFNL_SUBSYS_NFTABLES << 8 | 12;
const NFT_MSG_DELSETELEM: u16 = NFNL_SUBSYS_NFTABLES << 8 | 14;
const NFTA_SET_ELEM_LIST_TABLE: u16 = 1;
const NFTA_SET_ELEM_LIST_SET: u16 = 2;
const NFTA_SET_ELEM_LIST_ELEMENTS: u16 = 3;
const NFTA_LIST_ELEM: u16 = 1;
const NFTA_SET_ELEM_KEY: u16 = 1;
const NFTA_SET_ELEM_DATA: u16 = 2;
const NFTA_DATA_VALUE: u16 = 1;
const NFPROTO_UNSPEC: u8 = 0;
const NFPROTO_INET: u8 = 1;
const NFPROTO_ARP: u8 = 3;
/// `IFNAMSIZ`, with the zero at the end.
const INTERFACE_BYTES: usize = 16;

/// The batch that carries the changes out; `None` if it takes more than a few elements, or elements of a form that `nft` is
/// better asked about.
pub(super) fn batch(changes: &[NftChange]) -> Option<Vec<u8>> {
    let mut tables = Vec::with_capacity(changes.len());
    let mut count = 0_usize;
    for change in changes {
        let TableChange::Elements(sets) = &change.change else {
            return None;
        };
        let elements = sets.values().map(|set| set.removed.len() + set.added.len());
        count += elements.sum::<usize>();
        tables.push((change.family, sets));
    }
    if count > MAX_ELEMENTS {
        return None;
    }
    let mut datagram = Vec::new();
    frame(NFNL_MSG_BATCH_BEGIN, &mut datagram);
    for (family, sets) in tables {
        for (name, ElementChange { removed, .. }) in sets {
            elements((family, NFT_MSG_DELSETELEM, 0), name, removed, &mut datagram)?;
        }
        for (name, ElementChange { added, .. }) in sets {
            elements(
                (family, NFT_MSG_NEWSETELEM, NLM_F_CREATE),
                name,
                added,
                &mut datagram,
            )?;
        }
    }
    frame(NFNL_MSG_BATCH_END, &mut datagram);
    Some(datagram)
}

/// Begin or end of a batch.
fn frame(kind: u16, datagram: &mut Vec<u8>) {
    message(kind, NLM_F_REQUEST, datagram, |datagram| {
        generic_header(NFPROTO_UNSPEC, NFNL_SUBSYS_NFTABLES, datagram);
    });
}

/// `struct nfgenmsg`: family, version 0, resource in network byte order.
fn generic_header(family: u8, resource: u16, datagram: &mut Vec<u8>) {
    datagram.extend_from_slice(&[family, 0]);
    datagram.extend_from_slice(&resource.to_be_bytes());
}

/// One message for all elements that come into a set or go.
fn elements<'a>(
    (family, kind, flags): (NftFamily, u16, u16),
    set: &str,
    elements: impl IntoIterator<Item = &'a NftElement>,
    datagram: &mut Vec<u8>,
) -> Option<()> {
    let mut elements = elements.into_iter().peekable();
    if elements.peek().is_none() {
        return Some(());
    }
    let family = match family {
        NftFamily::Inet => NFPROTO_INET,
        NftFamily::Arp => NFPROTO_ARP,
    };
    let mut written = Some(());
    message(kind, flags | NLM_F_REQUEST | NLM_F_ACK, datagram, |datagram| {
        generic_header(family, 0, datagram);
        for (kind, name) in [
            (NFTA_SET_ELEM_LIST_TABLE, NFT_TABLE),
            (NFTA_SET_ELEM_LIST_SET, set),
        ] {
            attribute(kind, &[name.as_bytes(), &[0]].concat(), datagram);
        }
        nested(NFTA_SET_ELEM_LIST_ELEMENTS, datagram, |datagram| {
            written = elements.try_for_each(|each| element(each, datagram));
        });
    });
    written
}

fn element(element: &NftElement, datagram: &mut Vec<u8>) -> Option<()> {
    let key = registers(element.key_parts())?;
    let value = registers(element.value_parts())?;
    nested(NFTA_LIST_ELEM, datagram, |datagram| {
        nested(NFTA_SET_ELEM_KEY, datagram, |datagram| {
            attribute(NFTA_DATA_VALUE, &key, datagram);
        });
        if !value.is_empty() {
            nested(NFTA_SET_ELEM_DATA, datagram, |datagram| {
                attribute(NFTA_DATA_VALUE, &value, datagram);
            });
        }
    });
    Some(())
}

/// The parts as the kernel's registers hold them. `None`: there is no such key.
fn registers(parts: &[NftPart]) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(2 * INTERFACE_BYTES);
    for part in parts {
        match part {
            NftPart::Interface(name) => {
                let mut padded = [0; INTERFACE_BYTES];
                // The last byte stays zero.
                padded[..INTERFACE_BYTES - 1]
                    .get_mut(..name.len())?
                    .copy_from_slice(name.as_bytes());
                bytes.extend_from_slice(&padded);
            }
            NftPart::Address(IpAddr::V4(v4)) => bytes.extend_from_slice(&v4.octets()),
            NftPart::Address(IpAddr::V6(v6)) => bytes.extend_from_slice(&v6.octets()),
            NftPart::Protocol(number) => bytes.push(*number),
            NftPart::Port(port) => bytes.extend_from_slice(&port.to_be_bytes()),
            NftPart::Range(_) => return None,
        }
        if parts.len() > 1 {
            bytes.resize(bytes.len().next_multiple_of(4), 0);
        }
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_as_the_registers_hold_them() {
        let v4 = NftPart::Address("10.65.0.2".parse().unwrap());
        let name = NftPart::Interface("cali1".to_owned());
        let rows: [(&[NftPart], &[u8]); 5] = [
            (std::slice::from_ref(&name), b"cali1\0\0\0\0\0\0\0\0\0\0\0"),
            (
                &[name.clone(), v4.clone()],
                b"cali1\0\0\0\0\0\0\0\0\0\0\0\x0a\x41\0\x02",
            ),
            (&[NftPart::Port(0x1f90)], &[0x1f, 0x90]),
            (
                &[NftPart::Protocol(6), NftPart::Port(0x1f90)],
                &[6, 0, 0, 0, 0x1f, 0x90, 0, 0],
            ),
            (&[v4, NftPart::Port(80)], &[10, 65, 0, 2, 0, 80, 0, 0]),
        ];
        for (parts, bytes) in rows {
            assert_eq!(registers(parts).as_deref(), Some(bytes), "{parts:?}");
        }
    }

    #[test]
    fn what_is_no_key_is_left_to_the_program() {
        let longest = "cali01234567890";
        assert_eq!(longest.len(), 15);
        assert!(registers(&[NftPart::Interface(longest.to_owned())]).is_some());
        assert_eq!(registers(&[NftPart::Interface(format!("{longest}1"))]), None);
        assert_eq!(registers(&[NftPart::range("10.0.0.0/8".parse().unwrap())]), None);
    }
}
